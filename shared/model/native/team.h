/* A barrier for the threads of one parallel region. It spins: what lies between two barriers takes microseconds. */
#pragma once
#include <sched.h>
#include <stdatomic.h>

#define SPINS 4000

typedef struct {
    atomic_int arrived, round;
    int size;
} team;

static void wait_for_all(team *t) {
    int round = atomic_load_explicit(&t->round, memory_order_acquire);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) + 1 == t->size) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&t->round, round + 1, memory_order_release);
        return;
    }
    for (int spin = 0; atomic_load_explicit(&t->round, memory_order_acquire) == round; spin++) {
        if (spin < SPINS) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            sched_yield(); /* somebody else has the core of a thread that we wait for */
        }
    }
}

static inline int share(int count, int part, int parts) { return (int)((int64_t)count * part / parts); }
