// score_argmax on the CPU.
#include "score.h"

namespace fcn {
namespace {

Tensor score_argmax(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  ScoreCall call("score_argmax", x, weight, bias);
  const Tensor labels = empty_vector(x, {x.size(0), x.size(2), x.size(3)}, ScalarType::Long);
  if (labels.numel() == 0) return labels;
  call.pack(true, false);
  const ScoreArgmaxArgs args{call.args, static_cast<int64_t*>(labels.data_ptr())};
  const Kernels& k = kernels();
  for_each_unit(k.score_units(args.score), k.score_argmax_scratch(args),
                [&](int64_t unit, void* scratch) { k.score_argmax(args, unit, scratch); });
  return labels;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) { m.impl("score_argmax", TORCH_BOX(&fcn::score_argmax)); }
