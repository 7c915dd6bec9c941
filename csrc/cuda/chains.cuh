// How the kernels over geometric progressions are launched: their memory, and the choice of how wide they read.
#pragma once

#include "launch.cuh"
#include "logsumexp.cuh"

namespace fcn {

// Calls f(std::integral_constant<int, wide>()) with the widest access that x allows.
template <typename T, typename F>
void with_width(const View<const T>& x, int64_t channels, const F& f) {
  if (reads_wide(x, channels, kWideChannels<T>)) return f(std::integral_constant<int, kWideChannels<T>>());
  f(std::integral_constant<int, 1>());
}

// Calls f(lanes, wide): how many lanes share an input pixel of x, and how many channels each reads at a time.
template <typename T, typename F>
void with_lanes(const View<const T>& x, int64_t channels, const F& f) {
  using One = std::integral_constant<int, 1>;
  using Warp = std::integral_constant<int, kWarp>;
  if (x.stride_c != 1 || channels == 1) return f(One(), One());
  with_width(x, channels, [&](auto wide) { f(Warp(), wide); });
}

// The longest segment, and a call of f with a constant that is no less than `steps`. One constant serves float64.
template <typename T>
constexpr int kLongest = std::is_same_v<T, double> ? 4 : kMaxSteps;

template <typename T, typename F>
void with_steps(int64_t steps, const F& f) {
  if constexpr (!std::is_same_v<T, double>) {
    if (steps == 1) return f(std::integral_constant<int, 1>());
    if (steps == 2) return f(std::integral_constant<int, 2>());
    if (steps > 4) return f(std::integral_constant<int, 8>());
  }
  f(std::integral_constant<int, 4>());
}

// The statistics of an input, whose memory this keeps.
template <typename T>
class InputStatistics {
  using A = ArithmeticOf<T>;

 public:
  InputStatistics(const Launch& launch, const Tensor& x, const Sampling& s, bool linear = false,
                  const A* weight = nullptr) {
    const int64_t pixels = x.size(0) * s.rows.in * s.cols.in, channels = x.size(1);
    memory_ = arithmetic_vector<A>(x, pixels * (linear ? 3 : 2));
    A* const data = data_of<A>(memory_);
    of = Statistics<A>{data, data + pixels, linear ? data + 2 * pixels : nullptr};
    if (pixels == 0) return;
    const View<const T> view = view_of<const T>(x);
    const auto start = [&](auto group, auto wide) {
      class_statistics<T, group.value, wide.value>
          <<<blocks_of(pixels * group.value), warps_of_block(), 0, launch.stream()>>>(view, channels, s.rows.in,
                                                                                      s.cols.in, pixels, weight, of);
    };
    with_lanes(view, channels, start);
    launch.finish();
  }

  Statistics<A> of;

 private:
  Tensor memory_;
};

// The log-sum-exps of all outputs: `level`, arithmetic numbers [N, H, W], and memory that this keeps.
template <typename T>
class OutputLevels {
  using A = ArithmeticOf<T>;

 public:
  OutputLevels(const Launch& launch, const Tensor& x, const Sampling& s, const Statistics<A>& statistics,
               const Tensor& level)
      : level_(level), peak_(arithmetic_vector<A>(x, level.numel())) {
    of = SplitLevels<A>{data_of<A>(level_), data_of<A>(peak_)};
    const Units units = units_of(s, x.size(0), kUnitRows, kLongest<T>);
    if (units.count == 0) return;
    const View<const T> view = view_of<const T>(x);
    with_steps<T>(units.columns.steps, [&](auto steps) {
      with_width(view, x.size(1), [&](auto wide) {
        output_levels<T, steps.value, wide.value><<<blocks_of(units.count), warps_of_block(), 0, launch.stream()>>>(
            view, x.size(1), s, units, statistics, of);
      });
    });
    launch.finish();
  }

  SplitLevels<A> of;

 private:
  Tensor level_, peak_;
};

}  // namespace fcn
