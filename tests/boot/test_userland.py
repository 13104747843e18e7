#!/usr/bin/env python3
"""Debian's own programs in the guest, with results known beforehand: 32-bit programs, run-time
compilers, a C compiler, hashes and ciphers, the C library's string functions, Python's own tests.
"""
import re
import sys

from harness import TIME_SCALE, check, main
from userland import in_guest, programs


def lines(seen, pattern):
    return re.findall(pattern, seen, re.M)


# -- 32-bit programs -------------------------------------------------------------------------------------

M32 = "-m32 -w -idirafter /usr/include/x86_64-linux-gnu"


def test_32_bit_programs():
    seen = in_guest(f"""
        gcc {M32} -O2 -msse2 -static -o a /programs/user32.c -lm && ./a
        gcc {M32} -O1 -msse2 -mfpmath=sse -o b /programs/user32.c -lm && ./b && ./b
        gcc {M32} -O2 -march=pentium -static -o c /programs/compute.c -lm && ./c
        gcc {M32} -O3 -march=native -mfpmath=sse -o d /programs/compute.c -lm && ./d
        """, files=programs("user32.c", "compute.c"))
    results = lines(seen, r"^user32: .*")
    check(len(results) == 3 and all(re.fullmatch(r"user32: \d{3} passed, 0 failed", r) for r in results), seen[-1500:])
    check(lines(seen, r"^compute: .*") == 2 * [COMPUTE], seen[-500:])


# -- 64-bit programs -------------------------------------------------------------------------------------

def test_64_bit_programs():
    seen = in_guest("""
        gcc -w -O2 -pthread -o a /programs/user64.c && ./a && ./a
        gcc -w -O1 -static -pthread -o b /programs/user64.c && ./b
        """, files=programs("user64.c"))
    results = lines(seen, r"^user64: .*")
    check(len(results) == 3 and all(re.fullmatch(r"user64: \d{3} passed, 0 failed", r) for r in results), seen[-1500:])


# -- Run-time compilers ------------------------------------------------------------------------------------

LUA = ("17984\t351882\t67499775000.000 6718646468550548704ULL\tf99a3b46\t110,99915\t218908,596723\t"
       "5000050000\t196418\n")
NODE = ("196418 20000000000 1000 3 1533496 491b1445 e0c9742ae28a3bbe 2000 157799 56294 999 53413386613300 49 0 "
        "-1608452296 -1387838912\n")


def test_luajit():
    seen = in_guest("luajit /programs/jit.lua; luajit -O1 -Ohotloop=2 /programs/jit.lua; luajit -joff /programs/jit.lua",
                    files=programs("jit.lua"))
    check(seen.count(LUA) == 6, seen[-1500:])
    check(seen.count("false\tattempt to index local 't' (a nil value)") == 3, seen[-1500:])


def test_node():
    seen = in_guest("""
        node /programs/jit.js
        node --always-sparkplug --stress-concurrent-inlining /programs/jit.js
        node --stress-compaction --gc-interval=2000 -p "
            let a = []; for (let i = 0; i < 20000; i++) a[i % 100] = { x: i, y: [i] }; a[5].y[0]"
        """, files=programs("jit.js"))
    check(seen.count(NODE) == 2, seen[-1500:])
    check("19905" in seen, seen[-500:])


# -- A compiler, and what it makes ---------------------------------------------------------------------------

COMPUTE = "compute: 3b00cd8cc365a5c2"


def test_gcc():
    seen = in_guest("""
        for flags in -O0 -O2 '-O3 -march=native' '-O3 -march=native -mprefer-vector-width=512' \\
                     '-O3 -march=x86-64-v3' '-O2 -static -flto=1 -fuse-linker-plugin=0'; do
            case $flags in *lto*) flags='-O2 -static' ;; esac
            gcc $flags -Wall -o compute /programs/compute.c -lm && ./compute
        done
        printf 'int main(void) { return 6 * 7; }' > x.c && gcc -g -c x.c && gcc -o x x.o; ./x; echo "exit $?"
        """, files=programs("compute.c"))
    check(lines(seen, r"^compute: .*") == 6 * [COMPUTE], seen[-1500:])
    check("exit 42\n" in seen, seen[-500:])


# -- The C library's string functions --------------------------------------------------------------------------

HWCAPS = (
    "",
    "glibc.cpu.hwcaps=-AVX512VL,-AVX512BW",
    "glibc.cpu.hwcaps=-AVX512VL,-AVX512BW,Prefer_No_VZEROUPPER",
    "glibc.cpu.hwcaps=-AVX512VL,-AVX512BW,-AVX512F,-AVX2,-AVX_Fast_Unaligned_Load",
    "glibc.cpu.hwcaps=-AVX512VL,-AVX512F,-AVX2,-SSE4_2,-SSE4_1,-SSSE3,-AVX_Fast_Unaligned_Load",
    "glibc.cpu.hwcaps=-ERMS,-FSRM",
    "glibc.cpu.hwcaps=Prefer_ERMS,Prefer_FSRM",
    "glibc.cpu.hwcaps=-XSAVEC",
    "glibc.cpu.hwcaps=Prefer_No_AVX512_Probing,-BMI2,Slow_BSF",
    "glibc.cpu.x86_rep_movsb_threshold=2113:glibc.cpu.x86_rep_stosb_threshold=2112",
    "glibc.cpu.x86_non_temporal_threshold=16448",
)


def test_strings():
    runs = "\n".join(f"GLIBC_TUNABLES={t} ./strings || echo failed with {t}" for t in HWCAPS)
    seen = in_guest(f"gcc -w -O1 -fno-builtin -o strings /programs/strings.c\n{runs}\n", files=programs("strings.c"))
    check(len(lines(seen, r"^strings: \d+ checks passed$")) == len(HWCAPS), seen[-1500:])


# -- Hashes and ciphers --------------------------------------------------------------------------------------------

# openssl by its capability masks: all that the processor has, no AVX-512, no AVX2, no SHA or AES, nothing.
MASKS = ("", ":~0xc0230000", ":~0xe0230020", "~0x200000200000000:~0xe0230020", "0x0:0x0")
HASHES = {
    "sha256sum": "ee742129d6407cb31983477892d56d4a68108d740917f92a22752af0199e5c68",
    "md5": "7941aecbf4fe64f5",
    "sha1": "b8c9f7cbef66b450",
    "sha256": "ee742129d6407cb3",
    "sha512": "2b55b040953d5e14",
    "sha3-256": "c0c7b1a53f266641",
    "blake2b512": "cd7796f863002b4a",
    "aes-128-ctr": "25a59abec55760e2",
    "aes-256-cbc": "292bdf4dcfd9668f",
    "chacha20": "731e9dfe121b3bfd",
    "camellia-128-cbc": "b966bae7b3babf3e",
}


def test_hashes():
    per_mask = "".join(f"""
        export OPENSSL_ia32cap={mask}
        for h in md5 sha1 sha256 sha512 sha3-256 blake2b512; do
            echo mask {i} $h $(openssl dgst -$h big | sed 's/.*= *//' | head -c 16)
        done
        for c in aes-128-ctr aes-256-cbc chacha20 camellia-128-cbc; do
            k=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
            case $c in *128*) k=000102030405060708090a0b0c0d0e0f ;; esac
            echo mask {i} $c $(openssl enc -$c -K $k -iv 000102030405060708090a0b0c0d0e0f -in big | sha256sum | head -c 16)
        done
        """ for i, mask in enumerate(MASKS))
    seen = in_guest("""
        python3 -c 'import hashlib, sys; sys.stdout.buffer.write(hashlib.shake_128(b"vitro").digest(4 << 20))' > big
        echo /usr/bin/sha256sum $(/usr/bin/sha256sum big)
        echo /bin/sha256sum $(/bin/sha256sum big)
        gzip -1 -c big | gunzip | sha256sum
        /usr/bin/xz -0 -T1 -c big | /usr/bin/xz -dc | sha256sum
        """ + per_mask)
    check(seen.count(HASHES["sha256sum"]) == 4, seen[-2000:])
    for i, _ in enumerate(MASKS):
        for name, want in HASHES.items():
            if name != "sha256sum":
                check(f"mask {i} {name} {want}\n" in seen, f"{name} with mask {i}: {lines(seen, f'^mask {i} {name} .*')}")


def test_signatures():
    seen = in_guest("""
        exec 2>&1
        openssl genrsa -out k 2048 && openssl rsa -in k -check -noout && openssl rsa -in k -pubout -out kp
        openssl ecparam -genkey -name prime256v1 -noout -out e && openssl ec -in e -pubout -out ep
        openssl genpkey -algorithm x25519 -out x1 && openssl pkey -in x1 -pubout -out x1p
        openssl genpkey -algorithm x25519 -out x2 && openssl pkey -in x2 -pubout -out x2p
        for key in k e; do
            openssl dgst -sha256 -sign $key -out s /test && openssl dgst -sha256 -verify ${key}p -signature s /test
            openssl dgst -sha256 -verify ${key}p -signature s /etc/passwd
        done
        openssl pkeyutl -derive -inkey x1 -peerkey x2p | sha256sum > s1
        openssl pkeyutl -derive -inkey x2 -peerkey x1p | sha256sum > s2
        cmp s1 s2 && echo agreed
        openssl prime 170141183460469231731687303715884105727 170141183460469231731687303715884105729
        """)
    check("RSA key ok" in seen and seen.count("Verified OK") == 2 and "agreed" in seen, seen[-1500:])
    check(seen.count("Verification failure") == 2, seen[-1500:])
    check("7 (170141183460469231731687303715884105727) is prime" in seen.replace("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF", "7"), seen[-500:])


# -- Python's own tests ---------------------------------------------------------------------------------------------

PYTHON = ("test_float test_complex test_int test_cmath test_fractions test_struct test_array test_hashlib test_strtod "
          "test_re test_json test_mmap test_thread test_ctypes test_binascii test_memoryview test_generators "
          "test_marshal test_zlib test_bigmem test_random test_decimal")


def test_python():
    seen = in_guest(f"python3 -m test --timeout {60 * TIME_SCALE:.0f} {PYTHON} 2>&1", seconds=240)
    check(f"All {len(PYTHON.split())} tests OK." in seen, seen[-2500:])


# -- All of it by windows, from the first instruction on ------------------------------------------------------

def test_windows():
    seen = in_guest("""
        gcc -w -O2 -pthread -o a /programs/user64.c && ./a
        gcc -w -O1 -fno-builtin -o strings /programs/strings.c && ./strings
        gcc -O3 -march=native -Wall -o compute /programs/compute.c -lm && ./compute
        luajit /programs/jit.lua
        """, "--debug", "windows", files=programs("user64.c", "strings.c", "compute.c", "jit.lua"))
    check(re.search(r"^user64: \d{3} passed, 0 failed", seen, re.M), seen[-1500:])
    check(len(lines(seen, r"^strings: \d+ checks passed$")) == 1, seen[-1500:])
    check(COMPUTE in seen and seen.count(LUA) == 2, seen[-1500:])


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], "boot/userland"))
