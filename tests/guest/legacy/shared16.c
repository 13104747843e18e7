/*
 * Neighbouring accesses of 16-bit code, whose checks the translator may make together: offsets wrap at 64 KiB, a word at ffff is
 * #GP where it stands and what came before it has happened, SP wraps, and a store may hit the code that is running.
 * Each sequence runs at many offsets and is compared with a model in C.
 */
#include "legacy/lib/legacy.h"

#define SEGMENT ((volatile u8 *)0x30000)
static u8 model[0x10000];
static u16 edges[80];
static unsigned nr_edges;

/* ax: the offset, to SI */
#define AT_SI "mov $0x3000, %cx\n mov %cx, %ds\n mov %ax, %si\n"
SYM(s_words);
SYM(s_moves);
SYM(s_indexed);
SYM(s_branch);
LOW("s_words: " AT_SI "s_words_0: addw $1, (%si)\n s_words_1: addw $2, 2(%si)\n s_words_2: addw $3, -2(%si)\n s_words_3: addb $4, 3(%si)\n"
    "s_words_4: addl $5, 4(%si)\n ret");
LOW("s_moves: " AT_SI "s_moves_0: addw $1, 6(%si)\n add $4, %si\n s_moves_1: addw $2, -2(%si)\n sub $8, %si\n s_moves_2: addw $3, 2(%si)\n"
    "s_moves_3: addw $4, 0x7ffe(%si)\n s_moves_4: addb $5, (%si)\n ret");
LOW("s_indexed: " AT_SI "mov $0x9234, %bx\n sub %bx, %si\n s_indexed_0: addw $1, (%bx,%si)\n s_indexed_1: addl $2, 2(%bx,%si)\n"
    "s_indexed_2: addw $3, -6(%bx,%si)\n s_indexed_3: addb $4, 9(%bx,%si)\n s_indexed_4: addw $5, -1(%bx,%si)\n ret");
LOW("s_branch: " AT_SI "s_branch_0: addw $1, (%si)\n jc 1f\n s_branch_1: addw $2, 2(%si)\n jc 1f\n s_branch_2: addw $3, 4(%si)\n"
    "s_branch_3: addw $4, -1(%si)\n s_branch_4: addw $5, 7(%si)\n 1: ret");

#define LABELS(name) extern const char name##_0[], name##_1[], name##_2[], name##_3[], name##_4[]; \
    static const char *const name##_at[] = { name##_0, name##_1, name##_2, name##_3, name##_4 }
LABELS(s_words);
LABELS(s_moves);
LABELS(s_indexed);
LABELS(s_branch);
static const struct sequence {
    const char *name, *code;
    const char *const *at;
    struct { short off; u8 size; } op[5]; /* from the first SI; each adds its number */
    unsigned branches; /* behind the first so many: out on a carry */
} sequences[] = {
    { "words", s_words, s_words_at, { { 0, 2 }, { 2, 2 }, { -2, 2 }, { 3, 1 }, { 4, 4 } } },
    { "a base that moves", s_moves, s_moves_at, { { 6, 2 }, { 2, 2 }, { -2, 2 }, { 0x7ffa, 2 }, { -4, 1 } } },
    { "base and index", s_indexed, s_indexed_at, { { 0, 2 }, { 2, 4 }, { -6, 2 }, { 9, 1 }, { -1, 2 } } },
    { "over branches", s_branch, s_branch_at, { { 0, 2 }, { 2, 2 }, { 4, 2 }, { -1, 2 }, { 7, 2 } }, 2 },
};

/* Does the sequence do at `si` what the model does? */
static bool as_modelled(const struct sequence *s, u16 si)
{
    int want = -1, got = run_real(s->code, si);
    unsigned i;
    for (i = 0; i < 5 && want < 0; i++) {
        u16 ea = (u16)(si + s->op[i].off);
        if (ea + s->op[i].size > 0x10000) {
            want = GP;
            break;
        }
        u32 val = 0;
        memcpy(&val, model + ea, s->op[i].size);
        val += i + 1;
        memcpy(model + ea, &val, s->op[i].size);
        if (i < s->branches && val >> 16)
            break;
    }
    if (got != want || (want == GP && real_ip != (u32)s->at[i]))
        return false;
    for (unsigned k = 0; k < sizeof(model); k++)
        if (SEGMENT[k] != model[k])
            return false;
    return true;
}

/* Push, pop, call and ret around SP = ax, in a segment of their own. Then EAX: what the last pop took, and SP. */
SYM(s_stack);
SYM(s_stack_ret);
LOW("s_stack: mov %sp, %di\n mov $0x3000, %cx\n mov %ax, %dx\n mov %cx, %ss\n mov %ax, %sp\n push $0x1111\n push %dx\n pop %bx\n push $0x2222\n"
    "push $0x3333\n call 1f\n s_stack_ret: pop %cx\n mov %sp, %ax\n xor %si, %si\n mov %si, %ss\n mov %di, %sp\n cmp %bx, %dx\n jne 2f\n"
    "shl $16, %ecx\n movzwl %ax, %eax\n or %ecx, %eax\n 2: ret\n 1: pop %bp\n push %bp\n ret $2");
static bool stack_word(u16 at, u16 want) { return (SEGMENT[at] | SEGMENT[(u16)(at + 1)] << 8) == want; }
static bool stack_as_modelled(u16 sp)
{
    return run_real(s_stack, sp) == -1 && real_eax == (0x22220000u | (u16)(sp - 2)) && stack_word((u16)(sp - 2), 0x1111) &&
           stack_word((u16)(sp - 4), 0x2222) && stack_word((u16)(sp - 6), 0x3333) && stack_word((u16)(sp - 8), (u16)(u32)s_stack_ret);
}

/* Two stores beside each other into the instructions behind them */
SYM(s_own_code);
LOW("s_own_code: mov $1f, %si\n incb 1(%si)\n incb 4(%si)\n 1: mov $5, %cx\n mov $7, %dx\n mov %cx, %ax\n shl $16, %eax\n mov %dx, %ax\n ret");

int main(void)
{
    for (unsigned i = 0; i < 16; i++) {
        edges[nr_edges++] = (u16)i;
        edges[nr_edges++] = (u16)(0xfff0 + i);
        edges[nr_edges++] = (u16)(0x0ff6 + i); /* a page ends inside */
        edges[nr_edges++] = (u16)(0x7ffe + 16 * i);
    }
    for (unsigned k = 0; k < sizeof(model); k++)
        SEGMENT[k] = model[k] = (u8)(k * 7 + (k >> 8));
    for (unsigned i = 0; i < ARRAY_LEN(sequences); i++) {
        char name[64];
        unsigned wrong = 0, first = 0;
        for (unsigned round = 0; round < 2; round++)
            for (unsigned k = 0; k < nr_edges; k++)
                if (!as_modelled(&sequences[i], edges[k]) && !wrong++)
                    first = edges[k];
        format(name, sizeof(name), "%s, at each offset", sequences[i].name);
        report_eq(name, wrong << 16 | first, 0);
    }
    unsigned wrong = 0, first = 0;
    for (unsigned k = 0; k < nr_edges; k++)
        if (!(edges[k] & 1) && !stack_as_modelled(edges[k]) && !wrong++)
            first = edges[k];
    report_eq("push, pop, call, ret at each even SP", wrong << 16 | first, 0);
    wrong = 0;
    for (u32 i = 1; i < 40; i++)
        wrong += run_real(s_own_code, 0) != -1 || real_eax != ((i + 5) << 16 | (i + 7));
    report_eq("stores beside each other into the code behind them", wrong, 0);
    return 0;
}
