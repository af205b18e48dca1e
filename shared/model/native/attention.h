/* Causal attention of a step's rows over paged K and V, for spans of any length.

   Positions are cut into fixed chunks. A row's softmax in a chunk is relative to the row's maximum there, and chunks are summed
   in order by one formula (softmax.h): a result is the same to the last bit in whatever step, span or block its row is. Blocks of
   rows, and maxima that wait until the end, are those of FlashAttention-2 (https://arxiv.org/abs/2307.08691). */
#pragma once
#include "batch.h"
#include "team.h"

/* One layer's attention in a step. Row r's heads, [heads][head_dim], are at element r * stride. */
typedef struct {
    const pages *kv;
    const int32_t *tables; /* [spans][table_size], page numbers; -1 where no row looks */
    const void *q;
    void *out;
    int64_t q_stride, out_stride;
    int32_t q_kind, out_kind, table_size;
    float scale;
} attention;

/* Queries of a block, token after token, as units. */
INLINE void pack_queries(int kind, const attention *a, const shape *s, const block *b, float *queries) {
    const int group = group_of(s);
    for (int token = 0; token < b->tokens; token++) {
        const int64_t at = (s->spans[b->span].row + b->token + token) * a->q_stride + (int64_t)b->kv_head * group * s->head_dim;
        for (int d = 0; d < group * s->head_dim; d += LANES) {
            const vf q = a->q_kind == KIND_F32 ? load(KIND_F32, a->q, at + d) : load(KIND_BF16, a->q, at + d);
            const int64_t to = (int64_t)token * group * s->head_dim + d;
            if (IN_PAIRS(kind)) store_bf16((uint16_t *)queries + to, q);
            else store_f32(queries + to, q);
        }
    }
}

/* What the block's rows see of chunks [first, end): into `sum`, or each chunk's own `partials` where those are. */
INLINE void attend_chunks(int kind, const attention *a, const shape *s, const block *b, int first, int end, seen sum, char *partials,
                          const workspace *w) {
    const int group = group_of(s), dim = s->head_dim, window = s->window, rows = b->tokens * group;
    const int start = s->spans[b->span].start + b->token;
    const int64_t units = key_units(kind, dim);
    const int32_t *table = a->tables + (int64_t)b->span * a->table_size;
    pack_queries(kind, a, s, b, w->queries);
    for (int c = first; c < end; c++) {
        const int base = c * CHUNK;
        int token = base > start ? base - start : 0, stop = b->tokens; /* those that see the chunk */
        if (window && base + CHUNK + window - 1 - start < stop) stop = base + CHUNK + window - 1 - start;
        const int from = first_visible(window, start + token) - base, to = start + stop - base;
        const visible of = {from > 0 ? from : 0, to < CHUNK ? to : CHUNK};
        const bool one_batch = (stop - token) * group <= BATCH_ROWS;
        places at;
        locate(a->kv, table, b->kv_head, base, first_visible(window, start), start + b->tokens, &at);
        if (!one_batch) {
            for (int panel = of.first / PANEL; panel * PANEL < of.end; panel++)
                pack_keys(kind, dim, &at, panel, of.first, of.end, w->keys + panel * PANEL * units);
            for (int panel = 0; panel * PANEL < dim; panel++)
                pack_values(kind, dim, &at, panel, of.first, of.end, w->values + panel * PANEL * value_units(kind));
        }
        if (partials) {
            sum = seen_at(partials + (c - b->first) * partial_bytes(s, b), rows, dim);
            forget(sum, rows, dim);
        }
        for (int row = token * group; row < stop * group; row += BATCH_ROWS) {
            batch some = {.head_dim = dim, .queries = w->queries + row * units, .sum = sum.sum + (int64_t)row * dim};
            some.count = stop * group - row < BATCH_ROWS ? stop * group - row : BATCH_ROWS;
            for (int r = 0; r < some.count; r++) {
                const int position = start + (row + r) / group, sees = first_visible(window, position) - base;
                some.sees[r] = (visible){sees > 0 ? sees : 0, position + 1 - base < CHUNK ? position + 1 - base : CHUNK};
            }
            attend_batch(kind, &some, sum, row, a->scale * 1.44269504088896341f, one_batch ? &at : NULL, w);
        }
    }
}

/* Divide by the weights and hand the block's rows out. */
static void finish(const attention *a, const shape *s, const block *b, seen sum) {
    const int group = group_of(s), dim = s->head_dim;
    for (int row = 0; row < b->tokens * group; row++) {
        const float share_of_one = 1.0f / sum.weight[row];
        const int64_t to = (s->spans[b->span].row + b->token + row / group) * a->out_stride + ((int64_t)b->kv_head * group + row % group) * dim;
        for (int d = 0; d < dim; d += LANES) {
            const vf x = load_f32(sum.sum + (int64_t)row * dim + d) * share_of_one;
            if (a->out_kind == KIND_F32) store(KIND_F32, a->out, to + d, x);
            else store(KIND_BF16, a->out, to + d, x);
        }
    }
}

static void attend_unit(const attention *a, const plan *p, const unit *u, char *partials, const workspace *w) {
    const shape *s = &p->of;
    const block *b = &p->blocks[u->block];
    char *waiting = b->partials < 0 ? NULL : partials + b->partials;
    if (!waiting) forget(w->sum, b->tokens * group_of(s), s->head_dim);
    if (a->kv->kind == KIND_F32) attend_chunks(KIND_F32, a, s, b, u->first, u->end, w->sum, waiting, w);
    else attend_chunks(KIND_BF16, a, s, b, u->first, u->end, w->sum, waiting, w);
    if (!waiting) finish(a, s, b, w->sum);
}

/* Do units until none is left. Q of all rows, and K and V of those that others see, are complete. Blocks that were cut are
   complete when all threads have returned and `merge` has run. `room` is the thread's own: workspace_bytes. */
static void attend(const attention *a, plan *p, char *partials, char *room) {
    const workspace w = workspace_in(room, &p->of);
    for (int next; (next = atomic_fetch_add(&p->next, 1)) < p->num_units;) attend_unit(a, p, &p->units[next], partials, &w);
}

/* Sum the chunks of this thread's part of the blocks that were cut. */
static void merge(const attention *a, const plan *p, char *partials, char *room, int part, int parts) {
    const shape *s = &p->of;
    const workspace w = workspace_in(room, s);
    for (int i = share(p->num_blocks, part, parts); i < share(p->num_blocks, part + 1, parts); i++) {
        const block *b = &p->blocks[i];
        if (b->partials < 0) continue;
        const int rows = b->tokens * group_of(s);
        forget(w.sum, rows, s->head_dim);
        for (int c = b->first; c < b->end; c++)
            add_seen(w.sum, seen_at(partials + b->partials + (c - b->first) * partial_bytes(s, b), rows, s->head_dim), rows, s->head_dim);
        finish(a, s, b, w.sum);
    }
}
