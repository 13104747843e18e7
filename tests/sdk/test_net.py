#!/usr/bin/env python3
"""guests/net as a web server: over --net user, and, where this process may make a tap device, pings and requests over tap."""
import concurrent.futures
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.environ.get("BUILD", "build")
SLOW = 1 if os.path.basename(os.path.normpath(BUILD)) == "build" else 8
passed = failed = 0


def check(good, what):
    global passed, failed
    passed += bool(good)
    failed += not good
    if not good:
        print("FAILED: " + what)


def start(net, *more):
    p = subprocess.Popen([f"{BUILD}/vitro", "run", "--kernel", f"{BUILD}/guests/net", "--mem", "64M", "--net", net] + list(more),
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in p.stdout:
        if "Serving" in line:
            return p
    return p


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=20 * SLOW) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError as e:
        return 0, str(e)


def finish(p, name, want):
    try:
        out, _ = p.communicate(timeout=20 * SLOW)
    except subprocess.TimeoutExpired:
        p.kill()
        out, _ = p.communicate()
    check(p.returncode == 0 and f"Served {want} requests." in out, f"{name}: ended with {p.returncode}: {out}")
    return out


def user():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    p = start(f"user,if=vitro,hostfwd=tcp:127.0.0.1:{port}-:80")
    url = f"http://127.0.0.1:{port}"
    status, body = get(url + "/")
    check(status == 200 and "request 1" in body, f"user: the first page: {status} {body}")
    check(get(url + "/nothing")[0] == 404, "user: another page is not found")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: get(url + "/"), range(60)))
    check(all(a[0] == 200 for a in answers), "user: sixty requests, four at a time")
    numbers = sorted(int(a[1].split("request ")[1].split(".")[0]) for a in answers)
    check(numbers == list(range(2, 62)), f"user: each was counted once: {numbers}")
    get(url + "/quit")
    finish(p, "user", 62)


def make_tap(name, own):
    """A tap device with an address; None: not allowed here."""
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF: IFF_TAP | IFF_NO_PI
        fcntl.ioctl(tun, 0x400454CB, 1)  # TUNSETPERSIST
        os.close(tun)
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        address = struct.pack("16sH2s4s8x", name.encode(), socket.AF_INET, b"", socket.inet_aton(own))
        mask = struct.pack("16sH2s4s8x", name.encode(), socket.AF_INET, b"", socket.inet_aton("255.255.255.0"))
        fcntl.ioctl(s, 0x8916, address)  # SIOCSIFADDR
        fcntl.ioctl(s, 0x891C, mask)     # SIOCSIFNETMASK
        fcntl.ioctl(s, 0x8914, struct.pack("16sH22x", name.encode(), 0x1043))  # SIOCSIFFLAGS: UP, RUNNING, MULTICAST
        return s
    except OSError as e:
        print(f"tap: left out: {e}")
        return None


def drop_tap(name):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
    fcntl.ioctl(tun, 0x400454CB, 0)
    os.close(tun)


def inet_sum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(address, number, size):
    """-> the echoed payload is right"""
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.settimeout(5 * SLOW)
    payload = bytes((number + i) & 255 for i in range(size))
    head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, number)
    s.sendto(struct.pack("!BBHHH", 8, 0, inet_sum(head + payload), os.getpid() & 0xFFFF, number) + payload, (address, 0))
    end = time.monotonic() + 5 * SLOW
    while time.monotonic() < end:
        data, who = s.recvfrom(65536)
        data = data[(data[0] & 15) * 4:]
        if who[0] == address and data[:2] == b"\0\0" and data[4:8] == head[4:8]:
            return data[8:] == payload
    return False


def tap():
    name = f"vt{os.getpid() % 100000}"
    net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"  # not what anybody else here uses
    own, guest = f"{net}.1", f"{net}.15"
    s = make_tap(name, own)
    if not s:
        return
    p = start(f"tap,ifname={name},if=vitro", "--append", f"ip={guest}")
    try:
        for number, size in enumerate((0, 8, 56, 1000, 1400)):
            try:
                good = ping(guest, number, size)
            except OSError as e:
                good = False
                print(e)
            check(good, f"tap: ping of {size} bytes")
        check(get(f"http://{guest}/")[0] == 200, "tap: the page")
        get(f"http://{guest}/quit")
        out = finish(p, "tap", 2)
        check(out.count("Answered a ping.") == 5, "tap: five pings answered")
    finally:
        p.kill()
        p.wait()
        s.close()
        drop_tap(name)


user()
tap()
print(f"sdk-net: {passed} passed, {failed} failed")
sys.exit(failed != 0)
