// Work on planes: units of the streaming kernels, and the blocks of a row with their fractions.
#pragma once

#include "chain.h"
#include "steps.h"

namespace fcn {
namespace FCN_ISA {

constexpr int64_t kUnitOutputs = 1 << 15;  // outputs that are worth a unit of their own
constexpr int64_t kWantedParts = 32;       // units that balance the threads when there are few planes

inline Image plane_of(const Image& image, int64_t n, int64_t c, int64_t item_bytes) {
  Image plane = image;
  plane.data = (char*)image.data + (n * image.stride_n + c * image.stride_c) * item_bytes;
  plane.batch = plane.channels = 1;
  return plane;
}

// Part `part` of `parts` nearly equal parts of [0, count).
struct Chunk {
  int64_t item, begin, end;
};
inline int64_t parts_of(int64_t items, int64_t count) {
  const int64_t wanted = items >= kWantedParts ? 1 : kWantedParts / (items > 0 ? items : 1);
  return wanted < count ? wanted : (count > 0 ? count : 1);
}
inline int64_t chunk_count(int64_t items, int64_t count) { return items * parts_of(items, count); }
inline Chunk part_of(int64_t unit, int64_t parts, int64_t count) {
  const int64_t part = unit % parts;
  return Chunk{unit / parts, count * part / parts, count * (part + 1) / parts};
}
inline Chunk chunk_of(int64_t unit, int64_t items, int64_t count) {
  return part_of(unit, parts_of(items, count), count);
}

// Parts of `count` rows of a channels_last image: small images in fewer, for every unit plans its columns anew.
inline int64_t pixel_parts(const Geometry& g, int64_t batch, int64_t channels, int64_t count) {
  constexpr int64_t kOutputs = 1 << 13;
  const int64_t parts = parts_of(batch, count), worth = g.out_height * g.out_width * channels / kOutputs;
  return worth < 1 ? 1 : worth < parts ? worth : parts;
}

// A unit is several whole small planes, or a part of the rows of one large plane.
struct PlaneRun {
  int64_t begin, end, rows_begin, rows_end;
};
inline int64_t planes_together(const Geometry& g) { return kUnitOutputs / (g.out_height * g.out_width + 1) + 1; }
inline int64_t plane_groups(const Image& image, const Geometry& g) {
  const int64_t together = planes_together(g);
  return (image.batch * image.channels + together - 1) / together;
}
inline int64_t plane_units(const Image& image, const Geometry& g, int64_t rows) {
  return planes_together(g) > 1 ? plane_groups(image, g) : chunk_count(image.batch * image.channels, rows);
}
inline PlaneRun plane_run(int64_t unit, const Image& image, const Geometry& g, int64_t rows) {
  const int64_t planes = image.batch * image.channels, together = planes_together(g);
  if (together == 1) {
    const Chunk chunk = chunk_of(unit, planes, rows);
    return PlaneRun{chunk.item, chunk.item + 1, chunk.begin, chunk.end};
  }
  const int64_t end = (unit + 1) * together;
  return PlaneRun{unit * together, end < planes ? end : planes, 0, rows};
}

template <typename T>
struct PlaneBlock : Block<T> {
  Vec<T> fractions[kMaxSteps], complements[kMaxSteps];
  bool has_zero;  // some segment starts on an input column
  PlaneBlock(const Geometry& g, int64_t begin) : Block<T>(g, begin) {
    for (int k = 0; k < kMaxSteps; ++k) {
      fractions[k] = this->fraction + T(k) * (T)g.columns.step;
      complements[k] = T(1) - fractions[k];
    }
    has_zero = any(fractions[0] == Vec<T>{});
  }
};

// Blocks that are full of segments where the row has enough of them: the last one starts earlier and computes some
// pixels a second time. Only for kernels that store, not for those that add.
template <typename T>
inline int64_t make_overlapping_blocks(const Geometry& g, PlaneBlock<T>* blocks) {
  constexpr int64_t L = kLanes<T>;
  int64_t segments = 0, count = 0;
  while (segments < g.columns.count && g.columns.length[segments] > 0) ++segments;
  for (int64_t s = 0; s < segments; s += L) {
    put(blocks + count++, PlaneBlock<T>(g, s + L <= segments || segments < L ? s : segments - L));
  }
  return count;
}

// Calls f(output row, weight) for every output row that reads input row y, in ascending order.
template <typename T, typename F>
FCN_INLINE void for_rows_of(const Geometry& g, int64_t y, const F& f) {
  const bool from_start = g.clamp && y == 0, to_end = g.clamp && y == g.in_height - 1;
  int64_t b = 0, end = g.band_count;
  while (!from_start && b < end) {  // the first band whose lower tap can be y
    const int64_t middle = (b + end) / 2;
    if (g.bands[middle].index + 1 < y) {
      b = middle + 1;
    } else {
      end = middle;
    }
  }
  for (; b < g.band_count && (to_end || g.bands[b].index <= y); ++b) {
    const Band& band = g.bands[b];
    const bool top = resolve(band.index, g.in_height, g.clamp) == y;
    const bool bottom = resolve(band.index + 1, g.in_height, g.clamp) == y;
    for (int64_t row = band.begin; row < band.end; ++row) {
      const T fy = (T)g.row_fraction[row];
      const T weight = (top ? T(1) - fy : T(0)) + (bottom ? fy : T(0));
      if (weight != T(0)) f(row, weight);
    }
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
