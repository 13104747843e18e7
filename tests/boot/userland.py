"""userland.py - run a shell script in a guest that has Debian's programs, and get what it printed.

The kernel unpacks archives that follow each other: the busybox initramfs, then the programs
(build/guest/debian.cpio, made by tools/mk-debian), then one with the script and the files it needs.
"""
import os
import shutil
import subprocess
import tempfile

from harness import GUEST, Skip, Vitro, check

HERE = os.path.dirname(os.path.abspath(__file__))
PROLOGUE = "export PATH=/usr/bin:/bin:/sbin HOME=/tmp LC_ALL=C.UTF-8\ncd /tmp\n"


def cpio(files):
    """A newc archive of {path: bytes}; the directories they are in first."""
    out = bytearray()

    def entry(ino, name, mode, data):
        name = name.encode() + b"\0"
        fields = (ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out.extend(b"070701" + b"".join(b"%08X" % f for f in fields) + name)
        out.extend(bytes(-len(out) % 4) + data)
        out.extend(bytes(-len(out) % 4))

    directories = {os.path.dirname(p) for p in files} - {""}
    for i, d in enumerate(sorted(directories)):
        entry(1000 + i, d, 0o040755, b"")
    for i, (path, data) in enumerate(files.items()):
        entry(2000 + i, path, 0o100755, data)
    entry(0, "TRAILER!!!", 0, b"")
    return bytes(out)


def source(name):
    """A file of tests/boot/programs."""
    with open(os.path.join(HERE, "programs", name), "rb") as f:
        return f.read()


copies = {}


def image_with(files, parts=("initrd.img", "debian.cpio")):
    """The path of an initramfs of these parts and files, good until the next call."""
    if parts not in copies:
        to = tempfile.NamedTemporaryFile(prefix="vitro-test-")
        for part in parts:
            path = os.path.join(GUEST, part)
            if not os.path.exists(path):
                raise Skip(f"{path} is not there; `make guests` makes it")
            with open(path, "rb") as f:
                shutil.copyfileobj(f, to, 1 << 20)
            to.write(bytes(-to.tell() % 4))
        copies[parts] = to, to.tell()
    to, size = copies[parts]
    to.truncate(size)
    to.seek(size)
    to.write(cpio(files))
    to.flush()
    return to.name


def in_guest(text, *args, files=None, append="", mem="1536M", seconds=120):
    """Run the script to its end; what it printed, with newlines as it wrote them."""
    files = {**(files or {}), "test": (PROLOGUE + text).encode()}
    with Vitro("run", "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", image_with(files), "--mem", mem,
               "--append", f"quiet {append} vitro.script", *args, stdin=None) as v:
        end = v.expect(rb"vitro.test: status (\d+)", seconds)
        check(end.group(1) == b"0", f"the script gave {end.group(0)!r}; {v.tail()}")
        check(v.wait() == 0, v.tail())
        return v.seen.decode(errors="replace").replace("\r\n", "\n")


def programs(*names):
    """For in_guest(files=): these files of tests/boot/programs, as /programs/NAME."""
    return {f"programs/{name}": source(name) for name in names}


def kernel(work, flavour="", add=()):
    """Options that boot a guest's kernel with its modules and more files (HOST_PATH:GUEST_PATH)."""
    version = os.path.join(GUEST, "version" + flavour)
    if not os.path.exists(version):
        raise Skip(f"{version} is not there; `make guests` fetches it")
    with open(version) as f:
        modules = os.path.join(GUEST, "modules", f.read().strip())
    if not os.path.isdir(modules):
        raise Skip(f"{modules} is not there; fetch the guest again: rm {GUEST}/vmlinuz{flavour}; make guests")
    command = ["tools/mk-initrd", f"{work}/initrd.img", "--modules", modules]
    for pair in add:
        command += ["--add", pair]
    subprocess.run(command, check=True)
    return ["--kernel", os.path.join(GUEST, "vmlinuz" + flavour), "--initrd", f"{work}/initrd.img"]


def generic_kernel(work, add=()):
    """A kernel with drivers for more than virtio."""
    return kernel(work, "-generic", add)


def program(work, name):
    """For kernel(add=): a program of tests/boot/programs, in the guest's PATH."""
    subprocess.run(["gcc", "-O2", "-static", "-o", f"{work}/{name}", os.path.join(HERE, "programs", name + ".c")], check=True)
    return f"{work}/{name}:/bin/{name}"
