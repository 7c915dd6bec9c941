// The gradients of conv_patches.h.
#include "conv_parts.h"
#include "conv_patch_blocks.h"
#include "conv_patches.h"

namespace fcn {
namespace FCN_ISA {

namespace {

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

}  // namespace

int64_t patches_parts(const ConvTransposeArgs& args) {
  return visit_types(
      args, [&](auto t, auto in) { return PatchesBackwardWeight<decltype(t), decltype(in)>(args, nullptr).parts(); });
}

// The units of the gradient in x come first, then those of the gradient of the weights.
ConvTransposePlan patches_backward_plan(const ConvTransposeArgs& args) {
  return visit_types(args, [&](auto t, auto in) {
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
  visit_types(args, [&](auto t, auto in) { PatchesBackwardX<decltype(t), decltype(in)>(args, nullptr).pack(unit); });
}

void patches_backward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit_types(args, [&](auto t, auto in) {
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
