// The register tile of gemm.h, for every number of rows.
#include "gemm.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int kFetches = kVectorBytes > 32 ? 4 : 1;  // lines that are fetched ahead per group

template <typename T, int R, Order order>
FCN_NOINLINE void tile_product(int64_t depth, const T* FCN_RESTRICT a, int64_t group_stride, const T* FCN_RESTRICT b,
                               T* FCN_RESTRICT c, int64_t stride_c, bool add, Ahead* next) {
  constexpr int L = kLanes<T>;
  constexpr int G = kGroupOf<T, order>;
  constexpr bool kFetch = order == kGroups;
  Ahead ahead;
  if (kFetch) ahead = *next;
  Vec<T> sum[R][kPanelVectors] = {};
  const auto step = [&](const T* row) {
    const Vec<T> b0 = load(b), b1 = load(b + L);
    FCN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec<T> value = broadcast(row[r * G]);
      sum[r][0] += value * b0;
      sum[r][1] += value * b1;
    }
    b += kPanel<T>;
  };
  if constexpr (G == 1) {
    FCN_UNROLL_BY_4
    for (int64_t k = 0; k < depth; ++k) step(a + k * group_stride);
  } else {
    for (int64_t group = 0; group < depth / G; ++group) {
      FCN_UNROLL_BY_4
      for (int k = 0; k < G; ++k) step(a + k);
      a += group_stride;
      if (kFetch) {
        for (int i = 0; i < kFetches; ++i) ahead.fetch();
      }
    }
    for (int64_t k = 0; k < depth % G; ++k) step(a + k);
  }
  if (kFetch) *next = ahead;
  FCN_UNROLL
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) {
      T* to = c + r * stride_c + v * L;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

template <typename T, Order order, int R = kTileRows>
TileProduct<T> choose(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return choose<T, order, R - 1>(rows);
  }
  return &tile_product<T, R, order>;
}

}  // namespace

#define FCN_PRODUCTS(T, order)                         \
  template <>                                          \
  TileProduct<T> tile_product_of<T, order>(int rows) { \
    return choose<T, order>(rows);                     \
  }
FCN_PRODUCTS(float, kColumns)
FCN_PRODUCTS(float, kGroups)
FCN_PRODUCTS(float, kPanels)
FCN_PRODUCTS(double, kColumns)
FCN_PRODUCTS(double, kGroups)
FCN_PRODUCTS(double, kPanels)
#undef FCN_PRODUCTS

}  // namespace FCN_ISA
}  // namespace fcn
