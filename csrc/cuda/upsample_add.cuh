// The kernels of upsample, upsample_add and their like on CUDA: raw pointers and the geometry, no tensors. Streaming
// kernels: x is read once from memory (from cache after the first time), a skip once, y is written once, 16 bytes at a
// time where addresses and strides allow it. What becomes of the upsampled values is an Epilogue's affair:
// epilogue.apply<kWide>(values, n, c, oy, ox) changes the values of kWide neighbours.
#pragma once

#include "../sampling.h"
#include "device_math.cuh"
#include "gather.cuh"

namespace fcn {
namespace {

constexpr int kStrip = 4;  // output rows of a thread of channels_last images

// Output columns of a thread of contiguous images: kWide neighbours, or a few that are kLanes apart.
template <int kWide>
constexpr int kColumnsOf = kWide > 1 ? kWide : 4;

// Blocks of a multiprocessor whose registers suffice.
template <typename T, int kWide>
constexpr int kBlocksOf = sizeof(T) == sizeof(double) || kWide > 1 ? 2 : 4;

struct Identity {
  template <int kWide, typename A>
  __device__ void apply(A (&)[kWide], int64_t, int64_t, int64_t, int64_t) const {}
};

// Adds `scale` times a skip.
template <typename T>
struct Skip {
  View<const T> skip;
  ArithmeticOf<T> scale;
  int64_t along;  // the stride between the neighbours of a pack
  bool packed;    // whether they are read by one access

  template <int kWide, typename A>
  __device__ void apply(A (&value)[kWide], int64_t n, int64_t c, int64_t oy, int64_t ox) const {
    const T* from = skip.data + n * skip.stride_n + c * skip.stride_c + oy * skip.stride_h + ox * skip.stride_w;
    if (kWide > 1 && packed) {
      const Pack<T, kWide> pack = load_pack<T, kWide>(from);
#pragma unroll
      for (int k = 0; k < kWide; ++k) value[k] += scale * static_cast<A>(pack.value[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kWide; ++k) value[k] += scale * static_cast<A>(from[k * along]);
    }
  }
};

// The two taps of an output: offsets in elements (negative: not read, counts zero), weights 1 - f and f. Those within a
// row of x fit 32 bits.
template <typename A, typename Offset>
struct Taps {
  Offset first, second;
  A f;

  Taps() = default;
  __device__ Taps(const Axis& axis, bool clamp, const Walk& at, int64_t stride) : f(A(at.rest) / A(at.den)) {
    const int64_t i = clamp ? axis.clamp_index(at.index) : at.index;
    const int64_t j = clamp ? axis.clamp_index(at.index + 1) : at.index + 1;
    first = static_cast<Offset>(i >= 0 && i < axis.in ? i * stride : -1);
    second = static_cast<Offset>(at.rest > 0 && j >= 0 && j < axis.in ? j * stride : -1);
  }
};

// Two rows of an image, as one output row reads them.
template <typename T>
struct RowPair {
  using A = ArithmeticOf<T>;
  const T *top, *bottom;  // null: counts zero
  A f;

  __device__ RowPair(const T* plane, const Taps<A, int64_t>& row)
      : top(row.first < 0 ? nullptr : plane + row.first),
        bottom(row.second < 0 ? nullptr : plane + row.second),
        f(row.f) {}

  // kWide neighbours at an offset, between the rows.
  template <int kWide>
  __device__ void at(int offset, A (&value)[kWide]) const {
    Pack<T, kWide> above, below;
    if (top) above = load_pack<T, kWide>(top + offset);
    if (bottom) below = load_pack<T, kWide>(bottom + offset);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      const A a = top ? static_cast<A>(above.value[k]) : A(0), b = bottom ? static_cast<A>(below.value[k]) : A(0);
      value[k] = (A(1) - f) * a + f * b;
    }
  }
  __device__ A at(int offset) const {
    A value[1];
    at<1>(offset, value);
    return value[0];
  }
};

// Lanes along output columns; a block keeps its tile and walks through the planes.
template <typename T, int kWide, typename Epilogue>
__global__ void __launch_bounds__(kLanes* kRows, (kBlocksOf<T, kWide>))
    forward_contiguous(View<const T> x, View<T> y, Sampling s, int64_t batch, int64_t channels, Epilogue epilogue) {
  using A = ArithmeticOf<T>;
  constexpr int kColumns = kColumnsOf<kWide>, kApart = kWide > 1 ? 1 : kLanes;
  const int64_t left = int64_t{blockIdx.x} * kLanes * kColumns + threadIdx.x * kWide;
  if (left >= s.cols.out) return;
  Taps<A, int> columns[kColumns];
  Walk along(s.cols, left, kApart);
#pragma unroll
  for (int k = 0; k < kColumns; ++k, along.next()) {
    columns[k] = Taps<A, int>(s.cols, s.clamp, along, x.stride_w);
    if (left + k * kApart >= s.cols.out) columns[k].first = columns[k].second = -1;
  }
  // Neighbours in the walk through [batch, channels], without a division.
  const int next_n = static_cast<int>(gridDim.z / channels), next_c = static_cast<int>(gridDim.z % channels);
  for (int64_t oy = int64_t{blockIdx.y} * kRows + threadIdx.y; oy < s.rows.out; oy += int64_t{gridDim.y} * kRows) {
    const Taps<A, int64_t> row(s.rows, s.clamp, Walk(s.rows, oy, 0), x.stride_h);
    int n = static_cast<int>(blockIdx.z / channels), c = static_cast<int>(blockIdx.z % channels);
    while (n < batch) {
      const RowPair<T> rows(x.data + n * x.stride_n + c * x.stride_c, row);
      T* to = y.data + n * y.stride_n + c * y.stride_c + oy * y.stride_h;
      A value[kColumns], a = 0, b = 0;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        // Neighbours share inputs.
        const int first = columns[k].first, second = columns[k].second;
        const bool known = kWide > 1 && k > 0;
        const int last_first = known ? columns[k - (k > 0)].first : -2;
        const int last_second = known ? columns[k - (k > 0)].second : -2;
        if (first != last_first) a = first < 0 ? A(0) : first == last_second ? b : rows.at(first);
        if (second != last_second) b = second < 0 ? A(0) : rows.at(second);
        value[k] = (A(1) - columns[k].f) * a + columns[k].f * b;
      }
      if constexpr (kWide > 1) {
        epilogue.template apply<kWide>(value, n, c, oy, left);
        store_pack(to + left, value);
      } else {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          const int64_t ox = left + k * kLanes;
          if (ox >= s.cols.out) break;
          A one[1] = {value[k]};
          epilogue.template apply<1>(one, n, c, oy, ox);
          to[ox * y.stride_w] = static_cast<T>(one[0]);
        }
      }
      n += next_n;
      c += next_c;
      if (c >= channels) {
        c -= channels;
        ++n;
      }
    }
  }
}

// Lanes along the columns and channels of an output row, kWide channels each; a thread owns kStrip rows.
template <typename T, int kWide, typename Epilogue>
__global__ void __launch_bounds__(kLanes* kRows, (kBlocksOf<T, kWide>))
    forward_channels_last(View<const T> x, View<T> y, Sampling s, int64_t batch, int64_t channels, Epilogue epilogue) {
  using A = ArithmeticOf<T>;
  const int64_t packs = channels / kWide;
  const int64_t thread = (int64_t{blockIdx.x} * kRows + threadIdx.y) * kLanes + threadIdx.x;
  const int64_t ox = thread / packs, c = (thread - ox * packs) * kWide;
  if (ox >= s.cols.out) return;
  const Taps<A, int> column(s.cols, s.clamp, Walk(s.cols, ox, 0), x.stride_w);
  for (int64_t top = int64_t{blockIdx.y} * kStrip; top < s.rows.out; top += int64_t{gridDim.y} * kStrip) {
    for (int64_t n = blockIdx.z; n < batch; n += gridDim.z) {
      const T* from = x.data + n * x.stride_n + c * x.stride_c;
      T* to = y.data + n * y.stride_n + c * y.stride_c + ox * y.stride_w;
      Walk down(s.rows, top, 1);
      for (int64_t oy = top; oy < top + kStrip && oy < s.rows.out; ++oy, down.next()) {
        const RowPair<T> rows(from, Taps<A, int64_t>(s.rows, s.clamp, down, x.stride_h));
        A value[kWide] = {}, right[kWide] = {};
        if (column.first >= 0) rows.template at<kWide>(column.first, value);
        if (column.second >= 0) rows.template at<kWide>(column.second, right);
#pragma unroll
        for (int k = 0; k < kWide; ++k) value[k] = (A(1) - column.f) * value[k] + column.f * right[k];
        epilogue.template apply<kWide>(value, n, c, oy, ox);
        store_pack(to + oy * y.stride_h, value);
      }
    }
  }
}

// The gradient of an output, as adjoint.cuh and gather.cuh read it.
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
