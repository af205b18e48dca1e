/* XXH3, 64 bits with a seed, of inputs longer than XXH3_SHORT, and of headers of 33 to 64 bytes without one.

   The algorithm is Yann Collet's, of xxHash 0.8 (https://github.com/Cyan4973/xxHash, BSD 2-Clause, Copyright (C)
   2012-2023 Yann Collet); doc/xxhash_spec.md there describes it. Written for compilers that vectorise loops. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "only for processors of little-endian byte order"
#endif

#define XXH3_SHORT 240 /* bytes: up to here the algorithm is another one */
#define STRIPE 64u
#define LANES 8
#define SECRET_BYTES 192u
#define STRIPES_PER_BLOCK ((SECRET_BYTES - STRIPE) / 8)
#define AHEAD 512 /* bytes asked for before their turn */

#define PRIME32_1 0x9E3779B1u
#define PRIME32_2 0x85EBCA77u
#define PRIME32_3 0xC2B2AE3Du
#define PRIME64_1 0x9E3779B185EBCA87u
#define PRIME64_2 0xC2B2AE3D27D4EB4Fu
#define PRIME64_3 0x165667B19E3779F9u
#define PRIME64_4 0x85EBCA77C2B2AE63u
#define PRIME64_5 0x27D4EB2F165667C5u
#define PRIME_MX1 0x165667919E3779F9u

static const uint8_t XXH3_SECRET[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define VECTORS ((int)STRIPE / VECTOR_BYTES)
typedef uint64_t words __attribute__((vector_size(VECTOR_BYTES)));

/* Multiply the lower halves of words. */
static inline words product(words a, words b) {
#if defined(__AVX512F__)
    return (words)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#else
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

/* Exchange the words of each pair. */
static inline words swapped(words pairs) {
#if defined(__AVX512F__)
    return (words)_mm512_shuffle_epi32((__m512i)pairs, _MM_PERM_BADC);
#elif defined(__AVX2__)
    return (words)_mm256_shuffle_epi32((__m256i)pairs, 0x4E);
#else
    return (words){pairs[1], pairs[0]};
#endif
}

struct xxh3 {
    words lanes[VECTORS];
    unsigned stripe; /* of the block that is being filled */
    uint8_t secret[SECRET_BYTES] __attribute__((aligned(64)));
};

static inline words read_words(const uint8_t *at) {
    words value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t read64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t fold128(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t avalanche(uint64_t hash) {
    hash ^= hash >> 37;
    hash *= PRIME_MX1;
    return hash ^ hash >> 32;
}

static inline void xxh3_begin(struct xxh3 *state, uint64_t seed) {
    static const uint64_t first[LANES] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                                          PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    memcpy(state->lanes, first, sizeof first);
    state->stripe = 0;
    for (unsigned at = 0; at < SECRET_BYTES; at += 16) {
        uint64_t low = read64(XXH3_SECRET + at) + seed, high = read64(XXH3_SECRET + at + 8) - seed;
        memcpy(state->secret + at, &low, 8);
        memcpy(state->secret + at + 8, &high, 8);
    }
}

/* Take in stripes of one block, one after the other. */
static inline void accumulate(words *lanes, const uint8_t *input, const uint8_t *secret, size_t num_stripes) {
    for (size_t stripe = 0; stripe < num_stripes; stripe++, input += STRIPE, secret += 8) {
        __builtin_prefetch(input + AHEAD);
        for (int i = 0; i < VECTORS; i++) {
            words data = read_words(input + i * VECTOR_BYTES), mixed = data ^ read_words(secret + i * VECTOR_BYTES);
            lanes[i] += product(mixed, mixed >> 32) + swapped(data);
        }
    }
}

static inline void scramble(words *lanes, const uint8_t *secret) {
    const words prime = (words){0} + PRIME32_1;
    for (int i = 0; i < VECTORS; i++) {
        words mixed = lanes[i] ^ lanes[i] >> 47 ^ read_words(secret + i * VECTOR_BYTES);
        lanes[i] = product(mixed, prime) + (product(mixed >> 32, prime) << 32);
    }
}

/* Take in whole stripes. */
static inline void xxh3_update(struct xxh3 *state, const uint8_t *input, size_t num_stripes) {
    words lanes[VECTORS]; /* in registers */
    memcpy(lanes, state->lanes, sizeof lanes);
    while (num_stripes) {
        size_t taken = STRIPES_PER_BLOCK - state->stripe;
        if (taken > num_stripes) taken = num_stripes;
        accumulate(lanes, input, state->secret + 8 * state->stripe, taken);
        input += taken * STRIPE;
        num_stripes -= taken;
        state->stripe += (unsigned)taken;
        if (state->stripe == STRIPES_PER_BLOCK) {
            scramble(lanes, state->secret + SECRET_BYTES - STRIPE);
            state->stripe = 0;
        }
    }
    memcpy(state->lanes, lanes, sizeof lanes);
}

/* Return the digest of `length` bytes, of which all stripes but the last were taken in; `last` are the last 64. */
static inline uint64_t xxh3_end(struct xxh3 *state, const uint8_t *last, uint64_t length) {
    accumulate(state->lanes, last, state->secret + SECRET_BYTES - STRIPE - 7, 1);
    uint64_t lanes[LANES], sum = length * PRIME64_1;
    memcpy(lanes, state->lanes, sizeof lanes);
    for (int lane = 0; lane < LANES; lane += 2) {
        const uint8_t *secret = state->secret + 11 + 8 * lane;
        sum += fold128(lanes[lane] ^ read64(secret), lanes[lane + 1] ^ read64(secret + 8));
    }
    return avalanche(sum);
}

/* Return the digest of more than XXH3_SHORT bytes. */
static inline uint64_t xxh3_long(const uint8_t *input, size_t length, uint64_t seed) {
    struct xxh3 state;
    xxh3_begin(&state, seed);
    xxh3_update(&state, input, (length - 1) / STRIPE);
    return xxh3_end(&state, input + length - STRIPE, length);
}

/* Return the digest of 33 to 64 bytes, without a seed. */
static inline uint64_t xxh3_header(const uint8_t *input, size_t length) {
    const size_t at[4] = {16, length - 32, 0, length - 16};
    const uint8_t *secrets[4] = {XXH3_SECRET + 32, XXH3_SECRET + 48, XXH3_SECRET, XXH3_SECRET + 16};
    uint64_t sum = length * PRIME64_1;
    for (int i = 0; i < 4; i++)
        sum += fold128(read64(input + at[i]) ^ read64(secrets[i]), read64(input + at[i] + 8) ^ read64(secrets[i] + 8));
    return avalanche(sum);
}
