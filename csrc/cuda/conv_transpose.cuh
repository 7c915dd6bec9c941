// A learned transposed convolution as gathered products: which digits of which matrix stand where.
//
// Per axis an output o takes, with q = o + offset and p = q / stride, the inputs p - t through the weights
// q % stride + t stride, t = 0, 1, ... All outputs of a step p read the same inputs, so the phases q % stride and the
// output channels are the columns of one product and the steps of all images its rows. Phases that have another number
// of taps (where the kernel is no multiple of the stride) make a product of their own.
#pragma once

#include <initializer_list>

#include "tile_product.cuh"

namespace fcn {

struct ConvAxis {
  int64_t in, out, kernel, stride, offset;

  FCN_HOST_DEVICE int64_t first_step() const { return offset / stride; }
  FCN_HOST_DEVICE int64_t steps() const { return (offset + out - 1) / stride - first_step() + 1; }
  FCN_HOST_DEVICE int64_t taps() const { return (kernel + stride - 1) / stride; }  // at most
};

struct ConvTranspose {
  ConvAxis rows, columns;
  int64_t batch, groups, inputs, outputs;  // channels of a group
};

namespace {

// Strides of a weight [Cin, Cout / groups, ky, kx].
struct WeightStrides {
  int64_t input, output, row, column;
};

inline WeightStrides contiguous_weight(const ConvTranspose& c) {
  const int64_t kernel = c.rows.kernel * c.columns.kernel;
  return WeightStrides{c.outputs * kernel, kernel, c.columns.kernel, 1};
}

// Phases [first, first + count) of an axis, with the same number of taps.
struct Phases {
  int64_t first, count, taps;
};

// The phases with one tap more (`which` = 0), and the others.
inline Phases phases_of(const ConvAxis& axis, int which) {
  const int64_t rest = axis.kernel % axis.stride, taps = axis.kernel / axis.stride;
  Phases phases = which == 0 ? Phases{0, rest, taps + 1} : Phases{rest, axis.stride - rest, taps};
  if (axis.steps() == 1) {  // the crop may lie within a stride
    const int64_t low = axis.offset % axis.stride, high = low + axis.out, end = phases.first + phases.count;
    phases.first = phases.first < low ? low : phases.first;
    phases.count = (end < high ? end : high) - phases.first;
  }
  return phases;
}

inline int64_t at_least_one(int64_t size) { return size > 1 ? size : 1; }

constexpr Place kOrigin{0, 0, 0};

inline Place along_row(int64_t offset, int64_t pixels) { return Place{offset, 0, static_cast<int32_t>(pixels)}; }
inline Place down(int64_t offset, int64_t pixels) { return Place{offset, static_cast<int32_t>(pixels), 0}; }
inline Place apart(int64_t offset) { return Place{offset, 0, 0}; }

// Whether channels stand side by side, so that lanes go along them.
template <typename T>
bool is_pixelwise(const View<T>& v, int64_t channels) {
  return v.stride_c == 1 && channels > 1 && v.stride_w != 1;
}

inline bool is_multiple(int64_t n, int64_t of) { return n % of == 0; }

// Whether packs of `wide` neighbours from here on, `strides` apart, are aligned.
template <typename T>
bool is_aligned(const T* data, std::initializer_list<int64_t> strides, int wide) {
  bool aligned = reinterpret_cast<uintptr_t>(data) % (sizeof(T) * wide) == 0;
  for (int64_t stride : strides) aligned = aligned && is_multiple(stride, wide);
  return aligned;
}

template <typename T>
bool has_aligned_pixels(const View<T>& v, int wide) {
  return is_aligned(v.data, {v.stride_n, v.stride_h, v.stride_w}, wide);
}

template <typename T, typename Out>
struct Product {
  Operand<T> a, b;
  Result<T, Out> to;
  ProductShape shape;
};

// y = the crop of the transposed convolution + scale * other (whose data may be null) in the given phases.
template <typename T>
Product<T, T> forward_product(const ConvTranspose& c, const Phases& down_phases, const Phases& across_phases,
                              const View<const T>& x, const T* weight, const WeightStrides& w,
                              const View<const T>& other, ArithmeticOf<T> scale, const View<T>& y) {
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const int64_t top = rows.first_step(), left = columns.first_step(), steps = columns.steps();
  Product<T, T> p{};
  p.shape = {c.batch * rows.steps() * steps, down_phases.count * across_phases.count * c.outputs,
             down_phases.taps * across_phases.taps * c.inputs, 0, c.groups};
  p.shape.chunk = p.shape.depth;

  p.a.data = x.data;
  p.a.line = {{steps, rows.steps()},
              {top * x.stride_h + left * x.stride_w, static_cast<int32_t>(top), static_cast<int32_t>(left)},
              {along_row(x.stride_w, 1), down(x.stride_h, 1), apart(x.stride_n)}};
  const Place x_channel = apart(x.stride_c), x_left = along_row(-x.stride_w, -1), x_up = down(-x.stride_h, -1);
  const Place w_channel = apart(w.input), w_right = apart(columns.stride * w.column),
              w_down = apart(rows.stride * w.row);
  if (is_pixelwise(x, c.groups * c.inputs)) {
    p.a.depth = {{c.inputs, at_least_one(across_phases.taps)}, kOrigin, {x_channel, x_left, x_up}};
    p.b.depth = {{c.inputs, at_least_one(across_phases.taps)}, kOrigin, {w_channel, w_right, w_down}};
    p.a.along_depth = true;
    p.a.wide = is_multiple(c.inputs, kRun<T>) && has_aligned_pixels(x, kRun<T>);
    p.b.along_depth = w.input == 1;
    p.b.wide = w.input == 1 && is_multiple(c.inputs, kRun<T>) && is_aligned(weight, {}, kRun<T>);
  } else {
    const int64_t across_taps = at_least_one(across_phases.taps), down_taps = at_least_one(down_phases.taps);
    p.a.depth = {{across_taps, down_taps}, kOrigin, {x_left, x_up, x_channel}};
    p.b.depth = {{across_taps, down_taps}, kOrigin, {w_right, w_down, w_channel}};
  }
  p.a.group = c.inputs * x.stride_c;
  p.a.height = static_cast<int32_t>(rows.in);
  p.a.width = static_cast<int32_t>(columns.in);

  p.b.data = weight;
  p.b.group = c.inputs * w.input;
  p.b.height = p.b.width = 1;
  p.to.along_columns = is_pixelwise(y, c.groups * c.outputs);
  const auto of_columns = [&](const Place& channel, const Place& right, const Place& below) {
    Digits digits{};
    digits.start = kOrigin.plus(right, across_phases.first).plus(below, down_phases.first);
    if (p.to.along_columns) {
      digits.size[0] = c.outputs;
      digits.size[1] = across_phases.count;
      digits.step[0] = channel;
      digits.step[1] = right;
    } else {
      digits.size[0] = across_phases.count;
      digits.size[1] = c.outputs;
      digits.step[0] = right;
      digits.step[1] = channel;
    }
    digits.step[2] = below;
    return digits;
  };
  p.b.line = of_columns(apart(w.output), apart(w.column), apart(w.row));

  const auto of_rows = [&](const View<const T>& v) {
    const Place right = along_row(columns.stride * v.stride_w, columns.stride);
    const Place below = down(rows.stride * v.stride_h, rows.stride);
    // The outputs of the first step may begin before the crop.
    const Place start = kOrigin.plus(along_row(v.stride_w, 1), left * columns.stride - columns.offset)
                            .plus(down(v.stride_h, 1), top * rows.stride - rows.offset);
    return Digits{{steps, rows.steps()}, start, {right, below, apart(v.stride_n)}};
  };
  const View<const T> out{y.data, y.stride_n, y.stride_c, y.stride_h, y.stride_w};
  p.to.data = y.data;
  p.to.row = of_rows(out);
  p.to.column = of_columns(apart(y.stride_c), along_row(y.stride_w, 1), down(y.stride_h, 1));
  p.to.group = c.outputs * y.stride_c;
  p.to.height = static_cast<int32_t>(rows.out);
  p.to.width = static_cast<int32_t>(columns.out);
  const bool whole = across_phases.count == columns.stride && columns.stride <= 32 && is_multiple(32, columns.stride);
  p.to.interleaved = whole ? static_cast<int>(columns.stride) : 1;
  p.to.other = other.data;
  p.to.other_row = of_rows(other);
  p.to.other_column = of_columns(apart(other.stride_c), along_row(other.stride_w, 1), down(other.stride_h, 1));
  p.to.other_group = c.outputs * other.stride_c;
  p.to.scale = scale;
  return p;
}

// dx: an input gathers the outputs of its kernel, over the output channels.
template <typename T, typename Out>
Product<T, Out> input_product(const ConvTranspose& c, const View<const T>& grad, const T* weight,
                              const WeightStrides& w, const View<Out>& dx) {
  const ConvAxis &rows = c.rows, &columns = c.columns;
  Product<T, Out> p{};
  p.shape = {c.batch * rows.in * columns.in, c.inputs, rows.kernel * columns.kernel * c.outputs, 0, c.groups};
  p.shape.chunk = p.shape.depth;
  const Place right = along_row(grad.stride_w, 1), below = down(grad.stride_h, 1);

  p.a.data = grad.data;
  p.a.line = {{columns.in, rows.in},
              kOrigin.plus(right, -columns.offset).plus(below, -rows.offset),
              {kOrigin.plus(right, columns.stride), kOrigin.plus(below, rows.stride), apart(grad.stride_n)}};
  p.a.group = c.outputs * grad.stride_c;
  p.a.height = static_cast<int32_t>(rows.out);
  p.a.width = static_cast<int32_t>(columns.out);
  p.b.data = weight;
  p.b.line = {{c.inputs, 1}, kOrigin, {apart(w.input), kOrigin, kOrigin}};
  p.b.group = c.inputs * w.input;
  p.b.height = p.b.width = 1;
  if (is_pixelwise(grad, c.groups * c.outputs)) {
    p.a.depth = {{c.outputs, columns.kernel}, kOrigin, {apart(grad.stride_c), right, below}};
    p.a.along_depth = true;
    p.a.wide = is_multiple(c.outputs, kRun<T>) && has_aligned_pixels(grad, kRun<T>);
    p.b.depth = {{c.outputs, columns.kernel}, kOrigin, {apart(w.output), apart(w.column), apart(w.row)}};
    p.b.along_depth = w.output == 1;
    p.b.wide = w.output == 1 && is_multiple(c.outputs, kRun<T>) && is_aligned(weight, {}, kRun<T>);
  } else {
    p.a.depth = {{columns.kernel, rows.kernel}, kOrigin, {right, below, apart(grad.stride_c)}};
    p.b.depth = {{columns.kernel, rows.kernel}, kOrigin, {apart(w.column), apart(w.row), apart(w.output)}};
    // The weights of an input channel stand in this order.
    p.b.along_depth = w.column == 1;
    const bool packed = w.column == 1 && w.row == columns.kernel && w.output == columns.kernel * rows.kernel;
    if (packed) p.b.depth = {{p.shape.depth, 1}, kOrigin, {apart(1), kOrigin, kOrigin}};
    p.b.wide = packed && is_multiple(p.shape.depth, kRun<T>) && is_aligned(weight, {w.input}, kRun<T>);
  }

  p.to.data = dx.data;
  p.to.row = {{columns.in, rows.in}, kOrigin, {apart(dx.stride_w), apart(dx.stride_h), apart(dx.stride_n)}};
  p.to.column = {{c.inputs, 1}, kOrigin, {apart(dx.stride_c), kOrigin, kOrigin}};
  p.to.group = c.inputs * dx.stride_c;
  p.to.height = p.to.width = 1;
  p.to.along_columns = is_pixelwise(dx, c.groups * c.inputs);
  p.to.interleaved = 1;
  return p;
}

// The gradient of the weight, contiguous: rows are the places of the kernel and the output channels, columns the input
// channels, and the sum runs over the pixels of all images.
template <typename T, typename Out>
Product<T, Out> weight_product(const ConvTranspose& c, const View<const T>& grad, const View<const T>& x, Out* dw) {
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const WeightStrides w = contiguous_weight(c);
  Product<T, Out> p{};
  p.shape = {rows.kernel * columns.kernel * c.outputs, c.inputs, c.batch * rows.in * columns.in, 0, c.groups};
  p.shape.chunk = p.shape.depth;
  const Place right = along_row(grad.stride_w, 1), below = down(grad.stride_h, 1), channel = apart(grad.stride_c);
  const Place start = kOrigin.plus(right, -columns.offset).plus(below, -rows.offset);

  p.a.data = grad.data;
  p.a.depth = {{columns.in, rows.in},
               kOrigin,
               {kOrigin.plus(right, columns.stride), kOrigin.plus(below, rows.stride), apart(grad.stride_n)}};
  p.a.group = c.outputs * grad.stride_c;
  p.a.height = static_cast<int32_t>(rows.out);
  p.a.width = static_cast<int32_t>(columns.out);
  if (is_pixelwise(grad, c.groups * c.outputs)) {
    p.a.line = {{c.outputs, columns.kernel}, start, {channel, right, below}};
    p.to.row = {{c.outputs, columns.kernel}, kOrigin, {apart(w.output), apart(w.column), apart(w.row)}};
  } else {
    p.a.line = {{columns.kernel, rows.kernel}, start, {right, below, channel}};
    p.to.row = {{columns.kernel, rows.kernel}, kOrigin, {apart(w.column), apart(w.row), apart(w.output)}};
  }

  p.b.data = x.data;
  p.b.line = {{c.inputs, 1}, kOrigin, {apart(x.stride_c), kOrigin, kOrigin}};
  p.b.depth = {{columns.in, rows.in}, kOrigin, {apart(x.stride_w), apart(x.stride_h), apart(x.stride_n)}};
  p.b.group = c.inputs * x.stride_c;
  p.b.height = p.b.width = 1;
  p.b.along_depth = !is_pixelwise(x, c.groups * c.inputs);
  p.b.wide = x.stride_w == 1 && is_multiple(columns.in, kRun<T>) &&
             is_aligned(x.data, {x.stride_n, x.stride_c, x.stride_h}, kRun<T>);

  p.to.data = dw;
  p.to.column = {{c.inputs, 1}, kOrigin, {apart(w.input), kOrigin, kOrigin}};
  p.to.group = c.inputs * w.input;
  p.to.height = p.to.width = 1;
  p.to.interleaved = 1;
  return p;
}

// The least power of two that is no less than n, up to `most`.
inline int lanes_for(int64_t n, int most) {
  int lanes = 1;
  while (lanes < n && lanes < most) lanes *= 2;
  return lanes;
}

// Into how many parts a sum of `depth` terms is split, and their length, a multiple of `unit`: where blocks are few,
// and where rounding errors of one sum would add up. It follows from the shapes alone.
struct Split {
  int64_t parts, chunk;
};

constexpr int64_t kEnoughBlocks =
    528;                               // four for each multiprocessor of an H200; a constant, so that all devices agree
constexpr int64_t kMostParts = 65535;  // of a grid

inline Split split_of(int64_t blocks, int64_t depth, int64_t unit, int64_t shortest, int64_t longest) {
  int64_t parts = kEnoughBlocks / at_least_one(blocks);
  parts = parts < depth / shortest ? parts : depth / shortest;
  const int64_t needed = divided_up(depth, longest);
  parts = at_least_one(parts > needed ? parts : needed);
  parts = parts < kMostParts ? parts : kMostParts;
  const int64_t chunk = divided_up(divided_up(depth, parts), unit) * unit;
  return Split{at_least_one(divided_up(depth, at_least_one(chunk))), at_least_one(chunk)};
}

}  // namespace
}  // namespace fcn
