// Softmax and log-softmax of upsampled logits: the chains of chain.h, then one multiplication per step and class
// (softmax), or the logit's own linear form minus log S_k (log-softmax). The output is written once, never read.
#include "chain.h"
#include "steps.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename Out>
class Softmax {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  Softmax(const SoftmaxArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), classes_(args.x.channels), arena_(scratch), rows_(args.x, g_, arena_),
        chains_(classes_, g_, arena_) {}

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit_index) {
    const int64_t n = unit_index / g_.unit_count;
    const Unit& unit = g_.units[unit_index % g_.unit_count];
    image_ = (Out*)args_.output.data + n * args_.output.stride_n;
    rows_.start(n);
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      const Band& band = g_.bands[b];
      rows_.move_to(band.index);
      for (int64_t s = 0; s < g_.columns.count; s += L) {
        if (g_.columns.length[s] == 0) break;  // padding only
        tile(band, Block<T>(g_, s));
      }
    }
  }

 private:
  void tile(const Band& band, const Block<T>& block) {
    const bool finite = chains_.start_tile(rows_, block);
    for (int64_t row = band.begin; row < band.end; ++row) {
      with_steps(g_.columns.steps, [&](auto steps) { this->compute_row<steps.value>(block, row, finite); });
    }
  }

  Out* out_row(int64_t c, int64_t row) const {
    return image_ + c * args_.output.stride_c + row * args_.output.stride_h;
  }

  template <int K>
  FCN_NOINLINE void compute_row(const Block<T>& block, int64_t row, bool finite) {
    const T fy = (T)g_.row_fraction[row];
    V s[K], log_s[K];
    if (finite) {
      const V needed = chains_.template seeds<K>(fy);
      chains_.template sums<K>(s);
      finite = chains_.template log_sums<K>(block, needed, s, log_s);
    }
    if (!finite) return direct_row<K>(block, row, fy);
    for (int k = 0; k < K; ++k) s[k] = T(1) / s[k];
    for (int64_t c = 0; c < classes_; ++c) {
      V v[K];
      if (args_.log) {
        const V a = chains_.level(c, fy), d = chains_.slope(c, fy);
        for (int k = 0; k < K; ++k) v[k] = (a + chains_.fraction[k] * d) - log_s[k];
      } else {
        V e = chains_.seed(c);
        const V r = K > 1 ? chains_.ratio(c) : e;
        for (int k = 0; k < K; ++k) {
          v[k] = e * s[k];
          e = e * r;
        }
      }
      store_steps<T, K>(block, v, out_row(c, row), args_.output.stride_w);
    }
  }

  // Every pixel with its own maximum, from the input rows.
  template <int K>
  void direct_row(const Block<T>& block, int64_t row, T fy) {
    V m[K], s[K], log_s[K];
    for (int k = 0; k < K; ++k) {
      m[k] = logit(block, 0, k, fy);
      for (int64_t c = 1; c < classes_; ++c) m[k] = vmax(m[k], logit(block, c, k, fy));
      s[k] = V{};
      for (int64_t c = 0; c < classes_; ++c) s[k] += vexp(logit(block, c, k, fy) - m[k]);
      log_s[k] = log_of_sum<T>(s[k]);
    }
    for (int64_t c = 0; c < classes_; ++c) {
      V v[K];
      for (int k = 0; k < K; ++k) {
        const V z = logit(block, c, k, fy) - m[k];
        v[k] = args_.log ? z - log_s[k] : vexp(z) / s[k];
      }
      store_steps<T, K>(block, v, out_row(c, row), args_.output.stride_w);
    }
  }

  V logit(const Block<T>& block, int64_t c, int k, T fy) const {
    return direct_logit<T>(rows_, block, c, chains_.fraction[k], fy);
  }

  const SoftmaxArgs& args_;
  const Geometry& g_;
  const int64_t classes_;
  Arena arena_;
  InputRows<T> rows_;
  Chains<T> chains_;
  Out* image_;
};

}  // namespace

int64_t softmax_scratch(const SoftmaxArgs& args) {
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using Out = decltype(zero);
    return Softmax<ArithmeticOf<Out>, Out>(args, nullptr).scratch_bytes();
  });
}

void softmax(const SoftmaxArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  visit_dtype(args.x.dtype, [&](auto zero) {
    using Out = decltype(zero);
    Softmax<ArithmeticOf<Out>, Out>(args, scratch).run(unit);
  });
}

}  // namespace FCN_ISA
}  // namespace fcn
