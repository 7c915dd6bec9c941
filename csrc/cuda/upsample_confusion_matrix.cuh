// The kernels of upsample_confusion_matrix on CUDA: pairs of labels are counted by atomics on integers, which add up to
// the same sum in any order. The lanes of a warp that have the same pair count it together, and blocks share `copies`
// matrices, which are added at the end.
#pragma once

#include "labels.cuh"
#include "logsumexp.cuh"

namespace fcn {
namespace {

using Count = unsigned long long;                     // as the atomics have it
constexpr long long kNoPixel = 0x7f7f7f7f7f7f7f7fLL;  // "no label is wrong": every byte is kNoPixelByte
constexpr int kNoPixelByte = 0x7f;

// Counts [copies, C, C] of (target, winner), winners [N, H, W]; the first pixel whose label is neither a class nor
// ignored.
__global__ void __launch_bounds__(kThreads)
    count_pairs(const int32_t* winners, Labels target, bool ignores, int64_t height, int64_t width, int64_t pixels,
                int copies, Count* counts, long long* first_wrong) {
  const int64_t pixel = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  long long pair = -1;
  if (pixel < pixels) {
    const int64_t label = target.at(pixel / width / height, pixel / width % height, pixel % width);
    if (!(ignores && label == target.ignore_index)) {
      if (target.known(label)) {
        pair = label * target.classes + winners[pixel];
      } else {
        atomicMin(first_wrong, static_cast<long long>(pixel));
      }
    }
  }
  const unsigned same = __match_any_sync(0xffffffffu, pair);
  const bool first_of_them = __ffs(static_cast<int>(same)) - 1 == static_cast<int>(threadIdx.x);
  if (pair >= 0 && first_of_them) {
    Count* const own = counts + blockIdx.x % copies * (target.classes * target.classes);
    atomicAdd(own + pair, static_cast<Count>(__popc(same)));
  }
}

// The sum of all copies; -1 everywhere where a label was wrong.
__global__ void __launch_bounds__(kThreads)
    add_copies(const Count* counts, int64_t size, int copies, const long long* first_wrong, int64_t* matrix) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  if (i >= size) return;
  Count sum = 0;
  for (int copy = 0; copy < copies; ++copy) sum += counts[copy * size + i];
  matrix[i] = *first_wrong == kNoPixel ? static_cast<int64_t>(sum) : -1;
}

}  // namespace
}  // namespace fcn
