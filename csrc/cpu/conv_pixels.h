// Transposed convolutions of one channel per group on images whose channels stand together in every pixel: they are the
// lanes, so that pixels, weights and sums are whole vectors at any stride, and nothing is transposed or repeated.
#pragma once

#include "conv_parts.h"

namespace fcn {
namespace FCN_ISA {

inline bool is_pixels(const ConvTransposeArgs& a) {
  return a.weight.batch == a.groups && a.weight.channels == 1 && a.pixelwise && a.x.stride_c == 1 &&
         a.output.stride_c == 1 && (!a.skip.data || a.skip.stride_c == 1) && (!a.grad_x.data || a.grad_x.stride_c == 1);
}

ConvTransposePlan pixels_plan(const ConvTransposeArgs&);
void pixels_pack(const ConvTransposeArgs&, int64_t unit);  // in both directions
void pixels_forward(const ConvTransposeArgs&, int64_t unit, void* scratch);

int64_t pixels_parts(const ConvTransposeArgs&);
ConvTransposePlan pixels_backward_plan(const ConvTransposeArgs&);
void pixels_backward(const ConvTransposeArgs&, int64_t unit, void* scratch);

}  // namespace FCN_ISA
}  // namespace fcn
