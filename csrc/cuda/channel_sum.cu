// channel_sum on CUDA: checks, allocation, launches.
#include "channel_sum.cuh"
#include "launch.cuh"

namespace fcn {
namespace {

Tensor channel_sum(const Tensor& x) {
  constexpr const char* op = "channel_sum";
  check(x.dim() == 4, op, "x must be [N, C, H, W], got shape ", shape_of(x));
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const Tensor sums = empty_vector(x, {channels}, arithmetic_dtype(x.scalar_type()));
  if (channels == 0) return sums;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const View<const T> view = view_of<const T>(x);
    Tensor partial = sums;
    int64_t parts = 0;
    const auto start = [&](auto wide, auto across_channels) {
      const SumPlan plan = sum_plan(view, batch, channels, height, width, wide.value, across_channels.value);
      parts = batch * plan.parts;
      partial = empty_vector(x, {parts, channels}, ScalarType::Double);
      channel_sum_parts<T, wide.value, across_channels.value>
          <<<dim3(static_cast<unsigned>(plan.all)), warps_of_block(), 0, launch.stream()>>>(view, channels, plan,
                                                                                            data_of<double>(partial));
    };
    using One = std::integral_constant<int, 1>;
    using Wide = std::integral_constant<int, kWideChannels<T>>;
    if (x.numel() > 0) {
      if (view.stride_c == 1 && channels > 1) {
        reads_wide(view, channels, kWideChannels<T>) ? start(Wide(), std::true_type()) : start(One(), std::true_type());
      } else if (columns_wide(view, width, kWideChannels<T>)) {
        start(Wide(), std::false_type());
      } else {
        start(One(), std::false_type());
      }
    }
    channel_sum_of_parts<A>
        <<<dim3(static_cast<unsigned>(divided_up(channels, kWarps))), warps_of_block(), 0, launch.stream()>>>(
            data_of<const double>(partial), channels, parts, data_of<A>(sums));
  });
  launch.finish();
  return sums;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) { m.impl("channel_sum", TORCH_BOX(&fcn::channel_sum)); }
