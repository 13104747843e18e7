/*
 * park.h - a place where a thread that works in a loop is held while a VM is paused: it calls park_point() in each turn,
 * with nothing begun and no lock held; somebody else asks for it and waits until the thread is there.
 */
#pragma once
#include <pthread.h>
#include <stdbool.h>

struct park {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool wanted, parked;
};
#define PARK_INIT { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER }

/* park_point - wait here if that is wanted. True: it waited. */
static inline bool park_point(struct park *p)
{
    pthread_mutex_lock(&p->lock);
    bool waited = p->wanted;
    p->parked = p->wanted;
    pthread_cond_broadcast(&p->changed);
    while (p->wanted)
        pthread_cond_wait(&p->changed, &p->lock);
    p->parked = false;
    pthread_mutex_unlock(&p->lock);
    return waited;
}

static inline bool park_wanted(struct park *p)
{
    pthread_mutex_lock(&p->lock);
    bool wanted = p->wanted;
    pthread_mutex_unlock(&p->lock);
    return wanted;
}

/* park_want - then wake the thread, and park_wait(). */
static inline void park_want(struct park *p)
{
    pthread_mutex_lock(&p->lock);
    p->wanted = true;
    pthread_mutex_unlock(&p->lock);
}

static inline void park_wait(struct park *p)
{
    pthread_mutex_lock(&p->lock);
    while (p->wanted && !p->parked)
        pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static inline void park_release(struct park *p)
{
    pthread_mutex_lock(&p->lock);
    p->wanted = false;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}
