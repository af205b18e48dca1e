/* Attention of a step whose other operators are PyTorch's. */
#include <omp.h>
#include <stdlib.h>

#include "attention.h"

#define EXPORT __attribute__((visibility("default")))

/* Returns 0, or -1 when memory is short. */
EXPORT int prfaas_attention(const attention *a, const shape *s) {
    const int64_t own = workspace_bytes(s);
    plan p;
    char *room = aligned_alloc(64, plan_bytes(s) + s->threads * own);
    if (!room) return -1;
    make_plan(&p, s, room);
    char *partials = aligned_alloc(64, p.partial_bytes + 64), *spaces = room + plan_bytes(s);
    if (partials) {
#pragma omp parallel num_threads(s->threads)
        {
            const int part = omp_get_thread_num();
            char *mine = spaces + part * own;
            attend(a, &p, partials, mine);
#pragma omp barrier
            merge(a, &p, partials, mine, part, omp_get_num_threads());
        }
    }
    free(partials);
    free(room);
    return partials ? 0 : -1;
}
