#!/usr/bin/env python3
"""Each kind of device in a snapshot: it works on in the restored VM, or says what has become of its connections."""
import hashlib
import os
import random
import socket
import sys
import tempfile
import time

from harness import Vitro, check, main
from test_snapshot import Running, path, vitro
from test_virtio import connect, read_until
from userland import generic_kernel, kernel, program

MIB = 1 << 20


def disk_goes_on(name, where, dev, guest):
    """Reads of its first half and writes to its last quarter are under way in the snapshot, and go on."""
    file, data = path(name), random.Random(9).randbytes(16 * MIB)
    with open(file, "wb") as f:
        f.write(data)
    line = rb"\n" + hashlib.md5(data[:8 * MIB]).hexdigest().encode() + rb"  -\r?\n"
    with Running(name, "--append", "quiet", "--disk", file + where, *guest), Vitro("console", name) as c:
        c.to_shell()
        c.send(f"while ! [ -e /tmp/stop ]; do echo 3 > /proc/sys/vm/drop_caches; "
               f"dd if=/dev/urandom of={dev} bs=1M count=2 seek=12 conv=fsync 2>/dev/null; "
               f"head -c {8 * MIB} {dev} | md5sum; done &\n")
        c.expect(line)
        vitro("snapshot", name, path(name + ".snap"), "--quit")
    with Vitro("run", "--restore", path(name + ".snap")) as v:
        for _ in range(4):
            v.expect(line)
        v.command("touch /tmp/stop; wait; echo errors $(dmesg | grep -ci 'i/o error').", rb"errors 0\.", 60)
        v.command("poweroff", rb"Power down")
        check(v.wait() == 0, "status")


def test_disk_by_mmio():
    disk_goes_on("mmio", ",if=virtio,transport=mmio", "/dev/vda", ())


def test_ahci():
    with tempfile.TemporaryDirectory() as work:
        disk_goes_on("ahci", ",if=ahci", "/dev/sda", generic_kernel(work))


def test_e1000():
    with tempfile.TemporaryDirectory() as work:
        with Running("e1000", "--append", "quiet", "--net", "user,if=e1000", *generic_kernel(work)), \
             Vitro("console", "e1000") as c:
            c.to_shell()
            c.send("modprobe e1000 2>/dev/null; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; "
                   "ping -c 3 10.0.2.2 | grep loss\n")
            c.expect(rb"3 packets received", 60)
            c.send("ping -i 0.1 10.0.2.2 > /tmp/pings &\n")
            c.command("echo begun $(sleep 1; echo now)", rb"begun now")
            vitro("snapshot", "e1000", path("e1000.snap"), "--quit")
        with Vitro("run", "--restore", path("e1000.snap")) as v:
            v.command("ping -c 3 10.0.2.2 | grep loss", rb"3 packets received", 60)
            v.command("kill -INT $!; wait; tail -3 /tmp/pings; poweroff", rb"Power down", 60)


def test_console():
    hvc = path("hvc")
    with Running("hvc", "--append", "quiet", "--hvc", hvc), Vitro("console", "hvc") as c, connect(hvc) as s:
        c.to_shell()
        c.send("(stty raw -echo; cat) < /dev/hvc0 > /dev/hvc0 &\n")
        c.command("sleep 1; echo up $((1+1))", rb"up 2")
        s.sendall(b"one\n")
        read_until(s, b"one\n")
        vitro("pause", "hvc")
        s.sendall(b"two\n")
        vitro("resume", "hvc")
        read_until(s, b"two\n")
        # Nobody reads what it says now: the guest waits for room, and that is in the snapshot.
        c.send("yes filler | head -c 2000000 > /dev/hvc0; echo all $((1+1))\n")
        time.sleep(2)
        c.pump(0)
        check(b"all 2" not in c.seen, "two megabytes went nowhere")
        vitro("snapshot", "hvc", path("hvc.snap"), "--quit")
    with Vitro("run", "--restore", path("hvc.snap")) as v:
        v.expect(rb"all 2", 60)
        with connect(hvc) as s:
            s.sendall(b"three\n")
            read_until(s, b"three\n")
        v.command("poweroff", rb"Power down")


def test_vsock_says_that_connections_are_gone():
    with tempfile.TemporaryDirectory() as work:
        sock = path("vsock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sock + "_700")
        listener.listen()
        with Running("vsock", "--vsock", sock, *kernel(work, add=[program(work, "vsock")]), "--append", "quiet"), \
             Vitro("console", "vsock") as c:
            c.to_shell()
            c.send("modprobe vmw_vsock_virtio_transport 2>/dev/null; vsock echo 99 2 &\n")
            c.expect(rb"listening")
            c.send("(while :; do echo line; sleep 0.1; done | vsock pipe 700 > /dev/null; echo ended $?.) &\n")
            peer, _ = listener.accept()
            read_until(peer, b"line\nline\n")
            vitro("pause", "vsock")
            vitro("resume", "vsock")
            read_until(peer, b"line\nline\n" * 3)  # a pause does no harm
            vitro("snapshot", "vsock", path("vsock.snap"), "--quit")
        with Vitro("run", "--restore", path("vsock.snap")) as v:
            v.expect(rb"ended \d+\.", 60)
            with connect(sock) as s:  # the guest's listener goes on
                s.sendall(b"CONNECT 99\n")
                read_until(s, b"OK ")
                s.sendall(b"again\n")
                read_until(s, b"again\n")
            v.send("echo out | vsock pipe 700 &\n")  # and new ones can be made
            peer, _ = listener.accept()
            read_until(peer, b"out\n")
            peer.close()
            v.command("poweroff", rb"Power down", 60)


def test_pmem():
    """The file stays where it is, and what the guest had stored with it."""
    file, saved = path("pmem"), path("pmem.snap")
    data = random.Random(11).randbytes(16 * MIB)
    with open(file, "wb") as f:
        f.write(data)
    line = rb"\n" + hashlib.md5(data).hexdigest().encode() + rb"  -\r?\n"
    with tempfile.TemporaryDirectory() as work, \
            Running("pmem", "--disk", file + ",if=pmem", *generic_kernel(work), "--append", "quiet"), \
            Vitro("console", "pmem") as c:
        c.to_shell()
        c.command("modprobe nd_pmem; while ! [ -e /dev/pmem0 ]; do sleep 0.1; done; md5sum < /dev/pmem0", line, 60)
        vitro("snapshot", "pmem", saved, "--quit")
    with Vitro("run", "--restore", saved) as v:
        v.send("echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/pmem0\n")
        v.expect(line, 60)
        v.command("echo stored | dd of=/dev/pmem0 bs=4k seek=7 conv=fsync 2>/dev/null; echo flushed.", rb"\nflushed\.", 60)
        with open(file, "rb") as f:
            f.seek(7 * 4096)
            check(f.read(7) == b"stored\n", "not in the file")
        v.command("poweroff", rb"Power down")
        check(v.wait() == 0, "status")


def test_share():
    """Files that the guest has open are open, at the same place; one that is gone is an error, and no other file."""
    with tempfile.TemporaryDirectory() as work:
        share = f"{work}/share"
        os.makedirs(f"{share}/sub")
        for name, text in (("read", "first\nsecond\nthird\n"), ("gone", "old\nold\n"), ("sub/add", "begun\n")):
            with open(f"{share}/{name}", "w") as f:
                f.write(text)
        with Running("share", "--share", f"{share},tag=stuff", *generic_kernel(work), "--append", "quiet"), \
             Vitro("console", "share") as c:
            c.to_shell()
            c.send("mkdir /m; mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 stuff /m && cd /m/sub && echo in $((1+1))\n")
            c.expect(rb"in 2")
            c.command("exec 3< /m/read 4>> add 5< /m/gone; read a <&3; echo got $a; echo more >&4", rb"got first")
            c.command("rm -f x; echo > x; exec 6< x; rm x; echo removed $((1+1))", rb"removed 2")
            check("was removed" in vitro("snapshot", "share", path("share.snap"), status=1), "a removed file was saved")
            c.command("exec 6<&-; echo closed $((1+1))", rb"closed 2")
            vitro("snapshot", "share", path("share.snap"), "--quit")
        os.rename(f"{share}/gone", f"{share}/moved")
        with open(f"{share}/gone", "w") as f:
            f.write("secret\nsecret\n")
        with Vitro("run", "--restore", path("share.snap")) as v:
            v.command("read a <&3; echo got $a; read a <&3; echo got $a", rb"got second\r?\n.*got third")
            v.command("echo last >&4; exec 4>&-; cat add", rb"begun\r?\nmore\r?\nlast")
            v.command("echo 3 > /proc/sys/vm/drop_caches; cat <&5; echo status $?.", rb"status [0-9]+\.")
            check(b"secret" not in v.seen, "another file took the place of one that was moved")
            v.command("pwd; echo text > new && cat new; poweroff", rb"/m/sub\r?\ntext\r?\n")
            v.expect(rb"Power down")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/snapshot_devices"))
