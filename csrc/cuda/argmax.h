// Labels of upsampled logits, for whatever needs them.
#pragma once

#include "../checks.h"

namespace fcn {

// labels [N, H, W] of any integer type, contiguous, on x's device; x has at least one class, and both have been
// checked.
void find_labels(const char* op, const Tensor& x, const Sampling& s, const Tensor& labels);

}  // namespace fcn
