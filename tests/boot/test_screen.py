#!/usr/bin/env python3
"""Every video mode of SeaVGABIOS that programs use, set and drawn in by a program of ours, and looked at from outside."""
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import VITRO, Skip, Vitro, check, main  # noqa: E402

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "screen.S")
TABLE = 0x8600 - 0x7c00
TEXT, DOTS, LINEAR, BANKED = range(4)
EGA = [(0, 0, 0), (0, 0, 170), (0, 170, 0), (0, 170, 170), (170, 0, 0), (170, 0, 170), (170, 85, 0), (170, 170, 170),
       (85, 85, 85), (85, 85, 255), (85, 255, 85), (85, 255, 255), (255, 85, 85), (255, 85, 255), (255, 255, 85), (255, 255, 255)]
CGA = [EGA[0], EGA[11], EGA[13], EGA[15]]
# mode, way, bits a pixel, width, height
MODES = [
    (0x01, TEXT, 4, 40, 25), (0x03, TEXT, 4, 80, 25),
    (0x04, DOTS, 2, 320, 200), (0x06, DOTS, 1, 640, 200), (0x0d, DOTS, 4, 320, 200), (0x0e, DOTS, 4, 640, 200),
    (0x10, DOTS, 4, 640, 350), (0x11, DOTS, 1, 640, 480), (0x12, DOTS, 4, 640, 480), (0x13, DOTS, 8, 320, 200),
    (0x101, LINEAR, 8, 640, 480), (0x101, BANKED, 8, 640, 480), (0x103, LINEAR, 8, 800, 600), (0x105, BANKED, 8, 1024, 768),
    (0x107, LINEAR, 8, 1280, 1024), (0x110, LINEAR, 15, 640, 480), (0x111, LINEAR, 16, 640, 480), (0x112, LINEAR, 24, 640, 480),
    (0x114, LINEAR, 16, 800, 600), (0x115, LINEAR, 24, 800, 600), (0x118, LINEAR, 24, 1024, 768),
    (0x141, LINEAR, 32, 640, 400), (0x143, LINEAR, 32, 800, 600), (0x144, LINEAR, 32, 1024, 768),
]


def disk(folder):
    program, image = os.path.join(folder, "program"), os.path.join(folder, "disk.img")
    subprocess.run(["gcc", "-m32", "-c", "-o", program + ".o", SOURCE], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat=binary", "-o", program, program + ".o"], check=True)
    data = open(program, "rb").read()
    check(len(data) <= TABLE, f"the program has {len(data)} bytes")
    table = b"".join(struct.pack("<5H", *mode) for mode in MODES) + b"\xff\xff"
    with open(image, "wb") as f:
        f.write((data.ljust(TABLE, b"\0") + table).ljust(1 << 20, b"\0"))
    return image


def pixels(path):
    """Width, height and a function of x, y: the PNG without help (8-bit RGB, W3C PNG §9)."""
    data, raw, at = open(path, "rb").read(), b"", 8
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + n]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            check((depth, colour) == (8, 2), f"depth {depth}, colour type {colour}")
        elif kind == b"IDAT":
            raw += body
        at += n + 12
    raw, rows, before = zlib.decompress(raw), [], bytearray(3 * width)
    for y in range(height):
        how, row = raw[y * (3 * width + 1)], bytearray(raw[y * (3 * width + 1) + 1:(y + 1) * (3 * width + 1)])
        if row.count(0) + before.count(0) == 6 * width:
            pass  # whatever the filter is
        elif how in (1, 3, 4):
            for i in range(3 * width):
                a, b, c = row[i - 3] if i > 2 else 0, before[i], before[i - 3] if i > 2 else 0
                near = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
                row[i] = (row[i] + (a, 0, (a + b) // 2, near)[how - 1]) & 255
        elif how == 2:
            row = bytearray((x + y) & 255 for x, y in zip(row, before))
        rows.append(row)
        before = row
    return width, height, lambda x, y: tuple(rows[y][3 * x:3 * x + 3]), rows


def colour(n, bits):
    """The n-th dot's, as the screen shows it; None: some colour of a palette, but not black."""
    raw = (n * 0x102f35 + 0x051f07) & 0xffffff
    if bits == 15:
        return raw >> 7 & 0xf8, raw >> 2 & 0xf8, raw << 3 & 0xf8
    if bits == 16:
        return raw >> 8 & 0xf8, raw >> 3 & 0xfc, raw << 3 & 0xf8
    if bits >= 24:
        return raw >> 16, raw >> 8 & 255, raw & 255
    return {1: [EGA[0], EGA[15]], 2: CGA, 4: EGA, 8: EGA}[bits][(n + 1) % min(1 << bits, 16)]


def dots_are_right(path, mode):
    number, _, bits, w, h = mode
    width, height, at, rows = pixels(path)
    check(width % w == 0 and height % h == 0, f"mode {number:#x}: {width} * {height}")
    fx, fy = width // w, height // h
    want = {}
    for n in range(15):
        x, y = ((w - 1) * (n & 1), (h - 1) * (n >> 1)) if n < 4 else ((n - 3) * w // 12, (n - 3) * h // 12)
        want[x, y] = colour(n, bits)
    for (x, y), c in want.items():
        got = {at(x * fx + i, y * fy + j) for i in range(fx) for j in range(fy)}
        check(got == {c}, f"mode {number:#x}: at {x}, {y} {got}, not {c}")
    lit = sum(1 for row in rows if any(row) for x in range(0, len(row), 3) if row[x] | row[x + 1] | row[x + 2])
    check(lit == fx * fy * sum(1 for c in want.values() if c != (0, 0, 0)), f"mode {number:#x}: {lit} pixels are lit")


def test_modes():
    with tempfile.TemporaryDirectory() as d:
        os.environ["XDG_RUNTIME_DIR"] = d
        text, png = os.path.join(d, "s.txt"), os.path.join(d, "s.png")
        with Vitro("run", "--name", "screen", "--disk", disk(d)) as v:
            for mode in MODES:
                check(v.expect(rb"\[(%04X) (ok|bad)\]" % mode[0], 30).group(2) == b"ok", f"mode {mode[0]:#x} was refused")
                if mode[1] == TEXT:
                    subprocess.run([VITRO, "screenshot", "screen", text], check=True)
                    lines = open(text).read().split("\n")
                    check(len(lines[mode[4] - 1]) == mode[3] and lines[mode[4] - 1].endswith("END"), lines)
                    subprocess.run([VITRO, "screenshot", "screen", png], check=True)
                    width, height, at, _ = pixels(png)
                    check((width % mode[3], height) == (0, 400), f"{width} * {height}")
                    cell = width // mode[3]
                    backs = [at(width - i * cell, height - 1) for i in (3, 2, 1)]
                    check(backs == [EGA[1], EGA[2], EGA[4]], backs)
                else:
                    subprocess.run([VITRO, "screenshot", "screen", png], check=True)
                    dots_are_right(png, mode)
                v.send(b" ")
            v.expect(rb"\[end\]", 30)
            check(v.wait(30) == 43, v.tail())


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/screen"))
