#!/usr/bin/env python3
"""Several vCPUs: kernels bring them up, take them down and up again, and programs find what x86 promises."""
import os
import re
import subprocess
import sys
import tempfile
import time

from harness import GUEST, PATIENT, Vitro, check, cpu_s, main, script
from userland import HERE, image_with, in_guest, programs

TROUBLE = re.compile(rb"BUG:|WARNING:|Oops|soft lockup|rcu.*stall|hung task|Call Trace|unsynchronized|Marking TSC unstable")


def untroubled(v):
    found = TROUBLE.search(v.seen)
    check(not found, f"the kernel says {v.seen[max(0, found.start() - 100):found.end() + 300] if found else b''!r}")


def boot_with(cpus, text, seconds=90, *args):
    with Vitro("run", "--cpus", str(cpus), *args, "--append", "loglevel=5 " + script(text), stdin=None) as v:
        end = v.expect(rb"vitro.test: status (\d+)", seconds)
        check(end.group(1) == b"0", v.tail())
        check(v.wait() == 0, v.tail())
        untroubled(v)
        return v.seen.decode(errors="replace").replace("\r\n", "\n")


def boots(cpus):
    seen = boot_with(cpus, "echo there are $(nproc)\ncat /sys/devices/system/cpu/online\n"
                           "grep -e 'apicid' -e 'cpu cores' /proc/cpuinfo")
    check(f"there are {cpus}\n" in seen, seen[-400:])
    check(f"\n0-{cpus - 1}\n" in seen, seen[-400:])
    ids = sorted(int(n) for n in re.findall(r"^apicid\s*: (\d+)", seen, re.M))
    check(ids == list(range(cpus)), f"APIC IDs {ids}")
    check(re.findall(r"cpu cores\s*: (\d+)", seen) == [str(cpus)] * cpus, "one package, a core each")


def test_2():
    boots(2)


def test_4():
    boots(4)


def test_16():
    boots(16)


def idles(model, word, shown):
    """An idle kernel sleeps, whichever way it does: it takes no processor of the host's for itself."""
    with Vitro("run", "--cpus", "2", "--cpu", model, "--append", "quiet " + word) as v:
        v.to_shell()
        v.command("grep -c -w monitor /proc/cpuinfo", b"\n%d\r?\n" % shown)
        before, began = cpu_s(v.process.pid), time.monotonic()
        while time.monotonic() < began + 5:
            v.pump(1)
        share = (cpu_s(v.process.pid) - before) / (time.monotonic() - began)
        check(share < 0.15, f"{share:.2f} of a processor")
        v.command("for i in 1 2 3 4 5 6; do (cat /proc/self/stat | wc -c) & done; wait; echo e''nd", b"end")
        v.send("poweroff\n")
        check(v.wait() == 0, v.tail())
        untroubled(v)


def test_idle_by_mwait():
    idles("host,+mwait", "", 2)


def test_idle_by_hlt():
    idles("host,+mwait", "idle=nomwait", 2)
    idles("host,-mwait", "", 0)
    idles("host", "", 0)


def test_small_code_cache():
    """Code is reclaimed all the time, under vCPUs that run it and link it to each other."""
    boot_with(4, "nproc", 90, "--code-cache", "1M")


def test_rt_kernel():
    kernel = os.path.join(GUEST, "vmlinuz-rt")
    if os.path.exists(kernel):
        boot_with(4, "nproc", 90, "--kernel", kernel, "--initrd", os.path.join(GUEST, "initrd.img"))


def test_xapic():
    """Without x2APIC, and without what the hypervisor offers instead of chips."""
    with Vitro("run", "--cpus", "4", "--pv", "none", "--append", "loglevel=5 nox2apic " + script("nproc"), stdin=None) as v:
        v.expect(rb"\n4\r")
        check(v.wait() == 0, v.tail())
        untroubled(v)


def offline_online(*args):
    boot_with(4, """
        for k in 1 2 3 4; do while :; do :; done & done
        for k in 1 2 3 4 5 6; do
            for c in 1 2 3; do echo 0 > /sys/devices/system/cpu/cpu$c/online || exit 1; done
            [ $(nproc) = 1 ] || exit 2
            for c in 3 1 2; do echo 1 > /sys/devices/system/cpu/cpu$c/online || exit 3; done
        done
        [ $(nproc) = 4 ] || exit 4
        kill $(jobs -p)""", 120, *args)


def test_offline_online():
    """INIT and start-up IPIs again and again, under load."""
    offline_online()


def ends_from_any_cpu(*args):
    for text in ("taskset 8 poweroff -f", "taskset 4 reboot -f",
                 "echo 1 > /proc/sys/kernel/panic; taskset 2 sh -c 'echo c > /proc/sysrq-trigger'"):
        with Vitro("run", "--cpus", "4", "--no-reboot", *args, "--append", "quiet " + script(text + "; sleep 20"), stdin=None) as v:
            check(v.wait(60) == (1 if "sysrq" in text and args else 0), f"{text}: {v.process.returncode}; {v.tail()}")


def test_ends_from_any_cpu():
    """Power-off, reset and panic on a vCPU that is not the first."""
    ends_from_any_cpu()


def test_reboot():
    with Vitro("run", "--cpus", "4", "--append", "quiet") as v:
        v.to_shell()
        v.send("reboot\n")
        v.to_shell()
        v.send("nproc; poweroff\n")
        v.expect(rb"\n4\r")
        check(v.wait() == 0, v.tail())


def idle_is_idle(*args):
    with Vitro("run", "--cpus", "4", *args, "--append", "quiet") as v:
        v.to_shell()
        v.pump(1)
        before = cpu_s(v.process.pid)
        for _ in range(30):
            v.pump(0.1)
        used = cpu_s(v.process.pid) - before
        check(used < 0.6, f"{used:.2f} s in 3 s of idling")
        v.send("poweroff\n")
        check(v.wait() == 0, v.tail())


def test_idle_is_idle():
    """Halted vCPUs take no host CPU."""
    idle_is_idle()


def litmus(cpus, threads, scale, *args):
    with tempfile.TemporaryDirectory(prefix="vitro-litmus-") as work:
        program = os.path.join(work, "litmus")
        subprocess.run(["gcc", "-O2", "-fno-strict-aliasing", "-static", "-pthread", "-o", program,
                        os.path.join(HERE, "programs", "litmus.c")], check=True)
        with open(program, "rb") as f:
            image = image_with({"bin/litmus": f.read()}, ("initrd.img",))
    with Vitro("run", "--cpus", str(cpus), "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", image, *args,
               "--append", "loglevel=5 " + script(f"litmus {threads} {scale}"), stdin=None) as v:
        end = v.expect(rb"litmus: (\d+) passed, (\d+) failed", 240)
        wrong = b"; ".join(re.findall(rb"FAIL .*", v.seen))
        check(end.group(2) == b"0", wrong.decode())
        check(v.wait() == 0, v.tail())
        untroubled(v)


def test_litmus_1():
    litmus(1, 4, 1)


def test_litmus_2():
    litmus(2, 2, 4)


def test_litmus_4():
    litmus(4, 4, 2)


def test_litmus_16():
    """Far more vCPUs than the host has processors, and as many threads."""
    litmus(16, 16, 1)


def rcu(cpus, periods):
    """What Linux's rcutorture does, by a program, since Debian ships no torture modules; and what makes the kernel wait for
    grace periods of its own and rewrite its code meanwhile: name spaces, static keys, function tracing."""
    with tempfile.TemporaryDirectory(prefix="vitro-rcu-") as work:
        program = os.path.join(work, "rcu")
        subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", program, os.path.join(HERE, "programs", "rcu.c")], check=True)
        with open(program, "rb") as f:
            image = image_with({"bin/rcu": f.read()}, ("initrd.img",))
    text = f"""
        mount -t tracefs tracing /sys/kernel/tracing
        rcu {cpus} {periods} & p=$!
        n=0
        while kill -0 $p 2> /dev/null; do
            for on in 1 0; do
                for f in /proc/sys/kernel/sched_schedstats /sys/kernel/rcu_expedited; do echo $on > $f || exit 1; done
                unshare -n -m -i -u true || exit 2
            done
            [ ! -e /sys/kernel/tracing/current_tracer ] || for t in function nop; do
                echo $t > /sys/kernel/tracing/current_tracer
            done
            n=$((n + 1))
        done
        echo rounds $n
        wait $p"""
    with Vitro("run", "--cpus", str(cpus), "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", image,
               "--append", f"loglevel=5 {PATIENT} {script(text)}", stdin=None) as v:
        end = v.expect(rb"vitro.test: status (\d+)", 240)
        check(end.group(1) == b"0" and b"rcu: 2 passed, 0 failed" in v.seen and b"rounds 0" not in v.seen, v.tail())
        check(v.wait() == 0, v.tail())
        untroubled(v)


def test_rcu_2():
    rcu(2, 200)


def test_rcu_4():
    rcu(4, 100)


def stressed(cpus, *args):
    """Compilers side by side, and stress-ng's checks of what threads share."""
    seen = in_guest("""
        for k in 1 2 3 4 5 6; do
            (gcc -O2 -o a$k /programs/compute.c -lm && ./a$k > out$k) &
        done
        wait
        for k in 2 3 4 5 6; do cmp out1 out$k || exit 1; done
        stress-ng --verify --timeout 5 --cpu 2 --vm 2 --vm-bytes 32M --fork 2 --pthread 2 --mmap 2 --mmap-bytes 16M \\
            --futex 2 --mutex 2 --pipe 2 --switch 2 --lockbus 2 --icache 2 --mprotect 2 --membarrier 2 --sem 2 2>&1
        dmesg | grep -e BUG: -e WARNING: -e Oops -e 'detected stall' -e 'soft lockup' && exit 1
        true
        """, "--cpus", str(cpus), *args, files=programs("compute.c"), mem="2G", seconds=240)
    # A signal may come between when it ends: stress-ng's pipe calls that a failure, but not of the run.
    rest = re.sub(r".*termination write failed, errno=4 .*", "", seen)
    check("successful run completed" in seen and "fail" not in rest, seen[-1500:])


def test_stress_2():
    stressed(2)


def test_stress_4():
    stressed(4)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/smp"))
