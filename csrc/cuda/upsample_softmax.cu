// upsample_softmax (and log-softmax) and its backward on CUDA: checks, allocation, launches.
#include <algorithm>

#include "chains.cuh"
#include "gathers.cuh"
#include "upsample_softmax.cuh"

namespace fcn {
namespace {

constexpr int64_t kWantedThreads = 1 << 18;

// Calls f with how many columns of y a thread writes: 16 bytes where alignment and kTaps allow them.
template <typename T, typename F>
void with_pack(const View<T>& y, const Axis& columns, const F& f) {
  const auto fits = [&](int pack) {
    return columns.num <= 2 * columns.den / (pack - 1) && columns_wide(y, columns.out, pack);
  };
  if (fits(kWideChannels<T>)) return f(std::integral_constant<int, kWideChannels<T>>());
  if constexpr (kWideChannels<T> > 4) {
    if (fits(4)) return f(std::integral_constant<int, 4>());
  }
  f(std::integral_constant<int, 1>());
}

template <typename T>
void launch_columns(const Launch& launch, const View<const T>& x, int64_t batch, int64_t channels, const Sampling& s,
                    const Statistics<ArithmeticOf<T>>& statistics, const SplitLevels<ArithmeticOf<T>>& levels, bool log,
                    const View<T>& y) {
  const Segments rows = segments_of(s.rows, kUnitRows);
  with_pack(y, s.cols, [&](auto pack) {
    const int64_t units = batch * rows.count * (s.cols.out / pack.value);
    // Small images share their classes among several threads.
    const int64_t chunk = divided_up(channels, std::clamp<int64_t>(kWantedThreads / units, 1, 64));
    const dim3 blocks(blocks_of(units).x, static_cast<unsigned>(divided_up(channels, chunk)));
    softmax_columns<T, pack.value><<<blocks, warps_of_block(), 0, launch.stream()>>>(x, channels, chunk, s, rows, units,
                                                                                     statistics, levels, log, y);
  });
}

template <typename T>
void launch_channels(const Launch& launch, const View<const T>& x, int64_t batch, int64_t channels, const Sampling& s,
                     const Statistics<ArithmeticOf<T>>& statistics, const SplitLevels<ArithmeticOf<T>>& levels,
                     bool log, const View<T>& y) {
  const Units units = units_of(s, batch, kUnitRows, kLongest<T>);
  with_steps<T>(units.columns.steps, [&](auto steps) {
    with_width(x, channels, [&](auto wide) {
      const int64_t packs = channels / wide.value;
      int group = packs > 64 ? kWarp : 1;
      while (group < packs && group < 8) group *= 2;
      softmax_channels<T, steps.value, wide.value>
          <<<blocks_of(units.count * group), warps_of_block(), 0, launch.stream()>>>(x, channels, group, s, units,
                                                                                     statistics, levels, log, y);
    });
  });
}

Tensor upsample_softmax(const Tensor& x, const std::vector<int64_t>& encoded, bool log) {
  constexpr const char* op = "upsample_softmax";
  const Sampling s = checked_sampling(op, encoded);
  check_image(op, "x", x, s.rows.in, s.cols.in);
  const int64_t batch = x.size(0), channels = x.size(1);
  const Tensor y = empty_image(x, s.rows.out, s.cols.out, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const InputStatistics<T> statistics(launch, x, s);
    const Tensor level = arithmetic_vector<A>(x, batch * s.rows.out * s.cols.out);
    const OutputLevels<T> levels(launch, x, s, statistics.of, level);
    const auto start = is_channels_last(y) ? launch_channels<T> : launch_columns<T>;
    start(launch, view_of<const T>(x), batch, channels, s, statistics.of, levels.of, log, view_of<T>(y));
  });
  launch.finish();
  return y;
}

template <typename T>
void launch_sums(const Launch& launch, const View<const T>& grad, const View<const T>& output, int64_t batch,
                 int64_t channels, const Sampling& s, bool log, ArithmeticOf<T>* total) {
  constexpr int kWide = kWideChannels<T>;
  const int64_t height = s.rows.out, width = s.cols.out, pixels = batch * height * width;
  const auto start = [&](auto group, auto wide) {
    const int64_t threads = group.value == 1 ? divided_up(pixels, wide.value) : pixels * group.value;
    class_sums<T, group.value, wide.value><<<blocks_of(threads), warps_of_block(), 0, launch.stream()>>>(
        grad, output, channels, height, width, pixels, log, total);
  };
  using One = std::integral_constant<int, 1>;
  using Wide = std::integral_constant<int, kWide>;
  using Warp = std::integral_constant<int, kWarp>;
  if (columns_wide(grad, width, kWide) && columns_wide(output, width, kWide)) {
    start(One(), Wide());
  } else if (output.stride_c != 1 || channels == 1) {
    start(One(), One());
  } else if (reads_wide(grad, channels, kWide) && reads_wide(output, channels, kWide)) {
    start(Warp(), Wide());
  } else {
    start(Warp(), One());
  }
}

Tensor upsample_softmax_backward(const Tensor& grad, const Tensor& output, const std::vector<int64_t>& encoded,
                                 bool log) {
  constexpr const char* op = "upsample_softmax_backward";
  const Sampling s = checked_sampling(op, encoded);
  check_image(op, "grad", grad, s.rows.out, s.cols.out);
  check_image(op, "output", output, s.rows.out, s.cols.out);
  check(output.scalar_type() == grad.scalar_type() && same_sizes(output, grad), op,
        "grad and output must have the same shape and dtype");
  check(grad.is_cuda() && grad.get_device_index() == output.get_device_index(), op,
        "grad and output must be on one device");
  const Tensor dx = empty_image(output, s.rows.in, s.cols.in, output.scalar_type());
  if (dx.numel() == 0) return dx;
  const Launch launch(op, output);
  visit_dtype(op, output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const int64_t batch = output.size(0), channels = output.size(1);
    const View<const T> given = view_of<const T>(grad), p = view_of<const T>(output);
    const Tensor total = arithmetic_vector<A>(output, batch * s.rows.out * s.cols.out);
    launch_sums<T>(launch, given, p, batch, channels, s, log, data_of<A>(total));
    launch.finish();
    const SoftmaxGradient<T> source{given, p, data_of<const A>(total), s.rows.out, s.cols.out, log};
    launch_gather(launch, source, dx, s);
  });
  launch.finish();
  return dx;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("upsample_softmax", TORCH_BOX(&fcn::upsample_softmax));
  m.impl("upsample_softmax_backward", TORCH_BOX(&fcn::upsample_softmax_backward));
}
