/* gdb_regs.c - a vCPU's registers as gdb knows them. Source: GDB manual, appendix G (target descriptions). */
#include "monitor/gdb_regs.h"
#include "x86/x86.h"
#include <stdio.h>
#include <string.h>

/* clang-format off */
#define GPR(n, i) { n, "int64", G_GPR, i, 8, 0 }
#define SEGR(n, i) { n, "int32", G_SEG, i, 4, 0 }
#define ST(n, i) { n, "i387_ext", G_ST, i, 10, 0 }
#define FC(n, i) { n, "int", G_FCTRL, i, 4, 0 }
#define XMM(n, i) { n, "uint128", G_XMM, i, 16, 1 }
const struct gdb_reg gdb_regs[] = {
    GPR("rax", RAX), GPR("rbx", RBX), GPR("rcx", RCX), GPR("rdx", RDX),
    GPR("rsi", RSI), GPR("rdi", RDI), { "rbp", "data_ptr", G_GPR, RBP, 8, 0 },
    { "rsp", "data_ptr", G_GPR, RSP, 8, 0 },
    GPR("r8", 8), GPR("r9", 9), GPR("r10", 10), GPR("r11", 11),
    GPR("r12", 12), GPR("r13", 13), GPR("r14", 14), GPR("r15", 15),
    { "rip", "code_ptr", G_RIP, 0, 8, 0 }, { "eflags", "int32", G_EFLAGS, 0, 4, 0 },
    SEGR("cs", SEG_CS), SEGR("ss", SEG_SS), SEGR("ds", SEG_DS), SEGR("es", SEG_ES),
    SEGR("fs", SEG_FS), SEGR("gs", SEG_GS),
    ST("st0", 0), ST("st1", 1), ST("st2", 2), ST("st3", 3),
    ST("st4", 4), ST("st5", 5), ST("st6", 6), ST("st7", 7),
    FC("fctrl", 0), FC("fstat", 1), FC("ftag", 2), FC("fiseg", 3),
    FC("fioff", 4), FC("foseg", 5), FC("fooff", 6), FC("fop", 7),
    XMM("xmm0", 0), XMM("xmm1", 1), XMM("xmm2", 2), XMM("xmm3", 3),
    XMM("xmm4", 4), XMM("xmm5", 5), XMM("xmm6", 6), XMM("xmm7", 7),
    XMM("xmm8", 8), XMM("xmm9", 9), XMM("xmm10", 10), XMM("xmm11", 11),
    XMM("xmm12", 12), XMM("xmm13", 13), XMM("xmm14", 14), XMM("xmm15", 15),
    { "mxcsr", "int32", G_MXCSR, 0, 4, 1 },
    { "fs_base", "int", G_BASE, SEG_FS, 8, 2 }, { "gs_base", "int", G_BASE, SEG_GS, 8, 2 },
};
#undef GPR
#undef SEGR
#undef ST
#undef FC
#undef XMM
/* clang-format on */
const unsigned gdb_nr_regs = ARRAY_SIZE(gdb_regs);

static const char *const gdb_features[] = {
    "org.gnu.gdb.i386.core",
    "org.gnu.gdb.i386.sse",
    "org.gnu.gdb.i386.segments",
};

void gdb_target_xml(char *xml, size_t size)
{
    size_t at = (size_t)snprintf(
        xml, size,
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">"
        "<target><architecture>i386:x86-64</architecture>");
    for (unsigned f = 0; f < ARRAY_SIZE(gdb_features); f++) {
        at += (size_t)snprintf(xml + at, size - at, "<feature name=\"%s\">",
                               gdb_features[f]);
        for (unsigned i = 0; i < ARRAY_SIZE(gdb_regs); i++) {
            const struct gdb_reg *r = &gdb_regs[i];
            if (r->feature == f)
                at += (size_t)snprintf(
                    xml + at, size - at,
                    "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"/>",
                    r->name, r->size * 8u, r->type, i);
        }
        at += (size_t)snprintf(xml + at, size - at, "</feature>");
    }
    snprintf(xml + at, size - at, "</target>");
}

void gdb_regfile_load(struct gdb_regfile *f, struct vitro_vcpu *vcpu)
{
    vitro_vcpu_get_regs(vcpu, &f->regs);
    vitro_vcpu_get_sregs(vcpu, &f->sregs);
    f->xsave = vitro_vcpu_xsave(vcpu);
}

static struct vitro_segment *regfile_seg(struct gdb_regfile *f, unsigned index)
{
    struct vitro_sregs *s = &f->sregs;
    struct vitro_segment *const seg[] = { &s->es, &s->cs, &s->ss,
                                          &s->ds, &s->fs, &s->gs };
    return seg[index];
}

static void regfile_copy(void *field, u8 *buf, unsigned n, bool write)
{
    if (write)
        memcpy(field, buf, n);
    else
        memcpy(buf, field, n);
}

/* Selectors are shown, not loaded: writing one would need the descriptor. */
void gdb_regfile_access(struct gdb_regfile *f, const struct gdb_reg *r, u8 *buf,
                           bool write)
{
    u32 sel;

    if (!write)
        memset(buf, 0, r->size);
    switch (r->kind) {
    case G_GPR:
        regfile_copy(&f->regs.gpr[r->index], buf, 8, write);
        break;
    case G_RIP:
        regfile_copy(&f->regs.rip, buf, 8, write);
        break;
    case G_EFLAGS:
        regfile_copy(&f->regs.rflags, buf, 4, write);
        break;
    case G_SEG:
        sel = regfile_seg(f, r->index)->selector;
        if (!write)
            memcpy(buf, &sel, 4);
        break;
    case G_BASE:
        regfile_copy(&regfile_seg(f, r->index)->base, buf, 8, write);
        break;
    case G_ST:
        if (f->xsave)
            regfile_copy(f->xsave + 32 + 16 * r->index, buf, 10, write);
        break;
    case G_FCTRL:
        if (f->xsave && r->index < 2)
            regfile_copy(f->xsave + 2 * r->index, buf, 2, write);
        break;
    case G_XMM:
        if (f->xsave)
            regfile_copy(f->xsave + 160 + 16 * r->index, buf, 16, write);
        break;
    case G_MXCSR:
        if (f->xsave)
            regfile_copy(f->xsave + 24, buf, 4, write);
        break;
    }
}

void gdb_regfile_store(struct gdb_regfile *f, struct vitro_vcpu *vcpu, bool sregs)
{
    if (sregs)
        vitro_vcpu_set_sregs(vcpu, &f->sregs);
    vitro_vcpu_set_regs(vcpu, &f->regs);
}
