#!/usr/bin/env python3
"""What a Xen PV guest is asked for from outside while it runs: to suspend itself, to give memory back, to lose a device."""
import os
import subprocess
import sys
import time

from harness import BUILD, GUEST, Vitro, check, main
from test_control import Qmp
from test_disk import Image

XEN = ("run", "--pv", "xen", "--kernel", os.path.join(GUEST, "vmlinuz"), "--initrd", os.path.join(GUEST, "initrd.img"))


def vitro(*args):
    p = subprocess.run([os.path.join(BUILD, "vitro"), *args], capture_output=True, text=True)
    check(p.returncode == 0, f"{args}: {p.stdout}{p.stderr}")
    return p.stdout


def until(what, test, seconds=60):
    end = time.monotonic() + seconds
    while not test():
        check(time.monotonic() < end, what)
        time.sleep(0.1)


def test_suspend():
    """Several times, on 1 and 4 vCPUs: it stands still, and goes on with disk, network and time as they were."""
    for cpus in "1", "4":
        name = f"xen-suspend-{os.getpid()}"
        with Image(8, fill=True) as image, Vitro(*XEN, "--name", name, "--cpus", cpus, "--net", "user", "--disk", image.path) as v:
            v.to_shell()
            v.command("n=0; while :; do n=$((n + 1)); echo $n > /tmp/n; done &", rb"#")
            q = Qmp(name)
            q.do("qmp_capabilities")
            for _ in range(3):
                check("suspended" in vitro("suspend", name), "vitro suspend")
                check(q.do("query-status")["return"]["status"] == "suspended", "query-status")
                check("suspended" in vitro("ps"), "vitro ps")
                vitro("suspend", name)  # it is already
                vitro("resume", name)
                check(q.do("query-status")["return"]["status"] == "running", "query-status")
                v.command("echo $((6 * 7))y; a=$(cat /tmp/n)", rb"\n42y", 60)
                v.command("until [ $(cat /tmp/n) != $a ]; do :; done; echo it-counts", rb"\nit-counts", 60)
            v.command("kill %1; md5sum /dev/xvda", image.md5().encode(), 60)
            v.command("ip link set eth0 up; udhcpc -i eth0 -q -n -s /bin/true", rb"lease of 10.0.2.15 obtained", 60)
            v.command("dmesg | grep -c 'Restarting tasks'", rb"\n3", 60)
            # Suspended and paused: both end with `resume`.
            vitro("suspend", name)
            vitro("pause", name)
            vitro("resume", name)
            v.command("echo $((6 * 7))z", rb"\n42z", 60)
            v.send("poweroff -f\n")
            check(v.wait() == 0, v.tail())
            seen = v.seen.decode(errors="replace")
            for word in "WARNING:", "BUG:", "Oops", "Call Trace", "Cannot save":
                check(word not in seen, f"{word} in {seen[-3000:]!r}")


def test_balloon():
    """`vitro balloon` makes the guest's own driver give memory back; the host has it then."""
    name = f"xen-balloon-{os.getpid()}"
    with Vitro(*XEN, "--name", name, "--mem", "512M") as v:
        v.to_shell()
        q = Qmp(name)
        q.do("qmp_capabilities")
        check(q.do("query-balloon")["return"]["actual"] == 512 << 20, "all of it at first")
        v.command("dd if=/dev/zero of=/tmp/z bs=1M count=250 2>/dev/null; rm /tmp/z; echo used", rb"\nused", 60)
        before = resident(v)
        vitro("balloon", name, "256M")
        until("256 MiB", lambda: q.do("query-balloon")["return"]["actual"] == 256 << 20)
        check(resident(v) < before - (100 << 20), f"resident: {before >> 20} MiB, then {resident(v) >> 20}")
        vitro("balloon", name, "1G")  # all there is
        until("512 MiB", lambda: q.do("query-balloon")["return"]["actual"] == 512 << 20)
        v.command("dd if=/dev/zero of=/tmp/z bs=1M count=200 2>/dev/null; md5sum /tmp/z", rb"3566de3a97906edb98d004d6b947ae9b", 60)
        v.send("poweroff -f\n")
        check(v.wait() == 0, v.tail())


def resident(v):
    with open(f"/proc/{v.process.pid}/statm") as f:
        return int(f.read().split()[1]) * 4096


def test_forced_detach():
    """Devices of a guest that does not answer (it is suspended) go by force only; it lives without them."""
    name = f"xen-force-{os.getpid()}"
    with Image(16) as image, Image(8, fill=True) as other, Vitro(*XEN, "--name", name, "--net", "user", "--disk", image.path,
                                                                 "--disk", other.path) as v:
        v.to_shell()
        q = Qmp(name)
        q.do("qmp_capabilities")
        v.command("dd if=/dev/zero of=/dev/xvda bs=1M count=4 conv=fsync 2>/dev/null; echo written", rb"\nwritten", 60)
        vitro("suspend", name)
        for device in "xvda", "vif0":
            check(q.do("x-detach", name=device) == {"return": {}}, "x-detach")
        time.sleep(0.5)  # nothing to wait for: it must not happen
        check(sorted(q.do("x-query-devices")["return"]) == ["vif0", "xvda", "xvdb"], "they went without the guest")
        for device in "xvda", "vif0":
            check(q.do("x-detach", name=device, force=True) == {"return": {}}, "x-detach")
        until("they are gone", lambda: q.do("x-query-devices")["return"] == ["xvdb"])
        vitro("resume", name)
        v.command("until [ ! -e /dev/xvda -a ! -e /sys/class/net/eth0 ]; do sleep 0.1; done; echo both-gone", rb"\nboth-gone", 60)
        v.command("md5sum /dev/xvdb", other.md5().encode(), 60)
        v.send("poweroff -f\n")
        check(v.wait() == 0, v.tail())


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/xen_life"))
