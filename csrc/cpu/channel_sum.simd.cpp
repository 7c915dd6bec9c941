// Sums of channels. A row is summed in the arithmetic type, the rows in double, in an order that follows from the
// shapes: a unit is a part of the rows of all images, of one channel or, where the channels of a pixel stand together,
// of all.
#include "planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kPartPixels = 1 << 14;  // that are worth a sum of their own

bool is_pixelwise(const Image& x) { return x.stride_c == 1 && x.channels > 1 && x.stride_w != 1; }

template <typename T, typename In>
T sum_of_row(const In* p, int64_t stride, int64_t count) {
  constexpr int L = kLanes<T>;
  T total = 0;
  int64_t i = 0;
  if (stride == 1 && count >= L) {
    Vec<T> sum[4] = {};
    for (; i + 4 * L <= count; i += 4 * L) {
      for (int v = 0; v < 4; ++v) sum[v] += load_as(p + i + v * L);
    }
    for (; i + L <= count; i += L) sum[0] += load_as(p + i);
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int l = 0; l < L; ++l) total += sum[0][l];
  }
  for (; i < count; ++i) total += to_arithmetic(p[i * stride]);
  return total;
}

// K vectors of channels of a row of pixels.
template <int K, typename T, typename In>
FCN_INLINE void add_pixels(const In* p, int64_t stride, int64_t count, double* sums) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[K] = {};
  for (int64_t i = 0; i < count; ++i, p += stride) {
    for (int k = 0; k < K; ++k) sum[k] += load_as(p + k * L);
  }
  for (int k = 0; k < K; ++k) {
    for (int l = 0; l < L; ++l) sums[k * L + l] += sum[k][l];
  }
}

template <typename T, typename In>
void sum_channels(const Image& x, int64_t begin, int64_t end, double* sums) {
  constexpr int L = kLanes<T>;
  for (int64_t c = 0; c < x.channels; ++c) sums[c] = 0;
  for (int64_t r = begin; r < end; ++r) {
    const In* p = (const In*)x.data + r / x.height * x.stride_n + r % x.height * x.stride_h;
    int64_t c = 0;
    for (; c + 4 * L <= x.channels; c += 4 * L) add_pixels<4, T>(p + c, x.stride_w, x.width, sums + c);
    for (; c + L <= x.channels; c += L) add_pixels<1, T>(p + c, x.stride_w, x.width, sums + c);
    for (; c < x.channels; ++c) sums[c] += sum_of_row<T>(p + c, x.stride_w, x.width);
  }
}

}  // namespace

int64_t channel_sum_parts(const ChannelSumArgs& args) {
  const Image& x = args.x;
  const int64_t rows = x.batch * x.height, items = is_pixelwise(x) ? 1 : x.channels;
  int64_t parts = parts_of(items, rows);
  const int64_t worth = rows * x.width * (is_pixelwise(x) ? x.channels : 1) / kPartPixels + 1;
  if (parts > worth) parts = worth;
  return parts;
}

int64_t channel_sum_units(const ChannelSumArgs& args) {
  return channel_sum_parts(args) * (is_pixelwise(args.x) ? 1 : args.x.channels);
}

void channel_sum(const ChannelSumArgs& args, int64_t unit) {
  const Image& x = args.x;
  const int64_t parts = channel_sum_parts(args), part = unit % parts, rows = x.batch * x.height;
  const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
  double* sums = args.parts + part * x.channels;
  visit_dtype(x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    if (is_pixelwise(x)) return sum_channels<T, In>(x, begin, end, sums);
    const int64_t c = unit / parts;
    double sum = 0;
    for (int64_t r = begin; r < end; ++r) {
      const In* p = (const In*)x.data + r / x.height * x.stride_n + c * x.stride_c + r % x.height * x.stride_h;
      sum += sum_of_row<T>(p, x.stride_w, x.width);
    }
    sums[c] = sum;
  });
}

}  // namespace FCN_ISA
}  // namespace fcn
