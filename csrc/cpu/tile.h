// A tile: one band of output rows times one block of segments, a segment per vector lane. Everything in it reads the
// same four corners per lane and class, x[y0][i], x[y0][i+1], x[y1][i], x[y1][i+1], from two input rows in scratch.
#pragma once

#include "dtype.h"

namespace fcn {
namespace FCN_ISA {

enum Corner { kTopLeft = 0, kTopRight = 1, kBottomLeft = 2, kBottomRight = 3 };

// Bump allocation from a worker's scratch; with base null it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  explicit Arena(void* p) : base((char*)p) {}
  template <typename U>
  U* take(int64_t count) {
    U* result = (U*)(base + used);
    used += (count * (int64_t)sizeof(U) + 63) / 64 * 64;
    return result;
  }
};

// The input row that a tap reads, or -1 where it counts zero.
FCN_INLINE int64_t resolve(int64_t index, int64_t size, bool clamp) {
  if (index >= 0 && index < size) return index;
  return clamp ? (index < 0 ? 0 : size - 1) : -1;
}

// Rows in scratch are padded, so that taps outside the input need no branches: column i stands at i + 1, and columns
// -1 and w ... w + 16 hold what the boundary makes of them (zero, or the border's value).
constexpr int64_t kRightPadding = kSegmentPadding + 1;

FCN_INLINE int64_t padded_width(int64_t width) {
  // An odd number of cache lines, so that the rows of the classes do not fall into the same cache sets.
  return ((width + 1 + kRightPadding + 15) / 16 | 1) * 16;
}

FCN_INLINE int64_t padded_column(int64_t index, int64_t width) {
  return index < -1 ? 0 : index > width + kSegmentPadding - 1 ? width + kSegmentPadding : index + 1;
}

// A block of segments, one per lane: where its lanes read (in padded rows) and write. Where few segments are left over
// at the end of a row, the lanes take several of the band's rows at a time, `together` of each segment.
template <typename T>
struct Block {
  static constexpr int L = kLanes<T>;
  bool contiguous;  // left taps are consecutive columns
  bool full;        // every lane has `steps` outputs, and they follow each other without a gap
  bool uniform;     // every lane starts at the same fraction
  bool same;        // every lane reads the same columns
  int64_t row[L];   // the lane's row, counted from the first of those that are taken together
  int together;
  int64_t left[L], right[L];
  int64_t first[L];  // first output column
  int32_t length[L];
  int lanes;  // the lanes from here on have no output
  Vec<T> fraction;

  // Segments begin, begin + 1, ..., each in `rows` lanes.
  Block(const Geometry& g, int64_t begin, int rows = 1) : together(rows) {
    const Segments& s = g.columns;
    contiguous = full = uniform = same = true;
    lanes = 0;
    T f[L];
    for (int l = 0; l < L; ++l) {
      const int64_t segment = begin + l / rows, i = s.index[segment];
      row[l] = l % rows;
      left[l] = padded_column(i, g.in_width);
      right[l] = padded_column(i + 1, g.in_width);
      first[l] = s.first[segment];
      length[l] = s.length[segment];
      if (length[l] > 0) lanes = l + 1;
      f[l] = (T)s.fraction[segment];
      contiguous &= left[l] == left[0] + l && right[l] == left[l] + 1;
      same &= left[l] == left[0] && right[l] == right[0];
      full &= length[l] == s.steps && first[l] == first[0] + l * s.steps;
      uniform &= f[l] == f[0];
    }
    fraction = load(f);
  }

  Vec<T> load_left(const T* row) const { return load_lanes(row, left); }
  Vec<T> load_right(const T* row) const { return load_lanes(row, right); }

  // Adds per-lane values to the columns of a row, lane after lane (a column may occur in several lanes).
  FCN_INLINE void add_left(T* row, Vec<T> v) const { add_lanes(row, left, v); }
  FCN_INLINE void add_right(T* row, Vec<T> v) const { add_lanes(row, right, v); }

 private:
  FCN_INLINE Vec<T> load_lanes(const T* row, const int64_t* columns) const {
    if (contiguous) return load(row + columns[0]);
    if (same) return broadcast(row[columns[0]]);
    T t[L];
    for (int l = 0; l < L; ++l) t[l] = row[columns[l]];
    return load(t);
  }

  FCN_INLINE void add_lanes(T* row, const int64_t* columns, Vec<T> v) const {
    if (contiguous) {
      store(row + columns[0], load(row + columns[0]) + v);
    } else if (same) {
      T sum = v[0];
      for (int l = 1; l < L; ++l) sum += v[l];
      row[columns[0]] += sum;
    } else {
      for (int l = 0; l < L; ++l) row[columns[l]] += v[l];
    }
  }
};

// The blocks of a row, those of padding only left out; returns their number.
template <typename AnyBlock>
inline int64_t make_blocks(const Geometry& g, AnyBlock* blocks) {
  int64_t count = 0;
  for (int64_t s = 0; s < g.columns.count && g.columns.length[s] > 0; s += AnyBlock::L) {
    put(blocks + count++, AnyBlock(g, s));
  }
  return count;
}

// The two input rows that a band reads, all classes, converted and padded: [classes][pitch] each, and their maximum
// over the classes. Rows stay for the next band.
template <typename T>
class InputRows {
 public:
  InputRows(const Image& x, const Geometry& g, Arena& arena)
      : pitch(padded_width(g.in_width)), x_(x), g_(g), size_(x.channels * pitch) {
    for (Slot& slot : slots_) {
      slot.data = arena.take<T>(size_);
      slot.maximum = x.channels == 1 ? slot.data : arena.take<T>(pitch);
    }
  }

  void start(int64_t n) {
    n_ = n;
    for (Slot& slot : slots_) slot.index = kNothing;
  }

  void move_to(int64_t index) {
    Slot* first = find(index);
    if (!first) first = fetch(index, find(index + 1));
    Slot* second = find(index + 1);
    if (!second) second = fetch(index + 1, first);
    top = first->data;
    bottom = second->data;
    top_maximum = first->maximum;
    bottom_maximum = second->maximum;
  }

  const int64_t pitch;
  const T *top, *bottom, *top_maximum, *bottom_maximum;

 private:
  static constexpr int64_t kNothing = INT64_MIN;
  struct Slot {
    int64_t index;  // as the band counts, so rows outside the input have slots too
    T *data, *maximum;
  };

  Slot* find(int64_t index) {
    return slots_[0].index == index ? &slots_[0] : slots_[1].index == index ? &slots_[1] : nullptr;
  }

  Slot* fetch(int64_t index, const Slot* keep) {
    Slot* slot = keep == &slots_[0] ? &slots_[1] : &slots_[0];
    slot->index = index;
    const int64_t y = resolve(index, g_.in_height, g_.clamp);
    if (y < 0) {
      memset(slot->data, 0, size_ * sizeof(T));
    } else if constexpr (sizeof(T) == sizeof(double)) {
      convert<double>(slot->data, y);
    } else if (x_.dtype == DType::kHalf) {
      convert<Half>(slot->data, y);
    } else if (x_.dtype == DType::kBFloat16) {
      convert<BFloat16>(slot->data, y);
    } else {
      convert<float>(slot->data, y);
    }
    for (int64_t i = 0; x_.channels > 1 && i < pitch; i += kLanes<T>) {
      Vec<T> m = load(slot->data + i);
      for (int64_t c = 1; c < x_.channels; ++c) m = vmax(m, load(slot->data + c * pitch + i));
      store(slot->maximum + i, m);
    }
    return slot;
  }

  template <typename In>
  FCN_NOINLINE void convert(T* FCN_RESTRICT data, int64_t y) {
    const int64_t w = g_.in_width;
    const In* row = (const In*)x_.data + n_ * x_.stride_n + y * x_.stride_h;
    if (x_.stride_w == 1) {
      for (int64_t c = 0; c < x_.channels; ++c) {
        const In* from = row + c * x_.stride_c;
        T* to = data + c * pitch + 1;
        int64_t i = 0;
        for (; i + kLanes<T> <= w; i += kLanes<T>) store(to + i, load_as(from + i));
        for (; i < w; ++i) to[i] = to_arithmetic(from[i]);
      }
    } else {
      for (int64_t i = 0; i < w; ++i) {
        for (int64_t c = 0; c < x_.channels; ++c) {
          data[c * pitch + 1 + i] = to_arithmetic(row[c * x_.stride_c + i * x_.stride_w]);
        }
      }
    }
    for (int64_t c = 0; c < x_.channels; ++c) {
      T* to = data + c * pitch;
      to[0] = g_.clamp ? to[1] : T(0);
      for (int64_t i = w + 1; i < pitch; ++i) to[i] = g_.clamp ? to[w] : T(0);
    }
  }

  const Image& x_;
  const Geometry& g_;
  const int64_t size_;
  int64_t n_ = 0;
  Slot slots_[2];
};

// The gradients of the two input rows that a band reads, summed in scratch and written out once, when the last band of
// the unit that reads them is done.
template <typename T>
class GradientRows {
 public:
  GradientRows(const Image& out, void* sides, int64_t channels, const Geometry& g, Arena& arena)
      : out_(out),
        sides_((T*)sides),
        g_(g),
        pitch_(padded_width(g.in_width)),
        size_(channels * pitch_),
        channels_(channels) {
    // Left and right taps have rows of their own: the two overlap by all but one column, and a load that meets half of
    // a recent store stalls.
    for (Slot& slot : slots_) slot.data = arena.take<T>(2 * size_);
    nowhere_ = arena.take<T>(2 * size_);
  }

  void start(int64_t n, int64_t unit_index, int64_t side_row) {
    n_ = n;
    side_ = sides_ + unit_index * channels_ * g_.in_width;
    side_row_ = side_row;
    side_written_ = false;
    for (Slot& slot : slots_) slot.row = -1;
  }

  void move_to(int64_t index) {
    const int64_t y0 = resolve(index, g_.in_height, g_.clamp), y1 = resolve(index + 1, g_.in_height, g_.clamp);
    for (Slot& slot : slots_) {
      if (slot.row != y0 && slot.row != y1) write(slot);
    }
    top_ = slot_of(y0);
    bottom_ = slot_of(y1);
  }

  // Adds a tile's gradients of class c: four corners, one vector each.
  FCN_INLINE void add(const Block<T>& block, int64_t c, const Vec<T>* corners) {
    T *top = top_ + c * pitch_, *bottom = bottom_ + c * pitch_;
    block.add_left(top, corners[kTopLeft]);
    block.add_right(top + size_, corners[kTopRight]);
    block.add_left(bottom, corners[kBottomLeft]);
    block.add_right(bottom + size_, corners[kBottomRight]);
  }

  void finish() {
    for (Slot& slot : slots_) write(slot);
    if (side_row_ >= 0 && !side_written_) memset(side_, 0, channels_ * g_.in_width * sizeof(T));
  }

 private:
  struct Slot {
    int64_t row;  // -1: free
    T* data;
  };

  T* slot_of(int64_t y) {
    if (y < 0) return nowhere_;  // values for taps that count zero; never read
    for (Slot& slot : slots_) {
      if (slot.row == y) return slot.data;
    }
    Slot& slot = slots_[0].row < 0 ? slots_[0] : slots_[1];
    slot.row = y;
    memset(slot.data, 0, 2 * size_ * sizeof(T));
    return slot.data;
  }

  FCN_NOINLINE void write(Slot& slot) {
    if (slot.row < 0) return;
    const int64_t w = g_.in_width;
    const bool side = slot.row == side_row_;
    side_written_ |= side;
    T* row = side ? side_ : (T*)out_.data + n_ * out_.stride_n + slot.row * out_.stride_h;
    const int64_t stride_c = side ? w : out_.stride_c, stride_w = side ? 1 : out_.stride_w;
    for (int64_t c = 0; c < channels_; ++c) {
      T* from = slot.data + c * pitch_ + 1;
      const T* right = from + size_;
      for (int64_t i = -1; i < w + kRightPadding; ++i) from[i] += right[i];
      if (g_.clamp) {
        from[0] += from[-1];
        for (int64_t i = w; i < w + kRightPadding; ++i) from[w - 1] += from[i];
      }
      if (stride_w == 1) {
        // The rows of the classes are far apart: what the caches do not know of them is fetched ahead.
        T* next = row + (c + 4 < channels_ ? c + 4 : c) * stride_c;
        for (int64_t i = 0; i < w; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(next + i, 1);
        memcpy(row + c * stride_c, from, w * sizeof(T));
      }
    }
    for (int64_t i = 0; stride_w != 1 && i < w; ++i) {
      for (int64_t c = 0; c < channels_; ++c) row[c * stride_c + i * stride_w] = slot.data[c * pitch_ + 1 + i];
    }
    slot.row = -1;
  }

  const Image& out_;
  T* const sides_;
  const Geometry& g_;
  const int64_t pitch_, size_, channels_;
  int64_t n_ = 0, side_row_ = -1;
  T *side_ = nullptr, *nowhere_, *top_, *bottom_;
  bool side_written_ = false;
  Slot slots_[2];
};

// A bilinear value from raw corners in the weighted form, which cannot overflow and keeps infinities; a tap of weight
// zero is not read.
template <typename T>
FCN_INLINE Vec<T> weigh(Vec<T> a, Vec<T> b, Vec<T> f) {
  const Vec<T> zero{}, g = T(1) - f;
  return (g == zero ? zero : g * a) + (f == zero ? zero : f * b);
}

}  // namespace FCN_ISA
}  // namespace fcn
