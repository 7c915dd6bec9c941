// The geometric progressions of a tile (../softmax.h): corners relative to the tile's maximum, the chains of a row, and
// whether they have kept enough digits.
#pragma once

#include "../softmax.h"
#include "math.h"
#include "tile.h"

namespace fcn {
namespace FCN_ISA {

// Calls f(Steps<K>()) for K = steps, so that the loops over the steps of a segment unroll.
template <int K>
struct Steps {
  static constexpr int value = K;
};
template <typename F>
FCN_INLINE auto with_steps(int steps, const F& f) {
  switch (steps) {
    case 1:
      return f(Steps<1>());
    case 2:
      return f(Steps<2>());
    case 3:
      return f(Steps<3>());
    case 4:
      return f(Steps<4>());
    case 5:
      return f(Steps<5>());
    case 6:
      return f(Steps<6>());
    case 7:
      return f(Steps<7>());
    default:
      return f(Steps<8>());
  }
}

template <typename T>
class Chains {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  // `rows` rows of a tile can be kept at once.
  Chains(int64_t classes, int64_t rows, const Geometry& g, Arena& arena)
      : classes_(classes), step_((T)g.columns.step), log_classes_(vlog(broadcast((T)classes))) {
    corners_ = arena.take<T>(classes * 4 * L);
    chain_ = arena.take<T>(rows * classes * 2 * L);
    ratio_ = arena.take<T>((rows > 2 ? classes : 0) * 2 * L);
  }

  // Takes the corners of a tile; false where one of them is not finite.
  FCN_NOINLINE bool start_tile(const InputRows<T>& rows, const Block<T>& block) {
    const V m = vmax(vmax(block.load_left(rows.top_maximum), block.load_right(rows.top_maximum)),
                     vmax(block.load_left(rows.bottom_maximum), block.load_right(rows.bottom_maximum)));
    V check{}, least{};
    for (int64_t c = 0; c < classes_; ++c) {
      const T *top = rows.top + c * rows.pitch, *bottom = rows.bottom + c * rows.pitch;
      const V tl = block.load_left(top) - m, tr = block.load_right(top) - m;
      const V bl = block.load_left(bottom) - m, br = block.load_right(bottom) - m;
      const V d = tr - tl, da = bl - tl, dd = (br - bl) - d;
      check += (tl + d + da + dd) * T(0);
      least = vmin(vmin(vmin(tl, tr), vmin(bl, br)), least);
      T* p = corners_ + c * 4 * L;
      store(p, tl);
      store(p + L, d);
      store(p + 2 * L, da);
      store(p + 3 * L, dd);
    }
    maximum = m;
    bounded_ = !any(!(least > -kSpan));
    for (int k = 0; k < kMaxSteps; ++k) fraction[k] = block.fraction + T(k) * step_;
    return !any(check != V{});
  }

  // e_0 and r of every class for `rows` rows of the tile at the fractions fy, which are equally
  // spaced where `spaced`, and S_k = sum over classes of e_0 r^k: sums[row][kMaxSteps].
  // needed[row] is the bound that the smallest log S_k must reach: log C + kLowest + rise - log tolerance, rise the
  // steepest rise of a class that starts below the smallest normal number.
  template <int K>
  void start_rows(int rows, bool spaced, const V* fy, V* sums, V* needed) {
    const V bound = log_classes_ + (ChainLimits<T>::kLowest - ChainLimits<T>::kLogLostTolerance);
    for (int row = 0; row < rows; ++row) {
      needed[row] = bound;
      for (int k = 0; k < K; ++k) sums[row * kMaxSteps + k] = V{};
    }
    const bool progress = bounded_ && spaced && rows > 2;
    // A few classes at a time, whose corners and chains stay in the first-level cache for all rows.
    for (int64_t c = 0; c < classes_; c += kClassesTogether) {
      const int64_t end = c + kClassesTogether < classes_ ? c + kClassesTogether : classes_;
      if (progress) start_ratios<K>(fy[1][0] - fy[0][0], c, end);
      for (int row = 0; row < rows; ++row) {
        V* s = sums + row * kMaxSteps;
        if (progress && row % kRowsTogether != 0) {
          sum_row<K, true>(row, c, end, s);
          continue;
        }
        if (bounded_) {
          seed_row<K, true>(row, fy[row], c, end);
        } else {
          needed[row] = vmax(seed_row<K, false>(row, fy[row], c, end) + bound, needed[row]);
        }
        sum_row<K, false>(row, c, end, s);
      }
    }
  }

  // Whether log S_k reaches what is needed everywhere, and NaN does not; steps that are no pixel get 0.
  template <int K>
  bool enough(bool full, const int32_t* length, V needed, V* log_s) const {
    if (!full) {
      for (int k = 0; k < K; ++k) {
        for (int l = 0; l < L; ++l) log_s[k][l] = k < length[l] ? log_s[k][l] : T(0);
      }
      for (int l = 0; l < L; ++l) needed[l] = length[l] ? needed[l] : T(0);
    }
    V lowest = log_s[0];
    for (int k = 1; k < K; ++k) lowest = vmin(log_s[k], lowest);
    return !any(!(lowest >= needed));
  }

  // Where no corner is so far below the maximum that a chain could underflow, every S_k is exact enough.
  FCN_INLINE bool bounded() const { return bounded_; }

  // e_0 and r of a row, [classes][2][lanes].
  FCN_INLINE T* row_chain(int slot) const { return chain_ + slot * classes_ * 2 * L; }

  // A logit is level + fraction * slope along a row, relative to the maximum.
  FCN_INLINE V level(int64_t c, V fy) const { return load(corner(c)) + fy * load(corner(c) + 2 * L); }
  FCN_INLINE V slope(int64_t c, V fy) const { return load(corner(c) + L) + fy * load(corner(c) + 3 * L); }

  // a, d and their vertical differences, a vector each.
  FCN_INLINE const T* corner(int64_t c) const { return corners_ + c * 4 * L; }

  V maximum, fraction[kMaxSteps];

 private:
  static constexpr int64_t kClassesTogether = 32;

  // Rows whose chains follow from the row before by one multiplication each; the next one takes exponentials again, so
  // that the rounding does not add up further.
  static constexpr int kRowsTogether = 4;

  // e_0 and r of classes [begin, end) of a row; returns their steepest rise from below the smallest normal number.
  template <int K, bool bounded>
  FCN_NOINLINE V seed_row(int slot, V fy, int64_t begin, int64_t end) {
    T* chain = row_chain(slot);
    const T step = step_;
    const V first = fraction[0];
    V rise{};
    for (int64_t c = begin; c < end; ++c) {
      const V a = level(c, fy), d = slope(c, fy), start = a + first * d;
      store(chain + c * 2 * L, bounded ? vexp_within(start) : vexp(start));
      if (!bounded) rise = start < ChainLimits<T>::kLowest ? vmax(rise, d) : rise;
      if constexpr (K > 1) store(chain + (c * 2 + 1) * L, bounded ? vexp_within(d * step) : vexp(d * step));
    }
    return rise;
  }

  // What e_0 and r of classes [begin, end) are multiplied by from row to row: a logit is linear in the row, too.
  template <int K>
  FCN_NOINLINE void start_ratios(T row_step, int64_t begin, int64_t end) {
    const V first = fraction[0];
    const T step = step_ * row_step;
    for (int64_t c = begin; c < end; ++c) {
      const V da = load(corner(c) + 2 * L), dd = load(corner(c) + 3 * L);
      store(ratio_ + c * 2 * L, vexp_within((da + first * dd) * row_step));
      if constexpr (K > 1) store(ratio_ + (c * 2 + 1) * L, vexp_within(dd * step));
    }
  }

  // Adds the chains of classes [begin, end) of a row to its sums; `advance`: e_0 and r come from the row before.
  template <int K, bool advance>
  FCN_NOINLINE void sum_row(int slot, int64_t begin, int64_t end, V* s) {
    T* chain = row_chain(slot);
    const T* previous = advance ? row_chain(slot - 1) : chain;
    V sum[K];
    for (int k = 0; k < K; ++k) sum[k] = s[k];
    for (int64_t c = begin; c < end; ++c) {
      V e = load(previous + c * 2 * L);
      if constexpr (advance) {
        e = e * load(ratio_ + c * 2 * L);
        store(chain + c * 2 * L, e);
      }
      sum[0] += e;
      if constexpr (K > 1) {
        V r = load(previous + (c * 2 + 1) * L);
        if constexpr (advance) {
          r = r * load(ratio_ + (c * 2 + 1) * L);
          store(chain + (c * 2 + 1) * L, r);
        }
        // e r^k from every second power: fewer multiplications, and half the latency.
        sum[1] += e * r;
        if constexpr (K > 2) {
          const V r2 = r * r;
          for (int k = 2; k < K; k += 2) {
            e = e * r2;
            sum[k] += e;
            if (k + 1 < K) sum[k + 1] += e * r;
          }
        }
      }
    }
    for (int k = 0; k < K; ++k) s[k] = sum[k];
  }

  // Where no corner is further below the tile's maximum, no exponential needs clamping and no chain starts too low.
  static constexpr T kSpan = -ChainLimits<T>::kLowest - 1;
  bool bounded_;
  const int64_t classes_;
  const T step_;
  const V log_classes_;
  T *corners_, *chain_, *ratio_;
};

// A logit from the input rows in the weighted form, for rows whose chains cannot be used.
template <typename T>
FCN_INLINE Vec<T> direct_logit(const InputRows<T>& rows, const Block<T>& block, int64_t c, Vec<T> fx, Vec<T> fy) {
  const T *top = rows.top + c * rows.pitch, *bottom = rows.bottom + c * rows.pitch;
  const Vec<T> left = weigh<T>(block.load_left(top), block.load_left(bottom), fy);
  const Vec<T> right = weigh<T>(block.load_right(top), block.load_right(bottom), fy);
  return weigh<T>(left, right, fx);
}

}  // namespace FCN_ISA
}  // namespace fcn
