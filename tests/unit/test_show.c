/*
 * test_show.c - memory of a device's that the guest moves, as a frame buffer behind a BAR (vitro_vm_show_memory): where it is it is
 * memory, where it was accesses are the device's again, and nothing is remembered of its code.
 */
#include "libvitro.h"
#include "tests/lib/check.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RAM 0x80000u
#define SIZE 0x10000u
#define HERE 0x90000u
#define THERE 0xa0000u

static unsigned reads, writes;
static void mmio_read(void *opaque, unsigned vcpu, uint64_t gpa, void *buf, unsigned len)
{
    (void)opaque, (void)vcpu, (void)gpa;
    reads++;
    memset(buf, 0x33, len);
}
static void mmio_write(void *opaque, unsigned vcpu, uint64_t gpa, const void *buf, unsigned len)
{
    (void)opaque, (void)vcpu, (void)gpa, (void)buf, (void)len;
    writes++;
}

static unsigned run(struct vitro_vcpu *cpu, unsigned cs, unsigned ip)
{
    struct vitro_regs regs;
    struct vitro_sregs s;
    vitro_vcpu_get_regs(cpu, &regs);
    vitro_vcpu_get_sregs(cpu, &s);
    regs.rip = ip;
    s.cs.base = cs;
    s.cs.selector = (uint16_t)(cs >> 4);
    vitro_vcpu_set_regs(cpu, &regs);
    vitro_vcpu_set_sregs(cpu, &s);
    enum vitro_exit why = vitro_vcpu_run(cpu);
    CHECK_MSG(why == VITRO_EXIT_HLT, "exit %d: %s", why, vitro_vcpu_fail_message(cpu));
    vitro_vcpu_get_regs(cpu, &regs);
    return regs.gpr[0] & 0xff;
}

static unsigned char *mem;
/* mov $at >> 4, %ax; mov %ax, %ds; mov 0x10, %al; hlt */
static unsigned get(struct vitro_vcpu *cpu, unsigned at)
{
    unsigned ip = 0x1000 + (at >> 12) * 16;
    memcpy(mem + ip, (unsigned char[]){ 0xb8, (unsigned char)(at >> 4), (unsigned char)(at >> 12), 0x8e, 0xd8, 0xa0, 0x10, 0, 0xf4 }, 9);
    return run(cpu, 0, ip);
}
/* the same with movb $value, 0x10 */
static void put(struct vitro_vm *vm, struct vitro_vcpu *cpu, unsigned at, unsigned char value)
{
    unsigned char code[] = { 0xb8, (unsigned char)(at >> 4), (unsigned char)(at >> 12), 0x8e, 0xd8, 0xc6, 0x06, 0x10, 0, value, 0xf4 };
    memcpy(mem + 0x3000, code, sizeof(code));
    vitro_vm_memory_written(vm, 0x3000, sizeof(code));
    run(cpu, 0, 0x3000);
}

int main(void)
{
    const struct vitro_config config = { 0 };
    const struct vitro_ops ops = { .mmio_read = mmio_read, .mmio_write = mmio_write };
    char err[256];
    struct vitro_vm *vm = vitro_vm_create(&config, &ops, err, sizeof(err));
    mem = mmap(NULL, RAM + SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned char *device = mem + RAM;
    if (!vm || mem == MAP_FAILED)
        exit(1);
    CHECK(!vitro_vm_add_memory(vm, 0, RAM, mem, 0));
    struct vitro_vcpu *cpu = vitro_vcpu_create(vm, 0, err, sizeof(err));
    device[0x10] = 1;
    CHECK(get(cpu, HERE) == 0x33 && reads == 1); /* nothing there yet */
    CHECK(!vitro_vm_show_memory(vm, device, SIZE, HERE));
    CHECK(get(cpu, HERE) == 1 && reads == 1);
    put(vm, cpu, HERE, 0x55);
    CHECK(device[0x10] == 0x55 && !writes && get(cpu, HERE) == 0x55);
    CHECK(get(cpu, THERE) == 0x33 && reads == 2);

    memcpy(device + 0x20, (unsigned char[]){ 0xb0, 7, 0xf4 }, 3); /* mov $7, %al; hlt */
    CHECK(run(cpu, HERE, 0x20) == 7);
    for (unsigned i = 0; i < 3; i++) { /* there and back: each place is remembered */
        CHECK(!vitro_vm_show_memory(vm, device, SIZE, THERE));
        unsigned before = reads;
        CHECK(get(cpu, THERE) == 0x55 && reads == before && get(cpu, HERE) == 0x33 && reads == before + 1);
        CHECK(run(cpu, THERE, 0x20) == 7 + i);
        device[0x21]++; /* while it is not at the first place, whose code is forgotten */
        CHECK(!vitro_vm_show_memory(vm, device, SIZE, HERE));
        CHECK(get(cpu, HERE) == 0x55 && run(cpu, HERE, 0x20) == 8 + i);
    }
    CHECK(!vitro_vm_show_memory(vm, device, SIZE, VITRO_NOWHERE));
    reads = 0;
    CHECK(get(cpu, HERE) == 0x33 && get(cpu, THERE) == 0x33 && reads == 2);
    CHECK(vitro_vm_show_memory(vm, device, SIZE, RAM - SIZE) == -EINVAL); /* the RAM stays */
    CHECK(get(cpu, RAM - SIZE) == 0 && get(cpu, HERE) == 0x33);

    unsigned places = 0;
    while (!vitro_vm_show_memory(vm, device, SIZE, 0x200000 + places * SIZE) && places < 1000)
        places++;
    CHECK_MSG(places > 15 && places < 40, "%u places", places);
    CHECK(vitro_vm_show_memory(vm, device, SIZE, 0x4000000) == -ENOSPC);
    CHECK(!vitro_vm_show_memory(vm, device, SIZE, HERE) && get(cpu, HERE) == 0x55);
    vitro_vcpu_destroy(cpu);
    vitro_vm_destroy(vm);
    return check_done("unit/show");
}
