/* test_fuzz_queue.c - rings full of anything: whatever is taken from them lies in guest memory and adds up. */
#include "tests/fuzz/fuzz.h"
#include "virtio/queue.h"
#include <string.h>
#include <sys/uio.h>

#define RAM_SIZE 0x10000u

static void check_chain(const struct ram *ram, const u8 *mem, const struct vq *vq, const struct vq_chain *c)
{
    u64 sum[2] = { 0, 0 };
    bug_on(c->nr_out + c->nr_in > VQ_SEGS_MAX || (!vq->packed && c->id >= vq->size) || c->id >= VQ_SIZE_MAX);
    for (unsigned i = 0; i < (unsigned)c->nr_out + c->nr_in; i++) {
        const struct vq_seg *s = &c->seg[i];
        bug_on(s->host < mem || s->len > RAM_SIZE || (size_t)(s->host - mem) > RAM_SIZE - s->len || !s->len);
        bug_on(s->host != mem + s->gpa);
        sum[i >= c->nr_out] += s->len;
    }
    bug_on(sum[0] != c->out_len || sum[1] != c->in_len || c->out_len + c->in_len > 1ull << 32);
    (void)ram;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static u8 mem[RAM_SIZE] __attribute__((aligned(4096)));
    static struct vq_chain chain;
    struct iovec iov[VQ_SEGS_MAX];
    struct ram ram;
    struct vq vq;
    u8 buf[512];

    if (size < 4)
        return 0;
    ram_init(&ram);
    bug_on(ram_add_slot(&ram, 0, 0x8000, mem, false) || ram_add_slot(&ram, 0x8000, 0x8000, mem + 0x8000, false));
    memset(mem, 0, sizeof(mem));
    /* The rings lie one behind the other from 0 on; buffers and indirect tables may lie on them. */
    memcpy(mem, data + 4, size - 4 < RAM_SIZE ? size - 4 : RAM_SIZE);
    u16 qsize = (u16)(data[0] & 1 ? 1u << (data[1] & 7) : data[1]);
    const struct vq_setup setup = {
        .size = qsize, .packed = data[0] & 2, .event_idx = data[0] & 4, .indirect = data[0] & 8,
        .desc = (u64)(data[2] & 15) * 16, .avail = qsize * 16u + data[3] % 16 * 4u, .used = 0x1000,
    };
    if (!vq_init(&vq, &ram, &setup)) {
        for (unsigned n = 0; n < 300; n++) {
            if (vq_pop(&vq, &ram, &chain) != 1)
                break;
            check_chain(&ram, mem, &vq, &chain);
            if (n % 7 == 3) {
                vq_unpop(&vq, chain.nr_desc);
                if (vq_pop(&vq, &ram, &chain) != 1)
                    break;
                check_chain(&ram, mem, &vq, &chain);
            }
            int k = vq_slice(&chain, n & 1, data[2], n, iov, VQ_SEGS_MAX);
            bug_on(k > (int)VQ_SEGS_MAX);
            vq_copy_out(&chain, data[3], buf, sizeof(buf));
            vq_copy_in(&chain, data[3], buf, n % 4 ? sizeof(buf) : 3); /* and so the rings may change under our feet */
            vq_written(&ram, &chain, n);
            vq_fill(&vq, chain.id, chain.nr_desc, n);
            if (n % 3)
                vq_publish(&vq);
            vq_need_interrupt(&vq);
            vq_want_notify(&vq, n & 1);
        }
    }
    ram_fini(&ram);
    return 0;
}

FUZZ_MAIN("fuzz/queue", 20000, 700)
