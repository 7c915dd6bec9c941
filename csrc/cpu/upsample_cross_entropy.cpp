// upsample_cross_entropy and its backward on the CPU: checks, allocation, the fixed-order sum over units.
#include "loss.h"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_cross_entropy";

// One call: tensors kept alive, the arguments of the kernel, and what the units report.
struct Call {
  Call(const Tensor& x, const Tensor& target_any, const std::optional<Tensor>& weight_any,
       const std::vector<int64_t>& encoded, int64_t ignore_index, double label_smoothing)
      : sampling(checked_sampling(kName, encoded)), plan(sampling, x.size(0)), target(as_contiguous(target_any)) {
    const Axis &rows = sampling.rows, &cols = sampling.cols;
    check_image(kName, "x", x, rows.in, cols.in);
    check(x.size(1) > 0, kName, "x must have at least one class");
    check(x.size(1) < (int64_t{1} << 30), kName, "x has ", x.size(1), " classes");
    check_label_image(kName, target, x, sampling);
    args.geometry = &plan.geometry();
    args.x = image_of(kName, x);
    dtype = arithmetic_dtype(x.scalar_type());
    args.target = target.const_data_ptr();
    args.target_type = label_type_of(kName, "target", target.scalar_type());
    args.ignore_index = ignore_index;
    args.label_smoothing = label_smoothing;
    args.weight_sum = static_cast<double>(x.size(1));
    if (weight_any.has_value()) {
      weight = as_contiguous(*weight_any);
      args.weight = weight.const_data_ptr();
      args.weight_sum = sum_of_weights(kName, weight, x.size(1), dtype);
    }
    units = x.size(0) * plan.geometry().unit_count;
    unit_loss.resize(units);
    unit_weight.resize(units);
    bad_label.resize(units);
    args.unit_loss = unit_loss.data();
    args.unit_weight = unit_weight.data();
    args.unit_bad_label = bad_label.data();
  }

  Tensor want_gradient(const Tensor& x) {
    gradient = empty_image(x, x.size(2), x.size(3), dtype);
    if (!plan.geometry().covers_rows) torch::stable::zero_(gradient);
    args.gradient = image_of(kName, gradient);
    side = empty_vector(gradient, {units * gradient.size(1) * gradient.size(3)}, dtype);
    args.side = side.data_ptr();
    return gradient;
  }

  void run() {
    const Kernels& k = kernels();
    for_each_unit(units, k.cross_entropy_scratch(args),
                  [&](int64_t unit, void* scratch) { k.cross_entropy(args, unit, scratch); });
    for (int64_t bad : bad_label) {
      if (bad >= 0) report_bad_label(kName, target, bad, args.x.channels, args.ignore_index);
    }
    if (args.gradient.data) {
      if (dtype == ScalarType::Double) {
        add_all_sides<double>();
      } else {
        add_all_sides<float>();
      }
    }
  }

  template <typename T>
  void add_all_sides() {
    const Geometry& g = plan.geometry();
    add_sides<T>(args.gradient, g, [&](int64_t n, int64_t c, int64_t unit) {
      return static_cast<const T*>(args.side) + ((n * g.unit_count + unit) * args.x.channels + c) * args.x.width;
    });
  }

  Sampling sampling;
  GeometryPlan plan;
  Tensor target, weight, gradient, side;
  ScalarType dtype;
  CrossEntropyArgs args{};
  int64_t units;
  std::vector<double> unit_loss, unit_weight;
  std::vector<int64_t> bad_label;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_cross_entropy(const Tensor& x, const Tensor& target,
                                                                  const std::optional<Tensor>& weight,
                                                                  const std::vector<int64_t>& sampling,
                                                                  int64_t ignore_index, int64_t reduction,
                                                                  double label_smoothing, bool with_grad) {
  Call call(x, target, weight, sampling, ignore_index, label_smoothing);
  const ScalarType dtype = call.dtype;
  const bool per_pixel = reduction == kNone;
  Tensor loss, lse = empty_vector(x, {0}, dtype), gradient = empty_vector(x, {0}, dtype);
  if (per_pixel) {
    const std::vector<int64_t> size{x.size(0), call.sampling.rows.out, call.sampling.cols.out};
    loss = empty_vector(x, size, dtype);
    if (with_grad) lse = empty_vector(x, size, dtype);
    call.args.pixel_loss = loss.data_ptr();
    call.args.pixel_lse = with_grad ? lse.data_ptr() : nullptr;
  } else if (with_grad) {
    gradient = call.want_gradient(x);
  }
  call.run();
  double total_loss = 0, total_weight = 0;
  for (double v : call.unit_loss) total_loss += v;
  for (double v : call.unit_weight) total_weight += v;
  const double pixels = static_cast<double>(x.size(0) * call.sampling.rows.out * call.sampling.cols.out);
  const double divisor = reduction == kMean ? total_weight : reduction == kMeanAll ? pixels : 1.0;
  if (!per_pixel) loss = scalar(x, dtype, total_loss / divisor);
  return {loss, scalar(x, dtype, divisor), gradient, lse};
}

Tensor upsample_cross_entropy_backward(const Tensor& grad_any, const Tensor& x, const Tensor& target,
                                       const std::optional<Tensor>& weight, const Tensor& lse_any,
                                       const std::vector<int64_t>& sampling, int64_t ignore_index,
                                       double label_smoothing) {
  Call call(x, target, weight, sampling, ignore_index, label_smoothing);
  const Tensor grad = as_contiguous(grad_any), lse = as_contiguous(lse_any);
  for (const Tensor* t : {&grad, &lse}) {
    check(t->scalar_type() == call.dtype && same_sizes(*t, call.target), kName,
          "grad and lse must have one value per pixel, in the loss's dtype");
  }
  call.args.pixel_grad = grad.const_data_ptr();
  call.args.saved_lse = lse.const_data_ptr();
  const Tensor gradient = call.want_gradient(x);
  call.run();
  return as_dtype(gradient, x.scalar_type());
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&fcn::upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&fcn::upsample_cross_entropy_backward));
}
