// Products of small matrices, C[m][n] += sum_k A[m][k] B[k][n], out of one register tile: R rows (broadcast) by one
// panel of columns (vectors). Terms are added in the order of k, so the result depends on the shapes alone.
//
// Panels hold matrices with n fastest, kPanel<T> columns at a time: element (k, n) of a panel stands at k * kPanel + n.
// Tiles of A are read in groups of G consecutive k: element (r, k) stands at k / G * group_stride + r * G + k % G.
#pragma once

#include "dtype.h"

namespace fcn {
namespace FCN_ISA {

#if defined(__clang__)
#define FCN_UNROLL _Pragma("unroll")
#define FCN_UNROLL_BY_4 _Pragma("unroll 4")
#else
#define FCN_UNROLL _Pragma("GCC unroll 16")
#define FCN_UNROLL_BY_4 _Pragma("GCC unroll 4")
#endif

constexpr int kPanelVectors = 2;
template <typename T>
constexpr int kPanel = kPanelVectors * kLanes<T>;

// R rows take 2R accumulators, two vectors of B and one broadcast.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif

// The orders of A, by their G.
enum Order {
  kColumns,  // 1: transposed matrices, whose rows are copied
  kGroups,   // kGroup: matrices whose columns follow each other, copied a few at a time; memory is fetched ahead
  kPanels,   // kPanel<T>: the panels of an earlier product
};
constexpr int kGroup = 4;
template <typename T, Order order>
constexpr int kGroupOf = order == kColumns  ? 1
                         : order == kGroups ? kGroup
                                            : kPanel<T>;

// Tiles of at most kTileRows rows, of two sizes at most, the larger by one and last: none is so small that it waits for
// its own sums.
struct RowTiles {
  int64_t rows, count, small, small_count;
  explicit RowTiles(int64_t n)
      : rows(n), count((n + kTileRows - 1) / kTileRows), small(n / count), small_count(count - n % count) {}
  int64_t begin(int64_t tile) const { return tile * small + (tile > small_count ? tile - small_count : 0); }
  int size(int64_t tile) const { return (int)(small + (tile >= small_count)); }
};

// Memory that is read next, fetched a line at a time while the products run: `rows` rows of `lines` cache lines.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const void* base, int64_t stride, int64_t lines, int64_t rows)
      : row_((const char*)base), stride_(stride), lines_(lines), rows_(rows) {}

  FCN_INLINE void fetch() {
    __builtin_prefetch(row_ + done_ * 64, 0, 2);
    if (++done_ < lines_) return;
    done_ = 0;
    row_ += stride_;
    if (--rows_ <= 0) stride_ = 0;  // everything is on its way: this line again and again
  }

 private:
  const char* row_ = nullptr;
  int64_t stride_ = 0, lines_ = 1, rows_ = 0, done_ = 0;
};

// C += A B, or C = A B; `ahead` is for kGroups only.
template <typename T>
using TileProduct = void (*)(int64_t depth, const T* a, int64_t group_stride, const T* b, T* c, int64_t stride_c,
                             bool add, Ahead* ahead);

// The product for tiles of `rows` rows.
template <typename T, Order order>
TileProduct<T> tile_product_of(int rows);

// The same with columns that are not packed yet, C += A B: row k of B is read at from + k * stride_from and packed at b
// for the tiles that follow.
template <typename T, typename In>
using PackingProduct = void (*)(int64_t depth, const T* a, int64_t group_stride, const In* from, int64_t stride_from,
                                T* b, T* c, int64_t stride_c, Ahead* ahead);
template <typename T, typename In>
PackingProduct<T, In> packing_product_of(int rows);

// The products of a split: its tiles have at most two sizes.
template <typename T, Order order>
class TileProducts {
 public:
  explicit TileProducts(int64_t rows)
      : tiles(rows),
        products_{tile_product_of<T, order>((int)tiles.small),
                  tile_product_of<T, order>((int)(tiles.small < kTileRows ? tiles.small + 1 : tiles.small))} {}
  TileProduct<T> of(int64_t tile) const { return products_[tile >= tiles.small_count]; }

  const RowTiles tiles;

 private:
  const TileProduct<T> products_[2];
};

// Four values of each of L columns, column by column in memory, as four rows: v[row] from p[column * stride + row].
#if defined(__AVX512F__)
FCN_INLINE Vec<float> load_fours(const float* p, int64_t stride) {
  const __m512 a = _mm512_insertf32x4(_mm512_castps128_ps512(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
  return _mm512_insertf32x4(_mm512_insertf32x4(a, _mm_loadu_ps(p + 2 * stride), 2), _mm_loadu_ps(p + 3 * stride), 3);
}
#elif defined(__AVX2__)
FCN_INLINE Vec<float> load_fours(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
#else
FCN_INLINE Vec<float> load_fours(const float* p, int64_t) { return load(p); }
#endif
FCN_INLINE void load_transposed(const float* p, int64_t stride, Vec<float>* v) {
  Vec<float> a[4];
  for (int i = 0; i < 4; ++i) a[i] = load_fours(p + i * stride, 4 * stride);
  transpose_fours<float>(a[0], a[1], a[2], a[3], v);
}

// Rows of consecutive columns to panels that are panel_stride apart.
template <typename T, typename In>
FCN_NOINLINE void copy_to_panels(T* FCN_RESTRICT to, int64_t panel_stride, const In* FCN_RESTRICT from, int64_t rows,
                                 int64_t stride_row, int64_t columns) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  for (int64_t row = 0; row < rows; ++row, to += P, from += stride_row) {
    int64_t i = 0;
    T* t = to;
    for (; i + P <= columns; i += P, t += panel_stride) {
      for (int v = 0; v < kPanelVectors; ++v) store(t + v * L, load_as(from + i + v * L));
    }
    if (i == columns) continue;
    if (i + L <= columns) {
      store(t, load_as(from + i));
      i += L;
      t += L;
    }
    for (; i < columns; ++i) *t++ = to_arithmetic(from[i]);
  }
}

// Writes columns [0, columns) of a panel of B: to[row * kPanel + column] = from[row * stride_row + column *
// stride_column].
template <typename T, typename In>
FCN_NOINLINE void pack_panel(T* FCN_RESTRICT to, const In* FCN_RESTRICT from, int64_t rows, int64_t stride_row,
                             int columns, int64_t stride_column) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  if (stride_column == 1) return copy_to_panels(to, 0, from, rows, stride_row, columns);
  int done = 0;
  if (stride_row == 1) {
    for (; done + L <= columns; done += L) {
      int64_t row = 0;
      if constexpr (sizeof(In) == sizeof(float)) {
        FCN_UNROLL_BY_4
        for (; row + 4 <= rows; row += 4) {
          Vec<T> v[4];
          load_transposed((const float*)from + done * stride_column + row, stride_column, v);
          for (int i = 0; i < 4; ++i) store(to + (row + i) * P + done, v[i]);
        }
      }
      for (; row + L <= rows; row += L) {
        Vec<T> v[L];
        FCN_UNROLL
        for (int l = 0; l < L; ++l) v[l] = load_as(from + (done + l) * stride_column + row);
        interleave<T, L>(v);
        FCN_UNROLL
        for (int l = 0; l < L; ++l) store(to + (row + l) * P + done, v[l]);
      }
      for (; row < rows; ++row) {
        for (int l = 0; l < L; ++l) to[row * P + done + l] = to_arithmetic(from[(done + l) * stride_column + row]);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int i = done; i < columns; ++i) to[row * P + i] = to_arithmetic(from[row * stride_row + i * stride_column]);
  }
}

// The way back: to[row * stride_row + column * stride_column] = from[row * kPanel + column].
template <typename T, typename Out>
FCN_NOINLINE void unpack_panel(Out* FCN_RESTRICT to, int64_t stride_row, int64_t stride_column,
                               const T* FCN_RESTRICT from, int64_t rows, int columns) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  if (stride_column == 1) {
    const int vectors = columns / L;
    for (int64_t row = 0; row < rows; ++row) {
      Out* t = to + row * stride_row;
      const T* f = from + row * P;
      for (int v = 0; v < vectors; ++v) store_as(t + v * L, load(f + v * L));
      for (int i = vectors * L; i < columns; ++i) from_arithmetic(f[i], t + i);
    }
    return;
  }
  int done = 0;
  if (stride_row == 1) {
    for (; done + L <= columns; done += L) {
      int64_t row = 0;
      for (; row + L <= rows; row += L) {
        Vec<T> v[L];
        FCN_UNROLL
        for (int l = 0; l < L; ++l) v[l] = load(from + (row + l) * P + done);
        interleave<T, L>(v);
        FCN_UNROLL
        for (int l = 0; l < L; ++l) store_as(to + (done + l) * stride_column + row, v[l]);
      }
      for (; row < rows; ++row) {
        for (int l = 0; l < L; ++l) from_arithmetic(from[row * P + done + l], to + (done + l) * stride_column + row);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int i = done; i < columns; ++i) from_arithmetic(from[row * P + i], to + row * stride_row + i * stride_column);
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
