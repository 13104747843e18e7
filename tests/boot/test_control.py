#!/usr/bin/env python3
"""Running VMs are found, asked, held, let go and ended from outside: the control socket and its commands."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from harness import BUILD, Skip, VITRO, Vitro, check, error_line, main, script

# Sockets have short addresses: not below the build directory.
RUN = tempfile.TemporaryDirectory(prefix="vitro-run-")
DATA = tempfile.TemporaryDirectory(prefix="vitro-data-")
os.environ["XDG_RUNTIME_DIR"] = RUN.name
os.environ["XDG_DATA_HOME"] = DATA.name
RUNNING = os.path.join(BUILD, "tests", "guest", "running.elf")
FOLDER = os.path.join(RUN.name, "vitro")


def vitro(*args, status=0, stdin=None):
    """A command that must end by itself with that status: its output."""
    p = subprocess.run([VITRO, *args], stdin=stdin or subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    check(p.returncode == status, f"{args}: status {p.returncode}, not {status}: {p.stdout}{p.stderr}")
    return p.stdout if not status else p.stderr


class Qmp:
    def __init__(self, name):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(os.path.join(FOLDER, name + ".qmp"))
        self.file = self.sock.makefile("rw")
        self.greeting = self.receive()
        self.events = []

    def receive(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def raw(self, text):
        self.file.write(text)
        self.file.flush()
        return self.answer()

    def answer(self):
        while True:
            message = self.receive()
            if message is None or "event" not in message:
                return message
            self.events.append(message)

    def do(self, execute, **arguments):
        message = {"execute": execute}
        if arguments:
            message["arguments"] = arguments
        return self.raw(json.dumps(message))

    def wait_event(self, name):
        while not any(e["event"] == name for e in self.events):
            message = self.receive()
            check(message is not None, f"the connection ended before {name}")
            self.events.append(message)
        return next(e for e in self.events if e["event"] == name)


def negotiated(name):
    q = Qmp(name)
    check(q.do("qmp_capabilities") == {"return": {}}, "no negotiation")
    return q


class Running:
    """A detached VM, stopped at the end."""

    def __init__(self, name, *args):
        self.name = name
        vitro("run", "--detach", "--name", name, "--append", "quiet", *args)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        subprocess.run([VITRO, "stop", self.name, "--force"], capture_output=True, timeout=60)


def console(name):
    return Vitro("console", name)


# -- QMP's framing --------------------------------------------------------------------------------


def test_framing():
    with Running("framing"):
        q = Qmp("framing")
        check("version" in q.greeting["QMP"] and q.greeting["QMP"]["capabilities"] == [], q.greeting)
        check(q.do("query-status")["error"]["class"] == "CommandNotFound", "served before negotiation")
        check(q.do("qmp_capabilities") == {"return": {}}, "no negotiation")
        check(q.do("query-status")["return"]["status"] == "running", "not running")
        check(q.raw('{"execute":"query-name","id":[1,"x"]}') ==
              {"return": {"name": "framing"}, "id": [1, "x"]}, "no id, or no name")
        # Split in the middle of a string that holds brackets; then two at once.
        q.file.write('{"execute":"query-na')
        q.file.flush()
        time.sleep(0.1)
        check(q.raw('me","id":"}{\\"]"}')["id"] == '}{"]', "split message")
        q.file.write('{"execute":"query-kvm"}{"execute":"query-version"}\n')
        q.file.flush()
        check(q.answer() == {"return": {"enabled": False, "present": False}}, "first of two")
        check("package" in q.answer()["return"], "second of two")
        names = [c["name"] for c in q.do("query-commands")["return"]]
        check({"stop", "cont", "quit", "system_powerdown", "system_reset"} <= set(names), names)


def test_a_client_made_for_qemu():
    """digitalocean's go-qemu, as Debian has it."""
    packages = "/usr/share/gocode"
    if not shutil.which("go") or not os.path.isdir(f"{packages}/src/github.com/digitalocean/go-qemu/qmp"):
        raise Skip("needs golang-go and golang-github-digitalocean-go-qemu-dev")
    with Running("foreign"), tempfile.TemporaryDirectory() as cache:
        env = dict(os.environ, GO111MODULE="off", GOPATH=packages, GOCACHE=cache)
        p = subprocess.run(["go", "run", "tests/boot/programs/qmpclient.go", os.path.join(FOLDER, "foreign.qmp")], env=env,
                           capture_output=True, text=True, timeout=300)
        check(p.returncode == 0, p.stdout + p.stderr)
        lines = [line.split(" ", 1) for line in p.stdout.splitlines()]
        check([name for name, _ in lines] == ["query-status", "query-name", "query-version", "stop", "query-status", "cont",
                                              "mistake", "events"], p.stdout)
        said = [text for _, text in lines]
        check(json.loads(said[1]) == {"return": {"name": "foreign"}} and json.loads(said[3]) == {"return": {}}, p.stdout)
        check(json.loads(said[0])["return"]["status"] == "running", p.stdout)
        check(json.loads(said[4])["return"]["status"] == "paused", p.stdout)
        check("no-such-command" in said[6] and said[7] == "STOP RESUME", p.stdout)


def test_bad_messages():
    with Running("bad"):
        q = negotiated("bad")
        for text in ('{"execute":}', "[1]", '{"execute":1}', '{"execute":"stop","x":1}', "rubbish\n",
                     '{"execute":"stop","arguments":3}', '{"execute":"stop","arguments":{"x":1}}', "]", "}",
                     '{"execute":"a","execute":"b"}'):
            answer = q.raw(text)
            check("error" in answer and answer["error"]["desc"], f"{text}: {answer}")
        check(q.do("no-such")["error"]["class"] == "CommandNotFound", "unknown command")
        check("error" in q.raw('{"execute":"' + "x" * 70000 + '"}'), "a message without end")
        q = negotiated("bad")
        check(q.do("query-status")["return"]["running"], "no longer served")


def test_many_clients():
    with Running("many"):
        held = [Qmp("many") for _ in range(16)]
        extra = socket.socket(socket.AF_UNIX)
        extra.connect(os.path.join(FOLDER, "many.qmp"))
        check(extra.recv(1) == b"", "a 17th client was served")
        held[3].sock.shutdown(socket.SHUT_RDWR)
        time.sleep(0.2)
        check(negotiated("many").do("query-status")["return"]["running"], "the place was not given on")


def test_only_the_owner_may_enter():
    with Running("mode"):
        check(os.stat(FOLDER).st_mode & 0o777 == 0o700, "the folder is open")
        check(os.stat(os.path.join(FOLDER, "mode.qmp")).st_mode & 0o777 == 0o600, "the socket is open")
        os.chmod(FOLDER, 0o755)
        try:
            check("only you" in vitro("ps", status=1), "an open folder was used")
        finally:
            os.chmod(FOLDER, 0o700)


# -- Life ---------------------------------------------------------------------------------------------


def test_pause_and_resume():
    with Running("hold"), console("hold") as c:
        c.to_shell()
        q = negotiated("hold")
        c.command("read a b < /proc/uptime; echo up $a", rb"\nup (\d+)")
        c.send("while :; do read a b < /proc/uptime; echo tick $a; sleep 0.1; done\n")
        c.expect(rb"\ntick \d")
        vitro("pause", "hold")
        q.wait_event("STOP")
        check(q.do("query-status")["return"] == {"running": False, "singlestep": False, "status": "paused"}, "not paused")
        while c.pump(0.5):
            pass
        before = float(c.seen.split(b"tick ")[-1].split()[0])
        time.sleep(2)
        check(not c.pump(0.5), "a paused guest speaks")
        check("paused: resume it first" in vitro("stop", "hold", status=1), "stopping a paused VM")
        vitro("pause", "hold")
        vitro("resume", "hold")
        q.wait_event("RESUME")
        c.at = len(c.seen)
        after = float(c.expect(rb"tick ([\d.]+)").group(1))
        check(after - before < 1.5, f"time went on while paused: {before} to {after}")
        c.expect(rb"tick")
        check([e["event"] for e in q.events].count("STOP") == 1, "two STOPs")


def test_pause_while_halted():
    with Running("idle"), console("idle") as c:
        c.to_shell()
        for _ in range(20):
            vitro("pause", "idle")
            vitro("resume", "idle")
        c.command("echo still $((40+2))", rb"\nstill 42")


def test_stop_by_the_power_button():
    with Running("press", "--kernel", RUNNING), console("press") as c:
        c.expect(rb"step 2")
        q = negotiated("press")
        check("press has ended" in vitro("stop", "press"), "no word about the end")
        c.expect(rb"the button", 5)
        check(q.wait_event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-shutdown"}, q.events)
    check("press" not in vitro("ps"), "still there")


def test_stop_gives_up_and_force():
    with Running("deaf"):
        started = time.monotonic()
        line = vitro("stop", "deaf", "--timeout", "2", status=1)
        check("did not shut down within 2 s" in line and "--force" in line, line)
        check(1.5 < time.monotonic() - started < 10, "not two seconds")
        vitro("stop", "deaf", "--force")
        check("deaf" not in vitro("ps"), "still there")
        check(os.listdir(FOLDER) == ["deaf.log"] or "deaf.qmp" not in os.listdir(FOLDER), "files left")


def test_reset():
    with Running("again"), console("again") as c:
        c.to_shell()
        q = negotiated("again")
        vitro("reset", "again")
        q.wait_event("RESET")
        c.to_shell()
        check(q.do("query-status")["return"]["running"], "the control socket did not survive the reset")


def test_ps_and_stale_files():
    with Running("one", "--mem", "96M"), Running("two"):
        out = vitro("ps")
        check(out.splitlines()[0].split() == ["NAME", "PID", "MEMORY", "CPUS", "TIME", "STATUS"], out)
        check([r.split()[0] for r in out.splitlines()[1:]] == ["one", "two"], out)
        rows = json.loads(vitro("ps", "--json"))
        check(rows[0]["memory"] == 96 << 20 and rows[0]["status"] == "running", rows)
        os.kill(rows[0]["pid"], signal.SIGKILL)
        time.sleep(0.5)
        check("one.qmp" in os.listdir(FOLDER), "nothing stale to test with")
        check([r.split()[0] for r in vitro("ps").splitlines()[1:]] == ["two"], "a dead VM is listed")
        check("one.qmp" not in os.listdir(FOLDER), "stale files stay")
        with Running("one"):
            check("one" in vitro("ps"), "the name of a dead VM cannot be used")


def test_name_taken():
    with Running("only"):
        line = error_line("run", "--name", "only", "--append", "quiet")
        check("only is running already" in line, line)
        line = vitro("run", "--detach", "--name", "only", status=1)
        check("only is running already" in line, line)


def test_balloon():
    with Running("air", "--balloon", "--mem", "256M"), console("air") as c:
        c.to_shell()
        q = negotiated("air")
        check(q.do("query-balloon") == {"return": {"actual": 256 << 20}}, "it begins full")
        check(q.do("balloon", value=200 << 20) == {"return": {}}, "refused")
        for _ in range(100):
            actual = q.do("query-balloon")["return"]["actual"]
            if actual == 200 << 20:
                break
            time.sleep(0.1)
        check(actual == 200 << 20, f"{actual >> 20} MiB")
        vitro("balloon", "air", "128M")
        for _ in range(600):
            actual = q.do("query-balloon")["return"]["actual"]
            if actual == 128 << 20:
                break
            time.sleep(0.1)
        check(actual == 128 << 20, f"{actual >> 20} MiB")
        for args, words in (((), "how much"), (("x",), "no size"), (("0",), "no size"), (("1M", "2M"), "too many")):
            line = vitro("balloon", "air", *args, status=2)
            check(words in line, line)
        for value in (0, -1, "x"):
            check("error" in q.do("balloon", value=value), f"balloon {value}")
        check("error" in q.do("balloon"), "no value")
    with Running("tight"):
        check("--balloon" in negotiated("tight").do("query-balloon")["error"]["desc"], "no balloon")
        check("--balloon" in vitro("balloon", "tight", "64M", status=1), "no balloon")


def test_stats():
    with Running("count"), console("count") as c:
        c.to_shell()
        check("vcpu 0" in vitro("stats", "count"), "no counters")
        c.command("echo still $((40+2))", rb"\nstill 42")


# -- Console ------------------------------------------------------------------------------------------


def test_console_history_and_sharing():
    with Running("share"), console("share") as a:
        a.to_shell()
        a.command("echo first-$((1+1))", rb"\nfirst-2")
        with console("share") as b:
            b.expect(rb"first-2", 5)  # what was there before
            a.command("echo both-$((1+2))", rb"\nboth-3")
            b.expect(rb"both-3", 5)
            b.command("echo from-b-$((1+3))", rb"\nfrom-b-4")
            a.expect(rb"from-b-4", 5)
        a.command("poweroff", rb"Power down")
        check(a.wait() == 0, "status")


def test_console_terminal():
    with Running("keys"):
        with Vitro("console", "keys", tty=True) as v:
            v.to_shell()
            v.command("echo on-$((1+1))", rb"\non-2")
            v.send(b"\x01x")
            check(v.wait(10) == 0 and v.terminal_restored(), "not left well")
        check("keys" in vitro("ps"), "leaving the console ended the VM")


def test_detached_failures_are_seen():
    check("cannot open /no/such" in vitro("run", "--detach", "--name", "x", "--kernel", "/no/such", status=1), "lost")
    check("--name" in vitro("run", "--detach", status=2), "no name")


# -- Commands without a VM, and help ------------------------------------------------------------------


def test_no_such_vm():
    for command in ("stop", "console", "stats", "pause", "resume", "reset"):
        line = error_line(command, "nobody")
        check("nobody" in line and "vitro ps" in line, line)
        check("usage: vitro " + command in error_line(command, status=2), "no usage")
        check("no option" in error_line(command, "nobody", "--bogus", status=2), "bogus option")
        check("usage: vitro " + command in vitro(command, "--help"), "no help")
        check("vitro " + command in vitro("--help"), "not in the help")
    for name in ("../x", "a/b", "", "x" * 49):
        error_line("pause", name)
        error_line("run", "--name", name, status=2)
    check("seconds" in error_line("stop", "x", "--timeout", "soon", status=2), "timeout")


# -- A VM in a file -----------------------------------------------------------------------------------


def config(text, name="vm.conf"):
    path = os.path.join(DATA.name, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)
    return path


def test_config_file():
    path = config("# a VM\n[vm]\nmem = 100M\n; more\nno-reboot\nappend = quiet " +
                  script("grep MemTotal /proc/meminfo; reboot") + "\n")
    with Vitro("run", "--config", path, stdin=None) as v:
        check(v.wait(60) == 0, v.tail())
        kib = int(v.seen.split(b"MemTotal:")[1].split()[0])
        check(50 << 10 < kib < 100 << 10, kib)
    # The command line goes before it.
    with Vitro("run", "--mem", "200M", "--config", path, stdin=None) as v:
        check(v.wait(60) == 0, v.tail())
        check(int(v.seen.split(b"MemTotal:")[1].split()[0]) > 120 << 10, v.tail())


def test_config_by_name():
    config("append = quiet " + script("echo named") + "\n", "vitro/mine/vm.conf")
    with Vitro("run", "mine", stdin=None) as v:
        check(v.wait(60) == 0 and b"named" in v.seen, v.tail())
    check("no VM named 'other'" in error_line("run", "other", status=2), "unknown name")
    check("both" in error_line("run", "mine", "--config", "x", status=2), "name and file")


def test_list_of_stopped():
    """Those that could be run, but for one that does; what is no VM is not listed."""
    for name in ("asleep", "awake"):
        config("append = quiet\n", f"vitro/{name}/vm.conf")
    os.makedirs(os.path.join(DATA.name, "vitro", "nothing"), exist_ok=True)
    vitro("run", "awake", "--detach")
    try:
        rows = dict(re.findall(r"^(\w+) .* (\w+)$", vitro("ps", "--all"), re.M))
        check(rows.get("asleep") == "stopped" and rows.get("awake") == "running" and "nothing" not in rows, f"{rows}")
        check("asleep" not in vitro("ps"), "listed without --all")
        got = {v["name"]: v["status"] for v in json.loads(vitro("ps", "--all", "--json"))}
        check(got.get("asleep") == "stopped" and got.get("awake") == "running", f"{got}")
    finally:
        vitro("stop", "awake", "--force")


def test_config_mistakes():
    for text, line, word in (("mem = 5x\n", 1, "not a size"), ("\n\nbogus = 1\n", 3, "no option 'bogus'"),
                             ("[other]\n", 1, "[vm]"), ("cpus = 1000\n", 1, "out of range"),
                             ("stats = maybe\n", 1, "yes or no"), ("mem\n", 1, "wants a value"),
                             ("config = x\n", 1, "command line"), ("trace = exc,nope\n", 1, "nope"),
                             ("mem = 1G\n\0\0\n", 2, "no text")):
        path = config(text)
        got = error_line("run", "--config", path, status=2)
        check(f"{path}:{line}: " in got and word in got, f"{text!r}: {got}")
    check("No such file" in error_line("run", "--config", "/no/such"), "missing file")


def test_config_paths_are_relative_to_it():
    path = config("kernel = sub/none\n")
    check(os.path.join(DATA.name, "sub/none") in error_line("run", "--config", path), "not relative")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/control"))
