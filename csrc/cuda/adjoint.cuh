// The adjoint of bilinear sampling: d loss / d x[i, j] = sum_o weight(o; i, j) g(o), for a g that is computed from the
// output o, once for its four inputs.
//
// The outputs between two neighbouring inputs share an interval; those beyond the outermost inputs belong to the first
// and the last one. kInner lanes take an interval of columns (kChannels: of so many channels; else they share its
// outputs) and walk down the rows between two input rows. What an output gives to its right input moves to the next
// lanes by a shuffle, what it gives to the lower row stays in a register for the next rows, or goes to the next warp in
// shared memory: a gather, whose sums have a fixed order. The first intervals of a block, in both directions, only
// give: they are computed by its neighbour too. A block of 8 warps with 8 intervals each, one below the other,
// evaluates an output 8/7 * 8/7 = 1.31 times on average (32/31 * 8/7 = 1.18 with a lane to an interval, 4/3 * 8/7
// = 1.52 across channels), against 4 times of a gather by single inputs; where an image has rows enough for warps of 8
// intervals, 64/63 takes the place of 8/7 down the rows.
#pragma once

#include <type_traits>

#include "reduction.cuh"
#include "segments.cuh"

namespace fcn {
namespace {

// What a block does: kWarps * strip intervals of rows, kWarp / kInner of columns.
struct AdjointPlan {
  int64_t strip;         // intervals of rows of a warp
  int64_t across, down;  // blocks of a plane, or of kInner planes
  int64_t planes;        // of an image: channels or groups of them
  int64_t blocks;        // of all
};

inline AdjointPlan adjoint_plan(const Sampling& s, int64_t batch, int64_t channels, int inner, bool across_channels) {
  constexpr int64_t kEnough = 1024;  // blocks
  AdjointPlan plan;
  plan.planes = across_channels ? divided_up(channels, inner) : channels;
  plan.across = divided_up(s.cols.in, kWarp / inner - 1);
  const int64_t wide = batch * plan.planes * plan.across;
  plan.strip = 8;
  while (plan.strip > 1 && wide * divided_up(s.rows.in, kWarps * plan.strip - 1) < kEnough) plan.strip /= 2;
  plan.down = divided_up(s.rows.in, kWarps * plan.strip - 1);
  plan.blocks = wide * plan.down;
  return plan;
}

// Calls f(lanes of an interval, whether they are channels), as constants.
template <typename F>
void with_adjoint_lanes(const Sampling& s, int64_t channels, bool channels_last, const F& f) {
  if (channels_last && channels >= 4) return f(std::integral_constant<int, 8>(), std::true_type());
  if (s.cols.in == 1) return f(std::integral_constant<int, 16>(), std::false_type());
  if (s.cols.num * 4 <= s.cols.den) return f(std::integral_constant<int, 4>(), std::false_type());
  f(std::integral_constant<int, 1>(), std::false_type());
}

// The outputs between inputs i and i + 1 and those beyond the outermost inputs. Of the latter a clamped image reads
// that input, and they are `flat`: as if they stood on it. Otherwise they read nothing and are not near.
struct Interval {
  uint32_t begin, end;            // all outputs
  uint32_t near_begin, near_end;  // those that read an input
  bool before, flat;              // flat: f = 0; before: what they give to the first input goes to the second

  FCN_HOST_DEVICE Interval(const Axis& axis, bool clamp, int64_t i)
      : before(clamp && i < 0), flat(before || (clamp && i == axis.in - 1)) {
    near_begin = static_cast<uint32_t>(axis.first_output(i));
    near_end = static_cast<uint32_t>(axis.first_output(i + 1));
    begin = i < 0 ? 0 : near_begin;
    end = i == axis.in - 1 ? static_cast<uint32_t>(axis.out) : near_end;
    if (clamp) {
      near_begin = begin;
      near_end = end;
    }
  }

  // pos(o) - i, of an output that is near.
  template <typename A>
  FCN_HOST_DEVICE A fraction(const Axis& axis, int64_t i, int64_t o) const {
    return flat ? A(0) : A(axis.num * o + axis.off - i * axis.den) / A(axis.den);
  }
};

// Function says what is computed of an output:
//   Cell cell(n, c, rows, columns)           what it knows of the inputs around an interval of rows and columns
//   Row row(cell, n, c, oy, fy, near)        and of one of its output rows
//   A at(row, ox, f, near, counted, sums)    g(o); `counted` in one block only, for sums over the outputs
//   void finish(sums)                        by all threads, at the end
// dx null: only that.
template <typename Function, typename Out, int kInner, bool kChannels>
__global__ void __launch_bounds__(kThreads, sizeof(typename Function::A) == sizeof(double) ? 1 : 2)
    adjoint(Sampling s, AdjointPlan plan, int64_t channels, Function function, View<Out> dx) {
  using A = typename Function::A;
  constexpr int kSlots = kWarp / kInner;
  __shared__ A given[kThreads];
  const unsigned lane = threadIdx.x, warp = threadIdx.y, slot = lane / kInner, inner = lane % kInner;
  const int64_t across = blockIdx.x % plan.across, down = blockIdx.x / plan.across % plan.down;
  const int64_t plane = blockIdx.x / plan.across / plan.down, n = plane / plan.planes;
  const int64_t c = plane % plan.planes * (kChannels ? kInner : 1) + (kChannels ? inner : 0);
  const int64_t h = s.rows.in, w = s.cols.in, j = across * (kSlots - 1) + slot - 1;
  const bool working = j < w && c < channels, owner = slot > 0 && working && (kChannels || inner == 0);
  const Pair column_pair(s.cols, s.clamp, j);
  const Interval columns(s.cols, s.clamp, j);
  const A f0 = columns.fraction<A>(s.cols, j, columns.near_begin);
  const A step = columns.flat ? A(0) : A(s.cols.num) / A(s.cols.den);
  Out* const to = dx.data + n * dx.stride_n + c * dx.stride_c + j * dx.stride_w;
  typename Function::Sums sums;

  const int64_t first = down * (kWarps * plan.strip - 1) + warp * plan.strip - 1;
  A first_up = 0, above = 0;
  for (int64_t i = first; i < first + plan.strip && i < h; ++i) {
    const Pair row_pair(s.rows, s.clamp, i);
    const Interval rows(s.rows, s.clamp, i);
    const bool counted = (slot > 0 || across == 0) && (warp > 0 || i > first || down == 0);
    A up_left = 0, up_right = 0, down_left = 0, down_right = 0;
    if (working) {
      const auto cell = function.cell(n, c, row_pair, column_pair);
      for (uint32_t oy = rows.begin; oy < rows.end; ++oy) {
        const bool near_row = oy >= rows.near_begin && oy < rows.near_end;
        const A fy = near_row ? rows.fraction<A>(s.rows, i, oy) : A(0);
        const auto row = function.row(cell, n, c, oy, fy, near_row);
        A left = 0, right = 0;
        for (uint32_t ox = columns.begin + (kChannels ? 0 : inner); ox < columns.end; ox += kChannels ? 1 : kInner) {
          const bool near = near_row && ox >= columns.near_begin && ox < columns.near_end;
          const A f = near ? f0 + A(static_cast<int32_t>(ox - columns.near_begin)) * step : A(0);
          const A g = function.at(row, ox, f, near, counted, sums);
          if (near) left += (A(1) - f) * g;
          if (f > A(0)) right += f * g;
        }
        up_left += (A(1) - fy) * left;
        up_right += (A(1) - fy) * right;
        if (fy > A(0)) {
          down_left += fy * left;
          down_right += fy * right;
        }
      }
    }
    if (!dx.data) continue;
    if (rows.before) {
      down_left = up_left;
      down_right = up_right;
    }
    if (columns.before) {
      up_right = up_left;
      down_right = down_left;
    }
    if (!kChannels) {
#pragma unroll
      for (int offset = kInner / 2; offset > 0; offset /= 2) {
        up_left += __shfl_xor_sync(0xffffffffu, up_left, offset);
        up_right += __shfl_xor_sync(0xffffffffu, up_right, offset);
        down_left += __shfl_xor_sync(0xffffffffu, down_left, offset);
        down_right += __shfl_xor_sync(0xffffffffu, down_right, offset);
      }
    }
    const A up = up_left + __shfl_up_sync(0xffffffffu, up_right, kInner);
    if (i == first) {
      first_up = up;
    } else if (owner) {
      to[i * dx.stride_h] = static_cast<Out>(up + above);
    }
    above = down_left + __shfl_up_sync(0xffffffffu, down_right, kInner);
  }
  given[warp * kWarp + lane] = above;
  __syncthreads();
  if (dx.data && warp > 0 && owner && first < h) {
    to[first * dx.stride_h] = static_cast<Out>(first_up + given[(warp - 1) * kWarp + lane]);
  }
  function.finish(sums);
}

// A function of outputs that knows nothing of x: what a Source says of them (gather.cuh).
template <typename Source>
struct EachOutput {
  using A = ArithmeticOf<typename Source::Type>;
  using Cell = typename Source::Plane;
  struct Row {
    Cell plane;
    int64_t oy;
  };
  struct Sums {};

  Source source;

  __device__ Cell cell(int64_t n, int64_t c, const Pair&, const Pair&) const { return source.plane(n, c); }
  __device__ Row row(const Cell& cell, int64_t, int64_t, int64_t oy, A, bool) const { return Row{cell, oy}; }
  __device__ A at(const Row& row, int64_t ox, A, bool near, bool, Sums&) const {
    return near ? row.plane.at(row.oy, ox) : A(0);
  }
  __device__ void finish(Sums&) const {}
};

}  // namespace
}  // namespace fcn
