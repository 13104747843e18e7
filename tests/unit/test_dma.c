/*
 * test_dma.c - a device writes guest memory that has been run: what runs afterwards is the new code. The "device" writes through
 * the host mapping, between two runs and from the port handler of a run.
 */
#include "libvitro.h"
#include "tests/lib/check.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SIZE 0x100000u

static unsigned char *mem;
static struct vitro_vm *vm;
static unsigned target = 0x2001; /* what the doorbell's device writes */

static void write_code(unsigned at, unsigned char value)
{
    if (mem[at] == value)
        return;
    mem[at] = value;
    vitro_vm_memory_written(vm, at, 1);
}

/* A port write is the doorbell of a device that has filled the page when it returns. */
static void port_out(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)opaque, (void)port, (void)size;
    write_code(target, (unsigned char)value);
}

/* The same by a register in memory. */
static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, const void *buf, unsigned len)
{
    (void)opaque, (void)vcpu, (void)gpa, (void)len;
    write_code(target, *(const unsigned char *)buf);
}

static unsigned run(struct vitro_vcpu *cpu, unsigned ip)
{
    struct vitro_regs regs;
    vitro_vcpu_get_regs(cpu, &regs);
    regs.rip = ip;
    vitro_vcpu_set_regs(cpu, &regs);
    enum vitro_exit why = vitro_vcpu_run(cpu);
    CHECK_MSG(why == VITRO_EXIT_HLT, "exit %d: %s", why, vitro_vcpu_fail_message(cpu));
    vitro_vcpu_get_regs(cpu, &regs);
    return regs.gpr[0] & 0xff;
}

static void test(unsigned debug)
{
    const struct vitro_config config = { .debug = debug };
    const struct vitro_ops ops = { .port_out = port_out, .mmio_write = mmio_write };
    char err[256];
    vm = vitro_vm_create(&config, &ops, err, sizeof(err));
    if (!vm) {
        printf("%s\n", err);
        exit(1);
    }
    memset(mem, 0, SIZE);
    CHECK(!vitro_vm_add_memory(vm, 0, SIZE, mem, 0));
    struct vitro_vcpu *cpu = vitro_vcpu_create(vm, 0, err, sizeof(err));
    struct vitro_sregs s;
    vitro_vcpu_get_sregs(cpu, &s);
    s.cs.base = 0;
    s.cs.selector = 0;
    vitro_vcpu_set_sregs(cpu, &s);

    memcpy(mem + 0x1000, (unsigned char[]){ 0xb0, 1, 0xf4 }, 3); /* mov $1, %al; hlt */
    CHECK(run(cpu, 0x1000) == 1);
    for (unsigned i = 2; i < 50; i++) {
        write_code(0x1001, (unsigned char)i);
        unsigned got = run(cpu, 0x1000);
        CHECK_MSG(got == i, "debug %#x: %u ran, %u is there", debug, got, i);
    }
    /* More than is remembered singly: everything goes. */
    for (unsigned at = 0x3000; at < 0xf000; at += 64)
        memcpy(mem + at, (unsigned char[]){ 0xb0, 1, 0xf4 }, 3);
    for (unsigned at = 0x3000; at < 0xf000; at += 64)
        run(cpu, at);
    for (unsigned at = 0x3000; at < 0xf000; at += 64)
        write_code(at + 1, 2);
    unsigned old = 0;
    for (unsigned at = 0x3000; at < 0xf000; at += 64)
        old += run(cpu, at) != 2;
    CHECK_MSG(!old, "debug %#x: %u pieces of old code ran", debug, old);

    /* While it runs: call what is there, have the device change it, poll as a driver does, call it again. */
    static const unsigned char driver[] = {
        0xbc, 0x00, 0x08,       /* mov $0x800, %sp        */
        0xe8, 0xfa, 0x0f,       /* call 0x2000 (from 0x1006) */
        0x88, 0xc3,             /* mov %al, %bl           */
        0xb0, 7,                /* mov $7, %al            */
        0xe6, 0x80,             /* out %al, $0x80         */
        0xb9, 0x04, 0x00,       /* mov $4, %cx            */
        0xe2, 0xfe,             /* loop .                 */
        0xe8, 0xec, 0x0f,       /* call 0x2000 (from 0x1014) */
        0x00, 0xd8,             /* add %bl, %al           */
        0xf4,
    };
    memcpy(mem + 0x2000, (unsigned char[]){ 0xb0, 1, 0xc3 }, 3); /* mov $1, %al; ret */
    memcpy(mem + 0x1000, driver, sizeof(driver));
    vitro_vm_memory_written(vm, 0x1000, sizeof(driver));
    unsigned got = run(cpu, 0x1000);
    CHECK_MSG(got == 8, "debug %#x: 1 + 7 gave %u", debug, got);
    /* The doorbell's device has finished when it returns, and nothing polls before the direct call: by a port, by MMIO. */
    static const unsigned char straight[2][5] = {
        { 0xe6, 0x80, 0x90, 0x90, 0x90 }, /* out %al, $0x80     */
        { 0xa2, 0x00, 0x00, 0x10, 0x00 }, /* mov %al, 0x100000: no memory is there */
    };
    vitro_vcpu_get_sregs(cpu, &s); /* flat 32-bit segments, whose calls are linked */
    s.cr0 |= 1;
    s.cs = (struct vitro_segment){ .limit = ~0u, .attr = 0xc09b, .selector = 8 };
    s.ds = s.ss = s.es = (struct vitro_segment){ .limit = ~0u, .attr = 0xc093, .selector = 16 };
    vitro_vcpu_set_sregs(cpu, &s);
    memcpy(mem + 0x1800, (unsigned char[]){ 0xb0, 1, 0xc3 }, 3); /* mov $1, %al; ret */
    target = 0x1801; /* links within a page poll nothing */
    for (unsigned i = 0; i < 2; i++) {
        unsigned char code[] = {
            0xbc, 0x00, 0x08, 0, 0, /* mov $0x800, %esp       */
            0x31, 0xc9,             /* xor %ecx, %ecx         */
            0xb2, 1,                /* mov $1, %dl: leaves memory as it is */
            0xe8, 0xf2, 0x07, 0, 0, /* 1: call 0x1800         */
            0x88, 0xc3,             /* mov %al, %bl           */
            0x88, 0xd0,             /* mov %dl, %al           */
            0x90, 0x90, 0x90, 0x90, 0x90, /* the doorbell     */
            0xe8, 0xe4, 0x07, 0, 0, /* call 0x1800, linked from the first time on */
            0x41,                   /* inc %ecx               */
            0x83, 0xf9, 0x02,       /* cmp $2, %ecx           */
            0x75, 0x02,             /* jne 2f                 */
            0xb2, 7,                /* mov $7, %dl            */
            0x83, 0xf9, 0x03,       /* 2: cmp $3, %ecx        */
            0x75, 0xe0,             /* jne 1b                 */
            0x00, 0xd8,             /* add %bl, %al           */
            0xf4,
        };
        memcpy(code + 18, straight[i], 5);
        memcpy(mem + 0x1000, code, sizeof(code));
        vitro_vm_memory_written(vm, 0x1000, sizeof(code));
        write_code(target, 1);
        got = run(cpu, 0x1000);
        CHECK_MSG(got == 8, "debug %#x, doorbell %u: 1 + 7 gave %u", debug, i, got);
    }
    target = 0x2001;
    vitro_vcpu_destroy(cpu);
    vitro_vm_destroy(vm);
}

int main(void)
{
    mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED)
        return 1;
    test(0);
    test(VITRO_DEBUG_ONE_INSN);
    test(VITRO_DEBUG_NO_CHAIN);
    return check_done("unit/dma");
}
