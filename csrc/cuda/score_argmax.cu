// score_argmax on CUDA: checks, allocation, launches.
#include "score_argmax.cuh"
#include "score_launch.cuh"

namespace fcn {
namespace {

constexpr const char* kName = "score_argmax";

Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, ScalarType dtype,
           const Tensor* out) {
  const ScoreInputs call(kName, x, weight, bias);
  const LabelKind kind = kind_of(kName, dtype, "dtype");
  check_holds(kName, kind, call.classes);
  const Tensor labels = vector_or(kName, out, x, {x.size(0), x.size(2), x.size(3)}, dtype);
  if (labels.numel() == 0) return labels;
  const Launch launch(kName, x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    start_scores<T>(launch, call, ArgmaxEpilogue<ArithmeticOf<T>>{labels.data_ptr(), kind, call.classes});
  });
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

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("score_argmax", TORCH_BOX(&fcn::score_argmax));
  m.impl("score_argmax.out", TORCH_BOX(&fcn::score_argmax_out));
}
