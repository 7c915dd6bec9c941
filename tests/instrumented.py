"""Builds the extension with a compiler's instruments, in build/KIND, and runs the tests on it.

    python tests/instrumented.py address [options of pytest]    AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/instrumented.py thread [options of pytest]     ThreadSanitizer
    python tests/instrumented.py coverage [options of pytest]   line coverage of csrc/cpu (gcov) and of the Python part

The first two compile with -O1, for all instruction sets. ThreadSanitizer does not know torch's OpenMP, so that
openmp_threads.c replaces it: the workers of a parallel region are then threads whose start and end it sees.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNDEFINED = "undefined,float-cast-overflow"
SANITIZE = "-O1 -g1 -fno-omit-frame-pointer"
FLAGS = {
    "address": (
        f"{SANITIZE} -fsanitize=address,{UNDEFINED} -fno-sanitize=vptr -fno-sanitize-recover={UNDEFINED}",
        "-fsanitize=address,undefined",
    ),
    "thread": (f"{SANITIZE} -fsanitize=thread", "-fsanitize=thread"),
    "coverage": ("-O0 -g1 --coverage -fprofile-update=atomic", "--coverage"),
}
RUNTIMES = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"], "coverage": []}
OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66"},
    "coverage": {},
}
# Every kernel on all instruction sets; no compilers inside the tests, no processes without the run-time library.
TESTS = {
    "address": [
        *("differential", "instruction_sets", "any_geometry", "backends", "out", "check_labels", "determinism"),
        *("channel_sum", "conv_transpose_add", "conv_transpose_concat", "score_argmax", "score_cross_entropy"),
        *("score_softmax", "upsample", "upsample_add", "upsample_argmax", "upsample_binary_cross_entropy"),
        *("upsample_confusion_matrix", "upsample_cross_entropy", "upsample_sigmoid", "upsample_softmax"),
    ],
    "thread": ["determinism", "concurrency", "differential"],
}
# ThreadSanitizer: our kernels, whose threads it sees; PyTorch's own use more of OpenMP, and it does not follow forks.
CHOICE = {"thread": ["-k", "cpu or sixteen or backward_passes"]}


def build(kind: str) -> Path:
    """The folder that holds the package with its instrumented extension."""
    base = ROOT / "build" / kind
    flags, link = FLAGS[kind]
    env = {**os.environ, "CXXFLAGS": flags, "LDFLAGS": link, "FCN_KERNELS_BUILD": "cpu"}
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(base), "--build-lib", str(base / "lib")]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    return base / "lib"


def runtime(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def environment(kind: str, library: Path) -> dict[str, str]:
    preload = [runtime(name) for name in RUNTIMES[kind]]
    if kind == "thread":
        target = library.parent / "openmp_threads.so"
        source = ROOT / "tests" / "openmp_threads.c"
        command = ["gcc", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", str(source), "-o", str(target), "-ldl"]
        subprocess.run(command, check=True)
        preload.append(str(target))
    # The safe path keeps the folder of the sources, whose package has the ordinary extension, out of sys.path.
    paths = {"PYTHONPATH": str(library), "PYTHONSAFEPATH": "1", "LD_PRELOAD": ":".join(preload)}
    return {**os.environ, **OPTIONS[kind], **{k: v for k, v in paths.items() if v}}


def main() -> int:
    kind, arguments = sys.argv[1], sys.argv[2:]
    library = build(kind)
    tests = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS.get(kind, [])]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
        *tests,
        *CHOICE.get(kind, []),
        *arguments,
    ]
    return subprocess.run(command, cwd=ROOT, env=environment(kind, library)).returncode


if __name__ == "__main__":
    sys.exit(main())
