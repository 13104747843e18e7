/*
 * fault.c - host signals in emitted code become guest exceptions.
 *
 * Emitted code touches only the return-prediction stack, struct vcpu, guest RAM that the TLB allowed, and windows (window.h: a
 * page that is missing there is mapped, or the guest's own #PF), so any other page fault in it can only be the guard page of the prediction stack (the stack is emptied and the
 * instruction runs again) or a masked access on the pages slow.c lays out for it. Everything else is what the guest's own instruction raised (#DE, #UD, #GP for
 * misaligned vectors, #MF, #XM, #AC). The handler moves the context to stub_fault and returns:
 * the kernel restores the guest's vector registers on the way.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "engine/emit.h"
#include "engine/window.h"

#define ALT_STACK_SIZE (64u << 10)

static __thread struct vcpu *running;
static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
static struct sigaction previous[ARRAY_SIZE(signals)]; /* process-wide, as signal actions are */
static pthread_once_t installed = PTHREAD_ONCE_INIT;

/* As if we were not there. What was to run once (SA_RESETHAND), or is the default, takes our place: it is the end. */
static void chain(int sig, siginfo_t *info, void *ctx)
{
    bool sent = info->si_code <= 0; /* by someone: the instruction will not do it again */
    unsigned i = 0;
    while (signals[i] != sig)
        i++;
    const struct sigaction *p = &previous[i];
    if (sent && p->sa_handler == SIG_IGN)
        return;
    if (p->sa_flags & (int)SA_RESETHAND || p->sa_handler == SIG_DFL || p->sa_handler == SIG_IGN) {
        sigaction(sig, p, NULL);
        if (sent)
            raise(sig);
    } else if (p->sa_flags & SA_SIGINFO) {
        p->sa_sigaction(sig, info, ctx);
    } else {
        p->sa_handler(sig);
    }
}

static unsigned insn_of_cold(const struct block *b, u32 host)
{
    unsigned i = b->nr_insns - 1u;
    while (i && MAP_COLD(b->map[b->nr_insns + i]) > host)
        i--;
    return i;
}

/* The guest instruction that host code belongs to. In cold code it is the one whose record follows. */
static unsigned insn_at(const struct block *b, const u8 *pc)
{
    u32 host = block_offset(b, pc);
    unsigned i = 0;
    if (host >= b->hot_len)
        return insn_of_cold(b, host);
    while (i + 1u < b->nr_insns && MAP_HOST(b->map[i + 1]) <= host)
        i++;
    return i;
}

bool engine_guest_pc(struct vcpu *v, u64 host, u64 *rip)
{
    const u8 *pc = (const u8 *)host;
    if (!cache_contains(v->vm->cache, pc))
        return false;
    const struct block *b = cache_block_at(v->vm->cache, pc);
    *rip = b ? v->x87_vbase + b->off + (b->map[insn_at(b, pc)] & 4095) : 0;
    if (!(v->mode & MODE_64))
        *rip = (u32)(*rip - v->seg[SEG_CS].base);
    return true;
}

static void handler(int sig, siginfo_t *info, void *ctx)
{
    ucontext_t *uc = ctx;
    greg_t *g = uc->uc_mcontext.gregs;
    struct vcpu *v = running;
    u8 *pc = (u8 *)g[REG_RIP];
    if (!v || info->si_code <= 0 || !cache_contains(v->vm->cache, pc)) {
        chain(sig, info, ctx);
        return;
    }
    struct engine_vcpu *ev = v->eng;
    u8 *addr = info->si_addr;
    unsigned trap = (unsigned)g[REG_TRAPNO];
    bool window = false; /* it is for engine_window() */
    if (sig == SIGSEGV && trap == VEC_PF) {
        size_t half = 2 * HSTACK_HALF;
        if (addr >= ev->hstack && addr < ev->hstack + half) {
            engine_drop_returns(v);
            g[REG_RSP] = (greg_t)v->hsp_base;
            return;
        }
        if (window_area(v->vm, addr)) {
            gla_t la = 0;
            enum window_fill f = window_address(v, addr, &la) ? window_fill(v, la, g[REG_ERR] & 2) : WINDOW_ODD;
            if (f == WINDOW_FILLED)
                return;
            ev->window_fault = f == WINDOW_FAULT;
            ev->refused.la = la;
            ev->refused.write = g[REG_ERR] & 2;
            window = true;
        } else if ((u64)addr >> 63) { /* a wild address in code that goes through windows */
            window = true;
        } else if (addr < ev->masked_pages || addr >= ev->masked_pages + MASKED_SIZE) {
            chain(sig, info, ctx); /* a bug of ours */
            return;
        }
    }
    struct block *b = cache_block_at(v->vm->cache, pc);
    if (!b || (window && !(b->mode & MODE_WINDOW))) {
        chain(sig, info, ctx);
        return;
    }
    window |= (b->mode & MODE_WINDOW) && (trap == VEC_GP || trap == VEC_SS);
    static const int from_host[] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_R15, REG_RBP, REG_RSI, REG_RDI,
                                     -1, -1, -1, -1, REG_R12, REG_R13, REG_R8, REG_R9 };
    for (unsigned r = 0; r < NR_GPR; r++)
        if (from_host[r] >= 0)
            v->regs[r] = (u64)g[from_host[r]];
    unsigned i = insn_at(b, pc);
    u32 at = b->map[i], fl = (u32)g[REG_EFL];
    v->regs[RSP] += (u64)(s64)MAP_LAG(b->map[b->nr_insns + i]);
    v->rip = vcpu_rip_at(v, b->off + (at & 4095));
    if (at & MAP_FLAGS_HOST)
        v->fl = (u16)(((fl & 0xd5) | 2) << 8 | (fl >> 11 & 1));
    if (!window)
        v->exc = (struct exc){ .vector = (u8)trap };
    if (trap == VEC_PF && !window) { /* a masked access: a lane that is on touched an absent page */
        u64 off = (u64)(addr - ev->masked_at);
        v->exc = ev->masked_exc[off >= ev->masked_first];
        if (v->exc.vector == VEC_PF)
            v->exc.cr2 = v->mode & MODE_64 ? ev->masked_ea + off : (u32)(ev->masked_ea + off);
    }
    if (!window && (trap == VEC_GP || trap == VEC_SS || trap == VEC_AC)) {
        v->exc.has_error = true;
        if (trap == VEC_SS) /* the host's own stack segment has nothing to do with it */
            v->exc.vector = VEC_GP;
    }
    v->host_rsp = (u64)g[REG_RSP];
    g[REG_RSP] = (greg_t)v->c_rsp;
    g[REG_RIP] = (greg_t)(window ? stub_window : stub_fault);
    g[REG_EFL] &= ~(greg_t)(EFL_DF | EFL_TF);
}

static void install(void)
{
    struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
    sigemptyset(&sa.sa_mask);
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
        sigaction(signals[i], &sa, &previous[i]);
}

int fault_thread_init(struct vcpu *v)
{
    pthread_once(&installed, install);
    struct engine_vcpu *ev = v->eng;
    if (!ev->alt_stack) {
        void *p = mmap(NULL, ALT_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return -1;
        ev->alt_stack = p;
    }
    stack_t ss = { .ss_sp = ev->alt_stack, .ss_size = ALT_STACK_SIZE };
    if (sigaltstack(&ss, &ev->old_alt))
        return -1;
    running = v;
    return 0;
}
void fault_thread_fini(struct vcpu *v)
{
    running = NULL;
    sigaltstack(&v->eng->old_alt, NULL);
}
