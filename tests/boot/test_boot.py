#!/usr/bin/env python3
"""Real kernels to a shell, and out again."""
import os
import re
import subprocess
import sys
import time

from harness import BANNER, BUILD, GUEST, Failure, Skip, Vitro, check, cpu_s, error_line, main, script


def boots_to_shell(*args):
    with Vitro("run", *args) as v:
        v.to_shell()
        v.command("echo $((6 * 7)) is the answer", rb"\n42 is the answer")
        v.send("poweroff\n")
        status = v.wait()
        check(status == 0, f"poweroff gave status {status}; {v.tail()}")
        return v.seen


def kernel(name):
    path = os.path.join(GUEST, name)
    if not os.path.exists(path):
        raise Skip(f"{path} is not there; `make guests` fetches it")
    return ["--kernel", path, "--initrd", os.path.join(GUEST, "initrd.img")]


def test_512m():
    boots_to_shell("--mem", "512M")


def test_small_memory():
    # A little above the least the stock cloud kernel boots in; see README, Limits.
    boots_to_shell("--mem", "80M")


def test_8g():
    with Vitro("run", "--mem", "8G", "--append", script("grep MemTotal /proc/meminfo")) as v:
        kib = int(v.expect(rb"MemTotal: *(\d+) kB").group(1))
        check(7_500_000 < kib < 8_400_000, f"{kib} KiB")
        v.expect(rb"vitro.test: status 0")
        check(v.wait() == 0, v.tail())


def test_generic_kernel():
    boots_to_shell(*kernel("vmlinuz-generic"))


def test_rt_kernel():
    seen = boots_to_shell(*kernel("vmlinuz-rt"))
    check(b"PREEMPT_RT" in seen, "not an rt kernel")


def test_32bit_kernel():
    # Debian's 686-pae kernel and a 32-bit busybox: paging with PAE, SYSENTER, 32-bit segments for per-CPU data.
    args = kernel("vmlinuz-i386")
    args[3] = os.path.join(GUEST, "initrd-i386.img")
    with Vitro("run", *args) as v:
        v.to_shell()
        v.command("uname -m", rb"\ni686")
        v.command("for i in 1 2 3 4 5 6 7 8; do (dd if=/dev/urandom bs=64k count=4 2>/dev/null | gzip | gunzip | wc -c); done |"
                  " sort -u | sed s/^/size-/", rb"\nsize-262144")
        v.send("poweroff\n")
        check(v.wait() == 0, v.tail())


def test_mitigations_off():
    boots_to_shell("--append", "mitigations=off")


def test_mitigations_on():
    boots_to_shell("--append", "mitigations=auto pti=on")


def test_nokaslr():
    boots_to_shell("--append", "nokaslr")


def test_script_hook():
    text = 'uname -m; echo out; echo err >&2; exit 7'
    with Vitro("run", "--append", "quiet " + script(text), stdin=None) as v:
        v.expect(rb"x86_64\r\nout\r\nerr\r\nvitro.test: status 7")
        check(v.wait() == 0, v.tail())


def test_early_input():
    """Input that is there before the guest is up reaches its shell; the end of it ends nothing."""
    with Vitro("run") as v:
        v.send("echo first $((40 + 2))\necho last; sleep 1; poweroff\n")
        v.process.stdin.close()
        v.expect(rb"first 42")
        check(v.wait() == 0, v.tail())


def test_reboot_starts_again():
    with Vitro("run", "--append", "quiet") as v:
        v.to_shell()
        v.send("reboot\n")
        v.to_shell()
        v.send("poweroff\n")
        check(v.wait() == 0, v.tail())
        check(v.seen.count(b"is up; poweroff ends it") == 2, v.tail())


def test_no_reboot():
    with Vitro("run", "--no-reboot", "--append", "quiet") as v:
        v.to_shell()
        v.send("reboot\n")
        check(v.wait() == 0, v.tail())


def test_idle_costs_nothing():
    with Vitro("run", "--append", "quiet") as v:
        v.to_shell()
        time.sleep(3)  # let late initialisation finish
        used, seconds = cpu_s(v.process.pid), 5
        time.sleep(seconds)
        share = (cpu_s(v.process.pid) - used) / seconds
        check(share < 0.02, f"{share:.1%} of a core while idle")


def test_time_passes():
    with Vitro("run", "--append", "quiet") as v:
        v.to_shell()
        started = time.monotonic()
        v.command("sleep 2; echo slept $?", rb"slept 0\r")
        took = time.monotonic() - started
        check(1.9 < took < 3.5, f"2 s took {took:.2f} s")
        now = int(v.command("date +%s.", rb"(\d{9,})\.\r").group(1))
        check(abs(now - time.time()) < 5, f"the guest's clock is {now - time.time():.0f} s off")


def test_hpet():
    """Linux keeps time by it, and takes its ticks from it: the 8254's input is the HPET's then."""
    text = ("cat /sys/devices/system/clocksource/clocksource0/current_clocksource; "
            "cat /sys/devices/system/clockevents/clockevent0/current_device; "
            "ls /dev/hpet; sleep 1; grep -w timer /proc/interrupts")
    with Vitro("run", "--append", "clocksource=hpet tsc=unstable no-kvmclock nolapic_timer " + script(text), stdin=None) as v:
        v.expect(rb"\nhpet\r?\nhpet\r?\n/dev/hpet\r?\n")
        check(int(v.expect(rb" 0: +(\d+) .*timer").group(1)) > 20, v.tail())
        check(v.wait() == 0, v.tail())


def test_stats():
    with Vitro("run", "--stats", "--append", "quiet " + script("true")) as v:
        check(v.wait(90) == 0, v.tail())
        check(len(v.errors.splitlines()) > 3, v.tail())


def test_symbols():
    """Names for guest addresses: from an ELF file, from a System.map, from neither."""
    import tempfile
    elf = os.path.join(BUILD, "tests", "guest", "callret.elf")
    with Vitro("run", "--kernel", elf, "--stats", "--symbols", elf, stdin=None) as v:
        v.wait(30)
        check(re.search(rb"physical 0x[0-9a-f]+ mode 0x[0-9a-f]+ [a-z_0-9]+\+", v.errors), v.tail())
    with tempfile.NamedTemporaryFile() as f:  # the form of System.map and /proc/kallsyms
        subprocess.run(["nm", elf], check=True, stdout=f)
        with Vitro("run", "--kernel", elf, "--stats", "--symbols", f.name, stdin=None) as v:
            v.wait(30)
            check(re.search(rb"physical 0x[0-9a-f]+ mode 0x[0-9a-f]+ [a-z_0-9]+\+", v.errors), v.tail())
    check("neither a System.map" in error_line("run", "--symbols", "README.md"), "README.md as symbols")


def test_no_root():
    """Nothing needs privileges: as nobody, with files nobody can read."""
    if os.getuid() != 0:
        raise Skip("not root already")
    import shutil
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        from harness import VITRO
        for f in (VITRO, f"{GUEST}/vmlinuz", f"{GUEST}/initrd.img"):
            shutil.copy(f, d)
        p = subprocess.run([f"{d}/vitro", "run", "--kernel", f"{d}/vmlinuz", "--initrd", f"{d}/initrd.img",
                            "--append", script("echo as nobody")],
                           stdin=subprocess.DEVNULL, capture_output=True, timeout=90,
                           user=65534, group=65534, extra_groups=[])
        check(p.returncode == 0 and b"as nobody" in p.stdout, (p.stdout[-300:], p.stderr))


def test_debug_modes():
    """One-instruction blocks and slow-path-only can boot too: that is what they are for."""
    for mode in ("one-insn", "slow-path", "one-insn,slow-path"):
        with Vitro("run", "--debug", mode, "--append", script("echo up")) as v:
            v.expect(rb"vitro.test: status 0", 600)
            check(v.wait() == 0, f"{mode}: {v.tail()}")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/boot"))
