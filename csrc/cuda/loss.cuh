// What the cross-entropies share: options, the incoming gradient, sums of weights.
#pragma once

#include "reduction.cuh"

namespace fcn {
namespace {

// What turns a log-sum-exp into a loss: w [C] or null, their sum (null: C), and e.
template <typename A>
struct LossOptions {
  const A* weight;
  const A* weight_sum;
  A smoothing;

  __device__ A weight_of(int64_t label) const { return weight ? weight[label] : A(1); }
  // (1 - e) w_y + e / C sum_c w_c
  __device__ A coefficient(int64_t label, int64_t classes) const {
    const A own = (A(1) - smoothing) * weight_of(label);
    return smoothing > A(0) ? own + smoothing / A(classes) * (weight_sum ? *weight_sum : A(classes)) : own;
  }
  // Of a pixel that counts: NaN without a class or a finite log-sum-exp, whatever the weight.
  __device__ A coefficient(int64_t label, bool known, A level, int64_t classes) const {
    return known && level - level == A(0) ? coefficient(label, classes) : A(NAN);
  }
};

// The incoming gradient [N, H, W] of pixel losses; data null: 1 everywhere.
template <typename A>
struct PixelGradient {
  const A* data;
  int64_t stride_n, stride_h, stride_w;

  __device__ A at(int64_t n, int64_t y, int64_t x) const {
    return data ? data[n * stride_n + y * stride_h + x * stride_w] : A(1);
  }
};

// sum_c weight[c], by one warp.
template <typename A>
__global__ void __launch_bounds__(kWarp) sum_of_weights(const A* weight, int64_t classes, A* sum) {
  A mine = 0;
  for (int64_t c = threadIdx.x; c < classes; c += kWarp) mine += weight[c];
  mine = sum_of_warp(mine);
  if (threadIdx.x == 0) *sum = mine;
}

}  // namespace
}  // namespace fcn
