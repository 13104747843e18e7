/* crossings.c - from kernel to user code and back, and what the kernel may try of what needs ring 0. */
#include "guest.h"

extern char syscall_entry[], run_user_back[], user_code[];
extern uint64_t kept_rsp;
void run_user(uint64_t rip, uint64_t rsp, struct xen_iret_frame *frame);
void user_left(struct sdk_regs *r);

static uint64_t user_stack[512] __attribute__((aligned(4096)));
static uint8_t kernel_stack[8192] __attribute__((aligned(16)));
static uint64_t user_rax, user_frame_at;

/* A trap from user code: the kernel goes on behind run_user(). */
void user_left(struct sdk_regs *r)
{
    user_rax = r->rax;
    user_frame_at = (uint64_t)(r + 1);
    r->rip = (uint64_t)run_user_back;
    r->rsp = kept_rsp;
    r->cs = XEN_FLAT_CS64 & ~3ull;
    r->ss = XEN_FLAT_DS & ~3ull;
    r->rflags = 0x202;
}

/* The vector that user code n ends with. */
static long user(unsigned n)
{
    struct xen_iret_frame f = { .rip = (uint64_t)user_code + 16 * n, .cs = XEN_FLAT_CS64, .rflags = 0x202, .ss = XEN_FLAT_DS,
                                .rsp = (uint64_t)(user_stack + 500), .rax = 0xabc };

    seen.vector = ~0ull;
    run_user(f.rip, f.rsp, &f);
    return (long)seen.vector;
}

static void test_user(void)
{
    struct xen_mmuext_op base = { .cmd = XEN_MMUEXT_NEW_USER_BASEPTR, .arg1 = frame_of((void *)start->pt_base) };
    const uint64_t top = (uint64_t)kernel_stack + sizeof(kernel_stack);

    want(0, XEN_set_callbacks, event_entry, failsafe_entry, syscall_entry);
    want(0, XEN_stack_switch, XEN_FLAT_DS, top);
    want(0, XEN_mmuext_op, put(base), 1, 0, XEN_DOMID_SELF);
    that(!map(user_code, RO(user_code) | PTE_U) && !map(user_stack, RW(user_stack) | PTE_U));
    that(user(0) == 257 && user_rax == 0x1234 && seen.rip == (uint64_t)user_code + 7 && (seen.cs & 3) == 3);
    that(user_frame_at == top && seen.rsp == (uint64_t)(user_stack + 500) && (seen.rflags & 0x200));
    that(user(1) == 31 && seen.rip == (uint64_t)user_code + 18);            /* behind INT */
    that(user(2) == 13 && seen.error == 14 * 8 + 2 && seen.rip == (uint64_t)user_code + 32);
    that(user(3) == 14 && seen.error == 5 && shared.vcpu_info[0].cr2 == (uint64_t)&kept_rsp); /* the kernel's page */
    that(user(4) == 13 && user(5) == 13 && user(6) == 3 && user(7) == 257);
    that(user_stack[499] == 0xabc);
    /* TSD is for user code alone, though the kernel is not at level 0 either. */
    uint64_t cr4;
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    that(user(8) == 257);
    __asm__ volatile("mov %0, %%cr4" ::"r"(cr4 | 4));
    that(trying("rdtsc", 0, 0, 0) == -1 && trying("rdtscp", 0, 0, 0) == -1 && user(8) == 13 && trying("rdtsc", 0, 0, 0) == -1);
    __asm__ volatile("mov %0, %%cr4" ::"r"(cr4));
    that(user(8) == 257);
    base.arg1 = 0;
    want(0, XEN_mmuext_op, put(base), 1, 0, XEN_DOMID_SELF);
}

static uint64_t msr(uint32_t nr)
{
    uint32_t lo, hi;
    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(nr));
    return (uint64_t)hi << 32 | lo;
}

/* Done for the kernel, or #GP. */
static void test_privileged(void)
{
    uint64_t r;

    __asm__ volatile("mov %%cr0, %0" : "=r"(r));
    that((r & 0x80010001) == 0x80010001);
    that(trying("mov %%rax, %%cr0", 0, r & ~1ull, 0) == 13);
    that(trying("mov %%rax, %%cr3", 0, 0, 0) == 13);
    __asm__ volatile("mov %%cr3, %0" : "=r"(r));
    that(r == machine_of((void *)start->pt_base));
    __asm__ volatile("mov %%cr4, %0; mov %0, %%cr4" : "=r"(r));
    that(r & 0x20);
    __asm__ volatile("mov %0, %%cr2" ::"r"(0x5555ull));
    that(shared.vcpu_info[0].cr2 == 0x5555);
    that(trying("cli; sti; wbinvd", 0, 0, 0) == -1 && trying("hlt", 0, 0, 0) == 13 && trying("lgdt (%%rdi)", arg, 0, 0) == 13 && trying("ltr %%ax", 0, 8, 0) == 13);
    that(trying("invlpg (%%rdi)", page_a, 0, 0) == -1);
    uint32_t port;
    __asm__ volatile("mov $0x60, %%edx; in %%dx, %%eax; out %%eax, %%dx" : "=a"(port)::"rdx");
    that(port == ~0u);
    that((msr(0xc0000080) & 0x501) == 0x501 && !msr(0x1b));
    that(trying("xorl %%edx, %%edx; wrmsr", 0, 0, 0xc0000080) == 13 && trying("rdmsr", 0, 0, 0x12345) == 13);
    __asm__ volatile("wrmsr" ::"c"(0xc0000100), "a"(0x1000), "d"(0)); /* FS base */
    that(msr(0xc0000100) == 0x1000);
    uint32_t a = 0x40000000, b, c = 0, d;
    __asm__ volatile("ud2; .ascii \"xen\"; cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    that(b == 0x566e6558 && c == 0x65584d4d && d == 0x4d4d566e); /* XenVMMXenVMM */
    that(trying("ud2", 0, 0, 0) == 6);
}

static void test_registers(void)
{
    want(0, XEN_set_segment_base, XEN_SEGBASE_FS, 0x7000);
    that(msr(0xc0000100) == 0x7000);
    want(0, XEN_set_segment_base, XEN_SEGBASE_GS_KERNEL, 0x8000);
    that(msr(0xc0000101) == 0x8000);
    want(0, XEN_set_segment_base, XEN_SEGBASE_GS_USER, 0x9000);
    that(msr(0xc0000102) == 0x9000);
    want(-XEN_EINVAL, XEN_set_segment_base, XEN_SEGBASE_FS, NO_ADDRESS);
    want(-XEN_EINVAL, XEN_set_segment_base, 4, 0);
    want(0, XEN_set_segment_base, XEN_SEGBASE_GS_USER_SEL, XEN_FLAT_DS);
    want(-XEN_EINVAL, XEN_set_segment_base, XEN_SEGBASE_GS_USER_SEL, 0x13);

    want(0, XEN_fpu_taskswitch, 1);
    that(trying("fninit", 0, 0, 0) == 7);
    that(trying("fninit", 0, 0, 0) == -1); /* the handler finds TS clear */
    want(0, XEN_fpu_taskswitch, 1);
    want(0, XEN_fpu_taskswitch, 0);
    that(trying("fninit", 0, 0, 0) == -1);

    /* A breakpoint for data, as the hardware has it. */
    want(0, XEN_set_debugreg, 0, page_a);
    want((uint64_t)page_a, XEN_get_debugreg, 0);
    want(0, XEN_set_debugreg, 7, 0xd0401); /* R/W 01, LEN 11: writes of 4 bytes */
    uint64_t count = seen.count;
    seen.vector = 0;
    ((volatile uint64_t *)page_a)[0] = 1;
    that(seen.count == count + 1 && seen.vector == 1 && (xen_call1(XEN_get_debugreg, 6) & 1));
    want(0, XEN_set_debugreg, 7, 1 << 10);
    want(0, XEN_set_debugreg, 6, 0xffff0ff0);
    want(-XEN_EINVAL, XEN_set_debugreg, 8, 0);
    want(-XEN_EINVAL, XEN_get_debugreg, 8);
    want(-XEN_EINVAL, XEN_set_debugreg, 7, 1ull << 40);
    want(-XEN_EINVAL, XEN_set_debugreg, 7, 1 << 13);
    want(-XEN_EPERM, XEN_set_debugreg, 1, XEN_VIRT_START);
    want(-XEN_EPERM, XEN_set_debugreg, 1, NO_ADDRESS);
}

void test_crossings(void)
{
    test_privileged();
    test_registers();
    test_user();
}
