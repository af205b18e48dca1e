/* A few rows of a block in one chunk: scores, softmax, sums of values. */
#pragma once
#include "plan.h"

#define BATCH_ROWS 24 /* a panel of K or V stays in the nearest cache for all of them */

/* A thread's memory: operands as panels.h has them, and results of a block. */
typedef struct {
    float *keys, *values, *queries, *scores, *probabilities;
    seen sum;
} workspace;

static int block_rows(const shape *s) { return tokens_of(s, BLOCK_ROWS) * group_of(s); }

static workspace workspace_in(char *room, const shape *s) {
    workspace w = {.keys = (float *)room};
    w.values = w.keys + (int64_t)CHUNK * s->head_dim;
    w.queries = w.values + CHUNK * in_panels(s->head_dim);
    w.scores = w.queries + (int64_t)block_rows(s) * s->head_dim;
    w.probabilities = w.scores + BATCH_ROWS * CHUNK;
    w.sum = seen_at((char *)(w.probabilities + BATCH_ROWS * CHUNK), block_rows(s), s->head_dim);
    return w;
}

static int64_t workspace_bytes(const shape *s) {
    const int64_t floats = CHUNK * (s->head_dim + in_panels(s->head_dim)) + (int64_t)block_rows(s) * s->head_dim + 2 * BATCH_ROWS * CHUNK;
    return (floats * sizeof(float) + seen_bytes(block_rows(s), s->head_dim) + 63) / 64 * 64;
}

/* Some rows of a block in one chunk. */
typedef struct {
    int head_dim, count;
    const float *queries; /* [count][units] */
    visible sees[BATCH_ROWS];
    factors fold[BATCH_ROWS];
    float *sum; /* [count][head_dim] */
} batch;

INLINE visible seen_by(const batch *b, int row, int rows) { return (visible){b->sees[row].first, b->sees[row + rows - 1].end}; }

INLINE void score(int Q, int kind, const batch *b, int row, int panel, const float *keys, float *scores) {
    const int64_t units = key_units(kind, b->head_dim);
    const visible of = seen_by(b, row, Q);
    if (of.end <= panel * PANEL || of.first >= (panel + 1) * PANEL) return;
    vf acc[TILE_QUERIES][TILE_VECTORS];
    multiply_panel(IN_PAIRS(kind), Q, b->queries + row * units, units, keys, 0, units, acc);
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; v++) store_f32(scores + (row + q) * CHUNK + panel * PANEL + v * LANES, acc[q][v]);
}

INLINE void weigh(int Q, int kind, const batch *b, int row, int panel, const float *values, const float *probabilities) {
    const int units = value_units(kind), per_unit = CHUNK / units;
    const visible of = seen_by(b, row, Q);
    vf acc[TILE_QUERIES][TILE_VECTORS];
    multiply_panel(IN_PAIRS(kind), Q, probabilities + row * units, units, values, of.first / per_unit, (of.end + per_unit - 1) / per_unit, acc);
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; v++) {
            const int d = panel * PANEL + v * LANES;
            if (d < b->head_dim) add_sum(b->fold[row + q], acc[q][v], b->sum + (int64_t)(row + q) * b->head_dim + d);
        }
}

/* `sum` of the batch's rows, from `row` on, takes in what they see of a chunk. Its panels are packed already, or are packed one
   by one from their places `at` into the same room, which then stays in the nearest cache. */
INLINE void attend_batch(int kind, batch *b, seen sum, int row, float factor, const places *at, const workspace *w) {
    const int dim = b->head_dim, units = value_units(kind);
    const visible of = seen_by(b, 0, b->count);
    for (int panel = of.first / PANEL; panel * PANEL < of.end; panel++) {
        float *keys = w->keys + (at ? 0 : panel * PANEL * key_units(kind, dim));
        if (at) pack_keys(kind, dim, at, panel, of.first, of.end, keys);
        for (int r = 0; r < b->count; r += TILE_QUERIES) FOR_ROWS(b->count - r, score, kind, b, r, panel, keys, w->scores);
    }
    float max[BATCH_ROWS + LANES], weight[BATCH_ROWS + LANES];
    soften(IN_PAIRS(kind), b->count, w->scores, b->sees, factor, w->probabilities, max, weight);
    for (int r = 0; r < b->count; r++) b->fold[r] = add_weight(sum, row + r, max[r], weight[r]);
    for (int panel = 0; panel * PANEL < dim; panel++) {
        float *values = at ? w->keys : w->values + panel * PANEL * units;
        if (at) pack_values(kind, dim, at, panel, of.first, of.end, values);
        for (int r = 0; r < b->count; r += TILE_QUERIES) FOR_ROWS(b->count - r, weigh, kind, b, r, panel, values, w->probabilities);
    }
}
