#!/usr/bin/env bash
# Everything that needs a GPU, in one call on a bare machine: builds the CUDA part against the torch that is there, tests,
# looks for wrong memory accesses, measures. The order is that of what is worth most; every step has a limit of its own,
# and all together BUDGET seconds. Nothing is downloaded: torch, triton, pybind11, ninja, setuptools, pytest and hypothesis
# must be there; torchvision and transformers, pytest-xdist, compute-sanitizer and ncu are used where they are.
#   OUT=benchmarks/results/gpu   results as data, and one log of all steps
#   PYTHON=python3               the interpreter that holds torch
#   BUDGET=480                   seconds
#   TORCH_CUDA_ARCH_LIST         default: the GPU that is there
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
budget=${BUDGET:-480}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
: >"$out/steps.txt"
: >"$out/log.txt"
export PYTHONUNBUFFERED=1 FCN_KERNELS_BUILD=cuda

step() { # step NAME LIMIT COMMAND...: its log goes to log.txt, its end is shown where it fails
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  ((limit <= budget - SECONDS)) || limit=$((budget - SECONDS))
  if ((limit < 5)); then
    printf '%-12s no time left\n' "$name" | tee -a "$out/steps.txt"
    return 1
  fi
  timeout -k 5 "$limit" "$@" >"$logs/$name" 2>&1 </dev/null
  status=$?
  {
    printf '==== %s: %s\n' "$name" "$*"
    cat "$logs/$name"
  } >>"$out/log.txt"
  if ((status == 0)); then
    printf '%-12s ok, %d s\n' "$name" $((SECONDS - start)) | tee -a "$out/steps.txt"
  else
    ((status == 124 || status == 137)) && status="$status, stopped at its limit"
    printf '%-12s FAILED (exit %s), %d s\n' "$name" "$status" $((SECONDS - start)) | tee -a "$out/steps.txt"
    tail -n 8 "$logs/$name" | cut -c 1-400
    return 1
  fi
}

sanitize() { # sanitize TOOL: every operator's calls, each allocation on its own so that its ends are known
  local tool=$1 options=()
  [ "$tool" = memcheck ] && options=(--leak-check no)
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 110 "$sanitizer" --tool "$tool" "${options[@]}" --error-exitcode 9 \
    "$python" benchmarks/gpu_check.py --run-only --calls 3
  if grep -q 'Device not supported' "$logs/$tool" 2>/dev/null; then
    printf '%s: this machine gives compute-sanitizer no access to its device\n' "$tool" | tee -a "$out/steps.txt"
  fi
}

if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + "a" * (major == 9))') || exit 1
fi
export TORCH_CUDA_ARCH_LIST
step build 200 "$python" -m pip install -v --no-build-isolation --no-deps -e . || exit 1
step info 60 "$python" -m fcn_kernels info || exit 1

workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 6)
pytest=("$python" -m pytest -q -p no:cacheprovider "${workers[@]}" --device cuda --ignore tests/test_triton_codegen.py)

# Correct first. These leave compiled kernels behind, so that the steps that measure need not wait for compilers.
step check 130 "$python" benchmarks/gpu_check.py --calls 6 --jobs 6 &
step tests 130 "${pytest[@]}" -m "cuda or triton" --seconds 110 &
step warm-up 130 "$python" -m benchmarks.gpu_operators --warm-up --deadline 120 --json "$logs/warm-up.json" &
wait

# Alone on the GPU: the numbers.
step operators 170 "$python" -m benchmarks.gpu_operators --deadline 160 --json "$out/operators.json"

# Nothing is timed here, so that all may run at once.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
step large 110 "$python" benchmarks/gpu_check.py --large --jobs 1 &
step bodies 110 "${pytest[@]}" -m "not cuda and not triton" --seconds 90 &
step warm-up-fcn 110 "$python" -m benchmarks.end_to_end --device cuda --widths published --warm-up &
if [ -x "$sanitizer" ]; then
  for tool in memcheck racecheck initcheck synccheck; do sanitize "$tool" & done
fi
wait

step end_to_end 90 "$python" -m benchmarks.end_to_end --device cuda --widths published --json "$out/end-to-end.json"
if "$python" -c 'import torchvision, transformers' 2>/dev/null; then
  step drop_in 60 "$python" -m benchmarks.drop_in --device cuda --seconds 1 --json "$out/drop-in.json"
fi
profiler=$(command -v ncu)
if [ -n "$profiler" ]; then
  step profile 60 "$profiler" --profile-from-start off --clock-control none --section SpeedOfLight --section Occupancy \
    --section MemoryWorkloadAnalysis "$python" -m benchmarks.gpu_operators --profile --only upsample_cross_entropy-c150
fi
step choice 20 "$python" -m benchmarks.gpu_preferences --print "$out/operators.json"

shown() { # shown NAME SED: lines of a step's log
  [ -f "$logs/$1" ] && { printf '\n== %s\n' "$1" && sed -n "$2" "$logs/$1" | cut -c 1-240; }
}
shown choice '/^    "/p'
shown drop_in '/^|/p'
shown end_to_end '/ms: /p; /from eager/p'
shown operators '/^ceilings/,$p'
printf '\n== steps\n'
cat "$out/steps.txt"
! grep -qE 'FAILED|no time left' "$out/steps.txt"
