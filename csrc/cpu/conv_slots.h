// The channels of a pixel as vectors: a slot is a vector of them.
#pragma once

#include "dtype.h"

namespace fcn {
namespace FCN_ISA {

// The last slot reaches back over the channels of the one before; channels that fill no vector are padded instead.
template <typename T>
struct Slots {
  static constexpr int L = kLanes<T>;
  int64_t channels, count;

  explicit Slots(int64_t c) : channels(c), count((c + L - 1) / L) {}
  bool padded() const { return channels < L; }
  int64_t channel(int64_t slot) const { return padded() || (slot + 1) * L <= channels ? slot * L : channels - L; }
  int64_t lanes() const { return padded() ? channels : L; }
};

// One slot of `count` pixels, `stride` apart, as vectors that stand together.
template <typename T, typename In, typename To>
inline void read_slot(const Slots<T>& slots, int64_t slot, const In* from, int64_t stride, int64_t count, To* to) {
  constexpr int L = kLanes<T>;
  from += slots.channel(slot);
  // A padded vector takes what stands behind the pixel's channels, but nothing behind the last pixel.
  int64_t whole = count;
  while (slots.padded() && whole > 0 && (count - whole) * stride < L - slots.channels) --whole;
  for (int64_t i = 0; i < whole; ++i) store_as(to + i * L, load_as(from + i * stride));
  for (int64_t i = whole; i < count; ++i) {
    for (int64_t l = 0; l < L; ++l) {
      from_arithmetic(l < slots.channels ? (T)to_arithmetic(from[i * stride + l]) : T(0), to + i * L + l);
    }
  }
}

// The way back, of pixels of fewer channels than lanes. `row` holds all of them and a vector more.
template <typename T, typename From, typename In>
inline void write_padded(int64_t channels, const From* from, int64_t count, In* row, In* to, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) store_as(row + i * channels, load_as(from + i * kLanes<T>));
  if (stride == channels) {
    memcpy(to, row, count * channels * sizeof(In));
    return;
  }
  for (int64_t i = 0; i < count; ++i) memcpy(to + i * stride, row + i * channels, channels * sizeof(In));
}

}  // namespace FCN_ISA
}  // namespace fcn
