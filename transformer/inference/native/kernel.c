/* Forward pass of a decoder-only Transformer over new tokens, compiled once for each instruction set.

   The whole pass is one parallel region, whose threads share the iterations of each loop (threads.h): decoding a token
   then costs little more than reading the weights. Every right-hand matrix is stored in blocks of 16 columns, one
   vector wide:

       element (k, n) is at   block[n / 16] + k * stride + n % 16

   These are the weights, the keys in the cache (k: dimension of the head, n: position) and the values (k: position,
   n: dimension of the head). `gemm_tile` multiplies all of them, `gemm_tile_int8` those in 8 bits.

       model.h    structures of the model                            matmul.h     linear layers, matrix products
       vectors.h  vectors of 16 columns, one header for each         rows.h       norms, quantization, activations
                  instruction set                                    attention.h  attention and the cache
       threads.h  parallel loops                                     kernel.c     the forward pass

   transformer/model explains the architecture. packed_model.py fills the structures. */

#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "threads.h"

static const Norm no_norm = {0};

static int64_t chunk_rows(const Model *m) {
    int64_t group = m->n_heads / m->n_kv_heads;
    return group < MAX_TILE_ROWS ? MAX_TILE_ROWS / group : 1;
}

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

typedef struct {
    const Model *m;
    const Cache *cache;
    const int64_t *tokens, *sequences, *positions;
    float *logits;
    int64_t count, n_chunks;
    int64_t *chunks; /* (n_chunks + 1): the first row of each chunk of rows that attention computes together */
    int independent; /* each sequence has one chunk, so no chunk reads the keys that another one appends */
    float *x, *qkv, *attended, *hidden; /* (count, width), the widths below */
    float *sublayer_output; /* (count, width), if it is normalized before it is added to x; or NULL */
    int64_t width, qkv_width, attended_width, hidden_width; /* rounded up to whole blocks */
    Rows rows; /* more than FEW_ROWS: prepared by all threads together */
    char *scratch; /* (threads, scratch_size) */
    int64_t scratch_size;
    Share *shares;
} Pass;

typedef struct { /* a thread and its scratch memory */
    Thread *thread;
    Rows rows; /* up to FEW_ROWS: each thread prepares them for itself */
    float *up; /* (count, 2 * COLUMNS_PER_CLAIM): outputs of the feed-forward layer before the activation */
    float *attention;
} Worker;

#define FEW_ROWS 4

/* Bump allocation: the next `bytes`, aligned to 64. Starting from 0 it only counts what is needed. */
static void *allocate(uintptr_t *from, int64_t bytes) {
    void *at = (void *)*from;
    *from += (bytes + 63) / 64 * 64;
    return at;
}

static Rows allocate_rows(const Pass *pass, uintptr_t *from) {
    Rows rows = {.count = pass->count, .stride = pass->width};
    rows.bytes_stride = max(pass->width, max(pass->attended_width, pass->hidden_width));
    rows.x = allocate(from, rows.count * rows.stride * sizeof(float));
    rows.bytes = allocate(from, rows.count * rows.bytes_stride);
    rows.minimum = allocate(from, rows.count * sizeof(float));
    rows.scale = allocate(from, rows.count * sizeof(float));
    return rows;
}

/* Returns the end of the memory, as `allocate_buffers` does. */
static uintptr_t allocate_scratch(const Pass *pass, Worker *w, uintptr_t from) {
    const Model *m = pass->m;
    int64_t queries = chunk_rows(m) * (m->n_heads / m->n_kv_heads);
    int64_t each = m->head_dim + pass->cache->capacity + round_up(m->head_dim);
    if (pass->count <= FEW_ROWS) w->rows = allocate_rows(pass, &from);
    w->up = allocate(&from, pass->count * 2 * COLUMNS_PER_CLAIM * sizeof(float));
    w->attention = allocate(&from, queries * each * sizeof(float));
    return from;
}

/* Whether the outputs of sub-layers are normalized before they are added to the residual stream (OLMo 2, Gemma 3). */
static int normalizes_outputs(const Model *m) {
    return m->layers[0].attention_output_norm.kind != NO_NORM && !m->normalize_sums;
}

static uintptr_t allocate_buffers(Pass *pass, uintptr_t from, int threads) {
    const Model *m = pass->m;
    pass->width = round_up(m->d_model);
    pass->qkv_width = round_up((m->n_heads + 2 * m->n_kv_heads) * m->head_dim);
    pass->attended_width = round_up(m->n_heads * m->head_dim);
    pass->hidden_width = round_up(m->d_feed_forward);
    pass->x = allocate(&from, pass->count * pass->width * sizeof(float));
    pass->qkv = allocate(&from, pass->count * pass->qkv_width * sizeof(float));
    pass->attended = allocate(&from, pass->count * pass->attended_width * sizeof(float));
    pass->hidden = allocate(&from, pass->count * pass->hidden_width * sizeof(float));
    if (normalizes_outputs(m)) pass->sublayer_output = allocate(&from, pass->count * pass->width * sizeof(float));
    pass->shares = allocate(&from, threads * sizeof(Share));
    pass->chunks = allocate(&from, (pass->count + 1) * sizeof(int64_t));
    if (pass->count > FEW_ROWS) pass->rows = allocate_rows(pass, &from);
    Worker none;
    pass->scratch_size = allocate_scratch(pass, &none, 0);
    pass->scratch = allocate(&from, threads * pass->scratch_size);
    return from;
}

/* Chunks of consecutive rows of one sequence, few enough for a tile, that attention computes together. */
static void split_into_chunks(Pass *pass) {
    int64_t limit = chunk_rows(pass->m);
    pass->n_chunks = 0;
    pass->independent = 1;
    for (int64_t r = 0, end; r < pass->count; r = end) {
        end = r + 1;
        while (end < pass->count && end - r < limit && pass->sequences[end] == pass->sequences[r]) end++;
        if (r && pass->sequences[r - 1] == pass->sequences[r]) pass->independent = 0;
        pass->chunks[pass->n_chunks++] = r;
    }
    pass->chunks[pass->n_chunks] = pass->count;
}

#define PARALLEL_FOR(i, n) for (int64_t i; (i = claim(w->thread, n)) >= 0;)

static void prepare_row(const Norm *norm, const float *x, const Linear *next, Rows *rows, int64_t r, int64_t n) {
    if (norm->kind != NO_NORM) normalize(norm, x, rows->x + r * rows->stride, n);
    if (next->dtype == INT8) quantize_row(rows, r, n);
}

/* to.out (count, outputs) = linear(norm(x)) [+ to.added], for rows x (count, n).

   With `feed_forward`, p is the `up` layer of a feed-forward layer and the activation is applied to its outputs. */
static void linear(const Pass *pass, Worker *w, const Norm *norm, const float *x, int64_t x_stride, int64_t n,
                   const Linear *p, Target to, int feed_forward) {
    const Model *m = pass->m;
    int64_t count = pass->count, gated = feed_forward && is_gated(m->activation);
    int64_t columns = round_up(p->outputs) / (gated ? 2 : 1);
    int prepared = count > FEW_ROWS;
    Rows rows = prepared ? pass->rows : w->rows;
    if (norm->kind == NO_NORM) {
        rows.x = (float *)x; /* it is only read */
        rows.stride = x_stride;
    }
    if (prepared) {
        PARALLEL_FOR(r, count) prepare_row(norm, x + r * x_stride, p, &rows, r, n);
        complete(w->thread, count);
    }
    int64_t n_claims = (columns + COLUMNS_PER_CLAIM - 1) / COLUMNS_PER_CLAIM;
    PARALLEL_FOR(i, n_claims) {
        if (!prepared) /* after the claim: x does not change until the loop is complete */
            for (int64_t r = 0; r < count; r++) prepare_row(norm, x + r * x_stride, p, &rows, r, n);
        prepared = 1;
        int64_t column = i * COLUMNS_PER_CLAIM, rest = columns - column;
        int64_t width = rest < COLUMNS_PER_CLAIM ? rest : COLUMNS_PER_CLAIM;
        if (!feed_forward) {
            linear_columns(p, &rows, column, width, to, column);
            continue;
        }
        Target raw = {.out = w->up, .stride = 2 * COLUMNS_PER_CLAIM};
        linear_columns(p, &rows, column, width, raw, 0);
        if (gated) linear_columns(p, &rows, columns + column, width, raw, COLUMNS_PER_CLAIM);
        for (int64_t r = 0; r < count; r++) {
            float *from = w->up + r * 2 * COLUMNS_PER_CLAIM;
            activate(m->activation, from, from + COLUMNS_PER_CLAIM, to.out + r * to.stride + column, width);
        }
    }
    complete(w->thread, n_claims);
}

/* x += linear(rows), with the output norm, if any, before or after the addition: see Model.normalize_sums. */
static void add_linear(const Pass *pass, Worker *w, const float *rows, int64_t stride, int64_t n, const Linear *p,
                       const Norm *norm) {
    int64_t width = pass->m->d_model;
    Target sum = {.out = pass->x, .added = pass->x, .stride = pass->width};
    Target output = {.out = pass->sublayer_output, .stride = pass->width};
    linear(pass, w, &no_norm, rows, stride, n, p, pass->sublayer_output ? output : sum, 0);
    if (norm->kind == NO_NORM) return;
    PARALLEL_FOR(r, pass->count) {
        float *x = pass->x + r * pass->width;
        if (!pass->sublayer_output) {
            normalize(norm, x, x, width);
            continue;
        }
        float *y = pass->sublayer_output + r * pass->width;
        normalize(norm, y, y, width);
        for (int64_t i = 0; i < width; i++) x[i] += y[i];
    }
    complete(w->thread, pass->count);
}

static float embedding_value(const Model *m, int64_t index) {
    if (m->embedding_dtype == FP32) return ((const float *)m->embedding)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)m->embedding)[index] << 16; /* bf16 is the upper half of fp32 */
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void embed(const Pass *pass, Worker *w) {
    const Model *m = pass->m;
    PARALLEL_FOR(r, pass->count) {
        int64_t token = pass->tokens[r], position = pass->positions[r];
        int64_t from = token * m->d_model;
        const float *added = m->position_embedding ? m->position_embedding + position * m->d_model : NULL;
        float *x = pass->x + r * pass->width;
        for (int64_t i = 0; i < m->d_model; i++) {
            x[i] = embedding_value(m, from + i) * (float)m->embedding_scale + (added ? added[i] : 0);
        }
    }
    complete(w->thread, pass->count);
}

/* QK-norm over all heads of a token together (OLMo 2). */
static void normalize_heads(const Pass *pass, Worker *w, const Layer *l) {
    int64_t queries = pass->m->n_heads * pass->m->head_dim, keys = pass->m->n_kv_heads * pass->m->head_dim;
    PARALLEL_FOR(r, pass->count) {
        float *row = pass->qkv + r * pass->qkv_width;
        normalize(&l->joint_query_norm, row, row, queries);
        normalize(&l->joint_key_norm, row + queries, row + queries, keys);
    }
    complete(w->thread, pass->count);
}

static void attention(const Pass *pass, Worker *w, int64_t layer) {
    const Model *m = pass->m;
    const Layer *l = m->layers + layer;
    int64_t heads = m->n_kv_heads, stride = pass->qkv_width;
    if (!pass->independent) {
        PARALLEL_FOR(i, pass->count * heads) {
            int64_t r = i / heads;
            append(m, l, pass->cache, layer, pass->sequences[r], pass->positions[r], i % heads, pass->qkv + r * stride,
                   w->attention);
        }
        complete(w->thread, pass->count * heads);
    }
    PARALLEL_FOR(i, pass->n_chunks * heads) {
        int64_t first = pass->chunks[i / heads], end = pass->chunks[i / heads + 1], sequence = pass->sequences[first];
        const float *qkv = pass->qkv + first * stride;
        for (int64_t r = first; pass->independent && r < end; r++)
            append(m, l, pass->cache, layer, sequence, pass->positions[r], i % heads, pass->qkv + r * stride,
                   w->attention);
        attend(m, l, pass->cache, layer, sequence, pass->positions + first, end - first, i % heads, qkv, stride,
               pass->attended + first * pass->attended_width, pass->attended_width, w->attention);
    }
    complete(w->thread, pass->n_chunks * heads);
}

static void forward_layer(const Pass *pass, Worker *w, int64_t layer) {
    const Model *m = pass->m;
    const Layer *l = m->layers + layer;
    Target qkv = {.out = pass->qkv, .stride = pass->qkv_width};
    Target hidden = {.out = pass->hidden, .stride = pass->hidden_width};
    linear(pass, w, &l->attention_norm, pass->x, pass->width, m->d_model, &l->qkv, qkv, 0);
    if (l->joint_query_norm.kind != NO_NORM) normalize_heads(pass, w, l);
    attention(pass, w, layer);
    add_linear(pass, w, pass->attended, pass->attended_width, m->n_heads * m->head_dim, &l->output,
               &l->attention_output_norm);
    linear(pass, w, &l->feed_forward_norm, pass->x, pass->width, m->d_model, &l->up, hidden, 1);
    add_linear(pass, w, pass->hidden, pass->hidden_width, m->d_feed_forward, &l->down, &l->feed_forward_output_norm);
}

static void forward_pass(const Pass *pass, Worker *w) {
    const Model *m = pass->m;
    embed(pass, w);
    for (int64_t layer = 0; layer < m->n_layers; layer++) forward_layer(pass, w, layer);
    Target logits = {.out = pass->logits, .stride = round_up(m->vocab_size)};
    if (pass->logits) linear(pass, w, &m->final_norm, pass->x, pass->width, m->d_model, &m->head, logits, 0);
}

/* The part of one thread. */
static void run_thread(Thread *thread, void *context) {
    const Pass *pass = context;
    Worker worker = {.thread = thread};
    allocate_scratch(pass, &worker, (uintptr_t)(pass->scratch + thread->index * pass->scratch_size));
    forward_pass(pass, &worker);
}

/* Forward pass over `count` tokens, each with its sequence and position. Tokens of one sequence must be consecutive and
   in order. Appends their keys and values to the cache.

   tokens, sequences, positions: (count). logits: (count, vocab_size rounded up to 16), or NULL. */
Result forward(const Model *m, const Cache *cache, int64_t count, const int64_t *tokens, const int64_t *sequences,
               const int64_t *positions, float *logits, int threads) {
    if (m->activation < RELU || m->activation > GEGLU) return UNKNOWN_CHOICE;
    for (int64_t r = 0; r < count; r++) {
        if (tokens[r] < 0 || tokens[r] >= m->vocab_size) return NO_SUCH_TOKEN;
        if (positions[r] >= cache->capacity || positions[r] >= m->context_length) return SEQUENCE_TOO_LONG;
    }
    Pass pass = {.m = m, .cache = cache, .tokens = tokens, .sequences = sequences, .positions = positions};
    pass.logits = logits;
    pass.count = count;
    void *work = aligned_alloc(64, allocate_buffers(&pass, 0, threads));
    if (!work) return OUT_OF_MEMORY;
    allocate_buffers(&pass, (uintptr_t)work, threads);
    split_into_chunks(&pass);
    memset(pass.shares, 0, threads * sizeof(Share));
    run_team(threads, pass.shares, run_thread, &pass);
    free(work);
    return DONE;
}
