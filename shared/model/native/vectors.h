/* Vectors of floats in GCC's portable notation: one source for AVX-512, AVX2, NEON and whatever else -march=native finds.
   They are as wide as the machine's: GCC 12 takes wider ones apart through memory, which costs five sixths of the speed. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef int8_t vb __attribute__((vector_size(LANES)));

/* How numbers are stored; what is computed with is always float. The same numbers as `structures.Kind`. */
enum kind { KIND_F32 = 0, KIND_BF16 = 1, KIND_INT8 = 2 };

INLINE int bytes_of(int kind) { return kind == KIND_F32 ? 4 : kind == KIND_BF16 ? 2 : 1; }

INLINE vf splat(float x) { return x - (vf){}; }

INLINE vf load_f32(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }

INLINE void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }

INLINE vf load_bf16(const uint16_t *p) {
    vh h;
    memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

/* To nearest, ties to even, as PyTorch rounds. Not for NaN. */
INLINE void store_bf16(uint16_t *p, vf v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    vu u = (vu)v;
    vh h = __builtin_convertvector((u + 0x7fff + (u >> 16 & 1)) >> 16, vh);
#endif
    memcpy(p, &h, sizeof h);
}

/* GCC 12 splits this conversion into many; hence, as above, the instruction by name. */
INLINE vf load_int8(const int8_t *p) {
    vb b;
    memcpy(&b, p, sizeof b);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)b));
#elif LANES == 8
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)b)));
#else
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
}

/* Load LANES stored numbers from element `i` on. `kind` is a constant wherever this is inlined. */
INLINE vf load(int kind, const void *base, int64_t i) {
    if (kind == KIND_F32) return load_f32((const float *)base + i);
    if (kind == KIND_BF16) return load_bf16((const uint16_t *)base + i);
    return load_int8((const int8_t *)base + i);
}

INLINE void store(int kind, void *base, int64_t i, vf v) {
    if (kind == KIND_F32) store_f32((float *)base + i, v);
    else store_bf16((uint16_t *)base + i, v);
}

/* a * b + c, rounded once where the machine can. */
INLINE vf multiply_add(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE vf choose(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

#if defined(__AVX512F__)
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE float sum(vf v) { return _mm512_reduce_add_ps((__m512)v); } /* halves, quarters and so on, as below */
INLINE float maximum(vf v) { return _mm512_reduce_max_ps((__m512)v); }
#else
INLINE vf vmax(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf vmin(vf a, vf b) { return choose(a < b, a, b); }

#define REDUCE(op, v)                                                          \
    float part[LANES];                                                         \
    memcpy(part, &v, sizeof part);                                             \
    for (int half = LANES / 2; half; half /= 2)                                \
        for (int i = 0; i < half; i++) part[i] = op(part[i], part[i + half]);  \
    return part[0]

INLINE float add_two(float a, float b) { return a + b; }
INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float sum(vf v) { REDUCE(add_two, v); }
INLINE float maximum(vf v) { REDUCE(larger, v); }
#endif

/* Two vectors whose lanes are added pairwise, at a distance of half a vector, a quarter, and so on: a's sums take the places where
   the first list keeps a's lanes, b's the others. The first list moves nothing, which costs less than moving. */
#if LANES == 16
#define HALVES {0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31}, {8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}
#define QUARTERS {0, 1, 2, 3, 20, 21, 22, 23, 8, 9, 10, 11, 28, 29, 30, 31}, {4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27}
#define EIGHTHS {0, 1, 18, 19, 4, 5, 22, 23, 8, 9, 26, 27, 12, 13, 30, 31}, {2, 3, 16, 17, 6, 7, 20, 21, 10, 11, 24, 25, 14, 15, 28, 29}
#define LAST {0, 17, 2, 19, 4, 21, 6, 23, 8, 25, 10, 27, 12, 29, 14, 31}, {1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30}
#elif LANES == 8
#define HALVES {0, 1, 2, 3, 12, 13, 14, 15}, {4, 5, 6, 7, 8, 9, 10, 11}
#define QUARTERS {0, 1, 10, 11, 4, 5, 14, 15}, {2, 3, 8, 9, 6, 7, 12, 13}
#define LAST {0, 9, 2, 11, 4, 13, 6, 15}, {1, 8, 3, 10, 5, 12, 7, 14}
#else
#define HALVES {0, 1, 6, 7}, {2, 3, 4, 5}
#define LAST {0, 5, 2, 7}, {1, 4, 3, 6}
#endif
#define FOLD(op, count, lists)                                                                                          \
    do {                                                                                                                \
        const vi of[2] = {lists};                                                                                       \
        _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)                                                       \
            v[i] = op(__builtin_shuffle(v[i], v[i + (count)], of[0]), __builtin_shuffle(v[i], v[i + (count)], of[1])); \
    } while (0)
#if LANES == 16
#define FOLD_ALL(op) FOLD(op, 8, HALVES); FOLD(op, 4, QUARTERS); FOLD(op, 2, EIGHTHS); FOLD(op, 1, LAST)
#elif LANES == 8
#define FOLD_ALL(op) FOLD(op, 4, HALVES); FOLD(op, 2, QUARTERS); FOLD(op, 1, LAST)
#else
#define FOLD_ALL(op) FOLD(op, 2, HALVES); FOLD(op, 1, LAST)
#endif

INLINE vf plus(vf a, vf b) { return a + b; }

/* The sums of LANES vectors at once, which are lost; each adds up as `sum` does. */
INLINE vf sums(vf v[LANES]) {
    FOLD_ALL(plus);
    return v[0];
}

INLINE vf maxima(vf v[LANES]) {
    FOLD_ALL(vmax);
    return v[0];
}

/* e^x to 2 ulp for x <= 88; 0 below -87. Range reduction and polynomial of Cephes' expf. */
INLINE vf vexp(vf x) {
    vi tiny = x < -87.0f;
    x = vmax(x, splat(-87.0f));
    vf n = multiply_add(x, splat(1.44269504088896341f), splat(12582912.0f)); /* adds and removes 1.5 * 2^23: rounds to an integer */
    vi exponent = (vi)n << 23;
    n -= splat(12582912.0f);
    vf r = multiply_add(n, splat(2.12194440e-4f), multiply_add(n, splat(-0.693359375f), x));
    vf p = splat(1.9875691500e-4f);
    p = multiply_add(p, r, splat(1.3981999507e-3f));
    p = multiply_add(p, r, splat(8.3334519073e-3f));
    p = multiply_add(p, r, splat(4.1665795894e-2f));
    p = multiply_add(p, r, splat(1.6666665459e-1f));
    p = multiply_add(p, r, splat(5.0000001201e-1f));
    vf e = (vf)((vi)(multiply_add(p, r * r, r) + 1.0f) + exponent);
    return (vf)((vi)e & ~tiny);
}

INLINE vf silu(vf x) { return x / (1.0f + vexp(vmin(-x, splat(80.0f)))); }

INLINE vf gelu_tanh(vf x) {
    vf inner = 1.5957691216057308f * multiply_add(0.044715f * x * x, x, x); /* 2 * sqrt(2 / pi) */
    return x / (1.0f + vexp(vmin(-inner, splat(80.0f))));         /* x * sigmoid(2u) = x/2 * (1 + tanh u) */
}
