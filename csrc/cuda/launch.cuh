// Where and how a kernel is launched: the tensor's device, torch's current stream, errors as exceptions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <type_traits>

#include "../checks.h"
#include "labels.cuh"
#include "reduction.cuh"
#include "segments.cuh"
#include "view.cuh"

// Lives in libtorch_cuda. Weak, so that a build with CUDA still loads into a torch without it.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream) __attribute__((weak));

namespace fcn {

// Makes a tensor's device current while it lives, and knows torch's current stream there.
class Launch {
 public:
  Launch(const char* op, const Tensor& on) : op_(op), guard_(on.get_device_index()) {
    check(aoti_torch_get_current_cuda_stream != nullptr, op, "this torch was built without CUDA");
    void* stream = nullptr;
    check(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream) == AOTI_TORCH_SUCCESS, op,
          "there is no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  void check_call(cudaError_t error) const { check(error == cudaSuccess, op_, "CUDA: ", cudaGetErrorString(error)); }

  // After the last launch.
  void finish() const { check_call(cudaGetLastError()); }

  // Whether a graph records the stream, so that the host must not wait for it.
  bool capturing() const {
    cudaStreamCaptureStatus status;
    check_call(cudaStreamIsCapturing(stream_, &status));
    return status != cudaStreamCaptureStatusNone;
  }

 private:
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Calls f with a value of the element type that dtype names.
template <typename F>
void visit_dtype(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    default:
      fail(op, "expected a float32, float64, float16 or bfloat16 tensor");
  }
}

inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  check(t.is_cuda() && t.get_device_index() == x.get_device_index(), op, "x and ", name, " must be on one device");
}

inline LabelKind kind_of(const char* op, ScalarType dtype, const char* name = "target") {
  switch (dtype) {
    case ScalarType::Byte:
      return LabelKind::kUInt8;
    case ScalarType::Short:
      return LabelKind::kInt16;
    case ScalarType::Int:
      return LabelKind::kInt32;
    case ScalarType::Long:
      return LabelKind::kInt64;
    default:
      fail(op, name, " must be uint8, int16, int32 or int64");
  }
}

// The last of `classes` fits the labels.
inline void check_holds(const char* op, LabelKind kind, int64_t classes) {
  check(kind != LabelKind::kUInt8 || classes <= 256, op, "uint8 labels cannot hold class ", classes - 1);
  check(kind != LabelKind::kInt16 || classes <= 32768, op, "int16 labels cannot hold class ", classes - 1);
}

// The codes of reference.py.
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2, kMeanAll = 3 };

// A tensor's memory and strides.
template <typename T>
View<T> view_of(const Tensor& t) {
  return View<T>{static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline dim3 warps_of_block() { return dim3(kWarp, kWarps); }

inline dim3 blocks_of(int64_t threads) { return dim3(static_cast<unsigned>(divided_up(threads, kThreads))); }

template <typename A>
Tensor arithmetic_vector(const Tensor& like, int64_t size) {
  return empty_vector(like, {size}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
}

template <typename A>
A* data_of(const Tensor& t) {
  return static_cast<A*>(t.data_ptr());
}

// Whether the channels of a pixel can be read `wide` at a time, with aligned accesses.
template <typename T>
bool reads_wide(const View<T>& x, int64_t channels, int wide) {
  return x.stride_c == 1 && channels % wide == 0 && x.stride_n % wide == 0 && x.stride_h % wide == 0 &&
         x.stride_w % wide == 0 && reinterpret_cast<uintptr_t>(x.data) % (sizeof(T) * wide) == 0;
}

// Whether neighbouring columns can be accessed `wide` at a time, aligned.
template <typename T>
bool columns_wide(const View<T>& x, int64_t columns, int wide) {
  return x.stride_w == 1 && columns % wide == 0 && x.stride_n % wide == 0 && x.stride_c % wide == 0 &&
         x.stride_h % wide == 0 && reinterpret_cast<uintptr_t>(x.data) % (sizeof(T) * wide) == 0;
}

// Channels in 16 bytes.
template <typename T>
constexpr int kWideChannels = 16 / sizeof(T);

}  // namespace fcn
