/* A barrier for the threads of one parallel region. What lies between two barriers may take microseconds, so it spins; but no
   longer: where another process has the core of a thread that is waited for, sleeping lets the two change places. */
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

#define SPINS 200 /* some 5 microseconds, what sleeping and waking would take */

typedef struct {
    atomic_int arrived, round, sleepers;
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
    for (int spin = 0; atomic_load_explicit(&t->round, memory_order_acquire) == round;) {
        if (spin++ < SPINS) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            sleep_while(t, round);
        }
    }
}

static inline int share(int count, int part, int parts) { return (int)((int64_t)count * part / parts); }
