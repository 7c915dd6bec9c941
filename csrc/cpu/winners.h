// The classes that win in a tile: one band of output rows times one interval between two input columns, whose values
// all lie between the same four corners. Weights are non-negative, so that in exact arithmetic
//   - a class that is the argmax at all four corners is the argmax everywhere in the tile (ties included: at each
//     corner it is the lowest index of its value);
//   - a class that another exceeds at all four corners wins nowhere: one whose largest corner is below the other's
//     smallest, or one that lies below it corner by corner.
// Only the classes that remain are interpolated. Two read the same corners alike, so equal classes tie exactly.
// Small tiles side by side of which none is decided are left to dense_winners.h.
#pragma once

#include "dense_winners.h"

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
  using Row = typename WinnerRows<T>::Row;

 public:
  Winners(const Image& x, const Geometry& g, Arena& arena)
      : x_(x), g_(g), rows_(x, g, arena), dense_(x, g, arena), line_(g.out_width + (L > kMaxSteps ? L : kMaxSteps)) {
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
    if (DenseWinners<T>::fits(g_)) dense_.prepare(intervals_, count_);
  }

  void start(int64_t n) {
    rows_.start(n);
    dense_.start();
  }

  // Labels all pixels of a band; visit(tile) follows each tile.
  template <typename Visit>
  void label(const Band& band, const Visit& visit) {
    constexpr int four = L < 4 ? L : 4, eight = L < 8 ? L : 8;
    rows_.move_to(band.index, band.end > band.begin + 1 || g_.row_fraction[band.begin] != 0);
    switch (g_.columns.steps) {
      case 1:
        return label_as<1>(band, visit);
      case 2:
        return label_as<2>(band, visit);
      case 3:
      case 4:
        return label_as<four>(band, visit);
      default:
        return label_as<eight>(band, visit);
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
  // A band's rows for vectors of K consecutive columns of L / K rows.
  template <int K>
  struct Rows {
    int count, vectors;
    V fy[kMaxBandRows];
    V offsets;  // of the columns

    Rows(const Geometry& g, const Band& band) {
      constexpr int together = L / K;
      count = (int)(band.end - band.begin);
      vectors = (count + together - 1) / together;
      for (int v = 0; v < vectors; ++v) {
        for (int l = 0; l < L; ++l) {
          const int row = v * together + l / K;
          fy[v][l] = (T)g.row_fraction[band.begin + (row < count ? row : count - 1)];
        }
      }
      for (int l = 0; l < L; ++l) offsets[l] = T(l % K);
    }
  };

  template <int K, typename Visit>
  void label_as(const Band& band, const Visit& visit) {
    const Rows<K> rows(g_, band);
    if (K > 2 || !DenseWinners<T>::fits(g_)) return label_tiles(rows, 0, count_, visit);
    dense_.move_to(*rows_.top, *rows_.bottom);
    for (int64_t b = 0; b < dense_.count(); ++b) {
      const auto& block = dense_.block(b);
      if (many_candidates(block.begin, block.end) && dense_.label(b, band, labels_, line_)) {
        for (int64_t j = block.begin; j < block.end; ++j) {
          Tile<T> tile = tile_of(intervals_[j], *rows_.top, *rows_.bottom);
          tile.classes = everyone_;
          tile.count = x_.channels;
          visit(tile);
        }
      } else {
        label_tiles(rows, block.begin, block.end, visit);
      }
    }
  }

  // Whether no tile is decided, and the corners of one have three winners or more. Elsewhere, as where two regions of a
  // smooth prediction meet, the tiles' candidates are few.
  FCN_INLINE bool many_candidates(int64_t begin, int64_t end) const {
    bool three = false;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t left = intervals_[j].left_column, right = intervals_[j].right_column;
      const Int winner[4] = {rows_.top->winner[left], rows_.top->winner[right], rows_.bottom->winner[left],
                             rows_.bottom->winner[right]};
      if (same_class(winner)) return false;
      const Int a = winner[0], b = rival_of(winner);
      three |= (winner[2] != a && winner[2] != b) || (winner[3] != a && winner[3] != b);
    }
    return three;
  }

  // The first winner that is not winner[0].
  static Int rival_of(const Int* winner) {
    const Int a = winner[0];
    return winner[1] != a ? winner[1] : winner[2] != a ? winner[2] : winner[3];
  }

  FCN_INLINE static Tile<T> tile_of(const Interval<T>& interval, const Row& top, const Row& bottom) {
    Tile<T> tile;
    tile.interval = &interval;
    tile.corner[kTopLeft] = top.logits + interval.left;
    tile.corner[kTopRight] = top.logits + interval.right;
    tile.corner[kBottomLeft] = bottom.logits + interval.left;
    tile.corner[kBottomRight] = bottom.logits + interval.right;
    tile.finite = true;
    return tile;
  }

  template <int K, typename Visit>
  FCN_NOINLINE void label_tiles(const Rows<K>& band, int64_t begin, int64_t end, const Visit& visit) {
    const auto *top = rows_.top, *bottom = rows_.bottom;
    const int rows = band.count, vectors = band.vectors;
    const V *fy = band.fy, offsets = band.offsets;
    for (int64_t j = begin; j < end; ++j) {
      const Interval<T>& interval = intervals_[j];
      const Int winner[4] = {top->winner[interval.left_column], top->winner[interval.right_column],
                             bottom->winner[interval.left_column], bottom->winner[interval.right_column]};
      Tile<T> tile = tile_of(interval, *top, *bottom);
      if (same_class(winner)) {
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

  static bool same_class(const Int* winner) {
    return ((winner[0] ^ winner[1]) | (winner[0] ^ winner[2]) | (winner[0] ^ winner[3])) == 0 && winner[0] >= 0;
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
    const Int a = winner[0], b = rival_of(winner);
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
  DenseWinners<T> dense_;
  const int64_t line_;
  Interval<T>* intervals_;
  int32_t *candidates_, *everyone_, *labels_;
  int64_t count_;
};

}  // namespace FCN_ISA
}  // namespace fcn
