#!/usr/bin/env python3
"""A Xen PV guest with several vCPUs: what tests of the unaware guest ask (test_smp.py), asked of the kernel that knows."""
import os
import sys

from harness import GUEST, Skip, check, main
from test_smp import boot_with, ends_from_any_cpu, idle_is_idle, litmus, offline_online, stressed

XEN = ("--pv", "xen", "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", os.path.join(GUEST, "initrd.img"))
PV = ("--pv", "xen")


def boots(cpus, *args):
    seen = boot_with(cpus, "echo there are $(nproc)\ncat /sys/devices/system/cpu/online\ngrep xen-percpu /proc/interrupts", 90,
                     *(args or XEN))
    check(f"there are {cpus}\n" in seen and f"\n0-{cpus - 1}\n" in seen, seen[-800:])
    check(f"timer{cpus - 1}" in seen and f"callfuncsingle{cpus - 1}" in seen, seen[-800:])


def test_2():
    boots(2)


def test_4():
    boots(4)


def test_16():
    boots(16)


def test_generic_kernel():
    kernel = os.path.join(GUEST, "vmlinuz-generic")
    if not os.path.exists(kernel):
        raise Skip("no generic kernel; make guests")
    boots(4, *PV, "--kernel", kernel, "--initrd", os.path.join(GUEST, "initrd.img"))


def test_offline_online():
    """vcpu_op down and up again and again, under load."""
    offline_online(*XEN)


def test_ends_from_any_cpu():
    ends_from_any_cpu(*XEN)


def test_idle_is_idle():
    idle_is_idle(*XEN)


def test_litmus_1():
    litmus(1, 4, 1, *PV)


def test_litmus_4():
    litmus(4, 4, 2, *PV)


def test_stress_4():
    stressed(4, *PV)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/xen_smp"))
