// Cross-entropy of upsampled logits, loss and gradient in one pass over the small input (see ../softmax.h for the
// chains). Per tile: corners relative to the tile's maximum M; then
//   per row    e_0, r and S_k = sum_c e_0 r^k      two exponentials per class, or two multiplications
//              log S_k, q_k = weight / S_k, one-hot sums
//   per class  over the rows, P = sum_k q_k r^k and r P' by Horner, 2K multiply-adds, spread over the four corners in
//              registers
// The linear part of the loss, sum over pixels of w z_label, is the inner product of the corners with the one-hot sums.
#include "chain.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
class CrossEntropy {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  using Four = typename Simd<T>::Four;  // a value per corner

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
        chains_(classes_, kMaxBandRows, g_, arena_) {
    direct_gradient_ = arena_.take<T>(classes_ * 4 * L);
    direct_ = arena_.take<T>(classes_ * L);
    onehot_ = arena_.take<T>((classes_ + 1) * 4 * L);
    counts_ = arena_.take<uint64_t>((classes_ + 1) * L);
    touched_ = arena_.take<uint8_t>(classes_ + 1);
    weight_ = arena_.take<T>(classes_ + 1);
    blocks_ = arena_.take<Block<T>>(g_.columns.count / L);
    labels_ = arena_.take<int32_t>(g_.max_band_rows * g_.out_width);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit_index) {
    n_ = unit_index / g_.unit_count;
    const Unit& unit = g_.units[unit_index % g_.unit_count];
    prepare(unit, unit_index);
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      const Band& band = g_.bands[b];
      convert_labels(band);
      if (bad_label_ >= 0) break;
      rows_.move_to(band.index);
      if (want_gradient_) gradient_rows_.move_to(band.index);
      for (int64_t i = 0; i < block_count_; ++i) tile(band, blocks_[i]);
    }
    if (want_gradient_) gradient_rows_.finish();
    args_.unit_loss[unit_index] = loss_;
    args_.unit_weight[unit_index] = weight_total_;
    args_.unit_bad_label[unit_index] = bad_label_;
  }

 private:
  void prepare(const Unit& unit, int64_t unit_index) {
    rows_.start(n_);
    block_count_ = make_blocks(g_, blocks_);
    // Few segments in the last block: its lanes take several rows at a time, where bands have enough to pay for the
    // tile.
    const int64_t last = block_count_ - 1, left = last < 0 ? L : blocks_[last].lanes;
    if (2 * left <= L && g_.max_band_rows == kMaxBandRows) put(blocks_ + last, Block<T>(g_, last * L, (int)(L / left)));
    for (int64_t c = 0; c < classes_; ++c) weight_[c] = args_.weight ? ((const T*)args_.weight)[c] : T(1);
    weight_[classes_] = T(0);  // the class of ignored pixels
    memset(onehot_, 0, (classes_ + 1) * 4 * L * sizeof(T));
    memset(touched_, 0, classes_ + 1);
    memset(counts_, 0, (classes_ + 1) * L * sizeof(uint64_t));
    counting_ = !args_.weight && !args_.pixel_grad;
    loss_ = weight_total_ = 0;
    bad_label_ = -1;
    smoothing_ = (T)args_.label_smoothing;
    smooth_ = smoothing_ / (T)classes_;
    want_gradient_ = args_.gradient.data != nullptr;
    if (want_gradient_) gradient_rows_.start(n_, unit_index, unit.side_row);
  }

  // Labels of a band as int32, ignored ones as the extra class C.
  template <typename Label>
  void convert_labels_as(const Band& band) {
    const int64_t begin = (n_ * g_.out_height + band.begin) * g_.out_width;
    const int64_t count = (band.end - band.begin) * g_.out_width;
    const Label* target = (const Label*)args_.target + begin;
    const int64_t ignore = args_.ignore_index;
    const int32_t classes = (int32_t)classes_;
    constexpr int n = kLanes<double>;
    IntVec<double> wrong{};
    int64_t i = 0;
    for (; i + n <= count; i += n) {
      const IntVec<double> label = load_labels(target + i), ignored = label == ignore;
      wrong |= ~(ignored | ((label >= 0) & (label < classes)));
      store_labels(labels_ + i, ignored ? IntVec<double>{} + classes : label);
    }
    bool bad = any(wrong);
    for (; i < count; ++i) {
      const int64_t label = (int64_t)target[i];
      bad |= label != ignore && (uint64_t)label >= (uint64_t)classes;
      labels_[i] = label == ignore ? classes : (int32_t)label;
    }
    for (int64_t p = 0; bad && p < count; ++p) {
      const int64_t label = (int64_t)target[p];
      if (label != ignore && (uint64_t)label >= (uint64_t)classes) {
        bad_label_ = begin + p;
        break;
      }
    }
  }

  void convert_labels(const Band& band) {
    visit_label(args_.target_type, [&](auto zero) { convert_labels_as<decltype(zero)>(band); });
  }

  void tile(const Band& band, const Block<T>& block) {
    const bool finite = chains_.start_tile(rows_, block);
    if (smoothing_ != T(0)) sum_corners();
    any_direct_ = false;
    tile_loss_ = V{};
    for (V& v : valid_corners_) v = V{};
    for (int k = 0; !counting_ && k < g_.columns.steps; ++k) {
      for (int l = 0; l < (block.uniform ? 1 : L); ++l) {
        const T f = chains_.fraction[k][l];
        columns_[k * L + l] = Four{T(1) - f, f, T(1) - f, f};
      }
    }
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
    first_pixel_ = (n_ * g_.out_height + band.begin) * g_.out_width;
    kept_ = 0;
    with_steps(g_.columns.steps, [&](auto steps) { this->tile_of<steps.value>(band, block, finite); });
  }

  template <int K>
  void tile_of(const Band& band, const Block<T>& block, bool finite) {
    V needed[kMaxBandRows];
    if (finite) chains_.template start_rows<K>(slots_, block.together == 1, row_fraction_, sums_, needed);
    for (int slot = 0; slot < slots_; ++slot) {
      const V fy = row_fraction_[slot];
      read_labels(band, block, slot);
      if (!finite || !chain_row<K>(block, slot, needed[slot])) {
        place(band, block, slot);
        direct_row(block, fy);
      } else if (!args_.pixel_loss) {
        counting_ ? count_labels(block, slot) : add_onehot(block, fy);
      }
    }
    finish_tile<K>(block);
  }

  // sum_c w_c z_c, which the smoothing needs, is bilinear like the logits.
  void sum_corners() {
    for (V& v : linear_) v = V{};
    for (int64_t c = 0; c < classes_; ++c) {
      for (int i = 0; i < 4; ++i) linear_[i] += weight_[c] * load(chains_.corner(c) + i * L);
    }
  }

  // Where the lanes of a slot read labels and write pixels; those beyond the band have no length.
  void place(const Band& band, const Block<T>& block, int slot) {
    for (int l = 0; l < L; ++l) {
      const int64_t row = slot * block.together + block.row[l];
      const bool inside = band.begin + row < band.end;
      start_[l] = (inside ? row : 0) * g_.out_width + block.first[l];
      length_[l] = inside ? block.length[l] : 0;
    }
  }

  // The row's labels and weights. `plain_`: every step of every lane is a pixel, the classes have no weights, and
  // labels stand as in the target, lane by lane; otherwise they are copied step by step, and what is no pixel gets the
  // ignored class. `all_count_`: plain, and no pixel is ignored.
  FCN_NOINLINE void read_labels(const Band& band, const Block<T>& block, int slot) {
    const int steps = g_.columns.steps;
    plain_ = block.full && !args_.weight && !args_.pixel_grad;
    all_count_ = false;
    if (!plain_ || args_.pixel_loss) place(band, block, slot);
    if (plain_) {
      row_labels_ = labels_ + slot * g_.out_width + block.first[0];
      int ignored = 0;
      for (int i = 0; i < steps * L; ++i) ignored += row_labels_[i] == (int32_t)classes_;
      weight_total_ += steps * L - ignored;
      all_count_ = ignored == 0;
      for (int l = 0; !all_count_ && l < L; ++l) {
        for (int k = 0; k < steps; ++k) {
          pixel_weight_[k * L + l] = row_labels_[l * steps + k] == (int32_t)classes_ ? T(0) : T(1);
        }
      }
      return;
    }
    for (int i = 0; i < steps * L; ++i) label_[i] = (int32_t)classes_;
    for (int k = 0; k < steps; ++k) {
      store(pixel_weight_ + k * L, V{});
      store(pixel_grad_ + k * L, V{});
    }
    const T* grad = (const T*)args_.pixel_grad + first_pixel_;
    for (int l = 0; l < block.lanes; ++l) {
      for (int k = 0; k < length_[l]; ++k) {
        const int32_t label = labels_[start_[l] + k];
        label_[k * L + l] = label;
        pixel_weight_[k * L + l] = weight_[label];
        if (args_.pixel_grad) pixel_grad_[k * L + l] = grad[start_[l] + k];
      }
    }
    V total{};
    for (int k = 0; k < steps; ++k) total += load(pixel_weight_ + k * L);
    for (int l = 0; l < block.lanes; ++l) weight_total_ += (double)total[l];
  }

  int32_t label(int k, int l) const { return plain_ ? row_labels_[l * g_.columns.steps + k] : label_[k * L + l]; }
  V weight(int k) const { return all_count_ ? broadcast(T(1)) : load(pixel_weight_ + k * L); }

  // 1 for pixels that count, 0 for ignored ones.
  V valid(int k) const {
    if (plain_) return weight(k);
    T v[L];
    for (int l = 0; l < L; ++l) v[l] = label_[k * L + l] == (int32_t)classes_ ? T(0) : T(1);
    return load(v);
  }

  FCN_INLINE void add_corners(int32_t label, int l, Four value) {
    T* p = onehot_ + ((int64_t)label * L + four_position<T>(l)) * 4;
    Four sum;
    memcpy(&sum, p, sizeof(sum));
    sum += value;
    memcpy(p, &sum, sizeof(sum));
    touched_[label] = 1;
  }

  // Where all weights are 1, the one-hot sums follow from four small integers per class and lane: the number of its
  // pixels, and the sums of their k, slot and k slot. They share one word.
  FCN_NOINLINE void count_labels(const Block<T>& block, int slot) {
    const int steps = g_.columns.steps;
    uint64_t* counts = counts_;
    for (int k = 0; k < steps; ++k) {
      const uint64_t value = 1 | (uint64_t)k << 16 | (uint64_t)slot << 32 | (uint64_t)(k * slot) << 48;
      if (plain_) {
        const int32_t* labels = row_labels_ + k;
        for (int l = 0; l < L; ++l) counts[(int64_t)labels[l * steps] * L + l] += value;
      } else {
        for (int l = 0; l < block.lanes; ++l) {
          counts[(int64_t)label_[k * L + l] * L + l] += value;
        }
      }
    }
  }

  // The sums of a class's bilinear weights from its counts, which are cleared; false where they are zero.
  FCN_INLINE bool take_counts(int64_t c, V* h) {
    // A word per lane: pixels, k, slot and k slot, 16 bits each.
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
    const V first = chains_.fraction[0], top = row_fraction_[0];
    const T step = (T)g_.columns.step, row_step = slots_ > 1 ? row_fraction_[1][0] - row_fraction_[0][0] : T(0);
    const V right = first * v[0] + step * v[1], bottom = top * v[0] + row_step * v[2];
    h[kBottomRight] = first * bottom + step * (top * v[1] + row_step * v[3]);
    h[kTopRight] = right - h[kBottomRight];
    h[kBottomLeft] = bottom - h[kBottomRight];
    h[kTopLeft] = (v[0] - right) - h[kBottomLeft];
    return true;
  }

  // The same from the sums of add_onehot.
  FCN_INLINE bool take_onehot(int64_t c, V* h) {
    if (!touched_[c]) return false;
    T* onehot = onehot_ + c * 4 * L;
    transpose_fours<T>(onehot, h);
    for (int i = 0; i < 4; ++i) store(onehot + i * L, V{});
    touched_[c] = 0;
    return true;
  }

  // Adds weight * bilinear weight to the label's corners, step after step, so that neighbouring additions of a label
  // that fills a segment do not wait for each other.
  FCN_NOINLINE void add_onehot(const Block<T>& block, V fy) {
    Four row[L];
    for (int l = 0; l < (block.together == 1 ? 1 : L); ++l) row[l] = Four{T(1) - fy[l], T(1) - fy[l], fy[l], fy[l]};
    const int steps = g_.columns.steps;
    for (int k = 0; k < steps; ++k) {
      for (int l = 0; l < block.lanes; ++l) {
        T w = pixel_weight_[k * L + l];
        if (args_.pixel_grad) w *= pixel_grad_[k * L + l];
        const Four vertical = row[block.together == 1 ? 0 : l];
        add_corners(label_[k * L + l], l, w * (vertical * columns_[k * L + (block.uniform ? 0 : l)]));
      }
    }
  }

  // False, with nothing changed, where the chains have lost too much.
  template <int K>
  bool chain_row(const Block<T>& block, int slot, V needed) {
    V *s = sums_ + slot * kMaxSteps, log_s[K];
    if (plain_ && chains_.bounded() && !args_.pixel_loss && smoothing_ == T(0)) {
      for (int k = 0; k < K; ++k) log_s[k] = all_count_ ? s[k] : weight(k) == V{} ? broadcast(T(1)) : s[k];
      tile_loss_ += vlog_product<T, K>(log_s);
      if (want_gradient_) keep_coefficients<K>(slot, s);
      return true;
    }
    if (args_.saved_lse) {
      const T* lse = (const T*)args_.saved_lse + first_pixel_;
      for (int k = 0; k < K; ++k) {
        for (int l = 0; l < L; ++l) {
          log_s[k][l] = k < length_[l] ? lse[start_[l] + k] - chains_.maximum[l] : T(0);
        }
        s[k] = vexp(log_s[k]);
      }
    } else {
      for (int k = 0; k < K; ++k) log_s[k] = vlog(s[k]);
    }
    if (!chains_.template enough<K>(block.full, length_, needed, log_s)) return false;
    if (!args_.pixel_grad) add_loss<K>(row_fraction_[slot], log_s);
    if (want_gradient_) keep_coefficients<K>(slot, s);
    return true;
  }

  // Value of the linear function with corners p (a, d, da, dd) at step k of a row.
  V linear_at(const V* p, V fy, int k) const { return p[0] + fy * p[2] + chains_.fraction[k] * (p[1] + fy * p[3]); }

  template <int K>
  void add_loss(V fy, const V* log_s) {
    if (args_.pixel_loss) {
      for (int k = 0; k < K; ++k) {
        const V smooth =
            smoothing_ != T(0) ? smooth_ * ((T)args_.weight_sum * log_s[k] - linear_at(linear_, fy, k)) : V{};
        for (int l = 0; l < L; ++l) {
          if (k >= length_[l]) continue;
          const int32_t label = this->label(k, l);
          T value = T(0);
          if (label != classes_) {
            const T* p = chains_.corner(label) + l;
            const T f = chains_.fraction[k][l];
            const T z = p[0] + fy[l] * p[2 * L] + f * (p[L] + fy[l] * p[3 * L]);
            value = (T(1) - smoothing_) * weight_[label] * (log_s[k][l] - z) + smooth[l];
          }
          write_pixel(k, l, value, log_s[k][l] + chains_.maximum[l]);
        }
      }
      return;
    }
    V loss{};
    for (int k = 0; k < K; ++k) {
      loss += (T(1) - smoothing_) * weight(k) * log_s[k];
      if (smoothing_ != T(0)) {
        loss += valid(k) * smooth_ * ((T)args_.weight_sum * log_s[k] - linear_at(linear_, fy, k));
      }
    }
    tile_loss_ += loss;
  }

  void write_pixel(int k, int l, T loss, T lse) {
    const int64_t p = first_pixel_ + start_[l] + k;
    ((T*)args_.pixel_loss)[p] = loss;
    if (args_.pixel_lse) ((T*)args_.pixel_lse)[p] = lse;
  }

  // d loss / d z_c = q p_c - (one-hot and smoothing constants), q = (1 - smoothing) w + smoothing / C sum(w).
  V coefficient(int k) const {
    V q = (T(1) - smoothing_) * weight(k);
    if (smoothing_ != T(0)) q += smooth_ * (T)args_.weight_sum * valid(k);
    if (args_.pixel_grad) q *= load(pixel_grad_ + k * L);
    return q;
  }

  // The smoothing's constant part, -smoothing / C w_c for every pixel that counts, spread over the corners.
  void add_valid_corners(int k, V fy) {
    V v = valid(k);
    if (args_.pixel_grad) v *= load(pixel_grad_ + k * L);
    const V right = v * chains_.fraction[k], left = v - right;
    valid_corners_[kTopLeft] += (T(1) - fy) * left;
    valid_corners_[kTopRight] += (T(1) - fy) * right;
    valid_corners_[kBottomLeft] += fy * left;
    valid_corners_[kBottomRight] += fy * right;
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
        const V w = coefficient(k);
        largest = vmax(largest, vmax(w, -w));
      }
      largest = largest > V{} ? largest : broadcast(T(1));
    }
    const V scale = kMaxSteps * kMaxSteps * 2 * largest, inverse = T(1) / scale;
    kept.chain = chains_.row_chain(slot);
    kept.top = (T(1) - row_fraction_[slot]) * scale;
    kept.bottom = row_fraction_[slot] * scale;
    for (int k = 0; k < K; ++k) {
      const V w = coefficient(k) * inverse;
      kept.q[k] = w == V{} ? V{} : w / s[k];  // steps that are no pixel have no meaningful sum
      if (smoothing_ != T(0)) add_valid_corners(k, row_fraction_[slot]);
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

  // Every pixel with its own maximum, from the input rows.
  void direct_row(const Block<T>& block, V fy) {
    for (int k = 0; k < g_.columns.steps; ++k) direct_step(block, fy, k);
  }

  V logit(const Block<T>& block, int64_t c, V fy, int k) const {
    return direct_logit<T>(rows_, block, c, chains_.fraction[k], fy);
  }

  void direct_step(const Block<T>& block, V fy, int k) {
    V m = logit(block, 0, fy, k);
    for (int64_t c = 1; c < classes_; ++c) m = vmax(m, logit(block, c, fy, k));
    V s{}, smooth{};
    for (int64_t c = 0; c < classes_; ++c) {
      const V z = logit(block, c, fy, k), e = vexp(z - m);
      store(direct_ + c * L, e);
      s += e;
      if (smoothing_ != T(0)) smooth += weight_[c] * z;
    }
    const V lse = m + log_of_sum<T>(s);
    smooth = smooth_ * ((T)args_.weight_sum * lse - smooth);
    for (int l = 0; l < L; ++l) {
      if (k >= length_[l]) continue;
      const int32_t label = this->label(k, l);
      T value = T(0);
      if (label != classes_) {
        value = (T(1) - smoothing_) * weight_[label] * (lse[l] - logit(block, label, fy, k)[l]);
        if (smoothing_ != T(0)) value += smooth[l];
      }
      if (args_.pixel_loss) {
        write_pixel(k, l, value, lse[l]);
      } else if (!args_.pixel_grad) {
        loss_ += (double)value;
      }
    }
    if (want_gradient_) add_direct_gradient(fy, k, s);
  }

  void add_direct_gradient(V fy, int k, V s) {
    if (!any_direct_) memset(direct_gradient_, 0, classes_ * 4 * L * sizeof(T));
    any_direct_ = true;
    const V zero{}, w = coefficient(k), q = w == zero ? zero : w / s, f = chains_.fraction[k], f1 = T(1) - f,
                    counts = valid(k);
    const V top = T(1) - fy;
    if (smoothing_ != T(0)) add_valid_corners(k, fy);
    for (int64_t c = 0; c < classes_; ++c) {
      V p = counts == zero ? zero : q * load(direct_ + c * L);  // an ignored pixel's logits may be NaN
      for (int l = 0; l < L; ++l) {
        if (label(k, l) == c) {
          const T w_label = (T(1) - smoothing_) * weight_[c];
          p[l] -= args_.pixel_grad ? w_label * pixel_grad_[k * L + l] : w_label;
        }
      }
      const V left = f1 == zero ? zero : f1 * p, right = f == zero ? zero : f * p;
      T* out = direct_gradient_ + c * 4 * L;
      store(out, load(out) + (top == zero ? zero : top * left));
      store(out + L, load(out + L) + (top == zero ? zero : top * right));
      store(out + 2 * L, load(out + 2 * L) + (fy == zero ? zero : fy * left));
      store(out + 3 * L, load(out + 3 * L) + (fy == zero ? zero : fy * right));
    }
  }

  template <int K>
  FCN_NOINLINE void finish_tile(const Block<T>& block) {
    const T keep = T(1) - smoothing_;
    V linear{};
    for (int64_t c = 0; c < classes_; ++c) {
      V corners[4] = {};
      if (want_gradient_) sum_gradient<K>(c, corners);
      V h[4];
      if (counting_ ? take_counts(c, h) : take_onehot(c, h)) {
        const T* p = chains_.corner(c);
        const V a = load(p), d = load(p + L), da = load(p + 2 * L), dd = load(p + 3 * L);
        if (!args_.pixel_grad) linear += h[0] * a + h[1] * (a + d) + h[2] * (a + da) + h[3] * ((a + da) + (d + dd));
        for (int i = 0; i < 4; ++i) corners[i] -= keep * h[i];
      }
      if (!want_gradient_) continue;
      if (smoothing_ != T(0)) {
        for (int i = 0; i < 4; ++i) corners[i] -= smooth_ * weight_[c] * valid_corners_[i];
      }
      if (any_direct_) {
        for (int i = 0; i < 4; ++i) corners[i] += load(direct_gradient_ + (c * 4 + i) * L);
      }
      gradient_rows_.add(block, c, corners);
    }
    for (int i = 0; i < 4; ++i) store(onehot_ + (classes_ * 4 + i) * L, V{});
    for (int l = 0; l < L; ++l) counts_[classes_ * L + l] = 0;
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
  Block<T>* blocks_;
  int64_t block_count_;
  T *direct_gradient_, *direct_, *onehot_, *weight_;
  uint64_t* counts_;
  uint8_t* touched_;
  int32_t* labels_;
  int64_t n_, bad_label_;
  double loss_, weight_total_;
  T smoothing_, smooth_;
  bool want_gradient_, counting_, plain_, all_count_, any_direct_;
  V linear_[4], valid_corners_[4], sums_[kMaxBandRows * kMaxSteps], tile_loss_;
  Kept rows_kept_[kMaxBandRows];
  int kept_, slots_;
  int64_t first_pixel_, start_[L];  // of the band in the images of pixels; of the slot's lanes in the band
  int32_t length_[L];
  V row_fraction_[kMaxBandRows];
  T pixel_weight_[kMaxSteps * L], pixel_grad_[kMaxSteps * L];
  int32_t label_[kMaxSteps * L];
  const int32_t* row_labels_;
  Four columns_[kMaxSteps * L];
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
