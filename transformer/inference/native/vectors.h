/* Vectors of 16 columns, one block wide, in the instructions that this file is compiled for.

       Floats  16 floats            Ints  16 int32            Bytes  16 times 4 bytes, of the same columns

   Each set of instructions has a header with these functions, and everything else is written in terms of them:

       zero_floats, spread_float (one number in all columns), load_floats, store_floats, add, multiply,
       multiply_add (a * b + c), smaller, larger (of each column), load_bf16, load_fp16, load_int8 (16 numbers as floats), to_fp16 (one number),
       zero_ints, spread_int, add_ints, ints_to_floats, load_bytes, spread_bytes (the same four in all columns),
       dot (sums + the four products of the bytes of each column, exact)

   and with constants:

       BYTE_BIAS              `dot` multiplies bytes with this added to them by signed bytes
       TALL_ROWS, TALL_WIDTH  of a tile of many rows, in rows and in blocks: its sums fill the registers
       FLAT_WIDTH             of a tile of four rows

   instruction_sets.py beside this file has the flags of the compiler for each. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define MOST_ROWS 8 /* of a tile */
#define MOST_WIDTH 4 /* of a tile, in blocks */

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include "vectors_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "vectors_avx2.h"
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include "vectors_neon.h"
#else
#error "this file needs AVX-512 with VNNI, AVX2 with FMA and F16C, or NEON with dot products"
#endif
