// Scores of a 1x1 convolution, and an epilogue that sees all classes of a pixel: nothing of the scores is written.
//
// A block takes pixels of one image, which are the rows of its product with the weight; four lanes share a pixel. More
// classes than a tile holds are taken in blocks, of which an epilogue keeps running results; one that writes a number
// for every class lets the product run again. Where pixels are few and features many, the features are split among
// blocks, which write their parts of the scores, and `score_parts` adds these in order before the same epilogue.
//
// An epilogue is a struct of arguments with kReads and kWrites: whether it must see all classes before it writes, and
// whether it writes for every class. Its Pixels<kRows>, made for the pixels of a thread, has read(z, first_class),
// write(z, first_class) and end().
#pragma once

#include "matrix.cuh"

namespace fcn {
namespace {

// The pixels of a thread, first + 8 i of an image; the lanes of a quad have the same.
struct Place {
  int64_t image, first, pixels;
  int64_t warp;  // its number among those of the launch

  __device__ int64_t pixel(int i) const { return first + 8 * i; }
  __device__ bool inside(int i) const { return pixel(i) < pixels; }
};

// The class of a thread's column j.
__device__ inline int class_of(int first_class, int j) {
  return first_class + 8 * (j / 2) + 2 * (threadIdx.x % 4) + j % 2;
}

// Calls f(j, class) for the classes among a thread's columns.
template <int kColumns, typename F>
__device__ void for_classes(int first_class, int classes, const F& f) {
  for_slices<kColumns>((classes - first_class + kSlice - 1) / kSlice, [&](int slice) {
#pragma unroll
    for (int j = slice * kSliceColumns; j < (slice + 1) * kSliceColumns; ++j) {
      const int c = class_of(first_class, j);
      if (c < classes) f(j, c);
    }
  });
}

// Runs an epilogue over all classes; scores_of(z, first_class, slices) adds the scores but for their bias.
template <typename A, int kRows, int kColumns, typename T, typename Epilogue, typename Scores>
__device__ void for_all_classes(const Scores& scores_of, const T* bias, int classes, const Place& place,
                                const Epilogue& epilogue) {
  constexpr int kWidth = kColumns / kSliceColumns * kSlice;
  typename Epilogue::template Pixels<kRows> pixels(epilogue, place);
  const bool again = Epilogue::kReads && Epilogue::kWrites && classes > kWidth;
  for (int sweep = 0; sweep <= again; ++sweep) {
    for (int first_class = 0; first_class < classes; first_class += kWidth) {
      A z[kRows][kColumns] = {};
      const int slices = (classes - first_class + kSlice - 1) / kSlice;
      scores_of(z, first_class, slices < kColumns / kSliceColumns ? slices : kColumns / kSliceColumns);
      if (bias) {
        for_classes<kColumns>(first_class, classes, [&](int j, int c) {
          const A b = static_cast<A>(bias[c]);
#pragma unroll
          for (int i = 0; i < kRows; ++i) z[i][j] += b;
        });
      }
      if (Epilogue::kReads && sweep == 0) pixels.read(z, first_class);
      if (Epilogue::kWrites && sweep == again) pixels.write(z, first_class);
    }
  }
  pixels.end();
}

// What the scores are made of: x [N, P, K] and weight [C, K] in any layout, bias [C] or null; blocks of an image.
template <typename T>
struct ScoreOperands {
  Operand<T> x, weight;
  const T* bias;
  int64_t features;
  int classes;
  int64_t tiles;
};

// Tiles for few classes, and for up to 192, which leave a thread fewer pixels.
template <typename T>
using FewClasses = NarrowTile<T, T, Lines::kAny, Lines::kInner>;
template <typename T>
using ManyClasses = Tile<T, T, Lines::kAny, Lines::kInner, 2, 6>;

template <typename Tile, typename Epilogue>
__global__ void __launch_bounds__(kProductThreads, 1)
    score_pixels(ScoreOperands<typename Tile::TA> in, Epilogue epilogue) {
  using A = typename Tile::A;
  __shared__ typename Tile::Stages stages;
  const int64_t image = blockIdx.x / in.tiles, row = blockIdx.x % in.tiles * Tile::kBlockRows;
  const Place place{image, row + threadIdx.y * Tile::kWarpRows + threadIdx.x / 4, in.x.outer,
                    int64_t{blockIdx.x} * kProductWarps + threadIdx.y};
  const typename Tile::TA* const x = in.x.data + image * in.x.stride_batch;
  for_all_classes<A, Tile::kRows, Tile::kColumns>(
      [&](A(&z)[Tile::kRows][Tile::kColumns], int first_class, int slices) {
        Tile::add(z, stages, in.x, x, row, in.weight, in.weight.data, first_class, slices, 0, in.features);
      },
      in.bias, in.classes, place, epilogue);
}

constexpr int kPartRows = 8;  // pixels of a block, which is one warp

// parts [splits, N, P, C] of the scores.
template <typename A, typename T, typename Epilogue>
__global__ void __launch_bounds__(kWarp) score_parts(const A* parts, int64_t splits, int64_t images, int64_t pixels,
                                                     int64_t tiles, const T* bias, int classes, Epilogue epilogue) {
  const int64_t image = blockIdx.x / tiles;
  const Place place{image, int64_t{blockIdx.x} % tiles * kPartRows + threadIdx.x / 4, pixels, blockIdx.x};
  const A* const from = parts + (image * pixels + (place.inside(0) ? place.first : 0)) * classes;
  for_all_classes<A, 1, kSliceColumns>(
      [&](A(&z)[1][kSliceColumns], int first_class, int) {
        for (int64_t split = 0; split < splits; ++split) {
          const A* const part = from + split * images * pixels * classes;
          for_classes<kSliceColumns>(first_class, classes, [&](int j, int c) { z[0][j] += part[c]; });
        }
      },
      bias, classes, place, epilogue);
}

// For every row the maximum m and sum exp(z - m) so far.
template <typename A, int kRows>
struct RunningSum {
  A most[kRows], total[kRows];

  __device__ RunningSum() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      most[i] = -INFINITY;
      total[i] = A(0);
    }
  }

  // What exponentials are relative to: NaN and infinity go where they go in z - m.
  __device__ A base(int i) const { return most[i] == A(-INFINITY) ? A(0) : most[i]; }

  template <int kColumns>
  __device__ void read(const A (&z)[kRows][kColumns], int first_class, int classes) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      A larger_of = most[i];
      for_classes<kColumns>(first_class, classes, [&](int j, int) { larger_of = larger(larger_of, z[i][j]); });
      larger_of = largest_of_quad(larger_of);
      const A before = most[i];
      most[i] = larger_of;
      A sum = 0;
      for_classes<kColumns>(first_class, classes, [&](int j, int) { sum += exp_of(z[i][j] - base(i)); });
      total[i] = total[i] * exp_of(before - base(i)) + sum_of_quad(sum);
    }
  }
};

}  // namespace
}  // namespace fcn
