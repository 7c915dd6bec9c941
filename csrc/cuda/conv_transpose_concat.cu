// conv_transpose_concat on CUDA: the transposed convolution writes the last channels of the result, a copy of the
// skip's window fills the first ones.
#include "conv_transpose_concat.cuh"
#include "conv_transpose_launch.cuh"

namespace fcn {
namespace {

template <typename T>
void copy(const Launch& launch, const char* op, const View<const T>& from, const View<T>& to, int64_t batch,
          int64_t channels, const ConvTranspose& c) {
  constexpr int kWide = 16 / sizeof(T);
  CopyShape s = copy_shape(from, to, channels, c.rows.out, c.columns.out);
  const auto start = [&](auto wide, auto packs) {
    s.inner /= wide.value;
    s.count = s.inner * s.middle * s.outer * batch;
    const int64_t blocks = divided_up(s.count, kCopyThreads);
    check(blocks <= kLargestSize, op, "needs ", blocks, " blocks of threads, expected at most ", kLargestSize);
    copy_window<T, wide.value, packs.value>
        <<<static_cast<unsigned>(blocks), dim3(kWarp, kCopyThreads / kWarp), 0, launch.stream()>>>(from.data, to.data,
                                                                                                   s);
  };
  using Wide = std::integral_constant<int, kWide>;
  if (!is_multiple(s.inner, kWide) || !has_packs(to.data, s.to, kWide)) {
    start(std::integral_constant<int, 1>(), std::true_type());
  } else if (has_packs(from.data, s.from, kWide)) {
    start(Wide(), std::true_type());
  } else {
    start(Wide(), std::false_type());
  }
  launch.finish();
}

Tensor conv_transpose_concat(const Tensor& x, const Tensor& weight, const Tensor& skip,
                             const std::optional<Tensor>& bias, const std::vector<int64_t>& stride, int64_t groups,
                             const std::vector<int64_t>& offset, const std::vector<int64_t>& output_size,
                             const std::vector<int64_t>& skip_offset) {
  constexpr const char* op = "conv_transpose_concat";
  check(output_size.size() == 2, op, "output_size must be two integers");
  const int64_t height = output_size[0], width = output_size[1];
  check_conv_transpose(op, x, weight, stride, groups, offset, height, width);
  const ConvTranspose c = conv_transpose_of(op, x, weight, stride, groups, offset, height, width);
  const int64_t channels = c.groups * c.outputs;
  check_beside(op, skip, bias, x, channels);
  check_device(op, "skip", skip, x);
  check_window(op, "skip", skip, skip_offset, height, width);
  AnyView constant{};
  if (bias) {
    check_device(op, "bias", *bias, x);
    constant = AnyView{bias->data_ptr(), 0, bias->stride(0), 0, 0};  // one value for all pixels of a channel
  }
  const Tensor y = empty_image(x, skip.size(1) + channels, height, width, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    copy<T>(launch, op, part_of(skip, 0, skip_offset[0], skip_offset[1]).template as<const T>(), view_of<T>(y),
            x.size(0), skip.size(1), c);
  });
  launch_conv_transpose(launch, op, c, x, weight, constant, 1.0, part_of(y, skip.size(1), 0, 0));
  return y;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("conv_transpose_concat", TORCH_BOX(&fcn::conv_transpose_concat));
}
