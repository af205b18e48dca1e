/* What lies between the matrix products of a long step, each in one pass over its rows. Hidden states are
   float; `kind` is that of what goes into matrix products and comes out of them. */
#include <omp.h>

#include "pages.h"

#define EXPORT __attribute__((visibility("default")))
#define ROWS _Pragma("omp parallel for schedule(static) num_threads(num_threads)") for (int64_t row = 0; row < rows; row++)

static inline vf rounded(int kind, vf v) {
    if (kind == KIND_F32) return v;
    uint16_t h[LANES];
    store_bf16(h, v);
    return load_bf16(h);
}

INLINE float norm_factor(int kind, const void *x, int64_t at, int cols, float eps) {
    vf squares = {};
    for (int i = 0; i < cols; i += LANES) {
        vf v = load(kind, x, at + i);
        squares += v * v;
    }
    return 1.0f / sqrtf(sum(squares) / cols + eps);
}

INLINE void norm_of(int kind, const float *x, const float *weight, void *out, int64_t rows, int cols, float eps, int num_threads) {
    ROWS {
        float factor = norm_factor(KIND_F32, x, row * cols, cols, eps);
        for (int i = 0; i < cols; i += LANES) store(kind, out, row * cols + i, load_f32(x + row * cols + i) * factor * load_f32(weight + i));
    }
}

/* out = rms_norm(x) * weight, all [rows][cols]; `kind` is that of out. */
EXPORT void prfaas_norm(int kind, const float *x, const float *weight, void *out, int64_t rows, int cols, float eps, int num_threads) {
    if (kind == KIND_F32) norm_of(KIND_F32, x, weight, out, rows, cols, eps, num_threads);
    else norm_of(KIND_BF16, x, weight, out, rows, cols, eps, num_threads);
}

INLINE void add_of(int kind, float *hidden, const void *delta, const float *norm, int64_t rows, int cols, float eps, int num_threads) {
    ROWS {
        float factor = norm ? norm_factor(kind, delta, row * cols, cols, eps) : 1.0f;
        for (int i = 0; i < cols; i += LANES) {
            vf d = load(kind, delta, row * cols + i);
            if (norm) d = d * factor * load_f32(norm + i);
            store_f32(hidden + row * cols + i, load_f32(hidden + row * cols + i) + d);
        }
    }
}

/* hidden += delta, or rms_norm(delta) * norm where norm is not NULL; `kind` is that of delta. */
EXPORT void prfaas_add(int kind, float *hidden, const void *delta, const float *norm, int64_t rows, int cols, float eps, int num_threads) {
    if (kind == KIND_F32) add_of(KIND_F32, hidden, delta, norm, rows, cols, eps, num_threads);
    else add_of(KIND_BF16, hidden, delta, norm, rows, cols, eps, num_threads);
}

INLINE void gate_of(int kind, int gelu, const void *gate_up, void *out, int64_t rows, int inner, int num_threads) {
    ROWS for (int i = 0; i < inner; i += LANES) {
        vf g = load(kind, gate_up, row * 2 * inner + i), up = load(kind, gate_up, row * 2 * inner + inner + i);
        store(kind, out, row * inner + i, rounded(kind, gelu ? gelu_tanh(g) : silu(g)) * up);
    }
}

/* out[rows][inner] = activation(gate) * up for gate_up[rows][2 * inner]. */
EXPORT void prfaas_gate(int kind, int gelu, const void *gate_up, void *out, int64_t rows, int inner, int num_threads) {
    if (kind == KIND_F32) gate_of(KIND_F32, gelu, gate_up, out, rows, inner, num_threads);
    else gate_of(KIND_BF16, gelu, gate_up, out, rows, inner, num_threads);
}

INLINE void head_of(int kind, const void *x, int64_t at, const float *norm, const float *cosine, const float *sine, int dim, float eps,
                    void *out, int64_t to) {
    float wide[MAX_HEAD] __attribute__((aligned(64))), turned[MAX_HEAD] __attribute__((aligned(64)));
    float factor = norm ? norm_factor(kind, x, at, dim, eps) : 1.0f;
    for (int d = 0; d < dim; d += LANES) {
        vf v = load(kind, x, at + d);
        store_f32(wide + d, norm ? rounded(kind, v * factor * load_f32(norm + d)) : v);
    }
    const int half = dim / 2;
    for (int d = 0; d < half; d++) {
        turned[d] = wide[d] * cosine[d] - wide[half + d] * sine[d];
        turned[half + d] = wide[half + d] * cosine[d] + wide[d] * sine[d];
    }
    for (int d = 0; d < dim; d += LANES) store(kind, out, to + d, load_f32(turned + d));
}

INLINE void rotate_of(int kind, const void *qkv, const float *qk_norm, const float *cosine, const float *sine, const int64_t *slots,
                      const pages *kv, void *queries, int64_t rows, int heads, float eps, int num_threads) {
    const int dim = kv->head_dim, all = heads + 2 * kv->kv_heads;
    ROWS {
        const float *c = cosine + row * dim, *s = sine + row * dim;
        const int64_t from = row * all * dim, to = slots[row] * kv->kv_heads * dim;
        for (int h = 0; h < heads + kv->kv_heads; h++) {
            const float *norm = qk_norm ? qk_norm + (int64_t)h * dim : 0;
            if (h == heads && to < 0) break;
            void *out = h < heads ? queries : kv->keys;
            int64_t at = h < heads ? (row * heads + h) * dim : to + (h - heads) * dim;
            head_of(kind, qkv, from + h * dim, norm, c, s, dim, eps, out, at);
        }
        const int size = to < 0 ? 0 : kv->kv_heads * dim * bytes_of(kind);
        memcpy(kv->values + to * bytes_of(kind), (const char *)qkv + (from + (heads + kv->kv_heads) * dim) * bytes_of(kind), size);
    }
}

/* Split qkv[rows][heads + 2 * kv_heads][dim]: norm and rotate queries into `queries` [rows][heads][dim] and keys into their
   slots; copy values into theirs. A slot below 0 takes nothing. Cosine and sine have `dim` floats a row, of which half are used. */
EXPORT void prfaas_rotate(int kind, const void *qkv, const float *qk_norm, const float *cosine, const float *sine, const int64_t *slots,
                          const pages *kv, void *queries, int64_t rows, int heads, float eps, int num_threads) {
    if (kind == KIND_F32) rotate_of(KIND_F32, qkv, qk_norm, cosine, sine, slots, kv, queries, rows, heads, eps, num_threads);
    else rotate_of(KIND_BF16, qkv, qk_norm, cosine, sine, slots, kv, queries, rows, heads, eps, num_threads);
}
