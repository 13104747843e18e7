/*
 * page_cross.c - accesses and instructions that lie across two pages: right bytes, right fault, and
 * no partial effect. The two pages are neighbours in linear space only.
 */
#include "lib/guest.h"

#define LO ((volatile u8 *)PAGE3)
#define HI (LO + PAGE)
#define RW (PTE_P | PTE_W | PTE_U)

static u64 lo_pa, hi_pa;

static void both(u64 lo_flags, u64 hi_flags)
{
    map(LO, lo_pa, lo_flags);
    map(HI, hi_pa, hi_flags);
}

static void fill(void)
{
    for (unsigned i = 0; i < PAGE; i++) {
        ((u8 *)lo_pa)[i] = (u8)(i * 7 + 1);
        ((u8 *)hi_pa)[i] = (u8)(i * 13 + 5);
    }
}

static u8 want_byte(const volatile u8 *p)
{
    u64 i = (u64)p & (PAGE - 1);
    return p >= HI ? (u8)(i * 13 + 5) : (u8)(i * 7 + 1);
}

/* Nothing in either page differs from fill()'s pattern, except [p, p+n), which holds `with`. */
static bool only(const volatile u8 *p, unsigned n, const u8 *with)
{
    for (const volatile u8 *q = LO + PAGE - 80; q < HI + 80; q++) {
        u8 got = q >= HI ? ((u8 *)hi_pa)[q - HI] : ((u8 *)lo_pa)[q - LO];
        u8 want = with && q >= p && q < p + n ? with[q - p] : want_byte(q);
        if (got != want) {
            print("# byte at %p: got %x want %x (access %p + %u)\n", (void *)q, got, want,
                  (void *)p, n);
            return false;
        }
    }
    return true;
}

/* -- Loads and stores of every size -------------------------------------------------------------
 */

static u8 buf[64] __attribute__((aligned(64))), pattern[64] __attribute__((aligned(64)));

typedef unsigned access_t(const volatile u8 *p);
#define ACCESS(name, load, store)                                                                  \
    static unsigned load_##name(const volatile u8 *p)                                              \
    {                                                                                              \
        return TRY(load, ::"r"(p), "r"(buf) : "rax", "memory");                                    \
    }                                                                                              \
    static unsigned store_##name(const volatile u8 *p)                                             \
    {                                                                                              \
        return TRY(store, ::"r"(p), "r"(pattern) : "rax", "memory");                               \
    }
ACCESS(2, "movw (%0), %%ax; movw %%ax, (%1)", "movw (%1), %%ax; movw %%ax, (%0)")
ACCESS(4, "movl (%0), %%eax; movl %%eax, (%1)", "movl (%1), %%eax; movl %%eax, (%0)")
ACCESS(8, "movq (%0), %%rax; movq %%rax, (%1)", "movq (%1), %%rax; movq %%rax, (%0)")
ACCESS(16, "movups (%0), %%xmm1; movups %%xmm1, (%1)", "movups (%1), %%xmm1; movups %%xmm1, (%0)")
ACCESS(32, "vmovups (%0), %%ymm1; vmovups %%ymm1, (%1)",
       "vmovups (%1), %%ymm1; vmovups %%ymm1, (%0)")
ACCESS(64, "vmovups (%0), %%zmm1; vmovups %%zmm1, (%1)",
       "vmovups (%1), %%zmm1; vmovups %%zmm1, (%0)")
ACCESS(10, "fldt (%0); fstpt (%1)", "fldt (%1); fstpt (%0)")
static const struct {
    unsigned size;
    access_t *load, *store;
} sizes[] = {
    {2, load_2, store_2},    {4, load_4, store_4},    {8, load_8, store_8},
    {16, load_16, store_16}, {32, load_32, store_32}, {64, load_64, store_64},
    {10, load_10, store_10},
};

static void enable_vectors(unsigned *max)
{
    *max = 16;
    if (!has(HAS_XSAVE) || !has(HAS_AVX))
        return;
    WR(cr4, RD(cr4) | CR4_OSXSAVE);
    u32 want = 7;
    *max = 32;
    if (has(HAS_AVX512F)) {
        want = 0xe7;
        *max = 64;
    }
    asm volatile("xsetbv" ::"a"(want), "d"(0), "c"(0));
}

static void loads_stores(void)
{
    unsigned max;
    enable_vectors(&max);
    for (unsigned i = 0; i < 64; i++)
        pattern[i] = (u8)(0x80 + i);
    pattern[7] = 0x80; /* also a valid 80-bit number: bit 63 is set, so that fld keeps it */
    for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
        unsigned n = sizes[i].size;
        if (n > max) {
            skip(n == 32 ? "32 bytes" : "64 bytes", "not on this CPU");
            continue;
        }
        bool load = true, store = true, faults = true, clean = true, first = true, ro = true;
        fill();
        for (unsigned before = 1; before < n; before++) {
            const volatile u8 *p = HI - before;
            both(RW, RW);
            if (n != 10) { /* fld normalizes what the fill pattern happens to be */
                load &= sizes[i].load(p) == VEC_NONE;
                for (unsigned k = 0; k < n; k++)
                    load &= buf[k] == want_byte(p + k);
            }
            store &= sizes[i].store(p) == VEC_NONE && only(p, n, pattern);
            fill();
            fill();
            both(RW, 0);
            faults &= sizes[i].load(p) == PF && faulted(0, HI);
            clean &= sizes[i].store(p) == PF && faulted(PF_W, HI) && only(p, n, NULL);
            fill();
            both(RW, PTE_P | PTE_U);
            ro &= sizes[i].store(p) == PF && faulted(PF_W | PF_P, HI) && only(p, n, NULL);
            fill();
            both(0, RW);
            first &= sizes[i].load(p) == PF && faulted(0, p);
            first &= sizes[i].store(p) == PF && faulted(PF_W, p) && only(p, n, NULL);
            both(0, 0);
            first &= sizes[i].store(p) == PF && faulted(PF_W, p);
            asm volatile("fninit");
            fill();
        }
        reportf(load, "%u bytes: load", n);
        reportf(store, "%u bytes: store", n);
        reportf(faults, "%u bytes: load, second page absent", n);
        reportf(clean, "%u bytes: store, second page absent, nothing written", n);
        reportf(ro, "%u bytes: store, second page read-only, nothing written", n);
        reportf(first, "%u bytes: first page absent", n);
    }
}

/* -- Read-modify-write
 * ----------------------------------------------------------------------------- */

static unsigned rmw_add(volatile u8 *p)
{
    return TRY("addl $0x01010101, (%0)", ::"r"(p) : "memory", "cc");
}
static unsigned rmw_lock_add(volatile u8 *p)
{
    return TRY("lock addl $0x01010101, (%0)", ::"r"(p) : "memory", "cc");
}
static unsigned rmw_xchg(volatile u8 *p)
{
    u32 v = 0x01020304;
    return TRY("xchgl %1, (%0)", ::"r"(p), "r"(v) : "memory");
}
static unsigned rmw_cmpxchg(volatile u8 *p)
{
    return TRY("movl (%0), %%eax; lock cmpxchgl %1, (%0)", ::"r"(p), "r"(0x55667788)
               : "rax", "memory", "cc");
}
static unsigned rmw_cmpxchg8b(volatile u8 *p)
{
    return TRY(
        "movl (%0), %%eax; movl 4(%0), %%edx; mov $0x11111111, %%ebx; mov $0x22222222, %%ecx; lock cmpxchg8b (%0)",
        ::"r"(p)
        : "rax", "rbx", "rcx", "rdx", "memory", "cc");
}
static unsigned rmw_btsl(volatile u8 *p)
{
    return TRY("lock btsl $31, (%0)", ::"r"(p) : "memory", "cc");
}
static unsigned rmw_shl(volatile u8 *p)
{
    return TRY("shll $3, (%0)", ::"r"(p) : "memory", "cc");
}
static unsigned rmw_xadd(volatile u8 *p)
{
    u32 v = 5;
    return TRY("lock xaddl %1, (%0)", ::"r"(p), "r"(v) : "memory", "cc");
}

static void rmw(void)
{
    static const struct {
        const char *name;
        unsigned (*fn)(volatile u8 *);
        unsigned size;
    } ops[] = {
        {"add", rmw_add, 4},
        {"lock add", rmw_lock_add, 4},
        {"xchg", rmw_xchg, 4},
        {"lock cmpxchg", rmw_cmpxchg, 4},
        {"cmpxchg8b", rmw_cmpxchg8b, 8},
        {"lock bts", rmw_btsl, 4},
        {"shl", rmw_shl, 4},
        {"lock xadd", rmw_xadd, 4},
    };
    static u64 flat[4];
    for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
        bool ok = true, clean = true;
        for (unsigned before = 1; before < ops[i].size; before++) {
            volatile u8 *p = HI - before;
            fill();
            both(RW, RW);
            for (unsigned k = 0; k < 8; k++)
                ((u8 *)flat)[k] = want_byte(p + k);
            ops[i].fn((volatile u8 *)flat); /* the same on aligned memory */
            ok &= ops[i].fn(p) == VEC_NONE && only(p, 8, (u8 *)flat);
            fill();
            both(RW, PTE_P | PTE_U);
            clean &= ops[i].fn(p) == PF && faulted(PF_P | PF_W, HI) && only(p, 4, NULL);
            both(RW, 0);
            clean &= ops[i].fn(p) == PF && trap.cr2 == (u64)HI && only(p, 4, NULL);
        }
        reportf(ok, "%s across pages", ops[i].name);
        reportf(clean, "%s across pages, second one absent or read-only", ops[i].name);
    }
    both(RW, RW);
    report("lock cmpxchg16b across pages is #GP(0)", TRY("lock cmpxchg16b (%0)", ::"r"(HI - 8)
                                                         : "rax", "rdx", "memory") == GP &&
                                                         trapped(GP, 0));
    /* bt with a register: the bit is far from the address. */
    fill();
    both(RW, 0);
    report("bts reaches into the next page", TRY("btsq %1, (%0)", ::"r"(HI - 64), "r"(600ull)
                                                 : "memory", "cc") == PF &&
                                                 trap.cr2 == (u64)HI + 8);
    both(RW, RW);
    ((u8 *)hi_pa)[11] = 0;
    TRY("btsq %1, (%0)", ::"r"(HI - 64), "r"(600ull) : "memory", "cc");
    report_eq("and sets the right bit", ((u8 *)hi_pa)[11], 1);
    ((u8 *)lo_pa)[PAGE - 8] = 0;
    TRY("btsq %1, (%0)", ::"r"(HI), "r"(-64ull) : "memory", "cc");
    report_eq("a negative bit number goes to the page before", ((u8 *)lo_pa)[PAGE - 8], 1);
}

/* -- Stack
 * ------------------------------------------------------------------------------------------ */

KERNEL_ASM("stack_ret: ret");
extern char stack_ret[];

#define ON_STACK(rsp_value, code)                                                                  \
    TRY("movq %%rsp, %%rbx; movq %0, %%rsp; " code "; movq %%rsp, %%rcx; movq %%rbx, %%rsp",       \
        ::"r"(rsp_value)                                                                           \
        : "rax", "rbx", "rcx", "rdx", "memory")

static void stack(void)
{
    both(RW, RW);
    /* Faults need another stack. */
    static u8 fault_stack[4096] __attribute__((aligned(16)));
    tss.ist[5] = (u64)fault_stack + sizeof(fault_stack);
    idt_gate(PF, trap_stub(PF), KCS, 0, 14, 5);
    u8 value[8];
    u64 v = 0x1122334455667788;
    memcpy(value, &v, 8);
    bool push = true, pop = true, push_np = true, pop_np = true, call_np = true, ret_np = true,
         callret = true;
    for (unsigned before = 1; before < 8; before++) {
        volatile u8 *p = HI - before; /* where the 8 bytes start */
        fill();
        both(RW, RW);
        push &= ON_STACK(p + 8, "mov $0x1122334455667788, %%rax; push %%rax") == VEC_NONE &&
                only(p, 8, value);
        u64 got;
        asm volatile(
            "movq %%rsp, %%rbx; movq %1, %%rsp; pop %%rax; movq %%rbx, %%rsp; movq %%rax, %0"
            : "=m"(got)
            : "r"(p)
            : "rax", "rbx", "memory");
        pop &= got == v;
        callret &= ON_STACK(p + 8, "call stack_ret") == VEC_NONE;
        fill();
        both(RW, 0);
        push_np &= ON_STACK(p + 8, "push $1") == PF && faulted(PF_W, HI) &&
                   trap.r.rsp == (u64)p + 8 && only(p, 8, NULL);
        pop_np &= ON_STACK(p, "pop %%rax") == PF && faulted(0, HI) && trap.r.rsp == (u64)p;
        call_np &= ON_STACK(p + 8, "call stack_ret") == PF && faulted(PF_W, HI) &&
                   trap.r.rsp == (u64)p + 8 && only(p, 8, NULL);
        ret_np &= ON_STACK(p, "ret") == PF && faulted(0, HI) && trap.r.rsp == (u64)p;
        both(0, RW);
        push_np &= ON_STACK(p + 8, "push $1") == PF && faulted(PF_W, p) &&
                   trap.r.rsp == (u64)p + 8 && only(p, 8, NULL);
        pop_np &= ON_STACK(p, "pop %%rax") == PF && faulted(0, p) && trap.r.rsp == (u64)p;
        call_np &= ON_STACK(p + 8, "call *%%rdx") != VEC_NONE && trap.r.rsp == (u64)p + 8 &&
                   only(p, 8, NULL);
        ret_np &= ON_STACK(p, "ret $16") == PF && trap.r.rsp == (u64)p;
    }
    report("push", push);
    report("pop", pop);
    report("call and ret", callret);
    report("push, a page absent", push_np);
    report("pop, a page absent", pop_np);
    report("call, a page absent", call_np);
    report("ret, a page absent", ret_np);
    fill();
    both(RW, RW);
    report("pushw, pushf, enter, leave",
           ON_STACK(HI + 1, "pushw $0x1234; pushf; popf; popw %%ax") == VEC_NONE &&
               ON_STACK(HI + 3, "push %%rbp; enter $0, $0; leave; pop %%rbp") == VEC_NONE);
    /* push and pop with a memory operand: read from one place, write to another. */
    fill();
    both(RW, RW);
    bool ok = ON_STACK(HI + 4, "mov %0, %%rdx; pushq 40(%%rdx)") ==
              VEC_NONE; /* reads HI+44.., writes HI-4.. */
    u8 want[8];
    for (int i = 0; i < 8; i++)
        want[i] = want_byte(HI + 44 + i);
    report("push from memory onto a page boundary", ok && only(HI - 4, 8, want));
    fill();
    both(RW, 0);
    report("pop to memory: the store faults, RSP stays",
           ON_STACK(HI - 16, "popq 6(%%rsp)") == PF && faulted(PF_W, HI) &&
               trap.r.rsp == (u64)HI - 16 && only(HI, 1, NULL));
    idt_reset();
}

/* -- Instructions
 * ------------------------------------------------------------------------------------- */

static unsigned pages_mapped;
static void map_hi(struct regs *r)
{
    if (trap.cr2 == (u64)HI) {
        pages_mapped++;
        map(HI, hi_pa, RW);
    } else {
        try_rip ? (r->rip = try_rip, r->rsp = try_rsp) : 0;
    }
}

static unsigned run(const volatile u8 *p)
{
    return TRY("call *%0", ::"r"(p) : "rax", "rbx", "rcx", "rdx", "memory", "cc");
}

static void code(void)
{
    /* movabs $0x1122334455667788, %rax; ret */
    static const u8 movabs[] = {0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xc3};
    bool np = true, nx = true, user = true, retry = true, plain = true, end = true;
    for (unsigned before = 1; before < 10; before++) {
        volatile u8 *p = HI - before;
        for (unsigned i = 0; i < sizeof(movabs); i++)
            *(p + i >= HI ? (u8 *)hi_pa + (p + i - HI) : (u8 *)lo_pa + (p + i - LO)) = movabs[i];
        both(RW, RW);
        u64 v;
        asm volatile("call *%1" : "=a"(v) : "r"(p) : "memory");
        plain &= v == 0x1122334455667788;
        both(RW, 0);
        np &= run(p) == PF && faulted(PF_I, HI) && trap.r.rip == (u64)p;
        both(RW, RW | PTE_NX);
        nx &= run(p) == PF && faulted(PF_I | PF_P, HI) && trap.r.rip == (u64)p;
        both(RW, PTE_P | PTE_W);
        user_call((void *)p, 0, 0, 0);
        user &= faulted(PF_I | PF_P | PF_U, HI) && trap.r.rip == (u64)p;
        both(RW, 0);
        trap_handle(PF, map_hi);
        pages_mapped = 0;
        asm volatile("xor %%eax, %%eax; call *%1" : "=a"(v) : "r"(p) : "memory");
        retry &= v == 0x1122334455667788 && pages_mapped == 1;
        trap_handle(PF, NULL);
    }
    report("an instruction across pages", plain);
    report("its second page absent: #PF there, RIP at its start", np);
    report("its second page no-execute", nx);
    report("its second page not the user's", user);
    report("mapped by the handler, it runs", retry);

    both(RW, 0);
    u8 *last = (u8 *)lo_pa + PAGE;
    last[-1] = 0xc3;
    end &= run(HI - 1) == VEC_NONE;
    report("ret as the last byte of a page", end);
    last[-2] = 0x90;
    last[-1] = 0x90;
    report("falling off the end: #PF with RIP on the next page",
           run(HI - 2) == PF && faulted(PF_I, HI) && trap.r.rip == (u64)HI);
    last[-3] = 0x31; /* xor %eax, %eax; jnz +0 */
    last[-2] = 0xc0;
    last[-1] = 0x75;
    report("a branch across pages",
           run(HI - 3) == PF && faulted(PF_I, HI) && trap.r.rip == (u64)HI - 1);
    last[-4] = 0x31;
    last[-3] = 0xc0;
    last[-2] = 0x74; /* jz -4: to 0 bytes back... taken to the ret below */
    last[-1] = 0xfb;
    last[-5] = 0xc3;
    report("a taken branch as the last bytes of a page", run(HI - 4) == VEC_NONE);
    last[-1] = 0x0f;
    report("an escape byte as the last of a page",
           run(HI - 1) == PF && faulted(PF_I, HI) && trap.r.rip == (u64)HI - 1);
    last[-1] = 0x66;
    report("a prefix as the last of a page", run(HI - 1) == PF && faulted(PF_I, HI));
    /* A fault of data inside an instruction that crosses: mov (%rbx), %eax with disp32. */
    static const u8 load[] = {0x8b, 0x83, 0, 0x10, 0, 0, 0xc3};
    both(RW, RW);
    for (unsigned i = 0; i < sizeof(load); i++)
        *(i >= 3 ? (u8 *)hi_pa + i - 3 : last - 3 + i) = load[i];
    report("a data fault of an instruction across pages", TRY("call *%0", ::"r"(HI - 3), "b"(HI)
                                                              : "rax", "memory") == PF &&
                                                              faulted(0, HI + PAGE) &&
                                                              trap.r.rip == (u64)HI - 3);
    /* 16 bytes of prefixes across the boundary: #GP needs no 16th byte's page... which is there. */
    memset(last - 8, 0x66, 8);
    memset((u8 *)hi_pa, 0x66, 16);
    report("a too long instruction across pages is #GP(0)",
           run(HI - 8) == GP && trapped(GP, 0) && trap.r.rip == (u64)HI - 8);
}

/* -- Other things that cross
 * ------------------------------------------------------------------------------ */

static void others(void)
{
    fill();
    both(RW, RW);
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) g;
    asm volatile("sgdt (%0)" ::"r"(HI - 5) : "memory");
    for (unsigned i = 0; i < 10; i++)
        ((u8 *)&g)[i] = (HI - 5)[i];
    report("sgdt across pages", g.limit == sizeof(gdt) - 1 && g.base == (u64)gdt);
    asm volatile("lgdt (%0)" ::"r"(HI - 5) : "memory");
    report_eq("lgdt across pages", TRY("mov %0, %%fs", ::"r"(UDS)), VEC_NONE);
    asm volatile("mov %0, %%fs" ::"r"(0));
    fill();
    both(RW, 0);
    report("sgdt, second page absent", TRY("sgdt (%0)", ::"r"(HI - 5)
                                           : "memory") == PF &&
                                           faulted(PF_W, HI));
    report("fnstenv, second page absent", TRY("fnstenv (%0)", ::"r"(HI - 6)
                                              : "memory") == PF &&
                                              trap.cr2 == (u64)HI);
    fill();
    both(RW, RW);
    u8 *source = (u8 *)hi_pa + 100;
    u64 s = (u64)source, d = (u64)HI - 3, c = 1;
    asm volatile("movsq" : "+S"(s), "+D"(d)::"memory");
    report("movsq to a page boundary",
           s == (u64)source + 8 && d == (u64)HI + 5 && only(HI - 3, 8, source));
    fill();
    s = (u64)HI - 3;
    d = (u64)buf;
    asm volatile("rep movsq" : "+S"(s), "+D"(d), "+c"(c)::"memory");
    bool ok = c == 0;
    for (unsigned i = 0; i < 8; i++)
        ok &= buf[i] == want_byte(HI - 3 + i);
    report("rep movsq from a page boundary", ok);
    bool zf;
    s = (u64)HI - 3;
    asm volatile("mov %2, %%rdi; mov %3, %%rsi; cmpsq"
                 : "=@ccz"(zf), "+m"(s)
                 : "r"(buf), "r"(s)
                 : "rsi", "rdi", "memory");
    report("cmpsq across pages", zf);
    ok = true;
    for (unsigned i = 0; i < 64; i++)
        asm volatile(
            "pinsrw $3, (%0), %%xmm0; movhps (%0), %%xmm0; cvtsi2sdl (%0), %%xmm0; ucomiss (%0), %%xmm0" ::
                "r"(HI - 1)
            : "cc");
    report("small vector loads across pages", ok);
    if (has(HAS_XSAVE) && has(HAS_AVX)) {
        /* Masked-off lanes do not fault. */
        u32 mask[4] = {0x80000000, 0, 0, 0};
        both(RW, 0);
        unsigned v =
            TRY("vmovups (%1), %%xmm2; vmaskmovps (%0), %%xmm2, %%xmm1", ::"r"(HI - 4), "r"(mask)
                : "memory");
        report_eq("vmaskmovps: a masked lane on an absent page does not fault", v, VEC_NONE);
        v = TRY("vmovups (%1), %%xmm2; vmaskmovps %%xmm1, %%xmm2, (%0)", ::"r"(HI - 4), "r"(mask)
                : "memory");
        report_eq("vmaskmovps: nor in a store", v, VEC_NONE);
        mask[1] = 0x80000000;
        v = TRY("vmovups (%1), %%xmm2; vmaskmovps (%0), %%xmm2, %%xmm1", ::"r"(HI - 4), "r"(mask)
                : "memory");
        report("vmaskmovps: an enabled lane does", v == PF && trap.cr2 == (u64)HI);
        if (has(HAS_AVX512F)) {
            both(RW, 0);
            v = TRY("kmovw %1, %%k1; vmovups (%0), %%zmm1%{%%k1%}%{z%}", ::"r"(HI - 8), "r"(3)
                    : "memory");
            report_eq("AVX-512: masked lanes on an absent page do not fault", v, VEC_NONE);
            v = TRY("kmovw %1, %%k1; vmovups (%0), %%zmm1%{%%k1%}%{z%}", ::"r"(HI - 8), "r"(7)
                    : "memory");
            report("AVX-512: an enabled lane does", v == PF && trap.cr2 == (u64)HI);
        }
        if (cpuid(7, 0).ebx & BIT(5)) {
            static u32 idx[4] = {0, 1, 2, 3};
            u32 ones[4] = {~0u, ~0u, ~0u, ~0u};
            both(RW, 0);
            u32 left[4];
            v = TRY(
                "vmovups (%1), %%xmm2; vmovups (%2), %%xmm3; vpgatherdd %%xmm2, (%0,%%xmm3,4), %%xmm1",
                ::"r"(HI - 8), "r"(ones), "r"(idx)
                : "memory");
            asm volatile("vmovups %%xmm2, %0" : "=m"(left));
            report("vpgatherdd: faults on the absent lane", v == PF && faulted(0, HI));
            fill();
            both(RW, RW);
            v = TRY(
                "vmovups (%1), %%xmm2; vmovups (%2), %%xmm3; vpgatherdd %%xmm2, (%0,%%xmm3,4), %%xmm1; vmovups %%xmm1, (%3)",
                ::"r"(HI - 8), "r"(ones), "r"(idx), "r"(buf)
                : "memory");
            ok = v == VEC_NONE;
            for (unsigned i = 0; i < 16; i++)
                ok &= buf[i] == want_byte(HI - 8 + i);
            report("vpgatherdd across pages", ok);
        }
    }
}

int main(void)
{
    lo_pa = pages_alloc(3, PAGE);
    hi_pa = lo_pa + 2 * PAGE;
    loads_stores();
    rmw();
    stack();
    code();
    others();
    return 0;
}
