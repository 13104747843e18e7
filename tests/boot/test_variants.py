#!/usr/bin/env python3
"""Debian's three kernels under the switches that make them use other parts of the machine.

Every boot runs the same small exercise and shows that the switch did what it is for.
"""
import os
import re
import sys

from harness import GUEST, Skip, Vitro, check, main, script

# Arithmetic, a timer, fork and exec, files, a pipe; ends with one line to look for.
EXERCISE = (
    'i=0; s=0; while [ $i -lt 2000 ]; do s=$(((s * 31 + i) % 65521)); i=$((i + 1)); done; '
    'seq 20000 | sha256sum | head -c 12 > /tmp/a; '
    't=$(cut -d. -f1 /proc/uptime); sleep 0.2; '
    'awk "BEGIN { for (i = 1; i < 3000; i++) x += i / (i * i + 0.3); printf \\"%.6f \\", x }"; '
    'echo "exercise $s $(cat /tmp/a)"; '
)
RESULT = "8.295143 exercise 46914 f6351f5ead9a"
CLOCKSOURCE = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; "
FLAGS = "grep -m1 ^flags /proc/cpuinfo; "


def boot(show="", append="", kernel="vmlinuz", mem="512M", args=()):
    path = os.path.join(GUEST, kernel)
    if not os.path.exists(path):
        raise Skip(f"{path} is not there; `make guests` fetches it")
    with Vitro("run", "--kernel", path, "--initrd", os.path.join(GUEST, "initrd.img"), "--mem", mem,
               "--append", f"quiet {append} " + script(EXERCISE + show), *args, stdin=None) as v:
        v.expect(rb"vitro.test: status \d+")
        check(v.wait() == 0, v.tail())
        seen = v.seen.decode(errors="replace").replace("\r\n", "\n")
    check(RESULT in seen, f"no {RESULT!r} in {seen[-600:]!r}")
    for word in ("Oops", "BUG:", "Call Trace", "soft lockup", "rcu_preempt detected stalls"):
        check(word not in seen, f"{word} in {seen[-2000:]!r}")
    return seen


def flags(seen):
    return set(re.search(r"^flags\s*: (.*)$", seen, re.M).group(1).split())


def without(seen, *names):
    there = flags(seen)
    for name in names:
        check(name not in there, f"{name} is still there")


# -- Mitigations: other entry code, thunks and barriers ------------------------------------------------

VULNERABILITIES = "grep . /sys/devices/system/cpu/vulnerabilities/*; "


def test_mitigations_off():
    seen = boot(VULNERABILITIES, "mitigations=off")
    check("spectre_v2:Vulnerable" in seen, seen[-800:])


def test_retpoline():
    seen = boot(VULNERABILITIES, "spectre_v2=retpoline")
    check("Retpolines" in seen, seen[-800:])


def test_page_table_isolation():
    seen = boot("dmesg | grep -i isolation; ", "pti=on")
    check("page tables isolation: enabled" in seen, seen[-800:])


def test_page_table_isolation_without_pcid():
    seen = boot("dmesg | grep -i isolation; " + FLAGS, "pti=on nopcid")
    check("page tables isolation: enabled" in seen, seen[-800:])
    without(seen, "pcid")


def test_spec_store_bypass():
    boot(VULNERABILITIES, "spec_store_bypass_disable=on spectre_v2_user=on retbleed=auto,nosmt")


# -- Processor features taken away -----------------------------------------------------------------------

def test_nopcid():
    without(boot(FLAGS, "nopcid"), "pcid", "invpcid_single")


def test_nosmap_nosmep():
    without(boot(FLAGS, "clearcpuid=smap,smep"), "smap", "smep")


def test_noxsave():
    without(boot(FLAGS, "noxsave"), "xsave", "avx", "avx2", "avx512f")


def test_noxsaves():
    without(boot(FLAGS, "noxsaves noxsaveopt"), "xsaves", "xsaveopt")


def test_nofsgsbase():
    without(boot(FLAGS, "nofsgsbase"), "fsgsbase")


def test_no_string_features():
    without(boot(FLAGS, "clearcpuid=fsrm,erms,rep_good"), "fsrm", "erms", "rep_good")


def test_no_avx512():
    without(boot(FLAGS, "clearcpuid=avx512f"), "avx512f", "avx512vl")


def test_no_large_pages():
    seen = boot(FLAGS + "grep DirectMap /proc/meminfo; ", "nogbpages nopat clearcpuid=pse,pge")
    without(seen, "pse", "pge")
    check(not re.search(r"DirectMap(2M|1G): +[1-9]", seen), seen[-200:])


# -- Interrupts and clocks ---------------------------------------------------------------------------------

INTERRUPTS = "cat /proc/interrupts; "


def test_noapic():
    seen = boot(INTERRUPTS, "noapic")
    check(re.search(r"XT-PIC +(timer|ttyS0)", seen), seen[-800:])


def test_nolapic():
    seen = boot(INTERRUPTS, "nolapic noapic")
    check(re.search(r"^ *0: +\d{2,} +XT-PIC +timer", seen, re.M), seen[-800:])
    check(re.search(r"^ *LOC: +0 ", seen, re.M), seen[-800:])


def test_nox2apic():
    seen = boot("dmesg | grep -i x2apic; " + INTERRUPTS, "nox2apic")
    check("x2apic enabled" not in seen, seen[-800:])


def test_no_tsc_deadline():
    seen = boot("dmesg | grep -i -e deadline -e lapic; grep -A3 'Clock Event' /proc/timer_list; " + INTERRUPTS,
                "lapic=notscdeadline")
    check(re.search(r"Clock Event Device: lapic$", seen, re.M), seen[-800:])


def test_pm_timer():
    seen = boot(CLOCKSOURCE, "clocksource=acpi_pm")
    check("\nacpi_pm\n" in seen, seen[-400:])


def test_unstable_tsc():
    seen = boot(CLOCKSOURCE, "tsc=unstable", args=["--pv", "none"])
    check("\ntsc\n" not in seen, seen[-400:])


def test_no_paravirtual_clock():
    seen = boot(CLOCKSOURCE, args=["--pv", "none"])
    check(re.search(r"\ntsc(-early)?\n", seen), seen[-400:])


def test_periodic_tick():
    boot(INTERRUPTS, "nohz=off highres=off")


def test_idle_poll():
    boot("", "idle=poll")


def test_threaded_interrupts():
    boot(INTERRUPTS, "threadirqs preempt=full")


# -- Memory ----------------------------------------------------------------------------------------------

def test_poisoned_memory():
    boot("", "init_on_alloc=1 init_on_free=1 slub_debug=FZP page_poison=1")


def test_emulated_vsyscall():
    boot("grep vsyscall /proc/self/maps; ", "vsyscall=emulate norandmaps")


# -- The other kernels --------------------------------------------------------------------------------------

OTHERS = ("mitigations=off noapic noxsave", "pti=on nopcid nox2apic spectre_v2=retpoline lapic=notscdeadline")


def test_generic():
    for append in OTHERS:
        boot("", append, "vmlinuz-generic")


def test_rt():
    for append in OTHERS:
        check("PREEMPT_RT" in boot("uname -v; ", append, "vmlinuz-rt"), "not an rt kernel")


def test_memory_sizes():
    for kernel, mem, least, most in (("vmlinuz-generic", "96M", 30, 96), ("vmlinuz-rt", "8G", 7700, 8192),
                                     ("vmlinuz", "3G", 2800, 3072), ("vmlinuz", "5G", 4700, 5120)):
        seen = boot("grep MemTotal /proc/meminfo; ", "", kernel, mem)
        mib = int(re.search(r"MemTotal: +(\d+) kB", seen).group(1)) >> 10
        check(least <= mib <= most, f"{kernel} with {mem} sees {mib} MiB")


# -- Processor models ------------------------------------------------------------------------------------------

LEVELS = {
    "x86-64-v2": ({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}, {"avx", "avx2", "avx512f", "bmi2"}),
    "x86-64-v3": ({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}, {"avx512f"}),
    "x86-64-v4": ({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}, set()),
}


def test_cpu_models():
    with open("/proc/cpuinfo") as f:
        host = flags(f.read())
    have = set()
    for level, (need, lack) in LEVELS.items():
        have |= need
        if not have <= host:
            continue
        there = flags(boot(FLAGS, args=["--cpu", level]))
        check(have <= there, f"{level} lacks {have - there}")
        check(not lack & there, f"{level} has {lack & there}")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/variants"))
