// The adjoint of upsampling, plain or through a softmax: one road for two operators' backward.
#pragma once

#include "skin.h"

namespace fcn {

inline Tensor adjoint(const char* op, const Tensor& grad_any, const std::vector<int64_t>& encoded,
                      const Tensor* softmax_any, bool log) {
  const Sampling sampling = checked_sampling(op, encoded);
  const Axis &rows = sampling.rows, &cols = sampling.cols;
  check_image(op, "grad", grad_any, rows.out, cols.out);
  const Tensor& like = softmax_any ? *softmax_any : grad_any;
  const Tensor out = empty_image(like, rows.in, cols.in, grad_any.scalar_type());
  if (out.numel() == 0) return out;
  const GeometryPlan plan(sampling, grad_any.size(0));
  UpsampleBackwardArgs args{};
  args.geometry = &plan.geometry();
  Tensor grad = grad_any, softmax, dot;
  if (softmax_any) {
    check_image(op, "output", *softmax_any, rows.out, cols.out);
    check(softmax_any->scalar_type() == grad.scalar_type() && softmax_any->numel() == grad.numel(), op,
          "grad and output must have the same shape and dtype");
    grad = torch::stable::contiguous(grad_any);
    softmax = torch::stable::contiguous(*softmax_any);
    dot = empty_vector(grad, {grad.size(0) * rows.out * cols.out}, arithmetic_dtype(grad.scalar_type()));
    args.softmax = image_of(op, softmax);
    args.dot = dot.data_ptr();
    args.log = log;
  } else {
    args.pixelwise = is_channels_last(grad);
  }
  args.grad = image_of(op, grad);
  args.output = image_of(op, out);
  const Kernels& k = kernels();
  if (softmax_any) {
    for_each_unit(grad.size(0) * rows.out, 0, [&](int64_t unit, void*) { k.softmax_dot(args, unit); });
  }
  for_each_unit(k.upsample_backward_units(args), k.upsample_backward_scratch(args),
                [&](int64_t unit, void* scratch) { k.upsample_backward(args, unit, scratch); });
  return out;
}

}  // namespace fcn
