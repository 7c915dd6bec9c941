// Vectors of the instruction set that this translation unit is compiled for: Vec<float> and Vec<double> on top of the
// compiler's vector extension, so that one source serves SSE2, AVX2, AVX-512 and NEON. Only C headers here: an inline
// function shared with another instruction set's objects could be merged by the linker and crash an older processor.
#pragma once

#ifndef FCN_ISA
#error "FCN_ISA names the instruction set (and namespace) that a .simd.cpp is compiled for"
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FCN_INLINE inline __attribute__((always_inline))
#define FCN_LAMBDA __attribute__((always_inline))  // of a lambda, before its body
#define FCN_NOINLINE __attribute__((noinline))
#define FCN_RESTRICT __restrict__

namespace fcn {
namespace FCN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  using Int = int32_t;
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Simd<double> {
  using Int = int64_t;
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef double Four __attribute__((vector_size(32)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vec = typename Simd<T>::V;
template <typename T>
using IntVec = typename Simd<T>::I;
template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T>
FCN_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

template <typename T>
FCN_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
FCN_INLINE void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof(v));
}

// Maximum and minimum; where either is NaN the result is b (so `vmax(lo, x)` keeps a NaN x).
#if defined(__AVX512F__)
FCN_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
FCN_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }
FCN_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a, b); }
FCN_INLINE Vec<double> vmin(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a, b); }
#elif defined(__AVX2__)
FCN_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
FCN_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
FCN_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a, b); }
FCN_INLINE Vec<double> vmin(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a, b); }
#elif defined(__SSE2__)
FCN_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return _mm_max_ps(a, b); }
FCN_INLINE Vec<double> vmax(Vec<double> a, Vec<double> b) { return _mm_max_pd(a, b); }
FCN_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) { return _mm_min_ps(a, b); }
FCN_INLINE Vec<double> vmin(Vec<double> a, Vec<double> b) { return _mm_min_pd(a, b); }
#else
template <typename V>
FCN_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
FCN_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}
#endif

// Whether any lane of a comparison's result is set.
template <typename I>
FCN_INLINE bool any(I mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  bool result = false;
  for (size_t l = 0; l < sizeof(I) / sizeof(mask[0]); ++l) result |= mask[l] != 0;
  return result;
#endif
}

// Any shuffle of two vectors whose pattern is a function of the lane: lane i of the result is lane pattern(i) of a, or
// lane pattern(i) - L of b.
#if defined(__clang__)
#define FCN_SHUFFLE_LANES(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FCN_SHUFFLE_LANES(...) __builtin_shuffle(a, b, IntVec<T>{__VA_ARGS__})
#endif
template <typename T, typename Pattern>
FCN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Pattern) {
  constexpr int L = kLanes<T>;
#define FCN_LANE(i) Pattern::of(i, L)
  if constexpr (L == 2) {
    return FCN_SHUFFLE_LANES(FCN_LANE(0), FCN_LANE(1));
  } else if constexpr (L == 4) {
    return FCN_SHUFFLE_LANES(FCN_LANE(0), FCN_LANE(1), FCN_LANE(2), FCN_LANE(3));
  } else if constexpr (L == 8) {
    return FCN_SHUFFLE_LANES(FCN_LANE(0), FCN_LANE(1), FCN_LANE(2), FCN_LANE(3), FCN_LANE(4), FCN_LANE(5), FCN_LANE(6),
                             FCN_LANE(7));
  } else {
    return FCN_SHUFFLE_LANES(FCN_LANE(0), FCN_LANE(1), FCN_LANE(2), FCN_LANE(3), FCN_LANE(4), FCN_LANE(5), FCN_LANE(6),
                             FCN_LANE(7), FCN_LANE(8), FCN_LANE(9), FCN_LANE(10), FCN_LANE(11), FCN_LANE(12),
                             FCN_LANE(13), FCN_LANE(14), FCN_LANE(15));
  }
#undef FCN_LANE
}

// Lane i + S, past the end from the beginning.
template <int S>
struct RotatePattern {
  static constexpr int of(int i, int L) { return (i + S) % L; }
};

// The largest lane, and the sum of all lanes, in pairs, whatever the processor.
template <typename T, int S = kLanes<T> / 2>
FCN_INLINE T largest(Vec<T> v) {
  v = vmax(v, shuffle<T>(v, v, RotatePattern<S>()));
  if constexpr (S > 1) {
    return largest<T, S / 2>(v);
  } else {
    return v[0];
  }
}
template <typename T, int S = kLanes<T> / 2>
FCN_INLINE T total(Vec<T> v) {
  v += shuffle<T>(v, v, RotatePattern<S>());
  if constexpr (S > 1) {
    return total<T, S / 2>(v);
  } else {
    return v[0];
  }
}

// a0 b0 a1 b1 ... from the lower or the upper halves.
template <bool Upper>
struct ZipPattern {
  static constexpr int of(int i, int L) { return i / 2 + (Upper ? L / 2 : 0) + (i % 2 ? L : 0); }
};

template <typename T, bool Upper>
FCN_INLINE Vec<T> zip(Vec<T> a, Vec<T> b) {
  return shuffle<T>(a, b, ZipPattern<Upper>());
}

// Within every block of four lanes: a0 b0 a1 b1 (or a2 b2 a3 b3), and a0 a1 b0 b1 (or a2 a3 b2 b3).
template <bool Upper>
struct UnpackPattern {
  static constexpr int of(int i, int L) { return i / 4 * 4 + (Upper ? 2 : 0) + i % 4 / 2 + (i % 2 ? L : 0); }
};
template <bool Upper>
struct PairPattern {
  static constexpr int of(int i, int L) { return i / 4 * 4 + (Upper ? 2 : 0) + i % 2 + (i % 4 / 2 ? L : 0); }
};

// Where lane l's four values stand for transpose_fours, in units of four values.
template <typename T>
constexpr int four_position(int l) {
  constexpr int L = kLanes<T>;
  return L < 4 ? l : l % 4 * (L / 4) + l / 4;
}

// Every block of four lanes of a, b, c, d is transposed.
template <typename T>
FCN_INLINE void transpose_fours(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, Vec<T>* v) {
  const Vec<T> ab0 = shuffle<T>(a, b, UnpackPattern<false>()), ab1 = shuffle<T>(a, b, UnpackPattern<true>());
  const Vec<T> cd0 = shuffle<T>(c, d, UnpackPattern<false>()), cd1 = shuffle<T>(c, d, UnpackPattern<true>());
  v[0] = shuffle<T>(ab0, cd0, PairPattern<false>());
  v[1] = shuffle<T>(ab0, cd0, PairPattern<true>());
  v[2] = shuffle<T>(ab1, cd1, PairPattern<false>());
  v[3] = shuffle<T>(ab1, cd1, PairPattern<true>());
}

// Four values of every lane, at four_position(lane), to four vectors of one value each.
template <typename T>
FCN_INLINE void transpose_fours(const T* p, Vec<T>* v) {
  constexpr int L = kLanes<T>;
  if constexpr (L < 4) {
    for (int i = 0; i < 4; ++i) {
      for (int l = 0; l < L; ++l) v[i][l] = p[l * 4 + i];
    }
  } else {
    transpose_fours<T>(load(p), load(p + L), load(p + 2 * L), load(p + 3 * L), v);
  }
}

// Lanes whose index has the bit S unset come from a (Upper: from a's lanes S further), the others from b (from b's
// lanes S before).
template <int S, bool Upper>
struct SwapPattern {
  static constexpr int of(int i, int L) { return Upper ? (i & S ? L + i : i + S) : (i & S ? L + i - S : i); }
};

template <typename T, int S>
FCN_INLINE void swap_blocks(Vec<T>* v) {
  if constexpr (S < kLanes<T>) {
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & S) continue;
      const Vec<T> a = v[i], b = v[i + S];
      v[i] = shuffle<T>(a, b, SwapPattern<S, false>());
      v[i + S] = shuffle<T>(a, b, SwapPattern<S, true>());
    }
    swap_blocks<T, 2 * S>(v);
  }
}

// The transpose of a square: v[i], lane j, to v[j], lane i. Blocks of four by four first, then blocks of blocks.
template <typename T>
FCN_INLINE void transpose(Vec<T>* v) {
  if constexpr (kLanes<T> < 4) {
    swap_blocks<T, 1>(v);
  } else {
    for (int i = 0; i < kLanes<T>; i += 4) {
      const Vec<T> ab0 = shuffle<T>(v[i], v[i + 1], UnpackPattern<false>());
      const Vec<T> ab1 = shuffle<T>(v[i], v[i + 1], UnpackPattern<true>());
      const Vec<T> cd0 = shuffle<T>(v[i + 2], v[i + 3], UnpackPattern<false>());
      const Vec<T> cd1 = shuffle<T>(v[i + 2], v[i + 3], UnpackPattern<true>());
      v[i] = shuffle<T>(ab0, cd0, PairPattern<false>());
      v[i + 1] = shuffle<T>(ab0, cd0, PairPattern<true>());
      v[i + 2] = shuffle<T>(ab1, cd1, PairPattern<false>());
      v[i + 3] = shuffle<T>(ab1, cd1, PairPattern<true>());
    }
    swap_blocks<T, 4>(v);
  }
}

// K vectors v[k] with lanes l, K a power of two, become K vectors that hold element (l, k) at position l * K + k.
template <typename T, int K>
FCN_INLINE void interleave(Vec<T>* v) {
  if constexpr (K > 1) {
    // Rows k and k + K/2 meet first, so that after log2(K) perfect shuffles k is the fastest index.
    Vec<T> even[K / 2], odd[K / 2];
    Vec<T> t[K];
    for (int k = 0; k < K / 2; ++k) {
      t[2 * k] = zip<T, false>(v[k], v[k + K / 2]);
      t[2 * k + 1] = zip<T, true>(v[k], v[k + K / 2]);
    }
    // t[2k + half] holds lanes of one half with the pair (k, k + K/2) fastest; treat each half on its own.
    if constexpr (K > 2) {
      for (int k = 0; k < K / 2; ++k) {
        even[k] = t[2 * k];
        odd[k] = t[2 * k + 1];
      }
      interleave<T, K / 2>(even);
      interleave<T, K / 2>(odd);
      for (int k = 0; k < K / 2; ++k) {
        v[k] = even[k];
        v[k + K / 2] = odd[k];
      }
    } else {
      v[0] = t[0];
      v[1] = t[1];
    }
  }
}

template <bool Odd>
struct UnzipPattern {
  static constexpr int of(int i, int) { return 2 * i + (Odd ? 1 : 0); }
};

// The inverse of interleave.
template <typename T, int K>
FCN_INLINE void deinterleave(Vec<T>* v) {
  if constexpr (K > 1) {
    Vec<T> t[K];
    if constexpr (K > 2) {
      deinterleave<T, K / 2>(v);
      deinterleave<T, K / 2>(v + K / 2);
    }
    for (int k = 0; k < K / 2; ++k) {
      t[2 * k] = v[k];
      t[2 * k + 1] = v[k + K / 2];
    }
    for (int k = 0; k < K / 2; ++k) {
      v[k] = shuffle<T>(t[2 * k], t[2 * k + 1], UnzipPattern<false>());
      v[k + K / 2] = shuffle<T>(t[2 * k], t[2 * k + 1], UnzipPattern<true>());
    }
  }
}

// Copies past the cache: whole aligned vectors with non-temporal stores, the ends plainly.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* t = (char*)to;
  const char* f = (const char*)from;
#if defined(__SSE2__)
  const int64_t head = (kVectorBytes - (intptr_t)t % kVectorBytes) % kVectorBytes;
  if (bytes > head) {
    memcpy(t, f, head);
    int64_t i = head;
    for (; i + kVectorBytes <= bytes; i += kVectorBytes) {
#if defined(__AVX512F__)
      _mm512_stream_si512((__m512i*)(t + i), _mm512_loadu_si512(f + i));
#elif defined(__AVX2__)
      _mm256_stream_si256((__m256i*)(t + i), _mm256_loadu_si256((const __m256i*)(f + i)));
#else
      _mm_stream_si128((__m128i*)(t + i), _mm_loadu_si128((const __m128i*)(f + i)));
#endif
    }
    memcpy(t + i, f + i, bytes - i);
    return;
  }
#endif
  memcpy(t, f, bytes);
}

// Whole vectors past the cache, for rows of `stride` elements from `to` that `streams` accepts.
#if defined(__SSE2__)
template <typename T>
FCN_INLINE void stream(T* to, Vec<T> value) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)to, (__m512i)value);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)to, (__m256i)value);
#else
  _mm_stream_si128((__m128i*)to, (__m128i)value);
#endif
}
#else
template <typename T>
FCN_INLINE void stream(T* to, Vec<T> value) {
  store(to, value);
}
#endif

template <typename T, typename Out>
bool streams(const Out* to, int64_t stride) {
  return sizeof(T) == sizeof(Out) && (intptr_t)to % kVectorBytes == 0 &&
         stride * (int64_t)sizeof(T) % kVectorBytes == 0;
}

// Makes non-temporal stores visible to other threads.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Puts a trivially copyable object into scratch.
template <typename U>
FCN_INLINE void put(U* to, const U& value) {
  memcpy((void*)to, &value, sizeof(U));
}

// Denormal results flush to zero while one of these lives: a softmax tail far below 1e-38 would otherwise trap to
// microcode in every step of its chain.
struct FlushDenormals {
#if defined(__SSE2__)
  unsigned int saved = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#elif defined(__aarch64__)
  uint64_t saved;
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved));
    asm volatile("msr fpcr, %0" ::"r"(saved | (uint64_t)1 << 24));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
};

}  // namespace FCN_ISA
}  // namespace fcn
