// Sums in a fixed order, without atomics: over the lanes of a warp, the threads of a block, the blocks of a launch.
#pragma once

#include "device_math.cuh"

namespace fcn {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  // of a block: threadIdx.y
constexpr int kThreads = kWarp * kWarps;

// The sum over the lanes of a warp, in a fixed order, in every lane.
template <typename A>
__device__ A sum_of_warp(A v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

template <typename A>
__device__ A largest_of_warp(A v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// Of four neighbours, in every one of them.
template <typename A>
__device__ A sum_of_quad(A v) {
#pragma unroll
  for (int offset = 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

template <typename A>
__device__ A largest_of_quad(A v) {
#pragma unroll
  for (int offset = 2; offset > 0; offset /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// Adds up two numbers of every thread of a block, in a fixed order; thread 0 has the sums.
__device__ inline void sum_of_block(double& a, double& b) {
  __shared__ double shared[2 * kWarps];
  a = sum_of_warp(a);
  b = sum_of_warp(b);
  if (threadIdx.x == 0) {
    shared[threadIdx.y] = a;
    shared[kWarps + threadIdx.y] = b;
  }
  __syncthreads();
  a = b = 0;
  for (int i = 0; i < kWarps; ++i) {
    a += shared[i];
    b += shared[kWarps + i];
  }
}

// One block: the loss divided by `divisor`, or by the sum of the weights where that is 0, and the divisor.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_loss(const double* partial, int64_t blocks, double divisor, A* loss, A* total) {
  const int thread = threadIdx.y * kWarp + threadIdx.x;
  double loss_sum = 0, weight_sum = 0;
  for (int64_t i = thread; i < blocks; i += kThreads) {
    loss_sum += partial[2 * i];
    weight_sum += partial[2 * i + 1];
  }
  sum_of_block(loss_sum, weight_sum);
  if (thread == 0) {
    const double by = divisor > 0 ? divisor : weight_sum;
    *loss = static_cast<A>(loss_sum / by);
    *total = static_cast<A>(by);
  }
}

}  // namespace
}  // namespace fcn
