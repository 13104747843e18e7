#!/usr/bin/env python3
"""Virtio network cards: user networking both ways, port forwards, tap; bytes are compared by checksum."""
import hashlib
import http.server
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

from harness import Skip, Vitro, check, error_line, main, script
from userland import generic_kernel, kernel, program

MIB = 1 << 20
UP = "ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2\n"


class Server:
    """An HTTP server on the loopback interface: GET gives random bytes, PUT takes bytes."""

    def __init__(self, mib):
        self.body = random.Random(7).randbytes(mib * MIB)
        self.got = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()


class Sink:
    """Takes one connection; the checksum of what came."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.md5 = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        connection, _ = self.listener.accept()
        digest = hashlib.md5()
        while data := connection.recv(65536):
            digest.update(data)
        self.md5 = digest.hexdigest()
        connection.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def run_script(text, *args, seconds=120):
    with Vitro("run", "--append", "quiet " + script("set -e\n" + text), *args, stdin=None) as v:
        v.expect(rb"vitro.test: status 0", seconds)
        check(v.wait() == 0, v.tail())
        return v.seen.decode(errors="replace").replace("\r", "")


def test_download():
    with Server(24) as server:
        want = hashlib.md5(server.body).hexdigest()
        for options in ("", ",packed=on", ",queues=2", ",mtu=1500"):
            out = run_script(UP + f"wget -q -O - http://10.0.2.2:{server.port}/ | md5sum", "--net", "user" + options)
            check(want in out, f"{options}: {out[-300:]}")


def test_upload():
    """The guest sends segments larger than the link and leaves checksums to the card."""
    for options in ("", ",packed=on", ",mtu=1500"):
        sink = Sink()
        out = run_script(UP + "dd if=/dev/urandom of=/tmp/f bs=1M count=16 2>/dev/null; md5sum /tmp/f\n"
                         f"nc 10.0.2.2 {sink.port} < /tmp/f; sleep 0.2", "--net", "user" + options)
        sink.thread.join(10)
        check(sink.md5 is not None and sink.md5 in out, f"{options}: {sink.md5} {out[-300:]}")


def test_card_cuts_segments():
    """16 MiB in frames of up to 64 KiB, which is what offloading is for; of the link's size it would be 11500."""
    port = free_port()
    text = UP + ("mkdir /www; head -c 16777216 /dev/zero > /www/f; httpd -h /www -p 80; echo ready\n"
                 "cd /sys/class/net/eth0/statistics; while [ $(cat tx_bytes) -lt 16777216 ]; do sleep 0.1; done\n"
                 "sleep 1; echo frames=$(cat tx_packets).; sleep 3600")
    with Vitro("run", "--append", "quiet " + script(text), "--net",
               f"user,mtu=1500,hostfwd=tcp:127.0.0.1:{port}-:80", stdin=None) as v:
        v.expect("ready\r")
        with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
            s.sendall(b"GET /f HTTP/1.0\r\n\r\n")
            got = 0
            while data := s.recv(1 << 20):
                got += len(data)
        check(got > 16 * MIB, f"{got} bytes came")
        frames = int(v.expect(rb"frames=(\d+)\.").group(1))
        check(frames < 6000, f"{frames} frames")


def echo_tcp(listener):
    while True:
        connection, _ = listener.accept()
        try:
            while data := connection.recv(4096):
                connection.sendall(data)
        except OSError:
            pass  # reset
        connection.close()


def echo_udp(s):
    while True:
        data, peer = s.recvfrom(4096)
        s.sendto(data, peer)


def test_short_lived_sockets():
    """Sockets come and go, and their numbers with them: nobody waits for an answer that has come."""
    with tempfile.TemporaryDirectory() as work:
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        threading.Thread(target=echo_tcp, args=(tcp,), daemon=True).start()
        threading.Thread(target=echo_udp, args=(udp,), daemon=True).start()
        out = run_script(UP + f"sockets 10.0.2.2 {tcp.getsockname()[1]} {udp.getsockname()[1]} 300", "--net", "user",
                         *kernel(work, add=[program(work, "sockets")]))
        check("echoed 300" in out, out[-300:])


def test_dhcp_and_dns_address():
    out = run_script("ip link set eth0 up; udhcpc -i eth0 -q -n -s /bin/true 2>&1", "--net", "user")
    check("lease of 10.0.2.15 obtained from 10.0.2.2" in out, out[-300:])


def test_forward():
    port = free_port()
    text = UP + "mkdir /www; echo from the guest > /www/index.html; httpd -h /www -p 80; echo ready; sleep 20"
    with Vitro("run", "--append", "quiet " + script(text), "--net",
               f"user,hostfwd=tcp:127.0.0.1:{port}-:80", stdin=None) as v:
        v.expect("ready\r")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            s.settimeout(10)
            answer = b""
            while data := s.recv(4096):
                answer += data
        check(b"from the guest" in answer, answer)


def test_forward_of_datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as work, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s, \
            Vitro("run", *kernel(work, add=[program(work, "sockets")]), "--append", "quiet " + script(UP + "sockets 7 1000"),
                  "--net", f"user,hostfwd=udp:127.0.0.1:{port}-:7", stdin=None) as v:
        v.expect("serving\r")
        s.settimeout(2)
        s.connect(("127.0.0.1", port))
        for i in range(30):
            for attempt in range(15):  # a datagram may be lost, as long as the next comes through
                s.send(b"datagram %d" % i)
                try:
                    if s.recv(2048) == b"datagram %d" % i:
                        break
                except TimeoutError:
                    continue
            else:
                check(False, f"datagram {i} did not come back")


def test_restricted():
    with Server(1) as server:
        out = run_script(UP + f"wget -T 3 -q -O - http://10.0.2.2:{server.port}/ && exit 1; echo kept in",
                         "--net", "user,restrict=on")
        check("kept in" in out, out[-200:])


def test_two_cards_and_mac():
    out = run_script("cat /sys/class/net/eth0/address /sys/class/net/eth1/address; cat /proc/interrupts", "--net",
                     "user,mac=52:54:00:aa:bb:cc", "--net", "user,queues=2")
    check("52:54:00:aa:bb:cc" in out and "52:54:00:12:34:57" in out, out)
    check("virtio1-input.1" in out, "no second queue")


def test_tap():
    if os.getuid() != 0 or not os.path.exists("/dev/net/tun"):
        raise Skip("needs root and /dev/net/tun")
    name = f"vt{os.getpid()}"
    made = subprocess.run(["ip", "tuntap", "add", "mode", "tap", "name", name], capture_output=True)
    if made.returncode:
        raise Skip(f"no tap device here: {made.stderr.decode().strip()}")
    try:
        subprocess.run(["ip", "addr", "add", "198.51.100.1/24", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        body = random.Random(9).randbytes(16 * MIB)
        listener = socket.create_server(("198.51.100.1", 0))

        def serve():
            connection, _ = listener.accept()
            connection.sendall(body)
            connection.close()
        threading.Thread(target=serve, daemon=True).start()
        out = run_script("ip link set eth0 up; ip addr add 198.51.100.2/24 dev eth0; sleep 1\n"
                         f"nc 198.51.100.1 {listener.getsockname()[1]} < /dev/null | md5sum",
                         "--net", f"tap,ifname={name}")
        check(hashlib.md5(body).hexdigest() in out, out[-300:])
    finally:
        subprocess.run(["ip", "link", "delete", name], capture_output=True)


def test_e1000():
    """Both ways through an old card; segments and checksums are made by it."""
    with tempfile.TemporaryDirectory() as work, Server(8) as server:
        sink = Sink()
        out = run_script(UP + "cat /sys/class/net/eth0/address; readlink /sys/class/net/eth0/device/driver\n"
                         f"wget -q -O - http://10.0.2.2:{server.port}/ | md5sum\n"
                         "dd if=/dev/urandom of=/tmp/f bs=1M count=8 2>/dev/null; md5sum /tmp/f\n"
                         f"nc 10.0.2.2 {sink.port} < /tmp/f; sleep 0.2; cat /sys/class/net/eth0/statistics/*errors",
                         "--net", "user,if=e1000,mac=52:54:00:01:02:03", *generic_kernel(work))
        sink.thread.join(10)
        check("52:54:00:01:02:03" in out and "e1000" in out, out[:300])
        check(hashlib.md5(server.body).hexdigest() in out, "the download differs")
        check(sink.md5 is not None and sink.md5 in out, "the upload differs")


def test_bad_options():
    for text, words in (("lan", "no network 'lan'"), ("user,hostfwd=tcp:80", "no forward"), ("tap", "ifname"),
                        ("user,mac=01:00:00:00:00:00", "mac="), ("user,queues=99", "queues"),
                        ("user,ifname=x", "ifname"), ("user,hostfwd=tcp::99999-:1", "no forward")):
        line = error_line("run", "--net", text, status=2)
        check(words in line, line)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = error_line("run", "--net", f"user,hostfwd=tcp:127.0.0.1:{taken.getsockname()[1]}-:22")
        check("cannot listen" in line and str(taken.getsockname()[1]) in line, line)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/net"))
