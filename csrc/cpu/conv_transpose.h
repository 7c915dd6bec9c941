// What the skins of the learned transposed convolutions share: checked arguments, and the run of the kernels.
#pragma once

#include "skin.h"

namespace fcn {

// The packed weights have a part for every phase of the stride; with this bound no size of theirs overflows.
constexpr int64_t kLargestStride = int64_t{1} << 16;

// What both directions check: `y` is the output, or the gradient that arrives there.
inline ConvTransposeArgs conv_transpose_arguments(const char* op, const Tensor& x, const Tensor& weight,
                                                  const std::vector<int64_t>& stride, int64_t groups,
                                                  const std::vector<int64_t>& offset, int64_t height, int64_t width) {
  check(x.dim() == 4, op, "x must be [N, Cin, h, w], got shape ", shape_of(x));
  check(weight.dim() == 4 && weight.numel() > 0, op, "weight must be [Cin, Cout / groups, ky, kx], got shape ",
        shape_of(weight));
  check(weight.scalar_type() == x.scalar_type(), op, "weight and x must have the same dtype");
  check(x.size(1) == weight.size(0) && groups > 0 && x.size(1) % groups == 0, op, "x has ", x.size(1),
        " channels and weight ", weight.size(0), ", with groups = ", groups);
  check(x.size(2) > 0 && x.size(3) > 0, op, "x must have pixels, got shape ", shape_of(x));
  check(stride.size() == 2 && stride[0] > 0 && stride[1] > 0, op, "stride must be two positive integers");
  check(stride[0] <= kLargestStride && stride[1] <= kLargestStride, op, "stride must be at most ", kLargestStride);
  check(x.size(2) <= kLargestSize && x.size(3) <= kLargestSize, op, "x has ", x.size(2), " x ", x.size(3),
        " pixels, expected at most ", kLargestSize, " each way");
  const int64_t full_h = (x.size(2) - 1) * stride[0] + weight.size(2);
  const int64_t full_w = (x.size(3) - 1) * stride[1] + weight.size(3);
  check(offset.size() == 2 && offset[0] >= 0 && offset[1] >= 0 && height > 0 && width > 0 &&
            offset[0] <= full_h - height && offset[1] <= full_w - width,
        op, "the crop of ", height, " x ", width, " leaves the transposed convolution of ", full_h, " x ", full_w);
  ConvTransposeArgs args{};
  args.x = image_of(op, x);
  args.weight = image_of(op, weight);
  args.groups = groups;
  args.stride_h = stride[0];
  args.stride_w = stride[1];
  args.offset_h = offset[0];
  args.offset_w = offset[1];
  return args;
}

// Packs the weights, then computes all units; `more` further units, run(unit), share the threads with them.
template <typename Run>
void run_conv_transpose(ConvTransposeArgs& args, int64_t more, const Run& run) {
  const Kernels& k = kernels();
  const ConvTransposePlan plan = k.conv_transpose_plan(args);
  const Bytes packed = bytes(plan.packed_bytes);
  args.packed = packed.get();
  for_each_unit(plan.pack_units, 0, [&](int64_t unit, void*) { k.conv_transpose_pack(args, unit); });
  for_each_unit(plan.units + more, plan.scratch_bytes, [&](int64_t unit, void* scratch) {
    if (unit < plan.units) {
      k.conv_transpose_add(args, unit, scratch);
    } else {
      run(unit - plan.units);
    }
  });
}

}  // namespace fcn
