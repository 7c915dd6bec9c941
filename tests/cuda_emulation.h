// CUDA on the host, for checks of kernels without a GPU: blocks run one after another, the threads of a block as
// coroutines that give way at __syncthreads and at shuffles, so that shared memory and shuffles mean what they mean.
// Include before any .cuh.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
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

  // What lane `from(own lane)` of this warp gives.
  template <typename T, typename From>
  static T shuffle(T value, const From& from) {
    EmulatedBlock& block = *current_;
    const size_t own = block.running_, lane = own % kEmulatedWarp;
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves numbers");
    std::memcpy(&block.exchange_[own], &value, sizeof(T));
    meet();
    T result;
    std::memcpy(&result, &block.exchange_[own - lane + from(lane)], sizeof(T));
    meet();
    return result;
  }

 private:
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
  std::vector<uint64_t> exchange_;
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
