/*
 * trap.c - descriptor tables, the trap dispatcher with its three ends (handler, recovery, out of
 * ring 3), and ring 3 itself. Intel SDM vol. 3 §6.14 (frames), §7.7 (TSS).
 */
#include "lib/guest.h"

u64 gdt[GDT_END / 8] __attribute__((aligned(16)));
u64 idt[512] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(16)));
volatile struct trap trap;
volatile u64 try_rip, try_rsp;
u64 user_krsp;
u64 boot_params_pa;
u8 ustack[USTACK_SIZE] UDATA __attribute__((aligned(4096))) = {0};

extern char trap_iret[];
static trap_handler *handlers[256];
static u8 df_stack[8192] __attribute__((aligned(16)));

struct dtr {
    u16 limit;
    u64 base;
} __attribute__((packed));

u64 seg_desc(u32 base, u32 limit, unsigned access, unsigned flags)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 |
           (u64)(limit >> 16 & 15) << 48 | (u64)flags << 52 | (u64)(base >> 24) << 56;
}

void gdt_set(unsigned sel, u64 desc)
{
    ((volatile u64 *)gdt)[sel >> 3] = desc;
}

void system_desc(unsigned sel, u64 base, u32 limit, unsigned access)
{
    gdt_set(sel, seg_desc((u32)base, limit, access, 0));
    gdt_set(sel + 8, base >> 32);
}

void ldt_load(void *base, u32 limit)
{
    system_desc(LDT_SEL, (u64)base, limit, 0x82);
    asm volatile("lldt %w0" ::"r"(LDT_SEL) : "memory");
}

void idt_gate(unsigned vec, void *entry, unsigned sel, unsigned dpl, unsigned type, unsigned ist)
{
    u64 e = (u64)entry;
    idt[2 * vec + 1] = e >> 32;
    idt[2 * vec] = (e & 0xffff) | (u64)sel << 16 | (u64)ist << 32 |
                   (u64)(0x80 | dpl << 5 | type) << 40 | (e >> 16 & 0xffff) << 48;
    barrier();
}

void idt_reset(void)
{
    for (unsigned v = 0; v < 256; v++)
        idt_gate(v, trap_stub(v), KCS, v == BP || v == OF || v == 0x80 || v == VEC_RETURN ? 3 : 0,
                 14, v == DF);
}

void trap_handle(unsigned vec, trap_handler *h)
{
    handlers[vec] = h;
}

void trap_clear(void)
{
    trap.vec = VEC_NONE;
    trap.r.vec = VEC_NONE;
    trap.r.err = ~0ull;
    trap.count = 0;
    barrier();
}

bool trapped(unsigned vec, u64 err)
{
    bool ok = trap.vec == vec && (vec == VEC_NONE || trap.r.err == err);
    if (!ok)
        print("# trap %x error %lx at %lx, want %x error %lx\n", trap.vec, trap.r.err, trap.r.rip,
              vec, err);
    return ok;
}

bool faulted(u64 err, const volatile void *va)
{
    bool ok = trapped(PF, err);
    if (ok && trap.cr2 != (u64)va) {
        print("# cr2 %lx, want %lx\n", trap.cr2, (u64)va);
        ok = false;
    }
    return ok;
}

void trap_dispatch(struct regs *r);
void trap_dispatch(struct regs *r)
{
    r->vec &= 0xff;
    u64 cr2 = r->vec == PF ? RD(cr2) : 0;
    u64 dr6 = r->vec == DB ? RD(dr6) : 0;
    trap.r = *r;
    trap.cr2 = cr2;
    trap.dr6 = dr6;
    trap.frame = (u64)&r->rip;
    trap.vec = (unsigned)r->vec;
    trap.count++;
    if (handlers[r->vec]) {
        handlers[r->vec](r);
        return;
    }
    if ((r->cs & 3) || r->rip == (u64)trap_iret)
        user_leave(); /* also when the way into ring 3 itself faults */
    if (try_rip) {
        r->rip = try_rip;
        r->rsp = try_rsp;
        r->cs = KCS;
        r->ss = KDS;
        r->rflags &= ~(u64)(FL_TF | FL_AC | FL_NT | FL_RF);
        return;
    }
    die("# unexpected trap %x error %lx rip %lx cs %lx rsp %lx rflags %lx cr2 %lx\n",
        (unsigned)r->vec, r->err, r->rip, r->cs, r->rsp, r->rflags, cr2);
}

/* -- Ring 3 --------------------------------------------------------------------------------- */

void user_regs(struct regs *r, const void *rip, bool compat)
{
    memset(r, 0, sizeof(*r));
    r->rip = (u64)rip;
    r->cs = compat ? UCS32 : UCS64;
    r->ss = UDS;
    r->rflags = EFLAGS_FIXED;
    r->rsp = (u64)ustack + sizeof(ustack) - 64;
}

unsigned user_run(struct regs *r)
{
    /* user_enter() pops it, so it is a stack for a moment, with room below for a fault of iretq. */
    static struct {
        u8 room[8192];
        struct regs r;
    } stack __attribute__((aligned(16)));
    stack.r = *r;
    trap_clear();
    user_enter(&stack.r);
    asm volatile("mov %0, %%ss; mov %0, %%ds; mov %0, %%es" ::"r"((u32)KDS) : "memory");
    return trap.vec;
}

static void user_push(struct regs *r, u64 value, unsigned size)
{
    bool smap = RD(cr4) & CR4_SMAP;
    if (smap)
        asm volatile("stac" ::: "memory");
    r->rsp -= size;
    memcpy((void *)r->rsp, &value, size);
    if (smap)
        asm volatile("clac" ::: "memory");
}

u64 user_call(const void *fn, u64 a, u64 b, u64 c)
{
    struct regs r;
    user_regs(&r, fn, false);
    r.rdi = a;
    r.rsi = b;
    r.rdx = c;
    user_push(&r, (u64)user_return, 8);
    user_run(&r);
    return trap.r.rax;
}

unsigned user_call32(const void *fn, u32 arg)
{
    struct regs r;
    user_regs(&r, fn, true);
    r.rax = arg;
    user_push(&r, (u64)user_return32, 4);
    return user_run(&r);
}

/* -- MSRs, CPUID ----------------------------------------------------------------------------- */

unsigned try_wrmsr(u32 msr, u64 v)
{
    return TRY("wrmsr", ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)));
}

unsigned try_rdmsr(u32 msr)
{
    return TRY("rdmsr", ::"c"(msr) : "rax", "rdx");
}

bool has(enum feature f)
{
    static const u32 leaf[4][2] = {{1, 0}, {7, 0}, {0x80000001u, 0}, {0xd, 1}};
    const u32 *l = leaf[f / 128];
    if (cpuid(l[0] & 0x80000000u, 0).eax < l[0])
        return false;
    struct cpuid c = cpuid(l[0], l[1]);
    u32 v[4] = {c.eax, c.ebx, c.ecx, c.edx};
    return v[f / 32 % 4] >> (f % 32) & 1;
}

bool on_tcg(void)
{
    return cpuid(0x40000000, 0).ebx == 0x54474354; /* "TCGT" */
}

bool cpu_is_intel(void)
{
    return cpuid(0, 0).ecx == 0x6c65746e; /* "ntel" */
}

/* -- Set-up ----------------------------------------------------------------------------------- */

void paging_setup(void);
void guest_setup(void);
void guest_setup(void)
{
    gdt_set(KCS, seg_desc(0, 0xfffff, 0x9b, 0xa));
    gdt_set(KDS, seg_desc(0, 0xfffff, 0x93, 0xc));
    gdt_set(UCS32 & ~3, seg_desc(0, 0xfffff, 0xfb, 0xc));
    gdt_set(UDS & ~3, seg_desc(0, 0xfffff, 0xf3, 0xc));
    gdt_set(UCS64 & ~3, seg_desc(0, 0xfffff, 0xfb, 0xa));
    gdt_set(UDS2 & ~3, seg_desc(0, 0xfffff, 0xf3, 0xc));
    gdt_set(KCS32, seg_desc(0, 0xfffff, 0x9b, 0xc));
    tss.iomap = offsetof(struct tss, bitmap);
    memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
    tss.ist[1] = (u64)df_stack + sizeof(df_stack);
    system_desc(TSS_SEL, (u64)&tss, sizeof(tss) - 1, 0x89);
    idt_reset();

    struct dtr g = {sizeof(gdt) - 1, (u64)gdt}, i = {sizeof(idt) - 1, (u64)idt};
    asm volatile("lgdt %0" ::"m"(g));
    reload_cs(KCS);
    asm volatile(
        "mov %0, %%ss; mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %1, %%gs" ::"r"((u32)KDS),
        "r"(0)
        : "memory");
    asm volatile("lidt %0" ::"m"(i));
    asm volatile("lldt %w0" ::"r"(0));
    asm volatile("ltr %w0" ::"r"(TSS_SEL) : "memory");
    paging_setup();
    pic_init();
}
