/* Matrix products. Every right-hand matrix is stored in blocks of 16 columns: see kernel.c. */

#include "model.h"
#include "vectors.h"

typedef struct { /* inputs of a linear layer, (count, inputs), and the same in 8 bits: x = minimum + scale * byte */
    float *x;
    uint8_t *bytes;
    float *minimum, *scale; /* (count) */
    int64_t count, stride, bytes_stride; /* strides: from row to row */
} Rows;

#define COLUMNS_PER_CLAIM 64 /* output columns that a thread claims at a time: for one row a few microseconds */

/* Prefetch one page ahead: the hardware prefetcher does not cross page boundaries. */
INLINE void prefetch(const void *weight, int64_t bytes) { __builtin_prefetch((const char *)weight + bytes + 4096); }

INLINE int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

INLINE int64_t bytes_of(DType dtype) { return dtype == FP32 ? 4 : dtype == INT8 ? 1 : 2; }

INLINE Floats load(DType dtype, const void *weight, int64_t at) {
    if (dtype == FP32) return load_floats((const float *)weight + at);
    if (dtype == INT8) return load_int8((const int8_t *)weight + at);
    return dtype == FP16 ? load_fp16((const uint16_t *)weight + at) : load_bf16((const uint16_t *)weight + at);
}

/* sums (rows, width * 16) = x (rows, inputs) times `width` blocks of columns. The sums stay in registers.

   Element (k, n) of block b is at weight[b * block + k * stride + n]. */
INLINE void gemm_tile(int rows, int width, DType dtype, const float *x, int64_t x_stride, const void *weight,
                      int64_t inputs, int64_t block, int64_t stride, Floats sums[MAX_TILE_ROWS][MAX_TILE_BLOCKS]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = zero_floats();
    for (int64_t k = 0; k < inputs; k++) {
        Floats w[MAX_TILE_BLOCKS];
        for (int b = 0; b < width; b++) {
            w[b] = load(dtype, weight, b * block + k * stride);
            if (rows > 1 && (dtype == FP32 || k % 2)) prefetch(weight, (b * block + k * stride) * bytes_of(dtype));
        }
        if (rows == 1)
            prefetch(weight, k * stride * bytes_of(dtype)); /* values of the cache, whose blocks are adjacent */
        for (int r = 0; r < rows; r++) {
            Floats value = broadcast_float(x[r * x_stride + k]);
            for (int b = 0; b < width; b++) sums[r][b] = multiply_add(value, w[b], sums[r][b]);
        }
    }
}

/* One row times one block of columns: reads the weights in the order in which they are stored. */
INLINE Floats gemv(DType dtype, const float *x, const void *weight, int64_t inputs) {
    Floats sums[4] = {zero_floats(), zero_floats(), zero_floats(), zero_floats()};
    int64_t k = 0;
    for (; k + 4 <= inputs; k += 4)
        for (int i = 0; i < 4; i++) {
            sums[i] = multiply_add(broadcast_float(x[k + i]), load(dtype, weight, (k + i) * LANES), sums[i]);
            if (dtype == FP32 || i % 2) prefetch(weight, (k + i) * LANES * bytes_of(dtype));
        }
    for (; k < inputs; k++) sums[0] = multiply_add(broadcast_float(x[k]), load(dtype, weight, k * LANES), sums[0]);
    return add(add(sums[0], sums[1]), add(sums[2], sums[3]));
}

/* gemm_tile for 8 bits: four products per column and instruction. */
INLINE void gemm_tile_int8(int rows, int width, const uint8_t *x, int64_t x_stride, const int8_t *weight,
                           int64_t inputs, Ints sums[MAX_TILE_ROWS][MAX_TILE_BLOCKS]) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < width; b++) sums[r][b] = zero_ints();
    for (int64_t k = 0; k < inputs; k += 4) {
        Bytes w[MAX_TILE_BLOCKS];
        for (int b = 0; b < width; b++) {
            w[b] = load_bytes(weight + (b * inputs + k) * LANES);
            if (rows > 1) prefetch(weight, (b * inputs + k) * LANES); /* measured: slower for one row */
        }
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_stride + k, 4);
            Bytes value = broadcast_bytes(four);
            for (int b = 0; b < width; b++) sums[r][b] = dot(sums[r][b], value, w[b]);
        }
    }
}

typedef struct { /* where results are written: out (rows, columns), to which `added` is added unless it is NULL */
    float *out;
    const float *added;
    int64_t stride;
} Target;

/* One tile of a linear layer: rows from `row` and columns from `column`, written from column `at` of the target. */
INLINE void linear_tile(int rows, int width, DType dtype, const Linear *p, const Rows *in, int64_t row, int64_t column,
                        Target to, int64_t at) {
    Floats sums[MAX_TILE_ROWS][MAX_TILE_BLOCKS];
    if (dtype == INT8) {
        Ints whole[MAX_TILE_ROWS][MAX_TILE_BLOCKS];
        gemm_tile_int8(rows, width, in->bytes + row * in->bytes_stride, in->bytes_stride,
                       (const int8_t *)p->weight + column * p->inputs, p->inputs, whole);
        for (int b = 0; b < width; b++) {
            Floats scale = load_floats(p->scale + column + b * LANES);
            Floats sum = load_floats(p->sum + column + b * LANES);
            for (int r = 0; r < rows; r++)
                sums[r][b] =
                    multiply_add(ints_to_floats(whole[r][b]), multiply(scale, broadcast_float(in->scale[row + r])),
                                 multiply(sum, broadcast_float(in->minimum[row + r])));
        }
    } else {
        const float *x = in->x + row * in->stride;
        const char *weight = (const char *)p->weight + column * p->inputs * bytes_of(dtype);
        if (rows == 1)
            for (int b = 0; b < width; b++)
                sums[0][b] = gemv(dtype, x, weight + b * LANES * p->inputs * bytes_of(dtype), p->inputs);
        else gemm_tile(rows, width, dtype, x, in->stride, weight, p->inputs, p->inputs * LANES, LANES, sums);
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

/* All rows times one to four blocks: the weights are read from memory once, then from the processor's cache. */
INLINE void linear_blocks(int width, DType dtype, const Linear *p, const Rows *in, int64_t column, Target to,
                          int64_t at) {
    int64_t row = 0;
    int tall = width < TALL_BLOCKS ? width : TALL_BLOCKS, flat = width < FLAT_BLOCKS ? width : FLAT_BLOCKS;
    for (; row + TALL_ROWS <= in->count; row += TALL_ROWS)
        for (int b = 0; b < width; b += tall)
            linear_tile(TALL_ROWS, tall, dtype, p, in, row, column + b * LANES, to, at + b * LANES);
    for (; row + 4 <= in->count; row += 4)
        for (int b = 0; b < width; b += flat)
            linear_tile(4, flat, dtype, p, in, row, column + b * LANES, to, at + b * LANES);
    for (; row < in->count; row++) linear_tile(1, width, dtype, p, in, row, column, to, at);
}

INLINE void linear_columns_as(DType dtype, const Linear *p, const Rows *in, int64_t column, int64_t columns, Target to,
                              int64_t at) {
    if (columns == COLUMNS_PER_CLAIM) linear_blocks(4, dtype, p, in, column, to, at);
    else
        for (int64_t b = 0; b < columns; b += LANES) linear_blocks(1, dtype, p, in, column + b, to, at + b);
}

/* `columns` outputs of a linear layer for all rows: at most COLUMNS_PER_CLAIM, a multiple of 16. */
static void linear_columns(const Linear *p, const Rows *in, int64_t column, int64_t columns, Target to, int64_t at) {
    if (p->dtype == INT8) linear_columns_as(INT8, p, in, column, columns, to, at);
    else if (p->dtype == BF16) linear_columns_as(BF16, p, in, column, columns, to, at);
    else linear_columns_as(FP32, p, in, column, columns, to, at);
}

/* Scores and weighted sums of attention: a few rows, computed by one thread. Layout as in gemm_tile. */
INLINE void small_matmul_as(DType dtype, const float *x, int64_t rows, int64_t x_stride, const void *weight,
                            int64_t inputs, int64_t block, int64_t stride, int64_t blocks, float *out,
                            int64_t out_stride) {
    for (int64_t b = 0; b < blocks;) {
        int width = b + 4 <= blocks ? 4 : 1;
        const char *from = (const char *)weight + b * block * bytes_of(dtype);
        for (int64_t r = 0; r < rows;) {
            Floats sums[MAX_TILE_ROWS][MAX_TILE_BLOCKS];
            int count = r + 4 <= rows ? 4 : 1, wide = count == 1 || FLAT_BLOCKS == 4 ? width : 1;
            const float *row = x + r * x_stride;
            for (int at = 0; at < width; at += wide) {
                const char *part = from + at * block * bytes_of(dtype);
                if (count == 4 && wide == 4) gemm_tile(4, 4, dtype, row, x_stride, part, inputs, block, stride, sums);
                else if (count == 4) gemm_tile(4, 1, dtype, row, x_stride, part, inputs, block, stride, sums);
                else if (block == inputs * LANES) /* keys: consecutive blocks */
                    for (int j = 0; j < wide; j++)
                        sums[0][j] = gemv(dtype, row, part + j * block * bytes_of(dtype), inputs);
                else if (wide == 4) gemm_tile(1, 4, dtype, row, x_stride, part, inputs, block, stride, sums);
                else gemm_tile(1, 1, dtype, row, x_stride, part, inputs, block, stride, sums);
                for (int i = 0; i < count; i++)
                    for (int j = 0; j < wide; j++)
                        store_floats(out + (r + i) * out_stride + (b + at + j) * LANES, sums[i][j]);
            }
            r += count;
        }
        b += width;
    }
}

static void small_matmul(DType dtype, const float *x, int64_t rows, int64_t x_stride, const void *weight,
                         int64_t inputs, int64_t block, int64_t stride, int64_t blocks, float *out,
                         int64_t out_stride) {
    if (dtype == INT8) small_matmul_as(INT8, x, rows, x_stride, weight, inputs, block, stride, blocks, out, out_stride);
    else if (dtype == FP16)
        small_matmul_as(FP16, x, rows, x_stride, weight, inputs, block, stride, blocks, out, out_stride);
    else small_matmul_as(FP32, x, rows, x_stride, weight, inputs, block, stride, blocks, out, out_stride);
}
