// The kernels over scores on the host, launched as csrc/cuda/score_*.cu do, with splits that the test chooses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cuda_emulation.h"
// After the emulation.
#include "cuda/product.cuh"
#include "cuda/score_argmax.cuh"
#include "cuda/score_cross_entropy.cuh"
#include "cuda/score_gradient.cuh"
#include "cuda/score_softmax.cuh"

namespace {

using Ints = std::vector<int64_t>;

// An operand as Python describes it: pointer, [batch, outer, inner] strides, rows, whether its lines are rows.
struct Given {
  int64_t data;
  Ints strides;
  int64_t outer;
  bool inner_lines;

  template <typename T>
  fcn::Operand<T> as() const {
    return fcn::operand<T>(reinterpret_cast<const T*>(data), strides[0], strides[1], strides[2], outer, inner_lines);
  }
};

struct Call {
  Given x, weight;
  int64_t bias, images, features;
  int classes;
  bool wide;
  int64_t splits, chunk;

  template <typename Tile, typename Epilogue>
  void whole(const Epilogue& epilogue) const {
    using T = typename Tile::TA;
    const int64_t tiles = fcn::row_tiles<Tile>(x.outer);
    const fcn::ScoreOperands<T> in{x.as<T>(), weight.as<T>(), reinterpret_cast<const T*>(bias),
                                   features,  classes,        tiles};
    emulate(static_cast<unsigned>(images * tiles), fcn::kProductWarps, [&] { fcn::score_pixels<Tile>(in, epilogue); });
  }

  template <typename T, typename Epilogue>
  void parts(const Epilogue& epilogue) const {
    using A = fcn::ArithmeticOf<T>;
    using Tile = fcn::FewClasses<T>;
    const int64_t per_image = x.outer * classes;
    std::vector<A> memory(splits * images * per_image, A(NAN));
    const fcn::Product<T, T> product{x.as<T>(), weight.as<T>(), features, chunk, images, 1, images};
    const fcn::ProductOutput<A> to{memory.data(), images * per_image, per_image, classes, 1};
    const int64_t blocks = fcn::row_tiles<Tile>(x.outer) * fcn::column_tiles<Tile>(classes) * images * splits;
    emulate(static_cast<unsigned>(blocks), fcn::kProductWarps, [&] { fcn::product_tiles<Tile>(product, to); });
    const int64_t tiles = (x.outer + fcn::kPartRows - 1) / fcn::kPartRows;
    emulate(static_cast<unsigned>(images * tiles), 1, [&] {
      fcn::score_parts(static_cast<const A*>(memory.data()), splits, images, x.outer, tiles,
                       reinterpret_cast<const T*>(bias), classes, epilogue);
    });
  }

  // That run an epilogue.
  template <typename T>
  int64_t warps() const {
    if (splits > 1) return images * ((x.outer + fcn::kPartRows - 1) / fcn::kPartRows);
    const int64_t rows = wide ? fcn::ManyClasses<float>::kBlockRows : fcn::FewClasses<T>::kBlockRows;
    return images * ((x.outer + rows - 1) / rows) * fcn::kProductWarps;
  }

  template <typename T, typename Epilogue>
  void with(const Epilogue& epilogue) const {
    if (splits > 1) return parts<T>(epilogue);
    if constexpr (sizeof(T) < sizeof(double)) {
      if (wide) return whole<fcn::ManyClasses<T>>(epilogue);
    }
    whole<fcn::FewClasses<T>>(epilogue);
  }
};

template <typename T>
void softmax(const Call& call, int64_t y, const Ints& strides, bool log) {
  call.with<T>(fcn::SoftmaxEpilogue<T>{reinterpret_cast<T*>(y), strides[0], strides[1], strides[2], call.classes, log});
}

template <typename T>
void argmax(const Call& call, int64_t labels, int kind) {
  call.with<T>(fcn::ArgmaxEpilogue<fcn::ArithmeticOf<T>>{reinterpret_cast<void*>(labels),
                                                         static_cast<fcn::LabelKind>(kind), call.classes});
}

struct Loss {
  int64_t target;
  int kind;
  Ints strides;  // [N, H, W]
  int64_t width, ignore_index, weight;
  double smoothing;
};

// The loss on the device; `sum` is memory for that of the weights.
template <typename A>
fcn::ScoreLoss<A> loss_of(const Loss& given, int classes, A& sum) {
  const A* const weight = reinterpret_cast<const A*>(given.weight);
  if (weight) emulate(1, 1, [&] { fcn::sum_of_weights<A>(weight, classes, &sum); });
  return {fcn::Labels{reinterpret_cast<const void*>(given.target), static_cast<fcn::LabelKind>(given.kind),
                      given.strides[0], given.strides[1], given.strides[2], given.ignore_index, classes},
          fcn::LossOptions<A>{weight, weight ? &sum : nullptr, static_cast<A>(given.smoothing)}, given.width};
}

// Writes losses and log-sum-exps of the pixels; returns [loss, total weight].
template <typename T>
std::vector<double> cross_entropy(const Call& call, const Loss& given, int64_t loss, int64_t level) {
  using A = fcn::ArithmeticOf<T>;
  A sum, value, total;
  const auto of = loss_of<A>(given, call.classes, sum);
  const int64_t warps = call.warps<T>();
  std::vector<double> partial(2 * warps, NAN);
  call.with<T>(fcn::LossEpilogue<A>{of, reinterpret_cast<A*>(loss), reinterpret_cast<A*>(level), partial.data()});
  emulate(1, fcn::kWarps, [&] { fcn::finish_loss<A>(partial.data(), warps, 0.0, &value, &total); });
  return {value, total};
}

// Writes the gradient in the scores.
template <typename T>
void cross_entropy_gradient(const Call& call, const Loss& given, int64_t grad, const Ints& grad_strides, int64_t level,
                            int64_t to, const Ints& strides) {
  using A = fcn::ArithmeticOf<T>;
  A sum;
  const fcn::PixelGradient<A> incoming{reinterpret_cast<const A*>(grad), grad_strides[0], grad_strides[1],
                                       grad_strides[2]};
  call.with<T>(fcn::LossGradientEpilogue<A>{loss_of<A>(given, call.classes, sum), incoming,
                                            reinterpret_cast<const A*>(level), reinterpret_cast<A*>(to), strides[0],
                                            strides[1], strides[2]});
}

template <typename A, typename T>
void add_parts(const std::vector<A>& parts, int64_t count, int64_t size, int64_t to) {
  emulate(static_cast<unsigned>((size + fcn::kThreads - 1) / fcn::kThreads), fcn::kWarps,
          [&] { fcn::sum_of_parts(parts.data(), count, size, reinterpret_cast<T*>(to)); });
}

// The gradients in x, weight and bias from g [N, C, P] in the scores, in lines like those of x.
template <typename T, bool kChannelLines>
void gradients(const Call& call, int64_t g, const Ints& strides, int64_t dx, const Ints& dx_strides, int64_t dw,
               int64_t db, int64_t images) {
  using A = fcn::ArithmeticOf<T>;
  const auto grad = [&](bool by_pixel) {
    return Given{g,
                 {strides[0], strides[by_pixel ? 2 : 1], strides[by_pixel ? 1 : 2]},
                 by_pixel ? call.x.outer : call.classes,
                 by_pixel == kChannelLines}
        .template as<A>();
  };
  {
    using Tile = fcn::FeatureTile<A, T, kChannelLines>;
    const Ints& w = call.weight.strides;
    const fcn::Product<A, T> product{
        grad(true),   Given{call.weight.data, {0, w[2], w[1]}, call.features, false}.template as<T>(),
        call.classes, call.classes,
        call.images,  1,
        call.images};
    const int64_t blocks = fcn::row_tiles<Tile>(call.x.outer) * fcn::column_tiles<Tile>(call.features) * call.images;
    emulate(static_cast<unsigned>(blocks), fcn::kProductWarps, [&] {
      fcn::product_tiles<Tile>(
          product, fcn::ProductOutput<T>{reinterpret_cast<T*>(dx), 0, dx_strides[0], dx_strides[2], dx_strides[1]});
    });
  }
  {
    using Tile = fcn::WeightTile<T, A, kChannelLines>;
    const int64_t groups = (call.images + images - 1) / images, size = call.classes * call.features;
    const int64_t chunk = 64, splits = (call.x.outer + chunk - 1) / chunk;
    std::vector<A> parts(splits * groups * size, A(NAN));
    const Ints& x = call.x.strides;
    const fcn::Product<T, A> product{
        Given{call.x.data, {x[0], x[2], x[1]}, call.features, !kChannelLines}.template as<T>(),
        grad(false),
        call.x.outer,
        chunk,
        call.images,
        images,
        groups};
    const int64_t blocks =
        fcn::row_tiles<Tile>(call.features) * fcn::column_tiles<Tile>(call.classes) * groups * splits;
    emulate(static_cast<unsigned>(blocks), fcn::kProductWarps, [&] {
      fcn::product_tiles<Tile>(product, fcn::ProductOutput<A>{parts.data(), groups * size, size, 1, call.features});
    });
    add_parts<A, T>(parts, splits * groups, size, dw);
  }
  const int64_t slice = 50, slices = (call.images * call.x.outer + slice - 1) / slice;
  const int64_t groups = kChannelLines ? (call.classes + 31) / 32 : call.classes;
  std::vector<A> parts(slices * call.classes, A(NAN));
  emulate(static_cast<unsigned>(groups * slices), fcn::kWarps, [&] {
    fcn::class_sums<A, kChannelLines>(reinterpret_cast<const A*>(g), strides[0], strides[1], strides[2], call.images,
                                      call.x.outer, call.classes, slice, parts.data());
  });
  add_parts<A, T>(parts, slices, call.classes, db);
}

template <typename T>
void softmax_gradient(const Call& call, int64_t grad, int64_t output, const Ints& strides, int64_t width, bool log,
                      int64_t to, const Ints& to_strides) {
  using A = fcn::ArithmeticOf<T>;
  const auto view = [&](int64_t data) {
    return fcn::View<const T>{reinterpret_cast<const T*>(data), strides[0], strides[1], strides[2] * width, strides[2]};
  };
  const auto run = [&](auto group) {
    const int64_t threads = call.images * call.x.outer * group.value;
    emulate(static_cast<unsigned>((threads + fcn::kThreads - 1) / fcn::kThreads), fcn::kWarps, [&] {
      fcn::softmax_gradient<T, group.value>(view(grad), view(output), call.images, call.x.outer, width, call.classes,
                                            log, reinterpret_cast<A*>(to), to_strides[0], to_strides[1], to_strides[2]);
    });
  };
  if (call.x.inner_lines) return run(std::integral_constant<int, fcn::kWarp>());
  run(std::integral_constant<int, 1>());
}

template <typename T>
void all_gradients(const Call& call, int64_t g, const Ints& strides, int64_t dx, const Ints& dx_strides, int64_t dw,
                   int64_t db, int64_t images) {
  if (call.x.inner_lines) return gradients<T, true>(call, g, strides, dx, dx_strides, dw, db, images);
  gradients<T, false>(call, g, strides, dx, dx_strides, dw, db, images);
}

template <typename T>
void rounded(int64_t from, int64_t to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    reinterpret_cast<T*>(to)[i] = T(static_cast<float>(T(reinterpret_cast<const float*>(from)[i])));
  }
}

template <typename T>
void define(pybind11::module_& m, const std::string& name) {
  m.def(("softmax_" + name).c_str(), &softmax<T>);
  m.def(("argmax_" + name).c_str(), &argmax<T>);
  m.def(("cross_entropy_" + name).c_str(), &cross_entropy<T>);
  m.def(("cross_entropy_gradient_" + name).c_str(), &cross_entropy_gradient<T>);
  m.def(("softmax_gradient_" + name).c_str(), &softmax_gradient<T>);
  m.def(("gradients_" + name).c_str(), &all_gradients<T>);
}

}  // namespace

PYBIND11_MODULE(cuda_score_on_host, m) {
  pybind11::class_<Given>(m, "Operand")
      .def(pybind11::init([](int64_t data, Ints strides, int64_t outer, bool inner_lines) {
        return Given{data, strides, outer, inner_lines};
      }));
  pybind11::class_<Call>(m, "Call").def(pybind11::init(
      [](Given x, Given weight, int64_t bias, int64_t images, int64_t features, int classes, bool wide, int64_t splits,
         int64_t chunk) { return Call{x, weight, bias, images, features, classes, wide, splits, chunk}; }));
  pybind11::class_<Loss>(m, "Loss").def(pybind11::init(
      [](int64_t target, int kind, Ints strides, int64_t width, int64_t ignore_index, int64_t weight,
         double smoothing) { return Loss{target, kind, strides, width, ignore_index, weight, smoothing}; }));
  define<float>(m, "float32");
  define<double>(m, "float64");
  define<__half>(m, "float16");
  define<__nv_bfloat16>(m, "bfloat16");
  m.def("rounded_float16", &rounded<__half>);
  m.def("rounded_bfloat16", &rounded<__nv_bfloat16>);
  m.def("backwards", [](bool on) { emulation_backwards = on; });
}
