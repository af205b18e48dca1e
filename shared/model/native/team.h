/* A barrier for the threads of one parallel region. What lies between two barriers may take microseconds, so it spins; but where
   another process has the core of a thread that is waited for, only sleeping lets the two change places. So it spins for long as
   long as that helps. */
#pragma once
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define SPINS 1000    /* some 25 microseconds */
#define FEW_SPINS 100 /* once spinning has not helped */

typedef struct {
    atomic_int arrived, round, sleepers, slept;
} team;

static inline void sleep_while(team *t, int round) {
#if defined(__linux__)
    atomic_fetch_add(&t->sleepers, 1);
    syscall(SYS_futex, &t->round, FUTEX_WAIT_PRIVATE, round, NULL, NULL, 0); /* returns at once if the round is over */
    atomic_fetch_sub(&t->sleepers, 1);
#else
    (void)t, (void)round;
    sched_yield();
#endif
}

/* Return when `size` threads, which are all of them, have called. */
static inline void wait_for_all(team *t, int size) {
    const int round = atomic_load(&t->round);
    if (atomic_fetch_add(&t->arrived, 1) + 1 == size) {
        atomic_store(&t->arrived, 0);
        atomic_store(&t->round, round + 1);
#if defined(__linux__)
        if (atomic_load(&t->sleepers)) syscall(SYS_futex, &t->round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
        return;
    }
    const int spins = atomic_load_explicit(&t->slept, memory_order_relaxed) ? FEW_SPINS : SPINS;
    int spin = 0;
    while (atomic_load_explicit(&t->round, memory_order_acquire) == round) {
        if (spin++ < spins) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            sleep_while(t, round);
        }
    }
    atomic_store_explicit(&t->slept, spin > spins, memory_order_relaxed);
}

static inline int share(int count, int part, int parts) { return (int)((int64_t)count * part / parts); }
