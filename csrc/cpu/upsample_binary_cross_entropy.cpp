// upsample_binary_cross_entropy and its backward on the CPU: checks, allocation, the fixed-order sum over units.
#include "loss.h"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_binary_cross_entropy";

// One call: tensors kept alive, the arguments of the kernel, and what the units report.
struct Call {
  Call(const Tensor& x, const Tensor& target_of_call, const std::optional<Tensor>& weight_any,
       const std::vector<int64_t>& encoded, std::optional<int64_t> ignore)
      : sampling(checked_sampling(kName, encoded)),
        plan(sampling, x.size(0) * x.size(1)),
        target(target_of_call),
        ignore_index(ignore) {
    const Axis &rows = sampling.rows, &cols = sampling.cols;
    check_image(kName, "x", x, rows.in, cols.in);
    check_image(kName, "target", target, rows.out, cols.out);
    check(target.size(0) == x.size(0) && target.size(1) == x.size(1), kName, "target is ", shape_of(target),
          " but x is ", shape_of(x), ": batch and channels must be the same");
    args.geometry = &plan.geometry();
    args.x = image_of(kName, x);
    dtype = arithmetic_dtype(x.scalar_type());
    set_target();
    args.ignores = ignore_index.has_value();
    args.ignore_index = ignore_index.value_or(0);
    if (weight_any.has_value()) {
      weight = as_contiguous(*weight_any);
      check(weight.dim() == 1 && weight.size(0) == x.size(1) && weight.scalar_type() == dtype, kName,
            "pos_weight must hold one ", dtype == ScalarType::Double ? "float64" : "float32", " for each of the ",
            x.size(1), " channels");
      args.pos_weight = weight.const_data_ptr();
    }
    units = x.size(0) * x.size(1) * plan.geometry().unit_count;
    unit_loss.resize(units);
    unit_count.resize(units);
    bad_label.resize(units);
    args.unit_loss = unit_loss.data();
    args.unit_count = unit_count.data();
    args.unit_bad_label = bad_label.data();
  }

  void set_target() {
    const ScalarType type = target.scalar_type();
    args.target = Image{const_cast<void*>(target.const_data_ptr()),
                        DType::kFloat,
                        target.size(0),
                        target.size(1),
                        target.size(2),
                        target.size(3),
                        target.stride(0),
                        target.stride(1),
                        target.stride(2),
                        target.stride(3)};
    args.labels = type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::Half &&
                  type != ScalarType::BFloat16;
    if (args.labels) {
      args.label_type = type == ScalarType::Bool ? LabelType::kUInt8 : label_type_of(kName, "target", type);
    } else {
      args.target.dtype = dtype_of(kName, target);
    }
  }

  Tensor want_gradient(const Tensor& x) {
    gradient = empty_image(x, x.size(2), x.size(3), dtype);
    if (!plan.geometry().covers_rows) torch::stable::zero_(gradient);
    args.gradient = image_of(kName, gradient);
    side = empty_vector(gradient, {units * gradient.size(3)}, dtype);
    args.side = side.data_ptr();
    return gradient;
  }

  void run() {
    const Kernels& k = kernels();
    for_each_unit(units, units ? k.binary_cross_entropy_scratch(args) : 0,
                  [&](int64_t unit, void* scratch) { k.binary_cross_entropy(args, unit, scratch); });
    for (int64_t bad : bad_label) {
      if (bad >= 0) report_bad_label(kName, target, bad, 2, ignore_index);
    }
    if (!args.gradient.data) return;
    if (dtype == ScalarType::Double) {
      add_all_sides<double>();
    } else {
      add_all_sides<float>();
    }
  }

  template <typename T>
  void add_all_sides() {
    const Geometry& g = plan.geometry();
    add_sides<T>(args.gradient, g, [&](int64_t n, int64_t c, int64_t unit) {
      return static_cast<const T*>(args.side) + ((n * args.x.channels + c) * g.unit_count + unit) * args.x.width;
    });
  }

  Sampling sampling;
  GeometryPlan plan;
  Tensor target, weight, gradient, side;
  std::optional<int64_t> ignore_index;
  ScalarType dtype;
  BinaryCrossEntropyArgs args{};
  int64_t units;
  std::vector<double> unit_loss, unit_count;
  std::vector<int64_t> bad_label;
};

std::tuple<Tensor, Tensor, Tensor> upsample_binary_cross_entropy(const Tensor& x, const Tensor& target,
                                                                 const std::optional<Tensor>& pos_weight,
                                                                 const std::vector<int64_t>& sampling,
                                                                 std::optional<int64_t> ignore_index, int64_t reduction,
                                                                 bool with_grad) {
  Call call(x, target, pos_weight, sampling, ignore_index);
  Tensor loss, gradient = empty_vector(x, {0}, call.dtype);
  if (reduction == kNone) {
    loss = empty_vector(x, {x.size(0), x.size(1), call.sampling.rows.out, call.sampling.cols.out}, call.dtype);
    call.args.pixel_loss = loss.data_ptr();
  } else if (with_grad) {
    gradient = call.want_gradient(x);
  }
  call.run();
  double total_loss = 0, total_count = 0;
  for (double v : call.unit_loss) total_loss += v;
  for (double v : call.unit_count) total_count += v;
  const double divisor = reduction == kMean      ? total_count
                         : reduction == kMeanAll ? static_cast<double>(target.numel())
                                                 : 1.0;
  if (reduction != kNone) loss = scalar(x, call.dtype, total_loss / divisor);
  return {loss, scalar(x, call.dtype, divisor), gradient};
}

Tensor upsample_binary_cross_entropy_backward(const Tensor& grad, const Tensor& x, const Tensor& target,
                                              const std::optional<Tensor>& pos_weight,
                                              const std::vector<int64_t>& sampling,
                                              std::optional<int64_t> ignore_index) {
  Call call(x, target, pos_weight, sampling, ignore_index);
  check_image(kName, "grad", grad, call.sampling.rows.out, call.sampling.cols.out);
  check(grad.scalar_type() == call.dtype && same_sizes(grad, target), kName,
        "grad must have one value per pixel, in the loss's dtype");
  call.args.pixel_grad = image_of(kName, grad);
  const Tensor gradient = call.want_gradient(x);
  call.run();
  return as_dtype(gradient, x.scalar_type());
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("upsample_binary_cross_entropy", TORCH_BOX(&fcn::upsample_binary_cross_entropy));
  m.impl("upsample_binary_cross_entropy_backward", TORCH_BOX(&fcn::upsample_binary_cross_entropy_backward));
}
