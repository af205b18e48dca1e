/* The match of matching.py over a table as table.py lays it out. What it does most is wait for memory: so it asks for
   the buckets of keys to come while it looks into those that have come. */
#include <stdint.h>
#include <string.h>

#define AHEAD 48 /* keys */
#define KEY_WORDS 4 /* of a packed key: the table knows the first */
#define BUCKET_BITS 4
#define STATE_BITS 12
#define EACH 0x0101010101010101u
#define PASSED 0x8000000000000000u
#define SEVEN_BITS (EACH * 0x7F)

struct table {
    const uint64_t *words;
    uint64_t multiplier, last_row;
    int32_t shift;
};

struct matched {
    const int64_t *holder_of; /* by owner, negative: nobody */
    const uint8_t (*values)[2]; /* by state: both masks of a block */
    int64_t num_blocks;
    int64_t num_rows; /* in use; row 0 is that of those who have nothing */
    int64_t *rows;    /* by holder */
    uint8_t *masks;   /* [rows][2][blocks], cleared as rows come into use */
};

static inline uint64_t home_of(const struct table *table, uint64_t key) {
    return key * table->multiplier >> table->shift & table->last_row;
}

static inline void note(struct matched *matched, int64_t block, uint32_t pair) {
    int64_t holder = matched->holder_of[pair >> STATE_BITS];
    if (holder < 0) return;
    int64_t row = matched->rows[holder];
    if (!row) {
        row = matched->rows[holder] = matched->num_rows++;
        memset(matched->masks + 2 * row * matched->num_blocks, 0, 2 * (size_t)matched->num_blocks);
    }
    const uint8_t *value = matched->values[pair & ((1 << STATE_BITS) - 1)];
    uint8_t *mask = matched->masks + 2 * row * matched->num_blocks + block;
    mask[0] |= value[0];
    mask[matched->num_blocks] |= value[1];
}

void prfaas_match(const struct table *table, const uint64_t *keys, struct matched *matched) {
    for (int64_t block = 0; block < matched->num_blocks; block++) {
        if (block + AHEAD < matched->num_blocks) {
            const uint64_t *soon = table->words + home_of(table, keys[(block + AHEAD) * KEY_WORDS]);
            __builtin_prefetch(soon);
            __builtin_prefetch(soon + 8);
        }
        uint64_t key = keys[block * KEY_WORDS], tag = key & 0x7F, home = home_of(table, key), row = home, tags;
        do {
            const uint64_t *bucket = table->words + row;
            tags = bucket[0];
            /* No byte's sum reaches the next byte: the top bits left are those of the bytes that are like the tag. */
            uint64_t unlike = ((tags & ~PASSED) ^ (tag ? tag : 1) * EACH) + SEVEN_BITS;
            for (uint64_t like = ~(unlike | SEVEN_BITS); like; like &= like - 1) {
                int column = __builtin_ctzll(like) >> 3;
                if (bucket[1 + column] == key) note(matched, block, ((const uint32_t *)(bucket + 9))[column]);
            }
            row = (row + ((key | 1) << BUCKET_BITS)) & table->last_row;
        } while (tags & PASSED && row != home);
    }
}
