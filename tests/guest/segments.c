/*
 * segments.c - loading segment registers, bases, the descriptor-reading instructions, UMIP.
 * Intel SDM vol. 2 (MOV, LAR, LSL, VERR), vol. 3 §5.2-5.7.
 */
#include "lib/guest.h"

#define HOLE 0x0000800000000000ull

#define LOAD(reg, sel) TRY("mov %0, %%" #reg, ::"r"((u32)(sel)) : "memory")

static u64 ldt[8] __attribute__((aligned(16)));

static void loads(void)
{
    report("null in DS, ES, FS, GS", LOAD(ds, 0) == VEC_NONE && LOAD(es, 1) == VEC_NONE &&
                                         LOAD(fs, 2) == VEC_NONE && LOAD(gs, 3) == VEC_NONE);
    report("a null selector keeps its RPL", RDSEG(es) == 1 && RDSEG(fs) == 2 && RDSEG(gs) == 3);
    report_eq("null SS in ring 0, 64-bit", LOAD(ss, 0), VEC_NONE);
    report("memory works with null DS and SS",
           TRY("push %%rax; mov (%%rsp), %%rax; mov %%rax, %0; pop %%rax", ::"m"(ldt[0])
               : "rax", "memory") == VEC_NONE);
    report("null SS with RPL 3 in ring 0: #GP(0)", LOAD(ss, 3) == GP && trapped(GP, 0));
    LOAD(ss, KDS);
    report("beyond the GDT: #GP(sel)", LOAD(ds, GDT_END) == GP && trapped(GP, GDT_END));
    report("RPL is not in the error code", LOAD(ds, GDT_END | 3) == GP && trapped(GP, GDT_END));
    report("a TSS in DS: #GP(sel)", LOAD(ds, TSS_SEL) == GP && trapped(GP, TSS_SEL));
    report("readable code in DS", LOAD(ds, KCS) == VEC_NONE);
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x99, 0xa));
    report("execute-only code in DS: #GP(sel)", LOAD(ds, GDT_FREE) == GP && trapped(GP, GDT_FREE));
    report("code in SS: #GP(sel)", LOAD(ss, KCS) == GP && trapped(GP, KCS));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x91, 0xc));
    report("read-only data in DS", LOAD(ds, GDT_FREE) == VEC_NONE);
    report("read-only data in SS: #GP(sel)", LOAD(ss, GDT_FREE) == GP && trapped(GP, GDT_FREE));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x13, 0xc));
    report("absent in DS: #NP(sel)", LOAD(ds, GDT_FREE) == NP && trapped(NP, GDT_FREE));
    report("absent in SS: #SS(sel)", LOAD(ss, GDT_FREE) == SS && trapped(SS, GDT_FREE));
    report("DPL 0 with RPL 3 in DS: #GP(sel)", LOAD(ds, KDS | 3) == GP && trapped(GP, KDS));
    report("DPL 3 with RPL 3 in DS, ring 0", LOAD(ds, UDS) == VEC_NONE);
    report("DPL 3 in SS, ring 0: #GP(sel)", LOAD(ss, UDS & ~3) == GP && trapped(GP, UDS & ~3));
    report("the accessed bit is set by a load", ({
               gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x92, 0xc));
               LOAD(ds, GDT_FREE);
               (*(volatile u64 *)&gdt[GDT_FREE / 8] >> 40 & 0xff) == 0x93;
           }));
    report("a refused load keeps the old selector",
           LOAD(ds, GDT_END) == GP && RDSEG(ds) == GDT_FREE);
    LOAD(ds, KDS);
    LOAD(es, KDS);

    u16 mem = UDS;
    report("mov from memory", TRY("mov %0, %%fs", ::"m"(mem)) == VEC_NONE && RDSEG(fs) == UDS);
    report("push and pop FS",
           TRY("push %%fs; mov %0, %%fs; pop %%fs", ::"r"(0)) == VEC_NONE && RDSEG(fs) == UDS);
    report("pop of a bad selector keeps RSP",
           TRY("push %0; pop %%gs", ::"r"((u64)GDT_END)) == GP && trap.r.rsp == try_rsp - 8);
    u64 v = ~0ull;
    asm volatile("mov %%fs, %0" : "+r"(v));
    report_eq("mov of a segment to a 64-bit register clears the rest", v, UDS);
    v = ~0ull;
    asm volatile("movw %%fs, %w0" : "+r"(v));
    report_eq("to a 16-bit register does not", v, 0xffffffffffff0000ull | UDS);
    u64 m2 = ~0ull;
    asm volatile("mov %%fs, %0" : "+m"(m2));
    report_eq("to memory writes 16 bits", m2, 0xffffffffffff0000ull | UDS);
    asm volatile("pushq $-1; mov %%fs, (%%rsp); pushw %%fs; popw %%fs; pop %0" : "=r"(v));
    report_eq("pushw and popw fs", RDSEG(fs), UDS);

    struct {
        u64 off;
        u16 sel;
    } __attribute__((packed)) far = {0x1122334455667788, UDS};
    v = 0;
    if (cpu_is_intel()) {
        report("lfs with REX.W", TRY(".byte 0x48, 0x0f, 0xb4, 0x01",
                                     : "+a"(v)
                                     : "c"(&far), "m"(far)) == VEC_NONE &&
                                     v == far.off);
    } else {
        struct {
            u32 off;
            u16 sel;
        } __attribute__((packed)) far32 = {0x55667788, UDS};
        report("lfs", TRY("lfs %1, %k0", : "+r"(v) : "m"(far32)) == VEC_NONE && v == far32.off);
    }
    static struct {
        u32 off;
        u16 sel;
    } __attribute__((packed)) far_ss = {1234, KDS};
    report("lss", TRY("lss %1, %k0",
                      : "+r"(v)
                      : "m"(far_ss)) == VEC_NONE &&
                      (u32)v == 1234 && RDSEG(ss) == KDS);
    far_ss.sel = GDT_END;
    v = 99;
    report("lss of a bad selector changes nothing", TRY("lss %1, %k0",
                                                        : "+r"(v)
                                                        : "m"(far_ss)) == GP &&
                                                        v == 99);
}

static void local_table(void)
{
    ldt[1] = seg_desc(0, 0xfffff, 0x93, 0xc);
    ldt[2] = seg_desc(0x11223344, 0xfffff, 0xf3, 0xc);
    ldt_load(ldt, sizeof(ldt) - 1);
    u16 sel = 0;
    asm volatile("sldt %0" : "=r"(sel));
    report_eq("sldt", sel, LDT_SEL);
    report("a load from the LDT", LOAD(fs, 1 << 3 | 4) == VEC_NONE && RDSEG(fs) == (1 << 3 | 4));
    report("beyond the LDT: #GP(sel)", LOAD(fs, 8 << 3 | 4) == GP && trapped(GP, 8 << 3 | 4));
    report("an empty LDT entry: #GP(sel)", LOAD(fs, 5 << 3 | 4) == GP && trapped(GP, 5 << 3 | 4));
    report("entry 0 of the LDT is not null", LOAD(fs, 4) == GP && trapped(GP, 4));
    LOAD(gs, 2 << 3 | 7);
    report_eq("GS base from an LDT descriptor", rdmsr(MSR_GS_BASE), 0x11223344);
    report("lldt of a data segment: #GP(sel)",
           TRY("lldt %w0", ::"r"(KDS)) == GP && trapped(GP, KDS));
    report("lldt from the LDT: #GP(sel)", TRY("lldt %w0", ::"r"(12)) == GP && trapped(GP, 12));
    gdt_set(LDT_SEL, gdt[LDT_SEL / 8] & ~BIT(47));
    report("lldt absent: #NP(sel)", TRY("lldt %w0", ::"r"(LDT_SEL)) == NP && trapped(NP, LDT_SEL));
    report_eq("lldt null", TRY("lldt %w0", ::"r"(0)), VEC_NONE);
    report("then the LDT is empty", LOAD(fs, 1 << 3 | 4) == GP && trapped(GP, 1 << 3 | 4));
    report("ltr of a busy TSS: #GP(sel)",
           TRY("ltr %w0", ::"r"(TSS_SEL)) == GP && trapped(GP, TSS_SEL));
    report_eq("ltr marked it busy", gdt[TSS_SEL / 8] >> 40 & 15, 11);
    asm volatile("str %0" : "=r"(sel));
    report_eq("str", sel, TSS_SEL);
    report("ltr null: #GP(0)", TRY("ltr %w0", ::"r"(0)) == GP && trapped(GP, 0));
    gdt_set(TSS_SEL, gdt[TSS_SEL / 8] & ~BIT(41));
    asm volatile("ltr %w0" ::"r"(TSS_SEL));
    LOAD(gs, 0);
    LOAD(fs, 0);
}

USER_ASM("user_gs_read: mov %gs:0, %rax; ret");
USER_ASM("user_fs_read: mov %fs:8(%rdi), %rax; ret");
USER_ASM("user_wrfs: wrfsbase %rdi; rdfsbase %rax; mov %fs:0, %rdx; ret");
USER_ASM("user_wrgs: wrgsbase %rdi; rdgsbase %rax; mov %gs:0, %rdx; ret");
USER_ASM("user_load_fs: mov %edi, %fs; ret");
USER_ASM("user_load_ds: mov %edi, %ds; ret");
USER_ASM("user_load_ss: mov %edi, %ss; ret");
extern char user_gs_read[], user_fs_read[], user_wrfs[], user_wrgs[], user_load_fs[],
    user_load_ds[], user_load_ss[];

static UDATA u64 cell[4] = {0x1001, 0x1002, 0x1003, 0x1004};

static void bases(void)
{
    u64 v;
    wrmsr(MSR_FS_BASE, (u64)cell);
    asm volatile("mov %%fs:0, %0" : "=r"(v));
    report_eq("FS base by MSR", v, 0x1001);
    asm volatile("mov %%fs:(%1,%2,8), %0" : "=r"(v) : "r"(8ull), "r"(1ull));
    report_eq("FS base with a full address", v, 0x1003);
    asm volatile("movq $7, %%fs:24" ::: "memory");
    report_eq("a store through FS", cell[3], 7);
    asm volatile(".byte 0x64, 0x48, 0x8d, 0x01" : "=a"(v) : "c"(5ull)); /* lea fs:(%rcx), %rax */
    report_eq("lea has no segment base", v, 5);
    wrmsr(MSR_FS_BASE, -8ull);
    asm volatile("mov %%fs:(%1), %0" : "=r"(v) : "r"((u64)&cell[1]));
    report_eq("a negative base wraps", v, 0x1001);
    wrmsr(MSR_FS_BASE, (u64)cell);
    asm volatile("mov %%fs:(%%ecx), %0" : "=r"(v) : "c"(BIT(32) | 8));
    report_eq("32-bit address: truncated before the base", v, 0x1002);
    asm volatile("movabs %%fs:16, %%rax; mov %%rax, %0" : "=r"(v)::"rax");
    report_eq("moffs through FS", v, 0x1003);
    user_call(user_fs_read, 0, 0, 0);
    report_eq("FS in ring 3", trap.r.rax, 0x1002);
    report("FS_BASE not canonical: #GP(0)", try_wrmsr(MSR_FS_BASE, HOLE) == GP && trapped(GP, 0));
    report("GS_BASE not canonical: #GP(0)", try_wrmsr(MSR_GS_BASE, HOLE) == GP && trapped(GP, 0));
    report("KERNEL_GS_BASE not canonical: #GP(0)",
           try_wrmsr(MSR_KERNEL_GS_BASE, HOLE) == GP && trapped(GP, 0));

    LOAD(fs, KDS);
    report_eq("loading FS loads its base from the descriptor", rdmsr(MSR_FS_BASE), 0);
    gdt_set(GDT_FREE, seg_desc(0x89abcdef, 0xfffff, 0x93, 0xc));
    LOAD(fs, GDT_FREE);
    report_eq("32 bits of it, zero-extended", rdmsr(MSR_FS_BASE), 0x89abcdef);
    LOAD(fs, 0);

    wrmsr(MSR_GS_BASE, (u64)&cell[0]);
    wrmsr(MSR_KERNEL_GS_BASE, (u64)&cell[1]);
    asm volatile("swapgs; mov %%gs:0, %0" : "=r"(v));
    report_eq("swapgs", v, 0x1002);
    report("swapgs exchanges the MSRs",
           rdmsr(MSR_GS_BASE) == (u64)&cell[1] && rdmsr(MSR_KERNEL_GS_BASE) == (u64)&cell[0]);
    user_call(user_gs_read, 0, 0, 0);
    report_eq("ring 3 sees the current one", trap.r.rax, 0x1002);
    asm volatile("swapgs");
    user_call(user_gs_read, 0, 0, 0);
    report_eq("and the other after swapgs", trap.r.rax, 0x1001);
    asm volatile(
        "swapgs; mov %%gs:0, %%rbx; swapgs; mov %%gs:0, %%rcx; sub %%rcx, %%rbx; mov %%rbx, %0"
        : "=r"(v)::"rbx", "rcx");
    report_eq("swapgs twice in one block", v, 1);

    if (has(HAS_FSGSBASE)) {
        report("rdfsbase without CR4.FSGSBASE is #UD", TRY("rdfsbase %%rax", ::: "rax") == UD);
        WR(cr4, RD(cr4) | CR4_FSGSBASE);
        asm volatile("wrfsbase %1; rdfsbase %0" : "=r"(v) : "r"((u64)cell));
        report("wrfsbase, rdfsbase", v == (u64)cell && rdmsr(MSR_FS_BASE) == (u64)cell);
        asm volatile("wrfsbase %k1; rdfsbase %0" : "=r"(v) : "r"(0xffffffff12345678ull));
        report_eq("32-bit wrfsbase zero-extends", v, 0x12345678);
        report("wrfsbase not canonical: #GP(0)",
               TRY("wrfsbase %0", ::"r"(HOLE)) == GP && trapped(GP, 0));
        user_call(user_wrfs, (u64)&cell[2], 0, 0);
        report("wrfsbase in ring 3",
               trap.vec == VEC_RETURN && trap.r.rax == (u64)&cell[2] && trap.r.rdx == 0x1003);
        user_call(user_wrgs, (u64)&cell[1], 0, 0);
        report("wrgsbase in ring 3",
               trap.vec == VEC_RETURN && trap.r.rax == (u64)&cell[1] && trap.r.rdx == 0x1002);
        WR(cr4, RD(cr4) & ~CR4_FSGSBASE);
        user_call(user_wrfs, 0, 0, 0);
        report("without the bit #UD in ring 3", trapped(UD, 0));
    }
    user_call(user_load_fs, KDS, 0, 0);
    report("ring 3: DPL 0 in FS: #GP(sel)", trapped(GP, KDS));
    user_call(user_load_ds, UDS, 0, 0);
    report_eq("ring 3: DPL 3 in DS", trap.vec, VEC_RETURN);
    user_call(user_load_ss, 0, 0, 0);
    report("ring 3: null in SS: #GP(0)", trapped(GP, 0));
    user_call(user_load_ss, UDS & ~3, 0, 0);
    report("ring 3: SS with RPL 0: #GP(sel)", trapped(GP, UDS & ~3));
    user_call(user_load_ss, UDS, 0, 0);
    report_eq("ring 3: SS again", trap.vec, VEC_RETURN);
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x9f, 0xa)); /* conforming code, DPL 0 */
    user_call(user_load_fs, GDT_FREE | 3, 0, 0);
    report_eq("ring 3: conforming code in FS", trap.vec, VEC_RETURN);
}

/* -- lar, lsl, verr, verw ---------------------------------------------------------------------- */

static bool lar(u16 sel, u32 *out)
{
    bool zf;
    u64 v = 0xdeadbeef;
    asm volatile("lar %k2, %k0" : "+r"(v), "=@ccz"(zf) : "r"((u32)sel));
    *out = (u32)v;
    return zf;
}

static bool lsl(u16 sel, u32 *out)
{
    bool zf;
    u64 v = 0xdeadbeef;
    asm volatile("lsl %k2, %k0" : "+r"(v), "=@ccz"(zf) : "r"((u32)sel));
    *out = (u32)v;
    return zf;
}

static bool verr(u16 sel)
{
    bool zf;
    asm volatile("verr %w1" : "=@ccz"(zf) : "r"(sel));
    return zf;
}

static bool verw(u16 sel)
{
    bool zf;
    asm volatile("verw %w1" : "=@ccz"(zf) : "r"(sel));
    return zf;
}

USER_ASM("user_lar: mov $0x99, %eax; lar %edi, %eax; setz %dl; movzbl %dl, %edx; ret");
USER_ASM("user_verw: verw %di; setz %al; movzbl %al, %eax; ret");
extern char user_lar[], user_verw[];

static void queries(void)
{
    u32 v;
    report("lar of code", lar(KCS, &v) && (v & 0xf0ff00) == 0x00a09b00);
    report("lar of data", lar(KDS, &v) && (v & 0xf0ff00) == 0x00c09300);
    report("lar of null fails and keeps the register", !lar(0, &v) && v == 0xdeadbeef);
    report("lar beyond the GDT fails", !lar(GDT_END, &v));
    report("lar of a TSS", lar(TSS_SEL, &v) && (v & 0xff00) == 0x8b00);
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x8e, 0)); /* a gate */
    report("lar of an interrupt gate fails", !lar(GDT_FREE, &v));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x13, 0xc));
    report("lar of an absent segment", lar(GDT_FREE, &v) && (v & 0xff00) == 0x1300);
    report("lsl, pages", lsl(KDS, &v) && v == 0xffffffff);
    report("lsl, bytes", lsl(TSS_SEL, &v) && v == sizeof(tss) - 1);
    gdt_set(GDT_FREE, seg_desc(0, 0x12345, 0x93, 4));
    report("lsl of a byte limit", lsl(GDT_FREE, &v) && v == 0x12345);
    report("verr",
           verr(KCS) && verr(KDS) && verr(UDS) && !verr(0) && !verr(TSS_SEL) && !verr(GDT_END));
    report("verw", !verw(KCS) && verw(KDS) && !verw(0));
    gdt_set(GDT_FREE, seg_desc(0, 0xfffff, 0x99, 0xa));
    report("verr of execute-only code", !verr(GDT_FREE));
    report("verr DPL 0 RPL 3", !verr(KDS | 3));
    user_call(user_lar, UCS64, 0, 0);
    report("ring 3: lar of its own code", trap.r.rdx == 1 && (trap.r.rax & 0xf0ff00) == 0x00a0fb00);
    user_call(user_lar, KCS, 0, 0);
    report("ring 3: lar of the kernel's fails", trap.r.rdx == 0 && trap.r.rax == 0x99);
    user_call(user_verw, KDS, 0, 0);
    report_eq("ring 3: verw of the kernel's fails", trap.r.rax, 0);
    user_call(user_verw, UDS, 0, 0);
    report_eq("ring 3: verw of its own", trap.r.rax, 1);
    s64 page = 0;
    report("verw from an absent page is #PF", TRY("verw (%0)", ::"r"(PAGE3 + page)) == PF);
}

/* -- UMIP ----------------------------------------------------------------------------------------
 */

USER_ASM("user_sgdt: sub $16, %rsp; sgdt (%rsp); mov 2(%rsp), %rax; add $16, %rsp; ret");
USER_ASM("user_sidt: sub $16, %rsp; sidt (%rsp); mov 2(%rsp), %rax; add $16, %rsp; ret");
USER_ASM("user_sldt: sldt %eax; ret");
USER_ASM("user_str: str %eax; ret");
USER_ASM("user_smsw: smsw %rax; ret");
extern char user_sgdt[], user_sidt[], user_sldt[], user_str[], user_smsw[];

static void umip(void)
{
    user_call(user_sgdt, 0, 0, 0);
    report("sgdt in ring 3 without UMIP", trap.vec == VEC_RETURN && trap.r.rax == (u64)gdt);
    user_call(user_sidt, 0, 0, 0);
    report("sidt in ring 3 without UMIP", trap.vec == VEC_RETURN && trap.r.rax == (u64)idt);
    user_call(user_str, 0, 0, 0);
    report("str in ring 3 without UMIP", trap.vec == VEC_RETURN && trap.r.rax == TSS_SEL);
    user_call(user_smsw, 0, 0, 0);
    report("smsw in ring 3 without UMIP", trap.vec == VEC_RETURN && trap.r.rax == RD(cr0));
    if (!has(HAS_UMIP)) {
        skip("UMIP", "not in CPUID");
        return;
    }
    WR(cr4, RD(cr4) | CR4_UMIP);
    static const struct {
        const char *name;
        char *fn;
    } f[] = {{"sgdt", user_sgdt},
             {"sidt", user_sidt},
             {"sldt", user_sldt},
             {"str", user_str},
             {"smsw", user_smsw}};
    for (unsigned i = 0; i < ARRAY_LEN(f); i++) {
        user_call(f[i].fn, 0, 0, 0);
        reportf(trapped(GP, 0), "UMIP: %s in ring 3 is #GP(0)", f[i].name);
    }
    u16 sel;
    report("UMIP does not concern ring 0", TRY("str %0",
                                               : "=r"(sel)) == VEC_NONE &&
                                               sel == TSS_SEL);
    WR(cr4, RD(cr4) & ~CR4_UMIP);
}

int main(void)
{
    loads();
    local_table();
    bases();
    queries();
    umip();
    return 0;
}
