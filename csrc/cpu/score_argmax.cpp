// score_argmax on the CPU.
#include "score.h"

namespace fcn {
namespace {

constexpr const char* kName = "score_argmax";

Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, ScalarType dtype,
           const Tensor* out) {
  ScoreCall call(kName, x, weight, bias);
  const LabelType type = label_type_of(kName, "dtype", dtype);
  check_holds(kName, type, call.args.classes);
  const Tensor labels = vector_or(kName, out, x, {x.size(0), x.size(2), x.size(3)}, dtype);
  if (labels.numel() == 0) return labels;
  call.pack(true, false);
  const ScoreArgmaxArgs args{call.args, labels.data_ptr(), type};
  const Kernels& k = kernels();
  for_each_unit(k.score_units(args.score), k.score_argmax_scratch(args),
                [&](int64_t unit, void* scratch) { k.score_argmax(args, unit, scratch); });
  return labels;
}

Tensor score_argmax(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, ScalarType dtype) {
  return run(x, weight, bias, dtype, nullptr);
}

void score_argmax_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, ScalarType dtype,
                      const Tensor& out) {
  run(x, weight, bias, dtype, &out);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("score_argmax", TORCH_BOX(&fcn::score_argmax));
  m.impl("score_argmax.out", TORCH_BOX(&fcn::score_argmax_out));
}
