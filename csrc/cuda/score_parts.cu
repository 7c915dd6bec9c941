// The parts of scores whose long sum is split among blocks.
#include "score_launch.cuh"

namespace fcn {

Tensor score_parts_of(const Launch& launch, const ScoreInputs& call, const Splits& splits) {
  const Tensor parts = empty_vector(call.x, {splits.count, call.batch, call.pixels, call.classes},
                                    arithmetic_dtype(call.x.scalar_type()));
  const int64_t per_image = call.pixels * call.classes;
  visit_dtype(call.op, call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = ArithmeticOf<T>;
    const ScoreOperands<T> in = call.operands<T>();
    const Product<T, T> product{in.x, in.weight, call.features, splits.chunk, call.batch, 1, call.batch};
    const ProductOutput<A> to{data_of<A>(parts), call.batch * per_image, per_image, call.classes, 1};
    start_product<FewClasses<T>>(launch, product, splits.count, to);
  });
  return parts;
}

}  // namespace fcn
