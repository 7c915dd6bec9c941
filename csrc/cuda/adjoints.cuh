// How adjoint.cuh is launched for a gradient that needs no logits.
#pragma once

#include "adjoint.cuh"
#include "launch.cuh"

namespace fcn {

// dx, which must not be empty, from what `source` says of the outputs.
template <typename Source>
void launch_adjoint(const Launch& launch, const Source& source, const Tensor& dx, const Sampling& s) {
  using T = typename Source::Type;
  const int64_t channels = dx.size(1);
  with_adjoint_lanes(s, channels, is_channels_last(dx), [&](auto inner, auto across) {
    const AdjointPlan plan = adjoint_plan(s, dx.size(0), channels, inner.value, across.value);
    adjoint<EachOutput<Source>, T, inner.value, across.value>
        <<<dim3(static_cast<unsigned>(plan.blocks)), warps_of_block(), 0, launch.stream()>>>(
            s, plan, channels, EachOutput<Source>{source}, view_of<T>(dx));
  });
}

}  // namespace fcn
