"""harness.py - start vitro on pipes or a pseudo-terminal, wait for output, type, and count results.

A test is a function named test_*; it fails by raising. main() runs those of the calling module,
prints one line each and the summary line that tests/run-all reads.
"""
import errno
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import traceback

# A shell's background job inherits these ignored, and so would what is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup

BUILD = os.environ.get("BUILD", "build")
VITRO = os.path.join(BUILD, "vitro")
GUEST = os.path.join("build", "guest")
BOOT_LIMIT_S = float(os.environ.get("BOOT_LIMIT", "90"))
# Stretches every time limit: for builds that are meant to be slow (BUILD=build-torture TIME_SCALE=30).
TIME_SCALE = float(os.environ.get("TIME_SCALE", "1"))
# More arguments for each `vitro run`.
RUN_ARGS = os.environ.get("RUN_ARGS", "").split()
# Words for the kernel that make its watchdogs as patient as the tests are.
PATIENT = "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=300" if TIME_SCALE > 1 else ""
# What the guest's init prints; the prompt follows.
BANNER = rb"vitro: Linux \S+ is up"


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Failure(text)


def drawn(text):
    """What a terminal of 80 x 25 shows: of ECMA-48 what --screen and SeaBIOS write."""
    rows = [[" "] * 80 for _ in range(25)]
    y = x = 0
    for final, numbers, char in re.findall(r"\x1b\[(?=[?0-9;]*([a-zA-Z]))([?0-9;]*)[a-zA-Z]|([^\x1b])", text):
        if final == "H":
            y, x = (int(n) - 1 for n in (numbers or "1;1").split(";"))
        elif final == "J":
            rows = [[" "] * 80 for _ in range(25)]
        elif char == "\r":
            x = 0
        elif char == "\n" and y == 24:
            rows = rows[1:] + [[" "] * 80]
        elif char == "\n":
            y += 1
        elif char and x < 80 and y < 25:
            rows[y][x] = char
            x += 1
    return "\n".join("".join(row).rstrip() for row in rows)


class Vitro:
    """One running vitro. tty=True: on a pseudo-terminal; else on pipes (stdin=None: /dev/null). env: more of that."""

    def __init__(self, *args, tty=False, stdin=subprocess.PIPE, env=None):
        self.seen = b""      # everything so far
        self.at = 0          # what expect() has consumed
        self.tty = tty
        self.errors = b""
        command = [VITRO, *args, *(RUN_ARGS if args[:1] == ("run",) else ())]
        env = dict(os.environ, **env) if env else None
        if tty:
            self.master, self.slave = pty.openpty()
            self.before = termios.tcgetattr(self.slave)
            self.process = subprocess.Popen(command, stdin=self.slave, stdout=self.slave,
                                            stderr=subprocess.PIPE, start_new_session=True, env=env)
            self.out = self.master
            self.inp = self.master
        else:
            self.process = subprocess.Popen(command, stdin=stdin or subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                            start_new_session=True, env=env)
            self.out = self.process.stdout.fileno()
            self.inp = self.process.stdin.fileno() if self.process.stdin else -1
        self.sources = {self.out, self.process.stderr.fileno()}
        os.set_blocking(self.out, False)
        os.set_blocking(self.process.stderr.fileno(), False)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.tty:
            os.close(self.master)
            os.close(self.slave)

    def pump(self, seconds):
        """Take what output there is, waiting at most that long. False if there was none."""
        err = self.process.stderr.fileno()
        ready, _, _ = select.select(list(self.sources), [], [], max(0, seconds))
        for fd in ready:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                continue
            except OSError as e:
                if e.errno != errno.EIO:
                    raise
                data = b""
            if fd == err:
                self.errors += data
            else:
                self.seen += data
            if not data:
                self.sources.discard(fd)
        return bool(ready)

    def expect(self, pattern, seconds=BOOT_LIMIT_S):
        """Wait for a regular expression in the output after the last match."""
        if isinstance(pattern, str):
            pattern = pattern.encode()
        end = time.monotonic() + seconds * TIME_SCALE
        while True:
            match = re.search(pattern, self.seen[self.at:])
            if match:
                self.at += match.end()
                return match
            left = end - time.monotonic()
            if left <= 0:
                raise Failure(f"no {pattern!r} within {seconds:.0f} s; {self.tail()}")
            ended = self.process.poll() is not None
            if not self.pump(min(left, 0.2)) and ended:
                raise Failure(f"ended with {self.process.returncode} before {pattern!r}; {self.tail()}")

    def expect_screen(self, pattern, seconds=BOOT_LIMIT_S):
        """Wait for a regular expression in what a terminal of 80 x 25 shows. Bytes do not do: a line that was half drawn
        when the screen was looked at, or when a tick came to SeaBIOS's serial console, comes in two pieces."""
        end = time.monotonic() + seconds * TIME_SCALE
        while True:
            shown = drawn(self.seen.decode(errors="replace"))
            match = re.search(pattern, shown)
            if match:
                return match
            ended = self.process.poll() is not None
            if time.monotonic() > end or (not self.pump(0.2) and ended):
                raise Failure(f"no {pattern!r} within {seconds:.0f} s on the screen; it shows\n{shown}\n{self.tail()}")

    def send(self, data):
        os.write(self.inp, data.encode() if isinstance(data, str) else data)

    def command(self, line, pattern, seconds=30):
        """Type a line at the prompt; the pattern must come after its echo."""
        self.send(line + "\r" if self.tty else line + "\n")
        return self.expect(pattern, seconds)

    def wait(self, seconds=30):
        """The exit status, all output taken."""
        end = time.monotonic() + seconds * TIME_SCALE
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise Failure(f"did not end within {seconds} s; {self.tail()}")
            self.pump(0.1)
        while self.pump(0):
            pass
        return self.process.returncode

    def tail(self):
        return f"output ends {self.seen[-400:]!r}, stderr {self.errors[-400:]!r}"

    def to_shell(self):
        self.expect(BANNER)
        self.expect(rb"# ")

    def terminal_restored(self):
        return termios.tcgetattr(self.slave) == self.before


def cpu_s(pid):
    """What a process has had of the host's processors, seconds (proc(5), stat: utime and stime)."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def script(text):
    """The kernel command line word that makes init run this shell text and power off."""
    import base64
    return "vitro.test=" + base64.b64encode(text.encode()).decode()


def error_line(*args, status=1):
    """Run something that must fail at once: its single line of stderr."""
    with Vitro(*args, stdin=None) as v:
        got = v.wait(20)
        check(got == status, f"status {got}, not {status}; {v.tail()}")
        lines = v.errors.decode().splitlines()
        check(len(lines) == 1, f"{len(lines)} lines of error: {lines}")
        check(lines[0].startswith("vitro: "), lines[0])
        return lines[0]


def main(module, name):
    tests = [(n, f) for n, f in vars(module).items() if n.startswith("test_") and callable(f)]
    wanted = sys.argv[1:]
    passed = failed = 0
    for test_name, function in tests:
        if wanted and not any(w in test_name for w in wanted):
            continue
        started = time.monotonic()
        try:
            function()
            passed += 1
            result = "ok"
        except Skip as e:
            result = f"skipped: {e}"
        except Failure as e:
            failed += 1
            result = f"FAILED: {e}"
        except Exception:
            failed += 1
            result = "FAILED: " + traceback.format_exc()
        print(f"{name}/{test_name[5:]}: {result} ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"{name}: {passed} passed, {failed} failed")
    return failed != 0
