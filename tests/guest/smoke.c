/* smoke.c - the harness itself: traps, recovery, ring 3 in both widths. Everything else needs
 * these. */
#include "lib/guest.h"

static UTEXT u64 add(u64 a, u64 b, u64 c)
{
    return a + 2 * b + 3 * c;
}

UTEXT static void user_hlt(void)
{
    asm volatile("hlt");
}

USER_ASM_32("add32: leal 5(%eax), %eax\n ret");
extern char add32[];

int main(void)
{
    report("ud2 is #UD", TRY("ud2", ::) == UD);
    report("recovery keeps the registers", trap.r.cs == KCS && trap.r.err == 0);
    u64 v = 0;
    report("a load from nowhere is #PF", TRY("mov (%1), %0", : "+r"(v) : "r"(PAGE3)) == PF);
    report("its code and address", faulted(0, (void *)PAGE3));
    report("no trap is no trap", TRY("nop", ::) == VEC_NONE);
    report_eq("ring 3 computes", user_call(add, 1, 2, 3), 14);
    report_eq("and comes back by int", trap.vec, VEC_RETURN);
    report_eq("from CPL 3", trap.r.cs, UCS64);
    user_call(user_hlt, 0, 0, 0);
    report("hlt in ring 3 is #GP(0)", trapped(GP, 0));
    report_eq("32-bit ring 3 comes back", user_call32(add32, 37), VEC_RETURN);
    report_eq("32-bit ring 3 computes", trap.r.rax, 42);
    report_eq("from the compatibility segment", trap.r.cs, UCS32);
    u64 page = page_alloc();
    map((void *)PAGE3, page, PTE_P | PTE_W | PTE_U);
    *(volatile u64 *)PAGE3 = 0x1122334455667788;
    report_eq("two mappings, one page", *(volatile u64 *)page, 0x1122334455667788);
    unmap((void *)PAGE3);
    report("unmapped again", TRY("mov (%1), %0", : "+r"(v) : "r"(PAGE3)) == PF);
    image_user(false);
    report_eq("user text survives image_user(false)", user_call(add, 1, 1, 1), 6);
    return 0;
}
