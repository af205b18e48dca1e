/* K and V of a chunk, out of their pages into panels (panels.h). */
#pragma once
#include <stdbool.h>

#include "pages.h"
#include "panels.h"

#define CHUNK 128 /* positions that are packed, and whose results are summed, at once: [c * CHUNK, (c + 1) * CHUNK) */
#define AHEAD 32  /* how many positions ahead keys are asked for */

/* Units of a key, and of a chunk's values. */
INLINE int64_t key_units(int kind, int head_dim) { return IN_PAIRS(kind) ? head_dim / 2 : head_dim; }

INLINE int value_units(int kind) { return IN_PAIRS(kind) ? CHUNK / 2 : CHUNK; }

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
    for (int i = 0; i < CHUNK + AHEAD;) {
        const int position = base + i, page = position / kv->page_tokens, offset = position % kv->page_tokens;
        const int left = kv->page_tokens - offset < CHUNK + AHEAD - i ? kv->page_tokens - offset : CHUNK + AHEAD - i;
        const int stop = position < first ? (first < position + left ? first : position + left)
                       : position >= end  ? position + left
                                          : (end < position + left ? end : position + left); /* all are visible, or none */
        const bool is_there = position >= first && position < end && table[page] >= 0;
        const int64_t at = is_there ? table[page] * page_bytes + offset * position_bytes + head : 0;
        const char *key = is_there ? kv->keys + at : no_position, *value = is_there ? kv->values + at : no_position;
        const int64_t stride = is_there ? position_bytes : 0;
        for (; i < stop - base; i++, key += stride, value += stride) {
            out->keys[i] = key;
            out->values[i] = value;
        }
    }
}

/* Columns become rows. */
INLINE void transpose(vf v[LANES]) {
#if LANES == 16
    /* By name: in the portable notation below these are permutations by index, five times slower here. */
    __m512d pairs[16], fours[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = (__m512d)_mm512_unpacklo_ps((__m512)v[i], (__m512)v[i + 1]);
        pairs[i + 1] = (__m512d)_mm512_unpackhi_ps((__m512)v[i], (__m512)v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm512_unpacklo_pd(pairs[i + j], pairs[i + 2 + j]);
            fours[i + 2 * j + 1] = _mm512_unpackhi_pd(pairs[i + j], pairs[i + 2 + j]);
        }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* lane l of fours[i + j] is column 4 * l + j of rows i to i + 3 */
        const __m512 a = (__m512)fours[j], b = (__m512)fours[4 + j], c = (__m512)fours[8 + j], d = (__m512)fours[12 + j];
        const __m512 even_ab = _mm512_shuffle_f32x4(a, b, 0x88), odd_ab = _mm512_shuffle_f32x4(a, b, 0xdd);
        const __m512 even_cd = _mm512_shuffle_f32x4(c, d, 0x88), odd_cd = _mm512_shuffle_f32x4(c, d, 0xdd);
        v[j] = (vf)_mm512_shuffle_f32x4(even_ab, even_cd, 0x88);
        v[4 + j] = (vf)_mm512_shuffle_f32x4(odd_ab, odd_cd, 0x88);
        v[8 + j] = (vf)_mm512_shuffle_f32x4(even_ab, even_cd, 0xdd);
        v[12 + j] = (vf)_mm512_shuffle_f32x4(odd_ab, odd_cd, 0xdd);
    }
#else
    for (int bit = 1; bit < LANES; bit *= 2) { /* lanes whose numbers differ in this bit change places */
        vi low, high;
        for (int i = 0; i < LANES; i++) {
            low[i] = i & bit ? LANES + i - bit : i;
            high[i] = i & bit ? LANES + i : i + bit;
        }
        for (int i = 0; i < LANES; i++) {
            if (i & bit) continue;
            const vf a = v[i], b = v[i + bit];
            v[i] = __builtin_shuffle(a, b, low);
            v[i + bit] = __builtin_shuffle(a, b, high);
        }
    }
#endif
}

/* LANES units of one position from unit k on; those after the last are zeros. */
INLINE vf load_units(int kind, const char *position, int k, int units) {
#if defined(__AVX512BF16__)
    if (IN_PAIRS(kind)) return (vf)_mm512_maskz_loadu_ps(units - k < LANES ? 0xff : 0xffff, (const float *)position + k);
#endif
    return load(kind, position, k);
}

/* One panel of keys, of the positions [first, end) of a chunk: units are neighbours in the head, columns are positions. */
INLINE void pack_keys(int kind, int head_dim, const places *at, int panel, int first, int end, float *to) {
    const int units = key_units(kind, head_dim), unit_bytes = head_dim * bytes_of(kind) / units;
    const int start = first > panel * PANEL ? first / LANES * LANES : panel * PANEL;
    for (int t = start; t < end && t < (panel + 1) * PANEL; t += LANES) {
        for (int k = 0; k < units; k += LANES) {
            vf v[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                __builtin_prefetch(at->keys[t + i + AHEAD] + k * unit_bytes);
                __builtin_prefetch(at->values[t + i] + k * unit_bytes);
                v[i] = load_units(kind, at->keys[t + i], k, units);
            }
            transpose(v);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (k + i < units) store_f32(to + (k + i) * PANEL + t % PANEL, v[i]);
        }
    }
}

/* One panel of values, of the positions [first, end) of a chunk: units are neighbours among positions, columns the head's. */
INLINE void pack_values(int kind, int head_dim, const places *at, int panel, int first, int end, float *to) {
    const int per_unit = IN_PAIRS(kind) ? 2 : 1, start = panel * PANEL;
    const int stop = head_dim < start + PANEL ? head_dim : start + PANEL;
    for (int k = first / per_unit; k < (end + per_unit - 1) / per_unit; k++)
        for (int d = start; d < stop; d += LANES) {
            vf v;
#if defined(__AVX512BF16__)
            if (IN_PAIRS(kind)) {
                const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(at->values[2 * k] + 2 * d)));
                const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(at->values[2 * k + 1] + 2 * d)));
                v = (vf)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
            } else
#endif
                v = load(kind, at->values[k], d);
            store_f32(to + k * PANEL + d - start, v);
        }
}
