// Cross-entropy of upsampled logits, loss and gradient in one pass over the small input (see ../softmax.h for the
// chains). Per tile: corners relative to the tile's maximum M; then
//   per row    e_0, r and S_k = sum_c e_0 r^k      two exponentials per class, or two multiplications
//              log S_k, q_k = weight / S_k, one-hot sums
//   per class  over the rows, P = sum_k q_k r^k and r P' by Horner, 2K multiply-adds, spread over the four corners in
//              registers
// The linear part of the loss, sum over pixels of w z_label, is the inner product of the corners with the one-hot sums.
#include "cross_entropy_direct.h"
#include "cross_entropy_onehot.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
class CrossEntropy {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

  // What the gradient needs of a row whose chains can be used.
  struct Kept {
    V q[kMaxSteps], top, bottom;  // coefficients, and the row's vertical weights
    const T* chain;
  };

 public:
  CrossEntropy(const CrossEntropyArgs& args, void* scratch)
      : args_(args),
        g_(*args.geometry),
        classes_(args.x.channels),
        arena_(scratch),
        rows_(args.x, g_, arena_),
        gradient_rows_(args.gradient, args.side, classes_, g_, arena_),
        chains_(classes_, kMaxBandRows, g_, arena_),
        pixels_(args, arena_),
        onehot_(args, pixels_, arena_),
        direct_(args, rows_, chains_, pixels_, arena_) {
    blocks_ = arena_.take<Block<T>>(g_.columns.count / L);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit_index) {
    const int64_t n = unit_index / g_.unit_count;
    const Unit& unit = g_.units[unit_index % g_.unit_count];
    const int64_t block_count = start(n, unit, unit_index);
    int64_t bad_label = -1;
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      const Band& band = g_.bands[b];
      bad_label = pixels_.read_band(band);
      if (bad_label >= 0) break;
      rows_.move_to(band.index);
      if (want_gradient_) gradient_rows_.move_to(band.index);
      for (int64_t i = 0; i < block_count; ++i) tile(band, blocks_[i]);
    }
    if (want_gradient_) gradient_rows_.finish();
    args_.unit_loss[unit_index] = loss_;
    args_.unit_weight[unit_index] = pixels_.total_weight;
    args_.unit_bad_label[unit_index] = bad_label;
  }

 private:
  // Returns the number of blocks in a row.
  int64_t start(int64_t n, const Unit& unit, int64_t unit_index) {
    rows_.start(n);
    const int64_t block_count = make_blocks(g_, blocks_);
    // Few segments in the last block: its lanes take several rows at a time, where bands have enough to pay for the
    // tile.
    const int64_t last = block_count - 1, left = last < 0 ? L : blocks_[last].lanes;
    if (2 * left <= L && g_.max_band_rows == kMaxBandRows) put(blocks_ + last, Block<T>(g_, last * L, (int)(L / left)));
    pixels_.start(n);
    onehot_.start();
    loss_ = 0;
    want_gradient_ = args_.gradient.data != nullptr;
    if (want_gradient_) gradient_rows_.start(n, unit_index, unit.side_row);
    return block_count;
  }

  void tile(const Band& band, const Block<T>& block) {
    const bool finite = chains_.start_tile(rows_, block);
    if (pixels_.smoothing != T(0)) sum_corners();
    tile_loss_ = V{};
    for (V& v : valid_corners_) v = V{};
    const int rows = (int)(band.end - band.begin);
    slots_ = (rows + block.together - 1) / block.together;
    for (int slot = 0; slot < slots_; ++slot) {
      const int64_t first = band.begin + slot * block.together;
      row_fraction_[slot] = broadcast((T)g_.row_fraction[first]);
      for (int l = 0; block.together > 1 && l < L; ++l) {
        const int64_t row = first + block.row[l];
        row_fraction_[slot][l] = (T)g_.row_fraction[row < band.end ? row : band.end - 1];
      }
    }
    onehot_.start_tile(block, chains_.fraction, row_fraction_, slots_);
    direct_.start_tile();
    kept_ = 0;
    with_steps(g_.columns.steps, [&](auto steps) { this->tile_of<steps.value>(band, block, finite); });
  }

  template <int K>
  void tile_of(const Band& band, const Block<T>& block, bool finite) {
    V needed[kMaxBandRows];
    if (finite) chains_.template start_rows<K>(slots_, block.together == 1, row_fraction_, sums_, needed);
    for (int slot = 0; slot < slots_; ++slot) {
      const V fy = row_fraction_[slot];
      pixels_.read(band, block, slot);
      if (!finite || !chain_row<K>(block, slot, needed[slot])) {
        pixels_.place(band, block, slot);
        direct_.add(block, fy, &loss_);
      } else if (!args_.pixel_loss) {
        onehot_.add(block, slot, fy);
      }
      if (want_gradient_ && pixels_.smoothing != T(0)) add_valid_corners(fy);
    }
    finish_tile<K>(block);
  }

  // sum_c w_c z_c, which the smoothing needs, is bilinear like the logits.
  void sum_corners() {
    for (V& v : linear_) v = V{};
    for (int64_t c = 0; c < classes_; ++c) {
      for (int i = 0; i < 4; ++i) linear_[i] += pixels_.class_weight(c) * load(chains_.corner(c) + i * L);
    }
  }

  // The smoothing's constant part, -smoothing / C w_c for every pixel of a row that counts, spread over the corners.
  FCN_NOINLINE void add_valid_corners(V fy) {
    for (int k = 0; k < g_.columns.steps; ++k) {
      const V v = pixels_.times_grad(pixels_.valid(k), k);
      const V right = v * chains_.fraction[k], left = v - right;
      valid_corners_[kTopLeft] += (T(1) - fy) * left;
      valid_corners_[kTopRight] += (T(1) - fy) * right;
      valid_corners_[kBottomLeft] += fy * left;
      valid_corners_[kBottomRight] += fy * right;
    }
  }

  // False, with nothing changed, where the chains have lost too much.
  template <int K>
  bool chain_row(const Block<T>& block, int slot, V needed) {
    V *s = sums_ + slot * kMaxSteps, log_s[K];
    if (pixels_.plain() && chains_.bounded() && !args_.pixel_loss && pixels_.smoothing == T(0)) {
      for (int k = 0; k < K; ++k) {
        log_s[k] = pixels_.all_count() ? s[k] : pixels_.weight(k) == V{} ? broadcast(T(1)) : s[k];
      }
      tile_loss_ += vlog_product<T, K>(log_s);
      if (want_gradient_) keep_coefficients<K>(slot, s);
      return true;
    }
    if (args_.saved_lse) {
      for (int k = 0; k < K; ++k) {
        for (int l = 0; l < L; ++l) {
          log_s[k][l] = pixels_.inside(k, l) ? pixels_.saved_lse(k, l) - chains_.maximum[l] : T(0);
        }
        s[k] = vexp(log_s[k]);
      }
    } else {
      for (int k = 0; k < K; ++k) log_s[k] = vlog(s[k]);
    }
    if (!chains_.template enough<K>(block.full, pixels_.length(), needed, log_s)) return false;
    if (!args_.pixel_grad) add_loss<K>(row_fraction_[slot], log_s);
    if (want_gradient_) keep_coefficients<K>(slot, s);
    return true;
  }

  // What the smoothing adds to the loss of a pixel: smoothing / C (sum_c w_c log S_k - sum_c w_c z_c).
  V smooth_loss(V fy, int k, V log_s) const {
    const V* p = linear_;  // a, d, da, dd
    const V linear = p[0] + fy * p[2] + chains_.fraction[k] * (p[1] + fy * p[3]);
    return pixels_.smooth * ((T)args_.weight_sum * log_s - linear);
  }

  template <int K>
  void add_loss(V fy, const V* log_s) {
    if (args_.pixel_loss) return write_losses<K>(fy, log_s);
    V loss{};
    for (int k = 0; k < K; ++k) {
      loss += (T(1) - pixels_.smoothing) * pixels_.weight(k) * log_s[k];
      if (pixels_.smoothing != T(0)) loss += pixels_.valid(k) * smooth_loss(fy, k, log_s[k]);
    }
    tile_loss_ += loss;
  }

  template <int K>
  void write_losses(V fy, const V* log_s) {
    for (int k = 0; k < K; ++k) {
      const V smooth = pixels_.smoothing != T(0) ? smooth_loss(fy, k, log_s[k]) : V{};
      for (int l = 0; l < L; ++l) {
        if (!pixels_.inside(k, l)) continue;
        const int32_t label = pixels_.label(k, l);
        T value = T(0);
        if (label != classes_) {
          const T* p = chains_.corner(label) + l;
          const T f = chains_.fraction[k][l];
          const T z = p[0] + fy[l] * p[2 * L] + f * (p[L] + fy[l] * p[3 * L]);
          value = (T(1) - pixels_.smoothing) * pixels_.class_weight(label) * (log_s[k][l] - z) + smooth[l];
        }
        pixels_.write(k, l, value, log_s[k][l] + chains_.maximum[l]);
      }
    }
  }

  // q_k of a row, for finish_tile. Horner's sums reach sum_k k |w_k| p_k / e_0, and e_0 may be the smallest
  // normal number: they are kept below 1 / (2 e_0) by coefficients over 128 max |w_k|, which the row's factors undo.
  template <int K>
  void keep_coefficients(int slot, const V* s) {
    Kept& kept = rows_kept_[kept_++];
    V largest = broadcast(T(1));
    if (args_.weight || args_.pixel_grad) {
      largest = V{};
      for (int k = 0; k < K; ++k) {
        const V w = pixels_.coefficient(k);
        largest = vmax(largest, vmax(w, -w));
      }
      largest = largest > V{} ? largest : broadcast(T(1));
    }
    const V scale = kMaxSteps * kMaxSteps * 2 * largest, inverse = T(1) / scale;
    kept.chain = chains_.row_chain(slot);
    kept.top = (T(1) - row_fraction_[slot]) * scale;
    kept.bottom = row_fraction_[slot] * scale;
    for (int k = 0; k < K; ++k) {
      const V w = pixels_.coefficient(k) * inverse;
      kept.q[k] = w == V{} ? V{} : w / s[k];  // steps that are no pixel have no meaningful sum
    }
  }

  // Class c's softmax gradient over the tile's rows, per corner.
  template <int K>
  FCN_INLINE void sum_gradient(int64_t c, V* corners) const {
    V top{}, top_moment{}, bottom{}, bottom_moment{};
    for (const Kept *row = rows_kept_, *end = row + kept_; row < end; ++row) {
      const V* q = row->q;
      const T* chain = row->chain + c * 2 * L;
      const V e = load(chain), e_top = e * row->top, e_bottom = e * row->bottom;
      V sum = q[K - 1];
      if constexpr (K > 1) {
        const V r = load(chain + L);
        V moment = sum;  // the derivative of the polynomial by Horner's rule
        sum = sum * r + q[K - 2];
        for (int k = K - 3; k >= 0; --k) {
          moment = moment * r + sum;
          sum = sum * r + q[k];
        }
        moment = moment * r;
        top_moment += moment * e_top;
        bottom_moment += moment * e_bottom;
      }
      top += sum * e_top;
      bottom += sum * e_bottom;
    }
    // sum_k q_k f_k r^k = f_0 sum_k q_k r^k + step sum_k q_k k r^k
    const V first = chains_.fraction[0];
    const T step = (T)g_.columns.step;
    corners[kTopRight] = first * top + step * top_moment;
    corners[kTopLeft] = top - corners[kTopRight];
    corners[kBottomRight] = first * bottom + step * bottom_moment;
    corners[kBottomLeft] = bottom - corners[kBottomRight];
  }

  template <int K>
  FCN_NOINLINE void finish_tile(const Block<T>& block) {
    const T keep = T(1) - pixels_.smoothing;
    V linear{};
    for (int64_t c = 0; c < classes_; ++c) {
      V corners[4] = {};
      if (want_gradient_) sum_gradient<K>(c, corners);
      V h[4];
      if (onehot_.take(c, h)) {
        const T* p = chains_.corner(c);
        const V a = load(p), d = load(p + L), da = load(p + 2 * L), dd = load(p + 3 * L);
        if (!args_.pixel_grad) linear += h[0] * a + h[1] * (a + d) + h[2] * (a + da) + h[3] * ((a + da) + (d + dd));
        for (int i = 0; i < 4; ++i) corners[i] -= keep * h[i];
      }
      if (!want_gradient_) continue;
      if (pixels_.smoothing != T(0)) {
        for (int i = 0; i < 4; ++i) corners[i] -= pixels_.smooth * pixels_.class_weight(c) * valid_corners_[i];
      }
      direct_.take_gradient(c, corners);
      gradient_rows_.add(block, c, corners);
    }
    onehot_.drop_ignored();
    tile_loss_ -= keep * linear;
    for (int l = 0; l < block.lanes; ++l) loss_ += (double)tile_loss_[l];
  }

  const CrossEntropyArgs& args_;
  const Geometry& g_;
  const int64_t classes_;
  Arena arena_;
  InputRows<T> rows_;
  GradientRows<T> gradient_rows_;
  Chains<T> chains_;
  LossPixels<T> pixels_;
  OneHotSums<T> onehot_;
  DirectRows<T> direct_;
  Block<T>* blocks_;
  double loss_;
  bool want_gradient_;
  V linear_[4], valid_corners_[4], sums_[kMaxBandRows * kMaxSteps], tile_loss_;
  Kept rows_kept_[kMaxBandRows];
  int kept_, slots_;
  V row_fraction_[kMaxBandRows];
};

template <typename T>
int64_t scratch_of(const CrossEntropyArgs& args) {
  return CrossEntropy<T>(args, nullptr).scratch_bytes();
}

}  // namespace

int64_t cross_entropy_scratch(const CrossEntropyArgs& args) {
  return args.x.dtype == DType::kDouble ? scratch_of<double>(args) : scratch_of<float>(args);
}

void cross_entropy(const CrossEntropyArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  if (args.x.dtype == DType::kDouble) {
    CrossEntropy<double>(args, scratch).run(unit);
  } else {
    CrossEntropy<float>(args, scratch).run(unit);
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
