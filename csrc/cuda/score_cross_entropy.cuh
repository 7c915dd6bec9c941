// The kernels of score_cross_entropy on CUDA: raw pointers, no tensors.
#pragma once

#include "labels.cuh"
#include "loss.cuh"
#include "score.cuh"

namespace fcn {
namespace {

constexpr int kIgnored = -1, kUnknown = -2;

// The labels of images whose rows have `width` pixels, and what a loss makes of them.
template <typename A>
struct ScoreLoss {
  Labels labels;
  LossOptions<A> options;
  int64_t width;

  // The class of a pixel, or why it has none.
  __device__ int label_of(const Place& place, int i) const {
    if (!place.inside(i)) return kIgnored;
    const int64_t p = place.pixel(i), label = labels.at(place.image, p / width, p % width);
    return label == labels.ignore_index ? kIgnored : labels.known(label) ? static_cast<int>(label) : kUnknown;
  }

  __device__ int classes() const { return static_cast<int>(labels.classes); }
};

// Writes the losses and log-sum-exps L of the pixels, [N, P], and for every warp the sum of losses and of weights:
//   loss = (1 - e) w_y (L - z_y) + e / C sum_c w_c (L - z_c), with L = m + log sum exp(z - m).
template <typename A_>
struct LossEpilogue {
  using A = A_;
  static constexpr bool kReads = true, kWrites = false;
  ScoreLoss<A> of;
  A* loss;          // or null
  A* level;         // L
  double* partial;  // [warps, 2], or null

  template <int kRows>
  struct Pixels {
    const LossEpilogue& to;
    const Place& place;
    RunningSum<A, kRows> sum;
    // Of this thread's classes: z_y, and sum_c w_c (z_c - origin), whose origin is the maximum of the first classes.
    A picked[kRows], linear[kRows], origin[kRows];
    int label[kRows];

    __device__ Pixels(const LossEpilogue& epilogue, const Place& at) : to(epilogue), place(at) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        picked[i] = linear[i] = origin[i] = A(0);
        label[i] = to.of.label_of(place, i);
      }
    }

    template <int kColumns>
    __device__ void read(const A (&z)[kRows][kColumns], int first_class) {
      const LossOptions<A>& options = to.of.options;
      sum.read(z, first_class, to.of.classes());
      if (first_class == 0) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) origin[i] = sum.base(i);
      }
      for_classes<kColumns>(first_class, to.of.classes(), [&](int j, int c) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) picked[i] = c == label[i] ? z[i][j] : picked[i];
      });
      if (!(options.smoothing > A(0))) return;
      for_classes<kColumns>(first_class, to.of.classes(), [&](int j, int c) {
        const A weight = options.weight_of(c);
#pragma unroll
        for (int i = 0; i < kRows; ++i) linear[i] += weight * (z[i][j] - origin[i]);
      });
    }

    template <int kColumns>
    __device__ void write(const A (&)[kRows][kColumns], int) const {}

    __device__ void end() {
      double loss_sum = 0, weight_sum = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const A own = sum_of_quad(picked[i]), all = sum_of_quad(linear[i]);
        if (!place.inside(i) || threadIdx.x % 4 != 0) continue;
        A weight = 0;
        const A loss = loss_of(i, own, all, weight);
        const A level = sum.most[i] + log_of(sum.total[i]);
        const int64_t at = place.image * place.pixels + place.pixel(i);
        to.level[at] = level - level == A(0) ? level : A(NAN);  // so that exp(z - L) is a softmax's NaN
        if (to.loss) to.loss[at] = loss;
        loss_sum += loss;
        weight_sum += weight;
      }
      if (!to.partial) return;
      loss_sum = sum_of_warp(loss_sum);
      weight_sum = sum_of_warp(weight_sum);
      if (threadIdx.x == 0) {
        to.partial[2 * place.warp] = loss_sum;
        to.partial[2 * place.warp + 1] = weight_sum;
      }
    }

   private:
    __device__ A loss_of(int i, A own, A all, A& weight) const {
      if (label[i] == kIgnored) return A(0);
      if (label[i] == kUnknown) return A(NAN);
      const LossOptions<A>& options = to.of.options;
      const A log_total = log_of(sum.total[i]), classes = A(to.of.classes()), e = options.smoothing;
      weight = options.weight_of(label[i]);
      const A loss = (A(1) - e) * weight * ((sum.most[i] - own) + log_total);
      if (!(e > A(0))) return loss;
      const A weights = options.weight_sum ? *options.weight_sum : classes;
      return loss + e / classes * (weights * ((sum.most[i] - origin[i]) + log_total) - all);
    }
  };
};

// Writes the gradient in the scores, g ((a + b) exp(z - L) - a [c = y] - e / C w_c) with a = (1 - e) w_y and
// b = e / C sum_c w_c, for the gradient g of every pixel.
template <typename A_>
struct LossGradientEpilogue {
  using A = A_;
  static constexpr bool kReads = false, kWrites = true;
  ScoreLoss<A> of;
  PixelGradient<A> grad;
  const A* level;
  A* to;
  int64_t stride_n, stride_c, stride_p;

  template <int kRows>
  struct Pixels {
    const LossGradientEpilogue& from;
    const Place& place;

    __device__ Pixels(const LossGradientEpilogue& epilogue, const Place& at) : from(epilogue), place(at) {}

    template <int kColumns>
    __device__ void read(const A (&)[kRows][kColumns], int) const {}

    template <int kColumns>
    __device__ void write(const A (&z)[kRows][kColumns], int first_class) const {
      const LossOptions<A>& options = from.of.options;
      const int classes = from.of.classes();
      const A share = options.smoothing / A(classes);
      A g[kRows], own[kRows], both[kRows], level[kRows];
      int label[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        label[i] = from.of.label_of(place, i);
        g[i] = label[i] == kUnknown ? A(NAN) : A(0);
        own[i] = both[i] = A(0);
        level[i] = A(INFINITY);
        if (label[i] < 0) continue;
        const int64_t p = place.pixel(i);
        g[i] = from.grad.at(place.image, p / from.of.width, p % from.of.width);
        own[i] = (A(1) - options.smoothing) * options.weight_of(label[i]);
        both[i] = options.coefficient(label[i], classes);
        level[i] = from.level[place.image * place.pixels + p];
      }
      A* const to = from.to + place.image * from.stride_n + place.first * from.stride_p;
      for_classes<kColumns>(first_class, classes, [&](int j, int c) {
        const A smooth = options.smoothing > A(0) ? share * options.weight_of(c) : A(0);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const A value = both[i] * exp_of(z[i][j] - level[i]) - (c == label[i] ? own[i] : A(0)) - smooth;
          if (place.inside(i)) {
            to[c * from.stride_c + 8 * i * from.stride_p] = label[i] == kIgnored ? A(0) : value * g[i];
          }
        }
      });
    }

    __device__ void end() const {}
  };
};

// 1 / total, or 0 where nothing counted.
template <typename A>
__global__ void inverse_of(const A* total, A* inverse) {
  *inverse = *total == A(0) ? A(0) : A(1) / *total;
}

}  // namespace
}  // namespace fcn
