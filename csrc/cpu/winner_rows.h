// The input rows that a band reads, kept as [column][class]: finding the classes that can win at a place wants them
// side by side.
#pragma once

#include "tile.h"

namespace fcn {
namespace FCN_ISA {

// c where the mask is set, else label; c > label >= 0.
FCN_INLINE IntVec<float> replace_by_later(IntVec<float> mask, IntVec<float> c, IntVec<float> label) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (IntVec<float>)_mm256_max_epi32((__m256i)label, (__m256i)(mask & c));  // a blend is three operations
#else
  return mask ? c : label;
#endif
}
FCN_INLINE IntVec<double> replace_by_later(IntVec<double> mask, IntVec<double> c, IntVec<double> label) {
  return mask ? c : label;
}

// The input rows above and below a band, [column][class], and each pixel's winner. Rows stay for the next band.
template <typename T>
class WinnerRows {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  using I = IntVec<T>;
  using Int = typename Simd<T>::Int;

 public:
  struct Row {
    int64_t y;
    T* logits;
    Int* winner;  // the argmax, or -1 where a logit is NaN or the largest is infinite
  };

  WinnerRows(const Image& x, const Geometry& g, Arena& arena)
      : pitch((x.channels + L - 1) / L * L | L),  // an odd number of vectors: columns fall into different cache sets
        x_(x),
        g_(g),
        columns_(x.width > L ? x.width : L) {
    for (Row& slot : slots_) {
      slot.logits = arena.take<T>((columns_ + 2) * pitch);
      slot.winner = arena.take<Int>(columns_ + 2);
    }
    best_ = arena.take<T>(columns_);
  }

  // The columns at either end count zero; with a clamped boundary nothing reads them.
  void start(int64_t n) {
    n_ = n;
    for (Row& slot : slots_) {
      slot.y = kNothing;
      for (int64_t column = 0; column < columns_ + 2; column += columns_ + 1) {
        memset(slot.logits + column * pitch, 0, pitch * sizeof(T));
        slot.winner[column] = 0;
      }
    }
  }

  // Where column i of the input stands in a row.
  int64_t place(int64_t i) const {
    const int64_t w = x_.width;
    if (g_.clamp) return (i < 0 ? 0 : i < w ? i : w - 1) + 1;
    return i < 0 ? 0 : i < w ? i + 1 : columns_ + 1;
  }

  // The rows that the taps `index` and index + 1 read; without `below` the second has weight zero.
  void move_to(int64_t index, bool below) {
    const int64_t y0 = resolve(index, x_.height, g_.clamp);
    const int64_t y1 = below ? resolve(index + 1, x_.height, g_.clamp) : y0;
    top = get(y0, y1);
    bottom = get(y1, y0);
  }

  const int64_t pitch;
  const Row *top, *bottom;

 private:
  static constexpr int64_t kNothing = INT64_MIN;

  const Row* get(int64_t y, int64_t other) {
    for (Row& slot : slots_) {
      if (slot.y == y) return &slot;
    }
    Row& slot = slots_[0].y == other ? slots_[1] : slots_[0];
    slot.y = y;
    if (y < 0) {
      memset(slot.logits, 0, (columns_ + 2) * pitch * sizeof(T));
      memset(slot.winner, 0, (columns_ + 2) * sizeof(Int));
    } else if constexpr (sizeof(T) == sizeof(double)) {
      read<double>(slot, y);
    } else {
      visit_single(slot, y);
    }
    return &slot;
  }

  void visit_single(Row& slot, int64_t y) {
    if (x_.dtype == DType::kHalf) {
      read<Half>(slot, y);
    } else if (x_.dtype == DType::kBFloat16) {
      read<BFloat16>(slot, y);
    } else {
      read<float>(slot, y);
    }
  }

  template <typename In>
  FCN_NOINLINE void read(Row& slot, int64_t y) {
    const In* row = (const In*)x_.data + n_ * x_.stride_n + y * x_.stride_h;
    T* logits = slot.logits + pitch;
    Int* winner = slot.winner + 1;
    for (int64_t i = 0; i < columns_; ++i) best_[i] = -__builtin_huge_val();
    memset(winner, 0, columns_ * sizeof(Int));
    const bool finite =
        x_.stride_w == 1 && x_.width >= L ? read_planes(row, y, logits, winner) : read_pixels(row, logits, winner);
    if (!finite) find_strange(logits, winner);
  }

  // Both return whether all logits are finite; sums that overflow count as not.
  template <typename In>
  FCN_INLINE bool read_planes(const In* row, int64_t y, T* logits, Int* winner) {
    const int64_t channels = x_.channels, w = x_.width, stride = x_.stride_c;
    V check{};
    for (int64_t c = 0; c < channels; c += L) {
      const int classes = channels - c < L ? (int)(channels - c) : L;
      const In* from = row + c * stride;
      const In* next = classes == L && c + L < channels ? from + L * stride
                       : y + 1 < x_.height              ? row + x_.stride_h
                                                        : row;
      for (int64_t i = 0; i < w; i += L) {
        const int64_t at = i + L <= w ? i : w - L;  // the last block overlaps: seeing a class twice changes nothing
        V v[L];
        for (int k = 0; k < L; ++k) v[k] = load_as(from + (k < classes ? k * stride : 0) + at);
        if (i * (int64_t)sizeof(In) % 64 == 0) {
          for (int k = 0; k < L; ++k) __builtin_prefetch(next + k * stride + at);
        }
        check += scan(v, c, best_ + at, winner + at);
        transpose<T>(v);
        for (int l = 0; l < L; ++l) store(logits + (at + l) * pitch + c, v[l]);
      }
    }
    return !any(check != V{});
  }

  template <typename In>
  FCN_INLINE bool read_pixels(const In* row, T* logits, Int* winner) {
    const int64_t channels = x_.channels;
    for (int64_t i = 0; i < columns_; ++i) {
      const In* from = row + (i < x_.width ? i : 0) * x_.stride_w;
      T* to = logits + i * pitch;
      int64_t c = 0;
      if (x_.stride_c == 1) {
        for (; c + L <= channels; c += L) store(to + c, load_as(from + c));
      }
      for (; c < channels; ++c) to[c] = to_arithmetic(from[c * x_.stride_c]);
      for (; c < pitch; ++c) to[c] = to[0];
    }
    V check{};
    for (int64_t i = 0; i < columns_; i += L) {
      const int64_t at = i + L <= columns_ ? i : columns_ - L;
      for (int64_t c = 0; c < channels; c += L) {
        V v[L];
        for (int l = 0; l < L; ++l) v[l] = load(logits + (at + l) * pitch + c);
        transpose<T>(v);
        check += scan(v, c, best_ + at, winner + at);
      }
    }
    return !any(check != V{});
  }

  // Classes c, c + 1, ... of L columns (what follows the last class repeats an earlier one); zero, or NaN where their
  // sum is not finite.
  FCN_INLINE static V scan(const V* v, int64_t c, T* best, Int* winner) {
    V b = load(best), sum{};
    I label = load_int(winner);
    for (int k = 0; k < L; ++k) {
      label = replace_by_later(v[k] > b, I{} + (Int)(c + k), label);
      b = vmax(v[k], b);
      sum += v[k];
    }
    store(best, b);
    memcpy(winner, &label, sizeof(label));
    return sum * T(0);
  }

  FCN_INLINE static I load_int(const Int* p) {
    I v;
    memcpy(&v, p, sizeof(v));
    return v;
  }

  FCN_NOINLINE void find_strange(const T* logits, Int* winner) const {
    const V infinity = broadcast((T)__builtin_huge_val());
    for (int64_t i = 0; i < x_.width; ++i) {
      const T* p = logits + i * pitch;
      I strange{};
      for (int64_t c = 0; c < x_.channels; c += L) {
        const V v = load(p + c);
        strange |= (v != v) | (v == infinity);
      }
      if (any(strange)) winner[i] = -1;
    }
  }

  const Image& x_;
  const Geometry& g_;
  const int64_t columns_;
  T* best_;
  int64_t n_ = 0;
  Row slots_[2];
};

// An interval between two input columns and the output columns in it.
template <typename T>
struct Interval {
  int64_t left, right;  // offsets of the columns' logits
  int64_t left_column, right_column;
  int64_t first, length;
  T fraction;  // of the first output column
};

}  // namespace FCN_ISA
}  // namespace fcn
