#!/usr/bin/env python3
"""What is wrong gets one clear line on stderr, the right status, and leaves nothing behind."""
import os
import struct
import sys
import tempfile

from harness import GUEST, Vitro, check, error_line, main, script

MIB = 1 << 20
KERNEL = os.path.join(GUEST, "vmlinuz")


def in_file(data):
    f = tempfile.NamedTemporaryFile(prefix="vitro-test-")
    f.write(data)
    f.flush()
    return f


def says(line, *words):
    for word in words:
        check(word in line, f"no {word!r} in {line!r}")


def test_no_such_kernel():
    says(error_line("run", "--kernel", "/no/such/file"), "--kernel", "/no/such/file", "No such file")


def test_kernel_is_a_directory():
    says(error_line("run", "--kernel", "/"), "directory")


def test_unreadable_kernel():
    if os.getuid() == 0:
        return
    with in_file(b"x") as f:
        os.chmod(f.name, 0)
        says(error_line("run", "--kernel", f.name), "Permission denied")


def test_empty_kernel():
    with in_file(b"") as f:
        says(error_line("run", "--kernel", f.name), "empty", f.name)


def test_foreign_kernel():
    for path in ("/bin/sh", "/etc/passwd", os.path.join(GUEST, "initrd.img")):
        line = error_line("run", "--kernel", path)
        says(line, path)


def test_truncated_kernel():
    data = open(KERNEL, "rb").read()
    for size in (0x210, 0x300, 4096, len(data) // 2, len(data) - 4096):
        with in_file(data[:size]) as f:
            says(error_line("run", "--kernel", f.name), "truncated", f.name)


def test_corrupt_header():
    """The load address, and the protocol's version; then a kernel that only says that it has no 64-bit entry: it boots."""
    for at, form, value, words in ((0x258, "<Q", 1 << 60, "damaged"), (0x258, "<Q", 0x1234, "damaged"),
                                   (0x206, "<H", 0x0201, "too old")):
        data = bytearray(open(KERNEL, "rb").read())
        struct.pack_into(form, data, at, value)
        with in_file(data) as f:
            says(error_line("run", "--kernel", f.name), words, f.name)
    data = bytearray(open(KERNEL, "rb").read())
    struct.pack_into("<H", data, 0x236, 0)
    with in_file(data) as f, Vitro("run", "--kernel", f.name, "--initrd", os.path.join(GUEST, "initrd.img"),
                                   "--append", "quiet " + script("uname -m"), stdin=None) as v:
        v.expect(rb"x86_64")
        check(v.wait() == 0, v.tail())


def test_no_such_initrd():
    says(error_line("run", "--kernel", KERNEL, "--initrd", "/no/such"), "--initrd", "No such file")


def test_initrd_does_not_fit():
    with in_file(b"") as f:
        os.truncate(f.name, 200 * MIB)
        says(error_line("run", "--kernel", KERNEL, "--initrd", f.name, "--mem", "128M"),
             f.name, "does not fit", "--mem")


def test_too_little_memory():
    for mem in ("1M", "8M", "48M"):
        says(error_line("run", "--mem", mem), "too little memory", "--mem")


def test_command_line_too_long():
    says(error_line("run", "--append", "x" * 3000), "--append")
    says(error_line("run", "--append", "x" * 9000, status=2), "--append")


def test_options():
    for args, word in (
        (["--mem"], "--mem"),
        (["--mem", "lots"], "lots"),
        (["--mem", "12Q"], "12Q"),
        (["--mem", "-5"], "-5"),
        (["--mem", "0"], "range"),
        (["--code-cache", "2G"], "1M to 1G"),
        (["--mem", "99999999999999999999G"], "range"),
        (["--cpus", "0"], "range"),
        (["--cpus", "two"], "two"),
        (["--no-such"], "--no-such"),
        (["stray"], "stray"),
        (["--trace", "nothing"], "nothing"),
        (["--debug", "one-insn,fast"], "fast"),
        (["--gdb", "99999"], "range"),
        (["--stats=yes"], "--stats"),
        (["--"], "--"),
    ):
        says(error_line("run", *args, status=2), word)
    says(error_line("walk", status=2), "walk")
    says(error_line(status=2), "vitro run")


def test_unknown_cpu_model():
    says(error_line("run", "--cpu", "80486"), "80486")


def test_help():
    for args in (["--help"], ["run", "--help"], ["--version"], ["help"]):
        with Vitro(*args, stdin=None) as v:
            check(v.wait() == 0, v.tail())
            check(v.seen and not v.errors, v.tail())


def bare(code):
    """A 64-bit ELF that is these bytes at 1 MiB."""
    at, header = MIB, 64 + 56
    return (b"\x7fELF\2\1\1" + bytes(9) +
            struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, at, 64, 0, 0, 64, 56, 1, 0, 0, 0) +
            struct.pack("<IIQQQQQQ", 1, 7, header, at, at, len(code), len(code), 4096) + code)


def ends_badly(code, *args, status):
    with in_file(bare(code)) as f, Vitro("run", "--kernel", f.name, "--mem", "16M", *args, stdin=None) as v:
        got = v.wait(20)
        check(got == status, f"status {got}, not {status}; {v.tail()}")
        return v.errors.decode()


def test_triple_fault():
    # lidt of an empty table; int3
    code = bytes.fromhex("0f011d01000000cc") + bytes(10)
    says(ends_badly(code, status=3), "triple fault")


def test_no_stack():
    # xor esp,esp; dec rsp; push rax: not mapped, and there is no IDT
    says(ends_badly(bytes.fromhex("31e448ffcc50"), status=3), "triple fault")


def test_jump_into_nothing():
    # mov eax, 0x80000000; jmp rax: mapped, but neither RAM nor a device
    errors = ends_badly(bytes.fromhex("b800000080ffe0"), status=1)
    says(errors, "vitro: ", "0x80000000")


def test_debug_exit_status():
    # mov al, 21; mov dx, 0x501; out dx, al; hlt
    check(ends_badly(bytes.fromhex("b01566ba0105eef4"), status=43) == "", "should be silent")


def test_no_core_dump():
    check(not [f for f in os.listdir(".") if f == "core" or f.startswith("core.")], "a core dump is here")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/bad_input"))
