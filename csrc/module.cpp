// fcn_kernels._C: importing it registers the kernels with torch; its functions say what was built.
#include <pybind11/pybind11.h>

#include <string>

#include "build_config.h"
#include "cpu/dispatch.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

py::dict built() {
  py::list isas;
  for (const char* const* name = fcn::built_instruction_sets(); *name != nullptr; ++name) {
    isas.append(*name);
  }
  py::dict result;
  result["version"] = FCN_VERSION;
  result["compiler"] = kCompiler;
  result["instruction_sets"] = isas;
  result["torch"] = FCN_TORCH_VERSION;
  result["stable_abi"] = FCN_STABLE_ABI;
#ifdef FCN_CUDA_ARCHITECTURES
  result["nvcc"] = FCN_NVCC_VERSION;
  result["cuda_architectures"] = py::str(FCN_CUDA_ARCHITECTURES).attr("split")();
#else
  result["nvcc"] = py::none();
  result["cuda_architectures"] = py::none();
#endif
  return result;
}

void use_instruction_set(const std::string& name) {
  if (fcn::use_instruction_set(name.c_str())) return;
  std::string names;
  for (const char* const* b = fcn::built_instruction_sets(); *b != nullptr; ++b) {
    names += std::string(names.empty() ? "" : ", ") + *b;
  }
  throw py::value_error("use_instruction_set: \"" + name +
                        "\" is not built or not supported by this processor (built: " + names + ")");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled kernels of fcn_kernels: what was built, and which instruction set is in use.";
  m.def("built", &built, "A dict: version, compiler, instruction_sets, torch, stable_abi, nvcc, cuda_architectures.");
  m.def("instruction_set", [] { return std::string(fcn::instruction_set()); }, "The instruction set in use.");
  m.def("use_instruction_set", &use_instruction_set, py::arg("name"), "Switch to another instruction set, for tests.");
}
