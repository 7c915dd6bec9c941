// Products of matrices, z[m][n] = sum_k a[m][k] b[n][k], in tiles of a block of kProductWarps warps, which stand one
// below the other: all columns of a row are in one warp, four lanes (a quad) share it.
//
// Operands are read in place. Asynchronous copies of 16 bytes, of 4 where addresses allow no more, bring kDepthBytes of
// the inner dimension into one of a few stages of shared memory while earlier ones are multiplied: half types on tensor
// cores, products of float32 and a half type there too, in TF32; float32 and float64 exactly, by multiply-adds. What
// leaves the operand counts zero, and nothing outside is read.
//
// Whatever the arithmetic, a thread holds the scores z[i][j] of rows lane / 4 + 8 i of its warp's and columns
// 8 (j / 2) + 2 (lane % 4) + j % 2 of the block's. Each is the sum of its products in the order of k.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "instructions.cuh"
#include "reduction.cuh"

namespace fcn {
namespace {

constexpr int kProductWarps = 4;
constexpr int kProductThreads = kProductWarps * kWarp;
constexpr int kDepthBytes = 64;
constexpr int kSlice = 32;        // columns that are computed or left out together
constexpr int kSliceColumns = 8;  // those of a thread
constexpr int kStaticShared = 48 * 1024;

// The rows of matrices that are multiplied: element (outer, inner) of a batch stands at stride_outer * outer +
// stride_inner * inner; that of the lines is 1. `copy`: bytes that can be read at once there, 16, 4, or an element's.
template <typename T>
struct Operand {
  const T* data;
  int64_t stride_batch, stride_outer, stride_inner;
  int64_t outer;
  bool inner_lines;
  int copy;
};

// The widest access that an operand's copies can have, where its lines begin `strides` elements apart.
template <typename T>
int copy_width(const void* data, std::initializer_list<int64_t> strides) {
  for (int width : {16, 4}) {
    bool aligned = reinterpret_cast<uintptr_t>(data) % width == 0;
    for (int64_t stride : strides) aligned = aligned && stride * static_cast<int64_t>(sizeof(T)) % width == 0;
    if (aligned) return width;
  }
  return sizeof(T);
}

// [batches, outer, inner] in memory: lines of `inner`, or of `outer` neighbours.
template <typename T>
Operand<T> operand(const void* data, int64_t stride_batch, int64_t stride_outer, int64_t stride_inner, int64_t outer,
                   bool inner_lines) {
  return Operand<T>{static_cast<const T*>(data),
                    stride_batch,
                    inner_lines ? stride_outer : 1,
                    inner_lines ? 1 : stride_inner,
                    outer,
                    inner_lines,
                    copy_width<T>(data, {stride_batch, inner_lines ? stride_outer : stride_inner})};
}

// What is known of an operand's lines before it is seen: neighbours in memory differ in `outer`, in `inner`, or either.
enum class Lines { kOuter, kInner, kAny };

// kOuter rows of an operand in shared memory, kDepth elements each, in the order that they have in memory, of which
// `inner_lines` tells. 16 bytes between lines let the lanes of a warp reach all banks.
template <typename T, int kOuter, int kDepth>
struct alignas(16) Stage {
  static constexpr int kSteps = kDepth;
  static constexpr int kChunk = 16 / sizeof(T);
  static constexpr int kInnerPitch = kDepth + kChunk, kOuterPitch = kOuter + kChunk;
  static constexpr int kInnerSize = kOuter * kInnerPitch, kOuterSize = kDepth * kOuterPitch;
  T value[kInnerSize > kOuterSize ? kInnerSize : kOuterSize];

  __device__ const T* at(int outer, int inner, bool inner_lines) const {
    return value + (inner_lines ? outer * kInnerPitch + inner : inner * kOuterPitch + outer);
  }

  // Starts to read the rows from `outer` on, elements [inner, inner_end), and only the first `rows` of them.
  __device__ void load(const Operand<T>& from, const T* batch, int64_t outer, int64_t inner, int64_t inner_end,
                       int rows, bool inner_lines) {
    if (inner_lines) {
      load_lines<true>(from, batch, outer, inner, inner_end, rows);
    } else {
      load_lines<false>(from, batch, outer, inner, inner_end, rows);
    }
  }

 private:
  template <bool kInner>
  __device__ void load_lines(const Operand<T>& from, const T* batch, int64_t outer, int64_t inner, int64_t inner_end,
                             int rows) {
    constexpr int kChunks = (kInner ? kDepth : kOuter) / kChunk, kAll = (kInner ? kOuter : kDepth) * kChunks;
    const int thread = threadIdx.y * kWarp + threadIdx.x;
    const auto each = [&](int chunk, const auto& copy) {
      const int line = chunk / kChunks, start = chunk % kChunks * kChunk;
      if ((kAll % kProductThreads != 0 && chunk >= kAll) || (kInner && line >= rows)) return;
      const int64_t o = outer + (kInner ? line : start), k = inner + (kInner ? start : line);
      const int64_t left = o >= from.outer || k >= inner_end ? 0 : kInner ? inner_end - k : from.outer - o;
      const int count = left < kChunk ? static_cast<int>(left) : kChunk;
      copy(value + line * (kInner ? kInnerPitch : kOuterPitch) + start,
           count > 0 ? batch + o * from.stride_outer + k * from.stride_inner : batch, count);
    };
    if (from.copy == 16) {
#pragma unroll
      for (int first = 0; first < kAll; first += kProductThreads) {
        each(first + thread, [](T* to, const T* p, int count) { copy_async<16>(to, p, count * int{sizeof(T)}); });
      }
    } else {
#pragma unroll 1
      for (int first = 0; first < kAll; first += kProductThreads) {
        each(first + thread, [&](T* to, const T* p, int count) { copy_narrow(to, p, count, from.copy); });
      }
    }
  }

  __device__ static void copy_narrow(T* to, const T* from, int count, int width) {
    if (width == 4) {
#pragma unroll
      for (int at = 0; at < 16; at += 4) {
        const int rest = count * static_cast<int>(sizeof(T)) - at;
        copy_async<4>(reinterpret_cast<char*>(to) + at, reinterpret_cast<const char*>(from) + (rest > 0 ? at : 0),
                      rest < 0   ? 0
                      : rest < 4 ? rest
                                 : 4);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) to[e] = e < count ? from[e] : T(0.0f);
    }
  }
};

// Calls f(slice) for the first `slices` slices of a thread's columns.
template <int kColumns, typename F>
__device__ void for_slices(int slices, const F& f) {
#pragma unroll
  for (int slice = 0; slice < kColumns / kSliceColumns; ++slice) {
    if (slice < slices) f(slice);
  }
}

// How a warp multiplies two stages: z += a b^T for the rows of a from `row` on and some slices of the columns.
// Here float32 and a half type.
template <typename TA, typename TB>
struct ProductOf {
  template <int kRows, int kColumns, typename StageA, typename StageB>
  __device__ static void add(float (&z)[kRows][kColumns], const StageA& a, bool lines_a, const StageB& b, bool lines_b,
                             int row, int slices) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < StageA::kSteps; k += 8) {
      uint32_t left[kRows / 2][4];
#pragma unroll
      for (int m = 0; m < kRows / 2; ++m) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          left[m][r] = tf32_of(static_cast<float>(*a.at(row + 16 * m + g + 8 * (r % 2), k + t + 4 * (r / 2), lines_a)));
        }
      }
      for_slices<kColumns>(slices, [&](int slice) {
#pragma unroll
        for (int j = slice * kSliceColumns; j < (slice + 1) * kSliceColumns; j += 2) {
          const uint32_t b0 = tf32_of(static_cast<float>(*b.at(4 * j + g, k + t, lines_b)));
          const uint32_t b1 = tf32_of(static_cast<float>(*b.at(4 * j + g, k + t + 4, lines_b)));
#pragma unroll
          for (int i = 0; i < kRows; i += 2) {
            multiply_16x8x8(z[i][j], z[i][j + 1], z[i + 1][j], z[i + 1][j + 1], left[i / 2], b0, b1);
          }
        }
      });
    }
  }
};

// Half types.
template <typename T>
struct ProductOf<T, T> {
  template <int kRows, int kColumns, typename StageA, typename StageB>
  __device__ static void add(float (&z)[kRows][kColumns], const StageA& a, bool lines_a, const StageB& b, bool lines_b,
                             int row, int slices) {
    const int matrix = threadIdx.x / 8, r = threadIdx.x % 8;
#pragma unroll
    for (int k = 0; k < StageA::kSteps; k += 16) {
      uint32_t left[kRows / 2][4];
#pragma unroll
      for (int m = 0; m < kRows / 2; ++m) {
        const int outer = row + 16 * m + 8 * (matrix % 2), inner = k + 8 * (matrix / 2);
        if (lines_a) {
          load_matrices<false>(left[m], a.at(outer + r, inner, true));
        } else {
          load_matrices<true>(left[m], a.at(outer, inner + r, false));
        }
      }
      for_slices<kColumns>(slices, [&](int slice) {
#pragma unroll
        for (int j = slice * kSliceColumns; j < (slice + 1) * kSliceColumns; j += 4) {
          uint32_t right[4];
          load_matrices<false>(right, b.at(4 * j + 8 * (matrix / 2) + r, k + 8 * (matrix % 2), true));
#pragma unroll
          for (int i = 0; i < kRows; i += 2) {
            multiply_16x8x16<T>(z[i][j], z[i][j + 1], z[i + 1][j], z[i + 1][j + 1], left[i / 2], right[0], right[1]);
            multiply_16x8x16<T>(z[i][j + 2], z[i][j + 3], z[i + 1][j + 2], z[i + 1][j + 3], left[i / 2], right[2],
                                right[3]);
          }
        }
      });
    }
  }
};

template <typename T>
struct ExactProduct {
  template <int kRows, int kColumns, typename StageA, typename StageB>
  __device__ static void add(T (&z)[kRows][kColumns], const StageA& a, bool lines_a, const StageB& b, bool lines_b,
                             int row, int slices) {
    constexpr int kPack = StageA::kChunk;
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < StageA::kSteps; k += kPack) {
      T left[kRows][kPack];
#pragma unroll
      for (int i = 0; i < kRows; ++i) read(left[i], a, row + g + 8 * i, k, lines_a);
      for_slices<kColumns>(slices, [&](int slice) {
#pragma unroll
        for (int j = slice * kSliceColumns; j < (slice + 1) * kSliceColumns; ++j) {
          T right[kPack];
          read(right, b, 8 * (j / 2) + 2 * t + j % 2, k, lines_b);
#pragma unroll
          for (int v = 0; v < kPack; ++v) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) z[i][j] += left[i][v] * right[v];
          }
        }
      });
    }
  }

 private:
  template <int kPack, typename S>
  __device__ static void read(T (&to)[kPack], const S& stage, int outer, int inner, bool lines) {
    if (lines) {
      const Pack<T, kPack> pack = load_pack<T, kPack>(stage.at(outer, inner, true));
#pragma unroll
      for (int v = 0; v < kPack; ++v) to[v] = pack.value[v];
    } else {
#pragma unroll
      for (int v = 0; v < kPack; ++v) to[v] = *stage.at(outer, inner + v, false);
    }
  }
};
template <>
struct ProductOf<float, float> : ExactProduct<float> {};
template <>
struct ProductOf<double, double> : ExactProduct<double> {};

// A block's tile: kRows rows of a thread, kSlices slices of columns, for operands of these lines.
template <typename TA_, typename TB_, Lines kLinesA, Lines kLinesB, int kRowsOfThread, int kSlices>
struct Tile {
  using TA = TA_;
  using TB = TB_;
  using A = ArithmeticOf<TA>;
  static constexpr int kRows = kRowsOfThread, kColumns = kSlices * kSliceColumns;
  static constexpr int kWarpRows = 8 * kRows;
  static constexpr int kBlockRows = kProductWarps * kWarpRows, kBlockColumns = kSlices * kSlice;
  static constexpr int kDepth = kDepthBytes / (sizeof(TA) > sizeof(TB) ? sizeof(TA) : sizeof(TB));
  using StageA = Stage<TA, kBlockRows, kDepth>;
  using StageB = Stage<TB, kBlockColumns, kDepth>;
  static constexpr int kFitting = kStaticShared / (sizeof(StageA) + sizeof(StageB));
  static constexpr int kStages = kFitting < 4 ? kFitting : 4;
  static_assert(sizeof(TB) > 2 || sizeof(TA) > 2 || kLinesB == Lines::kInner, "matrices of half types in b are lines");
  static_assert(kStages >= 2, "one stage is read while another is multiplied");
  struct Stages {
    StageA a[kStages];
    StageB b[kStages];
  };

  // z += the products of [k, k_end) for the block's rows and columns, of which `slices` slices are wanted. All threads
  // of the block call it; when it returns, the stages can be used again.
  __device__ static void add(A (&z)[kRows][kColumns], Stages& stages, const Operand<TA>& a, const TA* batch_a,
                             int64_t row, const Operand<TB>& b, const TB* batch_b, int64_t column, int slices,
                             int64_t k, int64_t k_end) {
    const bool lines_a = kLinesA == Lines::kAny ? a.inner_lines : kLinesA == Lines::kInner;
    const bool lines_b = kLinesB == Lines::kAny ? b.inner_lines : kLinesB == Lines::kInner;
    const int steps = static_cast<int>((k_end - k + kDepth - 1) / kDepth);
    const auto load = [&](int step) {
      if (step < steps) {
        const int64_t from = k + int64_t{step} * kDepth;
        stages.a[step % kStages].load(a, batch_a, row, from, k_end, kBlockRows, lines_a);
        stages.b[step % kStages].load(b, batch_b, column, from, k_end, slices * kSlice, lines_b);
      }
      close_copies();
    };
    for (int step = 0; step < kStages - 1; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
      wait_for_copies<kStages - 2>();
      __syncthreads();  // the copies of all threads have arrived, and nobody reads the stage that is filled next
      load(step + kStages - 1);
      const int stage = step % kStages;
      ProductOf<TA, TB>::add(z, stages.a[stage], lines_a, stages.b[stage], lines_b,
                             static_cast<int>(threadIdx.y) * kWarpRows, slices);
    }
    wait_for_copies<0>();
    __syncthreads();
  }
};

// Tiles of few columns, whose threads have as many rows as their registers allow.
template <typename TA, typename TB, Lines kLinesA, Lines kLinesB>
using NarrowTile = Tile<TA, TB, kLinesA, kLinesB, std::is_same_v<TA, double> ? 2 : 4, 1>;

}  // namespace
}  // namespace fcn
