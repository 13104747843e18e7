/*
 * pv_native.c - Vitro's own ABI from inside a guest: what the calls do to a running machine. The checks of arguments are
 * tested without a guest, in tests/unit/test_native.c. docs/paravirt-abi.md, "Contract 2".
 */
#include "lib/guest.h"
#include "vitro/call.h"

#define VA ((volatile u64 *)0x8000000000ull) /* PML4 slot 1: nothing of the test library's */
#define PAGE_OF(i) ((volatile u64 *)((u64)VA + (u64)(i)*PAGE))

static s64 range(unsigned number, u64 space, const volatile void *va, u64 pa, u32 pages, u32 flags)
{
    static struct vt_range r __attribute__((aligned(32)));
    r = (struct vt_range){ .va = (u64)va, .pa = pa, .pages = pages, .flags = flags, .result = 99 };
    s64 done = vt_call3(number, space, &r, 1);
    return done < 0 ? done : r.result;
}

/* -- Finding and calling ------------------------------------------------------------------------------------------- */

USER_ASM(".globl user_vmcall\nuser_vmcall:\n\tmovl $0x56540000, %eax\n\tvmcall\n\tret");
USER_ASM(".globl user_vmmcall\nuser_vmmcall:\n\tmovl $0x56540020, %eax\n\tvmmcall\n\tret");
USER_ASM_32(".globl user_vmcall32\nuser_vmcall32:\n\tmovl $0x56540000, %eax\n\tvmcall\n\tret");
extern char user_vmcall[], user_vmmcall[], user_vmcall32[];

static void calling(void)
{
    u32 base = vt_find();
    report("the signature is there", base != 0);
    report_eq("version", vt_version(base), VT_VERSION);
    u32 want = VT_FEATURE_SYSTEM | VT_FEATURE_MEMORY | VT_FEATURE_BALLOON | VT_FEATURE_TIME | VT_FEATURE_EVENT | VT_FEATURE_VCPU;
    report_eq("features", vt_features(base) & want, want);
    report_eq("NOP", (u64)vt_call0(VT_NOP), 0);
    report_eq("no such call", (u64)vt_call0(0x5555), (u64)-VT_ENOCALL);
    report_eq("ring 3 may not: fast call", user_call(user_vmcall, 0, 0, 0), (u64)-VT_EPERM);
    report_eq("ring 3 may not: slow call", user_call(user_vmmcall, 0, 0, 0), (u64)-VT_EPERM);
    user_call32(user_vmcall32, 0);
    report_eq("compatibility mode may not", (u32)trap.r.rax, (u32)-VT_EPERM);

    u64 rax = VT_BASE + VT_EVENT_BIND, before = 0, after = 0, kept;
    register u64 r12 asm("r12") = 0x1212121212121212;
    register u64 r10 asm("r10") = 0x1010101010101010;
    asm volatile("movl $5, %%edi\n\tmovl $0, %%esi\n\tstc\n\tpushfq\n\tpopq %[b]\n\tvmcall\n\tpushfq\n\tpopq %[a]"
                 : "+a"(rax), [b] "=&r"(before), [a] "=&r"(after), "+r"(r12), "+r"(r10)
                 :
                 : "rdi", "rsi", "memory", "cc");
    kept = r12 ^ 0x1212121212121212 ^ r10 ^ 0x1010101010101010;
    report("registers and flags stay", rax == 0 && before == after && !kept);

    static struct vt_call m[3] __attribute__((aligned(64)));
    m[0] = (struct vt_call){ .number = VT_NOP, .result = 99 };
    m[1] = (struct vt_call){ .number = VT_EVENT_BIND, .arg = { VT_PORTS } };
    report_eq("a multicall says which failed", (u64)vt_call3(VT_MULTI, m, 3, 0), 1);
    report("and how", m[0].result == 0 && m[1].result == -VT_EINVAL);
}

/* -- Mappings do what they say ------------------------------------------------------------------------------------------ */

static void mapping(void)
{
    u64 a = page_alloc(), b = page_alloc();
    *(u64 *)a = 0xaaaa;
    *(u64 *)b = 0xbbbb;
    report_eq("no tables yet: ENOMEM", (u64)range(VT_MAP, 0, VA, a, 1, VT_W), (u64)-VT_ENOMEM);
    report_eq("tables given", (u64)vt_call2(VT_TABLES_GIVE, pages_alloc(32, PAGE), 32), 0);
    TRY("movq (%0), %%rax", ::"r"(VA) : "rax", "memory");
    report("before: #PF", trap.vec == PF);
    report_eq("map", (u64)range(VT_MAP, 0, VA, a, 1, VT_W), 0);
    report_eq("read through it", *VA, 0xaaaa);
    *VA = 0xa1;
    report_eq("write through it", *(u64 *)a, 0xa1);
    report_eq("map again: EEXIST", (u64)range(VT_MAP, 0, VA, b, 1, VT_W), (u64)-VT_EEXIST);
    report_eq("and nothing changed", *VA, 0xa1);
    report_eq("replace", (u64)range(VT_MAP, 0, VA, b, 1, VT_W | VT_REPLACE), 0);
    report_eq("the other frame is there at once", *VA, 0xbbbb);
    *VA = 0xb1;
    report_eq("protect", (u64)range(VT_PROTECT, 0, VA, 0, 1, 0), 0);
    TRY("movq %%rax, (%0)", ::"r"(VA) : "memory");
    report("a write is #PF", faulted(PF_P | PF_W, VA));
    report_eq("a read is not", *VA, 0xb1);
    TRY("call *%0", ::"r"(VA) : "rax", "memory");
    report("without VT_X running it is #PF", faulted(PF_P | PF_I, VA));
    report_eq("for user too", (u64)range(VT_PROTECT, 0, VA, 0, 1, VT_U | VT_W), 0);
    report_eq("ring 3 reads it", *VA, 0xb1);
    report_eq("unmap", (u64)range(VT_UNMAP, 0, VA, 0, 1, 0), 0);
    TRY("movq (%0), %%rax", ::"r"(VA) : "rax", "memory");
    report("#PF", faulted(0, VA));

    /* Many pages: touched, unmapped in one call, none is left over */
    u64 frames = pages_alloc(200, PAGE);
    report_eq("map 200", (u64)range(VT_MAP, 0, VA, frames, 200, VT_W), 0);
    for (unsigned i = 0; i < 200; i++)
        *PAGE_OF(i) = i;
    report_eq("unmap 200", (u64)range(VT_UNMAP, 0, VA, 0, 200, 0), 0);
    unsigned left = 0;
    for (unsigned i = 0; i < 200; i++)
        left += TRY("movq (%0), %%rax", ::"r"(PAGE_OF(i)) : "rax", "memory") != PF;
    report_eq("none is left", left, 0);

    /* Filling ahead sets A, and D for writes, and the data is right */
    report_eq("map and fill", (u64)range(VT_MAP, 0, VA, frames, 16, VT_W | VT_FILL), 0);
    u64 pte = *pt_entry(PAGE_OF(3), 1);
    report("A and D are set", (pte & (PTE_A | PTE_D)) == (PTE_A | PTE_D));
    report_eq("the data is right", *PAGE_OF(3), 3);
    range(VT_UNMAP, 0, VA, 0, 16, 0);
    range(VT_MAP, 0, VA, frames, 16, VT_W);
    report_eq("populate for reading", (u64)range(VT_POPULATE, 0, VA, 0, 16, 0), 0);
    pte = *pt_entry(PAGE_OF(3), 1);
    report("A is set, D is not", (pte & (PTE_A | PTE_D)) == PTE_A);
    *PAGE_OF(3) = 33;
    report("the first write sets D", *pt_entry(PAGE_OF(3), 1) & PTE_D);
    /* The guest's own edit, and Vitro's flush */
    *pt_entry(PAGE_OF(4), 1) = 0;
    report_eq("flush", (u64)range(VT_FLUSH, 0, PAGE_OF(4), 0, 1, 0), 0);
    TRY("movq (%0), %%rax", ::"r"(PAGE_OF(4)) : "rax", "memory");
    report("the guest's own edit counts", faulted(0, PAGE_OF(4)));
    range(VT_UNMAP, 0, VA, 0, 16, 0);

    u64 big = pages_alloc(512, PAGE2);
    report_eq("a 2 MiB page", (u64)range(VT_MAP, 0, VA + PAGE2 / 8, big, 512, VT_W | VT_LARGE), 0);
    VA[PAGE2 / 8 + 5] = 55;
    report_eq("it is there", ((u64 *)big)[5], 55);
    range(VT_UNMAP, 0, VA + PAGE2 / 8, 0, 512, 0);
    TRY("movq (%0), %%rax", ::"r"(VA + PAGE2 / 8 + 5) : "rax", "memory");
    report("and is gone", trap.vec == PF);
}

/* -- Code --------------------------------------------------------------------------------------------------------------- */

static u32 run(const volatile void *at)
{
    u32 r;
    asm volatile("call *%1" : "=a"(r) : "r"(at) : "memory");
    return r;
}
static void put_code(u64 page, u32 value) /* mov eax, value; ret */
{
    u8 *p = (u8 *)page;
    p[0] = 0xb8;
    memcpy(p + 1, &value, 4);
    p[5] = 0xc3;
}

static void code(void)
{
    u64 a = page_alloc(), b = page_alloc();
    put_code(a, 111);
    put_code(b, 222);
    range(VT_MAP, 0, VA, a, 1, VT_X);
    report_eq("code runs", run(VA), 111);
    range(VT_MAP, 0, VA, b, 1, VT_X | VT_REPLACE);
    report_eq("replaced: the new code runs", run(VA), 222);
    range(VT_MAP, 0, VA, a, 1, VT_X | VT_REPLACE);
    report_eq("and back", run(VA), 111);
    /* A page of code given to the host, and taken back */
    struct vt_extent x = { .pa = a, .pages = 1 };
    report_eq("code into the balloon", (u64)vt_call2(VT_BALLOON_GIVE, &x, 1), 1);
    report_eq("it is zeroes", *(volatile u64 *)a, 0);
    report_eq("taken back", (u64)vt_call2(VT_BALLOON_TAKE, &x, 1), 1);
    put_code(a, 333);
    report_eq("new code in the same page", run(VA), 333);
    /* Vitro writes where code was: the old code is gone */
    put_code(b, 444);
    report_eq("code again", run((void *)b), 444);
    vt_call1(VT_TIME_PAGE, b);
    put_code(b, 555);
    report_eq("after Vitro wrote there", run((void *)b), 555);
    range(VT_UNMAP, 0, VA, 0, 1, 0);
}

/* -- Spaces ----------------------------------------------------------------------------------------------------------------- */

static void spaces(void)
{
    u64 f1 = page_alloc(), f2 = page_alloc(), own = RD(cr3);
    *(u64 *)f1 = 1;
    *(u64 *)f2 = 2;
    for (unsigned pcide = 0; pcide < 2; pcide++) {
        WR(cr4, pcide ? RD(cr4) | CR4_PCIDE : RD(cr4) & ~CR4_PCIDE);
        s64 a = vt_call2(VT_SPACE_CREATE, 0, 1), b = vt_call2(VT_SPACE_CREATE, 0, 1);
        reportf(a > 0 && b > 0 && a != b, "two spaces, PCIDs %s", pcide ? "on" : "off");
        range(VT_MAP, (u64)a, VA, f1, 1, VT_W);
        range(VT_MAP, (u64)b, VA, f2, 1, VT_W);
        vt_call1(VT_SPACE_SWITCH, a);
        u64 in_a = *VA;
        vt_call1(VT_SPACE_SWITCH, b);
        u64 in_b = *VA;
        vt_call1(VT_SPACE_SWITCH, a);
        report("each has its own page", in_a == 1 && in_b == 2 && *VA == 1);
        report_eq("CR3 says so", RD(cr3), (u64)vt_call1(VT_SPACE_ROOT, a) | (pcide ? (u64)a : 0));
        /* Unmapping in the space that is not current */
        range(VT_UNMAP, (u64)b, VA, 0, 1, 0);
        vt_call1(VT_SPACE_SWITCH, b);
        TRY("movq (%0), %%rax", ::"r"(VA) : "rax", "memory");
        report("unmapped from outside", trap.vec == PF);
        report_eq("the current one is busy", (u64)vt_call1(VT_SPACE_DESTROY, b), (u64)-VT_EBUSY);
        /* A number that is used again must not find the old translations */
        report_eq("destroy the other", (u64)vt_call1(VT_SPACE_DESTROY, a), 0);
        s64 c = vt_call2(VT_SPACE_CREATE, 0, 1);
        report_eq("the number is used again", (u64)c, (u64)a);
        vt_call1(VT_SPACE_SWITCH, c);
        TRY("movq (%0), %%rax", ::"r"(VA) : "rax", "memory");
        report("and is empty", trap.vec == PF);
        WR(cr3, own);
        vt_call1(VT_SPACE_DESTROY, b);
        vt_call1(VT_SPACE_DESTROY, c);
    }
    WR(cr4, RD(cr4) & ~CR4_PCIDE);
}

/* -- Events and time ------------------------------------------------------------------------------------------------------- */

static struct vt_events *events;
static volatile unsigned calls;
static volatile u64 seen;
static void upcall(struct regs *r)
{
    calls++;
    __atomic_store_n(&events->vcpu[0].upcall, 0, __ATOMIC_SEQ_CST);
    seen |= __atomic_exchange_n(&events->pending[0], 0, __ATOMIC_SEQ_CST);
}

static void event(void)
{
    events = (void *)page_alloc();
    trap_handle(0x60, upcall);
    report_eq("no page: ENOENT", (u64)vt_call1(VT_EVENT_SEND, 3), (u64)-VT_ENOENT);
    report_eq("event page", (u64)vt_call1(VT_EVENT_PAGE, events), 0);
    report_eq("vector", (u64)vt_call2(VT_EVENT_VECTOR, 0, 0x60), 0);
    cli();
    vt_call1(VT_EVENT_SEND, 3);
    vt_call1(VT_EVENT_SEND, 5);
    report("held back while IF is 0", !calls && events->pending[0] == (BIT(3) | BIT(5)));
    sti();
    asm volatile("nop");
    cli();
    report("one upcall for both", calls == 1 && seen == (BIT(3) | BIT(5)));
    calls = 0;
    sti();
    vt_call1(VT_EVENT_SEND, 7); /* taken before the next instruction */
    unsigned at_once = calls;
    cli();
    report_eq("with IF 1 at once", at_once, 1);
    events->mask[0] = BIT(9);
    calls = 0;
    sti();
    vt_call1(VT_EVENT_SEND, 9);
    cli();
    report("masked: pending only", !calls && events->pending[0] == BIT(9));
    events->mask[0] = events->pending[0] = 0;

    struct vt_time *t = (void *)(page_alloc() + 64);
    report_eq("time page", (u64)vt_call1(VT_TIME_PAGE, t), 0);
    /* Two readings, each between two of the TSC: the difference is right whatever the host does meanwhile. */
    u64 t0 = rdtsc(), a = vt_mono_ns(t), t1 = rdtsc();
    while (rdtsc() - t1 < (u64)t->tsc_khz * 20)
        ;
    u64 t2 = rdtsc(), d = vt_mono_ns(t) - a, t3 = rdtsc();
    report("the time is the TSC's", d + 10 >= (t2 - t1) * 1000000 / t->tsc_khz && d <= (t3 - t0) * 1000000 / t->tsc_khz + 10);
    report("wall time is after 2024", vt_wall_ns(t) > 1704067200ull * 1000000000);
    calls = 0;
    seen = 0;
    u64 due = vt_mono_ns(t) + 3000000;
    vt_call4(VT_TIMER_SET, 5, due, 0, 11);
    while (!seen)
        asm volatile("sti; hlt; cli" ::: "memory");
    report("a timer ends hlt, and is not early", seen == BIT(11) && vt_mono_ns(t) >= due);
    vt_call2(VT_EVENT_VECTOR, 0, 0);
    vt_call1(VT_EVENT_PAGE, 0);
}

int main(void)
{
    if (!vt_find()) {
        report("Vitro's signature", false);
        return 0;
    }
    calling();
    mapping();
    code();
    spaces();
    event();
    return 0;
}
