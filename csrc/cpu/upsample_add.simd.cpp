// Bilinear upsampling with a skip added, or a sigmoid taken, on request: the input is read once, the skip once, the
// output written once.
//   planes   (contiguous) each input row is widened once, a segment per lane, interleaved into the order of the pixels;
//            an output row is a blend of two wide rows
//   pixels   (channels_last) the vertical interpolation, then two taps per pixel with the channels in the lanes
#include "planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kBytesAhead = 2560;  // of prefetching, in whole rows

template <typename T, typename In>
class Upsample {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  Upsample(const UpsampleArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), arena_(scratch), scale_((T)args.skip_scale) {
    if (args.pixelwise) {
      const int64_t row = (g_.in_width + 1) * args.x.channels + L;  // and a pixel of zeros
      for (Row& kept : rows_) kept.values = arena_.take<T>(row);
      blend_ = arena_.take<T>(row);
      const Segments& s = g_.columns;
      for (int64_t i = 1; i < s.count && s.length[i] > 0; ++i) in_order_ &= s.first[i - 1] < s.first[i];
      if (args.sigmoid) logits_ = arena_.take<T>(g_.out_width * args.x.channels + L);
    } else {
      blocks_ = arena_.take<PlaneBlock<T>>(g_.columns.count / L);
      line_ = arena_.take<In>(g_.out_width + L);
      zeros_ = arena_.take<T>(g_.out_width);
      // Odd numbers of cache lines, so that equal columns of the rows in turn do not meet in one cache set.
      for (Row& kept : rows_) kept.values = arena_.take<T>((g_.out_width + L + 15) / 16 * 16 + 16);
    }
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    if (args_.pixelwise) {
      const Chunk chunk = chunk_of(unit, args_.x.batch, g_.band_count);
      return pixels(chunk.item, chunk.begin, chunk.end);
    }
    block_count_ = make_overlapping_blocks<T>(g_, blocks_);
    memset(zeros_, 0, g_.out_width * sizeof(T));
    const PlaneRun run = plane_run(unit, args_.x, g_, g_.band_count);
    for (int64_t p = run.begin; p < run.end; ++p) {
      plane(p / args_.x.channels, p % args_.x.channels, run.rows_begin, run.rows_end);
    }
  }

 private:
  void plane(int64_t n, int64_t c, int64_t band_begin, int64_t band_end) {
    const Image& x = args_.x;
    plane_ = (const In*)x.data + n * x.stride_n + c * x.stride_c;
    for (Row& kept : rows_) kept.y = INT64_MIN;
    In* out = (In*)args_.output.data + n * args_.output.stride_n + c * args_.output.stride_c;
    const In* skip = (const In*)args_.skip.data + n * args_.skip.stride_n + c * args_.skip.stride_c;
    const In* next_skip = c + 1 < x.channels ? skip + args_.skip.stride_c : skip;
    const int64_t rows_ahead = kBytesAhead / (g_.out_width * (int64_t)sizeof(In));
    const int64_t ahead = rows_ahead < 1 ? 1 : rows_ahead < g_.out_height ? rows_ahead : g_.out_height;
    const bool stream = leaves_cache(args_.output, sizeof(In)), dense = args_.skip.stride_w == 1;
    for (int64_t b = band_begin; b < band_end; ++b) {
      const Band& band = g_.bands[b];
      const int64_t y0 = resolve(band.index, g_.in_height, g_.clamp);
      const int64_t y1 = resolve(band.index + 1, g_.in_height, g_.clamp);
      const T *top = wide(y0, y1), *bottom = wide(y1, y0);
      for (int64_t row = band.begin; row < band.end; ++row) {
        const T fy = (T)g_.row_fraction[row];
        In* to = out + row * args_.output.stride_h;
        const In* add = skip + row * args_.skip.stride_h;
        prefetch(row + ahead < g_.out_height ? add + ahead * args_.skip.stride_h
                                             : next_skip + (row + ahead - g_.out_height) * args_.skip.stride_h,
                 stream ? nullptr : to + ahead * args_.output.stride_h);
        if (args_.sigmoid) {
          blend<false, true>(top, bottom, fy, stream ? line_ : to, nullptr);
        } else if (!args_.skip.data) {
          blend<false, false>(top, bottom, fy, stream ? line_ : to, nullptr);
        } else if (dense) {
          blend<true, false>(top, bottom, fy, stream ? line_ : to, add);
        } else {
          blend_sparse(top, bottom, fy, stream ? line_ : to, add);
        }
        if (stream) stream_copy(to, line_, g_.out_width * (int64_t)sizeof(In));
      }
    }
  }

  // Input row y as `make` writes it, which is kept; `other` is the one to keep, too. Row -1 counts zero.
  template <typename Make>
  const T* row_of(int64_t y, int64_t other, int64_t count, const Make& make) {
    for (Row& kept : rows_) {
      if (kept.y == y) return kept.values;
    }
    Row& kept = rows_[0].y == other ? rows_[1] : rows_[0];
    kept.y = y;
    if (y < 0) {
      memset(kept.values, 0, count * sizeof(T));
    } else {
      make(kept.values);
    }
    return kept.values;
  }

  // At the output's columns.
  const T* wide(int64_t y, int64_t other) {
    return row_of(y, other, g_.out_width, [&](T* to) {
      with_steps(g_.columns.steps, [&](auto steps) { this->widen<steps.value>(plane_ + y * args_.x.stride_h, to); });
    });
  }

  template <int K>
  FCN_NOINLINE void widen(const In* x, T* FCN_RESTRICT out) const {
    for (int64_t b = 0; b < block_count_; ++b) {
      const PlaneBlock<T>& block = blocks_[b];
      V left, right, v[K];
      taps(block, x, left, right);
      if (block.has_zero) {  // a tap of weight zero is not read
        for (int k = 0; k < K; ++k) v[k] = weigh<T>(left, right, block.fractions[k]);
      } else {
        for (int k = 0; k < K; ++k) v[k] = block.complements[k] * left + block.fractions[k] * right;
      }
      store_steps<T, K>(block, v, out, 1);
    }
  }

  // The two taps of each lane's segment, straight from the input where they are neighbours there. A row's first and
  // last block have one tap outside.
  FCN_INLINE void taps(const PlaneBlock<T>& block, const In* x, V& left, V& right) const {
    const int64_t w = g_.in_width, stride = args_.x.stride_w, first = block.left[0] - 1, last = block.left[L - 1] - 1;
    if (block.contiguous && stride == 1 && first >= 0 && last < w - 1) {
      left = load_as(x + first);
      right = load_as(x + first + 1);
    } else if (block.contiguous && stride == 1 && first == -1 && last < w - 1) {
      right = load_as(x);
      left = shuffle<T>(right, broadcast(g_.clamp ? right[0] : T(0)), FirstPattern());
    } else if (block.contiguous && stride == 1 && first >= 0 && last == w - 1) {
      left = load_as(x + first);
      right = shuffle<T>(left, broadcast(g_.clamp ? left[L - 1] : T(0)), LastPattern());
    } else {
      for (int l = 0; l < L; ++l) {
        const int64_t i = resolve(block.left[l] - 1, w, g_.clamp), j = resolve(block.right[l] - 1, w, g_.clamp);
        left[l] = i < 0 ? T(0) : (T)to_arithmetic(x[i * stride]);
        right[l] = j < 0 ? T(0) : (T)to_arithmetic(x[j * stride]);
      }
    }
  }

  // Lanes move up or down by one; the free one is b's.
  struct FirstPattern {
    static constexpr int of(int i, int L) { return i == 0 ? L : i - 1; }
  };
  struct LastPattern {
    static constexpr int of(int i, int) { return i + 1; }
  };

  // Short rows end before the processor's own prefetching has caught up.
  FCN_INLINE void prefetch(const In* skip, const In* out) const {
    constexpr int64_t line = 64 / sizeof(In);
    for (int64_t i = 0; args_.skip.data && i < g_.out_width; i += line) __builtin_prefetch(skip + i);
    for (int64_t i = 0; out && i < g_.out_width; i += line) __builtin_prefetch(out + i, 1);
  }

  // An output row: (1 - fy) top + fy bottom, plus the scaled skip, or its sigmoid; a row of weight zero is not read.
  template <bool Add, bool Sigmoid>
  FCN_INLINE void blend(const T* top, const T* bottom, T fy, In* out, const In* skip) const {
    const int64_t width = g_.out_width;
    if (fy == T(0)) bottom = zeros_;  // zero times infinity is NaN
    if (width < L) return blend_sparse(top, bottom, fy, out, skip);
    const V f = broadcast(fy), g = broadcast(T(1) - fy), scale = broadcast(scale_);
    int64_t i = 0;
    for (; i + L <= width; i += L) blend_at<Add, Sigmoid>(top, bottom, f, g, scale, out, skip, i);
    if (i < width) blend_at<Add, Sigmoid>(top, bottom, f, g, scale, out, skip, width - L);
  }

  template <bool Add, bool Sigmoid>
  FCN_INLINE static void blend_at(const T* top, const T* bottom, V f, V g, V scale, In* out, const In* skip,
                                  int64_t i) {
    V v = g * load(top + i) + f * load(bottom + i);
    if constexpr (Add) v += scale * load_as(skip + i);
    if constexpr (Sigmoid) v = vsigmoid<T>(v);
    store_as(out + i, v);
  }

  // The same where skip is not dense, or the row shorter than a vector.
  FCN_NOINLINE void blend_sparse(const T* top, const T* bottom, T fy, In* out, const In* skip) const {
    if (fy == T(0)) bottom = zeros_;
    for (int64_t i = 0; i < g_.out_width; ++i) {
      T v = (T(1) - fy) * top[i] + fy * bottom[i];
      if (args_.skip.data) v += scale_ * (T)to_arithmetic(skip[i * args_.skip.stride_w]);
      if (args_.sigmoid) v = vsigmoid<T>(broadcast(v))[0];
      from_arithmetic(v, out + i);
    }
  }

  void pixels(int64_t n, int64_t band_begin, int64_t band_end) {
    const int64_t channels = args_.x.channels;
    memset(blend_ + g_.in_width * channels, 0, channels * sizeof(T));
    plane_ = (const In*)args_.x.data + n * args_.x.stride_n;
    for (Row& kept : rows_) kept.y = INT64_MIN;
    for (int64_t b = band_begin; b < band_end; ++b) {
      const Band& band = g_.bands[b];
      const int64_t y0 = resolve(band.index, g_.in_height, g_.clamp);
      const int64_t y1 = resolve(band.index + 1, g_.in_height, g_.clamp);
      const T *top = input_row(y0, y1), *bottom = input_row(y1, y0);
      for (int64_t row = band.begin; row < band.end; ++row) {
        In* out = (In*)args_.output.data + n * args_.output.stride_n + row * args_.output.stride_h;
        if (args_.sigmoid) {
          pixels_of_row(n, row, top, bottom, logits_);
          sigmoid(logits_, g_.out_width * channels, out);
        } else {
          pixels_of_row(n, row, top, bottom, out);
        }
      }
    }
  }

  const T* input_row(int64_t y, int64_t other) {
    const In* from = plane_ + y * args_.x.stride_h;
    if constexpr (sizeof(T) == sizeof(In)) {
      if (y >= 0) return (const T*)from;
    }
    const int64_t count = g_.in_width * args_.x.channels;
    return row_of(y, other, count, [&](T* to) {
      for (int64_t i = 0; i < count; ++i) to[i] = to_arithmetic(from[i]);
    });
  }

  // Where the channels of an input column stand in the blended row; zeros for a tap that counts zero.
  const T* column(int64_t index) const {
    const int64_t i = resolve(index, g_.in_width, g_.clamp);
    return blend_ + (i < 0 ? g_.in_width : i) * args_.x.channels;
  }

  template <typename Out>
  void pixels_of_row(int64_t n, int64_t row, const T* top, const T* bottom, Out* out) const {
    blend_rows(top, bottom, (T)g_.row_fraction[row], g_.in_width * args_.x.channels, blend_);
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
      const auto blend = [&](const In* more) {
        V v = f1 * load(left + c) + f * load(right + c);
        if (skip.data) v += scale_ * load_as(more);
        return v;
      };
      for (; c + L <= channels; c += L) store_as(out + c, blend(add + c));
      if (in_order_ && channels - c > 3) {  // fewer are faster one by one
        // The last vector reaches over pixels to the right, which are written later.
        const int64_t over = c + L - channels, pixels = g_.out_width - 1 - o;
        if (over <= pixels * channels && (!skip.data || over <= pixels * skip.stride_w)) {
          return store_as(out + c, blend(add + c));
        }
        In more[L] = {};
        Out rest[L];
        if (skip.data) memcpy(more, add + c, (L - over) * sizeof(In));
        store_as(rest, blend(more));
        memcpy(out + c, rest, (L - over) * sizeof(Out));
        return;
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
  bool in_order_ = true;  // segments come from left to right
  struct Row {
    int64_t y;
    T* values;
  };
  int64_t block_count_ = 0;
  PlaneBlock<T>* blocks_;
  Row rows_[2];
  const In* plane_;
  T *blend_, *logits_, *zeros_;
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
