// Upsampling of channels_last images, with a skip added, or a sigmoid taken, on request. Three roads:
//   pieces     the outputs between two input columns at once, straight to where they belong: several streams of memory
//   in order   pixel by pixel, segment by segment, from a blend of the rows: large results that are converted, or add a
//              skip
//   lines      pieces in scratch, which then move in order: a sigmoid, and what leaves the cache and is written past it
#pragma once

#include "pixel_rows.h"

namespace fcn {
namespace FCN_ISA {

template <typename T, typename In>
class UpsamplePixels {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  UpsamplePixels(const UpsampleArgs& args, void* scratch)
      : args_(args),
        g_(*args.geometry),
        channels_(args.x.channels),
        arena_(scratch),
        scale_((T)args.skip_scale),
        rows_(args.x, g_, arena_) {
    line_ = arena_.take<T>(kLine + kPiecePixels * channels_ + L);
    blend_ = arena_.take<T>((g_.in_width + 1) * channels_ + L);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    const Chunk chunk = part_of(unit, pixel_parts(g_, args_.x.batch, channels_, g_.band_count), g_.band_count);
    const Image &output = args_.output, &skip = args_.skip;
    const int64_t n = chunk.item;
    rows_.start(n);
    const int64_t row_size = output.width * channels_, bytes = output.height * row_size * (int64_t)sizeof(In);
    const bool dense = !skip.data || (skip.stride_c == 1 && skip.stride_w == channels_);
    const bool plain = sizeof(T) == sizeof(In);
    // Where a function or a conversion takes the time, stores that wait for memory would add to it.
    streams_ = rows_.in_order && plain && dense && !args_.sigmoid && leaves_cache(output, sizeof(In), row_size);
    const bool lines = streams_ || (args_.sigmoid && rows_.in_order);
    const bool ordered = bytes > kSecondCache && dense && !args_.sigmoid && (!plain || skip.data);
    for (int64_t b = chunk.begin; b < chunk.end; ++b) {
      const Band& band = g_.bands[b];
      rows_.move_to(band);
      for (int64_t row = band.begin; row < band.end; ++row) {
        In* out = (In*)output.data + n * output.stride_n + row * output.stride_h;
        const In* add = (const In*)skip.data + n * skip.stride_n + row * skip.stride_h;
        if (lines) {
          write_lines(row, out, add);
        } else if (skip.data) {
          ordered ? write_in_order<true>(row, out, add) : write_pieces<true>(row, out, add);
        } else {
          ordered ? write_in_order<false>(row, out, nullptr) : write_pieces<false>(row, out, nullptr);
        }
      }
    }
  }

 private:
  static constexpr int64_t kLine = 8192 / sizeof(T), kSecondCache = 2 << 20;

  template <bool Add>
  FCN_NOINLINE void write_pieces(int64_t row, In* row_out, const In* row_skip) const {
    const int64_t stride = args_.skip.stride_w;
    rows_.for_pieces(row, [&](int64_t o, const auto& piece) FCN_LAMBDA {
      // The last vector of a pixel reaches over those to its right, which are written later.
      const int64_t right = g_.out_width - o - piece.count, over = -channels_ & (L - 1);
      const bool fits = rows_.in_order && over <= right * channels_ && (!Add || over <= right * stride);
      In* out = row_out + o * channels_;
      const In* skip = Add ? row_skip + o * stride : nullptr;
      if (args_.sigmoid || (Add && args_.skip.stride_c != 1)) {
        this->template write_singly<Add>(piece, 0, out, skip);
      } else {
        if (!fits) this->template write_singly<Add>(piece, channels_ & -L, out, skip);
        this->template write<Add>(piece, fits, out, skip);
      }
    });
  }

  // The outputs of a piece in whole vectors: the last channels first, where `last` wants them.
  template <bool Add, typename Piece, typename Out>
  FCN_INLINE void write(const Piece& piece, bool last, Out* out, const In* skip) const {
    constexpr int K = Piece::count;
    const int64_t whole = channels_ & -L;
    const V scale = broadcast(scale_);
    const auto write_at = [&](int64_t c) FCN_LAMBDA {
      V v[K];
      piece.at(c, v);
      for (int k = 0; k < K; ++k) {
        if constexpr (Add) v[k] += scale * load_as(skip + k * args_.skip.stride_w + c);
        store_as(out + k * channels_ + c, v[k]);
      }
    };
    if (last && whole < channels_) write_at(whole);
    for (int64_t c = 0; c < whole; c += L) write_at(c);
  }

  // Channels from `begin` on, wherever they and those of skip stand.
  template <bool Add, typename Piece>
  FCN_NOINLINE void write_singly(const Piece& piece, int64_t begin, In* out, const In* skip) const {
    V v[Piece::count];
    for (int64_t c = begin; c < channels_; c += L) {
      piece.at(c, v);
      for (int k = 0; k < Piece::count; ++k) {
        if (args_.sigmoid) v[k] = vsigmoid<T>(v[k]);
        for (int64_t i = c; i < c + L && i < channels_; ++i) {
          T value = v[k][i - c];
          if constexpr (Add) {
            value += scale_ * (T)to_arithmetic(skip[k * args_.skip.stride_w + i * args_.skip.stride_c]);
          }
          from_arithmetic(value, out + k * channels_ + i);
        }
      }
    }
  }

  template <bool Add>
  FCN_NOINLINE void write_in_order(int64_t row, In* row_out, const In* row_skip) const {
    const int64_t stride = args_.skip.stride_w, whole = channels_ & -L, rest = channels_ - whole;
    const V scale = broadcast(scale_);
    rows_.blend(row, blend_);
    rows_.for_plans([&](const PiecePlan<T>& plan) FCN_LAMBDA {
      const T *left = blend_ + plan.left * channels_, *right = blend_ + plan.right * channels_;
      for (int k = 0; k < plan.count; ++k) {
        const int64_t o = plan.first + k, following = g_.out_width - 1 - o;
        const V f0 = broadcast(T(1) - plan.fraction[k]), f1 = broadcast(plan.fraction[k]);
        const auto at = [&](int64_t c, const In* more) FCN_LAMBDA {
          V v = f0 * load(left + c) + f1 * load(right + c);
          if constexpr (Add) v += scale * load_as(more);
          return v;
        };
        In* out = row_out + o * channels_;
        const In* skip = Add ? row_skip + o * stride : nullptr;
        for (int64_t c = 0; c < whole; c += L) store_as(out + c, at(c, Add ? skip + c : nullptr));
        if (rest == 0) continue;
        if (rows_.in_order && L - rest <= following * channels_) {  // over pixels that are written later
          store_as(out + whole, at(whole, Add ? skip + whole : nullptr));
        } else {
          In few[L] = {}, last[L];
          if constexpr (Add) memcpy(few, skip + whole, rest * sizeof(In));
          store_as(last, at(whole, few));
          memcpy(out + whole, last, rest * sizeof(In));
        }
      }
    });
  }

  FCN_NOINLINE void write_lines(int64_t row, In* out, const In* skip) const {
    T* to = line_;
    const auto finish_line = [&] {
      const int64_t count = to - line_;
      this->finish(count, out, skip);
      out += count;
      skip += args_.skip.data ? count : 0;
      to = line_;
    };
    rows_.for_pieces(row, [&](int64_t, const auto& piece) FCN_LAMBDA {
      this->template write<false>(piece, true, to, nullptr);
      to += piece.count * channels_;
      if (to - line_ >= kLine) finish_line();
    });
    finish_line();
  }

  FCN_NOINLINE void finish(int64_t count, In* out, const In* skip) const {
    In* to = streams_ ? (In*)line_ : out;
    int64_t i = 0;
    if (args_.sigmoid) {
      for (; i + L <= count; i += L) store_as(to + i, vsigmoid<T>(load(line_ + i)));
      const V rest = vsigmoid<T>(load(line_ + i));
      for (int l = 0; i + l < count; ++l) from_arithmetic(rest[l], to + i + l);
    } else if (args_.skip.data) {
      const V scale = broadcast(scale_);
      for (; i + L <= count; i += L) {
        __builtin_prefetch(skip + i + count);  // of the next line
        store_as(to + i, load(line_ + i) + scale * load_as(skip + i));
      }
      for (; i < count; ++i) from_arithmetic(line_[i] + scale_ * (T)to_arithmetic(skip[i]), to + i);
    }
    if (streams_) stream_copy(out, to, count * (int64_t)sizeof(In));
  }

  const UpsampleArgs& args_;
  const Geometry& g_;
  const int64_t channels_;
  Arena arena_;
  const T scale_;
  PixelRows<T, In> rows_;
  bool streams_;
  T *line_, *blend_;
};

}  // namespace FCN_ISA
}  // namespace fcn
