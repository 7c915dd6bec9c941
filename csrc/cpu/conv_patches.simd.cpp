// The forward products of conv_patches.h.
#include "conv_patches.h"

#include "conv_patch_blocks.h"

namespace fcn {
namespace FCN_ISA {

namespace {

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

}  // namespace

ConvTransposePlan patches_plan(const ConvTransposeArgs& args) {
  return visit_types(args,
                     [&](auto t, auto in) { return PatchesForward<decltype(t), decltype(in)>(args, nullptr).plan(); });
}

void patches_pack(const ConvTransposeArgs& args, int64_t unit) {
  visit_types(args, [&](auto t, auto in) { PatchesForward<decltype(t), decltype(in)>(args, nullptr).pack(unit); });
}

void patches_forward(const ConvTransposeArgs& args, int64_t unit, void* scratch) {
  visit_types(args, [&](auto t, auto in) { PatchesForward<decltype(t), decltype(in)>(args, scratch).run(unit); });
}

}  // namespace FCN_ISA
}  // namespace fcn
