// The raw-pointer interface between the skins (NAME.cpp, which know tensors) and the kernels (NAME.simd.cpp, which
// know vectors). A kernel computes one unit of work; units are a function of the shapes alone, never of the threads,
// so every result has the same bits for any number of threads.
#pragma once

#include <stdint.h>

namespace fcn {

enum class DType : int { kFloat = 0, kDouble = 1, kHalf = 2, kBFloat16 = 3 };

// An [N, C, H, W] tensor: strides in elements.
struct Image {
  void* data;
  DType dtype;
  int64_t batch, channels, height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

// Output columns that share the input interval [index, index + 1], at most kMaxSteps of them: within a segment a
// bilinear value is linear in k, pos = index + fraction + k * step.
constexpr int kMaxSteps = 8;
constexpr int kSegmentPadding = 16;  // count is a multiple of this: any vector width divides it

struct Segments {
  int64_t count;  // padded with segments of length 0
  int steps;      // the longest segment
  double step;    // num / den
  const int64_t* index;
  const int64_t* first;    // first output column
  const int32_t* length;   // number of output columns
  const double* fraction;  // of the first output column
};

// Output rows that share the input interval [index, index + 1], at most kMaxBandRows of them.
constexpr int64_t kMaxBandRows = 8;

struct Band {
  int64_t index;
  int64_t begin, end;
};

// A unit of work: bands [begin, end) of one image. Contributions to input row `side_row` (the first row of the next
// unit, -1: none) are kept apart, so that no two units write the same row.
struct Unit {
  int64_t begin, end;
  int64_t side_row;
};

struct Geometry {
  int64_t in_height, in_width, out_height, out_width;
  bool clamp;
  Segments columns;
  const Band* bands;
  int64_t band_count;
  const double* row_fraction;  // [out_height]
  const Unit* units;
  int64_t unit_count;  // per image
  int64_t max_band_rows;
  bool covers_rows;  // every input row belongs to a unit, so a gradient needs no zero-fill
};

enum class LabelType : int { kUInt8 = 0, kInt16 = 1, kInt32 = 2, kInt64 = 3 };

struct CrossEntropyArgs {
  const Geometry* geometry;
  Image x;
  const void* target;  // [N, H, W] contiguous
  LabelType target_type;
  int64_t ignore_index;
  const void* weight;  // [C] of the arithmetic type, or null
  double weight_sum;   // sum of weight, or C
  double label_smoothing;
  // Reduced losses: per unit, the sum of the pixel losses and of the pixel weights; the first bad label (-1: none).
  double* unit_loss;    // [N * unit_count], or null
  double* unit_weight;  // [N * unit_count]
  int64_t* unit_bad_label;
  // Per-pixel results, of the arithmetic type, or null.
  void* pixel_loss;        // [N, H, W]
  void* pixel_lse;         // [N, H, W], written by the forward
  const void* pixel_grad;  // [N, H, W], the backward's incoming gradient ...
  const void* saved_lse;   // ... and what the forward wrote
  // Gradient of the sum (weighted by pixel_grad where given), of the arithmetic type; rows that no unit reads are the
  // caller's to fill.
  Image gradient;  // data null: not wanted
  void* side;      // [N * unit_count, C, w]
};

struct SoftmaxArgs {
  const Geometry* geometry;
  Image x;
  Image output;
  bool log;
  bool pixelwise;  // x and output are channels_last
};

struct ArgmaxArgs {
  const Geometry* geometry;
  Image x;
  void* labels;  // [N, H, W] contiguous
  LabelType label_type;
  void* confidence;  // [N, H, W] of the arithmetic type, or null
  // A unit of this kernel is so many of the geometry's: neighbours share the rows read, and no pixel depends on
  // another.
  int64_t units_together = 1;
};

struct ConfusionMatrixArgs {
  const Geometry* geometry;
  Image x;
  const void* target;  // [N, H, W] contiguous
  LabelType target_type;
  bool ignores;  // labels of ignore_index do not count
  int64_t ignore_index;
  int64_t* unit_bad_label;  // the first wrong label of each unit (-1: none)
  int64_t units_together;   // as in ArgmaxArgs
};

// A worker's counts: a few tables [C + 1, C] (the last row: labels that do not count), one where they are large.
constexpr int64_t kConfusionTables = 4;
constexpr int64_t confusion_tables(int64_t classes) { return classes <= 32 ? kConfusionTables : 1; }
constexpr int64_t confusion_table_size(int64_t classes) { return (classes + 1) * classes; }

struct BinaryCrossEntropyArgs {
  const Geometry* geometry;
  Image x;
  // [N, C, H, W]: labels 0 and 1, or probabilities (whose dtype the image names).
  Image target;
  bool labels;
  LabelType label_type;
  bool ignores;  // pixels of ignore_index do not count
  int64_t ignore_index;
  const void* pos_weight;  // [C] of the arithmetic type, or null
  // A unit is Geometry's of one plane: [N * C * unit_count]. Per unit: the sum of the pixel losses, the number of
  // pixels that count, the first bad label (-1: none).
  double* unit_loss;
  double* unit_count;
  int64_t* unit_bad_label;
  void* pixel_loss;  // [N, C, H, W] of the arithmetic type, or null
  Image pixel_grad;  // the backward's incoming gradient, of the arithmetic type; data null: none
  Image gradient;    // as in CrossEntropyArgs
  void* side;        // [N * C * unit_count, w]
};

struct UpsampleArgs {
  const Geometry* geometry;
  Image x;
  Image skip;  // its crop window; data null: none
  double skip_scale;
  Image output;
  bool pixelwise;        // x and output are channels_last: the channels of a pixel stand together
  bool sigmoid = false;  // of the result; then there is no skip
};

// What a gradient passes on its way to the upsampled logits, given the output p of the function.
enum class Through : int { kNothing, kSoftmax, kLogSoftmax, kSigmoid };

struct UpsampleBackwardArgs {
  const Geometry* geometry;
  Image grad;
  Image output;    // the gradient of x
  bool pixelwise;  // grad and output are channels_last
  Through through;
  Image function;  // its output, laid out as grad; contiguous for the softmaxes
  void* dot;       // [N, H, W] of the arithmetic type, filled by softmax_dot for the softmaxes
};

struct ConvTransposeArgs {
  Image x;
  Image weight;  // [Cin, Cout / groups, ky, kx] as [batch, channels, height, width]
  int64_t groups, stride_h, stride_w, offset_h, offset_w;
  Image output;      // the crop window, or the gradient that arrives there
  const void* bias;  // [Cout] in the dtype of x, or null
  Image skip;        // its crop window; data null: none
  double skip_scale;
  bool pixelwise;  // the channels of a pixel of output stand together
  void* packed;    // the weights in the kernel's order
  // Backward; data null: not wanted.
  Image grad_x;
  Image grad_weight;
  void* parts;  // of grad_weight, of the arithmetic type, one sum per part of the images' rows
};

struct ConvTransposePlan {
  int64_t packed_bytes, pack_units;
  int64_t units, scratch_bytes;
  int64_t parts_bytes, sum_units;
};

// Copies `from` to `to`, images of the same shape and dtype.
struct CopyArgs {
  Image from, to;
};

// Sums over the images and pixels of every channel, in parts: parts[part][channel].
struct ChannelSumArgs {
  Image x;
  double* parts;
};

// A 1x1 convolution, z[c] = bias[c] + sum_k weight[c][k] x[k] per pixel, and what its operators make of the scores z.
// Units are blocks of pixels of one image, score_units of them.
struct ScoreArgs {
  Image x;  // channels: K
  int64_t classes;
  const void* weight;  // [C, K] contiguous, in the dtype of x
  const void* bias;    // [C] in the dtype of x, or null
  // weight in the order of the products, of the arithmetic type, written by pack_scores: of the scores and of the
  // gradient in x (each null: not wanted).
  void* packed;             // [packed_scores_size]
  void* packed_transposed;  // [C * K]
};

struct ScoreSoftmaxArgs {
  ScoreArgs score;
  Image output;  // [N, C, H, W] with equally spaced pixels
  bool log;
};

struct ScoreArgmaxArgs {
  ScoreArgs score;
  void* labels;  // [N, H, W] contiguous
  LabelType label_type;
};

// How a loss reads its labels.
struct LabelArgs {
  const void* target;  // [N, H, W] contiguous
  LabelType type;
  int64_t ignore_index;
  const void* class_weight;  // [C] of the arithmetic type, or null
  double weight_sum;         // sum of class_weight, or C
  double label_smoothing;
};

struct ScoreCrossEntropyArgs {
  ScoreArgs score;
  LabelArgs labels;
  void* pixel_loss;  // [N, H, W] of the arithmetic type, or null
  void* pixel_lse;   // [N, H, W]
  // Per block of pixels: the sum of their losses; the first bad label (-1: none).
  double* block_loss;
  int64_t* block_bad_label;
};

// Gradients of a loss, or of a softmax, in x, weight and bias. Units are taken in `slots` runs, each of which sums its
// part of the gradients of weight and bias.
struct ScoreGradientArgs {
  ScoreArgs score;
  // Of the cross-entropy: the incoming gradient [N, H, W] with its strides, of the arithmetic type, and the saved lse.
  LabelArgs labels;
  const void* pixel_grad;  // null: of the softmax, or of the loss below
  int64_t grad_width, grad_stride_n, grad_stride_h, grad_stride_w;
  const void* lse;
  // Of the cross-entropy in one pass: every pixel's incoming gradient is `pixel_scale`, and the losses are summed up
  // as in ScoreCrossEntropyArgs.
  double pixel_scale;
  double* block_loss;  // null: no loss
  int64_t* block_bad_label;
  // Of the softmax: its output and the incoming gradient [N, C, H, W].
  Image output, grad;
  bool log;
  // Results.
  Image grad_x;  // in the dtype of x, one pixel stride; data null: not wanted
  int64_t slots;
  void* slot_weight;  // [slots, score_slot_size] of the arithmetic type, or null
  void* slot_bias;    // [slots, C] of the arithmetic type
  void* grad_weight;  // [C, K] and [C] in the dtype of x, written by sum_slots
  void* grad_bias;
};

// Each kernel: bytes of scratch that one worker needs, and unit of work `unit`. The units of the tiled kernels are
// [0, N * Geometry::unit_count); the streaming ones count their own.
struct Kernels {
  const char* name;
  int64_t (*cross_entropy_scratch)(const CrossEntropyArgs&);
  void (*cross_entropy)(const CrossEntropyArgs&, int64_t unit, void* scratch);
  int64_t (*softmax_scratch)(const SoftmaxArgs&);
  void (*softmax)(const SoftmaxArgs&, int64_t unit, void* scratch);
  int64_t (*argmax_scratch)(const ArgmaxArgs&);
  void (*argmax)(const ArgmaxArgs&, int64_t unit, void* scratch);
  int64_t (*confusion_matrix_scratch)(const ConfusionMatrixArgs&);
  void (*confusion_matrix)(const ConfusionMatrixArgs&, int64_t unit, int64_t* counts, void* scratch);
  int64_t (*binary_cross_entropy_scratch)(const BinaryCrossEntropyArgs&);
  void (*binary_cross_entropy)(const BinaryCrossEntropyArgs&, int64_t unit, void* scratch);
  int64_t (*upsample_units)(const UpsampleArgs&);
  int64_t (*upsample_scratch)(const UpsampleArgs&);
  void (*upsample)(const UpsampleArgs&, int64_t unit, void* scratch);
  int64_t (*upsample_backward_units)(const UpsampleBackwardArgs&);
  int64_t (*upsample_backward_scratch)(const UpsampleBackwardArgs&);
  void (*upsample_backward)(const UpsampleBackwardArgs&, int64_t unit, void* scratch);
  void (*softmax_dot)(const UpsampleBackwardArgs&, int64_t unit);  // a unit is a row: [0, N * H)
  // First the weights are packed, then come the units; last the parts of the gradient of the weights are summed.
  ConvTransposePlan (*conv_transpose_plan)(const ConvTransposeArgs&);
  void (*conv_transpose_pack)(const ConvTransposeArgs&, int64_t unit);
  void (*conv_transpose_add)(const ConvTransposeArgs&, int64_t unit, void* scratch);
  ConvTransposePlan (*conv_transpose_backward_plan)(const ConvTransposeArgs&);
  void (*conv_transpose_backward_pack)(const ConvTransposeArgs&, int64_t unit);
  void (*conv_transpose_backward)(const ConvTransposeArgs&, int64_t unit, void* scratch);
  void (*conv_transpose_sum_parts)(const ConvTransposeArgs&, int64_t unit);
  int64_t (*copy_units)(const CopyArgs&);
  void (*copy)(const CopyArgs&, int64_t unit);
  int64_t (*channel_sum_parts)(const ChannelSumArgs&);
  int64_t (*channel_sum_units)(const ChannelSumArgs&);
  void (*channel_sum)(const ChannelSumArgs&, int64_t unit);
  // Scores: pack_scores first, all of its units.
  int64_t (*score_units)(const ScoreArgs&);
  int64_t (*score_blocks)(const ScoreArgs&);
  int64_t (*packed_scores_size)(const ScoreArgs&);  // in elements
  int64_t (*pack_scores_units)(const ScoreArgs&);
  void (*pack_scores)(const ScoreArgs&, int64_t unit);
  int64_t (*score_softmax_scratch)(const ScoreSoftmaxArgs&);
  void (*score_softmax)(const ScoreSoftmaxArgs&, int64_t unit, void* scratch);
  int64_t (*score_argmax_scratch)(const ScoreArgmaxArgs&);
  void (*score_argmax)(const ScoreArgmaxArgs&, int64_t unit, void* scratch);
  int64_t (*score_cross_entropy_scratch)(const ScoreCrossEntropyArgs&);
  void (*score_cross_entropy)(const ScoreCrossEntropyArgs&, int64_t unit, void* scratch);
  int64_t (*score_slots)(const ScoreArgs&);
  int64_t (*score_slot_size)(const ScoreArgs&);  // in elements
  int64_t (*score_gradient_scratch)(const ScoreGradientArgs&);
  void (*score_gradient)(const ScoreGradientArgs&, int64_t slot, void* scratch);
  int64_t (*sum_slots_units)(const ScoreGradientArgs&);
  void (*sum_slots)(const ScoreGradientArgs&, int64_t unit);
};

}  // namespace fcn
