// The gradient of the weights of a transposed convolution is summed in parts of the images' pixels, for the threads'
// sake; how many there are depends on the work alone.
#pragma once

#include "dtype.h"

namespace fcn {
namespace FCN_ISA {

constexpr int64_t kUnitsWanted = 16;
constexpr int64_t kPartPixels = 1 << 10;  // that are worth a sum of their own
constexpr int64_t kSumPixels = 1 << 13;   // products that one sum takes before it is added to the others

// Of `most` rows or blocks with so many pixels in all, beside `units` of work that need no parts.
inline int64_t sum_parts(int64_t units, int64_t pixels, int64_t most) {
  const int64_t wanted = (kUnitsWanted + units - 1) / units, worth = pixels / kPartPixels + 1;
  const int64_t parts = wanted < worth ? wanted : worth;
  return parts < most ? parts : most;
}

}  // namespace FCN_ISA
}  // namespace fcn
