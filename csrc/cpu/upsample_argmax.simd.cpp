// Argmax of upsampled logits: winners.h finds the labels of a band; here they are written, with the winners' softmax
// probabilities on request.
#include "math.h"
#include "winners.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
class Argmax {
  static constexpr int L = kLanes<T>;
  using V = Vec<T>;

 public:
  Argmax(const ArgmaxArgs& args, void* scratch)
      : args_(args), g_(*args.geometry), arena_(scratch), winners_(args.x, g_, arena_) {}

  int64_t scratch_bytes() const { return arena_.used; }

  // Units [begin, end) of all images.
  void run(int64_t begin, int64_t end) {
    winners_.prepare();
    for (int64_t u = begin; u < end; ++u) {
      const int64_t n = u / g_.unit_count;
      if (u == begin || u % g_.unit_count == 0) winners_.start(n);
      const Unit& unit = g_.units[u % g_.unit_count];
      for (int64_t b = unit.begin; b < unit.end; ++b) {
        const Band& band = g_.bands[b];
        if (args_.confidence) {
          winners_.label(band, [&](const Tile<T>& tile) { this->write_confidence(tile, n, band); });
        } else {
          winners_.label(band, [](const Tile<T>&) {});
        }
        for (int64_t row = band.begin; row < band.end; ++row) {
          write(winners_.row(row - band.begin), n * g_.out_height + row);
        }
      }
    }
  }

 private:
  // The largest softmax probability, 1 / sum of exp(z - best) over all classes.
  FCN_NOINLINE void write_confidence(const Tile<T>& tile, int64_t n, const Band& band) const {
    const Interval<T>& interval = *tile.interval;
    for (int64_t row = band.begin; row < band.end; ++row) {
      T* out = (T*)args_.confidence + (n * g_.out_height + row) * g_.out_width + interval.first;
      const V fy = broadcast((T)g_.row_fraction[row]);
      for (int64_t k = 0; k < interval.length; k += L) {
        T f[L];
        for (int l = 0; l < L; ++l) f[l] = T(k + l);
        const V fx = interval.fraction + load(f) * (T)g_.columns.step;
        V best = Winners<T>::direct(tile, tile.classes[0], fx, fy), sum{};
        for (int64_t i = 1; i < tile.count; ++i) {
          const V v = Winners<T>::direct(tile, tile.classes[i], fx, fy);
          best = ((v > best) | (v != v)) ? v : best;
        }
        for (int64_t c = 0; c < args_.x.channels; ++c) sum += vexp(Winners<T>::direct(tile, c, fx, fy) - best);
        const V p = T(1) / sum;
        for (int l = 0; l < L && k + l < interval.length; ++l) out[k + l] = p[l];
      }
    }
  }

  template <typename Label>
  void write_as(const int32_t* FCN_RESTRICT from, int64_t row) const {
    Label* FCN_RESTRICT to = (Label*)args_.labels + row * g_.out_width;
    for (int64_t i = 0; i < g_.out_width; ++i) to[i] = (Label)from[i];
  }

  FCN_NOINLINE void write(const int32_t* from, int64_t row) const {
    visit_label(args_.label_type, [&](auto zero) { write_as<decltype(zero)>(from, row); });
  }

  const ArgmaxArgs& args_;
  const Geometry& g_;
  Arena arena_;
  Winners<T> winners_;
};

}  // namespace

int64_t argmax_scratch(const ArgmaxArgs& args) {
  return args.x.dtype == DType::kDouble ? Argmax<double>(args, nullptr).scratch_bytes()
                                        : Argmax<float>(args, nullptr).scratch_bytes();
}

void argmax(const ArgmaxArgs& args, int64_t unit, void* scratch) {
  const int64_t total = args.x.batch * args.geometry->unit_count, begin = unit * args.units_together;
  const int64_t end = begin + args.units_together < total ? begin + args.units_together : total;
  if (args.x.dtype == DType::kDouble) {
    Argmax<double>(args, scratch).run(begin, end);
  } else {
    Argmax<float>(args, scratch).run(begin, end);
  }
}

}  // namespace FCN_ISA
}  // namespace fcn
