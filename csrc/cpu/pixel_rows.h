// Rows of channels_last images, upsampled with the channels in the lanes. What the outputs between two input columns
// share, the blends of the two rows at both, stays in registers:
//   value_k = (1 - f_k) left + f_k right,  left = (1 - fy) top_left + fy bottom_left,  right alike
#pragma once

#include "planes.h"

namespace fcn {
namespace FCN_ISA {

constexpr int kPiecePixels = 4;  // outputs of a piece at most: their weights stay in registers, too

// Neighbouring outputs of a row between the same two input columns.
template <typename T>
struct PiecePlan {
  int64_t left, right;  // as PixelRows counts columns
  int64_t first;        // output column
  int count;
  T fraction[kPiecePixels];
};

// The K outputs of a piece in one row.
template <typename T, int K>
class Piece {
  using V = Vec<T>;

 public:
  static constexpr int count = K;

  FCN_INLINE Piece(const T* top_left, const T* top_right, const T* bottom_left, const T* bottom_right, T fy, const T* f)
      : top_left_(top_left), top_right_(top_right), bottom_left_(bottom_left), bottom_right_(bottom_right) {
    const T g = T(1) - fy;
    if constexpr (K == 1) {
      top_ = broadcast((T(1) - f[0]) * g);
      left_[0] = broadcast(f[0] * g);
      bottom_ = broadcast((T(1) - f[0]) * fy);
      right_[0] = broadcast(f[0] * fy);
    } else {
      top_ = broadcast(g);
      bottom_ = broadcast(fy);
      for (int k = 0; k < K; ++k) {
        left_[k] = broadcast(T(1) - f[k]);
        right_[k] = broadcast(f[k]);
      }
    }
  }

  // A vector of channels from c on, of every output.
  FCN_INLINE void at(int64_t c, V* v) const {
    const V tl = load(top_left_ + c), tr = load(top_right_ + c);
    const V bl = load(bottom_left_ + c), br = load(bottom_right_ + c);
    if constexpr (K == 1) {
      v[0] = (top_ * tl + left_[0] * tr) + (bottom_ * bl + right_[0] * br);
    } else {
      const V left = top_ * tl + bottom_ * bl, right = top_ * tr + bottom_ * br;
      for (int k = 0; k < K; ++k) v[k] = left_[k] * left + right_[k] * right;
    }
  }

 private:
  const T *top_left_, *top_right_, *bottom_left_, *bottom_right_;
  V top_, bottom_, left_[K], right_[K];  // of a single output the weights of its four taps, as at() takes them
};

// The two input rows that a band reads, converted where their dtype is not T, and the pieces of an output row. Of the
// last pixels there is a copy with room behind it, so that a whole vector can be read at any channel.
template <typename T, typename In>
class PixelRows {
  static constexpr int L = kLanes<T>;

 public:
  PixelRows(const Image& x, const Geometry& g, Arena& arena) : x_(x), g_(g), copied_((L - 1) / x.channels + 1) {
    if (copied_ > x.width) copied_ = x.width;
    pieces_ = arena.take<PiecePlan<T>>(g.out_width);
    zeros_ = arena.take<T>(x.channels + L);
    for (Row& row : rows_) {
      row.last = arena.take<T>(copied_ * x.channels + L);
      row.values = arena.take<T>(sizeof(T) == sizeof(In) ? 0 : x.width * x.channels);
    }
  }

  void start(int64_t n) {
    image_ = (const In*)x_.data + n * x_.stride_n;
    memset(zeros_, 0, (x_.channels + L) * sizeof(T));
    for (Row& row : rows_) {
      row.y = INT64_MIN;
      memset(row.last + copied_ * x_.channels, 0, L * sizeof(T));
    }
    plan();
  }

  void move_to(const Band& band) {
    const int64_t y0 = resolve(band.index, g_.in_height, g_.clamp);
    const int64_t y1 = resolve(band.index + 1, g_.in_height, g_.clamp);
    top_ = get(y0, y1);
    bottom_ = get(y1, y0);
  }

  // Calls f(first output column, piece) for an output row of the band.
  template <typename F>
  FCN_INLINE void for_pieces(int64_t row, const F& f) const {
    const T fy = (T)g_.row_fraction[row];
    const Row &top = *top_, &bottom = fy == T(0) ? zero_ : *bottom_;  // zero times infinity is NaN
    for (int64_t i = 0; i < count_; ++i) {
      const PiecePlan<T>& p = pieces_[i];
      const T *tl = column(top, p.left), *tr = column(top, p.right);
      const T *bl = column(bottom, p.left), *br = column(bottom, p.right);
      if (p.count == 1) {
        f(p.first, Piece<T, 1>(tl, tr, bl, br, fy, p.fraction));
      } else if (p.count == 2) {
        f(p.first, Piece<T, 2>(tl, tr, bl, br, fy, p.fraction));
      } else if (p.count == 3) {
        f(p.first, Piece<T, 3>(tl, tr, bl, br, fy, p.fraction));
      } else {
        f(p.first, Piece<T, 4>(tl, tr, bl, br, fy, p.fraction));
      }
    }
  }

  // Calls f(plan) for the same.
  template <typename F>
  FCN_INLINE void for_plans(const F& f) const {
    for (int64_t i = 0; i < count_; ++i) f(pieces_[i]);
  }

  // The blend of the two rows at an output row: a pixel for every input column, one of zeros, and a vector's room.
  FCN_NOINLINE void blend(int64_t row, T* FCN_RESTRICT to) const {
    const T fy = (T)g_.row_fraction[row], g = T(1) - fy;
    const int64_t count = x_.width * x_.channels;
    const bool above = top_->y >= 0, below = bottom_->y >= 0 && fy != T(0);  // zero times infinity is NaN
    const T *a = top_->pixels, *b = bottom_->pixels;
    if (above && below) {
      for (int64_t i = 0; i < count; ++i) to[i] = g * a[i] + fy * b[i];
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = above ? g * a[i] : below ? fy * b[i] : T(0);
    }
    memset(to + count, 0, (x_.channels + L) * sizeof(T));
  }

  bool in_order;  // outputs come from left to right

 private:
  struct Row {
    int64_t y = -1;  // -1: counts zero
    const T* pixels = nullptr;
    T *last, *values;
  };

  void plan() {
    const Segments& s = g_.columns;
    count_ = 0;
    in_order = true;
    for (int64_t i = 0; i < s.count && s.length[i] > 0; ++i) {
      in_order &= i == 0 || s.first[i - 1] < s.first[i];
      for (int k = 0; k < s.length[i];) {
        PiecePlan<T> piece;
        const int64_t left = resolve(s.index[i], g_.in_width, g_.clamp);
        const int64_t right = resolve(s.index[i] + 1, g_.in_width, g_.clamp);
        piece.fraction[0] = (T)(s.fraction[i] + k * s.step);
        const bool on_column = piece.fraction[0] == T(0);  // the right one is not read
        piece.left = left < 0 ? g_.in_width : left;
        piece.right = right < 0 || on_column ? g_.in_width : right;
        piece.first = s.first[i] + k;
        for (piece.count = 1, ++k; piece.count < kPiecePixels && k < s.length[i] && !on_column; ++piece.count, ++k) {
          piece.fraction[piece.count] = (T)(s.fraction[i] + k * s.step);
        }
        put(pieces_ + count_++, piece);
      }
    }
  }

  const Row* get(int64_t y, int64_t other) {
    for (Row& row : rows_) {
      if (row.y == y) return &row;
    }
    Row& row = rows_[0].y == other ? rows_[1] : rows_[0];
    row.y = y;
    if (y < 0) return &row;
    const In* from = image_ + y * x_.stride_h;
    const int64_t last = (x_.width - copied_) * x_.channels;
    if constexpr (sizeof(T) == sizeof(In)) {
      row.pixels = (const T*)from;
    } else {
      for (int64_t i = 0; i < x_.width * x_.channels; ++i) row.values[i] = to_arithmetic(from[i]);
      row.pixels = row.values;
    }
    for (int64_t i = 0; i < copied_ * x_.channels; ++i) row.last[i] = to_arithmetic(from[last + i]);
    return &row;
  }

  // The channels of input column i; behind the last one, zeros for a tap that counts zero.
  FCN_INLINE const T* column(const Row& row, int64_t i) const {
    if (row.y < 0 || i == g_.in_width) return zeros_;
    const int64_t last = i - (g_.in_width - copied_);
    return last >= 0 ? row.last + last * x_.channels : row.pixels + i * x_.channels;
  }

  const Image& x_;
  const Geometry& g_;
  int64_t copied_;  // pixels
  const In* image_;
  PiecePlan<T>* pieces_;
  int64_t count_;
  T* zeros_;
  Row rows_[2], zero_;
  const Row *top_, *bottom_;
};

}  // namespace FCN_ISA
}  // namespace fcn
