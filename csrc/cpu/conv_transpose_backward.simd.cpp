// Gradients of the learned transposed convolution in x and in the weights, in one walk over the input rows: the rows of
// the gradient that an input row reached are read once for both. See conv_lines.h.
#include "conv_depthwise.h"
#include "conv_parts.h"
#include "conv_patches.h"
#include "conv_pixels.h"
#include "conv_planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kSumElements = 1 << 13;

template <typename T>
int64_t shares_of(const ConvTransposeArgs& args, const Packing& p) {
  return share_count(p, args.groups, args.pixelwise, sizeof(T));
}

// Parts of the rows of all images; each has its own sum of the gradient of the weights.
template <typename T>
int64_t part_count(const ConvTransposeArgs& args) {
  if (is_patches(args)) return patches_parts(args);
  if (is_planes_backward(args)) return planes_parts(args);
  if (is_pixels(args)) return pixels_parts(args);
  const int64_t rows = args.x.batch * args.x.height;
  return sum_parts(shares_of<T>(args, backward_packing<T>(args)), rows * args.x.width, rows);
}

int64_t weight_count(const Image& w) { return w.batch * w.channels * w.height * w.width; }

template <typename T, typename In>
class ConvTransposeBackward {
  static constexpr int L = kLanes<T>;

 public:
  ConvTransposeBackward(const ConvTransposeArgs& args, void* scratch)
      : args_(args), p_(backward_packing<T>(args)), arena_(scratch), shares_(shares_of<T>(args, p_)) {
    const Columns& c = p_.columns;
    const int64_t inner = groups_together(p_, args.groups, args.pixelwise) * p_.inner;
    const int64_t outer = share_channels(p_, args.groups, args.pixelwise, sizeof(T));
    pitch_ = line_pitch<T>((c.taps - 1) * c.stride + c.periods * c.length);
    slot_size_ = inner * pitch_;
    lines_ = arena_.take<T>(p_.row_taps * slot_size_);
    rows_ = arena_.take<int64_t>(p_.row_taps);
    for (const T**& steps : steps_) steps = arena_.take<const T*>(p_.vector_steps());
    if (args.grad_x.data) {
      out_pitch_ = line_pitch<T>(c.periods * c.vectors * L);
      out_ = arena_.take<T>((outer < p_.outer ? outer : p_.outer) * out_pitch_);
    }
    if (args.grad_weight.data) {
      x_ = arena_.take<T>(outer * pitch_);
      pixels_ = arena_.take<T>(kTogether * pitch_);
      sums_ = arena_.take<T>(outer * p_.channel_size());
    }
  }

  int64_t scratch_bytes() const { return arena_.used; }
  int64_t units() const { return shares_ * part_count<T>(args_); }
  const Packing& packing() const { return p_; }

  void run(int64_t unit) {
    const int64_t parts = part_count<T>(args_), part = unit % parts, rows = args_.x.batch * args_.x.height;
    share_ = share_of(unit / parts, p_, args_.groups, args_.pixelwise, sizeof(T));
    part_ = (T*)args_.parts + part * weight_count(args_.weight);
    memset(lines_, 0, p_.row_taps * slot_size_ * sizeof(T));
    const bool sum = args_.grad_weight.data != nullptr;
    if (sum) memset(x_, 0, share_outer() * pitch_ * sizeof(T));
    int64_t pixels = kSumPixels;
    bool fresh = true;
    image_ = -1;
    const int64_t end = rows * (part + 1) / parts;
    for (int64_t row = rows * part / parts; row < end; ++row) {
      if (sum && pixels >= kSumPixels) memset(sums_, 0, share_outer() * p_.channel_size() * sizeof(T));
      if (pixels >= kSumPixels) pixels = 0;
      if (row / args_.x.height != image_) {
        image_ = row / args_.x.height;
        for (int64_t slot = 0; slot < p_.row_taps; ++slot) rows_[slot] = -1;
      }
      compute_row(row % args_.x.height);
      pixels += args_.x.width;
      if (sum && (pixels >= kSumPixels || row + 1 == end)) {
        unpack(fresh);
        fresh = false;
      }
    }
  }

 private:
  int64_t share_outer() const {
    return (share_.group_end - share_.group_begin - 1) * p_.outer + p_.block_begin(share_.block_end) -
           p_.block_begin(share_.block_begin);
  }

  void compute_row(int64_t i) {
    // Row tap ky reads row i * stride + ky - offset of the gradient.
    const int64_t top = i * args_.stride_h - args_.offset_h;
    int64_t begin = -top, end = args_.output.height - top;
    begin = begin < 0 ? 0 : begin;
    end = end > p_.row_taps ? p_.row_taps : end;
    if (end < begin) end = begin;
    const int64_t first_slot = begin < end ? (top + begin) % p_.row_taps : 0;
    for (int64_t ky = begin, slot = first_slot; ky < end; ++ky, slot = slot_after(slot)) fetch(top + ky, slot);
    if (args_.grad_weight.data && end > begin) fetch_x(i);

    const bool both = args_.grad_x.data && args_.grad_weight.data && is_depthwise(p_) && end > begin;
    int64_t done = 0;  // outer channels of the share
    for (int64_t g = share_.group_begin; g < share_.group_end; ++g) {
      list_steps(g, first_slot, begin, end);
      if (both) {
        multiply_both_products(g, done++, begin, end);
        collect(out_, g, i);
        continue;
      }
      const int64_t first = p_.block_begin(share_.block_begin), count = p_.block_begin(share_.block_end) - first;
      if (args_.grad_x.data) {
        multiply_blocks<T>(p_, (const T*)args_.packed + g * p_.group_size(), share_, 0, begin, end, steps_, out_,
                           out_pitch_);
        for (int64_t o = 0; o < count; ++o) collect(out_ + o * out_pitch_, g * p_.outer + first + o, i);
      }
      if (args_.grad_weight.data) correlate_blocks(done, begin, end);
      done += count;
    }
  }

  int64_t slot_after(int64_t slot) const { return slot + 1 < p_.row_taps ? slot + 1 : 0; }

  // The lines of a row of the gradient, of all inner channels of the share; zeros around the crop.
  void fetch(int64_t row, int64_t slot) {
    if (rows_[slot] == row) return;
    rows_[slot] = row;
    const Image& grad = args_.output;
    T* line = lines_ + slot * slot_size_ + args_.offset_w;
    const In* from = (const In*)grad.data + image_ * grad.stride_n + row * grad.stride_h;
    if (grad.stride_c == 1 && grad.stride_w != 1) {
      const int64_t first = share_.group_begin * p_.inner, count = share_.group_end * p_.inner - first;
      return read_pixels(from + first, grad.stride_w, grad.width, count, line, pitch_);
    }
    for (int64_t co = share_.group_begin * p_.inner; co < share_.group_end * p_.inner; ++co, line += pitch_) {
      read_row(from + co * grad.stride_c, grad.stride_w, grad.width, line);
    }
  }

  void fetch_x(int64_t row) {
    const Image& x = args_.x;
    const In* from = (const In*)x.data + image_ * x.stride_n + row * x.stride_h;
    const int64_t first = share_.group_begin * p_.outer + p_.block_begin(share_.block_begin);
    repeat_rows(from + first * x.stride_c, x.stride_c, x.stride_w, x.width, share_outer(), p_.columns.stride, pixels_,
                x_, pitch_);
  }

  void list_steps(int64_t group, int64_t first_slot, int64_t begin, int64_t end) {
    const Columns& c = p_.columns;
    for (int section = 0; section < 2; ++section) {
      const T** step = steps_[section];
      const int64_t taps = p_.section_taps(section), lead = section == 0 ? 0 : c.full;
      if (taps == 0) continue;
      for (int64_t ky = begin, slot = first_slot; ky < end; ++ky, slot = slot_after(slot)) {
        const T* line = lines_ + slot * slot_size_ + lead * c.stride;
        line += (group - share_.group_begin) * p_.inner * pitch_;
        for (int64_t k = 0; k < p_.inner; ++k, line += pitch_) {
          for (int64_t j = 0; j < taps; ++j) *step++ = line + j * c.stride;
        }
      }
    }
  }

  void collect(const T* line, int64_t channel, int64_t row) const {
    const Image& out = args_.grad_x;
    In* to = (In*)out.data + image_ * out.stride_n + channel * out.stride_c + row * out.stride_h;
    sum_columns(p_.columns, line, out.width, to, out.stride_w);
  }

  // Of a depthwise convolution; `done` channels of the share come first.
  void multiply_both_products(int64_t group, int64_t done, int64_t begin, int64_t end) {
    const Columns& c = p_.columns;
    const int64_t rest = args_.x.width % c.pixels * c.stride, steps = (end - begin) * c.taps;
    BothProducts<T> products{};
    products.period = c.length;
    products.out_period = c.vectors * L;
    products.count = args_.x.width / c.pixels;
    products.x = x_ + done * pitch_;
    products.rows = 1;
    for (int64_t v = 0; v < c.vectors; ++v) {
      const int64_t first = p_.offset(0, 1, 0, v, 0, begin);
      products.at = v * L;
      products.out = out_ + v * L;
      products.has_tail = rest > 0;
      products.tail = first_lanes<T>(rest - v * L);
      for (int64_t s = 0; s < steps; s += kBothSteps) {
        products.lines = steps_[0] + s;
        products.weights = (const T*)args_.packed + group * p_.group_size() + first + s * L;
        products.sums = sums_ + done * p_.channel_size() + first + s * L;
        products.add = s > 0;
        multiply_both(products, steps - s < kBothSteps ? steps - s : kBothSteps);
      }
    }
  }

  // `done` outer channels of the share, those of earlier groups, come first.
  void correlate_blocks(int64_t done, int64_t begin, int64_t end) {
    const Columns& c = p_.columns;
    const int64_t first = p_.block_begin(share_.block_begin);
    Correlation<T> sums{};
    sums.period = c.length;
    sums.count = args_.x.width / c.pixels;
    const int64_t rest = args_.x.width % c.pixels * c.stride;
    for (int64_t v = 0; v < c.vectors; ++v) {
      sums.at = v * L;
      sums.has_tail = rest > v * L;
      if (sums.has_tail) sums.tail = first_lanes<T>(rest - v * L);
      for (int section = 0; section < 2; ++section) {
        const int64_t steps = (end - begin) * p_.inner * p_.section_taps(section);
        for (int64_t s = 0; s < steps; s += kChunkSteps) {
          sums.columns = steps_[section] + s;
          for (int64_t b = share_.block_begin; b < share_.block_end; ++b) {
            const int64_t channel = done + p_.block_begin(b) - first, m = p_.block_begin(b + 1) - p_.block_begin(b);
            const T* lines[kOuter];
            for (int64_t o = 0; o < m; ++o) lines[o] = x_ + (channel + o) * pitch_;
            sums.lines = lines;
            sums.weights = sums_ + p_.offset(channel, m, 0, v, section, begin) + s * m * L;
            correlate(sums, m, steps - s < kChunkSteps ? steps - s : kChunkSteps);
          }
        }
      }
    }
  }

  // The sums to this part of the gradient of the weights, in its own order.
  void unpack(bool fresh) {
    const Image& w = args_.weight;
    const int64_t first = p_.block_begin(share_.block_begin), group_rows = w.channels * w.height * w.width;
    int64_t done = 0;
    for (int64_t g = share_.group_begin; g < share_.group_end; ++g) {
      T* to = part_ + g * p_.outer * group_rows;
      if (fresh)
        memset(to + first * group_rows, 0, (p_.block_begin(share_.block_end) - first) * group_rows * sizeof(T));
      for (int64_t b = share_.block_begin; b < share_.block_end; ++b) {
        const int64_t begin = p_.block_begin(b), m = p_.block_begin(b + 1) - begin;
        // The sums of the share's channels stand one after the other.
        const int64_t shift = (done - begin) * p_.channel_size();
        for_packed(p_, w.height, begin, m,
                   [&](int64_t at, int64_t ci, int64_t co, int64_t ky, int64_t kx, int64_t count) {
                     T* run = to + ((ci * w.channels + co) * w.height + ky) * w.width + kx;
                     for (int64_t i = 0; i < count; ++i) run[i] += sums_[at + shift + i];
                   });
        done += m;
      }
    }
  }

  const ConvTransposeArgs& args_;
  const Packing p_;
  Arena arena_;
  const int64_t shares_;
  Share share_{};
  int64_t image_ = -1, pitch_, slot_size_, out_pitch_ = 0;
  T* lines_;       // [row_taps][inner channels][pitch]: row i of the gradient in slot i mod row_taps
  int64_t* rows_;  // which row a slot holds
  const T** steps_[2];
  T* out_ = nullptr;     // [outer channels of a group][out_pitch]
  T* x_ = nullptr;       // [outer channels][pitch]
  T* pixels_ = nullptr;  // see repeat_rows
  T* sums_ = nullptr;    // of the gradient of the weights, packed as these are
  T* part_ = nullptr;
};

}  // namespace

ConvTransposePlan conv_transpose_backward_plan(const ConvTransposeArgs& args) {
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    ConvTransposePlan plan{};
    if (is_patches(args)) {
      plan = patches_backward_plan(args);
    } else if (is_planes_backward(args)) {
      plan = planes_backward_plan(args);
    } else if (is_pixels(args)) {
      plan = pixels_backward_plan(args);
    } else {
      const ConvTransposeBackward<T, In> kernel(args, nullptr);
      if (args.grad_x.data) {
        plan.packed_bytes = args.groups * kernel.packing().group_size() * (int64_t)sizeof(T);
        plan.pack_units = args.groups * kernel.packing().blocks;
      }
      plan.units = kernel.units();
      plan.scratch_bytes = kernel.scratch_bytes();
    }
    if (args.grad_weight.data) {
      plan.parts_bytes = part_count<T>(args) * weight_count(args.weight) * (int64_t)sizeof(T);
      plan.sum_units = (weight_count(args.weight) + kSumElements - 1) / kSumElements;
    }
    return plan;
  });
}

void conv_transpose_backward_pack(const ConvTransposeArgs& args, int64_t unit) {
  if (is_patches(args)) return patches_backward_pack(args, unit);
  if (is_pixels(args)) return pixels_pack(args, unit);
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    pack_weights<T, In>(args, backward_packing<T>(args), unit);
  });
}

void conv_transpose_backward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  if (is_patches(args)) return patches_backward(args, unit, scratch);
  if (is_planes_backward(args)) return planes_backward(args, unit, scratch);
  if (is_pixels(args)) return pixels_backward(args, unit, scratch);
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    ConvTransposeBackward<ArithmeticOf<In>, In>(args, scratch).run(unit);
  });
}

void conv_transpose_sum_parts(const ConvTransposeArgs& args, int64_t unit) {
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    const int64_t count = weight_count(args.weight), parts = part_count<T>(args), begin = unit * kSumElements;
    const int64_t end = begin + kSumElements < count ? begin + kSumElements : count;
    for (int64_t i = begin; i < end; ++i) {
      T total = ((const T*)args.parts)[i];
      for (int64_t part = 1; part < parts; ++part) total += ((const T*)args.parts)[part * count + i];
      from_arithmetic(total, (In*)args.grad_weight.data + i);
    }
  });
}

}  // namespace FCN_ISA
}  // namespace fcn
