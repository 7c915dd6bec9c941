// What every skin checks before it touches memory, and how it reads tensors. The public Python functions check first
// and say more; these checks hold for whoever calls the raw operators.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "sampling.h"

namespace fcn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Args>
[[noreturn]] void fail(const char* op, const Args&... args) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << args);
  throw std::runtime_error(message.str());
}

template <typename... Args>
void check(bool condition, const char* op, const Args&... args) {
  if (!condition) fail(op, args...);
}

// Shapes for messages, as text only where it is written: making it would take longer than all that a check looks at.
struct Shape {
  const Tensor& of;
};
struct Sizes {
  const std::vector<int64_t>& of;
};
inline Shape shape_of(const Tensor& t) { return Shape{t}; }
inline Sizes shape_of(const std::vector<int64_t>& size) { return Sizes{size}; }

inline std::ostream& operator<<(std::ostream& s, const Sizes& sizes) {
  s << "[";
  for (size_t i = 0; i < sizes.of.size(); ++i) s << (i ? ", " : "") << sizes.of[i];
  return s << "]";
}
inline std::ostream& operator<<(std::ostream& s, const Shape& shape) {
  std::vector<int64_t> size(shape.of.dim());
  for (int64_t i = 0; i < shape.of.dim(); ++i) size[i] = shape.of.size(i);
  return s << shape_of(size);
}

constexpr int64_t kLargestSize = (int64_t{1} << 31) - 1;
constexpr int64_t kLargestPosition = int64_t{1} << 62;

// a * b + c for numbers that are not negative, or kLargestPosition where that is larger.
inline int64_t bounded(int64_t a, int64_t b, int64_t c) {
  int64_t product, sum;
  if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum)) return kLargestPosition;
  return sum < kLargestPosition ? sum : kLargestPosition;
}

inline Sampling checked_sampling(const char* op, const std::vector<int64_t>& encoded) {
  check(encoded.size() == kSamplingLength, op, "sampling has ", encoded.size(), " integers, expected ",
        kSamplingLength);
  const Sampling s = decode_sampling(encoded);
  for (const Axis& a : {s.rows, s.cols}) {
    check(a.in > 0 && a.out > 0 && a.den > 0 && a.num >= 0, op, "sampling must have positive sizes and denominators");
    check(a.in <= kLargestSize && a.out <= kLargestSize, op, "sampling of ", a.in, " to ", a.out,
          " pixels, expected at most ", kLargestSize);
    check(a.off > -kLargestPosition && bounded(a.num, a.out, a.off < 0 ? -a.off : a.off) < kLargestPosition &&
              bounded(a.den, a.in + 2, 0) < kLargestPosition,
          op, "sampling at (", a.num, " o + ", a.off, ") / ", a.den, " overflows 64-bit positions");
  }
  return s;
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

inline void check_image(const char* op, const char* name, const Tensor& t, int64_t height, int64_t width) {
  check(t.dim() == 4, op, name, " must be [N, C, H, W], got shape ", shape_of(t));
  check(t.size(2) == height && t.size(3) == width, op, name, " is ", t.size(2), " x ", t.size(3),
        " but the sampling expects ", height, " x ", width);
}

// Labels [N, H, W] for the outputs of a sampling of x.
inline void check_label_image(const char* op, const Tensor& target, const Tensor& x, const Sampling& sampling) {
  const int64_t height = sampling.rows.out, width = sampling.cols.out;
  check(target.dim() == 3 && target.size(0) == x.size(0) && target.size(1) == height && target.size(2) == width, op,
        "target must be [", x.size(0), ", ", height, ", ", width, "], got ", shape_of(target));
}

// Says that target[where] = label is neither a class nor ignored.
[[noreturn]] inline void fail_on_label(const char* op, const std::vector<int64_t>& where, int64_t label,
                                       int64_t classes, std::optional<int64_t> ignore_index) {
  if (!ignore_index.has_value()) {
    fail(op, "target", shape_of(where), " = ", label, " is not a class (0 to ", classes - 1,
         "); ignore_index= names a label that does not count");
  }
  fail(op, "target", shape_of(where), " = ", label, " is neither a class (0 to ", classes - 1, ") nor ignore_index (",
       *ignore_index, ")");
}

// The window of height x width at `offset`.
inline void check_window(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& offset,
                         int64_t height, int64_t width) {
  check(offset.size() == 2 && offset[0] >= 0 && offset[1] >= 0 && offset[0] <= t.size(2) - height &&
            offset[1] <= t.size(3) - width,
        op, "the window of ", height, " x ", width, " leaves the ", name, " of ", t.size(2), " x ", t.size(3));
}

inline bool is_channels_last(const Tensor& t) {
  if (t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0) return false;
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// The tensor that make() allocates. The stable ABI of torch 2.11 does not hand on what torch says when it cannot.
template <typename Make>
Tensor allocated(const std::vector<int64_t>& size, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    fail("fcn_kernels", "not enough memory for a tensor of ", shape_of(size));
  }
}

// Strides of a dense tensor, as torch chooses them (those of an empty one too).
inline std::vector<int64_t> strides_of(const std::vector<int64_t>& size, bool channels_last) {
  if (channels_last) return {size[1] * size[2] * size[3], 1, size[1] * size[3], size[1]};
  std::vector<int64_t> strides(size.size(), 1);
  for (size_t i = size.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(size[i], 1);
  return strides;
}

// A new tensor on the device of `like`. torch::stable::empty looks operators up by name, at a microsecond or two for
// each tensor; the shim below does not.
inline Tensor empty_dense(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype, bool channels_last) {
  int64_t bytes = 8;
  bool fits = true;
  for (int64_t n : size) fits = fits && !__builtin_mul_overflow(bytes, std::max<int64_t>(n, 1), &bytes);
  return allocated(size, [&] {
    STD_TORCH_CHECK(fits, "more bytes than an int64 counts");
    const std::vector<int64_t> strides = strides_of(size, channels_last);
    int32_t device_type, device_index;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
    const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
    AtenTensorHandle tensor;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(),
                                                           strides.data(), code, device_type, device_index, &tensor));
    return Tensor(tensor);
  });
}

// [N, channels, height, width], laid out as `like`: channels_last if that is, else contiguous.
inline Tensor empty_image(const Tensor& like, int64_t channels, int64_t height, int64_t width, ScalarType dtype) {
  return empty_dense(like, {like.size(0), channels, height, width}, dtype, is_channels_last(like));
}

inline Tensor empty_image(const Tensor& like, int64_t height, int64_t width, ScalarType dtype) {
  return empty_image(like, like.size(1), height, width, dtype);
}

// `out` must be what the operator would allocate: for [N, ...] of this size, dtype and layout.
inline void check_out(const char* op, const Tensor& out, const Tensor& like, const std::vector<int64_t>& size,
                      ScalarType dtype, bool channels_last) {
  bool same =
      out.dim() == static_cast<int64_t>(size.size()) && out.scalar_type() == dtype && out.device() == like.device();
  for (size_t i = 0; same && i < size.size(); ++i) same = out.size(i) == size[i];
  check(same, op, "out must have the shape, dtype and device of the result, got shape ", shape_of(out));
  if (out.numel() == 0) return;
  const std::vector<int64_t> strides = strides_of(size, channels_last);
  for (size_t i = 0; i < size.size(); ++i) {
    check(out.stride(i) == strides[i] || (i == 0 && size[0] == 1), op,
          "out must be laid out as the result: ", channels_last ? "channels_last, as x is" : "contiguous");
  }
}

// `out` where the caller gave one, else a new [N, channels, height, width] laid out as `like`.
inline Tensor image_or(const char* op, const Tensor* out, const Tensor& like, int64_t channels, int64_t height,
                       int64_t width) {
  const ScalarType dtype = like.scalar_type();
  if (!out) return empty_image(like, channels, height, width, dtype);
  check_out(op, *out, like, {like.size(0), channels, height, width}, dtype, is_channels_last(like));
  return *out;
}

// `t`, or a copy of that kind.
inline Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  return allocated({t.numel()}, [&] { return torch::stable::contiguous(t); });
}

inline Tensor as_dtype(const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() == dtype) return t;
  return allocated({t.numel()}, [&] { return torch::stable::to(t, dtype); });
}

inline Tensor empty_vector(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype) {
  return empty_dense(like, size, dtype, false);
}

// `out` where the caller gave one, else a new contiguous tensor.
inline Tensor vector_or(const char* op, const Tensor* out, const Tensor& like, const std::vector<int64_t>& size,
                        ScalarType dtype) {
  if (!out) return empty_vector(like, size, dtype);
  check_out(op, *out, like, size, dtype, false);
  return *out;
}

// The dtype that sums are kept in: float for the half types.
inline ScalarType arithmetic_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace fcn
