/* Layers of a decoder for a step of any number of rows, `prfaas_layers`, and its end, `prfaas_logits`: one parallel region each.

   Threads share matrix products by tiles of their results, attention by chunks, all else by rows. In steps of few rows each thread
   keeps its own copy of the hidden states: all of them do norms and residual sums, identically, which is cheaper than a barrier. */
#include <omp.h>

#include "attention.h"
#include "matmul.h"

#define EXPORT __attribute__((visibility("default")))
#define COPIED_ROWS 8

/* These structures are mirrored in structures.py. */
typedef struct {
    matrix qkv, output, gate_up, down;
    const float *input_norm, *qk_norm, *attention_norm, *mlp_norm, *post_mlp_norm; /* all but two may be NULL */
    pages kv;
    int32_t window; /* which of the model's */
    int32_t rope, group;
} layer;

typedef struct {
    const layer *layers;
    matrix head;
    const float *final_norm;
    const float *const *frequencies; /* [ropes][head_dim / 2] */
    const int32_t *windows;          /* of attention, each once; 0: full */
    int32_t num_layers, hidden, heads, kv_heads, head_dim, inner, ropes, num_windows;
    int32_t kind; /* of the model's numbers */
    int32_t gelu; /* else SiLU */
    float eps, scale;
} model;

typedef struct {
    const int32_t *const *tables; /* per page group: [num_spans][table_sizes[group]], page numbers; -1 where no row looks */
    const int32_t *table_sizes;
    const span *spans;
    float *rotary; /* [ropes][rows][2][head_dim / 2], cosines and sines; this and the plans are made by `prfaas_prepare` */
    plan *plans;   /* of attention, [num_windows] */
    int32_t rows, num_spans;
} step;

/* What threads work in; `own` is the first one's. */
typedef struct {
    float *qkv, *projected;
    char *attended, *inner, *normed, *partials, *own;
    int64_t room_at, own_bytes;
    int32_t kind; /* of activations */
    team team;
} scratch;

/* A thread, its hidden states and what it norms of them. */
typedef struct {
    float *hidden;
    char *normed, *room;
    int32_t first, end; /* the rows that it norms */
    int32_t part, parts;
} worker;

static int activation_kind(const model *m) { return BF16_PRODUCTS && m->kind == KIND_BF16 ? KIND_BF16 : KIND_F32; }

static float norm_factor(const float *x, int n, float eps) {
    vf squares = {};
    for (int i = 0; i < n; i += LANES) squares = multiply_add(load_f32(x + i), load_f32(x + i), squares);
    return 1.0f / sqrtf(sum(squares) / n + eps);
}

static void rms_norm(int kind, const float *x, const float *weight, int n, float eps, void *out, int64_t at) {
    const float factor = norm_factor(x, n, eps);
    for (int i = 0; i < n; i += LANES) {
        vf v = load_f32(x + i) * factor * load_f32(weight + i);
        if (kind == KIND_F32) store(KIND_F32, out, at + i, v);
        else store(KIND_BF16, out, at + i, v);
    }
}

/* hidden += delta, normed first if there is a norm for it, then out = norm(hidden), each if it is there; for rows of hidden states. */
static void add_and_norm(const model *m, int kind, const worker *w, const float *delta, const float *delta_norm, const float *norm) {
    const int n = m->hidden;
    for (int64_t row = w->first; row < w->end; row++) {
        float *x = w->hidden + row * n;
        if (delta) {
            const float *d = delta + row * n, factor = delta_norm ? norm_factor(d, n, m->eps) : 1.0f;
            for (int i = 0; i < n; i += LANES) {
                vf v = load_f32(d + i);
                if (delta_norm) v = v * factor * load_f32(delta_norm + i);
                store_f32(x + i, load_f32(x + i) + v);
            }
        }
        if (norm) rms_norm(kind, x, norm, n, m->eps, w->normed, row * n);
    }
}

static void rotate(float *restrict x, const float *restrict cosines, int half) {
    const float *sines = cosines + half;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = a * cosines[i] - b * sines[i];
        x[half + i] = b * cosines[i] + a * sines[i];
    }
}

static const int32_t *table_of(const step *s, const layer *l, const span *p) {
    return s->tables[l->group] + (p - s->spans) * s->table_sizes[l->group];
}

/* Norm and rotate one head of one row in place; write it to its page if it is a key or a value. */
static void finish_head(const model *m, const layer *l, const step *s, const scratch *t, const span *p, int row, int head) {
    const int dim = m->head_dim, num_rotated = m->heads + m->kv_heads;
    if (head >= m->heads && !p->stores) return;
    float *x = t->qkv + ((int64_t)row * (num_rotated + m->kv_heads) + head) * dim;
    if (head < num_rotated) {
        if (l->qk_norm) rms_norm(KIND_F32, x, l->qk_norm + (int64_t)head * dim, dim, m->eps, x, 0);
        rotate(x, s->rotary + ((int64_t)l->rope * s->rows + row) * dim, dim / 2);
    }
    if (head < m->heads) return;
    char *to = head < num_rotated ? l->kv.keys : l->kv.values;
    int64_t at = element(&l->kv, table_of(s, l, p), p->start + row - p->row, (head - m->heads) % m->kv_heads);
    for (int d = 0; d < dim; d += LANES) store(l->kv.kind, to, at + d, load_f32(x + d));
}

static void finish_heads(const model *m, const layer *l, const step *s, const scratch *t, const worker *w, int first_head) {
    const int heads = m->heads + 2 * m->kv_heads - first_head;
    const int64_t end = (int64_t)s->rows * heads * (w->part + 1) / w->parts;
    const span *p = s->spans;
    for (int64_t unit = (int64_t)s->rows * heads * w->part / w->parts; unit < end; unit++) {
        const int row = unit / heads;
        while (row >= p->row + p->rows) p++;
        finish_head(m, l, s, t, p, row, first_head + unit % heads);
    }
}

static void run_layer(const model *m, const layer *l, const step *s, scratch *t, const worker *w, const float *next_norm, int kv_only) {
    const int heads = m->heads + 2 * m->kv_heads, first_head = kv_only ? m->heads : 0, first = first_head * m->head_dim;
    const int is_split = w->normed == t->normed;
    const activations normed = {w->normed, t->kind, s->rows}, attended = {t->attended, t->kind, s->rows}, inner = {t->inner, t->kind, s->rows};
    const result qkv = {t->qkv + first, heads * m->head_dim, NO_GATE}, projected = {t->projected, m->hidden, NO_GATE};
    const result gated = {t->inner, m->inner, m->gelu ? GELU : SILU};
    plan *p = &s->plans[l->window];
    const attention at = {
        .kv = &l->kv, .tables = s->tables[l->group], .table_size = s->table_sizes[l->group], .scale = m->scale,
        .q = t->qkv, .q_kind = KIND_F32, .q_stride = heads * m->head_dim,
        .out = t->attended, .out_kind = t->kind, .out_stride = m->heads * m->head_dim,
    };
    const matrix from = rows_from(&l->qkv, first);
    multiply(&from, &normed, &qkv, w->room, w->part, w->parts);
    wait_for_all(&t->team, w->parts);
    finish_heads(m, l, s, t, w, first_head);
    if (kv_only) return;
    wait_for_all(&t->team, w->parts);
    attend(&at, p, t->partials, w->room);
    wait_for_all(&t->team, w->parts);
    if (w->part == 0) p->next = 0; /* for the next layer, which is behind other barriers */
    if (p->partial_bytes) {
        merge(&at, p, t->partials, w->room, w->part, w->parts);
        wait_for_all(&t->team, w->parts);
    }
    multiply(&l->output, &attended, &projected, w->room, w->part, w->parts);
    wait_for_all(&t->team, w->parts);
    add_and_norm(m, t->kind, w, t->projected, l->attention_norm, l->mlp_norm);
    if (is_split) wait_for_all(&t->team, w->parts);
    multiply(&l->gate_up, &normed, &gated, w->room, w->part, w->parts);
    wait_for_all(&t->team, w->parts);
    multiply(&l->down, &inner, &projected, w->room, w->part, w->parts);
    wait_for_all(&t->team, w->parts);
    add_and_norm(m, t->kind, w, t->projected, l->post_mlp_norm, next_norm);
    if (is_split) wait_for_all(&t->team, w->parts);
}

static int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static char *take(char **room, int64_t bytes) {
    char *taken = *room;
    *room += padded(bytes);
    return taken;
}

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t most_room(const model *m, int kind) {
    int64_t most = room_bytes(&m->head, kind);
    for (const layer *l = m->layers; l < m->layers + m->num_layers; l++)
        most = largest(most, largest(largest(room_bytes(&l->qkv, kind), room_bytes(&l->output, kind)),
                                     largest(room_bytes(&l->gate_up, kind), room_bytes(&l->down, kind))));
    return most;
}

static shape shape_of(const model *m, const step *s, int window, int threads) {
    return (shape){s->spans, s->num_spans, m->heads, m->kv_heads, m->head_dim, m->windows[window], threads};
}

/* Lay the scratch out from `base` on, which may be NULL. Return its size. */
static int64_t lay_out(const model *m, const step *s, int threads, char *base, scratch *t) {
    const int64_t rows = s->rows, heads = m->heads;
    const int size = bytes_of(t->kind), is_copied = rows <= COPIED_ROWS;
    const shape any = shape_of(m, s, 0, threads);
    char *room = base;
    int64_t partials = 0;
    for (int i = 0; i < m->num_windows; i++) partials = largest(partials, s->plans[i].partial_bytes);
    t->qkv = (float *)take(&room, rows * (heads + 2 * m->kv_heads) * m->head_dim * sizeof(float));
    t->projected = (float *)take(&room, rows * m->hidden * sizeof(float));
    t->attended = take(&room, rows * heads * m->head_dim * size);
    t->inner = take(&room, rows * m->inner * size);
    t->normed = take(&room, is_copied ? 0 : rows * m->hidden * size);
    t->partials = take(&room, partials);
    t->own = room;
    t->room_at = is_copied ? padded(rows * m->hidden * sizeof(float)) + padded(rows * m->hidden * size) : 0;
    t->own_bytes = t->room_at + padded(largest(most_room(m, t->kind), workspace_bytes(&any)));
    return room - base + threads * t->own_bytes;
}

static worker worker_of(const model *m, const step *s, const scratch *t, float *hidden, int part, int parts) {
    const int rows = s->rows;
    char *own = t->own + part * t->own_bytes;
    worker w = {hidden, t->normed, own + t->room_at, share(rows, part, parts), share(rows, part + 1, parts), part, parts};
    if (rows > COPIED_ROWS) return w;
    w.hidden = (float *)own;
    w.normed = own + padded((int64_t)rows * m->hidden * sizeof(float));
    w.first = 0;
    w.end = rows;
    memcpy(w.hidden, hidden, (int64_t)rows * m->hidden * sizeof(float));
    return w;
}

/* Bytes that `prfaas_layers` works in. */
EXPORT int64_t prfaas_scratch_bytes(const model *m, const step *s, int num_threads) {
    scratch t = {.kind = activation_kind(m)};
    return lay_out(m, s, num_threads, 0, &t);
}

/* Run layers [first, last) over the step's rows; hidden[rows][hidden] is read and written. K and V of all rows are in the pages
   before any is attended to, so several rows may belong to one sequence. `kv_only`: nothing but the last layer's K and V is wanted.
   `room` is of `prfaas_scratch_bytes`, at a multiple of 64. */
EXPORT void prfaas_layers(const model *m, const step *s, float *hidden, int first, int last, int kv_only, char *room, int num_threads) {
    scratch t = {.kind = activation_kind(m)};
    lay_out(m, s, num_threads, room, &t);
#pragma omp parallel num_threads(num_threads)
    {
        const int part = omp_get_thread_num();
        const worker w = worker_of(m, s, &t, hidden, part, omp_get_num_threads());
        add_and_norm(m, t.kind, &w, 0, 0, m->layers[first].input_norm);
        if (s->rows > COPIED_ROWS) wait_for_all(&t.team, w.parts);
        for (int i = first; i < last; i++)
            run_layer(m, &m->layers[i], s, &t, &w, i + 1 < last ? m->layers[i + 1].input_norm : 0, kv_only && i + 1 == last);
        if (s->rows <= COPIED_ROWS && part == 0) memcpy(hidden, w.hidden, (int64_t)s->rows * m->hidden * sizeof(float));
    }
}

/* Bytes for `prfaas_prepare`. */
EXPORT int64_t prfaas_prepared_bytes(const model *m, const step *s, int num_threads) {
    int64_t bytes = padded((int64_t)m->ropes * s->rows * m->head_dim * sizeof(float)) + padded(m->num_windows * sizeof(plan));
    for (int i = 0; i < m->num_windows; i++) {
        const shape of = shape_of(m, s, i, num_threads);
        bytes += plan_bytes(&of);
    }
    return bytes;
}

/* Make in `room`, which is the step's from now on, what does not depend on the layer. */
EXPORT void prfaas_prepare(const model *m, step *s, char *room, int num_threads) {
    const int half = m->head_dim / 2;
    s->rotary = (float *)take(&room, (int64_t)m->ropes * s->rows * m->head_dim * sizeof(float));
    s->plans = (plan *)take(&room, m->num_windows * sizeof(plan));
    for (int i = 0; i < m->num_windows; i++) {
        const shape of = shape_of(m, s, i, num_threads);
        make_plan(&s->plans[i], &of, take(&room, plan_bytes(&of)));
    }
#pragma omp parallel for schedule(static) num_threads(num_threads) if (s->rows > COPIED_ROWS)
    for (int row = 0; row < s->rows; row++) {
        const span *p = s->spans;
        while (row >= p->row + p->rows) p++;
        for (int rope = 0; rope < m->ropes; rope++) {
            float *cosines = s->rotary + ((int64_t)rope * s->rows + row) * m->head_dim;
            for (int i = 0; i < half; i++) {
                const float angle = (float)(p->start + row - p->row) * m->frequencies[rope][i];
                cosines[i] = cosf(angle);
                cosines[half + i] = sinf(angle);
            }
        }
    }
}

/* Bytes that `prfaas_logits` works in. */
EXPORT int64_t prfaas_logits_bytes(const model *m, int rows, int num_threads) {
    const int kind = activation_kind(m);
    return padded((int64_t)rows * m->hidden * bytes_of(kind)) + num_threads * padded(room_bytes(&m->head, kind));
}

/* out[rows][vocabulary] = head(norm(hidden)). `room` is of `prfaas_logits_bytes`. */
EXPORT void prfaas_logits(const model *m, const float *hidden, int rows, float *out, char *room, int num_threads) {
    const int kind = activation_kind(m);
    const activations normed = {take(&room, (int64_t)rows * m->hidden * bytes_of(kind)), kind, rows};
    const result logits = {out, m->head.rows, NO_GATE};
    for (int64_t row = 0; row < rows; row++)
        rms_norm(kind, hidden + row * m->hidden, m->final_norm, m->hidden, m->eps, (void *)normed.data, row * m->hidden);
#pragma omp parallel num_threads(num_threads)
    {
        const int part = omp_get_thread_num();
        multiply(&m->head, &normed, &logits, room + part * padded(room_bytes(&m->head, kind)), part, omp_get_num_threads());
    }
}
