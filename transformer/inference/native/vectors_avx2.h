/* AVX2 with FMA and F16C: two registers of 256 bits. With AVX-VNNI, where the compiler may use it. See vectors.h. */

#include <immintrin.h>

#define BYTE_BIAS 128
#define TALL_ROWS 6 /* 12 sums, and 4 registers for the rest */
#define TALL_BLOCKS 1
#define FLAT_BLOCKS 1

typedef struct {
    __m256 a, b;
} Floats;
typedef struct {
    __m256i a, b;
} Ints;
typedef Ints Bytes;

INLINE Floats zero_floats(void) { return (Floats){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE Floats broadcast_float(float x) { return (Floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE Floats load_floats(const float *from) { return (Floats){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
INLINE void store_floats(float *to, Floats x) {
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
}
INLINE Floats add(Floats x, Floats y) { return (Floats){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE Floats multiply(Floats x, Floats y) { return (Floats){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE Floats multiply_add(Floats x, Floats y, Floats z) {
    return (Floats){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INLINE Floats minimum(Floats x, Floats y) { return (Floats){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INLINE Floats maximum(Floats x, Floats y) { return (Floats){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

INLINE __m256 eight_bf16(const uint16_t *from) {
    __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(low, 16));
}
INLINE Floats load_bf16(const uint16_t *from) { return (Floats){eight_bf16(from), eight_bf16(from + 8)}; }
INLINE __m256 eight_fp16(const uint16_t *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }
INLINE Floats load_fp16(const uint16_t *from) { return (Floats){eight_fp16(from), eight_fp16(from + 8)}; }
INLINE __m256 eight_int8(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}
INLINE Floats load_int8(const int8_t *from) { return (Floats){eight_int8(from), eight_int8(from + 8)}; }
INLINE uint16_t to_fp16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

INLINE Ints zero_ints(void) { return (Ints){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE Ints broadcast_int(int32_t x) { return (Ints){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE Ints add_ints(Ints x, Ints y) { return (Ints){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
INLINE Floats ints_to_floats(Ints x) { return (Floats){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE Bytes load_bytes(const void *from) {
    const __m256i *halves = from;
    return (Bytes){_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
INLINE Bytes broadcast_bytes(int32_t four) { return broadcast_int(four); }

#if defined(__AVXVNNI__)
INLINE __m256i eight_dots(__m256i sums, __m256i biased, __m256i signs) {
    return _mm256_dpbusd_avx_epi32(sums, biased, signs);
}
#else
/* The sum of two products of a biased byte and a signed one may exceed 16 bits (maddubs would saturate), so the bytes
   become 16 bits wide: those with an odd number by a shift, those with an even one by a mask or two shifts. */
INLINE __m256i eight_dots(__m256i sums, __m256i biased, __m256i signs) {
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(biased, _mm256_set1_epi16(255)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(signs, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(biased, 8), _mm256_srai_epi16(signs, 8));
    return _mm256_add_epi32(_mm256_add_epi32(sums, even), odd);
}
#endif
INLINE Ints dot(Ints sums, Bytes biased, Bytes signs) {
    return (Ints){eight_dots(sums.a, biased.a, signs.a), eight_dots(sums.b, biased.b, signs.b)};
}
