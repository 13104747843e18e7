#!/usr/bin/env python3
"""The second wall on a running VM: every thread is filtered, and what is refused ends the process with one line."""
import glob
import os
import shutil
import subprocess
import sys

from harness import GUEST, VITRO, Skip, Vitro, check, error_line, main, script


def unless_sanitized():
    with open(VITRO, "rb") as f:
        if b"__asan_init" in f.read():
            raise Skip("not in a build with sanitizers")


def statuses(pid):
    """The fields of /proc/PID/task/*/status of each thread."""
    out = []
    for path in glob.glob(f"/proc/{pid}/task/*/status"):
        with open(path) as f:
            out.append(dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line))
    return out


def filters(status):
    return int(status.get("Seccomp_filters", "-1").strip())


def test_every_thread_is_filtered():
    unless_sanitized()
    with Vitro("run", "--append", "quiet") as v:
        v.to_shell()
        threads = statuses(v.process.pid)
        check(len(threads) >= 4, f"{len(threads)} threads")
        with open("/proc/self/status") as f:
            ours = int(next((line.split()[1] for line in f if line.startswith("Seccomp_filters:")), "-1"))
        for t in threads:
            check(t["Seccomp"].strip() == "2" and t["NoNewPrivs"].strip() == "1", t["Name"])
        if ours >= 0: # kernels before 5.9 do not tell
            counts = sorted(filters(t) - ours for t in threads)
            check(counts[0] == 1 and counts[-1] == 2 and counts.count(2) >= 3, f"filters {counts}")
            for t in threads: # capabilities are left only where nothing of the guest is handled
                if filters(t) - ours == 2:
                    check(int(t["CapEff"], 16) == 0 and int(t["CapPrm"], 16) == 0, t["Name"])
        v.send("poweroff\n")
        check(v.wait() == 0, v.tail())


def test_off():
    with Vitro("run", "--sandbox", "off", "--append", "quiet") as v:
        v.to_shell()
        with open("/proc/self/status") as f:
            ours = [line for line in f if line.startswith("Seccomp")]
        for path in glob.glob(f"/proc/{v.process.pid}/task/*/status"):
            with open(path) as f:
                check([line for line in f if line.startswith("Seccomp")] == ours, path)
        v.send("poweroff\n")
        check(v.wait() == 0, v.tail())
    check("on or off" in error_line("run", "--sandbox", "maybe", status=2), "--sandbox maybe")


def test_refusal():
    """A vCPU's thread is made to call what it may not, by gdb: as a guest that broke out would."""
    unless_sanitized()
    if not shutil.which("gdb"):
        raise Skip("no gdb")
    with open(VITRO, "rb") as f:
        if b".debug_info" not in f.read():
            raise Skip("vitro has no debug information")
    command = ["gdb", "-q", "-nx", "-batch", "-ex", "handle all nostop noprint pass", "-ex", "set breakpoint pending on",
               "-ex", "break paravirt_vcpu_sleep", "-ex", "run", "-ex", 'call (int)unlink("/nonexistent")',
               "--args", VITRO, "run", "--kernel", f"{GUEST}/vmlinuz", "--initrd", f"{GUEST}/initrd.img",
               "--append", "quiet " + script("sleep 20")]
    p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    seen = (p.stdout + p.stderr).decode(errors="replace")
    check("vitro: sandbox: a vCPU thread wanted system call 87" in seen, seen[-1500:])
    check("exited with code 01" in seen, seen[-1500:])


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/sandbox"))
