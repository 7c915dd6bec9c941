// Transposed convolutions whose kernel is their stride: every pixel of x becomes a patch of its own, so that y and the
// gradients are products of matrices (per image and group),
//   y [m][p] = bias[m] + sum over k of  w[k][m] x[k][p]
//   grad x [k][p] = sum over m of  w[k][m] g[m][p]
//   grad w [k][m] = sum over p of  x[k][p] g[m][p]
// with k the input channel, p the pixel of x, and m = (co, ky, kx) the place in the patch. x is packed, and patches are
// gathered and scattered, a block at a time: no matrix of them exists.
#pragma once

#include "dtype.h"

namespace fcn {
namespace FCN_ISA {

// Fewer products than these per output do not pay for the packing, nor do other widths: conv_lines.h serves.
constexpr int64_t kPatchInputs = 16;

inline bool is_patches(const ConvTransposeArgs& a) {
  const int64_t ky = a.weight.height, kx = a.weight.width;
  return ky == a.stride_h && kx == a.stride_w && a.weight.batch / a.groups >= kPatchInputs &&
         (kx == 1 || kx == 2 || kx == 4);
}

ConvTransposePlan patches_plan(const ConvTransposeArgs&);
void patches_pack(const ConvTransposeArgs&, int64_t unit);
void patches_forward(const ConvTransposeArgs&, int64_t unit, void* scratch);
ConvTransposePlan patches_backward_plan(const ConvTransposeArgs&);
void patches_backward_pack(const ConvTransposeArgs&, int64_t unit);
void patches_backward(const ConvTransposeArgs&, int64_t unit, void* scratch);
int64_t patches_parts(const ConvTransposeArgs&);  // of the gradient of the weights

}  // namespace FCN_ISA
}  // namespace fcn
