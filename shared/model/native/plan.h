/* How the attention of a step is cut into units of work: the same for all layers of one window, and nothing that a result
   depends on.

   A block is some rows of one span with one KV head: K and V of a chunk are packed once for all of its rows. A block with more
   than a thread's fair part of the work, such as the single row of a long context, is cut into units of some of its chunks,
   whose results wait in memory to be summed in order (flash decoding, https://pytorch.org/blog/flash-decoding/). */
#pragma once
#include <stdatomic.h>

#include "softmax.h"

#define BLOCK_ROWS 192            /* queries that share packed keys, at most: tokens times heads of a group */
#define FEW_ROWS 48               /* blocks are not made smaller than this to have more of them */
#define PACKING_ROWS 16           /* fetching and packing a chunk takes as long as products of about this many rows */
#define UNITS_PER_THREAD 6        /* a thread that is held up leaves units to others */
#define MAX_PARTIALS (64LL << 20) /* bytes of results that may wait in memory */

typedef struct {
    const span *spans;
    int32_t num_spans, heads, kv_heads, head_dim;
    int32_t window; /* 0: full */
    int32_t threads;
} shape;

typedef struct {
    int32_t span, kv_head, token, tokens; /* tokens [token, token + tokens) of the span */
    int32_t first, end;                   /* chunks that any of them sees */
    int64_t partials;                     /* where the results of its chunks wait; -1: it is one unit, and none do */
} block;

typedef struct {
    int32_t block, first, end; /* chunks */
} unit;

typedef struct {
    shape of;
    block *blocks;
    unit *units;
    int32_t num_blocks, num_units;
    int64_t partial_bytes; /* room that all blocks' partials take */
    atomic_int next;       /* the first unit that no thread has taken yet */
} plan;

static int first_visible(int window, int position) { return window && position >= window ? position - window + 1 : 0; }

static int group_of(const shape *s) { return s->heads / s->kv_heads; }

static int64_t chunk_cost(const shape *s, const block *b) { return b->tokens * group_of(s) + PACKING_ROWS; }

static int64_t partial_bytes(const shape *s, const block *b) { return seen_bytes(b->tokens * group_of(s), s->head_dim); }

static int tokens_of(const shape *s, int rows) { return rows > group_of(s) ? rows / group_of(s) : 1; }

static int count_blocks(const shape *s, int tokens) {
    int count = 0;
    for (int i = 0; i < s->num_spans; i++) count += (s->spans[i].rows + tokens - 1) / tokens * s->kv_heads;
    return count;
}

/* Blocks as large as leaves enough of them for all threads. */
static int choose_tokens(const shape *s) {
    int rows = BLOCK_ROWS;
    while (rows > FEW_ROWS && count_blocks(s, tokens_of(s, rows)) < UNITS_PER_THREAD * s->threads) rows /= 2;
    return tokens_of(s, rows);
}

/* Each unit but a block's last has half a fair part of the work or more. */
static int64_t most_units(const shape *s, int num_blocks) { return num_blocks + 2LL * UNITS_PER_THREAD * s->threads; }

static int64_t plan_bytes(const shape *s) {
    const int64_t blocks = count_blocks(s, choose_tokens(s));
    return (blocks * sizeof(block) + most_units(s, blocks) * sizeof(unit) + 63) / 64 * 64;
}

/* Add a span's blocks, the longest first since work is taken in this order; return what they cost. */
static int64_t add_blocks(plan *p, int number, int tokens) {
    const span *of = &p->of.spans[number];
    int64_t cost = 0;
    for (int token = (of->rows - 1) / tokens * tokens; token >= 0; token -= tokens)
        for (int head = 0; head < p->of.kv_heads; head++) {
            const int count = of->rows - token < tokens ? of->rows - token : tokens, start = of->start + token;
            block *b = &p->blocks[p->num_blocks++];
            *b = (block){number, head, token, count, first_visible(p->of.window, start) / CHUNK, (start + count - 1) / CHUNK + 1, -1};
            cost += chunk_cost(&p->of, b) * (b->end - b->first);
        }
    return cost;
}

static void add_units(plan *p, int number, int64_t fair) {
    block *b = &p->blocks[number];
    const int chunks = b->end - b->first;
    const int64_t parts = fair / chunk_cost(&p->of, b), bytes = chunks * partial_bytes(&p->of, b);
    int most = chunks;
    if (parts < chunks && chunks > 1 && p->partial_bytes + bytes <= MAX_PARTIALS) {
        most = parts > 1 ? (int)parts : 1;
        b->partials = p->partial_bytes;
        p->partial_bytes += bytes;
    }
    for (int c = b->first; c < b->end; c += most)
        p->units[p->num_units++] = (unit){number, c, c + most < b->end ? c + most : b->end};
}

/* `room` has plan_bytes(s), and is the plan's as long as it is used. */
static void make_plan(plan *p, const shape *s, void *room) {
    const int tokens = choose_tokens(s);
    int64_t cost = 0;
    *p = (plan){.of = *s, .blocks = room, .units = (unit *)((block *)room + count_blocks(s, tokens))};
    for (int i = 0; i < s->num_spans; i++) cost += add_blocks(p, i, tokens);
    const int64_t fair = cost / (UNITS_PER_THREAD * s->threads) + 1;
    for (int i = 0; i < p->num_blocks; i++) add_units(p, i, fair);
}
