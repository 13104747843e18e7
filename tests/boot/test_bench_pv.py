#!/usr/bin/env python3
"""`vitro bench pv`: every line of one setting comes out, in the table, the JSON and the chart; mistakes are explained."""
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

from harness import VITRO, check, error_line, main


def bench(*args):
    done = subprocess.run([VITRO, "bench", "pv", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=300)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def measure(*args):
    """What it measured, as its JSON says, and the table."""
    with tempfile.TemporaryDirectory(prefix="vitro-test-") as d:
        out = os.path.join(d, "pv.json")
        status, table, errors = bench(*args, "--json", out)
        check(status == 0, f"status {status}: {errors[-400:]}")
        with open(out) as f:
            return json.load(f), table


def test_table():
    with tempfile.TemporaryDirectory(prefix="vitro-test-") as d:
        chart = os.path.join(d, "pv.svg")
        result, table = measure("--rounds", "1", "--scale", "0.002", "--only", "2 CPUs", "--svg", chart)
        lines = result["lines"]
        check([line["line"] for line in lines] == ["ipi", "shootdown", "wake"], str([line["line"] for line in lines]))
        for line in lines:
            check(line["title"] in table, f"no {line['title']!r} in the table")
            for way in ("unaware", "aware", "xen"):
                check(line[way]["ns"] > 0 and line[way]["interceptions"] > 0, f"{line['title']}, {way}: {line[way]}")
            check(line["xen"]["hypercalls"] > 1 and line["xen"]["ports"] < 0.1, str(line["xen"]))
        # An IPI costs one interrupt on the other CPU (on a busy host there are ticks too, and sometimes one interrupt finds what
        # two IPIs were for), and the aware kernel's needs fewer interceptions.
        ipi = lines[0]
        check(ipi["unaware"]["interrupts"] > 0.5 and ipi["aware"]["interrupts"] > 0.5, str(ipi))
        check(ipi["aware"]["interceptions"] < ipi["unaware"]["interceptions"], str(ipi))
        bars = [e for e in xml.etree.ElementTree.parse(chart).iter() if e.tag.endswith("rect")]
        check(len(bars) == 2 * len(lines) + 1, f"{len(bars)} rectangles in the chart")


def test_boot():
    """How long a boot takes is what the host sees; what was counted, what the guest reads."""
    result, table = measure("--minutes", "0.001", "--only", "boot", "--markdown")
    check(result["rounds"] == 1 and [line["line"] for line in result["lines"]] == ["boot", "boot-cpu"], str(result)[:400])
    check("| boot to init |" in table, table)
    for way in ("unaware", "aware", "xen"):
        wall, cpu = (line[way] for line in result["lines"])
        check(0 < cpu["ns"] and 2e8 < wall["ns"] < 3e11 and wall["interceptions"] == cpu["interceptions"] > 1000, f"{way}: {wall} {cpu}")
    check(result["lines"][0]["unaware"]["hypercalls"] == 0 and result["lines"][0]["xen"]["hypercalls"] > 1000, str(result["lines"][0]))


def test_calls():
    """What guests/gain prints by calls and what it writes to the serial port do not mix: each line is there."""
    result, _ = measure("--rounds", "3", "--only", "write 64 bytes")
    check([line["line"] for line in result["lines"]] == ["console"], "the console by calls")


def test_devices():
    """guests/gain drives each disk and card by its chip, by virtio and by calls, and looks at what it read (it dies otherwise)."""
    result, _ = measure("--rounds", "1", "--only", "device calls,cable")
    lines = result["lines"]
    check(len(lines) == 14 and len({line["title"] for line in lines}) == 14, f"{len(lines)} lines")
    for line in lines:
        unaware, aware = (line[way]["interceptions"] for way in ("unaware", "aware"))
        check(unaware > 0 and aware > 0, f"{line['title']}: {unaware} and {aware} interceptions")
        if line["title"].endswith(("IDE", "e1000")) and line["setting"] == "device calls":
            check(aware * 3.99 < unaware, f"{line['title']}: {aware} is not a quarter of {unaware}")
        check(aware < unaware * 1.01, f"{line['title']}: {aware}, {unaware} without calls")


def test_shootdown():
    """A page's shootdown by a call takes only that page from the other processor, which reads fifteen others all the time."""
    result, _ = measure("--rounds", "1", "--only", "shootdown-call,shootdown-read")
    check([line["line"] for line in result["lines"]] == ["shootdown-call", "shootdown-read"], str(result["lines"]))
    for line in result["lines"]:
        check(line["aware"]["interceptions"] < 1.01, str(line["aware"]))
        check(line["aware"]["TLB misses"] < 4, str(line["aware"]))


def test_datagrams():
    """Small packets that follow each other do not each cost an interrupt, which virtio's driver in Linux asks for."""
    result, _ = measure("--rounds", "1", "--scale", "0.02", "--only", "datagrams")
    line = result["lines"][0]
    check(line["aware"]["interrupts"] < 0.5 and line["aware"]["interceptions"] < 1.2, str(line["aware"]))


def test_mistakes():
    check("which one" in error_line("bench", status=2), "bench alone")
    check("no benchmark 'abc'" in error_line("bench", "abc", status=2), "an unknown one")
    check("which one" in error_line("bench", "../x", status=2), "no path")
    status, table, _ = bench("--list")
    check(status == 0 and "read4k-16" in table, "--list")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/bench_pv"))
