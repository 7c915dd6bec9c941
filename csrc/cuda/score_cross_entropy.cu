// score_cross_entropy and its backward on CUDA: checks, allocation, launches. Nothing is read back: a label that is
// neither a class nor ignored makes the loss NaN.
#include "score_cross_entropy.cuh"
#include "score_launch.cuh"

namespace fcn {
namespace {

constexpr const char* kName = "score_cross_entropy";

// Checked labels and options, kept alive.
struct LossCall {
  LossCall(const ScoreInputs& call, const Tensor& target_any, const std::optional<Tensor>& weight, int64_t ignore_index,
           double label_smoothing)
      : target(target_any), smoothing(label_smoothing), width(call.x.size(3)) {
    const Tensor& x = call.x;
    check(
        target.dim() == 3 && target.size(0) == x.size(0) && target.size(1) == x.size(2) && target.size(2) == x.size(3),
        kName, "target must be [", x.size(0), ", ", x.size(2), ", ", x.size(3), "], got ", shape_of(target));
    check_device(kName, "target", target, x);
    labels = Labels{target.data_ptr(), kind_of(kName, target.scalar_type()),
                    target.stride(0),  target.stride(1),
                    target.stride(2),  ignore_index,
                    call.classes};
    if (!weight.has_value()) return;
    const ScalarType dtype = arithmetic_dtype(x.scalar_type());
    check(weight->dim() == 1 && weight->size(0) == call.classes && weight->scalar_type() == dtype, kName,
          "weight must hold one ", dtype == ScalarType::Double ? "float64" : "float32", " for each of the ",
          call.classes, " classes");
    check_device(kName, "weight", *weight, x);
    class_weight = as_contiguous(*weight);
    weighted = true;
  }

  template <typename A>
  ScoreLoss<A> loss(const Launch& launch) {
    if (!weighted) return ScoreLoss<A>{labels, {nullptr, nullptr, static_cast<A>(smoothing)}, width};
    weight_sum = arithmetic_vector<A>(class_weight, 1);
    sum_of_weights<A>
        <<<1, kWarp, 0, launch.stream()>>>(data_of<const A>(class_weight), labels.classes, data_of<A>(weight_sum));
    launch.finish();
    return ScoreLoss<A>{
        labels, {data_of<const A>(class_weight), data_of<const A>(weight_sum), static_cast<A>(smoothing)}, width};
  }

  Tensor target, class_weight, weight_sum;
  double smoothing;
  int64_t width;
  Labels labels;
  bool weighted = false;
};

template <typename T>
ScoreGradients gradients(const Launch& launch, const ScoreInputs& call, const ScoreLoss<ArithmeticOf<T>>& loss,
                         const PixelGradient<ArithmeticOf<T>>& grad, const Tensor& lse, const ScoreGradients& to) {
  using A = ArithmeticOf<T>;
  const ScoreGradient g(call);
  start_scores<T>(launch, call,
                  LossGradientEpilogue<A>{loss, grad, data_of<const A>(lse), data_of<A>(g.memory), g.stride_n,
                                          g.stride_c, g.stride_p});
  return score_gradients(launch, call, g, to);
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results score_cross_entropy(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                            const Tensor& target, const std::optional<Tensor>& class_weight, int64_t ignore_index,
                            int64_t reduction, double label_smoothing, bool need_x, bool need_weight) {
  const ScoreInputs call(kName, x, weight, bias);
  LossCall loss_call(call, target, class_weight, ignore_index, label_smoothing);
  const ScalarType dtype = arithmetic_dtype(x.scalar_type());
  const std::vector<int64_t> size{x.size(0), x.size(2), x.size(3)};
  const bool per_pixel = reduction == kNone;
  const bool backward = !per_pixel && x.scalar_type() == dtype && (need_x || need_weight);
  const int64_t pixels = call.batch * call.pixels;
  const Tensor loss = empty_vector(x, per_pixel ? size : std::vector<int64_t>{}, dtype);
  const Tensor total = empty_vector(x, {}, dtype), lse = empty_vector(x, size, dtype);
  const auto none = [&] { return empty_vector(x, {0}, x.scalar_type()); };
  ScoreGradients grads{none(), none(), none()};
  const Launch launch(kName, x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const ScoreLoss<A> of = loss_call.loss<A>(launch);
    const int64_t warps = pixels > 0 ? score_warps<T>(call) : 0;
    const Tensor partial = empty_vector(x, {2 * warps}, ScalarType::Double);
    if (pixels > 0) {
      start_scores<T>(launch, call,
                      LossEpilogue<A>{of, per_pixel ? data_of<A>(loss) : nullptr, data_of<A>(lse),
                                      per_pixel ? nullptr : data_of<double>(partial)});
    }
    // Without a reduction there is nothing to divide by: the empty sum over 1.
    const double divisor = reduction == kMean ? 0.0 : reduction == kMeanAll ? static_cast<double>(pixels) : 1.0;
    const Tensor ignored = arithmetic_vector<A>(x, 1), inverse = arithmetic_vector<A>(x, 1);
    finish_loss<A><<<1, warps_of_block(), 0, launch.stream()>>>(data_of<const double>(partial), per_pixel ? 0 : warps,
                                                                divisor, data_of<A>(per_pixel ? ignored : loss),
                                                                data_of<A>(total));
    launch.finish();
    if (!backward) return;
    inverse_of<A><<<1, 1, 0, launch.stream()>>>(data_of<const A>(total), data_of<A>(inverse));
    launch.finish();
    grads = empty_score_gradients(call, x, need_x, need_weight);
    if (pixels > 0) {
      gradients<T>(launch, call, of, PixelGradient<A>{data_of<const A>(inverse), 0, 0, 0}, lse, grads);
    }
  });
  const auto& [grad_x, grad_weight, grad_bias] = grads;
  return {loss, total, backward ? empty_vector(x, {0}, dtype) : lse, grad_x, grad_weight, grad_bias};
}

ScoreGradients score_cross_entropy_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                            const std::optional<Tensor>& bias, const Tensor& target,
                                            const std::optional<Tensor>& class_weight, const Tensor& lse_any,
                                            int64_t ignore_index, double label_smoothing, bool need_x,
                                            bool need_weight) {
  const ScoreInputs call(kName, x, weight, bias);
  LossCall loss_call(call, target, class_weight, ignore_index, label_smoothing);
  const Tensor lse = as_contiguous(lse_any);
  for (const Tensor* t : {&grad, &lse}) {
    check(t->scalar_type() == arithmetic_dtype(x.scalar_type()) && same_sizes(*t, target), kName,
          "grad and lse must have one value per pixel, in the loss's dtype");
    check_device(kName, "grad and lse", *t, x);
  }
  const ScoreGradients to = empty_score_gradients(call, x, need_x, need_weight);
  if (x.numel() == 0) return to;
  const Launch launch("score_cross_entropy_backward", x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const PixelGradient<A> incoming{data_of<const A>(grad), grad.stride(0), grad.stride(1), grad.stride(2)};
    gradients<T>(launch, call, loss_call.loss<A>(launch), incoming, lse, to);
  });
  return to;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("score_cross_entropy", TORCH_BOX(&fcn::score_cross_entropy));
  m.impl("score_cross_entropy_backward", TORCH_BOX(&fcn::score_cross_entropy_backward));
}
