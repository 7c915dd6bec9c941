// upsample_argmax on the CPU.
#include "skin.h"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_argmax";

std::tuple<Tensor, Tensor> run(const Tensor& x, const std::vector<int64_t>& encoded, ScalarType dtype, bool confidence,
                               const Tensor* labels_out, const Tensor* confidence_out) {
  const Sampling sampling = checked_sampling(kName, encoded);
  const Axis &rows = sampling.rows, &cols = sampling.cols;
  check_image(kName, "x", x, rows.in, cols.in);
  check(x.size(1) > 0, kName, "x must have at least one class");
  const std::vector<int64_t> size{x.size(0), rows.out, cols.out};
  const Tensor labels = vector_or(kName, labels_out, x, size, dtype);
  const Tensor winner = vector_or(kName, confidence_out, x, confidence ? size : std::vector<int64_t>{0},
                                  arithmetic_dtype(x.scalar_type()));
  if (labels.numel() == 0) return {labels, winner};
  const LabelType type = label_type_of(kName, "dtype", dtype);
  check_holds(kName, type, x.size(1));
  const GeometryPlan plan(sampling, x.size(0));
  const int64_t units = x.size(0) * plan.geometry().unit_count;
  const int64_t together = units_together(units);
  const ArgmaxArgs args{
      &plan.geometry(), image_of(kName, x), labels.data_ptr(), type, confidence ? winner.data_ptr() : nullptr,
      together};
  const Kernels& k = kernels();
  for_each_unit((units + together - 1) / together, k.argmax_scratch(args),
                [&](int64_t unit, void* scratch) { k.argmax(args, unit, scratch); });
  return {labels, winner};
}

std::tuple<Tensor, Tensor> upsample_argmax(const Tensor& x, const std::vector<int64_t>& encoded, ScalarType dtype,
                                           bool confidence) {
  return run(x, encoded, dtype, confidence, nullptr, nullptr);
}

void upsample_argmax_out(const Tensor& x, const std::vector<int64_t>& encoded, ScalarType dtype, bool confidence,
                         const Tensor& labels_out, const Tensor& confidence_out) {
  run(x, encoded, dtype, confidence, &labels_out, &confidence_out);
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("upsample_argmax", TORCH_BOX(&fcn::upsample_argmax));
  m.impl("upsample_argmax.out", TORCH_BOX(&fcn::upsample_argmax_out));
}
