// Rows of images on their way to the lines of conv_lines.h, and sums of lines on their way to rows.
#pragma once

#include "conv_packing.h"

namespace fcn {
namespace FCN_ISA {

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

}  // namespace FCN_ISA
}  // namespace fcn
