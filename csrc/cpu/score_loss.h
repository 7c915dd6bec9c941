// The cross-entropy of a panel of scores.
#pragma once

#include "score_labels.h"
#include "scores.h"

namespace fcn {
namespace FCN_ISA {

// Losses and log-sum-exps of a panel's pixels, and the sum of the losses.
template <typename T>
struct PanelLoss {
  static constexpr int L = kLanes<T>, P = kPanel<T>;
  PanelLabels<T> labels;
  T loss[P], lse[P];
  T exp_sum[P];  // with Keep
  double sum = 0;

  // z: the panel's scores [C][P]; `pixel`: its first pixel in the target. Returns the first bad label's pixel, or -1.
  // With Keep, exp(z - maximum) takes the place of z (not for label smoothing, which reads z again).
  template <bool Keep>
  FCN_INLINE int64_t compute(const LabelArgs& args, T* z, int64_t classes, int64_t pixel, int64_t count) {
    const int64_t bad = labels.read(args, classes, pixel, count);
    T own[P], maximum[P], log_sum[P], smooth[P];
    for (int i = 0; i < count; ++i) own[i] = labels.label[i] < 0 ? T(0) : z[labels.label[i] * P + i];
    const Normaliser<T> n = normalise<Keep>(z, classes);
    for (int v = 0; v < kPanelVectors; ++v) {
      const Vec<T> log_s = log_of_sum<T>(n.sum[v]);
      if (Keep) store(exp_sum + v * L, n.sum[v]);
      store(maximum + v * L, n.maximum[v]);
      store(log_sum + v * L, log_s);
      store(lse + v * L, n.maximum[v] + log_s);
      if (!Keep && args.label_smoothing > 0) {
        Vec<T> total{};
        for (int64_t c = 0; c < classes; ++c) {
          total += weight_of<T>(args, c) * ((load(z + c * P + v * L) - n.maximum[v]) - log_s);
        }
        store(smooth + v * L, total);
      }
    }
    const T smoothing = (T)args.label_smoothing;
    for (int i = 0; i < count; ++i) {
      const int64_t y = labels.label[i];
      loss[i] = 0;
      if (y < 0) continue;
      loss[i] = -(1 - smoothing) * weight_of<T>(args, y) * ((own[i] - maximum[i]) - log_sum[i]);
      if (!Keep && smoothing > 0) loss[i] -= smoothing / (T)classes * smooth[i];
      sum += loss[i];
    }
    return bad;
  }
};

}  // namespace FCN_ISA
}  // namespace fcn
