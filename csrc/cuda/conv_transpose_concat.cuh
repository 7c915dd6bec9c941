// The copy of a window in conv_transpose_concat on CUDA.
#pragma once

#include "conv_transpose.cuh"

namespace fcn {
namespace {

constexpr int kCopyThreads = 256;

// to = from, [n, outer, middle, inner] with packs of neighbours innermost.
struct CopyShape {
  int64_t inner, middle, outer, count;  // packs in all
  int64_t from[4], to[4];               // strides of inner, middle, outer, n
};

template <typename T>
CopyShape copy_shape(const View<const T>& from, const View<T>& to, int64_t channels, int64_t height, int64_t width) {
  if (is_pixelwise(to, channels)) {
    return CopyShape{channels,
                     width,
                     height,
                     0,
                     {from.stride_c, from.stride_w, from.stride_h, from.stride_n},
                     {to.stride_c, to.stride_w, to.stride_h, to.stride_n}};
  }
  return CopyShape{width,
                   height,
                   channels,
                   0,
                   {from.stride_w, from.stride_h, from.stride_c, from.stride_n},
                   {to.stride_w, to.stride_h, to.stride_c, to.stride_n}};
}

// Whether neighbours are read and written `wide` at a time.
template <typename T>
bool has_packs(const T* data, const int64_t* strides, int wide) {
  return strides[0] == 1 && is_aligned(data, {strides[1], strides[2], strides[3]}, wide);
}

template <typename T, int kWide, bool kPacks>
__global__ void __launch_bounds__(kCopyThreads) copy_window(const T* from, T* to, CopyShape s) {
  const int64_t i = int64_t{blockIdx.x} * kCopyThreads + threadIdx.y * kWarp + threadIdx.x;
  if (i >= s.count) return;
  const int64_t line = i / s.inner, inner = (i - line * s.inner) * kWide, plane = line / s.middle;
  const int64_t middle = line - plane * s.middle, n = plane / s.outer, outer = plane - n * s.outer;
  from += n * s.from[3] + outer * s.from[2] + middle * s.from[1] + inner * s.from[0];
  to += n * s.to[3] + outer * s.to[2] + middle * s.to[1] + inner * s.to[0];
  Pack<T, kWide> pack;
  if (kPacks) {
    pack = load_pack<T, kWide>(from);
  } else {
#pragma unroll
    for (int k = 0; k < kWide; ++k) pack.value[k] = from[k * s.from[0]];
  }
  store_pack(to, pack);
}

}  // namespace
}  // namespace fcn
