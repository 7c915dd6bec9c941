// What the operators on scores share: units, and weights packed in the order of the products.
#include "scores.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename F>
auto with_plan(const ScoreArgs& args, F f) {
  return args.x.dtype == DType::kDouble ? f(ScorePlan<double>(args)) : f(ScorePlan<float>(args));
}

// Tiles of classes, groups of kGroup channels: a copy of runs of kGroup.
template <typename T, typename In>
void pack_tile(const ScorePlan<T>& plan, const In* weight, int64_t tile, T* packed) {
  const int64_t first = plan.tiles.begin(tile), rows = plan.tiles.size(tile);
  for (int64_t k0 = 0; k0 < plan.channels; k0 += plan.kDepth) {
    T* to = packed + plan.packed_at(tile, k0);
    const int64_t depth = plan.chunk_depth(k0);
    for (int64_t r = 0; r < rows; ++r) {
      const In* from = weight + (first + r) * plan.channels + k0;
      T* t = to + r * kGroup;
      int64_t k = 0;
      for (; k + kGroup <= depth; k += kGroup, t += rows * kGroup) {
        for (int i = 0; i < kGroup; ++i) t[i] = to_arithmetic(from[k + i]);
      }
      for (int i = 0; k + i < depth; ++i) t[i] = to_arithmetic(from[k + i]);
    }
  }
}

// Tiles of channels, one class after the other.
template <typename T, typename In>
void pack_transposed_tile(const ScorePlan<T>& plan, const In* weight, int64_t tile, T* packed) {
  const RowTiles tiles(plan.channels);
  const int64_t first = tiles.begin(tile), rows = tiles.size(tile);
  T* to = packed + first * plan.classes;
  for (int64_t c = 0; c < plan.classes; ++c, to += rows) {
    const In* from = weight + c * plan.channels + first;
    for (int64_t r = 0; r < rows; ++r) to[r] = to_arithmetic(from[r]);
  }
}

}  // namespace

int64_t score_units(const ScoreArgs& args) {
  return with_plan(args, [](const auto& plan) { return plan.units; });
}

int64_t score_blocks(const ScoreArgs& args) {
  return with_plan(args, [](const auto& plan) { return plan.blocks; });
}

int64_t packed_scores_size(const ScoreArgs& args) {
  return with_plan(args, [](const auto& plan) { return plan.packed_size(); });
}

int64_t pack_scores_units(const ScoreArgs& args) {
  return with_plan(args, [&](const auto& plan) {
    return (args.packed ? plan.tiles.count : 0) + (args.packed_transposed ? RowTiles(plan.channels).count : 0);
  });
}

void pack_scores(const ScoreArgs& args, int64_t unit) {
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    const ScorePlan<T> plan(args);
    const int64_t direct = args.packed ? plan.tiles.count : 0;
    if (unit < direct) {
      pack_tile(plan, (const In*)args.weight, unit, (T*)args.packed);
    } else {
      pack_transposed_tile(plan, (const In*)args.weight, unit - direct, (T*)args.packed_transposed);
    }
  });
}

}  // namespace FCN_ISA
}  // namespace fcn
