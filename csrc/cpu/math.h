// exp and log on vectors. Polynomials: weighted minimax fits (Lawson's iteration) of this project; relative error of
// the fit 3.1e-9 (exp) and 8.2e-10 (log) in single, 3.7e-18 and 1.3e-18 in double precision.
#pragma once

#include "simd.h"

namespace fcn {
namespace FCN_ISA {

template <typename T>
struct ExpLimits;
template <>
struct ExpLimits<float> {
  static constexpr float lowest = -87.3f, highest = 88.0f;  // exp() stays a normal, finite number
};
template <>
struct ExpLimits<double> {
  static constexpr double lowest = -708.3, highest = 709.0;
};

// exp(x) for x within ExpLimits: x = n log 2 + r, |r| <= log(2) / 2, exp(x) = 2^n exp(r). NaN stays NaN.
FCN_INLINE Vec<float> vexp_within(Vec<float> x) {
  using V = Vec<float>;
  // Adding 1.5 * 2^23 + 127 leaves round(x / log 2) + 127, the biased exponent, in the low bits.
  const float magic = 12582912.0f + 127.0f;
  const V shifted = x * 1.44269504088896341f + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f;
  V q = broadcast(1.3814464752e-3f);
  q = q * r + 8.3687806222e-3f;
  q = q * r + 4.1668394259e-2f;
  q = q * r + 1.6666520106e-1f;
  q = q * r + 4.9999993412e-1f;
  const V p = (q * (r * r) + r) + 1.0f;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  return p * (V)((IntVec<float>)shifted << 23);
#endif
}

FCN_INLINE Vec<double> vexp_within(Vec<double> x) {
  using V = Vec<double>;
  const double magic = 6755399441055744.0 + 1023.0;
  const V shifted = x * 1.4426950408889634 + magic;
  const V n = shifted - magic;
  const V r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  V q = broadcast(2.500000284159016e-08);
  q = q * r + 2.763037929506252e-07;
  q = q * r + 2.7557587232196448e-06;
  q = q * r + 2.4801492760670733e-05;
  q = q * r + 0.00019841269504876794;
  q = q * r + 0.0013888888943924928;
  q = q * r + 0.008333333333495578;
  q = q * r + 0.04166666666652918;
  q = q * r + 0.1666666666666641;
  q = q * r + 0.5000000000000011;
  const V p = (q * (r * r) + r) + 1.0;
  return p * (V)((IntVec<double>)shifted << 52);
}

// exp(x) for any x, clamped to ExpLimits.
FCN_INLINE Vec<float> vexp(Vec<float> x) {
  return vexp_within(vmin(broadcast(ExpLimits<float>::highest), vmax(broadcast(ExpLimits<float>::lowest), x)));
}
FCN_INLINE Vec<double> vexp(Vec<double> x) {
  return vexp_within(vmin(broadcast(ExpLimits<double>::highest), vmax(broadcast(ExpLimits<double>::lowest), x)));
}

// 1 / (1 + exp(-x)); zero where that is below the smallest normal number.
template <typename T>
FCN_INLINE Vec<T> vsigmoid(Vec<T> x) {
  const Vec<T> zero{}, lowest = broadcast(ExpLimits<T>::lowest);
  const Vec<T> e = vexp_within(vmax(lowest, vmin(x, -x))), s = T(1) / (T(1) + e);
  return x < lowest ? zero : (x > zero ? s : e * s);
}

// log(x) for positive normal x: x = 2^n m, m in [sqrt(1/2), sqrt(2)), s = (m-1)/(m+1), log m = 2s + s^3 R(s^2).
FCN_INLINE Vec<float> vlog(Vec<float> x) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const I bits = (I)x - 0x3f3504f3;  // sqrt(1/2)
  const I n = bits >> 23;
  const V m = (V)((bits & 0x007fffff) + 0x3f3504f3);
  const V f = m - 1.0f;
  const V s = f / (m + 1.0f);
  const V z = s * s;
  V p = broadcast(0.2987307705818f);
  p = p * z + 0.3997749541151f;
  p = p * z + 0.6666677671879f;
  const V e = __builtin_convertvector(n, V);
  // 2s = f - s f, which keeps the digits that 2s would round away.
  return e * 0.693359375f + (f - (s * (f - z * p) + e * 2.12194440054690583e-4f));
}

FCN_INLINE Vec<double> vlog(Vec<double> x) {
  using V = Vec<double>;
  using I = IntVec<double>;
  const I bits = (I)x - 0x3fe6a09e667f3bcdLL;
  const I n = bits >> 52;
  const V m = (V)((bits & 0x000fffffffffffffLL) + 0x3fe6a09e667f3bcdLL);
  const V f = m - 1.0;
  const V s = f / (m + 1.0);
  const V z = s * s;
  V p = broadcast(0.14797508894158273);
  p = p * z + 0.1531390311158958;
  p = p * z + 0.1818356974594035;
  p = p * z + 0.22222198475846303;
  p = p * z + 0.2857142874326433;
  p = p * z + 0.39999999999411084;
  p = p * z + 0.6666666666666735;
  const V e = __builtin_convertvector(n, V);
  return e * 6.93145751953125e-1 + (f - (s * (f - z * p) - e * 1.42860682030941723212e-6));
}

// log(1 + x) for x >= 0, with the digits that 1 + x rounds away.
template <typename T>
FCN_INLINE Vec<T> vlog1p(Vec<T> x) {
  const Vec<T> y = T(1) + x;
  return vlog(y) + (x - (y - T(1))) / y;
}

template <typename T>
struct FloatBits;
template <>
struct FloatBits<float> {
  static constexpr int32_t root_half = 0x3f3504f3, mantissa = 0x007fffff;
  static constexpr int shift = 23;
};
template <>
struct FloatBits<double> {
  static constexpr int64_t root_half = 0x3fe6a09e667f3bcd, mantissa = 0x000fffffffffffff;
  static constexpr int shift = 52;
};

// The sum of log(x[k]) for K <= 8 positive normal x: exponents are summed and mantissas, in [sqrt(1/2), sqrt(2)),
// multiplied, so that one logarithm serves all.
template <typename T, int K>
FCN_INLINE Vec<T> vlog_product(const Vec<T>* x) {
  using V = Vec<T>;
  using I = IntVec<T>;
  using Bits = FloatBits<T>;
  V product = broadcast(T(1));
  I exponent{};
  for (int k = 0; k < K; ++k) {
    const I bits = (I)x[k] - Bits::root_half;
    exponent += bits >> Bits::shift;
    product *= (V)((bits & Bits::mantissa) + Bits::root_half);
  }
  return __builtin_convertvector(exponent, V) * T(0.69314718055994530942) + vlog(product);
}

// log of a sum of exponentials below 1, which may be NaN.
template <typename T>
FCN_INLINE Vec<T> log_of_sum(Vec<T> s) {
  return s == s ? vlog(s) : s;
}

}  // namespace FCN_ISA
}  // namespace fcn
