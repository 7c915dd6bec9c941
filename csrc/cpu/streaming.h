// The adjoint of upsampling, plain or through a function of the logits: one road for three operators' backward.
#pragma once

#include "skin.h"

namespace fcn {

// `function_any`: the output of the function that the gradient passes, for any but Through::kNothing.
inline Tensor adjoint(const char* op, const Tensor& grad_any, const std::vector<int64_t>& encoded,
                      Through through = Through::kNothing, const Tensor* function_any = nullptr) {
  const Sampling sampling = checked_sampling(op, encoded);
  const Axis &rows = sampling.rows, &cols = sampling.cols;
  check_image(op, "grad", grad_any, rows.out, cols.out);
  const Tensor& like = function_any ? *function_any : grad_any;
  const Tensor out = empty_image(like, rows.in, cols.in, grad_any.scalar_type());
  if (out.numel() == 0) return out;
  const GeometryPlan plan(sampling, grad_any.size(0));
  UpsampleBackwardArgs args{};
  args.geometry = &plan.geometry();
  args.through = through;
  args.pixelwise = is_channels_last(grad_any);
  Tensor grad = grad_any, function, dot;
  if (function_any) {
    function = *function_any;
    check_image(op, "output", function, rows.out, cols.out);
    check(function.scalar_type() == grad.scalar_type() && same_sizes(function, grad), op,
          "grad and output must have the same shape and dtype");
    const bool softmax = through != Through::kSigmoid;
    args.pixelwise = args.pixelwise && is_channels_last(function) && !softmax;
    if (!args.pixelwise) {
      grad = as_contiguous(grad);
      function = as_contiguous(function);
    }
    args.function = image_of(op, function);
    if (softmax) {
      dot = empty_vector(grad, {grad.size(0) * rows.out * cols.out}, arithmetic_dtype(grad.scalar_type()));
      args.dot = dot.data_ptr();
    }
  }
  args.grad = image_of(op, grad);
  args.output = image_of(op, out);
  const Kernels& k = kernels();
  if (args.dot) {
    for_each_unit(grad.size(0) * rows.out, 0, [&](int64_t unit, void*) { k.softmax_dot(args, unit); });
  }
  for_each_unit(k.upsample_backward_units(args), k.upsample_backward_scratch(args),
                [&](int64_t unit, void* scratch) { k.upsample_backward(args, unit, scratch); });
  return out;
}

}  // namespace fcn
