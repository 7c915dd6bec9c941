// Label images [N, H, W] of any integer type, as kernels read them.
#pragma once

#include <cstdint>

namespace fcn {
namespace {

enum class LabelKind : int { kUInt8, kInt16, kInt32, kInt64 };

// Label `i` of any integer type.
__device__ inline int64_t label_at(const void* data, LabelKind kind, int64_t i) {
  switch (kind) {
    case LabelKind::kUInt8:
      return static_cast<const uint8_t*>(data)[i];
    case LabelKind::kInt16:
      return static_cast<const int16_t*>(data)[i];
    case LabelKind::kInt32:
      return static_cast<const int32_t*>(data)[i];
    default:
      return static_cast<const int64_t*>(data)[i];
  }
}

// Labels [N, H, W] of any integer type: strides in elements.
struct Labels {
  const void* data;
  LabelKind kind;
  int64_t stride_n, stride_h, stride_w, ignore_index, classes;

  __device__ int64_t at(int64_t n, int64_t y, int64_t x) const {
    return label_at(data, kind, n * stride_n + y * stride_h + x * stride_w);
  }

  __device__ bool known(int64_t label) const { return label >= 0 && label < classes; }
};

// Element i of a label image.
__device__ inline void store_label(void* to, LabelKind kind, int64_t i, int32_t label) {
  switch (kind) {
    case LabelKind::kUInt8:
      static_cast<uint8_t*>(to)[i] = static_cast<uint8_t>(label);
      return;
    case LabelKind::kInt16:
      static_cast<int16_t*>(to)[i] = static_cast<int16_t>(label);
      return;
    case LabelKind::kInt32:
      static_cast<int32_t*>(to)[i] = label;
      return;
    default:
      static_cast<int64_t*>(to)[i] = label;
  }
}

}  // namespace
}  // namespace fcn
