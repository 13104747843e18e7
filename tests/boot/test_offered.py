#!/usr/bin/env python3
"""What devices offer, seen from Linux: the features that driver and device agreed on, and what comes of them."""
import os
import re
import sys
import tempfile

from harness import Vitro, check, main, script
from userland import generic_kernel

# Feature bits: virtio 1.2 §5.2.3 (block), §5.1.3 (network), §5.5.3 (balloon), §5.9.2 (9P), §6 (all).
RING = {"indirect descriptors": 28, "event index": 29, "version 1": 32}
PACKED = {"packed rings": 34}
BLOCK = {"segments": 2, "block size": 6, "flush": 9, "topology": 10, "several queues": 12, "discard": 13, "write zeroes": 14}
NET = {"checksum": 0, "checksums from the host": 1, "MTU": 3, "MAC": 5, "TCP segmentation": 11, "mergeable buffers": 15,
       "link status": 16, "control queue": 17, "several queues": 22}
TYPES = {1: "net", 2: "block", 3: "console", 4: "rng", 5: "balloon", 9: "9p", 19: "vsock", 27: "pmem"}
ALL = "for d in /sys/bus/virtio/devices/*; do echo virtio $(cat $d/device) $(cat $d/status) $(cat $d/features); done\n"


def run_script(text, *args, seconds=120):
    with Vitro("run", "--append", "quiet " + script(text), *args, stdin=None) as v:
        v.expect(rb"vitro.test: status 0", seconds)
        check(v.wait() == 0, v.tail())
        return v.seen.decode(errors="replace").replace("\r", "")


def devices(out):
    """Type: [set of feature bits]; each driver must be at work."""
    found = {}
    for kind, status, bits in re.findall(r"^virtio 0x([0-9a-f]+) 0x([0-9a-f]+) ([01]{64})$", out, re.M):
        name = TYPES[int(kind, 16)]
        check(int(status, 16) == 0xf, f"{name}: status {status}")
        found.setdefault(name, []).append({i for i, b in enumerate(bits) if b == "1"})
    return found


def has(name, bits, wanted):
    for what, bit in wanted.items():
        check(bit in bits, f"{name}: no {what}; {sorted(bits)}")


def test_every_device():
    """All of them in one guest, by PCI."""
    with tempfile.TemporaryDirectory() as work:
        for name in ("disk", "memory"):
            with open(f"{work}/{name}", "wb") as f:
                f.truncate(64 << 20)
        os.mkdir(f"{work}/folder")
        out = run_script(ALL + "ls /sys/block/vda/mq | tr '\\n' ' '; echo queues of vda\n"
                         "cd /sys/block/vda/queue; echo cache=$(cat write_cache) discard=$(cat discard_max_bytes) zeroes="
                         "$(cat write_zeroes_max_bytes) physical=$(cat physical_block_size)\n"
                         "cd /sys/class/net/eth0; echo rx=$(ls -d queues/rx-* | wc -l) mtu=$(cat mtu)\n"
                         "dmesg | grep -o 'MMCONFIG for domain 0000'",
                         "--cpus", "2", "--disk", f"{work}/disk,if=virtio,queues=2", "--disk", f"{work}/memory,if=pmem",
                         "--net", "user,queues=2", "--rng", "--balloon", "--hvc", f"{work}/hvc", "--vsock", f"{work}/vsock", "--share", f"{work}/folder,tag=x",
                         *generic_kernel(work))
        found = devices(out)
        check(set(found) == set(TYPES.values()), f"found {sorted(found)}")
        for name, all_bits in found.items():
            for bits in all_bits:
                has(name, bits, {**RING, "indirect descriptors": 32} if name == "balloon" else RING)  # its driver wants none
                check(PACKED["packed rings"] not in bits, f"{name}: packed rings without being asked for")
        has("block", found["block"][0], BLOCK)
        check(5 not in found["block"][0], "block: read-only")
        has("net", found["net"][0], NET)
        has("balloon", found["balloon"][0], {"deflate when memory is short": 2, "free page reporting": 5})
        has("9p", found["9p"][0], {"mount tag": 0})
        check("0 1 queues of vda" in out, "block: not a queue for each CPU: " + out[-400:])
        check("cache=write back discard=2147483648 zeroes=2147483648 physical=4096" in out, out[-400:])
        check("rx=2 mtu=16000" in out, out[-300:])
        check("MMCONFIG for domain 0000" in out, "no ECAM")


def test_variants():
    """Packed rings; a disk that is read-only; outside PCI."""
    with tempfile.TemporaryDirectory() as work:
        for name in ("a", "b"):
            with open(f"{work}/{name}", "wb") as f:
                f.truncate(64 << 20)
        out = run_script(ALL, "--disk", f"{work}/a,if=virtio,packed=on", "--net", "user,packed=on",
                         "--disk", f"{work}/b,if=virtio,readonly=on,transport=mmio", "--net", "user,transport=mmio")
        found = devices(out)
        check([34 in bits for bits in found["block"]].count(True) == 1, "block: packed=on")
        check([34 in bits for bits in found["net"]].count(True) == 1, "net: packed=on")
        readonly = [bits for bits in found["block"] if 5 in bits]
        check(len(readonly) == 1 and not readonly[0] & {13, 14} and 9 in readonly[0], f"readonly=on: {readonly}")
        for bits in found["block"] + found["net"]:
            has("each of them", bits, RING)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/offered"))
