// Copies of windows of images into channels of larger ones.
#include "planes.h"

namespace fcn {
namespace FCN_ISA {

namespace {

// Either side has its pixels, or its channels, next to each other.
template <typename U>
void copy_rows(const CopyArgs& args, int64_t n, int64_t c, int64_t begin, int64_t end) {
  const Image &from = args.from, &to = args.to;
  const U* source = (const U*)from.data + n * from.stride_n + c * from.stride_c;
  U* target = (U*)to.data + n * to.stride_n + c * to.stride_c;
  const bool stream = leaves_cache(to, sizeof(U));
  for (int64_t y = begin; y < end; ++y) {
    const U* f = source + y * from.stride_h;
    U* t = target + y * to.stride_h;
    if (from.stride_w == 1 && to.stride_w == 1) {
      if (stream) {
        stream_copy(t, f, to.width * (int64_t)sizeof(U));
      } else {
        memcpy(t, f, to.width * sizeof(U));
      }
    } else {
      for (int64_t x = 0; x < to.width; ++x) t[x * to.stride_w] = f[x * from.stride_w];
    }
  }
}

template <typename U>
void copy_pixels(const CopyArgs& args, int64_t n, int64_t begin, int64_t end) {
  const Image &from = args.from, &to = args.to;
  for (int64_t y = begin; y < end; ++y) {
    for (int64_t x = 0; x < to.width; ++x) {
      const U* f = (const U*)from.data + n * from.stride_n + y * from.stride_h + x * from.stride_w;
      U* t = (U*)to.data + n * to.stride_n + y * to.stride_h + x * to.stride_w;
      if (from.stride_c == 1) {
        memcpy(t, f, to.channels * sizeof(U));
      } else {
        for (int64_t c = 0; c < to.channels; ++c) t[c] = f[c * from.stride_c];
      }
    }
  }
}

bool is_pixelwise(const CopyArgs& args) { return args.to.stride_c == 1 && args.to.stride_w != 1; }
int64_t items(const CopyArgs& args) { return args.to.batch * (is_pixelwise(args) ? 1 : args.to.channels); }

template <typename U>
void copy_unit(const CopyArgs& args, int64_t unit) {
  const Chunk chunk = chunk_of(unit, items(args), args.to.height);
  if (is_pixelwise(args)) return copy_pixels<U>(args, chunk.item, chunk.begin, chunk.end);
  copy_rows<U>(args, chunk.item / args.to.channels, chunk.item % args.to.channels, chunk.begin, chunk.end);
}

}  // namespace

int64_t copy_units(const CopyArgs& args) { return chunk_count(items(args), args.to.height); }

void copy(const CopyArgs& args, int64_t unit) {
  if (args.to.dtype == DType::kDouble) {
    copy_unit<uint64_t>(args, unit);
  } else if (args.to.dtype == DType::kFloat) {
    copy_unit<uint32_t>(args, unit);
  } else {
    copy_unit<uint16_t>(args, unit);
  }
  stream_fence();
}

}  // namespace FCN_ISA
}  // namespace fcn
