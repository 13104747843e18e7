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


def timewarp(*args, append="", pauses=0):
    with tempfile.TemporaryDirectory(prefix="vitro-test-") as d:
        exe = os.path.join(d, "timewarp")
        subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", exe, os.path.join(HERE, "programs", "timewarp.c")],
                       check=True)
        with open(exe, "rb") as f:
            files = {"timewarp": f.read(), "test": f"cat {CLOCK}current_clocksource; /timewarp {3 + 2 * bool(pauses)}".encode()}
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


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/pv"))
