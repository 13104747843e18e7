#!/usr/bin/env python3
"""Disks and network cards of Debian's stock kernel as a Xen PV guest: its own drivers, our back ends."""
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time

from harness import BUILD, GUEST, Skip, Vitro, check, error_line, main, script
from test_control import Qmp
from test_disk import MIB, Image
from test_net import UP, Server, Sink

KERNEL = os.path.join(GUEST, "vmlinuz")
INITRD = os.path.join(GUEST, "initrd.img")
XEN = ("run", "--pv", "xen", "--kernel", KERNEL)
TROUBLE = ("Oops", "op failed", "BUG:", "Call Trace", "disabled for further use", "WARNING:")


def run_script(text, *args, seconds=120, initrd=INITRD, kernel=KERNEL):
    """The output of a script in the guest that must succeed."""
    with Vitro("run", "--pv", "xen", "--kernel", kernel, "--initrd", initrd, "--append", script("set -e\n" + text), *args,
               stdin=None) as v:
        v.expect(rb"vitro.test: status 0", seconds)
        check(v.wait() == 0, v.tail())
        seen = v.seen.decode(errors="replace").replace("\r", "")
    for word in TROUBLE:
        check(word not in seen, f"{word} in {seen[-3000:]!r}")
    return seen


def test_read_and_write():
    """Each way the disk can be set up gives the same bytes, both ways."""
    for options in ("", ",persistent=on", ",aio=threads,queues=2"):
        with Image(32, fill=True) as image:
            before = image.md5()
            out = run_script("md5sum /dev/xvda; cat /proc/interrupts\n"
                             "dd if=/dev/xvda of=/dev/xvda bs=1M count=8 seek=16 conv=fsync 2>/dev/null\n"
                             "echo tail | dd of=/dev/xvda bs=512 seek=65535 conv=fsync 2>/dev/null",
                             "--disk", image.path + options)
            check(before in out, f"{options}: the guest read something else")
            check("blkif" in out, f"{options}: no event channel")
            check(f"persistent grants: {'enabled' if 'persist' in options else 'disabled'}" in out, f"{options}: {out[-2000:]}")
            check("flush diskcache: enabled" in out and "indirect descriptors: enabled" in out, out[-2000:])
            check(image.md5(0, 8 * MIB) == image.md5(16 * MIB, 8 * MIB), f"{options}: a copy is wrong")
            with open(image.path, "rb") as f:
                f.seek(65535 * 512)
                check(f.read(5) == b"tail\n", f"{options}: the last sector is wrong")


def test_generic_kernel():
    version = os.path.join(GUEST, "version-generic")
    if not os.path.exists(version):
        raise Skip(f"{version} is not there; `make guests` fetches it")
    modules = os.path.join(GUEST, "modules", open(version).read().strip())
    with tempfile.TemporaryDirectory() as work, Image(16, fill=True) as image:
        subprocess.run(["tools/mk-initrd", f"{work}/initrd.img", "--modules", modules], check=True)
        out = run_script("md5sum /dev/xvda", "--disk", image.path, initrd=f"{work}/initrd.img",
                         kernel=os.path.join(GUEST, "vmlinuz-generic"))
        check(image.md5() in out, "the guest read something else")


def test_read_only():
    with Image(8, fill=True) as image:
        before = image.md5()
        out = run_script("echo ro=$(cat /sys/block/xvda/ro); dd if=/dev/zero of=/dev/xvda bs=4k count=1 && exit 1; true",
                         "--disk", image.path + ",readonly=on")
        check("ro=1\n" in out, "not read-only in the guest")
        check(image.md5() == before, "a read-only disk was written")


def test_discard():
    with Image(64, fill=True) as image:
        used = os.stat(image.path).st_blocks
        run_script("blkdiscard -o 1M -l 32M /dev/xvda", "--disk", image.path)
        freed = (used - os.stat(image.path).st_blocks) * 512
        check(freed >= 31 * MIB, f"only {freed} bytes were given back to the host")


def test_file_system():
    """Two disks, each with a file system that e2fsck likes afterwards; unmounted and mounted again in between."""
    with Image(64) as a, Image(64) as b:
        out = run_script("mkdir /mnt\n"
                         "for d in xvda xvdb; do mke2fs -F /dev/$d >/dev/null; mount -t ext2 /dev/$d /mnt\n"
                         "for i in $(seq 20); do cp /bin/busybox /mnt/$i; done; umount /mnt\n"
                         "mount -t ext2 /dev/$d /mnt; cat /mnt/[0-9]* | md5sum; umount /mnt; done\n"
                         "for i in $(seq 20); do cat /bin/busybox; done | md5sum", "--disk", a.path, "--disk", b.path)
        sums = re.findall(r"\b[0-9a-f]{32}\b", out)
        check(len(sums) == 3 and len(set(sums)) == 1, f"{sums}")
        for image in a, b:
            fsck = subprocess.run(["e2fsck", "-fn", image.path], capture_output=True, text=True)
            check(fsck.returncode == 0, fsck.stdout)


def test_qcow2():
    with tempfile.TemporaryDirectory() as work:
        path = f"{work}/disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
        run_script("yes vitro | dd of=/dev/xvda bs=1M count=9 iflag=fullblock conv=fsync", "--disk", path)
        subprocess.run(["qemu-img", "check", "-q", path], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, path + ".raw"], check=True)
        with open(path + ".raw", "rb") as f:
            check(f.read(9 * MIB) == b"vitro\n" * (3 * MIB // 2), "the image holds something else")


def test_network():
    """Ping, and TCP both ways: what arrives is what was sent. DHCP too."""
    for options in ("", ",mtu=1500,queues=2"):
        sink = Sink()
        with Server(8) as server:
            out = run_script("ip link set eth0 up; udhcpc -i eth0 -q -n -s /bin/true 2>&1\n" + UP + "ping -c 2 10.0.2.2\n"
                             f"wget -q -O - http://10.0.2.2:{server.port}/ | md5sum\n"
                             "dd if=/dev/urandom of=/tmp/f bs=1M count=8 2>/dev/null; md5sum /tmp/f\n"
                             f"nc 10.0.2.2 {sink.port} < /tmp/f; cat /sys/class/net/eth0/address; grep -c -E '(eth|vif)0' /proc/interrupts",
                             "--net", "user" + options)
            sink.thread.join(30)
            check("lease of 10.0.2.15 obtained from 10.0.2.2" in out, out[-1500:])
            check("2 packets received" in out, "no answer to a ping: " + out[-1500:])
            check(hashlib.md5(server.body).hexdigest() in out, f"{options}: the download is wrong: " + out[-1500:])
            check(sink.md5 and sink.md5 in out, f"{options}: the upload is wrong: {sink.md5} " + out[-1500:])
            check("52:54:00:12:34:56" in out, "another address")


def test_disk_and_network_together():
    with Image(16, fill=True) as image, Server(4) as server:
        out = run_script(UP + f"for i in 1 2 3; do md5sum /dev/xvda & wget -q -O - http://10.0.2.2:{server.port}/ | md5sum & wait; done",
                         "--net", "user", "--disk", image.path)
        check(out.count(image.md5()) == 3 and out.count(hashlib.md5(server.body).hexdigest()) == 3, out[-1500:])


def test_stop():
    """`vitro stop` asks by xenstore; the guest's kernel ends the machine."""
    name = f"xen-stop-{os.getpid()}"
    with Vitro(*XEN, "--name", name, "--initrd", INITRD) as v:
        v.to_shell()
        stopped = subprocess.run([os.path.join(BUILD, "vitro"), "stop", name], capture_output=True, text=True)
        check(stopped.returncode == 0 and "has ended" in stopped.stdout, stopped.stdout + stopped.stderr)
        check(v.wait() == 0, v.tail())


def test_hot_plug():
    """A disk and a network card come, work, and go, by the control socket."""
    name = f"xen-plug-{os.getpid()}"
    with Image(8, fill=True) as image, Vitro(*XEN, "--name", name, "--initrd", INITRD, "--net", "user", "--disk", image.path + ",readonly=on") as v:
        v.to_shell()
        with Image(8, fill=True) as other:
            q = Qmp(name)
            q.do("qmp_capabilities")
            check(q.do("x-query-devices")["return"] == ["vif0", "xvda"], "the devices of the start")
            check(q.do("x-attach", disk=other.path) == {"return": {"name": "xvdb"}}, "no disk")
            check(q.do("x-attach", net="user") == {"return": {"name": "vif1"}}, "no card")
            v.command("until [ -e /dev/xvdb ]; do sleep 0.1; done; md5sum /dev/xvdb", other.md5().encode(), 60)
            v.command("until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; ip link set eth1 up; udhcpc -i eth1 -q -n -s /bin/true",
                      rb"lease of 10.0.2.15 obtained", 60)
            for bad in ({"disk": "x"}, {"disk": "/nonexistent"}, {"disk": other.path + ",if=ide"}, {"net": "tap,ifname=x"}, {"net": "nonsense"},
                        {}, {"disk": other.path, "net": "user"}):
                check("error" in q.do("x-attach", **bad), f"{bad}")
            check("error" in q.do("x-detach", name="xvdc"), "xvdc")
            for device in "xvdb", "vif1":
                check(q.do("x-detach", name=device) == {"return": {}}, device)
            end = time.monotonic() + 60
            while q.do("x-query-devices")["return"] != ["vif0", "xvda"]:
                check(time.monotonic() < end, f"{q.do('x-query-devices')}")
                time.sleep(0.1)
            v.command("[ -e /dev/xvdb -o -e /sys/class/net/eth1 ] || echo both-gone", rb"\nboth-gone", 60)
        v.command("md5sum /dev/xvda", image.md5().encode(), 60)
        v.send("poweroff -f\n")
        check(v.wait() == 0, v.tail())


def test_refusals():
    with Image(1) as image:
        for option in ",if=ide", ",if=vitro", ",packed=on", ",transport=mmio":
            check("Xen's disks" in error_line(*XEN, "--disk", image.path + option, status=2), option)
        check("Xen's disks" in error_line(*XEN, "--cdrom", image.path, status=2), "--cdrom")
    for option in ",if=e1000", ",packed=on":
        check("Xen's network" in error_line(*XEN, "--net", "user" + option, status=2), option)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/xen_io"))
