// Argmax of upsampled logits. A bilinear value lies between its four corners, so a class whose largest corner is below
// another's smallest can win nowhere in the tile: only the classes that remain are interpolated, and where one class
// leads at all four corners of every lane the tile is filled. A lead counts only beyond the rounding margin; ties
// inside it are decided pixel by pixel, in a form that is the same for equal inputs, the lowest index first.
#include "chain.h"
#include "steps.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
class Argmax {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  using I = IntVec<T>;
  using Int = typename Simd<T>::Int;

 public:
  Argmax(const ArgmaxArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), classes_(args.x.channels), arena_(scratch), rows_(args.x, g_, arena_) {
    highest_ = arena_.take<T>(classes_ * L);
    candidates_ = arena_.take<int32_t>(classes_);
    corners_ = arena_.take<T>(classes_ * 4 * L);
    blocks_ = arena_.take<Block<T>>(g_.columns.count / L);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit_index) {
    n_ = unit_index / g_.unit_count;
    const Unit& unit = g_.units[unit_index % g_.unit_count];
    rows_.start(n_);
    const int64_t count = make_blocks(g_, blocks_);
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      const Band& band = g_.bands[b];
      rows_.move_to(band.index);
      for (int64_t i = 0; i < count; ++i) tile(band, blocks_[i]);
    }
  }

 private:
  void tile(const Band& band, const Block<T>& block) {
    for (int k = 0; k < g_.columns.steps; ++k) fraction_[k] = block.fraction + T(k) * (T)g_.columns.step;
    const bool finite = find_candidates(block);
    with_steps(g_.columns.steps, [&](auto steps) { this->compute_rows<steps.value>(band, block, finite); });
  }

  template <int K>
  void compute_rows(const Band& band, const Block<T>& block, bool finite) {
    I labels[K];
    const bool fill = finite && decided_ && !args_.confidence;
    if (fill) {
      for (int k = 0; k < K; ++k) labels[k] = winner_;
      order<K>(labels);
    }
    for (int64_t row = band.begin; row < band.end; ++row) {
      const T fy = (T)g_.row_fraction[row];
      if (!fill) {
        if (finite && !args_.confidence) {
          compare<K>(fy, labels);
        } else {
          for (int k = 0; k < K; ++k) labels[k] = step(block, row, fy, k, finite);
        }
        order<K>(labels);
      }
      write(block, row);
    }
  }

  // The classes that can win somewhere in the tile. False where a corner is not finite.
  FCN_NOINLINE bool find_candidates(const Block<T>& block) {
    V best = broadcast(lowest_number()), largest{}, check{};
    I winner{};
    for (int64_t c = 0; c < classes_; ++c) {
      const T *top = rows_.top + c * rows_.pitch, *bottom = rows_.bottom + c * rows_.pitch;
      const V tl = block.load_left(top), tr = block.load_right(top);
      const V bl = block.load_left(bottom), br = block.load_right(bottom);
      const V low = vmin(vmin(tl, tr), vmin(bl, br)), high = vmax(vmax(tl, tr), vmax(bl, br));
      check += (tl + tr + bl + br) * T(0);
      largest = vmax(largest, vmax(high, -low));
      const I better = low > best;
      best = better ? low : best;
      winner = better ? (I{} + (Int)c) : winner;
      store(highest_ + c * L, high);
    }
    if (any(check != V{})) {
      count_ = (int32_t)classes_;
      for (int32_t c = 0; c < count_; ++c) candidates_[c] = c;
      return false;
    }
    // Two interpolated values differ from the exact ones by less than 4 ulp of the largest corner each.
    const V needed = best - largest * (8 * Epsilon());
    count_ = 0;
    I others{};
    for (int64_t c = 0; c < classes_; ++c) {
      const I possible = load(highest_ + c * L) >= needed;
      if (!any(possible)) continue;
      candidates_[count_++] = (int32_t)c;
      others |= possible & (winner != (I{} + (Int)c));
    }
    decided_ = !any(others);
    winner_ = winner;
    if (!decided_ || args_.confidence) {
      for (int32_t i = 0; i < count_; ++i) {
        const T *top = rows_.top + candidates_[i] * rows_.pitch, *bottom = rows_.bottom + candidates_[i] * rows_.pitch;
        store(corners_ + i * 4 * L, block.load_left(top));
        store(corners_ + (i * 4 + 1) * L, block.load_right(top));
        store(corners_ + (i * 4 + 2) * L, block.load_left(bottom));
        store(corners_ + (i * 4 + 3) * L, block.load_right(bottom));
      }
    }
    return true;
  }

  static constexpr T Epsilon() { return sizeof(T) == 4 ? T(6e-8) : T(1.2e-16); }
  static constexpr T lowest_number() { return sizeof(T) == 4 ? T(-3.4028234e38f) : T(-1.7976931348623157e308); }

  // The winners of a row, all corners finite: the candidates in ascending order, a later one only where it is larger.
  template <int K>
  FCN_NOINLINE void compare(T fy, I* labels) const {
    V best[K];
    for (int k = 0; k < K; ++k) {
      best[k] = broadcast(lowest_number());
      labels[k] = I{} + (Int)candidates_[0];
    }
    for (int32_t i = 0; i < count_; ++i) {
      const T* p = corners_ + (int64_t)i * 4 * L;
      const V left = (T(1) - fy) * load(p) + fy * load(p + 2 * L);
      const V rise = (T(1) - fy) * load(p + L) + fy * load(p + 3 * L) - left;
      const I c = I{} + (Int)candidates_[i];
      for (int k = 0; k < K; ++k) {
        const V v = left + fraction_[k] * rise;
        labels[k] = v > best[k] ? c : labels[k];
        best[k] = vmax(v, best[k]);
      }
    }
  }

  // The winners of step k of a row, whatever the corners hold; with their confidence on request.
  I step(const Block<T>& block, int64_t row, T fy, int k, bool finite) {
    V best = value(block, 0, k, fy, finite);
    I winner = I{} + (Int)candidates_[0];
    for (int32_t i = 1; i < count_; ++i) {
      const V v = value(block, i, k, fy, finite);
      // As in torch the first NaN wins and stays.
      const I better = ((v > best) | (v != v)) & (best == best);
      best = better ? v : best;
      winner = better ? (I{} + (Int)candidates_[i]) : winner;
    }
    if (args_.confidence) write_confidence(block, row, fy, k, best);
    return winner;
  }

  V value(const Block<T>& block, int32_t i, int k, T fy, bool finite) const {
    if (!finite) return direct_logit<T>(rows_, block, candidates_[i], fraction_[k], broadcast(fy));
    const T* p = corners_ + (int64_t)i * 4 * L;
    const V left = (T(1) - fy) * load(p) + fy * load(p + 2 * L);
    return left + fraction_[k] * ((T(1) - fy) * load(p + L) + fy * load(p + 3 * L) - left);
  }

  // The winner's softmax probability, 1 / sum of exp(z - best) over all classes.
  void write_confidence(const Block<T>& block, int64_t row, T fy, int k, V best) {
    V s{};
    for (int64_t c = 0; c < classes_; ++c)
      s += vexp(direct_logit<T>(rows_, block, c, fraction_[k], broadcast(fy)) - best);
    const V p = T(1) / s;
    T* out = (T*)args_.confidence + (n_ * g_.out_height + row) * g_.out_width;
    for (int l = 0; l < L; ++l) {
      if (k < block.length[l]) out[block.first[l] + k] = p[l];
    }
  }

  // Labels per step and lane to the order of the pixels: ordered_[lane * K + step].
  template <int K>
  void order(const I* labels) {
    if constexpr (is_power_of_two(K)) {
      V v[K];
      for (int k = 0; k < K; ++k) v[k] = (V)labels[k];
      interleave<T, K>(v);
      memcpy(ordered_, v, sizeof(v));
    } else {
      for (int k = 0; k < K; ++k) {
        for (int l = 0; l < L; ++l) ordered_[l * K + k] = labels[k][l];
      }
    }
  }

  template <typename Label>
  void write_as(const Block<T>& block, int64_t row) const {
    Label* out = (Label*)args_.labels + (n_ * g_.out_height + row) * g_.out_width;
    const int steps = g_.columns.steps;
    if (block.full) {
      for (int i = 0; i < steps * L; ++i) out[block.first[0] + i] = (Label)ordered_[i];
      return;
    }
    for (int l = 0; l < L; ++l) {
      for (int k = 0; k < block.length[l]; ++k) out[block.first[l] + k] = (Label)ordered_[l * steps + k];
    }
  }

  FCN_NOINLINE void write(const Block<T>& block, int64_t row) {
    switch (args_.label_type) {
      case LabelType::kUInt8:
        return write_as<uint8_t>(block, row);
      case LabelType::kInt16:
        return write_as<int16_t>(block, row);
      case LabelType::kInt32:
        return write_as<int32_t>(block, row);
      case LabelType::kInt64:
        return write_as<int64_t>(block, row);
    }
  }

  const ArgmaxArgs& args_;
  const Geometry& g_;
  const int64_t classes_;
  Arena arena_;
  InputRows<T> rows_;
  T *highest_, *corners_;
  int32_t* candidates_;
  Block<T>* blocks_;
  int64_t n_;
  int32_t count_;
  bool decided_;
  V fraction_[kMaxSteps];
  I winner_;
  Int ordered_[kMaxSteps * L];
};

template <typename T>
int64_t scratch_of(const ArgmaxArgs& args) {
  return Argmax<T>(args, nullptr).scratch_bytes();
}

}  // namespace

int64_t argmax_scratch(const ArgmaxArgs& args) {
  return args.x.dtype == DType::kDouble ? scratch_of<double>(args) : scratch_of<float>(args);
}

void argmax(const ArgmaxArgs& args, int64_t unit, void* scratch) {
  if (args.x.dtype == DType::kDouble) {
    Argmax<double>(args, scratch).run(unit);
  } else {
    Argmax<float>(args, scratch).run(unit);
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
