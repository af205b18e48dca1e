/* One layer's pages of K and V. */
#pragma once
#include "vectors.h"

#define MAX_HEAD 512 /* head_dim */

/* K or V of one layer: [num_pages][page_tokens][kv_heads][head_dim]. */
typedef struct {
    char *keys, *values;
    int32_t kind, page_tokens, kv_heads, head_dim;
} pages;

/* Rows [row, row + rows) of a step are positions [start, start + rows) of one sequence. */
typedef struct {
    int32_t row, start, rows;
    int32_t stores; /* 0: their keys and values are in the pages already, which may be others' too */
} span;

INLINE int64_t element(const pages *kv, const int32_t *table, int position, int kv_head) {
    int64_t slot = (int64_t)table[position / kv->page_tokens] * kv->page_tokens + position % kv->page_tokens;
    return (slot * kv->kv_heads + kv_head) * kv->head_dim;
}
