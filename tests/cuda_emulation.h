// CUDA on the host, for checks of kernels without a GPU: blocks run one after another, the threads of a block as
// coroutines that give way at __syncthreads and at shuffles, so that shared memory and shuffles mean what they mean.
// Include before any .cuh.
#pragma once

#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#include "cuda_half.h"

#define FCN_EMULATED  // csrc/cuda/instructions.cuh has its functions from here
#define __global__
#define __host__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

namespace {

struct Index {
  unsigned x, y, z;
};
Index threadIdx, blockIdx, gridDim;

constexpr int kEmulatedWarp = 32;
constexpr size_t kStack = 64 * 1024;

// The threads of one block, in warps of 32 lanes along x.
class EmulatedBlock {
 public:
  EmulatedBlock(unsigned warps, const std::function<void()>& kernel)
      : kernel_(kernel), threads_(warps * kEmulatedWarp) {
    stacks_.resize(threads_.size() * kStack);
    exchange_.resize(threads_.size());
  }

  // Runs all threads up to their next meeting again and again, the last one first where `backwards`.
  void run(bool backwards) {
    current_ = this;
    for (size_t t = 0; t < threads_.size(); ++t) {
      Thread& thread = threads_[t];
      thread.done = thread.waiting = false;
      thread.meetings = 0;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = stacks_.data() + t * kStack;
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &scheduler_;
      makecontext(&thread.context, &EmulatedBlock::enter, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (size_t k = 0; k < threads_.size(); ++k) {
        const size_t t = backwards ? threads_.size() - 1 - k : k;
        if (threads_[t].done) continue;
        left = true;
        if (threads_[t].waiting) continue;
        running_ = t;
        threadIdx = {static_cast<unsigned>(t % kEmulatedWarp), static_cast<unsigned>(t / kEmulatedWarp), 0};
        swapcontext(&scheduler_, &threads_[t].context);
      }
      // Whoever has not ended must have met: lanes that miss a meeting of their warp would hang a GPU.
      bool waiting = true;
      for (size_t t = 0; t < threads_.size(); ++t) {
        const Thread &mine = threads_[t], &first = threads_[t / kEmulatedWarp * kEmulatedWarp];
        if (mine.done != first.done || mine.meetings != first.meetings) diverged_ = true;
        waiting = waiting && (mine.done || mine.waiting);
      }
      for (Thread& thread : threads_) thread.waiting = thread.waiting && !waiting;
    }
    if (diverged_) throw std::runtime_error("lanes of a warp did not meet");
  }

  static void meet() {
    EmulatedBlock& block = *current_;
    Thread& mine = block.threads_[block.running_];
    ++mine.meetings;
    swapcontext(&mine.context, &block.scheduler_);
  }

  // Meets all warps.
  static void wait() {
    current_->threads_[current_->running_].waiting = true;
    meet();
  }

  // Every lane of a warp gives a value; f(given, lane) sees given(i), that of lane i, and its own number.
  template <typename T, typename F>
  static void exchange(const T& value, const F& f) {
    EmulatedBlock& block = *current_;
    const size_t own = block.running_, lane = own % kEmulatedWarp;
    static_assert(sizeof(T) <= sizeof(Given), "more than lanes can give");
    std::memcpy(&block.exchange_[own], &value, sizeof(T));
    meet();
    f(
        [&](size_t i) {
          T given;
          std::memcpy(&given, &block.exchange_[own - lane + i], sizeof(T));
          return given;
        },
        lane);
    meet();
  }

  // What lane `from(own lane)` of this warp gives.
  template <typename T, typename From>
  static T shuffle(T value, const From& from) {
    T result;
    exchange(value, [&](const auto& given, size_t lane) { result = given(from(lane)); });
    return result;
  }

 private:
  using Given = std::array<uint32_t, 6>;

  struct Thread {
    ucontext_t context;
    bool done = false, waiting = false;
    int64_t meetings = 0;
  };

  static void enter() {
    EmulatedBlock& block = *current_;
    block.kernel_();
    block.threads_[block.running_].done = true;
  }

  inline static EmulatedBlock* current_ = nullptr;
  const std::function<void()> kernel_;
  std::vector<Thread> threads_;
  std::vector<char> stacks_;
  std::vector<Given> exchange_;
  ucontext_t scheduler_;
  size_t running_ = 0;
  bool diverged_ = false;
};

inline void __syncthreads() { EmulatedBlock::wait(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return EmulatedBlock::shuffle(value, [=](size_t lane) { return lane ^ static_cast<size_t>(mask); });
}

template <typename T>
T __shfl_up_sync(unsigned, T value, int by) {
  const size_t distance = static_cast<size_t>(by);
  return EmulatedBlock::shuffle(value, [=](size_t lane) { return lane < distance ? lane : lane - distance; });
}

// The lanes of this warp that give the same value.
template <typename T>
unsigned __match_any_sync(unsigned, T value) {
  unsigned same = 0;
  for (size_t other = 0; other < kEmulatedWarp; ++other) {
    const bool equal = EmulatedBlock::shuffle(value, [=](size_t) { return other; }) == value;
    same |= equal ? 1u << other : 0u;
  }
  return same;
}

inline int __popc(int v) { return __builtin_popcount(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }

// Coroutines give way at meetings only.
template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

template <typename T>
T atomicMin(T* to, T value) {
  const T before = *to;
  *to = value < before ? value : before;
  return before;
}

bool emulation_backwards = false;

}  // namespace

namespace fcn {
namespace {

template <int kBytes>
void copy_async(void* to, const void* from, int count) {
  std::memset(to, 0, kBytes);
  std::memcpy(to, from, count);
}
inline void close_copies() {}
template <int kPending>
void wait_for_copies() {}

template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* row) {
  EmulatedBlock::exchange(row, [&](const auto& given, size_t lane) {
    for (size_t i = 0; i < 4; ++i) {
      for (size_t k = 0; k < 2; ++k) {
        const size_t r = kTransposed ? 2 * (lane % 4) + k : lane / 4, c = kTransposed ? lane / 4 : 2 * (lane % 4) + k;
        std::memcpy(reinterpret_cast<char*>(&to[i]) + 2 * k, static_cast<const char*>(given(8 * i + r)) + 2 * c, 2);
      }
    }
  });
}

// What a lane brings to a product of its warp: a, then b.
using Fragments = std::array<uint32_t, 6>;

// Adds to each of a lane's results its products in order; a register holds kPerRegister numbers, read(bits, i).
template <int kPerRegister, typename Read>
void multiply_fragments(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                        const Read& read) {
  const Fragments mine{a[0], a[1], a[2], a[3], b0, b1};
  EmulatedBlock::exchange(mine, [&](const auto& given, size_t lane) {
    float* const results[4] = {&c0, &c1, &c2, &c3};
    for (size_t k = 0; k < 8 * kPerRegister; ++k) {
      const size_t half = k / (4 * kPerRegister), t = k % (4 * kPerRegister) / kPerRegister, at = k % kPerRegister;
      for (size_t i = 0; i < 4; ++i) {
        const size_t column = 2 * (lane % 4) + i % 2;
        *results[i] += read(given(lane / 4 * 4 + t)[2 * half + i / 2], at) * read(given(column * 4 + t)[4 + half], at);
      }
    }
  });
}

template <typename T>
void multiply_16x8x16(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_fragments<2>(c0, c1, c2, c3, a, b0, b1, [](uint32_t bits, size_t at) {
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(&bits) + 2 * at, 2);
    return static_cast<float>(value);
  });
}

inline uint32_t tf32_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return std::isfinite(v) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

inline void multiply_16x8x8(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                            uint32_t b1) {
  multiply_fragments<1>(c0, c1, c2, c3, a, b0, b1, [](uint32_t bits, size_t) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  });
}

}  // namespace
}  // namespace fcn

namespace {

// kernel<<<dim3(across, down), dim3(32, warps)>>>
inline void emulate(unsigned across, unsigned warps, const std::function<void()>& kernel, unsigned down = 1) {
  gridDim = {across, down, 1};
  EmulatedBlock block(warps, kernel);
  for (unsigned b = 0; b < across * down; ++b) {
    const unsigned number = emulation_backwards ? across * down - 1 - b : b;
    blockIdx = {number % across, number / across, 0};
    block.run(emulation_backwards);
  }
}

}  // namespace
