// The kernels of upsample_binary_cross_entropy on CUDA: raw pointers and the geometry, no tensors. With the upsampled
// logit z, e = exp(-|z|), target t and the channel's factor q of the positive pixels, an output costs
//   q t s(-z) + (1 - t) s(z),                s(z) = max(z, 0) + log1p(e)
// with the derivative (1 - t) p(z) - q t p(-z), p(+-z) one of 1 / (1 + e) and e / (1 + e).
// One launch (adjoint.cuh) makes losses, their sums per block and the gradient: an output costs one exponential, one
// logarithm and one division, times the 1.05 to 1.52 evaluations of adjoint.cuh. Its target is read once from memory, x
// once, the gradient is written once; nothing of size H x W is written unless the losses of the pixels are asked for. A
// map of one channel, 512 x 512 from 128 x 128, N = 8, with int64 targets moves 17 + 2 x 0.5 MB, 4 us at an H200's
// 4.3 TB/s; 2.7e6 evaluations of three special functions take 2.3 us at 16 per clock and multiprocessor.
#pragma once

#include <cstring>

#include "adjoint.cuh"
#include "labels.cuh"

namespace fcn {
namespace {

enum class TargetKind : int { kLabels, kFloat, kDouble, kHalf, kBFloat16 };

__device__ inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// A float16: its exponent is moved by a product, which is exact for subnormal numbers too.
__device__ inline float half_of_bits(uint16_t bits) {
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7fff) << 13, sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const float value = rest < 0x0f800000u ? float_of_bits(rest) * 0x1p112f : float_of_bits(rest | 0x7f800000u);
  return sign ? -value : value;
}

// The target of an output: 0 where it does not count.
template <typename A>
struct Target {
  A value;
  bool kept, wrong;
};

// [N, C, H, W]: labels 0 and 1, or probabilities; strides in elements.
struct Targets {
  View<const void> view;
  TargetKind kind;
  LabelKind labels;
  bool ignores;
  int64_t ignore_index;

  template <typename A>
  __device__ Target<A> at(int64_t i) const {
    switch (kind) {
      case TargetKind::kLabels: {
        const int64_t label = label_at(view.data, labels, i);
        const bool kept = !ignores || label != ignore_index;
        return Target<A>{A(kept && label == 1), kept, kept && label != 0 && label != 1};
      }
      case TargetKind::kFloat:
        return number<A>(static_cast<const float*>(view.data)[i]);
      case TargetKind::kDouble:
        return number<A>(static_cast<const double*>(view.data)[i]);
      case TargetKind::kHalf:
        return number<A>(half_of_bits(static_cast<const uint16_t*>(view.data)[i]));
      default:
        return number<A>(float_of_bits(static_cast<uint32_t>(static_cast<const uint16_t*>(view.data)[i]) << 16));
    }
  }

 private:
  template <typename A, typename V>
  __device__ Target<A> number(V value) const {
    const bool kept = !ignores || value != static_cast<V>(ignore_index);
    return Target<A>{kept ? static_cast<A>(value) : A(0), kept, false};
  }
};

// What is computed of an output, for adjoint.
template <typename T>
struct BinaryCrossEntropy {
  using A = ArithmeticOf<T>;

  View<const T> x;
  Targets target;
  const A* pos_weight;  // [C], or null: 1
  View<const A> grad;   // of the losses of the pixels; data null: 1
  View<A> loss;         // of the pixels; data null: not wanted
  double* partial;      // [blocks, 2]: sum of the losses, pixels that count; null: not wanted

  struct Cell {
    A top_left, top_right, bottom_left, bottom_right;  // zero where an input is not there
  };
  struct Row {
    A left, right, factor;
    int64_t target, grad, loss;
  };
  struct Sums {
    double loss = 0, count = 0;
  };

  __device__ Cell cell(int64_t n, int64_t c, const Pair& rows, const Pair& columns) const {
    const T* plane = x.data + n * x.stride_n + c * x.stride_c;
    const auto corner = [&](int64_t i, int64_t j, bool there) {
      return there ? static_cast<A>(plane[i * x.stride_h + j * x.stride_w]) : A(0);
    };
    return Cell{corner(rows.first, columns.first, rows.has_first && columns.has_first),
                corner(rows.first, columns.second, rows.has_first && columns.has_second),
                corner(rows.second, columns.first, rows.has_second && columns.has_first),
                corner(rows.second, columns.second, rows.has_second && columns.has_second)};
  }

  __device__ Row row(const Cell& cell, int64_t n, int64_t c, int64_t oy, A fy, bool near) const {
    const auto line = [=](const auto& view) { return n * view.stride_n + c * view.stride_c + oy * view.stride_h; };
    const A left = fy > A(0) ? (A(1) - fy) * cell.top_left + fy * cell.bottom_left : cell.top_left;
    const A right = fy > A(0) ? (A(1) - fy) * cell.top_right + fy * cell.bottom_right : cell.top_right;
    return Row{left, right, pos_weight ? pos_weight[c] : A(1), line(target.view), line(grad), line(loss)};
  }

  __device__ A at(const Row& row, int64_t ox, A f, bool near, bool counted, Sums& sums) const {
    const Target<A> t = target.at<A>(row.target + ox * target.view.stride_w);
    const A z = !near ? A(0) : f > A(0) ? (A(1) - f) * row.left + f * row.right : row.left;
    const A positive = row.factor * t.value, negative = A(1) - t.value;
    const A e = exp_of(z > A(0) ? -z : z);
    if (counted && (partial || loss.data)) {
      const A tail = log1p(e);
      A value = positive != A(0) ? positive * ((z < A(0) ? -z : A(0)) + tail) : A(0);
      value += negative != A(0) ? negative * ((z > A(0) ? z : A(0)) + tail) : A(0);
      value = !t.kept ? A(0) : t.wrong ? A(NAN) : value;
      if (loss.data) loss.data[row.loss + ox * loss.stride_w] = value;
      sums.loss += value;
      sums.count += t.kept;
    }
    const A larger_part = A(1) / (A(1) + e), smaller_part = e * larger_part;
    A g = negative * (z < A(0) ? smaller_part : larger_part) - positive * (z < A(0) ? larger_part : smaller_part);
    if (!t.kept) return A(0);
    if (grad.data) g *= grad.data[row.grad + ox * grad.stride_w];
    return t.wrong ? A(NAN) : g;
  }

  __device__ void finish(Sums& sums) const {
    if (!partial) return;
    sum_of_block(sums.loss, sums.count);
    if (threadIdx.y == 0 && threadIdx.x == 0) {
      partial[2 * int64_t{blockIdx.x}] = sums.loss;
      partial[2 * int64_t{blockIdx.x} + 1] = sums.count;
    }
  }
};

}  // namespace
}  // namespace fcn
