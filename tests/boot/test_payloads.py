#!/usr/bin/env python3
"""What people boot, unmodified from Debian's packages: GRUB from a disk, Debian's kernel started by it."""
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BANNER, GUEST, VITRO, Skip, Vitro, check, main  # noqa: E402

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


def slow():
    """What takes a minute or more in the TORTURE build is left out of its fast tests; docs/firmware.md has the command for all."""
    if os.environ.get("TESTS_FAST") == "1":
        raise Skip("slow")


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


def test_grub_on_a_cd():
    """El Torito: SeaBIOS reads the CD, GRUB's image on it goes on by the BIOS's driver, and starts Debian from the CD."""
    with tempfile.TemporaryDirectory() as d:
        tree, iso = os.path.join(d, "tree"), os.path.join(d, "cd.iso")
        os.makedirs(os.path.join(tree, "boot", "grub"))
        with open(os.path.join(tree, "boot", "grub", "grub.cfg"), "w") as f:
            f.write(MENU % -1 + DEBIAN)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(f"{GUEST}/{name}", tree)
        made = subprocess.run(["grub-mkrescue", "-d", "/usr/lib/grub/i386-pc", "-o", iso, tree], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        check(made.returncode == 0, made.stdout[-400:])
        with Vitro("run", "--cdrom", iso, "--boot", "order=d") as v:
            v.expect(rb"Booting from DVD/CD", 30)
            v.expect(rb"\*Debian", 30)
            v.send(b"\r")
            v.expect(BANNER, 90)
            v.expect(rb"# ")
            v.send("poweroff\n")
            check(v.wait(30) == 0, v.tail())


def ipxe(cpus):
    with Vitro("run", "--option-rom", "/usr/lib/ipxe/qemu/pxe-virtio.rom", "--boot", "order=n", "--cpus", str(cpus)) as v:
        v.expect(rb"iPXE initialising devices...ok", 30)
        v.expect(rb"iPXE.* -- Open Source Network Boot Firmware", 10)
        v.expect(rb"Press Ctrl-B", 10)
        v.send(b"\x02")
        v.expect(rb"iPXE> ", 10)
        v.send(b"help\r")  # the BIOS keeps 15 keys
        v.expect(rb"Available commands", 10)


def test_ipxe():
    """Its ROM as an option ROM: the banner, and its command line by keyboard."""
    ipxe(1)


def grub_floppy(folder):
    """GRUB on a floppy disk's image, and a mark in its last sector."""
    grub = "/usr/lib/grub/i386-pc"
    core, image = os.path.join(folder, "core.img"), os.path.join(folder, "fd.img")
    subprocess.run(["grub-mkimage", "-O", "i386-pc", "-d", grub, "-p", "(fd0)/grub", "-o", core, "biosdisk",
                    "fat", "normal", "echo", "ls", "cat", "hexdump", "halt"], check=True)
    data = bytearray(1440 * 1024)
    data[:512] = open(f"{grub}/boot.img", "rb").read()[:512]
    body = open(core, "rb").read()
    data[512:512 + len(body)] = body
    data[-512:-496] = b"the last sector!"
    with open(image, "wb") as f:
        f.write(data)
    return image


def read_floppy(v):
    v.send(b"hexdump ")
    v.expect_screen(r"hexdump", 10)  # the BIOS keeps 15 keys
    v.send(b"(fd0)2879+1\r")
    v.expect_screen(r"the last sector!", 20)
    v.send(b"halt\r")
    check(v.wait(30) == 0, v.tail())


def test_floppy():
    """GRUB on a floppy disk, loaded by the 82077AA and ISA DMA; both sides and the last cylinder are read."""
    with tempfile.TemporaryDirectory() as d:
        with Vitro("run", "--floppy", grub_floppy(d), "--boot", "order=a") as v:
            v.expect_screen(r"grub>", 60)
            read_floppy(v)


def test_snapshot_with_a_floppy():
    """Saved at GRUB's prompt and gone on with: the drive is there, and where it was."""
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        saved = os.path.join(d, "saved")
        with Vitro("run", "--name", "floppy", "--floppy", grub_floppy(d), "--boot", "order=a") as v:
            v.expect_screen(r"grub>", 60)
            subprocess.run([VITRO, "snapshot", "--quit", "floppy", saved], check=True)
            v.wait(30)
        with Vitro("run", "--restore", saved) as v:
            read_floppy(v)


def png_colors(path):
    """Width, height and the number of colours of a PNG with 8-bit RGB, without help."""
    data = open(path, "rb").read()
    check(data[:8] == b"\x89PNG\r\n\x1a\n", data[:8])
    at, raw, size = 8, b"", None
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + n]
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        elif kind == b"IDAT":
            raw += body
        at += n + 12
    return size, len(set(zlib.decompress(raw)))


def test_vga_and_keyboard():
    """No serial line: GRUB's menu on the VGA, its command line by the PS/2 keyboard, ACPI power-off. What is typed while
    nobody reads waits until somebody does."""
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        image = grub_disk(d, "set timeout=30\n" + DEBIAN)
        shot = os.path.join(d, "s.png")
        with Vitro("run", "--name", "typed", "--disk", image, "--screen", "--screenshot", shot) as v:
            v.expect_screen(r"GNU GRUB +version(?s:.*)\*Debian", 60)
            v.send(b"c")
            v.expect_screen(r"grub>", 20)
            for text in ("echo X-Y_", "$grub_platform"):  # the BIOS keeps 15 keys
                v.send(text)
                v.expect_screen(re.escape(text), 20)
            v.send(b"\r")
            v.expect_screen(r"X-Y_pc", 20)
            subprocess.run([VITRO, "pause", "typed"], check=True)
            v.send(b"abcdefghijklmnopqrstuvwxyz")
            v.pump(1)
            subprocess.run([VITRO, "resume", "typed"], check=True)
            v.expect_screen(r"> abcdefghijklmnopqrstuvwxyz", 20)
            v.send(b"\r")
            v.send(b"halt\r")
            check(v.wait(30) == 0, v.tail())
        size, colors = png_colors(shot)
        check(size == (720, 400) and colors > 2, f"{size} {colors}")


def test_screen_until_serial():
    """In a terminal the screen is shown, and typed at, until something comes on the serial line; --screen=off: never."""
    with tempfile.TemporaryDirectory() as d:
        image = grub_disk(d, "set timeout=-1\n" + DEBIAN, f"{GUEST}/vmlinuz", f"{GUEST}/initrd.img")
        with Vitro("run", "--disk", image, tty=True) as v:
            v.expect_screen(r"GNU GRUB +version(?s:.*)\*Debian", 60)
            check(b"\x1b[0m\x1b[2J\x1b[H" in v.seen, v.tail())
            v.send(b"c")
            v.expect_screen(r"grub>", 20)
            v.send(b"\x1b")
            v.expect_screen(r"\*Debian(?s:.*)The highlighted entry|\*Debian(?s:.*)Use the", 20)
            v.send(b"\r")
            v.expect(BANNER, 90)
            v.expect(rb"# ")
            end = v.seen.rindex(b"\x1b[?25h\x1b[25;1H\r\n")  # of the screen; the shell asks its terminal where the cursor is
            check(not re.search(rb"\x1b\[\d+;\d+H", v.seen[end + 13:]), v.tail())
            v.command("echo s''erial", rb"serial")
            v.send("poweroff\r")
            check(v.wait(30) == 0, v.tail())
            check(v.terminal_restored(), "the terminal is not as it was")
        with Vitro("run", "--disk", image, "--screen=off", tty=True) as v:
            v.expect(rb"SeaBIOS \(version", 20)
            v.expect(rb"\*Debian", 20)
            v.send(b"\x01x")
            check(v.wait(30) == 0, v.tail())
        with Vitro("run", "--disk", image, "--screen=perhaps", stdin=None) as v:
            check(v.wait(20) == 2 and b"perhaps" in v.errors, v.tail())


def test_screen_commands():
    """A mode of 1024 * 768 in memory, seen from outside while it runs; and characters of a text screen."""
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        config = MENU % 30 + ("insmod all_video\ninsmod gfxterm\nset gfxmode=1024x768x32\n"
                              "terminal_output serial\n") + DEBIAN
        image = grub_disk(d, config)
        with Vitro("run", "--name", "vga", "--disk", image) as v:
            v.expect(rb"\*Debian", 20)
            text, png = os.path.join(d, "s.txt"), os.path.join(d, "s.png")
            subprocess.run([VITRO, "screenshot", "vga", text], check=True)
            check("SeaBIOS (version" in open(text).read() or "GRUB" in open(text).read(), open(text).read())
            v.send(b"c")
            v.expect(rb"grub> ", 20)
            v.send(b"videotest 1024x768x32\r")
            for _ in range(100):
                subprocess.run([VITRO, "screenshot", "vga", png], check=True)
                size, colors = png_colors(png)
                if size == (1024, 768) and colors > 8:
                    break
                time.sleep(0.1)
            check(size == (1024, 768) and colors > 8, f"{size} {colors}")


def boot_menu(cpus):
    with tempfile.TemporaryDirectory() as d:
        cd = os.path.join(d, "cd.iso")
        with open(cd, "wb") as f:
            f.write(bytes(64 * 2048))  # no boot record
        image = grub_disk(d, MENU % 30 + DEBIAN)
        with Vitro("run", "--disk", image, "--cdrom", cd, "--boot", "order=d,menu=on", "--cpus", str(cpus)) as v:
            v.expect(rb"Press ESC for boot menu", 20)
            v.send(b"\x1b")
            v.expect(rb"Select boot device:", 10)
            seen = v.expect(rb"1\. .*\n(?s:.*)2\. .*\n", 10).group(0)
            check(b"VITRO DVD-ROM" in seen and b"VITRO HARDDISK" in seen, seen)
            check(seen.index(b"DVD-ROM") < seen.index(b"HARDDISK"), "the order was d")
            v.send(b"1")
            v.expect(rb"Boot failed: could not read the boot disk|Boot failed: Could not read from CDROM", 20)
            v.expect(rb"GNU GRUB +version", 20)


def test_boot_menu():
    """SeaBIOS's own menu lists what there is; the key that is typed is what is started."""
    boot_menu(1)


def test_input_from_outside():
    """A key and the mouse by the control socket: SeaBIOS takes the key; what makes no sense is named."""
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        with Vitro("run", "--name", "typed", "--firmware", "bios-256k.bin", "--boot", "menu=on") as v:
            v.expect(rb"Press ESC for boot menu", 20)
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(os.path.join(d, "vitro", "typed.qmp"))
                f = s.makefile("rw")

                def do(*events, execute="input-send-event"):
                    f.write(json.dumps({"execute": execute, **({"arguments": {"events": events}} if events else {})}))
                    f.flush()
                    return json.loads(f.readline())

                f.readline()
                check("return" in do(execute="qmp_capabilities"), "no capabilities")
                for down in (True, False):
                    event = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": "esc"}}}
                    check("return" in do(event), "the key was refused")
                v.expect(rb"Select boot device:|No bootable device", 20)
                for event in ({"type": "rel", "data": {"axis": "x", "value": 1 << 40}},
                              {"type": "btn", "data": {"down": True, "button": "wheel-up"}}):
                    check("return" in do(event), f"{event} was refused")
                for event in ({"type": "rel", "data": {"axis": "z", "value": 1}}, {"type": "abs"}, 5, [],
                              {"type": "btn", "data": {"down": True, "button": "none"}},
                              {"type": "key", "data": {"down": True, "key": {"type": "qcode", "data": "no"}}}):
                    check("error" in do(event), f"{event} was taken")
            check(b"Select boot device:" in v.seen, v.tail())


def uefi_shell(cpus):
    with tempfile.TemporaryDirectory() as d, Vitro("run", "--firmware", "/usr/share/ovmf/OVMF.fd", "--cpus", str(cpus), "--name", "uefi",
                                                   env={"XDG_RUNTIME_DIR": d}) as v:
        v.expect(rb"UEFI v2", 90)
        v.expect(rb"Shell> ", 60)
        stats = subprocess.run([VITRO, "stats", "uefi"], capture_output=True, text=True, env=dict(os.environ, XDG_RUNTIME_DIR=d)).stdout
        mmio = re.search(r"MMIO (\d+)", stats)
        check(int(mmio.group(1)) < 2000000, f"{mmio.group(0)}: the frame buffer is no memory")
        v.send(b"reset -s\r")
        check(v.wait(60) == 0, v.tail())


def test_uefi():
    """Debian's OVMF to its shell, and off again."""
    uefi_shell(1)


SETVAR = b"setvar Kept -guid 12345678-9abc-def0-1234-56789abcdef0"


def uefi(nvram, *commands):
    """Type lines at the UEFI shell, then switch off."""
    with Vitro("run", "--firmware", "ovmf", "--nvram", nvram) as v:
        v.expect(rb"UEFI v2", 120)
        v.send(b" ")
        v.expect(rb"Shell> ", 60)
        for line, pattern in commands:
            v.send(line + b"\r")
            v.expect(pattern, 60)
            v.expect(rb"Shell> ", 60)
        v.send(b"reset -s\r")
        check(v.wait(60) == 0, v.tail())


def test_uefi_variables():
    """What the shell sets is there at the next start; the file is made, and holds what OVMF's template does at first."""
    slow()
    with tempfile.TemporaryDirectory() as d:
        nvram = os.path.join(d, "vars.fd")
        uefi(nvram, (SETVAR + b" -nv -bs =0x4b65", rb"\n"))
        made, template = open(nvram, "rb").read(), open("/usr/share/OVMF/OVMF_VARS_4M.fd", "rb").read()
        check(len(made) == len(template) and made != template and "Kept\0".encode("utf-16le") in made, "not kept")
        uefi(nvram, (SETVAR, rb"(?s:.*)65 4B"))
        check(os.listdir(d) == ["vars.fd"], os.listdir(d))


def test_snapshot_with_nvram():
    """Saved at the UEFI shell and gone on with: the variables' chip is there, in the same file, which may not have changed."""
    slow()
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        nvram, saved = os.path.join(d, "vars.fd"), os.path.join(d, "saved")
        with Vitro("run", "--name", "uefi", "--firmware", "ovmf", "--nvram", nvram) as v:
            v.expect(rb"UEFI v2", 120)
            v.send(b" ")
            v.expect(rb"Shell> ", 60)
            subprocess.run([VITRO, "snapshot", "--quit", "uefi", saved], check=True)
            v.wait(30)
        with Vitro("run", "--restore", saved) as v:
            v.send(SETVAR + b" -nv -bs =0x4b65\r")
            v.expect(rb"Shell> ", 60)
            v.send(b"reset -s\r")
            check(v.wait(60) == 0, v.tail())
        check("Kept\0".encode("utf-16le") in open(nvram, "rb").read(), "not kept")
        with Vitro("run", "--restore", saved, stdin=None) as v:
            check(v.wait(20) == 1 and nvram.encode() in v.errors and b"has changed" in v.errors, v.tail())


def test_bad_nvram():
    """Files that are none of ours are named, and left alone."""
    def refused(nvram, *words, firmware="ovmf"):
        with Vitro("run", "--firmware", firmware, "--nvram", nvram, stdin=None) as v:
            status, said = v.wait(20), v.errors.decode()
            check(status == 1 and nvram in said and all(w in said for w in words), f"{status} {said!r}")

    with tempfile.TemporaryDirectory() as d:
        foreign, small = os.path.join(d, "foreign"), os.path.join(d, "small")
        with open(foreign, "wb") as f:
            f.write(b"\0" * os.path.getsize("/usr/share/OVMF/OVMF_VARS_4M.fd"))
        with open(small, "wb") as f:
            f.write(open("/usr/share/OVMF/OVMF_VARS.fd", "rb").read())
        before = open(foreign, "rb").read()
        refused(foreign, "UEFI variables")
        check(open(foreign, "rb").read() == before, "the file was changed")
        refused(small, "131072", "540672", "move the file away")
        refused(os.path.join(d, "no", "such"), "No such file")
        refused(os.path.join(d, "new"), "template", firmware="bios-256k.bin")
        check(sorted(os.listdir(d)) == ["foreign", "small"], os.listdir(d))
        with Vitro("run", "--kernel", "x", "--nvram", foreign, stdin=None) as v:
            check(v.wait(20) == 2 and b"--nvram" in v.errors, v.tail())


def test_snapshot_in_grub():
    """Saved in GRUB's menu and gone on with elsewhere: shadow RAM and its services (int 13h, int 10h) are there again."""
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        saved = os.path.join(d, "saved")
        image = grub_disk(d, MENU % -1 + DEBIAN, f"{GUEST}/vmlinuz", f"{GUEST}/initrd.img")
        with Vitro("run", "--name", "grub", "--disk", image) as v:
            v.expect(rb"\*Debian", 60)
            subprocess.run([VITRO, "snapshot", "--quit", "grub", saved], check=True)
            v.wait(30)
        with Vitro("run", "--restore", saved) as v:
            v.send(b"\r")
            v.expect(BANNER, 90)


def test_no_boot_sector():
    """A disk of zeros: SeaBIOS's own message; it stays, as a PC does."""
    with tempfile.NamedTemporaryFile() as f:
        f.truncate(4 << 20)
        with Vitro("run", "--disk", f.name) as v:
            v.expect(rb"Boot failed: not a bootable disk", 20)
            v.expect(rb"No bootable device", 20)


def test_loader_that_jumps_into_nothing():
    """What it does is its own doing: it runs into an exception without a handler, and dies of that."""
    with tempfile.NamedTemporaryFile() as f:
        # lgdt and lidt of zeros, protected mode, jump to where there is no segment.
        code = bytes.fromhex("fa0f0116107c0f011e107c0f20c00c010f22c0ea0000000008")
        sector = bytearray(512)
        sector[0:3] = b"\xeb\x14\x90"
        sector[0x16:0x16 + len(code)] = code
        sector[510:512] = b"\x55\xaa"
        f.write(sector.ljust(1 << 20, b"\0"))
        f.flush()
        with Vitro("run", "--disk", f.name) as v:
            check(v.wait(20) == 3, v.tail())
            check(b"triple fault" in v.errors, v.tail())


MEMTEST = """menuentry "memtest86+" {
    linux /memtest86 console=ttyS0,115200
}
"""


def memtest(cpus, keys, seconds, mem="64M"):
    """A clean pass over 64 MiB, or less, with these keys typed when it has begun and what each shows."""
    with tempfile.TemporaryDirectory() as d:
        image = grub_disk(d, MENU % 0 + MEMTEST, "/boot/memtest86+x64.bin=memtest86")
        with Vitro("run", "--mem", mem, "--disk", image, "--cpus", str(cpus)) as v:
            v.expect(rb"Memtest86\+", 30)
            v.expect(rb"Pass: +0 +Errors: 0", 30)
            for key, shows in keys:
                v.send(key)
                v.expect(shows, 10)
            at_work = f"SMP: +{cpus}T(?s:.*)" if cpus > 1 else ""
            found = v.expect_screen(at_work + r"Pass: +[1-9]\d* +Errors: (\d+)", seconds)
            check(found.group(1) == "0", found.group(0))


def test_memtest():
    """Without BOOT_SLOW=1 its last test, which waits for 160 s, is deselected."""
    if os.environ.get("BOOT_SLOW") == "1":
        memtest(1, (), 600)
    else:
        memtest(1, ((b"1", rb"Test selection"), (b"1", rb"Remove one test"), (b"2", rb"Enter test"),
                    (b"10\r", rb"\*\.\*{8}\."), (b"0", rb"Exit menu"), (b"0", rb"Testing")), 240)


def test_several_processors():
    """The firmware counts them, and Debian starts them."""
    for cpus in (2, 4):
        with tempfile.TemporaryDirectory() as d:
            image = grub_disk(d, MENU % 0 + DEBIAN, f"{GUEST}/vmlinuz", f"{GUEST}/initrd.img")
            with Vitro("run", "--disk", image, "--cpus", str(cpus)) as v:
                v.expect(BANNER, 90)
                v.expect(rb"# ")
                v.command("nproc", rb"\n%d\r?\n" % cpus)
                v.send("poweroff\n")
                check(v.wait(30) == 0, v.tail())


def test_menus_on_several_processors():
    for cpus in (2, 4):
        ipxe(cpus)
        boot_menu(cpus)


def test_uefi_on_several_processors():
    """OVMF starts each of them to count it."""
    for cpus in (2, 4):
        uefi_shell(cpus)


def test_memtest_on_several_processors():
    """All of them side by side; unless BOOT_SLOW=1 only two tests, own address and moving inversions: in the TORTURE build's
    fast tests the first, by two processors over less memory."""
    fast = os.environ.get("TESTS_FAST") == "1"
    few = [(b"1", rb"Test selection"), (b"1", rb"Clear selection"), (b"1", rb"\.{11}")]
    for number, shows in ((b"1", rb"\.\*\.{9}"), (b"3", rb"\.\*\.\*\.{7}"))[:1 if fast else 2]:
        few += (b"3", rb"Enter test"), (number + b"\r", shows)
    few += (b"0", rb"Exit menu"), (b"0", rb"Testing")
    for cpus in (2,) if fast else (2, 4):
        memtest(cpus, () if os.environ.get("BOOT_SLOW") == "1" else few, 600, "32M" if fast else "64M")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/payloads"))
