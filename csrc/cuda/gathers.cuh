// How gather.cuh is launched.
#pragma once

#include <algorithm>

#include "gather.cuh"
#include "launch.cuh"
#include "segments.cuh"

namespace fcn {

constexpr int64_t kMaxGrid = 65535;

inline unsigned grid(int64_t wanted) { return static_cast<unsigned>(std::max<int64_t>(1, std::min(wanted, kMaxGrid))); }

// Blocks of (kRows columns, one row, one image), lanes along channels.
inline dim3 channels_last_grid(int64_t rows, int64_t columns, int64_t batch) {
  return dim3(static_cast<unsigned>(divided_up(columns, kRows)), grid(rows), grid(batch));
}

// dx, which must not be empty, from what `source` says of the outputs.
template <typename Source>
void launch_gather(const Launch& launch, const Source& source, const Tensor& dx, const Sampling& s) {
  using T = typename Source::Type;
  const int64_t batch = dx.size(0), channels = dx.size(1);
  const dim3 block(kLanes, kRows);
  if (is_channels_last(dx)) {
    const dim3 blocks = channels_last_grid(s.rows.in, s.cols.in, batch);
    gather_channels_last<Source><<<blocks, block, 0, launch.stream()>>>(source, view_of<T>(dx), s, batch, channels);
    return;
  }
  const auto start = [&](auto group) {
    const dim3 blocks(
        static_cast<unsigned>(std::min<int64_t>(divided_up(dx.numel() * group.value, kLanes * kRows), 1 << 20)));
    gather_contiguous<Source, group.value>
        <<<blocks, block, 0, launch.stream()>>>(source, view_of<T>(dx), s, batch, channels);
  };
  // An input pixel is read by about 2 den / num output columns.
  const int64_t columns = s.cols.num > 0 ? 2 * s.cols.den / s.cols.num : s.cols.out;
  if (columns >= 32) {
    start(std::integral_constant<int, 32>());
  } else if (columns >= 8) {
    start(std::integral_constant<int, 8>());
  } else {
    start(std::integral_constant<int, 1>());
  }
}

}  // namespace fcn
