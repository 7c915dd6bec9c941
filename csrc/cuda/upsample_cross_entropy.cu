// upsample_cross_entropy and its backward on CUDA: checks, allocation, launches. Nothing is read back: a label that is
// neither a class nor ignored makes the loss NaN.
#include "chains.cuh"
#include "upsample_cross_entropy.cuh"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_cross_entropy";

// One call: what has been checked, and where it runs.
struct Call {
  Call(const Tensor& x, const Tensor& target, const std::optional<Tensor>& given_weight,
       const std::vector<int64_t>& encoded, int64_t ignore_index, double label_smoothing)
      : s(checked_sampling(kName, encoded)),
        batch(x.size(0)),
        channels(x.size(1)),
        pixels(batch * s.rows.out * s.cols.out),
        smoothing(label_smoothing),
        dtype(arithmetic_dtype(x.scalar_type())) {
    check_image(kName, "x", x, s.rows.in, s.cols.in);
    check(channels > 0, kName, "x must have at least one class");
    check_label_image(kName, target, x, s);
    check_device(kName, "target", target, x);
    labels = Labels{target.data_ptr(), kind_of(kName, target.scalar_type()),
                    target.stride(0),  target.stride(1),
                    target.stride(2),  ignore_index,
                    channels};
    if (given_weight.has_value()) {
      check(given_weight->dim() == 1 && given_weight->size(0) == channels && given_weight->scalar_type() == dtype,
            kName, "weight must hold one ", dtype == ScalarType::Double ? "float64" : "float32", " for each of the ",
            channels, " classes");
      check_device(kName, "weight", *given_weight, x);
      weight = as_contiguous(*given_weight);
      has_weight = true;
    }
  }

  // The options of the loss on the device; the sum of the weights is computed there.
  template <typename A>
  LossOptions<A> options(const Launch& launch, const Tensor& x) {
    if (!has_weight) return LossOptions<A>{nullptr, nullptr, static_cast<A>(smoothing)};
    weight_sum = arithmetic_vector<A>(x, 1);
    sum_of_weights<A><<<1, kWarp, 0, launch.stream()>>>(data_of<const A>(weight), channels, data_of<A>(weight_sum));
    launch.finish();
    return LossOptions<A>{data_of<const A>(weight), data_of<const A>(weight_sum), static_cast<A>(smoothing)};
  }

  template <typename T, typename Out>
  void gradient(const Launch& launch, const Tensor& x, const Statistics<ArithmeticOf<T>>& statistics,
                const Tensor& levels, const Tensor& coefficients, const LossOptions<ArithmeticOf<T>>& loss_options,
                const PixelGradient<ArithmeticOf<T>>& grad, const Tensor& dx) const {
    using A = ArithmeticOf<T>;
    const GradientPlan plan = gradient_plan(s, batch, channels, kClassesOf<T>);
    const View<const T> view = view_of<const T>(x);
    const dim3 blocks(static_cast<unsigned>(divided_up(plan.warps, kGradientWarps)));
    const auto start = [&](auto steps, auto packed) {
      cross_entropy_gradient<T, Out, steps.value, packed.value>
          <<<blocks, dim3(kWarp, kGradientWarps), 0, launch.stream()>>>(
              view, s, plan, statistics, data_of<const A>(levels), data_of<const A>(coefficients), labels, loss_options,
              grad, view_of<Out>(dx));
    };
    with_steps<T>(segments_of(s.cols, kLongest<T>).steps, [&](auto steps) {
      if (reads_wide(view, channels, kClassesOf<T>)) {
        start(steps, std::true_type());
      } else {
        start(steps, std::false_type());
      }
    });
    launch.finish();
  }

  Sampling s;
  int64_t batch, channels, pixels;
  double smoothing;
  ScalarType dtype;
  Labels labels;
  Tensor weight, weight_sum;
  bool has_weight = false;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_cross_entropy(const Tensor& x, const Tensor& target,
                                                                  const std::optional<Tensor>& weight,
                                                                  const std::vector<int64_t>& sampling,
                                                                  int64_t ignore_index, int64_t reduction,
                                                                  double label_smoothing, bool with_grad) {
  Call call(x, target, weight, sampling, ignore_index, label_smoothing);
  const Sampling& s = call.s;
  const bool per_pixel = reduction == kNone;
  Tensor loss = empty_vector(x, {}, call.dtype), total = empty_vector(x, {}, call.dtype);
  Tensor gradient = empty_vector(x, {0}, call.dtype), lse = empty_vector(x, {0}, call.dtype);
  if (per_pixel) {
    const std::vector<int64_t> size{call.batch, s.rows.out, s.cols.out};
    loss = empty_vector(x, size, call.dtype);
    if (with_grad) lse = empty_vector(x, size, call.dtype);
  } else if (with_grad) {
    gradient = empty_image(x, s.rows.in, s.cols.in, call.dtype);
  }
  const Launch launch(kName, x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const LossOptions<A> options = call.options<A>(launch, x);
    const InputStatistics<T> statistics(launch, x, s, label_smoothing > 0, options.weight);
    const Units units = units_of(s, call.batch, kUnitRows, kLongest<T>);
    const int64_t blocks = divided_up(units.count, kThreads);
    const bool keep = with_grad && !per_pixel;
    const Tensor levels = arithmetic_vector<A>(x, keep ? call.pixels : 0);
    const Tensor coefficients = arithmetic_vector<A>(x, keep ? call.pixels : 0);
    const Tensor partial = empty_vector(x, {2 * blocks}, ScalarType::Double);
    const PixelImages<A> images{per_pixel ? data_of<A>(loss) : nullptr, keep ? data_of<A>(levels) : nullptr,
                                per_pixel && with_grad ? data_of<A>(lse) : nullptr,
                                keep ? data_of<A>(coefficients) : nullptr};
    if (units.count > 0) {
      const View<const T> view = view_of<const T>(x);
      with_steps<T>(units.columns.steps, [&](auto steps) {
        with_width(view, call.channels, [&](auto wide) {
          cross_entropy_pixels<T, steps.value, wide.value>
              <<<blocks_of(units.count), warps_of_block(), 0, launch.stream()>>>(
                  view, s, units, statistics.of, call.labels, options, images,
                  per_pixel ? nullptr : data_of<double>(partial));
        });
      });
      launch.finish();
    }
    // Without a reduction there is nothing to divide by: the empty sum over 1.
    const double divisor = reduction == kMean ? 0.0 : reduction == kMeanAll ? static_cast<double>(call.pixels) : 1.0;
    const Tensor ignored = arithmetic_vector<A>(x, 1);
    finish_loss<A><<<1, warps_of_block(), 0, launch.stream()>>>(data_of<const double>(partial), per_pixel ? 0 : blocks,
                                                                divisor, data_of<A>(per_pixel ? ignored : loss),
                                                                data_of<A>(total));
    launch.finish();
    if (keep && gradient.numel() > 0) {
      call.gradient<T, A>(launch, x, statistics.of, levels, coefficients, options, PixelGradient<A>{}, gradient);
    }
  });
  return {loss, total, gradient, lse};
}

Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& x, const Tensor& target,
                                       const std::optional<Tensor>& weight, const Tensor& lse_any,
                                       const std::vector<int64_t>& sampling, int64_t ignore_index,
                                       double label_smoothing) {
  Call call(x, target, weight, sampling, ignore_index, label_smoothing);
  const Sampling& s = call.s;
  const Tensor lse = as_contiguous(lse_any);
  for (const Tensor* t : {&grad, &lse}) {
    check(t->scalar_type() == call.dtype && same_sizes(*t, target), kName,
          "grad and lse must have one value per pixel, in the loss's dtype");
    check_device(kName, "grad and lse", *t, x);
  }
  const Tensor dx = empty_image(x, s.rows.in, s.cols.in, x.scalar_type());
  if (dx.numel() == 0) return dx;
  const Launch launch("upsample_cross_entropy_backward", x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const LossOptions<A> options = call.options<A>(launch, x);
    const InputStatistics<T> statistics(launch, x, s);
    const Tensor levels = arithmetic_vector<A>(x, call.pixels), coefficients = arithmetic_vector<A>(x, call.pixels);
    const PixelGradient<A> incoming{data_of<const A>(grad), grad.stride(0), grad.stride(1), grad.stride(2)};
    cross_entropy_coefficients<A><<<blocks_of(call.pixels), warps_of_block(), 0, launch.stream()>>>(
        s, call.pixels, statistics.of.shift, data_of<const A>(lse), call.labels, options, incoming, data_of<A>(levels),
        data_of<A>(coefficients));
    launch.finish();
    call.gradient<T, T>(launch, x, statistics.of, levels, coefficients, options, incoming, dx);
  });
  return dx;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&fcn::upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&fcn::upsample_cross_entropy_backward));
}
