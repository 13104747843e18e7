#!/usr/bin/env python3
"""User memory by the host's MMU (src/engine/window.h): when it is given up. The rest is tests/guest/windows.c."""
import os
import re
import sys

from harness import BUILD, Vitro, check, main


def test_pages_that_come_and_go():
    """Each page mapped costs the host several system calls and a fault: not 20 000 times for 20 000 flushes of one page."""
    with Vitro("run", "--stats", "--kernel", os.path.join(BUILD, "tests/guest/windows_lost.elf"), stdin=None) as v:
        v.expect(rb"SUMMARY: \d+ passed, 0 failed", 60)
        v.wait()
        stats = v.errors.decode(errors="replace")
    found = re.search(r"address spaces given windows (\d+), pages mapped (\d+)", stats)
    check(found, f"windows are not used at all: {stats[-1000:]!r}")
    check(int(found[2]) < 5000, f"{found[2]} pages were mapped")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/windows"))
