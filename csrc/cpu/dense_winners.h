// Labels of neighbouring tiles at once, all classes interpolated: a vector holds consecutive output columns of one row,
// whatever their corners. Where tiles have few pixels this costs less than to find each one's classes. An input row is
// interpolated to the output's columns for the bands above and below it; a pixel then compares
// value = top + fy * (bottom - top) over the classes.
#pragma once

#include "winner_rows.h"

namespace fcn {
namespace FCN_ISA {

template <typename T>
class DenseWinners {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  using I = IntVec<T>;
  using Int = typename Simd<T>::Int;
  using Row = typename WinnerRows<T>::Row;

 public:
  // Whether tiles are so small that several stand in a vector, and there is something to interpolate.
  static bool fits(const Geometry& g) {
    const Segments& s = g.columns;
    return s.steps <= 2 && (s.step != 1 || s.fraction[0] != 0);
  }

  // Intervals [begin, end), at most L columns.
  struct Block {
    int64_t begin, end;
    int64_t first;  // output column
    int64_t left[L], right[L];
    T fraction[L];
  };

  DenseWinners(const Image& x, const Geometry& g, Arena& arena)
      : channels_(x.channels), g_(g), size_((x.channels + L - 1) / L * L * L) {
    const int64_t most = fits(g) ? 2 * (g.out_width / L) + 2 : 0;  // two neighbours have more than L columns
    blocks_ = arena.take<Block>(most);
    for (WideRow& slot : wide_) {
      slot.values = arena.take<T>(most * size_);
      slot.state = arena.take<State>(most);
    }
  }

  void prepare(const Interval<T>* intervals, int64_t count) {
    count_ = 0;
    for (int64_t begin = 0, end; begin < count; begin = end) {
      Block block;
      block.begin = begin;
      block.first = intervals[begin].first;
      int lanes = 0;
      for (end = begin; end < count && lanes + intervals[end].length <= L; ++end) {
        for (int64_t k = 0; k < intervals[end].length; ++k) set(block, lanes++, intervals[end], k);
      }
      block.end = end;
      while (lanes < L) set(block, lanes++, intervals[end - 1], 0);
      put(blocks_ + count_++, block);
    }
  }

  void start() {
    for (WideRow& slot : wide_) slot.y = kNothing;
  }

  int64_t count() const { return count_; }
  const Block& block(int64_t b) const { return blocks_[b]; }

  // The wide rows of a band's two.
  void move_to(const Row& top, const Row& bottom) {
    top_ = get(top, bottom);
    bottom_ = get(bottom, top);
  }

  // Labels the pixels of a block, rows `pitch` apart; false, and nothing done, where a value or a difference is not
  // finite. Stores may pass the block's end by less than a vector.
  FCN_NOINLINE bool label(int64_t b, const Band& band, int32_t* labels, int64_t pitch) {
    if (!widened(*top_, b) || !widened(*bottom_, b)) return false;
    const T *top = top_->values + b * size_, *bottom = bottom_->values + b * size_;
    const double* fy = g_.row_fraction + band.begin;
    int64_t rows = band.end - band.begin;
    labels += blocks_[b].first;
    for (; rows >= 4; rows -= 4, fy += 4, labels += 4 * pitch) compare<4>(top, bottom, fy, labels, pitch);
    if (rows >= 2) {
      compare<2>(top, bottom, fy, labels, pitch);
      rows -= 2, fy += 2, labels += 2 * pitch;
    }
    if (rows > 0) compare<1>(top, bottom, fy, labels, pitch);
    return true;
  }

 private:
  static constexpr int64_t kNothing = INT64_MIN;
  enum State : char { kLater, kFinite, kStrange };

  // An input row at the output's columns, a block when it is asked for.
  struct WideRow {
    int64_t y;
    const T* logits;
    State* state;  // of each block: whether differences of its values are finite
    T* values;     // [block][class][lane]
  };

  void set(Block& block, int lane, const Interval<T>& interval, int64_t k) const {
    block.left[lane] = interval.left;
    block.right[lane] = interval.right;
    block.fraction[lane] = interval.fraction + T(k) * (T)g_.columns.step;
  }

  WideRow* get(const Row& row, const Row& other) {
    WideRow* slot = &wide_[0];
    if (wide_[1].y == row.y || (slot->y != row.y && slot->y == other.y)) slot = &wide_[1];
    if (slot->y != row.y) memset(slot->state, kLater, count_ * sizeof(State));
    slot->y = row.y;
    slot->logits = row.logits;
    return slot;
  }

  FCN_INLINE bool widened(WideRow& row, int64_t b) {
    if (row.state[b] == kLater) widen(row, b);
    return row.state[b] == kFinite;
  }

  // Classes in lanes, then columns.
  FCN_NOINLINE void widen(WideRow& row, int64_t b) const {
    const Block& block = blocks_[b];
    V check{};
    for (int64_t c = 0; c < channels_; c += L) {
      V v[L];
      for (int l = 0; l < L; ++l) {
        const T fx = block.fraction[l];
        v[l] = (T(1) - fx) * load(row.logits + block.left[l] + c) + fx * load(row.logits + block.right[l] + c);
      }
      transpose<T>(v);
      T* to = row.values + b * size_ + c * L;
      for (int k = 0; k < L; ++k) {
        check += (v[k] + v[k]) * T(0);
        store(to + k * L, v[k]);
      }
    }
    row.state[b] = any(check != V{}) ? kStrange : kFinite;
  }

  // M rows at once.
  template <int M>
  FCN_INLINE void compare(const T* top, const T* bottom, const double* fractions, int32_t* labels, int64_t pitch) {
    V fy[M], best[M];
    I label[M];
    for (int m = 0; m < M; ++m) {
      fy[m] = broadcast((T)fractions[m]);
      best[m] = load(top) + fy[m] * (load(bottom) - load(top));
      label[m] = I{};
    }
    for (int64_t c = 1; c < channels_; ++c) {
      const V above = load(top + c * L), rise = load(bottom + c * L) - above;
      for (int m = 0; m < M; ++m) {
        const V value = above + fy[m] * rise;
        label[m] = replace_by_later(value > best[m], I{} + (Int)c, label[m]);
        best[m] = vmax(value, best[m]);
      }
    }
    for (int m = 0; m < M; ++m) {
      int32_t t[L];
      for (int l = 0; l < L; ++l) t[l] = (int32_t)label[m][l];
      memcpy(labels + m * pitch, t, sizeof(t));
    }
  }

  const int64_t channels_;
  const Geometry& g_;
  const int64_t size_;
  int64_t count_ = 0;
  Block* blocks_;
  WideRow wide_[2], *top_ = nullptr, *bottom_ = nullptr;
};

}  // namespace FCN_ISA
}  // namespace fcn
