/*
 * interrupts.c - interrupts in awkward places, and the chips that send them.
 * Intel SDM vol. 3 §6.8 (masking), §10 (local APIC); Intel 8254, 8259A data sheets.
 */
#include "lib/guest.h"

static volatile unsigned hits[256];
static volatile u64 last_rip, last_rcx, last_rsi, last_rdi, last_rflags;
static volatile unsigned order[16], nr_order;

static void count(struct regs *r)
{
    hits[r->vec]++;
    last_rip = r->rip;
    last_rcx = r->rcx;
    last_rsi = r->rsi;
    last_rdi = r->rdi;
    last_rflags = r->rflags;
    if (nr_order < 16)
        order[nr_order++] = (unsigned)r->vec;
    if (r->vec >= 0x30)
        lapic_eoi();
    else if (r->vec >= 0x20)
        pic_eoi((unsigned)r->vec - 0x20);
}

static void reset(void)
{
    for (int i = 0; i < 256; i++)
        hits[i] = 0;
    nr_order = 0;
}

/* With interrupts on, give a pending one the time to come. */
#define PATIENCE 20000 /* ms: how long what must come may take on a busy host */
static bool wait_hit(unsigned vec, unsigned n, u64 ms)
{
    u64 end = rdtsc() + ms * tsc_per_ms();
    while (hits[vec] < n && rdtsc() < end)
        asm volatile("pause");
    return hits[vec] >= n;
}

/* -- Windows ------------------------------------------------------------------------------- */

KERNEL_ASM("w_sti: call raise_pending\n sti\nw_sti_1: nop\nw_sti_2: nop\n nop\n cli\n ret");
KERNEL_ASM("w_sticli: call raise_pending\n sti\n cli\n nop\n ret");
KERNEL_ASM("w_stisti: call raise_pending\n sti\n sti\nw_stisti_1: nop\n cli\n ret");
KERNEL_ASM(
    "w_stiss: mov %ss, %ebx\n call raise_pending\n sti\n mov %ebx, %ss\nw_stiss_1: nop\nw_stiss_2: nop\n cli\n ret");
KERNEL_ASM(
    "w_popf: call raise_pending\n pushf\n orl $0x200, (%rsp)\n popf\nw_popf_1: nop\n cli\n ret");
KERNEL_ASM(
    "w_iret: call raise_pending\n mov %rsp, %rax\n mov %ss, %ecx\n push %rcx\n push %rax\n pushf\n orl $0x200, (%rsp)\n"
    "mov %cs, %ecx\n push %rcx\n push $w_iret_1\n iretq\nw_iret_1: nop\n cli\n ret");
KERNEL_ASM("w_hlt: call raise_pending\n sti\n hlt\nw_hlt_1: cli\n ret");
KERNEL_ASM(
    "w_movss: call raise_pending\n mov %ss, %ecx\n pushf\n orl $0x200, (%rsp)\n popf\nw_movss_1: mov %ecx, %ss\nw_movss_2: nop\nw_movss_3: cli\n ret");
KERNEL_ASM(
    "w_stiret: call raise_pending\n call 1f\nw_stiret_1: nop\nw_stiret_2: cli\n ret\n1: sti\n ret");
void raise_pending(void);
void w_sti(void), w_sticli(void), w_stisti(void), w_stiss(void), w_popf(void), w_iret(void),
    w_hlt(void), w_movss(void), w_stiret(void);
extern char w_sti_1[], w_sti_2[], w_stisti_1[], w_stiss_1[], w_stiss_2[], w_popf_1[], w_iret_1[],
    w_hlt_1[], w_movss_1[], w_movss_2[], w_movss_3[], w_stiret_1[];

void __attribute__((used)) raise_pending(void)
{
    lapic_self_ipi(0x40);
    while (!(lapic_read(LAPIC_IRR + 0x20) & 1))
        ;
}

static bool window(void (*fn)(void), unsigned n, const char *at, const char *or_at)
{
    reset();
    /* Callee-saved registers are the snippets' to spoil. */
    asm volatile("call *%0" ::"r"(fn)
                 : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory",
                   "cc");
    bool ok = hits[0x40] == n && (!n || last_rip == (u64)at || last_rip == (u64)or_at);
    if (!ok)
        print("# %u hits, rip %lx, want %u at %lx\n", hits[0x40], last_rip, n, (u64)at);
    if (hits[0x40] < n || !n) { /* let the pending one go */
        sti();
        asm volatile("nop; nop");
        cli();
    }
    return ok;
}

/* The shadow of an sti is not where its translation ends: behind any number of instructions, and at the end of a page. */
static void shadows(void)
{
    u8 *buf = (u8 *)pages_alloc(4, PAGE);
    bool ok = true, at_end = true;
    for (unsigned n = 0; n < 128; n++) {
        bool end = n >= 64;
        u8 *code = end ? buf + PAGE - 1 - (n - 64) : buf + PAGE + n * 128, *p = code;
        for (unsigned i = 0; i < n % 64; i++)
            *p++ = 0x90;
        *p++ = 0xfb;
        const char *after = (char *)p + 1;
        static const u8 rest[] = { 0x90, 0x90, 0x90, 0xfa, 0xc3 }; /* nop; nop; nop; cli; ret */
        memcpy(p, rest, sizeof rest);
        for (unsigned round = 0; round < 3; round++) { /* translated, linked, as it stays */
            raise_pending();
            *(end ? &at_end : &ok) &= window((void (*)(void))code, 1, after, NULL);
        }
    }
    report("sti behind 0 to 63 instructions: one instruction of shadow", ok);
    report("sti that ends a page: the same", at_end);
}

static void windows(void)
{
    shadows();
    report("sti: one instruction of shadow", window(w_sti, 1, w_sti_2, NULL));
    report("sti, cli: no window", window(w_sticli, 0, NULL, NULL));
    report("and it comes when the window opens", hits[0x40] == 1);
    report("sti, sti: the second has no shadow of its own", window(w_stisti, 1, w_stisti_1, NULL));
    report("sti, mov ss: the shadow is not prolonged for ever",
           window(w_stiss, 1, w_stiss_1, w_stiss_2));
    report("popf: at once", window(w_popf, 1, w_popf_1, NULL));
    report("iretq: at once", window(w_iret, 1, w_iret_1, NULL));
    report("sti, hlt: wakes and goes on after hlt", window(w_hlt, 1, w_hlt_1, NULL));
    report("sti, ret: after the ret", window(w_stiret, 1, w_stiret_1, NULL));
    report("popf, mov ss", window(w_movss, 1, w_movss_1, w_movss_3));

    /* A pending interrupt stays pending however long IF is clear. */
    reset();
    raise_pending();
    for (volatile int i = 0; i < 100000; i++)
        ;
    report_eq("IF clear: nothing comes", hits[0x40], 0);
    sti();
    asm volatile("nop; nop");
    cli();
    report_eq("IF set: it does", hits[0x40], 1);
    report_eq("the frame has IF", last_rflags & FL_IF, FL_IF);
    reset();
    unsigned n = 0;
    for (int i = 0; i < 10000; i++) {
        lapic_self_ipi(0x40);
        asm volatile("sti; nop; nop; cli" ::: "memory");
        n += hits[0x40] == (unsigned)i + 1;
    }
    report_eq("10000 self-IPIs, each in its window", n, 10000);
}

/* -- Order and priority ------------------------------------------------------------------------ */

static u64 nested_ppr;
static void nest(struct regs *r)
{
    unsigned vec = (unsigned)r->vec;
    if (nr_order < 16)
        order[nr_order++] = vec;
    if (vec == 0x50) {
        lapic_self_ipi(0x55); /* same class: waits */
        lapic_self_ipi(0x45); /* lower: waits */
        lapic_self_ipi(0x65); /* higher: at once */
        sti();
        for (volatile int i = 0; i < 1000; i++)
            ;
        cli();
        nested_ppr = lapic_read(LAPIC_PPR);
        order[nr_order++] = 1;
    }
    hits[vec]++;
    lapic_eoi();
}

static void priorities(void)
{
    reset();
    lapic_self_ipi(0x45);
    lapic_self_ipi(0x65);
    lapic_self_ipi(0x55);
    lapic_self_ipi(0x56);
    lapic_self_ipi(0x56);
    sti();
    for (volatile int i = 0; i < 1000; i++)
        ;
    cli();
    report("pending ones come by priority, each once", nr_order == 4 && order[0] == 0x65 &&
                                                           order[1] == 0x56 && order[2] == 0x55 &&
                                                           order[3] == 0x45);
    trap_handle(0x50, nest);
    trap_handle(0x55, nest);
    trap_handle(0x45, nest);
    trap_handle(0x65, nest);
    reset();
    lapic_self_ipi(0x50);
    sti();
    for (volatile int i = 0; i < 1000; i++)
        ;
    cli();
    report("nesting by class", nr_order == 5 && order[0] == 0x50 && order[1] == 0x65 &&
                                   order[2] == 1 && order[3] == 0x55 && order[4] == 0x45);
    report_eq("PPR in the handler", nested_ppr, 0x50);
    report_eq("PPR after it", lapic_read(LAPIC_PPR), 0);
    for (unsigned v = 0x45; v <= 0x65; v += 0x10)
        trap_handle(v, count);
    trap_handle(0x50, count);

    reset();
    WR(cr8, 5);
    report("CR8 is TPR[7:4]", lapic_read(LAPIC_TPR) == 0x50 && RD(cr8) == 5);
    lapic_self_ipi(0x55);
    lapic_self_ipi(0x65);
    sti();
    for (volatile int i = 0; i < 1000; i++)
        ;
    report("CR8 holds its class back and lets the higher through",
           hits[0x65] == 1 && hits[0x55] == 0);
    WR(cr8, 4);
    asm volatile("nop; nop");
    report_eq("lowering CR8 lets it through", hits[0x55], 1);
    lapic_write(LAPIC_TPR, 0xf0);
    report_eq("TPR shows in CR8", RD(cr8), 15);
    lapic_self_ipi(0xe0);
    for (volatile int i = 0; i < 1000; i++)
        ;
    report_eq("TPR 0xf0 holds everything back", hits[0xe0], 0);
    lapic_write(LAPIC_TPR, 0);
    report("TPR 0 lets it through", wait_hit(0xe0, 1, PATIENCE));
    cli();
    report("CR8 with reserved bits is #GP(0)",
           TRY("mov %0, %%cr8", ::"r"(16ull)) == GP && trapped(GP, 0));
    report_eq("no request is left",
              lapic_read(LAPIC_IRR + 0x20) | lapic_read(LAPIC_IRR + 0x30) |
                  lapic_read(LAPIC_ISR + 0x20),
              0);
}

/* -- NMI ----------------------------------------------------------------------------------------
 */

static volatile unsigned nmis, nmi_depth, nmi_max;
static void on_nmi(struct regs *r)
{
    nmis++;
    if (++nmi_depth > nmi_max)
        nmi_max = nmi_depth;
    if (nmis == 1) {
        lapic_write(LAPIC_ICR, 0x44400); /* another while blocked */
        for (volatile int i = 0; i < 10000; i++)
            ;
    }
    nmi_depth--;
    last_rip = r->rip;
}

static void nmi(void)
{
    trap_handle(NMI, on_nmi);
    lapic_write(LAPIC_ICR2, lapic_read(LAPIC_ID));
    lapic_write(LAPIC_ICR, 0x4400); /* to this APIC by its id: NMI */
    for (volatile int i = 0; i < 100000 && nmis < 2; i++)
        ;
    report("NMI by self-IPI, with IF clear", nmis >= 1);
    report("an NMI in an NMI waits for iret", nmis == 2 && nmi_max == 1);
    trap_handle(NMI, NULL);
}

/* -- String instructions ------------------------------------------------------------------------
 */

KERNEL_ASM("rep_fn: nop\nrep_here: rep movsb\n ret");
extern char rep_here[];
enum { BIG = 4 << 20 };
static u8 *src, *dst;

/* An interrupt must be able to come in the middle; the registers in its frame then say how far. */
static void in_strings(void)
{
    src = (u8 *)pages_alloc(BIG / PAGE, PAGE);
    dst = (u8 *)pages_alloc(BIG / PAGE, PAGE);
    for (u64 i = 0; i < BIG; i += 8)
        *(u64 *)(src + i) = i * 0x9e3779b97f4a7c15ull;
    unsigned middle = 0, wrong = 0, bad_data = 0;
    trap_handle(0x40, count);
    for (unsigned round = 0; round < 20; round++) {
        reset();
        memset(dst, 0, BIG);
        lapic_write(LAPIC_TDCR, 0xb);
        lapic_write(LAPIC_LVTT, 0x40);
        lapic_write(LAPIC_TMICT, 20000 + round * 3000);
        u64 s = (u64)src, d = (u64)dst, c = BIG;
        sti();
        asm volatile("call rep_fn" : "+S"(s), "+D"(d), "+c"(c)::"memory");
        cli();
        if (hits[0x40] && last_rip == (u64)rep_here && last_rcx && last_rcx < BIG) {
            middle++;
            wrong += last_rsi != (u64)src + BIG - last_rcx || last_rdi != (u64)dst + BIG - last_rcx;
        }
        bad_data +=
            memcmp(src, dst, BIG) != 0 || c != 0 || s != (u64)src + BIG || d != (u64)dst + BIG;
        lapic_write(LAPIC_LVTT, 0x10000);
    }
    print("# %u of 20 interrupts came in the middle of rep movsb\n", middle);
    report_eq("rep movsb under interrupts copies right", bad_data, 0);
    report_eq("interrupted rep movsb: RSI, RDI, RCX agree", wrong, 0);

    /* 64 times 4 MiB with the timer running: the longest wait must be far below the whole. */
    reset();
    lapic_write(LAPIC_TDCR, 0xb);
    lapic_write(LAPIC_LVTT, 0x20040);
    lapic_write(LAPIC_TMICT, 1000000);
    sti();
    bool ok = true;
    for (int i = 0; i < 32; i++) {
        u64 d = (u64)dst, c = BIG / 8;
        asm volatile("rep stosq"
                     : "+D"(d), "+c"(c)
                     : "a"(0x0101010101010101ull * (u64)(i + 1))
                     : "memory");
        ok &= d == (u64)dst + BIG && !c && dst[0] == i + 1 && dst[BIG - 1] == i + 1 &&
              dst[BIG / 2] == i + 1;
    }
    cli();
    lapic_write(LAPIC_LVTT, 0x10000);
    report("rep stosq under a periodic timer", ok);
}
/* -- Timers
 * ---------------------------------------------------------------------------------------- */

/* The speaker is behind channel 2 (82371AB §4.2.12): bit 0 of port 0x61 is its gate, bit 1 lets it sound, bit 5 is its output. */
static void speaker(u64 ms)
{
    u8 rest = inb(0x61) & 0x0c;
    outb(0x61, rest | 3);
    report_eq("speaker: gate and data read back", inb(0x61) & 0x0f, rest | 3);
    outb(0x43, 0xb6); /* a square wave */
    outb(0x42, 1193 & 0xff);
    outb(0x42, 1193 >> 8);
    unsigned edges = 0, before = inb(0x61) & 0x20;
    for (u64 end = rdtsc() + 1000 * ms; edges < 40 && rdtsc() < end;) {
        unsigned now = inb(0x61) & 0x20;
        edges += now != before;
        before = now;
    }
    report_eq("speaker: a tone of 1 kHz goes up and down", edges, 40);
    outb(0x61, rest | 2);
    edges = 0;
    before = inb(0x61) & 0x20;
    for (u64 end = rdtsc() + 5 * ms; rdtsc() < end;)
        edges += (inb(0x61) & 0x20) != before;
    report("speaker: without the gate its output stays high", !edges && before);
    outb(0x43, 0xb0); /* one shot of 2 ms */
    outb(0x42, 2386 & 0xff);
    outb(0x42, 2386 >> 8);
    for (u64 end = rdtsc() + 5 * ms; rdtsc() < end;)
        ;
    bool waited = !(inb(0x61) & 0x20);
    outb(0x61, rest | 1);
    bool low = !(inb(0x61) & 0x20), high = false;
    for (u64 end = rdtsc() + 1000 * ms; !high && rdtsc() < end;)
        high = inb(0x61) & 0x20;
    report("speaker: a count waits for the gate", waited && (low || high) && high);
    outb(0x61, rest);
}

static void timers(void)
{
    u64 ms = tsc_per_ms();
    report("the TSC runs between 100 MHz and 10 GHz", ms > 100000 && ms < 10000000);

    reset();
    pic_unmask(0);
    pit_start(2, 11932); /* 100 Hz */
    sti();
    bool ok = wait_hit(0x20, 5, PATIENCE);
    u64 start, took;
    for (unsigned try = 0; try < 50; try++) { /* a busy host may be late: once it is not */
        unsigned first = hits[0x20];
        start = rdtsc();
        ok &= wait_hit(0x20, first + 10, PATIENCE);
        took = (rdtsc() - start) / ms;
        if (took < 300)
            break;
    }
    cli();
    report("PIT: periodic through the PIC", ok);
    print("# ten periods of 10 ms took %lu ms\n", took);
    report("PIT: about the right rate", took > 60 && took < 300);
    reset();
    pit_start(0, 11932);
    sti();
    ok = wait_hit(0x20, 1, PATIENCE);
    for (start = rdtsc(); rdtsc() - start < 50 * ms;)
        ;
    cli();
    report("PIT: one shot comes once", ok && hits[0x20] == 1);
    u16 a = 0, b = 0;
    for (unsigned try = 0; try < 50; try++) { /* it starts again after 55 ms: the host must not take the CPU away so long */
        pit_start(2, 0xffff);
        a = pit_read();
        for (start = rdtsc(); rdtsc() - start < ms;)
            ;
        b = pit_read();
        if (rdtsc() - start < 20 * ms)
            break;
    }
    report("PIT: the counter counts down", b < a && a - b > 500);
    pic_mask_all();
    reset();
    sti();
    for (start = rdtsc(); rdtsc() - start < 60 * ms;)
        ;
    cli();
    report_eq("PIT: masked in the PIC", hits[0x20], 0);
    speaker(ms);

    /* LAPIC timer. Its frequency is not known: measure it. */
    lapic_write(LAPIC_TDCR, 0x3); /* by 16 */
    lapic_write(LAPIC_LVTT, 0x10000);
    lapic_write(LAPIC_TMICT, 0xffffffff);
    for (start = rdtsc(); rdtsc() - start < 10 * ms;)
        ;
    u32 per_10ms = 0xffffffff - lapic_read(LAPIC_TMCCT);
    report("LAPIC timer counts down", per_10ms > 100);
    report_eq("the initial count reads back", lapic_read(LAPIC_TMICT), 0xffffffff);
    reset();
    lapic_write(LAPIC_LVTT, 0x41);
    lapic_write(LAPIC_TMICT, per_10ms);
    start = rdtsc();
    sti();
    ok = wait_hit(0x41, 1, PATIENCE);
    took = (rdtsc() - start) / (ms / 100);
    print("# one shot of 10 ms took %lu.%02lu ms\n", took / 100, took % 100);
    report("LAPIC timer: one shot", ok && took >= 900);
    for (start = rdtsc(); rdtsc() - start < 30 * ms;)
        ;
    cli();
    report("only once, and the count is zero", hits[0x41] == 1 && lapic_read(LAPIC_TMCCT) == 0);
    reset();
    lapic_write(LAPIC_LVTT, 0x20042);
    lapic_write(LAPIC_TMICT, per_10ms / 10);
    sti();
    start = rdtsc();
    ok = wait_hit(0x42, 50, PATIENCE);
    took = (rdtsc() - start) / ms;
    cli();
    print("# fifty periods of 1 ms took %lu ms\n", took);
    report("LAPIC timer: periodic", ok && took >= 30);
    lapic_write(LAPIC_TMICT, 0);
    reset();
    sti();
    for (start = rdtsc(); rdtsc() - start < 10 * ms;)
        ;
    cli();
    report("LAPIC timer: stopped by a zero count", hits[0x42] <= 1);
    reset();
    lapic_write(LAPIC_LVTT, 0x10043);
    lapic_write(LAPIC_TMICT, per_10ms / 10);
    sti();
    for (start = rdtsc(); rdtsc() - start < 10 * ms;)
        ;
    cli();
    report_eq("LAPIC timer: masked", hits[0x43], 0);

    if (has(HAS_TSC_DEADLINE)) {
        reset();
        lapic_write(LAPIC_LVTT, 0x40044);
        asm volatile("mfence" ::: "memory");
        u64 when = rdtsc() + PATIENCE * ms;
        wrmsr(MSR_TSC_DEADLINE, when);
        report_eq("TSC deadline reads back while armed", rdmsr(MSR_TSC_DEADLINE), when);
        when = rdtsc() + 5 * ms;
        wrmsr(MSR_TSC_DEADLINE, when);
        sti();
        ok = wait_hit(0x44, 1, PATIENCE);
        u64 now = rdtsc();
        cli();
        report("TSC deadline: comes, and not early", ok && now >= when);
        report_eq("TSC deadline: reads 0 when past", rdmsr(MSR_TSC_DEADLINE), 0);
        reset();
        wrmsr(MSR_TSC_DEADLINE, rdtsc() - 1000);
        sti();
        report("TSC deadline in the past: at once", wait_hit(0x44, 1, PATIENCE));
        cli();
        reset();
        wrmsr(MSR_TSC_DEADLINE, rdtsc() + 5 * ms);
        wrmsr(MSR_TSC_DEADLINE, 0);
        sti();
        for (start = rdtsc(); rdtsc() - start < 20 * ms;)
            ;
        cli();
        report_eq("TSC deadline: disarmed by 0", hits[0x44], 0);
        /* hlt until the deadline, many times. */
        reset();
        for (int i = 0; i < 200; i++) {
            wrmsr(MSR_TSC_DEADLINE, rdtsc() + ms / 20);
            asm volatile("sti; hlt; cli" ::: "memory");
        }
        report_eq("200 times hlt until a deadline", hits[0x44], 200);
    } else {
        skip("TSC deadline", "not in CPUID");
    }
    lapic_write(LAPIC_LVTT, 0x10000);
}

/* A busy loop, in ring 0 and ring 3, without any event poll of its own making must be
 * interruptible. */
USER_ASM("user_spin: mov $0, %eax\n1: inc %rax\n cmpl $0, (%rdi)\n je 1b\n ret");
USER_ASM("user_spin2: jmp user_spin2");
extern char user_spin[], user_spin2[];
static volatile u32 flag UDATA = 0;

static void on_flag(struct regs *r)
{
    flag = 1;
    hits[r->vec]++;
    lapic_eoi();
}

static void loops(void)
{
    trap_handle(0x46, on_flag);
    lapic_write(LAPIC_TDCR, 0x3);
    lapic_write(LAPIC_LVTT, 0x46);
    reset();
    flag = 0;
    lapic_write(LAPIC_TMICT, 200000);
    struct regs r;
    user_regs(&r, user_spin, false);
    r.rdi = (u64)&flag;
    r.rflags |= FL_IF;
    *(u64 *)(r.rsp -= 8) = (u64)user_return;
    report("a ring 3 loop is interrupted and goes on",
           user_run(&r) == VEC_RETURN && hits[0x46] == 1);
    trap_handle(0x46, NULL);
    lapic_write(LAPIC_TMICT, 200000);
    user_regs(&r, user_spin2, false);
    r.rflags |= FL_IF;
    report("jmp to itself is interrupted", user_run(&r) == 0x46 && trap.r.rip == (u64)user_spin2);
    lapic_eoi();
    trap_handle(0x46, on_flag);
    flag = 0;
    lapic_write(LAPIC_TMICT, 200000);
    sti();
    while (!flag)
        ;
    cli();
    report("a kernel loop is interrupted", flag == 1);
    lapic_write(LAPIC_LVTT, 0x10000);
}

static void x2apic(void)
{
    if (!has(HAS_X2APIC)) {
        skip("x2APIC", "not in CPUID");
        return;
    }
    u64 base = rdmsr(MSR_APICBASE);
    wrmsr(MSR_APICBASE, base | 0x400);
    report_eq("x2APIC: APICBASE.EXTD", rdmsr(MSR_APICBASE) & 0xc00, 0xc00);
    report("x2APIC: version", (rdmsr(0x803) & 0xff) >= 0x10);
    report_eq("x2APIC: 32-bit id", rdmsr(0x802), cpuid(1, 0).ebx >> 24);
    reset();
    wrmsr(0x83f, 0x47); /* SELF IPI */
    sti();
    report("x2APIC: self IPI", wait_hit(0x47, 1, PATIENCE));
    cli();
    reset();
    wrmsr(0x830, (rdmsr(0x802) << 32) | 0x4048);
    sti();
    report("x2APIC: ICR in one write", wait_hit(0x48, 1, PATIENCE));
    cli();
    report("x2APIC: write to a read-only register is #GP", try_wrmsr(0x803, 0) == GP);
    report("x2APIC: a register that is not there is #GP", try_rdmsr(0x831) == GP);
    report("x2APIC: EOI other than 0 is #GP", try_wrmsr(0x80b, 1) == GP);
    report("x2APIC: back to xAPIC directly is #GP", try_wrmsr(MSR_APICBASE, base) == GP);
    wrmsr(MSR_APICBASE, base & ~0xc00ull);
    wrmsr(MSR_APICBASE, base);
    lapic_init();
}

/* x2APIC handlers cannot use the memory-mapped EOI. */
static void count_x2(struct regs *r)
{
    hits[r->vec]++;
    wrmsr(0x80b, 0);
}

int main(void)
{
    lapic_init();
    for (unsigned v = 0x20; v < 0xf0; v++)
        if (v != 0x80 && v != VEC_RETURN)
            trap_handle(v, count);
    trap_handle(0x47, count_x2);
    trap_handle(0x48, count_x2);
    windows();
    priorities();
    nmi();
    timers();
    loops();
    in_strings();
    x2apic();
    return 0;
}
