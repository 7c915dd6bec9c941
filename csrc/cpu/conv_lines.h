// Transposed convolution in lines: a line is one row of one channel at the columns of the uncropped output, where
//   y[co][t] = sum over ci, taps (iy, ky) of the row, j of  x[ci][iy][t / s - j] w[ci][co][ky][t mod s + j s].
// An input row becomes a line by repeating every pixel s times, so that all three products of the operator, y and the
// gradients of x and of w, are sums of  line * weights  with the weights of consecutive columns in the lanes:
//   y      [t] = sum x_line[t - j s] w[t mod s + j s]
//   grad x [i] = sum over the s columns of pixel i of  grad_line[t + j s] w[t mod s + j s]
//   grad w [r + j s] = sum over t = r mod s of  x_line[t] grad_line[t + j s]
// Register tiles hold M outer channels x U places (or taps) and reuse every load: the same loops serve groups = 1,
// groups = C and what lies between, at any stride.
#pragma once

#include "planes.h"

namespace fcn {
namespace FCN_ISA {

constexpr int kOuter = 4;             // outer channels of a block, at most
constexpr int64_t kChunkSteps = 120;  // steps whose weights stay in the first cache; of most tiles a multiple

#if defined(__AVX512F__)
constexpr int kPlaces[kOuter] = {8, 8, 7, 6};  // places of a tile of 1, 2, 3, 4 channels: what the registers hold
#else
constexpr int kPlaces[kOuter] = {8, 5, 3, 3};
#endif
constexpr int kMostPlaces = 8;

// How the columns are cut into vectors. A period is `pixels` whole input pixels, thus `length` columns, in `vectors`
// vectors; lanes past the end of the period hold nothing.
struct Columns {
  int64_t stride, kernel;
  int64_t pixels, length, vectors;
  int64_t periods;     // of a line
  int64_t taps;        // ceil(kernel / stride)
  int64_t full, part;  // taps that every column has, and (0 or 1) a last one that only the first `rest` of s have
  int64_t rest;
};

// The period that covers `count` pixels at the least cost: its vectors, each with weights of its own to be read, which
// takes as long as some periods.
constexpr int64_t kPeriodsOfWeights = 8;
template <typename T>
inline Columns make_columns(int64_t stride, int64_t kernel, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  Columns c{};
  c.stride = stride;
  c.kernel = kernel;
  int64_t best = 0;
  for (int64_t pixels = 1; pixels <= L; ++pixels) {
    const int64_t vectors = (pixels * stride + L - 1) / L, periods = (count + pixels - 1) / pixels;
    const int64_t cost = vectors * (periods + kPeriodsOfWeights);
    if (pixels > 1 && cost >= best) continue;
    best = cost;
    c.pixels = pixels;
    c.vectors = vectors;
    c.periods = periods;
  }
  c.length = c.pixels * stride;
  c.taps = (kernel + stride - 1) / stride;
  c.full = kernel / stride;
  c.part = c.taps - c.full;
  c.rest = kernel - c.full * stride;
  return c;
}

// Elements from one line to the next: `columns` and what the last vectors reach over, in an odd number of cache lines.
template <typename T>
inline int64_t line_pitch(int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((columns + 2 * kLanes<T> + kLine - 1) / kLine | 1) * kLine;
}

// The weights of a step stand together: [M][L]. All steps of a sum: [vector][section][row tap][inner channel][tap],
// where section 0 has the full taps and section 1 the partial one, for every phase of the rows and block of outer
// channels. Outer and inner channels are co and ci in the forward direction, ci and co in the backward one.
struct Packing {
  bool backward;
  Columns columns;
  int64_t row_phases, row_taps;  // ky = phase + row_taps' index * row_phases
  int64_t outer, inner;          // channels of a group
  int64_t lanes;
  int64_t blocks;       // of outer channels
  int64_t most_blocks;  // of a unit of work

  int64_t section_taps(int section) const { return section == 0 ? columns.full : columns.part; }
  int64_t vector_steps() const { return row_taps * inner * columns.taps; }
  int64_t channel_size() const { return row_phases * columns.vectors * vector_steps() * lanes; }
  int64_t group_size() const { return outer * channel_size(); }
  // Of the block [first, first + m) of a group's outer channels.
  int64_t offset(int64_t first, int64_t m, int64_t phase, int64_t vector, int section, int64_t row_tap) const {
    int64_t step = (phase * columns.vectors + vector) * vector_steps() + row_tap * inner * section_taps(section);
    if (section == 1) step += row_taps * inner * columns.full;
    return first * channel_size() + step * m * lanes;
  }
  int64_t block_begin(int64_t block) const { return blocks == 1 ? outer * block : outer * block / blocks; }
};

inline Packing make_packing(const ConvTransposeArgs& args, bool backward, Columns columns, int64_t lanes) {
  Packing p{};
  p.backward = backward;
  p.columns = columns;
  p.row_phases = backward ? 1 : args.stride_h;
  p.row_taps = (args.weight.height + p.row_phases - 1) / p.row_phases;
  const int64_t in = args.weight.batch / args.groups, out = args.weight.channels;
  p.outer = backward ? in : out;
  p.inner = backward ? out : in;
  p.lanes = lanes;
  // Backward, the gradient's parts are few, and two units may share their rows.
  p.blocks = (p.outer + kOuter - 1) / kOuter;
  p.most_blocks = backward ? (p.blocks + 1) / 2 : p.blocks;
  return p;
}

// Calls f(packed index, ci, co, ky, kx, count) for all weights of a block, ci and co counted within the group: `count`
// of them stand together in lanes and have consecutive kx. Several packed indices have the same weight where a period
// has several pixels. Absent weights are not visited.
template <typename F>
FCN_INLINE void for_packed(const Packing& p, int64_t kernel_h, int64_t first, int64_t m, const F& f) {
  const Columns& c = p.columns;
  for (int64_t phase = 0; phase < p.row_phases; ++phase) {
    for (int64_t v = 0; v < c.vectors; ++v) {
      const int64_t lanes = c.length - v * p.lanes < p.lanes ? c.length - v * p.lanes : p.lanes;
      for (int section = 0; section < 2; ++section) {
        const int64_t taps = p.section_taps(section), lead = section == 0 ? 0 : c.full;
        for (int64_t ky = phase, row_tap = 0; ky < kernel_h; ky += p.row_phases, ++row_tap) {
          int64_t at = p.offset(first, m, phase, v, section, row_tap);
          for (int64_t inner = 0; inner < p.inner; ++inner) {
            for (int64_t j = lead; j < lead + taps; ++j) {
              for (int64_t o = first; o < first + m; ++o, at += p.lanes) {
                int64_t kx = v * p.lanes % c.stride + j * c.stride;
                for (int64_t l = 0; l < lanes; kx = j * c.stride) {
                  const int64_t end = (j + 1) * c.stride;
                  const int64_t run = end - kx < lanes - l ? end - kx : lanes - l;
                  const int64_t count = c.kernel - kx < run ? c.kernel - kx : run;
                  if (count > 0) f(at + l, p.backward ? o : inner, p.backward ? inner : o, ky, kx, count);
                  l += run;
                }
              }
            }
          }
        }
      }
    }
  }
}

// A block of a group's outer channels, to where the group's packed weights begin.
template <typename T, typename In>
void pack_block(const ConvTransposeArgs& args, const Packing& p, int64_t group, int64_t block, T* to) {
  const int64_t first = p.block_begin(block), m = p.block_begin(block + 1) - first;
  const Image& w = args.weight;
  memset(to + first * p.channel_size(), 0, m * p.channel_size() * sizeof(T));
  const In* from = (const In*)w.data + group * (w.batch / args.groups) * w.stride_n;
  for_packed(p, w.height, first, m, [&](int64_t at, int64_t ci, int64_t co, int64_t ky, int64_t kx, int64_t count) {
    const In* run = from + ci * w.stride_n + co * w.stride_c + ky * w.stride_h + kx * w.stride_w;
    for (int64_t i = 0; i < count; ++i) to[at + i] = (T)to_arithmetic(run[i * w.stride_w]);
  });
}

// One unit of packing.
template <typename T, typename In>
void pack_weights(const ConvTransposeArgs& args, const Packing& p, int64_t unit) {
  const int64_t group = unit / p.blocks;
  pack_block<T, In>(args, p, group, unit % p.blocks, (T*)args.packed + group * p.group_size());
}

// The outer channels of one unit of work: some blocks of one group, or several whole groups.
constexpr int64_t kShareBytes = 1 << 23;  // of packed weights: with few shares the lines are read few times
constexpr int64_t kPixelChannels = 64;    // of a pixel, written together

struct Share {
  int64_t group_begin, group_end, block_begin, block_end;
};

inline int64_t groups_together(const Packing& p, int64_t groups, bool pixelwise) {
  if (!pixelwise || p.outer >= kPixelChannels) return 1;
  return kPixelChannels / p.outer < groups ? kPixelChannels / p.outer : groups;
}

inline int64_t shares_of_group(const Packing& p, bool pixelwise, int64_t item_bytes) {
  int64_t together = kShareBytes / (p.channel_size() * kOuter * item_bytes);
  if (pixelwise && together < kPixelChannels / kOuter) together = kPixelChannels / kOuter;
  if (together > p.most_blocks) together = p.most_blocks;
  return together < 1 ? p.blocks : (p.blocks + together - 1) / together;
}

inline int64_t share_count(const Packing& p, int64_t groups, bool pixelwise, int64_t item_bytes) {
  const int64_t together = groups_together(p, groups, pixelwise);
  if (together > 1) return (groups + together - 1) / together;
  return groups * shares_of_group(p, pixelwise, item_bytes);
}

inline Share share_of(int64_t index, const Packing& p, int64_t groups, bool pixelwise, int64_t item_bytes) {
  const int64_t together = groups_together(p, groups, pixelwise);
  if (together > 1) {
    const int64_t end = (index + 1) * together;
    return Share{index * together, end < groups ? end : groups, 0, p.blocks};
  }
  const int64_t shares = shares_of_group(p, pixelwise, item_bytes), group = index / shares, part = index % shares;
  return Share{group, group + 1, p.blocks * part / shares, p.blocks * (part + 1) / shares};
}

// The most outer channels that a share has.
inline int64_t share_channels(const Packing& p, int64_t groups, bool pixelwise, int64_t item_bytes) {
  const int64_t together = groups_together(p, groups, pixelwise);
  if (together > 1) return together * p.outer;
  const int64_t shares = shares_of_group(p, pixelwise, item_bytes), blocks = (p.blocks + shares - 1) / shares;
  return blocks * kOuter < p.outer ? blocks * kOuter : p.outer;
}

template <typename T>
FCN_INLINE IntVec<T> first_lanes(int64_t count) {
  typename Simd<T>::Int t[kLanes<T>];
  for (int64_t l = 0; l < kLanes<T>; ++l) t[l] = l < count ? -1 : 0;
  IntVec<T> mask;
  memcpy(&mask, t, sizeof(mask));
  return mask;
}

template <typename T>
FCN_INLINE Vec<T> masked(Vec<T> v, IntVec<T> mask) {
  return (Vec<T>)((IntVec<T>)v & mask);
}

// The lanes of vector v whose column has the partial tap.
template <typename T>
inline IntVec<T> partial_mask(const Columns& c, int64_t v) {
  typename Simd<T>::Int t[kLanes<T>];
  for (int64_t l = 0; l < kLanes<T>; ++l) t[l] = (v * kLanes<T> + l) % c.stride < c.rest ? -1 : 0;
  IntVec<T> mask;
  memcpy(&mask, t, sizeof(mask));
  return mask;
}

// out[m][u] (+)= sum over steps of weights[step][m] * line[step][places u * period apart].
template <typename T>
struct Products {
  int64_t steps;
  const T* const* lines;  // of every step
  int64_t at;             // first column
  const T* weights;
  bool masks;  // only the lanes in `mask` count: a NaN in the others must not reach the sum
  IntVec<T> mask;
  int64_t period;
  T* out;
  int64_t out_pitch, out_period;
  bool add;
};

template <typename T, int M, int U, bool Masks>
FCN_NOINLINE void multiply_tile(const Products<T>& p, int64_t place) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[M][U];
  T* out = p.out + place * p.out_period;
  for (int m = 0; m < M; ++m) {
    for (int u = 0; u < U; ++u) sum[m][u] = p.add ? load(out + m * p.out_pitch + u * p.out_period) : Vec<T>{};
  }
  const int64_t at = p.at + place * p.period, period = p.period;
  const T* weights = p.weights;
  for (int64_t s = 0; s < p.steps; ++s, weights += M * L) {
    const T* line = p.lines[s] + at;
    Vec<T> x[U];
    for (int u = 0; u < U; ++u) {
      x[u] = load(line + u * period);
      if (Masks) x[u] = masked<T>(x[u], p.mask);
    }
    for (int m = 0; m < M; ++m) {
      const Vec<T> w = load(weights + m * L);
      for (int u = 0; u < U; ++u) sum[m][u] += w * x[u];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int u = 0; u < U; ++u) store(out + m * p.out_pitch + u * p.out_period, sum[m][u]);
  }
}

template <typename T, int M, int U>
FCN_INLINE void multiply_places(const Products<T>& p, int64_t place, int64_t places) {
  if (places == U) {
    return p.masks ? multiply_tile<T, M, U, true>(p, place) : multiply_tile<T, M, U, false>(p, place);
  }
  if constexpr (U > 1) multiply_places<T, M, U - 1>(p, place, places);
}

// weights[place u][m] += sum over i < count periods of lines[m][i] * columns[u][i], and of the first lanes of one more.
template <typename T>
struct Correlation {
  const T* const* lines;    // M
  const T* const* columns;  // of every step
  int64_t at;
  int64_t period, count;
  IntVec<T> tail;
  bool has_tail;
  T* weights;
};

template <typename T, int M, int U>
FCN_NOINLINE void correlate_tile(const Correlation<T>& c, int64_t place) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[U][M];
  const T *lines[M], *columns[U];
  T* weights = c.weights + place * M * L;
  for (int m = 0; m < M; ++m) lines[m] = c.lines[m] + c.at;
  for (int u = 0; u < U; ++u) {
    columns[u] = c.columns[place + u] + c.at;
    for (int m = 0; m < M; ++m) sum[u][m] = load(weights + (u * M + m) * L);
  }
  int64_t i = 0;
  for (const int64_t end = c.count * c.period; i < end; i += c.period) {
    Vec<T> x[M];
    for (int m = 0; m < M; ++m) x[m] = load(lines[m] + i);
    for (int u = 0; u < U; ++u) {
      const Vec<T> g = load(columns[u] + i);
      for (int m = 0; m < M; ++m) sum[u][m] += x[m] * g;
    }
  }
  if (c.has_tail) {
    for (int u = 0; u < U; ++u) {
      const Vec<T> g = masked<T>(load(columns[u] + i), c.tail);
      for (int m = 0; m < M; ++m) sum[u][m] += masked<T>(load(lines[m] + i), c.tail) * g;
    }
  }
  for (int u = 0; u < U; ++u) {
    for (int m = 0; m < M; ++m) store(weights + (u * M + m) * L, sum[u][m]);
  }
}

template <typename T, int M, int U>
FCN_INLINE void correlate_places(const Correlation<T>& c, int64_t place, int64_t places) {
  if (places == U) return correlate_tile<T, M, U>(c, place);
  if constexpr (U > 1) correlate_places<T, M, U - 1>(c, place, places);
}

// A row of an image as a line: the pixels as they are ...
template <typename T, typename In>
inline void read_row(const In* from, int64_t stride, int64_t count, T* to) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load_as(from + i));
  }
  for (; i < count; ++i) to[i] = to_arithmetic(from[i * stride]);
}

template <typename T, int K, typename In>
FCN_INLINE int64_t repeat_vectors(const In* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    Vec<T> v[K];
    for (int k = 0; k < K; ++k) v[k] = load_as(from + i);
    interleave<T, K>(v);
    for (int k = 0; k < K; ++k) store(to + i * K + k * kLanes<T>, v[k]);
  }
  return i;
}

// A result on its way out: line + bias + scale * add, or line + bias.
template <typename T, typename In>
inline void finish_row(const T* line, T bias, int64_t count, bool adds, T scale, const In* add, int64_t add_stride,
                       In* out) {
  constexpr int L = kLanes<T>;
  const Vec<T> biases = broadcast(bias);
  int64_t i = 0;
  if (!adds) {
    for (; i + L <= count; i += L) store_as(out + i, load(line + i) + biases);
    for (; i < count; ++i) from_arithmetic(line[i] + bias, out + i);
    return;
  }
  if (add_stride == 1) {
    for (; i + L <= count; i += L) store_as(out + i, load(line + i) + biases + scale * load_as(add + i));
  }
  for (; i < count; ++i) from_arithmetic(line[i] + bias + scale * (T)to_arithmetic(add[i * add_stride]), out + i);
}

template <typename T, int K, typename In>
FCN_INLINE int64_t sum_columns_of_vectors(const T* line, int64_t width, In* to, int64_t stride) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  for (; i + L <= width; i += L, line += K * L) {
    Vec<T> v[K];
    for (int k = 0; k < K; ++k) v[k] = load(line + k * L);
    deinterleave<T, K>(v);
    for (int k = 1; k < K; ++k) v[0] += v[k];
    if (stride == 1) {
      store_as(to + i, v[0]);
    } else {
      for (int l = 0; l < L; ++l) from_arithmetic(v[0][l], to + (i + l) * stride);
    }
  }
  return i;
}

template <typename T>
inline T sum_of(const T* p, int64_t count) {
  constexpr int L = kLanes<T>;
  T total = 0;
  int64_t i = 0;
  if (count >= L) {
    Vec<T> sum = load(p);
    for (i = L; i + L <= count; i += L) sum += load(p + i);
    for (int l = 0; l < L; ++l) total += sum[l];
  }
  for (; i < count; ++i) total += p[i];
  return total;
}

// A row of the gradient in x: every pixel sums the columns that it was repeated over. The periods of `line` are whole
// vectors.
template <typename T, typename In>
inline void sum_columns(const Columns& c, const T* line, int64_t width, In* to, int64_t stride) {
  const int64_t period = c.vectors * kLanes<T>;
  int64_t done = 0;
  if (c.length == period) {
    if (c.stride == 1) done = sum_columns_of_vectors<T, 1>(line, width, to, stride);
    if (c.stride == 2) done = sum_columns_of_vectors<T, 2>(line, width, to, stride);
    if (c.stride == 4) done = sum_columns_of_vectors<T, 4>(line, width, to, stride);
    if (c.stride == 8) done = sum_columns_of_vectors<T, 8>(line, width, to, stride);
  }
  for (int64_t i = done; i < width; ++i) {
    from_arithmetic(sum_of(line + i / c.pixels * period + i % c.pixels * c.stride, c.stride), to + i * stride);
  }
}

// Eight channels of a vector of pixels: from lines, `pitch` apart, to t[pixel * 8 + channel], and back.
constexpr int kTogether = 8;

template <typename T>
FCN_INLINE void lines_to_pixels(const T* line, int64_t pitch, T* t) {
  Vec<T> v[kTogether];
  for (int k = 0; k < kTogether; ++k) v[k] = load(line + k * pitch);
  interleave<T, kTogether>(v);
  for (int k = 0; k < kTogether; ++k) store(t + k * kLanes<T>, v[k]);
}

template <typename T>
FCN_INLINE void pixels_to_lines(const T* t, T* line, int64_t pitch) {
  Vec<T> v[kTogether];
  for (int k = 0; k < kTogether; ++k) v[k] = load(t + k * kLanes<T>);
  deinterleave<T, kTogether>(v);
  for (int k = 0; k < kTogether; ++k) store(line + k * pitch, v[k]);
}

// Rows of `channels` channels, stored pixel by pixel.
template <typename T, typename In>
inline void read_pixels(const In* from, int64_t stride, int64_t count, int64_t channels, T* to, int64_t pitch) {
  constexpr int L = kLanes<T>;
  const int64_t whole = count / L * L, blocks = channels / kTogether * kTogether;
  for (int64_t i = 0; i < count; ++i) {
    if (i < whole && i % L == 0) {
      for (int64_t c = 0; c < blocks; c += kTogether) {
        T t[kTogether * L];
        for (int l = 0; l < L; ++l) {
          for (int k = 0; k < kTogether; ++k) t[l * kTogether + k] = to_arithmetic(from[(i + l) * stride + c + k]);
        }
        pixels_to_lines(t, to + c * pitch + i, pitch);
      }
    }
    for (int64_t c = i < whole ? blocks : 0; c < channels; ++c) to[c * pitch + i] = to_arithmetic(from[i * stride + c]);
  }
}

// ... or every pixel `times` times; zeros follow.
template <typename T, typename In>
inline void repeat_row(const In* from, int64_t stride, int64_t count, int64_t times, T* to) {
  int64_t i = 0;
  if (stride == 1) {
    if (times == 1) i = repeat_vectors<T, 1>(from, count, to);
    if (times == 2) i = repeat_vectors<T, 2>(from, count, to);
    if (times == 4) i = repeat_vectors<T, 4>(from, count, to);
  }
  for (to += i * times; i < count; ++i, to += times) {
    const Vec<T> value = broadcast((T)to_arithmetic(from[i * stride]));
    for (int64_t k = 0; k < times; k += kLanes<T>) store(to + k, value);
  }
  store(to, Vec<T>{});
}

// The same of `channels` channels, lines `pitch` apart. `row` holds kTogether lines.
template <typename T, typename In>
inline void repeat_rows(const In* from, int64_t channel_stride, int64_t stride, int64_t count, int64_t channels,
                        int64_t times, T* row, T* to, int64_t pitch) {
  if (channel_stride != 1 || stride == 1) {
    for (int64_t c = 0; c < channels; ++c) repeat_row(from + c * channel_stride, stride, count, times, to + c * pitch);
    return;
  }
  if (times == 1) return read_pixels(from, stride, count, channels, to, pitch);
  for (int64_t first = 0; first < channels; first += kTogether) {
    const int64_t some = channels - first < kTogether ? channels - first : kTogether;
    read_pixels(from + first, stride, count, some, row, pitch);
    for (int64_t c = 0; c < some; ++c) repeat_row(row + c * pitch, 1, count, times, to + (first + c) * pitch);
  }
}

// Calls f(integral constant M) for m = M in 1 ... kOuter.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <typename F>
FCN_INLINE void with_outer(int64_t m, const F& f) {
  if (m == 1) return f(Count<1>());
  if (m == 2) return f(Count<2>());
  if (m == 3) return f(Count<3>());
  return f(Count<4>());
}

template <typename T>
inline void multiply(const Products<T>& p, int64_t m, int64_t places) {
  with_outer(m, [&](auto outer) {
    constexpr int M = decltype(outer)::value, U = kPlaces[M - 1];
    for (int64_t place = 0; place < places; place += U) {
      multiply_places<T, M, U>(p, place, places - place < U ? places - place : U);
    }
  });
}

template <typename T>
inline void correlate(const Correlation<T>& c, int64_t m, int64_t places) {
  with_outer(m, [&](auto outer) {
    constexpr int M = decltype(outer)::value, U = kPlaces[M - 1];
    for (int64_t place = 0; place < places; place += U) {
      correlate_places<T, M, U>(c, place, places - place < U ? places - place : U);
    }
  });
}

// The sums of some blocks of outer channels along one line: all sections, vectors and chunks of steps. The blocks come
// innermost, so that the lines of a chunk are still in the cache for the next one.
// lines[section] lists the line of every step, of row taps [row_begin, row_end).
template <typename T>
inline void multiply_blocks(const Packing& p, const T* packed, const Share& share, int64_t phase, int64_t row_begin,
                            int64_t row_end, const T* const* const* lines, T* out, int64_t pitch) {
  const Columns& c = p.columns;
  const int64_t first = p.block_begin(share.block_begin), end = p.block_begin(share.block_end);
  Products<T> products{};
  products.period = c.length;
  products.out_pitch = pitch;
  products.out_period = c.vectors * p.lanes;
  for (int64_t v = 0; v < c.vectors; ++v) {
    products.at = v * p.lanes;
    products.add = false;
    for (int section = 0; section < 2; ++section) {
      const int64_t steps = (row_end - row_begin) * p.inner * p.section_taps(section);
      if (steps == 0) continue;
      products.masks = section == 1;
      if (section == 1) products.mask = partial_mask<T>(c, v);
      for (int64_t s = 0; s < steps; s += kChunkSteps) {
        products.steps = steps - s < kChunkSteps ? steps - s : kChunkSteps;
        products.lines = lines[section] + s;
        for (int64_t b = share.block_begin; b < share.block_end; ++b) {
          const int64_t begin = p.block_begin(b), m = p.block_begin(b + 1) - begin;
          products.out = out + (begin - first) * pitch + v * p.lanes;
          products.weights = packed + p.offset(begin, m, phase, v, section, row_begin) + s * m * p.lanes;
          multiply(products, m, c.periods);
        }
        products.add = true;
      }
    }
    if (!products.add) {  // no taps at all
      for (int64_t o = first; o < end; ++o) {
        T* line = out + (o - first) * pitch + v * p.lanes;
        for (int64_t n = 0; n < c.periods; ++n) store(line + n * products.out_period, Vec<T>{});
      }
    }
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
