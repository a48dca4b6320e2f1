/* AVX-512 with VNNI: one register of 512 bits. See vectors.h. */

#include <immintrin.h>

#define BYTE_BIAS 128
#define TALL_ROWS 8
#define TALL_BLOCKS 2
#define FLAT_BLOCKS 4

typedef __m512 Floats;
typedef __m512i Ints;
typedef __m512i Bytes;

INLINE Floats zero_floats(void) { return _mm512_setzero_ps(); }
INLINE Floats broadcast_float(float x) { return _mm512_set1_ps(x); }
INLINE Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store_floats(float *to, Floats x) { _mm512_storeu_ps(to, x); }
INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }

INLINE Floats load_bf16(const uint16_t *from) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(low, 16));
}
INLINE Floats load_fp16(const uint16_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
INLINE Floats load_int8(const int8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
}
INLINE uint16_t to_fp16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

INLINE Ints zero_ints(void) { return _mm512_setzero_si512(); }
INLINE Ints broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
INLINE Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
INLINE Floats ints_to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
INLINE Bytes load_bytes(const void *from) { return _mm512_loadu_si512(from); }
INLINE Bytes broadcast_bytes(int32_t four) { return _mm512_set1_epi32(four); }
INLINE Ints dot(Ints sums, Bytes biased, Bytes signs) { return _mm512_dpbusd_epi32(sums, biased, signs); }
