// upsample_confusion_matrix on the CPU: a set of tables per worker, added up at the end. Integers: any order gives the
// same sum.
#include "loss.h"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_confusion_matrix";

Tensor upsample_confusion_matrix(const Tensor& x, const Tensor& target_any, const std::vector<int64_t>& encoded,
                                 std::optional<int64_t> ignore_index) {
  const Sampling sampling = checked_sampling(kName, encoded);
  const Axis &rows = sampling.rows, &cols = sampling.cols;
  check_image(kName, "x", x, rows.in, cols.in);
  const int64_t classes = x.size(1);
  check(classes > 0 && classes < (int64_t{1} << 15), kName, "x has ", classes, " classes, expected 1 to 32767");
  const Tensor target = as_contiguous(target_any);
  check_label_image(kName, target, x, sampling);
  const GeometryPlan plan(sampling, x.size(0));
  const int64_t together = units_together(x.size(0) * plan.geometry().unit_count);
  const int64_t units = (x.size(0) * plan.geometry().unit_count + together - 1) / together;
  std::vector<int64_t> bad_label(units, -1);
  const ConfusionMatrixArgs args{&plan.geometry(),         image_of(kName, x),
                                 target.const_data_ptr(),  label_type_of(kName, "target", target.scalar_type()),
                                 ignore_index.has_value(), ignore_index.value_or(0),
                                 bad_label.data(),         together};
  const int64_t size = confusion_table_size(classes), tables = confusion_tables(classes);
  const int64_t workers = worker_count(units), count = workers * tables * size;
  const Bytes memory = bytes(count, sizeof(int64_t));
  int64_t* counts = reinterpret_cast<int64_t*>(memory.get());
  std::fill_n(counts, count, 0);
  const Kernels& k = kernels();
  const auto run = [&](int64_t unit, void* scratch, int64_t worker) {
    k.confusion_matrix(args, unit, counts + worker * tables * size, scratch);
  };
  for_each_unit(units, k.confusion_matrix_scratch(args), run, workers);
  for (int64_t bad : bad_label) {
    if (bad >= 0) report_bad_label(kName, target, bad, classes, ignore_index);
  }
  const Tensor result = empty_vector(x, {classes, classes}, ScalarType::Long);
  int64_t* out = static_cast<int64_t*>(result.data_ptr());
  for (int64_t i = 0; i < classes * classes; ++i) {  // the row of the labels that do not count is left out
    out[i] = 0;
    for (int64_t table = i; table < count; table += size) out[i] += counts[table];
  }
  return result;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CPU, m) {
  m.impl("upsample_confusion_matrix", TORCH_BOX(&fcn::upsample_confusion_matrix));
}
