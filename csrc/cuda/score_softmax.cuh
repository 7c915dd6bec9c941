// The kernels of score_softmax on CUDA: raw pointers, no tensors.
#pragma once

#include "score.cuh"
#include "view.cuh"

namespace fcn {
namespace {

// Writes p = exp(z - m) / sum exp(z - m), or its logarithm, to y [N, C, P].
template <typename T>
struct SoftmaxEpilogue {
  using A = ArithmeticOf<T>;
  static constexpr bool kReads = true, kWrites = true;
  T* y;
  int64_t stride_n, stride_c, stride_p;
  int classes;
  bool log;

  template <int kRows>
  struct Pixels {
    const SoftmaxEpilogue& to;
    const Place& place;
    RunningSum<A, kRows> sum;

    __device__ Pixels(const SoftmaxEpilogue& epilogue, const Place& at) : to(epilogue), place(at) {}

    template <int kColumns>
    __device__ void read(const A (&z)[kRows][kColumns], int first_class) {
      sum.read(z, first_class, to.classes);
    }

    template <int kColumns>
    __device__ void write(const A (&z)[kRows][kColumns], int first_class) const {
      T* const y = to.y + place.image * to.stride_n + place.first * to.stride_p;
      A base[kRows], scale[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        base[i] = sum.base(i);
        scale[i] = to.log ? log_of(sum.total[i]) : A(1) / sum.total[i];
      }
      for_classes<kColumns>(first_class, to.classes, [&](int j, int c) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const A value = z[i][j] - base[i];
          const A result = to.log ? value - scale[i] : exp_of(value) * scale[i];
          if (place.inside(i)) y[c * to.stride_c + 8 * i * to.stride_p] = static_cast<T>(result);
        }
      });
    }

    __device__ void end() const {}
  };
};

// The gradient in the scores, from that in the output p: p (g - sum_c p g), of the logarithm g - exp(p) sum_c g.
// kGroup lanes share a pixel of [N, C, H, W] images; `to` has the strides of an [N, C, P] image.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kThreads, 1)
    softmax_gradient(View<const T> grad, View<const T> output, int64_t images, int64_t pixels, int64_t width,
                     int classes, bool log, ArithmeticOf<T>* to, int64_t stride_n, int64_t stride_c, int64_t stride_p) {
  using A = ArithmeticOf<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  const int64_t at = thread / kGroup;
  const int lane = kGroup == 1 ? 0 : threadIdx.x;
  if (at >= images * pixels) return;  // a warp ends as one where its lanes share a pixel
  const int64_t n = at / pixels, p = at % pixels, y = p / width, x = p % width;
  const T* const g = grad.data + n * grad.stride_n + y * grad.stride_h + x * grad.stride_w;
  const T* const value = output.data + n * output.stride_n + y * output.stride_h + x * output.stride_w;
  A sum = 0;
  for (int c = lane; c < classes; c += kGroup) {
    const A v = static_cast<A>(g[c * grad.stride_c]);
    sum += log ? v : v * static_cast<A>(value[c * output.stride_c]);
  }
  if (kGroup > 1) sum = sum_of_warp(sum);
  A* const result = to + n * stride_n + p * stride_p;
  for (int c = lane; c < classes; c += kGroup) {
    const A v = static_cast<A>(g[c * grad.stride_c]), q = static_cast<A>(value[c * output.stride_c]);
    result[c * stride_c] = log ? v - exp_of(q) * sum : q * (v - sum);
  }
}

}  // namespace
}  // namespace fcn
