/* ARM NEON with dot products of 8 bits: four registers of 128 bits. See vectors.h. */

#include <arm_neon.h>

#define BYTE_BIAS 0 /* `sdot` multiplies signed bytes by signed ones */
#define TALL_ROWS 6 /* 24 sums, and 8 registers for the rest */
#define TALL_BLOCKS 1
#define FLAT_BLOCKS 1

typedef struct {
    float32x4_t a, b, c, d;
} Floats;
typedef struct {
    int32x4_t a, b, c, d;
} Ints;
typedef struct {
    int8x16_t a, b, c, d;
} Bytes;

#define OF_QUARTERS(Type, function) \
    (Type) { function(a), function(b), function(c), function(d) }

INLINE Floats broadcast_float(float x) {
    float32x4_t quarter = vdupq_n_f32(x);
    return (Floats){quarter, quarter, quarter, quarter};
}
INLINE Floats zero_floats(void) { return broadcast_float(0); }
INLINE Floats load_floats(const float *from) {
    return (Floats){vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)};
}
INLINE void store_floats(float *to, Floats x) {
    vst1q_f32(to, x.a);
    vst1q_f32(to + 4, x.b);
    vst1q_f32(to + 8, x.c);
    vst1q_f32(to + 12, x.d);
}
INLINE Floats add(Floats x, Floats y) {
#define QUARTER(q) vaddq_f32(x.q, y.q)
    return OF_QUARTERS(Floats, QUARTER);
#undef QUARTER
}
INLINE Floats multiply(Floats x, Floats y) {
#define QUARTER(q) vmulq_f32(x.q, y.q)
    return OF_QUARTERS(Floats, QUARTER);
#undef QUARTER
}
INLINE Floats multiply_add(Floats x, Floats y, Floats z) {
#define QUARTER(q) vfmaq_f32(z.q, x.q, y.q)
    return OF_QUARTERS(Floats, QUARTER);
#undef QUARTER
}
INLINE Floats minimum(Floats x, Floats y) {
#define QUARTER(q) vminq_f32(x.q, y.q)
    return OF_QUARTERS(Floats, QUARTER);
#undef QUARTER
}
INLINE Floats maximum(Floats x, Floats y) {
#define QUARTER(q) vmaxq_f32(x.q, y.q)
    return OF_QUARTERS(Floats, QUARTER);
#undef QUARTER
}

INLINE float32x4_t four_bf16(const uint16_t *from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }
INLINE Floats load_bf16(const uint16_t *from) {
    return (Floats){four_bf16(from), four_bf16(from + 4), four_bf16(from + 8), four_bf16(from + 12)};
}
INLINE float32x4_t four_fp16(const uint16_t *from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
INLINE Floats load_fp16(const uint16_t *from) {
    return (Floats){four_fp16(from), four_fp16(from + 4), four_fp16(from + 8), four_fp16(from + 12)};
}
INLINE Floats load_int8(const int8_t *from) {
    int8x16_t bytes = vld1q_s8(from);
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return (Floats){vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
}
INLINE uint16_t to_fp16(float x) { return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0); }

INLINE Ints broadcast_int(int32_t x) {
    int32x4_t quarter = vdupq_n_s32(x);
    return (Ints){quarter, quarter, quarter, quarter};
}
INLINE Ints zero_ints(void) { return broadcast_int(0); }
INLINE Ints add_ints(Ints x, Ints y) {
#define QUARTER(q) vaddq_s32(x.q, y.q)
    return OF_QUARTERS(Ints, QUARTER);
#undef QUARTER
}
INLINE Floats ints_to_floats(Ints x) {
#define QUARTER(q) vcvtq_f32_s32(x.q)
    return OF_QUARTERS(Floats, QUARTER);
#undef QUARTER
}
INLINE Bytes load_bytes(const void *from) {
    const int8_t *bytes = from;
    return (Bytes){vld1q_s8(bytes), vld1q_s8(bytes + 16), vld1q_s8(bytes + 32), vld1q_s8(bytes + 48)};
}
INLINE Bytes broadcast_bytes(int32_t four) {
    int8x16_t quarter = vreinterpretq_s8_s32(vdupq_n_s32(four));
    return (Bytes){quarter, quarter, quarter, quarter};
}
INLINE Ints dot(Ints sums, Bytes x, Bytes y) {
#define QUARTER(q) vdotq_s32(sums.q, x.q, y.q)
    return OF_QUARTERS(Ints, QUARTER);
#undef QUARTER
}
