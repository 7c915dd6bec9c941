// The class with the largest score: the lowest index wins a tie, NaN wins over everything.
#include "scores.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename Label>
FCN_INLINE void argmax_panel(const T* z, int64_t classes, int count, Label* labels) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  for (int v = 0; v < kPanelVectors && v * L < count; ++v) {
    Vec<T> best = load(z + v * L);
    IntVec<T> index{};
    for (int64_t c = 1; c < classes; ++c) {
      const Vec<T> value = load(z + c * P + v * L);
      const IntVec<T> wins = ~(value <= best) & (best == best);
      best = wins ? value : best;
      index = wins ? IntVec<T>{} + (typename Simd<T>::Int)c : index;
    }
    for (int l = 0; l < L && v * L + l < count; ++l) labels[v * L + l] = (Label)index[l];
  }
}

template <typename T, typename In>
void run(const ScoreArgmaxArgs& args, int64_t unit, Arena& arena) {
  Scores<T, In> scores(args.score, arena);
  if (unit < 0) return;
  const int64_t end = scores.plan.first_block(unit + 1);
  for (int64_t b = scores.plan.first_block(unit); b < end; ++b) {
    scores.compute(b, b + 1 < end ? b + 1 : b);
    for (int64_t j = 0; j < scores.panel_count; ++j) {
      const PixelBlock part = scores.part(j);
      const int64_t first = part.n * scores.plan.pixels + part.begin;
      visit_label(args.label_type, [&](auto zero) {
        using Label = decltype(zero);
        argmax_panel(scores.panel(j), scores.plan.classes, (int)part.count, (Label*)args.labels + first);
      });
    }
  }
}

}  // namespace

int64_t score_argmax_scratch(const ScoreArgmaxArgs& args) {
  Arena arena(nullptr);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { run<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, -1, arena); });
  return arena.used;
}

void score_argmax(const ScoreArgmaxArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  Arena arena(scratch);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { run<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, unit, arena); });
}

}  // namespace FCN_ISA
}  // namespace fcn
