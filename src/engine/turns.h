/*
 * turns.h - a lock whose holder may want it again at once, and that still comes round to everyone.
 *
 * A mutex alone lets the thread that gives it up take it again before one that waits is awake: those with much to
 * translate kept the others out for seconds. So who has waited for TURNS_NS shuts the gate, and then nobody else begins to wait
 * for the lock until that one has it.
 *
 * Any thread; nothing is allocated.
 */
#pragma once
#include <pthread.h>
#include <stdbool.h>

#include "base/types.h"

#ifdef TORTURE
#define TURNS_NS 20000
#else
#define TURNS_NS 2000000
#endif

struct turns {
    pthread_mutex_t lock, gate; /* gate, then lock */
    u32 shut;                   /* the holder of `gate` waits for `lock` */
};

void turns_init(struct turns *t);
void turns_fini(struct turns *t);
/* turns_try - take it if that needs no waiting. */
bool turns_try(struct turns *t);
void turns_take(struct turns *t);
void turns_give(struct turns *t);
