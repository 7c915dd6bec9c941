// The kernels of upsample_softmax and upsample_log_softmax on CUDA: raw pointers and the geometry, no tensors.
//   1. class_statistics and output_levels: L of every output by progressions (logsumexp.cuh)
//   2. softmax_columns or softmax_channels: exp(z - L), or z - L. Every output is written once and in whole rows of its
//      layout, 16 bytes at a time where that allows; segments begin anywhere, packs of 16 bytes do not, so that packs
//      of columns have their own geometry: up to kTaps inputs, weighed by hat functions, z = sum_j w_j v_j.
// Backward, from the output p:  dx = A'(p (g - sum_c p g)), for the logarithm A'(g - exp(p) sum_c g). class_sums makes
// the sums of all pixels, gather.cuh the rest: g and p are read four times in all, no image of products exists.
#pragma once

#include "gather.cuh"
#include "logsumexp.cuh"

namespace fcn {
namespace {

// Blocks of a multiprocessor, as registers allow.
template <typename T>
constexpr int kResident = sizeof(T) == sizeof(double) ? 1 : 2;

// Input columns that a pack of outputs reads: with (pack - 1) num <= 2 den that is 4, one output has 2.
template <int kPack>
constexpr int kTaps = kPack == 1 ? 2 : 4;

// A thread owns kPack neighbouring outputs of up to kUnitRows rows, in `chunk` classes. Lanes along columns.
template <typename T, int kPack>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    softmax_columns(View<const T> x, int64_t channels, int64_t chunk, Sampling s, Segments row_segments, int64_t units,
                    Statistics<ArithmeticOf<T>> statistics, SplitLevels<ArithmeticOf<T>> levels, bool log, View<T> y) {
  using A = ArithmeticOf<T>;
  constexpr int kInputs = kTaps<kPack>;
  const int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  if (unit >= units) return;
  const int64_t packs = s.cols.out / kPack, ox = unit % packs * kPack, n = unit / packs / row_segments.count;
  const Segment rows(s.rows, row_segments, unit / packs % row_segments.count);
  if (rows.begin >= rows.end) return;
  const int height = static_cast<int>(rows.end - rows.begin);
  const Pair row_pair(s.rows, s.clamp, rows.index);
  const Fractions<A> down(s.rows, row_pair, rows.rest);
  const int64_t first_class = blockIdx.y * chunk;
  const int64_t last_class = first_class + chunk < channels ? first_class + chunk : channels;
  const int64_t pixel = (n * s.rows.out + rows.begin) * s.cols.out + ox;
  T* const to = y.data + n * y.stride_n + rows.begin * y.stride_h + ox * y.stride_w;

  const int64_t base = s.cols.floor_index(ox), image = n * s.rows.in;
  const int64_t top_row = n * x.stride_n + row_pair.first * x.stride_h;
  const int64_t bottom_row = n * x.stride_n + row_pair.second * x.stride_h;
  int64_t top[kInputs], bottom[kInputs];
  A top_shift[kInputs], bottom_shift[kInputs], spread = 0;
#pragma unroll
  for (int j = 0; j < kInputs; ++j) {
    const int64_t column = s.cols.clamp_index(base + j);
    top[j] = top_row + column * x.stride_w;
    bottom[j] = bottom_row + column * x.stride_w;
    const int64_t above = (image + row_pair.first) * s.cols.in + column;
    const int64_t below = (image + row_pair.second) * s.cols.in + column;
    top_shift[j] = statistics.shift[above];
    bottom_shift[j] = statistics.shift[below];
    spread = larger(spread, larger(statistics.spread[above], statistics.spread[below]));
  }
  if (spread <= kSpan<A>) {
    // Inputs outside the image count zero. All are finite, so that a weight of zero leaves out its input.
    const A scale = log ? A(1) : A(kLog2E);
    A weight[kPack][kInputs], upper[kUnitRows], lower[kUnitRows], level[kUnitRows][kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const int64_t index = s.cols.floor_index(ox + k);
      const A f = A(s.cols.num * (ox + k) + s.cols.off - index * s.cols.den) / A(s.cols.den);
#pragma unroll
      for (int j = 0; j < kInputs; ++j) {
        const bool counts = s.clamp || (base + j >= 0 && base + j < s.cols.in);
        const A share = index == base + j ? A(1) - f : index + 1 == base + j ? f : A(0);
        weight[k][j] = counts ? share * scale : A(0);
      }
    }
#pragma unroll
    for (int row = 0; row < kUnitRows; ++row) {
      const int present = row < height ? row : 0;  // a row that is not there repeats the first one
      const A fy = down.at(present);
      upper[row] = row_pair.has_first ? A(1) - fy : A(0);
      lower[row] = row_pair.has_second ? fy : A(0);
      const auto pack = load_pack<A, kPack>(levels.level + pixel + present * s.cols.out);
#pragma unroll
      for (int k = 0; k < kPack; ++k) level[row][k] = pack.value[k] * scale;
    }
    const T* from = x.data + first_class * x.stride_c;
    for (int64_t c = first_class; c < last_class; ++c, from += x.stride_c) {
      A above[kInputs], below[kInputs];
#pragma unroll
      for (int j = 0; j < kInputs; ++j) {
        above[j] = static_cast<A>(from[top[j]]) - top_shift[j];
        below[j] = static_cast<A>(from[bottom[j]]) - bottom_shift[j];
      }
#pragma unroll
      for (int row = 0; row < kUnitRows; ++row) {
        Pack<T, kPack> pack;
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          A z = -level[row][k];
#pragma unroll
          for (int j = 0; j < kInputs; ++j) z += weight[k][j] * (upper[row] * above[j] + lower[row] * below[j]);
          pack.value[k] = static_cast<T>(log ? z : exp2_of(z));
        }
        if (row < height) store_pack(to + c * y.stride_c + row * y.stride_h, pack);
      }
    }
    return;
  }
  for (int k = 0; k < kPack; ++k) {
    const Pair pair(s.cols, s.clamp, s.cols.floor_index(ox + k));
    const A fx = Fractions<A>(s.cols, pair, s.cols.remainder(ox + k)).at(0);
    const Corners at(x, s, n, row_pair, pair);
    for (int row = 0; row < height; ++row) {
      for (int64_t c = first_class; c < last_class; ++c) {
        const A z = log_probability(x.data + c * x.stride_c, at, statistics, levels, pixel + row * s.cols.out + k, fx,
                                    down.at(row));
        to[c * y.stride_c + row * y.stride_h + k * y.stride_w] = static_cast<T>(log ? z : exp_of(z));
      }
    }
  }
}

// `group` lanes share a unit, kWide neighbouring classes each at a time: lanes along classes.
template <typename T, int kSteps, int kWide>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    softmax_channels(View<const T> x, int64_t channels, int group, Sampling s, Units units,
                     Statistics<ArithmeticOf<T>> statistics, SplitLevels<ArithmeticOf<T>> levels, bool log, View<T> y) {
  using A = ArithmeticOf<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  const int64_t number = thread / group, first_class = thread % group * kWide, stride = int64_t{group} * kWide;
  if (number >= units.count) return;
  const Unit<A> unit(s, units, number);
  if (unit.empty()) return;
  const Corners at(x, s, unit.n, unit.row_pair, unit.column_pair);
  const Four<A> shift = small_corners(statistics.shift, at);
  const int height = unit.height(), width = unit.width();
  const int64_t pixel = unit.pixel(s);
  T* const to = y.data + unit.n * y.stride_n + unit.rows.begin * y.stride_h + unit.columns.begin * y.stride_w;
  if (small_corners(statistics.spread, at).largest() <= kSpan<A>) {
    const A scale = log ? A(1) : A(kLog2E), f0 = unit.across.at(0), step = unit.across.step();
    A fy[kUnitRows], level[kUnitRows][kSteps];
#pragma unroll
    for (int row = 0; row < kUnitRows; ++row) {
      const int present = row < height ? row : 0;
      fy[row] = unit.down.at(present);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        level[row][k] = levels.level[pixel + present * s.cols.out + (k < width ? k : 0)] * scale;
      }
    }
    for (int64_t c = first_class; c < channels; c += stride) {
      const T* from = x.data + c * x.stride_c;
      const auto top_left = load_pack<T, kWide>(from + at.top_left);
      const auto top_right = load_pack<T, kWide>(from + at.top_right);
      const auto bottom_left = load_pack<T, kWide>(from + at.bottom_left);
      const auto bottom_right = load_pack<T, kWide>(from + at.bottom_right);
#pragma unroll
      for (int row = 0; row < kUnitRows; ++row) {
        A start[kWide], slope[kWide];
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
          const Four<A> v =
              relative_corners(static_cast<A>(top_left.value[i]), static_cast<A>(top_right.value[i]),
                               static_cast<A>(bottom_left.value[i]), static_cast<A>(bottom_right.value[i]), at, shift);
          const A left = v.top_left + fy[row] * (v.bottom_left - v.top_left);
          const A right = v.top_right + fy[row] * (v.bottom_right - v.top_right);
          slope[i] = (right - left) * scale;
          start[i] = left * scale + f0 * slope[i];
        }
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          Pack<T, kWide> pack;
#pragma unroll
          for (int i = 0; i < kWide; ++i) {
            const A z = start[i] + A(k) * step * slope[i] - level[row][k];
            pack.value[i] = static_cast<T>(log ? z : exp2_of(z));
          }
          if (row < height && k < width) store_pack(to + c * y.stride_c + row * y.stride_h + k * y.stride_w, pack);
        }
      }
    }
    return;
  }
  for (int64_t c = first_class; c < channels; c += stride) {
    for (int i = 0; i < kWide; ++i) {
      for (int row = 0; row < height; ++row) {
        for (int k = 0; k < width; ++k) {
          const A z = log_probability(x.data + (c + i) * x.stride_c, at, statistics, levels,
                                      pixel + row * s.cols.out + k, unit.across.at(k), unit.down.at(row));
          to[(c + i) * y.stride_c + row * y.stride_h + k * y.stride_w] = static_cast<T>(log ? z : exp_of(z));
        }
      }
    }
  }
}

// total [N, H, W] = sum_c p g, or sum_c g for the logarithm. With one lane to a group a thread owns kWide neighbouring
// pixels of a row; else a warp owns a pixel, and a lane reads kWide neighbouring classes at a time.
template <typename T, int kGroup, int kWide>
__global__ void __launch_bounds__(kThreads)
    class_sums(View<const T> grad, View<const T> output, int64_t channels, int64_t height, int64_t width,
               int64_t pixels, bool log, ArithmeticOf<T>* total) {
  using A = ArithmeticOf<T>;
  constexpr int kPixels = kGroup == 1 ? kWide : 1, kClasses = kGroup == 1 ? 1 : kWide;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  const int lane = kGroup == 1 ? 0 : threadIdx.x;
  const int64_t wanted = thread / kGroup * kPixels, pixel = wanted < pixels ? wanted : 0;
  const int64_t ox = pixel % width, oy = pixel / width % height, n = pixel / width / height;
  const T* g = grad.data + n * grad.stride_n + oy * grad.stride_h + ox * grad.stride_w;
  const T* p = output.data + n * output.stride_n + oy * output.stride_h + ox * output.stride_w;
  A sum[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) sum[i] = A(0);
  for (int64_t c = int64_t{lane} * kClasses; c < channels; c += kGroup * kClasses) {
    const auto given = load_pack<T, kWide>(g + c * grad.stride_c);
    Pack<T, kWide> share;
    if (!log) share = load_pack<T, kWide>(p + c * output.stride_c);
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const A value = static_cast<A>(given.value[i]);
      sum[i % kPixels] += log ? value : value * static_cast<A>(share.value[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (kGroup > 1) sum[i] = sum_of_warp(sum[i]);
    if (wanted < pixels && lane == 0) total[pixel + i] = sum[i];
  }
}

// The gradient in the upsampled logits, as gather.cuh reads it.
template <typename T>
struct SoftmaxGradient {
  using Type = T;
  using A = ArithmeticOf<T>;
  View<const T> grad, output;
  const A* total;
  int64_t height, width;
  bool log;

  struct Plane {
    const T *grad, *output;
    const A* total;
    int64_t grad_h, grad_w, output_h, output_w, width;
    bool log;

    __device__ A at(int64_t oy, int64_t ox) const {
      const A g = static_cast<A>(grad[oy * grad_h + ox * grad_w]);
      const A p = static_cast<A>(output[oy * output_h + ox * output_w]), sum = total[oy * width + ox];
      return log ? g - exp_of(p) * sum : p * (g - sum);
    }
  };
  __device__ Plane plane(int64_t n, int64_t c) const {
    return Plane{grad.data + n * grad.stride_n + c * grad.stride_c,
                 output.data + n * output.stride_n + c * output.stride_c,
                 total + n * height * width,
                 grad.stride_h,
                 grad.stride_w,
                 output.stride_h,
                 output.stride_w,
                 width,
                 log};
  }
};

}  // namespace
}  // namespace fcn
