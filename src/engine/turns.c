/* turns.c - see turns.h. */
#include "engine/turns.h"

#include <time.h>

void turns_init(struct turns *t)
{
    pthread_mutex_init(&t->lock, NULL);
    pthread_mutex_init(&t->gate, NULL);
    t->shut = 0;
}

void turns_fini(struct turns *t)
{
    pthread_mutex_destroy(&t->gate);
    pthread_mutex_destroy(&t->lock);
}

bool turns_try(struct turns *t)
{
    return !__atomic_load_n(&t->shut, __ATOMIC_ACQUIRE) && !pthread_mutex_trylock(&t->lock);
}

void turns_take(struct turns *t)
{
    struct timespec until;
    if (__atomic_load_n(&t->shut, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&t->gate);
        pthread_mutex_unlock(&t->gate);
    }
    clock_gettime(CLOCK_REALTIME, &until); /* if it is set meanwhile, the gate shuts sooner or later: no harm */
    until.tv_nsec += TURNS_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    if (!pthread_mutex_timedlock(&t->lock, &until)) /* ThreadSanitizer knows no pthread_mutex_clocklock() */
        return;
    pthread_mutex_lock(&t->gate);
    __atomic_store_n(&t->shut, 1, __ATOMIC_RELEASE);
    pthread_mutex_lock(&t->lock);
    __atomic_store_n(&t->shut, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&t->gate);
}

void turns_give(struct turns *t)
{
    pthread_mutex_unlock(&t->lock);
}
