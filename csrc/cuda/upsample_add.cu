// upsample, upsample_add and upsample_backward on CUDA. Streaming kernels: the forward reads x (from cache after the
// first time) and skip once and writes y once; the backward is a gather over the outputs that read an input pixel, so
// it needs no atomics and gives the same bits on every run.
#include <optional>

#include "launch.cuh"

namespace fcn {
namespace {

constexpr int kLanes = 32;   // threadIdx.x: along the innermost dimension, so that a warp's accesses are contiguous
constexpr int kRows = 8;     // threadIdx.y
constexpr int kColumns = 4;  // output columns per thread of a contiguous output, kLanes apart
constexpr int kPlanes = 8;   // planes that share one computation of the geometry, where there are enough of them
constexpr int64_t kMaxGrid = 65535;
constexpr int64_t kWantedBlocks = 4096;

// The two taps of an output index: offsets in elements (negative: not read, counts zero), weights 1 - f and f.
template <typename A>
struct Taps {
  int64_t first, second;
  A f;
};

template <typename A>
__device__ Taps<A> taps_of(const Axis& axis, bool clamp, int64_t o, int64_t stride) {
  int64_t i = axis.floor_index(o), j = i + 1;
  const int64_t rest = axis.num * o + axis.off - i * axis.den;
  if (clamp) {
    i = axis.clamp_index(i);
    j = axis.clamp_index(j);
  }
  const bool first = i >= 0 && i < axis.in, second = rest > 0 && j >= 0 && j < axis.in;
  return Taps<A>{first ? i * stride : -1, second ? j * stride : -1, A(rest) / A(axis.den)};
}

template <typename A, typename T>
__device__ A along_row(const T* row, const Taps<A>& t) {
  const A a = t.first < 0 ? A(0) : static_cast<A>(row[t.first]);
  const A b = t.second < 0 ? A(0) : static_cast<A>(row[t.second]);
  return (A(1) - t.f) * a + t.f * b;
}

template <typename A, typename T>
__device__ A bilinear(const T* plane, const Taps<A>& row, const Taps<A>& column) {
  const A a = row.first < 0 ? A(0) : along_row(plane + row.first, column);
  const A b = row.second < 0 ? A(0) : along_row(plane + row.second, column);
  return (A(1) - row.f) * a + row.f * b;
}

// Lanes along output columns; a block keeps its tile and walks through the planes.
template <typename T, bool kSkip>
__global__ void __launch_bounds__(kLanes* kRows)
    forward_contiguous(View<const T> x, View<const T> skip, View<T> y, Sampling s, int64_t batch, int64_t channels,
                       ArithmeticOf<T> scale) {
  using A = ArithmeticOf<T>;
  const int64_t left = int64_t{blockIdx.x} * kLanes * kColumns + threadIdx.x;
  Taps<A> columns[kColumns];
#pragma unroll
  for (int k = 0; k < kColumns; ++k) columns[k] = taps_of<A>(s.cols, s.clamp, left + k * kLanes, x.stride_w);
  for (int64_t oy = int64_t{blockIdx.y} * kRows + threadIdx.y; oy < s.rows.out; oy += int64_t{gridDim.y} * kRows) {
    const Taps<A> row = taps_of<A>(s.rows, s.clamp, oy, x.stride_h);
    for (int64_t plane = blockIdx.z; plane < batch * channels; plane += gridDim.z) {
      const int64_t n = plane / channels, c = plane - n * channels;
      const T* from = x.data + n * x.stride_n + c * x.stride_c;
      const T* other = skip.data + n * skip.stride_n + c * skip.stride_c + oy * skip.stride_h;
      T* to = y.data + n * y.stride_n + c * y.stride_c + oy * y.stride_h;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int64_t ox = left + k * kLanes;
        if (ox >= s.cols.out) break;
        A value = bilinear(from, row, columns[k]);
        if (kSkip) value += scale * static_cast<A>(other[ox * skip.stride_w]);
        to[ox * y.stride_w] = static_cast<T>(value);
      }
    }
  }
}

// Lanes along channels; a thread keeps its output pixel and walks through them.
template <typename T, bool kSkip>
__global__ void __launch_bounds__(kLanes* kRows)
    forward_channels_last(View<const T> x, View<const T> skip, View<T> y, Sampling s, int64_t batch, int64_t channels,
                          ArithmeticOf<T> scale) {
  using A = ArithmeticOf<T>;
  const int64_t ox = int64_t{blockIdx.x} * kRows + threadIdx.y;
  if (ox >= s.cols.out) return;
  const Taps<A> column = taps_of<A>(s.cols, s.clamp, ox, x.stride_w);
  for (int64_t oy = blockIdx.y; oy < s.rows.out; oy += gridDim.y) {
    const Taps<A> row = taps_of<A>(s.rows, s.clamp, oy, x.stride_h);
    for (int64_t n = blockIdx.z; n < batch; n += gridDim.z) {
      const T* from = x.data + n * x.stride_n;
      const T* other = skip.data + n * skip.stride_n + oy * skip.stride_h + ox * skip.stride_w;
      T* to = y.data + n * y.stride_n + oy * y.stride_h + ox * y.stride_w;
      for (int64_t c = threadIdx.x; c < channels; c += kLanes) {
        A value = bilinear(from + c * x.stride_c, row, column);
        if (kSkip) value += scale * static_cast<A>(other[c * skip.stride_c]);
        to[c * y.stride_c] = static_cast<T>(value);
      }
    }
  }
}

// pos(o), pos(o + step), ... as exact integers, with a division at the start only.
struct Walk {
  int64_t index, rest, step_index, step_rest, den;

  __device__ Walk(const Axis& axis, int64_t o, int64_t step) : den(axis.den) {
    index = axis.floor_index(o);
    rest = axis.num * o + axis.off - index * den;
    step_index = axis.num * step / den;
    step_rest = axis.num * step - step_index * den;
  }

  __device__ void next() {
    index += step_index;
    rest += step_rest;
    if (rest >= den) {
      rest -= den;
      ++index;
    }
  }

  // The weight with which the current output reads input i.
  template <typename A>
  __device__ A weight_of(const Axis& axis, bool clamp, int64_t i) const {
    const int64_t first = clamp ? axis.clamp_index(index) : index;
    const int64_t second = clamp ? axis.clamp_index(index + 1) : index + 1;
    const A f = A(rest) / A(den);
    return (first == i ? A(1) - f : A(0)) + (second == i ? f : A(0));
  }
};

// The outputs that can read input i.
struct Range {
  int64_t begin, end;

  __device__ Range(const Axis& axis, bool clamp, int64_t i)
      : begin(clamp && i == 0 ? 0 : axis.first_output(i - 1)),
        end(clamp && i == axis.in - 1 ? axis.out : axis.first_output(i + 1)) {}
};

// d loss / d x[i, j] of one plane: this lane's share, every `step`-th output column from `lane` on.
template <typename A, typename T>
__device__ A gather(const T* plane, const View<const T>& grad, const Sampling& s, int64_t i, int64_t j, int lane,
                    int step) {
  const Range rows(s.rows, s.clamp, i), columns(s.cols, s.clamp, j);
  const Walk start(s.cols, columns.begin + lane, step);
  A sum = 0;
  Walk down(s.rows, rows.begin, 1);
  for (int64_t oy = rows.begin; oy < rows.end; ++oy, down.next()) {
    const A row_weight = down.weight_of<A>(s.rows, s.clamp, i);
    if (row_weight == A(0)) continue;
    A row_sum = 0;
    Walk along = start;
    for (int64_t ox = columns.begin + lane; ox < columns.end; ox += step, along.next()) {
      const A weight = along.weight_of<A>(s.cols, s.clamp, j);
      if (weight != A(0)) row_sum += weight * static_cast<A>(plane[oy * grad.stride_h + ox * grad.stride_w]);
    }
    sum += row_weight * row_sum;
  }
  return sum;
}

// kGroup lanes share an input pixel and add up in a fixed order.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kLanes* kRows, 1)
    backward_contiguous(View<const T> grad, View<T> dx, Sampling s, int64_t batch, int64_t channels) {
  using A = ArithmeticOf<T>;
  const int64_t pixels = batch * channels * s.rows.in * s.cols.in;
  const int64_t group = (int64_t{blockIdx.x} * kLanes * kRows + threadIdx.y * kLanes + threadIdx.x) / kGroup;
  const int lane = threadIdx.x % kGroup;
  const int64_t groups = int64_t{gridDim.x} * kLanes * kRows / kGroup;
  // Whole warps stay in the loop, so that every lane meets the shuffles.
  for (int64_t base = group - group % (kLanes / kGroup); base < pixels; base += groups) {
    const int64_t pixel = base + group % (kLanes / kGroup);
    const bool active = pixel < pixels;
    const int64_t p = active ? pixel : pixels - 1;
    const int64_t j = p % s.cols.in, i = p / s.cols.in % s.rows.in, plane = p / (s.cols.in * s.rows.in);
    const int64_t n = plane / channels, c = plane - n * channels;
    const T* from = grad.data + n * grad.stride_n + c * grad.stride_c;
    A sum = gather<A>(from, grad, s, i, j, lane, kGroup);
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (active && lane == 0) {
      dx.data[n * dx.stride_n + c * dx.stride_c + i * dx.stride_h + j * dx.stride_w] = static_cast<T>(sum);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kLanes* kRows, 1)
    backward_channels_last(View<const T> grad, View<T> dx, Sampling s, int64_t batch, int64_t channels) {
  const int64_t j = int64_t{blockIdx.x} * kRows + threadIdx.y;
  if (j >= s.cols.in) return;
  for (int64_t i = blockIdx.y; i < s.rows.in; i += gridDim.y) {
    for (int64_t n = blockIdx.z; n < batch; n += gridDim.z) {
      const T* from = grad.data + n * grad.stride_n;
      T* to = dx.data + n * dx.stride_n + i * dx.stride_h + j * dx.stride_w;
      for (int64_t c = threadIdx.x; c < channels; c += kLanes) {
        to[c * dx.stride_c] = static_cast<T>(gather<ArithmeticOf<T>>(from + c * grad.stride_c, grad, s, i, j, 0, 1));
      }
    }
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned grid(int64_t wanted) { return static_cast<unsigned>(std::max<int64_t>(1, std::min(wanted, kMaxGrid))); }

// Blocks of (kRows columns, one row, one image), lanes along channels.
dim3 channels_last_grid(int64_t rows, int64_t columns, int64_t batch) {
  return dim3(static_cast<unsigned>(ceil_div(columns, kRows)), grid(rows), grid(batch));
}

template <typename T, bool kSkip>
void launch_forward(const Launch& launch, const Tensor& x, const View<const T>& skip, const Tensor& y,
                    const Sampling& s, double scale) {
  using A = ArithmeticOf<T>;
  const dim3 block(kLanes, kRows);
  const int64_t batch = x.size(0), channels = x.size(1), planes = batch * channels;
  if (is_channels_last(y)) {
    const dim3 blocks = channels_last_grid(s.rows.out, s.cols.out, batch);
    forward_channels_last<T, kSkip><<<blocks, block, 0, launch.stream()>>>(view_of<const T>(x), skip, view_of<T>(y), s,
                                                                           batch, channels, static_cast<A>(scale));
  } else {
    const int64_t across = ceil_div(s.cols.out, kLanes * kColumns), down = grid(ceil_div(s.rows.out, kRows));
    const int64_t deep = std::max(ceil_div(planes, kPlanes), std::min(planes, kWantedBlocks / (across * down)));
    const dim3 blocks(static_cast<unsigned>(across), static_cast<unsigned>(down), grid(deep));
    forward_contiguous<T, kSkip><<<blocks, block, 0, launch.stream()>>>(view_of<const T>(x), skip, view_of<T>(y), s,
                                                                        batch, channels, static_cast<A>(scale));
  }
}

template <typename T, int kGroup>
void launch_backward(const Launch& launch, const Tensor& grad, const Tensor& dx, const Sampling& s) {
  const int64_t lanes = dx.numel() * kGroup;
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(ceil_div(lanes, kLanes * kRows), 1 << 20)));
  backward_contiguous<T, kGroup><<<blocks, dim3(kLanes, kRows), 0, launch.stream()>>>(
      view_of<const T>(grad), view_of<T>(dx), s, grad.size(0), grad.size(1));
}

Tensor upsample(const Tensor& x, const std::vector<int64_t>& sampling) {
  const char* op = "upsample";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "x", x, s.rows.in, s.cols.in);
  const Tensor y = empty_image(x, s.rows.out, s.cols.out, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch_forward<T, false>(launch, x, View<const T>{}, y, s, 0.0);
  });
  launch.finish();
  return y;
}

Tensor upsample_add(const Tensor& x, const Tensor& skip, const std::vector<int64_t>& sampling,
                    const std::vector<int64_t>& skip_offset, double skip_scale) {
  const char* op = "upsample_add";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "x", x, s.rows.in, s.cols.in);
  check(skip_offset.size() == 2, op, "skip_offset has ", skip_offset.size(), " integers, expected 2");
  const int64_t top = skip_offset[0], left = skip_offset[1];
  check(skip.dim() == 4 && skip.size(0) == x.size(0) && skip.size(1) == x.size(1), op, "skip is ", shape_of(skip),
        ", which does not go with x of shape ", shape_of(x));
  check(top >= 0 && left >= 0 && top + s.rows.out <= skip.size(2) && left + s.cols.out <= skip.size(3), op,
        "the window of ", s.rows.out, " x ", s.cols.out, " at (", top, ", ", left, ") leaves skip of shape ",
        shape_of(skip));
  check(skip.scalar_type() == x.scalar_type(), op, "x and skip must have the same dtype");
  check(skip.is_cuda() && skip.get_device_index() == x.get_device_index(), op, "x and skip must be on one device");
  const Tensor y = empty_image(x, s.rows.out, s.cols.out, x.scalar_type());
  if (y.numel() == 0) return y;
  const Launch launch(op, x);
  visit_dtype(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    View<const T> window = view_of<const T>(skip);
    window.data += top * window.stride_h + left * window.stride_w;
    launch_forward<T, true>(launch, x, window, y, s, skip_scale);
  });
  launch.finish();
  return y;
}

Tensor upsample_backward(const Tensor& grad, const std::vector<int64_t>& sampling) {
  const char* op = "upsample_backward";
  const Sampling s = checked_sampling(op, sampling);
  check_image(op, "grad", grad, s.rows.out, s.cols.out);
  const Tensor dx = empty_image(grad, s.rows.in, s.cols.in, grad.scalar_type());
  if (dx.numel() == 0) return dx;
  const Launch launch(op, grad);
  visit_dtype(op, grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    // An input pixel is read by about 2 den / num output columns.
    const int64_t columns = s.cols.num > 0 ? 2 * s.cols.den / s.cols.num : s.cols.out;
    if (is_channels_last(dx)) {
      const dim3 blocks = channels_last_grid(s.rows.in, s.cols.in, grad.size(0));
      backward_channels_last<T><<<blocks, dim3(kLanes, kRows), 0, launch.stream()>>>(
          view_of<const T>(grad), view_of<T>(dx), s, grad.size(0), grad.size(1));
    } else if (columns >= 32) {
      launch_backward<T, 32>(launch, grad, dx, s);
    } else if (columns >= 8) {
      launch_backward<T, 8>(launch, grad, dx, s);
    } else {
      launch_backward<T, 1>(launch, grad, dx, s);
    }
  });
  launch.finish();
  return dx;
}

}  // namespace
}  // namespace fcn

STABLE_TORCH_LIBRARY_IMPL(fcn_kernels, CUDA, m) {
  m.impl("upsample", TORCH_BOX(&fcn::upsample));
  m.impl("upsample_add", TORCH_BOX(&fcn::upsample_add));
  m.impl("upsample_backward", TORCH_BOX(&fcn::upsample_backward));
}
