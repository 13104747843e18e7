#!/usr/bin/env python3
"""The terminal: raw while the guest runs, as it was afterwards, whatever ended it."""
import os
import signal
import subprocess
import sys
import termios
import time

from harness import VITRO, Vitro, check, main, script


def at_shell():
    v = Vitro("run", "--append", "quiet", tty=True)
    v.to_shell()
    check(not v.terminal_restored(), "the terminal is not raw")
    return v


def test_poweroff():
    with at_shell() as v:
        v.send("poweroff\r")
        check(v.wait() == 0, v.tail())
        check(v.terminal_restored(), "not restored")


def test_ctrl_a_x():
    with at_shell() as v:
        v.send("\x01x")
        check(v.wait(5) == 0, v.tail())
        check(v.terminal_restored(), "not restored")


def test_ctrl_a_x_early():
    with Vitro("run", tty=True) as v:
        v.expect(rb".")
        v.send("\x01X")
        check(v.wait(5) == 0, v.tail())
        check(v.terminal_restored(), "not restored")


def test_ctrl_a_x_while_busy():
    with at_shell() as v:
        v.send("while :; do echo busy; done\r")
        v.expect(rb"busy\r\nbusy")
        v.send("\x01x")
        check(v.wait(5) == 0, v.tail())
        check(v.terminal_restored(), "not restored")


def test_ctrl_a_ctrl_a():
    with at_shell() as v:
        v.command("head -c 2 | od -t x1", rb"x1\r\n")
        v.send("\x01\x01b\r")
        v.expect(rb"01 62")
        v.send("\x01hpoweroff\r")
        v.expect(rb"Ctrl-A X leaves")
        check(v.wait() == 0, v.tail())


def test_ctrl_c_is_the_guests():
    with at_shell() as v:
        v.command("sleep 1000; echo status $?", rb"\n")
        time.sleep(0.5)
        v.send("\x03")
        v.expect(rb"# ", 10)
        v.command("echo alive", rb"\nalive")
        v.send("\x01x")
        check(v.wait(5) == 0, v.tail())


def test_job_control():
    with at_shell() as v:
        v.command("sleep 1000", rb"\n")
        time.sleep(0.5)
        v.send("\x1a")
        v.expect(rb"Stopped", 10)
        v.command("tty", rb"/dev/ttyS0")
        v.send("\x01x")
        check(v.wait(5) == 0, v.tail())


def test_signals_restore():
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV,
                signal.SIGFPE, signal.SIGILL, signal.SIGBUS):
        with Vitro("run", tty=True) as v:
            v.expect(rb"Linux version")
            os.kill(v.process.pid, sig)
            status = v.wait(10)
            check(status == -sig, f"{sig}: status {status}")
            check(v.terminal_restored(), f"{sig}: not restored")


def test_stop_and_continue():
    with at_shell() as v:
        os.kill(v.process.pid, signal.SIGSTOP)
        termios.tcsetattr(v.slave, termios.TCSANOW, v.before)
        os.kill(v.process.pid, signal.SIGCONT)
        time.sleep(0.3)
        check(not v.terminal_restored(), "not raw after SIGCONT")
        v.command("echo alive", rb"\nalive")
        v.send("\x01x")
        check(v.wait(5) == 0, v.tail())


def test_reader_goes_away():
    """Like `vitro run | head -1`: ends, does not hang."""
    p = subprocess.Popen([VITRO, "run"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    p.stdout.read(100)
    p.stdout.close()
    try:
        status = p.wait(60)
    finally:
        p.kill()
    check(status == 1, f"status {status}")
    check(b"output" in p.stderr.read(), "no message")


def test_slow_reader():
    """A reader that pauses holds the guest back; nothing is lost."""
    lines = 20000
    text = f"i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i + 1)); done"
    with Vitro("run", "--append", "quiet " + script(text)) as v:
        v.expect(rb"line 10\r")
        time.sleep(2)
        v.expect(rb"vitro.test: status 0", 120)
        check(v.wait() == 0, v.tail())
        got = [l for l in v.seen.split(b"\r\n") if l.startswith(b"line ")]
        check(got == [b"line %d" % i for i in range(lines)], f"{len(got)} of {lines} lines")


def test_closed_stdin():
    p = subprocess.run(["sh", "-c", f'exec "{VITRO}" run --append "quiet {script("echo fine")}" <&-'],
                       capture_output=True, timeout=90)
    check(p.returncode == 0 and b"fine" in p.stdout, (p.returncode, p.stdout[-300:], p.stderr))


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/tty"))
