// Functions of one number for both arithmetic types, and loads of several neighbours at once.
#pragma once

#include <math.h>
#include <string.h>

#include <type_traits>

#include "view.cuh"

namespace fcn {
namespace {

__device__ inline float exp2_of(float v) { return exp2f(v); }
__device__ inline double exp2_of(double v) { return exp2(v); }
__device__ inline float exp_of(float v) { return expf(v); }
__device__ inline double exp_of(double v) { return exp(v); }
__device__ inline float log_of(float v) { return logf(v); }
__device__ inline double log_of(double v) { return log(v); }

template <typename A>
__device__ A larger(A a, A b) {
  return a > b ? a : b;
}

constexpr double kLog2E = 1.4426950408889634;

// n neighbours, read by one access of n * sizeof(T) bytes, to which the address must be aligned.
template <typename T, int n>
struct alignas(sizeof(T) * n) Pack {
  T value[n];
};

template <typename T, int n>
__device__ Pack<T, n> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}

template <typename T, int n>
__device__ void store_pack(T* to, const Pack<T, n>& pack) {
#ifdef __CUDA_ARCH__
  // An assignment may go element by element; this is one access.
  if constexpr (sizeof(pack) == sizeof(uint4) || sizeof(pack) == sizeof(uint2)) {
    using Bits = std::conditional_t<sizeof(pack) == sizeof(uint4), uint4, uint2>;
    Bits bits;
    memcpy(&bits, &pack, sizeof(bits));
    __stcg(reinterpret_cast<Bits*>(to), bits);
    return;
  }
#endif
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
}

template <typename T, typename A, int n>
__device__ void store_pack(T* to, const A (&value)[n]) {
  Pack<T, n> pack;
#pragma unroll
  for (int k = 0; k < n; ++k) pack.value[k] = static_cast<T>(value[k]);
  store_pack(to, pack);
}

}  // namespace
}  // namespace fcn
