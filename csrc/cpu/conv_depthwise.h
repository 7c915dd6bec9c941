// Transposed convolutions with one channel per group, whose lines (see conv_lines.h) are too short to pay for passes of
// their own: a row of y is summed, biased, added to the skip and written at once, and one walk over the lines of the
// gradient serves both of its products.
#pragma once

#include "conv_lines.h"
#include "conv_registers.h"

namespace fcn {
namespace FCN_ISA {

// Kernels without a partial tap, whose lanes would need masks.
inline bool is_depthwise(const Packing& p) { return p.inner == 1 && p.outer == 1 && p.columns.part == 0; }

// The weights of a column t are those of t mod stride: every step has them repeated for a vector from any column on, as
// [row phase][row tap][tap][period_pitch].
template <typename T>
inline int64_t periodic_pitch(const Columns& c) {
  return c.stride + kLanes<T>;
}
template <typename T, typename In>
inline void make_periodic(const Packing& p, const Image& weight, int64_t channel, T* to) {
  const Columns& c = p.columns;
  for (int64_t phase = 0; phase < p.row_phases; ++phase) {
    for (int64_t row_tap = 0; row_tap < p.row_taps; ++row_tap) {
      const int64_t ky = phase + row_tap * p.row_phases;
      const In* from = (const In*)weight.data + channel * weight.stride_n + ky * weight.stride_h;
      for (int64_t tap = 0; tap < c.taps; ++tap, from += c.stride * weight.stride_w) {
        for (int64_t first = 0; first < periodic_pitch<T>(c); first += c.stride) {
          const int64_t left = periodic_pitch<T>(c) - first, count = left < c.stride ? left : c.stride;
          const int64_t there = ky < weight.height ? weight.width - tap * c.stride : 0;
          for (int64_t i = 0; i < count; ++i) {
            *to++ = i < there ? (T)to_arithmetic(from[i * weight.stride_w]) : T(0);
          }
        }
      }
    }
  }
}

// Columns [first, first + count) as vectors, the last of which may reach back over others: how far the weights' place
// in the period moves from one to the next, and where it is for the last.
struct Turns {
  int64_t stride, first, count;
  int64_t turn, last;
};
template <typename T>
inline Turns make_turns(int64_t stride, int64_t first, int64_t count) {
  constexpr int L = kLanes<T>;
  return Turns{stride, first, count, L % stride, (first + (count > L ? count - L : 0)) % stride};
}

// Rows r of an output, all with the same weights:
//   out[r][i] = bias + sum over steps of weights[step][(first + i) mod stride] * lines[step][r][first + i]
//               + scale * add[r][i].
template <typename T, typename In>
struct DepthwiseRows {
  const T* const* lines;
  const T* weights;
  const Turns& columns;  // at least a vector
  T bias, scale;
  const In* add;  // null: nothing
  In* out;
  int64_t rows, line_pitch, add_pitch, out_pitch;
};

template <int Steps, bool Adds, typename T, typename In>
FCN_NOINLINE void depthwise_rows(const DepthwiseRows<T, In>& p) {
  constexpr int L = kLanes<T>;
  const Turns turns = p.columns;
  const int64_t pitch = turns.stride + L, count = turns.count, whole = count / L * L;
  const Vec<T> bias = broadcast(p.bias), scale = broadcast(p.scale);
  const In* add = p.add;
  In* out = p.out;
  const T* lines[Steps > 0 ? Steps : 1];
  for (int s = 0; s < Steps; ++s) lines[s] = p.lines[s] + turns.first;
  const auto load_weights = [&](int64_t phase, Vec<T>* w) {
    for (int s = 0; s < Steps; ++s) w[s] = load(p.weights + s * pitch + phase);
  };
  const auto write = [&](int64_t i, const Vec<T>* w) {
    Vec<T> sum = bias;
    for (int s = 0; s < Steps; ++s) sum += w[s] * load(lines[s] + i);
    if (Adds) sum += scale * load_as(add + i);
    store_as(out + i, sum);
  };
  Vec<T> w[Steps > 0 ? Steps : 1];
  load_weights(turns.first, w);
  for (int64_t r = 0; r < p.rows; ++r) {
    if (turns.turn == 0) {
      for (int64_t i = 0; i < whole; i += L) write(i, w);
    } else {
      int64_t phase = turns.first;
      for (int64_t i = 0; i < whole; i += L) {
        load_weights(phase, w);
        write(i, w);
        phase += turns.turn;
        if (phase >= turns.stride) phase -= turns.stride;
      }
    }
    if (whole < count) {
      Vec<T> last[Steps > 0 ? Steps : 1];
      load_weights(turns.last, last);
      write(count - L, last);
    }
    for (int s = 0; s < Steps; ++s) lines[s] += p.line_pitch;
    if (Adds) add += p.add_pitch;
    out += p.out_pitch;
  }
}

template <int Steps = kMostSteps, typename T, typename In>
FCN_INLINE void depthwise_rows(const DepthwiseRows<T, In>& p, int64_t steps) {
  if (steps == Steps) return p.add ? depthwise_rows<Steps, true>(p) : depthwise_rows<Steps, false>(p);
  if constexpr (Steps > 0) depthwise_rows<Steps - 1>(p, steps);
}

// Both products of the backward direction for up to kBothSteps steps of one outer channel, over rows r:
//   out[r][i] (+)= sum over steps of weights[step] * lines[step][r][i]
//   sums[step] += sum over r, i of x[r][i] * lines[step][r][i]
// with i in vectors, `period` apart; of the last one the sums take the lanes in `tail`.
template <typename T>
struct BothProducts {
  const T* const* lines;
  int64_t at, period, count;  // count: of whole periods
  const T* weights;
  const T* x;
  T* out;
  int64_t out_period;
  bool add;
  bool has_tail;
  IntVec<T> tail;
  T* sums;
  int64_t rows, line_pitch, x_pitch, out_pitch;
};

template <typename T, int Steps, bool Adds>
FCN_NOINLINE void multiply_both_tile(const BothProducts<T>& p) {
  constexpr int L = kLanes<T>;
  const int64_t period = p.period, out_period = p.out_period, end = p.count * period;
  Vec<T> sum[Steps], weights[Steps];
  const T *lines[Steps], *x = p.x + p.at;
  for (int s = 0; s < Steps; ++s) {
    sum[s] = load(p.sums + s * L);
    weights[s] = load(p.weights + s * L);
    lines[s] = p.lines[s] + p.at;
  }
  const auto multiply = [&](int64_t i, Vec<T> xs, T* FCN_RESTRICT out, const auto& select) {
    Vec<T> product = Adds ? load(out) : Vec<T>{};
    for (int s = 0; s < Steps; ++s) {
      const Vec<T> g = load(lines[s] + i);
      product += weights[s] * g;
      sum[s] += xs * select(g);
    }
    store(out, product);
  };
  for (int64_t r = 0; r < p.rows; ++r, x += p.x_pitch) {
    T* out = p.out + r * p.out_pitch;
    for (int64_t i = 0; i < end; i += period, out += out_period) {
      multiply(i, load(x + i), out, [](Vec<T> g) { return g; });
    }
    if (p.has_tail) {
      const IntVec<T> tail = p.tail;
      multiply(end, masked<T>(load(x + end), tail), out, [&](Vec<T> g) { return masked<T>(g, tail); });
    }
    for (int s = 0; s < Steps; ++s) lines[s] += p.line_pitch;
  }
  for (int s = 0; s < Steps; ++s) store(p.sums + s * L, sum[s]);
}

template <typename T, int Steps = kBothSteps>
FCN_INLINE void multiply_both(const BothProducts<T>& p, int64_t steps) {
  if (steps == Steps) return p.add ? multiply_both_tile<T, Steps, true>(p) : multiply_both_tile<T, Steps, false>(p);
  if constexpr (Steps > 1) multiply_both<T, Steps - 1>(p, steps);
}

}  // namespace FCN_ISA
}  // namespace fcn
