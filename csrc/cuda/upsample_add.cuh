// The kernels of upsample, upsample_add and upsample_backward on CUDA: raw pointers and the geometry, no tensors.
// The forward streams: it reads x (from cache after the first time) and skip once and writes y once. The backward is
// that of gather.cuh.
#pragma once

#include "gather.cuh"

namespace fcn {
namespace {

constexpr int kColumns = 4;  // output columns per thread of a contiguous output, kLanes apart

// The two taps of an output index: offsets in elements (negative: not read, counts zero), weights 1 - f and f.
template <typename A>
struct Taps {
  int64_t first, second;
  A f;
};

template <typename A>
__device__ Taps<A> taps_of(const Axis& axis, bool clamp, int64_t o, int64_t stride) {
  int64_t i = axis.floor_index(o), j = i + 1;
  const int64_t rest = axis.num * o + axis.off - i * axis.den;
  if (clamp) {
    i = axis.clamp_index(i);
    j = axis.clamp_index(j);
  }
  const bool first = i >= 0 && i < axis.in, second = rest > 0 && j >= 0 && j < axis.in;
  return Taps<A>{first ? i * stride : -1, second ? j * stride : -1, A(rest) / A(axis.den)};
}

template <typename A, typename T>
__device__ A along_row(const T* row, const Taps<A>& t) {
  const A a = t.first < 0 ? A(0) : static_cast<A>(row[t.first]);
  const A b = t.second < 0 ? A(0) : static_cast<A>(row[t.second]);
  return (A(1) - t.f) * a + t.f * b;
}

template <typename A, typename T>
__device__ A bilinear(const T* plane, const Taps<A>& row, const Taps<A>& column) {
  const A a = row.first < 0 ? A(0) : along_row(plane + row.first, column);
  const A b = row.second < 0 ? A(0) : along_row(plane + row.second, column);
  return (A(1) - row.f) * a + row.f * b;
}

// Lanes along output columns; a block keeps its tile and walks through the planes.
template <typename T, bool kSkip>
__global__ void __launch_bounds__(kLanes* kRows)
    forward_contiguous(View<const T> x, View<const T> skip, View<T> y, Sampling s, int64_t batch, int64_t channels,
                       ArithmeticOf<T> scale) {
  using A = ArithmeticOf<T>;
  const int64_t left = int64_t{blockIdx.x} * kLanes * kColumns + threadIdx.x;
  Taps<A> columns[kColumns];
#pragma unroll
  for (int k = 0; k < kColumns; ++k) columns[k] = taps_of<A>(s.cols, s.clamp, left + k * kLanes, x.stride_w);
  for (int64_t oy = int64_t{blockIdx.y} * kRows + threadIdx.y; oy < s.rows.out; oy += int64_t{gridDim.y} * kRows) {
    const Taps<A> row = taps_of<A>(s.rows, s.clamp, oy, x.stride_h);
    for (int64_t plane = blockIdx.z; plane < batch * channels; plane += gridDim.z) {
      const int64_t n = plane / channels, c = plane - n * channels;
      const T* from = x.data + n * x.stride_n + c * x.stride_c;
      const T* other = skip.data + n * skip.stride_n + c * skip.stride_c + oy * skip.stride_h;
      T* to = y.data + n * y.stride_n + c * y.stride_c + oy * y.stride_h;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int64_t ox = left + k * kLanes;
        if (ox >= s.cols.out) break;
        A value = bilinear(from, row, columns[k]);
        if (kSkip) value += scale * static_cast<A>(other[ox * skip.stride_w]);
        to[ox * y.stride_w] = static_cast<T>(value);
      }
    }
  }
}

// Lanes along channels; a thread keeps its output pixel and walks through them.
template <typename T, bool kSkip>
__global__ void __launch_bounds__(kLanes* kRows)
    forward_channels_last(View<const T> x, View<const T> skip, View<T> y, Sampling s, int64_t batch, int64_t channels,
                          ArithmeticOf<T> scale) {
  using A = ArithmeticOf<T>;
  const int64_t ox = int64_t{blockIdx.x} * kRows + threadIdx.y;
  if (ox >= s.cols.out) return;
  const Taps<A> column = taps_of<A>(s.cols, s.clamp, ox, x.stride_w);
  for (int64_t oy = blockIdx.y; oy < s.rows.out; oy += gridDim.y) {
    const Taps<A> row = taps_of<A>(s.rows, s.clamp, oy, x.stride_h);
    for (int64_t n = blockIdx.z; n < batch; n += gridDim.z) {
      const T* from = x.data + n * x.stride_n;
      const T* other = skip.data + n * skip.stride_n + oy * skip.stride_h + ox * skip.stride_w;
      T* to = y.data + n * y.stride_n + oy * y.stride_h + ox * y.stride_w;
      for (int64_t c = threadIdx.x; c < channels; c += kLanes) {
        A value = bilinear(from + c * x.stride_c, row, column);
        if (kSkip) value += scale * static_cast<A>(other[c * skip.stride_c]);
        to[c * y.stride_c] = static_cast<T>(value);
      }
    }
  }
}

// The gradient of an output, as gather.cuh reads it.
template <typename T>
struct OutputGradient {
  using Type = T;
  View<const T> grad;

  struct Plane {
    const T* data;
    int64_t stride_h, stride_w;
    __device__ ArithmeticOf<T> at(int64_t oy, int64_t ox) const {
      return static_cast<ArithmeticOf<T>>(data[oy * stride_h + ox * stride_w]);
    }
  };
  __device__ Plane plane(int64_t n, int64_t c) const {
    return Plane{grad.data + n * grad.stride_n + c * grad.stride_c, grad.stride_h, grad.stride_w};
  }
};

}  // namespace
}  // namespace fcn
