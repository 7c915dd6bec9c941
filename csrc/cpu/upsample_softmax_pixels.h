// Softmax and log-softmax of upsampled logits, pixel by pixel: channels_last images, the classes in the lanes. An
// exponential per logit, but no class has to be moved to where its neighbours in the output stand.
#pragma once

#include "math.h"
#include "pixel_rows.h"

namespace fcn {
namespace FCN_ISA {

template <typename T, typename Out>
class SoftmaxPixels {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  SoftmaxPixels(const SoftmaxArgs& args, void* scratch)
      : args_(args),
        g_(*args.geometry),
        classes_(args.x.channels),
        pitch_((classes_ + L - 1) & -L),
        arena_(scratch),
        rows_(args.x, g_, arena_) {
    logits_ = arena_.take<T>(kPiecePixels * pitch_);
    line_ = arena_.take<Out>(kLine + kPiecePixels * classes_ + L);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  void run(int64_t unit_index) {
    const int64_t n = unit_index / g_.unit_count;
    const Unit& unit = g_.units[unit_index % g_.unit_count];
    const Image& out = args_.output;
    rows_.start(n);
    streams_ = rows_.in_order && sizeof(T) == sizeof(Out) && leaves_cache(out, sizeof(Out), out.width * classes_);
    for (int64_t b = unit.begin; b < unit.end; ++b) {
      const Band& band = g_.bands[b];
      rows_.move_to(band);
      for (int64_t row = band.begin; row < band.end; ++row) {
        write_row(row, (Out*)out.data + n * out.stride_n + row * out.stride_h);
      }
    }
  }

 private:
  static constexpr int64_t kLine = 8192 / sizeof(Out);

  FCN_NOINLINE void write_row(int64_t row, Out* out) const {
    Out *const line = streams_ ? line_ : nullptr, *to = line;
    rows_.for_pieces(row, [&](int64_t o, const auto& piece) FCN_LAMBDA {
      const int64_t right = g_.out_width - o - piece.count;
      if (!line) to = out + o * classes_;
      this->write_piece(piece, line || (rows_.in_order && right * classes_ >= L), to);
      to += piece.count * classes_;
      if (!line || to - line < kLine) return;
      stream_copy(out, line, (to - line) * (int64_t)sizeof(Out));
      out += to - line;
      to = line;
    });
    if (line) stream_copy(out, line, (to - line) * (int64_t)sizeof(Out));
  }

  // The pixels of a piece; their last vectors may reach beyond them where there is room. A NaN shows in the sums.
  template <typename Piece>
  FCN_INLINE void write_piece(const Piece& piece, bool room, Out* out) const {
    constexpr int K = Piece::count;
    V maximum[K], sum[K], scales{};
    logits(piece, maximum);
    for (int k = 0; k < K; ++k) {
      maximum[k] = broadcast(largest<T>(maximum[k]));
      sum[k] = V{};
    }
    for (int64_t c = 0; c < pitch_; c += L) {
      for (int k = 0; k < K; ++k) {
        T* z = logits_ + k * pitch_ + c;
        const V d = load(z) - maximum[k], e = vexp(d);
        store(z, args_.log ? d : e);
        sum[k] += e;
      }
    }
    for (int k = 0; k < K; k += L) {  // a logarithm, or a division, for as many as fit
      V sums = broadcast(T(1));
      for (int i = k; i < K && i < k + L; ++i) sums[i - k] = total<T>(sum[i]);
      scales = args_.log ? log_of_sum<T>(sums) : T(1) / sums;
      for (int i = k; i < K && i < k + L; ++i)
        write(logits_ + i * pitch_, broadcast(scales[i - k]), room, out + i * classes_);
    }
  }

  // The logits of a piece's pixels, filled up with the lowest, and the largest in each lane.
  template <typename Piece>
  FCN_INLINE void logits(const Piece& piece, V* maximum) const {
    constexpr int K = Piece::count;
    const V lowest = broadcast(-(T)__builtin_inf());
    V v[K];
    int64_t c = 0;
    for (int k = 0; k < K; ++k) maximum[k] = lowest;
    for (; c + L <= classes_; c += L) {
      piece.at(c, v);
      for (int k = 0; k < K; ++k) {
        store(logits_ + k * pitch_ + c, v[k]);
        maximum[k] = vmax(maximum[k], v[k]);
      }
    }
    if (c == classes_) return;
    T lane[L];
    for (int l = 0; l < L; ++l) lane[l] = (T)l;
    const V beyond = broadcast((T)(classes_ - c));
    piece.at(c, v);
    for (int k = 0; k < K; ++k) {
      v[k] = load(lane) < beyond ? v[k] : lowest;
      store(logits_ + k * pitch_ + c, v[k]);
      maximum[k] = vmax(maximum[k], v[k]);
    }
  }

  FCN_INLINE void write(const T* z, V scale, bool room, Out* out) const {
    const auto result = [&](int64_t c) FCN_LAMBDA { return args_.log ? load(z + c) - scale : load(z + c) * scale; };
    int64_t c = 0;
    for (; c + L <= classes_; c += L) store_as(out + c, result(c));
    if (c == classes_) return;
    const V rest = result(c);
    if (room) return store_as(out + c, rest);
    for (int l = 0; c + l < classes_; ++l) from_arithmetic(rest[l], out + c + l);
  }

  const SoftmaxArgs& args_;
  const Geometry& g_;
  const int64_t classes_, pitch_;
  Arena arena_;
  PixelRows<T, Out> rows_;
  bool streams_;
  T* logits_;
  Out* line_;
};

}  // namespace FCN_ISA
}  // namespace fcn
