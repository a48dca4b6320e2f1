/* Operations on single rows: norms, quantization to 8 bits, activations. */

#include <math.h>

#include "matmul.h"

/* e^x to a few units in the last place, with the polynomial of Cephes. x is clamped to [-87, 88]. */
INLINE float fast_exp(float x) {
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
    union {
        int32_t bits;
        float value;
    } power = {((int32_t)n + 127) << 23};
    return p * power.value;
}

typedef struct {
    float low, high;
} Range;

/* Minimum and maximum of n numbers. Written with vectors: compilers do not vectorize comparisons that NaN may reach. */
INLINE Range min_max(const float *x, int64_t n) {
    Floats low = broadcast_float(x[0]), high = low;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        low = minimum(load_floats(x + i), low);
        high = maximum(load_floats(x + i), high);
    }
    float lows[LANES], highs[LANES];
    store_floats(lows, low);
    store_floats(highs, high);
    Range range = {lows[0], highs[0]};
    for (int j = 1; j < LANES; j++) {
        range.low = lows[j] < range.low ? lows[j] : range.low;
        range.high = highs[j] > range.high ? highs[j] : range.high;
    }
    for (; i < n; i++) {
        range.low = x[i] < range.low ? x[i] : range.low;
        range.high = x[i] > range.high ? x[i] : range.high;
    }
    return range;
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

#define BYTE_OFFSET (128 - BYTE_BIAS) /* subtracted from unsigned bytes where `dot` takes signed ones */

static void quantize_row(Rows *rows, int64_t row, int64_t n) {
    const float *x = rows->x + row * rows->stride;
    uint8_t *bytes = rows->bytes + row * rows->bytes_stride;
    Range of = min_max(x, n);
    float low = of.low, step = of.high > low ? (of.high - low) / 255.0f : 1.0f, inverse = 1.0f / step;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) bytes[i] = (uint8_t)((int32_t)((x[i] - low) * inverse + 0.5f) - BYTE_OFFSET);
    for (int64_t i = n; i % 4; i++) bytes[i] = 0; /* padding; the weights there are zeros */
    rows->minimum[row] = BYTE_OFFSET ? low + step * BYTE_OFFSET : low;
    rows->scale[row] = step;
}

/* Whether the feed-forward layer is a gated linear unit: y = activation(gate) * up. */
INLINE int is_gated(Activation activation) { return activation == SWIGLU || activation == GEGLU; }

INLINE float apply_activation(Activation activation, float x) {
    if (activation == RELU) return x > 0 ? x : 0;
    if (activation == SWIGLU) return x / (1.0f + fast_exp(-x));
    return x / (1.0f + fast_exp(-1.5957691216f * (x + 0.044715f * x * x * x))); /* GELU, tanh approximation */
}

INLINE void activate_rows(Activation activation, const float *x, const float *up, float *y, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = apply_activation(activation, x[i]) * (is_gated(activation) ? up[i] : 1.0f);
}

static void activate(Activation activation, const float *x, const float *up, float *y, int64_t n) {
    if (activation == RELU) activate_rows(RELU, x, up, y, n);
    else if (activation == GELU) activate_rows(GELU, x, up, y, n);
    else if (activation == SWIGLU) activate_rows(SWIGLU, x, up, y, n);
    else activate_rows(GEGLU, x, up, y, n);
}
