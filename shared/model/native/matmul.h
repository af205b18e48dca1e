/* Rows of activations times a matrix: out = x * w^T, for one row or thousands, at the speed of memory or of the processor.

   Every number of the result has one accumulator, a vector whose lanes ascend in k and are added in one order at the end.
   So it depends on its row of x, its row of w and nothing else: neither on what else is in the step nor on how threads share it.
   The matrix is read where it lies; what makes that fast is that tiles of it, or of x, stay in the nearest cache. */
#pragma once
#include "team.h"
#include "vectors.h"

typedef struct {
    const void *data;   /* [rows][cols] of `kind` */
    const float *scale; /* [rows] for int8, else NULL */
    const float *bias;  /* [rows] or NULL */
    int32_t rows, cols; /* cols is a multiple of 16 */
    int32_t kind;
} matrix;

INLINE matrix rows_from(const matrix *w, int row) {
    matrix rest = *w;
    rest.data = (const char *)w->data + (int64_t)row * w->cols * bytes_of(w->kind);
    rest.scale = w->scale ? w->scale + row : 0;
    rest.bias = w->bias ? w->bias + row : 0;
    rest.rows -= row;
    return rest;
}

/* Activations [rows][cols]. */
typedef struct {
    const void *data;
    int32_t kind; /* KIND_F32, or KIND_BF16 where BF16_PRODUCTS */
    int32_t rows;
} activations;

/* What becomes of a product. */
typedef struct {
    void *data;     /* float [rows of x][stride]; with a gate, of the kind of x */
    int64_t stride; /* in elements */
    int32_t gate;   /* NO_GATE, or the matrix is [gates, ups]: activation(gate) * up, half as wide */
} result;

enum { NO_GATE, SILU, GELU };

#if defined(__AVX512BF16__)
#define BF16_PRODUCTS 1 /* of 32 pairs in bfloat16 at once, summed in float */
#else
#define BF16_PRODUCTS 0 /* weights are widened, activations stay as they are */
#endif

/* A tile's accumulators and one row of it are what the registers hold. */
#define TILE_ROWS 4
#define TILE_TOKENS (LANES == 8 ? 2 : 4)
#define TILE (TILE_ROWS * TILE_TOKENS)

#define NEAR_BYTES (24 << 10)  /* of the matrix, in the first cache while x passes */
#define FAR_BYTES (384 << 10)  /* of the matrix or of x, in the second */
#define MANY_ROWS 64           /* above, long rows of x stay in the first cache, and the matrix in the second */
#define STREAMING_ROWS 8       /* up to here products wait for the matrix to arrive from memory */

/* Elements [i, i + count) as what is multiplied: LANES floats, or the bits of twice as many bfloat16, zero beyond `count`. */
INLINE vf operand(int as, int kind, const void *base, int64_t i, int count) {
#if BF16_PRODUCTS
    if (as == KIND_BF16) {
        if (kind == KIND_BF16 && count == LANES) return (vf)_mm512_zextsi256_si512(_mm256_loadu_si256((const void *)((const uint16_t *)base + i)));
        if (kind == KIND_BF16) return (vf)_mm512_loadu_si512((const uint16_t *)base + i);
        const __m512 low = (__m512)load(kind, base, i);
        return (vf)_mm512_cvtne2ps_pbh(count == LANES ? _mm512_setzero_ps() : (__m512)load(kind, base, i + LANES), low);
    }
#endif
    return load(kind, base, i);
}

INLINE vf accumulate(int as, vf a, vf b, vf to) {
#if BF16_PRODUCTS
    if (as == KIND_BF16) return (vf)_mm512_dpbf16_ps((__m512)to, (__m512bh)a, (__m512bh)b);
#endif
    return multiply_add(a, b, to);
}

INLINE void tile_step(int as, int kind, int rows, int tokens, const void *w, const void *x, int cols, int k, int count, vf acc[TILE]) {
    vf weights[TILE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) weights[r] = operand(as, kind, w, (int64_t)r * cols + k, count);
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        vf v = operand(as, as, x, (int64_t)t * cols + k, count);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) acc[t * TILE_ROWS + r] = accumulate(as, weights[r], v, acc[t * TILE_ROWS + r]);
    }
}

/* Ask for `bytes` of memory from `data` on. The hint says which cache they go to: 3 is the first, 2 the second. */
#define FETCH(data, bytes, hint)                                                    \
    for (int64_t at = 0; at < (bytes); at += 64) __builtin_prefetch((data) + at, 0, hint)

INLINE void tile_of(int as, int kind, int rows, int tokens, const void *w, const char *next, int64_t ask, const void *x, int cols,
                    vf out[TILE / LANES]) {
    vf acc[TILE];
#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++) acc[i] = (vf){};
    const int width = as == KIND_BF16 ? 2 * LANES : LANES;
    int k = 0;
    if (ask) /* apart: the loop of long steps is to be tight */
        for (; k + width <= cols; k += width, next += ask) {
            tile_step(as, kind, rows, tokens, w, x, cols, k, width, acc);
            FETCH(next, ask, 3);
        }
    for (; k + width <= cols; k += width) tile_step(as, kind, rows, tokens, w, x, cols, k, width, acc);
    if (k < cols) tile_step(as, kind, rows, tokens, w, x, cols, k, LANES, acc);
#pragma GCC unroll 4
    for (int i = 0; i < TILE / LANES; i++) out[i] = sums(acc + i * LANES);
}

/* TILE_ROWS rows from w, or one, times `tokens` rows from x, as [TILE_TOKENS][TILE_ROWS] with zeros where there are fewer.
   In each of its steps `ask` bytes more are asked for from `next` on. */
typedef void tile_function(int rows, int tokens, const void *w, const char *next, int64_t ask, const void *x, int cols, vf out[TILE / LANES]);

#define TILE_FUNCTION(name, as, kind)                                                                                   \
    static void name(int rows, int tokens, const void *w, const char *next, int64_t ask, const void *x, int cols,       \
                     vf out[TILE / LANES]) {                                                                            \
        if (rows == TILE_ROWS) {                                                                                        \
            if (tokens == TILE_TOKENS) tile_of(as, kind, TILE_ROWS, TILE_TOKENS, w, next, ask, x, cols, out);           \
            else if (tokens == 1) tile_of(as, kind, TILE_ROWS, 1, w, next, ask, x, cols, out);                          \
            else if (tokens == 2) tile_of(as, kind, TILE_ROWS, 2, w, next, ask, x, cols, out);                          \
            else if (TILE_TOKENS > 2) tile_of(as, kind, TILE_ROWS, 3, w, next, ask, x, cols, out);                      \
        } else {                                                                                                        \
            if (tokens == TILE_TOKENS) tile_of(as, kind, 1, TILE_TOKENS, w, next, ask, x, cols, out);                   \
            else if (tokens == 1) tile_of(as, kind, 1, 1, w, next, ask, x, cols, out);                                  \
            else if (tokens == 2) tile_of(as, kind, 1, 2, w, next, ask, x, cols, out);                                  \
            else if (TILE_TOKENS > 2) tile_of(as, kind, 1, 3, w, next, ask, x, cols, out);                              \
        }                                                                                                               \
    }

TILE_FUNCTION(tile_f32, KIND_F32, KIND_F32)
TILE_FUNCTION(tile_f32_bf16, KIND_F32, KIND_BF16)
TILE_FUNCTION(tile_f32_int8, KIND_F32, KIND_INT8)
#if BF16_PRODUCTS
TILE_FUNCTION(tile_bf16, KIND_BF16, KIND_BF16)
TILE_FUNCTION(tile_bf16_int8, KIND_BF16, KIND_INT8)
#endif

static tile_function *tile_function_of(int as, int kind) {
#if BF16_PRODUCTS
    if (as == KIND_BF16) return kind == KIND_BF16 ? tile_bf16 : tile_bf16_int8;
#endif
    return kind == KIND_F32 ? tile_f32 : kind == KIND_BF16 ? tile_f32_bf16 : tile_f32_int8;
}

/* How a product is cut into units of work: panels of the matrix, times blocks of x. */
typedef struct {
    int panel, block;         /* rows of the matrix, of the ups as many again; rows of x */
    int num_panels, num_blocks;
    int expands;              /* panels are copied first, as what they are multiplied as */
} cut;

INLINE int outputs(const matrix *w, const result *out) { return out->gate == NO_GATE ? w->rows : w->rows / 2; }

static cut cut_of(const matrix *w, const activations *x, const result *out, int parts) {
    cut c = {.expands = w->kind != x->kind && x->rows > TILE_TOKENS};
    const int64_t row_bytes = (int64_t)w->cols * bytes_of(c.expands ? x->kind : w->kind) * (out->gate == NO_GATE ? 1 : 2);
    const int near = (x->rows <= STREAMING_ROWS ? NEAR_BYTES / 2 : NEAR_BYTES) / row_bytes, count = outputs(w, out);
    const int is_near = x->rows <= MANY_ROWS || near >= (out->gate == NO_GATE ? 4 : 2) * TILE_ROWS;
    const int block = FAR_BYTES / ((int64_t)w->cols * bytes_of(x->kind));
    c.num_blocks = is_near && block >= TILE_TOKENS ? (x->rows + block - 1) / block : 1;
    c.block = ((x->rows + c.num_blocks - 1) / c.num_blocks + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
    c.panel = is_near ? near : FAR_BYTES / row_bytes;
    const int even = count / (4 * parts) * c.num_blocks;
    if (c.panel > even) c.panel = even; /* all threads are to be busy */
    c.panel = c.panel / TILE_ROWS * TILE_ROWS;
    if (c.panel < TILE_ROWS) c.panel = TILE_ROWS;
    c.num_panels = (count + c.panel - 1) / c.panel;
    return c;
}

/* Bytes of room that a thread needs to multiply a matrix as `as`. */
static int64_t room_bytes(const matrix *w, int as) {
    const int64_t least = 2 * TILE_ROWS * (int64_t)w->cols * bytes_of(as);
    return w->kind == as ? 0 : least > FAR_BYTES ? least : FAR_BYTES;
}

static void expand(int as, const matrix *w, int64_t row, int count, char *to) {
    const int64_t first = row * w->cols, size = (int64_t)count * w->cols;
    for (int64_t i = 0; i < size; i += LANES) {
        vf v = w->kind == KIND_BF16 ? load(KIND_BF16, w->data, first + i) : load(KIND_INT8, w->data, first + i);
        if (as == KIND_F32) store(KIND_F32, to, i, v);
        else store(KIND_BF16, to, i, v);
    }
}

INLINE void scaled(const matrix *w, int64_t row, int rows, vf v[TILE / LANES]) {
    if (!w->scale && !w->bias) return;
    float scale[TILE], bias[TILE];
    for (int i = 0; i < TILE; i++) {
        const int64_t from = row + (i % TILE_ROWS < rows ? i % TILE_ROWS : 0);
        scale[i] = w->scale ? w->scale[from] : 1.0f;
        bias[i] = w->bias ? w->bias[from] : 0.0f;
    }
    for (int i = 0; i < TILE / LANES; i++) v[i] = multiply_add(v[i], load_f32(scale + i * LANES), load_f32(bias + i * LANES));
}

INLINE void store_tile(int kind, const vf v[TILE / LANES], int rows, int tokens, const result *out, int64_t token, int row) {
    char numbers[TILE * sizeof(float)];
    const int size = bytes_of(kind);
    for (int i = 0; i < TILE / LANES; i++) store(kind, numbers, i * LANES, v[i]);
    for (int t = 0; t < tokens; t++) {
        char *to = (char *)out->data + ((token + t) * out->stride + row) * size;
        if (rows == TILE_ROWS) memcpy(to, numbers + t * TILE_ROWS * size, TILE_ROWS * size);
        else memcpy(to, numbers + t * TILE_ROWS * size, size);
    }
}

/* Rows [row, row + count) of the matrix, with a gate the ups that belong to them as well, times rows [first, end) of x. */
static void panel_product(const matrix *w, const cut *c, int row, int count, const activations *x, int first, int end, const result *out,
                           char *room) {
    const int as = x->kind, gate = out->gate, kind = c->expands ? as : w->kind, cols = w->cols, half = w->rows / 2;
    const int64_t stride = (int64_t)cols * bytes_of(w->kind), bytes = count * stride, width = (int64_t)cols * bytes_of(kind);
    tile_function *tile = tile_function_of(as, kind);
    const char *source = (const char *)w->data + row * stride, *data = source, *ups = source + half * stride;
    if (c->expands) {
        expand(as, w, row, count, room);
        data = room;
        if (gate != NO_GATE) expand(as, w, half + row, count, room + count * width);
        ups = room + count * width;
    }
    /* The next panel arrives meanwhile, in equal parts: in every step where memory is what is waited for, else after tiles. */
    const int tiles = (end - first + TILE_TOKENS - 1) / TILE_TOKENS * ((count + TILE_ROWS - 1) / TILE_ROWS);
    const int64_t part = bytes / tiles, ask = end - first <= STREAMING_ROWS ? part * (as == KIND_BF16 ? 2 * LANES : LANES) / cols + 1 : 0;
    const char *next = source + bytes;
    for (int token = first; token < end; token += TILE_TOKENS) {
        const int tokens = end - token < TILE_TOKENS ? end - token : TILE_TOKENS;
        const char *from = (const char *)x->data + (int64_t)token * cols * bytes_of(as);
        for (int r = 0, rows; r < count; r += rows, next += part) {
            rows = count - r >= TILE_ROWS ? TILE_ROWS : 1;
            vf v[TILE / LANES], up[TILE / LANES];
            tile(rows, tokens, data + r * width, next, ask, from, cols, v);
            if (!ask) FETCH(next, part, 2);
            scaled(w, row + r, rows, v);
            if (gate == NO_GATE) {
                store_tile(KIND_F32, v, rows, tokens, out, token, row + r);
                continue;
            }
            tile(rows, tokens, ups + r * width, next + half * stride, ask, from, cols, up);
            if (!ask) FETCH(next + half * stride, part, 2);
            scaled(w, half + row + r, rows, up);
            for (int i = 0; i < TILE / LANES; i++) v[i] = (gate == GELU ? gelu_tanh(v[i]) : silu(v[i])) * up[i];
            if (as == KIND_F32) store_tile(KIND_F32, v, rows, tokens, out, token, row + r);
            else store_tile(KIND_BF16, v, rows, tokens, out, token, row + r);
        }
    }
}

/* Part `part` of `parts` of out = x * w^T. `room` is the thread's own, of `room_bytes`. */
static void multiply(const matrix *w, const activations *x, const result *out, char *room, int part, int parts) {
    const cut c = cut_of(w, x, out, parts);
    const int units = c.num_panels * c.num_blocks, count = outputs(w, out);
    for (int unit = share(units, part, parts); unit < share(units, part + 1, parts); unit++) {
        const int row = unit % c.num_panels * c.panel, first = unit / c.num_panels * c.block;
        const int rows = count - row < c.panel ? count - row : c.panel, end = first + c.block < x->rows ? first + c.block : x->rows;
        panel_product(w, &c, row, rows, x, first, end, out, room);
    }
}
