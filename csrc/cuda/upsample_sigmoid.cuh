// upsample_sigmoid on CUDA: what it makes of an output, for the kernels of upsample_add.cuh and adjoint.cuh. One
// exponential and one division per element beside one write of 2 to 8 bytes: an H200 writes 1.1e12 float32 per second
// and evaluates 1.8e12 such pairs, so that memory bounds it.
#pragma once

#include "upsample_add.cuh"

namespace fcn {
namespace {

struct Sigmoid {
  template <int kWide, typename A>
  __device__ void apply(A (&value)[kWide], int64_t, int64_t, int64_t, int64_t) const {
#pragma unroll
    for (int k = 0; k < kWide; ++k) value[k] = A(1) / (A(1) + exp_of(-value[k]));
  }
};

// The gradient g p (1 - p) of an upsampled logit, from that of its sigmoid p.
template <typename T>
struct SigmoidGradient {
  using Type = T;
  OutputGradient<T> grad, output;

  struct Plane {
    typename OutputGradient<T>::Plane grad, output;
    __device__ ArithmeticOf<T> at(int64_t oy, int64_t ox) const {
      const ArithmeticOf<T> p = output.at(oy, ox);
      return grad.at(oy, ox) * p * (ArithmeticOf<T>(1) - p);
    }
  };
  __device__ Plane plane(int64_t n, int64_t c) const { return Plane{grad.plane(n, c), output.plane(n, c)}; }
};

}  // namespace
}  // namespace fcn
