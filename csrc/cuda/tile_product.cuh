// Products of matrices whose elements stand anywhere: result(m, n) = sum_k a(m, k) b(k, n).
//
// An index is taken as three digits, and each digit moves by a fixed distance in memory and in the image; so one kernel
// multiplies x and a weight of a transposed convolution by phases and taps, and makes both of its gradients. A block
// owns a tile of the result: its threads fetch columns of a and rows of b into registers while they multiply the ones
// before, which stand in shared memory, and every number there is used by a whole row or column of the tile: half types
// on tensor cores, others exactly. The result leaves through shared memory too, in the order in which it stands in the
// image.
#pragma once

#include <type_traits>

#include "../sampling.h"
#include "instructions.cuh"
#include "reduction.cuh"
#include "segments.cuh"

namespace fcn {
namespace {

// Where an element stands: in memory, and in the image. Rows and columns of images end at kLargestPlace.
struct Place {
  int64_t offset;
  int32_t row, column;

  FCN_HOST_DEVICE Place plus(const Place& step, int64_t times) const {
    return Place{offset + times * step.offset, row + static_cast<int32_t>(times) * step.row,
                 column + static_cast<int32_t>(times) * step.column};
  }
};

constexpr int64_t kLargestPlace = int64_t{1} << 30;
constexpr int32_t kNowhere = INT32_MIN;  // whatever is added up to kLargestPlace, it is in no image

FCN_HOST_DEVICE inline bool is_inside(const Place& a, const Place& b, int32_t height, int32_t width) {
  return static_cast<uint32_t>(a.row) + static_cast<uint32_t>(b.row) < static_cast<uint32_t>(height) &&
         static_cast<uint32_t>(a.column) + static_cast<uint32_t>(b.column) < static_cast<uint32_t>(width);
}

// The places of an index; its first digit changes fastest.
struct Digits {
  int64_t size[2];
  Place start, step[3];

  FCN_HOST_DEVICE Place at(int64_t index) const {
    const int64_t rest = index / size[0], last = rest / size[1];
    return start.plus(step[0], index - rest * size[0]).plus(step[1], rest - last * size[1]).plus(step[2], last);
  }
};

// The places of neighbouring indices one after the other, without divisions.
struct Walk {
  Place place;
  int64_t left[2];  // until a digit overflows
  const Digits& digits;

  __device__ Walk(const Digits& of, int64_t index) : place(of.at(index)), digits(of) {
    const int64_t rest = index / of.size[0];
    left[0] = of.size[0] - (index - rest * of.size[0]);
    left[1] = of.size[1] - rest % of.size[1];
  }

  __device__ void next() {
    place = place.plus(digits.step[0], 1);
    if (--left[0] > 0) return;
    left[0] = digits.size[0];
    place = place.plus(digits.step[0], -digits.size[0]).plus(digits.step[1], 1);
    if (--left[1] > 0) return;
    left[1] = digits.size[1];
    place = place.plus(digits.step[1], -digits.size[1]).plus(digits.step[2], 1);
  }
};

// Neighbours along the sum that a thread reads at once: 16 bytes.
template <typename T>
constexpr int kRun = 16 / sizeof(T);

// A factor: rows of a, or columns of b, are its lines. What stands outside the image counts zero.
template <typename T>
struct Operand {
  const T* data;
  Digits line, depth;
  int64_t group;  // elements from one group's matrix to the next
  int32_t height, width;
  bool along_depth;  // neighbouring lanes read neighbours along the sum, instead of neighbouring lines
  bool wide;         // kRun neighbours along the sum are neighbours in memory, all inside or all outside, aligned
};

// Where a product goes: places outside the image are left out.
template <typename T, typename Out>
struct Result {
  Out* data;
  Digits row, column;
  int64_t group, part;
  int32_t height, width;
  bool along_columns;  // neighbouring columns are neighbours in memory, else rows are
  int interleaved;     // that many columns of a row stand before the next row
  const T* other;      // scale * other is added, unless it is null
  Digits other_row, other_column;
  int64_t other_group;
  ArithmeticOf<T> scale;
};

// Blocks are tiles of rows x columns of `groups` products; the sum is split into parts of `chunk`, whole kDepths.
struct ProductShape {
  int64_t rows, columns, depth, chunk, groups;
};

constexpr int kProductThreads = 128;
constexpr int kProductWarps = kProductThreads / kWarp;

// How the threads of a block share a tile of kHeight x kWidth: a thread holds total[i][j] of row(thread, i) and
// column(thread, j). Here by exact multiply-adds, a thread's rows and columns in neighbours of kQuad.
template <typename T, int kHeight, int kWidth>
struct ExactTile {
  using A = ArithmeticOf<T>;
  using Kept = A;  // what the factors are in shared memory
  static constexpr int kQuad = 4;
  static constexpr int kPad = kQuad;                                    // elements between lines there
  static constexpr int kAcross = 8, kDown = kProductThreads / kAcross;  // threads
  static constexpr int kRows = kHeight / kDown, kColumns = kWidth / kAcross;

  static __device__ int row(int thread, int i) {
    return thread / kAcross * kQuad + i / kQuad * kDown * kQuad + i % kQuad;
  }
  static __device__ int column(int thread, int j) {
    return thread % kAcross * kQuad + j / kQuad * kAcross * kQuad + j % kQuad;
  }

  template <int kDepth, int kPitchA, int kPitchB>
  static __device__ void add(A (&total)[kRows][kColumns], const Kept (&a)[kDepth][kPitchA],
                             const Kept (&b)[kDepth][kPitchB], int thread) {
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      Pack<A, kQuad> u[kRows / kQuad], v[kColumns / kQuad];
#pragma unroll
      for (int i = 0; i < kRows / kQuad; ++i) u[i] = load_pack<A, kQuad>(&a[k][row(thread, i * kQuad)]);
#pragma unroll
      for (int j = 0; j < kColumns / kQuad; ++j) v[j] = load_pack<A, kQuad>(&b[k][column(thread, j * kQuad)]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          total[i][j] += u[i / kQuad].value[i % kQuad] * v[j / kQuad].value[j % kQuad];
        }
      }
    }
  }
};

// Half types on tensor cores: warps stand one below the other, and instructions.cuh says what a lane holds.
template <typename T, int kHeight, int kWidth>
struct MatrixTile {
  using A = float;
  using Kept = T;
  static constexpr int kPad = 16 / sizeof(T);
  static constexpr int kRows = kHeight / kProductWarps / 8, kColumns = kWidth / 4;

  static __device__ int row(int thread, int i) {
    return thread / kWarp * (kHeight / kProductWarps) + thread % kWarp / 4 + 8 * i;
  }
  static __device__ int column(int thread, int j) { return 8 * (j / 2) + 2 * (thread % 4) + j % 2; }

  template <int kDepth, int kPitchA, int kPitchB>
  static __device__ void add(A (&total)[kRows][kColumns], const Kept (&a)[kDepth][kPitchA],
                             const Kept (&b)[kDepth][kPitchB], int thread) {
    const int top = thread / kWarp * (kHeight / kProductWarps), matrix = thread % kWarp / 8, line = thread % 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t left[kRows / 2][4];
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
        load_matrices<true>(left[i], &a[k + 8 * (matrix / 2) + line][top + 16 * i + 8 * (matrix % 2)]);
      }
#pragma unroll
      for (int j = 0; j < kColumns; j += 4) {
        uint32_t right[4];
        load_matrices<true>(right, &b[k + 8 * (matrix % 2) + line][4 * j + 8 * (matrix / 2)]);
#pragma unroll
        for (int i = 0; i < kRows; i += 2) {
          multiply_16x8x16<T>(total[i][j], total[i][j + 1], total[i + 1][j], total[i + 1][j + 1], left[i / 2], right[0],
                              right[1]);
          multiply_16x8x16<T>(total[i][j + 2], total[i][j + 3], total[i + 1][j + 2], total[i + 1][j + 3], left[i / 2],
                              right[2], right[3]);
        }
      }
    }
  }
};

template <typename T>
constexpr int kTileHeight = sizeof(T) == 8 ? 64 : 128;

template <typename T, int kWidth>
using ThreadsOfTile =
    std::conditional_t<sizeof(T) == 2, MatrixTile<T, kTileHeight<T>, kWidth>, ExactTile<T, kTileHeight<T>, kWidth>>;

template <typename T, int kWidth>
struct ProductTile : ThreadsOfTile<T, kWidth> {
  using Threads = ThreadsOfTile<T, kWidth>;
  using A = ArithmeticOf<T>;
  static constexpr int kDepth = kProductWarps * kRun<T>, kHeight = kTileHeight<T>;

  struct Factors {
    alignas(32) typename Threads::Kept a[kDepth][kHeight + Threads::kPad];
    alignas(32) typename Threads::Kept b[kDepth][kWidth + Threads::kPad];
    Place rows[kHeight], columns[kWidth];
  };
  struct Outcome {
    A value[kWidth][kHeight + 1];
    Place rows[kHeight], columns[kWidth];
    int64_t other_rows[kHeight], other_columns[kWidth];
  };
  union Shared {
    Factors factors;
    Outcome outcome;
  };
};

// What a thread fetches of a factor: kRun neighbours along the sum of every kWarp-th line.
template <typename T, int kLines>
struct Fetched {
  static constexpr int kCount = kLines / kWarp;
  Pack<T, kRun<T>> value[kCount];

  static __device__ int first_line(const Operand<T>& from, int thread) {
    return from.along_depth ? thread / kProductWarps : thread % kWarp;
  }
  static __device__ int run(const Operand<T>& from, int thread) {
    return (from.along_depth ? thread % kProductWarps : thread / kWarp) * kRun<T>;
  }

  __device__ void fetch(const Operand<T>& from, const T* data, const Place* lines, int64_t k, int64_t end, int thread) {
    lines += first_line(from, thread);
    k += run(from, thread);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < kRun<T>; ++j) value[i].value[j] = static_cast<T>(0.0f);
    }
    if (k >= end) return;
    if (from.wide) {
      const Place at = from.depth.at(k);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Place line = lines[i * kWarp];
        if (is_inside(line, at, from.height, from.width)) {
          value[i] = load_pack<T, kRun<T>>(data + (line.offset + at.offset));
        }
      }
      return;
    }
    Walk at(from.depth, k);
#pragma unroll
    for (int j = 0; j < kRun<T>; ++j) {
      if (k + j >= end) break;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Place line = lines[i * kWarp];
        if (is_inside(line, at.place, from.height, from.width)) {
          value[i].value[j] = data[line.offset + at.place.offset];
        }
      }
      at.next();
    }
  }

  template <typename Kept, int kPitch>
  __device__ void keep(const Operand<T>& from, Kept (*to)[kPitch], int thread) const {
    const int line = first_line(from, thread), k = run(from, thread);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < kRun<T>; ++j) to[k + j][line + i * kWarp] = static_cast<Kept>(value[i].value[j]);
    }
  }
};

// The tile's part of the sum.
template <typename T, int kWidth>
__device__ void tile_product(
    const Operand<T>& a, const Operand<T>& b, int64_t group, int64_t begin, int64_t end,
    typename ProductTile<T, kWidth>::Factors& shared, int thread,
    ArithmeticOf<T> (&total)[ProductTile<T, kWidth>::kRows][ProductTile<T, kWidth>::kColumns]) {
  using Tile = ProductTile<T, kWidth>;
  const T* const a_data = a.data + group * a.group;
  const T* const b_data = b.data + group * b.group;
  Fetched<T, Tile::kHeight> rows;
  Fetched<T, kWidth> columns;
  rows.fetch(a, a_data, shared.rows, begin, end, thread);
  columns.fetch(b, b_data, shared.columns, begin, end, thread);
  for (int64_t k = begin; k < end; k += Tile::kDepth) {
    __syncthreads();
    rows.keep(a, shared.a, thread);
    columns.keep(b, shared.b, thread);
    __syncthreads();
    rows.fetch(a, a_data, shared.rows, k + Tile::kDepth, end, thread);
    columns.fetch(b, b_data, shared.columns, k + Tile::kDepth, end, thread);
    Tile::add(total, shared.a, shared.b, thread);
  }
}

template <typename T, typename Out, int kWidth>
__global__ void __launch_bounds__(kProductThreads)
    gathered_product(Operand<T> a, Operand<T> b, Result<T, Out> to, ProductShape shape) {
  using Tile = ProductTile<T, kWidth>;
  using A = ArithmeticOf<T>;
  __shared__ typename Tile::Shared shared;
  const int thread = threadIdx.y * kWarp + threadIdx.x;
  const int64_t across = divided_up(shape.columns, kWidth), down = divided_up(shape.rows, Tile::kHeight);
  const int64_t column = blockIdx.x % across * kWidth, row = blockIdx.x / across % down * Tile::kHeight;
  const int64_t group = blockIdx.x / across / down, part = blockIdx.y;
  for (int line = thread; line < Tile::kHeight; line += kProductThreads) {
    const bool exists = row + line < shape.rows;
    shared.factors.rows[line] = exists ? a.line.at(row + line) : Place{0, kNowhere, 0};
  }
  for (int line = thread; line < kWidth; line += kProductThreads) {
    const bool exists = column + line < shape.columns;
    shared.factors.columns[line] = exists ? b.line.at(column + line) : Place{0, kNowhere, 0};
  }
  __syncthreads();

  A total[Tile::kRows][Tile::kColumns];
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) total[i][j] = A(0);
  }
  const int64_t begin = part * shape.chunk, left = shape.depth - begin;
  tile_product<T, kWidth>(a, b, group, begin, begin + (left < shape.chunk ? left : shape.chunk), shared.factors, thread,
                          total);
  __syncthreads();

#pragma unroll
  for (int j = 0; j < Tile::kColumns; ++j) {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i)
      shared.outcome.value[Tile::column(thread, j)][Tile::row(thread, i)] = total[i][j];
  }
  for (int line = thread; line < Tile::kHeight; line += kProductThreads) {
    const bool exists = row + line < shape.rows;
    shared.outcome.rows[line] = exists ? to.row.at(row + line) : Place{0, kNowhere, 0};
    if (to.other) shared.outcome.other_rows[line] = to.other_row.at(row + line).offset;
  }
  for (int line = thread; line < kWidth; line += kProductThreads) {
    const bool exists = column + line < shape.columns;
    shared.outcome.columns[line] = exists ? to.column.at(column + line) : Place{0, 0, kNowhere};
    if (to.other) shared.outcome.other_columns[line] = to.other_column.at(column + line).offset;
  }
  __syncthreads();
  Out* const data = to.data + part * to.part + group * to.group;
  const T* const other = to.other + (to.other ? group * to.other_group : 0);
  for (int i = thread; i < Tile::kHeight * kWidth; i += kProductThreads) {
    int m, n;
    if (to.along_columns) {
      m = i / kWidth;
      n = i % kWidth;
    } else {
      const int inner = i % to.interleaved, rest = i / to.interleaved;
      m = rest % Tile::kHeight;
      n = rest / Tile::kHeight * to.interleaved + inner;
    }
    const Place at = shared.outcome.rows[m], by = shared.outcome.columns[n];
    if (!is_inside(at, by, to.height, to.width)) continue;
    A value = shared.outcome.value[n][m];
    if (to.other) {
      value += to.scale * static_cast<A>(other[shared.outcome.other_rows[m] + shared.outcome.other_columns[n]]);
    }
    data[at.offset + by.offset] = static_cast<Out>(value);
  }
}

// to[i] = the parts' sums, in their order.
template <typename A, typename Out>
__global__ void sum_parts(const A* parts, int64_t count, int64_t size, Out* to) {
  const int64_t i = int64_t{blockIdx.x} * kProductThreads + threadIdx.y * kWarp + threadIdx.x;
  if (i >= size) return;
  A total = parts[i];
  for (int64_t part = 1; part < count; ++part) total += parts[part * size + i];
  to[i] = static_cast<Out>(total);
}

}  // namespace
}  // namespace fcn
