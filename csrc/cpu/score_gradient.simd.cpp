// Gradients in x, weight and bias from g = d loss / d z [C][pixels] of a block, which never leaves scratch:
//   grad_x = W' g,  grad_weight = sum over blocks of g x',  grad_bias = sum of g.
// g is that of the cross-entropy, in one pass with the losses or from scores that are computed again, or that of the
// softmax, from its output p:
//   p (grad - sum p grad),  of the logarithm  grad - exp(p) sum grad.
// The blocks of a slot follow each other and add up in its own memory; the slots' sums are added in their order.
#include "score_loss.h"

namespace fcn {
namespace FCN_ISA {

namespace {

// Slots for the threads to share, as long as their sums are much smaller than x and cost less than the products.
template <typename T>
int64_t slots_of(const ScorePlan<T>& plan, int64_t batch) {
  const int64_t pixels = batch * plan.pixels;
  int64_t slots = pixels / 512;
  if (slots > pixels / (2 * plan.classes)) slots = pixels / (2 * plan.classes);
  if (slots > 64) slots = 64;
  if (slots < 2) slots = 2;
  return slots < plan.blocks ? slots : plan.blocks;
}

// A slot's gradient of weight: panels of channels, [C][P] each.
template <typename T>
int64_t slot_size(const ScorePlan<T>& plan) {
  return (plan.channels + plan.P - 1) / plan.P * plan.P * plan.classes;
}

template <typename T, typename In>
class Gradients {
  static constexpr int L = kLanes<T>, P = kPanel<T>;
  static constexpr int64_t kDepth =
      16384 / (P * (int64_t)sizeof(T));             // classes of a panel that stays in the first cache
  static constexpr int64_t kRows = 18 * kTileRows;  // channels of grad_x that are computed together

 public:
  Gradients(const ScoreGradientArgs& args, Arena& arena)
      : args_(args),
        scores_(args.score, arena),
        plan_(scores_.plan),
        x_products_(plan_.channels),
        weight_products_(plan_.classes) {
    bias_ = arena.take<T>(plan_.classes * L);
    rows_ = arena.take<T>(kRows * P);
    softmax_ = arena.take<T>(args.pixel_grad || args.block_loss ? 0 : plan_.classes * P);
    x_ = arena.take<T>(plan_.panels * P * P);
  }

  void run(int64_t slot) {
    const int64_t begin = plan_.blocks * slot / args_.slots, end = plan_.blocks * (slot + 1) / args_.slots;
    memset(bias_, 0, plan_.classes * L * sizeof(T));
    T* weight = args_.slot_weight ? (T*)args_.slot_weight + slot * slot_size(plan_) : nullptr;
    for (int64_t b = begin; b < end; ++b) {
      if (args_.block_loss) {
        scores_.compute(b, b + 1 < end ? b + 1 : b);
        losses(b);
      } else if (args_.pixel_grad) {
        scores_.compute(b, b + 1 < end ? b + 1 : b);
        for (int64_t j = 0; j < scores_.panel_count; ++j) cross_entropy(j);
      } else {
        scores_.start(b);
        for (int64_t j = 0; j < scores_.panel_count; ++j) softmax(j);
      }
      if (args_.grad_x.data) write_x();
      if (weight) add_weight(weight, b > begin);
    }
    T* bias = (T*)args_.slot_bias + slot * plan_.classes;
    for (int64_t c = 0; c < plan_.classes; ++c) {
      T sum = 0;
      for (int l = 0; l < L; ++l) sum += bias_[c * L + l];
      bias[c] = sum;
    }
  }

 private:
  // Of a whole block: the losses, and the gradients with the same incoming gradient for every pixel.
  void losses(int64_t b) {
    PanelLoss<T> loss;
    T scale[P];
    for (T& s : scale) s = (T)args_.pixel_scale;
    int64_t bad = -1;
    for (int64_t j = 0; j < scores_.panel_count && bad < 0; ++j) {
      const PixelBlock part = scores_.part(j);
      const int64_t first = part.n * plan_.pixels + part.begin;
      if (args_.labels.label_smoothing > 0) {
        bad = loss.template compute<false>(args_.labels, scores_.panel(j), plan_.classes, first, part.count);
        differentiate<false>(j, loss.labels, scale, loss.lse);
      } else {
        bad = loss.template compute<true>(args_.labels, scores_.panel(j), plan_.classes, first, part.count);
        differentiate<true>(j, loss.labels, scale, loss.exp_sum);
      }
    }
    args_.block_loss[b] = loss.sum;
    args_.block_bad_label[b] = bad;
  }

  void cross_entropy(int64_t j) {
    const PixelBlock part = scores_.part(j);
    PanelLabels<T> labels;
    const int64_t first = part.n * plan_.pixels + part.begin;
    labels.read(args_.labels, plan_.classes, first, part.count);
    T scale[P], lse[P];
    for (int i = 0; i < P; ++i) {
      scale[i] = lse[i] = 0;
      if (labels.label[i] < 0) continue;
      const int64_t row = (part.begin + i) / width_, column = (part.begin + i) % width_;
      const int64_t at = part.n * args_.grad_stride_n + row * args_.grad_stride_h + column * args_.grad_stride_w;
      scale[i] = ((const T*)args_.pixel_grad)[at];
      lse[i] = ((const T*)args_.lse)[first + i];
    }
    differentiate<false>(j, labels, scale, lse);
  }

  // (a + b) p - a [c == y] - e / C w[c], a = (1 - e) w[y], b = e / C sum_c w[c], times the incoming gradient `scale`.
  // p is exp(z - norm); with Kept, the panel holds exponentials and `norm` is their sum.
  template <bool Kept>
  void differentiate(int64_t j, const PanelLabels<T>& panel, const T* scale, const T* norm) {
    const LabelArgs& labels = args_.labels;
    const T smoothing = (T)labels.label_smoothing, smooth = smoothing / (T)plan_.classes;
    T own[P], counts[P];
    for (int i = 0; i < P; ++i) {
      const int64_t y = panel.label[i];
      own[i] = y < 0 ? T(0) : (1 - smoothing) * weight_of<T>(labels, y);
      counts[i] = y < 0 ? T(0) : T(1);
    }
    T* g = scores_.panel(j);
    const T all = smooth * (T)labels.weight_sum;
    Vec<T> factor[kPanelVectors], s[kPanelVectors], shift[kPanelVectors];
    IntVec<T> kept[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      s[v] = load(scale + v * L);
      shift[v] = load(norm + v * L);
      factor[v] = s[v] * (load(own + v * L) + all);
      if (Kept) factor[v] /= shift[v];
      kept[v] = load(counts + v * L) != Vec<T>{};
    }
    for (int64_t c = 0; c < plan_.classes; ++c) {
      const T even = Kept ? T(0) : smooth * weight_of<T>(labels, c);
      for (int v = 0; v < kPanelVectors; ++v) {
        T* to = g + c * P + v * L;
        const Vec<T> value = Kept ? factor[v] * load(to) : factor[v] * vexp(load(to) - shift[v]) - even * s[v];
        store(to, kept[v] ? value : Vec<T>{});
      }
    }
    for (int i = 0; i < P; ++i) {
      if (panel.label[i] >= 0) g[panel.label[i] * P + i] -= scale[i] * own[i];
    }
    for (int64_t c = 0; c < plan_.classes; ++c) {
      Vec<T> sum = load(bias_ + c * L);
      for (int v = 0; v < kPanelVectors; ++v) sum += load(g + c * P + v * L);
      store(bias_ + c * L, sum);
    }
  }

  void softmax(int64_t j) {
    const PixelBlock part = scores_.part(j);
    T* g = scores_.panel(j);
    fetch(g, args_.grad, part);
    fetch(softmax_, args_.output, part);
    for (int v = 0; v < kPanelVectors; ++v) {
      Vec<T> sum{};
      for (int64_t c = 0; c < plan_.classes; ++c) {
        const Vec<T> value = load(g + c * P + v * L);
        sum += args_.log ? value : load(softmax_ + c * P + v * L) * value;
      }
      for (int64_t c = 0; c < plan_.classes; ++c) {
        T* to = g + c * P + v * L;
        const Vec<T> p = load(softmax_ + c * P + v * L);
        const Vec<T> value = args_.log ? load(to) - vexp(p) * sum : p * (load(to) - sum);
        store(to, value);
        store(bias_ + c * L, load(bias_ + c * L) + value);
      }
    }
  }

  // All classes of a panel of pixels.
  void fetch(T* to, const Image& from, const PixelBlock& part) {
    if (part.count < P) memset(to, 0, plan_.classes * P * sizeof(T));
    for_each_run(from, part, [&](int column, int64_t offset, int length) {
      pack_panel(to + column, (const In*)from.data + offset, plan_.classes, from.stride_c, length, from.stride_w);
    });
  }

  void write_x() {
    const Image& out = args_.grad_x;
    const PixelBlock& block = scores_.block;
    In* to = (In*)out.data + block.n * out.stride_n + block.begin * out.stride_w;
    // Whole rows of the result are written in place, all others on the way through scratch.
    const int64_t direct = sizeof(In) == sizeof(T) && out.stride_w == 1 ? block.count / P : 0;
    const RowTiles& tiles = x_products_.tiles;
    constexpr int64_t together = kRows / kTileRows;
    // Few classes: all panels stay in the first cache, and a tile writes long runs.
    const bool few = plan_.classes * direct * P * (int64_t)sizeof(T) <= (1 << 15);
    for (int64_t t = 0; few && t < tiles.count; ++t) {
      for (int64_t j = 0; j < direct; ++j) multiply(t, j, (T*)to + tiles.begin(t) * out.stride_c + j * P, out.stride_c);
    }
    for (int64_t first = 0; first < tiles.count; first += together) {
      const int64_t last = first + together < tiles.count ? first + together : tiles.count;
      const int64_t channel = tiles.begin(first);
      for (int64_t j = few ? direct : 0; j < scores_.panel_count; ++j) {
        In* panel = to + j * P * out.stride_w + channel * out.stride_c;
        T* rows = j < direct ? (T*)panel : rows_;
        const int64_t stride = j < direct ? out.stride_c : P;
        for (int64_t t = first; t < last; ++t) multiply(t, j, rows + (tiles.begin(t) - channel) * stride, stride);
        if (j < direct) continue;
        unpack_panel(panel, out.stride_c, out.stride_w, rows_, tiles.begin(last) - channel, (int)scores_.part(j).count);
      }
    }
  }

  // Tile t of channels of grad_x for panel j of pixels.
  FCN_INLINE void multiply(int64_t t, int64_t j, T* rows, int64_t stride) {
    const RowTiles& tiles = x_products_.tiles;
    const T* packed = (const T*)args_.score.packed_transposed + tiles.begin(t) * plan_.classes;
    for (int64_t c = 0; c < plan_.classes; c += kDepth) {
      const int64_t depth = plan_.classes - c < kDepth ? plan_.classes - c : kDepth;
      x_products_.of(t)(depth, packed + c * tiles.size(t), tiles.size(t), scores_.panel(j) + c * P, rows, stride, c > 0,
                        nullptr);
    }
  }

  void add_weight(T* slot, bool add) {
    const Image& x = args_.score.x;
    const RowTiles& tiles = weight_products_.tiles;
    const int64_t rows = scores_.panel_count * P;
    for (int64_t k = 0; k < plan_.channels; k += P) {
      const int columns = plan_.channels - k < P ? (int)(plan_.channels - k) : P;
      if (columns < P) memset(x_, 0, rows * P * sizeof(T));
      if (scores_.block.count < rows) {
        memset(x_ + scores_.block.count * P, 0, (rows - scores_.block.count) * P * sizeof(T));
      }
      for_each_run(x, scores_.block, [&](int row, int64_t offset, int length) {
        pack_panel(x_ + row * P, (const In*)x.data + offset + k * x.stride_c, length, x.stride_w, columns, x.stride_c);
      });
      if (k + P < plan_.channels && x.height == 1) {  // the next panel is on its way meanwhile
        const In* next = (const In*)x.data + scores_.block.n * x.stride_n + scores_.block.begin * x.stride_w;
        prefetch_channels(next + (k + P) * x.stride_c);
      }
      T* to = slot + k * plan_.classes;
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t c = tiles.begin(t);
        weight_products_.of(t)(rows, scores_.panel(0) + c * P, plan_.classes * P, x_, to + c * P, P, add, nullptr);
      }
    }
  }

  // Up to a panel of channels of the block's pixels, in rows of either.
  FCN_INLINE void prefetch_channels(const In* from) const {
    const Image& x = args_.score.x;
    const bool planes = x.stride_w == 1;
    const int64_t rows = planes ? P : scores_.block.count, length = planes ? scores_.block.count : P;
    const int64_t stride = planes ? x.stride_c : x.stride_w;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < length; i += 64 / (int64_t)sizeof(In)) __builtin_prefetch(from + row * stride + i, 0, 3);
    }
  }

  const ScoreGradientArgs& args_;
  Scores<T, In> scores_;
  const ScorePlan<T>& plan_;
  const TileProducts<T, kColumns> x_products_;
  const TileProducts<T, kPanels> weight_products_;
  const int64_t width_ = args_.grad_width;
  T *bias_, *rows_, *softmax_, *x_;
};

// Panel `unit` of channels of grad_weight; the unit after the last panel is grad_bias.
template <typename T, typename Out>
void sum_panel(const ScoreGradientArgs& args, int64_t unit) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  const ScorePlan<T> plan(args.score);
  const int64_t panels = args.slot_weight ? (plan.channels + P - 1) / P : 0;
  if (unit == panels) {
    for (int64_t c = 0; c < plan.classes; ++c) {
      T sum = 0;
      for (int64_t s = 0; s < args.slots; ++s) sum += ((const T*)args.slot_bias)[s * plan.classes + c];
      from_arithmetic(sum, (Out*)args.grad_bias + c);
    }
    return;
  }
  const int64_t k = unit * P, size = slot_size(plan);
  const int columns = plan.channels - k < P ? (int)(plan.channels - k) : P;
  for (int64_t c = 0; c < plan.classes; ++c) {
    const T* from = (const T*)args.slot_weight + k * plan.classes + c * P;
    Out* to = (Out*)args.grad_weight + c * plan.channels + k;
    Vec<T> sum[kPanelVectors] = {};
    for (int64_t s = 0; s < args.slots; ++s) {
      for (int v = 0; v < kPanelVectors; ++v) sum[v] += load(from + s * size + v * L);
    }
    if (columns == P) {
      for (int v = 0; v < kPanelVectors; ++v) store_as(to + v * L, sum[v]);
    } else {
      for (int i = 0; i < columns; ++i) from_arithmetic(sum[i / L][i % L], to + i);
    }
  }
}

}  // namespace

int64_t score_slots(const ScoreArgs& args) {
  return args.x.dtype == DType::kDouble ? slots_of(ScorePlan<double>(args), args.x.batch)
                                        : slots_of(ScorePlan<float>(args), args.x.batch);
}

int64_t score_slot_size(const ScoreArgs& args) {
  return args.x.dtype == DType::kDouble ? slot_size(ScorePlan<double>(args)) : slot_size(ScorePlan<float>(args));
}

int64_t score_gradient_scratch(const ScoreGradientArgs& args) {
  Arena arena(nullptr);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { Gradients<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, arena); });
  return arena.used;
}

void score_gradient(const ScoreGradientArgs& args, int64_t slot, void* scratch) {
  const FlushDenormals guard;
  Arena arena(scratch);
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { Gradients<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, arena).run(slot); });
}

int64_t sum_slots_units(const ScoreGradientArgs& args) {
  const int64_t panel = kPanelVectors * (args.score.x.dtype == DType::kDouble ? kLanes<double> : kLanes<float>);
  return (args.slot_weight ? (args.score.x.channels + panel - 1) / panel : 0) + 1;
}

void sum_slots(const ScoreGradientArgs& args, int64_t unit) {
  visit_dtype(args.score.x.dtype,
              [&](auto zero) { sum_panel<ArithmeticOf<decltype(zero)>, decltype(zero)>(args, unit); });
}

}  // namespace FCN_ISA
}  // namespace fcn
