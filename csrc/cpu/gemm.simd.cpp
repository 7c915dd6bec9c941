// The register tile of gemm.h, for every number of rows.
#include "gemm.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int kFetches = kVectorBytes > 32 ? 4 : 1;  // lines that are fetched ahead per group
// Rows that are packed soon; more would evict each other where they are powers of two apart.
constexpr int kRowsAhead = kVectorBytes > 32 ? 12 : 8;

// Rows of B: packed, or packed on the way.
template <typename T>
struct PackedRows {
  const T* b;
  FCN_INLINE void next(Vec<T>& b0, Vec<T>& b1) {
    b0 = load(b);
    b1 = load(b + kLanes<T>);
    b += kPanel<T>;
  }
};

template <typename T, typename In>
struct RowsToPack {
  const In* from;
  int64_t stride;
  T* b;
  FCN_INLINE void next(Vec<T>& b0, Vec<T>& b1) {
    __builtin_prefetch(from + kRowsAhead * stride, 0, 3);
    b0 = load_as(from);
    b1 = load_as(from + kLanes<T>);
    store(b, b0);
    store(b + kLanes<T>, b1);
    from += stride;
    b += kPanel<T>;
  }
};

template <typename T, int R, Order order, typename Rows>
FCN_INLINE void product(int64_t depth, const T* FCN_RESTRICT a, int64_t group_stride, Rows rows, T* FCN_RESTRICT c,
                        int64_t stride_c, bool add, Ahead* next) {
  constexpr int L = kLanes<T>;
  constexpr int G = kGroupOf<T, order>;
  constexpr bool kFetch = order == kGroups;
  Ahead ahead;
  if (kFetch) ahead = *next;
  if constexpr (order == kColumns) {  // results that leave for memory: their lines are fetched meanwhile
    FCN_UNROLL
    for (int r = 0; r < R; ++r) __builtin_prefetch(c + r * stride_c, 1, 3);
  }
  Vec<T> sum[R][kPanelVectors] = {};
  const auto step = [&](const T* row) {
    Vec<T> b0, b1;
    rows.next(b0, b1);
    FCN_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec<T> value = broadcast(row[r * G]);
      sum[r][0] += value * b0;
      sum[r][1] += value * b1;
    }
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

template <typename T, int R, Order order>
FCN_NOINLINE void tile_product(int64_t depth, const T* a, int64_t group_stride, const T* b, T* c, int64_t stride_c,
                               bool add, Ahead* next) {
  product<T, R, order>(depth, a, group_stride, PackedRows<T>{b}, c, stride_c, add, next);
}

template <typename T, typename In, int R>
FCN_NOINLINE void packing_product(int64_t depth, const T* a, int64_t group_stride, const In* from, int64_t stride_from,
                                  T* b, T* c, int64_t stride_c, Ahead* next) {
  product<T, R, kGroups>(depth, a, group_stride, RowsToPack<T, In>{from, stride_from, b}, c, stride_c, true, next);
}

template <typename T, Order order, int R = kTileRows>
TileProduct<T> choose(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return choose<T, order, R - 1>(rows);
  }
  return &tile_product<T, R, order>;
}

template <typename T, typename In, int R = kTileRows>
PackingProduct<T, In> choose_packing(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return choose_packing<T, In, R - 1>(rows);
  }
  return &packing_product<T, In, R>;
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

#define FCN_PACKING_PRODUCTS(T, In)                           \
  template <>                                                 \
  PackingProduct<T, In> packing_product_of<T, In>(int rows) { \
    return choose_packing<T, In>(rows);                       \
  }
FCN_PACKING_PRODUCTS(float, float)
FCN_PACKING_PRODUCTS(float, Half)
FCN_PACKING_PRODUCTS(float, BFloat16)
FCN_PACKING_PRODUCTS(double, double)
#undef FCN_PACKING_PRODUCTS

}  // namespace FCN_ISA
}  // namespace fcn
