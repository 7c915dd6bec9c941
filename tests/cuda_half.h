// The half types of CUDA for a host compiler: conversions, rounded to nearest even, are all that kernels ask of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float v) {
    uint32_t all;
    std::memcpy(&all, &v, 4);
    bits = static_cast<uint16_t>(v != v ? 0x7fc0u : (all + 0x7fffu + (all >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t all = uint32_t{bits} << 16;
    float v;
    std::memcpy(&v, &all, 4);
    return v;
  }
};

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float v) {
    const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
    const float size = std::fabs(v);
    if (size != size) {
      bits = 0x7fff;
    } else if (size >= 65520) {
      bits = sign | 0x7c00;
    } else {
      // Multiples of the last place: 2^-24 below the normal numbers, else 2^(exponent - 10).
      int exponent = -14;
      if (size >= 0x1p-14f) exponent = std::ilogb(size);
      const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
      bits = static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
    }
  }
  operator float() const {
    const int exponent = bits >> 10 & 31, rest = bits & 1023;
    const float size = exponent == 31  ? (rest ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(static_cast<float>(rest), -24)
                                       : std::ldexp(static_cast<float>(1024 + rest), exponent - 25);
    return bits & 0x8000 ? -size : size;
  }
};
