// How many steps of an output, or taps of a kernel, depthwise loops hold in registers.
#pragma once

namespace fcn {
namespace FCN_ISA {

constexpr int kMostSteps = 9;  // whose products make an output without a sum in memory: 3x3 at stride 1
#if defined(__AVX512F__)
constexpr int kBothSteps = 8;  // that one walk over the gradient serves: their weights and their sums
#else
constexpr int kBothSteps = 4;
#endif

}  // namespace FCN_ISA
}  // namespace fcn
