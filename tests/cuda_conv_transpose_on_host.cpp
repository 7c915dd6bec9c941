// The CUDA kernels of conv_transpose_add and conv_transpose_concat on the host, launched as their .cu do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <type_traits>
#include <vector>

#include "cuda_emulation.h"
// After the emulation.
#include "cuda/conv_transpose_add.cuh"
#include "cuda/conv_transpose_concat.cuh"

namespace {

using fcn::ConvTranspose;
using fcn::View;
using Ints = std::vector<int64_t>;
using One = std::integral_constant<int, 1>;

// Address and strides of a tensor; the address 0 stands for none.
struct Tensor {
  int64_t address;
  Ints strides;

  template <typename T>
  View<T> as() const {
    if (address == 0) return View<T>{};
    return View<T>{reinterpret_cast<T*>(address), strides[0], strides[1], strides[2], strides[3]};
  }
};

unsigned blocks_for(int64_t threads, int size) { return static_cast<unsigned>(fcn::divided_up(threads, size)); }

// [h, H, ky, sy, top, w, W, kx, sx, left, N, groups, inputs, outputs]
ConvTranspose decode(const Ints& v) {
  return ConvTranspose{{v[0], v[1], v[2], v[3], v[4]}, {v[5], v[6], v[7], v[8], v[9]}, v[10], v[11], v[12], v[13]};
}

template <typename T, typename Out>
void multiply(fcn::Product<T, Out> p, int64_t parts) {
  if (p.shape.rows == 0 || p.shape.columns <= 0) return;
  const auto start = [&](auto width) {
    const int64_t down = fcn::divided_up(p.shape.rows, fcn::ProductTile<T, width.value>::kHeight);
    emulate(
        static_cast<unsigned>(down * fcn::divided_up(p.shape.columns, width.value) * p.shape.groups),
        fcn::kProductWarps, [&] { fcn::gathered_product<T, Out, width.value>(p.a, p.b, p.to, p.shape); },
        static_cast<unsigned>(parts));
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (p.shape.columns > 32) return start(std::integral_constant<int, 64>());
  }
  start(std::integral_constant<int, 32>());
}

template <typename T>
void sum(const std::vector<fcn::ArithmeticOf<T>>& parts, int64_t count, int64_t size, T* to) {
  emulate(blocks_for(size, fcn::kProductThreads), fcn::kProductWarps,
          [&] { fcn::sum_parts<fcn::ArithmeticOf<T>, T>(parts.data(), count, size, to); });
}

constexpr unsigned kWarps = fcn::kDepthwiseThreads / fcn::kWarp;

template <typename T>
struct Kernels {
  using A = fcn::ArithmeticOf<T>;
  static constexpr int kWide = 16 / sizeof(T);
  using Wide = std::integral_constant<int, kWide>;

  // How the last call read and wrote.
  inline static std::string path;

  static std::vector<T> packed(const ConvTranspose& c, const T* weight, bool inputs_first) {
    const int64_t size = c.groups * c.inputs * c.outputs * c.rows.kernel * c.columns.kernel;
    std::vector<T> to(size, T(static_cast<float>(NAN)));
    const fcn::Digits from = fcn::packing_of(c, fcn::contiguous_weight(c), inputs_first);
    emulate(blocks_for(size, fcn::kDepthwiseThreads), kWarps,
            [&] { fcn::pack_weights<T>(weight, from, size, to.data()); });
    return to;
  }

  static bool depthwise(const ConvTranspose& c) { return c.inputs == 1 && c.outputs == 1; }

  // `weight` is contiguous; `other` is added with the given scale.
  static void forward(const Ints& geometry, const Tensor& x_tensor, const Tensor& weight_tensor, const Tensor& added,
                      double scale, const Tensor& y_tensor) {
    const ConvTranspose c = decode(geometry);
    const View<const T> x = x_tensor.as<const T>(), weight = weight_tensor.as<const T>(), other = added.as<const T>();
    const View<T> y = y_tensor.as<T>();
    if (!depthwise(c)) return forward_products(c, x, weight.data, other, A(scale), y);
    if (fcn::is_pixelwise(y, c.groups) && x.stride_c == 1) {
      return forward_pixels(c, x, weight.data, other, A(scale), y);
    }
    const auto aligned = [&](const auto& v) {
      return v.stride_w == 1 && fcn::is_aligned(v.data, {v.stride_n, v.stride_c, v.stride_h}, kWide);
    };
    const bool other_wide = other.data && aligned(other);
    const auto start = [&](auto wide, auto staged, const fcn::RowTiles& t) {
      emulate(static_cast<unsigned>(t.across * t.down * c.batch * c.groups), kWarps, [&] {
        fcn::depthwise_rows<T, wide.value, staged.value>(x, weight, other, y, c, t, other_wide, A(scale));
      });
    };
    const fcn::RowTiles narrow = fcn::row_tiles(c, 1), wide = fcn::row_tiles(c, kWide);
    if (aligned(y) && fcn::is_multiple(c.columns.out, kWide) && wide.staged) {
      path = other_wide ? "wide rows, wide window" : "wide rows";
      start(Wide(), std::true_type(), wide);
    } else if (narrow.staged) {
      path = "rows";
      start(One(), std::true_type(), narrow);
    } else {
      path = "rows that are not staged";
      start(One(), std::false_type(), narrow);
    }
  }

  static void forward_pixels(const ConvTranspose& c, const View<const T>& x, const T* weight,
                             const View<const T>& other, A scale, const View<T>& y) {
    const std::vector<T> taps = packed(c, weight, true);
    const auto aligned = [&](const auto& v) { return v.stride_c == 1 && fcn::has_aligned_pixels(v, kWide); };
    const auto start = [&](auto wide, bool other_wide) {
      path = wide.value > 1 ? "wide pixels" : "pixels";
      emulate(blocks_for(fcn::pixel_units(c) * (c.groups / wide.value), fcn::kDepthwiseThreads), kWarps,
              [&] { fcn::depthwise_pixels<T, wide.value>(x, taps.data(), other, y, c, other_wide, scale); });
    };
    if (fcn::is_multiple(c.groups, kWide) && aligned(x) && aligned(y)) {
      start(Wide(), other.data && aligned(other));
    } else {
      start(One(), false);
    }
  }

  static void forward_products(const ConvTranspose& c, const View<const T>& x, const T* weight,
                               const View<const T>& other, A scale, const View<T>& y) {
    const bool pixelwise = fcn::is_pixelwise(x, c.groups * c.inputs);
    const std::vector<T> filters = pixelwise ? packed(c, weight, true) : std::vector<T>();
    const fcn::WeightStrides strides = pixelwise ? fcn::packed_weight(c, true) : fcn::contiguous_weight(c);
    path = "products";
    for (int down = 0; down < 2; ++down) {
      for (int across = 0; across < 2; ++across) {
        const fcn::Phases rows = fcn::phases_of(c.rows, down), columns = fcn::phases_of(c.columns, across);
        if (rows.count <= 0 || columns.count <= 0) continue;
        const auto p =
            fcn::forward_product<T>(c, rows, columns, x, pixelwise ? filters.data() : weight, strides, other, scale, y);
        if (p.a.wide) path = "products of packs";
        multiply(p, 1);
      }
    }
  }

  // Both gradients; `parts` of the sums that are split.
  static void backward(const Ints& geometry, const Tensor& grad_tensor, const Tensor& x_tensor,
                       const Tensor& weight_tensor, const Tensor& dx_tensor, int64_t dw_address, int64_t parts) {
    const ConvTranspose c = decode(geometry);
    const View<const T> grad = grad_tensor.as<const T>(), x = x_tensor.as<const T>(),
                        weight = weight_tensor.as<const T>();
    const View<T> dx = dx_tensor.as<T>();
    const int64_t size = c.groups * c.inputs * c.outputs * c.rows.kernel * c.columns.kernel;
    T* const dw = reinterpret_cast<T*>(dw_address);
    if (depthwise(c)) {
      stream_input(c, grad, weight, dx);
      return stream_weight(c, grad, x, dw, size, parts);
    }
    const bool pixelwise = fcn::is_pixelwise(grad, c.groups * c.outputs);
    const std::vector<T> filters = pixelwise ? packed(c, weight.data, false) : std::vector<T>();
    const fcn::WeightStrides strides = pixelwise ? fcn::packed_weight(c, false) : fcn::contiguous_weight(c);
    auto p = fcn::input_product<T, T>(c, grad, pixelwise ? filters.data() : weight.data, strides, dx);
    path = p.a.wide ? "products of packs" : "products";
    multiply(p, 1);

    auto q = fcn::weight_product<T, A>(c, grad, x, nullptr);
    const fcn::Split split = split_into(parts, q.shape.depth, fcn::ProductTile<T, 32>::kDepth);
    std::vector<A> memory(split.parts * size, A(NAN));
    q.to.data = memory.data();
    q.shape.chunk = split.chunk;
    q.to.part = size;
    multiply(q, split.parts);
    sum<T>(memory, split.parts, size, dw);
  }

  // The gradient of x from parts of the sum, each laid out as dx, one after the other; their number.
  static int64_t input_parts(const Ints& geometry, const Tensor& grad, const Tensor& weight, int64_t parts,
                             const Tensor& dx, int64_t size) {
    const ConvTranspose c = decode(geometry);
    auto p = fcn::input_product<T, T>(c, grad.as<const T>(), weight.as<const T>().data, fcn::contiguous_weight(c),
                                      dx.as<T>());
    const fcn::Split split = split_into(parts, p.shape.depth, fcn::ProductTile<T, 32>::kDepth);
    p.shape.chunk = split.chunk;
    p.to.part = size;
    multiply(p, split.parts);
    return split.parts;
  }

  static fcn::Split split_into(int64_t parts, int64_t depth, int64_t unit) {
    return fcn::split_of(fcn::kEnoughBlocks / parts, depth, unit, 1, depth);
  }

  static void stream_input(const ConvTranspose& c, const View<const T>& grad, const View<const T>& weight,
                           const View<T>& dx) {
    if (fcn::is_pixelwise(dx, c.groups) && grad.stride_c == 1) {
      const std::vector<T> taps = packed(c, weight.data, true);
      const auto start = [&](auto wide) {
        path = wide.value > 1 ? "wide pixels" : "pixels";
        const fcn::PixelTiles t = fcn::pixel_tiles(c.groups / wide.value, c.rows.kernel);
        const int64_t units = fcn::divided_up(c.columns.in, fcn::kDepthwiseRun) * c.rows.in * c.batch;
        emulate(static_cast<unsigned>(t.across * fcn::divided_up(units, fcn::kDepthwiseThreads / t.lanes / t.shares)),
                kWarps, [&] { fcn::depthwise_input_pixels<T, wide.value>(grad, taps.data(), dx, c, t); });
      };
      if (fcn::is_multiple(c.groups, kWide) && fcn::has_aligned_pixels(grad, kWide) &&
          fcn::has_aligned_pixels(dx, kWide)) {
        return start(Wide());
      }
      return start(One());
    }
    const auto start = [&](auto lanes) {
      path = "rows";
      const int64_t blocks =
          fcn::divided_up(c.rows.in * c.columns.in, fcn::kDepthwiseThreads / lanes.value * fcn::kDepthwiseRun);
      emulate(static_cast<unsigned>(blocks * c.batch * c.groups), kWarps,
              [&] { fcn::depthwise_input_rows<T, lanes.value>(grad, weight, dx, c, blocks); });
    };
    if (c.columns.kernel >= 32) {
      start(std::integral_constant<int, 32>());
    } else if (c.columns.kernel >= 8) {
      start(std::integral_constant<int, 8>());
    } else {
      start(One());
    }
  }

  static void stream_weight(const ConvTranspose& c, const View<const T>& grad, const View<const T>& x, T* dw,
                            int64_t size, int64_t parts) {
    const fcn::Split split = split_into(parts, c.batch * c.rows.in, 1);
    std::vector<A> memory(split.parts * size, A(NAN));
    const auto run = [&](int64_t blocks, const auto& kernel) {
      emulate(static_cast<unsigned>(blocks), kWarps, kernel, static_cast<unsigned>(split.parts));
      sum<T>(memory, split.parts, size, dw);
    };
    if (!fcn::is_pixelwise(x, c.groups) || grad.stride_c != 1) {
      const fcn::PhaseTiles t = fcn::phase_tiles(c.columns);
      return run(t.blocks * t.tap_blocks * c.rows.kernel * c.groups,
                 [&] { fcn::depthwise_weight_rows<T>(grad, x, memory.data(), c, t, split.chunk); });
    }
    const auto pixels = [&](auto wide) {
      const fcn::PixelTiles t = fcn::pixel_tiles(c.groups / wide.value, c.columns.in);
      run(t.across * fcn::divided_up(c.columns.kernel, fcn::kTaps) * c.rows.kernel,
          [&] { fcn::depthwise_weight_pixels<T, wide.value>(grad, x, memory.data(), c, t, split.chunk); });
    };
    if (fcn::is_multiple(c.groups, kWide) && fcn::has_aligned_pixels(grad, kWide) &&
        fcn::has_aligned_pixels(x, kWide)) {
      return pixels(Wide());
    }
    pixels(One());
  }

  static void copy(const Tensor& from_tensor, const Tensor& to_tensor, const Ints& size) {
    const View<const T> from = from_tensor.as<const T>();
    const View<T> to = to_tensor.as<T>();
    fcn::CopyShape s = fcn::copy_shape(from, to, size[1], size[2], size[3]);
    const auto start = [&](auto wide, auto packs) {
      path = wide.value == 1 ? "numbers" : packs.value ? "packs" : "packs of numbers";
      s.inner /= wide.value;
      s.count = s.inner * s.middle * s.outer * size[0];
      emulate(blocks_for(s.count, fcn::kCopyThreads), fcn::kCopyThreads / fcn::kWarp,
              [&] { fcn::copy_window<T, wide.value, packs.value>(from.data, to.data, s); });
    };
    if (!fcn::is_multiple(s.inner, kWide) || !fcn::has_packs(to.data, s.to, kWide)) {
      start(One(), std::true_type());
    } else if (fcn::has_packs(from.data, s.from, kWide)) {
      start(Wide(), std::true_type());
    } else {
      start(Wide(), std::false_type());
    }
  }

  static void define(pybind11::module& m, const char* name) {
    pybind11::class_<Kernels>(m, name)
        .def_static("forward", &Kernels::forward)
        .def_static("backward", &Kernels::backward)
        .def_static("input_parts", &Kernels::input_parts)
        .def_static("copy", &Kernels::copy)
        .def_static("path", [] { return path; });
  }
};

// Of the products of a forward of contiguous tensors: how often each element of y is written, and whether all that is
// read lies inside x and the weight.
std::pair<Ints, bool> coverage(const Ints& geometry, bool pixelwise) {
  const ConvTranspose c = decode(geometry);
  const int64_t in = c.groups * c.inputs, out = c.groups * c.outputs, h = c.rows.in, w = c.columns.in;
  const int64_t height = c.rows.out, width = c.columns.out;
  const float zero = 0;
  const View<const float> x = pixelwise ? View<const float>{&zero, in * h * w, 1, in * w, in}
                                        : View<const float>{&zero, in * h * w, h * w, w, 1};
  std::vector<float> memory(1);
  const View<float> y = pixelwise ? View<float>{memory.data(), out * height * width, 1, out * width, out}
                                  : View<float>{memory.data(), out * height * width, height * width, width, 1};
  const fcn::WeightStrides strides = pixelwise ? fcn::packed_weight(c, true) : fcn::contiguous_weight(c);
  const int64_t weights = in * c.outputs * c.rows.kernel * c.columns.kernel;
  Ints count(c.batch * out * height * width, 0);
  bool inside = true;
  for (int phase = 0; phase < 4; ++phase) {
    const fcn::Phases rows = fcn::phases_of(c.rows, phase / 2), columns = fcn::phases_of(c.columns, phase % 2);
    if (rows.count <= 0 || columns.count <= 0) continue;
    const auto p = fcn::forward_product<float>(c, rows, columns, x, &zero, strides, View<const float>{}, 1, y);
    for (int64_t g = 0; g < c.groups; ++g) {
      for (int64_t m = 0; m < p.shape.rows; ++m) {
        for (int64_t n = 0; n < p.shape.columns; ++n) {
          const fcn::Place at = p.to.row.at(m), by = p.to.column.at(n);
          if (fcn::is_inside(at, by, p.to.height, p.to.width)) ++count.at(g * p.to.group + at.offset + by.offset);
        }
        for (int64_t k = 0; k < p.shape.depth; ++k) {
          const fcn::Place line = p.a.line.at(m), at = p.a.depth.at(k);
          const int64_t offset = g * p.a.group + line.offset + at.offset;
          const bool reads = fcn::is_inside(line, at, p.a.height, p.a.width);
          inside = inside && (!reads || (offset >= 0 && offset < c.batch * in * h * w));
        }
      }
      for (int64_t n = 0; n < p.shape.columns; ++n) {
        for (int64_t k = 0; k < p.shape.depth; ++k) {
          const int64_t offset = g * p.b.group + p.b.line.at(n).offset + p.b.depth.at(k).offset;
          inside = inside && offset >= 0 && offset < weights;
        }
      }
    }
  }
  return {count, inside};
}

}  // namespace

PYBIND11_MODULE(cuda_conv_transpose_on_host, m) {
  pybind11::class_<Tensor>(m, "Tensor").def(pybind11::init([](int64_t address, Ints strides) {
    return Tensor{address, strides};
  }));
  Kernels<float>::define(m, "Float");
  Kernels<double>::define(m, "Double");
  Kernels<__half>::define(m, "Half");
  Kernels<__nv_bfloat16>::define(m, "BFloat16");
  m.def("coverage", &coverage);
  m.def("split", [](int64_t blocks, int64_t depth, int64_t unit, int64_t shortest, int64_t longest) {
    const fcn::Split s = fcn::split_of(blocks, depth, unit, shortest, longest);
    return Ints{s.parts, s.chunk};
  });
  m.def("backwards", [](bool on) { emulation_backwards = on; });
}
