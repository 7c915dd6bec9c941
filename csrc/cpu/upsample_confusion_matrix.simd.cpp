// Confusion matrix of upsampled logits: winners.h finds the labels of a band, which are counted with those of the
// target as pairs. No label image is written.
#include "labels.h"
#include "winners.h"

namespace fcn {
namespace FCN_ISA {

namespace {

template <typename T>
class ConfusionMatrix {
  static constexpr int L = kLanes<float>;
  using I = IntVec<float>;

 public:
  ConfusionMatrix(const ConfusionMatrixArgs& args, int64_t* counts, void* scratch)
      : args_(args), g_(*args.geometry), counts_(counts), arena_(scratch), winners_(args.x, g_, arena_) {
    labels_ = arena_.take<int32_t>(g_.max_band_rows * g_.out_width);
  }

  int64_t scratch_bytes() const { return arena_.used; }

  // Units [begin, end) of all images; the place of the first wrong label, or -1.
  int64_t run(int64_t begin, int64_t end) {
    winners_.prepare();
    for (int64_t u = begin; u < end; ++u) {
      const int64_t n = u / g_.unit_count;
      if (u == begin || u % g_.unit_count == 0) winners_.start(n);
      const Unit& unit = g_.units[u % g_.unit_count];
      for (int64_t b = unit.begin; b < unit.end; ++b) {
        const Band& band = g_.bands[b];
        const int64_t first = (n * g_.out_height + band.begin) * g_.out_width;
        const int64_t bad =
            convert_labels(args_.target_type, args_.target, first, 1, (band.end - band.begin) * g_.out_width,
                           args_.x.channels, args_.ignores, args_.ignore_index, labels_);
        if (bad >= 0) return first + bad;
        winners_.label(band, [](const Tile<T>&) {});
        for (int64_t row = 0; row < band.end - band.begin; ++row) {
          count(labels_ + row * g_.out_width, winners_.row(row));
        }
      }
    }
    return -1;
  }

 private:
  // Rows have long runs of one pair, and an addition to a counter waits for the last one: vectors of one pair are
  // counted at once, and neighbours of different pairs in different tables.
  FCN_NOINLINE void count(const int32_t* labels, const int32_t* winners) {
    const int32_t classes = (int32_t)args_.x.channels;
    const int64_t tables = confusion_tables(classes), size = tables > 1 ? confusion_table_size(classes) : 0;
    int64_t i = 0;
    for (; i + L <= g_.out_width; i += L) {
      I label, winner;
      memcpy(&label, labels + i, sizeof(label));
      memcpy(&winner, winners + i, sizeof(winner));
      const I pairs = label * classes + winner;
      int32_t pair[L];
      memcpy(pair, &pairs, sizeof(pair));
      if (!any(pairs != I{} + pair[0])) {
        counts_[pair[0]] += L;
      } else {
        for (int l = 0; l < L; ++l) ++counts_[l % kConfusionTables * size + pair[l]];
      }
    }
    for (; i < g_.out_width; ++i) ++counts_[labels[i] * classes + winners[i]];
  }

  const ConfusionMatrixArgs& args_;
  const Geometry& g_;
  int64_t* const counts_;
  Arena arena_;
  Winners<T> winners_;
  int32_t* labels_;
};

}  // namespace

int64_t confusion_matrix_scratch(const ConfusionMatrixArgs& args) {
  return args.x.dtype == DType::kDouble ? ConfusionMatrix<double>(args, nullptr, nullptr).scratch_bytes()
                                        : ConfusionMatrix<float>(args, nullptr, nullptr).scratch_bytes();
}

void confusion_matrix(const ConfusionMatrixArgs& args, int64_t unit, int64_t* counts, void* scratch) {
  const int64_t total = args.x.batch * args.geometry->unit_count, begin = unit * args.units_together;
  const int64_t end = begin + args.units_together < total ? begin + args.units_together : total;
  args.unit_bad_label[unit] = args.x.dtype == DType::kDouble
                                  ? ConfusionMatrix<double>(args, counts, scratch).run(begin, end)
                                  : ConfusionMatrix<float>(args, counts, scratch).run(begin, end);
}

}  // namespace FCN_ISA
}  // namespace fcn
