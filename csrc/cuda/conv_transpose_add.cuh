// The kernels of conv_transpose_add and its gradients on CUDA: dense and grouped weights are gathered products
// (conv_transpose.cuh), depthwise ones stream (depthwise.cuh); here is what both need besides.
#pragma once

#include "depthwise.cuh"

namespace fcn {
namespace {

// packed[i] = weight at the i-th place, so that the channels that a thread reads together stand side by side.
template <typename T>
__global__ void pack_weights(const T* weight, Digits from, int64_t size, T* packed) {
  const int64_t i = int64_t{blockIdx.x} * kDepthwiseThreads + thread_of_block();
  if (i < size) packed[i] = weight[from.at(i).offset];
}

// Places of [ky, kx, channels] for a depthwise weight, [ky, kx, outputs, Cin] or [ky, kx, Cin, outputs] for others.
inline Digits packing_of(const ConvTranspose& c, const WeightStrides& w, bool inputs_first) {
  // Rows and columns of the kernel are one digit: the weight is contiguous.
  const Place input = {w.input, 0, 0}, output = {w.output, 0, 0}, tap = {1, 0, 0};
  if (inputs_first) return Digits{{c.groups * c.inputs, c.outputs}, kOrigin, {input, output, tap}};
  return Digits{{c.outputs, c.groups * c.inputs}, kOrigin, {output, input, tap}};
}

inline WeightStrides packed_weight(const ConvTranspose& c, bool inputs_first) {
  const int64_t inputs = c.groups * c.inputs, all = inputs * c.outputs;
  return WeightStrides{inputs_first ? 1 : c.outputs, inputs_first ? inputs : 1, c.columns.kernel * all, all};
}

}  // namespace
}  // namespace fcn
