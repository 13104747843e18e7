/* gdb_regs.h - a vCPU's registers as gdb knows them: numbers, sizes, and their description in XML. */
#pragma once
#include "base/types.h"
#include "libvitro.h"

/* How gdb numbers them, and in which order 'g' sends them. target.xml is made from this table. */
enum gdb_kind { G_GPR, G_RIP, G_EFLAGS, G_SEG, G_ST, G_FCTRL, G_XMM, G_MXCSR, G_BASE };
struct gdb_reg {
    const char *name;
    const char *type;
    u8 kind, index, size;
    u8 feature; /* 0 core, 1 sse, 2 segments */
};

extern const struct gdb_reg gdb_regs[];
extern const unsigned gdb_nr_regs;
void gdb_target_xml(char *xml, size_t size);

/* A vCPU's registers taken out, to be read or changed, and put back. */
struct gdb_regfile {
    struct vitro_regs regs;
    struct vitro_sregs sregs;
    u8 *xsave; /* legacy area: x87 at 0..., xmm at 160 (SDM vol. 1 §10.5.1) */
};

void gdb_regfile_load(struct gdb_regfile *f, struct vitro_vcpu *vcpu);
/* gdb_regfile_access - one register, buf of its size. */
void gdb_regfile_access(struct gdb_regfile *f, const struct gdb_reg *r, u8 *buf, bool write);
/* gdb_regfile_store - @sregs: segment bases were changed too */
void gdb_regfile_store(struct gdb_regfile *f, struct vitro_vcpu *vcpu, bool sregs);
