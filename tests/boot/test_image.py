#!/usr/bin/env python3
"""`vitro image debian`: Debian from its packages on a disk of its own, as a user would live with it.

The image is made once, below build/guest (some minutes), and run with --snapshot but for the test that kills it."""
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from harness import VITRO, Failure, Skip, Vitro, check, error_line, main

DATA = os.path.abspath("build/guest/data")
RUN = tempfile.TemporaryDirectory(prefix="vitro-run-")
os.environ["XDG_RUNTIME_DIR"] = RUN.name
os.environ["XDG_DATA_HOME"] = DATA
DISK = os.path.join(DATA, "vitro", "box", "disk.img")
CONF = os.path.join(DATA, "vitro", "box", "vm.conf")
KEY = os.path.join(DATA, "key")
LOGIN_S = 120
# Nothing waits for it, so it may come after the login.
ADDRESS = "for i in $(seq 100); do ip -br -4 addr show eth0 | grep 10.0 && break; sleep 0.3; done"


def vitro(*args, seconds=300):
    return subprocess.run([VITRO, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def image():
    """The port that leads to its ssh."""
    if not os.path.exists(CONF) or os.path.getmtime(CONF) < os.path.getmtime("tools/image-debian"):
        for tool in ("mmdebstrap", "ssh-keygen", "ssh"):
            if not shutil.which(tool):
                raise Skip(f"no {tool}")
        os.makedirs(DATA, exist_ok=True)
        if not os.path.exists(KEY):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY], check=True)
        made = vitro("image", "debian", "box", "--force", "--password", "secret", "--ssh-key", KEY + ".pub", "--size",
                     "2G", "--ssh-port", str(free_port()), seconds=1500)
        if "unable to connect" in made.stderr.lower() or "temporary failure" in made.stderr.lower():
            raise Skip("no package archive can be reached")
        check(made.returncode == 0 and "box is ready" in made.stdout, made.stdout + made.stderr[-2000:])
        check("downloading packages" in made.stderr, "no progress was shown")
    return int(re.search(r"tcp:127.0.0.1:(\d+)-:22", open(CONF).read()).group(1))


def ssh(port, command, seconds=60):
    end = time.monotonic() + seconds
    while True:
        p = subprocess.run(["ssh", "-p", str(port), "-i", KEY, "-o", "StrictHostKeyChecking=no", "-o",
                            "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR",
                            "root@127.0.0.1", command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=seconds)
        if p.returncode != 255 or time.monotonic() > end:
            return p
        time.sleep(1)


def partition(disk, folder):
    """Its own file: e2fsck cannot reopen a file system inside a file."""
    part = os.path.join(folder, "part.img")
    subprocess.run(["dd", f"if={disk}", f"of={part}", "bs=1M", "skip=1", "conv=sparse", "status=none"], check=True)
    return part


def login(v):
    v.expect(rb"box login: ", LOGIN_S)
    v.send("root\n")
    v.expect(rb"Password: ")
    v.send("secret\n")
    v.expect(rb"root@box:~# ", 60)


def test_boots_to_a_healthy_login():
    image()
    with Vitro("run", "box", "--snapshot", "--stats") as v:
        login(v)
        check(b"GRUB" in v.seen and b"(rescue)" not in v.seen, "not by GRUB, or it showed its menu")
        v.command("systemctl is-system-running --wait", rb"[\r\n]running\r?\n", 60)
        v.command("systemctl --failed --no-legend | wc -l", rb"[\r\n]0\r?\n")
        v.command("findmnt -no SOURCE,FSTYPE /", rb"[\r\n]/dev/vda1 +ext4")
        v.command(ADDRESS, rb"10\.0\.2\.15/24")
        # What is installed in it later may start its services.
        v.command("ls /usr/sbin/policy-rc.d /sbin/start-stop-daemon.REAL 2>/dev/null | wc -l", rb"[\r\n]0\r?\n")
        v.command(". /etc/os-release; echo $VERSION_CODENAME", rb"[\r\n]bookworm")
        v.send("poweroff\n")
        v.expect(rb"Power down", 60)
        check(v.wait() == 0, "status")
        # GRUB waits by reading the clock, with a CPUID each time.
        clock = int(re.search(rb"CPUID:(\d+)", v.errors).group(1))
        check(clock < 20000, f"GRUB waited: {clock} CPUIDs")


def test_the_menu_when_asked_for():
    image()
    with Vitro("run", "box", "--snapshot", "--boot", "menu=on") as v:
        v.expect_screen(r"Debian GNU/Linux \(rescue\)", 60)
        v.send(b"\x1b[B\r")  # the second
        v.expect(rb"rescue mode|Press Enter for maintenance", LOGIN_S)


def test_pmem_without_a_page_cache():
    """ext4 with DAX on a file as memory: a program runs from the file's own pages, and all is there afterwards."""
    image()
    with tempfile.TemporaryDirectory() as folder:
        pmem = os.path.join(folder, "pmem.img")
        with open(pmem, "wb") as f:
            f.truncate(64 << 20)
        args = ["--disk", DISK + ",if=virtio,snapshot=on", "--disk", pmem + ",if=pmem", "--mem", "1G"]
        with Vitro("run", *args) as v:
            login(v)
            v.command("mkfs.ext4 -q -b 4096 /dev/pmem0; mount -o dax /dev/pmem0 /mnt; grep ' /mnt ' /proc/mounts",
                      rb"[\r\n]/dev/pmem0 /mnt ext4 [^\r\n]*\bdax\b")
            v.command("cp /usr/bin/md5sum /mnt/prog; dd if=/dev/urandom of=/mnt/data bs=1M count=4 conv=fsync 2>/dev/null; "
                      "cmp /usr/bin/md5sum /mnt/prog; echo same $?", rb"[\r\n]same 0\r?\n")
            data = v.command("/mnt/prog /mnt/data", rb"([0-9a-f]{32})  /mnt/data").group(1).decode()
            v.command("umount /mnt; echo unmounted-$((1+1))", rb"unmounted-2")
            v.send("poweroff\n")
            check(v.wait() == 0, v.tail())
        check(subprocess.run(["e2fsck", "-fn", pmem], capture_output=True).returncode == 0, "the file system is damaged")
        subprocess.run(["debugfs", "-R", f"dump /data {folder}/data", pmem], check=True, capture_output=True)
        got = subprocess.run(["md5sum", f"{folder}/data"], capture_output=True, text=True, check=True).stdout
        check(got.startswith(data), "not what the guest wrote")


def test_ssh_and_stop():
    port = image()
    started = vitro("run", "box", "--snapshot", "--detach")
    check(started.returncode == 0, started.stderr)
    try:
        p = ssh(port, "uname -n; cat /proc/1/comm", LOGIN_S)
        check(p.stdout.split() == ["box", "systemd"], p.stdout + p.stderr)
        update = ssh(port, "apt-get update -qq 2>&1 && apt-cache policy bash | grep -c deb.debian.org", 120)
        if subprocess.run(["curl", "-fsI", "http://deb.debian.org/debian/"], capture_output=True).returncode == 0:
            check(update.returncode == 0, "apt-get update: " + update.stdout[-500:])
        busy = vitro("image", "debian", "box", "--force")
        check(busy.returncode == 1 and "box is running" in busy.stderr and os.path.exists(DISK), busy.stderr)
        with Vitro("console", "box") as c:
            stopped = vitro("stop", "box")
            check(stopped.returncode == 0, stopped.stderr)
            c.wait()
            check(b"Power down" in c.seen or b"Powering off" in c.seen, c.tail())
    finally:
        vitro("stop", "box", "--force")


def test_snapshot_of_a_debian():
    """With its disk and its network card."""
    port = image()
    with tempfile.TemporaryDirectory() as folder:
        disk, saved = os.path.join(folder, "disk.img"), os.path.join(folder, "saved")
        subprocess.run(["cp", "--sparse=always", DISK, disk], check=True)
        args = ["--disk", disk + ",if=virtio", "--net", f"user,hostfwd=tcp:127.0.0.1:{port}-:22", "--mem", "512M"]
        check(vitro("run", "--name", "saved", "--detach", *args).returncode == 0, "not started")
        try:
            ssh(port, "touch /root/before; echo $$ > /run/mark", LOGIN_S)
            # What the firmware left below 1 MiB is in shadow RAM, not what its ROM holds (where the kernel lets one look).
            low = "dd if=/dev/mem bs=4096 skip=240 count=16 2>/dev/null | md5sum"
            before = ssh(port, low).stdout
            p = vitro("snapshot", "saved", saved, "--quit")
            check(p.returncode == 0, p.stderr)
            time.sleep(2)
            check(vitro("run", "--name", "saved", "--detach", "--restore", saved).returncode == 0, "not restored")
            p = ssh(port, "ls /root/before /run/mark && systemctl is-system-running")
            check(p.stdout.split()[-1:] == ["running"], p.stdout + p.stderr)
            after = ssh(port, low).stdout
            check(before and after == before, f"shadow RAM: {before!r}, then {after!r}")
            check(vitro("stop", "saved").returncode == 0, "not stopped")
            # Unmounted as it should be: nothing to replay, nothing to repair.
            part = partition(disk, folder)
            head = subprocess.run(["dumpe2fs", "-h", part], capture_output=True, text=True).stdout
            check(re.search(r"^Filesystem state: +clean$", head, re.M) and "needs_recovery" not in head, head)
            fsck = subprocess.run(["e2fsck", "-fn", part], capture_output=True, text=True)
            check(fsck.returncode == 0, fsck.stdout)
        finally:
            vitro("stop", "saved", "--force")


def kernel_and_initrd(folder):
    """Of the image, out of its /boot."""
    part = os.path.join(folder, "part.img")  # debugfs cannot open a file system inside a file
    subprocess.run(["dd", f"if={DISK}", f"of={part}", "bs=1M", "skip=1", "conv=sparse", "status=none"], check=True)

    def debugfs(request):
        return subprocess.run(["debugfs", "-R", request, part], capture_output=True, text=True, check=True).stdout

    version = re.search(r"vmlinuz-([^/]+)", debugfs("ls -p /boot")).group(1)
    kernel, initrd = os.path.join(folder, "vmlinuz"), os.path.join(folder, "initrd")
    debugfs(f"dump /boot/vmlinuz-{version} {kernel}")
    debugfs(f"dump /boot/initrd.img-{version} {initrd}")
    os.unlink(part)
    return kernel, initrd


def as_a_xen_pv_guest(mem, cpus, least_mib):
    """Its own kernel, root on xvda1, network by DHCP; memory that is written and read; `vitro stop` shuts it down in an orderly way."""
    image()
    with tempfile.TemporaryDirectory() as folder:
        kernel, initrd = kernel_and_initrd(folder)
        with Vitro("run", "box", "--snapshot", "--pv", "xen", "--mem", mem, "--cpus", str(cpus), "--kernel", kernel, "--initrd", initrd,
                   "--append", "root=/dev/xvda1 ro net.ifnames=0 quiet") as v:
            login(v)
            v.command("systemctl is-system-running --wait", rb"[\r\n]running\r?\n", 120)
            v.command("systemctl --failed --no-legend | wc -l", rb"[\r\n]0\r?\n")
            v.command("findmnt -no SOURCE,FSTYPE /", rb"[\r\n](\x1b\S*)?/dev/xvda1 +ext4")
            v.command(ADDRESS, rb"10\.0\.2\.15/24")
            v.command("systemd-detect-virt", rb"[\r\n]xen\r?\n")
            v.command("nproc", rb"[\r\n]%d\r?\n" % cpus)
            seen = v.command("grep MemTotal: /proc/meminfo", rb"MemTotal: +(\d+) kB")
            check(int(seen.group(1)) >> 10 >= least_mib, f"--mem {mem}: {seen.group(0)}")
            v.command("for i in 1 2 3 4; do (head -c 8M /dev/zero | sha1sum > /run/$i) & done; wait; sort -u /run/[1-4] | wc -l", rb"[\r\n]1\r?\n", 60)
            v.command("dmesg | grep -c -e Oops -e BUG: -e 'Call Trace' -e 'op failed'", rb"[\r\n]0\r?\n")
            stopped = vitro("stop", "box")
            check(stopped.returncode == 0, stopped.stderr)
            check(v.wait() == 0, v.tail())
            check(b"Power down" in v.seen or b"System halted" in v.seen, v.tail())


def test_as_a_xen_pv_guest():
    as_a_xen_pv_guest("512M", 1, 450)


def test_as_a_xen_pv_guest_small():
    as_a_xen_pv_guest("160M", 4, 100)  # with less this initrd has no room, in an unaware guest neither


def test_as_a_xen_pv_guest_large():
    as_a_xen_pv_guest("8G", 4, 7500)


def test_killed_while_it_writes():
    """Nothing worse than a journal to replay, and what was synced is there."""
    image()
    with tempfile.TemporaryDirectory() as folder:
        disk = os.path.join(folder, "disk.img")
        subprocess.run(["cp", "--sparse=always", DISK, disk], check=True)
        with Vitro("run", "--disk", disk + ",if=virtio", "--mem", "512M") as v:
            login(v)
            v.send("mkdir w; i=0; while :; do i=$((i+1)); echo $i > w/$i; head -c 100000 /dev/urandom > w/big$i; "
                   "sync w/$i; echo synced $i.; done\n")
            v.expect(rb"synced 40\.", 120)
            time.sleep(0.3)
            v.process.kill()
            v.process.wait()
            while v.pump(0.1):
                pass
            last = int(re.findall(rb"synced (\d+)\.", v.seen)[-1])
        part = partition(disk, folder)
        fsck = subprocess.run(["e2fsck", "-p", part], capture_output=True, text=True)
        check(fsck.returncode in (0, 1) and "UNEXPECTED" not in fsck.stdout, fsck.stdout + fsck.stderr)
        full = subprocess.run(["e2fsck", "-fn", part], capture_output=True, text=True)
        check(full.returncode == 0, "after the journal was replayed: " + full.stdout)
        for i in range(1, last + 1):
            got = subprocess.run(["debugfs", "-R", f"cat /root/w/{i}", part], capture_output=True, text=True).stdout
            check(got.strip() == str(i), f"file {i} of {last} holds {got!r}")


def test_mistakes():
    for args, word in (((), "of what"), (("windows",), "windows"), (("debian",), "name the VM"),
                       (("debian", "../x"), "no name"), (("debian", "x", "--size", "1G"), "2G"),
                       (("debian", "x", "--size", "big"), "size"), (("debian", "x", "--bogus"), "--bogus"),
                       (("debian", "x", "--mem"), "value"), (("debian", "x", "y"), "too many")):
        line = error_line("image", *args, status=2)
        check(word in line, line)
    check("cannot read" in error_line("image", "debian", "x", "--ssh-key", "/no/such"), "key")
    with tempfile.TemporaryDirectory() as data:
        os.makedirs(os.path.join(data, "vitro", "old"))
        os.environ["XDG_DATA_HOME"] = data
        try:
            check("--force" in error_line("image", "debian", "old"), "an old VM is in the way")
        finally:
            os.environ["XDG_DATA_HOME"] = DATA
    for args in (("image", "--help"), ("image", "debian", "--help")):
        p = vitro(*args)
        check(p.returncode == 0 and "usage: vitro image" in p.stdout, p.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/image"))
