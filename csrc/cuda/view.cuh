// What kernels know of a tensor, and the type that they compute in.
#pragma once

#include <cstdint>

namespace fcn {

// The type that sums are kept in: float for the half types.
template <typename T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename T>
using ArithmeticOf = typename Arithmetic<T>::type;

// An [N, C, H, W] tensor on the device: strides in elements.
template <typename T>
struct View {
  T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

}  // namespace fcn
