// The adjoint of upsampling channels_last images, the channels in the lanes: an input row's sum over the output rows
// that read it, some columns ahead of the input columns that collect them.
#pragma once

#include "planes.h"

namespace fcn {
namespace FCN_ISA {

template <typename T, typename In>
class UpsampleBackwardPixels {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

  // An output column, or row, that reads an input column, or row.
  struct Tap {
    int64_t output;
    T weight;
  };

 public:
  UpsampleBackwardPixels(const UpsampleBackwardArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), channels_(args.grad.channels), arena_(scratch) {
    column_taps_ = arena_.take<Tap>(2 * g_.out_width);
    taps_end_ = arena_.take<int64_t>(g_.in_width);
    row_taps_ = arena_.take<Tap>(g_.out_height);
    sum_ = arena_.take<T>(g_.out_width * channels_ + L);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit) {
    const Chunk chunk = part_of(unit, pixel_parts(g_, args_.grad.batch, channels_, g_.in_height), g_.in_height);
    plan_columns();
    for (int64_t y = chunk.begin; y < chunk.end; ++y) {
      row_count_ = 0;
      for_rows_of<T>(g_, y, [&](int64_t row, T weight) { row_taps_[row_count_++] = Tap{row, weight}; });
      write_row(chunk.item, y);
    }
  }

 private:
  static constexpr int64_t kTogether = 2048 / sizeof(T);  // elements of a sum that are made at once

  void plan_columns() {
    memset(taps_end_, 0, g_.in_width * sizeof(int64_t));
    for_columns([&](int64_t i, Tap) { ++taps_end_[i]; });
    int64_t total = 0;
    for (int64_t i = 0; i < g_.in_width; ++i) {
      const int64_t count = taps_end_[i];
      taps_end_[i] = total;  // where the next one goes
      total += count;
    }
    for_columns([&](int64_t i, Tap tap) { column_taps_[taps_end_[i]++] = tap; });
  }

  // Calls f(input column, tap) for all that count.
  template <typename F>
  FCN_INLINE void for_columns(const F& f) const {
    const Segments& s = g_.columns;
    for (int64_t n = 0; n < s.count; ++n) {
      const int64_t left = resolve(s.index[n], g_.in_width, g_.clamp);
      const int64_t right = resolve(s.index[n] + 1, g_.in_width, g_.clamp);
      for (int k = 0; k < s.length[n]; ++k) {
        const T fraction = (T)(s.fraction[n] + k * s.step);
        if (left >= 0) f(left, Tap{s.first[n] + k, T(1) - fraction});
        if (right >= 0 && fraction != T(0)) f(right, Tap{s.first[n] + k, fraction});
      }
    }
  }

  void write_row(int64_t n, int64_t y) {
    const Image& out = args_.output;
    In* to = (In*)out.data + n * out.stride_n + y * out.stride_h;
    int64_t ready = 0;  // elements of the sum
    for (int64_t i = 0, begin = 0; i < g_.in_width; begin = taps_end_[i++], to += channels_) {
      int64_t last = 0;
      for (int64_t t = begin; t < taps_end_[i]; ++t) {
        const int64_t end = (column_taps_[t].output + 1) * channels_;
        if (end > last) last = end;
      }
      while (ready < last) {
        const int64_t left = g_.out_width * channels_ - ready, count = left < kTogether ? left : kTogether;
        if (args_.through == Through::kSigmoid) {
          sum_rows<true>(n, ready, count);
        } else {
          sum_rows<false>(n, ready, count);
        }
        ready += count;
      }
      collect(column_taps_ + begin, taps_end_[i] - begin, g_.in_width - 1 - i, to);
    }
  }

  // Elements [begin, begin + count) of the sum over the output rows.
  template <bool Sigmoid>
  FCN_NOINLINE void sum_rows(int64_t n, int64_t begin, int64_t count) {
    T* to = sum_ + begin;
    int64_t r = 0;
    if (row_count_ == 0) memset(to, 0, count * sizeof(T));
    for (; r < row_count_; r += 4) {
      const int64_t rows = row_count_ - r;
      if (rows >= 4) {
        add_rows<4, Sigmoid>(n, r, begin, count, to);
      } else if (rows == 3) {
        add_rows<3, Sigmoid>(n, r, begin, count, to);
      } else if (rows == 2) {
        add_rows<2, Sigmoid>(n, r, begin, count, to);
      } else {
        add_rows<1, Sigmoid>(n, r, begin, count, to);
      }
    }
  }

  template <int R, bool Sigmoid>
  FCN_INLINE void add_rows(int64_t n, int64_t first, int64_t begin, int64_t count, T* to) const {
    const Image &grad = args_.grad, &function = args_.function;
    const In *g[R], *p[R];
    V weight[R];
    for (int r = 0; r < R; ++r) {
      const Tap& tap = row_taps_[first + r];
      g[r] = (const In*)grad.data + n * grad.stride_n + tap.output * grad.stride_h + begin;
      p[r] = Sigmoid ? (const In*)function.data + n * function.stride_n + tap.output * function.stride_h + begin : g[r];
      weight[r] = broadcast(tap.weight);
    }
    const auto term = [&](int r, const In* at_g, const In* at_p) FCN_LAMBDA {
      const V v = load_as(at_g);
      if constexpr (!Sigmoid) return weight[r] * v;
      const V q = load_as(at_p);
      return weight[r] * (v * q * (T(1) - q));
    };
    int64_t i = 0;
    for (; i + L <= count; i += L) {
      V sum = first ? load(to + i) : V{};
      for (int r = 0; r < R; ++r) sum += term(r, g[r] + i, p[r] + i);
      store(to + i, sum);
    }
    if (i == count) return;
    V sum = first ? load(to + i) : V{};
    for (int r = 0; r < R; ++r) {
      In few_g[L] = {}, few_p[L] = {};
      memcpy(few_g, g[r] + i, (count - i) * sizeof(In));
      if (Sigmoid) memcpy(few_p, p[r] + i, (count - i) * sizeof(In));
      sum += term(r, few_g, few_p);
    }
    store(to + i, sum);  // what follows is written later, or room
  }

  // An input pixel from the sums of the columns that read it; `right`: how many pixels of its row follow.
  FCN_NOINLINE void collect(const Tap* taps, int64_t count, int64_t right, In* out) const {
    int64_t c = 0;
    for (; c + 4 * L <= channels_; c += 4 * L) collect_vectors<4>(taps, count, c, out + c);
    for (; c + L <= channels_; c += L) collect_vectors<1>(taps, count, c, out + c);
    if (c == channels_) return;
    if (c + L - channels_ <= right * channels_) return collect_vectors<1>(taps, count, c, out + c);
    In few[L];
    collect_vectors<1>(taps, count, c, few);
    memcpy(out + c, few, (channels_ - c) * sizeof(In));
  }

  template <int B>
  FCN_INLINE void collect_vectors(const Tap* taps, int64_t count, int64_t c, In* out) const {
    V sum[B] = {};
    for (int64_t t = 0; t < count; ++t) {
      const T* from = sum_ + taps[t].output * channels_ + c;
      const V weight = broadcast(taps[t].weight);
      for (int b = 0; b < B; ++b) sum[b] += weight * load(from + b * L);
    }
    for (int b = 0; b < B; ++b) store_as(out + b * L, sum[b]);
  }

  const UpsampleBackwardArgs& args_;
  const Geometry& g_;
  const int64_t channels_;
  Arena arena_;
  Tap *column_taps_, *row_taps_;
  int64_t* taps_end_;  // of each input column, in column_taps_
  int64_t row_count_ = 0;
  T* sum_;
};

}  // namespace FCN_ISA
}  // namespace fcn
