#!/usr/bin/env python3
"""Kernels without a boot loader: Multiboot 1 and 2, PVH, with modules; Xen's hypervisor; Debian's kernel by its PVH entry."""
import gzip
import json
import lzma
import os
import socket
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BANNER, GUEST, Skip, Vitro, check, error_line, main  # noqa: E402
from userland import image_with  # noqa: E402

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "multiboot.S")


def build(folder, kind):
    out = os.path.join(folder, kind)
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", f"-D{kind}", "-Wl,--build-id=none",
                    "-Wl,-Ttext=0x200000", "-Wl,-z,max-page-size=4096", "-Wl,-z,norelro", "-o", out, SOURCE],
                   check=True)
    return out


def run_kind(kind, says):
    with tempfile.TemporaryDirectory() as d:
        kernel, module = build(d, kind), os.path.join(d, "mod")
        with open(module, "w") as f:
            f.write("in the module\0")
        with Vitro("run", "--kernel", kernel, "--append", "console=none a b", "--module", module + " x=1", stdin=None) as v:
            check(v.wait(20) == 43, v.tail())
            lines = v.seen.decode().split("\n")
            for want in (says, ("" if kind == "PVH" else kernel + " ") + "console=none a b", "in the module", module + " x=1"):
                check(want in lines, f"{want!r} is not in {lines}")


def test_multiboot1():
    run_kind("MB1", "multiboot 1")


def test_multiboot2():
    run_kind("MB2", "multiboot 2")


def test_pvh():
    run_kind("PVH", "pvh")


def xen(cpus):
    """The real hypervisor, whose own code runs in ring 0 here, and Debian's kernel as its first domain."""
    with Vitro("run", "--kernel", f"{GUEST}/xen.gz", "--module", f"{GUEST}/vmlinuz-generic console=hvc0", "--module", f"{GUEST}/initrd.img",
               "--append", "console=com1 com1=115200,8n1", "--cpus", str(cpus)) as v:
        v.expect(rb"Xen version 4\.", 60)
        v.expect(rb"Brought up %d CPUs" % cpus, 60)
        v.to_shell()
        v.command("cat /sys/hypervisor/type; echo cpus $(nproc).", rb"\nxen\s+cpus %d\." % cpus)
        v.send("poweroff\n")
        v.expect(rb"Entering ACPI S5 state", 60)
        check(v.wait(30) == 0, v.tail())


def test_xen_hypervisor():
    if os.environ.get("TESTS_FAST") == "1":
        raise Skip("slow in the TORTURE build")
    for cpus in (1, 2, 4):
        xen(cpus)


def test_ipxe_as_a_kernel():
    """It looks like a kernel of an old boot protocol, whose only entry is the 16-bit one: it is started by a BIOS without being asked to."""
    with Vitro("run", "--kernel", f"{GUEST}/ipxe.lkrn", "--net", "user", "--append", "echo told-$(( 1 + 1 ))x ${net0/mac}", "--screen=off") as v:
        v.expect(rb"iPXE initialising devices", 60)
        v.expect(rb"52:54:00:[0-9a-f:]{8}", 60)


def test_gzipped_kernels():
    with tempfile.TemporaryDirectory() as d:
        for name, data in (("cut.gz", open(f"{GUEST}/xen.gz", "rb").read()[:100000]), ("text.gz", gzip.compress(b"not a kernel" * 99)),
                           ("short.gz", b"\x1f\x8b")):
            with open(os.path.join(d, name), "wb") as f:
                f.write(data)
            check(name in error_line("run", "--kernel", os.path.join(d, name)), f"{name}: no name")


def test_no_such_module():
    with tempfile.TemporaryDirectory() as d:
        check("/no/such" in error_line("run", "--kernel", build(d, "MB1"), "--module", "/no/such x"), "no name")
    line = error_line("run", "--kernel", f"{GUEST}/vmlinuz", "--module", "/etc/hostname")
    check("--module" in line, line)


def vmlinux(path):
    """The ELF file inside a bzImage (Linux Documentation/arch/x86/boot.rst, payload_offset)."""
    image = open(path, "rb").read()
    setup = (image[0x1f1] or 4) + 1
    offset, length = struct.unpack("<II", image[0x248:0x250])
    payload = image[setup * 512 + offset:setup * 512 + offset + length]
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(payload)
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        return subprocess.run(["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE).stdout
    raise Skip("a compression that this test does not know")


def test_debian_by_pvh():
    """The uncompressed kernel, in 32-bit mode without paging, with the start info; its initrd is the module."""
    with tempfile.NamedTemporaryFile() as f:
        f.write(vmlinux(f"{GUEST}/vmlinuz-generic"))
        f.flush()
        with Vitro("run", "--kernel", f.name, "--initrd", f"{GUEST}/initrd.img") as v:
            v.expect(BANNER, 60)
            v.expect(rb"# ")
            v.command("dmesg | grep -c 'ACPI: RSDP'", rb"\n1\r?\n")
            v.send("poweroff\n")
            check(v.wait(30) == 0, v.tail())


def test_debian_by_its_16_bit_entry():
    """Firmware and a kernel: SeaBIOS starts it by our option ROM; what it knows of memory and the screen comes from the BIOS."""
    with Vitro("run", "--firmware", "bios-256k.bin", "--kernel", f"{GUEST}/vmlinuz", "--initrd", f"{GUEST}/initrd.img",
               "--append", "told=this") as v:
        v.expect(rb"Booting from ROM", 60)
        v.to_shell()
        v.command("grep -c told=this /proc/cmdline", rb"\n1\r?\n")
        v.command("dmesg | grep BIOS-e820 | head -2", rb"0x000000000009fbff\] usable(?s:.*)0x000000000009fc00.*reserved")
        # boot_params.screen_info, filled in by int 10h: 80 columns, 25 lines, a VGA
        v.command("od -A n -t u1 -j 7 -N 9 /sys/kernel/boot_params/data", rb" 80 +\d+ +\d+ +\d+ +\d+ +\d+ +\d+ +25 +1\b")
        v.send("poweroff\n")
        check(v.wait(60) == 0, v.tail())


def test_debian_by_uefi():
    """OVMF starts the kernel as an EFI program; the tables are ours, so there are both processors and a power switch."""
    with Vitro("run", "--firmware", "ovmf", "--kernel", f"{GUEST}/vmlinuz", "--initrd", f"{GUEST}/initrd.img",
               "--append", "quiet told=this", "--cpus", "2") as v:
        v.expect(BANNER, 240)
        v.expect(rb"# ")
        v.command("grep -c told=this /proc/cmdline; ls -d /sys/firmware/efi/runtime", rb"\n1\r?\n/sys/firmware/efi/runtime\r?\n")
        v.command("ls /sys/firmware/acpi/tables | tr '\\n' ' '", rb"APIC .*DSDT .*FACP .*HPET .*MCFG")
        v.command("nproc", rb"\n2\r?\n")
        v.send("poweroff\n")
        check(v.wait(60) == 0, v.tail())


def psmouse():
    with open(f"{GUEST}/version-generic") as f:
        path = f"{GUEST}/modules/{f.read().strip()}/psmouse.ko"
    if not os.path.exists(path):
        raise Skip(f"{path} is not there; `make guests` fetches it")
    with open(path, "rb") as f:
        return f.read()


def test_linux_mouse():
    """Linux's psmouse finds a wheel mouse behind the i8042; what is moved and pressed outside comes out of /dev/input/mice."""
    image = image_with({"psmouse.ko": psmouse()}, ("initrd.img",))
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        with Vitro("run", "--name", "mouse", "--firmware", "bios-256k.bin", "--kernel", f"{GUEST}/vmlinuz-generic",
                   "--initrd", image) as v:
            v.to_shell()
            v.command("insmod /psmouse.ko; until grep -q Mouse /proc/bus/input/devices; do sleep 1; done; "
                      "grep Mouse /proc/bus/input/devices", rb"N: Name=\".*Mouse\"", 60)
            v.command("[ -e /dev/input/mice ] || { mkdir -p /dev/input; mknod /dev/input/mice c 13 63; }; "
                      "(dd if=/dev/input/mice bs=3 count=3 2>/dev/null | od -A n -t d1 -v; echo e''nd) & sleep 1; echo rea''dy",
                      rb"ready")
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(os.path.join(d, "vitro", "mouse.qmp"))
                f = s.makefile("rw")
                f.readline()
                for line in ({"execute": "qmp_capabilities"},
                             *({"execute": "input-send-event", "arguments": {"events": events}} for events in (
                                 [{"type": "rel", "data": {"axis": "x", "value": 5}}],
                                 [{"type": "btn", "data": {"down": True, "button": "left"}}],
                                 [{"type": "btn", "data": {"down": False, "button": "left"}}]))):
                    f.write(json.dumps(line))
                    f.flush()
                    check("return" in json.loads(f.readline()), f"{line} was refused")
            packets = [int(n) for n in v.expect(rb"((?: +-?\d+){9})\r?\n", 60).group(1).split()]
            buttons = [packets[i] & 7 for i in (0, 3, 6)]
            check(buttons == [0, 1, 0] and packets[1:3] == [5, 0], packets)
            v.send("poweroff\n")
            check(v.wait(60) == 0, v.tail())


def test_16_bit_entry_needs_memory():
    line = error_line("run", "--firmware", "bios-256k.bin", "--kernel", f"{GUEST}/vmlinuz", "--mem", "32M")
    check("--mem" in line and "vmlinuz" in line, line)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/paths"))
