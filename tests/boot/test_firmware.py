#!/usr/bin/env python3
"""Firmware from Debian's package, unmodified: SeaBIOS, and what it says when there is nothing to boot."""
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402
from harness import Vitro, check  # noqa: E402


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


if __name__ == "__main__":
    sys.exit(harness.main(sys.modules[__name__], "boot/firmware"))
