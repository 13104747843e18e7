#!/usr/bin/env python3
"""Debian's stock kernel as a Xen PV guest (--pv xen): it boots, computes the same, is typed to, and ends in every way."""
import os
import re
import subprocess
import sys
import tempfile

from harness import GUEST, Skip, Vitro, check, error_line, main, script
from userland import image_with

HERE = os.path.dirname(os.path.abspath(__file__))
KERNEL = os.path.join(GUEST, "vmlinuz")
INITRD = os.path.join(GUEST, "initrd.img")
TROUBLE = ("Oops", "BUG:", "Call Trace", "soft lockup", "detected stalls", "WARNING:")


def boot(text, *args, kernel=KERNEL, initrd=INITRD, append="", pv="xen", seconds=120):
    with Vitro("run", "--pv", pv, "--kernel", kernel, "--initrd", initrd, "--append", f"{append} " + script(text), *args,
               stdin=None) as v:
        v.expect(rb"vitro.test: status 0", seconds)
        check(v.wait() == 0, v.tail())
        seen = v.seen.decode(errors="replace").replace("\r\n", "\n")
    for word in TROUBLE:
        check(word not in seen, f"{word} in {seen[-3000:]!r}")
    return seen


def test_boots():
    seen = boot("cat /sys/hypervisor/type /proc/interrupts /sys/devices/system/clocksource/clocksource0/current_clocksource; ")
    for text in ("Hypervisor detected: Xen PV", "Booting kernel on Xen", "xen:events: Using 2-level ABI"):
        check(text in seen, f"no {text!r}")
    check(re.search(r"xen-percpu +-virq +timer0", seen), "no Xen timer")
    check(re.search(r"\bxenbus\b", seen) and "hvc_console" in seen, "no xenbus, or no console ring")


def test_early_console():
    seen = boot("true; ", append="earlyprintk=xen,keep")
    check("about to get started" in seen, "nothing said by hypercall")


def test_generic_kernel():
    kernel = os.path.join(GUEST, "vmlinuz-generic")
    if not os.path.exists(kernel):
        raise Skip("no generic kernel; make guests")
    check("Hypervisor detected: Xen PV" in boot("true; ", kernel=kernel), "not as a Xen PV guest")


def test_grub():
    """Debian's GRUB for Xen's PV guests: a kernel that is not Linux, linked at 0, with a console ring, xenstore and a disk of its own."""
    with tempfile.NamedTemporaryFile() as disk:
        subprocess.run(["mformat", "-i", disk.name, "-C", "-T", "20480", "::"], check=True)
        subprocess.run(["mcopy", "-i", disk.name, "-", "::/told.txt"], input=b"from the disk\n", check=True)
        with Vitro("run", "--pv", "xen", "--kernel", f"{GUEST}/grub-xen.bin", "--disk", disk.name) as v:
            v.expect(rb"GNU GRUB +version", 60)
            v.expect(rb"grub> ", 60)
            v.command("ls", rb"\(xen/xvda\)")
            v.command("cat (xen/xvda)/told.txt", rb"from the disk")
            v.send("halt\n")
            check(v.wait(60) == 0, v.tail())


def test_memory_sizes():
    for size, least in ("128M", 80), ("3G", 2800):
        seen = boot("grep MemTotal /proc/meminfo; ", "--mem", size)
        mib = int(re.search(r"MemTotal: +(\d+) kB", seen).group(1)) // 1024
        check(mib > least, f"--mem {size}: the guest sees {mib} MiB")


def test_balloon():
    """Memory that the guest's own driver gives back, and takes again."""
    wait = "for i in $(seq 60); do [ $(cat info/current_kb) = {0} ] && break; sleep 1; done; echo now $(cat info/current_kb); "
    seen = boot("cd /sys/devices/system/xen_memory/xen_memory0; echo 300000 > target_kb; " + wait.format(300000) +
                "echo 524288 > target_kb; " + wait.format(524288) +
                "dd if=/dev/zero of=/tmp/z bs=1M count=200 2>/dev/null; md5sum /tmp/z; ", "--mem", "512M")
    check("now 300000" in seen and "now 524288" in seen, seen[-800:])
    check("3566de3a97906edb98d004d6b947ae9b" in seen, seen[-800:])


def test_same_results():
    """A kernel that knows computes what one that does not does."""
    work = ("seq 20000 | sha256sum; seq 3000 | awk '{ x += sin($1) / $1 } END { printf \"%.12f\\n\", x }'; "
            "for i in 1 2 3 4; do (seq $((i * 5000)) | sort -r | md5sum > /tmp/$i) & done; wait; cat /tmp/[1-4]; "
            "i=0; s=0; while [ $i -lt 3000 ]; do s=$(((s * 31 + i) % 65521)); i=$((i + 1)); done; echo $s; ")
    seen = {}
    for pv in ("none", "xen"):
        out = boot(f"echo BEGIN; {work}echo END; ", append="quiet", pv=pv)
        seen[pv] = re.search(r"^BEGIN\n(.*)^END\n", out, re.M | re.S).group(1)
    check(len(seen["none"].splitlines()) == 7, seen["none"])
    check(seen["none"] == seen["xen"], f"{seen}")


def test_user_programs():
    """Signals, floating point, threads, memory rights: whatever user64.c tries of a kernel."""
    with tempfile.TemporaryDirectory(prefix="vitro-test-") as d:
        exe = os.path.join(d, "user64")
        subprocess.run(["gcc", "-w", "-O1", "-static", "-pthread", "-o", exe, os.path.join(HERE, "programs", "user64.c"), "-lm"],
                       check=True)
        with open(exe, "rb") as f:
            files = {"user64": f.read(), "test": b"/user64 && /user64"}
        with Vitro("run", "--pv", "xen", "--kernel", KERNEL, "--initrd", image_with(files, ("initrd.img",)), "--append",
                   "quiet vitro.script", stdin=None) as v:
            for _ in range(2):
                v.expect(rb"user64: \d+ passed, 0 failed", 120)
            check(v.wait() == 0, v.tail())


def test_typing():
    with Vitro("run", "--pv", "xen", "--kernel", KERNEL, "--initrd", INITRD, tty=True) as v:
        v.to_shell()
        v.command("echo $((6 * 7))x", rb"\r\n42x")
        v.command("for i in $(seq 200); do echo line$i; done | tail -1", rb"\r\nline200")
        v.command("wc -c < /dev/null; cat > /tmp/f", rb"\r\n0")
        v.send("".join(f"{i:05d}" for i in range(600)) + "\r")
        v.send("\x04")
        # What there is too much of would show: every 16 bytes, which is what the guest's driver takes at a time, are others.
        v.command("od -An -c /tmp/f | tail -n 3; wc -c < /tmp/f", rb"\r\n3001")
        v.send("poweroff -f\r")
        check(v.wait() == 0, v.tail())
        check(v.terminal_restored(), "the terminal is not as it was")


def test_ends():
    with Vitro("run", "--pv", "xen", "--no-reboot", "--kernel", KERNEL, "--initrd", INITRD) as v:
        v.to_shell()
        v.send("reboot -f\n")
        check(v.wait() == 0, v.tail())
    with Vitro("run", "--pv", "xen", "--no-reboot", "--kernel", KERNEL, "--initrd", INITRD) as v:
        v.to_shell()
        v.send("echo c > /proc/sysrq-trigger\n")
        check(v.wait(60) == 1, v.tail())
        check(b"panicked" in v.errors, v.tail())


def test_pause():
    """Time stands still for the guest while it is paused."""
    name = f"xen-pause-{os.getpid()}"
    with Vitro("run", "--name", name, "--pv", "xen", "--kernel", KERNEL, "--initrd", INITRD) as v:
        v.to_shell()
        v.command("echo $((6 * 7))x", rb"\n42x")
        for command in ("pause", "resume"):
            subprocess.run([os.path.join(os.environ.get("BUILD", "build"), "vitro"), command, name], check=True,
                           stdout=subprocess.DEVNULL)
        v.command("sleep 1; echo $((6 * 7))y", rb"\n42y", 60)
        v.command("poweroff -f", rb"halted|")
        check(v.wait() == 0, v.tail())


def test_refusals():
    for args, word in ((("--rng",), "no virtio devices"), (("--firmware", "x"), "no firmware")):
        check(word in error_line("run", "--pv", "xen", *args, status=2), word)
    check("whole interface" in error_line("run", "--pv", "xen,kvm", status=2), "--pv xen,kvm")
    check("--mem" in error_line("run", "--pv", "xen", "--mem", "24M", "--kernel", KERNEL), "--mem 24M")


if __name__ == "__main__":
    if os.environ.get("TESTS_FAST") == "1" and not sys.argv[1:]:
        sys.argv[1:] = ["boots"]  # check-torture: a minute
    sys.exit(main(sys.modules[__name__], "boot/xen"))
