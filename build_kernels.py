"""Compiles csrc/ into the one extension module fcn_kernels._C, with ninja.

    csrc/module.cpp            pybind11: what was built
    csrc/cpu/NAME.cpp          compiled once: operators in torch's stable ABI
    csrc/cpu/NAME.simd.cpp     compiled once per instruction set, with -DFCN_ISA=<name>; the choice is made at run time
    csrc/cuda/NAME.cu          nvcc, only in a build with CUDA

FCN_KERNELS_BUILD selects what is built:
    auto   (default) the CPU part where a C++ compiler works, the CUDA part too where nvcc is found
    none   nothing: the package is pure Python and its PyTorch reference serves every operator
    cpu    the CPU part, or fail
    cuda   both parts, or fail
CXX, CXXFLAGS, LDFLAGS, CUDA_HOME and TORCH_CUDA_ARCH_LIST mean what they mean everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
STABLE_ABI = (2, 11)  # the oldest torch that the binary loads in
COMMON = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
# GCC calls memset and memcpy for loops over a tile, a few vectors long: 3 to 5% of the time of a loss or a softmax.
WHERE_KNOWN = ["-fno-tree-loop-distribute-patterns"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# GCC 12 warns of its own AVX-512 headers (its bug 105593); Clang does not know all of these.
AVX512_NOISE = ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"]
# Ampere; Hopper with its own instructions; Blackwell. The PTX of the last one serves whatever comes later.
DEFAULT_CUDA_ARCHITECTURES = ["8.0", "9.0a", "10.0+PTX"]
CUDA_FAMILIES = {
    "Volta": ["7.0+PTX"],
    "Turing": ["7.5+PTX"],
    "Ampere": ["8.0", "8.6+PTX"],
    "Ada": ["8.9+PTX"],
    "Hopper": ["9.0+PTX"],
    "Blackwell": ["10.0", "12.0+PTX"],
}


class BuildError(Exception):
    """What was asked for cannot be built here; the message says why."""


def wanted() -> str:
    """The value of FCN_KERNELS_BUILD."""
    value = os.environ.get("FCN_KERNELS_BUILD", "auto").strip().lower() or "auto"
    if value not in ("auto", "none", "cpu", "cuda"):
        raise BuildError(f"FCN_KERNELS_BUILD={value}: it must be one of auto, none, cpu, cuda")
    return value


def extensions() -> list[Extension]:
    """The extension modules to build: one, or none (with one line that says why)."""
    try:
        mode = wanted()
        if mode == "none":
            print("fcn_kernels: FCN_KERNELS_BUILD=none, so no C++ kernels are built: the PyTorch reference serves.")
            return []
        problem = compiler_problem()
        if problem and mode != "auto":
            raise BuildError(f"FCN_KERNELS_BUILD={mode}, but {problem}")
        if problem:
            message = f"fcn_kernels: {problem}, so no C++ kernels are built: the slower PyTorch reference serves."
            print(message, file=sys.stderr)
            return []
        if mode == "cuda" and find_nvcc() is None:
            raise BuildError("FCN_KERNELS_BUILD=cuda, but there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
        return [Extension("fcn_kernels._C", sources=[str(p.relative_to(ROOT)) for p in sources(with_cuda())])]
    except BuildError as error:
        raise SystemExit(f"fcn_kernels: {error}") from None


# ---------------------------------------------------------------------------------------------------------- tools


def cxx() -> list[str] | None:
    """The command of the C++ compiler: CXX, or the first known name on PATH."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def compiler_problem() -> str | None:
    """Why C++ cannot be compiled here, or None where it can."""
    if sys.platform == "win32":
        return "the C++ kernels need GCC or Clang, which this build does not look for on Windows"
    compiler = cxx()
    if compiler is None:
        return "no C++ compiler (c++, g++, clang++, or the one that CXX names) is found"
    try:
        done = compile_almost_nothing(compiler)
    except OSError as error:
        return f"the C++ compiler {shlex.join(compiler)!r} does not run ({error.strerror})"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        return f"the C++ compiler {shlex.join(compiler)!r} does not compile an empty program ({reason})"
    return None


def compile_almost_nothing(command: list[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "works.cpp")
        source.write_text("#include <vector>\nint main() { return (int)std::vector<int>(3).size() - 3; }\n")
        command = [*command, "-std=c++17", str(source), "-o", str(source.with_suffix(""))]
        return subprocess.run(command, capture_output=True, text=True)


def known(compiler: list[str], flags: list[str]) -> list[str]:
    """Those of the flags that this compiler takes without a word."""
    return [flag for flag in flags if compile_almost_nothing([*compiler, "-Werror", flag]).returncode == 0]


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, else of PATH, else of /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    candidates += [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def with_cuda() -> bool:
    return wanted() == "cuda" or (wanted() == "auto" and find_nvcc() is not None)


def find_ninja() -> str:
    found = shutil.which("ninja")
    if found:
        return found
    try:
        import ninja
    except ImportError:
        raise BuildError("ninja is not installed in the build environment: pip install ninja") from None
    return str(Path(ninja.BIN_DIR, "ninja"))


def torch_folder() -> tuple[Path, str]:
    """Folder and version of the torch to build against, without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("the build environment has no torch: install it, or leave out --no-build-isolation")
    folder = Path(next(iter(spec.submodule_search_locations)))
    match = re.search(r"^__version__ = '([^']+)'", (folder / "version.py").read_text(), re.MULTILINE)
    version = match.group(1) if match else "unknown"
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < STABLE_ABI:
        raise BuildError(f"torch {version} is too old to build against: 2.11 or newer is needed")
    return folder, version


def cuda_architectures(nvcc: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, or those of the default list that this nvcc knows: ["8.0", "9.0a", "10.0+PTX"]."""
    names = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    architectures = [a for name in names if name for a in CUDA_FAMILIES.get(name, [name])]
    if not architectures:
        listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
        known = [a for a in DEFAULT_CUDA_ARCHITECTURES if f"compute_{digits(a).rstrip('af')}" in listed]
        if not known:
            raise BuildError(f"{nvcc} compiles for none of {', '.join(DEFAULT_CUDA_ARCHITECTURES)}")
        architectures = [*known[:-1], known[-1].removesuffix("+PTX") + "+PTX"]
    for a in architectures:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", a):
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: {a!r} is neither like 8.0, 9.0a or 10.0+PTX nor one of {[*CUDA_FAMILIES]}"
            )
    return architectures


def digits(architecture: str) -> str:
    """The digits in compiler options: 9.0a becomes 90a."""
    return architecture.removesuffix("+PTX").replace(".", "")


def gencode(architectures: list[str]) -> list[str]:
    flags = []
    for a in architectures:
        flags.append(f"-gencode=arch=compute_{digits(a)},code=sm_{digits(a)}")
        if a.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{digits(a)},code=compute_{digits(a)}")
    return flags


def instruction_sets() -> dict[str, list[str]]:
    """The instruction sets that csrc/cpu/*.simd.cpp is compiled for, and their flags."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return {"baseline": [], "avx2": AVX2, "avx512": [*AVX512, *AVX512_NOISE]}
    if machine in ("aarch64", "arm64"):
        return {"neon": []}  # every 64-bit Arm processor has it
    return {"baseline": []}


def sources(cuda: bool) -> list[Path]:
    """Everything that is compiled, in a fixed order."""
    found = [ROOT / "csrc" / "module.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    return found + (sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if cuda else [])


# ---------------------------------------------------------------------------------------------------------- build


class BuildKernels(build_ext):
    """Writes build.ninja, runs it, and leaves the extension where setuptools expects it."""

    user_options = [  # noqa: RUF012 (setuptools reads a class attribute)
        *build_ext.user_options,
        ("ptxas-verbose", None, "print the registers, shared memory and spills of every CUDA kernel"),
    ]
    boolean_options = [*build_ext.boolean_options, "ptxas-verbose"]  # noqa: RUF012

    def initialize_options(self) -> None:
        super().initialize_options()
        self.ptxas_verbose = False

    def build_extension(self, ext: Extension) -> None:
        try:
            self.run_ninja(Path(self.get_ext_fullpath(ext.name)).resolve())
        except BuildError as error:
            raise SystemExit(f"fcn_kernels: {error}") from None

    def run_ninja(self, target: Path) -> None:
        folder = Path(self.build_temp).resolve()
        if self.editable_mode:  # setuptools gives a temporary folder then; keep the objects instead
            folder = ROOT / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_if_changed(folder / "build.ninja", self.ninja_file(folder, target))
        command = [find_ninja(), "-C", str(folder), *(["-v"] if self.verbose > 1 else [])]
        if subprocess.run(command).returncode:
            raise BuildError("the compilation failed; its messages are above")

    def ninja_file(self, folder: Path, target: Path) -> str:
        import pybind11

        torch, torch_version = torch_folder()
        nvcc = find_nvcc() if with_cuda() else None
        architectures = cuda_architectures(nvcc) if nvcc else []
        write_if_changed(folder / "build_config.h", self.config_header(torch_version, nvcc, architectures))

        python = sysconfig.get_paths()
        system = [torch / "include", pybind11.get_include(), python["include"], python["platinclude"]]
        include = ["-I", str(folder), "-I", str(ROOT / "csrc")]
        include += [word for p in dict.fromkeys(map(str, system)) for word in ("-isystem", p)]
        define = [f"-DTORCH_TARGET_VERSION=0x{STABLE_ABI[0]:02x}{STABLE_ABI[1]:02x}000000000000"]
        user = shlex.split(os.environ.get("CXXFLAGS", ""))
        cuda = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA", *gencode(architectures)]
        cuda += ["-Xptxas=-v"] if self.ptxas_verbose else []

        host = next((word for word in cxx() if Path(word).name not in ("ccache", "sccache")), "c++")
        out = Ninja()
        common = [*COMMON, *known(cxx(), WHERE_KNOWN), *WARNINGS]
        out.rule("cxx", [*cxx(), "-MMD", "-MF", "$out.d", *common, *define, *include, *user, "$flags"])
        if nvcc:
            out.rule("nvcc", [nvcc, "-ccbin", host, "-MD", "-MF", "$out.d", *cuda, *define, *include, "$flags"])
        out.link(cxx(), link_flags(torch, nvcc))
        for source in sources(nvcc is not None):
            name = str(source.relative_to(ROOT / "csrc"))
            if name.endswith(".simd.cpp"):
                for isa, flags in instruction_sets().items():
                    out.build(f"{name.removesuffix('.cpp')}.{isa}.o", "cxx", source, [f"-DFCN_ISA={isa}", *flags])
            elif name.endswith(".cu"):
                out.build(f"{name}.o", "nvcc", source, [])
            else:
                out.build(f"{name.removesuffix('.cpp')}.o", "cxx", source, [])
        return out.text(target)

    def config_header(self, torch_version: str, nvcc: str | None, architectures: list[str]) -> str:
        """The facts that module.cpp reports."""
        quoted = {
            "FCN_VERSION": self.distribution.get_version(),
            "FCN_TORCH_VERSION": torch_version,
            "FCN_STABLE_ABI": ".".join(map(str, STABLE_ABI)),
        }
        if nvcc:
            text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
            release = re.search(r"V([\d.]+)", text)
            quoted["FCN_NVCC_VERSION"] = release.group(1) if release else "unknown"
            quoted["FCN_CUDA_ARCHITECTURES"] = " ".join(architectures)
        return "#pragma once\n" + "".join(f'#define {name} "{value}"\n' for name, value in quoted.items())


def link_flags(torch: Path, nvcc: str | None) -> list[str]:
    """No rpath: torch is imported first, and its libraries are then found by their names. libtorch stays listed even
    though nothing of it is used, because it is what brings libtorch_cuda into the scope of our weak CUDA symbols."""
    if sys.platform == "darwin":
        flags = ["-bundle", "-undefined", "dynamic_lookup"]
    else:
        flags = ["-shared", "-Wl,--no-as-needed"]
    flags += [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    if nvcc:
        home = Path(os.path.realpath(cuda_root(nvcc)))
        folders = [p for p in (home / "lib64", home / "targets" / "x86_64-linux" / "lib", home / "lib") if p.is_dir()]
        flags += [*(f"-L{p}" for p in folders), "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    return flags + shlex.split(os.environ.get("LDFLAGS", ""))


def cuda_root(nvcc: str) -> str:
    """The toolkit's folder as nvcc itself sees it (nvcc may be a wrapper script somewhere else)."""
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)
    return top.group(1).strip() if top else str(Path(nvcc).resolve().parent.parent)


class Ninja:
    """Just enough of a writer for build.ninja."""

    def __init__(self) -> None:
        self.lines: list[str] = ["ninja_required_version = 1.3"]
        self.objects: list[str] = []

    def rule(self, name: str, command: list[str]) -> None:
        self.lines += [
            f"rule {name}",
            f"  command = {join(command)} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"  description = {name} $out",
        ]

    def link(self, compiler: list[str], flags: list[str]) -> None:
        # The libraries come after the objects that use them.
        self.lines += [
            "rule link",
            f"  command = {join(compiler)} -o $out $in {join(flags)}",
            "  description = link $out",
        ]

    def build(self, target: str, rule: str, source: Path, flags: list[str]) -> None:
        self.lines += [f"build {path(target)}: {rule} {path(source)}", f"  flags = {join(flags)}"]
        self.objects.append(path(target))

    def text(self, target: Path) -> str:
        goal = path(target)
        return "\n".join([*self.lines, f"build {goal}: link {' '.join(self.objects)}", f"default {goal}", ""])


def join(words: list[str]) -> str:
    """A shell command in ninja's spelling; $in, $out and $flags stay variables."""
    variables = ("$in", "$out", "$out.d", "$flags")
    return " ".join(w if w in variables else shlex.quote(w).replace("$", "$$") for w in map(str, words))


def path(p: Path | str) -> str:
    return re.sub(r"([$ :])", r"$\1", str(p))


def write_if_changed(file: Path, text: str) -> None:
    """Leaves the time stamp alone where nothing changed, so that ninja rebuilds nothing."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
