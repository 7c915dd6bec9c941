// upsample_sigmoid and its backward on CUDA: checks, allocation, launches.
#include "adjoints.cuh"
#include "streams.cuh"
#include "upsample_sigmoid.cuh"

namespace fcn {
namespace {

Tensor upsample_sigmoid(const Tensor& x, const std::vector<int64_t>& sampling) {
  const char* op = "upsample_sigmoid";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "x", x, s.rows.in, s.cols.in);
  const Tensor y = empty_image(x, s.rows.out, s.cols.out, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) { launch_forward<decltype(zero)>(launch, x, y, s, Sigmoid()); });
  launch.finish();
  return y;
}

Tensor upsample_sigmoid_backward(const Tensor& grad, const Tensor& output, const std::vector<int64_t>& sampling) {
  const char* op = "upsample_sigmoid_backward";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "grad", grad, s.rows.out, s.cols.out);
  check_image(op, "output", output, s.rows.out, s.cols.out);
  check(output.scalar_type() == grad.scalar_type() && same_sizes(output, grad), op,
        "grad and output must have the same shape and dtype");
  check_device(op, "output", output, grad);
  const Tensor dx = empty_image(output, s.rows.in, s.cols.in, grad.scalar_type());
  if (dx.numel() == 0) return dx;
  const Launch launch(op, grad);
  visit_dtype(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch_adjoint(launch, SigmoidGradient<T>{{view_of<const T>(grad)}, {view_of<const T>(output)}}, dx, s);
  });
  launch.finish();
  return dx;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("upsample_sigmoid", TORCH_BOX(&fcn::upsample_sigmoid));
  m.impl("upsample_sigmoid_backward", TORCH_BOX(&fcn::upsample_sigmoid_backward));
}
