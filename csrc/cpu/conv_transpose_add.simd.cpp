// Learned transposed convolution, crop and skip in one pass: per output row the lines of the input rows that reach it
// times the packed weights, bias and skip added on the way out. See conv_lines.h.
#include "conv_lines.h"
#include "conv_patches.h"
#include "conv_pixels.h"
#include "conv_planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename In>
class ConvTransposeAdd {
  static constexpr int L = kLanes<T>;

 public:
  ConvTransposeAdd(const ConvTransposeArgs& args, void* scratch)
      : args_(args),
        p_(forward_packing<T>(args)),
        arena_(scratch),
        shares_(share_count(p_, args.groups, args.pixelwise, sizeof(T))),
        first_pixel_(args.offset_w / args.stride_w),
        scale_((T)args.skip_scale) {
    const Columns& c = p_.columns;
    const int64_t inner = groups_together(p_, args.groups, args.pixelwise) * p_.inner;
    pitch_ = line_pitch<T>((c.taps - 1) * c.stride + c.periods * c.length);
    slot_size_ = inner * pitch_;
    lines_ = arena_.take<T>(p_.row_taps * slot_size_);
    pixels_ = arena_.take<T>(kTogether * pitch_);
    rows_ = arena_.take<int64_t>(p_.row_taps);
    for (const T**& steps : steps_) steps = arena_.take<const T*>(p_.vector_steps());
    out_pitch_ = line_pitch<T>(c.periods * c.vectors * L);
    const int64_t outer = share_channels(p_, args.groups, args.pixelwise, sizeof(T));
    out_ = arena_.take<T>(outer * out_pitch_);
    bias_ = arena_.take<T>(outer);
    row_ = arena_.take<In>(args.output.width + L);
  }

  int64_t units() const { return chunk_count(args_.output.batch * shares_, args_.output.height); }
  int64_t scratch_bytes() const { return arena_.used; }
  int64_t pack_units() const { return args_.groups * p_.blocks; }
  const Packing& packing() const { return p_; }

  void run(int64_t unit) {
    const Chunk chunk = chunk_of(unit, args_.output.batch * shares_, args_.output.height);
    share_ = share_of(chunk.item % shares_, p_, args_.groups, args_.pixelwise, sizeof(T));
    image_ = chunk.item / shares_;
    read_bias();
    memset(lines_, 0, p_.row_taps * slot_size_ * sizeof(T));
    for (int64_t slot = 0; slot < p_.row_taps; ++slot) rows_[slot] = -1;
    for (int64_t y = chunk.begin; y < chunk.end; ++y) compute_row(y);
  }

 private:
  void compute_row(int64_t y) {
    const int64_t t = y + args_.offset_h, bottom = t / args_.stride_h, phase = t % args_.stride_h;
    // Row tap j reads input row bottom - j and has ky = phase + j * stride.
    const bool fewer = (p_.row_taps - 1) * args_.stride_h + phase >= args_.weight.height;
    int64_t begin = bottom - args_.x.height + 1, end = p_.row_taps - fewer;
    begin = begin < 0 ? 0 : begin;
    end = end > bottom + 1 ? bottom + 1 : end;
    if (phase >= args_.weight.height || end < begin) end = begin = 0;
    const int64_t first_slot = begin < end ? (bottom - begin) % p_.row_taps : 0;
    for (int64_t j = begin, slot = first_slot; j < end; ++j, slot = slot_before(slot)) fetch(bottom - j, slot);

    T* out = out_;
    for (int64_t g = share_.group_begin; g < share_.group_end; ++g) {
      list_steps(g, first_slot, begin, end);
      multiply_blocks<T>(p_, (const T*)args_.packed + g * p_.group_size(), share_, phase, begin, end, steps_, out,
                         out_pitch_);
      out += (p_.block_begin(share_.block_end) - p_.block_begin(share_.block_begin)) * out_pitch_;
    }
    finish(first_channel(), (out - out_) / out_pitch_, y);
  }

  int64_t first_channel() const { return share_.group_begin * p_.outer + p_.block_begin(share_.block_begin); }

  // Of the share's channels; none is -0, which leaves every sum as it is.
  void read_bias() {
    const int64_t count = (share_.group_end - share_.group_begin) *
                          (p_.block_begin(share_.block_end) - p_.block_begin(share_.block_begin));
    const In* from = (const In*)args_.bias + first_channel();
    for (int64_t i = 0; i < count; ++i) bias_[i] = args_.bias ? (T)to_arithmetic(from[i]) : T(-0.0);
  }

  int64_t slot_before(int64_t slot) const { return (slot > 0 ? slot : p_.row_taps) - 1; }

  // The lines of an input row, of all inner channels of the share.
  void fetch(int64_t row, int64_t slot) {
    if (rows_[slot] == row) return;
    rows_[slot] = row;
    const Columns& c = p_.columns;
    const int64_t left = first_pixel_ - (c.taps - 1),
                  begin = left < 0 ? 0 : left;  // the first pixel of a line is `left`
    int64_t end = left + c.taps - 1 + c.periods * c.pixels;
    if (end > args_.x.width) end = args_.x.width;
    const Image& x = args_.x;
    const int64_t first = share_.group_begin * p_.inner, count = share_.group_end * p_.inner - first;
    const In* from = (const In*)x.data + image_ * x.stride_n + row * x.stride_h + begin * x.stride_w;
    repeat_rows(from + first * x.stride_c, x.stride_c, x.stride_w, end - begin, count, c.stride, pixels_,
                lines_ + slot * slot_size_ + (begin - left) * c.stride, pitch_);
  }

  void list_steps(int64_t group, int64_t first_slot, int64_t begin, int64_t end) {
    const Columns& c = p_.columns;
    for (int section = 0; section < 2; ++section) {
      const T** step = steps_[section];
      const int64_t taps = p_.section_taps(section), lead = section == 0 ? 0 : c.full;
      if (taps == 0) continue;
      for (int64_t j = begin, slot = first_slot; j < end; ++j, slot = slot_before(slot)) {
        const T* line = lines_ + slot * slot_size_ + (c.taps - 1 - lead) * c.stride;
        line += (group - share_.group_begin) * p_.inner * pitch_;
        for (int64_t k = 0; k < p_.inner; ++k, line += pitch_) {
          for (int64_t i = 0; i < taps; ++i) *step++ = line - i * c.stride;
        }
      }
    }
  }

  // Channels [c, c + count) of row y: crop, skip, and the order of the output.
  void finish(int64_t c, int64_t count, int64_t y) {
    const Columns& columns = p_.columns;
    const int64_t period = columns.vectors * L;
    if (period != columns.length) {
      for (int64_t i = 0; i < count; ++i) {
        T* line = out_ + i * out_pitch_;
        for (int64_t n = 1; n < columns.periods; ++n) {
          memmove(line + n * columns.length, line + n * period, columns.length * sizeof(T));
        }
      }
    }
    const Image &output = args_.output, &skip = args_.skip;
    const T* line = out_ + args_.offset_w - first_pixel_ * columns.stride;
    In* out = (In*)output.data + image_ * output.stride_n + c * output.stride_c + y * output.stride_h;
    const In* add = (const In*)skip.data + image_ * skip.stride_n + c * skip.stride_c + y * skip.stride_h;
    if (args_.pixelwise) return finish_pixels(line, count, add, out);
    const bool stream = leaves_cache(output, sizeof(In));
    for (int64_t i = 0; i < count; ++i) {
      finish_row(line + i * out_pitch_, bias_[i], output.width, skip.data != nullptr, scale_, add + i * skip.stride_c,
                 skip.stride_w, stream ? row_ : out);
      if (stream) stream_copy(out, row_, output.width * (int64_t)sizeof(In));
      out += output.stride_c;
    }
  }

  void finish_pixels(const T* line, int64_t count, const In* add, In* out) const {
    const int64_t width = args_.output.width, whole = width / L * L, blocks = count / kTogether * kTogether;
    const int64_t stride = args_.output.stride_w, skip_stride = args_.skip.stride_w;
    for (int64_t i = 0; i < width; ++i) {
      if (i < whole && i % L == 0) {
        for (int64_t c = 0; c < blocks; c += kTogether) {
          T t[kTogether * L];
          lines_to_pixels(line + c * out_pitch_ + i, out_pitch_, t);
          for (int64_t l = 0; l < L; ++l) {
            finish_channels<kTogether>(t + l * kTogether, add, (i + l) * skip_stride, c, out + (i + l) * stride);
          }
        }
      }
      for (int64_t c = i < whole ? blocks : 0; c < count; ++c) {
        finish_channels<1>(line + c * out_pitch_ + i, add, i * skip_stride, c, out + i * stride);
      }
    }
  }

  template <int K>
  FCN_INLINE void finish_channels(const T* from, const In* add, int64_t at, int64_t c, In* out) const {
    const Image& skip = args_.skip;
    T t[K];
    for (int k = 0; k < K; ++k) t[k] = from[k] + bias_[c + k];
    if (skip.data && skip.stride_c == 1) {
      for (int k = 0; k < K; ++k) t[k] += scale_ * (T)to_arithmetic(add[at + c + k]);
    } else if (skip.data) {
      for (int k = 0; k < K; ++k) t[k] += scale_ * (T)to_arithmetic(add[at + (c + k) * skip.stride_c]);
    }
    for (int k = 0; k < K; ++k) from_arithmetic(t[k], out + c + k);
  }

  const ConvTransposeArgs& args_;
  const Packing p_;
  Arena arena_;
  const int64_t shares_;
  const int64_t first_pixel_;
  const T scale_;
  Share share_{};
  int64_t image_ = 0, pitch_, slot_size_, out_pitch_;
  T* lines_;       // [row_taps][inner channels][pitch]: input row i in slot i mod row_taps
  T* pixels_;      // see repeat_rows
  int64_t* rows_;  // which row a slot holds
  const T** steps_[2];
  T* out_;   // [outer channels][out_pitch]
  T* bias_;  // [outer channels]
  In* row_;
};

}  // namespace

ConvTransposePlan conv_transpose_plan(const ConvTransposeArgs& args) {
  if (is_patches(args)) return patches_plan(args);
  if (is_planes(args)) return planes_plan(args);
  if (is_pixels(args)) return pixels_plan(args);
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    const ConvTransposeAdd<T, In> kernel(args, nullptr);
    ConvTransposePlan plan{};
    plan.pack_units = kernel.pack_units();
    plan.packed_bytes = args.groups * kernel.packing().group_size() * (int64_t)sizeof(T);
    plan.units = kernel.units();
    plan.scratch_bytes = kernel.scratch_bytes();
    return plan;
  });
}

void conv_transpose_pack(const ConvTransposeArgs& args, int64_t unit) {
  if (is_patches(args)) return patches_pack(args, unit);
  if (is_pixels(args)) return pixels_pack(args, unit);
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    pack_weights<T, In>(args, forward_packing<T>(args), unit);
  });
}

void conv_transpose_add(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  if (is_patches(args)) return patches_forward(args, unit, scratch);
  if (is_planes(args)) {
    planes_forward(args, unit, scratch);
    return stream_fence();
  }
  if (is_pixels(args)) {
    pixels_forward(args, unit, scratch);
    return stream_fence();
  }
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    ConvTransposeAdd<ArithmeticOf<In>, In>(args, scratch).run(unit);
  });
  stream_fence();
}

}  // namespace FCN_ISA
}  // namespace fcn
