#!/usr/bin/env python3
"""Virtio disks: bytes, file systems, flushes, discards; what the guest wrote is looked at from the host."""
import hashlib
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

from harness import GUEST, Skip, Vitro, check, error_line, main, script
from userland import generic_kernel

MIB = 1 << 20


class Image:
    """A raw image file, removed at the end."""

    def __init__(self, mib, fill=False):
        self.file = tempfile.NamedTemporaryFile(prefix="vitro-disk-")
        self.path = self.file.name
        if fill:
            self.file.write(random.Random(4).randbytes(mib * MIB))
        self.file.truncate(mib * MIB)
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()

    def md5(self, offset=0, length=-1):
        with open(self.path, "rb") as f:
            f.seek(offset)
            return hashlib.md5(f.read(length)).hexdigest()


def run_script(text, *args, seconds=120, append=""):
    """The output of a script in the guest that must succeed."""
    with Vitro("run", "--append", f"quiet {append} {script(text)}", *args, stdin=None) as v:
        v.expect(rb"vitro.test: status 0", seconds)
        check(v.wait() == 0, v.tail())
        return v.seen.decode(errors="replace").replace("\r", "")


def test_read_and_write():
    """Each way the disk can be set up gives the same bytes, both ways."""
    for options in ("", ",packed=on", ",queues=4", ",aio=threads", ",packed=on,queues=2,aio=threads"):
        with Image(32, fill=True) as image:
            before = image.md5()
            out = run_script("set -e; md5sum /dev/vda; cat /proc/interrupts\n"
                             "dd if=/dev/vda of=/dev/vda bs=1M count=8 seek=16 conv=fsync 2>/dev/null\n"
                             "echo tail | dd of=/dev/vda bs=512 seek=65535 conv=fsync 2>/dev/null",
                             "--disk", image.path + ",if=virtio" + options)
            check(before in out, f"{options}: the guest read something else")
            check("virtio0-req.0" in out, f"{options}: no MSI-X")
            check(image.md5(0, 8 * MIB) == image.md5(16 * MIB, 8 * MIB), f"{options}: a copy is wrong")
            with open(image.path, "rb") as f:
                f.seek(65535 * 512)
                check(f.read(5) == b"tail\n", f"{options}: the last sector is wrong")


def test_default_interface():
    """Virtio for a kernel; another one if that is asked for."""
    with Image(8, fill=True) as image:
        out = run_script("md5sum /dev/vda", "--disk", image.path)
        check(image.md5() in out, "no virtio disk, or another")
        out = run_script("ls /sys/block; true", "--disk", image.path + ",if=ide")
        check("vda" not in out, "if=ide is a virtio disk")


def test_without_msi():
    with Image(8, fill=True) as image:
        out = run_script("md5sum /dev/vda; cat /proc/interrupts", "--disk", image.path + ",if=virtio",
                         "--append", "quiet pci=nomsi " + script("set -e; md5sum /dev/vda; cat /proc/interrupts"))
        check(image.md5() in out, "the guest read something else")
        check("IO-APIC" in out and "virtio0" in out, "no INTx")


def test_mmio():
    """Outside PCI, found by ACPI; one interrupt line for all of them."""
    with Image(8, fill=True) as a, Image(8, fill=True) as b:
        out = run_script("md5sum /dev/vda /dev/vdb; dd if=/dev/vda of=/dev/vdb bs=64k skip=3 count=9 conv=fsync\n"
                         "cat /proc/interrupts; ls /sys/bus/pci/devices",
                         *[w for i in (a, b) for w in ("--disk", i.path + ",if=virtio,transport=mmio")])
        check(out.count(a.md5()) == 2, "the guest read something else")
        check(b.md5(0, 9 << 16) == a.md5(3 << 16, 9 << 16), "the copy is wrong")
        check("5-fasteoi   virtio" in out, "not on the line it should be on")


# Linux names disks in the order it finds them, which is not always the ports': told apart by their sizes in sectors.
TWO_DISKS = """set -e; for i in $(seq 100); do [ -e /dev/sda ] && [ -e /dev/sdb ] && break; sleep 0.1; done
disk() { basename $(dirname $(grep -lx $1 /sys/block/sd*/size)); }
"""


def test_ahci():
    """Two SATA disks; the generic kernel has a driver."""
    with tempfile.TemporaryDirectory() as work, Image(48, fill=True) as a, Image(32) as b:
        guest = generic_kernel(work)
        out = run_script(TWO_DISKS + "a=$(disk 98304) b=$(disk 65536); md5sum /dev/$a\n"
                         "dd if=/dev/$a of=/dev/$b bs=1M count=30 conv=fsync 2>/dev/null; md5sum /dev/$a\n"
                         "cat /sys/block/$a/device/model /sys/block/$a/device/queue_depth; grep ahci /proc/interrupts\n"
                         "blkdiscard -o 4M -l 8M /dev/$b; dmesg | grep -c 'exception\\|failed command' || true",
                         "--disk", a.path + ",if=ahci", "--disk", b.path + ",if=ahci,serial=SATA1", *guest)
        check(out.count(a.md5()) == 2, f"the guest read something else than {a.md5()}: {out}")
        check("VITRO SATA DISK" in out and "PCI-MSI" in out, out[-500:])
        check(out.rstrip().splitlines()[-3].strip() == "0" or "\n0\n" in out, "the driver saw errors: " + out[-400:])
        with open(a.path, "rb") as f, open(b.path, "rb") as g:
            want = f.read(30 * MIB)
            check(g.read(4 * MIB) == want[:4 * MIB], "the copy is wrong")
            check(g.read(8 * MIB) == bytes(8 * MIB), "what was discarded is not zero")
            check(g.read(18 * MIB) == want[12 * MIB:], "the copy is wrong behind")


def test_ide():
    """Linux's driver for the PIIX, by bus-master DMA and, told so, by programmed I/O only."""
    with tempfile.TemporaryDirectory() as work, Image(12, fill=True) as a, Image(8) as b:
        guest = generic_kernel(work)
        for append, mode in (("", "XFER_(?:UDMA|MW_DMA)_\d"), ("libata.dma=0", "XFER_PIO_4")):
            out = run_script(TWO_DISKS + f"a=$(disk {24 << 10}) b=$(disk {16 << 10})\n"
                             "md5sum /dev/$a; dd if=/dev/$a of=/dev/$b bs=64k count=100 conv=fsync 2>/dev/null; md5sum /dev/$a\n"
                             "cat /sys/class/ata_device/*/xfer_mode; dmesg | grep -c 'exception\\|failed command' || true",
                             "--disk", a.path + ",if=ide", "--disk", b.path + ",if=ide", *guest, append=append)
            check(out.count(a.md5()) == 2, f"the guest read something else than {a.md5()}: {out}")
            check(len(re.findall(mode, out)) == 2, out[-600:])
            check(re.search(r"^0\n", out, re.M), "the driver saw errors: " + out[-600:])
            check(b.md5(0, 100 << 16) == a.md5(0, 100 << 16), "the copy is wrong")
            with open(b.path, "r+b") as f:
                f.write(bytes(8 * MIB))


def test_read_only():
    with Image(8, fill=True) as image:
        before = image.md5()
        out = run_script("echo ro=$(cat /sys/block/vda/ro); dd if=/dev/zero of=/dev/vda bs=4k count=1 && exit 1; true",
                         "--disk", image.path + ",if=virtio,readonly=on")
        check("ro=1\n" in out, "not read-only in the guest")
        check(image.md5() == before, "a read-only disk was written")


def test_serial_and_discard():
    with Image(64, fill=True) as image:
        used = os.stat(image.path).st_blocks
        out = run_script("set -e; cat /sys/block/vda/serial; echo; blkdiscard -o 1M -l 32M /dev/vda\n"
                         "cat /sys/block/vda/queue/write_zeroes_max_bytes", "--disk",
                         image.path + ",if=virtio,serial=VITRO-0001")
        check("VITRO-0001" in out, "no serial number")
        freed = (used - os.stat(image.path).st_blocks) * 512
        check(freed >= 31 * MIB, f"only {freed} bytes were given back to the host")


def test_file_system():
    with Image(64) as image:
        run_script("set -e; mke2fs -F /dev/vda >/dev/null; mkdir /mnt; mount -t ext2 /dev/vda /mnt\n"
                   "for i in $(seq 50); do cp /bin/busybox /mnt/$i; done 2>/dev/null || true\n"
                   "umount /mnt", "--disk", image.path + ",if=virtio")
        fsck = subprocess.run(["e2fsck", "-fn", image.path], capture_output=True, text=True)
        check(fsck.returncode == 0, fsck.stdout)


def test_qcow2():
    """On top of a backing file, in use by an ext2 file system; qemu-img and e2fsck look at it afterwards."""
    with Image(64) as base, tempfile.TemporaryDirectory() as work:
        subprocess.run(["mke2fs", "-q", "-F", base.path], check=True)
        image = f"{work}/disk.qcow2"
        before = base.md5()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", "raw", image], check=True)
        run_script("set -e; mkdir /mnt; mount -t ext2 /dev/vda /mnt; cp /bin/busybox /mnt/a; mkdir /mnt/d\n"
                   "for i in $(seq 20); do cp /bin/busybox /mnt/d/$i; done; umount /mnt", "--disk", image + ",if=virtio")
        out = run_script("set -e; mkdir /mnt; mount -t ext2 /dev/vda /mnt; md5sum /bin/busybox /mnt/d/20; umount /mnt",
                         "--disk", image + ",if=virtio,aio=threads")
        sums = [line.split()[0] for line in out.splitlines() if "busybox" in line or "/mnt/d/20" in line]
        check(len(sums) == 2 and sums[0] == sums[1], out[-300:])
        subprocess.run(["qemu-img", "check", "-q", image], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, f"{work}/raw"], check=True)
        fsck = subprocess.run(["e2fsck", "-fn", f"{work}/raw"], capture_output=True, text=True)
        check(fsck.returncode == 0, fsck.stdout)
        check(base.md5() == before, "the backing file was written")


def test_qcow2_survives_kill():
    with tempfile.TemporaryDirectory() as work:
        image = f"{work}/disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "256M"], check=True)
        with Vitro("run", "--append", "quiet " + script(
                "i=0; while true; do i=$((i + 1)); printf '%08d' $i |"
                "dd of=/dev/vda bs=64k seek=$i conv=fsync,notrunc 2>/dev/null; echo flushed $i.; done"),
                "--disk", image + ",if=virtio", stdin=None) as v:
            v.expect(rb"flushed 30\.")
            os.killpg(v.process.pid, signal.SIGKILL)
            v.wait()
            last = int(v.seen.decode().rsplit("flushed ", 1)[1].split(".")[0])
        result = subprocess.run(["qemu-img", "check", image], capture_output=True, text=True)
        check(result.returncode in (0, 3), result.stdout + result.stderr)  # 3: unused clusters only
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, f"{work}/raw"], check=True)
        with open(f"{work}/raw", "rb") as f:
            for i in range(1, last + 1):
                f.seek(i * 65536)
                check(f.read(8) == b"%08d" % i, f"write {i} of {last} is lost")


def test_block_device():
    """A loop device, where root may make one: the device's size, reads, writes, discard; refused while the host uses it."""
    with Image(48, fill=True) as image, tempfile.TemporaryDirectory() as work:
        made = subprocess.run(["losetup", "-f", "--show", image.path], capture_output=True, text=True)
        if made.returncode:
            raise Skip("no loop device can be made here: " + made.stderr.strip())
        loop = made.stdout.strip()
        try:
            before, used = image.md5(), os.stat(image.path).st_blocks
            for i, options in enumerate(("", ",aio=threads", ",if=ahci")):
                kernel = generic_kernel(work) if "ahci" in options else []
                disk = "sda" if kernel else "vda"
                out = run_script(
                    f"set -e; for i in $(seq 300); do [ -e /dev/{disk} ] && break; sleep 0.1; done; blockdev --getsize64 /dev/{disk}\n"
                    f"md5sum /dev/{disk}; blkdiscard -o 8M -l 16M /dev/{disk}\n"
                    f"echo block{i} | dd of=/dev/{disk} bs=512 seek={98303 - i} conv=fsync 2>/dev/null",
                    "--disk", f"{loop},if=virtio{options}" if not kernel else f"{loop}{options}", *kernel)
                check(f"\n{48 * MIB}\n" in "\n" + out, f"{options}: another size: {out}")
                check(before in out, f"{options}: the guest read something else")
                with open(loop, "rb") as f:
                    f.seek((98303 - i) * 512)
                    check(f.read(7) == b"block%d\n" % i, f"{options}: the write is not there")
                    f.seek(8 * MIB)
                    check(f.read(16 * MIB) == bytes(16 * MIB), f"{options}: what was discarded is not zero")
                before = image.md5()
            freed = (used - os.stat(image.path).st_blocks) * 512
            check(freed >= 15 * MIB, f"only {freed} bytes were given back")
            subprocess.run(["mke2fs", "-q", "-F", loop], check=True)
            with tempfile.TemporaryDirectory() as d:
                if subprocess.run(["mount", loop, d], capture_output=True).returncode == 0:
                    try:
                        line = error_line("run", "--disk", loop + ",if=virtio")
                        check(loop in line and "in use by the host" in line, line)
                        run_script("head -c 4096 /dev/vda > /dev/null", "--disk", loop + ",if=virtio,readonly=on")
                    finally:
                        subprocess.run(["umount", d], check=True)
        finally:
            subprocess.run(["losetup", "-d", loop], check=True)


def test_throw_away():
    for options in (["--snapshot"], []):
        with Image(16, fill=True) as image:
            before = image.md5()
            more = "" if options else ",snapshot=on"
            out = run_script("set -e; md5sum /dev/vda; echo new | dd of=/dev/vda bs=4k seek=5 conv=fsync 2>/dev/null\n"
                             "dd if=/dev/vda bs=4k skip=5 count=1 2>/dev/null | head -c 3",
                             "--disk", image.path + ",if=virtio" + more, *options)
            check(before in out and "new" in out, out[-200:])
            check(image.md5() == before, "the image was written")


def test_code_from_disk():
    """Programs are run from pages that DMA has just filled, and that held other programs' translated code before."""
    for cpus in ("1", "2"):
        with Image(64) as image:
            out = run_script("""set -e
mke2fs -F /dev/vda >/dev/null 2>&1; mkdir /mnt; mount -t ext2 /dev/vda /mnt
for i in $(seq 8); do mkdir /mnt/$i; head -c $((i * 4096 - 4096)) /dev/urandom > /mnt/$i/pad; cp /bin/busybox /mnt/$i/; done
for round in 1 2 3; do for i in $(seq 8); do
    echo 3 > /proc/sys/vm/drop_caches
    [ "$(echo abc | /mnt/$i/busybox md5sum | /mnt/$(((i + round) % 8 + 1))/busybox cut -c1-8)" = 0bee89b0 ] || exit 1
done; done
umount /mnt; echo all ran""", "--disk", image.path + ",if=virtio,queues=2", "--cpus", cpus)
            check("all ran" in out, out[-300:])


def test_many_disks():
    with Image(8, fill=True) as a, Image(9, fill=True) as b, Image(10, fill=True) as c:
        out = run_script("md5sum /dev/vda /dev/vdb /dev/vdc",
                         *[word for i in (a, b, c) for word in ("--disk", i.path + ",if=virtio")])
        for image, name in ((a, "vda"), (b, "vdb"), (c, "vdc")):
            check(f"{image.md5()}  /dev/{name}" in out, name)


def test_firmware_boots():
    """SeaBIOS reads a boot sector that writes 0x10 to the debug-exit port."""
    if not os.path.exists("/usr/share/seabios/bios-256k.bin"):
        raise Skip("no SeaBIOS")
    with Image(1) as image:
        with open(image.path, "r+b") as f:
            f.write(bytes.fromhex("ba0105b010eef4"))  # mov $0x501,%dx; mov $0x10,%al; out %al,%dx; hlt
            f.seek(510)
            f.write(b"\x55\xaa")
        for bus in ("virtio", "ahci"):
            with Vitro("run", "--disk", f"{image.path},if={bus}", stdin=None) as v:
                status = v.wait(60)
                check(status == 33, f"{bus}: status {status}; {v.tail()}")


def test_reset_in_use():
    """The driver goes away and comes back while requests are under way."""
    with Image(32, fill=True) as image:
        out = run_script("""set -e
d=$(basename $(readlink /sys/block/vda/device))
for i in $(seq 5); do
    dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null &
    sleep 0.05; echo $d > /sys/bus/virtio/drivers/virtio_blk/unbind; wait
    echo $d > /sys/bus/virtio/drivers/virtio_blk/bind
done
md5sum /dev/vda""", "--disk", image.path + ",if=virtio")
        check(image.md5() in out, "the guest read something else")


def test_flushed_writes_survive_kill():
    """After kill -9 everything that was flushed is in the file."""
    with Image(64) as image:
        with Vitro("run", "--append", "quiet " + script(
                "i=0; while true; do i=$((i + 1)); printf '%08d' $i |"
                "dd of=/dev/vda bs=512 seek=$i conv=fsync,notrunc 2>/dev/null; echo flushed $i.; done"),
                "--disk", image.path + ",if=virtio", stdin=None) as v:
            v.expect(rb"flushed 20\.")
            os.killpg(v.process.pid, signal.SIGKILL)
            v.wait()
            while v.pump(0):
                pass
            last = int(v.seen.decode().rsplit("flushed ", 1)[1].split(".")[0])
        with open(image.path, "rb") as f:
            for i in range(1, last + 1):
                f.seek(i * 512)
                check(f.read(8) == b"%08d" % i, f"write {i} of {last} is lost")


def test_floppy():
    """Linux's own driver: all of it read, and a part written."""
    with tempfile.TemporaryDirectory() as work:
        path, data = f"{work}/floppy", random.Random(12).randbytes(1440 << 10)
        with open(path, "wb") as f:
            f.write(data)
        out = run_script("set -e; modprobe floppy; for i in $(seq 100); do [ -e /dev/fd0 ] && break; sleep 0.1; done\n"
                         "md5sum /dev/fd0; dd if=/dev/fd0 of=/dev/fd0 bs=512 skip=5 seek=1000 count=77 conv=fsync,notrunc 2>/dev/null",
                         "--floppy", path, *generic_kernel(work))
        check(hashlib.md5(data).hexdigest() in out, "the guest read something else: " + out[-300:])
        with open(path, "rb") as f:
            check(f.read() == data[:512000] + data[2560:2560 + 77 * 512] + data[512000 + 77 * 512:], "what was written is wrong")


def test_slow_disk_does_not_hold_up_the_cpu():
    """The host's disk takes as long as we like for a flush: the guest's only CPU goes on meanwhile."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", f"{work}/slow.so", "tests/boot/programs/slowdisk.c"], check=True)
        for name in ("began", "go"):
            os.mkfifo(f"{work}/disk.{name}")
        began, go = (os.open(f"{work}/disk.{name}", os.O_RDWR) for name in ("began", "go"))
        try:
            for bus, disk in (("virtio", "vda"), ("virtio,aio=threads", "vda"), ("ahci", "sda"), ("ide", "sda")):
                guest = generic_kernel(work) if disk == "sda" else []
                text = (f"for i in $(seq 300); do [ -e /dev/{disk} ] && break; sleep 0.1; done\n"
                        f"(dd if=/dev/urandom of=/dev/{disk} bs=4k count=1 conv=fsync; echo written) 2>/dev/null &\n"
                        "while :; do echo tick; sleep 0.1; done")
                with Image(8) as image, Vitro("run", *guest, "--append", "quiet " + script(text), "--disk",
                                              f"{image.path},if={bus}", stdin=None,
                                              env={"LD_PRELOAD": f"{work}/slow.so", "SLOWDISK": f"{work}/disk"}) as v:
                    v.expect("tick\r")
                    while not select.select([began], [], [], 0)[0]:
                        v.pump(0.2)
                        check(v.process.poll() is None and len(v.seen) < 1 << 16, f"{bus}: no flush; {v.tail()}")
                    os.read(began, 1)
                    while v.pump(0):
                        pass
                    v.at = len(v.seen)
                    v.expect(r"tick\r\ntick\r\ntick\r")
                    check(b"written" not in v.seen, f"{bus}: the flush was answered before it was done")
                    os.write(go, b"g" * 100)  # this one, and what follows
                    v.expect("written\r")
                while select.select([began], [], [], 0)[0]:
                    os.read(began, 100)
                while select.select([go], [], [], 0)[0]:
                    os.read(go, 100)
        finally:
            os.close(began)
            os.close(go)


def test_bad_options():
    with Image(1) as image:
        for options, words in ((",if=scsi", "if="), (",queues=0", "queues"), (",queues=17", "queues"),
                               (",serial=" + "x" * 21, "serial"), (",packed=maybe", "packed")):
            line = error_line("run", "--disk", image.path + options, status=2)
            check(words in line, line)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/disk"))
