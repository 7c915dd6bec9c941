#include "dispatch.h"

#include <atomic>
#include <cstring>

namespace fcn {

// Each is defined by kernels.simd.cpp, compiled for that instruction set. Every 64-bit Arm processor has NEON.
#if defined(__aarch64__)
namespace neon {
extern const Kernels kKernels;
}
#else
namespace baseline {
extern const Kernels kKernels;
}
#endif
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

namespace {

const char* const kNames[] = {
#if defined(__aarch64__)
    "neon",
#else
    "baseline",
#endif
#if defined(__x86_64__)
    "avx2",
    "avx512",
#endif
    nullptr,
};

bool processor_has(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx2")) return avx2;
  if (!std::strcmp(name, "avx512")) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return !std::strcmp(name, kNames[0]);
}

const Kernels* const kBuilt[] = {
#if defined(__aarch64__)
    &neon::kKernels,
#else
    &baseline::kKernels,
#endif
#if defined(__x86_64__)
    &avx2::kKernels,
    &avx512::kKernels,
#endif
};

const Kernels* best() {
  const Kernels* result = kBuilt[0];
  for (const Kernels* k : kBuilt) {
    if (processor_has(k->name)) result = k;
  }
  return result;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels{best()};
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

const char* instruction_set() { return kernels().name; }

const char* const* built_instruction_sets() { return kNames; }

bool instruction_set_supported(const char* name) {
  for (const Kernels* k : kBuilt) {
    if (!std::strcmp(k->name, name)) return processor_has(name);
  }
  return false;
}

bool use_instruction_set(const char* name) {
  for (const Kernels* k : kBuilt) {
    if (!std::strcmp(k->name, name) && processor_has(name)) {
      current().store(k);
      return true;
    }
  }
  return false;
}

}  // namespace fcn
