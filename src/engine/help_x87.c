/*
 * help_x87.c - the x87's instruction and data pointers (FIP, FDP): the host has host addresses there, the guest must
 * see its own and none of ours. Everything that stores them is done here or passes by here: FNSTENV, FNSAVE,
 * FXSAVE, XSAVE. Sources: Intel SDM vol. 1 §8.1.8-8.1.10 (pointers, layouts), §10.5, §13.4 (FXSAVE, XSAVE).
 *
 * FIP is exact while the block that ran is still in the code cache, else 0; FDP while its page is in the TLB, else 0.
 */
#include "engine/engine.h"
#include "engine/fpu.h"
#include "engine/help.h"
#include "engine/mode.h"

#define FX_FOP 6
#define FX_FIP 8
#define FX_FDP 16
#define ENV_SIZE 28u
#define SAVE_SIZE 108u

void x87_guest_pointers(struct vcpu *v, u8 *area, bool wide)
{
    u64 p[2], la;
    engine_copy(p, area + FX_FIP, sizeof p);
    if (!engine_guest_pc(v, p[0], &p[0]) && wide)
        return;
    if (tlb_guest_address(v, p[1], &la))
        p[1] = la;
    if (!wide) { /* 32 bits each; selectors as CPUs that have none store them */
        p[0] = (u32)p[0];
        p[1] = (u32)p[1];
    }
    engine_copy(area + FX_FIP, p, sizeof p);
}

static void put16(u8 *p, u32 val)
{
    p[0] = (u8)val;
    p[1] = (u8)(val >> 8);
}

/*
 * The four layouts: protected and real mode, 32- and 16-bit. `env`: FNSTENV's 32-bit protected one, `fx`: FXSAVE64's, with
 * the guest's pointers. Returns the size.
 */
static unsigned environment(unsigned opsize, bool real, const u8 *env, const u8 *fx, u8 *out)
{
    u64 fip, fdp;
    u16 fop;
    unsigned step = opsize == 2 ? 2 : 4;
    u8 *p = out + 3 * step;
    __builtin_memcpy(&fop, fx + FX_FOP, 2);
    __builtin_memcpy(&fip, fx + FX_FIP, 8);
    __builtin_memcpy(&fdp, fx + FX_FDP, 8);
    fop &= 0x7ff;
    for (unsigned i = 0; i < 3; i++) { /* FCW, FSW, FTW */
        put16(out + i * step, (u32)(env[i * 4] | env[i * 4 + 1] << 8));
        if (step == 4)
            put16(out + i * step + 2, 0xffff);
    }
    put16(p, (u32)fip);
    put16(p + 2 * step, (u32)fdp);
    if (step == 4) {
        put16(p + 2, real ? 0 : (u32)(fip >> 16));
        put16(p + 4, real ? (u32)(fip >> 16 << 12) | fop : 0);
        put16(p + 6, real ? (u32)(fip >> 20) & 0xfff : fop);
        put16(p + 10, real ? 0 : (u32)(fdp >> 16));
        put16(p + 12, real ? (u32)(fdp >> 16 << 12) : 0);
        put16(p + 14, real ? (u32)(fdp >> 20) & 0xfff : 0xffff);
    } else {
        put16(p + 2, real ? (u32)(fip >> 16 << 12) | fop : 0);
        put16(p + 6, real ? (u32)(fdp >> 16 << 12) : 0);
    }
    return 7 * step;
}

static enum xret store(struct vcpu *v, const struct insn *in, bool all)
{
    u8 fx[XSAVE_LEGACY] __attribute__((aligned(64))), host[SAVE_SIZE], out[SAVE_SIZE];
    unsigned size = (in->opsize == 2 ? 14u : ENV_SIZE) + (all ? SAVE_SIZE - ENV_SIZE : 0);
    gla_t la;
    /* Both change the state when they store it: make sure of the store first. */
    if (insn_linear(v, in, size, ACC_W, &la) != X_OK || mem_probe(v, la, size, ACC_W | vcpu_acc(v)) != X_OK)
        return X_FAULT;
    fpu_fxsave(fx, true);
    x87_guest_pointers(v, fx, true);
    if (all)
        __asm__ volatile("fnsave %0" : "=m"(host));
    else
        __asm__ volatile("fnstenv %0" : "=m"(host));
    unsigned env = environment(in->opsize, v->mode & MODE_REAL, host, fx, out);
    if (all)
        engine_copy(out + env, host + ENV_SIZE, SAVE_SIZE - ENV_SIZE);
    return mem_write(v, la, out, size, ACC_W | vcpu_acc(v));
}

enum xret sys_fnstenv(struct vcpu *v, const struct insn *in)
{
    return store(v, in, false);
}
enum xret sys_fnsave(struct vcpu *v, const struct insn *in)
{
    return store(v, in, true);
}
