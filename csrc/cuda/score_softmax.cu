// score_softmax (and log-softmax) and its backward on CUDA: checks, allocation, launches.
#include "score_launch.cuh"
#include "score_softmax.cuh"

namespace fcn {
namespace {

Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool log, const Tensor* given) {
  constexpr const char* op = "score_softmax";
  const ScoreInputs call(op, x, weight, bias);
  const Tensor y = image_or(op, given, x, call.classes, x.size(2), x.size(3));
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Flat flat(y);
    start_scores<T>(launch, call,
                    SoftmaxEpilogue<T>{static_cast<T*>(y.data_ptr()), flat.stride_n, flat.stride_c, flat.stride_p,
                                       call.classes, log});
  });
  return y;
}

Tensor score_softmax(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool log) {
  return run(x, weight, bias, log, nullptr);
}

void score_softmax_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool log,
                       const Tensor& out) {
  run(x, weight, bias, log, &out);
}

ScoreGradients score_softmax_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& output,
                                      bool log, bool need_x, bool need_weight) {
  constexpr const char* op = "score_softmax_backward";
  const ScoreInputs call(op, x, weight, std::nullopt);
  for (const Tensor* t : {&grad, &output}) {
    check(t->dim() == 4 && t->size(0) == x.size(0) && t->size(1) == call.classes && t->size(2) == x.size(2) &&
              t->size(3) == x.size(3) && t->scalar_type() == x.scalar_type(),
          op, "grad and output must be [N, C, H, W] of x and weight in their dtype, got shape ", shape_of(*t));
    check_device(op, "grad and output", *t, x);
  }
  const ScoreGradients to = empty_score_gradients(call, x, need_x, need_weight);
  if (x.numel() == 0) return to;
  const Launch launch(op, x);
  const ScoreGradient g(call);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const int64_t pixels = call.batch * call.pixels;
    const auto start = [&](auto group) {
      softmax_gradient<T, group.value><<<blocks_of(pixels * group.value), warps_of_block(), 0, launch.stream()>>>(
          view_of<const T>(grad), view_of<const T>(output), call.batch, call.pixels, x.size(3), call.classes, log,
          data_of<A>(g.memory), g.stride_n, g.stride_c, g.stride_p);
    };
    if (call.channels_inside) {
      start(std::integral_constant<int, kWarp>());
    } else {
      start(std::integral_constant<int, 1>());
    }
    launch.finish();
  });
  return score_gradients(launch, call, g, to);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("score_softmax", TORCH_BOX(&fcn::score_softmax));
  m.impl("score_softmax.out", TORCH_BOX(&fcn::score_softmax_out));
  m.impl("score_softmax_backward", TORCH_BOX(&fcn::score_softmax_backward));
}
