#include "geometry.h"

#include <new>
#include <stdexcept>
#include <string>

namespace fcn {

namespace {
// Enough units to balance many threads, few enough that their side rows stay a small part of the input.
constexpr int64_t kWantedUnits = 24;

double fraction(const Axis& axis, int64_t o) {
  return static_cast<double>(axis.remainder(o)) / static_cast<double>(axis.den);
}
}  // namespace

GeometryPlan::GeometryPlan(const Sampling& sampling, int64_t batch) {
  geometry_.in_height = sampling.rows.in;
  geometry_.in_width = sampling.cols.in;
  geometry_.out_height = sampling.rows.out;
  geometry_.out_width = sampling.cols.out;
  geometry_.clamp = sampling.clamp;
  try {
    plan_columns(sampling.cols);
    plan_rows(sampling.rows);
    plan_units(sampling.rows, sampling.clamp, batch);
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("fcn_kernels: not enough memory for the geometry of " + std::to_string(sampling.rows.out) +
                             " x " + std::to_string(sampling.cols.out) + " pixels");
  }
}

void GeometryPlan::plan_columns(const Axis& axis) {
  struct Run {
    int64_t index, begin, end;
  };
  std::vector<Run> runs;
  int64_t longest = 1;
  for (int64_t o = 0; o < axis.out;) {
    const int64_t i = axis.floor_index(o), end = std::max(axis.first_output(i + 1), o + 1);
    runs.push_back({i, o, end});
    longest = std::max(longest, end - o);
    o = end;
  }
  // Runs longer than kMaxSteps are cut into pieces of equal length. Piece p of every run comes before piece p + 1 of
  // any, so that neighbouring lanes read neighbouring inputs.
  const int64_t pieces = (longest + kMaxSteps - 1) / kMaxSteps;
  const int64_t steps = (longest + pieces - 1) / pieces;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (const Run& run : runs) {
      const int64_t begin = run.begin + piece * steps, end = std::min(begin + steps, run.end);
      if (begin >= end) continue;
      index_.push_back(run.index);
      first_.push_back(begin);
      length_.push_back(static_cast<int32_t>(end - begin));
      fraction_.push_back(fraction(axis, begin));
    }
  }
  while (index_.empty() || index_.size() % kSegmentPadding != 0) {
    index_.push_back(index_.empty() ? 0 : index_.back() + 1);  // goes on, so that the lanes stay contiguous
    first_.push_back(first_.empty() ? 0 : first_.back());
    fraction_.push_back(fraction_.empty() ? 0.0 : fraction_.back());
    length_.push_back(0);
  }
  geometry_.columns = Segments{static_cast<int64_t>(index_.size()),
                               static_cast<int>(steps),
                               static_cast<double>(axis.num) / static_cast<double>(axis.den),
                               index_.data(),
                               first_.data(),
                               length_.data(),
                               fraction_.data()};
}

void GeometryPlan::plan_rows(const Axis& axis) {
  row_fraction_.resize(axis.out);
  for (int64_t o = 0; o < axis.out; ++o) row_fraction_[o] = fraction(axis, o);
  geometry_.max_band_rows = 0;
  for (int64_t o = 0; o < axis.out;) {
    const int64_t i = axis.floor_index(o), end = std::max(axis.first_output(i + 1), o + 1);
    for (; o < end; o += kMaxBandRows) bands_.push_back({i, o, std::min(o + kMaxBandRows, end)});
    o = end;
  }
  for (const Band& band : bands_) {
    geometry_.max_band_rows = std::max(geometry_.max_band_rows, band.end - band.begin);
  }
  geometry_.row_fraction = row_fraction_.data();
  geometry_.bands = bands_.data();
  geometry_.band_count = static_cast<int64_t>(bands_.size());
}

void GeometryPlan::plan_units(const Axis& axis, bool clamp, int64_t batch) {
  const int64_t total = static_cast<int64_t>(bands_.size());
  const int64_t per_unit = std::max<int64_t>(1, total * std::max<int64_t>(batch, 1) / kWantedUnits);
  for (int64_t begin = 0; begin < total;) {
    int64_t end = std::min(begin + per_unit, total);
    // Bands of one input interval stay together: they write the same two rows.
    while (end < total && bands_[end].index == bands_[end - 1].index) ++end;
    int64_t side_row = -1;
    if (end < total) {
      const int64_t next = bands_[end].index;
      side_row = clamp ? axis.clamp_index(next) : (next >= 0 && next < axis.in ? next : -1);
    }
    units_.push_back({begin, end, side_row});
    begin = end;
  }
  // Every input row is written by a unit, unless the sampling skips some.
  int64_t next = 0;
  for (const Unit& unit : units_) {
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      for (int64_t tap = bands_[b].index; tap <= bands_[b].index + 1; ++tap) {
        const int64_t row = clamp ? axis.clamp_index(tap) : tap;
        if (row == next && row != unit.side_row) ++next;
      }
    }
  }
  geometry_.covers_rows = next == axis.in;
  geometry_.units = units_.data();
  geometry_.unit_count = static_cast<int64_t>(units_.size());
}

}  // namespace fcn
