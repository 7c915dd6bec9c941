// Depthwise learned transposed convolutions stream: an output reads a few taps of its own channel.
//
// NAME_rows serve images whose columns are neighbours in memory, NAME_pixels those whose channels are. The weights of
// NAME_pixels are packed [ky, kx, C].
#pragma once

#include "conv_transpose.cuh"

namespace fcn {
namespace {

constexpr int kDepthwiseThreads = 256;
constexpr int kDepthwiseRun = 4;          // outputs of a thread that share its weights
constexpr int kStagedElements = 1 << 12;  // of x in shared memory

__device__ inline int thread_of_block() { return threadIdx.y * kWarp + threadIdx.x; }

// --- forward -------------------------------------------------------------------------------------------------------

// Blocks of `lanes` packs of columns and kDepthwiseThreads / lanes units: kDepthwiseRun outputs of one phase, a stride
// apart, below each other. The inputs that a block reads are height x width.
struct RowTiles {
  int lanes, height, width;
  int64_t across, down;
  bool staged;
};

inline RowTiles row_tiles(const ConvTranspose& c, int wide) {
  RowTiles t{};
  t.lanes = lanes_for(divided_up(c.columns.out, wide), kWarp);
  const int64_t units = kDepthwiseThreads / t.lanes, span = t.lanes * wide;
  const int64_t height = (divided_up(units - 1, c.rows.stride) + 1) * kDepthwiseRun + c.rows.taps() - 1;
  const int64_t width = divided_up(span - 1, c.columns.stride) + c.columns.taps();
  t.staged = height <= kStagedElements && width <= kStagedElements && height * width <= kStagedElements;
  t.height = t.staged ? static_cast<int>(height) : 0;
  t.width = t.staged ? static_cast<int>(width) : 0;
  t.across = divided_up(c.columns.out, span);
  t.down = divided_up(divided_up(c.rows.steps(), kDepthwiseRun) * c.rows.stride, units);
  return t;
}

template <typename T, int kWide, bool kStaged>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    depthwise_rows(View<const T> x, View<const T> weight, View<const T> other, View<T> y, ConvTranspose c, RowTiles t,
                   bool other_wide, ArithmeticOf<T> scale) {
  using A = ArithmeticOf<T>;
  __shared__ T staged[kStaged ? kStagedElements : 1];
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const int thread = thread_of_block(), lane = thread % t.lanes, units = kDepthwiseThreads / t.lanes;
  const int64_t plane = blockIdx.x / t.across / t.down, n = plane / c.groups, channel = plane - n * c.groups;
  const int64_t first_unit = blockIdx.x / t.across % t.down * units, unit = first_unit + thread / t.lanes;
  const int64_t first_column = blockIdx.x % t.across * t.lanes * kWide;
  const T* const from = x.data + n * x.stride_n + channel * x.stride_c;
  const int64_t top = rows.first_step() + first_unit / rows.stride * kDepthwiseRun - (rows.taps() - 1);
  const int64_t left = (first_column + columns.offset) / columns.stride - (columns.taps() - 1);
  if (kStaged) {
    for (int e = thread; e < t.height * t.width; e += kDepthwiseThreads) {
      const int64_t i = top + e / t.width, j = left + e % t.width;
      const bool inside = i >= 0 && i < rows.in && j >= 0 && j < columns.in;
      staged[e] = inside ? from[i * x.stride_h + j * x.stride_w] : static_cast<T>(0.0f);
    }
    __syncthreads();
  }

  const int64_t step = rows.first_step() + unit / rows.stride * kDepthwiseRun, ky = unit % rows.stride;
  const int64_t ox = first_column + lane * kWide;
  int position[kWide], phase[kWide];
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    const int64_t q = ox + j + columns.offset;
    position[j] = static_cast<int>(q / columns.stride);
    phase[j] = static_cast<int>(q - position[j] * columns.stride);
  }
  A total[kDepthwiseRun][kWide];
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) total[r][j] = A(0);
  }
  const T* const filter = weight.data + channel * weight.stride_n;
  const int kernel = static_cast<int>(columns.kernel), stride = static_cast<int>(columns.stride);
  for (int64_t ty = 0; ky + ty * rows.stride < rows.kernel; ++ty) {
    const T* const line = filter + (ky + ty * rows.stride) * weight.stride_h;
    const int row = static_cast<int>(step - ty - top) * t.width - static_cast<int>(left);
    for (int tx = 0; tx * stride < kernel; ++tx) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        const int kx = phase[j] + tx * stride, column = position[j] - tx;
        if (kx >= kernel) continue;
        const A w = static_cast<A>(line[kx * weight.stride_w]);
#pragma unroll
        for (int r = 0; r < kDepthwiseRun; ++r) {
          if (kStaged) {
            total[r][j] += w * static_cast<A>(staged[row + r * t.width + column]);
          } else {
            const int64_t i = step + r - ty;
            const bool inside = i >= 0 && i < rows.in && column >= 0 && column < columns.in;
            if (inside) total[r][j] += w * static_cast<A>(from[i * x.stride_h + column * x.stride_w]);
          }
        }
      }
    }
  }

  if (ox >= columns.out) return;
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
    const int64_t oy = (step + r) * rows.stride + ky - rows.offset;
    if (oy < 0 || oy >= rows.out) continue;
    if (other.data) {
      const T* const added = other.data + n * other.stride_n + channel * other.stride_c + oy * other.stride_h;
      if (kWide > 1 && other_wide) {
        const Pack<T, kWide> pack = load_pack<T, kWide>(added + ox);
#pragma unroll
        for (int j = 0; j < kWide; ++j) total[r][j] += scale * static_cast<A>(pack.value[j]);
      } else {
#pragma unroll
        for (int j = 0; j < kWide; ++j) total[r][j] += scale * static_cast<A>(added[(ox + j) * other.stride_w]);
      }
    }
    Pack<T, kWide> pack;
#pragma unroll
    for (int j = 0; j < kWide; ++j) pack.value[j] = static_cast<T>(total[r][j]);
    store_pack(y.data + n * y.stride_n + channel * y.stride_c + oy * y.stride_h + ox * y.stride_w, pack);
  }
}

// Units of NAME_pixels: kDepthwiseRun outputs of one phase in a row.
inline int64_t pixel_units(const ConvTranspose& c) {
  return divided_up(c.columns.steps(), kDepthwiseRun) * c.columns.stride * c.rows.out * c.batch;
}

template <typename T, int kWide>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    depthwise_pixels(View<const T> x, const T* weight, View<const T> other, View<T> y, ConvTranspose c, bool other_wide,
                     ArithmeticOf<T> scale) {
  using A = ArithmeticOf<T>;
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const int64_t packs = c.groups / kWide, runs = divided_up(columns.steps(), kDepthwiseRun);
  const int64_t index = int64_t{blockIdx.x} * kDepthwiseThreads + thread_of_block();
  const int64_t line = index / packs, channel = (index - line * packs) * kWide;
  const int64_t phase = line / runs % columns.stride, image_row = line / runs / columns.stride;
  const int64_t n = image_row / rows.out, oy = image_row - n * rows.out;
  if (n >= c.batch) return;
  const int64_t step = columns.first_step() + line % runs * kDepthwiseRun;
  const int64_t row = (oy + rows.offset) / rows.stride, ky = oy + rows.offset - row * rows.stride;
  const T* const from = x.data + n * x.stride_n + channel * x.stride_c;
  A total[kDepthwiseRun][kWide];
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) total[r][j] = A(0);
  }
  for (int64_t ty = 0; ky + ty * rows.stride < rows.kernel && ty <= row; ++ty) {
    if (row - ty >= rows.in) continue;
    for (int64_t tx = 0; phase + tx * columns.stride < columns.kernel; ++tx) {
      const int64_t tap = (ky + ty * rows.stride) * columns.kernel + phase + tx * columns.stride;
      const Pack<T, kWide> w = load_pack<T, kWide>(weight + tap * c.groups + channel);
#pragma unroll
      for (int r = 0; r < kDepthwiseRun; ++r) {
        const int64_t column = step + r - tx;
        if (column < 0 || column >= columns.in) continue;
        const Pack<T, kWide> v = load_pack<T, kWide>(from + (row - ty) * x.stride_h + column * x.stride_w);
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
          total[r][j] += static_cast<A>(w.value[j]) * static_cast<A>(v.value[j]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
    const int64_t ox = (step + r) * columns.stride + phase - columns.offset;
    if (ox < 0 || ox >= columns.out) continue;
    if (other.data) {
      const T* const added = other.data + n * other.stride_n + oy * other.stride_h + ox * other.stride_w;
      if (other_wide) {
        const Pack<T, kWide> pack = load_pack<T, kWide>(added + channel);
#pragma unroll
        for (int j = 0; j < kWide; ++j) total[r][j] += scale * static_cast<A>(pack.value[j]);
      } else {
#pragma unroll
        for (int j = 0; j < kWide; ++j) total[r][j] += scale * static_cast<A>(added[(channel + j) * other.stride_c]);
      }
    }
    Pack<T, kWide> pack;
#pragma unroll
    for (int j = 0; j < kWide; ++j) pack.value[j] = static_cast<T>(total[r][j]);
    store_pack(y.data + n * y.stride_n + channel * y.stride_c + oy * y.stride_h + ox * y.stride_w, pack);
  }
}

// --- gradient of x -------------------------------------------------------------------------------------------------

// kGroup lanes share kDepthwiseRun inputs and go along the kernel's columns, so that they read neighbours.
template <typename T, int kGroup>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    depthwise_input_rows(View<const T> grad, View<const T> weight, View<T> dx, ConvTranspose c, int64_t blocks) {
  using A = ArithmeticOf<T>;
  constexpr int kGroups = kDepthwiseThreads / kGroup;
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const int thread = thread_of_block(), lane = thread % kGroup;
  const int64_t plane = blockIdx.x / blocks, n = plane / c.groups, channel = plane - n * c.groups;
  const int64_t first = blockIdx.x % blocks * (kGroups * kDepthwiseRun) + thread / kGroup;
  const T* const from = grad.data + n * grad.stride_n + channel * grad.stride_c;
  const T* const filter = weight.data + channel * weight.stride_n;
  int top[kDepthwiseRun], left[kDepthwiseRun];
  A total[kDepthwiseRun];
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
    const int64_t p = first + r * kGroups, i = p / columns.in, j = p - i * columns.in;
    // Beyond the image there is nothing to read.
    top[r] = static_cast<int>(i < rows.in ? i * rows.stride - rows.offset : rows.out);
    left[r] = static_cast<int>(j * columns.stride - columns.offset);
    total[r] = A(0);
  }
  const int height = static_cast<int>(rows.out), width = static_cast<int>(columns.out);
  for (int ky = 0; ky < rows.kernel; ++ky) {
    for (int kx = lane; kx < columns.kernel; kx += kGroup) {
      const A w = static_cast<A>(filter[ky * weight.stride_h + kx * weight.stride_w]);
#pragma unroll
      for (int r = 0; r < kDepthwiseRun; ++r) {
        const int oy = top[r] + ky, ox = left[r] + kx;
        if (oy < 0 || oy >= height || ox < 0 || ox >= width) continue;
        total[r] += w * static_cast<A>(from[oy * grad.stride_h + ox * grad.stride_w]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) {
      total[r] += __shfl_xor_sync(0xffffffffu, total[r], offset);
    }
    const int64_t p = first + r * kGroups, i = p / columns.in, j = p - i * columns.in;
    if (lane == 0 && i < rows.in) {
      dx.data[n * dx.stride_n + channel * dx.stride_c + i * dx.stride_h + j * dx.stride_w] = static_cast<T>(total[r]);
    }
  }
}

// How the threads of a block of NAME_pixels are shared out: lanes along packs of channels, `shares` along the kernel's
// rows (gradient of x) or an image's row (gradient of the weight).
struct PixelTiles {
  int lanes, shares;
  int64_t across;  // blocks along the channels
};

inline PixelTiles pixel_tiles(int64_t packs, int64_t wanted) {
  const int lanes = lanes_for(packs, kWarp);
  return PixelTiles{lanes, lanes_for(wanted, kDepthwiseThreads / kWarp), divided_up(packs, lanes)};
}

// Threads that share kDepthwiseRun inputs in a row take rows of the kernel; their sums are added in a fixed order.
template <typename T, int kWide>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    depthwise_input_pixels(View<const T> grad, const T* weight, View<T> dx, ConvTranspose c, PixelTiles t) {
  using A = ArithmeticOf<T>;
  __shared__ A sums[kDepthwiseRun * kWide][kDepthwiseThreads];
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const int thread = thread_of_block(), lane = thread % t.lanes, units = kDepthwiseThreads / t.lanes / t.shares;
  const int share = thread / t.lanes / units;
  const int64_t channel = (blockIdx.x % t.across * t.lanes + lane) * kWide,
                runs = divided_up(columns.in, kDepthwiseRun);
  const int64_t unit = blockIdx.x / t.across * units + thread / t.lanes % units;
  const int64_t first = unit % runs * kDepthwiseRun, image_row = unit / runs;
  const int64_t n = image_row / rows.in, i = image_row - n * rows.in, top = i * rows.stride - rows.offset;
  const bool exists = channel < c.groups && n < c.batch;
  const int stride = static_cast<int>(columns.stride), width = static_cast<int>(columns.out);
  const int left = static_cast<int>(first * stride - columns.offset);
  A total[kDepthwiseRun][kWide];
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) total[r][j] = A(0);
  }
  for (int64_t ky = share; exists && ky < rows.kernel; ky += t.shares) {
    if (top + ky < 0 || top + ky >= rows.out) continue;
    const T* const from = grad.data + n * grad.stride_n + channel * grad.stride_c + (top + ky) * grad.stride_h;
    for (int kx = 0; kx < columns.kernel; ++kx) {
      const Pack<T, kWide> w = load_pack<T, kWide>(weight + (ky * columns.kernel + kx) * c.groups + channel);
#pragma unroll
      for (int r = 0; r < kDepthwiseRun; ++r) {
        const int ox = left + r * stride + kx;
        if (ox < 0 || ox >= width) continue;
        const Pack<T, kWide> v = load_pack<T, kWide>(from + ox * grad.stride_w);
#pragma unroll
        for (int j = 0; j < kWide; ++j) total[r][j] += static_cast<A>(w.value[j]) * static_cast<A>(v.value[j]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) sums[r * kWide + j][thread] = total[r][j];
  }
  __syncthreads();
  if (share > 0 || !exists) return;
#pragma unroll
  for (int r = 0; r < kDepthwiseRun; ++r) {
    if (first + r >= columns.in) continue;
    Pack<T, kWide> pack;
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      A sum = total[r][j];
      for (int s = 1; s < t.shares; ++s) sum += sums[r * kWide + j][thread + s * units * t.lanes];
      pack.value[j] = static_cast<T>(sum);
    }
    store_pack(dx.data + n * dx.stride_n + channel * dx.stride_c + i * dx.stride_h + (first + r) * dx.stride_w, pack);
  }
}

// --- gradient of the weight ----------------------------------------------------------------------------------------

constexpr int kTaps = 4;  // of a thread

// A warp's lanes along the outputs of a row, so that each keeps its phase: `phases` lanes of each of `copies` steps.
struct PhaseTiles {
  int phases, copies;
  int64_t blocks, tap_blocks;  // of phases and of taps
};

inline PhaseTiles phase_tiles(const ConvAxis& columns) {
  PhaseTiles t{};
  const int64_t phases = columns.stride < columns.kernel ? columns.stride : columns.kernel;  // others have no weights
  t.phases = static_cast<int>(phases < kWarp ? phases : kWarp);
  t.copies = kWarp / t.phases;
  t.blocks = divided_up(phases, t.phases);
  t.tap_blocks = divided_up(columns.taps(), kTaps);
  return t;
}

// One block: a row of the kernel, a block of its phases and kTaps of their taps, from `chunk` rows of all images.
template <typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    depthwise_weight_rows(View<const T> grad, View<const T> x, ArithmeticOf<T>* parts, ConvTranspose c, PhaseTiles t,
                          int64_t chunk) {
  using A = ArithmeticOf<T>;
  constexpr int kWarpsOfBlock = kDepthwiseThreads / kWarp;
  __shared__ A sums[kTaps][kDepthwiseThreads];
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const int lane = threadIdx.x, warp = threadIdx.y, copy = lane / t.phases;
  const int64_t phase = blockIdx.x % t.blocks * t.phases + lane % t.phases;
  const int64_t tap = blockIdx.x / t.blocks % t.tap_blocks * kTaps, rest = blockIdx.x / t.blocks / t.tap_blocks;
  const int64_t channel = rest / rows.kernel, ky = rest - channel * rows.kernel;
  const int64_t begin = blockIdx.y * chunk, all = c.batch * rows.in, end = begin + chunk < all ? begin + chunk : all;
  const int64_t last = columns.first_step() + columns.steps();
  A total[kTaps];
#pragma unroll
  for (int k = 0; k < kTaps; ++k) total[k] = A(0);
  const bool exists = copy < t.copies && phase < columns.stride;
  for (int64_t row = begin + warp; exists && row < end; row += kWarpsOfBlock) {
    const int64_t n = row / rows.in, i = row - n * rows.in, oy = i * rows.stride + ky - rows.offset;
    if (oy < 0 || oy >= rows.out) continue;
    const T* const left = x.data + n * x.stride_n + channel * x.stride_c + i * x.stride_h;
    const T* const right = grad.data + n * grad.stride_n + channel * grad.stride_c + oy * grad.stride_h;
    for (int64_t p = columns.first_step() + copy; p < last; p += t.copies) {
      const int64_t ox = p * columns.stride + phase - columns.offset;
      if (ox < 0 || ox >= columns.out) continue;
      const A g = static_cast<A>(right[ox * grad.stride_w]);
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        const int64_t j = p - tap - k;
        if (j >= 0 && j < columns.in) total[k] += g * static_cast<A>(left[j * x.stride_w]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kTaps; ++k) sums[k][thread_of_block()] = total[k];
  __syncthreads();
  if (warp > 0 || copy > 0 || !exists) return;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    const int64_t kx = phase + (tap + k) * columns.stride;
    if (kx >= columns.kernel) continue;
    A sum = 0;
    for (int w = 0; w < kWarpsOfBlock; ++w) {
      for (int i = 0; i < t.copies; ++i) sum += sums[k][w * kWarp + i * t.phases + lane];
    }
    parts[((blockIdx.y * c.groups + channel) * rows.kernel + ky) * columns.kernel + kx] = sum;
  }
}

// One block: kTaps weights of a row of the kernel, of a tile of channels, from `chunk` rows of all images.
template <typename T, int kWide>
__global__ void __launch_bounds__(kDepthwiseThreads, 1)
    depthwise_weight_pixels(View<const T> grad, View<const T> x, ArithmeticOf<T>* parts, ConvTranspose c, PixelTiles t,
                            int64_t chunk) {
  using A = ArithmeticOf<T>;
  __shared__ A sums[kTaps * kWide][kDepthwiseThreads];
  const ConvAxis &rows = c.rows, &columns = c.columns;
  const int thread = thread_of_block(), lane = thread % t.lanes, share = thread / t.lanes;
  const int shares = kDepthwiseThreads / t.lanes;
  const int64_t channel = (blockIdx.x % t.across * t.lanes + lane) * kWide;
  const int64_t blocks = divided_up(columns.kernel, kTaps), rest = blockIdx.x / t.across;
  const int64_t kx = rest % blocks * kTaps, ky = rest / blocks;
  const int64_t begin = blockIdx.y * chunk, all = c.batch * rows.in, end = begin + chunk < all ? begin + chunk : all;
  const int taps = static_cast<int>(columns.kernel - kx), width = static_cast<int>(columns.out);
  A total[kTaps][kWide];
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) total[k][j] = A(0);
  }
  for (int64_t row = begin + share / t.shares; channel < c.groups && row < end; row += shares / t.shares) {
    const int64_t n = row / rows.in, i = row - n * rows.in, oy = i * rows.stride + ky - rows.offset;
    if (oy < 0 || oy >= rows.out) continue;
    const T* const left = x.data + n * x.stride_n + channel * x.stride_c + i * x.stride_h;
    const T* const right = grad.data + n * grad.stride_n + channel * grad.stride_c + oy * grad.stride_h;
    for (int64_t j = share % t.shares; j < columns.in; j += t.shares) {
      const Pack<T, kWide> v = load_pack<T, kWide>(left + j * x.stride_w);
      const int first = static_cast<int>(j * columns.stride + kx - columns.offset);
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        const int ox = first + k;
        if (k >= taps || ox < 0 || ox >= width) continue;
        const Pack<T, kWide> g = load_pack<T, kWide>(right + ox * grad.stride_w);
#pragma unroll
        for (int i_wide = 0; i_wide < kWide; ++i_wide) {
          total[k][i_wide] += static_cast<A>(v.value[i_wide]) * static_cast<A>(g.value[i_wide]);
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) sums[k * kWide + j][thread] = total[k][j];
  }
  __syncthreads();
  if (share > 0 || channel >= c.groups) return;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    if (kx + k >= columns.kernel) continue;
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      A sum = total[k][j];
      for (int s = 1; s < shares; ++s) sum += sums[k * kWide + j][thread + s * t.lanes];
      const int64_t at = (blockIdx.y * c.groups + channel + j) * rows.kernel + ky;
      parts[at * columns.kernel + kx + k] = sum;
    }
  }
}

}  // namespace
}  // namespace fcn
