#!/usr/bin/env python3
"""Real gdb on the stub: break, step, registers, memory, watch; and its interrupt, by hand."""
import os
import re
import shutil
import socket
import subprocess
import sys
import time

from harness import BUILD, Skip, Vitro, check, main
from test_bad_input import bare, in_file

# 100000: mov ecx, 5
# 100005: inc rax
# 100008: mov [0x100100], rax
# 100010: dec ecx
# 100012: jnz 100005
# 100014: mov al, 3;  mov dx, 0x501;  out dx, al
LOOP = bytes.fromhex("b905000000" "48ffc0" "4889042500011000" "ffc9" "75f1" "b003" "66ba0105" "ee" "f4").ljust(0x200, b"\0")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def gdb(code, *commands, status):
    if not shutil.which("gdb"):
        raise Skip("no gdb")
    port = free_port()
    with in_file(bare(code)) as f, Vitro("run", "--kernel", f.name, "--mem", "16M", f"--gdb={port}",
                                         stdin=None) as v:
        while b"waiting for gdb" not in v.errors:
            check(v.process.poll() is None, v.tail())
            v.pump(0.1)
        lines = ["set pagination off", "set confirm off", f"target remote :{port}", *commands]
        args = [a for line in lines for a in ("-ex", line)]
        p = subprocess.run(["gdb", "-batch", "-nx", *args], capture_output=True, text=True, timeout=60,
                           stdin=subprocess.DEVNULL)
        got = v.wait()
        check(got == status, f"status {got}: {p.stdout} {p.stderr}")
        return p.stdout


def gdb_smp(*commands):
    """On tests/guest/smp.c, with its symbols and four vCPUs."""
    elf = os.path.join(BUILD, "tests", "guest", "smp.elf")
    if not shutil.which("gdb") or not os.path.exists(elf):
        raise Skip("no gdb, or no guest")
    port = free_port()
    with Vitro("run", "--cpus", "4", "--kernel", elf, "--mem", "64M", f"--gdb={port}", stdin=None) as v:
        while b"waiting for gdb" not in v.errors:
            check(v.process.poll() is None, v.tail())
            v.pump(0.1)
        lines = ["set pagination off", "set confirm off", f"target remote :{port}", *commands]
        args = [a for line in lines for a in ("-ex", line)]
        p = subprocess.run(["gdb", "-batch", "-nx", elf, *args], capture_output=True, text=True, timeout=60,
                           stdin=subprocess.DEVNULL)
        v.process.kill()
        return p.stdout + p.stderr


def has(output, *wanted):
    at = 0
    for word in wanted:
        found = output.find(word, at)
        check(found >= 0, f"no {word!r} (in this order) in {output}")
        at = found + len(word)


def test_registers_and_step():
    has(gdb(LOOP, "p/x $pc", "stepi", "p/x $pc", "p $rcx", "p $cs", "stepi", "p $rax",
            "set $rax = 41", "delete", "continue", status=7),
        "= 0x100000", "= 0x100005", "= 5", "= 16", "= 1", "exited")


def test_break():
    has(gdb(LOOP, "break *0x100010", "continue", "p $rax", "continue", "p $rax", "delete", "continue", status=7),
        "Breakpoint 1, ", "= 1", "Breakpoint 1, ", "= 2", "exited")


def test_memory():
    has(gdb(LOOP, "x/2i $pc", "break *0x100010", "continue", "x/xg 0x100100",
            "set *(long *)0x100200 = 0x1122", "x/xg 0x100200", "x/xb 0x7ffffffff000",
            "set *(unsigned char *)0x100015 = 4", "delete", "continue", status=9),
        "mov    $0x5,%ecx", "0x0000000000000001", "0x0000000000001122")


def test_watch():
    has(gdb(LOOP, "watch *(long *)0x100100", "continue", "continue", "delete", "continue", status=7),
        "Hardware watchpoint", "Old value = 0", "New value = 1", "Old value = 1", "New value = 2", "exited")


def test_threads():
    """A thread is a vCPU; a breakpoint stops all of them, and each has registers of its own."""
    out = gdb_smp("info threads", "break ap_main", "continue", "info threads", "p cpu", "thread 1", "p $cs", "p/x $rip",
                  "continue", "continue", "info threads", "delete", "break test_ipi", "continue", "p starts[1]", "info threads",
                  "kill")
    has(out, "CPU 0", "CPU 1, not started", "CPU 3, not started", "ap_main (cpu=", "CPU 0",
        "$1 = ", "$2 = 16", "$3 = 0x", "ap_main (cpu=", "ap_main (cpu=", "test_ipi", "$4 = 2", "CPU 3")
    started = set(re.findall(r"hit Breakpoint 1, ap_main \(cpu=(\d)", out))
    check(started == {"1", "2", "3"}, f"{started}: {out}")


def test_step_one_thread():
    out = gdb_smp("break ap_main", "continue", "delete", "set scheduler-locking on", "p/x $rip", "stepi", "stepi", "stepi", "p/x $rip",
                  "set scheduler-locking off", "break test_ipi", "continue", "kill")
    has(out, "ap_main", "$1 = 0x", "$2 = 0x", "test_ipi")


def test_detach_and_kill():
    gdb(LOOP, "detach", status=7)
    gdb(LOOP, "kill", status=0)


def packet(text):
    return b"$" + text + b"#%02x" % (sum(text) & 255)


def test_interrupt():
    port = free_port()
    with in_file(bare(b"\xeb\xfe")) as f, Vitro("run", "--kernel", f.name, "--mem", "16M", f"--gdb={port}",
                                               stdin=None) as v:
        while b"waiting for gdb" not in v.errors:
            v.pump(0.1)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
            for _ in range(3):
                s.sendall(packet(b"c"))
                check(s.recv(1) == b"+", "no acknowledgement")
                time.sleep(0.2)
                s.sendall(b"\x03")
                reply = b""
                while b"#" not in reply:
                    reply += s.recv(100)
                check(reply.startswith(b"$T02"), reply)
                s.sendall(b"+")
            s.sendall(packet(b"k"))
            check(v.wait(10) == 0, v.tail())


def test_noise():
    """Packets that are nonsense get an error or nothing; the stub stays."""
    port = free_port()
    with in_file(bare(b"\xeb\xfe")) as f, Vitro("run", "--kernel", f.name, "--mem", "16M", f"--gdb={port}",
                                               stdin=None) as v:
        while b"waiting for gdb" not in v.errors:
            v.pump(0.1)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
            s.sendall(b"\0\xff garbage $nonsense#00" + packet(b"m") + packet(b"mffffffffffffffffff,ffffffff") +
                      packet(b"M0,ffffffff:00") + packet(b"M0,4:zz") + packet(b"Z9,0,0") + packet(b"Z") +
                      packet(b"P99=00") + packet(b"p") + packet(b"G") + packet(b"") + packet(b"vCont;") +
                      packet(b"x" * 20000) + packet(b"qXfer:features:read:target.xml:ffffffffffffffff,1"))
            time.sleep(0.3)
            s.sendall(packet(b"p10"))
            reply = b""
            while b"$0000100000000000#" not in reply:
                got = s.recv(65536)
                check(got, f"hung up: {reply[-200:]!r}")
                reply += got
                if len(reply) > 100000:
                    check(False, "no answer")
            s.sendall(packet(b"k"))
            check(v.wait(10) == 0, v.tail())


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/gdb"))
