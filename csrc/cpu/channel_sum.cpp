// channel_sum on the CPU: the parts' sums, added in their order.
#include "skin.h"

namespace fcn {
namespace {

template <typename T>
void finish(const Tensor& result, const std::vector<double>& parts) {
  const int64_t channels = result.size(0);
  T* out = static_cast<T*>(result.data_ptr());
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (size_t i = c; i < parts.size(); i += channels) sum += parts[i];
    out[c] = static_cast<T>(sum);
  }
}

Tensor channel_sum(const Tensor& x) {
  constexpr const char* op = "channel_sum";
  check(x.dim() == 4, op, "x must be [N, C, H, W], got shape ", shape_of(x));
  const Tensor result = empty_vector(x, {x.size(1)}, arithmetic_dtype(x.scalar_type()));
  ChannelSumArgs args{image_of(op, x), nullptr};
  if (x.numel() == 0) args.x.batch = 0;  // however many images without a pixel there are
  const Kernels& k = kernels();
  std::vector<double> parts(k.channel_sum_parts(args) * x.size(1));
  args.parts = parts.data();
  for_each_unit(k.channel_sum_units(args), 0, [&](int64_t unit, void*) { k.channel_sum(args, unit); });
  if (result.scalar_type() == ScalarType::Double) {
    finish<double>(result, parts);
  } else {
    finish<float>(result, parts);
  }
  return result;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) { m.impl("channel_sum", TORCH_BOX(&fcn::channel_sum)); }
