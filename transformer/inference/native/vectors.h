/* A vector layer: vectors of 16 columns, in the instruction set that this file is compiled for.

       Floats  16 floats            Ints  16 int32            Bytes  4 bytes for each of 16 columns

   Each instruction set has a header that defines these functions. All other code uses them alone:

       zero_floats, broadcast_float, load_floats, store_floats, add, multiply, multiply_add (a * b + c),
       minimum, maximum (elementwise), load_bf16, load_fp16, load_int8 (16 numbers, converted to floats),
       to_fp16 (one number),
       zero_ints, broadcast_int, add_ints, ints_to_floats, load_bytes, broadcast_bytes (the same four in all columns),
       dot (sums + the dot product of the four bytes of each column, exact)

   and these constants:

       BYTE_BIAS               added to the bytes of the first argument of `dot`, which are unsigned if it is 128
       TALL_ROWS, TALL_BLOCKS  tile of many rows, in rows and in blocks of columns: its sums fill the registers
       FLAT_BLOCKS             width of a tile of four rows, in blocks of columns

   The compiler flags of each instruction set are in instruction_sets.py. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define MAX_TILE_ROWS 8 /* of a tile */
#define MAX_TILE_BLOCKS 4 /* of a tile, in blocks */

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include "vectors_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "vectors_avx2.h"
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include "vectors_neon.h"
#else
#error "this file needs AVX-512 with VNNI, AVX2 with FMA and F16C, or NEON with dot products"
#endif
