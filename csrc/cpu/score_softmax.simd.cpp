// Softmax and log-softmax of scores.
#include "scores.h"
#include "steps.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T, typename In>
class ScoreSoftmax {
  static constexpr int L = kLanes<T>, P = kPanel<T>;

 public:
  ScoreSoftmax(const ScoreSoftmaxArgs& args, Arena& arena)
      : args_(args), scores_(args.score, arena), stream_(leaves_cache(args.output, sizeof(In))) {}

  void run(int64_t unit) {
    const int64_t end = scores_.plan.first_block(unit + 1);
    for (int64_t b = scores_.plan.first_block(unit); b < end; ++b) {
      scores_.compute(b, b + 1 < end ? b + 1 : b);
      for (int64_t j = 0; j < scores_.panel_count; ++j) {
        T* z = scores_.panel(j);
        Normaliser<T>& n = normaliser_[j];
        n = args_.log ? normalise<false>(z, scores_.plan.classes) : normalise<true>(z, scores_.plan.classes);
        for (int v = 0; v < kPanelVectors; ++v) n.sum[v] = args_.log ? log_of_sum<T>(n.sum[v]) : T(1) / n.sum[v];
      }
      write();
    }
  }

 private:
  FCN_INLINE Vec<T> value(int64_t j, int64_t c, int v) const {
    const Normaliser<T>& n = normaliser_[j];
    const Vec<T> z = load(scores_.panel(j) + c * P + v * L);
    return args_.log ? (z - n.maximum[v]) - n.sum[v] : z * n.sum[v];
  }

  // Whole panels class by class, so that long runs of a plane are written at once; what is left, or lies elsewhere in
  // memory, panel by panel through scratch.
  void write() {
    const Image& out = args_.output;
    const int64_t whole = out.height == 1 && out.stride_w == 1 ? scores_.block.count / P : 0;
    In* to = (In*)out.data + scores_.block.n * out.stride_n + scores_.block.begin;
    if (stream_ && streams<T>(to, out.stride_c)) {
      write_rows<true>(to, whole);
    } else {
      write_rows<false>(to, whole);
    }
    for (int64_t j = whole; j < scores_.panel_count; ++j) {
      T* z = scores_.panel(j);
      for (int64_t c = 0; c < scores_.plan.classes; ++c) {
        for (int v = 0; v < kPanelVectors; ++v) store(z + c * P + v * L, value(j, c, v));
      }
      for_each_run(out, scores_.part(j), [&](int column, int64_t offset, int length) {
        unpack_panel((In*)out.data + offset, out.stride_c, out.stride_w, z + column, scores_.plan.classes, length);
      });
    }
  }

  template <bool Stream>
  FCN_INLINE void write_rows(In* to, int64_t panels) {
    if (panels == 0) return;
    for (int64_t c = 0; c < scores_.plan.classes; ++c, to += args_.output.stride_c) {
      for (int64_t j = 0; j < panels; ++j) {
        for (int v = 0; v < kPanelVectors; ++v) {
          if constexpr (Stream && sizeof(In) == sizeof(T)) {
            stream<T>((T*)to + j * P + v * L, value(j, c, v));
          } else {
            store_as(to + j * P + v * L, value(j, c, v));
          }
        }
      }
    }
  }

  const ScoreSoftmaxArgs& args_;
  Scores<T, In> scores_;
  const bool stream_;
  Normaliser<T> normaliser_[ScorePlan<T>::kMaxPanels];
};

}  // namespace

int64_t score_softmax_scratch(const ScoreSoftmaxArgs& args) {
  Arena arena(nullptr);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { ScoreSoftmax<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, arena); });
  return arena.used;
}

void score_softmax(const ScoreSoftmaxArgs& args, int64_t unit, void* scratch) {
  const FlushDenormals guard;
  Arena arena(scratch);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { ScoreSoftmax<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, arena).run(unit); });
  stream_fence();
}

}  // namespace FCN_ISA
}  // namespace fcn
