#!/usr/bin/env bash
# Everything that needs a GPU, in one call on a bare machine: builds the CUDA part against the torch that is there,
# tests, looks for wrong memory accesses, measures. Logs and results as data go to ${OUT:-benchmarks/results/gpu}; the
# short table comes last. Nothing is downloaded: torch, pybind11, ninja, setuptools, pytest and hypothesis must be there.
#   PYTHON=python3  the interpreter that holds torch
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$root/benchmarks/results/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 FCN_KERNELS_BUILD=cuda

failed=()
step() { # step NAME COMMAND...: output to the log of that name, its end shown
  local name=$1 start=$SECONDS
  shift
  printf '== %s\n' "$name"
  "$@" >"$out/$name.log" 2>&1
  local status=$?
  tail -n 12 "$out/$name.log"
  printf -- '-- %s: exit %d after %d s\n' "$name" "$status" $((SECONDS - start))
  ((status == 0)) || failed+=("$name")
  return $status
}

cd "$root"
step build "$python" -m pip install -v --no-build-isolation --no-deps --force-reinstall . || exit 1
cd "$out" # so that the installed package is imported, not the source tree
step info "$python" -m fcn_kernels info
step test "$python" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" "$root/tests"

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ -x "$sanitizer" ]; then
  for tool in memcheck initcheck; do
    if step "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" "$root/benchmarks/gpu_upsample_add.py" --check; then
      continue
    elif grep -q 'Device not supported' "$out/$tool.log"; then
      printf '%s: this machine gives compute-sanitizer no access to its device\n' "$tool"
      unset 'failed[-1]'
      break
    fi
  done
fi
step bench "$python" "$root/benchmarks/gpu_upsample_add.py" --json "$out/upsample_add.json"
step bench_operators "$python" "$root/benchmarks/gpu_operators.py" --json "$out/operators.json"

if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[*]}"
  exit 1
fi
