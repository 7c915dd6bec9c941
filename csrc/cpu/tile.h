// A tile: one band of output rows times one block of segments, a segment per vector lane. Everything in it reads the
// same four corners per lane and class, x[y0][i], x[y0][i+1], x[y1][i], x[y1][i+1].
#pragma once

#include "dtype.h"

namespace fcn {
namespace FCN_ISA {

enum Corner { kTopLeft = 0, kTopRight = 1, kBottomLeft = 2, kBottomRight = 3 };

// The input row that a tap reads, or -1 where it counts zero.
FCN_INLINE int64_t resolve(int64_t index, int64_t size, bool clamp) {
  if (index >= 0 && index < size) return index;
  return clamp ? (index < 0 ? 0 : size - 1) : -1;
}

// A block of segments: where its lanes read and write.
template <typename T>
struct Block {
  static constexpr int L = kLanes<T>;
  bool contiguous;  // left taps are consecutive columns and no tap leaves the row
  bool full;        // every lane has `steps` outputs, and they follow each other without a gap
  int64_t left[L], right[L];  // columns, -1 where the tap counts zero
  int64_t first[L];           // first output column
  int32_t length[L];
  Vec<T> fraction;

  Block(const Geometry& g, int64_t begin) {
    const Segments& s = g.columns;
    contiguous = true;
    full = true;
    T f[L];
    for (int l = 0; l < L; ++l) {
      const int64_t i = s.index[begin + l];
      left[l] = resolve(i, g.in_width, g.clamp);
      right[l] = resolve(i + 1, g.in_width, g.clamp);
      first[l] = s.first[begin + l];
      length[l] = s.length[begin + l];
      f[l] = (T)s.fraction[begin + l];
      contiguous &= left[l] == i && right[l] == i + 1 && i == s.index[begin] + l;
      full &= length[l] == s.steps && first[l] == first[0] + l * s.steps;
    }
    fraction = load(f);
  }
};

template <typename T, typename In>
FCN_INLINE Vec<T> load_lanes(const In* row, const int64_t* columns, int64_t stride) {
  T t[kLanes<T>];
  for (int l = 0; l < kLanes<T>; ++l) t[l] = columns[l] < 0 ? T(0) : (T)to_arithmetic(row[columns[l] * stride]);
  return load(t);
}

// corners[class][4][lanes] of rows y0 and y1 (-1: zeros).
template <typename T, typename In>
__attribute__((noinline)) void load_corners_as(const Image& x, int64_t n, int64_t y0, int64_t y1, const Block<T>& block,
                                               T* FCN_RESTRICT corners) {
  constexpr int L = kLanes<T>;
  const In* image = (const In*)x.data + n * x.stride_n;
  const bool contiguous = block.contiguous && x.stride_w == 1;
  for (int64_t c = 0; c < x.channels; ++c) {
    T* out = corners + c * 4 * L;
    for (int side = 0; side < 2; ++side, out += 2 * L) {
      const int64_t y = side == 0 ? y0 : y1;
      const In* row = image + c * x.stride_c + y * x.stride_h;
      if (y < 0) {
        store(out, Vec<T>{});
        store(out + L, Vec<T>{});
      } else if (contiguous) {
        store(out, load_as(row + block.left[0]));
        store(out + L, load_as(row + block.right[0]));
      } else {
        store(out, load_lanes<T>(row, block.left, x.stride_w));
        store(out + L, load_lanes<T>(row, block.right, x.stride_w));
      }
    }
  }
}

template <typename T>
FCN_INLINE void load_corners(const Image& x, int64_t n, int64_t y0, int64_t y1, const Block<T>& block, T* corners) {
  if constexpr (sizeof(T) == sizeof(double)) {
    load_corners_as<T, double>(x, n, y0, y1, block, corners);
  } else if (x.dtype == DType::kHalf) {
    load_corners_as<T, Half>(x, n, y0, y1, block, corners);
  } else if (x.dtype == DType::kBFloat16) {
    load_corners_as<T, BFloat16>(x, n, y0, y1, block, corners);
  } else {
    load_corners_as<T, float>(x, n, y0, y1, block, corners);
  }
}

// Adds per-lane values to the columns of a row, lane after lane (a column may occur in several lanes).
template <typename T>
FCN_INLINE void add_lanes(T* row, const int64_t* columns, int64_t stride, bool contiguous, Vec<T> v) {
  if (contiguous) {
    T* p = row + columns[0];
    store(p, load(p) + v);
    return;
  }
  for (int l = 0; l < kLanes<T>; ++l) {
    if (columns[l] >= 0) row[columns[l] * stride] += v[l];
  }
}

// A bilinear value from raw corners in the weighted form, which cannot overflow and keeps infinities; a tap of weight
// zero is not read.
template <typename T>
FCN_INLINE Vec<T> weigh(Vec<T> a, Vec<T> b, Vec<T> f) {
  const Vec<T> zero{}, g = T(1) - f;
  return (g == zero ? zero : g * a) + (f == zero ? zero : f * b);
}

template <typename T>
FCN_INLINE Vec<T> weigh_corners(const T* corners, Vec<T> fx, Vec<T> fy) {
  constexpr int L = kLanes<T>;
  const Vec<T> left = weigh<T>(load(corners + kTopLeft * L), load(corners + kBottomLeft * L), fy);
  const Vec<T> right = weigh<T>(load(corners + kTopRight * L), load(corners + kBottomRight * L), fy);
  return weigh<T>(left, right, fx);
}

// Bump allocation from a worker's scratch; with base null it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  explicit Arena(void* p) : base((char*)p) {}
  template <typename U>
  U* take(int64_t count) {
    U* result = (U*)(base + used);
    used += (count * (int64_t)sizeof(U) + 63) / 64 * 64;
    return result;
  }
};

}  // namespace FCN_ISA
}  // namespace fcn
