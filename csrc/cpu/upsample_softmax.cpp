// upsample_softmax (and log-softmax) and its backward on the CPU.
#include "streaming.h"

namespace fcn {
namespace {

Tensor run(const Tensor& x, const std::vector<int64_t>& encoded, bool log, const Tensor* given) {
  constexpr const char* op = "upsample_softmax";
  const Sampling sampling = checked_sampling(op, encoded);
  check_image(op, "x", x, sampling.rows.in, sampling.cols.in);
  const Tensor out = image_or(op, given, x, x.size(1), sampling.rows.out, sampling.cols.out);
  if (out.numel() == 0) return out;
  const GeometryPlan plan(sampling, x.size(0));
  const SoftmaxArgs args{&plan.geometry(), image_of(op, x), image_of(op, out), log, is_channels_last(x)};
  const Kernels& k = kernels();
  for_each_unit(x.size(0) * plan.geometry().unit_count, k.softmax_scratch(args),
                [&](int64_t unit, void* scratch) { k.softmax(args, unit, scratch); });
  return out;
}

Tensor upsample_softmax(const Tensor& x, const std::vector<int64_t>& encoded, bool log) {
  return run(x, encoded, log, nullptr);
}

void upsample_softmax_out(const Tensor& x, const std::vector<int64_t>& encoded, bool log, const Tensor& out) {
  run(x, encoded, log, &out);
}

Tensor upsample_softmax_backward(const Tensor& grad, const Tensor& output, const std::vector<int64_t>& sampling,
                                 bool log) {
  return adjoint("upsample_softmax_backward", grad, sampling, log ? Through::kLogSoftmax : Through::kSoftmax, &output);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("upsample_softmax", TORCH_BOX(&fcn::upsample_softmax));
  m.impl("upsample_softmax.out", TORCH_BOX(&fcn::upsample_softmax_out));
  m.impl("upsample_softmax_backward", TORCH_BOX(&fcn::upsample_softmax_backward));
}
