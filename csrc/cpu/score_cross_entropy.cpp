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
      : target(as_contiguous(target_any)) {
    check(
        target.dim() == 3 && target.size(0) == x.size(0) && target.size(1) == x.size(2) && target.size(2) == x.size(3),
        kName, "target must be [", x.size(0), ", ", x.size(2), ", ", x.size(3), "], got ", shape_of(target));
    args.target = target.const_data_ptr();
    args.type = label_type_of(kName, "target", target.scalar_type());
    args.ignore_index = ignore_index;
    args.label_smoothing = label_smoothing;
    args.weight_sum = static_cast<double>(classes);
    if (weight_any.has_value()) {
      weight = as_contiguous(*weight_any);
      args.weight_sum = sum_of_weights(kName, weight, classes, arithmetic_dtype(x.scalar_type()));
      args.class_weight = weight.const_data_ptr();
    }
  }

  const Tensor target;
  Tensor weight;
  LabelArgs args{};
};

// The sum of the weights of the pixels that count, in a fixed order.
double weight_of_labels(const LabelArgs& args, int64_t pixels, int64_t classes, bool doubles) {
  const auto sum = [&](const auto* labels) {
    double total = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t y = static_cast<int64_t>(labels[i]);
      if (y == args.ignore_index || y < 0 || y >= classes) continue;
      total += !args.class_weight ? 1.0
               : doubles          ? static_cast<const double*>(args.class_weight)[y]
                                  : static_cast<const float*>(args.class_weight)[y];
    }
    return total;
  };
  switch (args.type) {
    case LabelType::kUInt8:
      return sum(static_cast<const uint8_t*>(args.target));
    case LabelType::kInt16:
      return sum(static_cast<const int16_t*>(args.target));
    case LabelType::kInt32:
      return sum(static_cast<const int32_t*>(args.target));
    default:
      return sum(static_cast<const int64_t*>(args.target));
  }
}

// Where a kernel leaves what the blocks found.
struct Blocks {
  explicit Blocks(int64_t count) : loss(count), bad_label(count) {}
  double sum(const Tensor& target, int64_t classes, int64_t ignore_index) const {
    for (int64_t bad : bad_label) {
      if (bad >= 0) report_bad_label(kName, target, bad, classes, ignore_index);
    }
    double total = 0;
    for (double v : loss) total += v;
    return total;
  }
  std::vector<double> loss;
  std::vector<int64_t> bad_label;
};

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results score_cross_entropy(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                            const Tensor& target, const std::optional<Tensor>& class_weight, int64_t ignore_index,
                            int64_t reduction, double label_smoothing, bool need_x, bool need_weight) {
  ScoreCall call(kName, x, weight, bias);
  const int64_t classes = call.args.classes;
  const Labels labels(x, classes, target, class_weight, ignore_index, label_smoothing);
  const std::vector<int64_t> size{x.size(0), x.size(2), x.size(3)};
  const int64_t pixels = x.size(0) * x.size(2) * x.size(3);
  const auto none = [&] { return empty_vector(x, {0}, x.scalar_type()); };
  const double total = reduction == kMeanAll ? static_cast<double>(pixels)
                       : reduction == kMean
                           ? weight_of_labels(labels.args, pixels, classes, call.dtype == ScalarType::Double)
                           : 1.0;
  const Tensor divisor = scalar(x, call.dtype, total);
  const bool gradients = reduction != kNone && x.scalar_type() == call.dtype && (need_x || need_weight);
  if (gradients) {
    ScoreGradientArgs args{};
    args.score = call.args;
    args.labels = labels.args;
    args.pixel_scale = total == 0 ? 0 : 1 / total;
    Blocks blocks(pixels > 0 ? kernels().score_blocks(call.args) : 0);
    args.block_loss = blocks.loss.data();
    args.block_bad_label = blocks.bad_label.data();
    auto [grad_x, grad_weight, grad_bias] = score_gradients(call, args, x, need_x, need_weight);
    const double loss = blocks.sum(labels.target, classes, ignore_index);
    return {
        scalar(x, call.dtype, loss / total), divisor, empty_vector(x, {0}, call.dtype), grad_x, grad_weight, grad_bias};
  }
  const Tensor lse = empty_vector(x, size, call.dtype);
  Tensor loss = reduction == kNone ? empty_vector(x, size, call.dtype) : Tensor();
  double sum = 0;
  if (pixels > 0) {
    call.pack(true, false);
    const Kernels& k = kernels();
    Blocks blocks(k.score_blocks(call.args));
    const ScoreCrossEntropyArgs args{call.args,      labels.args,        reduction == kNone ? loss.data_ptr() : nullptr,
                                     lse.data_ptr(), blocks.loss.data(), blocks.bad_label.data()};
    for_each_unit(k.score_units(call.args), k.score_cross_entropy_scratch(args),
                  [&](int64_t unit, void* scratch) { k.score_cross_entropy(args, unit, scratch); });
    sum = blocks.sum(labels.target, classes, ignore_index);
  }
  if (reduction != kNone) loss = scalar(x, call.dtype, sum / total);
  return {loss, divisor, lse, none(), none(), none()};
}

std::tuple<Tensor, Tensor, Tensor> score_cross_entropy_backward(const Tensor& grad, const Tensor& x,
                                                                const Tensor& weight, const std::optional<Tensor>& bias,
                                                                const Tensor& target,
                                                                const std::optional<Tensor>& class_weight,
                                                                const Tensor& lse_any, int64_t ignore_index,
                                                                double label_smoothing, bool need_x, bool need_weight) {
  ScoreCall call(kName, x, weight, bias);
  const Labels labels(x, call.args.classes, target, class_weight, ignore_index, label_smoothing);
  const Tensor lse = as_contiguous(lse_any);
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
