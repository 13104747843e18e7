#!/usr/bin/env python3
"""A VM in a file: it goes on exactly where it was, soon, and a file that is not what it was is refused."""
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
    p = subprocess.run([VITRO, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
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


def run_until(v, step):
    v.expect(rb"step %d sum [0-9a-f]+ tsc \d+\r?\n" % step)
    v.process.terminate()
    v.wait()
    check(b"went back" not in v.seen, "the TSC went back")
    return steps(v.seen)


def truth():
    """step -> checksum, from a run that nobody disturbs."""
    with Vitro("run", "--kernel", RUNNING, stdin=None) as v:
        return {n: s for n, s, _ in run_until(v, 600)}


def saved(name="base"):
    """A snapshot of the counting guest, and the last step that it said before."""
    file = path(name)
    if not os.path.exists(file):
        with Running(name, "--kernel", RUNNING), Vitro("console", name) as c:
            c.expect(rb"step 100 ")
            vitro("snapshot", name, file, "--quit")
            c.wait()
            seen = steps(c.seen)
            open(file + ".last", "w").write(f"{seen[-1][0]} {seen[-1][2]}")
    return file, *map(int, open(file + ".last").read().split())


def test_goes_on_exactly():
    sums = truth()
    file, last, tsc = saved()
    time.sleep(4)
    for _ in range(2):  # the file can be used again
        with Vitro("run", "--restore", file, stdin=None) as v:
            got = run_until(v, last + 100)
        check([n for n, _, _ in got] == list(range(last + 1, last + 1 + len(got))), f"after {last}: {got[:3]}")
        check(all(sums[n] == s for n, s, _ in got if n in sums), "another checksum than undisturbed")
        tscs = [t for _, _, t in got]
        check(tscs == sorted(tscs) and tscs[0] > tsc, "the TSC")
        check(tscs[0] - tsc < 5e9, "the TSC counted while nothing ran")


def test_source_goes_on_too():
    sums = truth()
    with Running("live", "--kernel", RUNNING), Vitro("console", "live") as c:
        c.expect(rb"step 50 ")
        for i in range(3):
            vitro("snapshot", "live", path(f"live{i}"))
        at = steps(c.seen)[-1][0]
        c.expect(rb"step %d sum [0-9a-f]+ tsc \d+\r?\n" % (at + 50))
        check(b"went back" not in c.seen, "the TSC went back")
        check(all(sums[n] == s for n, s, _ in steps(c.seen) if n in sums), "another checksum than undisturbed")
        vitro("pause", "live")
        vitro("snapshot", "live", path("paused"))
        check("paused" in vitro("ps"), "a snapshot let it go on")


def test_a_chain():
    sums = truth()
    file, last, _ = saved()
    for i in range(4):
        name = f"chain{i}"
        with Running(name, "--restore", file), Vitro("console", name) as c:
            c.expect(rb"step %d sum [0-9a-f]+ tsc \d+\r?\n" % (last + 5))
            file = path(name)
            vitro("snapshot", name, file, "--quit")
            c.wait()
            got = steps(c.seen)
        check(got[0][0] == last + 1 and all(sums[n] == s for n, s, _ in got if n in sums), f"{i}: {got[:2]}")
        last = got[-1][0]


def linux(name, cpus=1, mem="512M"):
    v = Running(name, "--append", "quiet", "--cpus", str(cpus), "--mem", mem)
    return v


def test_linux_goes_on():
    file = path("linux")
    with linux("linux"), Vitro("console", "linux") as c:
        c.to_shell()
        c.send("dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>/dev/null; md5sum /tmp/a; i=0; "
               "while :; do i=$((i+1)); echo tick $i at $(cut -d. -f1 /proc/uptime); sleep 0.1; done\n")
        md5 = c.expect(rb"\n([0-9a-f]{32})  /tmp/a").group(1)
        c.expect(rb"\ntick 10 at (\d+)")
        vitro("snapshot", "linux", file, "--quit")
        c.wait()
        last = int(re.findall(rb"tick (\d+) at", c.seen)[-1])
        up = int(re.findall(rb"tick \d+ at (\d+)", c.seen)[-1])
    time.sleep(2)
    started = time.monotonic()
    with Vitro("run", "--restore", file) as v:
        m = v.expect(rb"tick (\d+) at (\d+)", 20)
        took = time.monotonic() - started
        check(int(m.group(1)) == last + 1, f"tick {m.group(1)} after {last}")
        check(int(m.group(2)) - up <= 1, "time went on meanwhile")
        check(took < RESTORE_S + 0.3, f"{took:.2f} s to the next tick")
        v.expect(rb"tick %d at" % (last + 20), 20)
        v.send(b"\x03")
        v.command("echo; md5sum /tmp/a", rb"\n" + md5)
        # The battery kept the clock going; what the kernel counts stood still.
        v.command("hwclock -u -t >/dev/null 2>&1; echo $(( $(date +%s -d \"$(hwclock -u | cut -d. -f1 | cut -c1-24)\" "
                  "2>/dev/null || echo 0) )); poweroff", rb"Power down")
        check(v.wait() == 0, "status")


def test_linux_with_several_cpus():
    file = path("smp")
    with linux("smp", cpus=2), Vitro("console", "smp") as c:
        c.to_shell()
        c.send("for c in 1 2 3; do (n=0; while [ $n -lt 40 ]; do n=$((n+1)); head -c 300000 /dev/zero | md5sum; done | sort -u; echo end $c) & done; wait; nproc\n")
        time.sleep(0.7)
        vitro("snapshot", "smp", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        v.expect(rb"\n2\r?\n", 60)
        sums = set(re.findall(rb"([0-9a-f]{32})  -", v.seen))
        check(sums == {b"3377870dfeaaa7adf79a374d2702a3fd"} or len(sums) == 1, sums)
        v.command("echo cpus $(nproc); poweroff", rb"Power down")
        check(b"cpus 2" in v.seen and v.wait() == 0, "not two CPUs, or not well ended")


def test_reset_after_restore_boots():
    file = path("boot")
    with linux("boot"), Vitro("console", "boot") as c:
        c.to_shell()
        vitro("snapshot", "boot", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        time.sleep(0.5)
        v.send("echo b > /proc/sysrq-trigger\nreboot\n")
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
    best = 99
    for _ in range(3):
        with Vitro("run", "--restore", file) as v:
            started = time.monotonic()
            v.send("echo back-$((1+1))\n")
            v.expect(rb"back-2", 20)
            best = min(best, time.monotonic() - started)
    check(best < RESTORE_S, f"{best:.2f} s")


def test_disk():
    disk = path("disk.img")
    with open(disk, "wb") as f:
        f.truncate(64 << 20)
    file = path("with-disk")
    with Running("disk", "--append", "quiet", "--disk", disk + ",if=virtio"), Vitro("console", "disk") as c:
        c.to_shell()
        c.send("[ -b /dev/vda ] && for i in $(seq 100); do dd if=/dev/urandom of=/dev/vda bs=64k count=8 conv=fsync 2>/dev/null && echo wrote-$((1+1)); done\n")
        c.expect(rb"\nwrote-2")
        c.send("dmesg | grep -c 'I/O error'; poweroff\n")
        vitro("snapshot", "disk", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        v.expect(rb"wrote-2\r?\n.*wrote-2", 20)
        v.expect(rb"\n0\r?\n", 60)
        v.expect(rb"Power down")
    line = error_line("run", "--restore", file)
    check("disk.img has changed" in line, line)
    with Running("thrown", "--kernel", RUNNING, "--disk", disk + ",if=virtio", "--snapshot"):
        check("thrown away" in vitro("snapshot", "thrown", file, status=1), "an overlay was left out")


def test_ide():
    disk, file = path("ide.img"), path("with-ide")
    with open(disk, "wb") as f:
        f.write(random.Random(3).randbytes(4 << 20))
    with Running("ide", "--append", "quiet", "--disk", disk + ",if=ide"), Vitro("console", "ide") as c:
        c.to_shell()
        c.send("D=$(ls /dev/sda /dev/hda 2>/dev/null | head -1); for i in 1 2 3 4 5 6; do echo 3 > /proc/sys/vm/drop_caches; md5sum < $D; done; poweroff\n")
        md5 = c.expect(rb"\n([0-9a-f]{32})  -", 60).group(1)
        vitro("snapshot", "ide", file, "--quit")
    with Vitro("run", "--restore", file) as v:
        v.expect(rb"Power down", 60)
        sums = re.findall(rb"([0-9a-f]{32})  -", v.seen)
        check(sums and set(sums) == {md5}, f"{sums} after {md5}")


def test_cards_and_other_devices():
    """Network card, random numbers, balloon: they work on; what cannot be saved is refused by name."""
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
    socket = path("socket")
    with Running("console", "--kernel", RUNNING, "--hvc", socket):
        check("cannot be saved" in vitro("snapshot", "console", file, status=1), "not saved, nor refused")


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
            c.expect(rb"step 3 ")
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
        at = steps(c.seen)[-1][0] if steps(c.seen) else 1
        c.expect(rb"step %d " % (at + 20))
    check(not [f for f in os.listdir(WORK.name) if ".part-" in f], "half files are left")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/snapshot"))
