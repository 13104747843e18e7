#!/usr/bin/env python3
"""Firmware from Debian's package, unmodified: SeaBIOS, and what it says when there is nothing to boot."""
import os
import struct
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402
from harness import Vitro, check  # noqa: E402

SECTOR_AT = 0x7c00


def bad(*args):
    with Vitro("run", *args, stdin=None) as v:
        return v.wait(10), v.errors.decode()


def test_seabios_without_a_disk():
    """The banner, every way to boot, and the end of the road: on the serial line."""
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        with Vitro("run", "--firmware", "bios-256k.bin", "--boot", "menu=on", "--firmware-log", log.name) as v:
            v.expect(rb"SeaBIOS \(version", 20)
            v.expect(rb"Press ESC for boot menu", 20)
            v.expect(rb"No bootable device", 30)
        said = log.read()
    for line in ("QEMU fw_cfg DMA interface supported", "PIIX3/PIIX4 init", "ACPI: parse DSDT",
                 "Copying SMBIOS", "Found 1 cpu(s)"):
        check(line in said, f"the firmware did not say: {line}")


def test_firmware_128k():
    with Vitro("run", "--firmware", "bios.bin") as v:
        v.expect(rb"No bootable device", 30)


def test_bad_firmware():
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "f")
        for data, word in ((b"", "size is 0"), (b"x" * 5000, "multiple of 4 KiB"),
                           (b"\xff" * 65536, "reset vector"), (b"\0" * 65536, "reset vector")):
            with open(path, "wb") as f:
                f.write(data)
            status, said = bad("--firmware", path)
            check(status == 1 and word in said and path in said, f"{status} {said!r}")
    status, said = bad("--firmware", "no-such-bios.bin")
    check(status == 1 and "no-such-bios.bin" in said and "/usr/share/seabios" in said, said)
    status, said = bad("--firmware", "bios.bin", "--append", "x")
    check(status == 2 and "--append" in said and "--kernel" in said, said)
    status, said = bad("--firmware", "bios.bin", "--kernel", "/nonexistent")
    check(status == 1 and "/nonexistent" in said, said)
    status, said = bad("--firmware", "bios.bin", "--kernel", harness.VITRO)
    check(status == 1 and "not a bzImage" in said, said)
    status, said = bad("--firmware", "bios.bin", "--kernel", "x", "--module", "y")
    check(status == 2 and "--module" in said, said)
    status, said = bad("--disk", "/nonexistent.img")
    check(status == 1 and "/nonexistent.img" in said, said)


def test_firmware_that_crashes():
    """Its first instruction triple-faults (an empty IDT): the guest's own doing, status 3."""
    code = bytes.fromhex("0f011e0000" "cd03")  # lidt [0], zeros; int 3
    with tempfile.NamedTemporaryFile(suffix=".bin") as f:
        image = bytearray(b"\xf4" * 65536)
        image[0:len(code)] = code
        image[-16:-13] = b"\xe9\x0d\x00"       # jmp to offset 0 of the segment 0xf000 : 0xfff0 + 3 + 0xd
        f.write(image)
        f.flush()
        status, said = bad("--firmware", f.name)
        check(status == 3 and "triple fault" in said, f"{status} {said!r}")


def boots_to(code):
    """A boot sector of this code, on a disk."""
    sector = bytearray(1 << 20)
    sector[:len(code)] = code
    sector[510:512] = b"\x55\xaa"
    f = tempfile.NamedTemporaryFile(suffix=".img")
    f.write(sector)
    f.flush()
    return f


def leave(status):
    """outb(0x501, status >> 1): the debug-exit port makes it 2 * V + 1."""
    return bytes([0xba, 0x01, 0x05, 0xb0, status >> 1, 0xee, 0xf4])


def iso(code):
    """A CD with nothing but an El Torito boot catalog and this code (El Torito 1.0, §2)."""
    image = bytearray(32 * 2048)
    image[16 * 2048:16 * 2048 + 6] = b"\1CD001"
    image[17 * 2048:17 * 2048 + 30] = b"\0CD001\1EL TORITO SPECIFICATION"
    image[17 * 2048 + 0x47:17 * 2048 + 0x4b] = struct.pack("<I", 19)
    image[18 * 2048:18 * 2048 + 6] = b"\xffCD001"
    validation = bytearray(struct.pack("<BBH24sHBB", 1, 0, 0, b"test", 0, 0x55, 0xaa))
    validation[28:30] = struct.pack("<H", -sum(struct.unpack("<16H", validation)) & 0xffff)
    image[19 * 2048:19 * 2048 + 64] = validation + struct.pack("<BBHBBHI20x", 0x88, 0, 0, 0, 0, 4, 20)
    image[20 * 2048:20 * 2048 + len(code)] = code
    return bytes(image)


def test_boot_order():
    """A floppy, a disk and a CD that each end with a status of its own; then without something to boot on the first."""
    with tempfile.TemporaryDirectory() as d:
        paths = {}
        for name, data in (("a", leave(21).ljust(510, b"\0") + b"\x55\xaa"), ("c", leave(23).ljust(510, b"\0") + b"\x55\xaa"),
                           ("d", iso(leave(25))), ("floppy", b""), ("disk", b"")):
            paths[name] = os.path.join(d, name)
            with open(paths[name], "wb") as f:
                f.write(data.ljust(1440 * 1024, b"\0"))
        drives = ["--floppy", paths["a"], "--disk", paths["c"], "--cdrom", paths["d"]]
        for order, want in (("a", 21), ("c", 23), ("d", 25), ("dca", 25), ("cad", 23), ("acd", 21)):
            status, said = bad(*drives, "--boot", f"order={order}")
            check(status == want and not said, f"order {order}: {status} {said!r}")
        drives[1] = paths["floppy"]
        status, said = bad(*drives, "--boot", "order=adc")
        check(status == 25, f"with an empty floppy: {status} {said!r}")
        drives[3] = paths["disk"]
        status, said = bad(*drives, "--boot", "order=acd")
        check(status == 25, f"with an empty disk: {status} {said!r}")
        status, said = bad(*drives, "--boot", "order=x")
        check(status == 2 and "x" in said and "--boot" in said, f"{status} {said!r}")


def protected(to):
    """Flat 32-bit protected mode, and a jump."""
    at = 0x40
    code = bytes.fromhex("fa31c08ed8 0f0116") + struct.pack("<H", SECTOR_AT + at)          # cli; ds = 0; lgdt
    code += bytes.fromhex("0f20c0 0c01 0f22c0 66ea") + struct.pack("<IH", to, 8)              # cr0.pe; ljmpl 8:to
    return code.ljust(at, b"\0") + struct.pack("<HIxx", 15, SECTOR_AT + at + 8) + struct.pack("<QQ", 0, 0x00cf9b000000ffff)


def test_loaders_that_jump_into_nothing():
    """Where there is no memory to run: one line that says where, status 1. Where there is: what a PC does."""
    for code, where in ((bytes.fromhex("ea000000a0"), "0xa0000"), (protected(0x80000000), "0x80000000"),
                        (protected(0xfed00000), "0xfed00000")):
        with boots_to(code) as f:
            status, said = bad("--disk", f.name)
        check(status == 1 and said.startswith("vitro: ") and said.count("\n") == 1 and where in said, f"{status} {said!r}")
    with boots_to(bytes.fromhex("ea0000ffff")) as f, Vitro("run", "--disk", f.name) as v:  # the reset vector
        for _ in range(3):
            v.expect(rb"SeaBIOS \(version(?s:.*?)Booting from Hard Disk", 30)
    # 64 KiB of zeros (adds, and round again); a hole in the ROM area (exceptions that the BIOS returns from); an end
    for code, busy in (("ea00000050", True), ("ea000000d0", True), ("faf4", False)):
        with boots_to(bytes.fromhex(code)) as f, Vitro("run", "--disk", f.name, "--screen=off", tty=True) as v:
            v.expect(rb"Booting from Hard Disk", 30)
            v.pump(0.5)
            before = harness.cpu_s(v.process.pid)
            for _ in range(10):
                v.pump(0.1)
            used = harness.cpu_s(v.process.pid) - before
            check(v.process.poll() is None and (used > 0.05) == busy, f"{code}: {used} s; {v.tail()}")
            v.send(b"\x01x")
            check(v.wait(10) == 0 and not v.errors.strip() and v.terminal_restored(), v.tail())


if __name__ == "__main__":
    sys.exit(harness.main(sys.modules[__name__], "boot/firmware"))
