// Softmax and log-softmax of upsampled logits: the chains of chain.h, then one multiplication per step and class
// (softmax), or the logit's own linear form minus log S_k (log-softmax). The output is written once, never read.
// Channels_last images of many classes go pixel by pixel (upsample_softmax_pixels.h).
#include "chain.h"
#include "steps.h"
#include "upsample_softmax_pixels.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename Out>
class SoftmaxTiles {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

  // A block of the row: its chains, and per step 1 / S_k (softmax) or log S_k; where the chains cannot be used, each
  // pixel's own maximum too.
  struct Tile {
    Block<T> block;
    Chains<T> chains;
    bool finite, direct;
    V scale[kMaxSteps], maximum[kMaxSteps];
    Tile(const Geometry& g, int64_t segment, int64_t classes, Arena& arena)
        : block(g, segment), chains(classes, 1, g, arena) {}
  };

 public:
  SoftmaxTiles(const SoftmaxArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), classes_(args.x.channels), arena_(scratch), rows_(args.x, g_, arena_) {
    tiles_ = arena_.take<Tile>(g_.columns.count / L);
    line_ = arena_.take<Out>(kTogether * line_pitch());
    for (int64_t s = 0; s < g_.columns.count && (s == 0 || g_.columns.length[s] > 0); s += L) {
      const Tile tile(g_, s, classes_, arena_);
      if (scratch) put(tiles_ + count_++, tile);
    }
    stream_ = leaves_cache(args.output, sizeof(Out));
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit_index) {
    const int64_t n = unit_index / g_.unit_count;
    const Unit& unit = g_.units[unit_index % g_.unit_count];
    image_ = (Out*)args_.output.data + n * args_.output.stride_n;
    rows_.start(n);
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      const Band& band = g_.bands[b];
      rows_.move_to(band.index);
      for (int64_t t = 0; t < count_; ++t) tiles_[t].finite = tiles_[t].chains.start_tile(rows_, tiles_[t].block);
      for (int64_t row = band.begin; row < band.end; ++row) {
        with_steps(g_.columns.steps, [&](auto steps) { this->compute_row<steps.value>(row); });
      }
    }
  }

 private:
  // Sums first, for all blocks; then class by class, so that a class's row is written in one go.
  template <int K>
  void compute_row(int64_t row) {
    const V fy = broadcast((T)g_.row_fraction[row]);
    for (int64_t t = 0; t < count_; ++t) normalise<K>(tiles_[t], fy);
    const Image& out = args_.output;
    Out* to = image_ + row * out.stride_h;
    if (out.stride_w != 1) return write_pixels<K>(fy, to);
    for (int64_t c = 0; c < classes_; ++c, to += out.stride_c) {
      for (int64_t t = 0; t < count_; ++t) write<K>(tiles_[t], c, fy, stream_ ? line_ : to);
      if (stream_) stream_copy(to, line_, g_.out_width * (int64_t)sizeof(Out));
    }
  }

  // Where a pixel's classes are side by side: a cache line of them at a time. One by one, pixels that are a power of
  // two apart would push each other out of the cache before the next class comes.
  template <int K>
  void write_pixels(V fy, Out* to) {
    const Image& out = args_.output;
    const int64_t pitch = line_pitch();
    for (int64_t c = 0; c < classes_; c += kTogether, to += kTogether * out.stride_c) {
      const int64_t count = classes_ - c < kTogether ? classes_ - c : kTogether;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t t = 0; t < count_; ++t) write<K>(tiles_[t], c + i, fy, line_ + i * pitch);
      }
      for (int64_t o = 0; o < g_.out_width; ++o) {
        for (int64_t i = 0; i < count; ++i) to[o * out.stride_w + i * out.stride_c] = line_[i * pitch + o];
      }
    }
  }

  static constexpr int64_t kTogether = 64 / sizeof(Out);

  // An odd number of cache lines, so that the classes of a column fall into different cache sets.
  int64_t line_pitch() const { return ((g_.out_width + kTogether - 1) / kTogether | 1) * kTogether; }

  template <int K>
  void normalise(Tile& tile, V fy) {
    V s[kMaxSteps], log_s[K], needed;
    tile.direct = !tile.finite;
    if (tile.finite) {
      tile.chains.template start_rows<K>(1, false, &fy, s, &needed);
      for (int k = 0; k < K; ++k) log_s[k] = vlog(s[k]);
      tile.direct = !tile.chains.template enough<K>(tile.block.full, tile.block.length, needed, log_s);
    }
    for (int k = 0; tile.direct && k < K; ++k) {
      V m = logit(tile, 0, k, fy);
      for (int64_t c = 1; c < classes_; ++c) m = vmax(m, logit(tile, c, k, fy));
      s[k] = V{};
      for (int64_t c = 0; c < classes_; ++c) s[k] += vexp(logit(tile, c, k, fy) - m);
      log_s[k] = log_of_sum<T>(s[k]);
      tile.maximum[k] = m;
    }
    for (int k = 0; k < K; ++k) tile.scale[k] = args_.log ? log_s[k] : T(1) / s[k];
  }

  template <int K>
  FCN_INLINE void write(const Tile& tile, int64_t c, V fy, Out* to) const {
    V v[K];
    if (tile.direct) {
      for (int k = 0; k < K; ++k) {
        const V z = logit(tile, c, k, fy) - tile.maximum[k];
        v[k] = args_.log ? z - tile.scale[k] : vexp(z) * tile.scale[k];
      }
    } else if (args_.log) {
      const V a = tile.chains.level(c, fy), d = tile.chains.slope(c, fy);
      for (int k = 0; k < K; ++k) v[k] = (a + tile.chains.fraction[k] * d) - tile.scale[k];
    } else {
      const T* chain = tile.chains.row_chain(0) + c * 2 * L;
      V e = load(chain);
      v[0] = e * tile.scale[0];
      if constexpr (K > 1) {
        const V r = load(chain + L);
        for (int k = 1; k < K; ++k) {
          e = e * r;
          v[k] = e * tile.scale[k];
        }
      }
    }
    store_steps<T, K>(tile.block, v, to, 1);
  }

  V logit(const Tile& tile, int64_t c, int k, V fy) const {
    return direct_logit<T>(rows_, tile.block, c, tile.chains.fraction[k], fy);
  }

  const SoftmaxArgs& args_;
  const Geometry& g_;
  const int64_t classes_;
  Arena arena_;
  InputRows<T> rows_;
  Tile* tiles_;
  Out *line_, *image_;
  int64_t count_ = 0;
  bool stream_;
};

// An exponential per logit instead of two per segment and class costs less than moving the classes, but where there are
// few: those that fill no vector cost most. Below a factor of 2 it is not even one more.
template <typename T>
bool pixel_by_pixel(const SoftmaxArgs& args) {
  const Segments& s = args.geometry->columns;
  const int64_t least = s.step > 0.5 ? 16 : s.steps <= 2 || kLanes<T> >= 8 ? 32 : INT64_MAX;
  return args.pixelwise && args.x.channels >= least;
}

}  // namespace

int64_t softmax_scratch(const SoftmaxArgs& args) {
  return visit_dtype(args.x.dtype, [&](auto zero) {
    using Out = decltype(zero);
    using T = ArithmeticOf<Out>;
    return pixel_by_pixel<T>(args) ? SoftmaxPixels<T, Out>(args, nullptr).scratch_bytes()
                                   : SoftmaxTiles<T, Out>(args, nullptr).scratch_bytes();
  });
}

void softmax(const SoftmaxArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  visit_dtype(args.x.dtype, [&](auto zero) {
    using Out = decltype(zero);
    using T = ArithmeticOf<Out>;
    if (pixel_by_pixel<T>(args)) {
      SoftmaxPixels<T, Out>(args, scratch).run(unit);
    } else {
      SoftmaxTiles<T, Out>(args, scratch).run(unit);
    }
  });
  stream_fence();
}

}  // namespace FCN_ISA
}  // namespace fcn
