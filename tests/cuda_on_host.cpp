// The CUDA kernels of csrc/cuda/upsample_add.cuh, upsample_sigmoid.cuh and gather.cuh as ordinary functions: a launch
// runs thread after thread. Lanes that meet in a shuffle cannot be imitated so; of those kernels the shares of all
// lanes are added instead.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
namespace {
struct Index {
  unsigned x, y, z;
};
Index threadIdx, blockIdx, gridDim;
template <typename T>
T __shfl_xor_sync(unsigned, T value, int) {
  return value;
}
}  // namespace

#include "cuda/upsample_sigmoid.cuh"

namespace {

using fcn::View;
using Ints = std::vector<int64_t>;
using Grid = std::array<unsigned, 3>;

template <typename Kernel>
void launch(const Grid& grid, const Kernel& kernel) {
  gridDim = {grid[0], grid[1], grid[2]};
  for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
        for (threadIdx.y = 0; threadIdx.y < fcn::kRows; ++threadIdx.y)
          for (threadIdx.x = 0; threadIdx.x < fcn::kLanes; ++threadIdx.x) kernel();
}

template <typename T>
View<T> view(int64_t pointer, const Ints& strides) {
  return View<T>{reinterpret_cast<T*>(pointer), strides[0], strides[1], strides[2], strides[3]};
}

template <int kWide, typename Epilogue>
void start_forward(const View<const double>& x, const View<double>& y, const fcn::Sampling& s, int64_t batch,
                   int64_t channels, const Epilogue& epilogue, bool channels_last, const Grid& grid) {
  launch(grid, [&] {
    if (channels_last) {
      fcn::forward_channels_last<double, kWide>(x, y, s, batch, channels, epilogue);
    } else {
      fcn::forward_contiguous<double, kWide>(x, y, s, batch, channels, epilogue);
    }
  });
}

// upsample_add, or upsample_sigmoid without a skip.
void forward(int64_t x, const Ints& x_strides, int64_t skip, const Ints& skip_strides, int64_t y, const Ints& y_strides,
             const Ints& sampling, int64_t batch, int64_t channels, double scale, bool channels_last, bool wide,
             bool skip_wide, const Grid& grid) {
  const fcn::Sampling s = fcn::decode_sampling(sampling);
  const auto from = view<const double>(x, x_strides), other = view<const double>(skip, skip_strides);
  const auto to = view<double>(y, y_strides);
  const auto start = [&](const auto& epilogue) {
    if (wide) {
      start_forward<2>(from, to, s, batch, channels, epilogue, channels_last, grid);
    } else {
      start_forward<1>(from, to, s, batch, channels, epilogue, channels_last, grid);
    }
  };
  if (skip) {
    start(fcn::Skip<double>{other, scale, channels_last ? other.stride_c : other.stride_w, skip_wide});
  } else {
    start(fcn::Sigmoid());
  }
}

void backward(int64_t grad, const Ints& grad_strides, int64_t dx, const Ints& dx_strides, const Ints& sampling,
              int64_t batch, int64_t channels, bool channels_last, const Grid& grid) {
  const fcn::Sampling s = fcn::decode_sampling(sampling);
  const fcn::OutputGradient<double> from{view<const double>(grad, grad_strides)};
  const auto to = view<double>(dx, dx_strides);
  launch(grid, [&] {
    if (channels_last) {
      fcn::gather_channels_last<fcn::OutputGradient<double>>(from, to, s, batch, channels);
    } else {
      fcn::gather_contiguous<fcn::OutputGradient<double>, 1>(from, to, s, batch, channels);
    }
  });
}

// The gradient of input pixel (i, j) of the first plane, as `lanes` lanes share it.
double shared_gather(int64_t grad, const Ints& grad_strides, const Ints& sampling, int64_t i, int64_t j, int lanes) {
  const fcn::Sampling s = fcn::decode_sampling(sampling);
  const fcn::OutputGradient<double> from{view<const double>(grad, grad_strides)};
  double sum = 0;
  for (int lane = 0; lane < lanes; ++lane) sum += fcn::gather<double>(from.plane(0, 0), s, i, j, lane, lanes);
  return sum;
}

}  // namespace

PYBIND11_MODULE(cuda_on_host, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("shared_gather", &shared_gather);
}
