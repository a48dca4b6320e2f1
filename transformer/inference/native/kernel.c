/* One pass of a decoder-only Transformer over new tokens, for x86 processors with AVX-512 and VNNI.

   All of it is one parallel region, in which the threads meet between stages, so that a token costs little more than
   the reading of the weights. Everything that is multiplied stands in blocks of 16 columns, one vector wide:

       column n of input k is at   block[n / 16] + k * stride + n % 16

   and so do the keys (columns: positions, inputs: the width of a head) and the values (columns: the width of a head,
   inputs: positions). One loop nest, `tile`, multiplies them all; `tile_int8` is the same for 8 bits.

   The architecture is explained in transformer/model; model.py beside this file fills the structures in. */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
typedef enum { DONE, OUT_OF_MEMORY, NO_SUCH_TOKEN, TEXT_TOO_LONG } Result;

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
    Product output; /* weight NULL: heads are added up, times head_weight */
    Product up; /* swiglu: gate and up, one after the other */
    Product down;
} Layer;

typedef struct {
    int64_t vocabulary, context, n_layers, width, n_heads, n_kv_heads, key_width, value_width, hidden;
    int64_t norm_first, activation, pad_token; /* -1: none */
    double embedding_scale, head_weight;
    const float *embedding; /* (vocabulary, width) */
    const float *table; /* (context, width), added to embeddings, or NULL */
    const float *cosine, *sine; /* (context, key_width), or NULL */
    const Layer *layers;
    Norm final_norm;
    Product head;
} Model;

typedef struct { /* of each text, layer and key-value head */
    void *keys; /* (capacity / 16, key_width, 16); INT8: (capacity / 16, key_width / 4, 16, 4), with 128 added */
    void *values; /* (capacity, value_width rounded up to 16) */
    float *key_scales, *value_scales; /* (capacity), of INT8, whose keys have a width rounded up to 4 */
    uint8_t *real; /* (text, capacity), 0 at padding; or NULL */
    int64_t kind, capacity; /* FP32, FP16 or INT8; a multiple of 16 */
} Memory;

typedef struct { /* what products take: rows of floats, and the same in 8 bits where x = low + step * byte */
    float *x;
    uint8_t *bytes;
    float *low, *step;
    int64_t count, stride; /* from row to row */
} Rows;

/* Weights are asked for a page before they are needed: the processor's own look ahead ends with the page. */
INLINE void ask_ahead(const void *weight, int64_t bytes) {
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
INLINE void tile(int rows, int width, Kind kind, const float *x, int64_t x_stride, const void *weight, int64_t inputs,
                 int64_t block, int64_t stride, __m512 sums[MOST_ROWS][MOST_WIDTH]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = _mm512_setzero_ps();
    for (int64_t k = 0; k < inputs; k++) {
        __m512 w[MOST_WIDTH];
        for (int b = 0; b < width; b++) {
            w[b] = load(kind, weight, b * block + k * stride);
            if (rows > 1 && (kind == FP32 || k % 2)) ask_ahead(weight, (b * block + k * stride) * size_of(kind));
        }
        if (rows == 1) ask_ahead(weight, k * stride * size_of(kind)); /* values, whose blocks lie side by side */
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_set1_ps(x[r * x_stride + k]);
            for (int b = 0; b < width; b++) sums[r][b] = _mm512_fmadd_ps(value, w[b], sums[r][b]);
        }
    }
}

/* One row and one block: the weights are read in the order they stand in, as fast as memory gives them. */
INLINE __m512 line(Kind kind, const float *x, const void *weight, int64_t inputs) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int64_t k = 0;
    for (; k + 4 <= inputs; k += 4)
        for (int i = 0; i < 4; i++) {
            sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[k + i]), load(kind, weight, (k + i) * LANES), sums[i]);
            if (kind == FP32 || i % 2) ask_ahead(weight, (k + i) * LANES * size_of(kind));
        }
    for (; k < inputs; k++) sums[0] = _mm512_fmadd_ps(_mm512_set1_ps(x[k]), load(kind, weight, k * LANES), sums[0]);
    return _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
}

/* The same of bytes by bytes, four of each at a time. */
INLINE void tile_int8(int rows, int width, const uint8_t *x, int64_t x_stride, const int8_t *weight, int64_t inputs,
                      __m512i sums[MOST_ROWS][MOST_WIDTH]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = _mm512_setzero_si512();
    for (int64_t k = 0; k < inputs; k += 4) {
        __m512i w[MOST_WIDTH];
        for (int b = 0; b < width; b++) {
            w[b] = _mm512_loadu_si512(weight + (b * inputs + k) * LANES);
            if (rows > 1) ask_ahead(weight, (b * inputs + k) * LANES); /* measured: one row is faster without */
        }
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_stride + k, 4);
            __m512i value = _mm512_set1_epi32(four);
            for (int b = 0; b < width; b++) sums[r][b] = _mm512_dpbusd_epi32(sums[r][b], value, w[b]);
        }
    }
}

/* Some columns of a product for some rows. With `add`, they are added to what stands there. */
INLINE void product_tile(int rows, int width, Kind kind, const Product *p, const Rows *in, int64_t row, int64_t column,
                         float *out, int64_t out_stride, int add) {
    __m512 sums[MOST_ROWS][MOST_WIDTH];
    if (kind == INT8) {
        __m512i whole[MOST_ROWS][MOST_WIDTH];
        tile_int8(rows, width, in->bytes + row * in->stride, in->stride,
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
                sums[0][b] = line(kind, x, weight + b * LANES * p->inputs * size_of(kind), p->inputs);
        else tile(rows, width, kind, x, in->stride, weight, p->inputs, p->inputs * LANES, LANES, sums);
    }
    for (int b = 0; b < width; b++) {
        __m512 bias = p->bias ? _mm512_loadu_ps(p->bias + column + b * LANES) : _mm512_setzero_ps();
        for (int r = 0; r < rows; r++) {
            float *place = out + (row + r) * out_stride + column + b * LANES;
            __m512 y = _mm512_add_ps(sums[r][b], bias);
            _mm512_storeu_ps(place, add ? _mm512_add_ps(y, _mm512_loadu_ps(place)) : y);
        }
    }
}

/* All rows for one to four blocks: the weights are read from memory once, and then from the cache. */
INLINE void product_blocks(int width, Kind kind, const Product *p, const Rows *in, int64_t column, float *out,
                           int64_t out_stride, int add) {
    int64_t row = 0;
    int half = width > 1 ? width / 2 : 1;
    for (; row + 8 <= in->count; row += 8)
        for (int b = 0; b < width; b += half)
            product_tile(8, half, kind, p, in, row, column + b * LANES, out, out_stride, add);
    for (; row + 4 <= in->count; row += 4) product_tile(4, width, kind, p, in, row, column, out, out_stride, add);
    for (; row < in->count; row++) product_tile(1, width, kind, p, in, row, column, out, out_stride, add);
}

INLINE void product_of_kind(Kind kind, const Product *p, const Rows *in, float *out, int64_t out_stride, int add) {
    int64_t columns = round_up(p->outputs);
#pragma omp for schedule(static)
    for (int64_t column = 0; column < columns; column += 4 * LANES) {
        if (column + 4 * LANES <= columns) {
            product_blocks(4, kind, p, in, column, out, out_stride, add);
        } else {
            for (int64_t last = column; last < columns; last += LANES)
                product_blocks(1, kind, p, in, last, out, out_stride, add);
        }
    }
}

/* A stage: the columns are divided among the threads, which meet at its end. */
static void product(const Product *p, const Rows *in, float *out, int64_t out_stride, int add) {
    if (p->kind == INT8) product_of_kind(INT8, p, in, out, out_stride, add);
    else if (p->kind == BF16) product_of_kind(BF16, p, in, out, out_stride, add);
    else product_of_kind(FP32, p, in, out, out_stride, add);
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
            if (count == 4 && width == 4) tile(4, 4, kind, row, x_stride, from, inputs, block, stride, sums);
            else if (count == 4) tile(4, 1, kind, row, x_stride, from, inputs, block, stride, sums);
            else if (block == inputs * LANES) /* keys: one block after the other */
                for (int j = 0; j < width; j++)
                    sums[0][j] = line(kind, row, from + j * block * size_of(kind), inputs);
            else if (width == 4) tile(1, 4, kind, row, x_stride, from, inputs, block, stride, sums);
            else tile(1, 1, kind, row, x_stride, from, inputs, block, stride, sums);
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

static void normalise(const Norm *norm, const float *x, float *y, int64_t n) {
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

static void quantise(Rows *rows, int64_t row, int64_t n) {
    const float *x = rows->x + row * rows->stride;
    uint8_t *bytes = rows->bytes + row * rows->stride;
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

INLINE void activate_as(Activation activation, float *hidden, const float *up, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        hidden[i] = activated(activation, hidden[i]) * (activation == SWIGLU ? up[i] : 1.0f);
}

static void activate(const Model *m, float *hidden, int64_t first, int64_t n) {
    const float *up = hidden + m->hidden + first;
    hidden += first;
    if (m->activation == RELU) activate_as(RELU, hidden, up, n);
    else if (m->activation == GELU) activate_as(GELU, hidden, up, n);
    else activate_as(SWIGLU, hidden, up, n);
}

/* ---- attention ---- */

/* Normalise and turn one head of queries or keys, in place. */
static void turn(const Model *m, const Norm *norm, float *x, int64_t position) {
    int64_t n = m->key_width, half = n / 2;
    if (norm->kind != NO_NORM) normalise(norm, x, x, n);
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
static void put_key(const Memory *memory, int64_t start, int64_t position, const float *key, int64_t n) {
    int64_t block = start + position / LANES * LANES, lane = position % LANES, fours = (n + 3) / 4 * 4;
    if (memory->kind == INT8) {
        uint8_t *bytes = (uint8_t *)memory->keys + block * fours;
        float scale = memory->key_scales[start + position] = scale_of(key, n);
        for (int64_t i = 0; i < n; i++) bytes[(i / 4 * LANES + lane) * 4 + i % 4] = 128 + rounded(key[i], scale);
    } else if (memory->kind == FP16) {
        uint16_t *halves = (uint16_t *)memory->keys + block * n + lane;
        for (int64_t i = 0; i < n; i++) halves[i * LANES] = _cvtss_sh(key[i], _MM_FROUND_TO_NEAREST_INT);
    } else {
        float *floats = (float *)memory->keys + block * n + lane;
        for (int64_t i = 0; i < n; i++) floats[i * LANES] = key[i];
    }
}

static void put_value(const Memory *memory, int64_t start, int64_t position, const float *value, int64_t n) {
    int64_t at = (start + position) * round_up(n);
    if (memory->kind == INT8) {
        float scale = memory->value_scales[start + position] = scale_of(value, n);
        for (int64_t i = 0; i < n; i++) ((int8_t *)memory->values)[at + i] = rounded(value[i], scale);
    } else if (memory->kind == FP16) {
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)memory->values)[at + i] = _cvtss_sh(value[i], _MM_FROUND_TO_NEAREST_INT);
    } else {
        memcpy((float *)memory->values + at, value, n * sizeof(float));
    }
}

/* How many positions stand in a memory before those of this head. */
INLINE int64_t before(const Model *m, const Memory *memory, int64_t text, int64_t layer, int64_t head) {
    return ((text * m->n_layers + layer) * m->n_kv_heads + head) * memory->capacity;
}

/* Turn the queries of a row in place, and put its keys and values into the memory. */
static void remember(const Model *m, const Layer *l, const Memory *memory, int64_t layer, int64_t text,
                     int64_t position, float *projected) {
    int64_t width = m->key_width;
    for (int64_t h = 0; h < m->n_heads; h++) turn(m, &l->query_norm, projected + h * width, position);
    for (int64_t h = 0; h < m->n_kv_heads; h++) {
        float *key = projected + (m->n_heads + h) * width;
        float *value = projected + (m->n_heads + m->n_kv_heads) * width + h * m->value_width;
        int64_t start = before(m, memory, text, layer, h);
        turn(m, &l->key_norm, key, position);
        put_key(memory, start, position, key, width);
        put_value(memory, start, position, value, m->value_width);
    }
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
                ask_ahead(keys, (b * fours + k) * 64);
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

/* Scores become weights that sum to 1 over the first n; a token that may look at nothing gets zeros. */
static void softmax(float *scores, int64_t n, int64_t all, const uint8_t *real) {
    float highest = -INFINITY, sum = 0;
    if (real)
        for (int64_t i = 0; i < n; i++)
            if (!real[i]) scores[i] = -INFINITY;
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < n; i++) highest = scores[i] > highest ? scores[i] : highest;
    if (highest == -INFINITY) n = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += scores[i] = exponential(scores[i] - highest);
    float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) scores[i] *= inverse;
    for (int64_t i = n; i < all; i++) scores[i] = 0;
}

/* A few rows of one text, in their order, and the query heads of one key-value head. `scratch` is the thread's own. */
static void attend(const Model *m, const Memory *memory, int64_t layer, int64_t text, const int64_t *positions,
                   int64_t rows, int64_t kv_head, const float *projected, int64_t projected_stride, float *mixed,
                   int64_t mixed_stride, float *scratch) {
    Kind kind = memory->kind;
    int64_t width = m->key_width, padded = round_up(m->value_width), group = m->n_heads / m->n_kv_heads;
    int64_t n = rows * group, length = positions[rows - 1] + 1, all = round_up(length), capacity = memory->capacity;
    int64_t start = before(m, memory, text, layer, kv_head);
    int64_t key_size = kind == INT8 ? (width + 3) / 4 * 4 : width * size_of(kind);
    const void *keys = (const char *)memory->keys + start * key_size;
    const void *values = (const char *)memory->values + start * padded * size_of(kind);
    const uint8_t *real = memory->real ? memory->real + text * capacity : NULL;
    float *queries = scratch, *scores = queries + n * width, *out = scores + n * capacity;
    float scale = 1.0f / sqrtf(width);
    for (int64_t i = 0; i < n; i++) {
        const float *query = projected + i / group * projected_stride + (kv_head * group + i % group) * width;
        for (int64_t k = 0; k < width; k++) queries[i * width + k] = query[k] * scale;
    }
    if (kind == INT8)
        int8_scores(queries, n, width, keys, memory->key_scales + start, all / LANES, scores, capacity);
    else small_product(kind, queries, n, width, keys, width, width * LANES, LANES, all / LANES, scores, capacity);
    for (int64_t i = 0; i < n; i++) {
        float *row = scores + i * capacity;
        int64_t seen = positions[i / group] + 1;
        softmax(row, seen, all, real);
        if (kind == INT8) multiply(row, memory->value_scales + start, seen);
    }
    small_product(kind, scores, n, capacity, values, length, LANES, padded, padded / LANES, out, padded);
    for (int64_t i = 0; i < n; i++)
        memcpy(mixed + i / group * mixed_stride + (kv_head * group + i % group) * m->value_width, out + i * padded,
               m->value_width * sizeof(float));
}

/* ---- the pass ---- */

/* A stage: rows normalised, and in 8 bits if the product that follows wants them. */
static void prepare(const Norm *norm, const float *x, int64_t x_stride, Rows *out, const Product *next, int64_t n) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < out->count; r++) {
        float *y = out->x + r * out->stride;
        if (norm->kind != NO_NORM) normalise(norm, x + r * x_stride, y, n);
        else if (y != x + r * x_stride) memcpy(y, x + r * x_stride, n * sizeof(float));
        if (next->kind == INT8) quantise(out, r, n);
    }
}

static const Norm nothing = {0};

static int64_t chunk_rows(const Model *m) {
    int64_t group = m->n_heads / m->n_kv_heads;
    return group < MOST_ROWS ? MOST_ROWS / group : 1;
}

static int64_t widest(const Model *m) {
    int64_t widths[] = {m->width, m->n_heads * m->key_width + m->n_kv_heads * (m->key_width + m->value_width),
                        m->n_heads * m->value_width, m->activation == SWIGLU ? 2 * m->hidden : m->hidden};
    int64_t most = 0;
    for (int i = 0; i < 4; i++) most = widths[i] > most ? widths[i] : most;
    return (most + 63) / 64 * 64;
}

/* Read `count` tokens, each with its text and its position; those of one text stand together, in their order.

   logits: (count, vocabulary rounded up to 16), or NULL. */
Result read_tokens(const Model *m, const Memory *memory, int64_t count, const int64_t *tokens, const int64_t *texts,
                   const int64_t *positions, float *logits, int threads) {
    for (int64_t r = 0; r < count; r++) {
        if (tokens[r] < 0 || tokens[r] >= m->vocabulary) return NO_SUCH_TOKEN;
        if (positions[r] >= memory->capacity || positions[r] >= m->context) return TEXT_TOO_LONG;
    }
    int64_t stride = widest(m), chunk = chunk_rows(m), group = m->n_heads / m->n_kv_heads;
    int64_t queries = chunk * group;
    int64_t scratch_size = (queries * (m->key_width + memory->capacity + round_up(m->value_width)) + 63) / 64 * 64;
    int64_t n_chunks = 0;
    size_t floats = 4 * count * stride + 2 * round_up(count) + threads * scratch_size;
    char *work = aligned_alloc(64, (floats * 4 + count * stride + 2 * round_up(count) * 8 + 63) / 64 * 64);
    if (!work) return OUT_OF_MEMORY;
    float *x = (float *)work;
    Rows rows = {.x = x + count * stride, .count = count, .stride = stride};
    float *projected = rows.x + count * stride, *hidden = projected + count * stride;
    rows.low = hidden + count * stride;
    rows.step = rows.low + round_up(count);
    float *scratch = rows.step + round_up(count);
    rows.bytes = (uint8_t *)(scratch + threads * scratch_size);
    int64_t *chunks = (int64_t *)(rows.bytes + count * stride);
    for (int64_t r = 0; r < count; n_chunks++) {
        int64_t end = r + 1;
        while (end < count && end - r < chunk && texts[end] == texts[r]) end++;
        chunks[n_chunks] = r;
        r = end;
    }
    chunks[n_chunks] = count;
    Rows activations = rows;
    activations.x = hidden;

#pragma omp parallel num_threads(threads)
    {
        float *mine = scratch + omp_get_thread_num() * scratch_size;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < count; r++) {
            const float *from = m->embedding + tokens[r] * m->width;
            const float *position = m->table ? m->table + positions[r] * m->width : NULL;
            for (int64_t i = 0; i < m->width; i++)
                x[r * stride + i] = from[i] * (float)m->embedding_scale + (position ? position[i] : 0);
            if (memory->real) memory->real[texts[r] * memory->capacity + positions[r]] = tokens[r] != m->pad_token;
        }
        for (int64_t layer = 0; layer < m->n_layers; layer++) {
            const Layer *l = m->layers + layer;
            prepare(m->norm_first ? &l->attention_norm : &nothing, x, stride, &rows, &l->project, m->width);
            product(&l->project, &rows, projected, stride, 0);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < count; r++)
                remember(m, l, memory, layer, texts[r], positions[r], projected + r * stride);
#pragma omp for schedule(static, 1)
            for (int64_t task = 0; task < n_chunks * m->n_kv_heads; task++) {
                int64_t c = task / m->n_kv_heads, r = chunks[c];
                attend(m, memory, layer, texts[r], positions + r, chunks[c + 1] - r, task % m->n_kv_heads,
                       projected + r * stride, stride, rows.x + r * stride, stride, mine);
            }
            if (l->output.weight) {
                prepare(&nothing, rows.x, stride, &rows, &l->output, m->n_heads * m->value_width);
                product(&l->output, &rows, x, stride, 1);
            } else {
#pragma omp for schedule(static)
                for (int64_t r = 0; r < count; r++)
                    for (int64_t i = 0; i < m->n_heads * m->value_width; i++)
                        x[r * stride + i % m->width] += rows.x[r * stride + i] * (float)m->head_weight;
            }
            if (!m->norm_first) {
#pragma omp for schedule(static)
                for (int64_t r = 0; r < count; r++)
                    normalise(&l->attention_norm, x + r * stride, x + r * stride, m->width);
            }
            prepare(m->norm_first ? &l->feed_forward_norm : &nothing, x, stride, &rows, &l->up, m->width);
            product(&l->up, &rows, hidden, stride, 0);
            int64_t piece = 256, pieces = (m->hidden + piece - 1) / piece;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count * pieces; i++) {
                int64_t first = i % pieces * piece, left = m->hidden - first;
                activate(m, hidden + i / pieces * stride, first, left < piece ? left : piece);
            }
            prepare(&nothing, hidden, stride, &activations, &l->down, m->hidden);
            product(&l->down, &activations, x, stride, 1);
            if (!m->norm_first) {
#pragma omp for schedule(static)
                for (int64_t r = 0; r < count; r++)
                    normalise(&l->feed_forward_norm, x + r * stride, x + r * stride, m->width);
            }
        }
        if (logits) {
            prepare(&m->final_norm, x, stride, &rows, &m->head, m->width);
            product(&m->head, &rows, logits, round_up(m->vocabulary), 0);
        }
    }
    free(work);
    return DONE;
}
