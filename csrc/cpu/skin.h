// From tensors to raw pointers, and the work loop: shared by the CPU skins.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <type_traits>

#include "../checks.h"
#include "dispatch.h"
#include "geometry.h"

namespace fcn {

inline DType dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    case ScalarType::Half:
      return DType::kHalf;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail(op, "expected a float32, float64, float16 or bfloat16 tensor");
  }
}

inline LabelType label_type_of(const char* op, const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return LabelType::kUInt8;
    case ScalarType::Short:
      return LabelType::kInt16;
    case ScalarType::Int:
      return LabelType::kInt32;
    case ScalarType::Long:
      return LabelType::kInt64;
    default:
      fail(op, name, " must be uint8, int16, int32 or int64");
  }
}

// The last of `classes` fits the labels.
inline void check_holds(const char* op, LabelType type, int64_t classes) {
  check(type != LabelType::kUInt8 || classes <= 256, op, "uint8 labels cannot hold class ", classes - 1);
  check(type != LabelType::kInt16 || classes <= 32768, op, "int16 labels cannot hold class ", classes - 1);
}

inline Image image_of(const char* op, const Tensor& t) {
  return Image{t.data_ptr(), dtype_of(op, t), t.size(0),   t.size(1),   t.size(2),
               t.size(3),    t.stride(0),     t.stride(1), t.stride(2), t.stride(3)};
}

// The window of height x width at `offset`.
inline Image window_of(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& offset,
                       int64_t height, int64_t width) {
  check_window(op, name, t, offset, height, width);
  Image image = image_of(op, t);
  image.data = static_cast<char*>(image.data) +
               (offset[0] * image.stride_h + offset[1] * image.stride_w) * static_cast<int64_t>(t.element_size());
  image.height = height;
  image.width = width;
  return image;
}

inline int64_t worker_count(int64_t units) { return std::min<int64_t>(units, torch::stable::get_num_threads()); }

// How many neighbouring units to join where none depends on another: the fewest that still balance the threads.
inline int64_t units_together(int64_t units) {
  constexpr int64_t kPartsPerThread = 8;
  return std::max<int64_t>(1, units / (kPartsPerThread * torch::stable::get_num_threads()));
}

using Bytes = std::unique_ptr<char[]>;

// Memory for `count` items of `size` bytes, as torch's allocator would refuse it.
inline Bytes bytes(int64_t count, int64_t size = 1) {
  int64_t total;
  char* memory = nullptr;
  if (!__builtin_mul_overflow(count, size, &total)) memory = new (std::nothrow) char[total];
  if (memory == nullptr) fail("fcn_kernels", "not enough memory: ", count, " x ", size, " bytes of scratch");
  return Bytes(memory);
}

// Calls run(unit, scratch) or run(unit, scratch, worker) for every unit in [0, units) on torch's thread pool. Workers
// take units as they become free; a unit's result does not depend on its worker. A caller that keeps something per
// worker says how many there are: the number of torch's threads may change from one look to the next.
template <typename Run>
void for_each_unit(int64_t units, int64_t scratch_bytes, const Run& run, int64_t workers) {
  if (units <= 0) return;
  const int64_t stride = (scratch_bytes + 127) / 64 * 64;
  const Bytes memory = bytes(workers * stride + 64);
  char* base = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t unit; (unit = next.fetch_add(1)) < units;) {
        if constexpr (std::is_invocable_v<Run, int64_t, void*, int64_t>) {
          run(unit, base + worker * stride, worker);
        } else {
          run(unit, base + worker * stride);
        }
      }
    }
  });
}

template <typename Run>
void for_each_unit(int64_t units, int64_t scratch_bytes, const Run& run) {
  for_each_unit(units, scratch_bytes, run, worker_count(units));
}

}  // namespace fcn
