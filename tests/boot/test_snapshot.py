#!/usr/bin/env python3
"""A VM in a file: it goes on exactly where it was, soon, and a file that is not what it was is refused."""
import hashlib
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time

from harness import BUILD, VITRO, Vitro, check, error_line, main

RUN = tempfile.TemporaryDirectory(prefix="vitro-run-")
WORK = tempfile.TemporaryDirectory(prefix="vitro-snap-")
os.environ["XDG_RUNTIME_DIR"] = RUN.name
RUNNING = os.path.join(BUILD, "tests", "guest", "running.elf")
STEP = re.compile(rb"step (\d+) sum ([0-9a-f]+) tsc (\d+)\r?\n")
RESTORE_S = 1.0  # for a guest of 512 MiB


def path(name):
    return os.path.join(WORK.name, name)


def vitro(*args, status=0):
    p = subprocess.run([VITRO, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    check(p.returncode == status, f"{args}: status {p.returncode}, not {status}: {p.stdout}{p.stderr}")
    return p.stdout if not status else p.stderr


class Running:
    def __init__(self, name, *args):
        self.name = name
        vitro("run", "--detach", "--name", name, *args)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        subprocess.run([VITRO, "stop", self.name, "--force"], capture_output=True, timeout=60)


def steps(text):
    return [(int(n), s, int(t)) for n, s, t in STEP.findall(text)]


def reach(v, step):
    """Wait until it has said that step or a later one: a console that comes late sees the last 16 KiB only."""
    while int(v.expect(STEP).group(1)) < step:
        pass


class Truth:
    """step -> checksum, from a run that nobody disturbs, as far as was needed yet; and how fast the TSC counts."""
    sums = {}
    tsc_hz = 0

    @classmethod
    def upto(cls, step):
        if step not in cls.sums:
            with Vitro("run", "--kernel", RUNNING, stdin=None) as v:
                reach(v, 1)
                began, first = time.monotonic(), steps(v.seen)[-1]
                reach(v, step + 100)
                last = steps(v.seen)[-1]
                cls.tsc_hz = (last[2] - first[2]) / (time.monotonic() - began)
                cls.sums = {n: s for n, s, _ in steps(v.seen)}
        return cls.sums


def check_steps(got, text):
    """Those steps, one after the other, with the checksums of an undisturbed run."""
    check(got, "it said no step")
    check([n for n, _, _ in got] == list(range(got[0][0], got[0][0] + len(got))), f"steps are missing: {got}")
    sums = Truth.upto(got[-1][0])
    check(all(sums[n] == s for n, s, _ in got), "another checksum than undisturbed")
    check(b"went back" not in text, "the TSC went back")
    tscs = [t for _, _, t in got]
    check(tscs == sorted(tscs), "the TSC went back")


SAID = {}


def saved(name="base"):
    """A snapshot of the counting guest, and all that it said before: the last line may end in the next run."""
    file = path(name)
    if file not in SAID:
        with Running(name, "--kernel", RUNNING), Vitro("console", name) as c:
            reach(c, 100)
            vitro("snapshot", name, file, "--quit")
            c.wait()
            check_steps(steps(c.seen), c.seen)
            SAID[file] = c.seen
    return file, SAID[file]


def test_goes_on_exactly():
    file, before = saved()
    last, _, tsc = steps(before)[-1]
    away = 4
    time.sleep(away)
    for _ in range(2):  # the file can be used again
        with Vitro("run", "--restore", file, stdin=None) as v:
            reach(v, last + 100)
            text = before + v.seen  # one text: the snapshot may lie within a line
        check_steps(steps(text), text)
        after = steps(text)[len(steps(before)):]
        check(tsc < after[0][2] < tsc + Truth.tsc_hz * away, "the TSC went back, or counted while nothing ran")


def test_source_goes_on_too():
    with Running("live", "--kernel", RUNNING), Vitro("console", "live") as c:
        reach(c, 50)
        for i in range(3):
            vitro("snapshot", "live", path(f"live{i}"))
            c.pump(0)  # who lets too much pile up is disconnected
        reach(c, steps(c.seen)[-1][0] + 50)
        got, text = steps(c.seen), c.seen
        vitro("pause", "live")
        vitro("snapshot", "live", path("paused"))
        check("paused" in vitro("ps"), "a snapshot let it go on")
    check_steps(got, text)


def test_a_chain():
    file, text = saved()
    for i in range(4):
        name = f"chain{i}"
        last = steps(text)[-1][0]
        with Running(name, "--restore", file), Vitro("console", name) as c:
            reach(c, last + 5)
            file = path(name)
            vitro("snapshot", name, file, "--quit")
            c.wait()
        whole = len(c.seen) < 16384  # nothing was said before the console came that it did not see
        text = text + c.seen if whole else c.seen
        check_steps(steps(text), text)
        check(steps(text)[-1][0] >= last + 5, f"{i}: after {last}: {steps(text)[-5:]}")


def linux(name, cpus=1, mem="512M"):
    return Running(name, "--append", "quiet", "--cpus", str(cpus), "--mem", mem)


def test_linux_goes_on():
    file, away = path("linux"), 4
    with linux("linux"), Vitro("console", "linux") as c:
        c.to_shell()
        c.send("dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>/dev/null; md5sum /tmp/a; i=0; "
               "while :; do i=$((i+1)); echo tick $i at $(cut -d' ' -f1 /proc/uptime); sleep 0.1; done\n")
        md5 = c.expect(rb"\n([0-9a-f]{32})  /tmp/a").group(1)
        c.expect(rb"\ntick 10 at (\d+)")
        vitro("snapshot", "linux", file, "--quit")
        c.wait()
        before = c.seen
    time.sleep(away)
    with Vitro("run", "--restore", file) as v:
        for _ in range(20):
            v.expect(rb"tick \d+ at [\d.]+\r?\n")
        # One text: the snapshot may lie within a line.
        ticks = [(int(n), float(t)) for n, t in re.findall(rb"tick (\d+) at ([\d.]+)\r?\n", before + v.seen)]
        check([n for n, _ in ticks] == list(range(1, len(ticks) + 1)), f"not every tick, once: {ticks}")
        gap = max(b - a for (_, a), (_, b) in zip(ticks, ticks[1:]))
        check(gap < away, f"time went on meanwhile: {ticks}")
        v.send(b"\x03")
        v.command("echo; md5sum /tmp/a", rb"\n" + md5)
        # The battery kept the clock going; what the kernel counts stood still.
        v.command("hwclock -u -t >/dev/null 2>&1; echo $(( $(date +%s -d \"$(hwclock -u | cut -d. -f1 | cut -c1-24)\" "
                  "2>/dev/null || echo 0) )); poweroff", rb"Power down")
        check(v.wait() == 0, "status")


def test_linux_with_several_cpus():
    """Four processes on two CPUs work on; nothing of what they do is lost or changed."""
    file, line = path("smp"), rb"\n([0-9a-f]{32})  -\r?\n"
    with linux("smp", cpus=2), Vitro("console", "smp") as c:
        c.to_shell()
        c.send("for c in 1 2 3 4; do while ! [ -e /tmp/stop ]; do head -c 300000 /dev/zero | md5sum; done & done\n")
        c.expect(line)
        vitro("snapshot", "smp", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        for _ in range(20):
            v.expect(line)
        v.command("touch /tmp/stop; wait; echo cpus $(nproc).; poweroff", rb"cpus 2\.", 60)
        v.expect(rb"Power down")
        check(set(re.findall(rb"(?<=\n)([0-9a-f]{32})  -", v.seen)) ==
              {hashlib.md5(bytes(300000)).hexdigest().encode()}, v.tail())
        check(v.wait() == 0, "status")


def test_reset_after_restore_boots():
    file = path("boot")
    with linux("boot"), Vitro("console", "boot") as c:
        c.to_shell()
        vitro("snapshot", "boot", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        v.send("reboot\n")
        v.to_shell()
        v.command("poweroff", rb"Power down")


def test_full_memory_is_soon_back():
    file = path("full")
    with linux("full"), Vitro("console", "full") as c:
        c.to_shell()
        c.send("mount -o remount,size=420m /tmp; dd if=/dev/urandom of=/tmp/a bs=1M count=370 2>/dev/null; echo full-$((1+1))\n")
        c.expect(rb"\nfull-2", 120)
        vitro("snapshot", "full", file, "--quit")
    check(os.stat(file).st_blocks * 512 > 380 << 20, "not full")
    took = []
    for _ in range(10):  # others may be at work on this host: once is enough
        with Vitro("run", "--restore", file) as v:
            started = time.monotonic()
            v.send("echo back-$((1+1))\n")
            v.expect(rb"back-2")
            took.append(time.monotonic() - started)
        if took[-1] < RESTORE_S:
            return
    check(False, f"{min(took):.2f} s")


def test_disk():
    disk = path("disk.img")
    with open(disk, "wb") as f:
        f.truncate(64 << 20)
    file = path("with-disk")
    with Running("disk", "--append", "quiet", "--disk", disk + ",if=virtio"), Vitro("console", "disk") as c:
        c.to_shell()
        c.send("while [ -b /dev/vda -a ! -e /tmp/stop ]; do dd if=/dev/urandom of=/dev/vda bs=64k count=8 conv=fsync "
               "2>/dev/null && echo wrote-$((1+1)); done &\n")
        c.expect(rb"\nwrote-2")
        vitro("snapshot", "disk", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        for _ in range(3):
            v.expect(rb"\nwrote-2\r?\n")
        v.command("touch /tmp/stop; wait; echo errors $(dmesg | grep -c 'I/O error').", rb"errors 0\.", 60)
        v.command("poweroff", rb"Power down")
    line = error_line("run", "--restore", file)
    check("disk.img has changed" in line, line)
    with Running("thrown", "--kernel", RUNNING, "--disk", disk + ",if=virtio", "--snapshot"):
        check("thrown away" in vitro("snapshot", "thrown", file, status=1), "an overlay was left out")


def test_ide():
    disk, file, data = path("ide.img"), path("with-ide"), random.Random(3).randbytes(4 << 20)
    with open(disk, "wb") as f:
        f.write(data)
    md5 = hashlib.md5(data).hexdigest().encode()
    with Running("ide", "--append", "quiet", "--disk", disk + ",if=ide"), Vitro("console", "ide") as c:
        c.to_shell()
        c.send("D=$(ls /dev/sda /dev/hda 2>/dev/null | head -1)\n"
               "while ! [ -e /tmp/stop ]; do echo 3 > /proc/sys/vm/drop_caches; md5sum < $D; done &\n")
        c.expect(rb"\n" + md5 + rb"  -")
        vitro("snapshot", "ide", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        for _ in range(4):
            v.expect(rb"\n[0-9a-f]{32}  -\r?\n")
        v.command("touch /tmp/stop; wait; poweroff", rb"Power down", 60)
        sums = re.findall(rb"(?<=\n)([0-9a-f]{32})  -", v.seen)
        check(set(sums) == {md5}, f"{sums}, not {md5}")


def test_cards_and_other_devices():
    """Network card, random numbers, balloon: they work on."""
    file = path("devices")
    with Running("devices", "--append", "quiet", "--net", "user", "--rng", "--balloon"), Vitro("console", "devices") as c:
        c.to_shell()
        c.send("ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ping -c 2 10.0.2.2 | grep loss\n")
        c.expect(rb"2 packets received", 30)
        vitro("pause", "devices")
        vitro("resume", "devices")
        c.send("ping -c 2 10.0.2.2 | grep loss\n")
        c.expect(rb"2 packets received", 30)
        vitro("snapshot", "devices", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        v.send("ping -c 2 10.0.2.2 | grep loss; head -c 8 /dev/hwrng | wc -c; poweroff\n")
        v.expect(rb"2 packets received", 30)
        v.expect(rb"\n8\r?\n", 30)
        v.expect(rb"Power down", 30)


# -- Files that are not what they were ---------------------------------------------------------------------


def altered(cut=None, flips=()):
    """A copy of the small snapshot: cut off there (or longer), bits flipped at (byte, bit)."""
    file = path("altered")
    subprocess.run(["cp", "--sparse=always", small(), file], check=True)
    with open(file, "r+b") as f:
        for at, bit in flips:
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 1 << bit]))
        if cut is not None:
            f.truncate(cut)
    return file


def small():
    file = path("small")
    if not os.path.exists(file):
        with Running("small", "--kernel", RUNNING, "--mem", "64M"), Vitro("console", "small") as c:
            reach(c, 3)
            vitro("snapshot", "small", file, "--quit")
    return file


def sections(data):
    """name -> (where its record begins, where its bytes begin, how many)"""
    meta, nr = struct.unpack_from("<Q", data, 16)[0], struct.unpack_from("<I", data, 44)[0]
    at, found = 64, {}
    for _ in range(nr):
        n = data[at]
        name = data[at + 1:at + 1 + n].decode()
        size = struct.unpack_from("<I", data, at + 1 + n)[0]
        found[name] = (at, at + 5 + n, size)
        at += 5 + n + size
    check(at == 64 + meta, "sections do not fill their place")
    return found


def refused(file, *words):
    line = error_line("run", "--restore", file)
    check("--restore" in line and all(w in line for w in words), line)


def head():
    with open(small(), "rb") as f:
        return f.read(1 << 20), os.fstat(f.fileno()).st_size


def test_truncated():
    data, size = head()
    cuts = {0, 1, 63, 64, 4096, size - 1, size // 2}
    for at, start, length in sections(data).values():
        cuts |= {at, at + 1, start, start + length // 2}
    for cut in sorted(cuts):
        refused(altered(cut), "truncated" if cut >= 64 else "no snapshot")
    refused(altered(size + 4096))


def test_bit_flips():
    data, size = head()
    ram = struct.unpack_from("<Q", data, 24)[0]
    rng = random.Random(7)
    places = {rng.randrange(64) for _ in range(20)} | {rng.randrange(ram, size) for _ in range(20)}
    places |= {rng.randrange(start, start + n) for _, start, n in sections(data).values() if n}
    places |= {ram + 0x100000}
    for at in sorted(places):
        refused(altered(flips=[(at, rng.randrange(8))]))


def test_other_versions_and_files():
    refused(altered(flips=[(8, 0), (8, 1)]), "version 2", "version 1")
    refused(RUNNING, "no snapshot")
    check("No such file" in error_line("run", "--restore", "/no/such"), "missing file")
    check("no snapshot" in error_line("run", "--restore", "/"), "a folder")
    check("--mem" in error_line("run", "--restore", small(), "--mem", "1G", status=2), "another machine")


def test_cannot_write():
    with Running("where", "--kernel", RUNNING), Vitro("console", "where") as c:
        check("cannot write" in vitro("snapshot", "where", "/no/such/folder/x", status=1), "no word")
        check("name a file" in vitro("snapshot", "where", status=2), "no file")
        reach(c, steps(c.seen)[-1][0] + 20 if steps(c.seen) else 20)
    check(not [f for f in os.listdir(WORK.name) if ".part-" in f], "half files are left")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/snapshot"))
