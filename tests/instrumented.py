"""Builds the extension with a compiler's instruments, in build/KIND, and runs the tests on it.

    python tests/instrumented.py address [options of pytest]    AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/instrumented.py thread [options of pytest]     ThreadSanitizer
    python tests/instrumented.py coverage [options of pytest]   line coverage of csrc/cpu (gcov) and of the Python part
    python tests/instrumented.py valgrind                       memcheck: kernels_main.cpp, which runs every kernel

All compile with -O1, for all instruction sets; a line of a kernel counts as covered where one of them ran it.
ThreadSanitizer does not know torch's OpenMP, so that openmp_threads.c replaces it: the workers of a parallel region are
then threads whose start and end it sees. valgrind knows no AVX-512: it runs the AVX2 kernels as they are built.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 95  # per cent of the lines
UNDEFINED = "undefined,float-cast-overflow"
MEASURED = f"--rcfile={ROOT / 'pyproject.toml'}"  # what coverage measures, in every process that Python starts
SANITIZE = "-O1 -g1 -fno-omit-frame-pointer"
FLAGS = {
    "address": (
        f"{SANITIZE} -fsanitize=address,{UNDEFINED} -fno-sanitize=vptr -fno-sanitize-recover={UNDEFINED}",
        "-fsanitize=address,undefined",
    ),
    "thread": (f"{SANITIZE} -fsanitize=thread", "-fsanitize=thread"),
    "coverage": ("-O1 -g1 --coverage", "--coverage"),
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
        *("differential", "instruction_sets", "channels_last", "any_geometry", "backends", "out", "check_labels"),
        "determinism",
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
    paths = {"PYTHONPATH": str(library), "LD_PRELOAD": ":".join(preload)}
    if kind != "coverage":  # which starts elsewhere, and measures the programs that tests start from the sources
        paths["PYTHONSAFEPATH"] = "1"  # keeps the sources, whose package has the ordinary extension, out of sys.path
    return {**os.environ, **OPTIONS[kind], **{k: v for k, v in paths.items() if v}}


def covered_lines(folder: Path) -> dict[str, tuple[int, int]]:
    """Per file of csrc/cpu: its lines with code that was run, and all of them."""
    seen: dict[str, dict[int, bool]] = {}
    for notes in sorted(folder.rglob("*.gcno")):
        command = ["gcov", "--json-format", "--stdout", str(notes)]
        done = subprocess.run(command, cwd=notes.parent, capture_output=True, text=True, check=True)
        listing = json.loads(done.stdout)
        for file in listing["files"]:
            path = Path(listing["current_working_directory"], file["file"]).resolve()
            if path.is_relative_to(ROOT / "csrc" / "cpu"):
                lines = seen.setdefault(path.name, {})
                for line in file["lines"]:
                    number = line["line_number"]
                    lines[number] = lines.get(number, False) or line["count"] > 0
    return {name: (sum(lines.values()), len(lines)) for name, lines in sorted(seen.items())}


def report(folder: Path) -> bool:
    """Prints both tables; whether both parts reach the goal."""
    files = covered_lines(folder)
    for name, (run, lines) in files.items():
        print(f"{name:48} {run:5} of {lines:5}  {100 * run / lines:6.1f} %")
    run, lines = (sum(column) for column in zip(*files.values(), strict=True))
    share = 100 * run / lines
    print(f"{'csrc/cpu':48} {run:5} of {lines:5}  {share:6.1f} %")
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "combine", "-q", MEASURED], cwd=folder, check=True)
    python = subprocess.run([*coverage, "report", MEASURED, "--skip-covered", f"--fail-under={GOAL}"], cwd=folder)
    return share >= GOAL and python.returncode == 0


def valgrind(isa: str = "avx2") -> int:
    """Whether every kernel of an instruction set reads only what is its own and has been written."""
    if shutil.which("valgrind") is None:
        sys.exit("instrumented.py: valgrind is not installed (Debian: apt install valgrind)")
    sys.path.insert(0, str(ROOT))
    from build_kernels import COMMON, instruction_sets

    folder = ROOT / "build" / "valgrind"
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["g++", *COMMON, *instruction_sets()[isa], "-g1", f"-I{ROOT / 'csrc'}", f"-DFCN_ISA={isa}", "-c"]
    sources = [ROOT / "tests" / "kernels_main.cpp", *(ROOT / "csrc" / "cpu").glob("*.simd.cpp")]
    sources.append(ROOT / "csrc" / "cpu" / "geometry.cpp")
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda s, o: subprocess.run([*flags, str(s), "-o", str(o)], check=True), sources, objects))
    program = folder / "kernels"
    subprocess.run(["g++", *map(str, objects), "-o", str(program)], check=True)
    check = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", str(program)]
    done = subprocess.run(check, capture_output=True, text=True)
    print(done.stderr, f"{len(done.stdout.splitlines())} results, valgrind's exit status {done.returncode}", sep="")
    expected = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return 0 if done.returncode == 0 and done.stdout == expected else 1


def main() -> int:
    kind, arguments = sys.argv[1], sys.argv[2:]
    if kind == "valgrind":
        return valgrind()
    library = build(kind)
    arguments = [str(ROOT / a) if (ROOT / a.partition("::")[0]).exists() else a for a in arguments]
    tests = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS.get(kind, [])]
    if kind == "coverage" and not any(a.startswith(str(ROOT)) for a in arguments):
        tests = [str(ROOT / "tests")]
    where = ["-o", f"pythonpath={library} {ROOT}", "--package", str(library)]
    run = ["-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *where, *tests, *CHOICE.get(kind, []), *arguments]
    env = environment(kind, library)
    if kind != "coverage":
        return subprocess.run([sys.executable, *run], cwd=ROOT, env=env).returncode
    for old in [*library.parent.rglob("*.gcda"), *library.parent.glob(".coverage*")]:
        old.unlink()
    env["COVERAGE_FILE"] = str(library.parent / ".coverage")
    # coverage puts the folder that it is started in into sys.path; the sources' has the ordinary extension.
    command = [sys.executable, "-m", "coverage", "run", MEASURED, *run, "-c", str(ROOT / "pyproject.toml")]
    failed = subprocess.run([*command, "--rootdir", str(ROOT)], cwd=library.parent, env=env).returncode
    return 0 if report(library.parent) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
