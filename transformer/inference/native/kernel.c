/* One pass of a decoder-only Transformer over new tokens, for the instructions that it is compiled for.

   All of it is one parallel region, in which the threads share each loop (threads.h), so that a token costs little more
   than the reading of the weights. Everything that is multiplied stands in blocks of 16 columns, one vector wide:

       column n of input k is at   block[n / 16] + k * stride + n % 16

   and so do the keys (columns: positions, inputs: the width of a head) and the values (columns: the width of a head,
   inputs: positions). One loop nest, `gemm_tile`, multiplies them all; `gemm_tile_int8` is the same for 8 bits.

       model.h      the structures of a model            products.h   matrix products
       vectors.h    vectors of 16 columns, and a         rows.h       norms, rounding, activations
                    header for each set of instructions  attention.h  attention and its cache
       threads.h    loops that threads share             kernel.c     the pass

   The architecture is explained in transformer/model; arranged_model.py beside this file fills the structures in. */

#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "threads.h"

static const Norm nothing = {0};

static int64_t chunk_rows(const Model *m) {
    int64_t group = m->n_heads / m->n_kv_heads;
    return group < MOST_ROWS ? MOST_ROWS / group : 1;
}

INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

typedef struct {
    const Model *m;
    const Cache *cache;
    const int64_t *tokens, *sequences, *positions;
    float *logits;
    int64_t count, n_chunks;
    int64_t *chunks; /* (n_chunks + 1): the first row of each */
    int alone; /* no sequence has several chunks, so that none needs the keys of another */
    float *x, *projected, *mixed, *hidden; /* (count, width of each) */
    float *added; /* (count, width): what a sub-layer adds to x, if it is normalized before; or NULL */
    int64_t width, projected_width, mixed_width, hidden_width; /* whole blocks */
    Rows rows; /* prepared by all threads, if there are many */
    char *scratch; /* of the threads, one after the other */
    int64_t scratch_size;
    Share *shares;
} Pass;

typedef struct { /* of one thread */
    Thread *thread;
    Rows rows; /* prepared by itself, if there are few */
    float *piece; /* (count, 2 * PIECE) */
    float *attention;
} Worker;

#define FEW_ROWS 4 /* more of them are prepared for a product by all threads together, not by each for itself */

/* The next `bytes` of a piece of memory, of which nothing is used if it begins at NULL: then its size is counted. */
static void *take(uintptr_t *from, int64_t bytes) {
    void *at = (void *)*from;
    *from += (bytes + 63) / 64 * 64;
    return at;
}

static Rows take_rows(const Pass *pass, uintptr_t *from) {
    Rows rows = {.count = pass->count, .stride = pass->width};
    rows.bytes_stride = most(pass->width, most(pass->mixed_width, pass->hidden_width));
    rows.x = take(from, rows.count * rows.stride * sizeof(float));
    rows.bytes = take(from, rows.count * rows.bytes_stride);
    rows.low = take(from, rows.count * sizeof(float));
    rows.step = take(from, rows.count * sizeof(float));
    return rows;
}

/* Returns the end of what it took, as the next function does. */
static uintptr_t take_scratch(const Pass *pass, Worker *w, uintptr_t from) {
    const Model *m = pass->m;
    int64_t queries = chunk_rows(m) * (m->n_heads / m->n_kv_heads);
    int64_t each = m->key_width + pass->cache->capacity + round_up(m->value_width);
    if (pass->count <= FEW_ROWS) w->rows = take_rows(pass, &from);
    w->piece = take(&from, pass->count * 2 * PIECE * sizeof(float));
    w->attention = take(&from, queries * each * sizeof(float));
    return from;
}

/* Whether what sub-layers add to the residual stream is normalized before: OLMo 2, Gemma 3. */
static int adds_normalized(const Model *m) {
    return m->layers[0].attention_output_norm.kind != NO_NORM && !m->normalize_sums;
}

static uintptr_t take_work(Pass *pass, uintptr_t from, int threads) {
    const Model *m = pass->m;
    pass->width = round_up(m->width);
    pass->projected_width = round_up(m->n_heads * m->key_width + m->n_kv_heads * (m->key_width + m->value_width));
    pass->mixed_width = round_up(m->n_heads * m->value_width);
    pass->hidden_width = round_up(m->hidden);
    pass->x = take(&from, pass->count * pass->width * sizeof(float));
    pass->projected = take(&from, pass->count * pass->projected_width * sizeof(float));
    pass->mixed = take(&from, pass->count * pass->mixed_width * sizeof(float));
    pass->hidden = take(&from, pass->count * pass->hidden_width * sizeof(float));
    if (adds_normalized(m)) pass->added = take(&from, pass->count * pass->width * sizeof(float));
    pass->shares = take(&from, threads * sizeof(Share));
    pass->chunks = take(&from, (pass->count + 1) * sizeof(int64_t));
    if (pass->count > FEW_ROWS) pass->rows = take_rows(pass, &from);
    Worker none;
    pass->scratch_size = take_scratch(pass, &none, 0);
    pass->scratch = take(&from, threads * pass->scratch_size);
    return from;
}

/* The chunks of rows that attention takes together: of one sequence, and few enough for a tile. */
static void cut_chunks(Pass *pass) {
    int64_t limit = chunk_rows(pass->m);
    pass->n_chunks = 0;
    pass->alone = 1;
    for (int64_t r = 0, end; r < pass->count; r = end) {
        end = r + 1;
        while (end < pass->count && end - r < limit && pass->sequences[end] == pass->sequences[r]) end++;
        if (r && pass->sequences[r - 1] == pass->sequences[r]) pass->alone = 0;
        pass->chunks[pass->n_chunks++] = r;
    }
    pass->chunks[pass->n_chunks] = pass->count;
}

#define EACH(i, n) for (int64_t i; (i = claim(w->thread, n)) >= 0;)

static void prepare_row(const Norm *norm, const float *x, const Product *next, Rows *rows, int64_t r, int64_t n) {
    if (norm->kind != NO_NORM) normalize(norm, x, rows->x + r * rows->stride, n);
    if (next->kind == INT8) quantize_row(rows, r, n);
}

/* out (count, outputs) = `added`, if any, + the product of rows x (count, n), normalised first.

   With `feed_forward`, p is the first product of a feed-forward layer, and out its activated outputs. */
static void product(const Pass *pass, Worker *w, const Norm *norm, const float *x, int64_t x_stride, int64_t n,
                   const Product *p, Target to, int feed_forward) {
    const Model *m = pass->m;
    int64_t count = pass->count, gated = feed_forward && is_gated(m->activation);
    int64_t columns = round_up(p->outputs) / (gated ? 2 : 1);
    int prepared = count > FEW_ROWS;
    Rows rows = prepared ? pass->rows : w->rows;
    if (norm->kind == NO_NORM) {
        rows.x = (float *)x; /* which is only read */
        rows.stride = x_stride;
    }
    if (prepared) {
        EACH(r, count) prepare_row(norm, x + r * x_stride, p, &rows, r, n);
        complete(w->thread, count);
    }
    int64_t pieces = (columns + PIECE - 1) / PIECE;
    EACH(i, pieces) {
        if (!prepared) /* after the claim: x does not change before this loop is complete */
            for (int64_t r = 0; r < count; r++) prepare_row(norm, x + r * x_stride, p, &rows, r, n);
        prepared = 1;
        int64_t column = i * PIECE, some = column + PIECE <= columns ? PIECE : columns - column;
        if (!feed_forward) {
            product_piece(p, &rows, column, some, to, column);
            continue;
        }
        Target piece = {.out = w->piece, .stride = 2 * PIECE};
        product_piece(p, &rows, column, some, piece, 0);
        if (gated) product_piece(p, &rows, columns + column, some, piece, PIECE);
        for (int64_t r = 0; r < count; r++) {
            float *from = w->piece + r * 2 * PIECE;
            activate(m->activation, from, from + PIECE, to.out + r * to.stride + column, some);
        }
    }
    complete(w->thread, pieces);
}

/* x += what a sub-layer computes: the product of rows (count, n). Then the norm, if any: see normalize_sums. */
static void add_product(const Pass *pass, Worker *w, const float *rows, int64_t stride, int64_t n, const Product *p,
                        const Norm *norm) {
    int64_t width = pass->m->width;
    Target sum = {.out = pass->x, .added = pass->x, .stride = pass->width};
    Target added = {.out = pass->added, .stride = pass->width};
    product(pass, w, &nothing, rows, stride, n, p, pass->added ? added : sum, 0);
    if (norm->kind == NO_NORM) return;
    EACH(r, pass->count) {
        float *x = pass->x + r * pass->width;
        if (!pass->added) {
            normalize(norm, x, x, width);
            continue;
        }
        float *y = pass->added + r * pass->width;
        normalize(norm, y, y, width);
        for (int64_t i = 0; i < width; i++) x[i] += y[i];
    }
    complete(w->thread, pass->count);
}

static float embedding_value(const Model *m, int64_t index) {
    if (m->embedding_kind == FP32) return ((const float *)m->embedding)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)m->embedding)[index] << 16; /* BF16 is the upper half of FP32 */
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void embed(const Pass *pass, Worker *w) {
    const Model *m = pass->m;
    EACH(r, pass->count) {
        int64_t token = pass->tokens[r], position = pass->positions[r];
        int64_t from = token * m->width;
        const float *added = m->table ? m->table + position * m->width : NULL;
        float *x = pass->x + r * pass->width;
        for (int64_t i = 0; i < m->width; i++) {
            x[i] = embedding_value(m, from + i) * (float)m->embedding_scale + (added ? added[i] : 0);
        }
    }
    complete(w->thread, pass->count);
}

/* Norms over all heads of a token together: OLMo 2. */
static void normalize_heads(const Pass *pass, Worker *w, const Layer *l) {
    int64_t queries = pass->m->n_heads * pass->m->key_width, keys = pass->m->n_kv_heads * pass->m->key_width;
    EACH(r, pass->count) {
        float *row = pass->projected + r * pass->projected_width;
        normalize(&l->joint_query_norm, row, row, queries);
        normalize(&l->joint_key_norm, row + queries, row + queries, keys);
    }
    complete(w->thread, pass->count);
}

static void attention(const Pass *pass, Worker *w, int64_t layer) {
    const Model *m = pass->m;
    const Layer *l = m->layers + layer;
    int64_t heads = m->n_kv_heads, stride = pass->projected_width;
    if (!pass->alone) {
        EACH(i, pass->count * heads) {
            int64_t r = i / heads;
            append(m, l, pass->cache, layer, pass->sequences[r], pass->positions[r], i % heads,
                     pass->projected + r * stride, w->attention);
        }
        complete(w->thread, pass->count * heads);
    }
    EACH(i, pass->n_chunks * heads) {
        int64_t first = pass->chunks[i / heads], end = pass->chunks[i / heads + 1], sequence = pass->sequences[first];
        const float *projected = pass->projected + first * stride;
        for (int64_t r = first; pass->alone && r < end; r++)
            append(m, l, pass->cache, layer, sequence, pass->positions[r], i % heads,
                     pass->projected + r * stride, w->attention);
        attend(m, l, pass->cache, layer, sequence, pass->positions + first, end - first, i % heads, projected, stride,
               pass->mixed + first * pass->mixed_width, pass->mixed_width, w->attention);
    }
    complete(w->thread, pass->n_chunks * heads);
}

static void read_layer(const Pass *pass, Worker *w, int64_t layer) {
    const Model *m = pass->m;
    const Layer *l = m->layers + layer;
    Target projected = {.out = pass->projected, .stride = pass->projected_width};
    Target hidden = {.out = pass->hidden, .stride = pass->hidden_width};
    product(pass, w, &l->attention_norm, pass->x, pass->width, m->width, &l->project, projected, 0);
    if (l->joint_query_norm.kind != NO_NORM) normalize_heads(pass, w, l);
    attention(pass, w, layer);
    add_product(pass, w, pass->mixed, pass->mixed_width, m->n_heads * m->value_width, &l->output,
                &l->attention_output_norm);
    product(pass, w, &l->feed_forward_norm, pass->x, pass->width, m->width, &l->up, hidden, 1);
    add_product(pass, w, pass->hidden, pass->hidden_width, m->hidden, &l->down, &l->feed_forward_output_norm);
}

static void read_pass(const Pass *pass, Worker *w) {
    const Model *m = pass->m;
    embed(pass, w);
    for (int64_t layer = 0; layer < m->n_layers; layer++) read_layer(pass, w, layer);
    Target logits = {.out = pass->logits, .stride = round_up(m->vocabulary)};
    if (pass->logits) product(pass, w, &m->final_norm, pass->x, pass->width, m->width, &m->head, logits, 0);
}

/* What one thread does. */
static void read_as_one(Thread *thread, void *context) {
    const Pass *pass = context;
    Worker worker = {.thread = thread};
    take_scratch(pass, &worker, (uintptr_t)(pass->scratch + thread->index * pass->scratch_size));
    read_pass(pass, &worker);
}

/* Read `count` tokens, each with its sequence and its position; those of one sequence stand together, in their order.

   logits: (count, vocabulary rounded up to 16), or NULL. */
Result read_tokens(const Model *m, const Cache *cache, int64_t count, const int64_t *tokens, const int64_t *sequences,
                   const int64_t *positions, float *logits, int threads) {
    if (m->activation < RELU || m->activation > GEGLU) return UNKNOWN_CHOICE;
    for (int64_t r = 0; r < count; r++) {
        if (tokens[r] < 0 || tokens[r] >= m->vocabulary) return NO_SUCH_TOKEN;
        if (positions[r] >= cache->capacity || positions[r] >= m->context) return SEQUENCE_TOO_LONG;
    }
    Pass pass = {.m = m, .cache = cache, .tokens = tokens, .sequences = sequences, .positions = positions};
    pass.logits = logits;
    pass.count = count;
    void *work = aligned_alloc(64, take_work(&pass, 0, threads));
    if (!work) return OUT_OF_MEMORY;
    take_work(&pass, (uintptr_t)work, threads);
    cut_chunks(&pass);
    memset(pass.shares, 0, threads * sizeof(Share));
    run_team(threads, pass.shares, read_as_one, &pass);
    free(work);
    return DONE;
}
