// Between the kernels' order, a vector per step with a segment per lane, and the pixels' order in memory.
#pragma once

#include "tile.h"

namespace fcn {
namespace FCN_ISA {

// Whether an output leaves the cache before anyone reads it, and has runs of `run` elements, long enough to be written
// past it.
inline bool leaves_cache(const Image& out, int64_t item_bytes, int64_t run) {
  return run * item_bytes >= 1024 && out.batch * out.channels * out.height * out.width * item_bytes > (8 << 20);
}
inline bool leaves_cache(const Image& out, int64_t item_bytes) { return leaves_cache(out, item_bytes, out.width); }

constexpr bool is_power_of_two(int k) { return (k & (k - 1)) == 0; }

// v[k], lane l, to t[l * K + k]. Overwrites v.
template <typename T, int K>
FCN_INLINE void order_steps(Vec<T>* v, T* t) {
  constexpr int L = kLanes<T>;
  if constexpr (is_power_of_two(K)) {
    interleave<T, K>(v);
    for (int k = 0; k < K; ++k) store(t + k * L, v[k]);
  } else {
    for (int k = 0; k < K; ++k) {
      for (int l = 0; l < L; ++l) t[l * K + k] = v[k][l];
    }
  }
}

// Writes v[k], lane l, to row[(first[l] + k) * stride]. Overwrites v.
template <typename T, int K, typename Out>
FCN_INLINE void store_steps(const Block<T>& block, Vec<T>* v, Out* row, int64_t stride) {
  constexpr int L = kLanes<T>;
  if constexpr (is_power_of_two(K)) {
    if (block.full && stride == 1) {
      interleave<T, K>(v);
      for (int k = 0; k < K; ++k) store_as(row + block.first[0] + k * L, v[k]);
      return;
    }
  }
  T t[K * L];
  order_steps<T, K>(v, t);
  for (int l = 0; l < L; ++l) {
    Out* out = row + block.first[l] * stride;
    for (int k = 0; k < K && k < block.length[l]; ++k) from_arithmetic(t[l * K + k], out + k * stride);
  }
}

// Reads what store_steps writes; steps that are no pixel read zero.
template <typename T, int K, typename In>
FCN_INLINE void load_steps(const Block<T>& block, const In* row, int64_t stride, Vec<T>* v) {
  constexpr int L = kLanes<T>;
  if constexpr (is_power_of_two(K)) {
    if (block.full && stride == 1) {
      for (int k = 0; k < K; ++k) v[k] = load_as(row + block.first[0] + k * L);
      deinterleave<T, K>(v);
      return;
    }
  }
  T t[K * L];
  for (int l = 0; l < L; ++l) {
    const In* in = row + block.first[l] * stride;
    for (int k = 0; k < K; ++k) t[k * L + l] = k < block.length[l] ? (T)to_arithmetic(in[k * stride]) : T(0);
  }
  for (int k = 0; k < K; ++k) v[k] = load(t + k * L);
}

}  // namespace FCN_ISA
}  // namespace fcn
