/*
 * state.h - the machine's part of a snapshot: each chip's declared fields (device_class.state) as a section of
 * its name, time, and PCI. All functions while the machine is stopped (machine_stop()).
 */
#pragma once
#include "base/state.h"

struct machine;

/* What is not a chip of the board's table: controllers in arrays, devices that were plugged in. */
struct device_part {
    char name[32];
    const struct state_field *state;
    void *obj;
    int (*loaded)(void *obj); /* as device_class.loaded; may be NULL */
    /* Returns when nothing that was begun is under way: no thread touches guest memory, until resume(). Called by
     * machine_stop() and machine_start(), with no lock held; may be NULL. */
    void (*quiesce)(void *obj);
    void (*resume)(void *obj);
    const char *(*refuse)(void *obj); /* why it cannot be saved now, or NULL; may be NULL */
    /* Instead of `state`, what has no fixed length: append its bytes (0, or -errno with a sentence in *why); and take them
     * from a file that may be anybody's (0 or -errno). */
    int (*save)(void *obj, struct state_buf *buf, const char **why);
    int (*load)(void *obj, const void *bytes, size_t len);
};

/* machine_add_part - before vCPUs run. 0 or -ENOMEM. */
int machine_add_part(struct machine *m, const struct device_part *part);
/* machine_save - sections of everything; set->failed is the caller's to check. 0, or -EOPNOTSUPP with a sentence. */
int machine_save(struct machine *m, struct state_set *set, char *err, size_t err_len);
/*
 * machine_load - a machine of the same configuration becomes what was saved; it is still stopped. 0, or -EINVAL
 * with a sentence: then it is good for nothing but machine_destroy().
 */
int machine_load(struct machine *m, struct state_set *set, char *err, size_t err_len);
