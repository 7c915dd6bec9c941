// The kernels of upsample, upsample_add and upsample_backward on CUDA: raw pointers and the geometry, no tensors.
// Streaming kernels: the forward reads x (from cache after the first time) and skip once and writes y once; the
// backward is a gather over the outputs that read an input pixel, so it needs no atomics and gives the same bits on
// every run.
#pragma once

#include "../sampling.h"
#include "view.cuh"

namespace fcn {
namespace {

constexpr int kLanes = 32;   // threadIdx.x: along the innermost dimension, so that a warp's accesses are contiguous
constexpr int kRows = 8;     // threadIdx.y
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

// pos(o), pos(o + step), ... as exact integers, with a division at the start only.
struct Walk {
  int64_t index, rest, step_index, step_rest, den;

  __device__ Walk(const Axis& axis, int64_t o, int64_t step) : den(axis.den) {
    index = axis.floor_index(o);
    rest = axis.num * o + axis.off - index * den;
    step_index = axis.num * step / den;
    step_rest = axis.num * step - step_index * den;
  }

  __device__ void next() {
    index += step_index;
    rest += step_rest;
    if (rest >= den) {
      rest -= den;
      ++index;
    }
  }

  // The weight with which the current output reads input i.
  template <typename A>
  __device__ A weight_of(const Axis& axis, bool clamp, int64_t i) const {
    const int64_t first = clamp ? axis.clamp_index(index) : index;
    const int64_t second = clamp ? axis.clamp_index(index + 1) : index + 1;
    const A f = A(rest) / A(den);
    return (first == i ? A(1) - f : A(0)) + (second == i ? f : A(0));
  }
};

// The outputs that can read input i.
struct Range {
  int64_t begin, end;

  __device__ Range(const Axis& axis, bool clamp, int64_t i)
      : begin(clamp && i == 0 ? 0 : axis.first_output(i - 1)),
        end(clamp && i == axis.in - 1 ? axis.out : axis.first_output(i + 1)) {}
};

// d loss / d x[i, j] of one plane: this lane's share, every `step`-th output column from `lane` on.
template <typename A, typename T>
__device__ A gather(const T* plane, const View<const T>& grad, const Sampling& s, int64_t i, int64_t j, int lane,
                    int step) {
  const Range rows(s.rows, s.clamp, i), columns(s.cols, s.clamp, j);
  const Walk start(s.cols, columns.begin + lane, step);
  A sum = 0;
  Walk down(s.rows, rows.begin, 1);
  for (int64_t oy = rows.begin; oy < rows.end; ++oy, down.next()) {
    const A row_weight = down.weight_of<A>(s.rows, s.clamp, i);
    if (row_weight == A(0)) continue;
    A row_sum = 0;
    Walk along = start;
    for (int64_t ox = columns.begin + lane; ox < columns.end; ox += step, along.next()) {
      const A weight = along.weight_of<A>(s.cols, s.clamp, j);
      if (weight != A(0)) row_sum += weight * static_cast<A>(plane[oy * grad.stride_h + ox * grad.stride_w]);
    }
    sum += row_weight * row_sum;
  }
  return sum;
}

// kGroup lanes share an input pixel and add up in a fixed order.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kLanes* kRows, 1)
    backward_contiguous(View<const T> grad, View<T> dx, Sampling s, int64_t batch, int64_t channels) {
  using A = ArithmeticOf<T>;
  const int64_t pixels = batch * channels * s.rows.in * s.cols.in;
  const int64_t group = (int64_t{blockIdx.x} * kLanes * kRows + threadIdx.y * kLanes + threadIdx.x) / kGroup;
  const int lane = threadIdx.x % kGroup;
  const int64_t groups = int64_t{gridDim.x} * kLanes * kRows / kGroup;
  // Whole warps stay in the loop, so that every lane meets the shuffles.
  for (int64_t base = group - group % (kLanes / kGroup); base < pixels; base += groups) {
    const int64_t pixel = base + group % (kLanes / kGroup);
    const bool active = pixel < pixels;
    const int64_t p = active ? pixel : pixels - 1;
    const int64_t j = p % s.cols.in, i = p / s.cols.in % s.rows.in, plane = p / (s.cols.in * s.rows.in);
    const int64_t n = plane / channels, c = plane - n * channels;
    const T* from = grad.data + n * grad.stride_n + c * grad.stride_c;
    A sum = gather<A>(from, grad, s, i, j, lane, kGroup);
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (active && lane == 0) {
      dx.data[n * dx.stride_n + c * dx.stride_c + i * dx.stride_h + j * dx.stride_w] = static_cast<T>(sum);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kLanes* kRows, 1)
    backward_channels_last(View<const T> grad, View<T> dx, Sampling s, int64_t batch, int64_t channels) {
  const int64_t j = int64_t{blockIdx.x} * kRows + threadIdx.y;
  if (j >= s.cols.in) return;
  for (int64_t i = blockIdx.y; i < s.rows.in; i += gridDim.y) {
    for (int64_t n = blockIdx.z; n < batch; n += gridDim.z) {
      const T* from = grad.data + n * grad.stride_n;
      T* to = dx.data + n * dx.stride_n + i * dx.stride_h + j * dx.stride_w;
      for (int64_t c = threadIdx.x; c < channels; c += kLanes) {
        to[c * dx.stride_c] = static_cast<T>(gather<ArithmeticOf<T>>(from + c * grad.stride_c, grad, s, i, j, 0, 1));
      }
    }
  }
}

}  // namespace
}  // namespace fcn
