#!/usr/bin/env python3
"""--vnc, by a small client of our own: the screen's pixels are those of a screenshot, and what is typed arrives."""
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time

from harness import BUILD, VITRO, Vitro, check, error_line, main
from test_payloads import DEBIAN, grub_disk

RUN = tempfile.TemporaryDirectory(prefix="vitro-run-")
os.environ["XDG_RUNTIME_DIR"] = RUN.name
RETURN, SHIFT = 0xff0d, 0xffe1


class Rfb:
    """A client after RFC 6143: raw encoding and changes of size, four bytes a pixel."""

    def __init__(self, address):
        end = time.monotonic() + 30
        while True:
            self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
            try:
                self.sock.connect(address)
                break
            except OSError:
                self.sock.close()
                check(time.monotonic() < end, f"nobody listens at {address}")
                time.sleep(0.1)
        self.sock.settimeout(60)
        check(self.get(12) == b"RFB 003.008\n", "not RFB 3.8")
        self.sock.sendall(b"RFB 003.008\n")
        kinds = self.get(self.get(1)[0])
        check(1 in kinds, f"security types {list(kinds)}")
        self.sock.sendall(b"\1")
        check(self.get(4) == bytes(4), "refused")
        self.sock.sendall(b"\1")
        self.width, self.height = struct.unpack(">HH", self.get(4))
        self.get(16)
        self.name = self.get(struct.unpack(">I", self.get(4))[0])
        self.pixels = bytearray(self.width * self.height * 4)
        # 32 bits, 24 of them used, little-endian, true colour: red at 16, green at 8, blue at 0
        self.sock.sendall(struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        self.sock.sendall(struct.pack(">BxHii", 2, 2, 0, -223))

    def get(self, n):
        data = b""
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            check(more, "disconnected")
            data += more
        return data

    def update(self, incremental):
        """Ask for a change and take it."""
        self.sock.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))
        kind = self.get(1)[0]
        check(kind == 0, f"message {kind}")
        for _ in range(struct.unpack(">xH", self.get(3))[0]):
            x, y, w, h, encoding = struct.unpack(">HHHHi", self.get(12))
            if encoding == -223:
                self.width, self.height = w, h
                self.pixels = bytearray(w * h * 4)
                continue
            check(encoding == 0 and x + w <= self.width and y + h <= self.height, f"{x, y, w, h, encoding}")
            data = self.get(w * h * 4)
            for row in range(h):
                at = ((y + row) * self.width + x) * 4
                self.pixels[at:at + w * 4] = data[row * w * 4:(row + 1) * w * 4]

    def rgb(self):
        return bytes(b for i in range(0, len(self.pixels), 4) for b in self.pixels[i:i + 3][::-1])

    def key(self, symbol):
        for down in (1, 0):
            self.sock.sendall(struct.pack(">BBxxI", 4, down, symbol))

    def type(self, text):
        for ch in text:
            if ch in '~!@#$%^&*()_+{}|:"<>?' or ch.isupper():
                self.sock.sendall(struct.pack(">BBxxI", 4, 1, SHIFT))
                self.key(ord(ch))
                self.sock.sendall(struct.pack(">BBxxI", 4, 0, SHIFT))
            else:
                self.key(ord(ch))
            time.sleep(0.02)  # a BIOS keeps 15 keys

    def pointer(self, x, y, buttons=0):
        self.sock.sendall(struct.pack(">BBHH", 5, buttons, x, y))


def screen(name, file):
    end = time.monotonic() + 60  # a VM that has just been started is not there yet
    while subprocess.run([VITRO, "screenshot", name, file], capture_output=True, timeout=60).returncode:
        check(time.monotonic() < end, f"{name} gives no screenshot")
        time.sleep(0.1)
    with open(file, "rb") as f:
        return f.read()


def wait_for(name, text, folder):
    end = time.monotonic() + 90
    while text not in screen(name, os.path.join(folder, "s.txt")).decode():
        check(time.monotonic() < end, f"no {text!r} on the screen:\n" + open(os.path.join(folder, "s.txt")).read())
        time.sleep(0.1)


def png_rgb(data):
    """Pixels of an 8-bit RGB PNG."""
    import zlib
    at, body = 8, b""
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height = struct.unpack(">II", data[at + 8:at + 16])
            check(data[at + 16:at + 18] == b"\x08\x02", "not 8-bit RGB")
        body += data[at + 8:at + 8 + n] if kind == b"IDAT" else b""
        at += n + 12
    raw, rows, before = zlib.decompress(body), [], bytes(width * 3)
    for y in range(height):
        line = bytearray(raw[y * (width * 3 + 1):(y + 1) * (width * 3 + 1)])
        how, line = line[0], line[1:]
        for i in range(len(line)):
            a, b, c = line[i - 3] if i >= 3 else 0, before[i], before[i - 3] if i >= 3 else 0
            p = a + b - c
            near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line[i] = (line[i] + (0, a, b, (a + b) // 2, near)[how]) & 255
        rows.append(bytes(line))
        before = line
    return width, height, b"".join(rows)


def test_types_and_shows():
    with tempfile.TemporaryDirectory() as d:
        sock = os.path.join(d, "vnc")
        image = grub_disk(d, "set timeout=-1\n" + DEBIAN)
        with Vitro("run", "--name", "shown", "--disk", image, "--vnc", "unix:" + sock) as v:
            wait_for("shown", "*Debian", d)
            check(os.stat(sock).st_mode & 0o77 == 0, "others may connect")
            c = Rfb(sock)
            check(c.name == b"Vitro", c.name)
            c.update(0)
            c.type("c")
            wait_for("shown", "grub>", d)
            c.type('set pager=0; echo "Typed-By_$grub_platform"')
            c.key(RETURN)
            wait_for("shown", "\nTyped-By_pc", d)
            c.pointer(10, 10)
            c.pointer(30, 20, 1)
            c.pointer(30, 20)
            # The cursor blinks: once they must be the same.
            for _ in range(100):
                c.update(0)
                if (c.width, c.height, c.rgb()) == png_rgb(screen("shown", os.path.join(d, "s.png"))):
                    break
            else:
                check(False, "other pixels than those of a screenshot")
            second = Rfb(sock)  # two may look
            second.update(0)
            check((second.width, second.height) == (c.width, c.height), "another size")
            second.sock.close()
            c.type("halt")
            c.key(RETURN)
            check(v.wait(60) == 0, v.tail())
        check(not os.path.exists(sock), "the socket is left")


def test_stays_over_a_restart():
    """The guest restarts, by the reset button: a client that is connected sees and drives the new one."""
    with tempfile.TemporaryDirectory() as d:
        sock = os.path.join(d, "vnc")
        image = grub_disk(d, "set timeout=-1\n" + DEBIAN)
        with Vitro("run", "--name", "again", "--disk", image, "--vnc", "unix:" + sock) as v:
            wait_for("again", "*Debian", d)
            c = Rfb(sock)
            c.update(0)
            for turn in range(2):
                c.type("c")
                wait_for("again", "grub>", d)
                menu = c.rgb()
                while c.rgb() == menu:
                    c.update(1)
                before = c.rgb()
                subprocess.run([VITRO, "reset", "again"], check=True, timeout=60)
                wait_for("again", "*Debian", d)
                end = time.monotonic() + 60
                while c.rgb() == before:  # the prompt is gone from its picture, too
                    check(time.monotonic() < end, "the old picture stays")
                    c.update(0)
            c.type("c")
            wait_for("again", "grub>", d)
            c.type("halt")
            c.key(RETURN)
            check(v.wait(60) == 0, v.tail())
        check(not os.path.exists(sock), "the socket is left")


def test_graphics():
    """A change of size goes to the client."""
    with tempfile.TemporaryDirectory() as d:
        image = grub_disk(d, "set gfxmode=1024x768x32\ninsmod all_video\nset timeout=-1\n" + DEBIAN)
        with socket.create_server(("127.0.0.1", 0)) as s:
            port = s.getsockname()[1]
        with Vitro("run", "--name", "drawn", "--disk", image, "--vnc", f"127.0.0.1:{port}") as v:
            c = Rfb(("127.0.0.1", port))
            c.update(0)
            wait_for("drawn", "*Debian", d)
            c.type("c")
            wait_for("drawn", "grub>", d)
            late = Rfb(("127.0.0.1", port))  # it asks for its first picture when the size is another one
            was = late.width, late.height
            c.type("terminal_output gfxterm")
            c.key(RETURN)
            end = time.monotonic() + 60
            while png_rgb(screen("drawn", os.path.join(d, "s.png")))[:2] != (1024, 768):
                check(time.monotonic() < end, "no graphics")
            c.update(0)
            check((c.width, c.height) == was, f"{c.width, c.height}")
            late.update(0)
            for client in c, late:
                while (client.width, client.height) != (1024, 768):
                    check(time.monotonic() < end, f"{client.width, client.height}")
                    client.update(1)
            late.sock.close()
            c.type("halt")
            c.key(RETURN)
            check(v.wait(60) == 0, v.tail())


def test_bad_addresses():
    for where, words in (("", "unix:PATH"), ("here", "unix:PATH"), ("unix:", "path"), ("0.0.0.0:5900", "no password"),
                         ("127.0.0.1:0", "unix:PATH"), ("127.0.0.1:99999", "unix:PATH")):
        line = error_line("run", "--vnc", where, status=2)
        check("--vnc" in line and words in line, line)
    check("--kernel" in error_line("run", "--kernel", "x", "--vnc", "unix:/tmp/x", status=2), "with a kernel")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = error_line("run", "--vnc", f"127.0.0.1:{taken.getsockname()[1]}")
        check("cannot listen" in line, line)
    with tempfile.TemporaryDirectory() as d:
        line = error_line("run", "--vnc", f"unix:{d}/no/such")
        check("--vnc" in line and "No such file" in line, line)


if __name__ == "__main__":
    config = os.path.join(BUILD, "config.mk")
    if os.path.exists(config) and "HAVE_VNC := y" not in open(config).read():
        print("boot/vnc: skipped: built without libneatvnc\nboot/vnc: 0 passed, 0 failed")
        sys.exit(0)
    sys.exit(main(sys.modules[__name__], "boot/vnc"))
