// The adjoint of bilinear upsampling as a gather: input row y collects, in ascending order, the output rows that read
// it, then every input column the output columns that read it. No two units write the same row. On request the incoming
// gradient g passes the backward of a function with output p on the way:
//   softmax      p (g - sum_c g p)
//   log-softmax  g - exp(p) sum_c g
//   sigmoid      p (1 - p) g
#include "planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename In>
class UpsampleBackward {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  UpsampleBackward(const UpsampleBackwardArgs& args, void* scratch) : args_(args), g_(*args.geometry), arena_(scratch) {
    const int64_t inner = args.pixelwise ? args.grad.channels : 1;
    sum_ = arena_.take<T>((g_.out_width + L) * inner);
    if (inner == 1) {
      row_ = arena_.take<T>(2 * padded_width(g_.in_width));
      blocks_ = arena_.take<PlaneBlock<T>>(g_.columns.count / L);
    } else {
      row_ = arena_.take<T>(g_.in_width * inner);
    }
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    if (args_.pixelwise) {
      const Chunk chunk = chunk_of(unit, args_.grad.batch, g_.in_height);
      return pixels(chunk.item, chunk.begin, chunk.end);
    }
    block_count_ = make_blocks(g_, blocks_);
    const PlaneRun run = plane_run(unit, args_.grad, g_, g_.in_height);
    for (int64_t p = run.begin; p < run.end; ++p) {
      const int64_t n = p / args_.grad.channels, c = p % args_.grad.channels;
      switch (args_.through) {
        case Through::kNothing:
          plane<Through::kNothing>(n, c, run.rows_begin, run.rows_end);
          break;
        case Through::kSoftmax:
          plane<Through::kSoftmax>(n, c, run.rows_begin, run.rows_end);
          break;
        case Through::kLogSoftmax:
          plane<Through::kLogSoftmax>(n, c, run.rows_begin, run.rows_end);
          break;
        case Through::kSigmoid:
          plane<Through::kSigmoid>(n, c, run.rows_begin, run.rows_end);
          break;
      }
    }
  }

 private:
  // Calls f(output row, weight) for every output row that reads input row y, in ascending order.
  template <typename F>
  FCN_INLINE void for_rows_of(int64_t y, const F& f) const {
    const bool from_start = g_.clamp && y == 0, to_end = g_.clamp && y == g_.in_height - 1;
    int64_t b = 0, end = g_.band_count;
    while (!from_start && b < end) {  // the first band whose lower tap can be y
      const int64_t middle = (b + end) / 2;
      if (g_.bands[middle].index + 1 < y) {
        b = middle + 1;
      } else {
        end = middle;
      }
    }
    for (; b < g_.band_count && (to_end || g_.bands[b].index <= y); ++b) {
      const Band& band = g_.bands[b];
      const bool top = resolve(band.index, g_.in_height, g_.clamp) == y;
      const bool bottom = resolve(band.index + 1, g_.in_height, g_.clamp) == y;
      for (int64_t row = band.begin; row < band.end; ++row) {
        const T fy = (T)g_.row_fraction[row];
        const T weight = (top ? T(1) - fy : T(0)) + (bottom ? fy : T(0));
        if (weight != T(0)) f(row, weight);
      }
    }
  }

  template <Through through>
  FCN_NOINLINE void add_row(int64_t n, int64_t c, int64_t row, T weight) {
    const Image &grad = args_.grad, &function = args_.function;
    const In* g = (const In*)grad.data + n * grad.stride_n + c * grad.stride_c + row * grad.stride_h;
    const In* p = (const In*)function.data + n * function.stride_n + c * function.stride_c + row * function.stride_h;
    const T* dot = (const T*)args_.dot + (n * g_.out_height + row) * g_.out_width;
    int64_t i = 0;
    if (grad.stride_w == 1) {
      for (; i + L <= g_.out_width; i += L) {
        V v = load_as(g + i);
        if (through == Through::kSoftmax) v = load_as(p + i) * (v - load(dot + i));
        if (through == Through::kLogSoftmax) v = v - vexp(load_as(p + i)) * load(dot + i);
        if (through == Through::kSigmoid) v = v * load_as(p + i) * (T(1) - load_as(p + i));
        store(sum_ + i, load(sum_ + i) + weight * v);
      }
    }
    for (; i < g_.out_width; ++i) {
      T v = to_arithmetic(g[i * grad.stride_w]);
      if (through == Through::kSoftmax) v = (T)to_arithmetic(p[i]) * (v - dot[i]);
      if (through == Through::kLogSoftmax) v = v - vexp(broadcast((T)to_arithmetic(p[i])))[0] * dot[i];
      if (through == Through::kSigmoid) v = through_sigmoid(v, p[i]);
      sum_[i] += weight * v;
    }
  }

  static T through_sigmoid(T g, In output) {
    const T p = to_arithmetic(output);
    return g * p * (T(1) - p);
  }

  template <Through through>
  void plane(int64_t n, int64_t c, int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      memset(sum_, 0, g_.out_width * sizeof(T));
      for_rows_of(y, [&](int64_t row, T weight) { this->add_row<through>(n, c, row, weight); });
      with_steps(g_.columns.steps, [&](auto steps) { this->collect<steps.value>(); });
      const Image& out = args_.output;
      In* to = (In*)out.data + n * out.stride_n + c * out.stride_c + y * out.stride_h;
      for (int64_t i = 0; i < g_.in_width; ++i) from_arithmetic(row_[i + 1], to + i * out.stride_w);
    }
  }

  // The columns of sum_ to the columns of row_.
  template <int K>
  FCN_NOINLINE void collect() {
    const int64_t pitch = padded_width(g_.in_width), w = g_.in_width;
    memset(row_, 0, 2 * pitch * sizeof(T));
    T* right_row = row_ + pitch;
    for (int64_t b = 0; b < block_count_; ++b) {
      const PlaneBlock<T>& block = blocks_[b];
      V v[K], left{}, right{};
      load_steps<T, K>(block, sum_, 1, v);
      for (int k = 0; k < K; ++k) {
        left += block.complements[k] * v[k];
        right += block.fractions[k] == V{} ? V{} : block.fractions[k] * v[k];
      }
      block.add_left(row_, left);
      block.add_right(right_row, right);
    }
    for (int64_t i = 0; i < pitch; ++i) row_[i] += right_row[i];
    if (g_.clamp) {
      row_[1] += row_[0];
      for (int64_t i = w + 1; i <= w + kRightPadding; ++i) row_[w] += row_[i];
    }
  }

  void pixels(int64_t n, int64_t begin, int64_t end) {
    const int64_t channels = args_.grad.channels, count = g_.out_width * channels;
    for (int64_t y = begin; y < end; ++y) {
      memset(sum_, 0, count * sizeof(T));
      for_rows_of(y, [&](int64_t row, T weight) {
        const In* g = (const In*)args_.grad.data + n * args_.grad.stride_n + row * args_.grad.stride_h;
        T* FCN_RESTRICT sum = sum_;
        if (args_.through == Through::kSigmoid) {
          const Image& function = args_.function;
          const In* p = (const In*)function.data + n * function.stride_n + row * function.stride_h;
          for (int64_t i = 0; i < count; ++i) sum[i] += weight * through_sigmoid(to_arithmetic(g[i]), p[i]);
        } else {
          for (int64_t i = 0; i < count; ++i) sum[i] += weight * (T)to_arithmetic(g[i]);
        }
      });
      memset(row_, 0, g_.in_width * channels * sizeof(T));
      for (int64_t s = 0; s < g_.columns.count; ++s) {
        for (int k = 0; k < g_.columns.length[s]; ++k) {
          const T f = (T)(g_.columns.fraction[s] + k * g_.columns.step);
          const T* from = sum_ + (g_.columns.first[s] + k) * channels;
          add_pixel(g_.columns.index[s], T(1) - f, from);
          if (f != T(0)) add_pixel(g_.columns.index[s] + 1, f, from);
        }
      }
      In* to = (In*)args_.output.data + n * args_.output.stride_n + y * args_.output.stride_h;
      for (int64_t i = 0; i < g_.in_width * channels; ++i) from_arithmetic(row_[i], to + i);
    }
  }

  FCN_INLINE void add_pixel(int64_t index, T weight, const T* FCN_RESTRICT from) {
    const int64_t i = resolve(index, g_.in_width, g_.clamp);
    if (i < 0) return;
    T* FCN_RESTRICT to = row_ + i * args_.grad.channels;
    for (int64_t c = 0; c < args_.grad.channels; ++c) to[c] += weight * from[c];
  }

  const UpsampleBackwardArgs& args_;
  const Geometry& g_;
  Arena arena_;
  int64_t block_count_ = 0;
  PlaneBlock<T>* blocks_;
  T *sum_, *row_;
};

// The sum over classes that a softmax's backward subtracts, for one row of one image.
template <typename T, typename In>
void dot_row(const UpsampleBackwardArgs& args, int64_t unit) {
  const Image &grad = args.grad, &softmax = args.function;
  const int64_t n = unit / grad.height, row = unit % grad.height;
  T* FCN_RESTRICT dot = (T*)args.dot + unit * grad.width;
  memset(dot, 0, grad.width * sizeof(T));
  for (int64_t c = 0; c < grad.channels; ++c) {
    const In* g = (const In*)grad.data + n * grad.stride_n + c * grad.stride_c + row * grad.stride_h;
    const In* p = (const In*)softmax.data + n * softmax.stride_n + c * softmax.stride_c + row * softmax.stride_h;
    for (int64_t i = 0; i < grad.width; ++i) {
      dot[i] += args.through == Through::kLogSoftmax ? (T)to_arithmetic(g[i])
                                                     : (T)to_arithmetic(g[i]) * (T)to_arithmetic(p[i]);
    }
  }
}

}  // namespace

int64_t upsample_backward_units(const UpsampleBackwardArgs& args) {
  const Geometry& g = *args.geometry;
  return args.pixelwise ? chunk_count(args.grad.batch, g.in_height) : plane_units(args.grad, g, g.in_height);
}

int64_t upsample_backward_scratch(const UpsampleBackwardArgs& args) {
  return visit_dtype(args.grad.dtype, [&](auto zero) {
    using In = decltype(zero);
    return UpsampleBackward<ArithmeticOf<In>, In>(args, nullptr).scratch_bytes();
  });
}

void upsample_backward(const UpsampleBackwardArgs& args, int64_t unit, void* scratch) {
  visit_dtype(args.grad.dtype, [&](auto zero) {
    using In = decltype(zero);
    UpsampleBackward<ArithmeticOf<In>, In>(args, scratch).run(unit);
  });
}

void softmax_dot(const UpsampleBackwardArgs& args, int64_t unit) {
  visit_dtype(args.grad.dtype, [&](auto zero) {
    using In = decltype(zero);
    dot_row<ArithmeticOf<In>, In>(args, unit);
  });
}

}  // namespace FCN_ISA
}  // namespace fcn
