// From the gradient in the scores to those in weight and bias: sums over pixels in parts, which are added in order. The
// products are those of product.cuh.
#pragma once

#include "product.cuh"

namespace fcn {
namespace {

// parts [slices, C]: the sums of the classes of g [N, C, P], slice by slice of the pixels of all images. A block adds
// one class of lines of pixels, or 32 classes of lines of channels, whose pixels its warps share.
template <typename A, bool kChannelLines>
__global__ void __launch_bounds__(kThreads)
    class_sums(const A* g, int64_t stride_n, int64_t stride_c, int64_t stride_p, int64_t images, int64_t pixels,
               int classes, int64_t slice, A* parts) {
  __shared__ A shared[kThreads];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t groups = kChannelLines ? (classes + kWarp - 1) / kWarp : classes;
  const int64_t group = blockIdx.x % groups, number = blockIdx.x / groups;
  const int64_t c = kChannelLines ? group * kWarp + lane : group, begin = number * slice;
  const int64_t end = begin + slice < images * pixels ? begin + slice : images * pixels;
  A sum = 0;
  if (c < classes) {
    constexpr int kStep = kChannelLines ? kWarps : kThreads;
    for (int64_t at = begin + (kChannelLines ? warp : warp * kWarp + lane); at < end; at += kStep) {
      sum += g[at / pixels * stride_n + c * stride_c + at % pixels * stride_p];
    }
  }
  if (!kChannelLines) sum = sum_of_warp(sum);
  shared[warp * kWarp + lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= classes || (!kChannelLines && lane > 0)) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared[w * kWarp + lane];
  parts[number * classes + c] = sum;
}

// to[i] = sum over the parts [count, size], in order.
template <typename A, typename Out>
__global__ void __launch_bounds__(kThreads) sum_of_parts(const A* parts, int64_t count, int64_t size, Out* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  if (i >= size) return;
  A sum = 0;
  for (int64_t part = 0; part < count; ++part) sum += parts[part * size + i];
  to[i] = static_cast<Out>(sum);
}

// The lines of an operand where those of x have channels or pixels.
constexpr Lines lines_of(bool inner) { return inner ? Lines::kInner : Lines::kOuter; }

// The tile of the gradient in x: pixels by features, summed over the classes.
template <typename A, typename T, bool kChannelLines>
using FeatureTile = Tile<A, T, lines_of(kChannelLines), Lines::kOuter, std::is_same_v<A, double> ? 2 : 4,
                         std::is_same_v<A, double> ? 1 : 2>;

// Of the gradient in the weight: features by classes, summed over the pixels.
template <typename T, typename A, bool kChannelLines>
using WeightTile = NarrowTile<T, A, lines_of(!kChannelLines), lines_of(!kChannelLines)>;

}  // namespace
}  // namespace fcn
