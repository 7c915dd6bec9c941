// score_cross_entropy and its backward on the CPU: checks, allocation, the fixed-order sum over units.
#include "loss.h"
#include "score.h"

namespace fcn {
namespace {

constexpr const char* kName = "score_cross_entropy";

// Labels and class weights, kept alive.
struct Labels {
  Labels(const Tensor& x, int64_t classes, const Tensor& target_any, const std::optional<Tensor>& weight_any,
         int64_t ignore_index, double label_smoothing)
      : target(torch::stable::contiguous(target_any)) {
    check(
        target.dim() == 3 && target.size(0) == x.size(0) && target.size(1) == x.size(2) && target.size(2) == x.size(3),
        kName, "target must be [", x.size(0), ", ", x.size(2), ", ", x.size(3), "], got ", shape_of(target));
    args.target = target.const_data_ptr();
    args.type = label_type_of(kName, "target", target.scalar_type());
    args.ignore_index = ignore_index;
    args.label_smoothing = label_smoothing;
    args.weight_sum = static_cast<double>(classes);
    if (weight_any.has_value()) {
      weight = torch::stable::contiguous(*weight_any);
      args.weight_sum = sum_of_weights(kName, weight, classes, arithmetic_dtype(x.scalar_type()));
      args.class_weight = weight.const_data_ptr();
    }
  }

  const Tensor target;
  Tensor weight;
  LabelArgs args{};
};

std::tuple<Tensor, Tensor, Tensor> score_cross_entropy(const Tensor& x, const Tensor& weight,
                                                       const std::optional<Tensor>& bias, const Tensor& target,
                                                       const std::optional<Tensor>& class_weight, int64_t ignore_index,
                                                       int64_t reduction, double label_smoothing) {
  ScoreCall call(kName, x, weight, bias);
  const Labels labels(x, call.args.classes, target, class_weight, ignore_index, label_smoothing);
  const std::vector<int64_t> size{x.size(0), x.size(2), x.size(3)};
  const Tensor lse = empty_vector(x, size, call.dtype);
  const bool per_pixel = reduction == kNone;
  Tensor loss;
  if (per_pixel) loss = empty_vector(x, size, call.dtype);
  double total_loss = 0, total_weight = 0;
  if (lse.numel() > 0) {
    call.pack(true, false);
    const Kernels& k = kernels();
    const int64_t units = k.score_units(call.args);
    std::vector<double> unit_loss(units), unit_weight(units);
    std::vector<int64_t> bad_label(units);
    const ScoreCrossEntropyArgs args{call.args,       labels.args,      per_pixel ? loss.data_ptr() : nullptr,
                                     lse.data_ptr(),  unit_loss.data(), unit_weight.data(),
                                     bad_label.data()};
    for_each_unit(units, k.score_cross_entropy_scratch(args),
                  [&](int64_t unit, void* scratch) { k.score_cross_entropy(args, unit, scratch); });
    for (int64_t bad : bad_label) {
      if (bad >= 0) report_bad_label(kName, labels.target, bad, call.args.classes, ignore_index);
    }
    for (double v : unit_loss) total_loss += v;
    for (double v : unit_weight) total_weight += v;
  }
  const double pixels = static_cast<double>(lse.numel());
  const double divisor = reduction == kMean ? total_weight : reduction == kMeanAll ? pixels : 1.0;
  if (!per_pixel) loss = scalar(x, call.dtype, total_loss / divisor);
  return {loss, scalar(x, call.dtype, divisor), lse};
}

std::tuple<Tensor, Tensor, Tensor> score_cross_entropy_backward(const Tensor& grad, const Tensor& x,
                                                                const Tensor& weight, const std::optional<Tensor>& bias,
                                                                const Tensor& target,
                                                                const std::optional<Tensor>& class_weight,
                                                                const Tensor& lse_any, int64_t ignore_index,
                                                                double label_smoothing, bool need_x, bool need_weight) {
  ScoreCall call(kName, x, weight, bias);
  const Labels labels(x, call.args.classes, target, class_weight, ignore_index, label_smoothing);
  const Tensor lse = torch::stable::contiguous(lse_any);
  for (const Tensor* t : {&grad, &lse}) {
    check(t->scalar_type() == call.dtype && t->dim() == 3 && t->size(0) == x.size(0) && t->size(1) == x.size(2) &&
              t->size(2) == x.size(3),
          kName, "grad and lse must have one value per pixel, in the loss's dtype");
  }
  ScoreGradientArgs args{};
  args.score = call.args;
  args.labels = labels.args;
  args.pixel_grad = grad.const_data_ptr();
  args.grad_width = x.size(3);
  args.grad_stride_n = grad.stride(0);
  args.grad_stride_h = grad.stride(1);
  args.grad_stride_w = grad.stride(2);
  args.lse = lse.const_data_ptr();
  return score_gradients(call, args, x, need_x, need_weight);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("score_cross_entropy", TORCH_BOX(&fcn::score_cross_entropy));
  m.impl("score_cross_entropy_backward", TORCH_BOX(&fcn::score_cross_entropy_backward));
}
