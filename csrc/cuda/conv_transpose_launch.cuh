// What the CUDA skins of the learned transposed convolutions share: geometry of checked arguments, and the launch of
// the forward, which conv_transpose_add.cu compiles once for both.
#pragma once

#include "../conv_transpose.h"
#include "conv_transpose.cuh"
#include "launch.cuh"

namespace fcn {

// Of arguments that check_conv_transpose has seen.
inline ConvTranspose conv_transpose_of(const char* op, const Tensor& x, const Tensor& weight,
                                       const std::vector<int64_t>& stride, int64_t groups,
                                       const std::vector<int64_t>& offset, int64_t height, int64_t width) {
  check_device(op, "weight", weight, x);
  const auto axis = [&](int64_t dim, int64_t out) {
    const ConvAxis a{x.size(dim), out, weight.size(dim), stride[dim - 2], offset[dim - 2]};
    const int64_t full = (a.in - 1) * a.stride + a.kernel;
    check(full <= kLargestPlace, op, "the transposed convolution is ", full, " pixels long, expected at most ",
          kLargestPlace);
    return a;
  };
  return ConvTranspose{axis(2, height), axis(3, width), x.size(0), groups, x.size(1) / groups, weight.size(1)};
}

// A tensor's memory and strides, of whatever type.
struct AnyView {
  void* data;
  int64_t stride_n, stride_c, stride_h, stride_w;

  template <typename T>
  View<T> as() const {
    return View<T>{static_cast<T*>(data), stride_n, stride_c, stride_h, stride_w};
  }
};

inline AnyView any_view_of(const Tensor& t) {
  return AnyView{t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The pixels from (top, left) on, and the channels from `channel` on.
inline AnyView part_of(const Tensor& t, int64_t channel, int64_t top, int64_t left) {
  AnyView view = any_view_of(t);
  const int64_t elements = channel * view.stride_c + top * view.stride_h + left * view.stride_w;
  view.data = static_cast<char*>(view.data) + elements * static_cast<int64_t>(t.element_size());
  return view;
}

// y = the crop of the transposed convolution + scale * other, whose data may be null.
void launch_conv_transpose(const Launch& launch, const char* op, const ConvTranspose& c, const Tensor& x,
                           const Tensor& weight, const AnyView& other, double scale, const AnyView& y);

}  // namespace fcn
