#include "dispatch.h"

#include <atomic>
#include <cstring>

namespace fcn {

// Each is defined by kernels.simd.cpp, compiled for that instruction set.
namespace baseline {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

namespace {

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
  return !std::strcmp(name, "baseline");
}

const Kernels* const kBuilt[] = {
    &baseline::kKernels,
#if defined(__x86_64__)
    &avx2::kKernels,
    &avx512::kKernels,
#endif
};

const char* const kNames[] = {
    "baseline",
#if defined(__x86_64__)
    "avx2",
    "avx512",
#endif
    nullptr,
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
