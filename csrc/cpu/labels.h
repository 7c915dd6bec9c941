// Integer labels of any type as int32, those that do not count as the extra class C.
#pragma once

#include "dtype.h"

namespace fcn {
namespace FCN_ISA {

// A vector of labels as 32-bit lanes. Those of 64 bits come out of order, low halves of two vectors block by block;
// `wrong` takes the lanes that do not fit.
#define FCN_LABEL_LANES(Label)                                                             \
  typedef Label Lanes_##Label __attribute__((vector_size(kLanes<float> * sizeof(Label)))); \
  FCN_INLINE IntVec<float> load_lanes(const Label* p, IntVec<float>*) {                    \
    Lanes_##Label v;                                                                       \
    memcpy(&v, p, sizeof(v));                                                              \
    return __builtin_convertvector(v, IntVec<float>);                                      \
  }                                                                                        \
  FCN_INLINE IntVec<float> in_order(IntVec<float> v, const Label*) { return v; }
FCN_LABEL_LANES(uint8_t)
FCN_LABEL_LANES(int16_t)
FCN_LABEL_LANES(int32_t)
#undef FCN_LABEL_LANES

template <bool High>
struct HalvesPattern {
  static constexpr int of(int i, int L) { return (i % 4 < 2 ? 0 : L) + i / 4 * 4 + i % 2 * 2 + (High ? 1 : 0); }
};
struct BlocksPattern {
  static constexpr int of(int i, int L) { return (i < L / 2 ? i / 2 * 4 : (i - L / 2) / 2 * 4 + 2) + i % 2; }
};
FCN_INLINE IntVec<float> load_lanes(const int64_t* p, IntVec<float>* wrong) {
  const Vec<float> a = load((const float*)p), b = load((const float*)p + kLanes<float>);
  const IntVec<float> low = (IntVec<float>)shuffle<float>(a, b, HalvesPattern<false>());
  const IntVec<float> high = (IntVec<float>)shuffle<float>(a, b, HalvesPattern<true>());
  *wrong |= high ^ (low >> 31);
  return low;
}
FCN_INLINE IntVec<float> in_order(IntVec<float> v, const int64_t*) {
  return (IntVec<float>)shuffle<float>((Vec<float>)v, (Vec<float>)v, BlocksPattern());
}

// Converts `count` labels, `stride` elements apart; returns the position of the first that is neither a class nor the
// ignored label, or -1.
template <typename Label>
inline int64_t convert_labels_as(const Label* from, int64_t stride, int64_t count, int32_t classes, bool ignores,
                                 int64_t ignore_index, int32_t* to) {
  using I = IntVec<float>;
  constexpr int n = kLanes<float>;
  const int32_t ignore = (int32_t)ignore_index;
  const bool fits = ignore == ignore_index;
  const I may_ignore = I{} - (int32_t)(ignores && fits);
  const auto is_ignored = [&](int64_t label) { return ignores && label == ignore_index; };
  const auto is_wrong = [&](int64_t label) { return !is_ignored(label) && (uint64_t)label >= (uint64_t)classes; };
  I wrong{};
  int64_t i = 0;
  const int64_t vectors = stride == 1 && (fits || !ignores || sizeof(Label) < sizeof(int64_t)) ? count : 0;
  for (; i + n <= vectors; i += n) {
    const I label = load_lanes(from + i, &wrong), ignored = (label == ignore) & may_ignore;
    wrong |= ~ignored & ((label < 0) | (label >= classes));
    const I result = in_order(ignored ? I{} + classes : label, from);
    memcpy(to + i, &result, sizeof(result));
  }
  bool bad = any(wrong != I{});
  for (; i < count; ++i) {
    const int64_t label = (int64_t)from[i * stride];
    bad |= is_wrong(label);
    to[i] = is_ignored(label) ? classes : (int32_t)label;
  }
  for (int64_t p = 0; bad && p < count; ++p) {
    if (is_wrong((int64_t)from[p * stride])) return p;
  }
  return -1;
}

// Labels of type `type` from element `begin` on.
inline int64_t convert_labels(LabelType type, const void* from, int64_t begin, int64_t stride, int64_t count,
                              int64_t classes, bool ignores, int64_t ignore_index, int32_t* to) {
  const auto convert = [&](auto* labels) {
    return convert_labels_as(labels + begin, stride, count, (int32_t)classes, ignores, ignore_index, to);
  };
  return visit_label(type, [&](auto zero) { return convert((const decltype(zero)*)from); });
}

// Converted labels that load as numbers.
template <typename T>
struct Number {
  int32_t value;
};
FCN_INLINE float to_arithmetic(Number<float> v) { return (float)v.value; }
FCN_INLINE double to_arithmetic(Number<double> v) { return (double)v.value; }
FCN_INLINE Vec<float> load_as(const Number<float>* p) {
  IntVec<float> v;
  memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Vec<float>);
}
FCN_INLINE Vec<double> load_as(const Number<double>* p) {
  typedef int32_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  Halves v;
  memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Vec<double>);
}

}  // namespace FCN_ISA
}  // namespace fcn
