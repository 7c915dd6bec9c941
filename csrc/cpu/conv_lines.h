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

#include "conv_packing.h"
#include "conv_rows.h"

namespace fcn {
namespace FCN_ISA {

constexpr int64_t kChunkSteps = 120;  // steps whose weights stay in the first cache; of most tiles a multiple

#if defined(__AVX512F__)
constexpr int kPlaces[kOuter] = {8, 8, 7, 6};  // places of a tile of 1, 2, 3, 4 channels: what the registers hold
#else
constexpr int kPlaces[kOuter] = {8, 5, 3, 3};
#endif
constexpr int kMostPlaces = 8;

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
