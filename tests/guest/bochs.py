"""bochs.py - the 32-bit test kernels on Bochs, as a peer for what QEMU's TCG does not check: segment limits, VME, alignment.

Bochs boots a disk of GRUB's, which starts the kernel by Multiboot; the serial line is a file. Debian: bochs, seabios, and the
packages of tools/mk-grub-disk.
"""
import os
import shutil
import struct
import subprocess
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIOS, VGA_BIOS = "/usr/share/seabios/bios.bin", "/usr/share/seabios/vgabios-stdvga.bin"
CONFIG = """\
megs: 128
cpu: model={model}, count=1, ips=200000000, reset_on_triple_fault=0
romimage: file={bios}
vgaromimage: file={vga}
vga: extension=vbe, update_freq=1
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path={disk}, mode=flat
boot: disk
com1: enabled=1, mode=file, dev={serial}
display_library: rfb, options="timeout=0"
clock: sync=none
speaker: enabled=0
plugin_ctrl: speaker=0
sound: waveoutdrv=dummy
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
"""
GRUB_CFG = "set timeout=0\nmenuentry kernel {\n    multiboot /kernel\n}\n"


def missing():
    """Why there can be no run; None if there can."""
    for program in ("bochs", "grub-mkimage", "mcopy"):
        if not shutil.which(program):
            return f"there is no {program}; install Debian's packages bochs, grub-common, grub-pc-bin and mtools"
    for name in (BIOS, VGA_BIOS):
        if not os.path.exists(name):
            return f"there is no {name}; install Debian's package seabios"
    return None


def flat(elf):
    """A 32-bit ELF kernel as a flat file with a Multiboot header in the page before it (Multiboot 0.6.96 §3.1.1)."""
    with open(elf, "rb") as f:
        data = f.read()
    entry, at, size, count = (*struct.unpack_from("<II", data, 24), *struct.unpack_from("<HH", data, 42))
    loads = [struct.unpack_from("<8I", data, at + i * size) for i in range(count)]
    loads = [(paddr, data[off:off + filesz], memsz) for kind, off, _, paddr, filesz, memsz, _, _ in loads if kind == 1]
    start = min(paddr for paddr, _, _ in loads)
    files = [l for l in loads if l[1]]
    end = max(paddr + len(bytes_) for paddr, bytes_, _ in files)
    bss_end = max(paddr + memsz for paddr, _, memsz in loads)
    image = bytearray(end - start)
    for paddr, bytes_, _ in files:
        image[paddr - start:paddr - start + len(bytes_)] = bytes_
    base, flags = start - 4096, 1 << 16
    header = struct.pack("<3I5I", 0x1badb002, flags, -(0x1badb002 + flags) & 0xffffffff, base, base, end, bss_end, entry)
    return header.ljust(4096, b"\0") + bytes(image)


def run(elf, limit, model="corei7_skylake_x"):
    """-> (what came on the serial line, status: 1 when the kernel has summed up, as it does elsewhere; None: out of time)"""
    with tempfile.TemporaryDirectory() as d:
        paths = {name: os.path.join(d, name) for name in ("kernel", "grub.cfg", "disk", "serial", "log", "bochsrc", "commands")}
        with open(paths["kernel"], "wb") as f:
            f.write(flat(elf + ".32"))
        with open(paths["grub.cfg"], "w") as f:
            f.write(GRUB_CFG)
        subprocess.run([os.path.join(TOP, "tools", "mk-grub-disk"), paths["disk"], paths["grub.cfg"], paths["kernel"]], check=True)
        with open(paths["bochsrc"], "w") as f:
            f.write(CONFIG.format(model=model, bios=BIOS, vga=VGA_BIOS, disk=paths["disk"], serial=paths["serial"], log=paths["log"]))
        with open(paths["commands"], "w") as f:
            f.write("continue\n") # Debian's has its debugger in
        bochs = subprocess.Popen(["bochs", "-q", "-f", paths["bochsrc"], "-rc", paths["commands"]], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, start_new_session=True)
        end, seen = time.monotonic() + limit, ""
        try:
            while "\nSUMMARY: " not in "\n" + seen or not seen.endswith("\n"):
                ended = bochs.poll() is not None
                if os.path.exists(paths["serial"]):
                    with open(paths["serial"], "rb") as f:
                        seen = f.read().decode("utf-8", "replace").replace("\r", "")
                if ended or time.monotonic() > end:
                    if ended and os.path.exists(paths["log"]):
                        with open(paths["log"], errors="replace") as f:
                            seen += "".join(line for line in f if "PANIC" in line or ">>" in line)
                    return seen, bochs.returncode if ended else None
                time.sleep(0.1)
            return seen, 1 if ", 0 failed" in seen.splitlines()[-1] else 3
        finally:
            if bochs.poll() is None:
                bochs.kill()
            bochs.wait()
