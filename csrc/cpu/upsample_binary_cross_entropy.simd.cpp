// Binary cross-entropy of upsampled logits, loss and gradient in one pass over the small input, plane by plane. With
// e = exp(-|z|), L = log(1 + e), target t and factor q of the positive pixels:
//   loss      ((1 - t) + q t) L + (z > 0 ? 1 - t : -q t) z
//   gradient  (1 - t) sigmoid(z) - q t sigmoid(-z), sigmoid(+-z) one of 1 / (1 + e) and e / (1 + e)
// Where q is 1 the L of a tile's pixels have no factors and share a logarithm: sum L = log(1 + u), 1 + u = prod(1 + e).
#include "labels.h"
#include "planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

// What is wanted of a pass over the pixels.
enum class Pass { kLoss, kLossAndGradient, kPixelLoss, kPixelGradient };

// How a tile is computed: as above with a shared logarithm, with one per pixel, or with infinities and NaN in the
// corners, whose products with zero do not count.
enum class Road { kShared, kWeighted, kDirect };

inline int64_t bytes_of(DType dtype) {
  return visit_dtype(dtype, [](auto zero) { return (int64_t)sizeof(zero); });
}

template <typename T>
class BinaryCrossEntropy {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;
  using I = IntVec<T>;
  using Int = typename Simd<T>::Int;

  struct MaskedBlock : PlaneBlock<T> {
    I valid[kMaxSteps], read_right[kMaxSteps];  // steps that are pixels; right taps whose weight is not zero
    MaskedBlock(const Geometry& g, int64_t begin) : PlaneBlock<T>(g, begin) {
      for (int k = 0; k < kMaxSteps; ++k) {
        for (int l = 0; l < L; ++l) valid[k][l] = k < this->length[l] ? -1 : 0;
        read_right[k] = this->fractions[k] != V{};
      }
    }
  };

 public:
  BinaryCrossEntropy(const BinaryCrossEntropyArgs& args, int64_t unit, void* scratch)
      : args_(args),
        g_(*args.geometry),
        unit_(unit),
        n_(unit / g_.unit_count / args.x.channels),
        c_(unit / g_.unit_count % args.x.channels),
        arena_(scratch),
        x_(plane_of(args.x, n_, c_, bytes_of(args.x.dtype))),
        gradient_(plane_of(args.gradient, n_, c_, sizeof(T))),
        rows_(x_, g_, arena_),
        gradient_rows_(gradient_, args.side, 1, g_, arena_) {
    blocks_ = arena_.take<MaskedBlock>(g_.columns.count / L);
    const int64_t pixels = g_.max_band_rows * g_.out_width;
    labels_ = arena_.take<Number<T>>(args.labels ? pixels : 0);
    probabilities_ = arena_.take<T>(args.labels || in_place() ? 0 : pixels);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run() {
    if (args_.pixel_loss) return run_pass<Pass::kPixelLoss>();
    if (args_.pixel_grad.data) return run_pass<Pass::kPixelGradient>();
    if (args_.gradient.data) return run_pass<Pass::kLossAndGradient>();
    run_pass<Pass::kLoss>();
  }

 private:
  static constexpr bool has_gradient(Pass pass) {
    return pass == Pass::kLossAndGradient || pass == Pass::kPixelGradient;
  }

  // Whether the target's rows are read where they stand.
  bool in_place() const {
    if (args_.labels || args_.target.stride_w != 1) return false;
    return (args_.target.dtype == DType::kDouble) == (sizeof(T) == sizeof(double));
  }

  template <Pass pass>
  void run_pass() {
    const Unit& unit = g_.units[unit_ % g_.unit_count];
    rows_.start(0);
    if (has_gradient(pass)) gradient_rows_.start(0, unit_, unit.side_row);
    const int64_t count = make_blocks(g_, blocks_);
    pos_weight_ = args_.pos_weight ? ((const T*)args_.pos_weight)[c_] : T(1);
    set_ignored();
    int64_t bad = -1;
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      const Band& band = g_.bands[b];
      bad = prepare_target(band);
      if (bad >= 0) break;
      rows_.move_to(band.index);
      if (has_gradient(pass)) gradient_rows_.move_to(band.index);
      for (int64_t i = 0; i < count; ++i) choose_road<pass>(band, blocks_[i]);
    }
    if (has_gradient(pass)) gradient_rows_.finish();
    args_.unit_loss[unit_] = loss_;
    args_.unit_count[unit_] = count_;
    args_.unit_bad_label[unit_] = bad;
  }

  // The number that marks a pixel that does not count, in what load_target loads; NaN, which equals nothing: none.
  void set_ignored() {
    ignored_ = (T)__builtin_nan("");
    if (args_.labels) {
      ignored_ = T(2);
    } else if (args_.ignores && !in_place()) {
      ignored_ = kMark;
    } else if (args_.ignores) {
      ignored_ = ignore_value();
    }
  }

  // ignore_index in the target's dtype.
  T ignore_value() const {
    return visit_dtype(args_.target.dtype, [&](auto v) {
      from_arithmetic((ArithmeticOf<decltype(v)>)args_.ignore_index, &v);
      return (T)to_arithmetic(v);
    });
  }

  const char* target_row(int64_t row, int64_t item_bytes) const {
    const Image& t = args_.target;
    return (const char*)t.data + (n_ * t.stride_n + c_ * t.stride_c + row * t.stride_h) * item_bytes;
  }

  // Brings a band of the target into scratch, unless it is read in place. Returns the place of a bad label, or -1.
  FCN_NOINLINE int64_t prepare_target(const Band& band) {
    band_begin_ = band.begin;
    if (in_place()) return -1;
    for (int64_t row = band.begin; row < band.end; ++row) {
      const int64_t at = (row - band.begin) * g_.out_width;
      if (!args_.labels) {
        visit_dtype(args_.target.dtype, [&](auto v) { this->convert_row(&v, row, probabilities_ + at); });
        continue;
      }
      static const int64_t bytes[] = {1, 2, 4, 8};
      const int64_t bad =
          convert_labels(args_.label_type, target_row(row, bytes[(int)args_.label_type]), 0, args_.target.stride_w,
                         g_.out_width, 2, args_.ignores, args_.ignore_index, (int32_t*)(labels_ + at));
      if (bad >= 0) return ((n_ * args_.x.channels + c_) * g_.out_height + row) * g_.out_width + bad;
    }
    return -1;
  }

  // Probabilities of another dtype or with a stride, those to ignore as kMark: rounding could make others equal to it.
  template <typename In>
  void convert_row(const In*, int64_t row, T* to) const {
    const In* from = (const In*)target_row(row, sizeof(In));
    In ignored;
    from_arithmetic((ArithmeticOf<In>)args_.ignore_index, &ignored);
    for (int64_t i = 0; i < g_.out_width; ++i) {
      const auto value = to_arithmetic(from[i * args_.target.stride_w]);
      to[i] = args_.ignores && value == to_arithmetic(ignored) ? kMark : (T)value;
    }
  }

  template <int K>
  FCN_NOINLINE void load_target(const MaskedBlock& block, int64_t row) {
    const int64_t at = (row - band_begin_) * g_.out_width;
    if (args_.labels) return load_steps<T, K>(block, labels_ + at, 1, target_);
    if (!in_place()) return load_steps<T, K>(block, probabilities_ + at, 1, target_);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (args_.target.dtype == DType::kHalf) {
        return load_steps<T, K>(block, (const Half*)target_row(row, sizeof(Half)), 1, target_);
      }
      if (args_.target.dtype == DType::kBFloat16) {
        return load_steps<T, K>(block, (const BFloat16*)target_row(row, sizeof(BFloat16)), 1, target_);
      }
    }
    load_steps<T, K>(block, (const T*)target_row(row, sizeof(T)), 1, target_);
  }

  template <int K>
  FCN_NOINLINE void load_grad(const MaskedBlock& block, int64_t row) {
    const Image& grad = args_.pixel_grad;
    const T* from = (const T*)grad.data + n_ * grad.stride_n + c_ * grad.stride_c + row * grad.stride_h;
    load_steps<T, K>(block, from, grad.stride_w, grad_);
  }

  template <int K>
  FCN_NOINLINE void store_losses(const MaskedBlock& block, int64_t row) {
    const int64_t at = ((n_ * args_.x.channels + c_) * g_.out_height + row) * g_.out_width;
    store_steps<T, K>(block, pixel_loss_, (T*)args_.pixel_loss + at, 1);
  }

  template <Pass pass>
  void choose_road(const Band& band, const MaskedBlock& block) {
    const V corners[4] = {block.load_left(rows_.top), block.load_right(rows_.top), block.load_left(rows_.bottom),
                          block.load_right(rows_.bottom)};
    const V check = ((corners[0] + corners[1]) + (corners[2] + corners[3])) * T(0);
    if (any(check != V{})) return tile<pass, Road::kDirect>(band, block, corners);
    if constexpr (pass == Pass::kLoss || pass == Pass::kLossAndGradient) {
      if (!args_.pos_weight) return tile<pass, Road::kShared>(band, block, corners);
    }
    tile<pass, Road::kWeighted>(band, block, corners);
  }

  template <Road road>
  static FCN_INLINE V interpolate(V a, V b, V fraction, V complement) {
    return road == Road::kDirect ? weigh<T>(a, b, fraction) : complement * a + fraction * b;
  }

  static FCN_INLINE V keep(V v, I mask) { return (V)((I)v & mask); }

  template <Pass pass, Road road>
  FCN_NOINLINE void tile(const Band& band, const MaskedBlock& block, const V* corners) {
    const int steps = g_.columns.steps;
    const T q = pos_weight_;
    const V zero{}, one = broadcast(T(1)), lowest = broadcast(ExpLimits<T>::lowest), ignored = broadcast(ignored_);
    V product = zero, linear = zero, counted = zero, gradient[4] = {};
    for (int64_t row = band.begin; row < band.end; ++row) {
      const T fy = (T)g_.row_fraction[row], gy = T(1) - fy;
      with_steps(steps, [&](auto k) {
        this->load_target<decltype(k)::value>(block, row);
        if (pass == Pass::kPixelGradient) this->load_grad<decltype(k)::value>(block, row);
      });
      const V above = interpolate<road>(corners[kTopLeft], corners[kBottomLeft], broadcast(fy), broadcast(gy));
      const V below = interpolate<road>(corners[kTopRight], corners[kBottomRight], broadcast(fy), broadcast(gy));
      V left = zero, right = zero;
      for (int k = 0; k < steps; ++k) {
        const V z = interpolate<road>(above, below, block.fractions[k], block.complements[k]);
        const I counts = (target_[k] != ignored) & block.valid[k], positive = z > zero;
        const V t = keep(target_[k], counts), complement = one - t, weighted = road == Road::kShared ? t : q * t;
        const V e = vexp_within(vmax(lowest, vmin(z, -z))), s = one / (one + e);
        if (pass == Pass::kLoss || pass == Pass::kLossAndGradient) counted += keep(one, counts);
        if (pass != Pass::kPixelGradient) {
          const V factor = positive ? complement : -weighted;
          V value = factor * z;
          if (road == Road::kDirect) value = factor == zero ? zero : value;
          if (road == Road::kShared) {
            const V counting = keep(e, counts);
            product += counting + counting * product;
          } else {
            const V both = complement + weighted, log = both * vlog1p<T>(e);
            value += road == Road::kDirect && any(both == zero) ? (both == zero ? zero : log) : log;
          }
          if (pass == Pass::kPixelLoss) {
            pixel_loss_[k] = keep(value, counts);
          } else {
            linear += keep(value, counts);
          }
        }
        if (has_gradient(pass)) {
          const V small = e * s;
          V g = complement * (positive ? s : small) - weighted * (positive ? small : s);
          if (pass == Pass::kPixelGradient) g *= grad_[k];
          g = keep(g, counts);
          left += block.complements[k] * g;
          right += keep(block.fractions[k] * g, block.read_right[k]);
        }
      }
      if (pass == Pass::kPixelLoss) {
        with_steps(steps, [&](auto k) { this->store_losses<decltype(k)::value>(block, row); });
      }
      if (has_gradient(pass)) {
        gradient[kTopLeft] += gy * left;
        gradient[kTopRight] += gy * right;
        if (fy != T(0)) {
          gradient[kBottomLeft] += fy * left;
          gradient[kBottomRight] += fy * right;
        }
      }
    }
    if (has_gradient(pass)) gradient_rows_.add(block, 0, gradient);
    if (pass == Pass::kLoss || pass == Pass::kLossAndGradient) {
      if (road == Road::kShared) linear += vlog1p<T>(product);
      for (int l = 0; l < block.lanes; ++l) {
        loss_ += (double)linear[l];
        count_ += (double)counted[l];
      }
    }
  }

  static constexpr T kMark = sizeof(T) == 4 ? T(-3.4028234e38f) : T(-1.7976931348623157e308);

  const BinaryCrossEntropyArgs& args_;
  const Geometry& g_;
  const int64_t unit_, n_, c_;
  Arena arena_;
  const Image x_, gradient_;
  InputRows<T> rows_;
  GradientRows<T> gradient_rows_;
  MaskedBlock* blocks_;
  Number<T>* labels_;
  T* probabilities_;
  int64_t band_begin_;
  T pos_weight_, ignored_;
  double loss_ = 0, count_ = 0;
  V target_[kMaxSteps], grad_[kMaxSteps], pixel_loss_[kMaxSteps];
};

}  // namespace

int64_t binary_cross_entropy_scratch(const BinaryCrossEntropyArgs& args) {
  return args.x.dtype == DType::kDouble ? BinaryCrossEntropy<double>(args, 0, nullptr).scratch_bytes()
                                        : BinaryCrossEntropy<float>(args, 0, nullptr).scratch_bytes();
}

void binary_cross_entropy(const BinaryCrossEntropyArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  if (args.x.dtype == DType::kDouble) {
    BinaryCrossEntropy<double>(args, unit, scratch).run();
  } else {
    BinaryCrossEntropy<float>(args, unit, scratch).run();
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
