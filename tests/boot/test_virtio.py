#!/usr/bin/env python3
"""The smaller virtio devices: random numbers, balloon, console, sockets, a shared directory."""
import hashlib
import os
import random
import socket
import sys
import tempfile
import threading
import time

from harness import Vitro, check, error_line, main, script
from userland import generic_kernel, kernel, program

MIB = 1 << 20


def run_script(text, *args, seconds=120):
    with Vitro("run", "--append", "quiet " + script("set -e\n" + text), *args, stdin=None) as v:
        v.expect(rb"vitro.test: status 0", seconds)
        check(v.wait() == 0, v.tail())
        return v.seen.decode(errors="replace").replace("\r", "")


def test_rng():
    out = run_script("cat /sys/class/misc/hw_random/rng_current; for i in 1 2; do\n"
                     "dd if=/dev/hwrng bs=4k count=16 2>/dev/null | gzip -c | wc -c; done\n"
                     "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | md5sum; dd if=/dev/hwrng bs=64 count=1 2>/dev/null | md5sum",
                     "--rng")
    check("virtio_rng.0" in out, out)
    words = out.split()
    sizes = [int(w) for w in words if w.isdigit() and int(w) > 1000]
    check(len(sizes) == 2 and min(sizes) > 60000, f"not random: {sizes}")
    sums = [w for w in words if len(w) == 32]
    check(len(set(sums)) == 2, "twice the same bytes")


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith(("RssShmem", "RssAnon"))) >> 10


def test_free_pages_are_given_back():
    text = ("mount -t tmpfs -o size=300m t /mnt 2>/dev/null || { mkdir -p /mnt; mount -t tmpfs -o size=300m t /mnt; }\n"
            "dd if=/dev/urandom of=/mnt/f bs=1M count=220 2>/dev/null; echo filled; sleep 1; rm /mnt/f; echo freed; sleep 12")
    with Vitro("run", "--mem", "512M", "--balloon", "--append", "quiet " + script(text), stdin=None) as v:
        v.expect("filled")
        before = resident_mib(v.process.pid)
        v.expect("freed")
        end = time.monotonic() + 11
        while resident_mib(v.process.pid) > before - 150 and time.monotonic() < end:
            v.pump(0.3)
        after = resident_mib(v.process.pid)
        check(after < before - 150, f"{before} MiB before, {after} MiB after 220 MiB were freed")
        v.expect("status 0")


def connect(path, seconds=10):
    end = time.monotonic() + seconds
    while True:
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(path)
            s.settimeout(20)
            return s
        except OSError:
            s.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def echo_at(path):
    """One client of a socket made there gets back what it sends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def echo():
        s, _ = listener.accept()
        while data := s.recv(65536):
            s.sendall(data)
        s.close()
    threading.Thread(target=echo, daemon=True).start()


def read_until(s, pattern):
    got = b""
    while pattern not in got:
        data = s.recv(4096)
        check(data, f"the end came before {pattern!r}: {got[-200:]!r}")
        got += data
    return got


def test_console():
    with tempfile.TemporaryDirectory() as work:
        path = f"{work}/hvc"
        text = "echo ready; sh -c 'stty raw -echo; cat' < /dev/hvc0 > /dev/hvc0 & sleep 30; kill $!"
        with Vitro("run", "--hvc", path, "--append", "quiet " + script(text), stdin=None) as v:
            v.expect("ready")
            with connect(path) as s:
                time.sleep(1)
                body = random.Random(5).randbytes(200000).hex().encode()
                threading.Thread(target=s.sendall, args=(body,), daemon=True).start()
                got = b""
                while len(got) < len(body):
                    data = s.recv(65536)
                    check(data, f"ended after {len(got)} of {len(body)} bytes")
                    got += data
                check(got == body, "the echo differs")
            with connect(path) as s:  # another client, after the first has gone
                s.sendall(b"again\n")
                read_until(s, b"again\n")
        check(not os.path.exists(path) or v.process.returncode < 0, "the socket is still there")


def test_vsock():
    with tempfile.TemporaryDirectory() as work:
        path = f"{work}/v.sock"
        body = random.Random(6).randbytes(3 * MIB)
        echo_at(path + "_700")
        text = ("vsock echo 99 2 & sleep 0.5; head -c 2000000 /dev/urandom > /tmp/r; md5sum < /tmp/r\n"
                "vsock pipe 700 < /tmp/r | md5sum; vsock pipe 701 < /dev/null || echo refused; wait")
        with Vitro("run", "--vsock", path, *kernel(work, add=[program(work, "vsock")]), "--append",
                   "quiet " + script(text), stdin=None) as v:
            v.expect("listening")
            for _ in range(2):
                with connect(path) as s:
                    s.sendall(b"CONNECT 99\n")
                    check(read_until(s, b"\n").startswith(b"OK "), "no OK")
                    threading.Thread(target=lambda: (s.sendall(body), s.shutdown(socket.SHUT_WR)), daemon=True).start()
                    digest, count = hashlib.md5(), 0
                    while count < len(body):
                        data = s.recv(65536)
                        check(data, f"ended after {count} of {len(body)} bytes")
                        digest.update(data)
                        count += len(data)
                    check(digest.hexdigest() == hashlib.md5(body).hexdigest(), "the echo differs")
            v.expect("status 0", 60)
            out = v.seen.decode(errors="replace")
            sums = [w for w in out.split() if len(w) == 32]
            check(len(sums) == 2 and sums[0] == sums[1], f"through the host and back: {out[-300:]}")
            check("refused" in out, out[-300:])
        with connect_refused(path):
            pass


def test_vsock_clients_that_do_not_wait():
    """More than there is room for, of which each goes before it is answered: while the guest has no driver, and while it rests."""
    with tempfile.TemporaryDirectory() as work:
        path = f"{work}/v.sock"

        def go_away(count):
            for _ in range(count):
                with connect(path) as s:
                    s.sendall(b"CONNECT 99\n")
        def served():  # once those that went are forgotten
            end = time.monotonic() + 60
            while time.monotonic() < end:
                with connect(path) as s:
                    s.sendall(b"CONNECT 99\nhello")
                    try:
                        if (got := s.recv(4096)).startswith(b"OK "):
                            return
                    except ConnectionError:
                        pass
                time.sleep(0.2)
            check(False, "no client is served any more")
        text = ("echo up; read x; modprobe vmw_vsock_virtio_transport; (while :; do vsock echo 99 1; done) >/dev/null 2>&1 &\n"
                "echo driver; read x")
        with Vitro("run", "--vsock", path, *kernel(work, add=[program(work, "vsock")]), "--append",
                   "quiet modprobe.blacklist=vmw_vsock_virtio_transport " + script(text)) as v:
            v.expect("up\r")
            go_away(300)
            v.send("\n")
            v.expect("driver\r")
            served()
            go_away(300)
            served()


class connect_refused:
    """Nobody listens there any more."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        s = socket.socket(socket.AF_UNIX)
        check(s.connect_ex(self.path) != 0, "somebody still listens")
        s.close()

    def __exit__(self, *exc):
        pass


def test_share():
    """A directory by 9p, in the generic kernel (the cloud kernel has no 9p)."""
    with tempfile.TemporaryDirectory() as work:
        share = f"{work}/share"
        os.makedirs(f"{share}/sub/deep")
        data = random.Random(8).randbytes(5 * MIB + 123)
        with open(f"{share}/big", "wb") as f:
            f.write(data)
        os.symlink("/etc/passwd", f"{share}/out")
        os.symlink("..", f"{share}/sub/up")
        for i in range(300):
            open(f"{share}/sub/file{i:03}", "w").close()
        text = """mkdir /m; mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 stuff /m
md5sum < /m/big; ls /m/sub | wc -l; readlink /m/out; md5sum /m/out | cut -c1-32
cp /bin/busybox /m/sub/deep/bb; md5sum < /m/sub/deep/bb; mkdir /m/new; echo text > /m/new/t; ln -s t /m/new/l
mv /m/new/t /m/new/u; ln /m/new/u /m/new/hard; chmod 640 /m/new/u; truncate -s 3 /m/new/u; cat /m/new/hard; echo
rm -r /m/sub/file0*; rmdir /m/new/nothing 2>/dev/null || echo no such; touch -d @1000000000 /m/big
dd if=/m/big of=/m/copy bs=300k 2>/dev/null; df /m | tail -1; umount /m"""
        out = run_script(text, "--share", f"{share},tag=stuff", *generic_kernel(work))
        check(hashlib.md5(data).hexdigest() in out, "the file reads differently")
        check("\n303\n" in out or "\n302\n" in out, f"entries: {out[:400]}")
        with open(f"{share}/copy", "rb") as f:
            check(f.read() == data, "the copy differs")
        check(open(f"{share}/new/u").read() == "tex", "truncate or rename")
        check(os.stat(f"{share}/new/u").st_mode & 0o777 == 0o640 and os.stat(f"{share}/new/u").st_nlink == 2, "chmod, link")
        check(os.readlink(f"{share}/new/l") == "t", "symlink")
        check(not os.path.exists(f"{share}/sub/file001") and os.path.exists(f"{share}/sub/file123"), "rm")
        check(int(os.stat(f"{share}/big").st_mtime) == 1000000000, "touch")
        with open("/etc/passwd", "rb") as f:  # a link is followed in the guest, not here
            check(hashlib.md5(f.read()).hexdigest() not in out, "a symbolic link led out of the directory")
        out = run_script("mkdir /m; mount -t 9p -o trans=virtio,version=9p2000.L stuff /m; cat /m/new/u\n"
                         "touch /m/x 2>&1 && exit 1; rm /m/big 2>&1 && exit 1; echo kept",
                         "--share", f"{share},tag=stuff,readonly=on", *generic_kernel(work))
        check("kept" in out and os.path.exists(f"{share}/big"), out[-300:])


def test_outside_pci():
    """All of them by --virtio mmio, one that says otherwise but."""
    with tempfile.TemporaryDirectory() as work:
        os.mkdir(f"{work}/share")
        body = random.Random(10).randbytes(MIB)
        for name in ("share/file", "disk", "other"):
            with open(f"{work}/{name}", "wb") as f:
                f.write(body)
        echo_at(f"{work}/v.sock_700")
        text = ("""for d in /sys/bus/virtio/devices/*; do
case $(readlink -f $d) in */LNRO0005*) w=mmio;; */pci0000*) w=pci;; esac; echo device $w $(($(cat $d/device))) $(($(cat $d/status))); done
mkdir /m; mount -t 9p -o trans=virtio,version=9p2000.L stuff /m; md5sum < /m/file; md5sum < /dev/vda; md5sum < /dev/vdb
vsock pipe 700 < /m/file | md5sum; dd if=/dev/hwrng bs=1k count=64 iflag=fullblock 2>/dev/null | gzip | wc -c
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ping -c 2 10.0.2.2 | grep received
(stty raw -echo; echo ready; head -c 5 > /tmp/typed) < /dev/hvc0; cat /tmp/typed > /dev/hvc0""")
        with Vitro("run", "--virtio", "mmio", "--rng", "--balloon", "--hvc", f"{work}/hvc", "--vsock", f"{work}/v.sock", "--net", "user",
                   "--share", f"{work}/share,tag=stuff", "--disk", f"{work}/disk,if=virtio", "--disk", f"{work}/other,if=virtio,transport=pci",
                   *generic_kernel(work, add=[program(work, "vsock")]), "--append", "quiet " + script(text), stdin=None) as v:
            v.expect(rb"\nready")
            with connect(f"{work}/hvc") as s:
                s.sendall(b"typed")
                check(read_until(s, b"typed") == b"typed", "the console's echo")
            v.expect("status 0", 60)
            out = v.seen.decode(errors="replace").replace("\r", "")
        found = sorted(line.split()[1:] for line in out.splitlines() if line.startswith("device "))
        wanted = [["mmio", kind, "15"] for kind in "1 19 2 3 4 5 9".split()] + [["pci", "2", "15"]]
        check(found == wanted, f"found {found}")
        check(out.count(hashlib.md5(body).hexdigest()) == 4, out[-600:])
        check("2 packets received" in out, out[-400:])
        sizes = [int(w) for w in out.split() if w.isdigit() and int(w) > 1000]
        check(len(sizes) == 1 and sizes[0] > 65000, f"not random: {sizes}")


def test_bad_options():
    for args, words in ((["--share", "/tmp"], "tag="), (["--share", "/tmp,tag="], "tag="),
                        (["--share", "/tmp,tag=" + "x" * 32], "tag="), (["--virtio", "isa"], "pci or mmio"),
                        (["--disk", "x,transport=isa"], "transport=mmio"), (["--pv", "xen", "--virtio", "mmio"], "--virtio")):
        check(words in error_line("run", *args, status=2), args)
    for args, words in ((["--share", "/does/not/exist,tag=a"], "No such file"), (["--hvc", "/does/not/exist"], "No such"),
                        (["--vsock", "/tmp/v,cid=2"], "cid="), (["--vsock", "/" + "x" * 200], "too long")):
        check(words in error_line("run", *args), args)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/virtio"))
