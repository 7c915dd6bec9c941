// The loops of conv_planes.h over the rows of one plane.
#include "conv_planes.h"

#include "conv_depthwise.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
Columns columns_of_output(const ConvTransposeArgs& args) {
  const int64_t first = args.offset_w / args.stride_w, last = (args.offset_w + args.output.width - 1) / args.stride_w;
  return make_columns<T>(args.stride_w, args.weight.width, last - first + 1);
}

template <typename T, typename In>
class PlanesForward {
  static constexpr int L = kLanes<T>;

 public:
  PlanesForward(const ConvTransposeArgs& args, void* scratch)
      : args_(args),
        p_(make_packing(args, false, columns_of_output<T>(args), L)),
        arena_(scratch),
        left_(args.offset_w / args.stride_w - (p_.columns.taps - 1)),
        stream_(leaves_cache(args.output, sizeof(In))),
        turns_(make_turns<T>(args.stride_w, args.offset_w % args.stride_w, args.output.width)),
        scale_((T)args.skip_scale) {
    const Columns& c = p_.columns;
    pitch_ = line_pitch<T>((c.taps - 1) * c.stride + c.periods * c.length);
    memory_ = arena_.take<T>(p_.row_taps * pitch_);
    rows_ = arena_.take<T*>(p_.row_taps);
    weights_ = arena_.take<T>(p_.row_phases * p_.vector_steps() * periodic_pitch<T>(c));
    row_ = arena_.take<In>(args.output.width + L);
  }

  ConvTransposePlan plan() const {
    ConvTransposePlan plan{};
    plan.units = chunk_count(args_.output.batch * args_.groups, args_.output.height);
    plan.scratch_bytes = arena_.used;
    return plan;
  }

  void run(int64_t unit) {
    const Chunk chunk = chunk_of(unit, args_.output.batch * args_.groups, args_.output.height);
    const int64_t stride = args_.stride_h;
    channel_ = chunk.item % args_.groups;
    image_ = chunk.item / args_.groups;
    bias_ = args_.bias ? (T)to_arithmetic(((const In*)args_.bias)[channel_]) : T(-0.0);  // which changes no sum
    make_periodic<T, In>(p_, args_.weight, channel_, weights_);
    memset(memory_, 0, p_.row_taps * pitch_ * sizeof(T));
    for (int64_t j = 0; j < p_.row_taps; ++j) rows_[j] = memory_ + j * pitch_;

    // Row tap j of the outputs bottom * stride + phase reads input row bottom - j and has ky = phase + j * stride.
    int64_t y = chunk.begin, bottom = (y + args_.offset_h) / stride, phase = (y + args_.offset_h) % stride;
    for (int64_t j = 1; j < p_.row_taps; ++j) fetch(bottom - j, rows_[j]);
    while (true) {
      fetch(bottom, rows_[0]);
      list_steps(bottom);
      for (; phase < stride && y < chunk.end; ++phase, ++y) write(y, phase);
      if (y == chunk.end) return;
      phase = 0;
      ++bottom;
      T* const last = rows_[p_.row_taps - 1];
      memmove(rows_ + 1, rows_, (p_.row_taps - 1) * sizeof(T*));
      rows_[0] = last;
    }
  }

 private:
  void fetch(int64_t row, T* line) const {
    const Image& x = args_.x;
    if (row < 0 || row >= x.height) return;
    const Columns& c = p_.columns;
    const int64_t begin = left_ < 0 ? 0 : left_, right = left_ + c.taps - 1 + c.periods * c.pixels;
    const In* from = (const In*)x.data + image_ * x.stride_n + channel_ * x.stride_c + row * x.stride_h;
    repeat_row(from + begin * x.stride_w, x.stride_w, (right < x.width ? right : x.width) - begin, c.stride,
               line + (begin - left_) * c.stride);
  }

  void list_steps(int64_t bottom) {
    const Columns& c = p_.columns;
    const int64_t over = bottom - args_.x.height + 1;
    begin_ = over < 0 ? 0 : over;
    end_ = bottom + 1 < p_.row_taps ? bottom + 1 : p_.row_taps;
    const T** step = steps_;
    for (int64_t j = begin_; j < end_; ++j) {
      for (int64_t i = c.taps - 1; i >= 0; --i) *step++ = rows_[j] + i * c.stride;
    }
  }

  void write(int64_t y, int64_t phase) const {
    const Columns& c = p_.columns;
    const Image &output = args_.output, &skip = args_.skip;
    int64_t end = end_;
    if (end > begin_ && phase + (end - 1) * args_.stride_h >= args_.weight.height) --end;
    const int64_t steps = end > begin_ ? (end - begin_) * c.taps : 0;
    In* out = (In*)output.data + image_ * output.stride_n + channel_ * output.stride_c + y * output.stride_h;
    const In* add = (const In*)skip.data + image_ * skip.stride_n + channel_ * skip.stride_c + y * skip.stride_h;
    const DepthwiseRow<T, In> row{steps_,
                                  weights_ + (phase * p_.row_taps + begin_) * c.taps * periodic_pitch<T>(c),
                                  turns_,
                                  bias_,
                                  scale_,
                                  skip.data ? add : nullptr,
                                  stream_ ? row_ : out};
    depthwise_row(row, steps);
    if (stream_) stream_copy(out, row_, output.width * (int64_t)sizeof(In));
  }

  const ConvTransposeArgs& args_;
  const Packing p_;
  Arena arena_;
  const int64_t left_;  // the first pixel of a line
  const bool stream_;
  const Turns turns_;
  const T scale_;
  int64_t image_ = 0, channel_ = 0, pitch_, begin_ = 0, end_ = 0;  // row taps that read a row of x
  T bias_ = 0;
  T *memory_, *weights_;  // lines, [row_taps][pitch]; see make_periodic
  T** rows_;              // the line of every row tap
  const T* steps_[kMostSteps];
  In* row_;
};

template <typename T, typename In>
class PlanesBackward {
  static constexpr int L = kLanes<T>;

 public:
  PlanesBackward(const ConvTransposeArgs& args, void* scratch)
      : args_(args),
        p_(make_packing(args, true, make_columns<T>(args.stride_w, args.weight.width, args.x.width), L)),
        arena_(scratch),
        parts_(planes_parts(args)) {
    const Columns& c = p_.columns;
    pitch_ = line_pitch<T>((c.taps - 1) * c.stride + c.periods * c.length);
    memory_ = arena_.take<T>(p_.row_taps * pitch_);
    lines_ = arena_.take<T*>(p_.row_taps);
    rows_ = arena_.take<const T*>(p_.row_taps);
    steps_ = arena_.take<const T*>(p_.vector_steps());
    x_ = arena_.take<T>(pitch_);
    out_ = arena_.take<T>(line_pitch<T>(c.periods * c.vectors * L));
    weights_ = arena_.take<T>(p_.channel_size());
    sums_ = arena_.take<T>(p_.channel_size());

    // Rows of the gradient are read where they stand if nothing is cropped from their sides, but for the last ones, as
    // vectors may reach over.
    const Image& grad = args.output;
    const int64_t reach = (c.taps - 1) * c.stride + (c.periods - 1) * c.length + c.vectors * L - grad.width;
    in_place_ = 0;
    if (sizeof(T) == sizeof(In) && args.offset_w == 0 && grad.width == (args.x.width + c.taps - 1) * c.stride) {
      if (reach <= 0) in_place_ = grad.height;
      if (reach > 0 && reach <= grad.stride_h) in_place_ = grad.height - 1;
    }
    products_.period = c.length;
    products_.out_period = c.vectors * L;
    products_.count = args.x.width / c.pixels;
    products_.has_tail = args.x.width % c.pixels > 0;
    tails_ = arena_.take<IntVec<T>>(c.vectors);
  }

  int64_t units() const { return args_.groups * parts_; }
  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    const int64_t part = unit % parts_, height = args_.x.height, rows = args_.x.batch * height;
    channel_ = unit / parts_;
    pack_block<T, In>(args_, p_, channel_, 0, weights_);
    memset(memory_, 0, p_.row_taps * pitch_ * sizeof(T));
    memset(x_, 0, pitch_ * sizeof(T));
    memset(sums_, 0, p_.channel_size() * sizeof(T));
    for (int64_t ky = 0; ky < p_.row_taps; ++ky) lines_[ky] = memory_ + ky * pitch_;
    const int64_t rest = args_.x.width % p_.columns.pixels * p_.columns.stride;
    for (int64_t v = 0; v < p_.columns.vectors; ++v) put(tails_ + v, first_lanes<T>(rest - v * L));
    const Image& w = args_.weight;
    T* const to = (T*)args_.parts + (part * args_.groups + channel_) * w.height * w.width;
    memset(to, 0, w.height * w.width * sizeof(T));

    const int64_t begin = rows * part / parts_, end = rows * (part + 1) / parts_;
    int64_t pixels = 0;
    image_ = begin / height;
    for (int64_t row = begin, y = begin % height, fresh = p_.row_taps; row < end; ++row, ++y) {
      if (y == height) {
        y = 0;
        ++image_;
        fresh = p_.row_taps;
      }
      compute_row(y, fresh);
      fresh = args_.stride_h < p_.row_taps ? args_.stride_h : p_.row_taps;
      pixels += args_.x.width;
      if (pixels >= kSumPixels || row + 1 == end) {
        add_sums(to);
        pixels = 0;
      }
    }
  }

 private:
  // The last `fresh` of the rows that x's row y reaches are not there yet.
  void compute_row(int64_t y, int64_t fresh) {
    const Columns& c = p_.columns;
    // Row tap ky reads row y * stride + ky - offset of the gradient.
    const int64_t taps = p_.row_taps, top = y * args_.stride_h - args_.offset_h;
    rotate(lines_, taps - fresh);
    rotate(rows_, taps - fresh);
    for (int64_t ky = taps - fresh; ky < taps; ++ky) rows_[ky] = fetch(top + ky, lines_[ky]);
    const int64_t begin = top < 0 ? -top : 0, below = args_.output.height - top, end = below < taps ? below : taps;
    const Image &x = args_.x, &grad_x = args_.grad_x;
    In* out = (In*)grad_x.data + image_ * grad_x.stride_n + channel_ * grad_x.stride_c + y * grad_x.stride_h;
    if (end <= begin) {
      for (int64_t i = 0; i < x.width; ++i) from_arithmetic(T(0), out + i * grad_x.stride_w);
      return;
    }
    const T** step = steps_;
    for (int64_t ky = begin; ky < end; ++ky) {
      for (int64_t j = 0; j < c.taps; ++j) *step++ = rows_[ky] + j * c.stride;
    }
    repeat_row((const In*)x.data + image_ * x.stride_n + channel_ * x.stride_c + y * x.stride_h, x.stride_w, x.width,
               c.stride, x_);
    multiply_row(begin, (end - begin) * c.taps);
    sum_columns(c, out_, x.width, out, grad_x.stride_w);
  }

  // The first `kept` of the row taps take the places of those before them.
  template <typename U>
  void rotate(U* taps, int64_t kept) const {
    const int64_t gone = p_.row_taps - kept;
    if (kept == 0) return;
    for (int64_t i = 0; i < kept; ++i) {
      const U t = taps[i];
      taps[i] = taps[i + gone];
      taps[i + gone] = t;
    }
  }

  // A row of the gradient as a line; zeros around the crop.
  const T* fetch(int64_t row, T* line) const {
    const Image& grad = args_.output;
    if (row < 0 || row >= grad.height) return line;
    const In* from = (const In*)grad.data + image_ * grad.stride_n + channel_ * grad.stride_c + row * grad.stride_h;
    if (row < in_place_) return (const T*)from;
    read_row(from, 1, grad.width, line + args_.offset_w);
    return line;
  }

  void multiply_row(int64_t row_begin, int64_t steps) {
    for (int64_t v = 0; v < p_.columns.vectors; ++v) {
      const int64_t first = p_.offset(0, 1, 0, v, 0, row_begin);
      products_.at = v * L;
      products_.x = x_;
      products_.out = out_ + v * L;
      if (products_.has_tail) products_.tail = tails_[v];
      for (int64_t s = 0; s < steps; s += kBothSteps) {
        products_.lines = steps_ + s;
        products_.weights = weights_ + first + s * L;
        products_.sums = sums_ + first + s * L;
        products_.add = s > 0;
        multiply_both(products_, steps - s < kBothSteps ? steps - s : kBothSteps);
      }
    }
  }

  void add_sums(T* to) {
    const int64_t kx = args_.weight.width;
    for_packed(p_, args_.weight.height, 0, 1, [&](int64_t at, int64_t, int64_t, int64_t ky, int64_t x, int64_t count) {
      for (int64_t i = 0; i < count; ++i) to[ky * kx + x + i] += sums_[at + i];
    });
    memset(sums_, 0, p_.channel_size() * sizeof(T));
  }

  const ConvTransposeArgs& args_;
  const Packing p_;
  Arena arena_;
  const int64_t parts_;
  BothProducts<T> products_{};
  int64_t image_ = 0, channel_ = 0, pitch_;
  int64_t in_place_;  // rows of the gradient that need no line
  T *memory_, *x_, *out_, *weights_, *sums_;
  IntVec<T>* tails_;  // the lanes of every vector of a last, shorter period
  T** lines_;         // of every row tap, [row_taps][pitch] in memory_
  const T** rows_;    // what every row tap reads: its line, or the gradient itself
  const T** steps_;
};

template <typename F>
auto visit(const ConvTransposeArgs& args, const F& f) {
  return visit_dtype(args.x.dtype, [&](auto zero) { return f(ArithmeticOf<decltype(zero)>(), zero); });
}

}  // namespace

bool is_planes(const ConvTransposeArgs& args) {
  const int64_t taps = (args.weight.height + args.stride_h - 1) / args.stride_h * (args.weight.width / args.stride_w);
  return is_depthwise_in_planes(args) && taps <= kMostSteps && (!args.skip.data || args.skip.stride_w == 1) &&
         visit(args, [&](auto t, auto) { return args.output.width >= kLanes<decltype(t)>; });
}

ConvTransposePlan planes_plan(const ConvTransposeArgs& args) {
  return visit(args, [&](auto t, auto in) { return PlanesForward<decltype(t), decltype(in)>(args, nullptr).plan(); });
}

void planes_forward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit(args, [&](auto t, auto in) { PlanesForward<decltype(t), decltype(in)>(args, scratch).run(unit); });
}

ConvTransposePlan planes_backward_plan(const ConvTransposeArgs& args) {
  return visit(args, [&](auto t, auto in) {
    const PlanesBackward<decltype(t), decltype(in)> kernel(args, nullptr);
    ConvTransposePlan plan{};
    plan.units = kernel.units();
    plan.scratch_bytes = kernel.scratch_bytes();
    return plan;
  });
}

void planes_backward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit(args, [&](auto t, auto in) { PlanesBackward<decltype(t), decltype(in)>(args, scratch).run(unit); });
}

}  // namespace FCN_ISA
}  // namespace fcn
