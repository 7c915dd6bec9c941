// The kernels of upsample_argmax on CUDA: raw pointers and the geometry, no tensors.
//   1. class_winners: the argmax of every input pixel
//   2. argmax_units: the outputs of a unit lie between the same four inputs, with weights that are not negative, so
//   that
//      a class that wins at all four wins everywhere in between (ties included: at each it is the lowest of its value).
//      The units of a block that are not decided so are compared class by class, by as few warps as hold them.
//   3. label_probabilities, on request: exp(z - L) of every label
// Values are interpolated in the weighted form, which is monotone in every input also after rounding: a class that no
// other exceeds at any corner is exceeded nowhere, and equal classes tie exactly.
#pragma once

#include "labels.cuh"
#include "logsumexp.cuh"

namespace fcn {
namespace {

// The winner of an input pixel as one number: the class; where some logit is -inf, -2 - class; where one is NaN or the
// largest is infinite, kStrange.
constexpr int32_t kStrange = -1;
__device__ inline int32_t winner_of(int32_t code) { return code < kStrange ? -2 - code : code; }

// `kGroup` lanes share an input pixel and read kWide neighbouring classes at a time.
template <typename T, int kGroup, int kWide>
__global__ void __launch_bounds__(kThreads, 1)
    class_winners(View<const T> x, int64_t channels, int64_t height, int64_t width, int64_t pixels, int32_t* to) {
  using A = ArithmeticOf<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  const int lane = kGroup == 1 ? 0 : threadIdx.x;
  const int64_t pixel = thread / kGroup, p = pixel < pixels ? pixel : pixels - 1;
  const int64_t j = p % width, i = p / width % height, n = p / width / height;
  const T* from = x.data + n * x.stride_n + i * x.stride_h + j * x.stride_w;
  A best = -INFINITY, check = 0;
  int32_t winner = lane * kWide, strange = 0;
  for (int64_t c = int64_t{lane} * kWide; c < channels; c += kGroup * kWide) {
    const Pack<T, kWide> pack = load_pack<T, kWide>(from + c * x.stride_c);
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      const A v = static_cast<A>(pack.value[k]);
      if (v > best) {
        best = v;
        winner = static_cast<int32_t>(c) + k;
      }
      check += v * A(0);
      strange |= v != v;
    }
  }
  if (kGroup > 1) {
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) {
      const A other = __shfl_xor_sync(0xffffffffu, best, offset);
      const int32_t label = __shfl_xor_sync(0xffffffffu, winner, offset);
      if (other > best || (other == best && label < winner)) {
        best = other;
        winner = label;
      }
      strange |= __shfl_xor_sync(0xffffffffu, strange, offset);
    }
    check = sum_of_warp(check);
  }
  if (pixel < pixels && lane == 0) {
    to[pixel] = strange || best == A(INFINITY) ? kStrange : check == A(0) ? winner : -2 - winner;
  }
}

// The labels of a unit, one class after another, a later one only where it is larger: put(row, step, label).
template <typename T, int kSteps, int kWide, typename Put>
__device__ void compare_classes(const View<const T>& x, int64_t channels, const Corners& at,
                                const Unit<ArithmeticOf<T>>& unit, const Put& put) {
  using A = ArithmeticOf<T>;
  A fx[kSteps], fy[kUnitRows], best[kUnitRows][kSteps];
  int32_t winner[kUnitRows][kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) fx[k] = unit.across.at(k < unit.width() ? k : 0);
#pragma unroll
  for (int row = 0; row < kUnitRows; ++row) {
    fy[row] = unit.down.at(row < unit.height() ? row : 0);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      best[row][k] = -INFINITY;
      winner[row][k] = 0;
    }
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
                           static_cast<A>(bottom_left.value[i]), static_cast<A>(bottom_right.value[i]), at, Four<A>{});
#pragma unroll
      for (int row = 0; row < kUnitRows; ++row) {
        const A left = (A(1) - fy[row]) * v.top_left + fy[row] * v.bottom_left;
        const A right = (A(1) - fy[row]) * v.top_right + fy[row] * v.bottom_right;
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          const A z = (A(1) - fx[k]) * left + fx[k] * right;
          if (z > best[row][k]) {
            best[row][k] = z;
            winner[row][k] = static_cast<int32_t>(c) + i;
          }
        }
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kUnitRows; ++row) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) put(row, k, winner[row][k]);
  }
}

// The same whatever the corners hold: as in torch the first NaN wins, and a tap of weight zero is not read.
template <typename T, typename Put>
__device__ void compare_carefully(const View<const T>& x, int64_t channels, const Corners& at,
                                  const Unit<ArithmeticOf<T>>& unit, const Put& put) {
  using A = ArithmeticOf<T>;
  for (int row = 0; row < unit.height(); ++row) {
    const A fy = unit.down.at(row);
    for (int k = 0; k < unit.width(); ++k) {
      const A fx = unit.across.at(k);
      A best = -INFINITY;
      int32_t winner = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const A z = class_corners<A>(x.data + c * x.stride_c, at, Four<A>{}).at(fx, fy);
        if ((z > best || z != z) && best == best) {
          best = z;
          winner = static_cast<int32_t>(c);
        }
      }
      put(row, k, winner);
    }
  }
}

// Spreads what lanes write kSteps apart over the banks of shared memory.
FCN_HOST_DEVICE constexpr int bank_slot(int i) { return i + i / kWarp; }

template <typename T, int kSteps, int kWide>
__global__ void __launch_bounds__(kThreads, 2) argmax_units(View<const T> x, int64_t channels, Sampling s, Units units,
                                                            const int32_t* winners, void* labels, LabelKind kind) {
  using A = ArithmeticOf<T>;
  constexpr int kLine = kThreads * kSteps;
  __shared__ int32_t found[bank_slot(kUnitRows * kLine)];
  __shared__ int64_t pixels[kThreads];
  __shared__ int32_t heights[kThreads], widths[kThreads], undecided[kThreads], undecided_count;
  const int thread = threadIdx.y * kWarp + threadIdx.x;
  const int64_t first = int64_t{blockIdx.x} * kThreads;
  if (thread == 0) undecided_count = 0;
  heights[thread] = 0;
  __syncthreads();
  if (first + thread < units.count) {
    const Unit<A> unit(s, units, first + thread);
    if (!unit.empty()) {
      pixels[thread] = unit.pixel(s);
      heights[thread] = unit.height();
      widths[thread] = unit.width();
      const Corners at(x, s, unit.n, unit.row_pair, unit.column_pair);
      const Four<int32_t> code = small_corners(winners, at);
      const int32_t winner = winner_of(code.top_left);
      if (winner != kStrange && winner == winner_of(code.top_right) && winner == winner_of(code.bottom_left) &&
          winner == winner_of(code.bottom_right)) {
        for (int row = 0; row < kUnitRows; ++row) {
#pragma unroll
          for (int k = 0; k < kSteps; ++k) found[bank_slot(row * kLine + thread * kSteps + k)] = winner;
        }
      } else {
        undecided[atomicAdd(&undecided_count, 1)] = thread;
      }
    }
  }
  __syncthreads();
  if (thread < undecided_count) {
    const int own = undecided[thread];
    const Unit<A> unit(s, units, first + own);
    const Corners at(x, s, unit.n, unit.row_pair, unit.column_pair);
    const Four<int32_t> code = small_corners(winners, at);
    const auto put = [&](int row, int k, int32_t label) { found[bank_slot(row * kLine + own * kSteps + k)] = label; };
    if ((code.top_left | code.top_right | code.bottom_left | code.bottom_right) >= 0) {
      compare_classes<T, kSteps, kWide>(x, channels, at, unit, put);
    } else {
      compare_carefully(x, channels, at, unit, put);
    }
  }
  __syncthreads();
  for (int row = 0; row < kUnitRows; ++row) {
    for (int i = thread; i < kLine; i += kThreads) {
      const int unit = i / kSteps, k = i % kSteps;
      if (row < heights[unit] && k < widths[unit]) {
        store_label(labels, kind, pixels[unit] + row * s.cols.out + k, found[bank_slot(row * kLine + i)]);
      }
    }
  }
}

// The probability of every label: in place of the level.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    label_probabilities(View<const T> x, Sampling s, int64_t pixels, Statistics<ArithmeticOf<T>> statistics,
                        SplitLevels<ArithmeticOf<T>> levels, Labels labels) {
  using A = ArithmeticOf<T>;
  const int64_t pixel = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  if (pixel >= pixels) return;
  const int64_t ox = pixel % s.cols.out, oy = pixel / s.cols.out % s.rows.out, n = pixel / s.cols.out / s.rows.out;
  const Pair rows(s.rows, s.clamp, s.rows.floor_index(oy)), columns(s.cols, s.clamp, s.cols.floor_index(ox));
  const Corners at(x, s, n, rows, columns);
  const A fy = Fractions<A>(s.rows, rows, s.rows.remainder(oy)).at(0);
  const A fx = Fractions<A>(s.cols, columns, s.cols.remainder(ox)).at(0);
  const T* channel = x.data + labels.at(n, oy, ox) * x.stride_c;
  levels.level[pixel] = exp_of(log_probability(channel, at, statistics, levels, pixel, fx, fy));
}

}  // namespace
}  // namespace fcn
