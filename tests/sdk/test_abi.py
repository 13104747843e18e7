#!/usr/bin/env python3
"""Compares include/vitro/hypercalls.def with what was released (abi-released.txt) and with docs/paravirt-abi.md."""
import os
import re
import sys

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
passed = failed = 0


def check(good, what):
    global passed, failed
    passed += good
    failed += not good
    if not good:
        print("FAILED: " + what)


rows = {name: (number, args, since) for number, name, args, since in
        re.findall(r"^VT_CALL\((0x[0-9a-f]+), (\w+),\s*(\d+), (\d+),", open("include/vitro/hypercalls.def").read(), re.M)}
released = [line.split() for line in open("tests/sdk/abi-released.txt") if not line.startswith("#")]
for number, name, args, since in released:
    check(rows.get(name) == (number, args, since), f"{name} was released as {number}, {args} arguments, version {since}")
names = {r[1] for r in released}
for name in rows:
    check(name in names, f"{name} is not in tests/sdk/abi-released.txt: add it when it is released")
doc = open("docs/paravirt-abi.md").read()
for name in rows:
    check(f"`{name}`" in doc, f"docs/paravirt-abi.md does not name {name}")
for error, number in re.findall(r"^    (VT_E\w+) = (\d+)", open("include/vitro/abi.h").read(), re.M):
    check(f"{number} `{error}`" in doc, f"docs/paravirt-abi.md does not have {error} as {number}")
print(f"abi: {passed} passed, {failed} failed")
sys.exit(failed != 0)
