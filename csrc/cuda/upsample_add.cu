// upsample, upsample_add and upsample_backward on CUDA: checks, allocation, launches.
#include "adjoints.cuh"
#include "streams.cuh"

namespace fcn {
namespace {

Tensor upsample(const Tensor& x, const std::vector<int64_t>& sampling) {
  const char* op = "upsample";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "x", x, s.rows.in, s.cols.in);
  const Tensor y = empty_image(x, s.rows.out, s.cols.out, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch_forward<T>(launch, x, y, s, Identity());
  });
  launch.finish();
  return y;
}

Tensor upsample_add(const Tensor& x, const Tensor& skip, const std::vector<int64_t>& sampling,
                    const std::vector<int64_t>& skip_offset, double skip_scale) {
  const char* op = "upsample_add";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "x", x, s.rows.in, s.cols.in);
  check(skip_offset.size() == 2, op, "skip_offset has ", skip_offset.size(), " integers, expected 2");
  const int64_t top = skip_offset[0], left = skip_offset[1];
  check(skip.dim() == 4 && skip.size(0) == x.size(0) && skip.size(1) == x.size(1), op, "skip is ", shape_of(skip),
        ", which does not go with x of shape ", shape_of(x));
  check(top >= 0 && left >= 0 && top + s.rows.out <= skip.size(2) && left + s.cols.out <= skip.size(3), op,
        "the window of ", s.rows.out, " x ", s.cols.out, " at (", top, ", ", left, ") leaves skip of shape ",
        shape_of(skip));
  check(skip.scalar_type() == x.scalar_type(), op, "x and skip must have the same dtype");
  check(skip.is_cuda() && skip.get_device_index() == x.get_device_index(), op, "x and skip must be on one device");
  const Tensor y = empty_image(x, s.rows.out, s.cols.out, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    View<const T> window = view_of<const T>(skip);
    window.data += top * window.stride_h + left * window.stride_w;
    const bool channels_last = is_channels_last(y);
    launch_forward<T>(
        launch, x, y, s,
        Skip<T>{window, static_cast<ArithmeticOf<T>>(skip_scale), channels_last ? window.stride_c : window.stride_w,
                packs(window, x.size(1), s.cols.out, channels_last)});
  });
  launch.finish();
  return y;
}

Tensor upsample_backward(const Tensor& grad, const std::vector<int64_t>& sampling) {
  const char* op = "upsample_backward";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "grad", grad, s.rows.out, s.cols.out);
  const Tensor dx = empty_image(grad, s.rows.in, s.cols.in, grad.scalar_type());
  if (dx.numel() == 0) return dx;
  const Launch launch(op, grad);
  visit_dtype(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch_adjoint(launch, OutputGradient<T>{view_of<const T>(grad)}, dx, s);
  });
  launch.finish();
  return dx;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("upsample", TORCH_BOX(&fcn::upsample));
  m.impl("upsample_add", TORCH_BOX(&fcn::upsample_add));
  m.impl("upsample_backward", TORCH_BOX(&fcn::upsample_backward));
}
