// Which instruction set's kernels run. Every *.simd.cpp is compiled once per instruction set, in a namespace of that
// name; the best one that this processor supports is chosen at load time.
#pragma once

#include "kernels.h"

namespace fcn {

const char* instruction_set();                     // the one in use
bool use_instruction_set(const char* name);        // false: not built, or not supported by this processor
const char* const* built_instruction_sets();       // null-terminated, from the plainest to the widest
bool instruction_set_supported(const char* name);  // built, and this processor has it

const Kernels& kernels();  // the table of the one in use

}  // namespace fcn
