// An axis as work: the outputs that read the same pair of inputs share an interval, at most kMaxSteps neighbours of
// them are a segment, whose exponentials are one geometric progression (../softmax.h).
#pragma once

#include "../sampling.h"

namespace fcn {
namespace {

constexpr int kMaxSteps = 8;

struct Segments {
  int64_t low;     // the first interval
  int64_t count;   // of segments
  int64_t pieces;  // segments of an interval; 0: every output is a segment
  int64_t steps;   // outputs of the longest
};

FCN_HOST_DEVICE inline int64_t divided_up(int64_t a, int64_t b) { return a / b + (a % b > 0); }

// The axis in segments of at most `longest` outputs. With fewer than two outputs to an interval each is a segment.
inline Segments segments_of(const Axis& axis, int64_t longest) {
  if (axis.den < 2 * axis.num) return Segments{0, axis.out, 0, 1};
  const int64_t low = axis.floor_index(0), high = axis.floor_index(axis.out - 1);
  int64_t run = axis.num == 0 ? axis.out : divided_up(axis.den, axis.num);
  run = run < axis.out ? run : axis.out;
  const int64_t pieces = divided_up(run, longest);
  return Segments{low, (high - low + 1) * pieces, pieces, divided_up(run, pieces)};
}

// One segment: outputs [begin, end) of the interval `index`; `rest` is the numerator of pos(begin) - index.
struct Segment {
  int64_t begin, end, index, rest;

  FCN_HOST_DEVICE Segment(const Axis& axis, const Segments& all, int64_t number) {
    if (all.pieces == 0) {
      begin = number;
      end = number + 1;
      index = axis.floor_index(number);
    } else {
      index = all.low + number / all.pieces;
      begin = axis.first_output(index) + number % all.pieces * all.steps;
      end = axis.first_output(index + 1);
      end = end < begin + all.steps ? end : begin + all.steps;
    }
    rest = axis.num * begin + axis.off - index * axis.den;
  }
};

// The two inputs around an interval, moved into the image, and whether they count.
struct Pair {
  int64_t first, second;
  bool has_first, has_second;

  FCN_HOST_DEVICE Pair(const Axis& axis, bool clamp, int64_t index)
      : first(axis.clamp_index(index)),
        second(axis.clamp_index(index + 1)),
        has_first(clamp || first == index),
        has_second(clamp || second == index + 1) {}

  // Beyond the border of a clamped image both are its outermost pixel.
  FCN_HOST_DEVICE bool flat() const { return has_first && has_second && first == second; }
};

// The weights f of the second input for the outputs of a segment, as if all of a flat pair stood on the first.
template <typename A>
struct Fractions {
  int64_t rest, num;
  A den;

  FCN_HOST_DEVICE Fractions(const Axis& axis, const Pair& pair, int64_t rest_of_first)
      : rest(pair.flat() ? 0 : rest_of_first), num(pair.flat() ? 0 : axis.num), den(A(axis.den)) {}

  FCN_HOST_DEVICE A at(int64_t k) const { return A(rest + k * num) / den; }
  FCN_HOST_DEVICE A step() const { return A(num) / den; }
};

// Work of threads: all images in units of some rows of a segment of columns.
struct Units {
  Segments rows, columns;
  int64_t count;
};

inline Units units_of(const Sampling& s, int64_t batch, int64_t rows, int64_t longest) {
  const Segments down = segments_of(s.rows, rows), across = segments_of(s.cols, longest);
  return Units{down, across, batch * down.count * across.count};
}

// One unit, whose outputs all lie between the same four inputs.
template <typename A>
struct Unit {
  int64_t n;
  Segment rows, columns;
  Pair row_pair, column_pair;
  Fractions<A> down, across;

  FCN_HOST_DEVICE Unit(const Sampling& s, const Units& all, int64_t number)
      : n(number / all.columns.count / all.rows.count),
        rows(s.rows, all.rows, number / all.columns.count % all.rows.count),
        columns(s.cols, all.columns, number % all.columns.count),
        row_pair(s.rows, s.clamp, rows.index),
        column_pair(s.cols, s.clamp, columns.index),
        down(s.rows, row_pair, rows.rest),
        across(s.cols, column_pair, columns.rest) {}

  FCN_HOST_DEVICE bool empty() const { return rows.begin >= rows.end || columns.begin >= columns.end; }
  FCN_HOST_DEVICE int height() const { return static_cast<int>(rows.end - rows.begin); }
  FCN_HOST_DEVICE int width() const { return static_cast<int>(columns.end - columns.begin); }
  // The first output in an image [N, H, W].
  FCN_HOST_DEVICE int64_t pixel(const Sampling& s) const {
    return (n * s.rows.out + rows.begin) * s.cols.out + columns.begin;
  }
};

}  // namespace
}  // namespace fcn
