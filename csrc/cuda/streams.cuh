// How the streaming kernels of upsample_add.cuh are launched.
#pragma once

#include <algorithm>

#include "gathers.cuh"
#include "upsample_add.cuh"

namespace fcn {

// Whether neighbours, along the channels or along a row, can be accessed 16 bytes at a time.
template <typename T>
bool packs(const View<T>& v, int64_t channels, int64_t columns, bool channels_last) {
  return channels_last ? reads_wide(v, channels, kWideChannels<T>) : columns_wide(v, columns, kWideChannels<T>);
}

// y, which must not be empty: x upsampled, and what `epilogue` makes of it.
template <typename T, typename Epilogue>
void launch_forward(const Launch& launch, const Tensor& x_any, const Tensor& y, const Sampling& s,
                    const Epilogue& epilogue) {
  constexpr int64_t kPlanes = 8;  // planes that share one computation of the geometry, where there are enough of them
  constexpr int64_t kWantedBlocks = 4096;
  // A row of x fits the offsets of the kernels, but for outlandish strides.
  const Tensor x = bounded(x_any.stride(3), s.cols.in, 0) <= kLargestSize ? x_any : as_contiguous(x_any);
  const View<const T> from = view_of<const T>(x);
  const View<T> to = view_of<T>(y);
  const int64_t batch = x.size(0), channels = x.size(1), planes = batch * channels;
  const bool channels_last = is_channels_last(y);
  const dim3 block(kLanes, kRows);
  const auto start = [&](auto wide) {
    if (channels_last) {
      const int64_t across = divided_up(s.cols.out * (channels / wide.value), kLanes * kRows);
      const dim3 blocks(static_cast<unsigned>(across), grid(divided_up(s.rows.out, kStrip)), grid(batch));
      forward_channels_last<T, wide.value>
          <<<blocks, block, 0, launch.stream()>>>(from, to, s, batch, channels, epilogue);
    } else {
      const int64_t across = divided_up(s.cols.out, kLanes * kColumnsOf<wide.value>);
      const int64_t down = grid(divided_up(s.rows.out, kRows));
      const int64_t deep = std::max(divided_up(planes, kPlanes), std::min(planes, kWantedBlocks / (across * down)));
      const dim3 blocks(static_cast<unsigned>(across), static_cast<unsigned>(down), grid(deep));
      forward_contiguous<T, wide.value><<<blocks, block, 0, launch.stream()>>>(from, to, s, batch, channels, epilogue);
    }
  };
  if (packs(to, channels, s.cols.out, channels_last) &&
      (!channels_last || reads_wide(from, channels, kWideChannels<T>))) {
    start(std::integral_constant<int, kWideChannels<T>>());
  } else {
    start(std::integral_constant<int, 1>());
  }
}

}  // namespace fcn
