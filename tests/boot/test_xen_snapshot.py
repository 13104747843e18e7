#!/usr/bin/env python3
"""A Xen PV guest in a file: Debian's stock kernel goes on exactly where it was, with its devices, and a file that is not what it was
is refused."""
import hashlib
import os
import random
import re
import struct
import subprocess
import sys
import time

from harness import GUEST, Vitro, check, error_line, main
from test_snapshot import Running, path, refused, sections, vitro  # first: it says where VMs are found
from test_control import Qmp
from test_disk import Image
from test_net import Server
from test_xen_life import resident, until

XEN = ("--pv", "xen", "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", os.path.join(GUEST, "initrd.img"), "--append", "quiet")
TROUBLE = (b"WARNING:", b"BUG:", b"Oops", b"Call Trace", b"soft lockup", b"detected stalls", b"I/O error")


def linux(name, *args, cpus=1, mem="256M"):
    return Running(name, *XEN, "--cpus", str(cpus), "--mem", mem, *args)


def ends_well(v):
    v.send("poweroff -f\n")
    check(v.wait(60) == 0, v.tail())
    for word in TROUBLE:
        check(word not in v.seen, f"{word} in {v.tail()}")


def test_goes_on():
    """Ticks and checksums, twice from the same file; the clock does not count the time away."""
    file, away = path("xen"), 4
    with linux("xen"), Vitro("console", "xen") as c:
        c.to_shell()
        c.send("dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>/dev/null; md5sum /tmp/a; i=0; "
               "while :; do i=$((i+1)); echo tick $i at $(cut -d' ' -f1 /proc/uptime); sleep 0.1; done\n")
        md5 = c.expect(rb"\n([0-9a-f]{32})  /tmp/a").group(1)
        c.expect(rb"\ntick 10 at (\d+)")
        vitro("snapshot", "xen", file, "--quit")
        c.wait()
        before = c.seen
    time.sleep(away)
    for _ in range(2):
        with Vitro("run", "--restore", file) as v:
            for _ in range(20):
                v.expect(rb"tick \d+ at [\d.]+\r?\n")
            # One text: the snapshot may lie within a line.
            ticks = [(int(n), float(t)) for n, t in re.findall(rb"tick (\d+) at ([\d.]+)\r?\n", before + v.seen)]
            check([n for n, _ in ticks] == list(range(1, len(ticks) + 1)), f"not every tick, once: {ticks}")
            steps = [b - a for (_, a), (_, b) in zip(ticks, ticks[1:])]
            check(0 <= min(steps) and max(steps) < away, f"time went back, or on meanwhile: {ticks}")
            v.send(b"\x03")
            v.command("echo; md5sum /tmp/a", rb"\n" + md5)
            ends_well(v)


def test_several_cpus():
    """What four processes do on two CPUs is neither lost nor changed, along a chain of snapshots; one CPU is down, and comes back."""
    file, line = path("xen-smp"), rb"\n([0-9a-f]{32})  -\r?\n"
    with linux("xen-smp", cpus=3), Vitro("console", "xen-smp") as c:
        c.to_shell()
        c.send("echo 0 > /sys/devices/system/cpu/cpu2/online; for c in 1 2 3 4; do while ! [ -e /tmp/stop ]; do "
               "head -c 300000 /dev/zero | md5sum; done & done\n")
        c.expect(line, 60)
        vitro("snapshot", "xen-smp", file, "--quit")
    for i in range(3):
        name = f"xen-smp{i}"
        with Running(name, "--restore", file), Vitro("console", name) as c:
            for _ in range(5):
                c.expect(line)
            file = path(name)
            vitro("snapshot", name, file, "--quit")
    with Vitro("run", "--restore", file) as v:
        for _ in range(20):
            v.expect(line)
        v.command("touch /tmp/stop; wait; echo cpus $(nproc).; echo 1 > /sys/devices/system/cpu/cpu2/online; echo now $(nproc).",
                  rb"cpus 2\.\r?\n(?s:.*)now 3\.", 60)
        check(set(re.findall(rb"(?<=\n)([0-9a-f]{32})  -\r?\n", v.seen[v.seen.index(b"\n") + 1:])) ==
              {hashlib.md5(bytes(300000)).hexdigest().encode()}, v.tail())
        ends_well(v)


def test_disk():
    """Reads and synced writes are under way in the snapshot and go on: every queue and ring page, persistent grants too."""
    for options in "", ",queues=2,persistent=on":
        file, data = path("xen-disk.img"), random.Random(9).randbytes(16 << 20)
        with open(file, "wb") as f:
            f.write(data)
        line = rb"\n" + hashlib.md5(data[:8 << 20]).hexdigest().encode() + rb"  -\r?\n"
        with linux("xen-disk", "--disk", file + options, cpus=2), Vitro("console", "xen-disk") as c:
            c.to_shell()
            c.send("i=0; while ! [ -e /tmp/stop ]; do i=$((i + 1)); yes $i | dd of=/dev/xvda bs=1M count=2 seek=12 iflag=fullblock conv=fsync "
                   "2>/dev/null || echo failed; echo $i > /tmp/i; done & "
                   "while ! [ -e /tmp/stop ]; do echo 3 > /proc/sys/vm/drop_caches; head -c 8388608 /dev/xvda | md5sum; done &\n")
            c.expect(line, 60)
            vitro("snapshot", "xen-disk", path("xen-disk"), "--quit")
        with Vitro("run", "--restore", path("xen-disk")) as v:
            for _ in range(4):
                v.expect(line, 60)
            i = int(v.command("touch /tmp/stop; wait; echo last $(cat /tmp/i).", rb"\nlast (\d+)\.", 60).group(1))
            check(b"\nfailed" not in v.seen, v.tail())
            ends_well(v)
        with open(file, "rb") as f:
            check(f.read(8 << 20) == data[:8 << 20], "what nobody wrote has changed")
            f.seek(12 << 20)
            check(f.read(2 << 20) == (f"{i}\n".encode() * (2 << 20))[:2 << 20], "what was synced is not there")
        refused(path("xen-disk"), "xen-disk.img has changed")


def test_network():
    """The card goes on, in the middle of pings; new connections bring what was sent."""
    for options in "user", "user,queues=2":
        with Server(4) as server, linux("xen-net", "--net", options, cpus=2), Vitro("console", "xen-net") as c:
            c.to_shell()
            c.send("ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ping -c 2 10.0.2.2 | grep loss\n")
            c.expect(rb"2 packets received", 60)
            c.send("ping 10.0.2.2 > /tmp/pings &\n")
            c.command("echo begun $(sleep 1; echo now)", rb"begun now")
            vitro("snapshot", "xen-net", path("xen-net"), "--quit")
            for _ in range(2):
                with Vitro("run", "--restore", path("xen-net")) as v:
                    v.command("ping -c 3 10.0.2.2 | grep loss", rb"3 packets received", 60)
                    v.command(f"wget -q -O - http://10.0.2.2:{server.port}/ | md5sum", hashlib.md5(server.body).hexdigest().encode(), 60)
                    ends_well(v)


def until_kib(v, kib):
    v.command(f"until [ $(cat /sys/devices/system/xen_memory/xen_memory0/info/current_kb) = {kib} ]; do sleep 0.1; done; echo now-{kib}.",
              rb"\nnow-%d\." % kib, 60)


def test_balloon():
    """What the guest gave back is gone in the snapshot, and can be had again."""
    with linux("xen-balloon", mem="512M"), Vitro("console", "xen-balloon") as c:
        c.to_shell()
        vitro("balloon", "xen-balloon", "256M")
        until_kib(c, 256 << 10)
        vitro("snapshot", "xen-balloon", path("xen-balloon"), "--quit")
    name = "xen-balloon2"
    with Running(name, "--restore", path("xen-balloon")), Vitro("console", name) as v:
        q = Qmp(name)
        q.do("qmp_capabilities")
        check(q.do("query-balloon")["return"]["actual"] == 256 << 20, "as much as before")
        until_kib(v, 256 << 10)
        vitro("balloon", name, "512M")
        until_kib(v, 512 << 10)
        v.command("dd if=/dev/zero of=/tmp/z bs=1M count=200 2>/dev/null; md5sum /tmp/z", rb"3566de3a97906edb98d004d6b947ae9b", 60)
        ends_well(v)


def test_balloon_gives_memory_back():
    """Also memory that was mapped from the file."""
    with linux("xen-back", mem="512M"), Vitro("console", "xen-back") as c:
        c.to_shell()
        vitro("snapshot", "xen-back", path("xen-back"), "--quit")
    with Vitro("run", "--restore", path("xen-back"), "--name", "xen-back2") as v:
        v.command("dd if=/dev/zero of=/tmp/z bs=1M count=250 2>/dev/null; rm /tmp/z; echo used", rb"\nused", 60)
        before = resident(v)
        vitro("balloon", "xen-back2", "256M")
        until_kib(v, 256 << 10)
        check(resident(v) < before - (100 << 20), f"resident: {before >> 20} MiB, then {resident(v) >> 20}")
        ends_well(v)


def test_suspended():
    """A guest that stands still by itself does so afterwards, until it is woken."""
    with linux("xen-sus"), Vitro("console", "xen-sus") as c:
        c.to_shell()
        vitro("suspend", "xen-sus")
        vitro("snapshot", "xen-sus", path("xen-sus"), "--quit")
    name = "xen-sus2"
    with Running(name, "--restore", path("xen-sus")), Vitro("console", name) as v:
        q = Qmp(name)
        q.do("qmp_capabilities")
        check(q.do("query-status")["return"]["status"] == "suspended", "query-status")
        v.send("echo $((6 * 7))y\n")
        time.sleep(0.5)  # nothing to wait for: it must not happen
        v.pump(0)
        check(b"42y" not in v.seen, "it did not stand still")
        vitro("resume", name)
        v.expect(rb"\n42y", 60)
        vitro("stop", name)  # asked by xenstore, whose watches are there


def test_reboot():
    with linux("xen-boot"), Vitro("console", "xen-boot") as c:
        c.to_shell()
        vitro("snapshot", "xen-boot", path("xen-boot"), "--quit")
    with Vitro("run", "--restore", path("xen-boot")) as v:
        v.send("reboot -f\n")
        v.to_shell()
        ends_well(v)


def test_devices_that_came_and_went():
    """The snapshot has the devices that there are, under their names, and new ones find a place."""
    with Image(8) as first, Image(8, fill=True) as second, Image(8, fill=True) as third:
        with linux("xen-plug", "--net", "user", "--disk", first.path), Vitro("console", "xen-plug") as c:
            c.to_shell()
            q = Qmp("xen-plug")
            q.do("qmp_capabilities")
            check(q.do("x-attach", disk=second.path)["return"] == {"name": "xvdb"}, "no disk")
            check(q.do("x-attach", net="user")["return"] == {"name": "vif1"}, "no card")
            c.command("until [ -e /dev/xvdb -a -e /sys/class/net/eth1 ]; do sleep 0.1; done; cat /sys/class/net/eth1/address",
                      rb"\n52:54:00:12:34:5e", 60)
            for device in "xvda", "vif0":
                q.do("x-detach", name=device)
            c.command("until [ ! -e /dev/xvda -a ! -e /sys/class/net/eth0 ]; do sleep 0.1; done; echo both-gone", rb"\nboth-gone", 60)
            until("they are gone", lambda: q.do("x-query-devices")["return"] == ["xvdb", "vif1"])
            vitro("snapshot", "xen-plug", path("xen-plug"), "--quit")
        for file, name in (path("xen-plug"), "xen-plug1"), (path("xen-plug1"), "xen-plug2"):
            with Running(name, "--restore", file), Vitro("console", name) as v:
                q = Qmp(name)
                q.do("qmp_capabilities")
                check(sorted(q.do("x-query-devices")["return"]) == ["vif1", "xvdb"], "other devices")
                v.command("echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/xvdb", second.md5().encode(), 60)
                v.command("ip link set eth1 up; udhcpc -i eth1 -q -n -s /bin/true", rb"lease of 10.0.2.15 obtained", 60)
                check(q.do("x-attach", disk=third.path)["return"] == {"name": "xvda"}, "no disk")
                v.command("until [ -e /dev/xvda ]; do sleep 0.1; done; md5sum /dev/xvda", third.md5().encode(), 60)
                q.do("x-detach", name="xvda")
                until("it is gone", lambda: "xvda" not in q.do("x-query-devices")["return"])
                vitro("snapshot", name, path(name), "--quit")


# -- Files that are not what they were ---------------------------------------------------------------------


def test_damaged():
    """Cut off in each section of Xen's, a bit flipped in each."""
    file, altered = path("xen-whole"), path("xen-altered")
    with Image(8) as image:
        with linux("xen-whole", "--net", "user", "--disk", image.path), Vitro("console", "xen-whole") as c:
            c.to_shell()
            vitro("snapshot", "xen-whole", file, "--quit")
        subprocess.run(["cp", "--sparse=always", file, altered], check=True)
        with open(file, "rb") as f:
            data = f.read(struct.unpack_from("<Q", os.pread(f.fileno(), 32, 0), 24)[0])  # up to memory
        mine = {n: s for n, s in sections(data).items() if n.startswith("xen")}
        check({"xen", "xen.cpu.0", "xen.ports", "xen.pins", "xen.store.tree", "xen.vbd.51712", "xen.vbd.51712.ring0", "xen.vif.0.tx0"} <=
              set(mine), f"{sorted(mine)}")
        rng = random.Random(3)
        for _, start, length in mine.values():
            at = start + rng.randrange(max(length, 1))
            with open(altered, "r+b") as f:
                f.seek(at)
                f.write(bytes([data[at] ^ 1 << rng.randrange(8)]))
                f.flush()
                refused(altered)
                f.seek(at)
                f.write(data[at:at + 1])
        line = error_line("run", "--restore", file, "--disk", image.path, status=2)
        check("--disk" in line and "what machine it is" in line, line)
        for _, start, length in sorted(mine.values(), reverse=True):
            with open(altered, "r+b") as f:
                f.truncate(start + length // 2)
            refused(altered, "truncated")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/xen_snapshot"))
