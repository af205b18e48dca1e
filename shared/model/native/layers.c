/* Layers of a decoder for a step of few rows: `prfaas_layers` runs them in one parallel region, `prfaas_logits` ends the step.

   Every thread keeps its own copy of the hidden states: norms and residual sums are done by all of them, identically, which
   is cheaper than a barrier. What is divided between them are matrix rows and chunks of attention. */
#include <omp.h>
#include <stdlib.h>

#include "attention.h"
#include "matmul.h"
#include "team.h"

#define EXPORT __attribute__((visibility("default")))

/* These structures are mirrored in structures.py. */
typedef struct {
    matrix qkv, output, gate_up, down;
    const float *input_norm, *qk_norm, *attention_norm, *mlp_norm, *post_mlp_norm; /* all but two may be NULL */
    pages kv;
    int32_t window; /* 0: full attention */
    int32_t rope, group;
} layer;

typedef struct {
    const layer *layers;
    matrix head;
    const float *final_norm;
    const float *const *frequencies; /* [ropes][head_dim / 2] */
    int32_t hidden, heads, kv_heads, head_dim, inner, ropes;
    int32_t gelu; /* else SiLU */
    float eps, scale;
} model;

typedef struct {
    float *hidden;                  /* [rows][hidden], read and written */
    const int32_t *const *tables;   /* per page group: [spans][table_sizes[group]], page numbers */
    const int32_t *table_sizes;
    const int32_t *spans;           /* [rows], whose table a row uses */
    const int32_t *positions;       /* [rows] */
    const int32_t *stores;          /* [spans], 0: its rows' keys and values are in their pages already, which may be others' too */
    int32_t rows;
} step;

typedef struct {
    float *rotary; /* [ropes][rows][head_dim / 2] pairs of cosine and sine */
    float *qkv, *attended, *projected, *inner;
    char *partials;
    int64_t partial_stride;
    team team;
} scratch;

static void rms_norm(const float *x, const float *weight, int n, float eps, float *out) {
    vf squares = {};
    for (int i = 0; i < n; i += LANES) squares += load_f32(x + i) * load_f32(x + i);
    float factor = 1.0f / sqrtf(sum(squares) / n + eps);
    for (int i = 0; i < n; i += LANES) store_f32(out + i, load_f32(x + i) * factor * load_f32(weight + i));
}

static void add(float *x, const float *y, int n) {
    for (int i = 0; i < n; i++) x[i] += y[i];
}

static void rotate(float *x, const float *rotary, int half) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[half + i], c = rotary[2 * i], s = rotary[2 * i + 1];
        x[i] = a * c - b * s;
        x[half + i] = b * c + a * s;
    }
}

static int first_visible(const layer *l, int position) {
    return l->window && position >= l->window ? position - l->window + 1 : 0;
}

static const int32_t *table_of(const step *s, const layer *l, int row) {
    return s->tables[l->group] + (int64_t)s->spans[row] * s->table_sizes[l->group];
}

static int num_chunks(const layer *l, int position) { return position / CHUNK - first_visible(l, position) / CHUNK + 1; }

/* Norm and rotate one head of one row in place; write it to its page if it is a key or a value. */
static void finish_head(const model *m, const layer *l, const step *s, const scratch *t, int row, int head) {
    const int dim = m->head_dim, num_rotated = m->heads + m->kv_heads;
    if (head >= m->heads && !s->stores[s->spans[row]]) return;
    float *x = t->qkv + ((int64_t)row * (num_rotated + m->kv_heads) + head) * dim;
    if (head < num_rotated) {
        if (l->qk_norm) rms_norm(x, l->qk_norm + (int64_t)head * dim, dim, m->eps, x);
        rotate(x, t->rotary + ((int64_t)l->rope * s->rows + row) * dim, dim / 2);
    }
    if (head < m->heads) return;
    const int32_t *table = table_of(s, l, row);
    char *to = head < num_rotated ? l->kv.keys : l->kv.values;
    int64_t at = element(&l->kv, table, s->positions[row], (head - m->heads) % m->kv_heads);
    for (int d = 0; d < dim; d += LANES) store(l->kv.kind, to, at + d, load_f32(x + d));
}

/* The part of all (row, KV head, chunk) units that is this thread's. */
static void attend_units(const model *m, const layer *l, const step *s, const scratch *t, int part, int parts) {
    const int group = m->heads / m->kv_heads;
    int total = 0, unit = 0;
    for (int row = 0; row < s->rows; row++) total += num_chunks(l, s->positions[row]) * m->kv_heads;
    const int mine = share(total, part, parts), end = share(total, part + 1, parts);
    for (int row = 0; row < s->rows && unit < end; row++) {
        const int position = s->positions[row], visible = first_visible(l, position), chunks = num_chunks(l, position);
        if (unit + chunks * m->kv_heads <= mine) { unit += chunks * m->kv_heads; continue; }
        const int32_t *table = table_of(s, l, row);
        const float *queries = t->qkv + (int64_t)row * (m->heads + 2 * m->kv_heads) * m->head_dim;
        for (int head = 0; head < m->kv_heads; head++)
            for (int c = visible / CHUNK; c <= position / CHUNK; c++, unit++) {
                if (unit < mine || unit >= end) continue;
                int first = c * CHUNK > visible ? c * CHUNK : visible;
                int stop = (c + 1) * CHUNK <= position ? (c + 1) * CHUNK : position + 1;
                attend(group, &l->kv, table, head, queries + (int64_t)head * group * m->head_dim, m->scale, first, stop,
                       (partial *)(t->partials + unit * t->partial_stride));
            }
    }
}

/* Merge the chunks of this thread's (row, KV head) pairs into `attended`. */
static void merge_units(const model *m, const layer *l, const step *s, const scratch *t, int part, int parts) {
    const int group = m->heads / m->kv_heads, pairs = s->rows * m->kv_heads;
    const int mine = share(pairs, part, parts), end = share(pairs, part + 1, parts);
    int64_t unit = 0;
    for (int pair = 0; pair < end; pair++) {
        const int row = pair / m->kv_heads, chunks = num_chunks(l, s->positions[row]);
        if (pair >= mine)
            merge(group, m->head_dim, t->partials + unit * t->partial_stride, chunks, t->partial_stride,
                  t->attended + (int64_t)pair * group * m->head_dim);
        unit += chunks;
    }
}

/* This thread's part of the MLP's first half: activation(gate) * up. */
static void gate_units(const model *m, const layer *l, const float *x, int rows, const scratch *t, int first, int end) {
    const int inner = m->inner;
    matmul(&l->gate_up, first, end, x, rows, t->inner, 2 * inner);
    matmul(&l->gate_up, inner + first, inner + end, x, rows, t->inner, 2 * inner);
    for (int row = 0; row < rows; row++) {
        float *gate = t->inner + (int64_t)row * 2 * inner;
        const float *up = gate + inner;
        for (int i = first; i < end; i += LANES) {
            vf g = load_f32(gate + i);
            store_f32(gate + i, (m->gelu ? gelu_tanh(g) : silu(g)) * load_f32(up + i));
        }
    }
}

/* The rows [2 * inner wide] that `down` reads must be dense: copy the activated halves together. */
static void gather_inner(const scratch *t, int rows, int inner, float *out) {
    for (int row = 0; row < rows; row++) memcpy(out + (int64_t)row * inner, t->inner + (int64_t)row * 2 * inner, inner * sizeof(float));
}

static void add_output(const model *m, const float *norm, const scratch *t, int rows, float *hidden, float *normed) {
    for (int row = 0; row < rows; row++) {
        const float *x = t->projected + (int64_t)row * m->hidden;
        if (norm) { rms_norm(x, norm, m->hidden, m->eps, normed); x = normed; }
        add(hidden + (int64_t)row * m->hidden, x, m->hidden);
    }
}

static void norm_rows(const model *m, const float *weight, const float *hidden, int rows, float *normed) {
    for (int row = 0; row < rows; row++)
        rms_norm(hidden + (int64_t)row * m->hidden, weight, m->hidden, m->eps, normed + (int64_t)row * m->hidden);
}

static void run_layer(const model *m, const layer *l, const step *s, scratch *t, int part, int parts, float *hidden, float *local) {
    const int rows = s->rows, heads = m->heads + 2 * m->kv_heads, width = heads * m->head_dim;
#define MINE(count) share((count) / LANES, part, parts) * LANES, share((count) / LANES, part + 1, parts) * LANES
    norm_rows(m, l->input_norm, hidden, rows, local);
    matmul(&l->qkv, MINE(width), local, rows, t->qkv, width);
    wait_for_all(&t->team);
    for (int unit = share(rows * heads, part, parts); unit < share(rows * heads, part + 1, parts); unit++)
        finish_head(m, l, s, t, unit / heads, unit % heads);
    wait_for_all(&t->team);
    attend_units(m, l, s, t, part, parts);
    wait_for_all(&t->team);
    merge_units(m, l, s, t, part, parts);
    wait_for_all(&t->team);
    matmul(&l->output, MINE(m->hidden), t->attended, rows, t->projected, m->hidden);
    wait_for_all(&t->team);
    add_output(m, l->attention_norm, t, rows, hidden, local);
    norm_rows(m, l->mlp_norm, hidden, rows, local);
    gate_units(m, l, local, rows, t, MINE(m->inner));
    wait_for_all(&t->team);
    gather_inner(t, rows, m->inner, local);
    matmul(&l->down, MINE(m->hidden), local, rows, t->projected, m->hidden);
    wait_for_all(&t->team);
    add_output(m, l->post_mlp_norm, t, rows, hidden, local);
}

static void fill_rotary(const model *m, const step *s, float *rotary) {
    const int half = m->head_dim / 2;
    for (int rope = 0; rope < m->ropes; rope++)
        for (int row = 0; row < s->rows; row++)
            for (int i = 0; i < half; i++, rotary += 2) {
                float angle = (float)s->positions[row] * m->frequencies[rope][i];
                rotary[0] = cosf(angle);
                rotary[1] = sinf(angle);
            }
}

static int64_t most_units(const model *m, const step *s, int first, int last) {
    int64_t most = 0;
    for (int i = first; i < last; i++) {
        int64_t units = 0;
        for (int row = 0; row < s->rows; row++) units += num_chunks(&m->layers[i], s->positions[row]) * m->kv_heads;
        most = units > most ? units : most;
    }
    return most;
}

static float *take(char **room, int64_t floats) {
    float *taken = (float *)*room;
    *room += (floats * sizeof(float) + 63) / 64 * 64;
    return taken;
}

/* Run layers [first, last) over the step's rows. K and V of all of them are in the pages before any is attended to, so several
   rows may belong to one sequence. Returns 0, or -1 when memory is short. */
EXPORT int prfaas_layers(const model *m, const step *s, int first, int last, int num_threads) {
    const int64_t rows = s->rows, width = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim;
    const int64_t local = (m->hidden > m->inner ? m->hidden : m->inner) * rows;
    scratch t = {.partial_stride = partial_bytes(m->heads / m->kv_heads, m->head_dim)};
    const int64_t shared_floats = m->ropes * rows * m->head_dim + rows * (width + m->heads * m->head_dim + m->hidden + 2 * m->inner);
    const int64_t own_floats = local + rows * m->hidden;
    const int64_t bytes = (shared_floats + num_threads * own_floats) * sizeof(float) + (8 + 2 * num_threads) * 64 +
                          most_units(m, s, first, last) * t.partial_stride;
    char *base = aligned_alloc(64, (bytes + 63) / 64 * 64), *room = base;
    if (!base) return -1;
    t.rotary = take(&room, m->ropes * rows * m->head_dim);
    t.qkv = take(&room, rows * width);
    t.attended = take(&room, rows * m->heads * m->head_dim);
    t.projected = take(&room, rows * m->hidden);
    t.inner = take(&room, rows * 2 * m->inner);
    char *own = room;
    const int64_t own_stride = ((own_floats * sizeof(float)) + 127) / 64 * 64;
    t.partials = own + num_threads * own_stride;
    fill_rotary(m, s, t.rotary);
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp single
        t.team.size = omp_get_num_threads();
        const int part = omp_get_thread_num();
        float *hidden = (float *)(own + part * own_stride), *normed = hidden + rows * m->hidden;
        memcpy(hidden, s->hidden, rows * m->hidden * sizeof(float));
        for (int i = first; i < last; i++) run_layer(m, &m->layers[i], s, &t, part, t.team.size, hidden, normed);
        if (part == 0) memcpy(s->hidden, hidden, rows * m->hidden * sizeof(float));
    }
    free(base);
    return 0;
}

/* out[rows][vocabulary] = head(norm(hidden)). Changes `hidden`. */
EXPORT void prfaas_logits(const model *m, float *hidden, int rows, float *out, int num_threads) {
    norm_rows(m, m->final_norm, hidden, rows, hidden);
#pragma omp parallel num_threads(num_threads)
    {
        const int part = omp_get_thread_num(), parts = omp_get_num_threads(), vocabulary = m->head.rows;
        matmul(&m->head, share(vocabulary, part, parts), share(vocabulary, part + 1, parts), hidden, rows, out, vocabulary);
    }
}
