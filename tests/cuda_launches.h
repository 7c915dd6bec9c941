// Launches that the host builds of several CUDA kernels share. After cuda_emulation.h.
#pragma once

#include <type_traits>
#include <vector>

#include "cuda/logsumexp.cuh"

namespace {

using fcn::View;
using Ints = std::vector<int64_t>;

template <typename T>
View<T> view(int64_t pointer, const Ints& strides) {
  return View<T>{reinterpret_cast<T*>(pointer), strides[0], strides[1], strides[2], strides[3]};
}

template <typename F>
void with_steps(int64_t steps, const F& f) {
  if (steps == 1) return f(std::integral_constant<int, 1>());
  if (steps == 2) return f(std::integral_constant<int, 2>());
  if (steps > 4) return f(std::integral_constant<int, 8>());
  f(std::integral_constant<int, 4>());
}

// Calls f(lanes that share a pixel of x, classes that each reads at a time).
template <typename T, typename F>
void with_lanes(const View<const T>& x, int64_t channels, bool wide, const F& f) {
  using One = std::integral_constant<int, 1>;
  using Four = std::integral_constant<int, 4>;
  using Warp = std::integral_constant<int, fcn::kWarp>;
  if (x.stride_c != 1 || channels == 1) return f(One(), One());
  if (wide) return f(Warp(), Four());
  f(Warp(), One());
}

inline unsigned blocks_of(int64_t threads) { return static_cast<unsigned>(fcn::divided_up(threads, fcn::kThreads)); }

template <typename T>
struct HostStatistics {
  using A = fcn::ArithmeticOf<T>;
  std::vector<A> memory;
  fcn::Statistics<A> of;

  HostStatistics() = default;
  HostStatistics(const View<const T>& x, const fcn::Sampling& s, int64_t batch, int64_t channels, bool wide,
                 const A* weight = nullptr, bool linear = false) {
    const int64_t pixels = batch * s.rows.in * s.cols.in;
    memory.resize(3 * pixels);
    of = {memory.data(), memory.data() + pixels, linear ? memory.data() + 2 * pixels : nullptr};
    with_lanes(x, channels, wide, [&](auto lanes, auto width) {
      emulate(blocks_of(pixels * lanes.value), fcn::kWarps, [&] {
        fcn::class_statistics<T, lanes.value, width.value>(x, channels, s.rows.in, s.cols.in, pixels, weight, of);
      });
    });
  }
};

}  // namespace
