// Instructions that C++ has no words for: asynchronous copies to shared memory and the matrix products of a warp, of
// sm_80 and later. On the host tests/cuda_emulation.h has functions of these names.
#pragma once

#ifndef FCN_EMULATED

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace fcn {
namespace {

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Starts a copy of `count` of kBytes bytes to shared memory; the rest becomes zero.
template <int kBytes>
__device__ inline void copy_async(void* to, const void* from, int count) {
  static_assert(kBytes == 4 || kBytes == 16, "the widths in use");
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(count)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(count)
                 : "memory");
  }
}

// Closes a group of copies, and waits until at most kPending groups of this thread are on their way.
__device__ inline void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers in shared memory; lane 8 i + r says where row r of matrix i begins. A lane
// receives of each matrix the elements (lane / 4, 2 (lane % 4) + {0, 1}), or those of the transposed matrix.
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

// c += a b for a of 16 x 16 and b of 16 x 8 numbers of type T. With g = lane / 4 and t = lane % 4 a lane holds
//   a: rows g (a0, a2) and g + 8 (a1, a3), columns 2t, 2t + 1 (a0, a1) and 8 more (a2, a3)
//   b: column g, rows 2t, 2t + 1 (b0) and 8 more (b1)
//   c: rows g (c0, c1) and g + 8 (c2, c3), columns 2t, 2t + 1
template <typename T>
__device__ inline void multiply_16x8x16(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The 11 leading bits of a float, rounded to nearest.
__device__ inline uint32_t tf32_of(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

// c += a b for a of 16 x 8 and b of 8 x 8 numbers in TF32: a0 to a3 stand at rows g, g + 8, g, g + 8 and columns t, t,
// t + 4, t + 4; b0 and b1 at rows t and t + 4 of column g; c as above.
__device__ inline void multiply_16x8x8(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace
}  // namespace fcn

#endif
