// The CUDA kernels of csrc/cuda/upsample_cross_entropy.cuh on the host, launched as upsample_cross_entropy.cu does.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cuda_emulation.h"
// After the emulation.
#include "cuda/upsample_cross_entropy.cuh"
#include "cuda_launches.h"

namespace {

template <typename T>
struct Call {
  View<const T> x;
  fcn::Sampling s;
  int64_t batch, channels;
  fcn::Labels labels;
  fcn::LossOptions<T> options;
  std::vector<T> weight_sum;
  HostStatistics<T> statistics;
  bool wide;

  Call(int64_t x_at, const Ints& x_strides, const Ints& sampling, int64_t n, int64_t c, int64_t target, int kind,
       const Ints& target_strides, int64_t ignore_index, int64_t weight, double smoothing, bool wide_reads)
      : x(view<const T>(x_at, x_strides)), s(fcn::decode_sampling(sampling)), batch(n), channels(c), wide(wide_reads) {
    labels = {reinterpret_cast<const void*>(target),
              static_cast<fcn::LabelKind>(kind),
              target_strides[0],
              target_strides[1],
              target_strides[2],
              ignore_index,
              c};
    weight_sum.resize(1);
    const T* w = reinterpret_cast<const T*>(weight);
    options = {w, w ? weight_sum.data() : nullptr, static_cast<T>(smoothing)};
    if (w) emulate(1, 1, [&] { fcn::sum_of_weights<T>(w, c, weight_sum.data()); });
    statistics = HostStatistics<T>(x, s, n, c, wide, w, smoothing > 0);
  }

  // Losses, L and coefficients of all pixels, and [loss, total weight].
  std::vector<double> pixels(const fcn::PixelImages<T>& to, int64_t longest, double divisor) {
    const fcn::Units units = fcn::units_of(s, batch, fcn::kUnitRows, longest);
    std::vector<double> partial(2 * blocks_of(units.count));
    with_steps(units.columns.steps, [&](auto steps) {
      emulate(blocks_of(units.count), fcn::kWarps, [&] {
        if (wide) {
          fcn::cross_entropy_pixels<T, steps.value, 4>(x, s, units, statistics.of, labels, options, to, partial.data());
        } else {
          fcn::cross_entropy_pixels<T, steps.value, 1>(x, s, units, statistics.of, labels, options, to, partial.data());
        }
      });
    });
    T loss, total;
    emulate(1, fcn::kWarps,
            [&] { fcn::finish_loss<T>(partial.data(), blocks_of(units.count), divisor, &loss, &total); });
    return {loss, total};
  }

  void gradient(const T* levels, const T* coefficients, const fcn::PixelGradient<T>& grad, const View<T>& dx,
                int64_t longest, int64_t strip) {
    fcn::GradientPlan plan = fcn::gradient_plan(s, batch, channels, fcn::kClassesOf<T>);
    plan.strip = strip;
    plan.strips = fcn::divided_up(s.rows.in, strip);
    plan.warps = batch * plan.strips * plan.tiles;
    with_steps(fcn::segments_of(s.cols, longest).steps, [&](auto steps) {
      emulate(static_cast<unsigned>(fcn::divided_up(plan.warps, fcn::kGradientWarps)), fcn::kGradientWarps, [&] {
        if (wide) {
          fcn::cross_entropy_gradient<T, T, steps.value, true>(x, s, plan, statistics.of, levels, coefficients, labels,
                                                               options, grad, dx);
        } else {
          fcn::cross_entropy_gradient<T, T, steps.value, false>(x, s, plan, statistics.of, levels, coefficients, labels,
                                                                options, grad, dx);
        }
      });
    });
  }
};

struct Arguments {
  int64_t x;
  Ints x_strides, sampling;
  int64_t batch, channels, target;
  int kind;
  Ints target_strides;
  int64_t ignore_index, weight;
  double smoothing;
  bool wide;
  int64_t longest, strip;

  template <typename T>
  Call<T> call() const {
    return Call<T>(x, x_strides, sampling, batch, channels, target, kind, target_strides, ignore_index, weight,
                   smoothing, wide);
  }
};

// Loss and gradient of a reduced loss.
template <typename T>
std::vector<double> reduced(const Arguments& a, double divisor, int64_t pixel_loss, int64_t absolute, int64_t dx,
                            const Ints& dx_strides) {
  Call<T> call = a.call<T>();
  const int64_t pixels = a.batch * call.s.rows.out * call.s.cols.out;
  std::vector<T> levels(pixels, T(NAN)), coefficients(pixels, T(NAN));
  const fcn::PixelImages<T> images{reinterpret_cast<T*>(pixel_loss), levels.data(), reinterpret_cast<T*>(absolute),
                                   coefficients.data()};
  const std::vector<double> loss = call.pixels(images, a.longest, divisor);
  call.gradient(levels.data(), coefficients.data(), fcn::PixelGradient<T>{}, view<T>(dx, dx_strides), a.longest,
                a.strip);
  return loss;
}

// The gradient without reduction, from what the forward kept.
template <typename T>
void backward(const Arguments& a, int64_t absolute, int64_t grad, const Ints& grad_strides, int64_t dx,
              const Ints& dx_strides) {
  Call<T> call = a.call<T>();
  const int64_t pixels = a.batch * call.s.rows.out * call.s.cols.out;
  std::vector<T> levels(pixels, T(NAN)), coefficients(pixels, T(NAN));
  const fcn::PixelGradient<T> incoming{reinterpret_cast<const T*>(grad), grad_strides[0], grad_strides[1],
                                       grad_strides[2]};
  emulate(blocks_of(pixels), fcn::kWarps, [&] {
    fcn::cross_entropy_coefficients<T>(call.s, pixels, call.statistics.of.shift, reinterpret_cast<const T*>(absolute),
                                       call.labels, call.options, incoming, levels.data(), coefficients.data());
  });
  call.gradient(levels.data(), coefficients.data(), incoming, view<T>(dx, dx_strides), a.longest, a.strip);
}

// How often the segments of an axis hold each output.
Ints coverage(const Ints& axis, int64_t longest) {
  const fcn::Axis a{axis[0], axis[1], axis[2], axis[3], axis[4]};
  const fcn::Segments all = fcn::segments_of(a, longest);
  Ints count(a.out, 0);
  for (int64_t i = 0; i < all.count; ++i) {
    const fcn::Segment segment(a, all, i);
    if (segment.end - segment.begin > all.steps || all.steps > longest) return {};
    for (int64_t o = segment.begin; o < segment.end; ++o) {
      const bool inside = o >= 0 && o < a.out && a.floor_index(o) == segment.index &&
                          a.remainder(o) == segment.rest + (o - segment.begin) * a.num;
      if (!inside) return {};
      ++count[o];
    }
  }
  return count;
}

}  // namespace

PYBIND11_MODULE(cuda_cross_entropy_on_host, m) {
  pybind11::class_<Arguments>(m, "Arguments")
      .def(pybind11::init([](int64_t x, Ints x_strides, Ints sampling, int64_t batch, int64_t channels, int64_t target,
                             int kind, Ints target_strides, int64_t ignore_index, int64_t weight, double smoothing,
                             bool wide, int64_t longest, int64_t strip) {
        return Arguments{x,      x_strides, sampling, batch,   channels, target, kind, target_strides, ignore_index,
                         weight, smoothing, wide,     longest, strip};
      }));
  m.def("reduced_float", &reduced<float>);
  m.def("reduced_double", &reduced<double>);
  m.def("backward_float", &backward<float>);
  m.def("backward_double", &backward<double>);
  m.def("coverage", &coverage);
  m.def("backwards", [](bool on) { emulation_backwards = on; });
}
