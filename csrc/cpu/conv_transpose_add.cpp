// conv_transpose_add and its gradients on the CPU.
#include "conv_transpose.h"

namespace fcn {
namespace {

Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& skip, const std::vector<int64_t>& stride,
           int64_t groups, const std::vector<int64_t>& offset, const std::vector<int64_t>& output_size,
           const std::vector<int64_t>& skip_offset, double skip_scale, const Tensor* given) {
  constexpr const char* op = "conv_transpose_add";
  check(output_size.size() == 2, op, "output_size must be two integers");
  const int64_t height = output_size[0], width = output_size[1];
  ConvTransposeArgs args = conv_transpose_arguments(op, x, weight, stride, groups, offset, height, width);
  const int64_t channels = weight.size(1) * groups;
  const Tensor out = image_or(op, given, x, channels, height, width);
  if (out.numel() == 0) return out;
  args.output = image_of(op, out);
  args.pixelwise = is_channels_last(out);
  args.skip_scale = skip_scale;
  if (skip) {
    check_added(op, *skip, x, channels, height, width);
    args.skip = window_of(op, "skip", *skip, skip_offset, height, width);
  }
  run_conv_transpose(args, 0, [](int64_t) {});
  return out;
}

Tensor conv_transpose_add(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& skip,
                          const std::vector<int64_t>& stride, int64_t groups, const std::vector<int64_t>& offset,
                          const std::vector<int64_t>& output_size, const std::vector<int64_t>& skip_offset,
                          double skip_scale) {
  return run(x, weight, skip, stride, groups, offset, output_size, skip_offset, skip_scale, nullptr);
}

void conv_transpose_add_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& skip,
                            const std::vector<int64_t>& stride, int64_t groups, const std::vector<int64_t>& offset,
                            const std::vector<int64_t>& output_size, const std::vector<int64_t>& skip_offset,
                            double skip_scale, const Tensor& out) {
  run(x, weight, skip, stride, groups, offset, output_size, skip_offset, skip_scale, &out);
}

std::tuple<Tensor, Tensor> conv_transpose_add_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                       const std::vector<int64_t>& stride, int64_t groups,
                                                       const std::vector<int64_t>& offset, bool need_x,
                                                       bool need_weight) {
  constexpr const char* op = "conv_transpose_add_backward";
  check_gradient(op, grad, x, weight, stride, groups, offset);
  ConvTransposeArgs args = conv_transpose_arguments(op, x, weight, stride, groups, offset, grad.size(2), grad.size(3));
  const ScalarType dtype = x.scalar_type();
  const Tensor grad_x = need_x ? empty_image(x, x.size(1), x.size(2), x.size(3), dtype) : empty_vector(x, {0}, dtype);
  std::vector<int64_t> shape{0};
  if (need_weight) shape = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  Tensor grad_weight = empty_vector(weight, shape, dtype);
  if (x.size(0) == 0 || (!need_x && !need_weight)) {
    if (need_weight) torch::stable::zero_(grad_weight);
    return {grad_x, grad_weight};
  }
  args.output = image_of(op, grad);
  args.pixelwise = grad.stride(1) == 1 && grad.size(1) > 1 && grad.stride(3) != 1;
  if (need_x) args.grad_x = image_of(op, grad_x);
  if (need_weight) args.grad_weight = image_of(op, grad_weight);
  const Kernels& k = kernels();
  const ConvTransposePlan plan = k.conv_transpose_backward_plan(args);
  const Bytes packed = bytes(plan.packed_bytes), parts = bytes(plan.parts_bytes);
  args.packed = packed.get();
  args.parts = parts.get();
  for_each_unit(plan.pack_units, 0, [&](int64_t unit, void*) { k.conv_transpose_backward_pack(args, unit); });
  for_each_unit(plan.units, plan.scratch_bytes,
                [&](int64_t unit, void* scratch) { k.conv_transpose_backward(args, unit, scratch); });
  for_each_unit(plan.sum_units, 0, [&](int64_t unit, void*) { k.conv_transpose_sum_parts(args, unit); });
  return {grad_x, grad_weight};
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("conv_transpose_add", TORCH_BOX(&fcn::conv_transpose_add));
  m.impl("conv_transpose_add.out", TORCH_BOX(&fcn::conv_transpose_add_out));
  m.impl("conv_transpose_add_backward", TORCH_BOX(&fcn::conv_transpose_add_backward));
}
