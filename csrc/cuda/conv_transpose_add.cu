// conv_transpose_add and its gradients on CUDA: checks, allocation, launches.
#include "conv_transpose_add.cuh"
#include "conv_transpose_launch.cuh"

namespace fcn {
namespace {

constexpr int64_t kShortestSum = 256, kLongestSum = 1 << 13;  // of a part, in terms

dim3 warps_of(int threads) { return dim3(kWarp, threads / kWarp); }

// `blocks` of a grid's first dimension.
unsigned grid_of(const char* op, int64_t blocks) {
  check(blocks <= kLargestSize, op, "needs ", blocks, " blocks of threads, expected at most ", kLargestSize);
  return static_cast<unsigned>(blocks);
}

unsigned blocks_for(const char* op, int64_t threads, int size) { return grid_of(op, divided_up(threads, size)); }

bool is_depthwise(const ConvTranspose& c) { return c.inputs == 1 && c.outputs == 1; }

WeightStrides strides_of_weight(const Tensor& w) {
  return WeightStrides{w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
}

// The weight with channels side by side.
template <typename T>
Tensor packed(const Launch& launch, const char* op, const ConvTranspose& c, const Tensor& weight, bool inputs_first) {
  const Tensor from = as_contiguous(weight), to = empty_vector(weight, {weight.numel()}, weight.scalar_type());
  const int64_t size = weight.numel();
  pack_weights<T><<<blocks_for(op, size, kDepthwiseThreads), warps_of(kDepthwiseThreads), 0, launch.stream()>>>(
      data_of<const T>(from), packing_of(c, contiguous_weight(c), inputs_first), size, data_of<T>(to));
  launch.finish();
  return to;
}

template <typename T, typename Out>
void launch_product(const Launch& launch, const char* op, const Product<T, Out>& p, int64_t parts) {
  if (p.shape.rows == 0 || p.shape.columns <= 0) return;
  const auto start = [&](auto width) {
    using Tile = ProductTile<T, width.value>;
    const int64_t blocks =
        divided_up(p.shape.rows, Tile::kHeight) * divided_up(p.shape.columns, width.value) * p.shape.groups;
    const dim3 grid(grid_of(op, blocks), static_cast<unsigned>(parts));
    gathered_product<T, Out, width.value>
        <<<grid, warps_of(kProductThreads), 0, launch.stream()>>>(p.a, p.b, p.to, p.shape);
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (p.shape.columns > 32) {
      start(std::integral_constant<int, 64>());
      return launch.finish();
    }
  }
  start(std::integral_constant<int, 32>());
  launch.finish();
}

// Splits the sum of a product where blocks are few.
template <typename T, typename Out>
Split split_product(const Product<T, Out>& p, int64_t longest) {
  const int width = p.shape.columns > 32 && !std::is_same_v<T, double> ? 64 : 32;
  const int64_t blocks =
      divided_up(p.shape.rows, ProductTile<T, 32>::kHeight) * divided_up(p.shape.columns, width) * p.shape.groups;
  return split_of(blocks, p.shape.depth, ProductTile<T, 32>::kDepth, kShortestSum, longest);
}

// to = the sum of the parts, [parts, to.numel()] in the order of the memory of `to`.
template <typename T>
void launch_sum(const Launch& launch, const char* op, const Tensor& parts, int64_t count, const Tensor& to) {
  using A = ArithmeticOf<T>;
  const int64_t size = to.numel();
  sum_parts<A, T><<<blocks_for(op, size, kProductThreads), warps_of(kProductThreads), 0, launch.stream()>>>(
      data_of<const A>(parts), count, size, data_of<T>(to));
  launch.finish();
}

template <typename T>
using Wide = std::integral_constant<int, 16 / sizeof(T)>;
using Narrow = std::integral_constant<int, 1>;

// --- forward -------------------------------------------------------------------------------------------------------

template <typename T>
void stream_rows(const Launch& launch, const char* op, const ConvTranspose& c, const Tensor& x, const Tensor& weight,
                 const View<const T>& other, ArithmeticOf<T> scale, const View<T>& y) {
  constexpr int kWide = Wide<T>();
  const auto aligned = [&](const auto& v) {
    return v.stride_w == 1 && is_aligned(v.data, {v.stride_n, v.stride_c, v.stride_h}, kWide);
  };
  const bool other_wide = other.data && aligned(other);
  const auto start = [&](auto wide, auto staged, const RowTiles& t) {
    const unsigned blocks = grid_of(op, t.across * t.down * c.batch * c.groups);
    depthwise_rows<T, wide.value, staged.value><<<blocks, warps_of(kDepthwiseThreads), 0, launch.stream()>>>(
        view_of<const T>(x), view_of<const T>(weight), other, y, c, t, other_wide, scale);
  };
  const RowTiles narrow = row_tiles(c, 1), wide = row_tiles(c, kWide);
  if (aligned(y) && is_multiple(c.columns.out, kWide) && wide.staged) {
    start(Wide<T>(), std::true_type(), wide);
  } else if (narrow.staged) {
    start(Narrow(), std::true_type(), narrow);
  } else {
    start(Narrow(), std::false_type(), narrow);
  }
  launch.finish();
}

template <typename T>
void stream_pixels(const Launch& launch, const char* op, const ConvTranspose& c, const Tensor& x, const Tensor& weight,
                   const View<const T>& other, ArithmeticOf<T> scale, const View<T>& y) {
  constexpr int kWide = Wide<T>();
  const View<const T> from = view_of<const T>(x);
  const Tensor taps = packed<T>(launch, op, c, weight, true);
  const auto aligned = [&](const auto& v) { return v.stride_c == 1 && has_aligned_pixels(v, kWide); };
  const auto start = [&](auto wide, bool other_wide) {
    const unsigned blocks = blocks_for(op, pixel_units(c) * (c.groups / wide.value), kDepthwiseThreads);
    depthwise_pixels<T, wide.value><<<blocks, warps_of(kDepthwiseThreads), 0, launch.stream()>>>(
        from, data_of<const T>(taps), other, y, c, other_wide, scale);
  };
  if (is_multiple(c.groups, kWide) && aligned(from) && aligned(y)) {
    start(Wide<T>(), other.data && aligned(other));
  } else {
    start(Narrow(), false);
  }
  launch.finish();
}

template <typename T>
void multiply(const Launch& launch, const char* op, const ConvTranspose& c, const Tensor& x, const Tensor& weight,
              const View<const T>& other, ArithmeticOf<T> scale, const View<T>& y) {
  const View<const T> from = view_of<const T>(x);
  Tensor filters = weight;
  WeightStrides strides = strides_of_weight(weight);
  if (is_pixelwise(from, x.size(1))) {
    filters = packed<T>(launch, op, c, weight, true);
    strides = packed_weight(c, true);
  }
  for (int down_class = 0; down_class < 2; ++down_class) {
    const Phases down_phases = phases_of(c.rows, down_class);
    for (int across_class = 0; across_class < 2; ++across_class) {
      const Phases across_phases = phases_of(c.columns, across_class);
      if (down_phases.count <= 0 || across_phases.count <= 0) continue;
      launch_product(
          launch, op,
          forward_product<T>(c, down_phases, across_phases, from, data_of<const T>(filters), strides, other, scale, y),
          1);
    }
  }
}

// --- gradients -----------------------------------------------------------------------------------------------------

template <typename T>
void stream_input_gradient(const Launch& launch, const char* op, const ConvTranspose& c, const View<const T>& grad,
                           const Tensor& weight, const Tensor& grad_x) {
  constexpr int kWide = Wide<T>();
  const View<T> dx = view_of<T>(grad_x);
  if (is_pixelwise(dx, c.groups) && grad.stride_c == 1) {
    const Tensor taps = packed<T>(launch, op, c, weight, true);
    const auto start = [&](auto wide) {
      const PixelTiles t = pixel_tiles(c.groups / wide.value, c.rows.kernel);
      const int64_t units = divided_up(c.columns.in, kDepthwiseRun) * c.rows.in * c.batch;
      const int64_t blocks = t.across * divided_up(units, kDepthwiseThreads / t.lanes / t.shares);
      depthwise_input_pixels<T, wide.value><<<grid_of(op, blocks), warps_of(kDepthwiseThreads), 0, launch.stream()>>>(
          grad, data_of<const T>(taps), dx, c, t);
    };
    if (is_multiple(c.groups, kWide) && has_aligned_pixels(grad, kWide) && has_aligned_pixels(dx, kWide)) {
      start(Wide<T>());
    } else {
      start(Narrow());
    }
  } else {
    const auto start = [&](auto lanes) {
      const int64_t blocks = divided_up(c.rows.in * c.columns.in, kDepthwiseThreads / lanes.value * kDepthwiseRun);
      depthwise_input_rows<T, lanes.value>
          <<<grid_of(op, blocks * c.batch * c.groups), warps_of(kDepthwiseThreads), 0, launch.stream()>>>(
              grad, view_of<const T>(weight), dx, c, blocks);
    };
    if (c.columns.kernel >= 32) {
      start(std::integral_constant<int, 32>());
    } else if (c.columns.kernel >= 8) {
      start(std::integral_constant<int, 8>());
    } else {
      start(Narrow());
    }
  }
  launch.finish();
}

template <typename T>
void input_gradient(const Launch& launch, const char* op, const ConvTranspose& c, const View<const T>& grad,
                    const Tensor& weight, const Tensor& grad_x) {
  using A = ArithmeticOf<T>;
  if (is_depthwise(c)) return stream_input_gradient<T>(launch, op, c, grad, weight, grad_x);
  Tensor filters = weight;
  WeightStrides strides = strides_of_weight(weight);
  if (is_pixelwise(grad, c.groups * c.outputs)) {
    filters = packed<T>(launch, op, c, weight, false);
    strides = packed_weight(c, false);
  }
  Product<T, T> whole = input_product<T, T>(c, grad, data_of<const T>(filters), strides, view_of<T>(grad_x));
  const Split split = split_product(whole, whole.shape.depth);
  if (split.parts == 1) return launch_product(launch, op, whole, 1);
  const Tensor parts = arithmetic_vector<A>(grad_x, split.parts * grad_x.numel());
  View<A> first{data_of<A>(parts), grad_x.stride(0), grad_x.stride(1), grad_x.stride(2), grad_x.stride(3)};
  Product<T, A> p = input_product<T, A>(c, grad, data_of<const T>(filters), strides, first);
  p.shape.chunk = split.chunk;
  p.to.part = grad_x.numel();
  launch_product(launch, op, p, split.parts);
  launch_sum<T>(launch, op, parts, split.parts, grad_x);
}

template <typename T>
void weight_gradient(const Launch& launch, const char* op, const ConvTranspose& c, const View<const T>& grad,
                     const Tensor& x, const Tensor& grad_weight) {
  using A = ArithmeticOf<T>;
  constexpr int kWide = Wide<T>();
  const View<const T> from = view_of<const T>(x);
  const int64_t size = grad_weight.numel(), rows = c.batch * c.rows.in;
  const auto parts_of = [&](int64_t count) { return arithmetic_vector<A>(x, count * size); };
  if (!is_depthwise(c)) {
    Product<T, A> p = weight_product<T, A>(c, grad, from, nullptr);
    const Split split = split_product(p, kLongestSum);
    const Tensor parts = parts_of(split.parts);
    p.to.data = data_of<A>(parts);
    p.shape.chunk = split.chunk;
    p.to.part = size;
    launch_product(launch, op, p, split.parts);
    return launch_sum<T>(launch, op, parts, split.parts, grad_weight);
  }
  const auto run = [&](int64_t blocks, const auto& start) {
    const Split split = split_of(blocks, rows, 1, 4, rows);
    const Tensor parts = parts_of(split.parts);
    start(dim3(grid_of(op, blocks), static_cast<unsigned>(split.parts)), data_of<A>(parts), split.chunk);
    launch.finish();
    launch_sum<T>(launch, op, parts, split.parts, grad_weight);
  };
  if (!is_pixelwise(from, c.groups) || grad.stride_c != 1) {
    const PhaseTiles t = phase_tiles(c.columns);
    run(t.blocks * t.tap_blocks * c.rows.kernel * c.groups, [&](const dim3& grid, A* parts, int64_t chunk) {
      depthwise_weight_rows<T>
          <<<grid, warps_of(kDepthwiseThreads), 0, launch.stream()>>>(grad, from, parts, c, t, chunk);
    });
    return;
  }
  const auto pixels = [&](auto wide) {
    const PixelTiles t = pixel_tiles(c.groups / wide.value, c.columns.in);
    run(t.across * divided_up(c.columns.kernel, kTaps) * c.rows.kernel, [&](const dim3& grid, A* parts, int64_t chunk) {
      depthwise_weight_pixels<T, wide.value>
          <<<grid, warps_of(kDepthwiseThreads), 0, launch.stream()>>>(grad, from, parts, c, t, chunk);
    });
  };
  if (is_multiple(c.groups, kWide) && has_aligned_pixels(grad, kWide) && has_aligned_pixels(from, kWide)) {
    pixels(Wide<T>());
  } else {
    pixels(Narrow());
  }
}

// --- operators -----------------------------------------------------------------------------------------------------

Tensor conv_transpose_add(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& skip,
                          const std::vector<int64_t>& stride, int64_t groups, const std::vector<int64_t>& offset,
                          const std::vector<int64_t>& output_size, const std::vector<int64_t>& skip_offset,
                          double skip_scale) {
  constexpr const char* op = "conv_transpose_add";
  check(output_size.size() == 2, op, "output_size must be two integers");
  const int64_t height = output_size[0], width = output_size[1];
  check_conv_transpose(op, x, weight, stride, groups, offset, height, width);
  const ConvTranspose c = conv_transpose_of(op, x, weight, stride, groups, offset, height, width);
  const int64_t channels = c.groups * c.outputs;
  AnyView other{};
  if (skip) {
    check_added(op, *skip, x, channels, height, width);
    check_device(op, "skip", *skip, x);
    check_window(op, "skip", *skip, skip_offset, height, width);
    other = part_of(*skip, 0, skip_offset[0], skip_offset[1]);
  }
  const Tensor y = empty_image(x, channels, height, width, x.scalar_type());
  if (y.numel() == 0) return y;
  launch_conv_transpose(Launch(op, x), op, c, x, weight, other, skip_scale, any_view_of(y));
  return y;
}

std::tuple<Tensor, Tensor> conv_transpose_add_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                       const std::vector<int64_t>& stride, int64_t groups,
                                                       const std::vector<int64_t>& offset, bool need_x,
                                                       bool need_weight) {
  constexpr const char* op = "conv_transpose_add_backward";
  check_gradient(op, grad, x, weight, stride, groups, offset);
  check_device(op, "grad", grad, x);
  const ConvTranspose c = conv_transpose_of(op, x, weight, stride, groups, offset, grad.size(2), grad.size(3));
  const ScalarType dtype = x.scalar_type();
  const Tensor grad_x = need_x ? empty_image(x, x.size(1), x.size(2), x.size(3), dtype) : empty_vector(x, {0}, dtype);
  std::vector<int64_t> shape{0};
  if (need_weight) shape = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  Tensor grad_weight = empty_vector(weight, shape, dtype);
  if (x.size(0) == 0) {
    if (need_weight) torch::stable::zero_(grad_weight);
    return {grad_x, grad_weight};
  }
  const Launch launch(op, x);
  visit_dtype(op, dtype, [&](auto zero) {
    using T = decltype(zero);
    const View<const T> incoming = view_of<const T>(grad);
    if (need_x) input_gradient<T>(launch, op, c, incoming, weight, grad_x);
    if (need_weight) weight_gradient<T>(launch, op, c, incoming, x, grad_weight);
  });
  return {grad_x, grad_weight};
}

}  // namespace

void launch_conv_transpose(const Launch& launch, const char* op, const ConvTranspose& c, const Tensor& x,
                           const Tensor& weight, const AnyView& other, double scale, const AnyView& y) {
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const View<T> to = y.as<T>();
    const View<const T> added = other.as<const T>();
    const ArithmeticOf<T> factor = static_cast<ArithmeticOf<T>>(scale);
    if (!is_depthwise(c)) {
      multiply<T>(launch, op, c, x, weight, added, factor, to);
    } else if (is_pixelwise(to, c.groups) && x.stride(1) == 1) {
      stream_pixels<T>(launch, op, c, x, weight, added, factor, to);
    } else {
      stream_rows<T>(launch, op, c, x, weight, added, factor, to);
    }
  });
}

}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("conv_transpose_add", TORCH_BOX(&fcn::conv_transpose_add));
  m.impl("conv_transpose_add_backward", TORCH_BOX(&fcn::conv_transpose_add_backward));
}
