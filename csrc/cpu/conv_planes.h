// Transposed convolutions of one channel per group on images that stand plane by plane: no channel shares its lines
// with another, and a unit of work is a part of one plane, which keeps its rows, weights and sums to itself.
#pragma once

#include "conv_parts.h"

namespace fcn {
namespace FCN_ISA {

// A partial tap would need masks (see conv_lines.h).
inline bool is_depthwise_in_planes(const ConvTransposeArgs& a) {
  return a.weight.batch == a.groups && a.weight.channels == 1 && !a.pixelwise && a.output.stride_w == 1;
}

bool is_planes(const ConvTransposeArgs&);
ConvTransposePlan planes_plan(const ConvTransposeArgs&);
void planes_forward(const ConvTransposeArgs&, int64_t unit, void* scratch);

// Both gradients come out of one pass, which is faster than either of conv_lines.h's, also where one is not wanted.
// A partial tap would need masks.
inline bool is_planes_backward(const ConvTransposeArgs& a) {
  return is_depthwise_in_planes(a) && a.weight.width % a.stride_w == 0;
}
inline int64_t planes_parts(const ConvTransposeArgs& a) {
  const int64_t rows = a.x.batch * a.x.height;
  return sum_parts(a.groups, rows * a.x.width, rows);
}
ConvTransposePlan planes_backward_plan(const ConvTransposeArgs&);
void planes_backward(const ConvTransposeArgs&, int64_t unit, void* scratch);

}  // namespace FCN_ISA
}  // namespace fcn
