// The table of one instruction set.
#include "simd.h"
#include "kernels.h"

namespace fcn {
namespace FCN_ISA {

int64_t cross_entropy_scratch(const CrossEntropyArgs&);
void cross_entropy(const CrossEntropyArgs&, int64_t, void*);

#define FCN_STRING(x) #x
#define FCN_NAME(x) FCN_STRING(x)

extern const Kernels kKernels;
const Kernels kKernels = {
    FCN_NAME(FCN_ISA), cross_entropy_scratch, cross_entropy,
    nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace FCN_ISA
}  // namespace fcn
