// The one-hot sums of the cross-entropy of upsampled logits: per class and corner of a tile, the sum over the pixels
// with that label of weight * bilinear weight.
#pragma once

#include "cross_entropy_pixels.h"

namespace fcn {
namespace FCN_ISA {

template <typename T>
class OneHotSums {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  using Four = typename Simd<T>::Four;  // a value per corner

 public:
  OneHotSums(const CrossEntropyArgs& args, const LossPixels<T>& pixels, Arena& arena)
      : counting_(!args.weight && !args.pixel_grad),
        steps_(args.geometry->columns.steps),
        step_((T)args.geometry->columns.step),
        classes_(args.x.channels),
        pixels_(pixels) {
    onehot_ = arena.take<T>((classes_ + 1) * 4 * L);
    counts_ = arena.take<uint64_t>((classes_ + 1) * L);
    touched_ = arena.take<uint8_t>(classes_ + 1);
  }

  void start() {
    memset(onehot_, 0, (classes_ + 1) * 4 * L * sizeof(T));
    memset(touched_, 0, classes_ + 1);
    memset(counts_, 0, (classes_ + 1) * L * sizeof(uint64_t));
  }

  // The tile's fractions: of its columns [kMaxSteps], and of its rows, `slots` of them.
  void start_tile(const Block<T>& block, const V* columns, const V* rows, int slots) {
    left_ = columns[0];
    top_ = rows[0];
    row_step_ = slots > 1 ? rows[1][0] - rows[0][0] : T(0);
    for (int k = 0; !counting_ && k < steps_; ++k) {
      for (int l = 0; l < (block.uniform ? 1 : L); ++l) {
        const T f = columns[k][l];
        columns_[k * L + l] = Four{T(1) - f, f, T(1) - f, f};
      }
    }
  }

  // Adds the row that was read into the pixels.
  FCN_INLINE void add(const Block<T>& block, int slot, V fy) {
    counting_ ? count_labels(block, slot) : add_onehot(block, fy);
  }

  // The sums of a class, which start anew; false where they are zero.
  FCN_INLINE bool take(int64_t c, V* h) { return counting_ ? take_counts(c, h) : take_onehot(c, h); }

  // Ends the tile: what ignored pixels have added is nobody's.
  FCN_INLINE void drop_ignored() {
    for (int i = 0; i < 4; ++i) store(onehot_ + (classes_ * 4 + i) * L, V{});
    for (int l = 0; l < L; ++l) counts_[classes_ * L + l] = 0;
  }

 private:
  // Where all weights are 1, the sums follow from four small integers per class and lane: the number of its pixels, and
  // the sums of their k, slot and k slot. They share one word, 16 bits each.
  FCN_NOINLINE void count_labels(const Block<T>& block, int slot) {
    uint64_t* counts = counts_;
    for (int k = 0; k < steps_; ++k) {
      const uint64_t value = 1 | (uint64_t)k << 16 | (uint64_t)slot << 32 | (uint64_t)(k * slot) << 48;
      if (pixels_.plain()) {
        const int32_t* labels = pixels_.row_labels() + k;
        for (int l = 0; l < L; ++l) counts[(int64_t)labels[l * steps_] * L + l] += value;
      } else {
        const int32_t* labels = pixels_.copied_labels() + k * L;
        for (int l = 0; l < block.lanes; ++l) counts[(int64_t)labels[l] * L + l] += value;
      }
    }
  }

  FCN_INLINE bool take_counts(int64_t c, V* h) {
    T* counts = (T*)(counts_ + c * L);
    IntVec<T> low, high;
    if constexpr (sizeof(T) == sizeof(uint64_t)) {
      low = (IntVec<T>)load(counts);
      if (!any(low != 0)) return false;
      store(counts, V{});
      high = low >> 32;
    } else {
      const V a = load(counts), b = load(counts + L);
      if (!any(((IntVec<T>)a | (IntVec<T>)b) != 0)) return false;
      store(counts, V{});
      store(counts + L, V{});
      low = (IntVec<T>)shuffle<T>(a, b, UnzipPattern<false>());
      high = (IntVec<T>)shuffle<T>(a, b, UnzipPattern<true>());
    }
    const V v[4] = {__builtin_convertvector(low & 0xffff, V), __builtin_convertvector((low >> 16) & 0xffff, V),
                    __builtin_convertvector(high & 0xffff, V), __builtin_convertvector((high >> 16) & 0xffff, V)};
    const V right = left_ * v[0] + step_ * v[1], bottom = top_ * v[0] + row_step_ * v[2];
    h[kBottomRight] = left_ * bottom + step_ * (top_ * v[1] + row_step_ * v[3]);
    h[kTopRight] = right - h[kBottomRight];
    h[kBottomLeft] = bottom - h[kBottomRight];
    h[kTopLeft] = (v[0] - right) - h[kBottomLeft];
    return true;
  }

  // Adds weight * bilinear weight to the label's corners, step after step, so that neighbouring additions of a label
  // that fills a segment do not wait for each other.
  FCN_NOINLINE void add_onehot(const Block<T>& block, V fy) {
    Four row[L];
    for (int l = 0; l < (block.together == 1 ? 1 : L); ++l) row[l] = Four{T(1) - fy[l], T(1) - fy[l], fy[l], fy[l]};
    for (int k = 0; k < steps_; ++k) {
      for (int l = 0; l < block.lanes; ++l) {
        const T w = pixels_.times_grad(pixels_.copied_weight(k, l), k, l);
        const Four vertical = row[block.together == 1 ? 0 : l];
        add_corners(pixels_.copied_labels()[k * L + l], l, w * (vertical * columns_[k * L + (block.uniform ? 0 : l)]));
      }
    }
  }

  FCN_INLINE void add_corners(int32_t label, int l, Four value) {
    T* p = onehot_ + ((int64_t)label * L + four_position<T>(l)) * 4;
    Four sum;
    memcpy(&sum, p, sizeof(sum));
    sum += value;
    memcpy(p, &sum, sizeof(sum));
    touched_[label] = 1;
  }

  FCN_INLINE bool take_onehot(int64_t c, V* h) {
    if (!touched_[c]) return false;
    T* onehot = onehot_ + c * 4 * L;
    transpose_fours<T>(onehot, h);
    for (int i = 0; i < 4; ++i) store(onehot + i * L, V{});
    touched_[c] = 0;
    return true;
  }

  const bool counting_;
  const int steps_;
  const T step_;
  const int64_t classes_;
  const LossPixels<T>& pixels_;
  T* onehot_;
  uint64_t* counts_;
  uint8_t* touched_;
  V left_, top_;  // fractions of the first column and of the first row
  T row_step_;
  Four columns_[kMaxSteps * L];
};

}  // namespace FCN_ISA
}  // namespace fcn
