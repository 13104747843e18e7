/*
 * cr_msr.c - what control registers and MSRs refuse, what they keep, and whether CPUID agrees.
 * Intel SDM vol. 3 §2.5 (control registers), vol. 4 (MSRs), vol. 2 CPUID, XSETBV.
 */
#include "lib/guest.h"

#define HOLE       0x0000800000000000ull
#define CR(reg, v) TRY("mov %0, %%" #reg, ::"r"((u64)(v)) : "memory")

/* A write that must be refused with #GP(0), whatever it would have done undone. */
#define REFUSED(reg, v)                                                                            \
    ({                                                                                             \
        u64 was_ = RD(reg);                                                                        \
        bool ok_ = CR(reg, v) == GP && trapped(GP, 0) && RD(reg) == was_;                          \
        WR(reg, was_);                                                                             \
        ok_;                                                                                       \
    })

static void cr0(void)
{
    u64 v = RD(cr0);
    if (on_tcg()) {
        skip("CR0: PG without PE, clearing PG", "TCG lets both happen");
    } else {
        report("CR0: PG without PE is #GP(0)", REFUSED(cr0, v & ~CR0_PE));
        report("CR0: clearing PG in 64-bit mode is #GP(0)", REFUSED(cr0, v & ~CR0_PG));
    }
    report("CR0: NW without CD is #GP(0)", REFUSED(cr0, v | CR0_NW));
    report("CR0: bits 63:32 are #GP(0)", REFUSED(cr0, v | BIT(32)));
    report("CR0: CD can be set", CR(cr0, v | CR0_CD) == VEC_NONE && RD(cr0) == (v | CR0_CD));
    WR(cr0, v);
    report("CR0: TS, AM, MP, NE read back",
           CR(cr0, v ^ (CR0_TS | CR0_AM)) == VEC_NONE && RD(cr0) == (v ^ (CR0_TS | CR0_AM)));
    WR(cr0, v | CR0_TS);
    asm volatile("clts");
    report_eq("clts", RD(cr0), v & ~CR0_TS);
    asm volatile("lmsw %w0" ::"r"(v | 8));
    report_eq("lmsw sets TS", RD(cr0) & CR0_TS, CR0_TS);
    asm volatile("lmsw %w0" ::"r"(v & 0xfff6));
    report_eq("lmsw does not clear PE", RD(cr0), v & ~CR0_TS);
    u64 m = 0;
    asm volatile("smsw %0" : "=r"(m));
    report_eq("smsw reads all of CR0", m, RD(cr0));
    report_eq("ET reads as 1", RD(cr0) >> 4 & 1, 1);
    WR(cr0, v);
}

/* Reading, in line where it can be: into each register, and nothing else changes. */
static void cr_reads(void)
{
    const u64 want = 0x123456789abcdef0;
    u64 v, was = RD(cr2);
    bool all = true;
    u8 carry;

    WR(cr2, want);
#define INTO(r) asm volatile("mov %%cr2, %%" #r "; mov %%" #r ", %0" : "=r"(v) : : #r, "memory"); all &= v == want
    INTO(rax); INTO(rcx); INTO(rdx); INTO(rbx); INTO(rsi); INTO(rdi); INTO(r8); INTO(r9); INTO(r10); INTO(r11);
    INTO(r12); INTO(r13); INTO(r14); INTO(r15);
#undef INTO
    asm volatile("mov %%rsp, %%rax; mov %%cr2, %%rsp; xchg %%rsp, %%rax; mov %%rax, %0" : "=r"(v) : : "rax", "memory");
    report("CR2 is read into any register", all && v == want);
    asm volatile("stc; mov %%cr2, %0; setc %1" : "=r"(v), "=q"(carry));
    report("a read of CR2 keeps the flags", carry == 1 && v == want);
    WR(cr2, was);
    report("CR1 and CR5 are #UD", TRY("mov %%cr1, %%rax", :: : "rax") == UD && TRY("mov %%cr5, %%rax", :: : "rax") == UD);
}

static void cr3(void)
{
    u64 v = RD(cr3), maxphy = cpuid(0x80000008, 0).eax & 0xff;
    if (on_tcg()) {
        skip("CR3: reserved bits", "TCG takes them");
    } else {
        report("CR3: bits above MAXPHYADDR are #GP(0)",
               maxphy >= 52 || REFUSED(cr3, v | BIT(maxphy)));
        report("CR3: bit 63 without PCIDE is #GP(0)", REFUSED(cr3, v | BIT(63)));
    }
    report("CR3: PWT and PCD are kept", CR(cr3, v | 0x18) == VEC_NONE && RD(cr3) == (v | 0x18));
    WR(cr3, v);
}

static void cr4(void)
{
    u64 v = RD(cr4);
    if (on_tcg()) {
        skip("CR4: refusals", "TCG lets some happen and hangs on reserved bits");
    } else {
        report("CR4: clearing PAE in long mode is #GP(0)", REFUSED(cr4, v & ~CR4_PAE));
        report("CR4: changing LA57 in long mode is #GP(0)", REFUSED(cr4, v ^ CR4_LA57));
        report("CR4: reserved bit 31 is #GP(0)", REFUSED(cr4, v | BIT(31)));
        report("CR4: reserved bit 15 is #GP(0)", REFUSED(cr4, v | BIT(15)));
        report("CR4: bits 63:33 are #GP(0)", REFUSED(cr4, v | BIT(40)));
    }
    static const struct {
        const char *name;
        u64 bit;
        enum feature f;
    } bits[] = {
        {"UMIP", CR4_UMIP, HAS_UMIP},   {"FSGSBASE", CR4_FSGSBASE, HAS_FSGSBASE},
        {"PCIDE", CR4_PCIDE, HAS_PCID}, {"OSXSAVE", CR4_OSXSAVE, HAS_XSAVE},
        {"SMEP", CR4_SMEP, HAS_SMEP},   {"SMAP", CR4_SMAP, HAS_SMAP},
        {"PKE", BIT(22), HAS_PKU},
    };
    image_user(false);
    for (unsigned i = 0; i < ARRAY_LEN(bits); i++) {
        if (on_tcg() && !has(bits[i].f))
            continue;
        unsigned t = CR(cr4, v | bits[i].bit);
        if (has(bits[i].f))
            reportf(t == VEC_NONE && RD(cr4) == (v | bits[i].bit), "CR4: %s as CPUID says",
                    bits[i].name);
        else
            reportf(t == GP && trapped(GP, 0) && RD(cr4) == v, "CR4: %s as CPUID says",
                    bits[i].name);
        WR(cr4, v);
    }
    image_user(true);
    report_eq("CPUID.OSXSAVE follows CR4", cpuid(1, 0).ecx >> 27 & 1, 0);
    if (has(HAS_XSAVE)) {
        report("xgetbv without OSXSAVE is #UD", TRY("xgetbv", ::"c"(0) : "rax", "rdx") == UD);
        WR(cr4, v | CR4_OSXSAVE);
        report_eq("CPUID.OSXSAVE follows CR4, set", cpuid(1, 0).ecx >> 27 & 1, 1);
        WR(cr4, v);
    }
}

static unsigned xsetbv(u32 reg, u64 v)
{
    return TRY("xsetbv", ::"c"(reg), "a"((u32)v), "d"((u32)(v >> 32)));
}

static u64 xgetbv(u32 reg)
{
    u32 lo, hi;
    asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(reg));
    return (u64)hi << 32 | lo;
}

USER_ASM("user_xsetbv: xor %ecx, %ecx; mov $1, %eax; xor %edx, %edx; xsetbv; ret");
USER_ASM("user_xgetbv: xor %ecx, %ecx; xgetbv; ret");
extern char user_xsetbv[], user_xgetbv[];

static void xcr0(void)
{
    if (!has(HAS_XSAVE)) {
        skip("XCR0", "no xsave");
        return;
    }
    WR(cr4, RD(cr4) | CR4_OSXSAVE);
    struct cpuid c = cpuid(13, 0);
    u64 all = (u64)c.edx << 32 | c.eax;
    report_eq("XCR0 is 1 at reset", xgetbv(0), 1);
    report("XCR0: bit 0 clear is #GP(0)", xsetbv(0, 0) == GP && trapped(GP, 0));
    report("XCR0: AVX without SSE is #GP(0)", xsetbv(0, 5) == GP && trapped(GP, 0));
    report("XCR0: ZMM without all its parts is #GP(0)",
           xsetbv(0, 0x27) == GP && xsetbv(0, 0xc7) == GP && xsetbv(0, 0xe3) == GP);
    report("XCR0: one BND register part is #GP(0)", xsetbv(0, 0xf) == GP);
    report("XCR0: bits CPUID does not list are #GP(0)", xsetbv(0, 3 | BIT(62)) == GP &&
                                                            xsetbv(0, 3 | BIT(20)) == GP &&
                                                            xsetbv(0, 3 | BIT(8)) == GP);
    report("XCR1 is #GP(0)", xsetbv(1, 1) == GP && trapped(GP, 0));
    report_eq("XCR0: all that CPUID lists", xsetbv(0, all), VEC_NONE);
    report_eq("XCR0 reads back", xgetbv(0), all);
    report_eq("CPUID 0xd.0 EBX is the size for it", cpuid(13, 0).ebx, cpuid(13, 0).ecx);
    xsetbv(0, 3);
    report_eq("CPUID 0xd.0 EBX for x87 and SSE", cpuid(13, 0).ebx, 576);
    if (all & 4) {
        report("AVX without XCR0.AVX is #UD", TRY("vxorps %%ymm0, %%ymm0, %%ymm0", ::) == UD);
        xsetbv(0, 7);
        report_eq("with it, it runs", TRY("vxorps %%ymm0, %%ymm0, %%ymm0", ::), VEC_NONE);
        report_eq("CPUID 0xd.0 EBX with AVX", cpuid(13, 0).ebx, 832);
        report("CPUID 0xd.2 places AVX", cpuid(13, 2).eax == 256 && cpuid(13, 2).ebx == 576);
        WR(cr4, RD(cr4) & ~CR4_OSXSAVE);
        report("AVX without OSXSAVE is #UD", TRY("vxorps %%ymm0, %%ymm0, %%ymm0", ::) == UD);
        WR(cr4, RD(cr4) | CR4_OSXSAVE);
    }
    user_call(user_xsetbv, 0, 0, 0);
    report("ring 3: xsetbv is #GP(0)", trapped(GP, 0));
    user_call(user_xgetbv, 0, 0, 0);
    report("ring 3: xgetbv", trap.vec == VEC_RETURN && trap.r.rax == xgetbv(0));
    if (has(HAS_XGETBV1))
        report("xgetbv 1 is within XCR0", (xgetbv(1) & ~xgetbv(0)) == 0);
    report("xgetbv 2 is #GP(0)", TRY("xgetbv", ::"c"(2) : "rax", "rdx") == GP && trapped(GP, 0));
    xsetbv(0, 1);
    WR(cr4, RD(cr4) & ~CR4_OSXSAVE);
}

static void efer(void)
{
    u64 v = rdmsr(MSR_EFER);
    report_eq("EFER has LME and LMA", v & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA);
    report("EFER: clearing LME under paging is #GP(0)",
           try_wrmsr(MSR_EFER, v & ~EFER_LME) == GP && trapped(GP, 0));
    report("EFER: reserved bits are #GP(0)", try_wrmsr(MSR_EFER, v | BIT(1)) == GP &&
                                                 try_wrmsr(MSR_EFER, v | BIT(30)) == GP &&
                                                 try_wrmsr(MSR_EFER, v | BIT(63)) == GP);
    report("EFER: LMA is not written",
           try_wrmsr(MSR_EFER, v & ~EFER_LMA) != UD && (rdmsr(MSR_EFER) & EFER_LMA));
    wrmsr(MSR_EFER, v ^ EFER_SCE);
    report_eq("EFER: SCE reads back", rdmsr(MSR_EFER), v ^ EFER_SCE);
    wrmsr(MSR_EFER, v);
}

static void msrs(void)
{
    static const struct {
        const char *name;
        u32 msr;
        u64 value;
    } keep[] = {
        {"SYSENTER_CS", MSR_SYSENTER_CS, 0x10},
        {"SYSENTER_ESP", MSR_SYSENTER_ESP, 0xffff800012345678},
        {"SYSENTER_EIP", MSR_SYSENTER_EIP, 0x12345678},
        {"STAR", MSR_STAR, 0x0023001012345678},
        {"LSTAR", MSR_LSTAR, 0xffffffff81000000},
        {"CSTAR", MSR_CSTAR, 0xffffffff82000000},
        {"SFMASK", MSR_SFMASK, 0x47700},
        {"FS_BASE", MSR_FS_BASE, 0xffff888000000000},
        {"GS_BASE", MSR_GS_BASE, 0x7fffffffffff},
        {"KERNEL_GS_BASE", MSR_KERNEL_GS_BASE, 0x123456789},
        {"PAT", MSR_PAT, 0x0407050600070106},
        {"MTRRdefType", 0x2ff, 0xc06},
        {"MTRRfix64K", 0x250, 0x0606060606060606},
        {"MTRRphysBase0", 0x200, 0x80000006},
    };
    for (unsigned i = 0; i < ARRAY_LEN(keep); i++) {
        u64 was = 0;
        unsigned t = try_rdmsr(keep[i].msr);
        if (t == VEC_NONE) {
            was = rdmsr(keep[i].msr);
            t = try_wrmsr(keep[i].msr, keep[i].value);
        }
        reportf(t == VEC_NONE && rdmsr(keep[i].msr) == keep[i].value, "%s keeps what is written",
                keep[i].name);
        if (t == VEC_NONE)
            wrmsr(keep[i].msr, was);
    }
    report_eq("PAT at reset", rdmsr(MSR_PAT), 0x0007040600070406);
    report("PAT: type 2 is #GP(0)", try_wrmsr(MSR_PAT, 0x0007040600070402) == GP && trapped(GP, 0));
    report("PAT: type 8 is #GP(0)", try_wrmsr(MSR_PAT, 0x0807040600070406) == GP && trapped(GP, 0));
    report("SYSENTER_EIP not canonical",
           cpu_is_intel() ? try_wrmsr(MSR_SYSENTER_EIP, HOLE) == GP : true);
    report("an MSR that is not there is #GP(0): read",
           try_rdmsr(0x12345678) == GP && trapped(GP, 0));
    report("an MSR that is not there is #GP(0): write",
           try_wrmsr(0x12345678, 0) == GP && trapped(GP, 0));
    report_eq("the refused read left RAX and RDX", ({
                  u64 a = 0x1111, d = 0x2222;
                  TRY("rdmsr", : "+a"(a), "+d"(d) : "c"(0x12345678));
                  a + d;
              }),
              0x3333);
    u64 a = ~0ull, d = ~0ull;
    asm volatile("rdmsr" : "+a"(a), "+d"(d) : "c"(MSR_STAR));
    report("rdmsr clears the upper halves", a >> 32 == 0 && d >> 32 == 0);
    if (has(HAS_RDTSCP)) {
        wrmsr(MSR_TSC_AUX, 0x1234);
        u32 aux;
        asm volatile("rdtscp" : "=c"(aux)::"rax", "rdx");
        report_eq("TSC_AUX in rdtscp", aux, 0x1234);
        if (cpuid(7, 0).ecx >> 22 & 1) {
            u64 pid;
            asm volatile("rdpid %0" : "=r"(pid));
            report_eq("TSC_AUX in rdpid", pid, 0x1234);
        }
        wrmsr(MSR_TSC_AUX, 0);
    }
    u64 t0 = rdtsc(), t1 = rdmsr(MSR_TSC), t2 = rdtsc();
    report("the TSC MSR is the TSC", t0 <= t1 && t1 <= t2);
    bool ok = true;
    for (int i = 0; i < 100000; i++) {
        u64 t = rdtsc();
        ok &= t >= t2;
        t2 = t;
    }
    report("the TSC never goes back", ok);
    u64 base = rdmsr(MSR_APICBASE);
    report("APICBASE: here, BSP, at the usual place",
           (base & ~0xfffull) == LAPIC_PA && (base & 0x100));
    report("APICBASE: reserved bits are #GP(0)",
           try_wrmsr(MSR_APICBASE, base | 1) == GP && trapped(GP, 0));
}

static void cpuids(void)
{
    struct cpuid c0 = cpuid(0, 0), c1 = cpuid(1, 0), c7 = cpuid(7, 0), e1 = cpuid(0x80000001, 0),
                 e8 = cpuid(0x80000008, 0);
    report("leaves 7 and 0xd exist", c0.eax >= 13);
    /* FPU PSE TSC MSR PAE CX8 APIC SEP MTRR PGE CMOV PAT FXSR SSE SSE2; SYSCALL NX LM. */
    u32 must = 1 | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(8) | BIT(9) | BIT(12) | BIT(13) |
               BIT(15) | BIT(16) | BIT(24) | BIT(25) | BIT(26);
    report_eq("what every 64-bit kernel needs, leaf 1", c1.edx & must, must);
    must = (u32)(BIT(11) | BIT(20) | BIT(29));
    report_eq("what every 64-bit kernel needs, extended", e1.edx & must, must);
    report("address widths", (e8.eax & 0xff) >= 36 && (e8.eax & 0xff) <= 52 &&
                                 ((e8.eax >> 8 & 0xff) == 48 || (e8.eax >> 8 & 0xff) == 57));
    report("AVX needs XSAVE; AVX2 and FMA need AVX; AVX512F needs AVX2",
           (!(c1.ecx & BIT(28)) || (c1.ecx & BIT(26))) &&
               (!(c7.ebx & BIT(5)) || (c1.ecx & BIT(28))) &&
               (!(c7.ebx & BIT(16)) || (c7.ebx & BIT(5))));
    if (c1.ecx & BIT(28))
        report("AVX in leaf 0xd", cpuid(13, 0).eax & 4);
    if (c7.ebx & BIT(16))
        report("AVX-512 in leaf 0xd", (cpuid(13, 0).eax & 0xe0) == 0xe0);
    report("no VMX, no SVM (or not hidden in part)", !((c1.ecx & BIT(5)) && (e1.ecx & BIT(2))));
    struct cpuid beyond = cpuid(c0.eax + 1, 0), ext = cpuid(0x80000000, 0);
    print("# vendor %x %x %x, max %x / %x, beyond %x\n", c0.ebx, c0.edx, c0.ecx, c0.eax, ext.eax,
          beyond.eax);
    u64 a = ~0ull, b = ~0ull, cc = ~0ull << 32, d = ~0ull;
    a &= ~0xffffffffull;
    asm volatile("cpuid" : "+a"(a), "+b"(b), "+c"(cc), "+d"(d));
    report("cpuid clears the upper halves", !(a >> 32) && !(b >> 32) && !(cc >> 32) && !(d >> 32));
    report("leaf 1 has the APIC id", c1.ebx >> 24 == lapic_read(LAPIC_ID) >> 24);

    /* What CPUID denies must be #UD. */
#define DENIED(name, has_it, code, ...)                                                            \
    do {                                                                                           \
        unsigned t_ = TRY(code, __VA_ARGS__);                                                      \
        bool ok_ = (has_it) ? t_ != UD : t_ == UD;                                                 \
        if (!ok_)                                                                                  \
            print("# CPUID says %s\n", (has_it) ? "yes" : "no");                                   \
        reportf(ok_, "CPUID and decoder agree: %s", name);                                         \
    } while (0)
    static u8 fx[512] __attribute__((aligned(16)));
    u32 mem[16] __attribute__((aligned(64))) = {0};
    DENIED("rdrand", c1.ecx & BIT(30), "rdrand %%eax", ::: "rax", "cc");
    DENIED("rdseed", c7.ebx & BIT(18), "rdseed %%eax", ::: "rax", "cc");
    DENIED("popcnt", c1.ecx & BIT(23), "popcnt %%eax, %%eax", ::: "rax", "cc");
    DENIED("movbe", c1.ecx & BIT(22), "movbe %0, %%eax", ::"m"(mem) : "rax");
    DENIED("crc32", c1.ecx & BIT(20), "crc32b %%al, %%eax", ::: "rax");
    DENIED("aesenc", c1.ecx & BIT(25), "aesenc %%xmm0, %%xmm0", ::);
    DENIED("pclmulqdq", c1.ecx & BIT(1), "pclmulqdq $0, %%xmm0, %%xmm0", ::);
    DENIED("sha1nexte", c7.ebx & BIT(29), "sha1nexte %%xmm0, %%xmm0", ::);
    DENIED("adcx", c7.ebx & BIT(19), "adcx %%eax, %%eax", ::: "rax", "cc");
    DENIED("andn", c7.ebx & BIT(3), "andn %%eax, %%eax, %%eax", ::: "rax", "cc");
    DENIED("bzhi", c7.ebx & BIT(8), "bzhi %%eax, %%eax, %%eax", ::: "rax", "cc");
    DENIED("clflushopt", c7.ebx & BIT(23), "clflushopt %0", ::"m"(mem));
    DENIED("clwb", c7.ebx & BIT(24), "clwb %0", ::"m"(mem));
    DENIED("clzero", e8.ebx & 1, "clzero", ::"a"(mem) : "memory");
    DENIED("cldemote-free prefetchw", 1, "prefetchw %0", ::"m"(mem));
    DENIED("monitor", c1.ecx & BIT(3), "monitor", ::"a"(mem), "c"(0), "d"(0));
    DENIED("rdpid", c7.ecx & BIT(22), "rdpid %%rax", ::: "rax");
    DENIED("stac", c7.ebx & BIT(20), "stac; clac", ::: "cc");
    DENIED("invpcid", c7.ebx & BIT(10), "invpcid (%0), %1", ::"r"(mem), "r"(2ull));
    DENIED("rdpkru", 0, "xor %%ecx, %%ecx; rdpkru", ::: "rax", "rcx", "rdx"); /* CR4.PKE is off */
    DENIED("xsavec without OSXSAVE", 0, "xsavec %0", ::"m"(mem));
    DENIED("vmxon", 0, "vmxon %0", ::"m"(mem));
    DENIED("vmrun without SVME", 0, "vmrun", ::"a"(0));
    DENIED("rdpru", e8.ebx & BIT(4), ".byte 0x0f, 0x01, 0xfd", ::"c"(0) : "rax", "rdx");
    DENIED("serialize", c7.edx & BIT(14), ".byte 0x0f, 0x01, 0xe8", ::);
    DENIED("cmpxchg16b", c1.ecx & BIT(13), "cmpxchg16b %0", ::"m"(mem)
           : "rax", "rdx", "cc", "memory");
    DENIED("bmi's tzcnt or bsf", 1, "tzcnt %%eax, %%eax", ::: "rax", "cc");
    DENIED("3DNow femms", e1.edx & BIT(31), ".byte 0x0f, 0x0e", ::);
    DENIED("fxsave", c1.edx & BIT(24), "fxsave64 (%0)", ::"r"(fx) : "memory");
}

int main(void)
{
    cr0();
    cr_reads();
    cr3();
    cr4();
    efer();
    xcr0();
    msrs();
    cpuids();
    return 0;
}
