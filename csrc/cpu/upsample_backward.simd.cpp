// The adjoint of bilinear upsampling as a gather: input row y collects, in ascending order, the output rows that read
// it, then every input column the output columns that read it. No two units write the same row. On request the incoming
// gradient g passes the backward of a function with output p on the way:
//   softmax      p (g - sum_c g p)
//   log-softmax  g - exp(p) sum_c g
//   sigmoid      p (1 - p) g
#include "upsample_backward_pixels.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename In>
class UpsampleBackwardPlanes {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  UpsampleBackwardPlanes(const UpsampleBackwardArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), arena_(scratch) {
    sum_ = arena_.take<T>(g_.out_width + L);
    row_ = arena_.take<T>(2 * padded_width(g_.in_width));
    blocks_ = arena_.take<PlaneBlock<T>>(g_.columns.count / L);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
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
      for_rows_of<T>(g_, y, [&](int64_t row, T weight) { this->add_row<through>(n, c, row, weight); });
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
  const Image& grad = args.grad;
  return args.pixelwise ? grad.batch * pixel_parts(g, grad.batch, grad.channels, g.in_height)
                        : plane_units(grad, g, g.in_height);
}

int64_t upsample_backward_scratch(const UpsampleBackwardArgs& args) {
  return visit_dtype(args.grad.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    return args.pixelwise ? UpsampleBackwardPixels<T, In>(args, nullptr).scratch_bytes()
                          : UpsampleBackwardPlanes<T, In>(args, nullptr).scratch_bytes();
  });
}

void upsample_backward(const UpsampleBackwardArgs& args, int64_t unit, void* scratch) {
  visit_dtype(args.grad.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    if (args.pixelwise) {
      UpsampleBackwardPixels<T, In>(args, scratch).run(unit);
    } else {
      UpsampleBackwardPlanes<T, In>(args, scratch).run(unit);
    }
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
