// The CUDA kernels of upsample_softmax, upsample_argmax and upsample_confusion_matrix on the host, launched as their
// .cu files do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "cuda_emulation.h"
// After the emulation.
#include "cuda/upsample_argmax.cuh"
#include "cuda/upsample_confusion_matrix.cuh"
#include "cuda/upsample_softmax.cuh"
#include "cuda_launches.h"

namespace {

// A double that counts how often it is stored.
struct Counted {
  double value = 0;
  int64_t stores = 0;

  Counted() = default;
  Counted(const Counted&) = default;
  explicit Counted(double v) : value(v) {}
  explicit operator double() const { return value; }
  Counted& operator=(const Counted& other) {
    value = other.value;
    ++stores;
    return *this;
  }
};

}  // namespace

namespace fcn {
template <>
struct Arithmetic<Counted> {
  using type = double;
};
}  // namespace fcn

namespace {

// What a call reads, and how it is spread over threads.
struct Input {
  int64_t x;
  Ints x_strides, sampling;
  int64_t batch, channels;
  bool wide;        // reads 4 neighbouring classes at a time
  int64_t longest;  // outputs of a segment
  int pack;         // columns that a thread writes at a time; 0: lanes along channels
  int64_t chunk;    // classes of a thread that writes columns
  int group;        // lanes that share a unit of channels
};

template <typename T>
struct Call {
  using A = fcn::ArithmeticOf<T>;
  const Input& in;
  fcn::Sampling s;
  View<const T> x;
  HostStatistics<T> statistics;
  fcn::Units units;

  explicit Call(const Input& input)
      : in(input),
        s(fcn::decode_sampling(input.sampling)),
        x(view<const T>(input.x, input.x_strides)),
        statistics(x, s, input.batch, input.channels, input.wide),
        units(fcn::units_of(s, input.batch, fcn::kUnitRows, input.longest)) {}

  int64_t pixels() const { return in.batch * s.rows.out * s.cols.out; }

  // Calls f(steps, wide).
  template <typename F>
  void with_shape(const F& f) const {
    with_steps(units.columns.steps, [&](auto steps) {
      if (in.wide) return f(steps, std::integral_constant<int, 4>());
      f(steps, std::integral_constant<int, 1>());
    });
  }

  void levels(const fcn::SplitLevels<A>& to) const {
    with_shape([&](auto steps, auto wide) {
      emulate(blocks_of(units.count), fcn::kWarps,
              [&] { fcn::output_levels<T, steps.value, wide.value>(x, in.channels, s, units, statistics.of, to); });
    });
  }

  template <int kPack>
  void columns(const fcn::SplitLevels<A>& from, bool log, const View<T>& y) const {
    const fcn::Segments rows = fcn::segments_of(s.rows, fcn::kUnitRows);
    const int64_t count = in.batch * rows.count * (s.cols.out / kPack);
    emulate(
        blocks_of(count), fcn::kWarps,
        [&] { fcn::softmax_columns<T, kPack>(x, in.channels, in.chunk, s, rows, count, statistics.of, from, log, y); },
        static_cast<unsigned>(fcn::divided_up(in.channels, in.chunk)));
  }

  void softmax(bool log, const View<T>& y) const {
    // Levels that no kernel writes must not be read.
    std::vector<A> level(pixels(), A(NAN)), peak(pixels(), A(NAN));
    const fcn::SplitLevels<A> split{level.data(), peak.data()};
    levels(split);
    switch (in.pack) {
      case 0:
        return with_shape([&](auto steps, auto wide) {
          emulate(blocks_of(units.count * in.group), fcn::kWarps, [&] {
            fcn::softmax_channels<T, steps.value, wide.value>(x, in.channels, in.group, s, units, statistics.of, split,
                                                              log, y);
          });
        });
      case 1:
        return columns<1>(split, log, y);
      case 4:
        return columns<4>(split, log, y);
      case 8:
        return columns<8>(split, log, y);
      default:
        throw std::invalid_argument("pack must be 0, 1, 4 or 8");
    }
  }

  void argmax(void* labels, fcn::LabelKind kind, A* confidence) const {
    const int64_t inputs = in.batch * s.rows.in * s.cols.in;
    std::vector<int32_t> winners(inputs);
    with_lanes(x, in.channels, in.wide, [&](auto lanes, auto width) {
      emulate(blocks_of(inputs * lanes.value), fcn::kWarps, [&] {
        fcn::class_winners<T, lanes.value, width.value>(x, in.channels, s.rows.in, s.cols.in, inputs, winners.data());
      });
    });
    with_shape([&](auto steps, auto wide) {
      emulate(blocks_of(units.count), fcn::kWarps, [&] {
        fcn::argmax_units<T, steps.value, wide.value>(x, in.channels, s, units, winners.data(), labels, kind);
      });
    });
    if (!confidence) return;
    std::vector<A> peak(pixels(), A(NAN));
    const fcn::SplitLevels<A> split{confidence, peak.data()};
    levels(split);
    const int64_t line = s.cols.out;
    const fcn::Labels found{labels, kind, s.rows.out * line, line, 1, -1, in.channels};
    emulate(blocks_of(pixels()), fcn::kWarps,
            [&] { fcn::label_probabilities<T>(x, s, pixels(), statistics.of, split, found); });
  }
};

template <typename T>
void softmax(const Input& in, bool log, int64_t y, const Ints& y_strides) {
  Call<T>(in).softmax(log, view<T>(y, y_strides));
}

// The least and the largest number of stores to an output [N, C, H, W] in either layout.
std::vector<int64_t> softmax_stores(const Input& in, bool log) {
  const fcn::Sampling s = fcn::decode_sampling(in.sampling);
  const int64_t c = in.channels, h = s.rows.in, w = s.cols.in, height = s.rows.out, width = s.cols.out;
  std::vector<Counted> x(in.batch * c * h * w), y(in.batch * c * height * width);
  for (size_t i = 0; i < x.size(); ++i) x[i].value = static_cast<double>(i * 37 % 101);
  Input counted = in;
  counted.x = reinterpret_cast<int64_t>(x.data());
  counted.x_strides = in.pack ? Ints{c * h * w, h * w, w, 1} : Ints{c * h * w, 1, w * c, c};
  const Ints strides =
      in.pack ? Ints{c * height * width, height * width, width, 1} : Ints{c * height * width, 1, width * c, c};
  Call<Counted>(counted).softmax(log, view<Counted>(reinterpret_cast<int64_t>(y.data()), strides));
  int64_t least = INT64_MAX, most = 0;
  for (const Counted& v : y) {
    least = v.stores < least ? v.stores : least;
    most = v.stores > most ? v.stores : most;
  }
  return {least, most};
}

template <typename T>
void argmax(const Input& in, int64_t labels, int kind, int64_t confidence) {
  Call<T>(in).argmax(reinterpret_cast<void*>(labels), static_cast<fcn::LabelKind>(kind),
                     reinterpret_cast<T*>(confidence));
}

struct Gradient {
  int64_t grad;
  Ints grad_strides;
  int64_t output;
  Ints output_strides, sampling;
  int64_t batch, channels;
  int sum_lanes, sum_wide;  // class_sums: 1 or a warp; 1 or 4
  int gather_lanes;         // 1, 8, 32; 0: lanes along channels
};

template <typename T, int kLanes>
void gather_by(const fcn::SoftmaxGradient<T>& source, const fcn::Sampling& s, const Gradient& g, const View<T>& dx) {
  const int64_t threads = g.batch * g.channels * s.rows.in * s.cols.in * kLanes;
  emulate(static_cast<unsigned>(fcn::divided_up(threads, 2 * fcn::kThreads)), fcn::kRows,
          [&] { fcn::gather_contiguous<fcn::SoftmaxGradient<T>, kLanes>(source, dx, s, g.batch, g.channels); });
}

template <typename T>
void softmax_backward(const Gradient& g, bool log, int64_t dx_at, const Ints& dx_strides) {
  const fcn::Sampling s = fcn::decode_sampling(g.sampling);
  const auto grad = view<const T>(g.grad, g.grad_strides), output = view<const T>(g.output, g.output_strides);
  const auto dx = view<T>(dx_at, dx_strides);
  const int64_t height = s.rows.out, width = s.cols.out, pixels = g.batch * height * width;
  std::vector<T> total(pixels, T(NAN));
  const auto sums = [&](auto lanes, auto wide) {
    const int64_t threads = lanes.value == 1 ? fcn::divided_up(pixels, wide.value) : pixels * lanes.value;
    emulate(blocks_of(threads), fcn::kWarps, [&] {
      fcn::class_sums<T, lanes.value, wide.value>(grad, output, g.channels, height, width, pixels, log, total.data());
    });
  };
  const auto with_wide = [&](auto lanes) {
    if (g.sum_wide == 4) return sums(lanes, std::integral_constant<int, 4>());
    sums(lanes, std::integral_constant<int, 1>());
  };
  if (g.sum_lanes == 1) {
    with_wide(std::integral_constant<int, 1>());
  } else {
    with_wide(std::integral_constant<int, fcn::kWarp>());
  }
  const fcn::SoftmaxGradient<T> source{grad, output, total.data(), height, width, log};
  switch (g.gather_lanes) {
    case 0:
      return emulate(static_cast<unsigned>(fcn::divided_up(s.cols.in, fcn::kRows)), fcn::kRows,
                     [&] { fcn::gather_channels_last<fcn::SoftmaxGradient<T>>(source, dx, s, g.batch, g.channels); });
    case 1:
      return gather_by<T, 1>(source, s, g, dx);
    case 8:
      return gather_by<T, 8>(source, s, g, dx);
    default:
      return gather_by<T, 32>(source, s, g, dx);
  }
}

// The first pixel with a wrong label, or -1.
int64_t confusion_matrix(int64_t winners, int64_t target, int kind, const Ints& strides, const Ints& shape,
                         int64_t classes, std::optional<int64_t> ignore_index, int copies, int64_t matrix) {
  const fcn::Labels labels{reinterpret_cast<const void*>(target),
                           static_cast<fcn::LabelKind>(kind),
                           strides[0],
                           strides[1],
                           strides[2],
                           ignore_index.value_or(0),
                           classes};
  const int64_t pixels = shape[0] * shape[1] * shape[2], size = classes * classes;
  std::vector<fcn::Count> counts(copies * size);
  long long first_wrong;
  std::memset(&first_wrong, fcn::kNoPixelByte, sizeof(first_wrong));
  emulate(blocks_of(pixels), fcn::kWarps, [&] {
    fcn::count_pairs(reinterpret_cast<const int32_t*>(winners), labels, ignore_index.has_value(), shape[1], shape[2],
                     pixels, copies, counts.data(), &first_wrong);
  });
  emulate(blocks_of(size), fcn::kWarps,
          [&] { fcn::add_copies(counts.data(), size, copies, &first_wrong, reinterpret_cast<int64_t*>(matrix)); });
  return first_wrong == fcn::kNoPixel ? -1 : first_wrong;
}

// How often the units of all images hold each output.
Ints coverage(const Ints& sampling, int64_t batch, int64_t longest) {
  const fcn::Sampling s = fcn::decode_sampling(sampling);
  const fcn::Units units = fcn::units_of(s, batch, fcn::kUnitRows, longest);
  Ints count(batch * s.rows.out * s.cols.out, 0);
  for (int64_t i = 0; i < units.count; ++i) {
    const fcn::Unit<double> unit(s, units, i);
    if (unit.empty()) continue;
    for (int row = 0; row < unit.height(); ++row) {
      for (int k = 0; k < unit.width(); ++k) ++count.at(unit.pixel(s) + row * s.cols.out + k);
    }
  }
  return count;
}

}  // namespace

PYBIND11_MODULE(cuda_softmax_on_host, m) {
  pybind11::class_<Input>(m, "Input")
      .def(pybind11::init([](int64_t x, Ints x_strides, Ints sampling, int64_t batch, int64_t channels, bool wide,
                             int64_t longest, int pack, int64_t chunk, int group) {
        return Input{x, x_strides, sampling, batch, channels, wide, longest, pack, chunk, group};
      }));
  pybind11::class_<Gradient>(m, "Gradient")
      .def(pybind11::init([](int64_t grad, Ints grad_strides, int64_t output, Ints output_strides, Ints sampling,
                             int64_t batch, int64_t channels, int sum_lanes, int sum_wide, int gather_lanes) {
        return Gradient{grad,  grad_strides, output,    output_strides, sampling,
                        batch, channels,     sum_lanes, sum_wide,       gather_lanes};
      }));
  m.def("softmax_float", &softmax<float>);
  m.def("softmax_double", &softmax<double>);
  m.def("softmax_stores", &softmax_stores);
  m.def("softmax_backward_float", &softmax_backward<float>);
  m.def("softmax_backward_double", &softmax_backward<double>);
  m.def("argmax_float", &argmax<float>);
  m.def("argmax_double", &argmax<double>);
  m.def("confusion_matrix", &confusion_matrix);
  m.def("coverage", &coverage);
  m.def("backwards", [](bool on) { emulation_backwards = on; });
}
