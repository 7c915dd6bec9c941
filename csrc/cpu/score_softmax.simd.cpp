// Softmax and log-softmax of scores.
#include "scores.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
void softmax_panel(T* z, int64_t classes, bool log) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  Normaliser<T> n = log ? normalise<false>(z, classes) : normalise<true>(z, classes);
  for (int v = 0; v < kPanelVectors; ++v) n.sum[v] = log ? log_of_sum<T>(n.sum[v]) : T(1) / n.sum[v];
  for (int64_t c = 0; c < classes; ++c) {
    for (int v = 0; v < kPanelVectors; ++v) {
      T* to = z + c * P + v * L;
      store(to, log ? (load(to) - n.maximum[v]) - n.sum[v] : load(to) * n.sum[v]);
    }
  }
}

template <typename T, typename In>
void run(const ScoreSoftmaxArgs& args, int64_t unit, Arena& arena) {
  Scores<T, In> scores(args.score, arena);
  if (unit < 0) return;
  const Image& out = args.output;
  const int64_t end = scores.plan.first_block(unit + 1);
  for (int64_t b = scores.plan.first_block(unit); b < end; ++b) {
    scores.compute(b, b + 1 < end ? b + 1 : b);
    for (int64_t j = 0; j < scores.panel_count; ++j) {
      T* z = scores.panel(j);
      softmax_panel(z, scores.plan.classes, args.log);
      for_each_run(out, scores.part(j), [&](int column, int64_t offset, int length) {
        unpack_panel((In*)out.data + offset, out.stride_c, out.stride_w, z + column, scores.plan.classes, length);
      });
    }
  }
}

}  // namespace

int64_t score_softmax_scratch(const ScoreSoftmaxArgs& args) {
  Arena arena(nullptr);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { run<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, -1, arena); });
  return arena.used;
}

void score_softmax(const ScoreSoftmaxArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  Arena arena(scratch);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { run<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, unit, arena); });
}

}  // namespace FCN_ISA
}  // namespace fcn
