/* Products of rows with a packed matrix: out[row][n] = sum over k of a[row][k] * b[k][n], for queries with keys and for
   probabilities with values.

   Both operands consist of units of 32 bits: two neighbours in k as bfloat16 where the processor multiplies such pairs, else
   one float. `b` lies in panels of as many columns as a tile's accumulators hold: [columns / PANEL][k][PANEL]. Each result has
   one accumulator that ascends in k, whatever rows it is computed with; units that are zero in `a` do not change it. */
#pragma once
#include "vectors.h"

#if LANES == 8
#define TILE_VECTORS 2 /* 16 registers */
#else
#define TILE_VECTORS 4
#endif
#define TILE_QUERIES 6
#define PANEL (TILE_VECTORS * LANES)

#if defined(__AVX512BF16__)
#define IN_PAIRS(kind) ((kind) == KIND_BF16)
#else
#define IN_PAIRS(kind) 0
#endif

INLINE int64_t in_panels(int64_t columns) { return (columns + PANEL - 1) / PANEL * PANEL; }

INLINE vf unit_everywhere(const float *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return (vf)(bits - (vi){});
}

INLINE vf multiply_units(int pairs, vf a, vf b, vf c) {
#if defined(__AVX512BF16__)
    if (pairs) return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#endif
    return multiply_add(a, b, c);
}

/* Q rows of `a` times the units [first, end) of one panel. */
INLINE void multiply_panel(int pairs, int Q, const float *a, int64_t stride, const float *panel, int first, int end,
                           vf acc[TILE_QUERIES][TILE_VECTORS]) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; v++) acc[q][v] = (vf){};
    for (int k = first; k < end; k++) {
        vf b[TILE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < TILE_VECTORS; v++) b[v] = load_f32(panel + k * PANEL + v * LANES);
#pragma GCC unroll 8
        for (int q = 0; q < Q; q++) {
            vf everywhere = unit_everywhere(a + q * stride + k);
#pragma GCC unroll 8
            for (int v = 0; v < TILE_VECTORS; v++) acc[q][v] = multiply_units(pairs, everywhere, b[v], acc[q][v]);
        }
    }
}

/* f(Q, ...) for the rows that are left, as many as fit a tile: a constant, so that accumulators stay in registers. */
#define FOR_ROWS(left, f, ...)            \
    switch (left) {                       \
    case 1: f(1, __VA_ARGS__); break;     \
    case 2: f(2, __VA_ARGS__); break;     \
    case 3: f(3, __VA_ARGS__); break;     \
    case 4: f(4, __VA_ARGS__); break;     \
    case 5: f(5, __VA_ARGS__); break;     \
    default: f(TILE_QUERIES, __VA_ARGS__); \
    }
