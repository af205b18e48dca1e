/* K and V of a chunk, out of their pages into panels (panels.h). */
#pragma once
#include "pages.h"
#include "panels.h"

#define CHUNK 128 /* positions that are packed, and whose results are summed, at once: [c * CHUNK, (c + 1) * CHUNK) */
#define AHEAD 32  /* how many positions ahead keys are asked for */

/* Where K or V of a chunk's positions are, and of the keys that come next. */
typedef struct {
    const char *keys[CHUNK + AHEAD], *values[CHUNK + AHEAD];
} places;

static const char no_position[MAX_HEAD * sizeof(float)] __attribute__((aligned(64)));

/* Find the positions from `base` on, of which [first, end) are visible. The others, and those without a page, read as zeros:
   what is in their memory may be no number. */
static void locate(const pages *kv, const int32_t *table, int kv_head, int base, int first, int end, places *out) {
    const int64_t position_bytes = (int64_t)kv->kv_heads * kv->head_dim * bytes_of(kv->kind);
    const int64_t page_bytes = kv->page_tokens * position_bytes, head = (int64_t)kv_head * kv->head_dim * bytes_of(kv->kind);
    int page = base / kv->page_tokens, offset = base % kv->page_tokens;
    for (int i = 0; i < CHUNK + AHEAD; i++) {
        if (base + i < first || base + i >= end || table[page] < 0) {
            out->keys[i] = out->values[i] = no_position;
        } else {
            const int64_t at = table[page] * page_bytes + offset * position_bytes + head;
            out->keys[i] = kv->keys + at;
            out->values[i] = kv->values + at;
        }
        if (++offset == kv->page_tokens) { offset = 0; page++; }
    }
}

/* Columns become rows: log2(LANES) rounds, in each of which lanes whose numbers differ in one bit change places. */
INLINE void transpose(vf v[LANES]) {
#pragma GCC unroll 8
    for (int bit = 1; bit < LANES; bit *= 2) {
        vi low, high;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            low[i] = i & bit ? LANES + i - bit : i;
            high[i] = i & bit ? LANES + i : i + bit;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            if (i & bit) continue;
            vf a = v[i], b = v[i + bit];
            v[i] = __builtin_shuffle(a, b, low);
            v[i + bit] = __builtin_shuffle(a, b, high);
        }
    }
}

/* LANES units of one position from unit k on; those after the last are zeros. */
INLINE vf load_units(int kind, const char *position, int k, int units) {
#if defined(__AVX512BF16__)
    if (IN_PAIRS(kind)) return (vf)_mm512_maskz_loadu_ps(units - k < LANES ? 0xff : 0xffff, (const float *)position + k);
#endif
    return load(kind, position, k);
}

/* Keys of the positions [first, end) of a chunk: units are neighbours in the head, columns are positions. */
INLINE void pack_keys(int kind, int head_dim, const places *at, int first, int end, float *panels) {
    const int units = IN_PAIRS(kind) ? head_dim / 2 : head_dim, bytes = head_dim * bytes_of(kind);
    for (int t = first / LANES * LANES; t < end; t += LANES) {
        float *panel = panels + (int64_t)(t / PANEL) * units * PANEL + t % PANEL;
        for (int i = t; i < t + LANES; i++)
            for (int b = 0; b < bytes; b += 64) {
                __builtin_prefetch(at->keys[i + AHEAD] + b);
                __builtin_prefetch(at->values[i] + b);
            }
        for (int k = 0; k < units; k += LANES) {
            vf v[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) v[i] = load_units(kind, at->keys[t + i], k, units);
            transpose(v);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (k + i < units) store_f32(panel + (k + i) * PANEL, v[i]);
        }
    }
}

/* Values of the positions [first, end) of a chunk: units are neighbours among positions, columns are the head's. */
INLINE void pack_values(int kind, int head_dim, const places *at, int first, int end, float *panels) {
    const int per_unit = IN_PAIRS(kind) ? 2 : 1, units = CHUNK / per_unit;
    for (int k = first / per_unit; k < (end + per_unit - 1) / per_unit; k++)
        for (int d = 0; d < head_dim; d += LANES) {
            vf v;
#if defined(__AVX512BF16__)
            if (IN_PAIRS(kind)) {
                const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(at->values[2 * k] + 2 * d)));
                const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(at->values[2 * k + 1] + 2 * d)));
                v = (vf)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
            } else
#endif
                v = load(kind, at->values[k], d);
            store_f32(panels + (int64_t)(d / PANEL) * units * PANEL + k * PANEL + d % PANEL, v);
        }
}
