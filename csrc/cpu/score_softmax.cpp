// score_softmax (and log-softmax) and its backward on the CPU.
#include "score.h"

namespace fcn {
namespace {

Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool log, const Tensor* given) {
  constexpr const char* op = "score_softmax";
  ScoreCall call(op, x, weight, bias);
  const Tensor out = image_or(op, given, x, call.args.classes, x.size(2), x.size(3));
  if (out.numel() == 0) return out;
  call.pack(true, false);
  const ScoreSoftmaxArgs args{call.args, joined_rows(image_of(op, out)), log};
  const Kernels& k = kernels();
  for_each_unit(k.score_units(args.score), k.score_softmax_scratch(args),
                [&](int64_t unit, void* scratch) { k.score_softmax(args, unit, scratch); });
  return out;
}

Tensor score_softmax(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool log) {
  return run(x, weight, bias, log, nullptr);
}

void score_softmax_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool log,
                       const Tensor& out) {
  run(x, weight, bias, log, &out);
}

std::tuple<Tensor, Tensor, Tensor> score_softmax_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                          const Tensor& output, bool log, bool need_x,
                                                          bool need_weight) {
  constexpr const char* op = "score_softmax_backward";
  ScoreCall call(op, x, weight, std::nullopt);
  for (const Tensor* t : {&grad, &output}) {
    check(t->dim() == 4 && t->size(0) == x.size(0) && t->size(1) == call.args.classes && t->size(2) == x.size(2) &&
              t->size(3) == x.size(3) && t->scalar_type() == x.scalar_type(),
          op, "grad and output must be [N, C, H, W] of x and weight in their dtype, got shape ", shape_of(*t));
  }
  ScoreGradientArgs args{};
  args.score = call.args;
  args.grad = joined_rows(image_of(op, grad));
  args.output = joined_rows(image_of(op, output));
  args.log = log;
  return score_gradients(call, args, x, need_x, need_weight);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("score_softmax", TORCH_BOX(&fcn::score_softmax));
  m.impl("score_softmax.out", TORCH_BOX(&fcn::score_softmax_out));
  m.impl("score_softmax_backward", TORCH_BOX(&fcn::score_softmax_backward));
}
