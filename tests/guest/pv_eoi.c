/* pv_eoi.c - the paravirtual end of interrupt. Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN. */
#include "lib/pv.h"

static u32 *word;
static volatile unsigned hits[256], by_word, by_apic, nested;
static volatile unsigned order[8], nr_order;
static void (*volatile inside)(void);

/* As the documentation says: clear bit 0 with one instruction; if it was not set, write EOI. */
static void end(void)
{
    bool told;
    asm volatile("btrl $0, %0" : "+m"(*word), "=@ccc"(told)::"memory");
    if (told) {
        by_word++;
    } else {
        lapic_eoi();
        by_apic++;
    }
}

static void ioapic_pin2(u32 low)
{
    volatile u32 *ioapic = (u32 *)IOAPIC_PA;
    ioapic[0] = 0x11 + 2 * 2;
    ioapic[4] = 0;
    ioapic[0] = 0x10 + 2 * 2;
    ioapic[4] = low;
}

static void handler(struct regs *r)
{
    if (++hits[r->vec] == 3 && r->vec == 0x70)
        ioapic_pin2(1u << 16); /* the line may stay high: enough seen */
    if (nr_order < 8)
        order[nr_order++] = (unsigned)r->vec;
    if (inside) {
        void (*fn)(void) = inside;
        inside = NULL;
        fn();
    }
    end();
}

static void reset(void)
{
    for (unsigned i = 0; i < 256; i++)
        hits[i] = 0;
    by_word = by_apic = nr_order = nested = 0;
    inside = NULL;
}
static void window(void)
{
    asm volatile("sti; nop; nop; nop; cli" ::: "memory");
}
static bool in_service(unsigned vec)
{
    return lapic_read(LAPIC_ISR + vec / 32 * 16) >> (vec & 31) & 1;
}

static void same_vector(void) { lapic_self_ipi(0x50); }
static void higher_later(void) { lapic_self_ipi(0x60); }
static void higher_now(void)
{
    lapic_self_ipi(0x60);
    window();
    nested = hits[0x60];
}
static void look(void) { nested = in_service(0x50); }
static void raise_tpr(void)
{
    lapic_write(LAPIC_TPR, 0x70);
    lapic_self_ipi(0x60);
    lapic_write(LAPIC_TPR, 0);
}

int main(void)
{
    report("offered", kvm_has(KVM_EOI));
    lapic_init();
    word = (u32 *)page_alloc();
    trap_handle(0x50, handler);
    trap_handle(0x60, handler);
    trap_handle(0x70, handler);

    report_eq("off at first", rdmsr(MSR_KVM_PV_EOI_EN), 0);
    lapic_self_ipi(0x50);
    window();
    report("off: by the APIC, the word untouched", hits[0x50] == 1 && by_apic == 1 && !*word);

    wrmsr(MSR_KVM_PV_EOI_EN, (u64)word | 1);
    report_eq("the MSR reads as written", rdmsr(MSR_KVM_PV_EOI_EN), (u64)word | 1);
    reset();
    for (unsigned i = 0; i < 1000; i++) {
        lapic_self_ipi(0x50);
        window();
    }
    reportf(hits[0x50] == 1000 && by_word == 1000, "one at a time: none needs the APIC (%u, %u)", hits[0x50], by_word);
    report("nothing is in service then", !in_service(0x50));
    report_eq("the word is clear", *word & 1, 0);

    reset();
    inside = same_vector;
    lapic_self_ipi(0x50);
    window();
    window();
    reportf(hits[0x50] == 2, "one of the same vector, sent from inside, comes after it (%u)", hits[0x50]);
    reset();
    inside = higher_later;
    lapic_self_ipi(0x50);
    window();
    window();
    report("a higher one, sent with IF clear, comes after it", hits[0x60] == 1 && order[1] == 0x60);
    reset();
    inside = higher_now;
    lapic_self_ipi(0x50);
    window();
    report("a higher one, with IF set, comes inside it", hits[0x60] == 1 && nested == 1);
    report("and nothing is left in service", !in_service(0x50) && !in_service(0x60));
    reset();
    inside = look;
    lapic_self_ipi(0x50);
    window();
    report_eq("inside, ISR shows it", nested, 1);
    report("having looked, it is ended by the APIC", by_apic == 1 && !by_word);
    report("and is over", !in_service(0x50));
    reset();
    inside = raise_tpr;
    lapic_self_ipi(0x50);
    window();
    window();
    report("TPR raised and lowered inside", hits[0x50] == 1 && hits[0x60] == 1);

    reset();
    lapic_self_ipi(0x50);
    lapic_self_ipi(0x60);
    window();
    window();
    report("two waiting: the higher first", hits[0x50] == 1 && hits[0x60] == 1 && order[0] == 0x60);
    report("its end must not wait: by the APIC", by_apic >= 1);

    /* Level-triggered: the I/O APIC must hear of the end. */
    pic_init();
    reset();
    pit_start(3, 5000);
    ioapic_pin2(0x70 | 1u << 15); /* the timer's pin, level triggered */
    sti();
    u64 until = rdtsc() + 1000ul * cpuid(0x40000010, 0).eax;
    while (hits[0x70] < 3 && rdtsc() < until)
        asm volatile("pause");
    cli();
    ioapic_pin2(1u << 16);
    reportf(hits[0x70] >= 3 && !by_word, "level triggered: every end by the APIC (%u, %u)", hits[0x70], by_word);
    window();

    wrmsr(MSR_KVM_PV_EOI_EN, 0);
    reset();
    lapic_self_ipi(0x50);
    window();
    report("switched off again", hits[0x50] == 1 && by_apic == 1);

    report("bit 1 is reserved: #GP", !wrmsr_ok(MSR_KVM_PV_EOI_EN, (u64)word | 3));
    report("no RAM there: #GP", !wrmsr_ok(MSR_KVM_PV_EOI_EN, 0xfff0000001) && !wrmsr_ok(MSR_KVM_PV_EOI_EN, ~2ull));
    report("misaligned: #GP", !wrmsr_ok(MSR_KVM_PV_EOI_EN, ((u64)word + 2) | 1));
    report_eq("and nothing changed", rdmsr(MSR_KVM_PV_EOI_EN), 0);
    return 0;
}
