// Loads and stores that convert: float, double, half and bfloat16 in memory, float or double in registers.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace fcn {
namespace FCN_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename In>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

FCN_INLINE float bits_to_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
FCN_INLINE uint32_t float_to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

FCN_INLINE float to_arithmetic(float v) { return v; }
FCN_INLINE double to_arithmetic(double v) { return v; }
FCN_INLINE float to_arithmetic(BFloat16 v) { return bits_to_float((uint32_t)v.bits << 16); }
FCN_INLINE float to_arithmetic(Half v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#elif defined(__aarch64__)
  __fp16 half;
  memcpy(&half, &v.bits, 2);
  return half;
#else
  // Shift the 10-bit mantissa into place and rescale by 2^112. A subnormal would be one in single precision too, which
  // FlushDenormals reads as zero: it is its mantissa times 2^-24.
  const uint32_t sign = (uint32_t)(v.bits & 0x8000) << 16, rest = (uint32_t)(v.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return bits_to_float(sign | rest | 0x7f800000);  // infinity and NaN
  if (rest < 0x00800000) return bits_to_float(sign | float_to_bits((float)(v.bits & 0x7fff) * 5.9604645e-8f));
  return bits_to_float(sign | float_to_bits(bits_to_float(rest) * 5.192296858534828e33f));
#endif
}

FCN_INLINE void from_arithmetic(float v, float* out) { *out = v; }
FCN_INLINE void from_arithmetic(double v, double* out) { *out = v; }
FCN_INLINE void from_arithmetic(float v, BFloat16* out) {
  const uint32_t bits = float_to_bits(v);
  // Round to nearest, ties to even; a NaN stays a NaN.
  out->bits = v != v ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
FCN_INLINE void from_arithmetic(float v, Half* out) {
#if defined(__F16C__)
  out->bits = _cvtss_sh(v, 0);
#elif defined(__aarch64__)
  const __fp16 half = v;
  memcpy(&out->bits, &half, 2);
#else
  const uint32_t bits = float_to_bits(v), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    out->bits = 0x7e00;
  } else if (rest >= 0x477ff000) {  // rounds to 65536 or more
    out->bits = (uint16_t)(sign | 0x7c00);
  } else if (rest < 0x38800000) {  // subnormal: adding 1/2 puts the rounded result into the low mantissa bits
    out->bits = (uint16_t)(sign | (float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000));
  } else {
    out->bits = (uint16_t)(sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13));
  }
#endif
}

template <typename In>
using ArithmeticOf = typename Arithmetic<In>::type;

FCN_INLINE Vec<float> load_as(const float* p) { return load(p); }
FCN_INLINE Vec<double> load_as(const double* p) { return load(p); }
template <typename In>
FCN_INLINE Vec<float> load_converting(const In* p) {
  float t[kLanes<float>];
  for (int l = 0; l < kLanes<float>; ++l) t[l] = to_arithmetic(p[l]);
  return load(t);
}
FCN_INLINE Vec<float> load_as(const BFloat16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#elif defined(__aarch64__)
  return (Vec<float>)vshll_n_u16(vld1_u16(&p->bits), 16);
#else
  return load_converting(p);
#endif
}
FCN_INLINE Vec<float> load_as(const Half* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__aarch64__)
  return (Vec<float>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#else
  return load_converting(p);
#endif
}

FCN_INLINE void store_as(float* p, Vec<float> v) { store(p, v); }
FCN_INLINE void store_as(double* p, Vec<double> v) { store(p, v); }
FCN_INLINE void store_as(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, 0));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, 0));
#elif defined(__aarch64__)
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
  for (int l = 0; l < kLanes<float>; ++l) from_arithmetic(v[l], p + l);
#endif
}
FCN_INLINE void store_as(BFloat16* p, Vec<float> v) {
  const IntVec<float> bits = (IntVec<float>)v;
  const IntVec<float> rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const IntVec<float> result = v == v ? rounded : (bits | 0x00400000);
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)result, 16)));
#elif defined(__AVX2__)
  const __m256i high = _mm256_srli_epi32((__m256i)result, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
#elif defined(__aarch64__)
  vst1_u16(&p->bits, vshrn_n_u32((uint32x4_t)result, 16));
#else
  uint16_t t[kLanes<float>];
  for (int l = 0; l < kLanes<float>; ++l) t[l] = (uint16_t)((uint32_t)result[l] >> 16);
  memcpy(p, t, sizeof(t));
#endif
}

// Calls f with a zero of the element type that dtype names.
template <typename F>
FCN_INLINE auto visit_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat:
      return f(float{});
    case DType::kDouble:
      return f(double{});
    case DType::kHalf:
      return f(Half{});
    default:
      return f(BFloat16{});
  }
}

// Calls f with a zero of the integer type of labels.
template <typename F>
FCN_INLINE auto visit_label(LabelType type, F f) {
  switch (type) {
    case LabelType::kUInt8:
      return f(uint8_t{});
    case LabelType::kInt16:
      return f(int16_t{});
    case LabelType::kInt32:
      return f(int32_t{});
    default:
      return f(int64_t{});
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
