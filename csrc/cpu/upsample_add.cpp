// upsample, upsample_add and upsample_sigmoid with their adjoints on the CPU.
#include "streaming.h"

namespace fcn {
namespace {

Tensor run(const char* op, const Tensor& x, const std::vector<int64_t>& encoded, const Tensor* skip,
           const std::vector<int64_t>& offset, double scale, const Tensor* given, bool sigmoid = false) {
  const Sampling sampling = checked_sampling(op, encoded);
  const Axis &rows = sampling.rows, &cols = sampling.cols;
  check_image(op, "x", x, rows.in, cols.in);
  const Tensor out = image_or(op, given, x, x.size(1), rows.out, cols.out);
  if (out.numel() == 0) return out;
  const GeometryPlan plan(sampling, x.size(0));
  UpsampleArgs args{};
  args.geometry = &plan.geometry();
  args.x = image_of(op, x);
  args.pixelwise = is_channels_last(x);
  args.output = image_of(op, out);
  args.skip_scale = scale;
  args.sigmoid = sigmoid;
  if (skip) {
    check(skip->dim() == 4 && skip->size(0) == x.size(0) && skip->size(1) == x.size(1), op, "skip is ", shape_of(*skip),
          " but x is ", shape_of(x), ": batch and channels must be the same");
    check(skip->scalar_type() == x.scalar_type(), op, "skip and x must have the same dtype");
    args.skip = window_of(op, "skip", *skip, offset, rows.out, cols.out);
  }
  const Kernels& k = kernels();
  for_each_unit(k.upsample_units(args), k.upsample_scratch(args),
                [&](int64_t unit, void* scratch) { k.upsample(args, unit, scratch); });
  return out;
}

Tensor upsample(const Tensor& x, const std::vector<int64_t>& sampling) {
  return run("upsample", x, sampling, nullptr, {}, 1.0, nullptr);
}

void upsample_out(const Tensor& x, const std::vector<int64_t>& sampling, const Tensor& out) {
  run("upsample", x, sampling, nullptr, {}, 1.0, &out);
}

Tensor upsample_add(const Tensor& x, const Tensor& skip, const std::vector<int64_t>& sampling,
                    const std::vector<int64_t>& skip_offset, double skip_scale) {
  return run("upsample_add", x, sampling, &skip, skip_offset, skip_scale, nullptr);
}

void upsample_add_out(const Tensor& x, const Tensor& skip, const std::vector<int64_t>& sampling,
                      const std::vector<int64_t>& skip_offset, double skip_scale, const Tensor& out) {
  run("upsample_add", x, sampling, &skip, skip_offset, skip_scale, &out);
}

Tensor upsample_backward(const Tensor& grad, const std::vector<int64_t>& encoded) {
  return adjoint("upsample_backward", grad, encoded);
}

Tensor upsample_sigmoid(const Tensor& x, const std::vector<int64_t>& sampling) {
  return run("upsample_sigmoid", x, sampling, nullptr, {}, 1.0, nullptr, true);
}

void upsample_sigmoid_out(const Tensor& x, const std::vector<int64_t>& sampling, const Tensor& out) {
  run("upsample_sigmoid", x, sampling, nullptr, {}, 1.0, &out, true);
}

Tensor upsample_sigmoid_backward(const Tensor& grad, const Tensor& output, const std::vector<int64_t>& encoded) {
  return adjoint("upsample_sigmoid_backward", grad, encoded, Through::kSigmoid, &output);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("upsample", TORCH_BOX(&fcn::upsample));
  m.impl("upsample.out", TORCH_BOX(&fcn::upsample_out));
  m.impl("upsample_add", TORCH_BOX(&fcn::upsample_add));
  m.impl("upsample_add.out", TORCH_BOX(&fcn::upsample_add_out));
  m.impl("upsample_backward", TORCH_BOX(&fcn::upsample_backward));
  m.impl("upsample_sigmoid", TORCH_BOX(&fcn::upsample_sigmoid));
  m.impl("upsample_sigmoid.out", TORCH_BOX(&fcn::upsample_sigmoid_out));
  m.impl("upsample_sigmoid_backward", TORCH_BOX(&fcn::upsample_sigmoid_backward));
}
