// The softmax of bilinear logits as geometric progressions: constants shared by every backend.
//
// Between two neighbouring inputs a logit is a + d f_k with f_k = f_0 + k step, so exp(a + d f_k - M) = e_0 r^k with
// e_0 = exp(a + d f_0 - M), r = exp(d step): two exponentials serve all pixels k of a segment.
//
// Hazard: M bounds the logits of a whole tile, so a pixel's own largest term can lie far below exp(0), and a chain that
// starts below the smallest normal number exp(lowest) has lost its digits. A class that starts there contributes less
// than exp(lowest + max(d, 0)) to any pixel of the segment, so with C classes the relative error of S_k is at most
//   C exp(lowest + max(d, 0)) / S_k;
// where that is not below kLostTolerance the row is computed directly, each pixel with its own maximum.
#pragma once

namespace fcn {

template <typename T>
struct ChainLimits;

template <>
struct ChainLimits<float> {
  static constexpr float kLowest = -87.3f;
  static constexpr float kLogLostTolerance = -20.0f;  // 2e-9
};

template <>
struct ChainLimits<double> {
  static constexpr double kLowest = -708.3;
  static constexpr double kLogLostTolerance = -40.0;  // 4e-18
};

}  // namespace fcn
