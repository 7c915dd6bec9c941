// upsample_confusion_matrix on CUDA: checks, allocation, launches. A wrong label raises, as everywhere: this is the one
// operator that looks at a result on the host, since counts cannot say NaN. While a graph is captured nobody may look,
// and a wrong label makes every count -1 instead.
#include <algorithm>

#include "argmax.h"
#include "chains.cuh"
#include "upsample_confusion_matrix.cuh"

namespace fcn {
namespace {

constexpr const char* kName = "upsample_confusion_matrix";
constexpr int64_t kMostCopies = 64, kMostCounts = 1 << 20;

// A number that the kernels before it have written.
template <typename Number>
Number read_back(const Launch& launch, const void* from) {
  Number value;
  launch.check_call(cudaMemcpyAsync(&value, from, sizeof(value), cudaMemcpyDeviceToHost, launch.stream()));
  launch.check_call(cudaStreamSynchronize(launch.stream()));
  return value;
}

int64_t read_label(const Launch& launch, const Tensor& target, int64_t at) {
  const char* from = static_cast<const char*>(target.data_ptr()) + at * static_cast<int64_t>(target.element_size());
  switch (target.scalar_type()) {
    case ScalarType::Byte:
      return read_back<uint8_t>(launch, from);
    case ScalarType::Short:
      return read_back<int16_t>(launch, from);
    case ScalarType::Int:
      return read_back<int32_t>(launch, from);
    default:
      return read_back<int64_t>(launch, from);
  }
}

Tensor upsample_confusion_matrix(const Tensor& x, const Tensor& target, const std::vector<int64_t>& encoded,
                                 std::optional<int64_t> ignore_index) {
  const Sampling s = checked_sampling(kName, encoded);
  check_image(kName, "x", x, s.rows.in, s.cols.in);
  const int64_t classes = x.size(1), size = classes * classes, height = s.rows.out, width = s.cols.out;
  check(classes > 0 && classes < (int64_t{1} << 15), kName, "x has ", classes, " classes, expected 1 to 32767");
  check_label_image(kName, target, x, s);
  check_device(kName, "target", target, x);
  const Labels labels{target.data_ptr(),
                      kind_of(kName, target.scalar_type()),
                      target.stride(0),
                      target.stride(1),
                      target.stride(2),
                      ignore_index.value_or(0),
                      classes};
  const int copies = static_cast<int>(std::clamp<int64_t>(kMostCounts / size, 1, kMostCopies));
  const Tensor winners = empty_vector(x, {x.size(0), height, width}, ScalarType::Int);
  const Tensor counts = empty_vector(x, {copies * size + 1}, ScalarType::Long);
  const Tensor matrix = empty_vector(x, {classes, classes}, ScalarType::Long);
  find_labels(kName, x, s, winners);

  const Launch launch(kName, x);
  Count* const all = data_of<Count>(counts);
  long long* const first_wrong = data_of<long long>(counts) + copies * size;
  launch.check_call(cudaMemsetAsync(all, 0, copies * size * sizeof(Count), launch.stream()));
  launch.check_call(cudaMemsetAsync(first_wrong, kNoPixelByte, sizeof(kNoPixel), launch.stream()));
  const int64_t pixels = winners.numel();
  if (pixels > 0) {
    count_pairs<<<blocks_of(pixels), warps_of_block(), 0, launch.stream()>>>(data_of<const int32_t>(winners), labels,
                                                                             ignore_index.has_value(), height, width,
                                                                             pixels, copies, all, first_wrong);
  }
  add_copies<<<blocks_of(size), warps_of_block(), 0, launch.stream()>>>(all, size, copies, first_wrong,
                                                                        data_of<int64_t>(matrix));
  launch.finish();
  if (launch.capturing()) return matrix;
  const long long wrong = read_back<long long>(launch, first_wrong);
  if (wrong != kNoPixel) {
    const int64_t n = wrong / width / height, y = wrong / width % height, column = wrong % width;
    const int64_t at = n * target.stride(0) + y * target.stride(1) + column * target.stride(2);
    fail_on_label(kName, {n, y, column}, read_label(launch, target, at), classes, ignore_index);
  }
  return matrix;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("upsample_confusion_matrix", TORCH_BOX(&fcn::upsample_confusion_matrix));
}
