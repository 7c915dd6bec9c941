// What both directions of conv_patches.h share: blocks of pixels, and how they are packed, gathered and scattered.
#pragma once

#include "conv_lines.h"
#include "gemm.h"

namespace fcn {
namespace FCN_ISA {

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

}  // namespace FCN_ISA
}  // namespace fcn
