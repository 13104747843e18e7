#!/usr/bin/env python3
"""Guests of Vitro's own ABI in snapshots: rings, timers and spaces go on where they were."""
import os
import subprocess
import sys
import tempfile
import threading

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.environ.get("BUILD", "build")
SLOW = 1 if os.path.basename(os.path.normpath(BUILD)) == "build" else 8
RUN = tempfile.TemporaryDirectory(prefix="vitro-sdk-")
os.environ["XDG_RUNTIME_DIR"] = RUN.name
passed = failed = 0


def check(good, what):
    global passed, failed
    passed += bool(good)
    failed += not good
    if not good:
        print("FAILED: " + what)


def start(*args):
    p = subprocess.Popen([f"{BUILD}/vitro", "run", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, bufsize=1)
    p.timer = threading.Timer(60 * SLOW, p.kill)
    p.timer.start()
    return p


def say(p, line):
    p.stdin.write(line + "\n")
    p.stdin.flush()


def expect(p, want, what):
    line = p.stdout.readline().rstrip("\r\n")
    check(line == want, f"{what}: {line!r}, not {want!r}")


file = os.path.join(RUN.name, "saved")
p = start("--kernel", f"{BUILD}/guests/echo", "--mem", "64M", "--name", "echo")
say(p, "hello")
expect(p, "HELLO", "before")
r = subprocess.run([f"{BUILD}/vitro", "snapshot", "echo", file, "--quit"], capture_output=True, text=True, timeout=60 * SLOW)
check(r.returncode == 0, "snapshot: " + r.stdout + r.stderr)
p.stdin.close()
check(p.wait() == 0, "the VM ends when it is saved")
p.timer.cancel()
for again in range(2):
    p = start("--restore", file)
    say(p, "world")
    expect(p, "WORLD", "restored")
    say(p, "")
    expect(p, "", "restored")
    expect(p, "2 lines.", "restored")
    p.stdin.close()
    check(p.wait() == 0, f"restored: ended with {p.returncode}")
    p.timer.cancel()
print(f"sdk-snapshot: {passed} passed, {failed} failed")
sys.exit(failed != 0)
