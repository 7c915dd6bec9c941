// Cross-entropy of scores: loss, weight and log-sum-exp of every pixel.
#include "score_labels.h"
#include "scores.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename In>
class Losses {
  static constexpr int L = kLanes<T>, P = kPanel<T>;

 public:
  Losses(const ScoreCrossEntropyArgs& args, Arena& arena) : args_(args), scores_(args.score, arena) {}

  void run(int64_t unit) {
    int64_t bad = -1;
    loss_ = weight_ = 0;
    const int64_t end = scores_.plan.first_block(unit + 1);
    for (int64_t b = scores_.plan.first_block(unit); b < end && bad < 0; ++b) {
      scores_.compute(b, b + 1 < end ? b + 1 : b);
      for (int64_t j = 0; j < scores_.panel_count && bad < 0; ++j) bad = panel(j);
    }
    args_.unit_loss[unit] = loss_;
    args_.unit_weight[unit] = weight_;
    args_.unit_bad_label[unit] = bad;
  }

 private:
  // Returns the first bad label's pixel, or -1.
  int64_t panel(int64_t j) {
    const PixelBlock part = scores_.part(j);
    const int64_t first = part.n * scores_.plan.pixels + part.begin, classes = scores_.plan.classes;
    PanelLabels<T> labels;
    const int64_t bad = labels.read(args_.labels, classes, first, part.count);
    T* z = scores_.panel(j);
    const Normaliser<T> n = normalise<false>(z, classes);
    T maximum[P], log_sum[P], smooth[P];
    for (int v = 0; v < kPanelVectors; ++v) {
      const Vec<T> log_s = log_of_sum<T>(n.sum[v]);
      store(maximum + v * L, n.maximum[v]);
      store(log_sum + v * L, log_s);
      if (args_.labels.label_smoothing > 0) {
        Vec<T> sum{};
        for (int64_t c = 0; c < classes; ++c) {
          sum += weight_of<T>(args_.labels, c) * ((load(z + c * P + v * L) - n.maximum[v]) - log_s);
        }
        store(smooth + v * L, sum);
      }
    }
    const T smoothing = (T)args_.labels.label_smoothing;
    for (int i = 0; i < part.count; ++i) {
      T loss = 0;
      const int64_t y = labels.label[i];
      if (y >= 0) {
        const T w = weight_of<T>(args_.labels, y);
        loss = -(1 - smoothing) * w * ((z[y * P + i] - maximum[i]) - log_sum[i]);
        if (smoothing > 0) loss -= smoothing / (T)classes * smooth[i];
        loss_ += loss;
        weight_ += w;
      }
      if (args_.pixel_loss) ((T*)args_.pixel_loss)[first + i] = loss;
      ((T*)args_.pixel_lse)[first + i] = maximum[i] + log_sum[i];
    }
    return bad;
  }

  const ScoreCrossEntropyArgs& args_;
  Scores<T, In> scores_;
  double loss_, weight_;
};

}  // namespace

int64_t score_cross_entropy_scratch(const ScoreCrossEntropyArgs& args) {
  Arena arena(nullptr);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { Losses<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, arena); });
  return arena.used;
}

void score_cross_entropy(const ScoreCrossEntropyArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  Arena arena(scratch);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { Losses<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, arena).run(unit); });
}

}  // namespace FCN_ISA
}  // namespace fcn
