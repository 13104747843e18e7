#!/usr/bin/env python3
"""KVM's guest ABI in Debian's stock kernel: its log says what it uses, and each part can be switched off."""
import os
import re
import subprocess
import sys
import tempfile
import time

from harness import GUEST, VITRO, Vitro, check, main, script
from userland import image_with

HERE = os.path.dirname(os.path.abspath(__file__))
CLOCK = "/sys/devices/system/clocksource/clocksource0/"
# Some work that sends IPIs, flushes TLBs of others, and sleeps; then what the kernel said.
WORK = "for i in 1 2 3 4 5 6 7 8; do (seq 3000 | sort -rn | md5sum) & done; wait; sleep 0.2; "
SHOW = f"dmesg; grep . {CLOCK}available_clocksource {CLOCK}current_clocksource; cat /proc/stat; "

# word: what the kernel's log has only if it is offered, on a guest of two CPUs
SAYS = {
    "clock": "kvm-clock: Using msrs 4b564d01 and 4b564d00",
    "unhalt": "kvm-guest: PV spinlocks enabled",
    "tlb": "kvm-guest: KVM setup pv remote TLB flush",
    "ipi": "kvm-guest: setup PV IPIs",
    "yield": "kvm-guest: setup PV sched yield",
}


def boot(*args, append="", show=SHOW, seconds=120):
    with Vitro("run", "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", os.path.join(GUEST, "initrd.img"),
               "--append", f"quiet {append} " + script(WORK + show), *args, stdin=None) as v:
        v.expect(rb"vitro.test: status 0", seconds)
        check(v.wait() == 0, v.tail())
        seen = v.seen.decode(errors="replace").replace("\r\n", "\n")
    for word in ("Oops", "BUG:", "Call Trace", "soft lockup", "detected stalls"):
        check(word not in seen, f"{word} in {seen[-2000:]!r}")
    return seen, v.errors.decode(errors="replace")


def test_everything():
    seen, _ = boot("--cpus", "2")
    for text in ("Hypervisor detected: KVM", *SAYS.values()):
        check(text in seen, f"no {text!r}")
    check(re.search(r"available_clocksource:.*kvm-clock", seen), "no kvm-clock")


def test_nothing():
    seen, _ = boot("--cpus", "2", "--pv", "none")
    for text in ("Hypervisor detected", "kvm-guest", "kvm-clock"):
        check(text not in seen, f"{text!r} with --pv none")


def test_each_off():
    for word, text in SAYS.items():
        seen, _ = boot("--cpus", "2", "--pv", f"-{word}")
        check("Hypervisor detected: KVM" in seen, f"-{word}: no KVM at all")
        check(text not in seen, f"-{word}: {text!r}")
        for other, says in SAYS.items():
            check(other == word or says in seen, f"-{word}: no {says!r}")


def test_each_off_unseen():
    """Parts that the kernel uses or not without a word."""
    for words in ("-io-delay,-eoi,-poll,-map-gpa", "-steal"):
        seen, _ = boot("--cpus", "2", "--pv", words)
        check("Hypervisor detected: KVM" in seen, f"{words}: no KVM at all")
        there = SAYS["tlb"] in seen and SAYS["yield"] in seen  # these two stand on steal time
        check(there == (words != "-steal"), f"{words}: flushes and yields")


def test_eoi_saves_msr_writes():
    """An end of interrupt by the guest's word is one MSR write less."""
    def writes_per_interrupt(*args):
        _, stats = boot("--stats", *args, show="grep LOC /proc/interrupts; ")
        return int(re.search(r"WRMSR:(\d+)", stats).group(1)) / int(re.search(r"interrupts (\d+)", stats).group(1))
    on, off = writes_per_interrupt(), writes_per_interrupt("--pv", "-eoi")
    check(on + 0.5 < off, f"{on:.2f} MSR writes an interrupt with it, {off:.2f} without")


def test_steal_time():
    """On a host whose two workers compete for one CPU, the guest sees that time was stolen."""
    cpu = sorted(os.sched_getaffinity(0))[0]
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"],
                            preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        stolen = {}
        for pv in ("kvm", "-steal"):
            seen, _ = boot("--pv", pv, show="timeout 2 sh -c 'while :; do :; done'; head -1 /proc/stat; ")
            stolen[pv] = int(re.search(r"^cpu +(?:\d+ ){7}(\d+)", seen, re.M).group(1))
    finally:
        os.sched_setaffinity(0, before)
        spin.kill()
        spin.wait()
    check(stolen["kvm"] >= 20, f"{stolen['kvm']} hundredths of a second stolen")
    check(stolen["-steal"] == 0, "stolen time without the feature")


def test_same_results():
    """An aware kernel computes what an unaware one does."""
    work = ("seq 20000 | sha256sum; seq 3000 | awk '{ x += sin($1) / $1 } END { printf \"%.12f\\n\", x }'; "
            "for i in 1 2 3 4; do (seq $((i * 5000)) | sort -r | md5sum > /tmp/$i) & done; wait; cat /tmp/[1-4]; "
            "i=0; s=0; while [ $i -lt 3000 ]; do s=$(((s * 31 + i) % 65521)); i=$((i + 1)); done; echo $s; ")
    seen = {}
    for pv in ("none", "kvm,vitro"):
        out, _ = boot("--cpus", "2", "--pv", pv, show=f"echo BEGIN; {work}echo END; ")
        seen[pv] = re.search(r"^BEGIN\n(.*)^END\n", out, re.M | re.S).group(1)
    check(len(seen["none"].splitlines()) == 7, seen["none"])
    check(seen["none"] == seen["kvm,vitro"], f"{seen}")


def program(folder, name):
    """The bytes of tests/boot/programs/NAME.c, compiled."""
    exe = os.path.join(folder, name)
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", exe, os.path.join(HERE, "programs", name + ".c")], check=True)
    with open(exe, "rb") as f:
        return f.read()


def timewarp(*args, append="", pauses=0):
    with tempfile.TemporaryDirectory(prefix="vitro-test-") as d:
        files = {"timewarp": program(d, "timewarp"), "test": f"cat {CLOCK}current_clocksource; /timewarp {3 + 2 * bool(pauses)}".encode()}
        with Vitro("run", *(("--name", "t" + d.rpartition("-")[2]) if pauses else ()), "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", image_with(files, ("initrd.img",)),
                   "--append", f"quiet {append} vitro.script", *args, stdin=None) as v:
            v.expect(rb"(tsc|kvm-clock)\s", 120)
            for _ in range(pauses):
                time.sleep(0.4)
                for command in ("pause", "resume"):
                    subprocess.run([VITRO, command, "t" + d.rpartition("-")[2]], check=True, stdout=subprocess.DEVNULL)
                    time.sleep(0.3)
            v.expect(rb"timewarp: .*\n", 120)
            check(v.wait() == 0, v.tail())
            return v.seen.decode(errors="replace").replace("\r\n", "\n")


def test_time_never_runs_backwards():
    """From CPU to CPU, by the TSC and by kvm-clock."""
    for append, source in (("", "tsc"), ("clocksource=kvm-clock", "kvm-clock")):
        seen = timewarp("--cpus", "4", append=append)
        check(re.search(rf"^{source}$", seen, re.M), f"not {source}: {seen[-400:]!r}")
        check(" 4 cpus," in seen and ", 0 backwards," in seen, seen[-400:])


def test_time_across_pauses():
    """Held still and let go on from outside, time goes on where it was."""
    for append in ("", "clocksource=kvm-clock"):
        seen = timewarp("--cpus", "2", append=append, pauses=3)
        check(" 2 cpus," in seen and ", 0 backwards," in seen, seen[-400:])


def test_time_across_a_snapshot():
    """Written to a file in the middle, and read back some seconds later: no CPU's clock goes backwards, and what passed meanwhile did not."""
    for append in ("", "clocksource=kvm-clock"):
        with tempfile.TemporaryDirectory(prefix="vitro-test-") as d:
            name, file = "t" + d.rpartition("-")[2], os.path.join(d, "snapshot")
            files = {"timewarp": program(d, "timewarp"), "test": b"cut -d. -f1 /proc/uptime; echo begun; /timewarp 4; cut -d. -f1 /proc/uptime"}
            with Vitro("run", "--name", name, "--cpus", "2", "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd",
                       image_with(files, ("initrd.img",)), "--append", f"quiet {append} vitro.script", stdin=None) as v:
                v.expect(rb"begun", 120)
                time.sleep(1)
                subprocess.run([VITRO, "snapshot", name, file, "--quit"], check=True, stdout=subprocess.DEVNULL)
                v.wait()
                before = v.seen
            time.sleep(6)
            with Vitro("run", "--restore", file, stdin=None) as v:
                v.expect(rb"timewarp: .*\n\d+\r?\n", 120)
                seen = (before + v.seen).decode(errors="replace").replace("\r\n", "\n")
            check(" 2 cpus," in seen and ", 0 backwards," in seen, seen[-400:])
            first, last = re.search(r"^(\d+)\nbegun\n", seen, re.M), re.search(r"timewarp: .*\n(\d+)\n", seen)
            check(int(last[1]) - int(first[1]) < 10, f"{append}: uptime {first[1]}, then {last[1]}")


def test_clock_pairing():
    """The host's clock by Linux's own driver for it (ptp_kvm)."""
    with open(os.path.join(GUEST, "version")) as f:
        module = os.path.join(GUEST, "modules", f.read().strip(), "ptp_kvm.ko")
    with tempfile.TemporaryDirectory(prefix="vitro-test-") as d, open(module, "rb") as f:
        files = {"ptp": program(d, "ptp"), "ptp_kvm.ko": f.read(), "test": b"insmod /ptp_kvm.ko; cat /sys/class/ptp/ptp0/clock_name; /ptp"}
        initrd = image_with(files, ("initrd.img",))
        for pv in ("kvm", "kvm,-clock"):
            with Vitro("run", "--cpus", "2", "--pv", pv, "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", initrd,
                       "--append", "quiet clocksource=kvm-clock vitro.script", stdin=None) as v:
                v.expect(rb"vitro.test: status", 120)
                now, seen = time.time_ns(), v.seen.decode(errors="replace")
                v.wait()
            found = re.search(r"ptp: device (\d+) precise (\d+) system (\d+)", seen)
            if pv != "kvm":
                check(not found, f"{pv}: there is one all the same: {seen!r}")
                continue
            check("KVM virtual PTP" in seen and found, seen)
            device, precise, system = (int(n) for n in found.groups())
            check(0 < now - device < 60e9 and 0 <= precise - device < 60e9, f"it is {now}: {found[0]}")
            check(abs(system - precise) < 1e9, f"the guest's clock is another: {found[0]}")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/pv"))
