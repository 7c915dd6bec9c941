// Bilinear upsampling with a skip added, or a sigmoid taken, on request: the input is read once, the skip once, the
// output written once.
//   planes   (contiguous) each input row is widened once, a segment per lane, interleaved into the order of the pixels;
//            an output row is a blend of two wide rows
//   pixels   (channels_last) the outputs between two input columns at once, the channels in the lanes
#include "planes.h"
#include "upsample_pixels.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kBytesAhead = 2560;  // of prefetching, in whole rows

template <typename T, typename In>
class UpsamplePlanes {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  UpsamplePlanes(const UpsampleArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), arena_(scratch), scale_((T)args.skip_scale) {
    blocks_ = arena_.take<PlaneBlock<T>>(g_.columns.count / L);
    line_ = arena_.take<In>(g_.out_width + L);
    zeros_ = arena_.take<T>(g_.out_width);
    // Odd numbers of cache lines, so that equal columns of the rows in turn do not meet in one cache set.
    for (Row& kept : rows_) kept.values = arena_.take<T>((g_.out_width + L + 15) / 16 * 16 + 16);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
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

  // An input row at the output's columns, which is kept; `other` is the one to keep, too. Row -1 counts zero.
  const T* wide(int64_t y, int64_t other) {
    for (Row& kept : rows_) {
      if (kept.y == y) return kept.values;
    }
    Row& kept = rows_[0].y == other ? rows_[1] : rows_[0];
    kept.y = y;
    if (y < 0) {
      memset(kept.values, 0, g_.out_width * sizeof(T));
    } else {
      const In* from = plane_ + y * args_.x.stride_h;
      with_steps(g_.columns.steps, [&](auto steps) { this->widen<steps.value>(from, kept.values); });
    }
    return kept.values;
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

  const UpsampleArgs& args_;
  const Geometry& g_;
  Arena arena_;
  const T scale_;
  struct Row {
    int64_t y;
    T* values;
  };
  int64_t block_count_ = 0;
  PlaneBlock<T>* blocks_;
  Row rows_[2];
  const In* plane_;
  T* zeros_;
  In* line_;
};

}  // namespace

int64_t upsample_units(const UpsampleArgs& args) {
  const Geometry& g = *args.geometry;
  return args.pixelwise ? args.x.batch * pixel_parts(g, args.x.batch, args.x.channels, g.band_count)
                        : plane_units(args.x, g, g.band_count);
}

int64_t upsample_scratch(const UpsampleArgs& args) {
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    return args.pixelwise ? UpsamplePixels<T, In>(args, nullptr).scratch_bytes()
                          : UpsamplePlanes<T, In>(args, nullptr).scratch_bytes();
  });
}

void upsample(const UpsampleArgs& args, int64_t unit, void* scratch) {
  visit_dtype(args.x.dtype, [&](auto zero) {
    using In = decltype(zero);
    using T = ArithmeticOf<In>;
    if (args.pixelwise) {
      UpsamplePixels<T, In>(args, scratch).run(unit);
    } else {
      UpsamplePlanes<T, In>(args, scratch).run(unit);
    }
  });
  stream_fence();
}

}  // namespace FCN_ISA
}  // namespace fcn
