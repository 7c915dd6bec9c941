// Bilinear upsampling with a skip added, or a sigmoid taken, on request: the input is read once, the skip once, the
// output written once.
//   planes   (contiguous) per output row one vertical interpolation of the small row, then the horizontal one with a
//            segment per lane, interleaved into the order of the pixels
//   pixels   (channels_last) the vertical interpolation, then two taps per pixel with the channels in the lanes
#include "planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kRowsAhead = 4;  // of prefetching

template <typename T, typename In>
class Upsample {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  Upsample(const UpsampleArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), arena_(scratch), scale_((T)args.skip_scale) {
    if (args.pixelwise) {
      const int64_t row = (g_.in_width + 1) * args.x.channels + L;  // and a pixel of zeros
      top_ = arena_.take<T>(row);
      bottom_ = arena_.take<T>(row);
      blend_ = arena_.take<T>(row);
      if (args.sigmoid) logits_ = arena_.take<T>(g_.out_width * args.x.channels + L);
    } else {
      blocks_ = arena_.take<PlaneBlock<T>>(g_.columns.count / L);
      line_ = arena_.take<In>(g_.out_width);
      Arena counting = arena_;
      const Image plane = plane_of(args.x, 0, 0, 0);
      InputRows<T>(plane, g_, counting);
      bytes_ = counting.used;
    }
    if (arena_.used > bytes_) bytes_ = arena_.used;
  }

  int64_t scratch_bytes() const { return bytes_; }

  void run(int64_t unit) {
    if (args_.pixelwise) {
      const Chunk chunk = chunk_of(unit, args_.x.batch, g_.band_count);
      return pixels(chunk.item, chunk.begin, chunk.end);
    }
    block_count_ = make_overlapping_blocks<T>(g_, blocks_);
    const PlaneRun run = plane_run(unit, args_.x, g_, g_.band_count);
    for (int64_t p = run.begin; p < run.end; ++p) {
      plane(p / args_.x.channels, p % args_.x.channels, run.rows_begin, run.rows_end);
    }
  }

 private:
  void plane(int64_t n, int64_t c, int64_t band_begin, int64_t band_end) {
    const Image x = plane_of(args_.x, n, c, sizeof(In));
    Arena arena = arena_;
    InputRows<T> rows(x, g_, arena);
    rows.start(0);
    In* out = (In*)args_.output.data + n * args_.output.stride_n + c * args_.output.stride_c;
    const In* skip = (const In*)args_.skip.data + n * args_.skip.stride_n + c * args_.skip.stride_c;
    const bool stream = leaves_cache(args_.output, sizeof(In));
    with_steps(g_.columns.steps, [&](auto steps) {
      constexpr int K = decltype(steps)::value;
      for (int64_t b = band_begin; b < band_end; ++b) {
        const Band& band = g_.bands[b];
        rows.move_to(band.index);
        for (int64_t row = band.begin; row < band.end; ++row) {
          In* to = out + row * args_.output.stride_h;
          In* line = stream ? line_ : to;
          const In* add = skip + row * args_.skip.stride_h;
          const T fy = (T)g_.row_fraction[row];
          if (args_.sigmoid) {
            this->expand<K, true>(rows.top, rows.bottom, fy, line, add);
          } else {
            this->expand<K, false>(rows.top, rows.bottom, fy, line, add);
          }
          if (stream) stream_copy(to, line_, g_.out_width * (int64_t)sizeof(In));
        }
      }
    });
  }

  // One output row. Both interpolations in registers: a blended row in memory would be read back across the borders of
  // the vectors just stored, which stalls.
  template <int K, bool Sigmoid>
  FCN_INLINE void expand(const T* top, const T* bottom, T fy, In* FCN_RESTRICT out, const In* FCN_RESTRICT skip) const {
    const bool add = args_.skip.data != nullptr, fast = !add || args_.skip.stride_w == 1;
    const T gy = T(1) - fy;
    for (int64_t b = 0; b < block_count_; ++b) {
      const PlaneBlock<T>& block = blocks_[b];
      V left = block.load_left(top), right = block.load_right(top);
      if (fy != T(0)) {
        left = gy * left + fy * block.load_left(bottom);
        right = gy * right + fy * block.load_right(bottom);
      }
      V v[K];
      if (block.has_zero) {  // a tap of weight zero is not read
        for (int k = 0; k < K; ++k) v[k] = weigh<T>(left, right, block.fractions[k]);
      } else {
        for (int k = 0; k < K; ++k) v[k] = block.complements[k] * left + block.fractions[k] * right;
      }
      if constexpr (Sigmoid) {
        for (int k = 0; k < K; ++k) v[k] = vsigmoid<T>(v[k]);
      }
      if constexpr (is_power_of_two(K)) {
        if (block.full && fast) {
          interleave<T, K>(v);
          for (int k = 0; k < K; ++k) {
            const int64_t o = block.first[0] + k * L;
            // Short rows end before the processor's own prefetching has caught up.
            if (add) __builtin_prefetch(skip + o + kRowsAhead * args_.skip.stride_h);
            __builtin_prefetch(out + o + kRowsAhead * args_.output.stride_h, 1);
            if (add) v[k] += scale_ * load_as(skip + o);
            store_as(out + o, v[k]);
          }
          continue;
        }
      }
      T t[K * L];
      order_steps<T, K>(v, t);
      for (int l = 0; l < L; ++l) {
        for (int k = 0; k < block.length[l]; ++k) {
          T value = t[l * K + k];
          const int64_t o = block.first[l] + k;
          if (add) value += scale_ * (T)to_arithmetic(skip[o * args_.skip.stride_w]);
          from_arithmetic(value, out + o);
        }
      }
    }
  }

  void pixels(int64_t n, int64_t band_begin, int64_t band_end) {
    const int64_t channels = args_.x.channels, width = g_.in_width * channels;
    for (int64_t b = band_begin; b < band_end; ++b) {
      const Band& band = g_.bands[b];
      read_row(n, band.index, top_);
      read_row(n, band.index + 1, bottom_);
      for (int64_t row = band.begin; row < band.end; ++row) {
        blend_rows(top_, bottom_, (T)g_.row_fraction[row], width, blend_);
        memset(blend_ + width, 0, channels * sizeof(T));
        In* out = (In*)args_.output.data + n * args_.output.stride_n + row * args_.output.stride_h;
        if (args_.sigmoid) {
          pixels_of_row(n, row, logits_);
          sigmoid(logits_, g_.out_width * channels, out);
        } else {
          pixels_of_row(n, row, out);
        }
      }
    }
  }

  void read_row(int64_t n, int64_t index, T* to) const {
    const int64_t y = resolve(index, g_.in_height, g_.clamp), count = g_.in_width * args_.x.channels;
    if (y < 0) {
      memset(to, 0, count * sizeof(T));
      return;
    }
    const In* from = (const In*)args_.x.data + n * args_.x.stride_n + y * args_.x.stride_h;
    for (int64_t i = 0; i < count; ++i) to[i] = to_arithmetic(from[i]);
  }

  // Where the channels of an input column stand in the blended row; zeros for a tap that counts zero.
  const T* column(int64_t index) const {
    const int64_t i = resolve(index, g_.in_width, g_.clamp);
    return blend_ + (i < 0 ? g_.in_width : i) * args_.x.channels;
  }

  template <typename Out>
  void pixels_of_row(int64_t n, int64_t row, Out* out) const {
    for (int64_t s = 0; s < g_.columns.count; ++s) {
      for (int k = 0; k < g_.columns.length[s]; ++k) pixel(n, row, s, k, out);
    }
  }

  static void sigmoid(const T* z, int64_t count, In* out) {
    int64_t i = 0;
    for (; i + L <= count; i += L) store_as(out + i, vsigmoid<T>(load(z + i)));
    const V rest = vsigmoid<T>(load(z + i));
    for (int l = 0; i + l < count; ++l) from_arithmetic(rest[l], out + i + l);
  }

  template <typename Out>
  FCN_INLINE void pixel(int64_t n, int64_t row, int64_t s, int k, Out* row_out) const {
    const int64_t o = g_.columns.first[s] + k, channels = args_.x.channels;
    const T f = (T)(g_.columns.fraction[s] + k * g_.columns.step), f1 = T(1) - f;
    const T* left = column(g_.columns.index[s]);
    const T* right = f == T(0) ? blend_ + g_.in_width * channels : column(g_.columns.index[s] + 1);
    Out* out = row_out + o * channels;
    const Image& skip = args_.skip;
    const In* add = (const In*)skip.data + n * skip.stride_n + row * skip.stride_h + o * skip.stride_w;
    int64_t c = 0;
    if (!skip.data || skip.stride_c == 1) {
      for (; c + L <= channels; c += L) {
        V v = f1 * load(left + c) + f * load(right + c);
        if (skip.data) v += scale_ * load_as(add + c);
        store_as(out + c, v);
      }
    }
    for (; c < channels; ++c) {
      T v = f1 * left[c] + f * right[c];
      if (skip.data) v += scale_ * (T)to_arithmetic(add[c * skip.stride_c]);
      from_arithmetic(v, out + c);
    }
  }

  const UpsampleArgs& args_;
  const Geometry& g_;
  Arena arena_;
  const T scale_;
  int64_t bytes_ = 0, block_count_ = 0;
  PlaneBlock<T>* blocks_;
  T *top_, *bottom_, *blend_, *logits_;
  In* line_;
};

}  // namespace

int64_t upsample_units(const UpsampleArgs& args) {
  const Geometry& g = *args.geometry;
  return args.pixelwise ? chunk_count(args.x.batch, g.band_count) : plane_units(args.x, g, g.band_count);
}

int64_t upsample_scratch(const UpsampleArgs& args) {
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    return Upsample<ArithmeticOf<In>, In>(args, nullptr).scratch_bytes();
  });
}

void upsample(const UpsampleArgs& args, int64_t unit, void* scratch) {
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    Upsample<ArithmeticOf<In>, In>(args, scratch).run(unit);
  });
  stream_fence();
}

}  // namespace FCN_ISA
}  // namespace fcn
