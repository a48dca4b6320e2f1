/* Matrix products. Everything that is multiplied stands in blocks of 16 columns: see kernel.c. */

#include "model.h"
#include "vectors.h"

typedef struct { /* what products take: rows of floats, and the same in 8 bits where x = low + step * byte */
    float *x;
    uint8_t *bytes;
    float *low, *step;
    int64_t count, stride, bytes_stride; /* from row to row */
} Rows;

#define PIECE 64 /* columns of a product that a thread claims at a time: some microseconds, for one row */

/* Weights are asked for a page before they are needed: the processor's own look ahead ends with the page. */
INLINE void prefetch(const void *weight, int64_t bytes) {
    __builtin_prefetch((const char *)weight + bytes + 4096);
}

INLINE int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* ---- products ---- */

INLINE int64_t size_of(Kind kind) { return kind == FP32 ? 4 : kind == INT8 ? 1 : 2; }

INLINE Floats load(Kind kind, const void *weight, int64_t at) {
    if (kind == FP32) return load_floats((const float *)weight + at);
    if (kind == INT8) return load_int8((const int8_t *)weight + at);
    return kind == FP16 ? load_fp16((const uint16_t *)weight + at) : load_bf16((const uint16_t *)weight + at);
}

/* out (rows, width * 16) = x (rows, inputs) times `width` blocks; the sums stay in registers. */
INLINE void gemm_tile(int rows, int width, Kind kind, const float *x, int64_t x_stride, const void *weight,
                      int64_t inputs, int64_t block, int64_t stride, Floats sums[MOST_ROWS][MOST_WIDTH]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = zero_floats();
    for (int64_t k = 0; k < inputs; k++) {
        Floats w[MOST_WIDTH];
        for (int b = 0; b < width; b++) {
            w[b] = load(kind, weight, b * block + k * stride);
            if (rows > 1 && (kind == FP32 || k % 2)) prefetch(weight, (b * block + k * stride) * size_of(kind));
        }
        if (rows == 1) prefetch(weight, k * stride * size_of(kind)); /* values, whose blocks lie side by side */
        for (int r = 0; r < rows; r++) {
            Floats value = spread_float(x[r * x_stride + k]);
            for (int b = 0; b < width; b++) sums[r][b] = multiply_add(value, w[b], sums[r][b]);
        }
    }
}

/* One row and one block: the weights are read in the order they stand in, as fast as memory gives them. */
INLINE Floats gemv(Kind kind, const float *x, const void *weight, int64_t inputs) {
    Floats sums[4] = {zero_floats(), zero_floats(), zero_floats(), zero_floats()};
    int64_t k = 0;
    for (; k + 4 <= inputs; k += 4)
        for (int i = 0; i < 4; i++) {
            sums[i] = multiply_add(spread_float(x[k + i]), load(kind, weight, (k + i) * LANES), sums[i]);
            if (kind == FP32 || i % 2) prefetch(weight, (k + i) * LANES * size_of(kind));
        }
    for (; k < inputs; k++) sums[0] = multiply_add(spread_float(x[k]), load(kind, weight, k * LANES), sums[0]);
    return add(add(sums[0], sums[1]), add(sums[2], sums[3]));
}

/* The same of bytes by bytes, four of each at a time. */
INLINE void gemm_tile_int8(int rows, int width, const uint8_t *x, int64_t x_stride, const int8_t *weight,
                           int64_t inputs, Ints sums[MOST_ROWS][MOST_WIDTH]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = zero_ints();
    for (int64_t k = 0; k < inputs; k += 4) {
        Bytes w[MOST_WIDTH];
        for (int b = 0; b < width; b++) {
            w[b] = load_bytes(weight + (b * inputs + k) * LANES);
            if (rows > 1) prefetch(weight, (b * inputs + k) * LANES); /* measured: one row is faster without */
        }
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_stride + k, 4);
            Bytes value = spread_bytes(four);
            for (int b = 0; b < width; b++) sums[r][b] = dot(sums[r][b], value, w[b]);
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
    Floats sums[MOST_ROWS][MOST_WIDTH];
    if (kind == INT8) {
        Ints whole[MOST_ROWS][MOST_WIDTH];
        gemm_tile_int8(rows, width, in->bytes + row * in->bytes_stride, in->bytes_stride,
                  (const int8_t *)p->weight + column * p->inputs, p->inputs, whole);
        for (int b = 0; b < width; b++) {
            Floats scale = load_floats(p->scale + column + b * LANES);
            Floats sum = load_floats(p->sum + column + b * LANES);
            for (int r = 0; r < rows; r++)
                sums[r][b] = multiply_add(ints_to_floats(whole[r][b]),
                                             multiply(scale, spread_float(in->step[row + r])),
                                             multiply(sum, spread_float(in->low[row + r])));
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
        Floats bias = p->bias ? load_floats(p->bias + column + b * LANES) : zero_floats();
        for (int r = 0; r < rows; r++) {
            int64_t place = (row + r) * to.stride + at + b * LANES;
            Floats y = add(sums[r][b], bias);
            store_floats(to.out + place, to.added ? add(y, load_floats(to.added + place)) : y);
        }
    }
}

/* All rows for one to four blocks: the weights are read from memory once, and then from the cache. */
INLINE void product_blocks(int width, Kind kind, const Product *p, const Rows *in, int64_t column, Target to,
                           int64_t at) {
    int64_t row = 0;
    int tall = width < TALL_WIDTH ? width : TALL_WIDTH, flat = width < FLAT_WIDTH ? width : FLAT_WIDTH;
    for (; row + TALL_ROWS <= in->count; row += TALL_ROWS)
        for (int b = 0; b < width; b += tall)
            product_tile(TALL_ROWS, tall, kind, p, in, row, column + b * LANES, to, at + b * LANES);
    for (; row + 4 <= in->count; row += 4)
        for (int b = 0; b < width; b += flat)
            product_tile(4, flat, kind, p, in, row, column + b * LANES, to, at + b * LANES);
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
            Floats sums[MOST_ROWS][MOST_WIDTH];
            int count = r + 4 <= rows ? 4 : 1, wide = count == 1 || FLAT_WIDTH == 4 ? width : 1;
            const float *row = x + r * x_stride;
            for (int at = 0; at < width; at += wide) {
                const char *part = from + at * block * size_of(kind);
                if (count == 4 && wide == 4) gemm_tile(4, 4, kind, row, x_stride, part, inputs, block, stride, sums);
                else if (count == 4) gemm_tile(4, 1, kind, row, x_stride, part, inputs, block, stride, sums);
                else if (block == inputs * LANES) /* keys: one block after the other */
                    for (int j = 0; j < wide; j++)
                        sums[0][j] = gemv(kind, row, part + j * block * size_of(kind), inputs);
                else if (wide == 4) gemm_tile(1, 4, kind, row, x_stride, part, inputs, block, stride, sums);
                else gemm_tile(1, 1, kind, row, x_stride, part, inputs, block, stride, sums);
                for (int i = 0; i < count; i++)
                    for (int j = 0; j < wide; j++)
                        store_floats(out + (r + i) * out_stride + (b + at + j) * LANES, sums[i][j]);
            }
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

