// The work list of a Sampling: segments of output columns, bands of output rows, units of work.
#pragma once

#include <algorithm>
#include <vector>

#include "../sampling.h"
#include "kernels.h"

namespace fcn {

class GeometryPlan {
 public:
  GeometryPlan(const Sampling& sampling, int64_t batch);
  GeometryPlan(const GeometryPlan&) = delete;
  GeometryPlan& operator=(const GeometryPlan&) = delete;
  const Geometry& geometry() const { return geometry_; }

 private:
  void plan_columns(const Axis& axis);
  void plan_rows(const Axis& axis);
  void plan_units(const Axis& axis, bool clamp, int64_t batch);

  std::vector<int64_t> index_, first_;
  std::vector<int32_t> length_;
  std::vector<double> fraction_, row_fraction_;
  std::vector<Band> bands_;
  std::vector<Unit> units_;
  Geometry geometry_;
};

}  // namespace fcn
