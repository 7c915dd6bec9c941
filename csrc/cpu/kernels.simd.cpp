// The table of one instruction set.
#include "kernels.h"

#include "simd.h"

namespace fcn {
namespace FCN_ISA {

int64_t cross_entropy_scratch(const CrossEntropyArgs&);
void cross_entropy(const CrossEntropyArgs&, int64_t, void*);
int64_t softmax_scratch(const SoftmaxArgs&);
void softmax(const SoftmaxArgs&, int64_t, void*);
int64_t argmax_scratch(const ArgmaxArgs&);
void argmax(const ArgmaxArgs&, int64_t, void*);
int64_t confusion_matrix_scratch(const ConfusionMatrixArgs&);
void confusion_matrix(const ConfusionMatrixArgs&, int64_t, int64_t*, void*);
int64_t binary_cross_entropy_scratch(const BinaryCrossEntropyArgs&);
void binary_cross_entropy(const BinaryCrossEntropyArgs&, int64_t, void*);
int64_t upsample_units(const UpsampleArgs&);
int64_t upsample_scratch(const UpsampleArgs&);
void upsample(const UpsampleArgs&, int64_t, void*);
int64_t upsample_backward_units(const UpsampleBackwardArgs&);
int64_t upsample_backward_scratch(const UpsampleBackwardArgs&);
void upsample_backward(const UpsampleBackwardArgs&, int64_t, void*);
void softmax_dot(const UpsampleBackwardArgs&, int64_t);
ConvTransposePlan conv_transpose_plan(const ConvTransposeArgs&);
void conv_transpose_pack(const ConvTransposeArgs&, int64_t);
void conv_transpose_add(const ConvTransposeArgs&, int64_t, void*);
ConvTransposePlan conv_transpose_backward_plan(const ConvTransposeArgs&);
void conv_transpose_backward_pack(const ConvTransposeArgs&, int64_t);
void conv_transpose_backward(const ConvTransposeArgs&, int64_t, void*);
void conv_transpose_sum_parts(const ConvTransposeArgs&, int64_t);
int64_t copy_units(const CopyArgs&);
void copy(const CopyArgs&, int64_t);
int64_t channel_sum_parts(const ChannelSumArgs&);
int64_t channel_sum_units(const ChannelSumArgs&);
void channel_sum(const ChannelSumArgs&, int64_t);
int64_t score_units(const ScoreArgs&);
int64_t score_blocks(const ScoreArgs&);
int64_t packed_scores_size(const ScoreArgs&);
int64_t pack_scores_units(const ScoreArgs&);
void pack_scores(const ScoreArgs&, int64_t);
int64_t score_softmax_scratch(const ScoreSoftmaxArgs&);
void score_softmax(const ScoreSoftmaxArgs&, int64_t, void*);
int64_t score_argmax_scratch(const ScoreArgmaxArgs&);
void score_argmax(const ScoreArgmaxArgs&, int64_t, void*);
int64_t score_cross_entropy_scratch(const ScoreCrossEntropyArgs&);
void score_cross_entropy(const ScoreCrossEntropyArgs&, int64_t, void*);
int64_t score_slots(const ScoreArgs&);
int64_t score_slot_size(const ScoreArgs&);
int64_t score_gradient_scratch(const ScoreGradientArgs&);
void score_gradient(const ScoreGradientArgs&, int64_t, void*);
int64_t sum_slots_units(const ScoreGradientArgs&);
void sum_slots(const ScoreGradientArgs&, int64_t);

#define FCN_STRING(x) #x
#define FCN_NAME(x) FCN_STRING(x)

extern const Kernels kKernels;
const Kernels kKernels = {
    FCN_NAME(FCN_ISA),
    cross_entropy_scratch,
    cross_entropy,
    softmax_scratch,
    softmax,
    argmax_scratch,
    argmax,
    confusion_matrix_scratch,
    confusion_matrix,
    binary_cross_entropy_scratch,
    binary_cross_entropy,
    upsample_units,
    upsample_scratch,
    upsample,
    upsample_backward_units,
    upsample_backward_scratch,
    upsample_backward,
    softmax_dot,
    conv_transpose_plan,
    conv_transpose_pack,
    conv_transpose_add,
    conv_transpose_backward_plan,
    conv_transpose_backward_pack,
    conv_transpose_backward,
    conv_transpose_sum_parts,
    copy_units,
    copy,
    channel_sum_parts,
    channel_sum_units,
    channel_sum,
    score_units,
    score_blocks,
    packed_scores_size,
    pack_scores_units,
    pack_scores,
    score_softmax_scratch,
    score_softmax,
    score_argmax_scratch,
    score_argmax,
    score_cross_entropy_scratch,
    score_cross_entropy,
    score_slots,
    score_slot_size,
    score_gradient_scratch,
    score_gradient,
    sum_slots_units,
    sum_slots,
};

}  // namespace FCN_ISA
}  // namespace fcn
