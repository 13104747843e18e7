#!/usr/bin/env python3
"""What would be left of a disk image if the power failed: no write that the guest's flush covered may be missing.

A guest writes to its disk and says what it has flushed (programs/flushes.c). A library that is loaded before libc writes
down everything Vitro does to the image, and everything the guest says, in order (programs/powercut.c). Then the host's
power is cut at many points of that log: what the host's disk holds then is what fdatasync(2) had covered, and for each
sector any number of the writes that came later. That image must be sound, and each sector must be at least as new as the
last flush the guest had been told of.
"""
import bisect
import os
import random
import re
import struct
import subprocess
import sys
import tempfile

from harness import GUEST, Skip, Vitro, check, main, script

MIB = 1 << 20
SECTOR = 512
BLOCKS, ROUNDS = 200, 120
WRITE, ZERO, SYNC, TRUNCATE, END, SAID = range(1, 7)
ENTRY = struct.Struct("<IIQQQq")


def choose(stream, discard):
    """The blocks that programs/flushes.c writes: (round, [block], are they zeros, does a flush follow)."""
    mask = (1 << 64) - 1
    state = 0x9e3779b97f4a7c15 * (stream + 1) & mask

    def step():
        nonlocal state
        state ^= state << 13 & mask
        state ^= state >> 7
        state ^= state << 17 & mask
        return state
    for n in range(1, ROUNDS + 1):
        count = 1 + step() % 6
        zero = bool(discard) and step() % 4 == 0
        blocks = [step() % BLOCKS + stream * BLOCKS for _ in range(count)]
        yield n, blocks, zero, step() % 3 == 0


def read_log(path):
    with open(path, "rb") as f:
        data = f.read()
    at, entries = 0, []
    while at < len(data):
        kind, size, number, inode, offset, length = ENTRY.unpack_from(data, at)
        at += ENTRY.size
        entries.append((kind, number, inode, offset, length, data[at:at + size]))
        at += size
    return entries


class Medium:
    """What is on the host's disk as the log goes by."""

    def __init__(self, image, inode, deaf):
        self.durable = bytearray(image)
        self.inode = inode
        self.pending = []   # [id, offset, bytes or None for zeros, length, ended] in the order they began
        self.syncs = {}     # id: the writes it covers
        self.deaf = deaf    # to fdatasync: what a monitor that forgets it would leave

    def take(self, entry):
        kind, number, inode, offset, length, data = entry
        if kind in (WRITE, ZERO) and inode == self.inode:
            self.pending.append([number, offset, data if kind == WRITE else None, length, False])
        elif kind == SYNC and inode == self.inode:
            self.syncs[number] = {w[0] for w in self.pending if w[4]}
        elif kind == TRUNCATE:
            check(inode != self.inode, "an image is truncated: not in this model")
        elif kind == END and number in self.syncs:
            covered = self.syncs.pop(number)
            if length == 0 and not self.deaf:
                for w in self.pending:
                    if w[0] in covered:
                        self.put(self.durable, w)
                self.pending = [w for w in self.pending if w[0] not in covered]
        elif kind == END:
            for w in self.pending:
                if w[0] == number:
                    w[4] = True
                    if w[2] is not None and length < w[3]:  # refused or short: that much has happened
                        w[2], w[3] = w[2][:max(length, 0)], max(length, 0)
                    elif w[2] is None and length < 0:
                        w[3] = 0
            self.pending = [w for w in self.pending if w[3]]

    @staticmethod
    def put(image, w, first=0, last=None):
        """Sectors [first, last) of a write."""
        start, stop = first * SECTOR, w[3] if last is None else min(w[3], last * SECTOR)
        if len(image) < w[1] + stop:
            image.extend(bytes(w[1] + stop - len(image)))
        image[w[1] + start:w[1] + stop] = bytes(stop - start) if w[2] is None else w[2][start:stop]

    def cut(self, choice):
        """The disk after a power cut: choice(n) of n writes that were waiting reached a sector, in their order."""
        image = bytearray(self.durable)
        by_sector = {}
        for w in self.pending:
            check(w[1] % 4 == 0, "odd")
            for s in range((w[3] + SECTOR - 1) // SECTOR):
                by_sector.setdefault(w[1] + s * SECTOR, []).append((w, s))
        for writes in by_sector.values():
            for w, s in writes[:choice(len(writes))]:
                self.put(image, w, s, s + 1)
        return image


def check_sectors(disk, histories, said, where):
    """Each sector of the guest's disk is one it wrote, not older than what it has been told is flushed."""
    for stream, rounds in histories.items():
        for block, history in rounds.items():
            floor = bisect.bisect_right([h[0] for h in history], said[stream]) - 1
            allowed = history[max(floor, 0):]
            zero = floor < 0 or any(z for _, z in allowed)
            fresh = {n for n, z in allowed if not z}
            for s in range(8):
                at = block * 4096 + s * SECTOR
                sector = disk[at:at + SECTOR]
                magic, its_block, its_sector, its_round = struct.unpack_from("<4Q", sector)
                if not any(sector):
                    check(zero, f"{where}: block {block}, sector {s} is zero; flushed: {allowed}")
                    continue
                check(magic == 0x766974726f666c75 and its_block == block and its_sector == s and
                      sector == sector[:32] * 16, f"{where}: block {block}, sector {s} holds something else")
                check(its_round in fresh, f"{where}: block {block}, sector {s} is of round {its_round}; "
                                          f"flushed and later: {allowed}")


def image_of_cut(medium, choice, work, form, where):
    """The guest's disk in the image after that cut."""
    image = medium.cut(choice)
    if form == "raw":
        return image
    with open(f"{work}/cut", "wb") as f:
        f.write(image)
    found = subprocess.run(["qemu-img", "check", f"{work}/cut"], capture_output=True, text=True)
    check(found.returncode in (0, 3), f"{where}: {found.stdout}{found.stderr}")  # 3: unused clusters only
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"{work}/cut", f"{work}/cut.raw"], check=True)
    with open(f"{work}/cut.raw", "rb") as f:
        return f.read()


def run_guest(work, form, options, device, streams, discard, create, first):
    """A guest at work on a new image. The image as it was, its inode, the log."""
    version = os.path.join(GUEST, "version-generic")
    if not os.path.exists(version):
        raise Skip(f"{version} is not there; `make guests` fetches it")
    modules = os.path.join(GUEST, "modules", open(version).read().strip())
    programs = "tests/boot/programs"
    subprocess.run(["gcc", "-O2", "-static", "-o", f"{work}/flushes", f"{programs}/flushes.c"], check=True)
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", f"{work}/powercut.so", f"{programs}/powercut.c"], check=True)
    subprocess.run(["tools/mk-initrd", f"{work}/initrd.img", "--modules", modules, "--add", f"{work}/flushes:/bin/flushes"],
                   check=True)
    image = f"{work}/image"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, *create, image, "4M"], check=True)
    with open(image, "rb") as f:
        before = f.read()
    text = (f"for i in $(seq 300); do [ -e /dev/{device} ] && break; sleep 0.1; done\n{first}"
            f"flushes /dev/{device} {BLOCKS} {ROUNDS} {streams} {discard}")
    with Vitro("run", "--kernel", os.path.join(GUEST, "vmlinuz-generic"), "--initrd", f"{work}/initrd.img", "--cpus", "2",
               "--append", "quiet " + script(text), "--disk", f"{image},format={form},{options}", stdin=None,
               env={"LD_PRELOAD": f"{work}/powercut.so", "POWERCUT_LOG": f"{work}/log"}) as v:
        v.expect(rb"vitro.test: status 0", 120)
        check(v.wait() == 0, v.tail())
    return before, os.stat(image).st_ino, read_log(f"{work}/log")


def cut_power(form, options, device, streams=2, discard="", cuts=24, create=(), deaf=False, first=""):
    """How many points were looked at, the flushes the guest had been told of at the last of them."""
    with tempfile.TemporaryDirectory(prefix="vitro-powercut-") as work:
        before, inode, log = run_guest(work, form, options, device, streams, discard, create, first)
        histories = {}
        for stream in range(streams):
            rounds = histories.setdefault(stream, {})
            for n, blocks, zero, _ in choose(stream, discard):
                for block in blocks:
                    rounds.setdefault(block, []).append((n, zero))
        rng = random.Random(f"{form}{options}")
        medium, said, text = Medium(before, inode, deaf), dict.fromkeys(range(streams), 0), b""
        writes = [i for i, e in enumerate(log) if e[0] in (WRITE, ZERO, SYNC, END)]
        told = [i for i, e in enumerate(log) if e[0] == SAID and b"." in e[5]]
        at = set(rng.sample(told, min(len(told), cuts)) + rng.sample(writes, min(len(writes), cuts)) + [len(log) - 1])
        looked = 0
        for i, entry in enumerate(log):
            medium.take(entry)
            if entry[0] == SAID:
                text += entry[5]
                for match in re.finditer(rb"flushed (\d+) (\d+)\.", text):
                    said[int(match[1])] = int(match[2])
                text = text[-64:]
            if i not in at:
                continue
            for choice in (lambda n: 0, lambda n: rng.randint(0, n)):
                looked += 1
                where = f"{form}, {options}, cut {looked} at record {i} of {len(log)}"
                check_sectors(image_of_cut(medium, choice, work, form, where), histories, said, where)
        ends = [max((n for n, _, _, flush in choose(s, discard) if flush)) for s in range(streams)]
        check([said[s] for s in range(streams)] == ends, f"{said}, not {ends}: the log is not whole")
        return looked, len(writes)


def test_virtio():
    cut_power("raw", "if=virtio", "vda", discard="discard")
    cut_power("raw", "if=virtio,aio=threads,queues=2,packed=on", "vda")


def test_virtio_qcow2():
    """Clusters so small that tables of all kinds must grow; and the usual ones."""
    cut_power("qcow2", "if=virtio", "vda", discard="discard", create=("-o", "cluster_size=512"))
    cut_power("qcow2", "if=virtio,queues=2", "vda")


def test_ahci():
    cut_power("raw", "if=ahci", "sda", discard="discard")
    cut_power("qcow2", "if=ahci", "sda", create=("-o", "cluster_size=512"))


def test_ide():
    cut_power("raw", "if=ide", "sda")
    cut_power("qcow2", "if=ide", "sda", create=("-o", "cluster_size=1024"))


def test_write_cache_off():
    """The guest switches the drive's write cache off: it sends no flushes any more, each write must last."""
    off = ("t=$(echo /sys/block/sda/device/scsi_disk/*/cache_type); echo write through > $t\n"
           "grep -q 'write through' $t || exit 1\n")
    cut_power("raw", "if=ahci", "sda", first=off)
    cut_power("raw", "if=ide", "sda", streams=1, first=off)


def test_notices():
    """A monitor that answers flushes without doing them is found out."""
    try:
        cut_power("raw", "if=virtio", "vda", deaf=True)
    except Exception as e:
        check("flushed" in str(e), str(e))
        return
    check(False, "nothing was missed although nothing was flushed")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/powercut"))
