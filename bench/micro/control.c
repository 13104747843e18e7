/*
 * control.c - programs whose time goes into calls, returns and jumps rather
 * than arithmetic.
 */
#include "vb.h"

#include <setjmp.h>

/* -- fib: the recursive one; an operation is fib(20), 21 891 calls --------- */

static VB_NOINLINE u64 fib(u64 n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static u64 fib_run(u64 n)
{
    u64 sum = 0, arg = 20;

    for (u64 op = 0; op < n; op++) {
        VB_OPAQUE(arg);
        sum += fib(arg);
    }
    return sum;
}

/* -- call_table: indirect calls through a table of 16, in mixed order ------ */

#define FN(i, expr)                                                            \
    static VB_NOINLINE u64 fn##i(u64 x)                                        \
    {                                                                          \
        return expr;                                                           \
    }
FN(0, x + 1)
FN(1, x ^ 0x55)
FN(2, x * 3)
FN(3, x >> 1)
FN(4, x - 7)
FN(5, ~x)
FN(6, x << 3 | x >> 61)
FN(7, x + (x >> 4))
FN(8, x ^ x >> 9)
FN(9, x * 5 + 1)
FN(10, x - (x >> 3))
FN(11, x | 1)
FN(12, x + 1234567)
FN(13, x ^ x << 7)
FN(14, x * 9)
FN(15, x + 15)
#undef FN

static u64 (*const fns[16])(u64) = {fn0,  fn1,  fn2,  fn3, fn4,  fn5,
                                    fn6,  fn7,  fn8,  fn9, fn10, fn11,
                                    fn12, fn13, fn14, fn15};

static u64 call_table_run(u64 n)
{
    u64 (*const *table)(u64) = fns;
    u64 x = 1;

    VB_OPAQUE(table);
    for (u64 op = 0; op < n; op++)
        x = table[(op * 7 + (op >> 4)) & 15](x);
    return x;
}

/* -- interpreters: one bytecode program, two ways to dispatch -------------- */

enum {
    OP_LOADI,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_XOR,
    OP_SHR,
    OP_DEC,
    OP_JNZ,
    OP_END
};

struct bytecode {
    u8 op, dst, src, imm;
};

/* r0 counts down from imm * 16; the loop body mixes r1-r3. */
static const struct bytecode program[] = {
    {OP_LOADI, 0, 0, 100}, {OP_LOADI, 1, 0, 3}, {OP_LOADI, 2, 0, 5},
    {OP_ADD, 1, 2, 0},     {OP_MUL, 2, 1, 0},   {OP_XOR, 3, 2, 0},
    {OP_SHR, 3, 0, 1},     {OP_SUB, 1, 3, 0},   {OP_ADD, 2, 0, 0},
    {OP_DEC, 0, 0, 0},     {OP_JNZ, 0, 0, 3},   {OP_END, 0, 0, 0},
};

static VB_NOINLINE u64 interp_switch(const struct bytecode *code, u64 r3)
{
    u64 r[4] = {0, 0, 0, r3};

    for (const struct bytecode *pc = code;; pc++) {
        switch (pc->op) {
        case OP_LOADI:
            r[pc->dst] = pc->imm;
            break;
        case OP_ADD:
            r[pc->dst] += r[pc->src];
            break;
        case OP_SUB:
            r[pc->dst] -= r[pc->src];
            break;
        case OP_MUL:
            r[pc->dst] *= r[pc->src];
            break;
        case OP_XOR:
            r[pc->dst] ^= r[pc->src];
            break;
        case OP_SHR:
            r[pc->dst] >>= pc->imm;
            break;
        case OP_DEC:
            r[pc->dst]--;
            break;
        case OP_JNZ:
            if (r[pc->dst])
                pc = code + pc->imm - 1;
            break;
        case OP_END:
            return r[1] ^ r[2] ^ r[3];
        }
    }
}

static VB_NOINLINE u64 interp_goto(const struct bytecode *pc, u64 r3)
{
    static const void *const labels[] = {&&loadi, &&add, &&sub, &&mul, &&xor,
                                         &&shr,   &&dec, &&jnz, &&end};
    const struct bytecode *code = pc;
    u64 r[4] = {0, 0, 0, r3};

#define NEXT goto *labels[(++pc)->op]
    goto *labels[pc->op];
loadi:
    r[pc->dst] = pc->imm;
    NEXT;
add:
    r[pc->dst] += r[pc->src];
    NEXT;
sub:
    r[pc->dst] -= r[pc->src];
    NEXT;
mul:
    r[pc->dst] *= r[pc->src];
    NEXT;
    xor : r[pc->dst] ^= r[pc->src];
    NEXT;
shr:
    r[pc->dst] >>= pc->imm;
    NEXT;
dec:
    r[pc->dst]--;
    NEXT;
jnz:
    if (r[pc->dst])
        pc = code + pc->imm - 1;
    NEXT;
end:
    return r[1] ^ r[2] ^ r[3];
#undef NEXT
}

static u64 switch_interp_run(u64 n)
{
    const struct bytecode *code = program;
    u64 sum = 0;

    VB_OPAQUE(code);
    for (u64 op = 0; op < n; op++)
        sum = vb_mix(sum, interp_switch(code, op));
    return sum;
}

static u64 goto_interp_run(u64 n)
{
    const struct bytecode *code = program;
    u64 sum = 0;

    VB_OPAQUE(code);
    for (u64 op = 0; op < n; op++)
        sum = vb_mix(sum, interp_goto(code, op));
    return sum;
}

/* -- virtual_call: objects with a pointer to their methods ----------------- */

struct shape;
struct shape_ops {
    u64 (*area)(const struct shape *s);
    void (*grow)(struct shape *s);
};
struct shape {
    const struct shape_ops *ops;
    u64 a, b;
};

static u64 square_area(const struct shape *s)
{
    return s->a * s->a;
}
static u64 rect_area(const struct shape *s)
{
    return s->a * s->b;
}
static u64 tri_area(const struct shape *s)
{
    return s->a * s->b / 2;
}
static void grow_a(struct shape *s)
{
    s->a = (s->a + 1) & 1023;
}
static void grow_b(struct shape *s)
{
    s->b = (s->b + 3) & 1023;
}

static const struct shape_ops shape_ops[3] = {
    {square_area, grow_a}, {rect_area, grow_b}, {tri_area, grow_a}};

/* One operation: two calls on one object. */
static u64 virtual_call_run(u64 n)
{
    static struct shape shapes[64];
    struct shape *s = shapes;
    u64 seed = 10, sum = 0;

    for (int i = 0; i < 64; i++)
        shapes[i] = (struct shape){&shape_ops[vb_rand(&seed) % 3], (u64)i, 7};
    for (u64 op = 0; op < n; op++) {
        VB_OPAQUE(s);
        s[op & 63].ops->grow(&s[op & 63]);
        sum += s[op & 63].ops->area(&s[op & 63]);
    }
    return sum;
}

/* -- longjmp: out of four calls -------------------------------------------- */

static jmp_buf escape;
static void (*volatile jump_out)(struct __jmp_buf_tag *, int) = _longjmp;

static VB_NOINLINE void dive(int depth, int value)
{
    if (depth == 0)
        jump_out(escape, value);
    else
        dive(depth - 1, value);
    __asm__ volatile("" ::: "memory"); /* keep it a call */
}

static u64 longjmp_run(u64 n)
{
    volatile u64 sum = 0;

    for (volatile u64 op = 0; op < n; op = op + 1) {
        int got = _setjmp(escape);

        if (got == 0)
            dive(4, (int)(op & 0xffff) + 1);
        sum = sum + (u64)got;
    }
    return sum;
}

/* -- recursion: 2 000 frames deep and back; an operation is one descent ---- */

static VB_NOINLINE u64 descend(u64 depth, u64 x)
{
    if (depth == 0)
        return x;
    return descend(depth - 1, x * 3 + depth) ^ depth;
}

static u64 recursion_run(u64 n)
{
    u64 sum = 0;

    for (u64 op = 0; op < n; op++)
        sum = vb_mix(sum, descend(2000, op));
    return sum;
}

/* -- state_machine: a tokenizer over 4 KiB of source text ------------------ */

#define TEXT_BYTES 4096

enum state { S_SPACE, S_WORD, S_NUMBER, S_STRING, S_COMMENT };

static VB_NOINLINE u64 tokenize(const char *p)
{
    u64 count[5] = {0};
    enum state s = S_SPACE;

    for (; *p; p++) {
        enum state old = s;

        if (s == S_STRING) {
            s = *p == '"' ? S_SPACE : S_STRING;
        } else if (s == S_COMMENT) {
            s = *p == '\n' ? S_SPACE : S_COMMENT;
        } else if (*p == '"') {
            s = S_STRING;
        } else if (*p == '#') {
            s = S_COMMENT;
        } else if (*p >= '0' && *p <= '9') {
            s = s == S_WORD ? S_WORD : S_NUMBER;
        } else if ((*p | 32) >= 'a' && (*p | 32) <= 'z') {
            s = S_WORD;
        } else {
            s = S_SPACE;
        }
        count[s] += s != old;
    }
    return count[1] | count[2] << 12 | count[3] << 24 | count[4] << 36;
}

static u64 state_machine_run(u64 n)
{
    static const char alphabet[] = "abcxyz  019_\"#\n(;) ";
    static char text[TEXT_BYTES + 1];
    u64 seed = 11, sum = 0;

    for (int i = 0; i < TEXT_BYTES; i++)
        text[i] = alphabet[vb_rand(&seed) % (sizeof(alphabet) - 1)];
    for (u64 op = 0; op < n; op++) {
        sum = vb_mix(sum, tokenize(text));
        text[op % TEXT_BYTES] = alphabet[op % (sizeof(alphabet) - 1)];
    }
    return sum;
}

const struct vb_bench vb_control[] = {
    {"fib", "control", 15000, fib_run, NULL},
    {"call_table", "control", 40000000, call_table_run, NULL},
    {"switch_interp", "control", 200000, switch_interp_run, NULL},
    {"goto_interp", "control", 400000, goto_interp_run, NULL},
    {"virtual_call", "control", 25000000, virtual_call_run, NULL},
    {"longjmp", "control", 25000000, longjmp_run, NULL},
    {"recursion", "control", 60000, recursion_run, NULL},
    {"state_machine", "control", 30000, state_machine_run, NULL},
    {0},
};
