// The CUDA kernels of csrc/cuda/upsample_binary_cross_entropy.cuh, adjoint.cuh and channel_sum.cuh on the host,
// launched as the .cu files do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cuda_emulation.h"
// After the emulation.
#include "cuda/channel_sum.cuh"
#include "cuda/upsample_binary_cross_entropy.cuh"
#include "cuda/upsample_sigmoid.cuh"
#include "cuda_launches.h"

namespace {

template <typename Function, typename Out>
void run_adjoint(const fcn::Sampling& s, int64_t batch, int64_t channels, bool channels_last, int64_t strip,
                 Function function, const View<Out>& dx) {
  fcn::with_adjoint_lanes(s, channels, channels_last, [&](auto inner, auto across) {
    fcn::AdjointPlan plan = fcn::adjoint_plan(s, batch, channels, inner.value, across.value);
    plan.strip = strip;
    plan.down = fcn::divided_up(s.rows.in, fcn::kWarps * strip - 1);
    plan.blocks = batch * plan.planes * plan.across * plan.down;
    function.expect(plan.blocks);
    emulate(static_cast<unsigned>(plan.blocks), fcn::kWarps, [&] {
      fcn::adjoint<typename Function::Kernel, Out, inner.value, across.value>(s, plan, channels, function.kernel, dx);
    });
  });
}

template <typename T>
struct Binary {
  using Kernel = fcn::BinaryCrossEntropy<T>;
  Kernel kernel;
  std::vector<double>& partial;

  void expect(int64_t blocks) {
    partial.assign(2 * blocks, NAN);
    kernel.partial = partial.data();
  }
};

// Loss and total weight; the losses of the pixels and dx where there is a pointer for them.
template <typename T>
std::vector<double> binary(int64_t x, const Ints& x_strides, const Ints& sampling, int64_t batch, int64_t channels,
                           int64_t target, const Ints& target_strides, int kind, int labels, bool ignores,
                           int64_t ignore_index, int64_t pos_weight, int64_t grad, const Ints& grad_strides,
                           int64_t loss, const Ints& loss_strides, int64_t dx, const Ints& dx_strides,
                           bool channels_last, int64_t strip, double divisor) {
  const fcn::Sampling s = fcn::decode_sampling(sampling);
  const fcn::Targets targets{view<const void>(target, target_strides), static_cast<fcn::TargetKind>(kind),
                             static_cast<fcn::LabelKind>(labels), ignores, ignore_index};
  std::vector<double> partial;
  const Binary<T> function{{view<const T>(x, x_strides), targets, reinterpret_cast<const T*>(pos_weight),
                            view<const T>(grad, grad_strides), view<T>(loss, loss_strides), nullptr},
                           partial};
  run_adjoint(s, batch, channels, channels_last, strip, function, view<T>(dx, dx_strides));
  T sum, total;
  emulate(1, fcn::kWarps, [&] {
    fcn::finish_loss<T>(partial.data(), static_cast<int64_t>(partial.size() / 2), divisor, &sum, &total);
  });
  return {sum, total};
}

template <typename Source>
struct Each {
  using Kernel = fcn::EachOutput<Source>;
  Kernel kernel;

  void expect(int64_t) {}
};

// The gradient of upsample, or of upsample_sigmoid with its output.
template <typename T>
void backward(int64_t grad, const Ints& grad_strides, int64_t output, const Ints& output_strides, int64_t dx,
              const Ints& dx_strides, const Ints& sampling, int64_t batch, int64_t channels, bool channels_last,
              int64_t strip) {
  const fcn::Sampling s = fcn::decode_sampling(sampling);
  const fcn::OutputGradient<T> from{view<const T>(grad, grad_strides)};
  const View<T> to = view<T>(dx, dx_strides);
  if (output) {
    const fcn::SigmoidGradient<T> source{from, {view<const T>(output, output_strides)}};
    run_adjoint(s, batch, channels, channels_last, strip, Each<fcn::SigmoidGradient<T>>{{source}}, to);
  } else {
    run_adjoint(s, batch, channels, channels_last, strip, Each<fcn::OutputGradient<T>>{{from}}, to);
  }
}

// An input whose value is how often it was written.
struct Written {
  int64_t times = 0;

  explicit Written(double) {}
  Written() = default;
  Written& operator=(const Written&) {
    ++times;
    return *this;
  }
};

// Counts how often an output is counted.
struct Counts {
  struct Kernel {
    using A = double;
    struct Cell {};
    struct Row {
      int64_t* line;
    };
    struct Sums {};
    int64_t* outputs;
    int64_t channels, height, width;

    Cell cell(int64_t, int64_t, const fcn::Pair&, const fcn::Pair&) const { return {}; }
    Row row(const Cell&, int64_t n, int64_t c, int64_t oy, double, bool) const {
      return {outputs + ((n * channels + c) * height + oy) * width};
    }
    double at(const Row& row, int64_t ox, double, bool, bool counted, Sums&) const {
      row.line[ox] += counted;
      return 0;
    }
    void finish(Sums&) const {}
  };
  Kernel kernel;

  void expect(int64_t) {}
};

// Whether every output is counted once and every input written once.
bool covers(const Ints& sampling, int64_t batch, int64_t channels, bool channels_last, int64_t strip) {
  const fcn::Sampling s = fcn::decode_sampling(sampling);
  const int64_t height = s.rows.in, width = s.cols.in, planes = batch * channels;
  Ints outputs(planes * s.rows.out * s.cols.out, 0);
  std::vector<Written> inputs(planes * height * width);
  const View<Written> dx{inputs.data(), channels * height * width, height * width, width, 1};
  run_adjoint(s, batch, channels, channels_last, strip, Counts{{outputs.data(), channels, s.rows.out, s.cols.out}}, dx);
  for (int64_t count : outputs) {
    if (count != 1) return false;
  }
  for (const Written& input : inputs) {
    if (input.times != 1) return false;
  }
  return true;
}

template <typename T, int kWide, bool kChannels>
void sum(const View<const T>& x, const Ints& size, T* to) {
  const fcn::SumPlan plan = fcn::sum_plan(x, size[0], size[1], size[2], size[3], kWide, kChannels);
  std::vector<double> partial(size[0] * plan.parts * size[1], NAN);
  emulate(static_cast<unsigned>(plan.all), fcn::kWarps,
          [&] { fcn::channel_sum_parts<T, kWide, kChannels>(x, size[1], plan, partial.data()); });
  emulate(static_cast<unsigned>(fcn::divided_up(size[1], fcn::kWarps)), fcn::kWarps,
          [&] { fcn::channel_sum_of_parts<T>(partial.data(), size[1], size[0] * plan.parts, to); });
}

template <typename T>
void channel_sum(int64_t x, const Ints& strides, const Ints& size, bool wide, bool channels_last, int64_t to) {
  const auto from = view<const T>(x, strides);
  T* const sums = reinterpret_cast<T*>(to);
  if (channels_last) {
    wide ? sum<T, 4, true>(from, size, sums) : sum<T, 1, true>(from, size, sums);
  } else {
    wide ? sum<T, 4, false>(from, size, sums) : sum<T, 1, false>(from, size, sums);
  }
}

}  // namespace

PYBIND11_MODULE(cuda_binary_on_host, m) {
  m.def("binary_float", &binary<float>);
  m.def("binary_double", &binary<double>);
  m.def("backward_float", &backward<float>);
  m.def("backward_double", &backward<double>);
  m.def("covers", &covers);
  m.def("channel_sum_float", &channel_sum<float>);
  m.def("channel_sum_double", &channel_sum<double>);
  m.def("backwards", [](bool on) { emulation_backwards = on; });
}
