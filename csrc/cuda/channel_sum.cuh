// The kernels of channel_sum on CUDA: raw pointers, no tensors. x is read once, 16 bytes at a time where addresses and
// strides allow it, each block adds up a part of an image, and the parts are added in their order. 64 channels of
// 512 x 512 float32 are 67 MB, 16 us at an H200's 4.3 TB/s.
#pragma once

#include "reduction.cuh"
#include "segments.cuh"

namespace fcn {
namespace {

constexpr int kSumSteps = 16;  // packs that a thread adds up before they join a sum in float64

// An image as lines of columns, one line where its rows follow each other, and what a block adds up of them: of a
// channel, or of the channels of `packs` lanes, every parts-th chunk of columns.
struct SumPlan {
  int64_t lines, columns;
  int packs;           // lanes across the channels; 1: a block has one channel
  int64_t blocks;      // across the channels
  int64_t chunk;       // columns
  int64_t chunks;      // of a line
  int64_t parts, all;  // of an image; blocks of the launch
};

template <typename T>
SumPlan sum_plan(const View<const T>& x, int64_t batch, int64_t channels, int64_t height, int64_t width, int wide,
                 bool across_channels) {
  constexpr int64_t kEnough = 2048;  // blocks
  SumPlan plan;
  const bool follow = height == 1 || x.stride_h == width * x.stride_w;
  plan.lines = follow ? 1 : height;
  plan.columns = follow ? height * width : width;
  const int64_t packs = divided_up(channels, wide);
  plan.packs = across_channels ? static_cast<int>(packs < kWarp ? packs : kWarp) : 1;
  plan.blocks = across_channels ? divided_up(packs, plan.packs) : channels;
  plan.chunk = kSumSteps * (across_channels ? kWarps * (kWarp / plan.packs) : kThreads * wide);
  plan.chunks = divided_up(plan.columns, plan.chunk);
  const int64_t most = plan.lines * plan.chunks, wanted = divided_up(kEnough, batch * plan.blocks);
  plan.parts = most < wanted ? most : wanted;
  plan.all = batch * plan.blocks * plan.parts;
  return plan;
}

// Sums of kWide neighbours at a time: channels, or columns of one channel; partial [N, parts, C].
template <typename T, int kWide, bool kChannels>
__global__ void __launch_bounds__(kThreads)
    channel_sum_parts(View<const T> x, int64_t channels, SumPlan plan, double* partial) {
  using A = ArithmeticOf<T>;
  __shared__ double shared[kChannels ? kThreads * kWide : 1];
  const int lane = threadIdx.x, thread = threadIdx.y * kWarp + lane;
  const int together = kChannels ? kWarp / plan.packs : 1;  // pixels of a warp
  const int64_t part = blockIdx.x % plan.parts, block = blockIdx.x / plan.parts % plan.blocks;
  const int64_t n = blockIdx.x / plan.parts / plan.blocks;
  const int64_t c = kChannels ? (block * plan.packs + lane % plan.packs) * kWide : block;
  const int64_t first = kChannels ? threadIdx.y * together + lane / plan.packs : thread * kWide;
  const int64_t step = plan.chunk / kSumSteps;
  const bool working = !kChannels || (lane < together * plan.packs && c < channels);
  double total[kWide] = {};
  for (int64_t item = part; working && item < plan.lines * plan.chunks; item += plan.parts) {
    const int64_t line = item / plan.chunks, begin = item % plan.chunks * plan.chunk + first;
    const T* from = x.data + n * x.stride_n + c * x.stride_c + line * x.stride_h;
    A sum[kWide] = {};
#pragma unroll 4
    for (int k = 0; k < kSumSteps; ++k) {
      const int64_t column = begin + k * step;
      if (column >= plan.columns) break;
      const Pack<T, kWide> pack = load_pack<T, kWide>(from + column * x.stride_w);
#pragma unroll
      for (int i = 0; i < kWide; ++i) sum[i] += static_cast<A>(pack.value[i]);
    }
#pragma unroll
    for (int i = 0; i < kWide; ++i) total[i] += sum[i];
  }
  double* const to = partial + (n * plan.parts + part) * channels;
  if constexpr (kChannels) {
#pragma unroll
    for (int i = 0; i < kWide; ++i) shared[i * kThreads + thread] = total[i];
    __syncthreads();
    for (int64_t k = thread; k < plan.packs * kWide; k += kThreads) {
      const int64_t own = block * plan.packs * kWide + k;
      if (own >= channels) break;
      double sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) {
        for (int pixel = 0; pixel < together; ++pixel) {
          sum += shared[k % kWide * kThreads + warp * kWarp + pixel * plan.packs + k / kWide];
        }
      }
      to[own] = sum;
    }
  } else {
    double sum = 0, none = 0;
#pragma unroll
    for (int i = 0; i < kWide; ++i) sum += total[i];
    sum_of_block(sum, none);
    if (thread == 0) to[c] = sum;
  }
}

// A warp for each channel.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    channel_sum_of_parts(const double* partial, int64_t channels, int64_t parts, A* to) {
  const int64_t c = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (c >= channels) return;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kWarp) sum += partial[i * channels + c];
  sum = sum_of_warp(sum);
  if (threadIdx.x == 0) to[c] = static_cast<A>(sum);
}

}  // namespace
}  // namespace fcn
