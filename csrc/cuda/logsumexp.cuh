// The log-sum-exp of bilinear logits, which cross-entropy and softmax share, as geometric progressions.
//
// A softmax does not change when all classes of an *input pixel* move by the same amount, since bilinear sampling is
// linear: `shift` is their maximum, the logits used are x - shift <= 0, no exponential overflows, and a large common
// offset costs no digits. `spread` is how far the least class lies below it, infinite where a class is not finite.
// Where no corner lies further below than kSpan every e_0 r^k is a normal number; elsewhere outputs are evaluated one
// by one, each with its own maximum, from taps in the weighted form: that overflows nowhere and keeps infinities.
#pragma once

#include "../softmax.h"
#include "reduction.cuh"
#include "segments.cuh"

namespace fcn {
namespace {

constexpr int kUnitRows = 2;  // rows of a thread's unit, which share its corners

template <typename A>
constexpr A kSpan = -ChainLimits<A>::kLowest * A(0.9);
constexpr double kLargestSpread = 1e30;  // logits further apart are not shifted: their differences might overflow

// What is known of the input pixels, [N, h, w] each.
template <typename A>
struct Statistics {
  A *shift, *spread;
  A* linear;  // sum_c weight[c] (x[c] - shift), or null
};

// kGroup lanes share an input pixel and read kWide neighbouring classes at a time.
template <typename T, int kGroup, int kWide>
__global__ void __launch_bounds__(kThreads)
    class_statistics(View<const T> x, int64_t channels, int64_t height, int64_t width, int64_t pixels,
                     const ArithmeticOf<T>* weight, Statistics<ArithmeticOf<T>> to) {
  using A = ArithmeticOf<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  const int lane = kGroup == 1 ? 0 : threadIdx.x;
  const int64_t pixel = thread / kGroup, p = pixel < pixels ? pixel : pixels - 1;
  const int64_t j = p % width, i = p / width % height, n = p / width / height;
  const T* from = x.data + n * x.stride_n + i * x.stride_h + j * x.stride_w;
  // NaN classes are no maximum: whoever has one has no finite `check`.
  A most = -INFINITY, least = INFINITY, check = 0;
  for (int64_t c = int64_t{lane} * kWide; c < channels; c += kGroup * kWide) {
    const Pack<T, kWide> pack = load_pack<T, kWide>(from + c * x.stride_c);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      const A v = static_cast<A>(pack.value[k]);
      most = larger(most, v);
      least = v < least ? v : least;
      check += v * A(0);
    }
  }
  if (kGroup > 1) {
    most = largest_of_warp(most);
    least = -largest_of_warp(-least);
    check = sum_of_warp(check);
  }
  const A extent = most - least;
  const bool usual = check == A(0) && extent <= A(kLargestSpread);
  const A top = usual ? most : A(0);
  A total = 0;
  if (to.linear) {
    for (int64_t c = int64_t{lane} * kWide; c < channels; c += kGroup * kWide) {
      const Pack<T, kWide> pack = load_pack<T, kWide>(from + c * x.stride_c);
#pragma unroll
      for (int k = 0; k < kWide; ++k) {
        const A v = static_cast<A>(pack.value[k]) - top;
        total += weight ? weight[c + k] * v : v;
      }
    }
    if (kGroup > 1) total = sum_of_warp(total);
  }
  if (pixel < pixels && lane == 0) {
    to.shift[pixel] = top;
    to.spread[pixel] = usual ? extent : A(INFINITY);
    if (to.linear) to.linear[pixel] = total;
  }
}

// The four inputs around a unit: offsets of a class's values, and of a pixel in Statistics. Those that do not count
// stand for some pixel of the image, whose values are not used.
struct Corners {
  int64_t top_left, top_right, bottom_left, bottom_right;                          // elements of x
  int64_t small_top_left, small_top_right, small_bottom_left, small_bottom_right;  // pixels
  bool has_top_left, has_top_right, has_bottom_left, has_bottom_right;

  template <typename T>
  __device__ Corners(const View<T>& x, const Sampling& s, int64_t n, const Pair& rows, const Pair& columns) {
    const int64_t image = n * x.stride_n, small = n * s.rows.in * s.cols.in;
    const int64_t top = image + rows.first * x.stride_h, bottom = image + rows.second * x.stride_h;
    top_left = top + columns.first * x.stride_w;
    top_right = top + columns.second * x.stride_w;
    bottom_left = bottom + columns.first * x.stride_w;
    bottom_right = bottom + columns.second * x.stride_w;
    const int64_t small_top = small + rows.first * s.cols.in, small_bottom = small + rows.second * s.cols.in;
    small_top_left = small_top + columns.first;
    small_top_right = small_top + columns.second;
    small_bottom_left = small_bottom + columns.first;
    small_bottom_right = small_bottom + columns.second;
    has_top_left = rows.has_first && columns.has_first;
    has_top_right = rows.has_first && columns.has_second;
    has_bottom_left = rows.has_second && columns.has_first;
    has_bottom_right = rows.has_second && columns.has_second;
  }
};

// One number at each corner, zero where the corner does not count.
template <typename A>
struct Four {
  A top_left, top_right, bottom_left, bottom_right;

  // At an output: f = 0 does not read its second tap, whatever that holds.
  __device__ A at(A fx, A fy) const {
    const A top = fx > A(0) ? (A(1) - fx) * top_left + fx * top_right : top_left;
    if (!(fy > A(0))) return top;
    const A bottom = fx > A(0) ? (A(1) - fx) * bottom_left + fx * bottom_right : bottom_left;
    return (A(1) - fy) * top + fy * bottom;
  }

  __device__ A largest() const { return larger(larger(top_left, top_right), larger(bottom_left, bottom_right)); }
};

template <typename A>
__device__ Four<A> small_corners(const A* image, const Corners& at) {
  return Four<A>{at.has_top_left ? image[at.small_top_left] : A(0), at.has_top_right ? image[at.small_top_right] : A(0),
                 at.has_bottom_left ? image[at.small_bottom_left] : A(0),
                 at.has_bottom_right ? image[at.small_bottom_right] : A(0)};
}

// The values a, b, c, d at the corners relative to their shift.
template <typename A>
__device__ Four<A> relative_corners(A a, A b, A c, A d, const Corners& at, const Four<A>& shift) {
  return Four<A>{at.has_top_left ? a - shift.top_left : A(0), at.has_top_right ? b - shift.top_right : A(0),
                 at.has_bottom_left ? c - shift.bottom_left : A(0),
                 at.has_bottom_right ? d - shift.bottom_right : A(0)};
}

template <typename A, typename T>
__device__ Four<A> class_corners(const T* channel, const Corners& at, const Four<A>& shift) {
  return relative_corners(static_cast<A>(channel[at.top_left]), static_cast<A>(channel[at.top_right]),
                          static_cast<A>(channel[at.bottom_left]), static_cast<A>(channel[at.bottom_right]), at, shift);
}

// L = log sum_c exp(z_c) of one output, in two parts whose sum would lose digits where the logits are huge.
template <typename A>
struct SplitLevel {
  A peak, rest;  // the largest z_c; log sum_c exp(z_c - peak)
};

template <typename T>
__device__ SplitLevel<ArithmeticOf<T>> direct_logsumexp(const View<const T>& x, int64_t channels, const Corners& at,
                                                        const Four<ArithmeticOf<T>>& shift, ArithmeticOf<T> fx,
                                                        ArithmeticOf<T> fy) {
  using A = ArithmeticOf<T>;
  A most = -INFINITY, total = 0;
  for (int64_t c = 0; c < channels; ++c) {
    most = larger(most, class_corners<A>(x.data + c * x.stride_c, at, shift).at(fx, fy));
  }
  for (int64_t c = 0; c < channels; ++c) {
    total += exp_of(class_corners<A>(x.data + c * x.stride_c, at, shift).at(fx, fy) - most);
  }
  return SplitLevel<A>{most, log_of(total)};
}

// L = log sum_c exp(z_c) of the outputs of a unit, z = x - shift upsampled: levels[(row * kSteps + step) * kThreads].
template <typename T, int kSteps, int kWide>
__device__ void logsumexp(const View<const T>& x, int64_t channels, const Corners& at,
                          const Four<ArithmeticOf<T>>& shift, ArithmeticOf<T> spread, const Unit<ArithmeticOf<T>>& unit,
                          ArithmeticOf<T>* levels) {
  using A = ArithmeticOf<T>;
  if (spread <= kSpan<A>) {
    const A f0 = unit.across.at(0), step = unit.across.step();
    A fy[kUnitRows], sums[kUnitRows][kSteps];
#pragma unroll
    for (int row = 0; row < kUnitRows; ++row) {
      // A row that is not there repeats the first one.
      fy[row] = unit.down.at(row < unit.height() ? row : 0);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) sums[row][k] = A(0);
    }
    const T* channel = x.data;
    for (int64_t c = 0; c < channels; c += kWide, channel += kWide * x.stride_c) {
      const auto top_left = load_pack<T, kWide>(channel + at.top_left);
      const auto top_right = load_pack<T, kWide>(channel + at.top_right);
      const auto bottom_left = load_pack<T, kWide>(channel + at.bottom_left);
      const auto bottom_right = load_pack<T, kWide>(channel + at.bottom_right);
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const Four<A> v =
            relative_corners(static_cast<A>(top_left.value[i]), static_cast<A>(top_right.value[i]),
                             static_cast<A>(bottom_left.value[i]), static_cast<A>(bottom_right.value[i]), at, shift);
        const A a = v.top_left * A(kLog2E), d = (v.top_right - v.top_left) * A(kLog2E);
        const A da = (v.bottom_left - v.top_left) * A(kLog2E);
        const A dd = (v.bottom_right - v.bottom_left) * A(kLog2E) - d;
#pragma unroll
        for (int row = 0; row < kUnitRows; ++row) {
          const A rise = d + fy[row] * dd;
          A e = exp2_of(a + fy[row] * da + f0 * rise);
          sums[row][0] += e;
          if (kSteps > 1) {
            const A r = exp2_of(rise * step);
#pragma unroll
            for (int k = 1; k < kSteps; ++k) {
              e *= r;
              sums[row][k] += e;
            }
          }
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kUnitRows; ++row) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) levels[(row * kSteps + k) * kThreads] = log_of(sums[row][k]);
    }
    return;
  }
  for (int row = 0; row < unit.height(); ++row) {
    const A fy = unit.down.at(row);
    for (int k = 0; k < unit.width(); ++k) {
      const A fx = unit.across.at(k);
      const SplitLevel<A> level = direct_logsumexp<T>(x, channels, at, shift, fx, fy);
      levels[(row * kSteps + k) * kThreads] = level.rest + level.peak;
    }
  }
}

// L of all outputs, [N, H, W]. Where all corners of a unit lie within kSpan `level` is L; elsewhere it is the rest and
// `peak`, which is left alone otherwise, the peak of SplitLevel.
template <typename A>
struct SplitLevels {
  A *level, *peak;
};

template <typename T, int kSteps, int kWide>
__global__ void __launch_bounds__(kThreads, 1)
    output_levels(View<const T> x, int64_t channels, Sampling s, Units units, Statistics<ArithmeticOf<T>> statistics,
                  SplitLevels<ArithmeticOf<T>> to) {
  using A = ArithmeticOf<T>;
  __shared__ A shared[kUnitRows * kSteps * kThreads];
  const int thread = threadIdx.y * kWarp + threadIdx.x;
  const int64_t number = int64_t{blockIdx.x} * kThreads + thread;
  if (number >= units.count) return;
  const Unit<A> unit(s, units, number);
  if (unit.empty()) return;
  const Corners at(x, s, unit.n, unit.row_pair, unit.column_pair);
  const Four<A> shift = small_corners(statistics.shift, at);
  const A spread = small_corners(statistics.spread, at).largest();
  const bool usual = spread <= kSpan<A>;
  if (usual) logsumexp<T, kSteps, kWide>(x, channels, at, shift, spread, unit, shared + thread);
  for (int row = 0; row < unit.height(); ++row) {
    for (int k = 0; k < unit.width(); ++k) {
      const int64_t pixel = unit.pixel(s) + row * s.cols.out + k;
      if (usual) {
        to.level[pixel] = shared[(row * kSteps + k) * kThreads + thread];
      } else {
        const SplitLevel<A> level = direct_logsumexp<T>(x, channels, at, shift, unit.across.at(k), unit.down.at(row));
        to.level[pixel] = level.rest;
        to.peak[pixel] = level.peak;
      }
    }
  }
}

// log p of a class at output `pixel`, whatever its corners hold.
template <typename T>
__device__ ArithmeticOf<T> log_probability(const T* channel, const Corners& at,
                                           const Statistics<ArithmeticOf<T>>& statistics,
                                           const SplitLevels<ArithmeticOf<T>>& levels, int64_t pixel,
                                           ArithmeticOf<T> fx, ArithmeticOf<T> fy) {
  using A = ArithmeticOf<T>;
  const Four<A> shift = small_corners(statistics.shift, at);
  const bool usual = small_corners(statistics.spread, at).largest() <= kSpan<A>;
  const A z = class_corners<A>(channel, at, shift).at(fx, fy);
  return (usual ? z : z - levels.peak[pixel]) - levels.level[pixel];
}

}  // namespace
}  // namespace fcn
