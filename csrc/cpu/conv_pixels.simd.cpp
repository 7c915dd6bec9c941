// The loops of conv_pixels.h over rows of pixels.
#include "conv_pixels.h"

#include "conv_registers.h"
#include "conv_slots.h"
#include "planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kUnitChannels = 64;     // of a unit of the backward direction, at most; several vectors
constexpr int64_t kBytesAhead = 8 << 10;  // of prefetching the output, in whole intervals
constexpr int64_t kLaneSums = 1 << 8;     // products that a lane sums before they are added to its total

// Outputs that read the same pixels: `intervals` times `phases` of them,
//   out[i][r] = bias + sum over steps of x[step][i] * weights[step][r] + scale * add[i][r],
// all channels of a pixel one after the other.
template <typename T, typename In>
struct Intervals {
  int64_t steps;
  const T *const *x, *const *weights;
  int64_t x_pitch, weights_pitch;     // from pixel to pixel, from slot to slot
  int64_t intervals, phases, period;  // period: of the intervals, in outputs
  const T* bias;
  T scale;
  const In* add;  // null: nothing
  In* out;
  int64_t add_pitch, out_pitch;
};

// Of so many steps; -1: of as many as there are.
template <int Steps, bool Adds, typename T, typename In>
FCN_NOINLINE void write_intervals(const Slots<T>& slots, const Intervals<T, In>& p) {
  constexpr int L = kLanes<T>;
  const Vec<T> scale = broadcast(p.scale);
  const T *x[Steps > 0 ? Steps : 1], *weights[Steps > 0 ? Steps : 1];
  for (int s = 0; s < Steps; ++s) {
    x[s] = p.x[s];
    weights[s] = p.weights[s];
  }
  // Copies: whatever is written might be a member of p.
  const int64_t phases = p.phases, out_pitch = p.out_pitch, add_pitch = p.add_pitch, weights_pitch = p.weights_pitch;
  const int64_t count = slots.count, last = slots.channel(count - 1), period = p.period;
  const T* const all_bias = p.bias;
  const int64_t ahead = (kBytesAhead / (period * out_pitch * (int64_t)sizeof(In)) + 1) * period * out_pitch;
  int64_t pixel = 0;
  In* out = p.out;
  const In* add = p.add;
  for (int64_t i = p.intervals; i > 0; --i) {
    for (int64_t slot = 0, first = 0; slot < count; ++slot, first += weights_pitch) {
      const int64_t channel = slot + 1 < count ? slot * L : last;
      const Vec<T> bias = load(all_bias + slot * L);
      Vec<T> pixels[Steps > 0 ? Steps : 1];
      for (int s = 0; s < Steps; ++s) pixels[s] = load(x[s] + pixel + channel);
      for (int64_t r = 0; r < phases; ++r) {
        Vec<T> sum = bias;
        for (int s = 0; s < Steps; ++s) sum += pixels[s] * load(weights[s] + first + r * L);
        for (int64_t s = 0; Steps < 0 && s < p.steps; ++s) {
          sum += load(p.x[s] + pixel + channel) * load(p.weights[s] + first + r * L);
        }
        if (Adds) {
          sum += scale * load_as(add + r * add_pitch + channel);
          __builtin_prefetch(add + r * add_pitch + channel + ahead);
        }
        store_as(out + r * out_pitch + channel, sum);
        __builtin_prefetch(out + r * out_pitch + channel + ahead, 1);
      }
    }
    pixel += p.x_pitch;
    out += period * out_pitch;
    if (Adds) add += period * add_pitch;
  }
}

template <int Steps = kMostSteps, typename T, typename In>
FCN_INLINE void write_intervals(const Slots<T>& slots, const Intervals<T, In>& p, int64_t steps) {
  if (steps == Steps) return p.add ? write_intervals<Steps, true>(slots, p) : write_intervals<Steps, false>(slots, p);
  if constexpr (Steps >= 0) write_intervals<Steps - 1>(slots, p, steps);
}

// Packed weights: [slot][ky][kx][L].
template <typename T>
int64_t weights_pitch(const ConvTransposeArgs& args) {
  return args.weight.height * args.weight.width * kLanes<T>;
}

template <typename T>
const T* weights_of(const ConvTransposeArgs& args, int64_t slot) {
  return (const T*)args.packed + slot * weights_pitch<T>(args);
}

template <typename T, typename In>
class PixelsForward {
  static constexpr int L = kLanes<T>;

 public:
  PixelsForward(const ConvTransposeArgs& args, void* scratch)
      : args_(args),
        slots_(args.groups),
        arena_(scratch),
        row_taps_((args.weight.height + args.stride_h - 1) / args.stride_h),
        taps_((args.weight.width + args.stride_w - 1) / args.stride_w),
        in_place_(sizeof(T) == sizeof(In) && !slots_.padded()),
        x_pitch_(in_place_         ? args.x.stride_w
                 : slots_.padded() ? L
                                   : args.groups),
        stream_(!slots_.padded() && args.output.stride_w == args.groups && leaves_cache(args.output, sizeof(In))) {
    const int64_t width = args.output.width;
    if (!in_place_) {
      lines_ = arena_.take<T>(row_taps_ * args.x.width * x_pitch_);
      rows_ = arena_.take<int64_t>(row_taps_);
    }
    bias_ = arena_.take<T>(slots_.count * L);
    x_ = arena_.take<const T*>(row_taps_ * taps_);
    weights_ = arena_.take<const T*>(row_taps_ * taps_);
    if (slots_.padded()) {
      add_ = arena_.take<In>(width * L);
      out_ = arena_.take<In>(width * L);
    }
    if (slots_.padded() || stream_) row_ = arena_.take<In>(width * args.groups + L);
  }

  ConvTransposePlan plan() const {
    ConvTransposePlan plan{};
    plan.pack_units = slots_.count;
    plan.packed_bytes = slots_.count * args_.weight.height * args_.weight.width * L * (int64_t)sizeof(T);
    plan.units = chunk_count(args_.output.batch, args_.output.height);
    plan.scratch_bytes = arena_.used;
    return plan;
  }

  void run(int64_t unit) {
    const Chunk chunk = chunk_of(unit, args_.output.batch, args_.output.height);
    image_ = chunk.item;
    for (int64_t i = 0; i < slots_.count * L; ++i) bias_[i] = T(-0.0);  // which changes no sum
    if (args_.bias) {
      for (int64_t s = 0; s < slots_.count; ++s) {
        const In* from = (const In*)args_.bias + slots_.channel(s);
        for (int64_t l = 0; l < slots_.lanes(); ++l) bias_[s * L + l] = (T)to_arithmetic(from[l]);
      }
    }
    for (int64_t i = 0; !in_place_ && i < row_taps_; ++i) rows_[i] = -1;
    for (int64_t y = chunk.begin; y < chunk.end; ++y) compute_row(y);
  }

 private:
  // Row tap j reads row bottom - j of x and has ky = phase + j * stride; likewise the column taps.
  void compute_row(int64_t y) {
    const Image &output = args_.output, &skip = args_.skip, &w = args_.weight;
    const int64_t t = y + args_.offset_h, phase = t % args_.stride_h;
    bottom_ = t / args_.stride_h;
    phase_ = phase;
    const int64_t rows = phase < w.height ? (w.height - phase + args_.stride_h - 1) / args_.stride_h : 0;
    begin_ = bottom_ < args_.x.height ? 0 : bottom_ - args_.x.height + 1;
    end_ = bottom_ + 1 < rows ? bottom_ + 1 : rows;
    for (int64_t j = begin_; !in_place_ && j < end_; ++j) fetch(bottom_ - j);

    In* const to = (In*)output.data + image_ * output.stride_n + y * output.stride_h;
    const In* add = skip.data ? (const In*)skip.data + image_ * skip.stride_n + y * skip.stride_h : nullptr;
    Intervals<T, In> p{};
    p.scale = (T)args_.skip_scale;
    p.out = stream_ ? row_ : to;
    p.out_pitch = output.stride_w;
    p.add = add;
    p.add_pitch = skip.stride_w;
    if (slots_.padded()) {
      p.out = out_;
      p.out_pitch = p.add_pitch = L;
      if (add) {
        read_slot(slots_, 0, add, skip.stride_w, output.width, add_);
        p.add = add_;
      }
    }
    write_columns(p);
    if (slots_.padded()) write_padded<T>(args_.groups, out_, output.width, row_, to, output.stride_w);
    if (stream_) stream_copy(to, row_, output.width * args_.groups * (int64_t)sizeof(In));
  }

  // Columns in intervals of a stride. Those that all taps reach, whole, are written together.
  void write_columns(const Intervals<T, In>& p) {
    const int64_t stride = args_.stride_w, first = args_.offset_w, last = first + args_.output.width - 1;
    const int64_t whole = (last + 1) / stride < args_.x.width ? (last + 1) / stride : args_.x.width;
    for (int64_t q = first / stride, next; q * stride <= last; q = next) {
      const int64_t begin = q * stride < first ? first - q * stride : 0;
      const int64_t end = (q + 1) * stride > last + 1 ? last + 1 - q * stride : stride;
      next = q + 1;
      if (begin == 0 && q >= taps_ - 1 && q < whole) next = whole;
      // The last tap of a kernel that strides do not divide has only the first outputs of an interval.
      const int64_t rest = args_.weight.width - (taps_ - 1) * stride;
      if (begin < rest) write(p, q, next, begin, end < rest ? end : rest, taps_);
      if (end > rest) write(p, q, next, begin > rest ? begin : rest, end, taps_ - 1);
    }
  }

  // Outputs [begin, end) of the intervals [first, last).
  void write(Intervals<T, In> p, int64_t first, int64_t last, int64_t begin, int64_t end, int64_t taps) {
    const int64_t tap_begin = first < args_.x.width ? 0 : first - args_.x.width + 1;
    const int64_t tap_end = first + 1 < taps ? first + 1 : taps,
                  column = first * args_.stride_w + begin - args_.offset_w;
    p.out += column * p.out_pitch;
    if (p.add) p.add += column * p.add_pitch;
    p.intervals = last - first;
    p.phases = end - begin;
    p.period = args_.stride_w;
    p.x = x_;
    p.weights = weights_;
    p.x_pitch = x_pitch_;
    p.weights_pitch = weights_pitch<T>(args_);
    p.bias = bias_;
    for (int64_t j = begin_; j < end_; ++j) {
      const T* const line = line_of(bottom_ - j);
      for (int64_t i = tap_begin; i < tap_end; ++i) {
        const int64_t ky = phase_ + j * args_.stride_h, kx = begin + i * args_.stride_w;
        x_[p.steps] = line + (first - i) * x_pitch_;
        weights_[p.steps++] = weights_of<T>(args_, 0) + (ky * args_.weight.width + kx) * L;
      }
    }
    write_intervals(slots_, p, p.steps <= kMostSteps ? p.steps : -1);
  }

  const T* line_of(int64_t row) const {
    if (!in_place_) return lines_ + row % row_taps_ * args_.x.width * x_pitch_;
    const Image& x = args_.x;
    return (const T*)x.data + image_ * x.stride_n + row * x.stride_h;
  }

  void fetch(int64_t row) {
    if (rows_[row % row_taps_] == row) return;
    rows_[row % row_taps_] = row;
    const Image& x = args_.x;
    const In* from = (const In*)x.data + image_ * x.stride_n + row * x.stride_h;
    T* const to = (T*)line_of(row);
    if (slots_.padded()) return read_slot(slots_, 0, from, x.stride_w, x.width, to);
    const bool joined = x.stride_w == args_.groups;  // the row is one long pixel
    const Slots<T> pieces(joined ? x.width * args_.groups : args_.groups);
    for (int64_t i = 0; i < (joined ? 1 : x.width); ++i) {
      for (int64_t piece = 0; piece < pieces.count; ++piece) {
        const int64_t channel = pieces.channel(piece);
        store_as(to + i * x_pitch_ + channel, load_as(from + i * x.stride_w + channel));
      }
    }
  }

  const ConvTransposeArgs& args_;
  const Slots<T> slots_;
  Arena arena_;
  const int64_t row_taps_, taps_;
  const bool in_place_;    // vectors of x are read where they stand
  const int64_t x_pitch_;  // from pixel to pixel
  const bool stream_;
  int64_t image_ = 0, bottom_ = 0, phase_ = 0, begin_ = 0, end_ = 0;  // of the row that is written
  T* lines_ = nullptr;       // [row_taps][pixel][x_pitch]: row i in i mod row_taps
  int64_t* rows_ = nullptr;  // which row stands there
  T* bias_;                  // [slot][L]
  const T **x_, **weights_;  // of every step
  In *add_ = nullptr, *out_ = nullptr, *row_ = nullptr;
};

// Products with the gradient at some taps, over `count` pixels of x:
//   out[i] += sum over taps of weights[tap] * lines[tap][i],  sums[tap] += sum over i of x[i] * lines[tap][i].
template <typename T>
struct Taps {
  const T* lines[kBothSteps];
  int64_t line_pitch, x_pitch, count;
  const T *x, *weights;
  T *out, *sums;
};

template <typename T, int U>
FCN_NOINLINE void multiply_taps(const Taps<T>& p) {
  constexpr int L = kLanes<T>;
  Vec<T> weights[U], sums[U];
  const T *lines[U], *x = p.x;
  T* FCN_RESTRICT out = p.out;
  for (int u = 0; u < U; ++u) {
    weights[u] = load(p.weights + u * L);
    sums[u] = load(p.sums + u * L);
    lines[u] = p.lines[u];
  }
  const int64_t line_pitch = p.line_pitch, x_pitch = p.x_pitch;
  for (int64_t i = 0; i < p.count; ++i, x += x_pitch, out += L) {
    const Vec<T> pixel = load(x);
    Vec<T> product = load(out);
    for (int u = 0; u < U; ++u) {
      const Vec<T> g = load(lines[u] + i * line_pitch);
      product += weights[u] * g;
      sums[u] += pixel * g;
    }
    store(out, product);
  }
  for (int u = 0; u < U; ++u) store(p.sums + u * L, sums[u]);
}

template <typename T, int U = kBothSteps>
FCN_INLINE void multiply_taps(const Taps<T>& p, int64_t taps) {
  if (taps == U) return multiply_taps<T, U>(p);
  if constexpr (U > 1) multiply_taps<T, U - 1>(p, taps);
}

template <typename T, typename In>
class PixelsBackward {
  static constexpr int L = kLanes<T>;

 public:
  PixelsBackward(const ConvTransposeArgs& args, void* scratch)
      : args_(args),
        slots_(args.groups),
        arena_(scratch),
        shares_((args.groups + kUnitChannels - 1) / kUnitChannels),
        parts_(pixels_parts(args)),
        taps_(args.weight.height * args.weight.width),
        in_place_(sizeof(T) == sizeof(In) && !slots_.padded()) {
    const int64_t slots = (slots_.count + shares_ - 1) / shares_, width = args.x.width;
    sums_ = arena_.take<T>(slots * taps_ * L);
    totals_ = arena_.take<T>(slots * taps_ * L);
    out_ = arena_.take<T>(width * L);
    begin_ = arena_.take<int64_t>(args.weight.width);
    end_ = arena_.take<int64_t>(args.weight.width);
    if (!in_place_) {
      lines_ = arena_.take<T>(args.weight.height * slots * args.output.width * L);
      rows_ = arena_.take<int64_t>(args.weight.height);
      x_ = arena_.take<T>(width * L);
    }
    if (slots_.padded()) row_ = arena_.take<In>(width * args.groups + L);
  }

  int64_t units() const { return shares_ * parts_; }
  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    const int64_t part = unit % parts_, height = args_.x.height, rows = args_.x.batch * height;
    // A share has two slots at least, if there are several: the last one and the one that it reaches over stay
    // together.
    first_ = slots_.count * (unit / parts_) / shares_;
    last_ = slots_.count * (unit / parts_ + 1) / shares_;
    // Tap kx reads column i * stride + kx - offset of the gradient for those pixels i where there is one.
    const int64_t stride = args_.stride_w, columns = args_.output.width;
    for (int64_t kx = 0; kx < args_.weight.width; ++kx) {
      const int64_t before = args_.offset_w - kx, end = (columns - 1 + before + stride) / stride;
      begin_[kx] = before > 0 ? (before + stride - 1) / stride : 0;
      end_[kx] = columns + before <= 0 ? 0 : (end < args_.x.width ? end : args_.x.width);
    }
    memset(sums_, 0, (last_ - first_) * taps_ * L * sizeof(T));
    memset(totals_, 0, (last_ - first_) * taps_ * L * sizeof(T));
    image_ = -1;
    int64_t pixels = 0;
    const int64_t end = rows * (part + 1) / parts_;
    for (int64_t row = rows * part / parts_; row < end; ++row) {
      if (row / height != image_) {
        image_ = row / height;
        for (int64_t i = 0; !in_place_ && i < args_.weight.height; ++i) rows_[i] = -1;
      }
      compute_row(row % height);
      pixels += args_.x.width;
      if (pixels >= kLaneSums || row + 1 == end) {
        add_sums();
        pixels = 0;
      }
    }
    if (args_.grad_weight.data) unpack((T*)args_.parts + part * args_.groups * taps_);
  }

 private:
  // Row tap ky of x's row y reads row y * stride + ky - offset of the gradient.
  void compute_row(int64_t y) {
    const Image &x = args_.x, &grad_x = args_.grad_x;
    const int64_t top = y * args_.stride_h - args_.offset_h, below = args_.output.height - top;
    const int64_t begin = top < 0 ? -top : 0, end = below < args_.weight.height ? below : args_.weight.height;
    for (int64_t ky = begin; !in_place_ && ky < end; ++ky) fetch(top + ky);
    const In* pixels = (const In*)x.data + image_ * x.stride_n + y * x.stride_h;
    In* to = (In*)grad_x.data + image_ * grad_x.stride_n + y * grad_x.stride_h;
    for (int64_t slot = first_; slot < last_; ++slot) {
      memset(out_, 0, x.width * L * sizeof(T));
      if (in_place_) {
        multiply(slot, (const T*)pixels + slots_.channel(slot), x.stride_w, top, begin, end);
      } else {
        read_slot(slots_, slot, pixels, x.stride_w, x.width, x_);
        multiply(slot, x_, L, top, begin, end);
      }
      if (!grad_x.data) continue;
      if (slots_.padded()) {
        write_padded<T>(args_.groups, out_, x.width, row_, to, grad_x.stride_w);
        continue;
      }
      In* const out = to + slots_.channel(slot);
      for (int64_t i = 0; i < x.width; ++i) store_as(out + i * grad_x.stride_w, load(out_ + i * L));
    }
  }

  // All products of a slot in a row of x, at the taps of the rows [begin, end) of the kernel.
  void multiply(int64_t slot, const T* x, int64_t x_pitch, int64_t top, int64_t begin, int64_t end) {
    const int64_t width = args_.weight.width, pitch = in_place_ ? args_.output.stride_w : L;
    Taps<T> p{};
    p.line_pitch = args_.stride_w * pitch;
    p.x_pitch = x_pitch;
    const auto multiply_pixels = [&](int64_t tap, int64_t count, int64_t first, int64_t last) {
      if (first >= last) return;
      for (int64_t u = 0; u < count; ++u) {
        const int64_t ky = (tap + u) / width, kx = (tap + u) % width;
        p.lines[u] = line_of(top + ky, slot) + (first * args_.stride_w + kx - args_.offset_w) * pitch;
      }
      p.count = last - first;
      p.x = x + first * x_pitch;
      p.out = out_ + first * L;
      p.weights = weights_of<T>(args_, slot) + tap * L;
      p.sums = sums_ + ((slot - first_) * taps_ + tap) * L;
      multiply_taps(p, count);
    };
    for (int64_t tap = begin * width; tap < end * width; tap += kBothSteps) {
      const int64_t count = end * width - tap < kBothSteps ? end * width - tap : kBothSteps;
      int64_t first = 0, last = args_.x.width;
      for (int64_t kx, u = 0; u < count; ++u) {
        kx = (tap + u) % width;
        first = begin_[kx] > first ? begin_[kx] : first;
        last = end_[kx] < last ? end_[kx] : last;
      }
      if (last < first) last = first;
      multiply_pixels(tap, count, first, last);
      // The pixels that only some of these taps have.
      for (int64_t kx, u = 0; u < count; ++u) {
        kx = (tap + u) % width;
        multiply_pixels(tap + u, 1, begin_[kx], first < end_[kx] ? first : end_[kx]);
        multiply_pixels(tap + u, 1, last > begin_[kx] ? last : begin_[kx], end_[kx]);
      }
    }
  }

  const T* line_of(int64_t row, int64_t slot) const {
    const Image& grad = args_.output;
    if (in_place_) {
      return (const T*)grad.data + image_ * grad.stride_n + row * grad.stride_h + slots_.channel(slot);
    }
    return lines_ + (row % args_.weight.height * (last_ - first_) + slot - first_) * grad.width * L;
  }

  void fetch(int64_t row) {
    int64_t& held = rows_[row % args_.weight.height];
    if (held == row) return;
    held = row;
    const Image& grad = args_.output;
    const In* from = (const In*)grad.data + image_ * grad.stride_n + row * grad.stride_h;
    for (int64_t slot = first_; slot < last_; ++slot) {
      read_slot(slots_, slot, from, grad.stride_w, grad.width, (T*)line_of(row, slot));
    }
  }

  void add_sums() {
    const int64_t count = (last_ - first_) * taps_ * L;
    for (int64_t i = 0; i < count; i += L) store(totals_ + i, load(totals_ + i) + load(sums_ + i));
    memset(sums_, 0, count * sizeof(T));
  }

  // The totals to this part of the gradient of the weights, in its own order.
  void unpack(T* part) const {
    for (int64_t slot = first_; slot < last_; ++slot) {
      for (int64_t l = 0; l < slots_.lanes(); ++l) {  // some are those of the slot before again, with the same bits
        T* const to = part + (slots_.channel(slot) + l) * taps_;
        for (int64_t tap = 0; tap < taps_; ++tap) to[tap] = totals_[((slot - first_) * taps_ + tap) * L + l];
      }
    }
  }

  const ConvTransposeArgs& args_;
  const Slots<T> slots_;
  Arena arena_;
  const int64_t shares_, parts_, taps_;  // shares of the slots, parts of the rows
  const bool in_place_;                  // vectors of x and of the gradient are read where they stand
  int64_t first_ = 0, last_ = 0, image_ = -1;
  T *sums_, *totals_, *out_;           // [slot][ky][kx][L]; [pixel][L], the gradient of a slot of a row of x
  int64_t *begin_, *end_;              // the pixels that have a tap
  T *lines_ = nullptr, *x_ = nullptr;  // [ky][slot][column][L]: row i of the gradient in i mod ky; [pixel][L]
  int64_t* rows_ = nullptr;            // which row stands there
  In* row_ = nullptr;
};

}  // namespace

ConvTransposePlan pixels_plan(const ConvTransposeArgs& args) {
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    return PixelsForward<ArithmeticOf<In>, In>(args, nullptr).plan();
  });
}

void pixels_pack(const ConvTransposeArgs& args, int64_t slot) {
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    const Slots<T> slots(args.groups);
    const Image& w = args.weight;
    T* to = (T*)weights_of<T>(args, slot);
    for (int64_t ky = 0; ky < w.height; ++ky) {
      for (int64_t kx = 0; kx < w.width; ++kx) {
        const In* from = (const In*)w.data + slots.channel(slot) * w.stride_n + ky * w.stride_h + kx * w.stride_w;
        for (int64_t l = 0; l < kLanes<T>; ++l) {
          *to++ = l < slots.lanes() ? (T)to_arithmetic(from[l * w.stride_n]) : T(0);
        }
      }
    }
  });
}

void pixels_forward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    PixelsForward<ArithmeticOf<In>, In>(args, scratch).run(unit);
  });
}

int64_t pixels_parts(const ConvTransposeArgs& args) {
  const int64_t rows = args.x.batch * args.x.height;
  return sum_parts((args.groups + kUnitChannels - 1) / kUnitChannels, rows * args.x.width, rows);
}

ConvTransposePlan pixels_backward_plan(const ConvTransposeArgs& args) {
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    const PixelsBackward<ArithmeticOf<In>, In> kernel(args, nullptr);
    const ConvTransposePlan forward = PixelsForward<ArithmeticOf<In>, In>(args, nullptr).plan();
    ConvTransposePlan plan{};
    plan.packed_bytes = forward.packed_bytes;
    plan.pack_units = forward.pack_units;
    plan.units = kernel.units();
    plan.scratch_bytes = kernel.scratch_bytes();
    return plan;
  });
}

void pixels_backward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    PixelsBackward<ArithmeticOf<In>, In>(args, scratch).run(unit);
  });
}

}  // namespace FCN_ISA
}  // namespace fcn
