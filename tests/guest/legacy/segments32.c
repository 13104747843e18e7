/* Segments in 32- and 16-bit protected mode (SDM vol. 3 §3.4, §5): bases, limits, types, expand-down, stack and code size
 * bits, call gates and returns between levels, LDT. Most of it runs at ring 3, so that traps find a flat stack. */
#include "legacy/lib/legacy.h"

enum { BASE = GDT_FREE, RO = GDT_FREE + 8, DOWN = GDT_FREE + 16, DOWN32 = GDT_FREE + 24, XO = GDT_FREE + 32, CODE_LIM = GDT_FREE + 40,
       U16 = GDT_FREE + 48, S16 = GDT_FREE + 56, CONF = GDT_FREE + 64, GATE = GDT_FREE + 72, GATE16 = GDT_FREE + 80, NP_ = GDT_FREE + 88,
       K16 = GDT_FREE + 96, HIGH = GDT_FREE + 104, NPGATE = GDT_FREE + 112, GATE0 = GDT_FREE + 120, U16B = GDT_FREE + 128, WRAP = GDT_FREE + 136,
       R1C = GDT_FREE + 144, R1D = GDT_FREE + 152, GATER1 = GDT_FREE + 160, TOP = GDT_FREE + 168 };
static u8 area[8192] __attribute__((aligned(4096)));
volatile u32 g_out[16];
static u64 ldt[4];

/* EAX = selector | offset << 16 in the word tests below */
SYM(u_load8);
SYM(u_load16);
SYM(u_load32);
SYM(u_store8);
SYM(u_store32);
SYM(u_movsel);
SYM(u_movss);
SYM(u_rep);
SYM(u_stack16);
SYM(u_stack16_push);
SYM(u_jmp16);
SYM(u_jmp16b);
SYM(u_lcall_gate);
SYM(u_lcall_gate16);
SYM(u_far);
SYM(u_far_ind);
SYM(u_end);
SYM(gate_fn);
SYM(gate16_fn);
SYM(gater1_fn);
SYM(u_conf);
SYM(conf_fn);
SYM(u_codelim);
SYM(u_lsl);
SYM(u_verw);
SYM(u_lar);
SYM(u_lds);
SYM(u_jmp_wrap16);
SYM(u_push16);
SYM(u_ret16);
SYM(u_movs_cross);
SYM(u_xlat);
SYM(u_cs_read);
SYM(u_cs_write);
SYM(k_iret_16);
SYM(u_null);
SYM(u_jmp_beyond);
SYM(u_call_beyond);
SYM(u_ret_beyond);
SYM(u_jcc_beyond);
SYM(u_loop_beyond);
SYM(u_wrapla);
SYM(u_enter16);
SYM(l_data);
CODE32("u_load8: mov %eax, %ebx\n shr $16, %ebx\n mov %ax, %fs\n movzbl %fs:(%ebx), %eax\n int $0x81");
CODE32("u_load16: mov %eax, %ebx\n shr $16, %ebx\n mov %ax, %fs\n movzwl %fs:(%ebx), %eax\n int $0x81");
CODE32("u_load32: mov %eax, %ebx\n shr $16, %ebx\n mov %ax, %fs\n mov %fs:(%ebx), %eax\n int $0x81");
CODE32("u_store8: mov %eax, %ebx\n shr $16, %ebx\n mov %ax, %fs\n movb $0x5a, %fs:(%ebx)\n int $0x81");
CODE32("u_store32: mov %eax, %ebx\n shr $16, %ebx\n mov %ax, %ds\n movl $0x5a5a5a5a, (%ebx)\n int $0x81");
CODE32("u_movsel: mov %ax, %es\n mov %es, %eax\n int $0x81");
CODE32("u_movss: mov %ax, %ss\n int $0x81");
CODE32("u_rep: mov %ax, %es\n mov %eax, %edi\n shr $16, %edi\n mov $64, %ecx\n mov $0xe7, %al\n cld\n rep stosb\n int $0x81");
/* a 16-bit stack: SP wraps, the rest of ESP stays */
CODE32("u_stack16: mov %ax, %ss\n mov $0x12340004, %esp\n push $0x11\n push $0x22\n mov %esp, %ecx\n pop %ebx\n pop %edx\n mov %esp, %eax\n"
       "mov $0x33, %esi\n mov %ss, %di\n int $0x81");
CODE32("u_stack16_push: mov %ax, %ss\n mov $0xabcd0100, %esp\n mov %esp, %ebp\n call 1f\n 1: pop %ecx\n enter $16, $0\n mov %esp, %edx\n leave\n"
       "mov %esp, %eax\n pusha\n popa\n int $0x81");
CODE32("u_jmp16: mov $0x55, %ebx\n push %eax\n pushl $u16_code\n lret");
LOW("u16_code: mov $0x1234, %cx\n call 1f\n 1: pop %dx\n sub $1b, %dx\n mov %sp, %si\n pushl $0x99\n pop %edi\n int $0x81");
CODE32("u_jmp16b: mov $0x55, %ebx\n push %eax\n pushl $u16b_code\n lret");
LOW("u16b_code: mov %cs:u16b_data, %eax\n mov $u16b_ind, %bx\n jmp *%bx\n u16b_bad: xor %eax, %eax\n int $0x81\n u16b_data: .long 0x600dbeef\n"
    "u16b_ind: call 1f\n int $0x81\n 1: mov %sp, %bp\n movzwl %ss:(%esp), %edx\n sub $u16b_ind + 3, %edx\n ret");
/* parameters: two dwords, copied to the inner stack and dropped from both */
CODE32("u_lcall_gate: push $0x1111\n push $0x2222\n mov %esp, %esi\n lcall $0xa0 | 3, $0\n mov %esp, %edi\n mov %cs, %cx\n int $0x81");
CODE32("gate_fn: mov 8(%esp), %eax\n mov 12(%esp), %edx\n mov 16(%esp), %ebx\n mov %cs, %bp\n lret $8");
CODE32("u_lcall_gate16: push %eax\n pushl $c_gate16\n lret");
LOW("c_gate16: mov %sp, %si\n pushw $0x3333\n pushw $0x4444\n lcall $0xa8 | 3, $0\n mov %sp, %di\n int $0x81");
LOW("gate16_fn: mov %esp, %ebp\n mov 4(%ebp), %ax\n mov 6(%ebp), %dx\n lret $4");
CODE32("gater1_fn: mov %cs, %ax\n mov %ss, %dx\n lret");
CODE32("u_far: push %eax\n pushl $u_end\n lret");
CODE32("u_far_ind: movl $u_end, g_out\n mov %ax, g_out + 4\n ljmp *g_out");
CODE32("u_end: mov %cs, %eax\n int $0x81");
CODE32("u_conf: lcall $0x98, $conf_fn\n mov %cs, %ecx\n int $0x81");
CODE32("conf_fn: mov %cs, %eax\n lret");
CODE32("u_codelim: push %eax\n pushl $0\n lret");
CODE32("u_lsl: mov $-1, %ebx\n lsl %ax, %ebx\n jz 1f\n mov $-1, %ebx\n 1: int $0x81");
CODE32("u_lar: mov $-1, %ebx\n lar %ax, %ebx\n jz 1f\n mov $-1, %ebx\n 1: int $0x81");
CODE32("u_verw: xor %ebx, %ebx\n verr %ax\n setz %bl\n verw %ax\n setz %bh\n int $0x81");
CODE32("u_lds: mov %eax, g_out + 4\n movl $0x123, g_out\n les g_out, %ecx\n mov %es, %edx\n int $0x81");
CODE32("u_push16: mov %esp, %esi\n pushw $0x1234\n pushw %fs\n sub %esp, %esi\n add $4, %esp\n pushl %fs\n pop %ebx\n int $0x81");
CODE32("u_movs_cross: mov %ax, %es\n shr $16, %eax\n mov %eax, %edi\n mov $area, %esi\n mov $8, %ecx\n cld\n rep movsl\n int $0x81");
CODE32("u_xlat: mov %ax, %fs\n mov $8, %ebx\n mov $3, %al\n fs xlat\n movzbl %al, %eax\n int $0x81");
CODE32("u_cs_read: mov %cs:g_out, %eax\n int $0x81");
CODE32("u_cs_write: movl $1, %cs:g_out\n int $0x81");
CODE32("u_null: xor %eax, %eax\n mov %ax, %gs\n mov %gs:g_out, %eax\n int $0x81");
/* leaves of 16-bit code with a limit of 0x8fff..: targets beyond it */
CODE32("u_jmp_beyond: push %eax\n pushl $j_beyond\n lret");
LOW("j_beyond: jmp . + 0x3000");
CODE32("u_call_beyond: push %eax\n pushl $c_beyond\n mov %esp, %ebx\n lret");
LOW("c_beyond: call . + 0x3000");
CODE32("u_ret_beyond: push %eax\n pushl $r_beyond\n lret");
LOW("r_beyond: pushw $0xb000\n r_beyond_ret: ret");
CODE32("u_jcc_beyond: push %eax\n pushl $jc_beyond\n lret");
LOW("jc_beyond: stc\n jnc jc_bad\n mov $7, %cx\n jc_at: jc . + 0x3000\n jc_bad: int $0x81");
CODE32("u_loop_beyond: push %eax\n pushl $0x8ffe - 0x7f + 0x7f\n lret");
CODE32("u_wrapla: mov %ax, %fs\n mov $0x1000, %ebx\n mov %fs:area(%ebx), %eax\n int $0x81");
CODE32("u_enter16: mov %ax, %ss\n mov $0x55550200, %esp\n mov $0x66660180, %ebp\n movl $0x11112222, %ss:0x17c\n enter $8, $2\n mov %esp, %eax\n"
       "mov %ebp, %ebx\n mov %ss:0x1f8, %ecx\n int $0x81");
SYM(r_beyond_ret);
SYM(jc_at);
SYM(j_beyond);
SYM(c_beyond);

static void seg_user(unsigned sel, u32 base, u32 limit, unsigned access, unsigned flags) { gdt_set(sel, base, limit, access, flags); }
static void good(const char *name, const void *code, u32 arg, u32 want)
{
    unsigned vec = run_user(code, arg, 0);
    if (vec != VEC_RETURN)
        print("# vector %u error %x at %x\n", vec, trap.err, trap.eip);
    report_eq(name, vec == VEC_RETURN ? trap.eax : ~0ull, want);
}
static void bad(const char *name, const void *code, u32 arg, unsigned vec, u32 err)
{
    run_user(code, arg, 0);
    report(name, trapped(vec, err));
}
#define AT(sel, off) ((u32)(sel) | 3u | (u32)(off) << 16)

static void limits(void)
{
    bad("a byte beyond the limit: #GP", u_load8, AT(BASE, 256), GP, 0);
    bad("a word across it: #GP", u_load16, AT(BASE, 255), GP, 0);
    bad("a dword across it: #GP", u_load32, AT(BASE, 253), GP, 0);
    bad("a store beyond it: #GP", u_store8, AT(BASE, 256), GP, 0);
    bad("a read-only segment: #GP on a store", u_store32, AT(RO, 0), GP, 0);
    bad("expand-down: below the limit: #GP", u_load8, AT(DOWN, 0x7ff), GP, 0);
    bad("expand-down: a word half below: #GP", u_load16, AT(DOWN, 0x7ff), GP, 0);
    bad("expand-down, B clear: beyond ffff: #GP", u_load16, AT(DOWN, 0xffff), GP, 0);
    bad("an execute-only segment: loading it as data is #GP", u_load8, AT(XO, 0), GP, XO);
    bad("a null selector: #GP on use", u_null, 0, GP, 0);
    bad("rep stosb into the limit: #GP", u_rep, AT(BASE, 240), GP, 0);
    report_eq("... ECX shows how far it came", trap.ecx, 64 - 16);
    report_eq("... EDI too", trap.edi, 256);
    report_eq("... those were written", area[256 + 255], 0xe7);
    bad("rep movsl into the limit: #GP", u_movs_cross, AT(BASE, 0xf0), GP, 0);
    report_eq("... ECX", trap.ecx, 4);
    bad("writing through CS: #GP", u_cs_write, 0, GP, 0);
    bad("a code segment's limit: #GP at the fetch", u_codelim, CODE_LIM | 3, GP, 0);
    report_eq("... at the first byte beyond", trap.eip, 0x10);
    seg_user(U16, 0, 0x9fff, 0xfb, 0);
    bad("16-bit jmp beyond the limit: #GP", u_jmp_beyond, U16 | 3, GP, 0);
    report_eq("... at the jump", trap.eip, (u32)j_beyond);
    bad("16-bit call beyond the limit: #GP", u_call_beyond, U16 | 3, GP, 0);
    report("... at the call, nothing pushed", trap.eip == (u32)c_beyond && trap.esp == trap.ebx + 8);
    bad("16-bit ret beyond the limit: #GP", u_ret_beyond, U16 | 3, GP, 0);
    report_eq("... at the ret", trap.eip, (u32)r_beyond_ret);
    bad("16-bit jc beyond the limit: #GP", u_jcc_beyond, U16 | 3, GP, 0);
    report("... at the jc, CF kept", trap.eip == (u32)jc_at && (trap.eflags & FL_CF) && (u16)trap.ecx == 7);
    seg_user(U16, 0, 0xffff, 0xfb, 0);
}

int main(void)
{
    for (unsigned i = 0; i < sizeof(area); i++)
        area[i] = (u8)(i * 5);
    seg_user(BASE, (u32)area + 256, 255, 0xf3, 4);
    seg_user(RO, (u32)area, 0xfff, 0xf1, 4);
    seg_user(DOWN, (u32)area, 0x7ff, 0xf7, 0);
    seg_user(DOWN32, 0, 0x3ff, 0xf7, 12); /* above 4 MiB - 1 */
    seg_user(XO, 0, 0xfffff, 0xf9, 12);
    seg_user(CODE_LIM, (u32)area, 0xf, 0xfb, 4);
    seg_user(U16, 0, 0xffff, 0xfb, 0);
    seg_user(S16, 0x60000, 0xffff, 0xf3, 0);
    gdt_set(CONF, 0, 0xfffff, 0x9f, 12);
    gdt_set(NP_, 0, 0xfffff, 0x73, 12);
    seg_user(HIGH, 0x80000000, 0xfffff, 0xf3, 12);
    seg_user(WRAP, 0xfffff000, 0xfffff, 0xf3, 12);
    low_copy(0x700000);
    seg_user(U16B, 0x700000, 0xffff, 0xfb, 0);
    seg_user(TOP, 0, 0xfffff, 0xf3, 12);
    gate_set(gdt, GATE / 8, KCS, (u32)gate_fn, 0xec);
    ((u8 *)&gdt[GATE / 8])[4] = 2;
    gate_set(gdt, GATE16 / 8, KCS16, (u32)gate16_fn, 0xe4);
    ((u8 *)&gdt[GATE16 / 8])[4] = 2;
    gate_set(gdt, NPGATE / 8, KCS, (u32)gate_fn, 0x6c);
    gate_set(gdt, GATE0 / 8, KCS, (u32)gate_fn, 0x8c);
    gdt_set(R1C, 0, 0xfffff, 0xbb, 12);
    gdt_set(R1D, 0, 0xfffff, 0xb3, 12);
    gate_set(gdt, GATER1 / 8, R1C | 1, (u32)gater1_fn, 0xec);

    good("a base", u_load8, AT(BASE, 3), (u8)((256 + 3) * 5));
    good("the last byte", u_load8, AT(BASE, 255), (u8)(511 * 5));
    good("the last word", u_load16, AT(BASE, 254), *(u16 *)(area + 510));
    good("a read-only segment", u_load32, AT(RO, 8), *(u32 *)(area + 8));
    good("expand-down: above the limit", u_load8, AT(DOWN, 0x801), (u8)(0x801 * 5));
    good("xlat with a segment", u_xlat, BASE | 3, (u8)((256 + 8 + 3) * 5));
    good("a base that wraps", u_wrapla, WRAP | 3, *(u32 *)area);
    if (on_tcg())
        skip("limits and types", "TCG checks none");
    else
        limits();
    bad("a segment that is not present: #NP", u_movsel, NP_ | 3, NP, NP_);
    bad("a DPL 0 segment from ring 3: #GP", u_movsel, KDS, GP, KDS);
    bad("a system segment: #GP", u_movsel, TSS_SEL | 3, GP, TSS_SEL);
    bad("beyond the GDT: #GP", u_movsel, 0x1003, GP, 0x1000);
    bad("SS null: #GP(0)", u_movss, 0, GP, 0);
    bad("SS read-only: #GP", u_movss, RO | 3, GP, RO);
    bad("SS with RPL 0: #GP", u_movss, UDS & ~3, GP, UDS & ~3);
    bad("SS not present: #SS", u_movss, NP_ | 3, SS, NP_);
    good("null in ES", u_movsel, 0, 0);
    good("les", u_lds, BASE | 3, BASE | 3);
    report("... offset and selector", trap.ecx == 0x123 && (u16)trap.edx == (BASE | 3));
    good("push of 16 bits", u_push16, 0, 0);
    report_eq("... four bytes for two", trap.esi, 4);
    good("reading through CS", u_cs_read, 0, g_out[0]);

    good("a 16-bit stack", u_stack16, S16 | 3, 0x12340004);
    report_eq("... SP wrapped, the upper half of ESP stayed", trap.ecx, 0x1234fffc);
    report("... values", trap.ebx == 0x22 && trap.edx == 0x11);
    good("call, enter, leave, pusha on it", u_stack16_push, S16 | 3, 0xabcd0100);
    report_eq("... enter", trap.edx, 0xabcd00ec);
    good("enter with a nesting level on it", u_enter16, S16 | 3, 0x555501ec);
    report("... EBP and the copied frame pointer", trap.ebx == 0x555501fc && trap.ecx == 0x11112222);

    run_user(u_jmp16, U16 | 3, 0);
    report("16-bit code", trap.vec == VEC_RETURN && (u16)trap.ecx == 0x1234 && (u16)trap.edx == 0 && trap.edi == 0x99);
    report_eq("... CS", trap.cs, U16 | 3);
    run_user(u_jmp16b, U16B | 3, 0);
    report("16-bit code with a base", trap.vec == VEC_RETURN && trap.eax == 0x600dbeef && trap.edx == 0);
    good("far return to another selector", u_far, UCS, UCS);
    good("far jmp through memory", u_far_ind, UCS, UCS);
    bad("... to a data segment: #GP", u_far_ind, UDS, GP, UDS & ~3);
    bad("... to ring 0: #GP", u_far_ind, KCS, GP, KCS);
    bad("... to null: #GP(0)", u_far_ind, 0, GP, 0);
    run_user(u_conf, 0, 0);
    report("a conforming segment keeps the level", trap.vec == VEC_RETURN && (u16)trap.eax == (CONF | 3) && (u16)trap.ecx == UCS);

    good("a call gate to ring 0: first parameter", u_lcall_gate, 0, 0x2222);
    report("... the second, the outer ESP, the level", trap.edx == 0x1111 && trap.ebx == trap.esi && (u16)trap.ebp == KCS);
    report_eq("... lret n drops them from the outer stack", trap.edi, trap.esi + 8);
    report_eq("... CS", (u16)trap.ecx, UCS);
    run_user(u_lcall_gate16, U16 | 3, 0);
    report("a 16-bit call gate", trap.vec == VEC_RETURN && (u16)trap.eax == 0x4444 && (u16)trap.edx == 0x3333);
    report_eq("... SP", (u16)trap.edi, (u16)trap.esi);
    static const u8 via[] = { 0x9a, 0, 0, 0, 0, 0, 0, 0xcd, 0x81 };
    static u8 code[16];
    memcpy(code, via, sizeof(via));
    *(u16 *)(code + 5) = NPGATE | 3;
    bad("a gate that is not present: #NP", code, 0, NP, NPGATE);
    *(u16 *)(code + 5) = GATE0 | 3;
    bad("a gate with DPL 0: #GP", code, 0, GP, GATE0);
    *(u16 *)(code + 5) = GATER1 | 3;
    tss.esp1 = (u32)istack + 1024;
    tss.ss1 = R1D | 1;
    run_user(code, 0, 0);
    report("a call gate to ring 1", trap.vec == VEC_RETURN && (u16)trap.eax == (R1C | 1) && (u16)trap.edx == (R1D | 1));
    tss.ss1 = KDS;
    run_user(code, 0, 0);
    report("... a bad SS1: #TS", trapped(TS, KDS));
    tss.ss1 = 0;
    run_user(code, 0, 0);
    report("... a null SS1: #TS(0)", trapped(TS, 0));
    tss.ss1 = R1D | 1;
    code[0] = 0xea;
    *(u16 *)(code + 5) = GATE | 3;
    bad("jmp through a gate to an inner level: #GP", code, 0, GP, KCS);

    run_user(u_lsl, BASE | 3, 0);
    report_eq("lsl", trap.ebx, 255);
    run_user(u_lsl, UDS, 0);
    report_eq("lsl with G", trap.ebx, 0xffffffff);
    run_user(u_lsl, KDS, 0);
    report_eq("lsl of what ring 3 may not see", trap.ebx, 0xffffffff);
    run_user(u_lar, BASE | 3, 0);
    report_eq("lar", trap.ebx & 0xf0ff00, 0x40f300);
    run_user(u_verw, RO | 3, 0);
    report_eq("verr and verw of a read-only segment", trap.ebx, 1);
    run_user(u_verw, XO | 3, 0);
    report_eq("... of an execute-only one", trap.ebx, 0);

    /* What SGDT and SIDT store: six bytes, in a page, across two, and beyond a segment's limit none. */
    extern char gdtr[], idtr[];
    u32 two = page_alloc(), wrong = page_alloc() != two + 4096;
    for (u32 at = two + 4085; at < two + 4100 && !wrong; at++) {
        u8 *to = (u8 *)at;
        memset(to - 1, 0xa5, 8);
        asm volatile("sidt (%0)" ::"r"(to) : "memory");
        wrong |= memcmp(to, idtr, 6) || to[-1] != 0xa5 || to[6] != 0xa5;
        memset(to - 1, 0xa5, 8);
        asm volatile("sgdtw (%0)" ::"r"(to) : "memory");
        wrong |= memcmp(to, gdtr, 6) || to[-1] != 0xa5 || to[6] != 0xa5;
    }
    report_eq("sgdt and sidt store six bytes, in a page and across two", wrong, 0);

    ldt[1] = gdt[BASE / 8];
    gdt_set(LDT_SEL, (u32)ldt, sizeof(ldt) - 1, 0x82, 0);
    asm volatile("lldt %w0" ::"r"(LDT_SEL));
    good("a segment of the LDT", u_load8, AT(8 | 4, 3), area[256 + 3]);
    report_eq("... marked accessed", ldt[1] >> 40 & 1, 1);
    bad("beyond the LDT: #GP", u_movsel, 0x27, GP, 0x24);
    asm volatile("lldt %w0" ::"r"(0));
    bad("without an LDT: #GP", u_movsel, 0xf, GP, 0xc);
    return 0;
}
