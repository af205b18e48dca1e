/* The arithmetic of quantised.py for bfloat16, a few passes over one entry. Compiled with -ffp-contract=off and summing
   in the order of the NumPy code, so that both make the same bytes. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define ONE_BY_ONE _Pragma("GCC ivdep") /* no element of a row depends on another */
#define TILE 256 /* channels at a time: what belongs to them fits the first cache */
#define NUM_CODES 256
#define PER_OCTAVE 4
#define FIRST_OCTAVE (-40)
#define LARGEST 126.0f
#define LARGEST_OFFSET 32000.0f
#define FIRST_TOO_LARGE 0x4B80 /* 2^24 in bfloat16; infinities and NaN are above it */

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static inline float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t narrowed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x8000u) >> 16);
}

/* 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4: what is near zero has a small number. */
static inline uint8_t folded(float whole) {
    int32_t number = (int32_t)whole;
    return (uint8_t)((uint32_t)number << 1 ^ (uint32_t)(number >> 31));
}

static inline float unfolded(uint8_t number) {
    return (float)(int32_t)(number >> 1 ^ -(number & 1));
}

/* The first of the ascending steps that is not below `least`, from the first one of its octave on. */
static uint8_t code_of(const float *steps, float least) {
    uint32_t bits;
    memcpy(&bits, &least, 4);
    int code = PER_OCTAVE * ((int)(bits >> 23 & 0xFF) - 127 - FIRST_OCTAVE);
    if (code < 0) code = 0;
    while (code < NUM_CODES - 1 && steps[code] < least) code++;
    return (uint8_t)code;
}

static inline int width_at(int first, int channels) { return channels - first < TILE ? channels - first : TILE; }

/* `width` of the channels; a token has `channels`. */
static void keys_of(const uint16_t *restrict raw, const float *steps, int tokens, int channels, int width, float share,
                    int16_t *offsets, uint8_t *codes, uint8_t *restrict numbers) {
    float sum[TILE], squares[TILE], high[TILE], low[TILE];
    for (int c = 0; c < width; c++) {
        float x = widened(raw[c]);
        sum[c] = x;
        squares[c] = x * x;
        high[c] = low[c] = x;
    }
    for (int t = 1; t < tokens; t++) {
        const uint16_t *row = raw + (int64_t)t * channels;
        ONE_BY_ONE for (int c = 0; c < width; c++) {
            float x = widened(row[c]);
            sum[c] += x;
            squares[c] += x * x;
            high[c] = x > high[c] ? x : high[c];
            low[c] = x < low[c] ? x : low[c];
        }
    }
    for (int c = 0; c < width; c++) {
        float mean = sum[c] / (float)tokens, square = squares[c] / (float)tokens - mean * mean;
        float least = sqrtf(square > 0 ? square : 0) * share;
        float reach = (high[c] - mean > mean - low[c] ? high[c] - mean : mean - low[c]) / LARGEST;
        float far = fabsf(mean) / LARGEST_OFFSET;
        least = least > reach ? least : reach;
        codes[c] = code_of(steps, least > far ? least : far);
        float offset = rintf(mean / steps[codes[c]]);
        offsets[c] = (int16_t)offset;
        sum[c] = offset;
        squares[c] = 1.0f / steps[codes[c]];
    }
    for (int t = 0; t < tokens; t++)
        ONE_BY_ONE for (int c = 0; c < width; c++) {
            int64_t at = (int64_t)t * channels + c;
            numbers[at] = folded(rintf(widened(raw[at]) * squares[c] - sum[c]));
        }
}

static void values_of(const uint16_t *restrict raw, const float *steps, int rows, int dim, float share, uint8_t *codes,
                      uint8_t *restrict numbers) {
    for (int r = 0; r < rows; r++) {
        const uint16_t *row = raw + (int64_t)r * dim;
        lanes squares_of[2] = {{0}}; /* 16 sums, as two vectors of what most processors have */
        words most_of = {0};
        for (int i = 0; i < dim; i += 2 * LANES)
            for (int half = 0; half < 2; half++) {
                halves packed;
                memcpy(&packed, row + i + half * LANES, sizeof packed);
                words bits = __builtin_convertvector(packed, words) << 16, size = bits & 0x7FFFFFFF;
                words larger = size > most_of; /* without sign, bits sort like numbers */
                lanes x = (lanes)bits;
                squares_of[half] += x * x;
                most_of = (size & larger) | (most_of & ~larger);
            }
        lanes q = squares_of[0] + squares_of[1], m = (lanes)most_of;
        float squares = ((q[0] + q[4]) + (q[2] + q[6])) + ((q[1] + q[5]) + (q[3] + q[7]));
        float most = 0;
        for (int lane = 0; lane < LANES; lane++) most = most > m[lane] ? most : m[lane];
        float least = sqrtf(squares / (float)dim) * share, reach = most / LARGEST;
        codes[r] = code_of(steps, least > reach ? least : reach);
        float inverse = 1.0f / steps[codes[r]];
        for (int i = 0; i < dim; i++)
            numbers[(int64_t)r * dim + i] = folded(rintf(widened(row[i]) * inverse));
    }
}

/* An entry is keys, then values, [block][heads * dim] each, dim a multiple of 16; its first `whole` tokens are left out. To `side` go the
   channels' offsets, then the codes of channels and of tokens' heads; to `numbers` the integers of both. Returns 0, or 1 when
   a number is too large for any step. */
int prfaas_quantise(const uint16_t *entry, const float *steps, int block, int whole, int heads, int dim, float key_share,
                    float value_share, uint8_t *side, uint8_t *numbers) {
    int tokens = block - whole, channels = heads * dim;
    int64_t count = (int64_t)tokens * channels;
    const uint16_t *keys = entry + (int64_t)whole * channels, *values = keys + (int64_t)block * channels;
    uint16_t largest = 0; /* without sign, bits sort like numbers */
    for (int64_t i = 0; i < count; i++) {
        uint16_t key = keys[i] & 0x7FFF, value = values[i] & 0x7FFF, size = key > value ? key : value;
        largest = size > largest ? size : largest;
    }
    if (largest >= FIRST_TOO_LARGE) return 1;
    uint8_t *codes = side + 2 * channels;
    for (int c = 0; c < channels; c += TILE)
        keys_of(keys + c, steps, tokens, channels, width_at(c, channels), key_share, (int16_t *)side + c, codes + c, numbers + c);
    values_of(values, steps, tokens * heads, dim, value_share, codes + channels, numbers + count);
    return 0;
}

/* The reverse, into the same places of an entry. */
void prfaas_restore(const uint8_t *restrict key_numbers, const uint8_t *restrict value_numbers, const float *steps,
                    const uint8_t *side, int block, int whole, int heads, int dim, uint16_t *restrict entry) {
    int tokens = block - whole, channels = heads * dim;
    uint16_t *keys = entry + (int64_t)whole * channels, *values = keys + (int64_t)block * channels;
    const int16_t *offsets = (const int16_t *)side;
    const uint8_t *codes = side + 2 * channels;
    for (int first = 0; first < channels; first += TILE) {
        int width = width_at(first, channels);
        float step[TILE], offset[TILE];
        for (int c = 0; c < width; c++) {
            step[c] = steps[codes[first + c]];
            offset[c] = (float)offsets[first + c];
        }
        for (int t = 0; t < tokens; t++)
            ONE_BY_ONE for (int c = 0; c < width; c++) {
                int64_t at = (int64_t)t * channels + first + c;
                keys[at] = narrowed((unfolded(key_numbers[at]) + offset[c]) * step[c]);
            }
    }
    for (int r = 0; r < tokens * heads; r++) {
        float size = steps[codes[channels + r]];
        for (int i = 0; i < dim; i++) {
            int64_t at = (int64_t)r * dim + i;
            values[at] = narrowed(unfolded(value_numbers[at]) * size);
        }
    }
}
