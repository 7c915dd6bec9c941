// Cross-entropy of upsampled logits, loss and gradient in one pass over the small input (see ../softmax.h for the
// chains). Per tile: corners relative to the tile's maximum M; per output row of it:
//   seeds      e_0, r for every class                              two exponentials per class and segment
//   sums       S_k = sum_c e_0 r^k                                 K multiplications and additions
//   pixels     log S_k, q_k = weight / S_k, one-hot sums
//   gradient   sum_k q_k r^k and sum_k q_k f_k r^k by Horner       2K multiply-adds, spread over the four corners
// The linear part of the loss, sum over pixels of w z_label, is the inner product of the corners with the one-hot sums.
#include "../softmax.h"
#include "math.h"
#include "tile.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
class CrossEntropy {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  typedef T Corners4 __attribute__((vector_size(4 * sizeof(T))));

 public:
  CrossEntropy(const CrossEntropyArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), classes_(args.x.channels), arena_(scratch) {
    corners_ = arena_.take<T>(classes_ * 4 * L);
    raw_ = arena_.take<T>(classes_ * 4 * L);
    chain_ = arena_.take<T>(classes_ * 2 * L);
    gradient_ = arena_.take<T>(classes_ * 4 * L);
    onehot_ = arena_.take<T>((classes_ + 1) * 4 * L);
    touched_ = arena_.take<uint8_t>(classes_ + 1);
    weight_ = arena_.take<T>(classes_ + 1);
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
      for (int64_t s = 0; s < g_.columns.count; s += L) {
        if (g_.columns.length[s] == 0 && s > 0) break;  // padding only
        tile(band, s);
      }
    }
    if (args_.unit_loss) {
      args_.unit_loss[unit_index] = loss_;
      args_.unit_weight[unit_index] = weight_total_;
    }
    args_.unit_bad_label[unit_index] = bad_label_;
  }

 private:
  void prepare(const Unit& unit, int64_t unit_index) {
    side_row_ = unit.side_row;
    side_ = args_.side ? (T*)args_.side + unit_index * classes_ * g_.in_width : nullptr;
    if (side_ && side_row_ >= 0) memset(side_, 0, classes_ * g_.in_width * sizeof(T));
    for (int64_t c = 0; c < classes_; ++c) weight_[c] = args_.weight ? ((const T*)args_.weight)[c] : T(1);
    weight_[classes_] = T(0);  // the class of ignored pixels
    memset(onehot_, 0, (classes_ + 1) * 4 * L * sizeof(T));
    memset(touched_, 0, classes_ + 1);
    loss_ = weight_total_ = 0;
    bad_label_ = -1;
    smoothing_ = (T)args_.label_smoothing;
    smooth_ = smoothing_ / (T)classes_;
    step_ = (T)g_.columns.step;
    want_gradient_ = args_.gradient.data != nullptr;
  }

  // Labels of a band as int32, ignored ones as the extra class C.
  template <typename Label>
  void convert_labels_as(const Band& band) {
    const int64_t begin = (n_ * g_.out_height + band.begin) * g_.out_width;
    const int64_t count = (band.end - band.begin) * g_.out_width;
    const Label* target = (const Label*)args_.target + begin;
    const int64_t ignore = args_.ignore_index;
    const int32_t classes = (int32_t)classes_;
    int bad = 0;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t label = (int64_t)target[p];
      const bool ignored = label == ignore, inside = (uint64_t)label < (uint64_t)classes;
      bad |= !(ignored | inside);
      labels_[p] = ignored ? classes : (int32_t)label;
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
    switch (args_.target_type) {
      case LabelType::kUInt8:
        return convert_labels_as<uint8_t>(band);
      case LabelType::kInt16:
        return convert_labels_as<int16_t>(band);
      case LabelType::kInt32:
        return convert_labels_as<int32_t>(band);
      case LabelType::kInt64:
        return convert_labels_as<int64_t>(band);
    }
  }

  void tile(const Band& band, int64_t segment) {
    const Block<T> block(g_, segment);
    const int64_t y0 = resolve(band.index, g_.in_height, g_.clamp);
    const int64_t y1 = resolve(band.index + 1, g_.in_height, g_.clamp);
    load_corners<T>(args_.x, n_, y0, y1, block, corners_);
    const bool finite = make_relative();
    raw_loaded_ = false;
    if (want_gradient_) memset(gradient_, 0, classes_ * 4 * L * sizeof(T));
    for (V& v : valid_corners_) v = V{};
    for (int k = 0; k < g_.columns.steps; ++k) {
      fraction_[k] = block.fraction + T(k) * step_;
      for (int l = 0; l < L; ++l) {
        const T f = fraction_[k][l];
        columns_[k * L + l] = Corners4{T(1) - f, f, T(1) - f, f};
      }
    }
    for (int64_t row = band.begin; row < band.end; ++row) {
      const T fy = (T)g_.row_fraction[row];
      read_labels(block, band, row);
      if (!finite || !chain_row(block, row, fy)) {
        if (!raw_loaded_) load_corners<T>(args_.x, n_, y0, y1, block, raw_);
        raw_loaded_ = true;
        direct_row(block, row, fy);
      } else if (!args_.pixel_loss) {
        add_onehot(fy);
      }
    }
    finish_tile(block, y0, y1);
  }

  // M per lane, corners as (a, d, vertical difference of a, of d) relative to M. False where one of them is not finite.
  bool make_relative() {
    V m = load(corners_);
    for (int64_t i = 0; i < classes_ * 4; ++i) m = vmax(m, load(corners_ + i * L));
    V check{}, linear[4] = {};
    const bool smooth = smoothing_ != T(0);
    for (int64_t c = 0; c < classes_; ++c) {
      T* p = corners_ + c * 4 * L;
      const V tl = load(p) - m, tr = load(p + L) - m, bl = load(p + 2 * L) - m, br = load(p + 3 * L) - m;
      const V d = tr - tl, da = bl - tl, dd = (br - bl) - d;
      check += (tl + d + da + dd) * T(0);
      store(p, tl);
      store(p + L, d);
      store(p + 2 * L, da);
      store(p + 3 * L, dd);
      if (smooth) {
        linear[0] += weight_[c] * tl;
        linear[1] += weight_[c] * d;
        linear[2] += weight_[c] * da;
        linear[3] += weight_[c] * dd;
      }
    }
    maximum_ = m;
    for (int i = 0; i < 4; ++i) linear_[i] = linear[i];
    return !any(check != V{});
  }

  // The row's labels and weights, per step and lane; lanes and steps that are no pixel get the ignored class.
  void read_labels(const Block<T>& block, const Band& band, int64_t row) {
    const int32_t* labels = labels_ + (row - band.begin) * g_.out_width;
    const int64_t base = (n_ * g_.out_height + row) * g_.out_width;
    const T* pixel_grad = (const T*)args_.pixel_grad;
    V total{};
    for (int k = 0; k < g_.columns.steps; ++k) {
      for (int l = 0; l < L; ++l) {
        const bool pixel = k < block.length[l];
        const int32_t label = pixel ? labels[block.first[l] + k] : (int32_t)classes_;
        label_[k * L + l] = label;
        pixel_weight_[k * L + l] = weight_[label];
      }
      total += load(pixel_weight_ + k * L);
    }
    for (int l = 0; l < L; ++l) weight_total_ += (double)total[l];
    if (pixel_grad) {
      for (int k = 0; k < g_.columns.steps; ++k) {
        for (int l = 0; l < L; ++l) {
          pixel_grad_[k * L + l] = k < block.length[l] ? pixel_grad[base + block.first[l] + k] : T(0);
        }
      }
    }
  }

  V valid(int k) const {
    V v;
    for (int l = 0; l < L; ++l) v[l] = label_[k * L + l] == (int32_t)classes_ ? T(0) : T(1);
    return v;
  }

  // Adds weight * bilinear weight to the label's corners.
  void add_onehot(T fy) {
    const Corners4 row{T(1) - fy, T(1) - fy, fy, fy};
    for (int i = 0; i < g_.columns.steps * L; ++i) {
      const T w = args_.pixel_grad ? pixel_weight_[i] * pixel_grad_[i] : pixel_weight_[i];
      T* p = onehot_ + ((int64_t)label_[i] * L + i % L) * 4;
      Corners4 sum;
      memcpy(&sum, p, sizeof(sum));
      sum += w * (row * columns_[i]);
      memcpy(p, &sum, sizeof(sum));
      touched_[label_[i]] = 1;
    }
  }

  bool chain_row(const Block<T>& block, int64_t row, T fy) {
    switch (g_.columns.steps) {
      case 1:
        return chain_row_of<1>(block, row, fy);
      case 2:
        return chain_row_of<2>(block, row, fy);
      case 3:
        return chain_row_of<3>(block, row, fy);
      case 4:
        return chain_row_of<4>(block, row, fy);
      case 5:
        return chain_row_of<5>(block, row, fy);
      case 6:
        return chain_row_of<6>(block, row, fy);
      case 7:
        return chain_row_of<7>(block, row, fy);
      default:
        return chain_row_of<8>(block, row, fy);
    }
  }

  // False, with nothing changed, where the chains have lost too much.
  template <int K>
  bool chain_row_of(const Block<T>& block, int64_t row, T fy) {
    const V needed = seeds<K>(block.fraction, fy) + (ChainLimits<T>::kLowest - ChainLimits<T>::kLogLostTolerance);
    V s[K] = {}, log_s[K];
    if (args_.saved_lse) {
      const T* lse = (const T*)args_.saved_lse + (n_ * g_.out_height + row) * g_.out_width;
      for (int k = 0; k < K; ++k) {
        for (int l = 0; l < L; ++l) log_s[k][l] = k < block.length[l] ? lse[block.first[l] + k] - maximum_[l] : T(0);
      }
    } else {
      sums<K>(s);
      for (int k = 0; k < K; ++k) log_s[k] = vlog(s[k]);
    }
    V lowest = log_s[0];
    for (int k = 0; k < K; ++k) {
      V v = log_s[k];
      if (!block.full) {
        for (int l = 0; l < L; ++l) v[l] = k < block.length[l] ? v[l] : T(0);
        log_s[k] = v;
      }
      lowest = vmin(lowest, v);
    }
    if (any(!(lowest - log_classes() >= needed))) return false;
    if (args_.saved_lse) {
      for (int k = 0; k < K; ++k) s[k] = vexp(log_s[k]);
    }
    if (!args_.pixel_grad) add_loss<K>(block, row, fy, log_s);
    if (want_gradient_) add_gradient<K>(block, fy, s);
    return true;
  }

  V log_classes() const { return vlog(broadcast((T)classes_)); }

  // e_0 and r of every class; returns the largest rise of a class that starts below the smallest normal number.
  template <int K>
  V seeds(V fraction, T fy) {
    V rise{};
    for (int64_t c = 0; c < classes_; ++c) {
      const T* p = corners_ + c * 4 * L;
      const V a = load(p) + fy * load(p + 2 * L), d = load(p + L) + fy * load(p + 3 * L);
      const V start = a + fraction * d;
      store(chain_ + c * 2 * L, vexp(start));
      if (K > 1) store(chain_ + (c * 2 + 1) * L, vexp(d * step_));
      rise = start < ChainLimits<T>::kLowest ? vmax(rise, d) : rise;
    }
    return rise;
  }

  template <int K>
  void sums(V* s) {
    V sum[K];
    for (int k = 0; k < K; ++k) sum[k] = V{};
    for (int64_t c = 0; c < classes_; ++c) {
      V e = load(chain_ + c * 2 * L);
      const V r = load(chain_ + (c * 2 + 1) * L);
      sum[0] += e;
      for (int k = 1; k < K; ++k) {
        e = e * r;
        sum[k] += e;
      }
    }
    for (int k = 0; k < K; ++k) s[k] = sum[k];
  }

  // Value of the linear function with corners p (a, d, da, dd) at step k of a row.
  V linear_at(const V* p, T fy, int k) const { return p[0] + fy * p[2] + fraction_[k] * (p[1] + fy * p[3]); }

  template <int K>
  void add_loss(const Block<T>& block, int64_t row, T fy, const V* log_s) {
    if (args_.pixel_loss) {
      for (int k = 0; k < K; ++k) {
        const V smooth = smoothing_ != T(0) ? smooth_ * ((T)args_.weight_sum * log_s[k] - linear_at(linear_, fy, k)) : V{};
        for (int l = 0; l < L; ++l) {
          if (k >= block.length[l]) continue;
          const int32_t label = label_[k * L + l];
          T value = T(0);
          if (label != classes_) {
            const T* p = corners_ + (int64_t)label * 4 * L + l;
            const T f = fraction_[k][l];
            const T z = p[0] + fy * p[2 * L] + f * (p[L] + fy * p[3 * L]);
            value = (T(1) - smoothing_) * weight_[label] * (log_s[k][l] - z) + smooth[l];
          }
          write_pixel(block, row, k, l, value, log_s[k][l] + maximum_[l]);
        }
      }
      return;
    }
    V loss{};
    for (int k = 0; k < K; ++k) {
      loss += (T(1) - smoothing_) * load(pixel_weight_ + k * L) * log_s[k];
      if (smoothing_ != T(0)) {
        loss += valid(k) * smooth_ * ((T)args_.weight_sum * log_s[k] - linear_at(linear_, fy, k));
      }
    }
    for (int l = 0; l < L; ++l) loss_ += (double)loss[l];
  }

  void write_pixel(const Block<T>& block, int64_t row, int k, int l, T loss, T lse) {
    const int64_t p = (n_ * g_.out_height + row) * g_.out_width + block.first[l] + k;
    ((T*)args_.pixel_loss)[p] = loss;
    if (args_.pixel_lse) ((T*)args_.pixel_lse)[p] = lse;
  }

  // d loss / d z_c = q p_c - (one-hot and smoothing constants), q = (1 - smoothing) w + smoothing / C sum(w).
  V coefficient(int k) const {
    V q = (T(1) - smoothing_) * load(pixel_weight_ + k * L);
    if (smoothing_ != T(0)) q += smooth_ * (T)args_.weight_sum * valid(k);
    if (args_.pixel_grad) q *= load(pixel_grad_ + k * L);
    return q;
  }

  // The smoothing's constant part, -smoothing / C w_c for every pixel that counts, spread over the corners.
  void add_valid_corners(int k, T fy) {
    V v = valid(k);
    if (args_.pixel_grad) v *= load(pixel_grad_ + k * L);
    const V right = v * fraction_[k], left = v - right;
    valid_corners_[kTopLeft] += (T(1) - fy) * left;
    valid_corners_[kTopRight] += (T(1) - fy) * right;
    valid_corners_[kBottomLeft] += fy * left;
    valid_corners_[kBottomRight] += fy * right;
  }

  template <int K>
  void add_gradient(const Block<T>& block, T fy, const V* s) {
    (void)block;
    V q[K], qf[K];
    for (int k = 0; k < K; ++k) {
      const V w = coefficient(k);
      q[k] = w == V{} ? V{} : w / s[k];  // steps that are no pixel have no meaningful sum
      qf[k] = q[k] * fraction_[k];
      if (smoothing_ != T(0)) add_valid_corners(k, fy);
    }
    const T top = T(1) - fy;
    for (int64_t c = 0; c < classes_; ++c) {
      const V e = load(chain_ + c * 2 * L), r = load(chain_ + (c * 2 + 1) * L);
      V sum = q[K - 1], right = qf[K - 1];
      for (int k = K - 2; k >= 0; --k) {
        sum = sum * r + q[k];
        right = right * r + qf[k];
      }
      right = right * e;
      const V left = sum * e - right;
      T* p = gradient_ + c * 4 * L;
      store(p, load(p) + top * left);
      store(p + L, load(p + L) + top * right);
      store(p + 2 * L, load(p + 2 * L) + fy * left);
      store(p + 3 * L, load(p + 3 * L) + fy * right);
    }
  }

  // Every pixel with its own maximum, from the raw corners.
  void direct_row(const Block<T>& block, int64_t row, T fy) {
    for (int k = 0; k < g_.columns.steps; ++k) direct_step(block, row, fy, k);
  }

  V logit(int64_t c, T fy, int k) const {
    return weigh_corners<T>(raw_ + c * 4 * L, fraction_[k], broadcast(fy));
  }

  void direct_step(const Block<T>& block, int64_t row, T fy, int k) {
    V m = logit(0, fy, k);
    for (int64_t c = 1; c < classes_; ++c) m = vmax(m, logit(c, fy, k));
    V s{}, smooth{};
    for (int64_t c = 0; c < classes_; ++c) {
      const V z = logit(c, fy, k), e = vexp(z - m);
      store(chain_ + c * 2 * L, e);
      s += e;
      if (smoothing_ != T(0)) smooth += weight_[c] * z;
    }
    const V log_s = s == s ? vlog(s) : s;
    const V lse = m + log_s;
    smooth = smooth_ * ((T)args_.weight_sum * lse - smooth);
    for (int l = 0; l < L; ++l) {
      if (k >= block.length[l]) continue;
      const int32_t label = label_[k * L + l];
      T value = T(0);
      if (label != classes_) {
        value = (T(1) - smoothing_) * weight_[label] * (lse[l] - logit(label, fy, k)[l]);
        if (smoothing_ != T(0)) value += smooth[l];
      }
      if (args_.pixel_loss) {
        write_pixel(block, row, k, l, value, lse[l]);
      } else if (!args_.pixel_grad) {
        loss_ += (double)value;
      }
    }
    if (want_gradient_) direct_gradient(fy, k, s);
  }

  void direct_gradient(T fy, int k, V s) {
    const V zero{}, w = coefficient(k), q = w == zero ? zero : w / s, f = fraction_[k], f1 = T(1) - f;
    const T top = T(1) - fy;
    if (smoothing_ != T(0)) add_valid_corners(k, fy);
    for (int64_t c = 0; c < classes_; ++c) {
      V p = q * load(chain_ + c * 2 * L);
      for (int l = 0; l < L; ++l) {
        if (label_[k * L + l] == c) {
          const T w_label = (T(1) - smoothing_) * weight_[c];
          p[l] -= args_.pixel_grad ? w_label * pixel_grad_[k * L + l] : w_label;
        }
      }
      const V left = f1 == zero ? zero : f1 * p, right = f == zero ? zero : f * p;
      T* out = gradient_ + c * 4 * L;
      if (top != T(0)) {
        store(out, load(out) + top * left);
        store(out + L, load(out + L) + top * right);
      }
      if (fy != T(0)) {
        store(out + 2 * L, load(out + 2 * L) + fy * left);
        store(out + 3 * L, load(out + 3 * L) + fy * right);
      }
    }
  }

  void finish_tile(const Block<T>& block, int64_t y0, int64_t y1) {
    const T keep = T(1) - smoothing_;
    V linear{};
    for (int64_t c = 0; c < classes_; ++c) {
      T* gradient = gradient_ + c * 4 * L;
      if (touched_[c]) {
        T transposed[4 * L];
        T* onehot = onehot_ + c * 4 * L;
        for (int l = 0; l < L; ++l) {
          for (int i = 0; i < 4; ++i) transposed[i * L + l] = onehot[l * 4 + i];
        }
        memset(onehot, 0, 4 * L * sizeof(T));
        touched_[c] = 0;
        const T* p = corners_ + c * 4 * L;
        const V a = load(p), d = load(p + L), da = load(p + 2 * L), dd = load(p + 3 * L);
        const V h[4] = {load(transposed), load(transposed + L), load(transposed + 2 * L), load(transposed + 3 * L)};
        if (!args_.pixel_grad) linear += h[0] * a + h[1] * (a + d) + h[2] * (a + da) + h[3] * ((a + da) + (d + dd));
        if (want_gradient_) {
          for (int i = 0; i < 4; ++i) store(gradient + i * L, load(gradient + i * L) - keep * h[i]);
        }
      }
      if (want_gradient_) {
        if (smoothing_ != T(0)) {
          const T w = smooth_ * weight_[c];
          for (int i = 0; i < 4; ++i) store(gradient + i * L, load(gradient + i * L) - w * valid_corners_[i]);
        }
        flush(block, c, y0, gradient);
        flush(block, c, y1, gradient + 2 * L);
      }
    }
    memset(onehot_ + classes_ * 4 * L, 0, 4 * L * sizeof(T));
    for (int l = 0; l < L; ++l) loss_ -= (double)(keep * linear[l]);
  }

  void flush(const Block<T>& block, int64_t c, int64_t y, const T* gradient) {
    if (y < 0) return;
    const Image& out = args_.gradient;
    const bool side = y == side_row_;
    T* row = side ? side_ + c * g_.in_width : (T*)out.data + n_ * out.stride_n + c * out.stride_c + y * out.stride_h;
    const int64_t stride = side ? 1 : out.stride_w;
    const bool contiguous = block.contiguous && stride == 1;
    add_lanes(row, block.left, stride, contiguous, load(gradient));
    add_lanes(row, block.right, stride, contiguous, load(gradient + L));
  }

  const CrossEntropyArgs& args_;
  const Geometry& g_;
  const int64_t classes_;
  Arena arena_;
  T *corners_, *raw_, *chain_, *gradient_, *onehot_, *weight_;
  uint8_t* touched_;
  int32_t* labels_;
  int64_t n_, side_row_, bad_label_;
  T* side_;
  double loss_, weight_total_;
  T smoothing_, smooth_, step_;
  bool want_gradient_, raw_loaded_;
  V maximum_, linear_[4], valid_corners_[4], fraction_[kMaxSteps];
  T pixel_weight_[kMaxSteps * L], pixel_grad_[kMaxSteps * L];
  int32_t label_[kMaxSteps * L];
  Corners4 columns_[kMaxSteps * L];
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
