// The classes that win in a tile: one band of output rows times one interval between two input columns, whose values
// all lie between the same four corners. Weights are non-negative, so that in exact arithmetic
//   - a class that is the argmax at all four corners is the argmax everywhere in the tile (ties included: at each
//     corner it is the lowest index of its value);
//   - a class that another exceeds at all four corners wins nowhere: one whose largest corner is below the other's
//     smallest, or one that lies below it corner by corner.
// Only the classes that remain are interpolated. Two read the same corners alike, so equal classes tie exactly.
// Finding these classes wants them side by side, hence rows are kept as [column][class].
#pragma once

#include "tile.h"

namespace fcn {
namespace FCN_ISA {

// Bit l: lane l of a comparison's result.
#if defined(__AVX512F__)
FCN_INLINE uint64_t mask_bits(IntVec<float> m) { return _mm512_movepi32_mask((__m512i)m); }
FCN_INLINE uint64_t mask_bits(IntVec<double> m) { return _mm512_movepi64_mask((__m512i)m); }
#elif defined(__AVX2__)
FCN_INLINE uint64_t mask_bits(IntVec<float> m) { return (uint32_t)_mm256_movemask_ps((__m256)m); }
FCN_INLINE uint64_t mask_bits(IntVec<double> m) { return (uint32_t)_mm256_movemask_pd((__m256d)m); }
#elif defined(__SSE2__)
FCN_INLINE uint64_t mask_bits(IntVec<float> m) { return (uint32_t)_mm_movemask_ps((__m128)m); }
FCN_INLINE uint64_t mask_bits(IntVec<double> m) { return (uint32_t)_mm_movemask_pd((__m128d)m); }
#else
template <typename I>
FCN_INLINE uint64_t mask_bits(I m) {
  uint64_t bits = 0;
  for (size_t l = 0; l < sizeof(I) / sizeof(m[0]); ++l) bits |= (uint64_t)(m[l] & 1) << l;
  return bits;
}
#endif

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

// A tile and the classes that remain, in ascending order.
template <typename T>
struct Tile {
  const Interval<T>* interval;
  const T* corner[4];  // [class], in the order of Corner
  const int32_t* classes;
  int64_t count;
  bool finite;  // else only the weighted form with its skipped taps is right
};

template <typename T>
class Winners {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  using I = IntVec<T>;
  using Int = typename Simd<T>::Int;

 public:
  Winners(const Image& x, const Geometry& g, Arena& arena)
      : x_(x), g_(g), rows_(x, g, arena), line_(g.out_width + kMaxSteps) {
    intervals_ = arena.take<Interval<T>>(g.columns.count);
    candidates_ = arena.take<int32_t>(x.channels);
    everyone_ = arena.take<int32_t>(x.channels);
    labels_ = arena.take<int32_t>(kMaxBandRows * line_);
  }

  void prepare() {
    for (int64_t c = 0; c < x_.channels; ++c) everyone_[c] = (int32_t)c;
    // Segments beyond the first piece of their interval start again from the left.
    const Segments& s = g_.columns;
    count_ = 0;
    for (int64_t j = 0; j < s.count && s.length[j] > 0 && (j == 0 || s.first[j] > s.first[j - 1]); ++j) {
      const bool last = j + 1 == s.count || s.length[j + 1] == 0 || s.first[j + 1] < s.first[j];
      Interval<T> interval;
      interval.first = s.first[j];
      interval.length = (last ? g_.out_width : s.first[j + 1]) - s.first[j];
      interval.fraction = (T)s.fraction[j];
      interval.left_column = rows_.place(s.index[j]);
      const bool single = interval.length == 1 && s.fraction[j] == 0;  // the right column has weight zero
      interval.right_column = single ? interval.left_column : rows_.place(s.index[j] + 1);
      interval.left = interval.left_column * rows_.pitch;
      interval.right = interval.right_column * rows_.pitch;
      put(intervals_ + count_++, interval);
    }
  }

  void start(int64_t n) { rows_.start(n); }

  // Labels all pixels of a band; visit(tile) follows each tile.
  template <typename Visit>
  void label(const Band& band, const Visit& visit) {
    rows_.move_to(band.index, band.end > band.begin + 1 || g_.row_fraction[band.begin] != 0);
    switch (g_.columns.steps) {
      case 1:
        return label_as<1>(band, visit);
      case 2:
        return label_as<2>(band, visit);
      case 3:
      case 4:
        return label_as < L < 4 ? L : 4 > (band, visit);
      default:
        return label_as < L < 8 ? L : 8 > (band, visit);
    }
  }

  // The labels of row band.begin + r.
  const int32_t* row(int64_t r) const { return labels_ + r * line_; }

  // Logits of class c at columns with fraction fx and rows with fraction fy, whatever the corners hold.
  static V direct(const Tile<T>& tile, int64_t c, V fx, V fy) {
    const V left = weigh<T>(broadcast(tile.corner[kTopLeft][c]), broadcast(tile.corner[kBottomLeft][c]), fy);
    const V right = weigh<T>(broadcast(tile.corner[kTopRight][c]), broadcast(tile.corner[kBottomRight][c]), fy);
    return weigh<T>(left, right, fx);
  }

 private:
  // K consecutive columns of L / K rows to a vector.
  template <int K, typename Visit>
  void label_as(const Band& band, const Visit& visit) {
    constexpr int together = L / K;
    const int rows = (int)(band.end - band.begin), vectors = (rows + together - 1) / together;
    V fy[kMaxBandRows];
    for (int v = 0; v < vectors; ++v) {
      for (int l = 0; l < L; ++l) {
        const int row = v * together + l / K;
        fy[v][l] = (T)g_.row_fraction[band.begin + (row < rows ? row : rows - 1)];
      }
    }
    V offsets;
    for (int l = 0; l < L; ++l) offsets[l] = T(l % K);
    const auto *top = rows_.top, *bottom = rows_.bottom;
    for (int64_t j = 0; j < count_; ++j) {
      const Interval<T>& interval = intervals_[j];
      const Int winner[4] = {top->winner[interval.left_column], top->winner[interval.right_column],
                             bottom->winner[interval.left_column], bottom->winner[interval.right_column]};
      Tile<T> tile;
      tile.interval = &interval;
      tile.corner[kTopLeft] = top->logits + interval.left;
      tile.corner[kTopRight] = top->logits + interval.right;
      tile.corner[kBottomLeft] = bottom->logits + interval.left;
      tile.corner[kBottomRight] = bottom->logits + interval.right;
      tile.finite = true;
      if (((winner[0] ^ winner[1]) | (winner[0] ^ winner[2]) | (winner[0] ^ winner[3])) == 0 && winner[0] >= 0) {
        fill((int32_t)winner[0], interval, rows);
        candidates_[0] = (int32_t)winner[0];
        tile.classes = candidates_;
        tile.count = 1;
      } else {
        if ((winner[0] | winner[1] | winner[2] | winner[3]) < 0) {
          tile.classes = everyone_;
          tile.count = x_.channels;
          tile.finite = false;
        } else {
          find_candidates(winner, tile);
        }
        for (int64_t k = 0; k < interval.length; k += K) {
          const V fx = interval.fraction + (T(k) + offsets) * (T)g_.columns.step;
          if (tile.finite) tile.finite = compare<K>(tile, fx, fy, k, rows, vectors);
          if (!tile.finite) compare_carefully<K>(tile, fx, fy, k, rows, vectors);
        }
      }
      visit(tile);
    }
  }

  // Stores may pass the interval's end: the next interval overwrites what they leave there, and a line is padded.
  FCN_INLINE void fill(int32_t winner, const Interval<T>& interval, int rows) {
    int32_t v[kMaxSteps];
    for (int i = 0; i < kMaxSteps; ++i) v[i] = winner;
    for (int row = 0; row < rows; ++row) {
      int32_t* line = labels_ + row * line_ + interval.first;
      for (int64_t k = 0; k < interval.length; k += kMaxSteps) memcpy(line + k, v, sizeof(v));
    }
  }

  // The classes that reach each of two rivals, winners of some corner, at one corner at least.
  FCN_NOINLINE void find_candidates(const Int* winner, Tile<T>& tile) {
    const Int a = winner[0];
    const Int b = winner[1] != a ? winner[1] : winner[2] != a ? winner[2] : winner[3];
    const T* const* p = tile.corner;
    V rival[2][4];
    for (int q = 0; q < 4; ++q) {
      rival[0][q] = broadcast(p[q][a]);
      rival[1][q] = broadcast(p[q][b]);
    }
    int64_t count = 0;
    for (int64_t begin = 0; begin < x_.channels; begin += 64) {
      const int64_t end = begin + 64 < x_.channels ? begin + 64 : x_.channels;
      uint64_t bits = 0;
      for (int64_t c = begin; c < end; c += L) {
        I reach[2] = {};
        for (int q = 0; q < 4; ++q) {
          const V v = load(p[q] + c);
          reach[0] |= v >= rival[0][q];
          reach[1] |= v >= rival[1][q];
        }
        bits |= mask_bits(reach[0] & reach[1]) << (c - begin);
      }
      for (bits &= ~(uint64_t)0 >> (64 - (end - begin)); bits; bits &= bits - 1) {
        candidates_[count++] = (int32_t)(begin + __builtin_ctzll(bits));
      }
    }
    tile.classes = candidates_;
    tile.count = count;
  }

  // The winners among the candidates, a later one only where it is larger. False where a corner is not finite.
  template <int K>
  FCN_INLINE bool compare(const Tile<T>& tile, V fx, const V* fy, int64_t k, int rows, int vectors) {
    V check{};
    int v = 0;
    for (; v + 4 <= vectors; v += 4) check += compare_vectors<K, 4>(tile, fx, fy, k, rows, v);
    if (v + 2 <= vectors) {
      check += compare_vectors<K, 2>(tile, fx, fy, k, rows, v);
      v += 2;
    }
    if (v < vectors) check += compare_vectors<K, 1>(tile, fx, fy, k, rows, v);
    return !any(check != V{});
  }

  // A class in a tile: its value at row fraction fy is top + fy * rise.
  struct Rise {
    V top, rise;
    I number;
    FCN_INLINE Rise(const Tile<T>& tile, int32_t c, V fx, V gx) {
      top = gx * broadcast(tile.corner[kTopLeft][c]) + fx * broadcast(tile.corner[kTopRight][c]);
      rise = gx * broadcast(tile.corner[kBottomLeft][c]) + fx * broadcast(tile.corner[kBottomRight][c]) - top;
      number = I{} + (Int)c;
    }
  };

  template <int K, int M>
  FCN_INLINE V compare_vectors(const Tile<T>& tile, V fx, const V* fy, int64_t k, int rows, int first) {
    const V gx = T(1) - fx;
    const Rise one(tile, tile.classes[0], fx, gx);
    V best[M], check = one.rise * T(0);
    I label[M];
    for (int m = 0; m < M; ++m) {
      best[m] = one.top + fy[first + m] * one.rise;
      label[m] = one.number;
    }
    for (int64_t i = 1; i < tile.count; ++i) {
      const Rise next(tile, tile.classes[i], fx, gx);
      check += next.rise * T(0);
      for (int m = 0; m < M; ++m) {
        const V value = next.top + fy[first + m] * next.rise;
        label[m] = replace_by_later(value > best[m], next.number, label[m]);
        best[m] = vmax(value, best[m]);
      }
    }
    for (int m = 0; m < M; ++m) put_labels<K>(label[m], tile.interval->first + k, (first + m) * (L / K), rows);
    return check;
  }

  // As in torch the first NaN wins and stays.
  template <int K>
  FCN_NOINLINE void compare_carefully(const Tile<T>& tile, V fx, const V* fy, int64_t k, int rows, int vectors) {
    for (int v = 0; v < vectors; ++v) {
      V best = direct(tile, tile.classes[0], fx, fy[v]);
      I label = I{} + (Int)tile.classes[0];
      for (int64_t i = 1; i < tile.count; ++i) {
        const V value = direct(tile, tile.classes[i], fx, fy[v]);
        const I better = ((value > best) | (value != value)) & (best == best);
        best = better ? value : best;
        label = better ? (I{} + (Int)tile.classes[i]) : label;
      }
      put_labels<K>(label, tile.interval->first + k, v * (L / K), rows);
    }
  }

  template <int K>
  FCN_INLINE void put_labels(I label, int64_t column, int row, int rows) {
    int32_t t[L];
    for (int l = 0; l < L; ++l) t[l] = (int32_t)label[l];
    for (int r = 0; r < L / K && row + r < rows; ++r) {
      memcpy(labels_ + (row + r) * line_ + column, t + r * K, K * sizeof(int32_t));
    }
  }

  const Image& x_;
  const Geometry& g_;
  WinnerRows<T> rows_;
  const int64_t line_;
  Interval<T>* intervals_;
  int32_t *candidates_, *everyone_, *labels_;
  int64_t count_;
};

}  // namespace FCN_ISA
}  // namespace fcn
