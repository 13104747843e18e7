/*
 * compat32.c - 32-bit user code under a 64-bit kernel: what 64-bit mode lacks, segments with bases,
 * 32-bit wraparound, and the ways between the two widths. Intel SDM vol. 3 §3.2.4, vol. 2.
 */
#include "lib/guest.h"

/*
 * Each function gets EAX, EBX, ECX, EDX, ESI, EDI and returns them in trap.r; ESP is the top of
 * ustack.
 */
struct in {
    u32 eax, ebx, ecx, edx, esi, edi, eflags;
};

static unsigned run(const void *fn, struct in in)
{
    struct regs r;
    user_regs(&r, fn, true);
    r.rax = in.eax;
    r.rbx = in.ebx;
    r.rcx = in.ecx;
    r.rdx = in.edx;
    r.rsi = in.esi;
    r.rdi = in.edi;
    r.rbp = 0xb9b9b9b9;
    r.rflags |= in.eflags;
    /* DS and ES as a 32-bit process has them */
    asm volatile("mov %0, %%ds; mov %0, %%es" ::"r"((u32)UDS));
    r.rsp -= 4;
    *(u32 *)r.rsp = (u32)(u64)user_return32;
    return user_run(&r);
}

#define F(name, code)                                                                              \
    USER_ASM_32(#name ": " code "\n ret");                                                         \
    extern char name[];
#define OUT(field) ((u32)trap.r.r##field)

/* -- Opcodes that 64-bit mode took away
 * ---------------------------------------------------------------------- */

F(c_inc, ".byte 0x40, 0x43, 0x41, 0x42, 0x46, 0x47") /* inc eax ebx ecx edx esi edi */
F(c_dec, ".byte 0x48, 0x4b, 0x49, 0x4a, 0x4e, 0x4f")
F(c_inc16, ".byte 0x66, 0x40, 0x66, 0x4b")
F(c_incsp, ".byte 0x44, 0x4c, 0x45, 0x4d; mov %esp, %eax; mov %ebp, %ebx")
F(c_inc_cf, "stc; .byte 0x40; setc %bl; movzbl %bl, %ebx")
F(c_pusha,
  "mov %esp, %ebp; pusha; mov %esp, %eax; mov 12(%esp), %ebx; mov 28(%esp), %ecx; mov (%esp), %edx; add $32, %esp; sub %ebp, %eax; sub %ebp, %ebx")
F(c_popa, "push $1; push $2; push $3; push $4; push $0xdead; push $5; push $6; push $7; popa")
F(c_pusha16,
  "mov %esp, %ebp; pushaw; mov %ebp, %eax; sub %esp, %eax; shl $16, %eax; popaw; mov %ebp, %ebx; sub %esp, %ebx")
F(c_daa, "daa; pushf; pop %ebx")
F(c_das, "das; pushf; pop %ebx")
F(c_aaa, "aaa; pushf; pop %ebx")
F(c_aas, "aas; pushf; pop %ebx")
F(c_aam, "aam; pushf; pop %ebx")
F(c_aam16, "aam $16")
F(c_aam0, "aam $0")
F(c_aad, "aad; pushf; pop %ebx")
F(c_into0, "xor %eax, %eax; into; mov $1, %eax")
F(c_into1, "mov $0x7f, %al; add $1, %al; c_into1_at: into; c_into1_after: nop")
F(c_bound_ok, "bound %eax, (%ebx)")
F(c_bound_bad, "c_bound_at: bound %eax, (%ebx)")
F(c_arpl, "arpl %ax, %bx; setz %cl; movzbl %cl, %ecx")
F(c_lds, "push %ds; lds (%ebx), %eax; mov %ds, %ecx; pop %ds")
F(c_les, "push %es; les (%ebx), %eax; mov %es, %ecx; pop %es")
F(c_salc, "stc; .byte 0xd6; movzbl %al, %ebx; clc; .byte 0xd6; movzbl %al, %ecx")
F(c_82, ".byte 0x82, 0xc0, 0x05")
F(c_pushseg,
  "push %es; push %ss; push %ds; push %cs; push %fs; push %gs; pop %eax; pop %eax; pop %eax; pop %ebx; pop %ecx; pop %edx")
F(c_popseg,
  "push %ds; pop %es; mov %es, %eax; pushw %ds; popw %fs; mov %fs, %ebx; xor %ecx, %ecx; mov %ecx, %fs")
F(c_pushw, "mov %esp, %ecx; pushw $0x1234; sub %esp, %ecx; popw %ax; movzwl %ax, %eax")
F(c_jcxz, "mov $0x10000, %ecx; xor %eax, %eax; jcxz 1f; inc %eax; 1:")
F(c_loopw, "mov $0x30003, %ecx; xor %eax, %eax; 1: inc %eax; addr16 loop 1b")
F(c_xlat, "mov $2, %eax; xlatb; movzbl %al, %eax")
F(c_enter, "mov %esp, %ecx; enter $16, $0; sub %esp, %ecx; leave; mov %ecx, %eax")
F(c_callret, "xor %eax, %eax; call 1f; call 1f; jmp 2f; 1: inc %eax; ret; 2:")
F(c_retn, "push $1; push $2; call 1f; jmp 2f; 1: mov 8(%esp), %eax; ret $8; 2:")
F(c_eip, "call 1f; 1: pop %eax; sub $1b, %eax")
F(c_moffs, "mov ustack, %eax; mov %al, ustack + 8; movl ustack + 8, %ebx")
F(c_lea16, "mov $0x12348000, %ebx; mov $0x8001, %esi; addr16 lea 2(%bx,%si), %eax")
F(c_cmpxchg8b, "cmpxchg8b (%esi); setz %bl")
F(c_bswap, "bswap %eax; shld $8, %eax, %ebx; shrd $8, %edx, %ecx")
F(c_sse, "movd %eax, %xmm0; paddd %xmm0, %xmm0; movd %xmm0, %eax")
F(c_x87, "push %eax; fildl (%esp); fildl (%esp); faddp; fistpl (%esp); pop %eax")
F(c_bits, "bt $33, %eax; setc %bl; movzbl %bl, %ebx; btsl $3, (%esi)")
F(c_string, "cld; rep movsb; mov %ecx, %eax")
F(c_string_carry, "cld; stc; rep movsl; setc %al; movzbl %al, %eax")
F(c_string_store, "cld; rep stosw")

static void opcodes(void)
{
    unsigned v = run(c_inc, (struct in){1, 2, 3, 4, 5, 0xffffffff, 0});
    report("inc, one byte", v == VEC_RETURN && OUT(ax) == 2 && OUT(bx) == 3 && OUT(cx) == 4 &&
                                OUT(dx) == 5 && OUT(si) == 6 && OUT(di) == 0);
    run(c_dec, (struct in){1, 2, 3, 4, 5, 0, 0});
    report("dec, one byte", OUT(ax) == 0 && OUT(bx) == 1 && OUT(cx) == 2 && OUT(dx) == 3 &&
                                OUT(si) == 4 && OUT(di) == 0xffffffff);
    report("results are zero-extended", trap.r.rdi == 0xffffffff);
    run(c_inc16, (struct in){0x1ffff, 0x20000, 0, 0, 0, 0, 0});
    report("inc, dec of 16 bits", OUT(ax) == 0x10000 && OUT(bx) == 0x2ffff);
    run(c_incsp, (struct in){0});
    report("inc, dec of esp and ebp",
           OUT(ax) == (u32)(u64)ustack + sizeof(ustack) - 68 && OUT(bx) == 0xb9b9b9b9);
    run(c_inc_cf, (struct in){0});
    report("inc keeps CF", OUT(bx) == 1);
    run(c_pusha, (struct in){0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0});
    report("pusha: eight, ESP as it was, EAX on top",
           OUT(ax) == (u32)-32 && OUT(bx) == 0 && OUT(cx) == 0xa && OUT(dx) == 0xf);
    run(c_popa, (struct in){0});
    report("popa", OUT(ax) == 1 && OUT(cx) == 2 && OUT(dx) == 3 && OUT(bx) == 4 && OUT(bp) == 5 &&
                       OUT(si) == 6 && OUT(di) == 7);
    run(c_pusha16, (struct in){0});
    report("pushaw, popaw", OUT(ax) == 16 << 16 && OUT(bx) == 0);

    /* ax, flags -> ax, flags; the flags that the manual defines */
    static const struct {
        const char *name;
        char *fn;
        u32 ax, fl, want_ax, want_fl, mask;
    } bcd[] = {
        {"daa", c_daa, 0xae, FL_CF, 0x14, FL_CF | FL_AF | FL_PF,
         FL_CF | FL_AF | FL_ZF | FL_SF | FL_PF},
        {"daa, no adjustment", c_daa, 0x12, 0, 0x12, FL_PF, FL_CF | FL_AF | FL_ZF | FL_SF | FL_PF},
        {"daa with AF", c_daa, 0x10, FL_AF, 0x16, FL_AF, FL_CF | FL_AF | FL_ZF | FL_SF},
        {"das", c_das, 0xee, FL_CF, 0x88, FL_CF | FL_AF | FL_SF | FL_PF,
         FL_CF | FL_AF | FL_ZF | FL_SF | FL_PF},
        {"das, borrow", c_das, 0x01, FL_AF, 0xfb, FL_AF | FL_SF, FL_AF | FL_ZF | FL_SF},
        {"aaa", c_aaa, 0x010b, 0, 0x0201, FL_CF | FL_AF, FL_CF | FL_AF},
        {"aaa, no adjustment", c_aaa, 0x0109, 0, 0x0109, 0, FL_CF | FL_AF},
        {"aaa across al", c_aaa, 0x00ff, 0, 0x0205, FL_CF | FL_AF, FL_CF | FL_AF},
        {"aas", c_aas, 0x020b, 0, 0x0105, FL_CF | FL_AF, FL_CF | FL_AF},
        {"aas, no adjustment", c_aas, 0x0209, 0, 0x0209, 0, FL_CF | FL_AF},
        {"aam", c_aam, 0x004b, 0, 0x0705, FL_PF, FL_ZF | FL_SF | FL_PF},
        {"aad", c_aad, 0x0705, 0, 0x004b, FL_PF, FL_ZF | FL_SF | FL_PF},
    };
    for (unsigned i = 0; i < ARRAY_LEN(bcd); i++) {
        run(bcd[i].fn, (struct in){bcd[i].ax, 0, 0, 0, 0, 0, bcd[i].fl});
        bool ok = OUT(ax) == bcd[i].want_ax && (OUT(bx) & bcd[i].mask) == bcd[i].want_fl;
        if (!ok)
            print("# %s: ax %x flags %x, want %x %x\n", bcd[i].name, OUT(ax), OUT(bx) & bcd[i].mask,
                  bcd[i].want_ax, bcd[i].want_fl);
        report(bcd[i].name, ok);
    }
    /* All of daa and das against the manual's pseudo-code. */
    bool ok = true;
    for (u32 i = 0; i < 1024; i++) {
        u32 al = i & 255, cf = i >> 8 & 1, af = i >> 9 & 1;
        u32 want = al, wcf = cf, waf = 0;
        if ((al & 15) > 9 || af) {
            want += 6;
            waf = 1;
        }
        if (al > 0x99 || cf) {
            want += 0x60;
            wcf = 1;
        } else {
            wcf = 0;
        }
        run(c_daa, (struct in){al, 0, 0, 0, 0, 0, (cf ? FL_CF : 0) | (af ? FL_AF : 0)});
        ok &= OUT(ax) == (want & 255) && !(OUT(bx) & FL_CF) == !wcf && !(OUT(bx) & FL_AF) == !waf;
    }
    report("daa, all 1024 cases", ok);
    run(c_aam16, (struct in){0x7b});
    report_eq("aam 16", OUT(ax), 0x070b);
    report("aam 0 is #DE", run(c_aam0, (struct in){1}) == DE);
    run(c_into0, (struct in){0});
    report_eq("into without overflow", OUT(ax), 1);
    extern char c_into1_after[], c_bound_at[];
    report("into with overflow is #OF, RIP after it",
           run(c_into1, (struct in){0}) == OF && trap.r.rip == (u64)c_into1_after);
    u32 *mem = (u32 *)ustack;
    mem[0] = (u32)-5;
    mem[1] = 10;
    report_eq("bound, inside", run(c_bound_ok, (struct in){7, (u32)(u64)mem}), VEC_RETURN);
    report_eq("bound, at the limits", run(c_bound_ok, (struct in){(u32)-5, (u32)(u64)mem}),
              VEC_RETURN);
    report("bound, outside is #BR, RIP at it",
           run(c_bound_bad, (struct in){11, (u32)(u64)mem}) == 5 && trap.r.rip == (u64)c_bound_at);
    run(c_arpl, (struct in){3, 0x40});
    report("arpl raises the RPL", OUT(bx) == 0x43 && OUT(cx) == 1);
    run(c_arpl, (struct in){1, 0x42});
    report("arpl leaves a higher one", OUT(bx) == 0x42 && OUT(cx) == 0);
    mem[0] = 0x12345678;
    mem[1] = UDS;
    run(c_lds, (struct in){0, (u32)(u64)mem});
    report("lds", OUT(ax) == 0x12345678 && OUT(cx) == UDS);
    run(c_les, (struct in){0, (u32)(u64)mem});
    report("les", OUT(ax) == 0x12345678 && OUT(cx) == UDS);
    mem[1] = GDT_END;
    report("les of a bad selector is #GP(sel)",
           run(c_les, (struct in){0, (u32)(u64)mem}) == GP && trapped(GP, GDT_END));
    run(c_salc, (struct in){0});
    report("salc", OUT(bx) == 0xff && OUT(cx) == 0);
    run(c_82, (struct in){1});
    report_eq("opcode 82", OUT(ax), 6);
    run(c_pushseg, (struct in){0});
    report("push of every segment register",
           OUT(ax) == UCS32 && OUT(bx) == UDS && OUT(cx) == UDS && OUT(dx) == UDS);
    run(c_popseg, (struct in){0});
    report("pop of segment registers", OUT(ax) == UDS && OUT(bx) == UDS);
    run(c_pushw, (struct in){0});
    report("pushw", OUT(ax) == 0x1234 && OUT(cx) == 2);
    run(c_jcxz, (struct in){0});
    report_eq("jcxz looks at 16 bits", OUT(ax), 0);
    run(c_loopw, (struct in){0});
    report("loop with 16-bit count", OUT(ax) == 3 && OUT(cx) == 0x30000);
    mem[0] = 0x44332211;
    run(c_xlat, (struct in){0, (u32)(u64)mem});
    report_eq("xlat", OUT(ax), 0x33);
    run(c_enter, (struct in){0});
    report_eq("enter, leave", OUT(ax), 20);
    run(c_callret, (struct in){0});
    report_eq("call, ret", OUT(ax), 2);
    run(c_retn, (struct in){0});
    report_eq("ret n", OUT(ax), 1);
    run(c_eip, (struct in){0});
    report_eq("call and pop for EIP", OUT(ax), 0);
    mem[2] = 0;
    run(c_moffs, (struct in){0});
    report("moffs of 32 bits", OUT(ax) == 0x44332211 && OUT(bx) == 0x11);
    run(c_lea16, (struct in){0});
    report_eq("16-bit address arithmetic wraps", OUT(ax), 0x0003);
    mem[0] = 5;
    mem[1] = 6;
    run(c_cmpxchg8b, (struct in){5, 1, 2, 6, (u32)(u64)mem, 0, 0});
    report("cmpxchg8b", mem[0] == 1 && mem[1] == 2 && (OUT(bx) & 0xff) == 1);
    run(c_bswap, (struct in){0x11223344, 0x55667788, 0x99aabbcc, 0xddeeff00});
    report("bswap, shld, shrd",
           OUT(ax) == 0x44332211 && OUT(bx) == 0x66778844 && OUT(cx) == 0x0099aabb);
    run(c_sse, (struct in){21});
    report_eq("SSE", OUT(ax), 42);
    run(c_x87, (struct in){21});
    report_eq("x87", OUT(ax), 42);
    run(c_bits, (struct in){2, 0, 0, 0, (u32)(u64)mem});
    report("bt takes the bit number modulo 32", OUT(bx) == 1);
    memcpy(ustack, "0123456789", 10);
    run(c_string, (struct in){0, 0, 10, 0, (u32)(u64)ustack, (u32)(u64)ustack + 100});
    report("rep movsb", OUT(cx) == 0 && !memcmp(ustack + 100, "0123456789", 10) &&
                            OUT(si) == (u32)(u64)ustack + 10);
    for (unsigned i = 0; i < 1000; i++)
        ((u32 *)ustack)[i] = i * 0x9e3779b9;
    run(c_string_carry, (struct in){0, 0, 250, 0, (u32)(u64)ustack + 3, (u32)(u64)ustack + 4001});
    report("rep movsl: 1000 bytes, flags pass through", OUT(ax) == 1 && OUT(cx) == 0 && OUT(si) == (u32)(u64)ustack + 1003 &&
           OUT(di) == (u32)(u64)ustack + 5001 && !memcmp(ustack + 4001, ustack + 3, 1000));
}

/* -- Addresses
 * ------------------------------------------------------------------------------------------------
 */

F(a_wrap, "mov 0x10(%ebx), %eax")
F(a_wrap_sib, "mov 0x10(%ebx,%ecx,4), %eax")
F(a_esp,
  "mov %esp, %edx; mov %ebx, %esp; push $0x77; mov %esp, %ecx; mov %edx, %esp; mov -4(%ebx), %eax")
F(a_gs,
  "mov %ecx, %gs; mov %gs:(%ebx), %eax; movl $0x99, %gs:4(%ebx); xor %ecx, %ecx; mov %ecx, %gs")
F(a_ds, "push %ds; mov %ecx, %ds; mov (%ebx), %eax; mov %ss:(%esp), %edx; pop %ds")
F(a_es, "push %es; mov %ecx, %es; mov $0x41, %al; mov %ebx, %edi; cld; stosb; pop %es")
F(a_fslods, "mov %ecx, %fs; xor %eax, %eax; cld; lodsb %fs:(%esi); xor %ecx, %ecx; mov %ecx, %fs")
F(a_lea, "mov %ecx, %gs; .byte 0x65; lea 4(%ebx), %eax; xor %ecx, %ecx; mov %ecx, %gs")
F(a_null, "mov %ecx, %gs; mov %gs:(%ebx), %eax")
F(a_limit, "mov %ecx, %gs; mov %gs:(%ebx), %eax; xor %ecx, %ecx; mov %ecx, %gs")
F(a_wr, "mov %ecx, %gs; movl $1, %gs:(%ebx)")
F(a_jmp, "jmp *%ebx")

static u64 ldt[8] __attribute__((aligned(16)));

static void addresses(void)
{
    u32 *low = (u32 *)0x40000010ull;
    map((void *)PAGE3, page_alloc(), PTE_P | PTE_W | PTE_U);
    *low = 0x5a5a;
    unsigned v = run(a_wrap, (struct in){0, 0x40000000});
    report("base and displacement", v == VEC_RETURN && OUT(ax) == 0x5a5a);
    run(a_wrap_sib, (struct in){0, 0xf0000000, 0x14000000});
    report("32-bit effective addresses wrap", trap.vec == VEC_RETURN && OUT(ax) == 0x5a5a);
    v = run(a_wrap, (struct in){0, 0xfffffff8});
    report("wrapping to address 8", v == VEC_RETURN);
    *(volatile u32 *)0x8 = 0xabcd;
    run(a_wrap, (struct in){0, 0xfffffff8});
    report_eq("and reading there", OUT(ax), 0xabcd);
    run(a_esp, (struct in){0, 0x40000100});
    report("push elsewhere", OUT(ax) == 0x77 && OUT(cx) == 0x400000fc);

    /* rep across the top: from the last page to the first. */
    u64 large = pages_alloc(512, 2 << 20), top = large + (2 << 20) - PAGE;
    map_level((void *)0xffe00000ull, large, PTE_P | PTE_W | PTE_U, 2);
    u8 keep[64];
    memcpy(keep, (void *)0, 64);
    for (unsigned i = 0; i < 2; i++) {
        v = run(c_string_store, (struct in){0x1234 + i, 0, 60, 0, 0, 0xffffffb0});
        report("rep stosw wraps at 4 GiB", v == VEC_RETURN && OUT(di) == 40 && OUT(cx) == 0 && *(volatile u16 *)(top + 0xffe) == 0x1234 + i &&
               *(volatile u16 *)38 == 0x1234 + i && *(volatile u16 *)0 == 0x1234 + i);
    }
    v = run(c_string, (struct in){0, 0, 100, 0, 0xffffffce, 0x40000200});
    report("rep movsb as well", v == VEC_RETURN && OUT(si) == 50 && OUT(di) == 0x40000264 && !memcmp((void *)0x40000200, (void *)(top + PAGE - 50), 50) &&
           !memcmp((void *)0x40000232, (void *)0, 50));
    memcpy((void *)0, keep, 64);
    map_level((void *)0xffe00000ull, 0xffe00000, PTE_P | PTE_W, 2);

    ldt[1] = seg_desc(0x40000000, 0xfff, 0xf3, 4);     /* byte limit 4095 */
    ldt[2] = seg_desc(0xfffff000, 0xfffff, 0xf3, 0xc); /* base near the top: wraps */
    ldt[3] = seg_desc(0x40000000, 0xfff, 0xf1, 4);     /* read-only */
    ldt[4] = seg_desc(0x40000000, 0x7ff, 0xf7, 4);     /* expand-down: valid above 0x7ff */
    ldt_load(ldt, sizeof(ldt) - 1);
    *low = 0x6b6b;
    v = run(a_gs, (struct in){0, 0x10, 1 << 3 | 7});
    report("GS with a base from the LDT", v == VEC_RETURN && OUT(ax) == 0x6b6b && low[1] == 0x99);
    v = run(a_ds, (struct in){0, 0x10, 1 << 3 | 7});
    report("DS with a base", v == VEC_RETURN && OUT(ax) == 0x6b6b && OUT(dx) == UDS);
    v = run(a_es, (struct in){0, 0x20, 1 << 3 | 7});
    report("ES with a base, stosb", v == VEC_RETURN && *(u8 *)0x40000020 == 0x41);
    *(volatile u8 *)0x40000030 = 0x77;
    v = run(a_fslods, (struct in){0, 0, 1 << 3 | 7, 0, 0x30});
    report("FS with a base, lodsb", v == VEC_RETURN && (u8)OUT(ax) == 0x77);
    v = run(a_lea, (struct in){0, 0x10, 1 << 3 | 7});
    report("lea has no base", v == VEC_RETURN && OUT(ax) == 0x14);
    v = run(a_gs, (struct in){0, 0x40001010, 2 << 3 | 7});
    report("a linear address wraps at 4 GiB", v == VEC_RETURN && OUT(ax) == 0x6b6b);
    report("a null GS: #GP(0)", run(a_null, (struct in){0, 0x10, 0}) == GP && trapped(GP, 0));
    report("beyond the limit: #GP(0)",
           run(a_limit, (struct in){0, 0x1000, 1 << 3 | 7}) == GP && trapped(GP, 0));
    report("across the limit: #GP(0)",
           run(a_limit, (struct in){0, 0xffd, 1 << 3 | 7}) == GP && trapped(GP, 0));
    report_eq("the last four bytes within", run(a_limit, (struct in){0, 0xffc, 1 << 3 | 7}),
              VEC_RETURN);
    report("a read-only segment refuses stores: #GP(0)",
           run(a_wr, (struct in){0, 0x10, 3 << 3 | 7}) == GP && trapped(GP, 0));
    report("expand-down: below its limit is #GP(0)",
           run(a_limit, (struct in){0, 0x10, 4 << 3 | 7}) == GP && trapped(GP, 0));
    report_eq("expand-down: above it", run(a_limit, (struct in){0, 0x800, 4 << 3 | 7}), VEC_RETURN);
    report("#PF has the linear address",
           run(a_gs, (struct in){0, 0x100, 1 << 3 | 7}) == VEC_RETURN && ({
               unmap((void *)PAGE3);
               run(a_limit, (struct in){0, 0x100, 1 << 3 | 7}) ==
                   PF &&faulted(PF_U, (void *)(PAGE3 + 0x100));
           }));
    report("a jump to nowhere: #PF with U and I",
           run(a_jmp, (struct in){0, 0x50000000}) == PF && (trap.r.err & ~(u64)PF_I) == PF_U &&
               trap.cr2 == 0x50000000 && trap.r.rip == 0x50000000);
    asm volatile("lldt %w0" ::"r"(0));
}

/* -- Between the widths
 * ------------------------------------------------------------------------------------------ */

/* 32-bit code calls into 64-bit code and comes back. */
F(f_far, "lcall $0x33, $f_in64; f_far_back: mov %cs, %edx")
USER_ASM(
    "f_in64: movabs $0x1122334455667788, %rax; shr $32, %rax; mov %cs, %ecx; mov 4(%rsp), %ebx; lretl");
F(f_farmem, "lcall *(%ebx)")
F(f_jmp64, "ljmp $0x33, $f_jmp64_in")
USER_ASM("f_jmp64_in: mov %rsp, %rbx; mov $1, %eax; shl $40, %rax; int $0x81");
USER_ASM("g_to32: push $0x23; push $g_in32; lretq");
USER_ASM_32("g_in32: .byte 0x40; mov %cs, %ecx; mov %esp, %ebx; int $0x81");
F(f_lret, "push %cs; call 1f; jmp 2f; 1: lret; 2: mov $4, %eax")
F(f_lretn, "push $0x55; push %cs; call 1f; jmp 2f; 1: lret $4; 2: mov $5, %eax")
F(f_int80, "mov $0x80, %eax; int $0x80; f_int80_back: nop")
F(f_iret, "pushf; push %cs; push $1f; iret; 1: mov $6, %eax")
F(f_bad, "lcall $0x10, $0")
F(f_gate, "lcall $0x68, $0")
extern char g_to32[], f_far_back[], f_int80_back[];

USER_ASM("both_widths: .byte 0x48, 0x90, 0xbb, 1, 0, 0, 0, 0xc3"); /* dec eax; nop (or rex.w nop);
                                                                      mov $1, %ebx; ret */
extern char both_widths[];

static void on_int80(struct regs *r)
{
    r->rax += 0x100000001ull; /* 32-bit code never sees the upper half */
}

KERNEL_ASM(
    "gate_entry: mov %rsp, gate_rsp\n mov (%rsp), %rax\n mov %rax, gate_frame\n mov 8(%rsp), %rax\n mov %rax, gate_frame+8\n"
    "mov 16(%rsp), %rax\n mov %rax, gate_frame+16\n mov 24(%rsp), %rax\n mov %rax, gate_frame+24\n mov $0x1234, %eax\n lretq");
extern char gate_entry[];
u64 gate_rsp, gate_frame[4];

static void widths(void)
{
    unsigned v = run(f_far, (struct in){0});
    report("far call to 64-bit code and back", v == VEC_RETURN && OUT(ax) == 0x11223344 &&
                                                   OUT(cx) == UCS64 && OUT(dx) == UCS32 &&
                                                   OUT(bx) == UCS32);
    struct {
        u32 off;
        u16 sel;
    } *far = (void *)ustack;
    extern char f_in64[];
    far->off = (u32)(u64)f_in64;
    far->sel = UCS64;
    v = run(f_farmem, (struct in){0, (u32)(u64)far});
    report("far call through memory", v == VEC_RETURN && OUT(ax) == 0x11223344);
    v = run(f_jmp64, (struct in){0});
    report("far jump to 64-bit code", v == VEC_RETURN && trap.r.cs == UCS64 &&
                                          trap.r.rax == BIT(40) &&
                                          trap.r.rbx == (u64)ustack + sizeof(ustack) - 68);
    struct regs r;
    user_regs(&r, g_to32, false);
    r.rax = 10;
    v = user_run(&r);
    report("lretq to 32-bit code", v == VEC_RETURN && OUT(ax) == 11 && OUT(cx) == UCS32);
    v = run(f_lret, (struct in){0});
    report("far return within 32-bit code", v == VEC_RETURN && OUT(ax) == 4);
    v = run(f_lretn, (struct in){0});
    report("far return with an operand", v == VEC_RETURN && OUT(ax) == 5);
    v = run(f_iret, (struct in){0});
    report("iret within 32-bit code", v == VEC_RETURN && OUT(ax) == 6);
    report("far call to the kernel's segment: #GP(sel)",
           run(f_bad, (struct in){0}) == GP && trapped(GP, KCS));
    trap_handle(0x80, on_int80);
    v = run(f_int80, (struct in){0});
    report("int 0x80 and back", v == VEC_RETURN && OUT(ax) == 0x81);
    trap_handle(0x80, NULL);
    v = run(f_int80, (struct in){0});
    report("int 0x80: the frame", v == 0x80 && trap.r.rip == (u64)f_int80_back &&
                                      trap.r.cs == UCS32 && trap.r.ss == UDS &&
                                      trap.r.rsp == (u64)ustack + sizeof(ustack) - 68);

    /* A 64-bit call gate from 32-bit ring 3. */
    u64 e = (u64)gate_entry;
    gdt_set(GDT_FREE, (e & 0xffff) | (u64)KCS << 16 | (u64)0xec << 40 | (e >> 16 & 0xffff) << 48);
    gdt_set(GDT_FREE + 8, e >> 32);
    v = run(f_gate, (struct in){0});
    report("call gate to ring 0 and far return", v == VEC_RETURN && OUT(ax) == 0x1234);
    report("call gate: the frame on RSP0", gate_frame[1] == UCS32 && gate_frame[3] == UDS &&
                                               gate_frame[2] == (u64)ustack + sizeof(ustack) - 68);
    gdt_set(GDT_FREE, ((e & 0xffff) | (u64)KCS << 16 | (u64)0x8c << 40 | (e >> 16 & 0xffff) << 48));
    report("call gate with DPL 0: #GP(sel)",
           run(f_gate, (struct in){0}) == GP && trapped(GP, GDT_FREE));
    gdt_set(GDT_FREE, 0);
    gdt_set(GDT_FREE + 8, 0);

    /* The same bytes mean different things in the two widths. */
    struct in in = {1, 2, 3, 4, 5, 6, 0};
    bool ok = true;
    for (int i = 0; i < 100; i++) {
        run(both_widths, in);
        ok &= OUT(ax) == 0 && OUT(bx) == 1;
        user_regs(&r, both_widths, false);
        r.rax = 1;
        r.rsp -= 8;
        *(u64 *)r.rsp = (u64)user_return;
        user_run(&r);
        ok &= trap.r.rbx == 1 && trap.r.rax == 1;
    }
    report("one function run in both widths by turns", ok);
}

int main(void)
{
    opcodes();
    addresses();
    widths();
    return 0;
}
