/* Softmax of a row's scores in one chunk, and how the results of chunks become one. */
#pragma once
#include "packing.h"

/* 2^x for x <= 0, to 2e-7 of it; 0 for what is far below. The polynomial is minimax on [-1/2, 1/2], and 1 at 0. */
INLINE vf power_of_two(vf x) {
#if defined(__AVX512DQ__)
    const vf r = (vf)_mm512_reduce_ps((__m512)x, 8); /* x less the nearest integer */
    const vf n = x - r;
#else
    const vi tiny = x < -126.0f;
    x = vmax(x, splat(-126.0f));
    vf n = x + splat(12582912.0f); /* adds and removes 1.5 * 2^23: rounds to an integer */
    const vi exponent = (vi)n << 23;
    n -= splat(12582912.0f);
    const vf r = x - n;
#endif
    vf p = splat(1.326472731e-3f);
    p = multiply_add(p, r, splat(9.671512991e-3f));
    p = multiply_add(p, r, splat(5.550733581e-2f));
    p = multiply_add(p, r, splat(2.402224243e-1f));
    p = multiply_add(p, r, splat(6.931470037e-1f));
    p = multiply_add(p, r, splat(1.0f));
#if defined(__AVX512DQ__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return (vf)((vi)((vi)p + exponent) & ~tiny);
#endif
}

/* What a row has seen so far: the maximum of its scores (times log2 e), and relative to that the sum of its weights and, apart,
   of V times weight. */
typedef struct {
    float *max, *weight, *sum; /* [rows], [rows], [rows][head_dim] */
} seen;

INLINE int64_t seen_bytes(int rows, int head_dim) { return ((int64_t)rows * (head_dim + 2) * sizeof(float) + 63) / 64 * 64; }

INLINE seen seen_at(char *room, int rows, int head_dim) {
    float *sum = (float *)room, *max = sum + (int64_t)rows * head_dim;
    return (seen){.max = max, .weight = max + rows, .sum = sum};
}

static void forget(seen s, int rows, int head_dim) {
    memset(s.sum, 0, (int64_t)rows * head_dim * sizeof(float));
    for (int row = 0; row < rows; row++) { s.max[row] = -INFINITY; s.weight[row] = 0; }
}

/* Factors by which what was seen and what is added are to be multiplied; the larger maximum's is 1. */
typedef struct {
    float old, added;
} factors;

INLINE factors add_weight(seen s, int row, float max, float weight) {
    const float down = power_of_two(splat(-fabsf(max - s.max[row])))[0];
    const factors f = max > s.max[row] ? (factors){down, 1.0f} : (factors){1.0f, down};
    s.max[row] = fmaxf(max, s.max[row]);
    s.weight[row] = fmaf(weight, f.added, s.weight[row] * f.old);
    return f;
}

INLINE void add_sum(factors f, vf added, float *sum) {
    store_f32(sum, multiply_add(added, splat(f.added), load_f32(sum) * splat(f.old)));
}

/* Fold a chunk's result in. */
static void add_seen(seen s, seen chunk, int rows, int head_dim) {
    for (int row = 0; row < rows; row++) {
        if (chunk.max[row] == -INFINITY) continue; /* it does not see the chunk */
        const factors f = add_weight(s, row, chunk.max[row], chunk.weight[row]);
        for (int d = 0; d < head_dim; d += LANES) {
            const int64_t at = (int64_t)row * head_dim + d;
            add_sum(f, load_f32(chunk.sum + at), s.sum + at);
        }
    }
}

/* Rows of the chunk see [first, end) of it. */
typedef struct {
    int first, end;
} visible;

INLINE void hide_others(float *scores, int t, visible of) {
    for (int i = t; i < t + LANES; i++)
        if (i < of.first || i >= of.end) scores[i] = -INFINITY;
}

INLINE void store_units(int pairs, float *probabilities, int t, vf p) {
#if defined(__AVX512BF16__)
    if (pairs) {
        _mm256_storeu_si256((void *)(probabilities + t / 2), (__m256i)_mm512_cvtneps_pbh((__m512)p));
        return;
    }
#endif
    store_f32(probabilities + t, p);
}

/* Scores [rows][CHUNK], relative to each row's maximum, to probabilities as units; what a row does not see gets none. Overwrites the
   scores. All arrays have room for `rows` in whole vectors. */
INLINE void soften(int pairs, int rows, float *scores, const visible *sees, float factor, float *probabilities, float *max, float *weight) {
    const int width = pairs ? CHUNK / 2 : CHUNK;
    vf of_rows[LANES] = {};
    for (int row = 0; row < rows; row++) {
        float *s = scores + row * CHUNK;
        const int first = sees[row].first / LANES * LANES, end = (sees[row].end + LANES - 1) / LANES * LANES;
        if (sees[row].first > first) hide_others(s, first, sees[row]);
        if (sees[row].end < end) hide_others(s, end - LANES, sees[row]);
        vf top = load_f32(s + first);
        for (int t = first + LANES; t < end; t += LANES) top = vmax(top, load_f32(s + t));
        of_rows[row % LANES] = top;
        if (row + 1 == rows || row % LANES == LANES - 1) store_f32(max + row / LANES * LANES, maxima(of_rows) * factor);
    }
    for (int row = 0; row < rows; row++) {
        const float *s = scores + row * CHUNK;
        float *p = probabilities + row * width;
        const int first = sees[row].first / LANES * LANES, end = (sees[row].end + LANES - 1) / LANES * LANES;
        const vf less = splat(-max[row]);
        vf total = {};
        for (int t = 0; t < first; t += LANES) store_units(pairs, p, t, (vf){});
        for (int t = first; t < end; t += LANES) {
            const vf one = power_of_two(multiply_add(load_f32(s + t), splat(factor), less));
            store_units(pairs, p, t, one);
            total += one;
        }
        for (int t = end; t < CHUNK; t += LANES) store_units(pairs, p, t, (vf){});
        of_rows[row % LANES] = total;
        if (row + 1 == rows || row % LANES == LANES - 1) store_f32(weight + row / LANES * LANES, sums(of_rows));
    }
}
