#!/usr/bin/env python3
"""What people boot, unmodified from Debian's packages: GRUB from a disk, Debian's kernel started by it."""
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BANNER, GUEST, Vitro, check, main  # noqa: E402

MENU = """serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=%d
"""
DEBIAN = """menuentry "Debian" {
    linux /vmlinuz console=ttyS0 quiet
    initrd /initrd.img
}
"""


def grub_disk(folder, config, *files):
    image, cfg = os.path.join(folder, "disk.img"), os.path.join(folder, "grub.cfg")
    with open(cfg, "w") as f:
        f.write(config)
    subprocess.run(["tools/mk-grub-disk", image, cfg, *files], check=True)
    return image


def test_grub_starts_debian():
    """The firmware's own disk driver, GRUB's menu by keyboard on the serial line, the kernel's 32-bit entry."""
    with tempfile.TemporaryDirectory() as d:
        image = grub_disk(d, MENU % 30 + DEBIAN, f"{GUEST}/vmlinuz", f"{GUEST}/initrd.img")
        with Vitro("run", "--disk", image) as v:
            v.expect(rb"Booting from Hard Disk", 20)
            v.expect(rb"GNU GRUB +version", 20)
            v.expect(rb"\*Debian", 20)
            v.send(b"\r")
            v.expect(BANNER, 60)
            v.expect(rb"# ")
            v.command("dmesg | grep -c 'SMBIOS 3.0'; ls /sys/firmware/acpi/tables | tr '\\n' ' '", rb"APIC .*FACP .*MCFG")
            v.command("dmesg | grep -ci 'error\\|fail'; echo end", rb"end")
            v.send("poweroff\n")
            check(v.wait(30) == 0, v.tail())


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/payloads"))
