#!/usr/bin/env python3
"""Debian's stress-ng with --verify: its processor, memory, process and signal stressors check themselves."""
import os
import re
import sys

from harness import TIME_SCALE, check, main
from userland import in_guest

# Each stressor with how much of it: a fixed number of operations, so that every method of the
# processor and memory stressors has its turn, whatever the machine's speed.
CPU = """
--cpu 1 --cpu-method all --cpu-ops 1000
--matrix 1 --matrix-method all --matrix-ops 300
--vecmath 1 --vecmath-ops 100
--vecfp 1 --vecfp-ops 40
--vecshuf 1 --vecshuf-ops 40
--vecwide 1 --vecwide-ops 600
--fp 1 --fp-ops 60
--funccall 1 --funccall-ops 20
--funcret 1 --funcret-ops 20
--branch 1 --branch-ops 100000
--goto 1 --goto-ops 20000
--longjmp 1 --longjmp-ops 5000
--nop 1 --nop-ops 5000
--regs 1 --regs-ops 20000
--opcode 1 --opcode-ops 200
--rdrand 1 --rdrand-ops 20000
--tsc 1 --tsc-ops 20000
--x86cpuid 1 --x86cpuid-ops 100
--x86syscall 1 --x86syscall-ops 100000
--str 1 --str-ops 500
--wcs 1 --wcs-ops 300
--crypt 1 --crypt-ops 20
--hash 1 --hash-ops 200
--qsort 1 --qsort-ops 2 --qsort-size 65536
--heapsort 1 --heapsort-ops 2 --heapsort-size 65536
--radixsort 1 --radixsort-ops 2
--bsearch 1 --bsearch-ops 2
--hsearch 1 --hsearch-ops 4
--tree 1 --tree-ops 1 --tree-size 20000
--skiplist 1 --skiplist-ops 2
--judy 1 --judy-ops 2
--sparsematrix 1 --sparsematrix-ops 2
--jpeg 1 --jpeg-ops 2
--zlib 1 --zlib-ops 10
"""
MEMORY = """
--vm 1 --vm-bytes 16M --vm-method all --vm-ops 4000
--memcpy 1 --memcpy-ops 200
--memthrash 1 --memthrash-ops 4
--memrate 1 --memrate-bytes 8M --memrate-ops 4
--stack 1 --stack-ops 2
--stackmmap 1 --stackmmap-ops 2
--malloc 1 --malloc-ops 20000
--mmap 1 --mmap-bytes 8M --mmap-ops 4
--mmapfork 1 --mmapfork-ops 1
--mremap 1 --mremap-bytes 8M --mremap-ops 40
--mprotect 1 --mprotect-ops 2000
--madvise 1 --madvise-ops 4
--mincore 1 --mincore-ops 200
--mlock 1 --mlock-ops 200
--msync 1 --msync-ops 100
--fault 1 --fault-ops 2000
--brk 1 --brk-ops 20000
--shm 1 --shm-ops 4
--memfd 1 --memfd-bytes 4M --memfd-ops 4
--icache 1 --icache-ops 200 --timeout 2
--cache 1 --cache-ops 200
--lockbus 1 --lockbus-ops 2000
--atomic 1 --atomic-ops 1000
--mcontend 1 --mcontend-ops 200 --timeout 2
--userfaultfd 1 --userfaultfd-ops 500
--sysbadaddr 1 --sysbadaddr-ops 200
"""
PROCESSES = """
--fork 1 --fork-ops 400
--vfork 1 --vfork-ops 1000
--clone 1 --clone-ops 200
--exec 1 --exec-ops 40 --timeout 2
--spawn 1 --spawn-ops 40
--pthread 1 --pthread-ops 400
--switch 1 --switch-ops 20000
--context 1 --context-ops 200
--futex 1 --futex-ops 20000
--mutex 1 --mutex-ops 20000
--sem 1 --sem-ops 200 --timeout 2
--pipe 1 --pipe-ops 20000
--yield 1 --yield-ops 200 --timeout 2
--ptrace 1 --ptrace-ops 2000
--membarrier 1 --membarrier-ops 2000
--vdso 1 --vdso-ops 200000
--usersyscall 1 --usersyscall-ops 5000
--timer 1 --timer-ops 2000
--timerfd 1 --timerfd-ops 2000
--itimer 1 --itimer-ops 200
--hrtimers 1 --hrtimers-ops 2000
--clock 1 --clock-ops 500
--sigsegv 1 --sigsegv-ops 10000
--sigfpe 1 --sigfpe-ops 10000
--sigtrap 1 --sigtrap-ops 10000
--sigabrt 1 --sigabrt-ops 100
--sigrt 1 --sigrt-ops 5000
--sigq 1 --sigq-ops 5000
--sigio 1 --sigio-ops 200
--sigchld 1 --sigchld-ops 200
--sigpending 1 --sigpending-ops 5000
--sigsuspend 1 --sigsuspend-ops 5000
--bad-altstack 1 --bad-altstack-ops 100
--signest 1 --signest-ops 1000
"""
# Stressors that only run on an Intel processor.
INTEL = {"rdrand", "tsc", "x86syscall"}
# Stressors that refuse to run as root.
NOT_AS_ROOT = {"exec", "spawn"}


def stress(stressors, seconds, *args):
    wanted = [s for s in stressors.splitlines() if s]
    runs = "\n".join(("run_as_nobody " if s.split()[0][2:] in NOT_AS_ROOT else "run ") + s for s in wanted)
    seen = in_guest(f"""
        mkdir -m 777 work && cd work
        grep -m1 vendor_id /proc/cpuinfo
        run() {{
            start=$(cut -d" " -f1 /proc/uptime | tr -d .)
            timeout -s KILL {60 * TIME_SCALE:.0f} $as stress-ng --verify --timeout 10 "$@" > ../out 2>&1 < /dev/null
            status=$?
            echo "stress: $1 status $status in $((($(cut -d" " -f1 /proc/uptime | tr -d .) - start) * 10)) ms"
            grep -i -e fail -e error -e skipped -e 'not supported' -e unrec ../out
        }}
        printf '#!/usr/bin/perl\\n$( = $) = "65534 65534"; $< = $> = 65534; exec @ARGV;\\n' > /tmp/nobody && chmod 755 /tmp/nobody
        run_as_nobody() {{ as="env PERL_BADLANG=0 /tmp/nobody"; run "$@"; as=; }}
        {runs}
        dmesg | grep -e BUG -e Oops -e 'Call Trace' -e 'general protection.*kernel' -e 'segfault at .*libc'
        true
        """, *args, seconds=seconds)
    if os.environ.get("VERBOSE"):
        print(seen)
    problems = []
    results = re.findall(r"^stress: --(\S+) status (\d+) in \d+ ms\n((?:(?!stress: |vitro).*\n)*)", seen, re.M)
    for name, status, text in results:
        if name in INTEL and "GenuineIntel" not in seen and "not a recognised Intel CPU" in text:
            continue
        if status != "0" or re.search("fail|skipped|not supported|No stress workers", text, re.I):
            problems.append(f"{name}: status {status}, {text.strip()}")
    check(len(results) == len(wanted), f"{len(results)} results of {len(wanted)}: {seen[-1000:]}")
    check(not problems, "; ".join(problems))
    for word in ("Call Trace", "BUG:", "Oops"):
        check(word not in seen, seen[-2000:])


def test_cpu():
    stress(CPU, 400)


def test_memory():
    stress(MEMORY, 400)


def test_processes():
    stress(PROCESSES, 400)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/stress"))
