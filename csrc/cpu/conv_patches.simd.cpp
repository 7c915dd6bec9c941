// The products of conv_patches.h, forward and backward.
#include "conv_patches.h"

#include "conv_lines.h"
#include "conv_parts.h"
#include "gemm.h"

namespace fcn {
namespace FCN_ISA {

namespace {

constexpr int64_t kBlockPanels = 4;      // of pixels in a block, at most
constexpr int64_t kRows = 512;           // rows of a product that are computed together, if a patch is not larger
constexpr int64_t kWeightColumns = 256;  // of the gradient of the weights that are computed together

// [0, count) in `parts` nearly equal parts.
struct Split {
  int64_t count, parts;
  static Split by(int64_t count, int64_t most) { return Split{count, (count + most - 1) / most}; }
  int64_t begin(int64_t part) const { return count * part / parts; }
  int64_t size(int64_t part) const { return begin(part + 1) - begin(part); }
  int64_t largest() const { return (count + parts - 1) / parts; }
};

// A rectangle of pixels of x, numbered row by row.
struct Pixels {
  int64_t top, left, height, width;
  int64_t count() const { return height * width; }
};

struct PatchBlock {
  int64_t n, begin, count;  // image; pixels
};

// Calls f(first column of the block, y, x, length) for every run of pixels in a row.
template <typename F>
FCN_INLINE void for_each_row(const Pixels& pixels, int64_t begin, int64_t count, const F& f) {
  for (int64_t done = 0; done < count;) {
    const int64_t p = begin + done, x = p % pixels.width, left = pixels.width - x;
    const int64_t length = left < count - done ? left : count - done;
    f(done, pixels.top + p / pixels.width, pixels.left + x, length);
    done += length;
  }
}

inline Pixels all_pixels(const Image& x) { return Pixels{0, 0, x.height, x.width}; }

// Those whose patches reach into the crop.
inline Pixels reached_pixels(const ConvTransposeArgs& a) {
  const int64_t top = a.offset_h / a.stride_h, left = a.offset_w / a.stride_w;
  return Pixels{top, left, (a.offset_h + a.output.height - 1) / a.stride_h + 1 - top,
                (a.offset_w + a.output.width - 1) / a.stride_w + 1 - left};
}

template <typename T, typename In>
class Patches {
 protected:
  static constexpr int L = kLanes<T>, P = kPanel<T>;
  static constexpr int64_t kDepth = 16384 / (P * (int64_t)sizeof(T));  // of a panel that stays in the first cache

  Patches(const ConvTransposeArgs& args, void* scratch, const Pixels& pixels)
      : args_(args),
        arena_(scratch),
        inputs_(args.weight.batch / args.groups),
        outputs_(args.weight.channels),
        ky_(args.stride_h),
        kx_(args.stride_w),
        pixels_(pixels),
        blocks_(Split::by((pixels.count() + P - 1) / P, kBlockPanels)),
        channel_blocks_(Split::by(outputs_, kRows / (ky_ * kx_) > 0 ? kRows / (ky_ * kx_) : 1)) {}

  int64_t patch() const { return ky_ * kx_; }
  int64_t most_pixels() const { return blocks_.largest() * P; }

  void start(int64_t n, int64_t block) {
    const int64_t begin = blocks_.begin(block) * P, left = pixels_.count() - begin, size = blocks_.size(block) * P;
    block_ = PatchBlock{n, begin, left < size ? left : size};
    panels_ = blocks_.size(block);
  }

  int64_t columns(int64_t panel) const {
    const int64_t left = block_.count - panel * P;
    return left < P ? left : P;
  }

  // Channels [k, k + depth) of a group of the block's pixels, as panels `stride` apart.
  void pack_x(int64_t group, int64_t k, int64_t depth, T* to, int64_t stride) const {
    const Image& x = args_.x;
    const In* from = (const In*)x.data + block_.n * x.stride_n + (group * inputs_ + k) * x.stride_c;
    if (block_.count < panels_ * P) memset(to + (panels_ - 1) * stride, 0, depth * P * sizeof(T));
    if (is_joined(x)) {
      from += block_.begin * x.stride_w;
      if (x.stride_w == 1) return copy_to_panels(to, stride, from, depth, x.stride_c, block_.count);
      for (int64_t j = 0; j < panels_; ++j, from += P * x.stride_w) {
        pack_panel(to + j * stride, from, depth, x.stride_c, (int)columns(j), x.stride_w);
      }
      return;
    }
    for (int64_t j = 0; j < panels_; ++j) {
      for_each_row(pixels_, block_.begin + j * P, columns(j), [&](int64_t i, int64_t y, int64_t at, int64_t length) {
        pack_panel(to + j * stride + i, from + y * x.stride_h + at * x.stride_w, depth, x.stride_c, (int)length,
                   x.stride_w);
      });
    }
  }

  // Whether all pixels follow each other at equal distances.
  bool is_joined(const Image& image) const {
    return pixels_.width == image.width && image.stride_h == image.width * image.stride_w && pixels_.top == 0;
  }

  // Rows of a product: the places in the patches of channels [first, first + count) of a group.
  struct Rows {
    int64_t group, first, count, size;
  };
  Rows rows_of(int64_t group, int64_t channel_block) const {
    const int64_t first = channel_blocks_.begin(channel_block), count = channel_blocks_.size(channel_block);
    return Rows{group, first, count, count * patch()};
  }
  Rows all_rows(int64_t group) const { return Rows{group, 0, outputs_, outputs_ * patch()}; }

  // Calls f(first row, channel, ky, kx, count): rows of `count` consecutive channels where the channels of a pixel
  // stand together, of one channel and consecutive kx elsewhere.
  template <typename F>
  FCN_INLINE void for_rows(const Rows& rows, int64_t begin, int64_t end, const F& f) const {
    if (!args_.pixelwise) {
      for (int64_t m = begin; m < end; m += kx_) f(m, rows.first + m / patch(), m / kx_ % ky_, 0, kx_);
      return;
    }
    for (int64_t m = begin; m < end;) {
      const int64_t place = m / rows.count, c = m % rows.count;
      const int64_t count = rows.count - c < end - m ? rows.count - c : end - m;
      f(m, rows.first + c, place / kx_, place % kx_, count);
      m += count;
    }
  }

  // Whether the weights of an input channel stand in memory as the rows do.
  bool rows_follow_weights() const {
    const Image& w = args_.weight;
    return !args_.pixelwise && w.stride_w == 1 && w.stride_h == kx_ && w.stride_c == patch();
  }

  // The weight of row m, its first input channel.
  const In* weight_of(const Rows& rows, int64_t channel, int64_t ky, int64_t kx) const {
    const Image& w = args_.weight;
    return (const In*)w.data + rows.group * inputs_ * w.stride_n + channel * w.stride_c + ky * w.stride_h +
           kx * w.stride_w;
  }

  // Rows [begin, end) of the gradient's patches, as panels `stride` apart; zero outside the crop.
  void gather(const Rows& rows, int64_t begin, int64_t end, T* to, int64_t stride, T* line) const {
    const Image& grad = args_.output;
    const In* image = (const In*)grad.data + block_.n * grad.stride_n + rows.group * outputs_ * grad.stride_c;
    if (args_.pixelwise) {
      for (int64_t j = 0; j < panels_; ++j) memset(to + j * stride, 0, (end - begin) * P * sizeof(T));
    } else if (block_.count < panels_ * P) {
      memset(line, 0, panels_ * P * kx_ * sizeof(T));
    }
    for_rows(rows, begin, end, [&](int64_t m, int64_t channel, int64_t ky, int64_t kx, int64_t count) {
      const In* from = image + channel * grad.stride_c;
      T* target = to + (m - begin) * P;
      if (args_.pixelwise) {
        return gather_channels(from, ky, kx, count, target, stride);
      }
      for_each_row(pixels_, block_.begin, block_.count, [&](int64_t i, int64_t y, int64_t x, int64_t length) {
        read_clipped(from, y * ky_ + ky - args_.offset_h, x * kx_ - args_.offset_w, length * kx_, line + i * kx_);
      });
      for (int64_t j = 0; j < panels_; ++j) split_columns(line + j * P * kx_, target + j * stride);
    });
  }

  // Columns [x, x + count) of row y of a plane of the gradient.
  void read_clipped(const In* from, int64_t y, int64_t x, int64_t count, T* to) const {
    const Image& grad = args_.output;
    if (y < 0 || y >= grad.height) {
      memset(to, 0, count * sizeof(T));
      return;
    }
    int64_t begin = 0, end = count;
    for (; begin < end && x + begin < 0; ++begin) to[begin] = 0;
    for (; end > begin && x + end > grad.width; --end) to[end - 1] = 0;
    read_row(from + y * grad.stride_h + (x + begin) * grad.stride_w, grad.stride_w, end - begin, to + begin);
  }

  // Calls f(first column of the panel, column of the crop, length) for every run of pixels of panel j whose place (ky,
  // kx) lies in the crop, with the row of the crop.
  template <typename F>
  FCN_INLINE void for_each_place(int64_t j, int64_t ky, int64_t kx, const F& f) const {
    for_each_row(pixels_, block_.begin + j * P, columns(j), [&](int64_t i, int64_t y, int64_t x, int64_t length) {
      const int64_t row = y * ky_ + ky - args_.offset_h;
      int64_t column = x * kx_ + kx - args_.offset_w;
      if (row < 0 || row >= args_.output.height) return;
      for (; length > 0 && column < 0; --length, ++i) column += kx_;
      while (length > 0 && column + (length - 1) * kx_ >= args_.output.width) --length;
      if (length > 0) f(i, row, column, length);
    });
  }

  void gather_channels(const In* from, int64_t ky, int64_t kx, int64_t count, T* to, int64_t stride) const {
    const Image& grad = args_.output;
    for (int64_t j = 0; j < panels_; ++j) {
      for_each_place(j, ky, kx, [&](int64_t i, int64_t row, int64_t column, int64_t length) {
        pack_panel(to + j * stride + i, from + row * grad.stride_h + column * grad.stride_w, count, grad.stride_c,
                   (int)length, kx_ * grad.stride_w);
      });
    }
  }

  // P pixels' columns, kx of each pixel together, to kx rows, and back.
  void split_columns(const T* line, T* to) const {
    with_columns([&](auto columns) {
      constexpr int K = decltype(columns)::value;
      for (int i = 0; i < P; i += L) {
        Vec<T> v[K];
        for (int k = 0; k < K; ++k) v[k] = load(line + i * K + k * L);
        deinterleave<T, K>(v);
        for (int k = 0; k < K; ++k) store(to + k * P + i, v[k]);
      }
    });
  }
  void join_columns(const T* from, T* line) const {
    with_columns([&](auto columns) {
      constexpr int K = decltype(columns)::value;
      for (int i = 0; i < P; i += L) {
        Vec<T> v[K];
        for (int k = 0; k < K; ++k) v[k] = load(from + k * P + i);
        interleave<T, K>(v);
        for (int k = 0; k < K; ++k) store(line + i * K + k * L, v[k]);
      }
    });
  }
  // Those that is_patches admits.
  template <typename F>
  FCN_INLINE void with_columns(const F& f) const {
    if (kx_ == 1) return f(Count<1>());
    if (kx_ == 2) return f(Count<2>());
    f(Count<4>());
  }

  const ConvTransposeArgs& args_;
  Arena arena_;
  const int64_t inputs_, outputs_, ky_, kx_;  // of a group; of a patch
  const Pixels pixels_;
  const Split blocks_, channel_blocks_;
  PatchBlock block_{};
  int64_t panels_ = 0;
};

template <typename T, typename In>
class PatchesForward : Patches<T, In> {
  using Base = Patches<T, In>;
  using Rows = typename Base::Rows;
  using Base::arena_;
  using Base::args_;
  using Base::block_;
  using Base::blocks_;
  using Base::channel_blocks_;
  using Base::inputs_;
  using Base::kDepth;
  using Base::kx_;
  using Base::ky_;
  using Base::L;
  using Base::outputs_;
  using Base::P;
  using Base::panels_;
  using Base::pixels_;

 public:
  PatchesForward(const ConvTransposeArgs& args, void* scratch)
      : Base(args, scratch, reached_pixels(args)), scale_((T)args.skip_scale) {
    const int64_t channels = channel_blocks_.largest(), panels = blocks_.largest();
    x_ = arena_.template take<T>(panels * kDepth * P);
    z_ = arena_.template take<T>(panels * channels * this->patch() * P);
    line_ = arena_.template take<T>(args.pixelwise ? P * channels : panels * P * kx_);
  }

  ConvTransposePlan plan() const {
    ConvTransposePlan plan{};
    plan.packed_bytes = args_.groups * inputs_ * outputs_ * this->patch() * (int64_t)sizeof(T);
    plan.pack_units = args_.groups * channel_blocks_.parts;
    plan.units = args_.output.batch * args_.groups * channel_blocks_.parts * blocks_.parts;
    plan.scratch_bytes = arena_.used;
    return plan;
  }

  // A block of rows in chunks of kDepth input channels, in these tiles of rows, whose columns are copied.
  void pack(int64_t unit) const {
    const Rows rows = this->rows_of(unit / channel_blocks_.parts, unit % channel_blocks_.parts);
    const RowTiles tiles(rows.size);
    const Image& w = args_.weight;
    T* to = packed(rows);
    const bool contiguous = this->rows_follow_weights();
    const In* first = this->weight_of(rows, rows.first, 0, 0);
    for (int64_t k = 0; k < inputs_; k += kDepth) {
      const int64_t depth = inputs_ - k < kDepth ? inputs_ - k : kDepth;
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t begin = tiles.begin(t), size = tiles.size((int)t);
        if (contiguous) {
          for (int64_t i = 0; i < depth; ++i) {
            const In* from = first + (k + i) * w.stride_n + begin;
            for (int64_t r = 0; r < size; ++r) to[i * size + r] = (T)to_arithmetic(from[r]);
          }
        } else {
          const In* from[kTileRows];
          for (int64_t r = 0; r < size; ++r) from[r] = weight_at(rows, begin + r) + k * w.stride_n;
          for (int64_t i = 0; i < depth; ++i) {
            for (int64_t r = 0; r < size; ++r) to[i * size + r] = (T)to_arithmetic(from[r][i * w.stride_n]);
          }
        }
        to += size * depth;
      }
    }
  }

  void run(int64_t unit) {
    const int64_t block = unit % blocks_.parts, rest = unit / blocks_.parts;
    const int64_t channel_block = rest % channel_blocks_.parts, item = rest / channel_blocks_.parts;
    const Rows rows = this->rows_of(item % args_.groups, channel_block);
    this->start(item / args_.groups, block);
    fill_bias(rows);
    const TileProducts<T, kColumns> products(rows.size);
    const T* a = packed(rows);
    for (int64_t k = 0; k < inputs_; k += kDepth) {
      const int64_t depth = inputs_ - k < kDepth ? inputs_ - k : kDepth;
      this->pack_x(rows.group, k, depth, x_, kDepth * P);
      for (int64_t j = 0; j < panels_; ++j) {
        for (int64_t t = 0; t < products.tiles.count; ++t) {
          const int64_t begin = products.tiles.begin(t), size = products.tiles.size(t);
          products.of(t)(depth, a + begin * depth, size, x_ + j * kDepth * P, z_ + (j * rows.size + begin) * P, P, true,
                         nullptr);
        }
      }
      a += rows.size * depth;
    }
    args_.pixelwise ? scatter_channels(rows) : scatter(rows);
  }

 private:
  T* packed(const Rows& rows) const {
    return (T*)args_.packed + (rows.group * outputs_ + rows.first) * this->patch() * inputs_;
  }

  const In* weight_at(const Rows& rows, int64_t m) const {
    if (args_.pixelwise) {
      const int64_t place = m / rows.count;
      return this->weight_of(rows, rows.first + m % rows.count, place / kx_, place % kx_);
    }
    return this->weight_of(rows, rows.first + m / this->patch(), m / kx_ % ky_, m % kx_);
  }

  void fill_bias(const Rows& rows) {
    const In* bias = (const In*)args_.bias + rows.group * outputs_;
    this->for_rows(rows, 0, rows.size, [&](int64_t m, int64_t channel, int64_t, int64_t, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t c = args_.pixelwise ? channel + i : channel;
        const Vec<T> value = broadcast(args_.bias ? (T)to_arithmetic(bias[c]) : T(-0.0));
        for (int64_t j = 0; j < panels_; ++j) {
          for (int v = 0; v < kPanelVectors; ++v) store(z_ + (j * rows.size + m + i) * P + v * L, value);
        }
      }
    });
  }

  void scatter(const Rows& rows) {
    const Image &out = args_.output, &skip = args_.skip;
    this->for_rows(rows, 0, rows.size, [&](int64_t m, int64_t channel, int64_t ky, int64_t, int64_t) {
      for (int64_t j = 0; j < panels_; ++j) this->join_columns(z_ + (j * rows.size + m) * P, line_ + j * P * kx_);
      const int64_t c = rows.group * outputs_ + channel;
      In* plane = (In*)out.data + block_.n * out.stride_n + c * out.stride_c;
      const In* add = (const In*)skip.data + block_.n * skip.stride_n + c * skip.stride_c;
      for_each_row(pixels_, block_.begin, block_.count, [&](int64_t i, int64_t y, int64_t x, int64_t length) {
        const int64_t row = y * ky_ + ky - args_.offset_h;
        if (row < 0 || row >= out.height) return;
        int64_t begin = x * kx_ - args_.offset_w, end = begin + length * kx_;
        const T* line = line_ + i * kx_ - begin;
        if (begin < 0) begin = 0;
        if (end > out.width) end = out.width;
        finish_row(line + begin, T(-0.0), end - begin, skip.data != nullptr, scale_,
                   add + row * skip.stride_h + begin * skip.stride_w, skip.stride_w,
                   plane + row * out.stride_h + begin * out.stride_w);
      });
    });
  }

  void scatter_channels(const Rows& rows) {
    const Image &out = args_.output, &skip = args_.skip;
    const int64_t first = rows.group * outputs_ + rows.first;
    In* to = (In*)out.data + block_.n * out.stride_n + first;
    const In* add = (const In*)skip.data + block_.n * skip.stride_n + first * skip.stride_c;
    this->for_rows(rows, 0, rows.size, [&](int64_t m, int64_t, int64_t ky, int64_t kx, int64_t count) {
      for (int64_t j = 0; j < panels_; ++j) {
        const T* z = z_ + (j * rows.size + m) * P;
        this->for_each_place(j, ky, kx, [&](int64_t i, int64_t row, int64_t column, int64_t length) {
          In* target = to + row * out.stride_h + column * out.stride_w;
          if (!skip.data) return unpack_panel(target, 1, kx_ * out.stride_w, z + i, count, (int)length);
          unpack_panel(line_, 1, count, z + i, count, (int)length);
          const In* source = add + row * skip.stride_h + column * skip.stride_w;
          for (int64_t l = 0; l < length; ++l) {
            finish_row(line_ + l * count, T(-0.0), count, true, scale_, source + l * kx_ * skip.stride_w, skip.stride_c,
                       target + l * kx_ * out.stride_w);
          }
        });
      }
    });
  }

  const T scale_;
  T* x_;     // [panels][kDepth][P]
  T* z_;     // [panels][rows][P]
  T* line_;  // of one channel and ky, [panels][P][kx]; or of P pixels, [P][channels]
};

template <typename T, typename In>
class PatchesBackwardX : Patches<T, In> {
  using Base = Patches<T, In>;
  using Rows = typename Base::Rows;
  using Base::arena_;
  using Base::args_;
  using Base::block_;
  using Base::blocks_;
  using Base::inputs_;
  using Base::kx_;
  using Base::outputs_;
  using Base::P;
  using Base::panels_;
  using Base::pixels_;

 public:
  PatchesBackwardX(const ConvTransposeArgs& args, void* scratch)
      : Base(args, scratch, all_pixels(args.x)),
        input_blocks_(Split::by(inputs_, kRows)),
        // Whole runs of kx, so that a line is read once.
        depth_(args.pixelwise ? Base::kDepth : (kx_ < Base::kDepth ? Base::kDepth / kx_ * kx_ : kx_)) {
    const int64_t panels = blocks_.largest();
    g_ = arena_.template take<T>(panels * depth_ * P);
    z_ = arena_.template take<T>(panels * input_blocks_.largest() * P);
    line_ = arena_.template take<T>(panels * P * kx_ + P);
  }

  int64_t packed_size() const { return args_.groups * inputs_ * padded_rows(); }
  int64_t pack_units() const { return args_.groups * input_blocks_.parts; }
  int64_t units() const { return args_.x.batch * args_.groups * input_blocks_.parts * blocks_.parts; }
  int64_t scratch_bytes() const { return arena_.used; }

  // A block of input channels in chunks of depth_ rows of the patches, in tiles of channels, in groups of kGroup rows.
  void pack(int64_t unit) const {
    const int64_t group = unit / input_blocks_.parts, block = unit % input_blocks_.parts;
    const Rows rows = this->all_rows(group);
    const int64_t first = input_blocks_.begin(block);
    const RowTiles tiles(input_blocks_.size(block));
    const Image& w = args_.weight;
    T* to = packed(group, first);
    for (int64_t m = 0; m < rows.size; m += depth_) {
      const int64_t depth = rows.size - m < depth_ ? rows.size - m : depth_;
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t size = tiles.size((int)t), begin = first + tiles.begin(t);
        if (this->rows_follow_weights()) {
          const In* from = this->weight_of(rows, 0, 0, 0) + begin * w.stride_n + m;
          for (int64_t r = 0; r < size; ++r, from += w.stride_n) {
            for (int64_t row = 0; row < depth; row += kGroup) {
              T* group_of = to + row * size + r * kGroup;
              const int64_t count = depth - row < kGroup ? depth - row : kGroup;
              if (count == kGroup) {
                for (int i = 0; i < kGroup; ++i) group_of[i] = (T)to_arithmetic(from[row + i]);
              } else {
                for (int i = 0; i < count; ++i) group_of[i] = (T)to_arithmetic(from[row + i]);
              }
            }
          }
        } else {
          this->for_rows(rows, m, m + depth, [&](int64_t at, int64_t channel, int64_t ky, int64_t kx, int64_t count) {
            const In* from = this->weight_of(rows, channel, ky, kx) + begin * w.stride_n;
            const int64_t step = args_.pixelwise ? w.stride_c : w.stride_w;
            for (int64_t r = 0; r < size; ++r, from += w.stride_n) {
              for (int64_t i = 0; i < count; ++i) {
                const int64_t row = at - m + i;
                to[row / kGroup * size * kGroup + r * kGroup + row % kGroup] = (T)to_arithmetic(from[i * step]);
              }
            }
          });
        }
        to += size * padded(depth);
      }
    }
  }

  void run(int64_t unit) {
    const int64_t block = unit % blocks_.parts, rest = unit / blocks_.parts;
    const int64_t input_block = rest % input_blocks_.parts, item = rest / input_blocks_.parts;
    const int64_t first = input_blocks_.begin(input_block), size = input_blocks_.size(input_block);
    const Rows rows = this->all_rows(item % args_.groups);
    this->start(item / args_.groups, block);
    const TileProducts<T, kGroups> products(size);
    const T* a = packed(rows.group, first);
    Ahead none(args_.x.data, 0, 1, 1);
    for (int64_t m = 0; m < rows.size; m += depth_) {
      const int64_t depth = rows.size - m < depth_ ? rows.size - m : depth_;
      this->gather(rows, m, m + depth, g_, depth_ * P, line_);
      for (int64_t j = 0; j < panels_; ++j) {
        for (int64_t t = 0; t < products.tiles.count; ++t) {
          const int64_t begin = products.tiles.begin(t), count = products.tiles.size(t);
          products.of(t)(depth, a + begin * padded(depth), count * kGroup, g_ + j * depth_ * P,
                         z_ + (j * size + begin) * P, P, m > 0, &none);
        }
      }
      a += size * padded(depth);
    }
    const Image& out = args_.grad_x;
    In* to = (In*)out.data + block_.n * out.stride_n + (rows.group * inputs_ + first) * out.stride_c;
    for (int64_t j = 0; j < panels_; ++j) {
      for_each_row(pixels_, block_.begin + j * P, this->columns(j),
                   [&](int64_t i, int64_t y, int64_t x, int64_t length) {
                     unpack_panel(to + y * out.stride_h + x * out.stride_w, out.stride_c, out.stride_w,
                                  z_ + j * size * P + i, size, (int)length);
                   });
    }
  }

 private:
  static int64_t padded(int64_t depth) { return (depth + kGroup - 1) / kGroup * kGroup; }
  int64_t padded_rows() const {
    const int64_t rows = outputs_ * this->patch();
    return rows / depth_ * padded(depth_) + padded(rows % depth_);
  }
  T* packed(int64_t group, int64_t first) const { return (T*)args_.packed + (group * inputs_ + first) * padded_rows(); }

  const Split input_blocks_;
  const int64_t depth_;
  T *g_, *z_, *line_;  // [panels][depth][P], [panels][input channels][P], [panels][P][kx]
};

template <typename T, typename In>
class PatchesBackwardWeight : Patches<T, In> {
  using Base = Patches<T, In>;
  using Rows = typename Base::Rows;
  using Base::arena_;
  using Base::args_;
  using Base::block_;
  using Base::blocks_;
  using Base::channel_blocks_;
  using Base::inputs_;
  using Base::kx_;
  using Base::outputs_;
  using Base::P;
  using Base::panels_;
  using Base::pixels_;

 public:
  PatchesBackwardWeight(const ConvTransposeArgs& args, void* scratch)
      : Base(args, scratch, reached_pixels(args)),
        column_blocks_(Split::by((inputs_ + P - 1) / P, kWeightColumns / P)),
        parts_{args.x.batch * blocks_.parts, 1} {
    parts_.parts = sum_parts(work(), args.x.batch * pixels_.count(), parts_.count);
    const int64_t rows = channel_blocks_.largest() * this->patch();
    g_ = arena_.template take<T>(this->most_pixels() * rows);
    x_ = arena_.template take<T>(this->most_pixels() * column_blocks_.largest() * P);
    sums_ = arena_.template take<T>(rows * column_blocks_.largest() * P);
    line_ = arena_.template take<T>(this->most_pixels() * kx_ + P);
  }

  int64_t parts() const { return parts_.parts; }
  int64_t units() const { return work() * parts_.parts; }
  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    const int64_t part = unit % parts_.parts, rest = unit / parts_.parts;
    const int64_t columns = rest % column_blocks_.parts, item = rest / column_blocks_.parts;
    const Rows rows = this->rows_of(item / channel_blocks_.parts, item % channel_blocks_.parts);
    const int64_t first = column_blocks_.begin(columns), count = column_blocks_.size(columns);
    const TileProducts<T, kPanels> products(rows.size);
    const int64_t begin = parts_.begin(part), end = parts_.begin(part + 1);
    for (int64_t index = begin; index < end; ++index) {
      this->start(index / blocks_.parts, index % blocks_.parts);
      this->gather(rows, 0, rows.size, g_, rows.size * P, line_);
      const int64_t depth = panels_ * P;
      for (int64_t j = 0; j < count; ++j) {
        transpose_x(rows.group, (first + j) * P, depth);
        for (int64_t t = 0; t < products.tiles.count; ++t) {
          const int64_t m = products.tiles.begin(t);
          products.of(t)(depth, g_ + m * P, rows.size * P, x_, sums_ + (j * rows.size + m) * P, P, index > begin,
                         nullptr);
        }
      }
    }
    write(rows, first, count, (T*)args_.parts + part * args_.weight.batch * outputs_ * this->patch());
  }

 private:
  int64_t work() const { return args_.groups * channel_blocks_.parts * column_blocks_.parts; }

  // Input channels [k, k + P) of the block's pixels: x_[pixel][P].
  void transpose_x(int64_t group, int64_t k, int64_t depth) const {
    const Image& x = args_.x;
    const int columns = inputs_ - k < P ? (int)(inputs_ - k) : P;
    const In* from = (const In*)x.data + block_.n * x.stride_n + (group * inputs_ + k) * x.stride_c;
    if (columns < P) memset(x_, 0, depth * P * sizeof(T));
    if (block_.count < depth) memset(x_ + block_.count * P, 0, (depth - block_.count) * P * sizeof(T));
    if (this->is_joined(x)) {
      return pack_panel(x_, from + block_.begin * x.stride_w, block_.count, x.stride_w, columns, x.stride_c);
    }
    for_each_row(pixels_, block_.begin, block_.count, [&](int64_t i, int64_t y, int64_t at, int64_t length) {
      pack_panel(x_ + i * P, from + y * x.stride_h + at * x.stride_w, length, x.stride_w, columns, x.stride_c);
    });
  }

  void write(const Rows& rows, int64_t first, int64_t count, T* part) const {
    const int64_t pitch = outputs_ * this->patch();
    for (int64_t j = 0; j < count; ++j) {
      const int64_t k = (first + j) * P;
      const int columns = inputs_ - k < P ? (int)(inputs_ - k) : P;
      T* to = part + (rows.group * inputs_ + k) * pitch;
      const T* from = sums_ + j * rows.size * P;
      if (!args_.pixelwise) {  // the rows are in the order of the weights
        unpack_panel(to + rows.first * this->patch(), 1, pitch, from, rows.size, columns);
        continue;
      }
      for (int i = 0; i < columns; ++i) {
        this->for_rows(rows, 0, rows.size, [&](int64_t m, int64_t channel, int64_t ky, int64_t kx, int64_t run) {
          T* places = to + i * pitch + channel * this->patch() + ky * kx_ + kx;
          for (int64_t r = 0; r < run; ++r) places[r * this->patch()] = from[(m + r) * P + i];
        });
      }
    }
  }

  const Split column_blocks_;  // in panels of input channels
  Split parts_;                // of the blocks of pixels of all images
  T *g_, *x_, *sums_, *line_;  // [panels][rows][P], [pixels][P], [panels of input channels][rows][P], [pixels][kx]
};

template <typename F>
auto visit(const ConvTransposeArgs& args, const F& f) {
  return visit_dtype(args.x.dtype, [&](auto zero) { return f(ArithmeticOf<decltype(zero)>(), zero); });
}

}  // namespace

ConvTransposePlan patches_plan(const ConvTransposeArgs& args) {
  return visit(args, [&](auto t, auto in) { return PatchesForward<decltype(t), decltype(in)>(args, nullptr).plan(); });
}

void patches_pack(const ConvTransposeArgs& args, int64_t unit) {
  visit(args, [&](auto t, auto in) { PatchesForward<decltype(t), decltype(in)>(args, nullptr).pack(unit); });
}

void patches_forward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit(args, [&](auto t, auto in) { PatchesForward<decltype(t), decltype(in)>(args, scratch).run(unit); });
}

int64_t patches_parts(const ConvTransposeArgs& args) {
  return visit(
      args, [&](auto t, auto in) { return PatchesBackwardWeight<decltype(t), decltype(in)>(args, nullptr).parts(); });
}

// The units of the gradient in x come first, then those of the gradient of the weights.
ConvTransposePlan patches_backward_plan(const ConvTransposeArgs& args) {
  return visit(args, [&](auto t, auto in) {
    using T = decltype(t);
    ConvTransposePlan plan{};
    if (args.grad_x.data) {
      const PatchesBackwardX<T, decltype(in)> x(args, nullptr);
      plan.packed_bytes = x.packed_size() * (int64_t)sizeof(T);
      plan.pack_units = x.pack_units();
      plan.units = x.units();
      plan.scratch_bytes = x.scratch_bytes();
    }
    if (args.grad_weight.data) {
      const PatchesBackwardWeight<T, decltype(in)> weight(args, nullptr);
      plan.units += weight.units();
      if (weight.scratch_bytes() > plan.scratch_bytes) plan.scratch_bytes = weight.scratch_bytes();
    }
    return plan;
  });
}

void patches_backward_pack(const ConvTransposeArgs& args, int64_t unit) {
  visit(args, [&](auto t, auto in) { PatchesBackwardX<decltype(t), decltype(in)>(args, nullptr).pack(unit); });
}

void patches_backward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit(args, [&](auto t, auto in) {
    if (args.grad_x.data) {
      PatchesBackwardX<decltype(t), decltype(in)> x(args, scratch);
      if (unit < x.units()) return x.run(unit);
      unit -= x.units();
    }
    PatchesBackwardWeight<decltype(t), decltype(in)>(args, scratch).run(unit);
  });
}

}  // namespace FCN_ISA
}  // namespace fcn
