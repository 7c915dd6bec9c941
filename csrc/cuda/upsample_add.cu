// upsample, upsample_add and upsample_backward on CUDA: checks, allocation, launches.
#include "gathers.cuh"
#include "upsample_add.cuh"

namespace fcn {
namespace {

constexpr int kPlanes = 8;  // planes that share one computation of the geometry, where there are enough of them
constexpr int64_t kWantedBlocks = 4096;

template <typename T, bool kSkip>
void launch_forward(const Launch& launch, const Tensor& x, const View<const T>& skip, const Tensor& y,
                    const Sampling& s, double scale) {
  using A = ArithmeticOf<T>;
  const dim3 block(kLanes, kRows);
  const int64_t batch = x.size(0), channels = x.size(1), planes = batch * channels;
  if (is_channels_last(y)) {
    const dim3 blocks = channels_last_grid(s.rows.out, s.cols.out, batch);
    forward_channels_last<T, kSkip><<<blocks, block, 0, launch.stream()>>>(view_of<const T>(x), skip, view_of<T>(y), s,
                                                                           batch, channels, static_cast<A>(scale));
  } else {
    const int64_t across = divided_up(s.cols.out, kLanes * kColumns), down = grid(divided_up(s.rows.out, kRows));
    const int64_t deep = std::max(divided_up(planes, kPlanes), std::min(planes, kWantedBlocks / (across * down)));
    const dim3 blocks(static_cast<unsigned>(across), static_cast<unsigned>(down), grid(deep));
    forward_contiguous<T, kSkip><<<blocks, block, 0, launch.stream()>>>(view_of<const T>(x), skip, view_of<T>(y), s,
                                                                        batch, channels, static_cast<A>(scale));
  }
}

Tensor upsample(const Tensor& x, const std::vector<int64_t>& sampling) {
  const char* op = "upsample";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "x", x, s.rows.in, s.cols.in);
  const Tensor y = empty_image(x, s.rows.out, s.cols.out, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch_forward<T, false>(launch, x, View<const T>{}, y, s, 0.0);
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
    launch_forward<T, true>(launch, x, window, y, s, skip_scale);
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
    launch_gather(launch, OutputGradient<T>{view_of<const T>(grad)}, dx, s);
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
