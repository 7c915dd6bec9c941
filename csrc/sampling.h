// Where an output pixel reads: the geometry shared by every kernel, on the host and on the device.
//
// Per axis, output index o reads the position pos(o) = (num * o + off) / den in exact integers,
//   i = floor(pos), f = pos - i, y[o] = (1 - f) x[i] + f x[i + 1].
// A tap outside the input counts zero (Boundary "zero") or is moved to the border ("clamp").
// A tap whose weight is zero is never read.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define FCN_HOST_DEVICE __host__ __device__
#else
#define FCN_HOST_DEVICE
#endif

namespace fcn {

struct Axis {
  int64_t in;   // input size
  int64_t out;  // output size
  int64_t num;  // pos(o) = (num * o + off) / den, num >= 0, den > 0
  int64_t off;
  int64_t den;

  // floor(pos(o)); may lie outside [0, in - 1].
  FCN_HOST_DEVICE int64_t floor_index(int64_t o) const {
    const int64_t p = num * o + off;
    const int64_t q = p / den;
    return q - (q * den > p);
  }

  // pos(o) - floor(pos(o)) as the exact numerator over den.
  FCN_HOST_DEVICE int64_t remainder(int64_t o) const { return num * o + off - floor_index(o) * den; }

  // The first output o >= 0 with floor(pos(o)) >= i (out when there is none).
  FCN_HOST_DEVICE int64_t first_output(int64_t i) const {
    const int64_t p = i * den - off;  // num * o >= p
    if (p <= 0) return 0;
    if (num == 0) return out;
    const int64_t o = (p + num - 1) / num;
    return o < out ? o : out;
  }

  FCN_HOST_DEVICE int64_t clamp_index(int64_t i) const { return i < 0 ? 0 : (i < in ? i : in - 1); }
};

struct Sampling {
  Axis rows;
  Axis cols;
  bool clamp;
};

// The 11 integers of the operator schemas: [h, H, num, off, den, w, W, num, off, den, clamp].
constexpr int kSamplingLength = 11;

template <typename Ints>
Sampling decode_sampling(const Ints& s) {
  return Sampling{Axis{s[0], s[1], s[2], s[3], s[4]}, Axis{s[5], s[6], s[7], s[8], s[9]}, s[10] != 0};
}

}  // namespace fcn
