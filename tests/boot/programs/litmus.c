/*
 * litmus.c - what several x86 processors promise each other: memory order, locked operations wherever their operand
 * lies, code that one thread writes and others run, page-table changes seen by all, one time.
 *
 *   litmus THREADS [SCALE]
 *
 * Sources: SDM vol. 3 §8.1 (locked operations, cross-modifying code), §8.2.3 (the litmus tests' names are theirs or
 * the literature's). Prints `ok NAME ...` or `FAIL NAME ...` a line and, last, `litmus: N passed, M failed`.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static unsigned nr_threads = 2, scale = 10, passed, failed;

static void result(bool ok, const char *name, const char *fmt, ...)
{
    va_list ap;
    printf("%s %s ", ok ? "ok" : "FAIL", name);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
    ok ? passed++ : failed++;
}

/* -- Threads that start together ------------------------------------------------------------------- */

static struct { u32 at __attribute__((aligned(64))); u32 round; } gate;

/* All n threads wait here for each other; yields, since there may be more threads than processors. */
static void meet(unsigned n)
{
    u32 round = __atomic_load_n(&gate.round, __ATOMIC_SEQ_CST);
    if (__atomic_add_fetch(&gate.at, 1, __ATOMIC_SEQ_CST) == n) {
        gate.at = 0;
        __atomic_store_n(&gate.round, round + 1, __ATOMIC_SEQ_CST);
        return;
    }
    for (unsigned spins = 0; __atomic_load_n(&gate.round, __ATOMIC_SEQ_CST) == round; spins++)
        if (spins % 2000 == 1999)
            sched_yield();
        else
            __builtin_ia32_pause();
}

struct job { void (*run)(unsigned me, unsigned n); unsigned me, n; };
static void *job_thread(void *arg)
{
    struct job *j = arg;
    meet(j->n);
    j->run(j->me, j->n);
    return NULL;
}
static void together(unsigned n, void (*run)(unsigned me, unsigned n))
{
    pthread_t t[64];
    struct job j[64];
    for (unsigned i = 0; i < n; i++) {
        j[i] = (struct job){ run, i, n };
        if (pthread_create(&t[i], NULL, job_thread, &j[i])) {
            result(false, "pthread_create", "%s", strerror(errno));
            exit(1);
        }
    }
    for (unsigned i = 0; i < n; i++)
        pthread_join(t[i], NULL);
}

/* -- Memory order ----------------------------------------------------------------------------------- */

#define ROUNDS 64 /* rounds between meetings: each on memory of its own */
static struct { volatile u32 x __attribute__((aligned(64))); volatile u32 y __attribute__((aligned(64))); } loc[ROUNDS];
static u32 r[4][ROUNDS];
static enum { SB, SB_FENCED, SB_LOCKED, MP, LB, IRIW, WW } shape;
static u64 forbidden, relaxed;

static void store_x(unsigned i, u32 v) { loc[i].x = v; }
static void store_y(unsigned i, u32 v) { loc[i].y = v; }

static void shape_thread(unsigned me, unsigned n)
{
    for (unsigned k = 0; k < scale * 20; k++) {
        if (!me)
            for (unsigned i = 0; i < ROUNDS; i++)
                loc[i].x = loc[i].y = 0;
        meet(n);
        for (unsigned i = 0; i < ROUNDS; i++) {
            volatile u32 *mine = me ? &loc[i].y : &loc[i].x, *other = me ? &loc[i].x : &loc[i].y;
            switch (shape) {
            case SB:
                *mine = 1;
                r[me][i] = *other;
                break;
            case SB_FENCED:
                *mine = 1;
                asm volatile("mfence" ::: "memory");
                r[me][i] = *other;
                break;
            case SB_LOCKED: {
                u32 one = 1;
                asm volatile("xchg %0, %1" : "+r"(one), "+m"(*mine)::"memory");
                r[me][i] = *other;
                break;
            }
            case MP:
                if (!me) {
                    store_x(i, 1);
                    store_y(i, 1);
                } else {
                    r[0][i] = loc[i].y;
                    r[1][i] = loc[i].x;
                }
                break;
            case LB:
                r[me][i] = *other;
                *mine = 1;
                break;
            case WW: /* 2+2W: the last of each may not both be the first writer's */
                *mine = 1;
                *other = 2;
                break;
            case IRIW:
                if (me == 0) {
                    store_x(i, 1);
                } else if (me == 1) {
                    store_y(i, 1);
                } else if (me == 2) {
                    r[0][i] = loc[i].x;
                    r[1][i] = loc[i].y;
                } else {
                    r[2][i] = loc[i].y;
                    r[3][i] = loc[i].x;
                }
            }
        }
        meet(n);
        for (unsigned i = 0; !me && i < ROUNDS; i++) {
            bool both0 = !r[0][i] && !r[1][i];
            if (shape == SB)
                relaxed += both0;
            else if (shape == SB_FENCED || shape == SB_LOCKED)
                forbidden += both0;
            else if (shape == MP)
                forbidden += r[0][i] && !r[1][i];
            else if (shape == LB)
                forbidden += r[0][i] && r[1][i];
            else if (shape == WW)
                forbidden += loc[i].x == 1 && loc[i].y == 1;
            else
                forbidden += r[0][i] && !r[1][i] && r[2][i] && !r[3][i];
        }
        meet(n);
    }
}

static void test_order(void)
{
    static const char *const name[] = { "SB", "SB+mfence", "SB+xchg", "MP", "LB", "IRIW", "2+2W" };
    for (shape = SB; shape <= WW; shape++) {
        forbidden = relaxed = 0;
        memset(r, 0, sizeof r);
        together(shape == IRIW ? 4 : 2, shape_thread);
        result(!forbidden, name[shape], "forbidden %llu of %u", (unsigned long long)forbidden, scale * 20 * ROUNDS);
        if (shape == SB)
            printf("# SB: both zero, which is allowed, %llu times\n", (unsigned long long)relaxed);
    }
}

/* -- Locked operations -------------------------------------------------------------------------------- */

/* Pages that are neighbours here and not where they are kept: touched in another order. */
static u8 *pages(unsigned n)
{
    u8 *p = mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(p, n * 4096, MADV_NOHUGEPAGE);
    for (unsigned i = n; i-- > 0;) {
        volatile u8 *hole = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        p[(i * 7 % n) * 4096] = 0;
        *hole = 1;
    }
    return p;
}

static u8 *where;
static enum { INC, ADD, XADD, CMPXCHG, CMPXCHG8B, BTC, BTS_SPIN, XCHG_SPIN, NR_OPS } op;
static unsigned width;
static u64 plain; /* what a spin lock protects */
static unsigned ops_each;

static void locked_thread(unsigned me, unsigned n)
{
    u8 *p = where;
    for (unsigned i = 0; i < ops_each; i++) {
        u64 one = 1;
        switch (op) {
        case INC:
            if (width == 2) asm volatile("lock incw %0" : "+m"(*(u16 *)p)::"memory", "cc");
            else if (width == 4) asm volatile("lock incl %0" : "+m"(*(u32 *)p)::"memory", "cc");
            else asm volatile("lock incq %0" : "+m"(*(u64 *)p)::"memory", "cc");
            break;
        case ADD:
            if (width == 2) asm volatile("lock addw %w1, %0" : "+m"(*(u16 *)p) : "r"(one) : "memory", "cc");
            else if (width == 4) asm volatile("lock addl %k1, %0" : "+m"(*(u32 *)p) : "r"(one) : "memory", "cc");
            else asm volatile("lock addq %1, %0" : "+m"(*(u64 *)p) : "r"(one) : "memory", "cc");
            break;
        case XADD:
            if (width == 2) asm volatile("lock xaddw %w1, %0" : "+m"(*(u16 *)p), "+r"(one)::"memory", "cc");
            else if (width == 4) asm volatile("lock xaddl %k1, %0" : "+m"(*(u32 *)p), "+r"(one)::"memory", "cc");
            else asm volatile("lock xaddq %1, %0" : "+m"(*(u64 *)p), "+r"(one)::"memory", "cc");
            break;
        case CMPXCHG: {
            u8 done;
            do {
                u64 old = 0;
                memcpy(&old, p, width);
                u64 new = old + 1;
                if (width == 2) asm volatile("lock cmpxchgw %w2, %0; setz %1" : "+m"(*(u16 *)p), "=q"(done), "+r"(new), "+a"(old)::"memory", "cc");
                else if (width == 4) asm volatile("lock cmpxchgl %k2, %0; setz %1" : "+m"(*(u32 *)p), "=q"(done), "+r"(new), "+a"(old)::"memory", "cc");
                else asm volatile("lock cmpxchgq %2, %0; setz %1" : "+m"(*(u64 *)p), "=q"(done), "+r"(new), "+a"(old)::"memory", "cc");
            } while (!done);
            break;
        }
        case CMPXCHG8B: {
            u8 done;
            do {
                u64 old;
                memcpy(&old, p, 8);
                u64 new = old + 1;
                u32 a = (u32)old, d = (u32)(old >> 32);
                asm volatile("lock cmpxchg8b %0; setz %1" : "+m"(*(u64 *)p), "=q"(done), "+a"(a), "+d"(d)
                             : "b"((u32)new), "c"((u32)(new >> 32)) : "memory", "cc");
            } while (!done);
            break;
        }
        case BTC: { /* each thread flips bits of its own, by register offset: the helper's way */
            u64 bit = me * (width * 8 / n) % (width * 8);
            if (width == 2) asm volatile("lock btcw %w1, %0" : "+m"(*(u16 *)p) : "r"(bit) : "memory", "cc");
            else if (width == 4) asm volatile("lock btcl %k1, %0" : "+m"(*(u32 *)p) : "r"(bit) : "memory", "cc");
            else asm volatile("lock btcq %1, %0" : "+m"(*(u64 *)p) : "r"(bit) : "memory", "cc");
            break;
        }
        case BTS_SPIN: {
            u8 was;
            u64 bit = width * 8 - 1;
            for (unsigned spins = 0;; spins++) {
                if (width == 2) asm volatile("lock btsw %w2, %0; setc %1" : "+m"(*(u16 *)p), "=q"(was) : "r"(bit) : "memory", "cc");
                else if (width == 4) asm volatile("lock btsl %k2, %0; setc %1" : "+m"(*(u32 *)p), "=q"(was) : "r"(bit) : "memory", "cc");
                else asm volatile("lock btsq %2, %0; setc %1" : "+m"(*(u64 *)p), "=q"(was) : "r"(bit) : "memory", "cc");
                if (!was)
                    break;
                if (spins % 64 == 63)
                    sched_yield();
            }
            plain++;
            p[width - 1] = 0;
            break;
        }
        default: {
            u64 v;
            for (unsigned spins = 0;; spins++) {
                v = 1;
                if (width == 2) asm volatile("xchgw %w1, %0" : "+m"(*(u16 *)p), "+r"(v)::"memory");
                else if (width == 4) asm volatile("xchgl %k1, %0" : "+m"(*(u32 *)p), "+r"(v)::"memory");
                else asm volatile("xchgq %1, %0" : "+m"(*(u64 *)p), "+r"(v)::"memory");
                if (!(v & 1))
                    break;
                if (spins % 64 == 63)
                    sched_yield();
            }
            plain++;
            p[0] = 0;
        }
        }
    }
}

static void locked_at(u8 *p, const char *place, unsigned ops)
{
    static const char *const name[] = { "inc", "add", "xadd", "cmpxchg", "cmpxchg8b", "btc", "bts-lock", "xchg-lock" };
    where = p;
    ops_each = ops;
    for (op = INC; op < NR_OPS; op++)
        for (width = 2; width <= 8; width *= 2) {
            if (op == CMPXCHG8B && width != 8)
                continue;
            char label[64];
            memset(p, 0, width);
            plain = 0;
            together(nr_threads, locked_thread);
            u64 got = 0, want = (u64)nr_threads * ops;
            memcpy(&got, p, width);
            if (op == BTC)
                want = ops & 1 ? ~0ull : 0; /* even */
            if (op == BTS_SPIN || op == XCHG_SPIN)
                got = plain;
            else if (width < 8)
                want &= (1ull << width * 8) - 1;
            snprintf(label, sizeof label, "%s%u %s", name[op], width * 8, place);
            result(got == want, label, "%llu of %llu", (unsigned long long)got, (unsigned long long)want);
        }
}

static unsigned __int128 wide __attribute__((aligned(16)));
static void cmpxchg16b_thread(unsigned me, unsigned n)
{
    for (unsigned i = 0; i < 2000 * scale; i++) {
        u8 done;
        do {
            u64 lo = *(volatile u64 *)(void *)&wide, hi = *((volatile u64 *)(void *)&wide + 1);
            u64 nlo = lo + 1, nhi = hi + 3;
            asm volatile("lock cmpxchg16b %0; setz %1" : "+m"(wide), "=q"(done), "+a"(lo), "+d"(hi) : "b"(nlo), "c"(nhi) : "memory", "cc");
        } while (!done);
    }
}

/* Lanes of a store that are off are other threads' (AVX-512; each thread has the bytes that are its number modulo n). */
static u8 *lanes;
static u64 lane_errors;
__attribute__((target("avx512bw,avx512f"))) static void lanes_thread(unsigned me, unsigned n)
{
    u64 mask = 0;
    for (unsigned i = me; i < 64; i += n)
        mask |= 1ull << i;
    for (unsigned k = 0; k < 500 * scale; k++) {
        asm volatile("kmovq %1, %%k1\n\tvpbroadcastb %2, %%zmm0\n\tvmovdqu8 %%zmm0, (%0)%{%%k1%}"
                     : : "r"(lanes), "r"(mask), "r"(k) : "memory", "xmm0");
        for (unsigned i = me; i < 64; i += n)
            if (((volatile u8 *)lanes)[i] != (u8)k)
                __atomic_fetch_add(&lane_errors, 1, __ATOMIC_RELAXED);
    }
}

static void test_locked(void)
{
    static u8 line[256] __attribute__((aligned(64)));
    u8 *p = pages(8);
    locked_at(line + 64, "aligned", 3000 * scale);
    locked_at(line + 63, "across a line", 20 * scale);
    locked_at(p + 4096 - 1, "across a page", 20 * scale);
    wide = 0;
    together(nr_threads, cmpxchg16b_thread);
    u64 want = 2000ull * scale * nr_threads;
    result((u64)wide == want && (u64)(wide >> 64) == 3 * want, "cmpxchg16b", "%llu of %llu", (unsigned long long)(u64)wide, (unsigned long long)want);
    u32 a, b = 0, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 30 & 1)) {
        lanes = p + 2 * 4096 - 32;
        lane_errors = 0;
        together(nr_threads, lanes_thread);
        result(!lane_errors, "masked stores across a page", "%llu lanes lost", (unsigned long long)lane_errors);
    }
}

/* -- Code -------------------------------------------------------------------------------------------- */

static void serialize(void)
{
    u32 a = 0, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}

static u8 *code;
static volatile u32 published;
static u64 stale, calls;
static volatile bool stop;
typedef u32 (*fn)(void);

/* mov eax, imm32 (the immediate aligned); ret */
static void emit(u8 *at, u32 value)
{
    at[0] = 0x90; at[1] = 0x90; at[2] = 0x90;
    at[3] = 0xb8;
    memcpy(at + 4, &value, 4);
    at[8] = 0xc3;
}

/* Thread 0 changes an instruction's immediate by one store, then says so; the others serialize and must see it. */
static void patch_thread(unsigned me, unsigned n)
{
    if (!me) {
        for (u32 i = 1; i <= 2000 * scale; i++) {
            *(volatile u32 *)(code + 4) = i;
            published = i;
            if (i % 16 == 0)
                sched_yield();
        }
        stop = true;
        return;
    }
    u32 last = 0;
    while (!stop) {
        u32 said = published;
        serialize();
        u32 got = ((fn)code)();
        if (got < said || got < last)
            __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
        last = got;
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    }
}

/* The same without serializing: old or new, never anything else, and never back. */
static void patch_loose_thread(unsigned me, unsigned n)
{
    if (!me) {
        for (u32 i = 1; i <= 2000 * scale; i++)
            *(volatile u32 *)(code + 4) = (i & 0xff) * 0x01010101u;
        stop = true;
        return;
    }
    while (!stop) {
        u32 got = ((fn)code)();
        if (got != (got & 0xff) * 0x01010101u)
            __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    }
}

/* A whole function is written anew while the others wait; then all run it. */
static void rewrite_thread(unsigned me, unsigned n)
{
    for (u32 i = 1; i <= 30 * scale; i++) {
        if (i % n == me) {
            unsigned pad = i * 13 % 200;
            memset(code, 0x90, pad);
            emit(code + pad, i);
        }
        meet(n);
        serialize();
        if (((fn)code)() != i)
            __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
        meet(n);
    }
}

/* A JIT: functions one behind the other on fresh pages, each run by the others as soon as it is there. */
#define STREAM_PAGES 64
static u32 stream_nr;
static void stream_thread(unsigned me, unsigned n)
{
    if (!me) {
        for (u32 i = 0; i < stream_nr; i++) {
            u8 *at = code + i * 32;
            /* xor eax, eax; jz +2 (over what is not there yet); int3; int3; then the function */
            static const u8 head[] = { 0x31, 0xc0, 0x74, 0x04, 0xcc, 0xcc, 0xcc, 0xcc };
            memcpy(at, head, sizeof head);
            emit(at + 8, i + 1);
            __atomic_store_n(&published, i + 1, __ATOMIC_RELEASE);
        }
        stop = true;
        return;
    }
    u32 done = 0;
    while (!stop || done != published) {
        u32 there = __atomic_load_n(&published, __ATOMIC_ACQUIRE);
        if (done == there) {
            sched_yield();
            continue;
        }
        for (; done != there; done++) {
            if (((fn)(code + done * 32))() != done + 1)
                __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
            __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
        }
    }
}

/* Counters in the same page as code that runs, in the same line and another. */
static void beside_thread(unsigned me, unsigned n)
{
    for (u32 i = 0; i < 1000 * scale; i++) {
        asm volatile("lock incq %0" : "+m"(*(u64 *)(code + 48))::"memory", "cc");
        asm volatile("lock incq %0" : "+m"(*(u64 *)(code + 2048))::"memory", "cc");
        if (me == i % n && ((fn)code)() != 77)
            __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
    }
}

/* One thread lets pages be code and data in turn, another writes to them all the time: no store may be lost on the way,
 * and no old code be run after it was replaced. */
static void turns_thread(unsigned me, unsigned n)
{
    for (u32 i = 1; i <= 20 * scale; i++) {
        u8 *page = code + i % 8 * 4096;
        if (me)
            for (unsigned k = 0; k < 50; k++)
                asm volatile("lock incl %0" : "+m"(*(u32 *)(page + 1024 + 64 * me))::"memory", "cc");
        else
            emit(page, i);
        meet(n);
        serialize();
        if (((fn)page)() != i)
            __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
        meet(n);
        if (!me && i % 3 == 0)
            memset(page, 0, 1024); /* no code any more */
        meet(n);
    }
}

static void code_case(const char *name, void (*run)(unsigned, unsigned), unsigned npages)
{
    code = mmap(NULL, npages * 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    emit(code, 0);
    published = 0;
    stop = false;
    stale = calls = 0;
    together(nr_threads, run);
    result(!stale, name, "%llu stale of %llu calls", (unsigned long long)stale, (unsigned long long)calls);
}

static void test_code(void)
{
    code_case("patch an immediate, serialized", patch_thread, 1);
    code_case("patch an immediate, not serialized", patch_loose_thread, 1);
    code_case("rewrite a function", rewrite_thread, 1);
    stream_nr = STREAM_PAGES * 4096 / 32;
    for (unsigned i = 0; i < 1 + scale / 5; i++) {
        code_case("run what is being written", stream_thread, STREAM_PAGES);
        munmap(code, STREAM_PAGES * 4096);
    }
    code_case("code and data in turn", turns_thread, 8);
    u64 sum = 0, want = 0;
    for (unsigned p = 0; p < 8; p++)
        for (unsigned me = 1; me < nr_threads; me++)
            sum += *(u32 *)(code + p * 4096 + 1024 + 64 * me);
    want = (u64)(nr_threads - 1) * 50 * 20 * scale;
    result(sum == want, "data beside code that comes and goes", "%llu of %llu", (unsigned long long)sum, (unsigned long long)want);

    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    emit(code, 77);
    stale = 0;
    together(nr_threads, beside_thread);
    want = 1000ull * scale * nr_threads;
    result(!stale && *(u64 *)(code + 48) == want && *(u64 *)(code + 2048) == want, "counters beside code",
           "%llu and %llu of %llu", (unsigned long long)*(u64 *)(code + 48), (unsigned long long)*(u64 *)(code + 2048), (unsigned long long)want);
}

/* -- Page tables ----------------------------------------------------------------------------------------- */

static u8 *shared_page, *view;
static __thread sigjmp_buf fault_to;
static __thread bool fault_armed;
static u64 faults, late;

static void on_fault(int sig, siginfo_t *info, void *ctx)
{
    if (!fault_armed)
        _exit(9);
    siglongjmp(fault_to, 1);
}

/* Thread 0 takes the page away from the others, who write to it all the time: nothing may change after that. */
static enum { PROTECT_NONE, PROTECT_READ, REMAP } taking;
static int page_fd;
static void shootdown_thread(unsigned me, unsigned n)
{
    if (!me) {
        for (unsigned i = 0; i < 20 * scale; i++) {
            if (taking == REMAP)
                mmap(shared_page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            else
                mprotect(shared_page, 4096, taking == PROTECT_NONE ? PROT_NONE : PROT_READ);
            u64 before[8], after[8];
            memcpy(before, view, sizeof before);
            for (unsigned k = 0; k < 2000; k++)
                __builtin_ia32_pause();
            if (i % 8 == 0)
                sched_yield();
            memcpy(after, view, sizeof after);
            late += memcmp(before, after, sizeof before) != 0;
            if (taking == REMAP)
                mmap(shared_page, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, page_fd, 0);
            else
                mprotect(shared_page, 4096, PROT_READ | PROT_WRITE);
            for (unsigned k = 0; k < 500; k++)
                __builtin_ia32_pause();
        }
        stop = true;
        return;
    }
    volatile u64 *mine = (u64 *)shared_page + me % 8;
    fault_armed = true;
    while (!stop) {
        if (sigsetjmp(fault_to, 1)) {
            __atomic_fetch_add(&faults, 1, __ATOMIC_RELAXED);
            sched_yield();
            continue;
        }
        for (unsigned k = 0; k < 1000 && !stop; k++)
            *mine = *mine + 1;
    }
    fault_armed = false;
}

static void test_shootdown(void)
{
    static const char *const name[] = { "mprotect none", "mprotect read", "another page there" };
    struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
    sigaction(SIGSEGV, &sa, NULL);
    page_fd = memfd_create("litmus", 0);
    if (page_fd < 0 || ftruncate(page_fd, 4096)) {
        result(false, "memfd", "%s", strerror(errno));
        return;
    }
    for (taking = PROTECT_NONE; taking <= REMAP; taking++) {
        view = mmap(NULL, 4096, PROT_READ, MAP_SHARED, page_fd, 0);
        shared_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, page_fd, 0);
        faults = late = 0;
        stop = false;
        together(nr_threads, shootdown_thread);
        result(!late, name[taking], "%llu late writes, %llu faults", (unsigned long long)late, (unsigned long long)faults);
    }
    signal(SIGSEGV, SIG_DFL);
}

/* -- Kernel objects, time ---------------------------------------------------------------------------------- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static u64 under_mutex;
static unsigned turn;
static void mutex_thread(unsigned me, unsigned n)
{
    for (unsigned i = 0; i < 2000 * scale; i++) {
        pthread_mutex_lock(&mutex);
        under_mutex++;
        pthread_mutex_unlock(&mutex);
    }
    for (unsigned i = 0; i < 50 * scale; i++) { /* in turn */
        pthread_mutex_lock(&mutex);
        while (turn % n != me)
            pthread_cond_wait(&cond, &mutex);
        turn++;
        pthread_cond_broadcast(&cond);
        pthread_mutex_unlock(&mutex);
    }
}

static u32 ping;
static void futex_thread(unsigned me, unsigned n)
{
    if (me > 1)
        return;
    for (u32 i = 0; i < 200 * scale; i++) {
        u32 v;
        while ((v = __atomic_load_n(&ping, __ATOMIC_SEQ_CST)) != 2 * i + me)
            syscall(SYS_futex, &ping, FUTEX_WAIT_PRIVATE, v, NULL, NULL, 0);
        __atomic_store_n(&ping, v + 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &ping, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static u64 last_tsc __attribute__((aligned(64))), backwards;
static void tsc_thread(unsigned me, unsigned n)
{
    for (unsigned i = 0; i < 5000 * scale; i++) {
        u64 before = __atomic_load_n(&last_tsc, __ATOMIC_SEQ_CST);
        u32 lo, hi, aux;
        asm volatile("lfence; rdtscp; lfence" : "=a"(lo), "=d"(hi), "=c"(aux)::"memory");
        u64 now = (u64)hi << 32 | lo;
        if (now < before)
            __atomic_fetch_add(&backwards, 1, __ATOMIC_RELAXED);
        while (now > before && !__atomic_compare_exchange_n(&last_tsc, &before, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            ;
    }
}

static void test_kernel(void)
{
    together(nr_threads, mutex_thread);
    result(under_mutex == 2000ull * scale * nr_threads && turn == 50 * scale * nr_threads, "mutex and condition", "%llu, %u turns",
           (unsigned long long)under_mutex, turn);
    together(2, futex_thread);
    result(ping == 400 * scale, "futex", "%u", ping);
    together(nr_threads, tsc_thread);
    result(!backwards, "one TSC", "%llu times backwards", (unsigned long long)backwards);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        nr_threads = (unsigned)atoi(argv[1]);
    if (argc > 2)
        scale = (unsigned)atoi(argv[2]);
    if (nr_threads < 2 || nr_threads > 32 || !scale) {
        fprintf(stderr, "usage: litmus THREADS (2 to 32) [SCALE]\n");
        return 2;
    }
    alarm(300);
    test_order();
    test_locked();
    test_code();
    test_shootdown();
    test_kernel();
    printf("litmus: %u passed, %u failed\n", passed, failed);
    return failed != 0;
}
