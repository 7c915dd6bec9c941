// The kernels of score_argmax on CUDA: raw pointers, no tensors.
#pragma once

#include "labels.cuh"
#include "score.cuh"

namespace fcn {
namespace {

// Whether class a of value x is preferred to class b of value y: NaN to everything, then the larger, of equals the
// first.
template <typename A>
__device__ bool preferred(A x, int a, A y, int b) {
  if (x != x || y != y) return x != x && (!(y != y) || a < b);
  return x > y || (x == y && a < b);
}

// Writes the best class of every pixel to labels [N, P].
template <typename A_>
struct ArgmaxEpilogue {
  using A = A_;
  static constexpr bool kReads = true, kWrites = false;
  void* labels;
  LabelKind kind;
  int classes;

  template <int kRows>
  struct Pixels {
    const ArgmaxEpilogue& to;
    const Place& place;
    A best[kRows];
    int winner[kRows];

    __device__ Pixels(const ArgmaxEpilogue& epilogue, const Place& at) : to(epilogue), place(at) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        best[i] = -INFINITY;
        winner[i] = to.classes;
      }
    }

    template <int kColumns>
    __device__ void read(const A (&z)[kRows][kColumns], int first_class) {
      for_classes<kColumns>(first_class, to.classes, [&](int j, int c) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) offer(i, z[i][j], c);
      });
    }

    template <int kColumns>
    __device__ void write(const A (&)[kRows][kColumns], int) const {}

    __device__ void end() {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int offset = 2; offset > 0; offset /= 2) {
          const A value = __shfl_xor_sync(0xffffffffu, best[i], offset);
          const int c = __shfl_xor_sync(0xffffffffu, winner[i], offset);
          offer(i, value, c);
        }
        if (place.inside(i) && threadIdx.x % 4 == 0) store(place.image * place.pixels + place.pixel(i), winner[i]);
      }
    }

   private:
    __device__ void offer(int i, A value, int c) {
      if (!preferred(value, c, best[i], winner[i])) return;
      best[i] = value;
      winner[i] = c;
    }

    __device__ void store(int64_t at, int label) const {
      switch (to.kind) {
        case LabelKind::kUInt8:
          static_cast<uint8_t*>(to.labels)[at] = static_cast<uint8_t>(label);
          break;
        case LabelKind::kInt16:
          static_cast<int16_t*>(to.labels)[at] = static_cast<int16_t>(label);
          break;
        case LabelKind::kInt32:
          static_cast<int32_t*>(to.labels)[at] = label;
          break;
        default:
          static_cast<int64_t*>(to.labels)[at] = label;
      }
    }
  };
};

}  // namespace
}  // namespace fcn
