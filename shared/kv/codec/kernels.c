/* The arithmetic of quantised.py for bfloat16, a few passes over one entry. Compiled with -ffp-contract=off and summing
   in the order of the NumPy code, so that both make the same bytes. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define ONE_BY_ONE _Pragma("GCC ivdep") /* no element of a row depends on another */
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

/* The first of the ascending steps that is not below `least`, from the first one of its octave on. */
static uint8_t code_of(const float *steps, float least) {
    uint32_t bits;
    memcpy(&bits, &least, 4);
    int code = PER_OCTAVE * ((int)(bits >> 23 & 0xFF) - 127 - FIRST_OCTAVE);
    if (code < 0) code = 0;
    while (code < NUM_CODES - 1 && steps[code] < least) code++;
    return (uint8_t)code;
}

static void keys_of(const uint16_t *restrict raw, const float *steps, int tokens, int channels, float share, uint8_t *codes,
                    int16_t *offsets, int8_t *restrict numbers, float *restrict scratch) {
    float *sum = scratch, *squares = sum + channels, *high = squares + channels, *low = high + channels;
    for (int c = 0; c < channels; c++) {
        float x = widened(raw[c]);
        sum[c] = x;
        squares[c] = x * x;
        high[c] = low[c] = x;
    }
    for (int t = 1; t < tokens; t++) {
        const uint16_t *row = raw + (int64_t)t * channels;
        ONE_BY_ONE for (int c = 0; c < channels; c++) {
            float x = widened(row[c]);
            sum[c] += x;
            squares[c] += x * x;
            high[c] = x > high[c] ? x : high[c];
            low[c] = x < low[c] ? x : low[c];
        }
    }
    for (int c = 0; c < channels; c++) {
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
        ONE_BY_ONE for (int c = 0; c < channels; c++) {
            int64_t at = (int64_t)t * channels + c;
            numbers[at] = (int8_t)(int32_t)rintf(widened(raw[at]) * squares[c] - sum[c]);
        }
}

static void values_of(const uint16_t *restrict raw, const float *steps, int rows, int dim, float share, uint8_t *codes,
                      int8_t *restrict numbers) {
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
        squares_of[0] += squares_of[1];
        float squares[LANES], most[LANES];
        memcpy(squares, &squares_of[0], sizeof squares);
        memcpy(most, &most_of, sizeof most);
        for (int width = LANES / 2; width; width /= 2)
            for (int lane = 0; lane < width; lane++) {
                squares[lane] += squares[lane + width];
                most[lane] = most[lane] > most[lane + width] ? most[lane] : most[lane + width];
            }
        float least = sqrtf(squares[0] / (float)dim) * share, reach = most[0] / LARGEST;
        codes[r] = code_of(steps, least > reach ? least : reach);
        float inverse = 1.0f / steps[codes[r]];
        for (int i = 0; i < dim; i++)
            numbers[(int64_t)r * dim + i] = (int8_t)(int32_t)rintf(widened(row[i]) * inverse);
    }
}

/* `keys` and `values` are [tokens][heads * dim], dim a multiple of 16; `codes` has room for heads * dim and then
   tokens * heads, `numbers` for the integers of both, `scratch` for 4 * heads * dim. Returns 0, or 1 when a number is
   too large for any step. */
int prfaas_quantise(const uint16_t *keys, const uint16_t *values, const float *steps, int tokens, int heads, int dim,
                    float key_share, float value_share, uint8_t *codes, int16_t *offsets, int8_t *numbers, float *scratch) {
    int channels = heads * dim;
    int64_t count = (int64_t)tokens * channels;
    uint16_t largest = 0; /* without sign, bits sort like numbers */
    for (int64_t i = 0; i < count; i++) {
        uint16_t key = keys[i] & 0x7FFF, value = values[i] & 0x7FFF, size = key > value ? key : value;
        largest = size > largest ? size : largest;
    }
    if (largest >= FIRST_TOO_LARGE) return 1;
    keys_of(keys, steps, tokens, channels, key_share, codes, offsets, numbers, scratch);
    values_of(values, steps, tokens * heads, dim, value_share, codes + channels, numbers + count);
    return 0;
}

/* The reverse, into [tokens][heads * dim] each. */
void prfaas_restore(const int8_t *restrict key_numbers, const int8_t *restrict value_numbers, const float *steps, const uint8_t *codes,
                    const int16_t *offsets, int tokens, int heads, int dim, uint16_t *restrict keys, uint16_t *restrict values,
                    float *restrict scratch) {
    int channels = heads * dim;
    float *step = scratch, *offset = scratch + channels;
    for (int c = 0; c < channels; c++) {
        step[c] = steps[codes[c]];
        offset[c] = (float)offsets[c];
    }
    for (int t = 0; t < tokens; t++)
        ONE_BY_ONE for (int c = 0; c < channels; c++) {
            int64_t at = (int64_t)t * channels + c;
            keys[at] = narrowed(((float)key_numbers[at] + offset[c]) * step[c]);
        }
    for (int r = 0; r < tokens * heads; r++) {
        float size = steps[codes[channels + r]];
        for (int i = 0; i < dim; i++) {
            int64_t at = (int64_t)r * dim + i;
            values[at] = narrowed((float)value_numbers[at] * size);
        }
    }
}
