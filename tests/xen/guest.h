/* guest.h - a Xen PV guest that tests the interface from inside: what its files share. */
#pragma once
#include "vitro/xen_io.h"
#include "xen/pv.h"

#define NOWHERE 0x7f0000000000ull /* an address that nothing maps */
#define NO_ADDRESS (1ull << 60)   /* not canonical */
#define NO_FRAME (1ull << 33)

extern struct xen_start_info *start;
extern uint8_t shared_page[PAGE];
#define shared (*(volatile struct xen_shared_info *)shared_page)

/* Pages to do things with; `arg` for what calls read and write. */
extern uint64_t arg[512], page_a[512], page_b[512];
long map(const volatile void *va, uint64_t entry);
uint64_t *entry_of(uint64_t va, unsigned level);
#define RW(p) (machine_of(p) | PTE_P | PTE_W | PTE_A | PTE_D)
#define RO(p) (machine_of(p) | PTE_P | PTE_A)

/* put - a structure into `arg`; the value is its address. */
#define put(...) ((uint64_t)memcpy(arg, &(__VA_ARGS__), sizeof(__VA_ARGS__)))
#define GOT(type) ((volatile type *)arg)

/* want - one call, and what it is to give. */
#define want(result, number, ...) \
    do { \
        long got_ = call_n(number, ##__VA_ARGS__, 0, 0, 0, 0, 0); \
        check(got_ == (long)(result), "%s(%s): %ld", #number, #__VA_ARGS__, got_); \
    } while (0)
#define call_n(number, a, b, c, d, e, ...) \
    xen_call5(number, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d), (uint64_t)(e))
#define that(condition) check(condition, "%s", #condition)

/* The last trap: what xen_trap() saw; it goes on at resume_at if that is not 0. */
extern volatile struct seen { uint64_t vector, error, rip, cs, rflags, rsp, count; } seen;
extern volatile uint64_t resume_at;
extern volatile unsigned fired[64];
/* trying - an instruction, with what it finds in RDI, RAX and RCX; the vector it raised, or -1. */
#define trying(insn, rdi, rax, rcx) \
    ({ \
        uint64_t rdi_ = (uint64_t)(rdi), rax_ = (uint64_t)(rax), rcx_ = (uint64_t)(rcx); \
        seen.vector = ~0ull; \
        __asm__ volatile("leaq 77f(%%rip), %%r8; movq %%r8, resume_at(%%rip); " insn "; 77: movq $0, resume_at(%%rip)" \
                         : "+D"(rdi_), "+a"(rax_), "+c"(rcx_)::"rdx", "r8", "r11", "memory", "cc"); \
        tried_rax = rax_, tried_rcx = rcx_; \
        (long)seen.vector; \
    })
extern uint64_t tried_rax, tried_rcx; /* what it left */
/* sleep_until - as guests/xen/xen.c has it. */
#define sleep_until(condition) \
    do { \
        for (shared.vcpu_info[0].upcall_mask = 1; !(condition); shared.vcpu_info[0].upcall_mask = 1) \
            xen_call2(XEN_sched_op, XEN_SCHEDOP_block, 0); \
        events_on(); \
    } while (0)
void events_on(void);

void test_calls(void);      /* calls.c */
void test_memory(void);     /* memory.c */
void test_crossings(void);  /* crossings.c */
void test_processors(void); /* processors.c */
