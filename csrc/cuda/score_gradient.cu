// The gradients of scores in x, weight and bias, from that in the scores.
#include "score_gradient.cuh"
#include "score_launch.cuh"

namespace fcn {
namespace {

// The gradient in x: for every pixel a product of the gradients of its classes with the weight, read across its rows.
template <typename T, bool kChannelLines>
void gradient_in_x(const Launch& launch, const ScoreInputs& call, const ScoreGradient& g, const Tensor& to) {
  using A = ArithmeticOf<T>;
  const Flat flat(to);
  const Product<A, T> product{
      operand<A>(g.memory.data_ptr(), g.stride_n, g.stride_p, g.stride_c, call.pixels, kChannelLines),
      operand<T>(call.weight.data_ptr(), 0, 1, call.features, call.features, false),
      call.classes,
      call.classes,
      call.batch,
      1,
      call.batch};
  start_product<FeatureTile<A, T, kChannelLines>>(
      launch, product, 1,
      ProductOutput<T>{static_cast<T*>(to.data_ptr()), 0, flat.stride_n, flat.stride_p, flat.stride_c});
}

template <typename T, typename A = ArithmeticOf<T>>
void add_parts(const Launch& launch, const Tensor& parts, int64_t count, const Tensor& to) {
  sum_of_parts<<<blocks_of(to.numel()), warps_of_block(), 0, launch.stream()>>>(
      data_of<const A>(parts), count, to.numel(), static_cast<T*>(to.data_ptr()));
  launch.finish();
}

// The gradient in the weight: a sum over all pixels, of a few images and a part of their pixels for each block.
template <typename T, bool kChannelLines>
void gradient_in_weight(const Launch& launch, const ScoreInputs& call, const ScoreGradient& g, const Tensor& to) {
  using A = ArithmeticOf<T>;
  using Tile = WeightTile<T, A, kChannelLines>;
  const int64_t tiles = row_tiles<Tile>(call.features) * column_tiles<Tile>(call.classes);
  const int64_t images = std::max<int64_t>(1, call.batch * tiles / (2 * kEnoughBlocks));
  const int64_t groups = divided_up(call.batch, images);
  const Splits splits(tiles * groups, call.pixels);
  const Tensor parts = arithmetic_vector<A>(to, splits.count * groups * to.numel());
  const Flat flat(call.x);
  const Product<T, A> product{
      operand<T>(call.x.data_ptr(), flat.stride_n, flat.stride_c, flat.stride_p, call.features, !kChannelLines),
      operand<A>(g.memory.data_ptr(), g.stride_n, g.stride_c, g.stride_p, call.classes, !kChannelLines),
      call.pixels,
      splits.chunk,
      call.batch,
      images,
      groups};
  start_product<Tile>(launch, product, splits.count,
                      ProductOutput<A>{data_of<A>(parts), groups * to.numel(), to.numel(), 1, call.features});
  add_parts<T>(launch, parts, splits.count * groups, to);
}

template <typename T, bool kChannelLines>
void gradient_in_bias(const Launch& launch, const ScoreInputs& call, const ScoreGradient& g, const Tensor& to) {
  using A = ArithmeticOf<T>;
  const int64_t groups = kChannelLines ? divided_up(call.classes, kWarp) : call.classes;
  const Splits slices(groups, call.batch * call.pixels);
  const Tensor parts = arithmetic_vector<A>(to, slices.count * to.numel());
  class_sums<A, kChannelLines><<<static_cast<unsigned>(groups * slices.count), warps_of_block(), 0, launch.stream()>>>(
      data_of<const A>(g.memory), g.stride_n, g.stride_c, g.stride_p, call.batch, call.pixels, call.classes,
      slices.chunk, data_of<A>(parts));
  launch.finish();
  add_parts<T>(launch, parts, slices.count, to);
}

}  // namespace

ScoreGradients score_gradients(const Launch& launch, const ScoreInputs& call, const ScoreGradient& g,
                               const ScoreGradients& to) {
  const Tensor &grad_x = std::get<0>(to), &grad_weight = std::get<1>(to), &grad_bias = std::get<2>(to);
  visit_dtype(call.op, call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto start = [&](auto lines) {
      if (grad_x.numel() > 0) gradient_in_x<T, lines.value>(launch, call, g, grad_x);
      if (grad_weight.numel() > 0) gradient_in_weight<T, lines.value>(launch, call, g, grad_weight);
      gradient_in_bias<T, lines.value>(launch, call, g, grad_bias);
    };
    if (call.channels_inside) {
      start(std::true_type());
    } else {
      start(std::false_type());
    }
  });
  return to;
}

}  // namespace fcn
