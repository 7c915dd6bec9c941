// A 1x1 score convolution as the CPU skins see it: checked arguments, weights packed for the products, the work loop.
#pragma once

#include "skin.h"

namespace fcn {

// Rows of pixels that follow each other at equal distances are one row.
inline Image joined_rows(Image image) {
  if (image.height == 1 || image.stride_h == image.width * image.stride_w) {
    if (image.width == 1) image.stride_w = image.stride_h;
    image.width *= image.height;
    image.height = 1;
  }
  return image;
}

struct ScoreCall {
  ScoreCall(const char* op, const Tensor& x, const Tensor& weight_any, const std::optional<Tensor>& bias_any)
      : dtype(arithmetic_dtype(x.scalar_type())), weight(as_contiguous(weight_any)) {
    check(x.dim() == 4 && x.size(1) > 0, op, "x must be [N, K, H, W], got shape ", shape_of(x));
    check(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) == x.size(1), op, "weight must be [C, ", x.size(1),
          "], got shape ", shape_of(weight));
    check(weight.size(0) < (int64_t{1} << 30), op, "weight has ", weight.size(0), " classes");
    check(weight.scalar_type() == x.scalar_type(), op, "weight must have the dtype of x");
    args.x = joined_rows(image_of(op, x));
    args.classes = weight.size(0);
    args.weight = weight.const_data_ptr();
    if (bias_any.has_value()) {
      bias = as_contiguous(*bias_any);
      check(bias.dim() == 1 && bias.size(0) == args.classes && bias.scalar_type() == x.scalar_type(), op,
            "bias must be [", args.classes, "] in the dtype of x, got shape ", shape_of(bias));
      args.bias = bias.const_data_ptr();
    }
  }

  // Packs the weights for the scores, for the gradient in x, or for both.
  void pack(bool scores, bool gradient) {
    const Kernels& k = kernels();
    if (scores) {
      packed = empty_vector(weight, {k.packed_scores_size(args)}, dtype);
      args.packed = packed.data_ptr();
    }
    if (gradient) {
      packed_transposed = empty_vector(weight, {weight.numel()}, dtype);
      args.packed_transposed = packed_transposed.data_ptr();
    }
    const int64_t units = k.pack_scores_units(args);
    if (weight.numel() < kSmall) {  // not worth waking threads
      for (int64_t unit = 0; unit < units; ++unit) k.pack_scores(args, unit);
    } else {
      for_each_unit(units, 0, [&](int64_t unit, void*) { k.pack_scores(args, unit); });
    }
  }

  static constexpr int64_t kSmall = 1 << 15;
  const ScalarType dtype;  // of the arithmetic
  const Tensor weight;
  Tensor bias, packed, packed_transposed;
  ScoreArgs args{};
};

// The gradients in x, weight and bias; the caller has filled what g is made of.
inline std::tuple<Tensor, Tensor, Tensor> score_gradients(ScoreCall& call, ScoreGradientArgs& args, const Tensor& x,
                                                          bool need_x, bool need_weight) {
  const Kernels& k = kernels();
  const bool scored = args.pixel_grad != nullptr || args.block_loss != nullptr;
  Tensor grad_x = empty_vector(x, {0}, x.scalar_type()), grad_weight = empty_vector(x, {0}, x.scalar_type());
  const Tensor grad_bias = empty_vector(x, {args.score.classes}, x.scalar_type());
  if (need_x) grad_x = empty_image(x, x.size(2), x.size(3), x.scalar_type());
  if (need_weight) grad_weight = empty_vector(x, {args.score.classes, x.size(1)}, x.scalar_type());
  if (x.numel() == 0) {
    if (need_weight) torch::stable::zero_(grad_weight);
    Tensor zero = grad_bias;
    torch::stable::zero_(zero);
    return {grad_x, grad_weight, grad_bias};
  }
  call.pack(scored, need_x);
  args.score = call.args;
  if (need_x) args.grad_x = joined_rows(image_of("score_gradient", grad_x));
  args.slots = k.score_slots(args.score);
  Tensor slot_weight;
  if (need_weight) {
    slot_weight = empty_vector(x, {args.slots, k.score_slot_size(args.score)}, call.dtype);
    args.slot_weight = slot_weight.data_ptr();
    args.grad_weight = grad_weight.data_ptr();
  }
  const Tensor slot_bias = empty_vector(x, {args.slots, args.score.classes}, call.dtype);
  args.slot_bias = slot_bias.data_ptr();
  args.grad_bias = grad_bias.data_ptr();
  for_each_unit(args.slots, k.score_gradient_scratch(args),
                [&](int64_t slot, void* scratch) { k.score_gradient(args, slot, scratch); });
  for_each_unit(k.sum_slots_units(args), 0, [&](int64_t unit, void*) { k.sum_slots(args, unit); });
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace fcn
