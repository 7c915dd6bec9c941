// Cross-entropy of scores: loss and log-sum-exp of every pixel.
#include "score_loss.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename In>
class Losses {
 public:
  Losses(const ScoreCrossEntropyArgs& args, Arena& arena) : args_(args), scores_(args.score, arena) {}

  void run(int64_t unit) {
    const ScorePlan<T>& plan = scores_.plan;
    const int64_t end = plan.first_block(unit + 1);
    for (int64_t b = plan.first_block(unit); b < end; ++b) {
      scores_.compute(b, b + 1 < end ? b + 1 : b);
      PanelLoss<T> panel;
      int64_t bad = -1;
      for (int64_t j = 0; j < scores_.panel_count && bad < 0; ++j) {
        const PixelBlock part = scores_.part(j);
        const int64_t first = part.n * plan.pixels + part.begin;
        bad = panel.template compute<false>(args_.labels, scores_.panel(j), plan.classes, first, part.count);
        if (args_.pixel_loss) memcpy((T*)args_.pixel_loss + first, panel.loss, part.count * sizeof(T));
        memcpy((T*)args_.pixel_lse + first, panel.lse, part.count * sizeof(T));
      }
      args_.block_loss[b] = panel.sum;
      args_.block_bad_label[b] = bad;
    }
  }

 private:
  const ScoreCrossEntropyArgs& args_;
  Scores<T, In> scores_;
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
