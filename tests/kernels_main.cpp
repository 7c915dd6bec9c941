// Runs the kernels of one instruction set without torch, on numbers from a fixed generator, and prints the results: for
// processors that are only emulated here. Compiled with -DFCN_ISA=<name> and linked to csrc/cpu/*.simd.cpp.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cpu/geometry.h"

namespace fcn {
namespace FCN_ISA {
extern const Kernels kKernels;
}
}  // namespace fcn

using namespace fcn;

namespace {

const Kernels& k = FCN_ISA::kKernels;
uint64_t state = 1;

double uniform() {  // a linear congruential generator (Knuth's MMIX), upper bits, in [-1, 1)
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(static_cast<int64_t>(state) >> 11) / 4503599627370496.0;
}

int64_t bytes_of(DType t) { return t == DType::kDouble ? 8 : t == DType::kFloat ? 4 : 2; }

// Half types are filled with the upper half of the float's bits (bfloat16) or with a half of few digits.
void put(void* data, DType t, int64_t i, double value) {
  if (t == DType::kDouble) {
    static_cast<double*>(data)[i] = value;
    return;
  }
  const float f = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (t == DType::kFloat) {
    static_cast<float*>(data)[i] = f;
  } else if (t == DType::kBFloat16) {
    static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits >> 16);
  } else {  // sign, exponent rebased from 127 to 15, ten digits; small values become zero
    const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
    const uint32_t half = exponent <= 0 ? 0 : static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 1023);
    static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>((bits >> 16 & 0x8000) | half);
  }
}

double get(const void* data, DType t, int64_t i) {
  if (t == DType::kDouble) return static_cast<const double*>(data)[i];
  if (t == DType::kFloat) return static_cast<const float*>(data)[i];
  const uint16_t h = static_cast<const uint16_t*>(data)[i];
  if (t == DType::kBFloat16) {
    const uint32_t bits = static_cast<uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  const int exponent = h >> 10 & 31;
  const double digits = (h & 1023) / 1024.0 + (exponent > 0);
  double value = digits;
  for (int e = exponent > 0 ? exponent : 1; e < 15; ++e) value /= 2;
  for (int e = 15; e < exponent; ++e) value *= 2;
  return h & 0x8000 ? -value : value;
}

struct Tensor4 {
  std::vector<char> memory;
  Image image;
  Tensor4(DType t, int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last, double scale) {
    memory.resize(n * c * h * w * bytes_of(t) + 64);
    image = Image{memory.data(), t, n, c, h, w, c * h * w, h * w, w, 1};
    if (channels_last) image.stride_c = 1, image.stride_w = c, image.stride_h = w * c;
    for (int64_t i = 0; i < n * c * h * w; ++i) put(image.data, t, i, scale * uniform());
  }
  int64_t size() const { return image.batch * image.channels * image.height * image.width; }
  void print(const std::string& name) const {
    std::printf("%s %d", name.c_str(), static_cast<int>(image.dtype));
    for (int64_t i = 0; i < size(); ++i) std::printf(" %.17g", get(image.data, image.dtype, i));
    std::printf("\n");
  }
};

void for_units(int64_t units, int64_t scratch_bytes, const std::function<void(int64_t, void*)>& run) {
  std::vector<char> memory(scratch_bytes + 64);
  void* scratch = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  for (int64_t unit = 0; unit < units; ++unit) run(unit, scratch);
}

void run_case(const std::string& name, const Sampling& sampling, DType dtype, bool channels_last) {
  const int64_t n = 2, c = 19, h = sampling.rows.in, w = sampling.cols.in, H = sampling.rows.out, W = sampling.cols.out;
  const DType arithmetic = dtype == DType::kDouble ? DType::kDouble : DType::kFloat;
  const GeometryPlan plan(sampling, n);
  const Geometry& g = plan.geometry();
  const int64_t units = n * g.unit_count;
  const Tensor4 x(dtype, n, c, h, w, channels_last, 4);

  for (bool log : {false, true}) {
    const Tensor4 y(dtype, n, c, H, W, channels_last, 0);
    const SoftmaxArgs a{&g, x.image, y.image, log};
    for_units(units, k.softmax_scratch(a), [&](int64_t u, void* s) { k.softmax(a, u, s); });
    y.print(name + (log ? " log_softmax" : " softmax"));
  }

  std::vector<int64_t> labels(n * H * W);
  const Tensor4 confidence(arithmetic, n, 1, H, W, false, 0);
  const ArgmaxArgs best{&g, x.image, labels.data(), LabelType::kInt64, confidence.image.data};
  for_units(units, k.argmax_scratch(best), [&](int64_t u, void* s) { k.argmax(best, u, s); });
  confidence.print(name + " confidence");

  const Tensor4 skip(dtype, n, c, H, W, channels_last, 1), sum(dtype, n, c, H, W, channels_last, 0);
  const UpsampleArgs add{&g, x.image, skip.image, 0.5, sum.image, channels_last};
  for_units(k.upsample_units(add), k.upsample_scratch(add), [&](int64_t u, void* s) { k.upsample(add, u, s); });
  sum.print(name + " upsample_add");

  const Tensor4 adjoint(dtype, n, c, h, w, channels_last, 0);
  UpsampleBackwardArgs back{};
  back.geometry = &g, back.grad = skip.image, back.output = adjoint.image, back.pixelwise = channels_last;
  for_units(k.upsample_backward_units(back), k.upsample_backward_scratch(back),
            [&](int64_t u, void* s) { k.upsample_backward(back, u, s); });
  adjoint.print(name + " upsample_backward");

  for (int64_t i = 0; i < n * H * W; ++i) labels[i] = i % 7 == 0 ? -100 : i * 5 % c;
  for (bool pixels : {false, true}) {
    std::vector<double> loss(units), weight(units);
    std::vector<int64_t> bad(units, -1);
    const Tensor4 gradient(arithmetic, n, c, h, w, channels_last, 0), side(arithmetic, units, c, 1, w, false, 0);
    const Tensor4 pixel_loss(arithmetic, n, 1, H, W, false, 0), lse(arithmetic, n, 1, H, W, false, 0);
    CrossEntropyArgs a{};
    a.geometry = &g, a.x = x.image, a.target = labels.data(), a.target_type = LabelType::kInt64;
    a.ignore_index = -100, a.weight_sum = static_cast<double>(c), a.label_smoothing = 0.1;
    a.unit_loss = loss.data(), a.unit_weight = weight.data(), a.unit_bad_label = bad.data();
    if (pixels) {
      a.pixel_loss = pixel_loss.image.data, a.pixel_lse = lse.image.data;
    } else {
      a.gradient = gradient.image, a.side = side.image.data;
    }
    for_units(units, k.cross_entropy_scratch(a), [&](int64_t u, void* s) { k.cross_entropy(a, u, s); });
    if (pixels) {
      pixel_loss.print(name + " losses");
      lse.print(name + " lse");
    } else {
      std::printf("%s loss %d", name.c_str(), static_cast<int>(arithmetic));
      for (double v : loss) std::printf(" %.17g", v);
      std::printf("\n");
      gradient.print(name + " gradient");
    }
  }
}

// Heads of independent classes, and the counts of a confusion matrix.
void run_heads(const std::string& name, const Sampling& sampling, DType dtype) {
  const int64_t n = 2, c = 7, h = sampling.rows.in, w = sampling.cols.in, H = sampling.rows.out, W = sampling.cols.out;
  const DType arithmetic = dtype == DType::kDouble ? DType::kDouble : DType::kFloat;
  const Tensor4 x(dtype, n, c, h, w, false, 4), y(dtype, n, c, H, W, false, 0);
  const GeometryPlan plan(sampling, n), plane_plan(sampling, n * c);

  const UpsampleArgs sigmoid{&plan.geometry(), x.image, Image{}, 0, y.image, false, true};
  for_units(k.upsample_units(sigmoid), k.upsample_scratch(sigmoid),
            [&](int64_t u, void* s) { k.upsample(sigmoid, u, s); });
  y.print(name + " sigmoid");

  std::vector<int64_t> target(n * H * W), counts(confusion_tables(c) * confusion_table_size(c));
  for (int64_t i = 0; i < n * H * W; ++i) target[i] = i % 7 == 0 ? 255 : i * 5 % c;
  std::vector<int64_t> bad(n * c * plane_plan.geometry().unit_count, -1);
  const ConfusionMatrixArgs confusion{&plan.geometry(), x.image, target.data(), LabelType::kInt64, true, 255,
                                      bad.data(),       1};
  for_units(n * plan.geometry().unit_count, k.confusion_matrix_scratch(confusion),
            [&](int64_t u, void* s) { k.confusion_matrix(confusion, u, counts.data(), s); });
  std::printf("%s confusion %d", name.c_str(), static_cast<int>(dtype));
  for (int64_t count : counts) std::printf(" %d", static_cast<int>(count));
  std::printf("\n");

  const Geometry& g = plane_plan.geometry();
  const int64_t units = n * c * g.unit_count;
  std::vector<unsigned char> labels(n * c * H * W);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = i % 11 == 0 ? 255 : i * 3 % 5 < 2;
  std::vector<double> loss(units), counted(units);
  const Tensor4 gradient(arithmetic, n, c, h, w, false, 0), side(arithmetic, units, 1, 1, w, false, 0);
  BinaryCrossEntropyArgs a{};
  a.geometry = &g, a.x = x.image, a.labels = true, a.label_type = LabelType::kUInt8, a.ignores = true;
  a.target = Image{labels.data(), DType::kFloat, n, c, H, W, c * H * W, H * W, W, 1}, a.ignore_index = 255;
  a.unit_loss = loss.data(), a.unit_count = counted.data(), a.unit_bad_label = bad.data();
  a.gradient = gradient.image, a.side = side.image.data;
  for_units(units, k.binary_cross_entropy_scratch(a), [&](int64_t u, void* s) { k.binary_cross_entropy(a, u, s); });
  std::printf("%s binary %d", name.c_str(), static_cast<int>(arithmetic));
  for (double v : loss) std::printf(" %.17g", v);
  std::printf("\n");
  gradient.print(name + " binary_gradient");
}

struct Deconvolution {
  const char* name;
  int64_t in, out, groups, kernel, stride;
};

// A learned transposed convolution with bias and skip, forward and backward.
void run_conv(const Deconvolution& d, const std::string& name, DType dtype, bool channels_last) {
  const int64_t n = 2, h = 6, w = 9, offset = d.kernel > d.stride ? 1 : 0;
  const int64_t H = (h - 1) * d.stride + d.kernel - 2 * offset, W = (w - 1) * d.stride + d.kernel - 2 * offset;
  const Tensor4 x(dtype, n, d.in, h, w, channels_last, 0.5), skip(dtype, n, d.out, H, W, channels_last, 1);
  const Tensor4 weight(dtype, d.in, d.out / d.groups, d.kernel, d.kernel, false, 0.3);
  const Tensor4 bias(dtype, 1, 1, 1, d.out, false, 1), y(dtype, n, d.out, H, W, channels_last, 0);
  ConvTransposeArgs a{};
  a.x = x.image, a.weight = weight.image, a.groups = d.groups, a.stride_h = a.stride_w = d.stride;
  a.offset_h = a.offset_w = offset, a.pixelwise = channels_last;
  ConvTransposeArgs b = a;
  a.output = y.image, a.bias = bias.image.data, a.skip = skip.image, a.skip_scale = 0.5;
  const ConvTransposePlan plan = k.conv_transpose_plan(a);
  for_units(1, plan.packed_bytes, [&](int64_t, void* packed) {
    a.packed = packed;
    for (int64_t unit = 0; unit < plan.pack_units; ++unit) k.conv_transpose_pack(a, unit);
    for_units(plan.units, plan.scratch_bytes, [&](int64_t u, void* s) { k.conv_transpose_add(a, u, s); });
  });
  y.print(name + " conv_transpose_add");

  const Tensor4 grad_x(dtype, n, d.in, h, w, channels_last, 0);
  const Tensor4 grad_weight(dtype, d.in, d.out / d.groups, d.kernel, d.kernel, false, 0);
  b.output = skip.image, b.grad_x = grad_x.image, b.grad_weight = grad_weight.image;
  const ConvTransposePlan back = k.conv_transpose_backward_plan(b);
  std::vector<char> parts(back.parts_bytes + 64);
  b.parts = parts.data() + (64 - reinterpret_cast<uintptr_t>(parts.data()) % 64) % 64;
  for_units(1, back.packed_bytes, [&](int64_t, void* packed) {
    b.packed = packed;
    for (int64_t unit = 0; unit < back.pack_units; ++unit) k.conv_transpose_backward_pack(b, unit);
    for_units(back.units, back.scratch_bytes, [&](int64_t u, void* s) { k.conv_transpose_backward(b, u, s); });
    for (int64_t unit = 0; unit < back.sum_units; ++unit) k.conv_transpose_sum_parts(b, unit);
  });
  grad_x.print(name + " conv_transpose_grad_x");
  grad_weight.print(name + " conv_transpose_grad_weight");
}

void run_scores(const std::string& name, DType dtype, bool channels_last) {
  const int64_t n = 2, channels = 300, c = 19, h = 5, w = 9;
  const DType arithmetic = dtype == DType::kDouble ? DType::kDouble : DType::kFloat;
  const Tensor4 x(dtype, n, channels, h, w, channels_last, 1), y(dtype, n, c, h, w, channels_last, 0);
  const Tensor4 weight(dtype, 1, c, 1, channels, false, 0.1), bias(dtype, 1, 1, 1, c, false, 1);
  ScoreArgs score{x.image, c, weight.image.data, bias.image.data, nullptr, nullptr};
  const Tensor4 packed(arithmetic, 1, 1, 1, k.packed_scores_size(score), false, 0);
  const Tensor4 packed_transposed(arithmetic, 1, c, 1, channels, false, 0);
  score.packed = packed.image.data, score.packed_transposed = packed_transposed.image.data;
  for (int64_t unit = 0; unit < k.pack_scores_units(score); ++unit) k.pack_scores(score, unit);
  const int64_t units = k.score_units(score);

  for (bool log : {false, true}) {
    const ScoreSoftmaxArgs a{score, y.image, log};
    for_units(units, k.score_softmax_scratch(a), [&](int64_t u, void* s) { k.score_softmax(a, u, s); });
    y.print(name + (log ? " log_softmax" : " softmax"));
  }

  std::vector<int64_t> labels(n * h * w), bad(units, -1);
  const ScoreArgmaxArgs best{score, labels.data(), LabelType::kInt64};
  for_units(units, k.score_argmax_scratch(best), [&](int64_t u, void* s) { k.score_argmax(best, u, s); });
  std::printf("%s argmax %d", name.c_str(), static_cast<int>(dtype));
  for (int64_t label : labels) std::printf(" %d", static_cast<int>(label));
  std::printf("\n");

  for (int64_t i = 0; i < n * h * w; ++i) labels[i] = i % 7 == 0 ? -100 : i * 5 % c;
  const LabelArgs args{labels.data(), LabelType::kInt64, -100, nullptr, static_cast<double>(c), 0.1};
  std::vector<double> loss(k.score_blocks(score));
  bad.resize(loss.size());
  const Tensor4 pixel_loss(arithmetic, n, 1, h, w, false, 0), lse(arithmetic, n, 1, h, w, false, 0);
  const ScoreCrossEntropyArgs a{score, args, pixel_loss.image.data, lse.image.data, loss.data(), bad.data()};
  for_units(units, k.score_cross_entropy_scratch(a), [&](int64_t u, void* s) { k.score_cross_entropy(a, u, s); });
  pixel_loss.print(name + " losses");

  const Tensor4 grad(arithmetic, n, 1, h, w, false, 1), grad_x(dtype, n, channels, h, w, channels_last, 0);
  const Tensor4 grad_weight(dtype, 1, c, 1, channels, false, 0), grad_bias(dtype, 1, 1, 1, c, false, 0);
  ScoreGradientArgs g{};
  g.score = score, g.labels = args, g.pixel_grad = grad.image.data, g.lse = lse.image.data;
  g.grad_width = w, g.grad_stride_n = h * w, g.grad_stride_h = w, g.grad_stride_w = 1;
  g.grad_x = grad_x.image, g.slots = k.score_slots(score);
  const Tensor4 slots(arithmetic, 1, 1, g.slots, k.score_slot_size(score), false, 0);
  const Tensor4 bias_slots(arithmetic, 1, 1, g.slots, c, false, 0);
  g.slot_weight = slots.image.data, g.slot_bias = bias_slots.image.data;
  g.grad_weight = grad_weight.image.data, g.grad_bias = grad_bias.image.data;
  for_units(g.slots, k.score_gradient_scratch(g), [&](int64_t u, void* s) { k.score_gradient(g, u, s); });
  for (int64_t unit = 0; unit < k.sum_slots_units(g); ++unit) k.sum_slots(g, unit);
  grad_x.print(name + " grad_x");
  grad_weight.print(name + " grad_weight");
  grad_bias.print(name + " grad_bias");
}

}  // namespace

int main() {
  // F.interpolate by 8; FCN's transposed convolution by 2 with its zero boundary; a ratio of 5/3; down to 2/3.
  const std::pair<const char*, Sampling> samplings[] = {
      {"by8", {{5, 40, 2, -7, 16}, {9, 72, 2, -7, 16}, true}},
      {"fcn2", {{6, 14, 2, -3, 4}, {18, 38, 2, -3, 4}, false}},
      {"ratio", {{9, 15, 6, -2, 10}, {12, 20, 6, -2, 10}, true}},
      {"down", {{9, 6, 6, 1, 4}, {12, 8, 6, 1, 4}, true}},
  };
  const std::pair<const char*, DType> dtypes[] = {
      {"float", DType::kFloat}, {"double", DType::kDouble}, {"half", DType::kHalf}, {"bfloat16", DType::kBFloat16}};
  for (const auto& d : dtypes) {
    for (bool channels_last : {false, true}) {
      run_scores(std::string("score ") + d.first + (channels_last ? " channels_last" : " contiguous"), d.second,
                 channels_last);
    }
  }
  // Dense with a partial tap, depthwise, in groups, and with a kernel of the stride, which is a product of matrices.
  const Deconvolution deconvolutions[] = {
      {"dense", 5, 6, 1, 5, 2}, {"depthwise", 7, 7, 7, 16, 8}, {"groups", 6, 4, 2, 4, 2}, {"patches", 9, 7, 1, 2, 2}};
  for (const auto& conv : deconvolutions) {
    for (const auto& d : dtypes) {
      for (bool channels_last : {false, true}) {
        run_conv(conv, std::string(conv.name) + " " + d.first + (channels_last ? " channels_last" : " contiguous"),
                 d.second, channels_last);
      }
    }
  }
  for (const auto& s : samplings) {
    for (const auto& d : dtypes) {
      run_heads(std::string(s.first) + " " + d.first + " contiguous", s.second, d.second);
      for (bool channels_last : {false, true}) {
        run_case(std::string(s.first) + " " + d.first + (channels_last ? " channels_last" : " contiguous"), s.second,
                 d.second, channels_last);
      }
    }
  }
}
