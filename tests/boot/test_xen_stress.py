#!/usr/bin/env python3
"""stress-ng with --verify in a Xen PV guest: what test_stress.py asks of the unaware one."""
import sys

from harness import main
from test_stress import CPU, MEMORY, PROCESSES, stress


def test_cpu():
    stress(CPU, 400, "--pv", "xen")


def test_memory():
    stress(MEMORY, 400, "--pv", "xen")


def test_processes():
    stress(PROCESSES, 400, "--pv", "xen", "--cpus", "4")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/xen_stress"))
