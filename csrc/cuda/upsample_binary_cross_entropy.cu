// upsample_binary_cross_entropy and its backward on CUDA: checks, allocation, launches. Nothing is read back: a label
// that is neither 0, 1 nor ignored makes the loss NaN.
#include "launch.cuh"
#include "upsample_binary_cross_entropy.cuh"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_binary_cross_entropy";

// One call: what has been checked.
struct Call {
  Call(const Tensor& x, const Tensor& target, const std::optional<Tensor>& given_weight,
       const std::vector<int64_t>& encoded, std::optional<int64_t> ignore_index)
      : s(checked_sampling(kName, encoded)),
        batch(x.size(0)),
        channels(x.size(1)),
        dtype(arithmetic_dtype(x.scalar_type())) {
    check_image(kName, "x", x, s.rows.in, s.cols.in);
    check_image(kName, "target", target, s.rows.out, s.cols.out);
    check(target.size(0) == batch && target.size(1) == channels, kName, "target is ", shape_of(target), " but x is ",
          shape_of(x), ": batch and channels must be the same");
    check_device(kName, "target", target, x);
    targets = Targets{view_of<const void>(target), TargetKind::kLabels, LabelKind::kUInt8, ignore_index.has_value(),
                      ignore_index.value_or(0)};
    set_kind(target.scalar_type());
    channels_last = target.stride(1) == 1 && target.stride(3) != 1;
    if (given_weight.has_value()) {
      check(given_weight->dim() == 1 && given_weight->size(0) == channels && given_weight->scalar_type() == dtype,
            kName, "pos_weight must hold one ", dtype == ScalarType::Double ? "float64" : "float32",
            " for each of the ", channels, " channels");
      check_device(kName, "pos_weight", *given_weight, x);
      weight = as_contiguous(*given_weight);
    }
  }

  void set_kind(ScalarType type) {
    switch (type) {
      case ScalarType::Float:
        targets.kind = TargetKind::kFloat;
        break;
      case ScalarType::Double:
        targets.kind = TargetKind::kDouble;
        break;
      case ScalarType::Half:
        targets.kind = TargetKind::kHalf;
        break;
      case ScalarType::BFloat16:
        targets.kind = TargetKind::kBFloat16;
        break;
      default:
        targets.labels = type == ScalarType::Bool ? LabelKind::kUInt8 : kind_of(kName, type);
    }
  }

  template <typename T>
  BinaryCrossEntropy<T> function(const Tensor& x) const {
    using A = ArithmeticOf<T>;
    return BinaryCrossEntropy<T>{
        view_of<const T>(x), targets, weight.has_value() ? data_of<const A>(*weight) : nullptr, {}, {}, nullptr};
  }

  // dx and, where `sums` is given, its sums per block; returns their number.
  template <typename Out, typename T>
  void run(const Launch& launch, BinaryCrossEntropy<T> function, const View<Out>& dx, Tensor* sums) const {
    with_adjoint_lanes(s, channels, channels_last, [&](auto inner, auto across) {
      const AdjointPlan plan = adjoint_plan(s, batch, channels, inner.value, across.value);
      if (sums) {
        *sums = empty_vector(*sums, {plan.blocks, 2}, ScalarType::Double);
        function.partial = data_of<double>(*sums);
      }
      if (plan.blocks == 0) return;
      adjoint<BinaryCrossEntropy<T>, Out, inner.value, across.value>
          <<<dim3(static_cast<unsigned>(plan.blocks)), warps_of_block(), 0, launch.stream()>>>(s, plan, channels,
                                                                                               function, dx);
    });
    launch.finish();
  }

  Sampling s;
  int64_t batch, channels;
  ScalarType dtype;
  Targets targets;
  bool channels_last;
  std::optional<Tensor> weight;
};

std::tuple<Tensor, Tensor, Tensor> upsample_binary_cross_entropy(const Tensor& x, const Tensor& target,
                                                                 const std::optional<Tensor>& pos_weight,
                                                                 const std::vector<int64_t>& sampling,
                                                                 std::optional<int64_t> ignore_index, int64_t reduction,
                                                                 bool with_grad) {
  const Call call(x, target, pos_weight, sampling, ignore_index);
  const bool per_pixel = reduction == kNone;
  const std::vector<int64_t> size{call.batch, call.channels, call.s.rows.out, call.s.cols.out};
  const Tensor loss = empty_vector(x, per_pixel ? size : std::vector<int64_t>{}, call.dtype);
  const Tensor total = empty_vector(x, {}, call.dtype);
  const bool wanted = with_grad && !per_pixel;
  const Tensor gradient =
      wanted ? empty_image(x, call.s.rows.in, call.s.cols.in, call.dtype) : empty_vector(x, {0}, call.dtype);
  const Launch launch(kName, x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    BinaryCrossEntropy<T> function = call.function<T>(x);
    Tensor sums = x;
    if (per_pixel) function.loss = view_of<A>(loss);
    call.run(launch, function, wanted ? view_of<A>(gradient) : View<A>{}, per_pixel ? nullptr : &sums);
    // Without a reduction there is nothing to divide by: the empty sum over 1.
    const double pixels = static_cast<double>(target.numel());
    const double divisor = reduction == kMean ? 0.0 : reduction == kMeanAll ? pixels : 1.0;
    const Tensor ignored = arithmetic_vector<A>(x, 1);
    finish_loss<A><<<1, warps_of_block(), 0, launch.stream()>>>(
        per_pixel ? nullptr : data_of<const double>(sums), per_pixel ? 0 : sums.size(0), divisor,
        data_of<A>(per_pixel ? ignored : loss), data_of<A>(total));
    launch.finish();
  });
  return {loss, total, gradient};
}

Tensor upsample_binary_cross_entropy_backward(const Tensor& grad, const Tensor& x, const Tensor& target,
                                              const std::optional<Tensor>& pos_weight,
                                              const std::vector<int64_t>& sampling,
                                              std::optional<int64_t> ignore_index) {
  const Call call(x, target, pos_weight, sampling, ignore_index);
  check_image(kName, "grad", grad, call.s.rows.out, call.s.cols.out);
  check(grad.scalar_type() == call.dtype && same_sizes(grad, target), kName,
        "grad must have one value per pixel, in the loss's dtype");
  check_device(kName, "grad", grad, x);
  const Tensor dx = empty_image(x, call.s.rows.in, call.s.cols.in, x.scalar_type());
  if (dx.numel() == 0) return dx;
  const Launch launch("upsample_binary_cross_entropy_backward", x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    BinaryCrossEntropy<T> function = call.function<T>(x);
    function.grad = view_of<const ArithmeticOf<T>>(grad);
    call.run(launch, function, view_of<T>(dx), nullptr);
  });
  return dx;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("upsample_binary_cross_entropy", TORCH_BOX(&fcn::upsample_binary_cross_entropy));
  m.impl("upsample_binary_cross_entropy_backward", TORCH_BOX(&fcn::upsample_binary_cross_entropy_backward));
}
