#!/usr/bin/env python3
"""--trace: every kind says what happened, and no other kind does."""
import re
import sys
import tempfile

from harness import Vitro, check, main
from test_bad_input import bare, in_file

# 100000: mov ecx, 5
# 100005: dec ecx;  jnz 100005
# 100009: xor eax, eax;  cpuid
# 10000d: ud2, with no IDT: the exception ends in a triple fault
CODE = bytes.fromhex("b905000000" "ffc9" "75fc" "31c0" "0fa2" "0f0b").ljust(0x200, b"\0")

LINES = {
    "exc": r"exc 6 .* rip 0x10000d ",
    "sys": r"sys CPUID rip 0x10000b ",
    "block": r"^0x100005 mode ",
    "xlat": r"xlat 0x100000 at 0x100000 mode 0x[0-9a-f]+: [1-9]\d* instructions, [1-9]\d* bytes to [1-9]\d* and \d+ cold",
}


def trace(what):
    with in_file(bare(CODE)) as f, tempfile.NamedTemporaryFile("r") as to, \
            Vitro("run", "--kernel", f.name, "--mem", "16M", "--trace", what, "--trace-file", to.name, stdin=None) as v:
        v.wait()
        return to.read()


def test_kinds():
    """Each kind alone, and all of them"""
    for what in LINES:
        got = trace(what)
        for kind, line in LINES.items():
            found = re.search(line, got, re.M | re.I)
            check(bool(found) == (kind == what), f"--trace {what}: {kind}: {got[:400]}")
    got = trace("all")
    for kind, line in LINES.items():
        check(re.search(line, got, re.M | re.I), f"--trace all: {kind}: {got[:400]}")
    got = trace("exc,xlat")
    check(re.search(LINES["exc"], got) and re.search(LINES["xlat"], got) and not re.search(LINES["sys"], got, re.I), got[:400])


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/trace"))
