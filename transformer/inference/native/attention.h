/* Attention over the keys and values in the cache, and appending to the cache. */

#include "rows.h"

/* Normalize (if the layer has QK-norm) and rotate one head of queries or keys, in place. */
static void apply_norm_and_rope(const Layer *l, const Norm *norm, float *x, int64_t position, int64_t n) {
    int64_t half = n / 2;
    if (norm->kind != NO_NORM) normalize(norm, x, x, n);
    if (!l->cosine) return;
    const float *cosine = l->cosine + position * n, *sine = l->sine + position * n;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] + b * sine[i];
        x[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

/* The scale of symmetric 8-bit quantization of n numbers; 0 if all of them are 0. */
INLINE float int8_scale(const float *x, int64_t n) {
    Range of = min_max(x, n);
    return (of.high > -of.low ? of.high : -of.low) / 127.0f;
}

INLINE int8_t quantize(float x, float scale) { return scale > 0 ? (int8_t)rintf(x / scale) : 0; }

/* Write the key, or the value, of one position. start: see cache_offset. */
static void store_key(const Cache *cache, int64_t start, int64_t position, const float *key, int64_t n) {
    int64_t block = start + position / LANES * LANES, lane = position % LANES, fours = (n + 3) / 4 * 4;
    if (cache->dtype == INT8) {
        uint8_t *bytes = (uint8_t *)cache->keys + block * fours;
        float scale = cache->key_scales[start + position] = int8_scale(key, n);
        for (int64_t i = 0; i < n; i++) bytes[(i / 4 * LANES + lane) * 4 + i % 4] = BYTE_BIAS + quantize(key[i], scale);
    } else if (cache->dtype == FP16) {
        uint16_t *halves = (uint16_t *)cache->keys + block * n + lane;
        for (int64_t i = 0; i < n; i++) halves[i * LANES] = to_fp16(key[i]);
    } else {
        float *floats = (float *)cache->keys + block * n + lane;
        for (int64_t i = 0; i < n; i++) floats[i * LANES] = key[i];
    }
}

static void store_value(const Cache *cache, int64_t start, int64_t position, const float *value, int64_t n) {
    int64_t at = (start + position) * round_up(n);
    if (cache->dtype == INT8) {
        float scale = cache->value_scales[start + position] = int8_scale(value, n);
        for (int64_t i = 0; i < n; i++) ((int8_t *)cache->values)[at + i] = quantize(value[i], scale);
    } else if (cache->dtype == FP16) {
        for (int64_t i = 0; i < n; i++) ((uint16_t *)cache->values)[at + i] = to_fp16(value[i]);
    } else {
        memcpy((float *)cache->values + at, value, n * sizeof(float));
    }
}

/* Positions in the cache before those of this sequence, layer and head. */
INLINE int64_t cache_offset(const Model *m, const Cache *cache, int64_t sequence, int64_t layer, int64_t head) {
    return ((sequence * m->n_layers + layer) * m->n_kv_heads + head) * cache->capacity;
}

/* Append the key and the value of one token and head to the cache. key: scratch memory of the thread. */
static void append(const Model *m, const Layer *l, const Cache *cache, int64_t layer, int64_t sequence,
                   int64_t position, int64_t head, const float *qkv, float *key) {
    int64_t width = m->head_dim, start = cache_offset(m, cache, sequence, layer, head);
    memcpy(key, qkv + (m->n_heads + head) * width, width * sizeof(float));
    apply_norm_and_rope(l, &l->key_norm, key, position, width);
    store_key(cache, start, position, key, width);
    const float *values = qkv + (m->n_heads + m->n_kv_heads) * width;
    store_value(cache, start, position, values + head * m->head_dim, m->head_dim);
}

/* Attention scores of queries (count, width), quantized here, and keys in 8 bits: out (count, blocks * 16). */
static void int8_scores(const float *queries, int64_t count, int64_t width, const uint8_t *keys, const float *scales,
                        int64_t blocks, float *out, int64_t out_stride) {
    int64_t fours = (width + 3) / 4;
    for (int64_t q = 0; q < count; q++) {
        int32_t bytes[fours], sum = 0;
        float scale = int8_scale(queries + q * width, width);
        memset(bytes, 0, sizeof(bytes));
        for (int64_t i = 0; i < width; i++) {
            int8_t byte = quantize(queries[q * width + i], scale);
            ((int8_t *)bytes)[i] = byte;
            sum += byte;
        }
        for (int64_t b = 0; b < blocks; b++) {
            const uint8_t *key = keys + b * fours * 64;
            /* subtracts the BYTE_BIAS of the keys */
            Ints products[4] = {broadcast_int(-BYTE_BIAS * sum), zero_ints(), zero_ints(), zero_ints()};
            int64_t k = 0;
            for (; k + 4 <= fours; k += 4)
                for (int i = 0; i < 4; i++) {
                    products[i] = dot(products[i], load_bytes(key + (k + i) * 64), broadcast_bytes(bytes[k + i]));
                    prefetch(key, (k + i) * 64);
                }
            for (; k < fours; k++) products[0] = dot(products[0], load_bytes(key + k * 64), broadcast_bytes(bytes[k]));
            Ints all = add_ints(add_ints(products[0], products[1]), add_ints(products[2], products[3]));
            store_floats(
                out + q * out_stride + b * LANES,
                multiply(multiply(ints_to_floats(all), broadcast_float(scale)), load_floats(scales + b * LANES)));
        }
    }
}

INLINE void multiply_each(float *x, const float *by, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] *= by[i];
}

/* Softmax over scores[first:end]; all other scores up to `all` become zeros. */
static void softmax(float *scores, int64_t first, int64_t end, int64_t all) {
    float highest = min_max(scores + first, end - first).high, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < end; i++) sum += scores[i] = fast_exp(scores[i] - highest);
    float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = first; i < end; i++) scores[i] *= inverse;
    for (int64_t i = 0; i < first; i++) scores[i] = 0;
    for (int64_t i = end; i < all; i++) scores[i] = 0;
}

/* Attention of consecutive tokens of one sequence, for the query heads of one key-value head.

   qkv: the first token's row of projections. scratch: memory of the thread, see allocate_scratch. */
static void attend(const Model *m, const Layer *l, const Cache *cache, int64_t layer, int64_t sequence,
                   const int64_t *positions, int64_t rows, int64_t kv_head, const float *qkv, int64_t qkv_stride,
                   float *attended, int64_t attended_stride, float *scratch) {
    DType dtype = cache->dtype;
    int64_t width = m->head_dim, padded = round_up(m->head_dim), group = m->n_heads / m->n_kv_heads;
    int64_t n = rows * group, capacity = cache->capacity;
    /* The block in which the first token's window begins. Positions below are relative to it. */
    int64_t begin = positions[0] < l->window ? 0 : (positions[0] - l->window + 1) / LANES * LANES;
    int64_t length = positions[rows - 1] + 1 - begin, all = round_up(length);
    int64_t start = cache_offset(m, cache, sequence, layer, kv_head) + begin;
    int64_t key_size = dtype == INT8 ? (width + 3) / 4 * 4 : width * bytes_of(dtype);
    const void *keys = (const char *)cache->keys + start * key_size;
    const void *values = (const char *)cache->values + start * padded * bytes_of(dtype);
    float *queries = scratch, *scores = queries + n * width, *out = scores + n * capacity;
    float scale = m->score_scale;
    for (int64_t i = 0; i < n; i++) {
        float *query = queries + i * width;
        memcpy(query, qkv + i / group * qkv_stride + (kv_head * group + i % group) * width, width * sizeof(float));
        apply_norm_and_rope(l, &l->query_norm, query, positions[i / group], width);
        for (int64_t k = 0; k < width; k++) query[k] *= scale;
    }
    if (dtype == INT8) int8_scores(queries, n, width, keys, cache->key_scales + start, all / LANES, scores, capacity);
    else small_matmul(dtype, queries, n, width, keys, width, width * LANES, LANES, all / LANES, scores, capacity);
    for (int64_t i = 0; i < n; i++) {
        float *row = scores + i * capacity;
        int64_t end = positions[i / group] + 1 - begin, first = end > l->window ? end - l->window : 0;
        softmax(row, first, end, all);
        if (dtype == INT8) multiply_each(row + first, cache->value_scales + start + first, end - first);
    }
    small_matmul(dtype, scores, n, capacity, values, length, LANES, padded, padded / LANES, out, padded);
    for (int64_t i = 0; i < n; i++)
        memcpy(attended + i / group * attended_stride + (kv_head * group + i % group) * m->head_dim, out + i * padded,
               m->head_dim * sizeof(float));
}
