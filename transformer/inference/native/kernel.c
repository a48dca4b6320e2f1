/* One pass of a decoder-only Transformer over new tokens, for x86 processors with AVX-512 and VNNI.

   All of it is one parallel region, in which the threads share each loop (threads.h), so that a token costs little more
   than the reading of the weights. Everything that is multiplied stands in blocks of 16 columns, one vector wide:

       column n of input k is at   block[n / 16] + k * stride + n % 16

   and so do the keys (columns: positions, inputs: the width of a head) and the values (columns: the width of a head,
   inputs: positions). One loop nest, `gemm_tile`, multiplies them all; `gemm_tile_int8` is the same for 8 bits.

   The architecture is explained in transformer/model; native_backend.py beside this file fills the structures in. */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VNNI__)
#error "this file needs AVX-512 with VNNI"
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define MOST_ROWS 8 /* of a tile */
#define MOST_WIDTH 4 /* of a tile, in blocks */

typedef enum { FP32, BF16, FP16, INT8 } Kind;
typedef enum { NO_NORM, LAYER_NORM, RMS_NORM } NormKind;
typedef enum { RELU, GELU, SWIGLU } Activation;
typedef enum { DONE, OUT_OF_MEMORY, NO_SUCH_TOKEN, SEQUENCE_TOO_LONG, UNKNOWN_CHOICE } Result;

typedef struct { /* y = W x + b; weight (out / 16, in, 16), int8: (out / 16, in / 4, 16, 4) */
    const void *weight;
    const float *scale, *sum; /* int8: the scale of each output, and the sum of its weights */
    const float *bias; /* or NULL */
    int64_t kind, inputs, outputs; /* int8: inputs is a multiple of 4 */
} Product;

typedef struct {
    const float *weight, *bias;
    int64_t kind;
    double eps;
} Norm;

typedef struct {
    Norm attention_norm, query_norm, key_norm, feed_forward_norm;
    Product project; /* queries, keys and values, one after the other */
    Product output;
    Product up; /* swiglu: gate and up, one after the other */
    Product down;
} Layer;

typedef struct {
    int64_t vocabulary, context, n_layers, width, n_heads, n_kv_heads, key_width, value_width, hidden;
    int64_t norm_first, activation;
    double embedding_scale;
    const float *embedding; /* (vocabulary, width) */
    const float *table; /* (context, width), added to embeddings, or NULL */
    const float *cosine, *sine; /* (context, key_width), or NULL */
    const Layer *layers;
    Norm final_norm;
    Product head;
} Model;

typedef struct { /* of each sequence, layer and key-value head */
    void *keys; /* (capacity / 16, key_width, 16); INT8: (capacity / 16, key_width / 4, 16, 4), with 128 added */
    void *values; /* (capacity, value_width rounded up to 16) */
    float *key_scales, *value_scales; /* (capacity), of INT8, whose keys have a width rounded up to 4 */
    int64_t kind, capacity; /* FP32, FP16 or INT8; a multiple of 16 */
} Cache;

/* Sizes, offsets and constants as the compiler has them; kernel.py compares them with its own when it loads this. */
typedef struct {
    const char *name;
    int64_t value;
} LayoutEntry;

#define SIZE(type) {#type, sizeof(type)}
#define OFFSET(type, field) {#type "." #field, offsetof(type, field)}
#define CONSTANT(name) {#name, name}

const LayoutEntry layout[] = {
    SIZE(Product), OFFSET(Product, weight), OFFSET(Product, scale), OFFSET(Product, sum), OFFSET(Product, bias),
    OFFSET(Product, kind), OFFSET(Product, inputs), OFFSET(Product, outputs),
    SIZE(Norm), OFFSET(Norm, weight), OFFSET(Norm, bias), OFFSET(Norm, kind), OFFSET(Norm, eps),
    SIZE(Layer), OFFSET(Layer, attention_norm), OFFSET(Layer, query_norm), OFFSET(Layer, key_norm),
    OFFSET(Layer, feed_forward_norm), OFFSET(Layer, project), OFFSET(Layer, output), OFFSET(Layer, up),
    OFFSET(Layer, down),
    SIZE(Model), OFFSET(Model, vocabulary), OFFSET(Model, context), OFFSET(Model, n_layers), OFFSET(Model, width),
    OFFSET(Model, n_heads), OFFSET(Model, n_kv_heads), OFFSET(Model, key_width), OFFSET(Model, value_width),
    OFFSET(Model, hidden), OFFSET(Model, norm_first), OFFSET(Model, activation),
    OFFSET(Model, embedding_scale), OFFSET(Model, embedding), OFFSET(Model, table),
    OFFSET(Model, cosine), OFFSET(Model, sine), OFFSET(Model, layers), OFFSET(Model, final_norm), OFFSET(Model, head),
    SIZE(Cache), OFFSET(Cache, keys), OFFSET(Cache, values), OFFSET(Cache, key_scales),
    OFFSET(Cache, value_scales), OFFSET(Cache, kind), OFFSET(Cache, capacity),
    CONSTANT(FP32), CONSTANT(BF16), CONSTANT(FP16), CONSTANT(INT8), CONSTANT(LAYER_NORM), CONSTANT(RMS_NORM),
    CONSTANT(RELU), CONSTANT(GELU), CONSTANT(SWIGLU), CONSTANT(OUT_OF_MEMORY), CONSTANT(NO_SUCH_TOKEN),
    CONSTANT(SEQUENCE_TOO_LONG), CONSTANT(UNKNOWN_CHOICE), {NULL, 0},
};

typedef struct { /* what products take: rows of floats, and the same in 8 bits where x = low + step * byte */
    float *x;
    uint8_t *bytes;
    float *low, *step;
    int64_t count, stride, bytes_stride; /* from row to row */
} Rows;

#define PIECE 64 /* columns of a product that a thread claims at a time: some microseconds, for one row */

/* Weights are asked for a page before they are needed: the processor's own look ahead ends with the page. */
INLINE void prefetch(const void *weight, int64_t bytes) {
    _mm_prefetch((const char *)weight + bytes + 4096, _MM_HINT_T0);
}

INLINE int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* ---- products ---- */

INLINE int64_t size_of(Kind kind) { return kind == FP32 ? 4 : kind == INT8 ? 1 : 2; }

INLINE __m512 load(Kind kind, const void *weight, int64_t at) {
    if (kind == FP32) return _mm512_loadu_ps((const float *)weight + at);
    if (kind == INT8)
        return _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)((const int8_t *)weight + at))));
    __m256i halves = _mm256_loadu_si256((const __m256i *)((const uint16_t *)weight + at));
    if (kind == FP16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* out (rows, width * 16) = x (rows, inputs) times `width` blocks; the sums stay in registers. */
INLINE void gemm_tile(int rows, int width, Kind kind, const float *x, int64_t x_stride, const void *weight,
                      int64_t inputs, int64_t block, int64_t stride, __m512 sums[MOST_ROWS][MOST_WIDTH]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = _mm512_setzero_ps();
    for (int64_t k = 0; k < inputs; k++) {
        __m512 w[MOST_WIDTH];
        for (int b = 0; b < width; b++) {
            w[b] = load(kind, weight, b * block + k * stride);
            if (rows > 1 && (kind == FP32 || k % 2)) prefetch(weight, (b * block + k * stride) * size_of(kind));
        }
        if (rows == 1) prefetch(weight, k * stride * size_of(kind)); /* values, whose blocks lie side by side */
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_set1_ps(x[r * x_stride + k]);
            for (int b = 0; b < width; b++) sums[r][b] = _mm512_fmadd_ps(value, w[b], sums[r][b]);
        }
    }
}

/* One row and one block: the weights are read in the order they stand in, as fast as memory gives them. */
INLINE __m512 gemv(Kind kind, const float *x, const void *weight, int64_t inputs) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int64_t k = 0;
    for (; k + 4 <= inputs; k += 4)
        for (int i = 0; i < 4; i++) {
            sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[k + i]), load(kind, weight, (k + i) * LANES), sums[i]);
            if (kind == FP32 || i % 2) prefetch(weight, (k + i) * LANES * size_of(kind));
        }
    for (; k < inputs; k++) sums[0] = _mm512_fmadd_ps(_mm512_set1_ps(x[k]), load(kind, weight, k * LANES), sums[0]);
    return _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
}

/* The same of bytes by bytes, four of each at a time. */
INLINE void gemm_tile_int8(int rows, int width, const uint8_t *x, int64_t x_stride, const int8_t *weight,
                           int64_t inputs, __m512i sums[MOST_ROWS][MOST_WIDTH]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = _mm512_setzero_si512();
    for (int64_t k = 0; k < inputs; k += 4) {
        __m512i w[MOST_WIDTH];
        for (int b = 0; b < width; b++) {
            w[b] = _mm512_loadu_si512(weight + (b * inputs + k) * LANES);
            if (rows > 1) prefetch(weight, (b * inputs + k) * LANES); /* measured: one row is faster without */
        }
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_stride + k, 4);
            __m512i value = _mm512_set1_epi32(four);
            for (int b = 0; b < width; b++) sums[r][b] = _mm512_dpbusd_epi32(sums[r][b], value, w[b]);
        }
    }
}

typedef struct { /* where the columns of a piece go: out (rows, columns), plus what `added` holds, or NULL */
    float *out;
    const float *added;
    int64_t stride;
} Target;

/* Some columns of a product for some rows, beginning with `column`, which is column `at` of the target. */
INLINE void product_tile(int rows, int width, Kind kind, const Product *p, const Rows *in, int64_t row, int64_t column,
                         Target to, int64_t at) {
    __m512 sums[MOST_ROWS][MOST_WIDTH];
    if (kind == INT8) {
        __m512i whole[MOST_ROWS][MOST_WIDTH];
        gemm_tile_int8(rows, width, in->bytes + row * in->bytes_stride, in->bytes_stride,
                  (const int8_t *)p->weight + column * p->inputs, p->inputs, whole);
        for (int b = 0; b < width; b++) {
            __m512 scale = _mm512_loadu_ps(p->scale + column + b * LANES);
            __m512 sum = _mm512_loadu_ps(p->sum + column + b * LANES);
            for (int r = 0; r < rows; r++)
                sums[r][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][b]),
                                             _mm512_mul_ps(scale, _mm512_set1_ps(in->step[row + r])),
                                             _mm512_mul_ps(sum, _mm512_set1_ps(in->low[row + r])));
        }
    } else {
        const float *x = in->x + row * in->stride;
        const char *weight = (const char *)p->weight + column * p->inputs * size_of(kind);
        if (rows == 1)
            for (int b = 0; b < width; b++)
                sums[0][b] = gemv(kind, x, weight + b * LANES * p->inputs * size_of(kind), p->inputs);
        else gemm_tile(rows, width, kind, x, in->stride, weight, p->inputs, p->inputs * LANES, LANES, sums);
    }
    for (int b = 0; b < width; b++) {
        __m512 bias = p->bias ? _mm512_loadu_ps(p->bias + column + b * LANES) : _mm512_setzero_ps();
        for (int r = 0; r < rows; r++) {
            int64_t place = (row + r) * to.stride + at + b * LANES;
            __m512 y = _mm512_add_ps(sums[r][b], bias);
            _mm512_storeu_ps(to.out + place, to.added ? _mm512_add_ps(y, _mm512_loadu_ps(to.added + place)) : y);
        }
    }
}

/* All rows for one to four blocks: the weights are read from memory once, and then from the cache. */
INLINE void product_blocks(int width, Kind kind, const Product *p, const Rows *in, int64_t column, Target to,
                           int64_t at) {
    int64_t row = 0;
    int half = width > 1 ? width / 2 : 1;
    for (; row + 8 <= in->count; row += 8)
        for (int b = 0; b < width; b += half)
            product_tile(8, half, kind, p, in, row, column + b * LANES, to, at + b * LANES);
    for (; row + 4 <= in->count; row += 4) product_tile(4, width, kind, p, in, row, column, to, at);
    for (; row < in->count; row++) product_tile(1, width, kind, p, in, row, column, to, at);
}

INLINE void piece_of_kind(Kind kind, const Product *p, const Rows *in, int64_t column, int64_t columns, Target to,
                          int64_t at) {
    if (columns == PIECE) product_blocks(4, kind, p, in, column, to, at);
    else
        for (int64_t b = 0; b < columns; b += LANES) product_blocks(1, kind, p, in, column + b, to, at + b);
}

/* Some columns of a product, at most PIECE, whole blocks. */
static void product_piece(const Product *p, const Rows *in, int64_t column, int64_t columns, Target to, int64_t at) {
    if (p->kind == INT8) piece_of_kind(INT8, p, in, column, columns, to, at);
    else if (p->kind == BF16) piece_of_kind(BF16, p, in, column, columns, to, at);
    else piece_of_kind(FP32, p, in, column, columns, to, at);
}

/* Attention's products: a few rows, the same blocks for all of them, computed by one thread. */
INLINE void small_product_of_kind(Kind kind, const float *x, int64_t rows, int64_t x_stride, const void *weight,
                                  int64_t inputs, int64_t block, int64_t stride, int64_t blocks, float *out,
                                  int64_t out_stride) {
    for (int64_t b = 0; b < blocks;) {
        int width = b + 4 <= blocks ? 4 : 1;
        const char *from = (const char *)weight + b * block * size_of(kind);
        for (int64_t r = 0; r < rows;) {
            __m512 sums[MOST_ROWS][MOST_WIDTH];
            int count = r + 4 <= rows ? 4 : 1;
            const float *row = x + r * x_stride;
            if (count == 4 && width == 4) gemm_tile(4, 4, kind, row, x_stride, from, inputs, block, stride, sums);
            else if (count == 4) gemm_tile(4, 1, kind, row, x_stride, from, inputs, block, stride, sums);
            else if (block == inputs * LANES) /* keys: one block after the other */
                for (int j = 0; j < width; j++)
                    sums[0][j] = gemv(kind, row, from + j * block * size_of(kind), inputs);
            else if (width == 4) gemm_tile(1, 4, kind, row, x_stride, from, inputs, block, stride, sums);
            else gemm_tile(1, 1, kind, row, x_stride, from, inputs, block, stride, sums);
            for (int i = 0; i < count; i++)
                for (int j = 0; j < width; j++)
                    _mm512_storeu_ps(out + (r + i) * out_stride + (b + j) * LANES, sums[i][j]);
            r += count;
        }
        b += width;
    }
}

static void small_product(Kind kind, const float *x, int64_t rows, int64_t x_stride, const void *weight,
                          int64_t inputs, int64_t block, int64_t stride, int64_t blocks, float *out,
                          int64_t out_stride) {
    if (kind == INT8)
        small_product_of_kind(INT8, x, rows, x_stride, weight, inputs, block, stride, blocks, out, out_stride);
    else if (kind == FP16)
        small_product_of_kind(FP16, x, rows, x_stride, weight, inputs, block, stride, blocks, out, out_stride);
    else small_product_of_kind(FP32, x, rows, x_stride, weight, inputs, block, stride, blocks, out, out_stride);
}

/* ---- what is done to single rows ---- */

/* e^x, to a few units in the last place (the polynomial of Cephes); at most e^-87 for what is less. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return p * power.value;
}

static void normalize(const Norm *norm, const float *x, float *y, int64_t n) {
    float mean = 0, squares = 0;
    if (norm->kind == LAYER_NORM) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < n; i++) mean += x[i];
        mean /= n;
    }
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(squares / n + (float)norm->eps);
    if (norm->kind == LAYER_NORM) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * norm->weight[i] + norm->bias[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * norm->weight[i];
    }
}

static void quantize_row(Rows *rows, int64_t row, int64_t n) {
    const float *x = rows->x + row * rows->stride;
    uint8_t *bytes = rows->bytes + row * rows->bytes_stride;
    float low = x[0], high = x[0];
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float step = high > low ? (high - low) / 255.0f : 1.0f, inverse = 1.0f / step;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) bytes[i] = (uint8_t)(int32_t)((x[i] - low) * inverse + 0.5f);
    for (int64_t i = n; i % 4; i++) bytes[i] = 0; /* their weights are zeros */
    rows->low[row] = low;
    rows->step[row] = step;
}

INLINE float activated(Activation activation, float x) {
    if (activation == RELU) return x > 0 ? x : 0;
    if (activation == SWIGLU) return x / (1.0f + exponential(-x));
    return x / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x))); /* GELU by tanh */
}

INLINE void activate_as(Activation activation, const float *x, const float *up, float *y, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = activated(activation, x[i]) * (activation == SWIGLU ? up[i] : 1.0f);
}

static void activate(Activation activation, const float *x, const float *up, float *y, int64_t n) {
    if (activation == RELU) activate_as(RELU, x, up, y, n);
    else if (activation == GELU) activate_as(GELU, x, up, y, n);
    else activate_as(SWIGLU, x, up, y, n);
}

/* ---- attention ---- */

/* Normalize and rotate one head of queries or keys, in place. */
static void apply_rope(const Model *m, const Norm *norm, float *x, int64_t position) {
    int64_t n = m->key_width, half = n / 2;
    if (norm->kind != NO_NORM) normalize(norm, x, x, n);
    if (!m->cosine) return;
    const float *cosine = m->cosine + position * n, *sine = m->sine + position * n;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] + b * sine[i];
        x[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

/* The scale by which n numbers are whole numbers of 8 bits; 0 if they are zeros. */
INLINE float scale_of(const float *x, int64_t n) {
    float largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    return largest / 127.0f;
}

INLINE int8_t rounded(float x, float scale) { return scale > 0 ? (int8_t)rintf(x / scale) : 0; }

/* Write the key of a position, or its value. */
static void put_key(const Cache *cache, int64_t start, int64_t position, const float *key, int64_t n) {
    int64_t block = start + position / LANES * LANES, lane = position % LANES, fours = (n + 3) / 4 * 4;
    if (cache->kind == INT8) {
        uint8_t *bytes = (uint8_t *)cache->keys + block * fours;
        float scale = cache->key_scales[start + position] = scale_of(key, n);
        for (int64_t i = 0; i < n; i++) bytes[(i / 4 * LANES + lane) * 4 + i % 4] = 128 + rounded(key[i], scale);
    } else if (cache->kind == FP16) {
        uint16_t *halves = (uint16_t *)cache->keys + block * n + lane;
        for (int64_t i = 0; i < n; i++) halves[i * LANES] = _cvtss_sh(key[i], _MM_FROUND_TO_NEAREST_INT);
    } else {
        float *floats = (float *)cache->keys + block * n + lane;
        for (int64_t i = 0; i < n; i++) floats[i * LANES] = key[i];
    }
}

static void put_value(const Cache *cache, int64_t start, int64_t position, const float *value, int64_t n) {
    int64_t at = (start + position) * round_up(n);
    if (cache->kind == INT8) {
        float scale = cache->value_scales[start + position] = scale_of(value, n);
        for (int64_t i = 0; i < n; i++) ((int8_t *)cache->values)[at + i] = rounded(value[i], scale);
    } else if (cache->kind == FP16) {
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)cache->values)[at + i] = _cvtss_sh(value[i], _MM_FROUND_TO_NEAREST_INT);
    } else {
        memcpy((float *)cache->values + at, value, n * sizeof(float));
    }
}

/* Positions in the cache before those of this head. */
INLINE int64_t cache_offset(const Model *m, const Cache *cache, int64_t sequence, int64_t layer, int64_t head) {
    return ((sequence * m->n_layers + layer) * m->n_kv_heads + head) * cache->capacity;
}

/* Append a row's key and value of one head to the cache. `key` is the thread's own. */
static void append(const Model *m, const Layer *l, const Cache *cache, int64_t layer, int64_t sequence,
                   int64_t position, int64_t head, const float *projected, float *key) {
    int64_t width = m->key_width, start = cache_offset(m, cache, sequence, layer, head);
    memcpy(key, projected + (m->n_heads + head) * width, width * sizeof(float));
    apply_rope(m, &l->key_norm, key, position);
    put_key(cache, start, position, key, width);
    const float *values = projected + (m->n_heads + m->n_kv_heads) * width;
    put_value(cache, start, position, values + head * m->value_width, m->value_width);
}

/* Queries in 8 bits times keys in 8 bits: out (queries, blocks * 16), the scales of the keys included. */
static void int8_scores(const float *queries, int64_t count, int64_t width, const uint8_t *keys, const float *scales,
                        int64_t blocks, float *out, int64_t out_stride) {
    int64_t fours = (width + 3) / 4;
    for (int64_t q = 0; q < count; q++) {
        int32_t bytes[fours], sum = 0;
        float scale = scale_of(queries + q * width, width);
        memset(bytes, 0, sizeof(bytes));
        for (int64_t i = 0; i < width; i++) {
            int8_t byte = rounded(queries[q * width + i], scale);
            ((int8_t *)bytes)[i] = byte;
            sum += byte;
        }
        for (int64_t b = 0; b < blocks; b++) {
            __m512i products[4] = {_mm512_set1_epi32(-128 * sum)}; /* what was added to the keys is taken away */
            for (int64_t k = 0; k < fours; k++) {
                products[k % 4] = _mm512_dpbusd_epi32(products[k % 4], _mm512_loadu_si512(keys + (b * fours + k) * 64),
                                                      _mm512_set1_epi32(bytes[k]));
                prefetch(keys, (b * fours + k) * 64);
            }
            __m512i all = _mm512_add_epi32(_mm512_add_epi32(products[0], products[1]),
                                           _mm512_add_epi32(products[2], products[3]));
            _mm512_storeu_ps(out + q * out_stride + b * LANES,
                             _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(all), _mm512_set1_ps(scale)),
                                           _mm512_loadu_ps(scales + b * LANES)));
        }
    }
}

INLINE void multiply(float *x, const float *by, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] *= by[i];
}

/* Scores become weights that sum to 1 over the first n; the rest, up to `all`, become zeros. */
static void softmax(float *scores, int64_t n, int64_t all) {
    float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < n; i++) highest = scores[i] > highest ? scores[i] : highest;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += scores[i] = exponential(scores[i] - highest);
    float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) scores[i] *= inverse;
    for (int64_t i = n; i < all; i++) scores[i] = 0;
}

/* A few rows of one sequence, in order, and the query heads of one key-value head. `scratch` is the thread's own. */
static void attend(const Model *m, const Layer *l, const Cache *cache, int64_t layer, int64_t sequence,
                   const int64_t *positions, int64_t rows, int64_t kv_head, const float *projected,
                   int64_t projected_stride, float *mixed, int64_t mixed_stride, float *scratch) {
    Kind kind = cache->kind;
    int64_t width = m->key_width, padded = round_up(m->value_width), group = m->n_heads / m->n_kv_heads;
    int64_t n = rows * group, length = positions[rows - 1] + 1, all = round_up(length), capacity = cache->capacity;
    int64_t start = cache_offset(m, cache, sequence, layer, kv_head);
    int64_t key_size = kind == INT8 ? (width + 3) / 4 * 4 : width * size_of(kind);
    const void *keys = (const char *)cache->keys + start * key_size;
    const void *values = (const char *)cache->values + start * padded * size_of(kind);
    float *queries = scratch, *scores = queries + n * width, *out = scores + n * capacity;
    float scale = 1.0f / sqrtf(width);
    for (int64_t i = 0; i < n; i++) {
        float *query = queries + i * width;
        memcpy(query, projected + i / group * projected_stride + (kv_head * group + i % group) * width,
               width * sizeof(float));
        apply_rope(m, &l->query_norm, query, positions[i / group]);
        for (int64_t k = 0; k < width; k++) query[k] *= scale;
    }
    if (kind == INT8)
        int8_scores(queries, n, width, keys, cache->key_scales + start, all / LANES, scores, capacity);
    else small_product(kind, queries, n, width, keys, width, width * LANES, LANES, all / LANES, scores, capacity);
    for (int64_t i = 0; i < n; i++) {
        float *row = scores + i * capacity;
        int64_t seen = positions[i / group] + 1;
        softmax(row, seen, all);
        if (kind == INT8) multiply(row, cache->value_scales + start, seen);
    }
    small_product(kind, scores, n, capacity, values, length, LANES, padded, padded / LANES, out, padded);
    for (int64_t i = 0; i < n; i++)
        memcpy(mixed + i / group * mixed_stride + (kv_head * group + i % group) * m->value_width, out + i * padded,
               m->value_width * sizeof(float));
}

/* ---- the pass ---- */

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
    int64_t count = pass->count, gated = feed_forward && m->activation == SWIGLU;
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

static void normalize_rows(const Pass *pass, Worker *w, const Norm *norm, float *x) {
    EACH(r, pass->count) normalize(norm, x + r * pass->width, x + r * pass->width, pass->m->width);
    complete(w->thread, pass->count);
}

static void embed(const Pass *pass, Worker *w) {
    const Model *m = pass->m;
    EACH(r, pass->count) {
        int64_t token = pass->tokens[r], position = pass->positions[r];
        const float *from = m->embedding + token * m->width;
        const float *added = m->table ? m->table + position * m->width : NULL;
        float *x = pass->x + r * pass->width;
        for (int64_t i = 0; i < m->width; i++) x[i] = from[i] * (float)m->embedding_scale + (added ? added[i] : 0);
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
    int first = m->norm_first;
    Target projected = {.out = pass->projected, .stride = pass->projected_width};
    Target hidden = {.out = pass->hidden, .stride = pass->hidden_width};
    Target x = {.out = pass->x, .added = pass->x, .stride = pass->width};
    product(pass, w, first ? &l->attention_norm : &nothing, pass->x, pass->width, m->width, &l->project, projected, 0);
    attention(pass, w, layer);
    product(pass, w, &nothing, pass->mixed, pass->mixed_width, m->n_heads * m->value_width, &l->output, x, 0);
    if (!first) normalize_rows(pass, w, &l->attention_norm, pass->x);
    product(pass, w, first ? &l->feed_forward_norm : &nothing, pass->x, pass->width, m->width, &l->up, hidden, 1);
    product(pass, w, &nothing, pass->hidden, pass->hidden_width, m->hidden, &l->down, x, 0);
    if (!first) normalize_rows(pass, w, &l->feed_forward_norm, pass->x);
}

static void read_pass(const Pass *pass, Worker *w) {
    const Model *m = pass->m;
    embed(pass, w);
    for (int64_t layer = 0; layer < m->n_layers; layer++) read_layer(pass, w, layer);
    Target logits = {.out = pass->logits, .stride = round_up(m->vocabulary)};
    if (pass->logits) product(pass, w, &m->final_norm, pass->x, pass->width, m->width, &m->head, logits, 0);
}

/* Read `count` tokens, each with its sequence and its position; those of one sequence stand together, in their order.

   logits: (count, vocabulary rounded up to 16), or NULL. */
Result read_tokens(const Model *m, const Cache *cache, int64_t count, const int64_t *tokens, const int64_t *sequences,
                   const int64_t *positions, float *logits, int threads) {
    if (m->activation < RELU || m->activation > SWIGLU) return UNKNOWN_CHOICE;
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
    Team team = {.shares = pass.shares};
    memset(team.shares, 0, threads * sizeof(Share));
#pragma omp parallel num_threads(threads)
    {
        Thread thread = {.team = &team, .index = omp_get_thread_num(), .threads = omp_get_num_threads()};
        Worker worker = {.thread = &thread};
        take_scratch(&pass, &worker, (uintptr_t)(pass.scratch + thread.index * pass.scratch_size));
        read_pass(&pass, &worker);
        finish(&thread);
    }
    free(work);
    return DONE;
}
