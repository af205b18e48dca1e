/* One query per row over paged K and V, in chunks of fixed positions whose partial results are merged in order. */
#pragma once
#include "pages.h"

#define CHUNK 128      /* positions of one unit of work: [c * CHUNK, (c + 1) * CHUNK) */
#define AHEAD 16       /* how many positions ahead keys are asked for */
#define MAX_GROUP 16   /* query heads that share one KV head */

/* A chunk's share of one (row, KV head): softmax-weighted sum of V, not yet divided. */
typedef struct {
    float max[MAX_GROUP], weight[MAX_GROUP];
    float sum[]; /* [group][head_dim] */
} partial;

INLINE int64_t partial_bytes(int group, int head_dim) {
    return (sizeof(partial) + (int64_t)group * head_dim * sizeof(float) + 63) / 64 * 64;
}

/* G <= 4 queries [G][head_dim] against positions [first, end), which lie in one chunk. */
INLINE void attend_of(int kind, int G, int64_t head_dim, const pages *kv, const int32_t *table, int kv_head, const float *q, float scale,
                      int first, int end, partial *out) {
    const int count = end - first, size = bytes_of(kind);
    float scores[4][CHUNK] __attribute__((aligned(64)));
    int64_t at[CHUNK + LANES + AHEAD];
    for (int t = 0; t < count; t++) at[t] = element(kv, table, first + t, kv_head);
    for (int t = count; t < count + LANES + AHEAD; t++) at[t] = at[count - 1]; /* padding: computed and then masked */
    for (int t = 0; t < count; t += LANES) {
        vf products[4][LANES];
        for (int i = 0; i < LANES; i++) {
            for (int64_t d = 0; d < head_dim * size; d += 64) {
                __builtin_prefetch(kv->keys + at[t + i + AHEAD] * size + d);
                __builtin_prefetch(kv->values + at[t + i] * size + d);
            }
            vf acc[4];
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) acc[g] = (vf){};
            for (int64_t d = 0; d < head_dim; d += LANES) {
                vf k = load(kind, kv->keys, at[t + i] + d);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) acc[g] = multiply_add(k, load_f32(q + g * head_dim + d), acc[g]);
            }
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) products[g][i] = acc[g];
        }
        for (int g = 0; g < G; g++) store_f32(scores[g] + t, sums(products[g]) * scale);
    }
    for (int g = 0; g < G; g++) {
        for (int t = count; t % LANES; t++) scores[g][t] = -INFINITY;
        vf top = splat(-INFINITY), total = {};
        for (int t = 0; t < count; t += LANES) top = vmax(top, load_f32(scores[g] + t));
        float max = maximum(top);
        for (int t = 0; t < count; t += LANES) {
            vf e = vexp(load_f32(scores[g] + t) - max);
            store_f32(scores[g] + t, e);
            total += e;
        }
        out->max[g] = max;
        out->weight[g] = sum(total);
    }
    for (int64_t d = 0; d < head_dim; d += LANES) {
        vf acc[4];
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) acc[g] = (vf){};
        for (int t = 0; t < count; t++) {
            vf v = load(kind, kv->values, at[t] + d);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) acc[g] = multiply_add(v, splat(scores[g][t]), acc[g]);
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) store_f32(out->sum + g * head_dim + d, acc[g]);
    }
}

/* As above for any group: heads in fours, so that their accumulators stay in registers. */
INLINE void attend_kind(int kind, int group, const pages *kv, const int32_t *table, int kv_head, const float *q, float scale,
                        int first, int end, partial *out) {
    const int64_t head_dim = kv->head_dim;
    _Alignas(64) char room[sizeof(partial) + 4 * MAX_HEAD * sizeof(float)];
    partial *part = (partial *)room;
    for (int g = 0; g < group;) {
        int n = group - g >= 4 ? 4 : group - g;
        const float *queries = q + g * head_dim;
        if (n == 4) attend_of(kind, 4, head_dim, kv, table, kv_head, queries, scale, first, end, part);
        else if (n == 3) attend_of(kind, 3, head_dim, kv, table, kv_head, queries, scale, first, end, part);
        else if (n == 2) attend_of(kind, 2, head_dim, kv, table, kv_head, queries, scale, first, end, part);
        else attend_of(kind, 1, head_dim, kv, table, kv_head, queries, scale, first, end, part);
        memcpy(out->max + g, part->max, n * sizeof(float));
        memcpy(out->weight + g, part->weight, n * sizeof(float));
        memcpy(out->sum + g * head_dim, part->sum, n * head_dim * sizeof(float));
        g += n;
    }
}

static void attend(int group, const pages *kv, const int32_t *table, int kv_head, const float *q, float scale, int first, int end,
                   partial *out) {
    if (kv->kind == KIND_F32) attend_kind(KIND_F32, group, kv, table, kv_head, q, scale, first, end, out);
    else attend_kind(KIND_BF16, group, kv, table, kv_head, q, scale, first, end, out);
}

/* Merge `count` partial results, `stride` bytes apart, into [group][head_dim]. */
static void merge(int group, int64_t head_dim, const char *partials, int count, int64_t stride, float *out) {
    for (int g = 0; g < group; g++) {
        float max = -INFINITY, weight = 0;
        for (int c = 0; c < count; c++) max = fmaxf(max, ((const partial *)(partials + c * stride))->max[g]);
        memset(out + g * head_dim, 0, head_dim * sizeof(float));
        for (int c = 0; c < count; c++) {
            const partial *p = (const partial *)(partials + c * stride);
            float factor = expf(p->max[g] - max);
            weight += p->weight[g] * factor;
            for (int64_t d = 0; d < head_dim; d++) out[g * head_dim + d] += p->sum[g * head_dim + d] * factor;
        }
        for (int64_t d = 0; d < head_dim; d++) out[g * head_dim + d] /= weight;
    }
}
