// How conv_lines.h cuts columns into vectors, packs weights for them, and shares out the outer channels.
#pragma once

#include "planes.h"

namespace fcn {
namespace FCN_ISA {

constexpr int kOuter = 4;  // outer channels of a block, at most

// How the columns are cut into vectors. A period is `pixels` whole input pixels, thus `length` columns, in `vectors`
// vectors; lanes past the end of the period hold nothing.
struct Columns {
  int64_t stride, kernel;
  int64_t pixels, length, vectors;
  int64_t periods;     // of a line
  int64_t taps;        // ceil(kernel / stride)
  int64_t full, part;  // taps that every column has, and (0 or 1) a last one that only the first `rest` of s have
  int64_t rest;
};

// The period that covers `count` pixels at the least cost: its vectors, each with weights of its own to be read, which
// takes as long as some periods.
constexpr int64_t kPeriodsOfWeights = 8;
template <typename T>
inline Columns make_columns(int64_t stride, int64_t kernel, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  Columns c{};
  c.stride = stride;
  c.kernel = kernel;
  int64_t best = 0;
  for (int64_t pixels = 1; pixels <= L; ++pixels) {
    const int64_t vectors = (pixels * stride + L - 1) / L, periods = (count + pixels - 1) / pixels;
    const int64_t cost = vectors * (periods + kPeriodsOfWeights);
    if (pixels > 1 && cost >= best) continue;
    best = cost;
    c.pixels = pixels;
    c.vectors = vectors;
    c.periods = periods;
  }
  c.length = c.pixels * stride;
  c.taps = (kernel + stride - 1) / stride;
  c.full = kernel / stride;
  c.part = c.taps - c.full;
  c.rest = kernel - c.full * stride;
  return c;
}

// Elements from one line to the next: `columns` and what the last vectors reach over, in an odd number of cache lines.
template <typename T>
inline int64_t line_pitch(int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((columns + 2 * kLanes<T> + kLine - 1) / kLine | 1) * kLine;
}

// The weights of a step stand together: [M][L]. All steps of a sum: [vector][section][row tap][inner channel][tap],
// where section 0 has the full taps and section 1 the partial one, for every phase of the rows and block of outer
// channels. Outer and inner channels are co and ci in the forward direction, ci and co in the backward one.
struct Packing {
  bool backward;
  Columns columns;
  int64_t row_phases, row_taps;  // ky = phase + row_taps' index * row_phases
  int64_t outer, inner;          // channels of a group
  int64_t lanes;
  int64_t blocks;       // of outer channels
  int64_t most_blocks;  // of a unit of work

  int64_t section_taps(int section) const { return section == 0 ? columns.full : columns.part; }
  int64_t vector_steps() const { return row_taps * inner * columns.taps; }
  int64_t channel_size() const { return row_phases * columns.vectors * vector_steps() * lanes; }
  int64_t group_size() const { return outer * channel_size(); }
  // Of the block [first, first + m) of a group's outer channels.
  int64_t offset(int64_t first, int64_t m, int64_t phase, int64_t vector, int section, int64_t row_tap) const {
    int64_t step = (phase * columns.vectors + vector) * vector_steps() + row_tap * inner * section_taps(section);
    if (section == 1) step += row_taps * inner * columns.full;
    return first * channel_size() + step * m * lanes;
  }
  int64_t block_begin(int64_t block) const { return blocks == 1 ? outer * block : outer * block / blocks; }
};

inline Packing make_packing(const ConvTransposeArgs& args, bool backward, Columns columns, int64_t lanes) {
  Packing p{};
  p.backward = backward;
  p.columns = columns;
  p.row_phases = backward ? 1 : args.stride_h;
  p.row_taps = (args.weight.height + p.row_phases - 1) / p.row_phases;
  const int64_t in = args.weight.batch / args.groups, out = args.weight.channels;
  p.outer = backward ? in : out;
  p.inner = backward ? out : in;
  p.lanes = lanes;
  // Backward, the gradient's parts are few, and two units may share their rows.
  p.blocks = (p.outer + kOuter - 1) / kOuter;
  p.most_blocks = backward ? (p.blocks + 1) / 2 : p.blocks;
  return p;
}

// For lines of the columns that a row of the output reaches, and for those of a row of x.
template <typename T>
inline Packing forward_packing(const ConvTransposeArgs& args) {
  const int64_t first = args.offset_w / args.stride_w, last = (args.offset_w + args.output.width - 1) / args.stride_w;
  return make_packing(args, false, make_columns<T>(args.stride_w, args.weight.width, last - first + 1), kLanes<T>);
}
template <typename T>
inline Packing backward_packing(const ConvTransposeArgs& args) {
  return make_packing(args, true, make_columns<T>(args.stride_w, args.weight.width, args.x.width), kLanes<T>);
}

// Calls f(packed index, ci, co, ky, kx, count) for all weights of a block, ci and co counted within the group: `count`
// of them stand together in lanes and have consecutive kx. Several packed indices have the same weight where a period
// has several pixels. Absent weights are not visited.
template <typename F>
FCN_INLINE void for_packed(const Packing& p, int64_t kernel_h, int64_t first, int64_t m, const F& f) {
  const Columns& c = p.columns;
  for (int64_t phase = 0; phase < p.row_phases; ++phase) {
    for (int64_t v = 0; v < c.vectors; ++v) {
      const int64_t lanes = c.length - v * p.lanes < p.lanes ? c.length - v * p.lanes : p.lanes;
      for (int section = 0; section < 2; ++section) {
        const int64_t taps = p.section_taps(section), lead = section == 0 ? 0 : c.full;
        for (int64_t ky = phase, row_tap = 0; ky < kernel_h; ky += p.row_phases, ++row_tap) {
          int64_t at = p.offset(first, m, phase, v, section, row_tap);
          for (int64_t inner = 0; inner < p.inner; ++inner) {
            for (int64_t j = lead; j < lead + taps; ++j) {
              for (int64_t o = first; o < first + m; ++o, at += p.lanes) {
                int64_t kx = v * p.lanes % c.stride + j * c.stride;
                for (int64_t l = 0; l < lanes; kx = j * c.stride) {
                  const int64_t end = (j + 1) * c.stride;
                  const int64_t run = end - kx < lanes - l ? end - kx : lanes - l;
                  const int64_t count = c.kernel - kx < run ? c.kernel - kx : run;
                  if (count > 0) f(at + l, p.backward ? o : inner, p.backward ? inner : o, ky, kx, count);
                  l += run;
                }
              }
            }
          }
        }
      }
    }
  }
}

// A block of a group's outer channels, to where the group's packed weights begin.
template <typename T, typename In>
void pack_block(const ConvTransposeArgs& args, const Packing& p, int64_t group, int64_t block, T* to) {
  const int64_t first = p.block_begin(block), m = p.block_begin(block + 1) - first;
  const Image& w = args.weight;
  memset(to + first * p.channel_size(), 0, m * p.channel_size() * sizeof(T));
  const In* from = (const In*)w.data + group * (w.batch / args.groups) * w.stride_n;
  for_packed(p, w.height, first, m, [&](int64_t at, int64_t ci, int64_t co, int64_t ky, int64_t kx, int64_t count) {
    const In* run = from + ci * w.stride_n + co * w.stride_c + ky * w.stride_h + kx * w.stride_w;
    for (int64_t i = 0; i < count; ++i) to[at + i] = (T)to_arithmetic(run[i * w.stride_w]);
  });
}

// One unit of packing.
template <typename T, typename In>
void pack_weights(const ConvTransposeArgs& args, const Packing& p, int64_t unit) {
  const int64_t group = unit / p.blocks;
  pack_block<T, In>(args, p, group, unit % p.blocks, (T*)args.packed + group * p.group_size());
}

// The outer channels of one unit of work: some blocks of one group, or several whole groups.
constexpr int64_t kShareBytes = 1 << 23;  // of packed weights: with few shares the lines are read few times
constexpr int64_t kPixelChannels = 64;    // of a pixel, written together

struct Share {
  int64_t group_begin, group_end, block_begin, block_end;
};

inline int64_t groups_together(const Packing& p, int64_t groups, bool pixelwise) {
  if (!pixelwise || p.outer >= kPixelChannels) return 1;
  return kPixelChannels / p.outer < groups ? kPixelChannels / p.outer : groups;
}

inline int64_t shares_of_group(const Packing& p, bool pixelwise, int64_t item_bytes) {
  int64_t together = kShareBytes / (p.channel_size() * kOuter * item_bytes);
  if (pixelwise && together < kPixelChannels / kOuter) together = kPixelChannels / kOuter;
  if (together > p.most_blocks) together = p.most_blocks;
  return together < 1 ? p.blocks : (p.blocks + together - 1) / together;
}

inline int64_t share_count(const Packing& p, int64_t groups, bool pixelwise, int64_t item_bytes) {
  const int64_t together = groups_together(p, groups, pixelwise);
  if (together > 1) return (groups + together - 1) / together;
  return groups * shares_of_group(p, pixelwise, item_bytes);
}

inline Share share_of(int64_t index, const Packing& p, int64_t groups, bool pixelwise, int64_t item_bytes) {
  const int64_t together = groups_together(p, groups, pixelwise);
  if (together > 1) {
    const int64_t end = (index + 1) * together;
    return Share{index * together, end < groups ? end : groups, 0, p.blocks};
  }
  const int64_t shares = shares_of_group(p, pixelwise, item_bytes), group = index / shares, part = index % shares;
  return Share{group, group + 1, p.blocks * part / shares, p.blocks * (part + 1) / shares};
}

// The most outer channels that a share has.
inline int64_t share_channels(const Packing& p, int64_t groups, bool pixelwise, int64_t item_bytes) {
  const int64_t together = groups_together(p, groups, pixelwise);
  if (together > 1) return together * p.outer;
  const int64_t shares = shares_of_group(p, pixelwise, item_bytes), blocks = (p.blocks + shares - 1) / shares;
  return blocks * kOuter < p.outer ? blocks * kOuter : p.outer;
}

// Calls f(T(), In()) with the arithmetic type and that of the tensors.
template <typename F>
auto visit_types(const ConvTransposeArgs& args, const F& f) {
  return visit_dtype(args.x.dtype, [&](auto zero) { return f(ArithmeticOf<decltype(zero)>(), zero); });
}

}  // namespace FCN_ISA
}  // namespace fcn
