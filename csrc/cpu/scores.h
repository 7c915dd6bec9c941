// The scores of a block of pixels: a 1x1 convolution as a product of packed weights and packed pixels. The block's
// scores stay in scratch, as panels of pixels, for whatever epilogue follows.
#pragma once

#include "gemm.h"
#include "math.h"
#include "tile.h"

namespace fcn {
namespace FCN_ISA {

// A block of pixels of one image, [begin, begin + count) row by row.
struct PixelBlock {
  int64_t n, begin, count;
};

// How the products of one convolution are cut, a function of its shapes.
template <typename T>
struct ScorePlan {
  static constexpr int P = kPanel<T>;
  static constexpr int64_t kDepth = 64;  // rows fetched ahead: more evict each other where they are powers of two apart
  static constexpr int64_t kRun = 512;   // bytes of every plane in a block: planes lie on pages of their own
  static constexpr int64_t kMaxPanels = kRun / (P * (int64_t)sizeof(T));
  static constexpr int64_t kMaxUnits = 64;    // threads share them evenly
  static constexpr int64_t kGroupRows = 252;  // of packed weights that stay in the second cache

  int64_t channels, classes;
  int64_t pixels;  // of one image
  int64_t panels;  // of a block
  int64_t image_blocks, blocks;
  int64_t units;  // runs of blocks
  RowTiles tiles;

  explicit ScorePlan(const ScoreArgs& a)
      : channels(a.x.channels), classes(a.classes), pixels(a.x.height * a.x.width), tiles(a.classes) {
    const int64_t all = (pixels + P - 1) / P;
    const int64_t fitting = (1 << 19) / (classes * P * (int64_t)sizeof(T));
    // A few units at least, and long runs of pixels where there are many and their scores stay in the first cache.
    panels = all * a.x.batch >= 32 * kMaxPanels && classes * kRun <= (1 << 15) ? kMaxPanels : 4;
    if (panels > all / 4) panels = all / 4;
    if (panels > fitting) panels = fitting;
    if (panels < 1) panels = 1;
    image_blocks = (all + panels - 1) / panels;
    blocks = image_blocks * a.x.batch;
    units = blocks < kMaxUnits ? blocks : kMaxUnits;
  }

  int64_t first_block(int64_t unit) const { return blocks * unit / units; }
  PixelBlock block(int64_t index) const {
    const int64_t begin = index % image_blocks * panels * P, left = pixels - begin;
    return PixelBlock{index / image_blocks, begin, left < panels * P ? left : panels * P};
  }

  // Packed weights: chunks of kDepth channels; in a chunk, tiles of classes; in a tile, groups of kGroup channels.
  static int64_t padded(int64_t depth) { return (depth + kGroup - 1) / kGroup * kGroup; }
  int64_t chunk_depth(int64_t k) const { return channels - k < kDepth ? channels - k : kDepth; }
  int64_t packed_size() const { return classes * padded(channels); }
  int64_t packed_at(int64_t tile, int64_t k) const { return classes * k + tiles.begin(tile) * padded(chunk_depth(k)); }
};

// Calls f(first column, offset in elements, length) for every run of equally spaced pixels.
template <typename F>
FCN_INLINE void for_each_run(const Image& image, const PixelBlock& block, F f) {
  const int64_t base = block.n * image.stride_n;
  for (int64_t done = 0; done < block.count;) {
    const int64_t p = block.begin + done, y = p / image.width, x = p % image.width;
    const int64_t left = image.width - x, wanted = block.count - done, length = left < wanted ? left : wanted;
    f((int)done, base + y * image.stride_h + x * image.stride_w, (int)length);
    done += length;
  }
}

template <typename T, typename In>
class Scores {
  static constexpr int L = kLanes<T>, P = kPanel<T>;

 public:
  Scores(const ScoreArgs& args, Arena& arena)
      : plan(args),
        args_(args),
        products_(args.classes),
        first_product_(packing_product_of<T, In>(plan.tiles.size(0))) {
    x_ = arena.take<T>(plan.panels * plan.kDepth * P);
    z_ = arena.take<T>(plan.panels * plan.classes * P);
  }

  // Computes the scores of a block; `next`, the one that will follow, is fetched ahead.
  FCN_NOINLINE void compute(int64_t index, int64_t next) {
    start(index);
    for (int64_t j = 0; j < panel_count; ++j) {
      T* z = panel(j);
      for (int64_t c = 0; c < plan.classes; ++c) {
        const Vec<T> bias = broadcast(args_.bias ? (T)to_arithmetic(((const In*)args_.bias)[c]) : T(0));
        for (int v = 0; v < kPanelVectors; ++v) store(z + c * P + v * L, bias);
      }
    }
    for (int64_t k = 0; k < plan.channels; k += plan.kDepth) {
      const bool last = k + plan.kDepth >= plan.channels;
      add_chunk(k, last ? ahead_of(plan.block(next), 0) : ahead_of(block, k + plan.kDepth));
    }
  }

  // The block's place, without computing anything.
  void start(int64_t index) {
    block = plan.block(index);
    panel_count = (block.count + P - 1) / P;
  }

  PixelBlock part(int64_t j) const {
    const int64_t left = block.count - j * P;
    return PixelBlock{block.n, block.begin + j * P, left < P ? left : P};
  }

  T* panel(int64_t j) const { return z_ + j * plan.classes * P; }  // [C][P]

  const ScorePlan<T> plan;
  PixelBlock block;
  int64_t panel_count;

 private:
  // Where whole panels of rows that follow each other are packed by the first tile's product.
  int64_t packed_by_product() const {
    const Image& x = args_.x;
    return x.height == 1 && x.stride_w == 1 ? block.count / P : 0;
  }

  // Channels [k, k + depth) of the block's other panels.
  void pack(int64_t k, int64_t depth) {
    const Image& x = args_.x;
    const In* from = (const In*)x.data + k * x.stride_c;
    const int64_t stride = plan.kDepth * P;
    for (int64_t j = packed_by_product(); j < panel_count; ++j) {
      T* to = x_ + j * stride;
      if (part(j).count < P) memset(to, 0, depth * P * sizeof(T));
      for_each_run(x, part(j), [&](int column, int64_t offset, int length) {
        pack_panel(to + column, from + offset, depth, x.stride_c, length, x.stride_w);
      });
    }
  }

  // What the chunk at channel k of block b reads.
  Ahead ahead_of(const PixelBlock& b, int64_t k) const {
    const Image& x = args_.x;
    if (x.height != 1) return Ahead(x.data, 0, 1, 1);
    const In* from = (const In*)x.data + b.n * x.stride_n + b.begin * x.stride_w + k * x.stride_c;
    const int64_t depth = plan.chunk_depth(k), bytes = sizeof(In);
    return x.stride_w == 1 ? Ahead(from, x.stride_c * bytes, (b.count * bytes + 63) / 64, depth)
                           : Ahead(from, x.stride_w * bytes, (depth * bytes + 63) / 64, b.count);
  }

  FCN_INLINE void add_chunk(int64_t k, Ahead ahead) {
    const int64_t depth = plan.chunk_depth(k);
    pack(k, depth);
    const Image& x = args_.x;
    const In* from = (const In*)x.data + k * x.stride_c + block.n * x.stride_n + block.begin;
    const T* packed = (const T*)args_.packed;
    const int64_t together = plan.kGroupRows / kTileRows, unpacked = packed_by_product();
    for (int64_t first = 0; first < plan.tiles.count; first += together) {
      const int64_t last = first + together < plan.tiles.count ? first + together : plan.tiles.count;
      for (int64_t j = 0; j < panel_count; ++j) {
        T *b = x_ + j * plan.kDepth * P, *z = panel(j);
        int64_t t = first;
        if (t == 0 && j < unpacked) {
          first_product_(depth, packed + plan.packed_at(0, k), plan.tiles.size(0) * kGroup, from + j * P, x.stride_c, b,
                         z, P, &ahead);
          ++t;
        }
        for (; t < last; ++t) {
          products_.of(t)(depth, packed + plan.packed_at(t, k), plan.tiles.size(t) * kGroup, b,
                          z + plan.tiles.begin(t) * P, P, true, &ahead);
        }
      }
    }
  }

  const ScoreArgs& args_;
  const TileProducts<T, kGroups> products_;
  const PackingProduct<T, In> first_product_;
  T *x_, *z_;
};

// The softmax's two sums for a panel of scores z[C][P]: per pixel the maximum over the classes, and the sum of
// exp(z - maximum); with Keep, the exponentials take the place of the scores.
template <typename T>
struct Normaliser {
  Vec<T> maximum[kPanelVectors], sum[kPanelVectors];
};

template <bool Keep, typename T>
FCN_INLINE Normaliser<T> normalise(T* z, int64_t classes) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  Normaliser<T> n;
  for (int v = 0; v < kPanelVectors; ++v) {
    n.maximum[v] = load(z + v * L);
    n.sum[v] = Vec<T>{};
  }
  for (int64_t c = 1; c < classes; ++c) {
    for (int v = 0; v < kPanelVectors; ++v) n.maximum[v] = vmax(n.maximum[v], load(z + c * P + v * L));
  }
  for (int64_t c = 0; c < classes; ++c) {
    for (int v = 0; v < kPanelVectors; ++v) {
      const Vec<T> e = vexp(load(z + c * P + v * L) - n.maximum[v]);
      if (Keep) store(z + c * P + v * L, e);
      n.sum[v] += e;
    }
  }
  return n;
}

}  // namespace FCN_ISA
}  // namespace fcn
