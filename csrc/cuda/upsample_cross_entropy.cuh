// The kernels of upsample_cross_entropy on CUDA: raw pointers and the geometry, no tensors. Nothing of size H x W x C
// exists, there are no atomics, and every sum has a fixed order.
//   1. class_statistics: shift and spread of the input pixels (logsumexp.cuh)
//   2. cross_entropy_pixels: L by progressions, the loss of every output from L and the corners of its label, its
//      coefficient a + b = (1 - e) w_y + e / C sum_c w_c; losses are summed per block. finish_loss adds the blocks up.
//   3. cross_entropy_gradient: once L is known the classes are independent: a thread takes a few of them and an input
//      interval and walks down the rows. With q_k = (a + b) exp(-L_k), shared by all classes, the softmax part of an
//      interval in a row is a polynomial in r, and its right half that polynomial's derivative,
//          sum_k (a + b) p_k     = e_0 (q_0 + q_1 r + q_2 r^2 + ...)  = e_0 P(r)
//          sum_k (a + b) p_k f_k = e_0 (f_0 P(r) + step r P'(r))
//      which Horner's rule evaluates together. What goes to the lower input row stays in registers for the next band,
//      what goes to the right column moves to the next lane: a gather.
#pragma once

#include "labels.cuh"
#include "logsumexp.cuh"
#include "loss.cuh"

namespace fcn {
namespace {

constexpr int kOwners = kWarp - 1;  // the first lane of a warp only gives to its right
constexpr int kGradientWarps = 2;   // of a block of the gradient, which needs many registers

// Classes of a thread of the gradient, as its registers allow.
template <typename T>
constexpr int kClassesOf = sizeof(T) == sizeof(double) ? 2 : 4;

// [N, H, W] images, contiguous but for the incoming gradient; null: not wanted.
template <typename A>
struct PixelImages {
  A* loss;
  A* level;     // L
  A* absolute;  // L of the logits themselves
  A* coefficient;
};

// A thread owns a unit: up to kUnitRows rows of a segment of up to kSteps outputs.
template <typename T, int kSteps, int kWide>
__global__ void __launch_bounds__(kThreads, 1)
    cross_entropy_pixels(View<const T> x, Sampling s, Units units, Statistics<ArithmeticOf<T>> statistics,
                         Labels labels, LossOptions<ArithmeticOf<T>> options, PixelImages<ArithmeticOf<T>> to,
                         double* partial) {
  using A = ArithmeticOf<T>;
  __shared__ A shared[kUnitRows * kSteps * kThreads];
  const int thread = threadIdx.y * kWarp + threadIdx.x;
  const int64_t number = int64_t{blockIdx.x} * kThreads + thread;
  double loss_sum = 0, weight_sum = 0;
  if (number < units.count) {
    const Unit<A> unit(s, units, number);
    if (!unit.empty()) {
      const Corners at(x, s, unit.n, unit.row_pair, unit.column_pair);
      const Four<A> shift = small_corners(statistics.shift, at);
      const A spread = small_corners(statistics.spread, at).largest();
      logsumexp<T, kSteps, kWide>(x, labels.classes, at, shift, spread, unit, shared + thread);
      for (int row = 0; row < unit.height(); ++row) {
        const A fy = unit.down.at(row);
        const int64_t y = unit.rows.begin + row, line = (unit.n * s.rows.out + y) * s.cols.out;
        for (int k = 0; k < unit.width(); ++k) {
          const A fx = unit.across.at(k);
          const int64_t pixel = line + unit.columns.begin + k;
          const A level = shared[(row * kSteps + k) * kThreads + thread];
          int64_t label = labels.at(unit.n, y, unit.columns.begin + k);
          const bool kept = label != labels.ignore_index, known = labels.known(label);
          label = kept && known ? label : 0;
          if (to.level) to.level[pixel] = level;
          if (to.absolute) {
            const A absolute = level + shift.at(fx, fy);
            to.absolute[pixel] = absolute - absolute == A(0) ? absolute : A(NAN);
          }
          if (to.coefficient) {
            to.coefficient[pixel] = kept ? options.coefficient(label, known, level, labels.classes) : A(0);
          }
          const A z = class_corners<A>(x.data + label * x.stride_c, at, shift).at(fx, fy);
          const A weight = options.weight_of(label), e = options.smoothing;
          A loss = (A(1) - e) * weight * (level - z);
          if (e > A(0)) {
            const A all = options.weight_sum ? *options.weight_sum : A(labels.classes);
            const A linear = small_corners(statistics.linear, at).at(fx, fy);
            loss += e / A(labels.classes) * (all * level - linear);
          }
          loss = !kept ? A(0) : known ? loss : A(NAN);
          if (to.loss) to.loss[pixel] = loss;
          loss_sum += loss;
          weight_sum += kept ? weight : A(0);
        }
      }
    }
  }
  if (!partial) return;
  sum_of_block(loss_sum, weight_sum);
  if (thread == 0) {
    partial[2 * int64_t{blockIdx.x}] = loss_sum;
    partial[2 * int64_t{blockIdx.x} + 1] = weight_sum;
  }
}

// Before a gradient without reduction: L relative to the upsampled shift, and (a + b) times the incoming gradient.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_coefficients(Sampling s, int64_t pixels, const A* shift, const A* absolute, Labels labels,
                               LossOptions<A> options, PixelGradient<A> grad, A* level, A* coefficient) {
  const int64_t all = int64_t{gridDim.x} * kThreads;
  int64_t pixel = int64_t{blockIdx.x} * kThreads + threadIdx.y * kWarp + threadIdx.x;
  for (; pixel < pixels; pixel += all) {
    const int64_t ox = pixel % s.cols.out, oy = pixel / s.cols.out % s.rows.out, n = pixel / s.cols.out / s.rows.out;
    const Pair rows(s.rows, s.clamp, s.rows.floor_index(oy)), columns(s.cols, s.clamp, s.cols.floor_index(ox));
    const View<const A> image{shift, s.rows.in * s.cols.in, 0, s.cols.in, 1};
    const Corners at(image, s, n, rows, columns);
    const A fy = Fractions<A>(s.rows, rows, s.rows.remainder(oy)).at(0);
    const A fx = Fractions<A>(s.cols, columns, s.cols.remainder(ox)).at(0);
    level[pixel] = absolute[pixel] - small_corners(shift, at).at(fx, fy);
    const int64_t label = labels.at(n, oy, ox);
    A value = 0;
    if (label != labels.ignore_index) {
      value = options.coefficient(label, labels.known(label), level[pixel], labels.classes) * grad.at(n, oy, ox);
    }
    coefficient[pixel] = value;
  }
}

// A warp: `strip` input rows of an image, and 32 slots of a few classes each. Slots are numbered through the blocks
// of classes: slot i of a block is the interval between columns i - 1 and i, and owns column i - 1.
struct GradientPlan {
  int64_t strip, strips;  // input rows of a warp; warps down an image
  int64_t tiles;          // warps across the slots of an image
  int64_t warps;          // of all images
};

inline GradientPlan gradient_plan(const Sampling& s, int64_t batch, int64_t channels, int classes_of_thread) {
  constexpr int64_t kEnough = 8192;  // warps
  const int64_t blocks = divided_up(channels, classes_of_thread),
                tiles = divided_up(blocks * (s.cols.in + 1) - 1, kOwners);
  int64_t strip = 16;
  while (strip > 1 && batch * tiles * divided_up(s.rows.in, strip) < kEnough) strip /= 2;
  const int64_t strips = divided_up(s.rows.in, strip);
  return GradientPlan{strip, strips, tiles, batch * strips * tiles};
}

template <typename T, typename Out, int kSteps, bool kPacked>
__global__ void __launch_bounds__(kWarp* kGradientWarps, 1)
    cross_entropy_gradient(View<const T> x, Sampling s, GradientPlan plan, Statistics<ArithmeticOf<T>> statistics,
                           const ArithmeticOf<T>* levels, const ArithmeticOf<T>* coefficients, Labels labels,
                           LossOptions<ArithmeticOf<T>> options, PixelGradient<ArithmeticOf<T>> grad, View<Out> dx) {
  using A = ArithmeticOf<T>;
  constexpr int kClasses = kClassesOf<T>;
  // Keep Horner's sums, up to kMaxSteps exp(kSpan) times the coefficient, in range.
  constexpr A kDown = A(1.0 / (int64_t{1} << 40)), kUp = A(int64_t{1} << 40);
  const int64_t warp = int64_t{blockIdx.x} * kGradientWarps + threadIdx.y;
  if (warp >= plan.warps) return;
  const int lane = threadIdx.x;
  const int64_t h = s.rows.in, w = s.cols.in, n = warp / plan.tiles / plan.strips;
  const int64_t row_begin = warp / plan.tiles % plan.strips * plan.strip;
  const int64_t row_end = row_begin + plan.strip < h ? row_begin + plan.strip : h;
  const int64_t slot = warp % plan.tiles * kOwners + lane;
  const int64_t first_class = slot / (w + 1) * kClasses, i = slot % (w + 1) - 1;
  const bool working = first_class < labels.classes;
  // Beyond the border of a clamped image all outputs read its outermost pixel, as if they stood on it.
  const bool before = s.clamp && i < 0, after = s.clamp && i >= w - 1, flat = before || after;
  const int64_t begin = before ? 0 : s.cols.first_output(i);
  const int64_t end = !working ? begin : after ? s.cols.out : s.cols.first_output(i + 1);
  const int64_t origin = i * s.cols.den - s.cols.off;  // f = (num o - origin) / den
  const A den_x = A(s.cols.den), step = flat ? A(0) : A(s.cols.num) / den_x;
  const Pair columns(s.cols, s.clamp, i);
  const A e = options.smoothing;

  A carry_sum[kClasses], carry_right[kClasses];
#pragma unroll
  for (int j = 0; j < kClasses; ++j) {
    carry_sum[j] = carry_right[j] = A(0);  // the band above the first row gives only what goes down
  }
  for (int64_t iy = row_begin - 1; iy < row_end; ++iy) {
    const bool above = s.clamp && iy < 0, below = s.clamp && iy >= h - 1;
    const int64_t first = above ? 0 : s.rows.first_output(iy);
    const int64_t last = below ? s.rows.out : s.rows.first_output(iy + 1);
    const Corners at(x, s, n, Pair(s.rows, s.clamp, iy), columns);
    const Four<A> shift = small_corners(statistics.shift, at);
    const bool bounded = small_corners(statistics.spread, at).largest() <= kSpan<A>;
    Four<A> v[kClasses];
    if (kPacked && first_class + kClasses <= labels.classes) {
      const T* channel = x.data + first_class;
      const auto top_left = load_pack<T, kClasses>(channel + at.top_left);
      const auto top_right = load_pack<T, kClasses>(channel + at.top_right);
      const auto bottom_left = load_pack<T, kClasses>(channel + at.bottom_left);
      const auto bottom_right = load_pack<T, kClasses>(channel + at.bottom_right);
#pragma unroll
      for (int j = 0; j < kClasses; ++j) {
        v[j] = relative_corners(static_cast<A>(top_left.value[j]), static_cast<A>(top_right.value[j]),
                                static_cast<A>(bottom_left.value[j]), static_cast<A>(bottom_right.value[j]), at, shift);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kClasses; ++j) {
        const int64_t c = first_class + j < labels.classes ? first_class + j : labels.classes - 1;
        v[j] = class_corners<A>(x.data + c * x.stride_c, at, shift);
      }
    }
    A top_sum[kClasses], top_right[kClasses];
#pragma unroll
    for (int j = 0; j < kClasses; ++j) {
      top_sum[j] = carry_sum[j];
      top_right[j] = carry_right[j];
      carry_sum[j] = carry_right[j] = A(0);
    }
    for (int64_t oy = first; oy < last; ++oy) {
      const A fy = above || below ? A(0) : A(oy * s.rows.num + s.rows.off - iy * s.rows.den) / A(s.rows.den);
      const int64_t line = (n * s.rows.out + oy) * s.cols.out;
      A row_sum[kClasses], row_right[kClasses];
#pragma unroll
      for (int j = 0; j < kClasses; ++j) row_sum[j] = row_right[j] = A(0);
      for (int64_t start = begin; start < end; start += kSteps) {
        const A f0 = flat ? A(0) : A(start * s.cols.num - origin) / den_x;
        const int count = end - start < kSteps ? static_cast<int>(end - start) : kSteps;
        if (bounded) {
          A r[kClasses], polynomial[kClasses], derivative[kClasses];
#pragma unroll
          for (int j = 0; j < kClasses; ++j) {
            const A left = v[j].top_left + fy * (v[j].bottom_left - v[j].top_left);
            const A right = v[j].top_right + fy * (v[j].bottom_right - v[j].top_right);
            r[j] = exp2_of((right - left) * step * A(kLog2E));
            polynomial[j] = derivative[j] = A(0);
          }
#pragma unroll
          for (int k = kSteps - 1; k >= 0; --k) {
            if (k < count) {
              const A coefficient = coefficients[line + start + k];
              const A q = coefficient * exp2_of(-levels[line + start + k] * A(kLog2E)) * kDown;
#pragma unroll
              for (int j = 0; j < kClasses; ++j) {
                derivative[j] = derivative[j] * r[j] + polynomial[j];
                polynomial[j] = polynomial[j] * r[j] + q;
              }
            }
          }
#pragma unroll
          for (int j = 0; j < kClasses; ++j) {
            const A left = v[j].top_left + fy * (v[j].bottom_left - v[j].top_left);
            const A right = v[j].top_right + fy * (v[j].bottom_right - v[j].top_right);
            const A scale = exp2_of((left + f0 * (right - left)) * A(kLog2E)) * kUp;
            row_sum[j] += polynomial[j] * scale;
            row_right[j] += (f0 * polynomial[j] + step * (r[j] * derivative[j])) * scale;
          }
        } else {
          for (int k = 0; k < count; ++k) {
            const A f = flat ? A(0) : A((start + k) * s.cols.num - origin) / den_x;
            const A coefficient = coefficients[line + start + k], level = levels[line + start + k];
            if (coefficient == A(0)) continue;
#pragma unroll
            for (int j = 0; j < kClasses; ++j) {
              // z is no larger than L but for rounding, which counts where both are huge.
              const A log_p = v[j].at(f, fy) - level;
              const A p = coefficient * exp_of(log_p > A(0) ? A(0) : log_p);
              row_sum[j] += p;
              row_right[j] += f > A(0) ? f * p : A(0);
            }
          }
        }
        // The pixel's own label counts (1 - e) w_y, with smoothing every class e / C w_c.
        for (int k = 0; k < count; ++k) {
          const int64_t label = labels.at(n, oy, start + k);
          const bool counts = label != labels.ignore_index && labels.known(label);
          const int64_t own = label - first_class;
          if (!counts || (!(e > A(0)) && (own < 0 || own >= kClasses))) continue;
          const A f = flat ? A(0) : A((start + k) * s.cols.num - origin) / den_x;
          const A incoming = grad.at(n, oy, start + k);
#pragma unroll
          for (int j = 0; j < kClasses; ++j) {
            const A share = (own == j ? A(1) - e : A(0)) + (e > A(0) ? e / A(labels.classes) : A(0));
            const int64_t c = first_class + j < labels.classes ? first_class + j : 0;
            const A given = share * incoming * options.weight_of(c);
            row_sum[j] -= given;
            row_right[j] -= f * given;
          }
        }
      }
      const A down = above ? A(1) : fy;
#pragma unroll
      for (int j = 0; j < kClasses; ++j) {
        if (down < A(1)) {
          top_sum[j] += (A(1) - down) * row_sum[j];
          top_right[j] += (A(1) - down) * row_right[j];
        }
        if (down > A(0)) {
          carry_sum[j] += down * row_sum[j];
          carry_right[j] += down * row_right[j];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kClasses; ++j) {
      const A right = before ? top_sum[j] : top_right[j];
      const A from_left = __shfl_up_sync(0xffffffffu, right, 1);
      if (lane > 0 && i >= 0 && iy >= row_begin && first_class + j < labels.classes) {
        Out* to = dx.data + n * dx.stride_n + (first_class + j) * dx.stride_c + iy * dx.stride_h + i * dx.stride_w;
        *to = static_cast<Out>((top_sum[j] - right) + from_left);
      }
    }
  }
}

}  // namespace
}  // namespace fcn
