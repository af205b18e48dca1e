/* Few rows times a large matrix: what decoding is. Bound by reading the matrix, once, whatever the number of rows. */
#pragma once
#include "vectors.h"

typedef struct {
    const void *data;   /* [rows][cols] of `kind` */
    const float *scale; /* [rows] for int8, else NULL */
    const float *bias;  /* [rows] or NULL */
    int32_t rows, cols; /* cols is a multiple of 16 */
    int32_t kind;
} matrix;

/* Accumulators of a tile, with its rows of the matrix, are what the registers of the machine hold. */
#if defined(__AVX512F__)
#define TILE_ROWS 6
#else
#define TILE_ROWS 3
#endif
#define TILE_TOKENS 4

/* RB rows of the matrix times MB rows of x. Each product has one accumulator and ascends in k, whatever RB and MB are:
   a token's result does not depend on what else is in the batch. */
INLINE void tile(int kind, int RB, int MB, const matrix *w, int row, const float *x, float *out, int out_stride) {
    const int cols = w->cols;
    vf acc[TILE_ROWS][TILE_TOKENS]; /* RB and MB of them are used, and live in registers */
#pragma GCC unroll 8
    for (int r = 0; r < RB; r++)
#pragma GCC unroll 8
        for (int m = 0; m < MB; m++) acc[r][m] = (vf){};
    const char *base = (const char *)w->data + (int64_t)row * cols * bytes_of(kind);
    for (int k = 0; k < cols; k += LANES) {
        vf weights[TILE_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < RB; r++) {
            weights[r] = load(kind, base, (int64_t)r * cols + k);
            __builtin_prefetch(base + ((int64_t)(r + RB) * cols + k) * bytes_of(kind));
        }
#pragma GCC unroll 8
        for (int m = 0; m < MB; m++) {
            vf v = load_f32(x + (int64_t)m * cols + k);
#pragma GCC unroll 8
            for (int r = 0; r < RB; r++) acc[r][m] = multiply_add(weights[r], v, acc[r][m]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < RB; r++) {
        float scale = kind == KIND_INT8 ? w->scale[row + r] : 1.0f;
        float bias = w->bias ? w->bias[row + r] : 0.0f;
#pragma GCC unroll 8
        for (int m = 0; m < MB; m++) out[(int64_t)m * out_stride + row + r] = sum(acc[r][m]) * scale + bias;
    }
}

/* RB rows of the matrix, which stay in the nearest cache meanwhile, times all of x. */
INLINE void rows_of(int kind, int RB, const matrix *w, int row, const float *x, int m, float *out, int stride) {
    for (; m >= TILE_TOKENS; m -= TILE_TOKENS, x += TILE_TOKENS * w->cols, out += TILE_TOKENS * stride)
        tile(kind, RB, TILE_TOKENS, w, row, x, out, stride);
    if (m & 2) { tile(kind, RB, 2, w, row, x, out, stride); x += 2 * w->cols; out += 2 * stride; }
    if (m & 1) tile(kind, RB, 1, w, row, x, out, stride);
}

INLINE void matmul_of(int kind, const matrix *w, int first, int end, const float *x, int m, float *out, int stride) {
    int row = first;
    for (; row + TILE_ROWS <= end; row += TILE_ROWS) rows_of(kind, TILE_ROWS, w, row, x, m, out, stride);
    for (; row < end; row++) rows_of(kind, 1, w, row, x, m, out, stride);
}

/* out[m][r] = x[m] . w[r] for m < rows of x and first <= r < end. out has `stride` floats a row. */
static void matmul(const matrix *w, int first, int end, const float *x, int m, float *out, int stride) {
    switch (w->kind) {
    case KIND_F32: matmul_of(KIND_F32, w, first, end, x, m, out, stride); break;
    case KIND_BF16: matmul_of(KIND_BF16, w, first, end, x, m, out, stride); break;
    default: matmul_of(KIND_INT8, w, first, end, x, m, out, stride);
    }
}
