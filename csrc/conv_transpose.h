// What every skin of the learned transposed convolutions checks before it touches memory.
#pragma once

#include <optional>

#include "checks.h"

namespace fcn {

// The packed weights of the CPU have a part for every phase of the stride; with this bound no size of theirs overflows.
constexpr int64_t kLargestStride = int64_t{1} << 16;

// Both directions: the crop of height x width is that of the output, or of the gradient that arrives there.
inline void check_conv_transpose(const char* op, const Tensor& x, const Tensor& weight,
                                 const std::vector<int64_t>& stride, int64_t groups, const std::vector<int64_t>& offset,
                                 int64_t height, int64_t width) {
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
}

// What is added to a result of this size.
inline void check_added(const char* op, const Tensor& skip, const Tensor& x, int64_t channels, int64_t height,
                        int64_t width) {
  check(skip.dim() == 4 && skip.size(0) == x.size(0) && skip.size(1) == channels, op, "skip is ", shape_of(skip),
        " but the result is ", shape_of({x.size(0), channels, height, width}), ": batch and channels must be the same");
  check(skip.scalar_type() == x.scalar_type(), op, "skip and x must have the same dtype");
}

// What stands beside a result of so many channels.
inline void check_beside(const char* op, const Tensor& skip, const std::optional<Tensor>& bias, const Tensor& x,
                         int64_t channels) {
  check(skip.dim() == 4 && skip.size(0) == x.size(0) && skip.size(1) > 0, op, "skip must have ", x.size(0),
        " images, got shape ", shape_of(skip));
  check(skip.scalar_type() == x.scalar_type(), op, "skip and x must have the same dtype");
  if (!bias) return;
  check(bias->dim() == 1 && bias->size(0) == channels && bias->scalar_type() == x.scalar_type(), op, "bias must be [",
        channels, "] in the dtype of x, got shape ", shape_of(*bias));
}

inline void check_gradient(const char* op, const Tensor& grad, const Tensor& x, const Tensor& weight,
                           const std::vector<int64_t>& stride, int64_t groups, const std::vector<int64_t>& offset) {
  check(grad.dim() == 4 && grad.size(0) == x.size(0), op, "grad must be [N, Cout, H, W] with N = ", x.size(0),
        ", got shape ", shape_of(grad));
  check_conv_transpose(op, x, weight, stride, groups, offset, grad.size(2), grad.size(3));
  check(grad.size(1) == weight.size(1) * groups, op, "grad has ", grad.size(1), " channels, expected ",
        weight.size(1) * groups);
  check(grad.scalar_type() == x.scalar_type(), op, "grad and x must have the same dtype");
}

}  // namespace fcn
