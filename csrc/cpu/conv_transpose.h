// What the CPU skins of the learned transposed convolutions share: arguments, and the run of the kernels.
#pragma once

#include "../conv_transpose.h"
#include "skin.h"

namespace fcn {

// Checked arguments of both directions, without the output.
inline ConvTransposeArgs conv_transpose_arguments(const char* op, const Tensor& x, const Tensor& weight,
                                                  const std::vector<int64_t>& stride, int64_t groups,
                                                  const std::vector<int64_t>& offset, int64_t height, int64_t width) {
  check_conv_transpose(op, x, weight, stride, groups, offset, height, width);
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
