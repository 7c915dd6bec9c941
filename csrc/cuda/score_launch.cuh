// How the kernels over scores are launched: checked arguments, layouts, tiles, and the split of long sums.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>

#include "launch.cuh"
#include "product.cuh"
#include "score.cuh"

namespace fcn {

// Blocks that fill a GPU, two for each multiprocessor of an H200. A constant, so that all devices add alike.
constexpr int64_t kEnoughBlocks = 264;
constexpr int64_t kShortestSum = 128;  // features that are worth a block of their own
constexpr int64_t kSumMultiple = 64;   // of every tile's depth

// An image [N, C, H, W] as [N, C, P]: strides in elements, of which those of single elements are 0.
struct Flat {
  int64_t stride_n, stride_c, stride_p;
  bool joined;  // rows follow each other at equal distances

  explicit Flat(const Tensor& t)
      : stride_n(t.size(0) > 1 ? t.stride(0) : 0),
        stride_c(t.size(1) > 1 ? t.stride(1) : 0),
        stride_p(t.size(3) > 1   ? t.stride(3)
                 : t.size(2) > 1 ? t.stride(2)
                                 : 0),
        joined(t.size(2) == 1 || t.size(3) == 1 || t.stride(2) == t.size(3) * t.stride(3)) {}
};

// Into how many parts a sum is split so that blocks are enough, and the length of a part.
struct Splits {
  int64_t count, chunk;

  Splits(int64_t blocks, int64_t length) {
    count = std::max<int64_t>(1, std::min(kEnoughBlocks / std::max<int64_t>(blocks, 1), length / kShortestSum));
    chunk = divided_up(divided_up(length, count), kSumMultiple) * kSumMultiple;
    count = divided_up(length, chunk);
  }
};

constexpr int kPartTileRows = FewClasses<float>::kBlockRows;

template <typename Tile_>
struct Use {
  using Tile = Tile_;
};

// The checked arguments of a call. Types outside the anonymous namespace share one binary with those of ../cpu, and
// must not have their names.
struct ScoreInputs {
  ScoreInputs(const char* name, const Tensor& x_any, const Tensor& weight_any, const std::optional<Tensor>& bias_any)
      : op(name), x(x_any), weight(as_contiguous(weight_any)) {
    check(x.dim() == 4 && x.size(1) > 0, op, "x must be [N, K, H, W], got shape ", shape_of(x));
    check(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) == x.size(1), op, "weight must be [C, ", x.size(1),
          "], got shape ", shape_of(weight));
    check(weight.size(0) < (int64_t{1} << 30), op, "weight has ", weight.size(0), " classes");
    check(weight.scalar_type() == x.scalar_type(), op, "weight must have the dtype of x");
    check_device(op, "weight", weight, x);
    if (bias_any.has_value()) {
      bias = as_contiguous(*bias_any);
      check(bias.dim() == 1 && bias.size(0) == weight.size(0) && bias.scalar_type() == x.scalar_type(), op,
            "bias must be [", weight.size(0), "] in the dtype of x, got shape ", shape_of(bias));
      check_device(op, "bias", bias, x);
      has_bias = true;
    }
    batch = x.size(0);
    features = x.size(1);
    pixels = x.size(2) * x.size(3);
    classes = static_cast<int>(weight.size(0));
    if (!set_lines()) {
      x = as_contiguous(x);
      set_lines();
    }
  }

  // Whether x can be read in place, and then in lines of pixels or of channels.
  bool set_lines() {
    const Flat flat(x);
    const bool pixel_lines = pixels <= 1 || flat.stride_p == 1, channel_lines = features == 1 || flat.stride_c == 1;
    channels_inside = channel_lines && !(pixel_lines && pixels > 1);
    return flat.joined && (pixel_lines || channel_lines);
  }

  // x as rows of features.
  template <typename T>
  Operand<T> pixel_rows() const {
    const Flat flat(x);
    return operand<T>(x.data_ptr(), flat.stride_n, flat.stride_p, flat.stride_c, pixels, channels_inside);
  }

  template <typename T>
  ScoreOperands<T> operands() const {
    return ScoreOperands<T>{pixel_rows<T>(), operand<T>(weight.data_ptr(), 0, features, 1, classes, true),
                            bias_of<T>(),    features,
                            classes,         0};
  }

  template <typename T>
  const T* bias_of() const {
    return has_bias ? static_cast<const T*>(bias.data_ptr()) : nullptr;
  }

  // Of the features, where pixels are few.
  Splits splits() const {
    return Splits(batch * divided_up(pixels, kPartTileRows) * divided_up(classes, kSlice), features);
  }

  const char* op;
  Tensor x, weight, bias;
  bool has_bias = false, channels_inside = false;
  int64_t batch, features, pixels;
  int classes;
};

// Calls f with the tile that suits the classes.
template <typename T, typename F>
void with_score_tile(int classes, const F& f) {
  if constexpr (!std::is_same_v<T, double>) {
    if (classes > kSlice) return f(Use<ManyClasses<T>>());
  }
  f(Use<FewClasses<T>>());
}

inline dim3 product_block() { return dim3(kWarp, kProductWarps); }

// Launches a product with enough blocks for its splits and groups.
template <typename Tile, typename Out>
void start_product(const Launch& launch, const Product<typename Tile::TA, typename Tile::TB>& in, int64_t splits,
                   const ProductOutput<Out>& to) {
  const int64_t blocks = row_tiles<Tile>(in.a.outer) * column_tiles<Tile>(in.b.outer) * in.groups * splits;
  product_tiles<Tile><<<static_cast<unsigned>(blocks), product_block(), 0, launch.stream()>>>(in, to);
  launch.finish();
}

// The gradient in the scores, in the dtype of the arithmetic and the order of x: lines of pixels or of classes, padded
// so that every line can be read 16 bytes at a time.
struct ScoreGradient {
  explicit ScoreGradient(const ScoreInputs& call) {
    constexpr int64_t kPadded = 4;
    const int64_t line = call.channels_inside ? call.classes : call.pixels;
    const int64_t lines = call.channels_inside ? call.pixels : call.classes;
    const int64_t pitch = divided_up(line, kPadded) * kPadded;
    memory = empty_vector(call.x, {call.batch, lines, pitch}, arithmetic_dtype(call.x.scalar_type()));
    stride_n = lines * pitch;
    stride_c = call.channels_inside ? 1 : pitch;
    stride_p = call.channels_inside ? pitch : 1;
  }

  Tensor memory;
  int64_t stride_n, stride_c, stride_p;
};

using ScoreGradients = std::tuple<Tensor, Tensor, Tensor>;  // in x, weight and bias

// Where they are written; zero where there are no pixels.
inline ScoreGradients empty_score_gradients(const ScoreInputs& call, const Tensor& x, bool need_x, bool need_weight) {
  const ScalarType dtype = x.scalar_type();
  const Tensor grad_x = need_x ? empty_image(x, x.size(2), x.size(3), dtype) : empty_vector(x, {0}, dtype);
  Tensor grad_weight =
      need_weight ? empty_vector(x, {call.classes, call.features}, dtype) : empty_vector(x, {0}, dtype);
  Tensor grad_bias = empty_vector(x, {call.classes}, dtype);
  if (x.numel() == 0) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  }
  return {grad_x, grad_weight, grad_bias};
}

// Writes those that are wanted, and returns them.
ScoreGradients score_gradients(const Launch& launch, const ScoreInputs& call, const ScoreGradient& g,
                               const ScoreGradients& to);

// The parts of the scores that each split of the features gives, [splits, N, P, C] in the dtype of the arithmetic.
Tensor score_parts_of(const Launch& launch, const ScoreInputs& call, const Splits& splits);

// The warps that run an epilogue.
template <typename T>
int64_t score_warps(const ScoreInputs& call) {
  if (call.splits().count > 1) return call.batch * divided_up(call.pixels, kPartRows);
  int64_t warps = 0;
  with_score_tile<T>(call.classes, [&](auto use) {
    warps = call.batch * row_tiles<typename decltype(use)::Tile>(call.pixels) * kProductWarps;
  });
  return warps;
}

// Runs an epilogue over the scores.
template <typename T, typename Epilogue>
void start_scores(const Launch& launch, const ScoreInputs& call, const Epilogue& epilogue) {
  using A = ArithmeticOf<T>;
  const Splits splits = call.splits();
  if (splits.count > 1) {
    const Tensor parts = score_parts_of(launch, call, splits);
    const int64_t tiles = divided_up(call.pixels, kPartRows);
    score_parts<<<static_cast<unsigned>(call.batch * tiles), kWarp, 0, launch.stream()>>>(
        data_of<const A>(parts), splits.count, call.batch, call.pixels, tiles, call.bias_of<T>(), call.classes,
        epilogue);
  } else {
    with_score_tile<T>(call.classes, [&](auto use) {
      using Tile = typename decltype(use)::Tile;
      ScoreOperands<T> in = call.operands<T>();
      in.tiles = row_tiles<Tile>(call.pixels);
      const dim3 blocks(static_cast<unsigned>(call.batch * in.tiles));
      score_pixels<Tile><<<blocks, product_block(), 0, launch.stream()>>>(in, epilogue);
    });
  }
  launch.finish();
}

}  // namespace fcn
