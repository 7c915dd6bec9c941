// upsample_argmax on CUDA: checks, allocation, launches.
#include "argmax.h"
#include "chains.cuh"
#include "upsample_argmax.cuh"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_argmax";

// The argmax of every input pixel.
template <typename T>
Tensor input_winners(const Launch& launch, const Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3), pixels = x.size(0) * height * width, channels = x.size(1);
  const Tensor winners = empty_vector(x, {pixels}, ScalarType::Int);
  const View<const T> view = view_of<const T>(x);
  const auto start = [&](auto group, auto wide) {
    class_winners<T, group.value, wide.value>
        <<<blocks_of(pixels * group.value), warps_of_block(), 0, launch.stream()>>>(view, channels, height, width,
                                                                                    pixels, data_of<int32_t>(winners));
  };
  with_lanes(view, channels, start);
  launch.finish();
  return winners;
}

std::tuple<Tensor, Tensor> upsample_argmax(const Tensor& x, const std::vector<int64_t>& encoded, ScalarType dtype,
                                           bool confidence) {
  const Sampling s = checked_sampling(kName, encoded);
  check_image(kName, "x", x, s.rows.in, s.cols.in);
  const int64_t classes = x.size(1);
  check(classes > 0, kName, "x must have at least one class");
  const LabelKind kind = kind_of(kName, dtype, "dtype");
  check(kind != LabelKind::kUInt8 || classes <= 256, kName, "uint8 labels cannot hold class ", classes - 1);
  check(kind != LabelKind::kInt16 || classes <= 32768, kName, "int16 labels cannot hold class ", classes - 1);
  const std::vector<int64_t> size{x.size(0), s.rows.out, s.cols.out};
  const Tensor labels = empty_vector(x, size, dtype);
  const Tensor sure = empty_vector(x, confidence ? size : std::vector<int64_t>{0}, arithmetic_dtype(x.scalar_type()));
  if (labels.numel() == 0) return {labels, sure};
  find_labels(kName, x, s, labels);
  if (!confidence) return {labels, sure};
  const Launch launch(kName, x);
  visit_dtype(kName, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const InputStatistics<T> statistics(launch, x, s);
    const OutputLevels<T> levels(launch, x, s, statistics.of, sure);
    const Labels found{labels.data_ptr(), kind, labels.stride(0), labels.stride(1), labels.stride(2), -1, classes};
    label_probabilities<T><<<blocks_of(labels.numel()), warps_of_block(), 0, launch.stream()>>>(
        view_of<const T>(x), s, labels.numel(), statistics.of, levels.of, found);
  });
  launch.finish();
  return {labels, sure};
}

}  // namespace

void find_labels(const char* op, const Tensor& x, const Sampling& s, const Tensor& labels) {
  if (labels.numel() == 0) return;
  const LabelKind kind = kind_of(op, labels.scalar_type(), "labels");
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Tensor winners = input_winners<T>(launch, x);
    const Units units = units_of(s, x.size(0), kUnitRows, kLongest<T>);
    const View<const T> view = view_of<const T>(x);
    with_steps<T>(units.columns.steps, [&](auto steps) {
      with_width(view, x.size(1), [&](auto wide) {
        argmax_units<T, steps.value, wide.value><<<blocks_of(units.count), warps_of_block(), 0, launch.stream()>>>(
            view, x.size(1), s, units, data_of<const int32_t>(winners), labels.data_ptr(), kind);
      });
    });
  });
  launch.finish();
}

}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) { m.impl("upsample_argmax", TORCH_BOX(&fcn::upsample_argmax)); }
