// What the skins of the losses share: reductions, wrong labels in messages, scalars, sums over units.
#pragma once

#include "skin.h"

namespace fcn {

enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2, kMeanAll = 3 };

// Says that pixel `bad` of a target of labels, counted as if it were contiguous, is neither a class nor ignored.
[[noreturn]] inline void report_bad_label(const char* op, const Tensor& target, int64_t bad, int64_t classes,
                                          std::optional<int64_t> ignore_index) {
  std::vector<int64_t> where(target.dim());
  int64_t at = 0, rest = bad;
  for (int64_t d = target.dim() - 1; d >= 0; --d) {
    where[d] = rest % target.size(d);
    at += where[d] * target.stride(d);
    rest /= target.size(d);
  }
  const void* p = target.const_data_ptr();
  int64_t label;
  switch (target.scalar_type()) {
    case ScalarType::Byte:
      label = static_cast<const uint8_t*>(p)[at];
      break;
    case ScalarType::Short:
      label = static_cast<const int16_t*>(p)[at];
      break;
    case ScalarType::Int:
      label = static_cast<const int32_t*>(p)[at];
      break;
    default:
      label = static_cast<const int64_t*>(p)[at];
  }
  fail_on_label(op, where, label, classes, ignore_index);
}

// The sum of one weight per class, in double precision; `weight` is contiguous.
inline double sum_of_weights(const char* op, const Tensor& weight, int64_t classes, ScalarType dtype) {
  check(weight.dim() == 1 && weight.size(0) == classes && weight.scalar_type() == dtype, op, "weight must hold one ",
        dtype == ScalarType::Double ? "float64" : "float32", " for each of the ", classes, " classes");
  double sum = 0;
  for (int64_t c = 0; c < classes; ++c) {
    sum += dtype == ScalarType::Double ? static_cast<const double*>(weight.const_data_ptr())[c]
                                       : static_cast<const float*>(weight.const_data_ptr())[c];
  }
  return sum;
}

inline Tensor scalar(const Tensor& like, ScalarType dtype, double value) {
  Tensor t = empty_vector(like, {}, dtype);
  if (dtype == ScalarType::Double) {
    *static_cast<double*>(t.data_ptr()) = value;
  } else {
    *static_cast<float*>(t.data_ptr()) = static_cast<float>(value);
  }
  return t;
}

// Adds what each unit kept apart for the first row of the next one: `side_of(n, c, unit)` is where its w values of
// channel c stand.
template <typename T, typename SideOf>
void add_sides(const Image& out, const Geometry& g, const SideOf& side_of) {
  torch::stable::parallel_for(0, out.batch * out.channels, 8, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / out.channels, c = plane % out.channels;
      for (int64_t unit = 0; unit < g.unit_count; ++unit) {
        const int64_t y = g.units[unit].side_row;
        if (y < 0) continue;
        const T* from = side_of(n, c, unit);
        T* to = static_cast<T*>(out.data) + n * out.stride_n + c * out.stride_c + y * out.stride_h;
        for (int64_t x = 0; x < out.width; ++x) to[x * out.stride_w] += from[x];
      }
    }
  });
}

}  // namespace fcn
