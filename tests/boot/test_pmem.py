#!/usr/bin/env python3
"""A file as the guest's persistent memory: --disk FILE,if=pmem."""
import hashlib
import os
import random
import select
import subprocess
import sys
import tempfile

from harness import Vitro, check, error_line, main, script
from userland import generic_kernel

MIB = 1 << 20
# The bus behind virtio_pmem is not one of those that init looks through.
UP = "modprobe nd_pmem; for i in $(seq 300); do [ -e /dev/pmem0 ] && break; sleep 0.1; done\n"


def file_of(path, mib):
    with open(path, "wb") as f:
        f.write(random.Random(mib).randbytes(mib * MIB))
    return path


def md5(path):
    with open(path, "rb") as f:
        return hashlib.md5(f.read()).hexdigest()


def test_reads_and_writes():
    """Two of them; what the guest stores is in the files."""
    with tempfile.TemporaryDirectory() as work:
        a, b = file_of(f"{work}/a", 32), file_of(f"{work}/b", 16)
        before = md5(a)
        text = UP + ("set -e; a=/dev/pmem0 b=/dev/pmem1; [ $(cat /sys/block/pmem0/size) = 65536 ] || a=/dev/pmem1 b=/dev/pmem0\n"
                     "md5sum $a $b; dd if=$a of=$b bs=1M count=12 seek=4 conv=fsync 2>/dev/null; grep namespace /proc/iomem")
        with Vitro("run", *generic_kernel(work), "--append", "quiet " + script(text), "--disk", a + ",if=pmem",
                   "--disk", b + ",if=pmem", stdin=None) as v:
            want = md5(b)
            v.expect(r"vitro.test: status 0")
            check(v.wait() == 0, v.tail())
            out = v.seen.decode(errors="replace")
        check(before in out and want in out, "the guest read something else: " + out[-300:])
        check("100000000-101ffffff" in out, "not where it should be: " + out[-300:])
        with open(a, "rb") as f, open(b, "rb") as g:
            g.seek(4 * MIB)
            check(f.read(12 * MIB) == g.read(), "the copy is wrong")
        check(md5(a) == before, "the other was written")


def test_flush_is_the_hosts():
    """The guest's flush is over when fdatasync(2) of the file is; its CPU does not wait meanwhile."""
    with tempfile.TemporaryDirectory() as work:
        a = file_of(f"{work}/a", 16)
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", f"{work}/slow.so", "tests/boot/programs/slowdisk.c"], check=True)
        for name in ("began", "go"):
            os.mkfifo(f"{work}/disk.{name}")
        began, go = (os.open(f"{work}/disk.{name}", os.O_RDWR) for name in ("began", "go"))
        text = UP + ("(dd if=/dev/zero of=/dev/pmem0 bs=4k count=1 conv=fsync; echo written) 2>/dev/null &\n"
                     "while :; do echo tick; sleep 0.1; done")
        try:
            with Vitro("run", *generic_kernel(work), "--append", "quiet " + script(text), "--disk", a + ",if=pmem", stdin=None,
                       env={"LD_PRELOAD": f"{work}/slow.so", "SLOWDISK": f"{work}/disk"}) as v:
                v.expect("tick\r")
                while not select.select([began], [], [], 0)[0]:
                    v.pump(0.2)
                    check(v.process.poll() is None and len(v.seen) < 1 << 16, f"no flush; {v.tail()}")
                while v.pump(0):
                    pass
                v.at = len(v.seen)
                v.expect(r"tick\r\ntick\r\ntick\r")
                check(b"written" not in v.seen, "the flush was answered before it was done")
                with open(a, "rb") as f:
                    check(f.read(4096) == bytes(4096), "what is to be flushed is not in the file")
                os.write(go, b"g" * 100)
                v.expect("written\r")
        finally:
            os.close(began)
            os.close(go)


def test_survives_kill():
    with tempfile.TemporaryDirectory() as work:
        a = file_of(f"{work}/a", 16)
        text = UP + "echo stored | dd of=/dev/pmem0 bs=4k conv=fsync 2>/dev/null; echo flushed; sleep 3600"
        with Vitro("run", *generic_kernel(work), "--append", "quiet " + script(text), "--disk", a + ",if=pmem", stdin=None) as v:
            v.expect("flushed\r")
            v.process.kill()
            v.process.wait()
        with open(a, "rb") as f:
            check(f.read(7) == b"stored\n", "the flushed write is lost")


def test_mistakes():
    with tempfile.TemporaryDirectory() as work:
        odd, good, image = file_of(f"{work}/odd", 3), file_of(f"{work}/good", 2), f"{work}/image"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"], check=True)
        for args, words in (([odd + ",if=pmem"], "multiple of 2 MiB"), ([good + ",if=pmem,readonly=on"], "readonly=on"),
                            ([good + ",if=pmem,snapshot=on"], "snapshot=on"), ([image + ",if=pmem,format=qcow2"], "raw"),
                            ([good + ",if=pmem", "--snapshot"], "snapshot=on")):
            line = error_line("run", "--disk", *args)
            check(words in line and args[0].split(",")[0] in line, line)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/pmem"))
