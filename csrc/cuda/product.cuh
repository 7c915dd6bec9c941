// A product of matrices as a kernel of its own: the parts of scores, and the gradients of a convolution.
#pragma once

#include "matrix.cuh"

namespace fcn {
namespace {

// sum over the images of a group of a b^T, [splits, groups, M, N]: split s has `chunk` of the inner dimension.
template <typename TA, typename TB>
struct Product {
  Operand<TA> a;
  Operand<TB> b;
  int64_t inner, chunk, batches, images, groups;
};

template <typename Tile>
__host__ __device__ int64_t row_tiles(int64_t rows) {
  return (rows + Tile::kBlockRows - 1) / Tile::kBlockRows;
}
template <typename Tile>
__host__ __device__ int64_t column_tiles(int64_t columns) {
  return (columns + Tile::kBlockColumns - 1) / Tile::kBlockColumns;
}

// Where a product is written.
template <typename Out>
struct ProductOutput {
  Out* data;
  int64_t stride_split, stride_group, stride_row, stride_column;
};

template <typename Tile, typename Out>
__global__ void __launch_bounds__(kProductThreads, 1)
    product_tiles(Product<typename Tile::TA, typename Tile::TB> in, ProductOutput<Out> to) {
  __shared__ typename Tile::Stages stages;
  const int64_t down = row_tiles<Tile>(in.a.outer), across = column_tiles<Tile>(in.b.outer);
  const int64_t row = blockIdx.x % down * Tile::kBlockRows, column = blockIdx.x / down % across * Tile::kBlockColumns;
  const int64_t group = blockIdx.x / down / across % in.groups, split = blockIdx.x / down / across / in.groups;
  const int64_t k = split * in.chunk, k_end = k + in.chunk < in.inner ? k + in.chunk : in.inner;
  const int64_t wanted = (in.b.outer - column + kSlice - 1) / kSlice;
  constexpr int kSlices = Tile::kColumns / kSliceColumns;
  const int slices = wanted < kSlices ? static_cast<int>(wanted) : kSlices;
  typename Tile::A z[Tile::kRows][Tile::kColumns] = {};
  for (int64_t batch = group * in.images; batch < (group + 1) * in.images && batch < in.batches; ++batch) {
    Tile::add(z, stages, in.a, in.a.data + batch * in.a.stride_batch, row, in.b, in.b.data + batch * in.b.stride_batch,
              column, slices, k, k_end);
  }
  Out* const part = to.data + split * to.stride_split + group * to.stride_group;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int64_t m = row + threadIdx.y * Tile::kWarpRows + threadIdx.x / 4 + 8 * i;
    if (m >= in.a.outer) continue;
    for_slices<Tile::kColumns>(slices, [&](int slice) {
#pragma unroll
      for (int j = slice * kSliceColumns; j < (slice + 1) * kSliceColumns; ++j) {
        const int64_t n = column + 8 * (j / 2) + 2 * (threadIdx.x % 4) + j % 2;
        if (n < in.b.outer) part[m * to.stride_row + n * to.stride_column] = static_cast<Out>(z[i][j]);
      }
    });
  }
}

}  // namespace
}  // namespace fcn
