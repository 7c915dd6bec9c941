// The pixels of a row of a tile, as the cross-entropy of upsampled logits sees them: labels, weights and incoming
// gradients on their way in, losses on their way out.
#pragma once

#include "labels.h"
#include "tile.h"

namespace fcn {
namespace FCN_ISA {

template <typename T>
class LossPixels {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  LossPixels(const CrossEntropyArgs& args, Arena& arena)
      : smoothing((T)args.label_smoothing),
        smooth(smoothing / (T)args.x.channels),
        args_(args),
        g_(*args.geometry),
        classes_(args.x.channels) {
    class_weight_ = arena.take<T>(classes_ + 1);
    labels_ = arena.take<int32_t>(g_.max_band_rows * g_.out_width);
  }

  void start(int64_t n) {
    n_ = n;
    for (int64_t c = 0; c < classes_; ++c) class_weight_[c] = args_.weight ? ((const T*)args_.weight)[c] : T(1);
    class_weight_[classes_] = T(0);  // the class of ignored pixels
    total_weight = 0;
  }

  // Converts the labels of a band; returns the first wrong one's pixel, or -1.
  int64_t read_band(const Band& band) {
    first_pixel_ = (n_ * g_.out_height + band.begin) * g_.out_width;
    const int64_t wrong =
        convert_labels(args_.target_type, args_.target, first_pixel_, 1, (band.end - band.begin) * g_.out_width,
                       classes_, true, args_.ignore_index, labels_);
    return wrong < 0 ? -1 : first_pixel_ + wrong;
  }

  // The labels and weights of a slot's pixels. `plain`: every step of every lane is a pixel, the classes have no
  // weights, and labels stand as in the target, lane by lane; otherwise they are copied step by step, and what is no
  // pixel gets the ignored class. `all_count`: plain, and no pixel is ignored.
  FCN_NOINLINE void read(const Band& band, const Block<T>& block, int slot) {
    const int steps = g_.columns.steps;
    plain_ = block.full && !args_.weight && !args_.pixel_grad;
    all_count_ = false;
    if (!plain_ || args_.pixel_loss) place(band, block, slot);
    if (plain_) {
      row_labels_ = labels_ + slot * g_.out_width + block.first[0];
      int ignored = 0;
      for (int i = 0; i < steps * L; ++i) ignored += row_labels_[i] == (int32_t)classes_;
      total_weight += steps * L - ignored;
      all_count_ = ignored == 0;
      for (int l = 0; !all_count_ && l < L; ++l) {
        for (int k = 0; k < steps; ++k) {
          weight_[k * L + l] = row_labels_[l * steps + k] == (int32_t)classes_ ? T(0) : T(1);
        }
      }
      return;
    }
    for (int i = 0; i < steps * L; ++i) label_[i] = (int32_t)classes_;
    for (int k = 0; k < steps; ++k) {
      store(weight_ + k * L, V{});
      store(grad_ + k * L, V{});
    }
    const T* grad = (const T*)args_.pixel_grad + first_pixel_;
    for (int l = 0; l < block.lanes; ++l) {
      for (int k = 0; k < length_[l]; ++k) {
        const int32_t label = labels_[start_[l] + k];
        label_[k * L + l] = label;
        weight_[k * L + l] = class_weight_[label];
        if (args_.pixel_grad) grad_[k * L + l] = grad[start_[l] + k];
      }
    }
    V total{};
    for (int k = 0; k < steps; ++k) total += load(weight_ + k * L);
    for (int l = 0; l < block.lanes; ++l) total_weight += (double)total[l];
  }

  // Where the lanes of a slot read labels and write pixels; those beyond the band have no length.
  void place(const Band& band, const Block<T>& block, int slot) {
    for (int l = 0; l < L; ++l) {
      const int64_t row = slot * block.together + block.row[l];
      const bool inside = band.begin + row < band.end;
      start_[l] = (inside ? row : 0) * g_.out_width + block.first[l];
      length_[l] = inside ? block.length[l] : 0;
    }
  }

  bool plain() const { return plain_; }
  bool all_count() const { return all_count_; }

  // Of the placed lanes.
  const int32_t* length() const { return length_; }
  bool inside(int k, int l) const { return k < length_[l]; }

  // Labels where they stand, of plain rows: step k of lane l at l * steps + k. And of the others, at k * L + l.
  const int32_t* row_labels() const { return row_labels_; }
  const int32_t* copied_labels() const { return label_; }
  int32_t label(int k, int l) const { return plain_ ? row_labels_[l * g_.columns.steps + k] : label_[k * L + l]; }

  T class_weight(int64_t c) const { return class_weight_[c]; }
  V weight(int k) const { return all_count_ ? broadcast(T(1)) : load(weight_ + k * L); }
  T copied_weight(int k, int l) const { return weight_[k * L + l]; }

  // 1 for pixels that count, 0 for ignored ones.
  V valid(int k) const {
    if (plain_) return weight(k);
    T v[L];
    for (int l = 0; l < L; ++l) v[l] = label_[k * L + l] == (int32_t)classes_ ? T(0) : T(1);
    return load(v);
  }

  // What the incoming gradient makes of a factor.
  V times_grad(V v, int k) const { return args_.pixel_grad ? v * load(grad_ + k * L) : v; }
  T times_grad(T v, int k, int l) const { return args_.pixel_grad ? v * grad_[k * L + l] : v; }

  // d loss / d z_c = q p_c - (one-hot and smoothing constants), q = (1 - smoothing) w + smoothing / C sum(w).
  V coefficient(int k) const {
    V q = (T(1) - smoothing) * weight(k);
    if (smoothing != T(0)) q += smooth * (T)args_.weight_sum * valid(k);
    return times_grad(q, k);
  }

  // What the forward wrote.
  T saved_lse(int k, int l) const { return ((const T*)args_.saved_lse)[first_pixel_ + start_[l] + k]; }

  void write(int k, int l, T loss, T lse) {
    const int64_t p = first_pixel_ + start_[l] + k;
    ((T*)args_.pixel_loss)[p] = loss;
    if (args_.pixel_lse) ((T*)args_.pixel_lse)[p] = lse;
  }

  const T smoothing, smooth;  // and smoothing / C
  double total_weight;        // of all pixels so far

 private:
  const CrossEntropyArgs& args_;
  const Geometry& g_;
  const int64_t classes_;
  T* class_weight_;
  int32_t* labels_;  // of the band
  int64_t n_;
  int64_t first_pixel_, start_[L];  // of the band in the images of pixels; of the slot's lanes in the band
  int32_t length_[L];
  bool plain_, all_count_;
  const int32_t* row_labels_;
  int32_t label_[kMaxSteps * L];
  T weight_[kMaxSteps * L], grad_[kMaxSteps * L];
};

}  // namespace FCN_ISA
}  // namespace fcn
