// The loops of conv_planes.h over the rows of one plane.
#include "conv_planes.h"

#include "conv_depthwise.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kBlockRows = 8;           // of x whose products are computed together
constexpr int64_t kBlockBytes = 256 << 10;  // of the lines of their gradient

template <typename T, typename In>
class PlanesForward {
  static constexpr int L = kLanes<T>;
  using Int = typename Simd<T>::Int;

 public:
  PlanesForward(const ConvTransposeArgs& args, void* scratch)
      : args_(args),
        p_(forward_packing<T>(args)),
        arena_(scratch),
        left_(args.offset_w / args.stride_w - (p_.columns.taps - 1)),
        stream_(leaves_cache(args.output, sizeof(In))),
        turns_(make_turns<T>(args.stride_w, args.offset_w % args.stride_w, args.output.width)),
        scale_((T)args.skip_scale) {
    const Columns& c = p_.columns;
    pitch_ = line_pitch<T>((c.taps - 1) * c.stride + c.periods * c.length);
    // The first output's products are whole vectors of the lines.
    lines_ = arena_.take<T>((kBlockRows + p_.row_taps - 1) * pitch_ + L) + (L - turns_.first % L);
    partial_ = lines_;
    if (c.part) {
      partial_ = arena_.take<T>((kBlockRows + p_.row_taps - 1) * pitch_ + L) + (L - turns_.first % L);
      mask_ = arena_.take<Int>(periodic_pitch<T>(c));
    }
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
    const int64_t bytes = (kBlockRows + p_.row_taps - 1) * pitch_ * sizeof(T);
    memset(lines_, 0, bytes);
    if (mask_) memset(partial_, 0, bytes);
    const Columns& c = p_.columns;
    for (int64_t i = 0; mask_ && i < periodic_pitch<T>(c); ++i) mask_[i] = i % c.stride < c.rest ? -1 : 0;
    begin_ = chunk.begin + args_.offset_h;
    end_ = chunk.end + args_.offset_h;
    // Where all row taps read a row of x, rows are computed together.
    const int64_t inside = args_.x.height, last = (end_ - 1) / stride + 1;
    for (int64_t bottom = begin_ / stride, next; bottom < last; bottom = next) {
      next = bottom + 1;
      if (bottom >= p_.row_taps - 1 && bottom < inside) {
        next = bottom + kBlockRows;
        if (next > inside) next = inside;
        if (next > last) next = last;
      }
      write_block(bottom, next);
    }
  }

 private:
  // Row tap j of the uncropped outputs bottom * stride + phase reads row bottom - j of x and has
  // ky = phase + j * stride. Of several bottoms, [first, last), all row taps do.
  void write_block(int64_t first, int64_t last) {
    const Columns& c = p_.columns;
    const int64_t stride = args_.stride_h, height = args_.x.height, top = first - (p_.row_taps - 1);
    const int64_t tap_begin = first < height ? 0 : first - height + 1;
    const int64_t tap_end = first + 1 < p_.row_taps ? first + 1 : p_.row_taps;
    for (int64_t row = top < 0 ? 0 : top; row < last && row < height; ++row) fetch(row, (row - top) * pitch_);
    const T** step = steps_;
    for (int64_t j = tap_begin; j < tap_end; ++j) {
      const int64_t line = (first - j - top) * pitch_;
      for (int64_t i = c.taps - 1; i >= 0; --i) *step++ = (i == 0 ? partial_ : lines_) + line + i * c.stride;
    }
    // Rows that leave the cache are written one after the other, as neighbours share a cache line.
    const int64_t together = stream_ ? 1 : last - first;
    for (int64_t bottom = first; bottom < last; bottom += together) {
      for (int64_t phase = 0; phase < stride; ++phase) {
        const bool fewer = (p_.row_taps - 1) * stride + phase >= args_.weight.height;
        const int64_t end = fewer && tap_end == p_.row_taps ? tap_end - 1 : tap_end;
        // Of the rows bottom * stride + phase, ... those of this unit.
        const int64_t before = bottom * stride + phase < begin_, rows = together - before;
        const int64_t after = (bottom + together - 1) * stride + phase >= end_;
        if (rows - after > 0) {
          write_rows(phase, bottom - first + before, rows - after, tap_begin,
                     end > tap_begin ? (end - tap_begin) * c.taps : 0,
                     (bottom + before) * stride + phase - args_.offset_h);
        }
      }
    }
  }

  void fetch(int64_t row, int64_t to) const {
    const Image& x = args_.x;
    const Columns& c = p_.columns;
    const int64_t begin = left_ < 0 ? 0 : left_, right = left_ + c.taps - 1 + c.periods * c.pixels;
    const In* from = (const In*)x.data + image_ * x.stride_n + channel_ * x.stride_c + row * x.stride_h;
    const int64_t count = (right < x.width ? right : x.width) - begin;
    to += (begin - left_) * c.stride;
    repeat_row(from + begin * x.stride_w, x.stride_w, count, c.stride, lines_ + to);
    for (int64_t i = 0, phase = 0; mask_ && i < count * c.stride; i += L, phase = (phase + L) % c.stride) {
      IntVec<T> mask;
      memcpy(&mask, mask_ + phase, sizeof(mask));
      store(partial_ + to + i, masked<T>(load(lines_ + to + i), mask));
    }
  }

  // Rows y, y + stride, ... of the output, from the lines `skipped` rows further.
  void write_rows(int64_t phase, int64_t skipped, int64_t rows, int64_t tap_begin, int64_t steps, int64_t y) {
    const Columns& c = p_.columns;
    const Image &output = args_.output, &skip = args_.skip;
    const T* lines[kMostSteps];
    for (int64_t s = 0; s < steps; ++s) lines[s] = steps_[s] + skipped * pitch_;
    In* out = (In*)output.data + image_ * output.stride_n + channel_ * output.stride_c + y * output.stride_h;
    const In* add = (const In*)skip.data + image_ * skip.stride_n + channel_ * skip.stride_c + y * skip.stride_h;
    DepthwiseRows<T, In> p{lines,
                           weights_ + (phase * p_.row_taps + tap_begin) * c.taps * periodic_pitch<T>(c),
                           turns_,
                           bias_,
                           scale_,
                           skip.data ? add : nullptr,
                           out,
                           rows,
                           pitch_,
                           args_.stride_h * skip.stride_h,
                           args_.stride_h * output.stride_h};
    if (stream_) p.out = row_;  // one row
    depthwise_rows(p, steps);
    if (stream_) stream_copy(out, row_, output.width * (int64_t)sizeof(In));
  }

  const ConvTransposeArgs& args_;
  const Packing p_;
  Arena arena_;
  const int64_t left_;  // the first pixel of a line
  const bool stream_;
  const Turns turns_;
  const T scale_;
  int64_t image_ = 0, channel_ = 0, pitch_;
  int64_t begin_ = 0, end_ = 0;  // rows of the unit, counted without the crop
  T bias_ = 0;
  T *lines_, *weights_;  // [rows of x][pitch]; see make_periodic
  T* partial_;           // the lines of the last tap: zeros where it is absent, so that a NaN there reaches no sum
  Int* mask_ = nullptr;  // [stride + L]: where the last tap is there, if it is partial
  const T* steps_[kMostSteps];
  In* row_;
};

template <typename T, typename In>
class PlanesBackward {
  static constexpr int L = kLanes<T>;

 public:
  PlanesBackward(const ConvTransposeArgs& args, void* scratch)
      : args_(args), p_(backward_packing<T>(args)), arena_(scratch), parts_(planes_parts(args)) {
    const Columns& c = p_.columns;
    pitch_ = line_pitch<T>((c.taps - 1) * c.stride + c.periods * c.length);
    out_pitch_ = line_pitch<T>(c.periods * c.vectors * L);
    block_rows_ = (kBlockBytes / (pitch_ * (int64_t)sizeof(T)) - p_.row_taps) / args.stride_h + 1;
    block_rows_ = block_rows_ < 1 ? 1 : (block_rows_ < kBlockRows ? block_rows_ : kBlockRows);
    lines_ = arena_.take<T>(line_count() * pitch_);
    steps_ = arena_.take<const T*>(p_.vector_steps());
    x_ = arena_.take<T>(block_rows_ * pitch_);
    out_ = arena_.take<T>(block_rows_ * out_pitch_);
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
    products_.x = x_;
    const Image &x = args.x, &grad_x = args.grad_x;
    is_exact_ = grad_x.data && sizeof(T) == sizeof(In) && c.stride == 1 && x.width % L == 0 && x.stride_w == 1 &&
                grad_x.stride_w == 1;
    products_.x_pitch = is_exact_ ? x.stride_h : pitch_;
    products_.out_pitch = is_exact_ ? grad_x.stride_h : out_pitch_;
    tails_ = arena_.take<IntVec<T>>(c.vectors);
  }

  int64_t units() const { return args_.groups * parts_; }
  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    const int64_t part = unit % parts_, height = args_.x.height, rows = args_.x.batch * height;
    channel_ = unit / parts_;
    pack_block<T, In>(args_, p_, channel_, 0, weights_);
    memset(lines_, 0, line_count() * pitch_ * sizeof(T));
    memset(x_, 0, block_rows_ * pitch_ * sizeof(T));
    memset(sums_, 0, p_.channel_size() * sizeof(T));
    const int64_t rest = args_.x.width % p_.columns.pixels * p_.columns.stride;
    for (int64_t v = 0; v < p_.columns.vectors; ++v) put(tails_ + v, first_lanes<T>(rest - v * L));
    const Image& w = args_.weight;
    T* const to = (T*)args_.parts + (part * args_.groups + channel_) * w.height * w.width;
    if (args_.grad_weight.data) memset(to, 0, w.height * w.width * sizeof(T));

    const int64_t end = rows * (part + 1) / parts_;
    int64_t pixels = 0;
    for (int64_t row = rows * part / parts_; row < end;) {
      image_ = row / height;
      const int64_t y = row % height, left = end - row < height - y ? end - row : height - y;
      const int64_t count = rows_together(y, left);
      compute_rows(y, count);
      row += count;
      pixels += count * args_.x.width;
      if (args_.grad_weight.data && (pixels >= kSumPixels || row == end)) {
        add_sums(to);
        pixels = 0;
      }
    }
  }

 private:
  int64_t line_count() const { return (block_rows_ - 1) * args_.stride_h + p_.row_taps; }

  // How many of the next `left` rows of x, from row y, are computed together: those all of whose row taps read a row of
  // the gradient.
  int64_t rows_together(int64_t y, int64_t left) const {
    const int64_t most = left < block_rows_ ? left : block_rows_, top = y * args_.stride_h - args_.offset_h;
    const int64_t below = args_.output.height - p_.row_taps - top;
    if (top < 0 || below < 0) return 1;
    return below / args_.stride_h + 1 < most ? below / args_.stride_h + 1 : most;
  }

  // Row tap ky of x's row y reads row y * stride + ky - offset of the gradient.
  void compute_rows(int64_t y, int64_t count) {
    const Columns& c = p_.columns;
    const int64_t top = y * args_.stride_h - args_.offset_h, begin = top < 0 ? -top : 0;
    const int64_t left = args_.output.height - top, end = left < p_.row_taps ? left : p_.row_taps;
    const Image &x = args_.x, &grad_x = args_.grad_x;
    In* out = (In*)grad_x.data + image_ * grad_x.stride_n + channel_ * grad_x.stride_c + y * grad_x.stride_h;
    if (end <= begin) {  // one row that no output has read
      for (int64_t i = 0; grad_x.data && i < x.width; ++i) from_arithmetic(T(0), out + i * grad_x.stride_w);
      return;
    }
    const int64_t first = top + begin, last = top + (count - 1) * args_.stride_h + end;
    const Image& grad = args_.output;
    const In* from = (const In*)grad.data + image_ * grad.stride_n + channel_ * grad.stride_c;
    const bool in_place = last <= in_place_;
    const T* lines = in_place ? (const T*)from + first * grad.stride_h : lines_;
    const int64_t pitch = in_place ? grad.stride_h : pitch_;
    if (!in_place) {
      for (int64_t row = first; row < last; ++row) {
        read_row(from + row * grad.stride_h, 1, grad.width, lines_ + (row - first) * pitch_ + args_.offset_w);
      }
    }
    const T** step = steps_;
    for (int64_t ky = begin; ky < end; ++ky, lines += pitch) {
      for (int64_t j = 0; j < c.taps; ++j) *step++ = lines + j * c.stride;
    }
    const In* pixels = (const In*)x.data + image_ * x.stride_n + channel_ * x.stride_c + y * x.stride_h;
    products_.rows = count;
    products_.line_pitch = args_.stride_h * pitch;
    const int64_t steps = (end - begin) * c.taps;
    if (is_exact_) {
      products_.x = (const T*)pixels;
      return multiply_rows((T*)out, begin, steps);
    }
    for (int64_t r = 0; r < count; ++r) {
      repeat_row(pixels + r * x.stride_h, x.stride_w, x.width, c.stride, x_ + r * pitch_);
    }
    multiply_rows(out_, begin, steps);
    for (int64_t r = 0; grad_x.data && r < count; ++r) {
      sum_columns(c, out_ + r * out_pitch_, x.width, out + r * grad_x.stride_h, grad_x.stride_w);
    }
  }

  void multiply_rows(T* out, int64_t row_begin, int64_t steps) {
    for (int64_t v = 0; v < p_.columns.vectors; ++v) {
      const int64_t first = p_.offset(0, 1, 0, v, 0, row_begin);
      products_.at = v * L;
      products_.out = out + v * L;
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
  int64_t image_ = 0, channel_ = 0, pitch_, out_pitch_;
  int64_t block_rows_;
  bool is_exact_;     // rows of x and of its gradient are lines as they stand
  int64_t in_place_;  // rows of the gradient that need no line
  T *lines_, *x_, *out_, *weights_, *sums_;
  IntVec<T>* tails_;  // the lanes of every vector of a last, shorter period
  const T** steps_;
};

}  // namespace

bool is_planes(const ConvTransposeArgs& args) {
  const int64_t rows = (args.weight.height + args.stride_h - 1) / args.stride_h;
  const int64_t taps = rows * ((args.weight.width + args.stride_w - 1) / args.stride_w);
  return is_depthwise_in_planes(args) && taps <= kMostSteps && (!args.skip.data || args.skip.stride_w == 1) &&
         visit_types(args, [&](auto t, auto) { return args.output.width >= kLanes<decltype(t)>; });
}

ConvTransposePlan planes_plan(const ConvTransposeArgs& args) {
  return visit_types(args,
                     [&](auto t, auto in) { return PlanesForward<decltype(t), decltype(in)>(args, nullptr).plan(); });
}

void planes_forward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit_types(args, [&](auto t, auto in) { PlanesForward<decltype(t), decltype(in)>(args, scratch).run(unit); });
}

ConvTransposePlan planes_backward_plan(const ConvTransposeArgs& args) {
  return visit_types(args, [&](auto t, auto in) {
    const PlanesBackward<decltype(t), decltype(in)> kernel(args, nullptr);
    ConvTransposePlan plan{};
    plan.units = kernel.units();
    plan.scratch_bytes = kernel.scratch_bytes();
    return plan;
  });
}

void planes_backward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit_types(args, [&](auto t, auto in) { PlanesBackward<decltype(t), decltype(in)>(args, scratch).run(unit); });
}

}  // namespace FCN_ISA
}  // namespace fcn
