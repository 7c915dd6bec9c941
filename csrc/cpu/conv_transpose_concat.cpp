// conv_transpose_concat on the CPU: the transposed convolution writes the last channels of the result, copies of the
// skip's window fill the first ones.
#include "conv_transpose.h"

namespace fcn {
namespace {

constexpr const char* kName = "conv_transpose_concat";

// Channels [begin, begin + count).
Image channels_of(Image image, int64_t begin, int64_t count, int64_t item_bytes) {
  image.data = static_cast<char*>(image.data) + begin * image.stride_c * item_bytes;
  image.channels = count;
  return image;
}

Tensor run(const Tensor& x, const Tensor& weight, const Tensor& skip, const std::optional<Tensor>& bias,
           const std::vector<int64_t>& stride, int64_t groups, const std::vector<int64_t>& offset,
           const std::vector<int64_t>& output_size, const std::vector<int64_t>& skip_offset, const Tensor* given) {
  check(output_size.size() == 2, kName, "output_size must be two integers");
  const int64_t height = output_size[0], width = output_size[1];
  ConvTransposeArgs args = conv_transpose_arguments(kName, x, weight, stride, groups, offset, height, width);
  const int64_t channels = weight.size(1) * groups;
  check_beside(kName, skip, bias, x, channels);
  Tensor contiguous_bias;
  if (bias) {
    contiguous_bias = as_contiguous(*bias);
    args.bias = contiguous_bias.const_data_ptr();
  }
  const CopyArgs window{window_of(kName, "skip", skip, skip_offset, height, width), Image{}};
  const Tensor out = image_or(kName, given, x, skip.size(1) + channels, height, width);
  if (out.numel() == 0) return out;
  const Image all = image_of(kName, out);
  const int64_t item_bytes = static_cast<int64_t>(out.element_size());
  args.output = channels_of(all, skip.size(1), channels, item_bytes);
  args.pixelwise = is_channels_last(out);
  const CopyArgs copy{window.from, channels_of(all, 0, skip.size(1), item_bytes)};
  const Kernels& k = kernels();
  run_conv_transpose(args, k.copy_units(copy), [&](int64_t unit) { k.copy(copy, unit); });
  return out;
}

Tensor conv_transpose_concat(const Tensor& x, const Tensor& weight, const Tensor& skip,
                             const std::optional<Tensor>& bias, const std::vector<int64_t>& stride, int64_t groups,
                             const std::vector<int64_t>& offset, const std::vector<int64_t>& output_size,
                             const std::vector<int64_t>& skip_offset) {
  return run(x, weight, skip, bias, stride, groups, offset, output_size, skip_offset, nullptr);
}

void conv_transpose_concat_out(const Tensor& x, const Tensor& weight, const Tensor& skip,
                               const std::optional<Tensor>& bias, const std::vector<int64_t>& stride, int64_t groups,
                               const std::vector<int64_t>& offset, const std::vector<int64_t>& output_size,
                               const std::vector<int64_t>& skip_offset, const Tensor& out) {
  run(x, weight, skip, bias, stride, groups, offset, output_size, skip_offset, &out);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("conv_transpose_concat", TORCH_BOX(&fcn::conv_transpose_concat));
  m.impl("conv_transpose_concat.out", TORCH_BOX(&fcn::conv_transpose_concat_out));
}
