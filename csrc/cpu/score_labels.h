// Labels of a panel of pixels, as a loss reads them.
#pragma once

#include "gemm.h"

namespace fcn {
namespace FCN_ISA {

FCN_INLINE int64_t label_at(const LabelArgs& args, int64_t pixel) {
  return visit_label(args.type, [&](auto zero) { return (int64_t)((const decltype(zero)*)args.target)[pixel]; });
}

template <typename T>
FCN_INLINE T weight_of(const LabelArgs& args, int64_t label) {
  return args.class_weight ? ((const T*)args.class_weight)[label] : T(1);
}

// The classes of a panel's pixels; -1 for those that are ignored and for columns beyond `count`.
template <typename T>
struct PanelLabels {
  int64_t label[kPanel<T>];

  // Returns the first pixel whose label is neither a class nor ignored, or -1.
  FCN_INLINE int64_t read(const LabelArgs& args, int64_t classes, int64_t pixel, int64_t count) {
    int64_t bad = -1;
    for (int i = 0; i < kPanel<T>; ++i) {
      label[i] = -1;
      if (i >= count) continue;
      const int64_t y = label_at(args, pixel + i);
      if (y == args.ignore_index) continue;
      if (y >= 0 && y < classes) {
        label[i] = y;
      } else if (bad < 0) {
        bad = pixel + i;
      }
    }
    return bad;
  }
};

}  // namespace FCN_ISA
}  // namespace fcn
