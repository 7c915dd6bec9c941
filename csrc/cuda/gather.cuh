// The adjoint of bilinear upsampling: every input pixel gathers from the outputs that read it, so that it needs no
// atomics and gives the same bits on every run. What an output gives is a Source's affair: source.plane(n, c) is one
// channel of an image, plane.at(oy, ox) the gradient of one of its outputs.
#pragma once

#include "../sampling.h"
#include "view.cuh"

namespace fcn {
namespace {

constexpr int kLanes = 32;  // threadIdx.x: along the innermost dimension, so that a warp's accesses are contiguous
constexpr int kRows = 8;    // threadIdx.y

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
template <typename A, typename Plane>
__device__ A gather(const Plane& plane, const Sampling& s, int64_t i, int64_t j, int lane, int step) {
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
      if (weight != A(0)) row_sum += weight * plane.at(oy, ox);
    }
    sum += row_weight * row_sum;
  }
  return sum;
}

// kGroup lanes share an input pixel and add up in a fixed order.
template <typename Source, int kGroup>
__global__ void __launch_bounds__(kLanes* kRows, 1)
    gather_contiguous(Source source, View<typename Source::Type> dx, Sampling s, int64_t batch, int64_t channels) {
  using T = typename Source::Type;
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
    A sum = gather<A>(source.plane(n, c), s, i, j, lane, kGroup);
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (active && lane == 0) {
      dx.data[n * dx.stride_n + c * dx.stride_c + i * dx.stride_h + j * dx.stride_w] = static_cast<T>(sum);
    }
  }
}

template <typename Source>
__global__ void __launch_bounds__(kLanes* kRows, 1)
    gather_channels_last(Source source, View<typename Source::Type> dx, Sampling s, int64_t batch, int64_t channels) {
  using T = typename Source::Type;
  const int64_t j = int64_t{blockIdx.x} * kRows + threadIdx.y;
  if (j >= s.cols.in) return;
  for (int64_t i = blockIdx.y; i < s.rows.in; i += gridDim.y) {
    for (int64_t n = blockIdx.z; n < batch; n += gridDim.z) {
      T* to = dx.data + n * dx.stride_n + i * dx.stride_h + j * dx.stride_w;
      for (int64_t c = threadIdx.x; c < channels; c += kLanes) {
        to[c * dx.stride_c] = static_cast<T>(gather<ArithmeticOf<T>>(source.plane(n, c), s, i, j, 0, 1));
      }
    }
  }
}

}  // namespace
}  // namespace fcn
