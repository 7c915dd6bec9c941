// The cross-entropy of a tile's rows whose chains cannot be used (see chain.h): every pixel with its own maximum, from
// the input rows, one step of all lanes at a time.
#pragma once

#include "chain.h"
#include "cross_entropy_pixels.h"

namespace fcn {
namespace FCN_ISA {

template <typename T>
class DirectRows {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  DirectRows(const CrossEntropyArgs& args, const InputRows<T>& rows, const Chains<T>& chains, LossPixels<T>& pixels,
             Arena& arena)
      : args_(args),
        steps_(args.geometry->columns.steps),
        classes_(args.x.channels),
        rows_(rows),
        chains_(chains),
        pixels_(pixels) {
    gradient_ = arena.take<T>(classes_ * 4 * L);
    exponentials_ = arena.take<T>(classes_ * L);
  }

  void start_tile() { empty_ = true; }

  // The row of the pixels that were read and placed: writes their losses or adds them to `loss`, and keeps their
  // gradient.
  FCN_NOINLINE void add(const Block<T>& block, V fy, double* loss) {
    for (int k = 0; k < steps_; ++k) add_step(block, fy, k, loss);
  }

  // Adds the rows' gradient of class c, per corner.
  FCN_INLINE void take_gradient(int64_t c, V* corners) const {
    if (empty_) return;
    for (int i = 0; i < 4; ++i) corners[i] += load(gradient_ + (c * 4 + i) * L);
  }

 private:
  void add_step(const Block<T>& block, V fy, int k, double* loss) {
    const T smoothing = pixels_.smoothing;
    const InputRows<T>& rows = rows_;
    const V fx = chains_.fraction[k];
    const auto logit = [&](int64_t c) { return direct_logit<T>(rows, block, c, fx, fy); };
    V m = logit(0);
    for (int64_t c = 1; c < classes_; ++c) m = vmax(m, logit(c));
    V s{}, smooth{};
    for (int64_t c = 0; c < classes_; ++c) {
      const V z = logit(c), e = vexp(z - m);
      store(exponentials_ + c * L, e);
      s += e;
      if (smoothing != T(0)) smooth += pixels_.class_weight(c) * z;
    }
    const V lse = m + log_of_sum<T>(s);
    smooth = pixels_.smooth * ((T)args_.weight_sum * lse - smooth);
    for (int l = 0; l < L; ++l) {
      if (!pixels_.inside(k, l)) continue;
      const int32_t label = pixels_.label(k, l);
      T value = T(0);
      if (label != classes_) {
        value = (T(1) - smoothing) * pixels_.class_weight(label) * (lse[l] - logit(label)[l]);
        if (smoothing != T(0)) value += smooth[l];
      }
      if (args_.pixel_loss) {
        pixels_.write(k, l, value, lse[l]);
      } else if (!args_.pixel_grad) {
        *loss += (double)value;
      }
    }
    if (args_.gradient.data) add_gradient(fy, k, s);
  }

  // From the step's exponentials, whose sum is s.
  void add_gradient(V fy, int k, V s) {
    if (empty_) memset(gradient_, 0, classes_ * 4 * L * sizeof(T));
    empty_ = false;
    // A pixel of weight zero that counts has a gradient of NaN where the sum is NaN.
    const V zero{}, q = pixels_.coefficient(k) / s, counts = pixels_.valid(k);
    const V f = chains_.fraction[k], f1 = T(1) - f, top = T(1) - fy;
    for (int64_t c = 0; c < classes_; ++c) {
      V p = counts == zero ? zero : q * load(exponentials_ + c * L);  // an ignored pixel's logits may be NaN
      for (int l = 0; l < L; ++l) {
        if (pixels_.label(k, l) == c) {
          p[l] -= pixels_.times_grad((T(1) - pixels_.smoothing) * pixels_.class_weight(c), k, l);
        }
      }
      const V left = f1 == zero ? zero : f1 * p, right = f == zero ? zero : f * p;
      T* out = gradient_ + c * 4 * L;
      store(out, load(out) + (top == zero ? zero : top * left));
      store(out + L, load(out + L) + (top == zero ? zero : top * right));
      store(out + 2 * L, load(out + 2 * L) + (fy == zero ? zero : fy * left));
      store(out + 3 * L, load(out + 3 * L) + (fy == zero ? zero : fy * right));
    }
  }

  const CrossEntropyArgs& args_;
  const int steps_;
  const int64_t classes_;
  const InputRows<T>& rows_;
  const Chains<T>& chains_;
  LossPixels<T>& pixels_;
  T *gradient_, *exponentials_;  // [classes][corners][lanes] of the tile; [classes][lanes] of a step
  bool empty_;                   // no row of the tile has a gradient here
};

}  // namespace FCN_ISA
}  // namespace fcn
