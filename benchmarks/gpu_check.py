"""Every operator, forward and backward, on both GPU backends: right, the same bits again, and with large offsets.

    python benchmarks/gpu_check.py                     # drawn calls against the float64 reference, and again
    python benchmarks/gpu_check.py --large             # outputs beyond 2^31 elements, right at their last pixels
    compute-sanitizer python benchmarks/gpu_check.py --run-only        # the calls alone, in one process

The calls are those of tests/strategies.py, with their odd shapes, layouts and values; memory that an operator allocates
begins as NaN. Operators and backends have processes of their own, so that a wrong access of one does not hide the
others. Which backends there are is asked of the table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import Sampling, backends, reference

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

OPS = torch.ops.fcn_kernels
SEED = 20261  # of the drawn calls
TAIL = 40  # outputs at the end of both axes that are compared


def pairs(device: str, only: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Operators and the backends that are to be checked on them."""
    for op in only or backends.operators():
        for c in backends.candidates(op, device):
            if c.reason is None and c.backend in (names or ("cpu", "cuda", "triton")):
                yield op, c.backend


# --- drawn calls ---


def drawn(op: str, backend: str, device: str, count: int, compare: bool) -> None:
    from against_reference import check_call
    from call import moved, results
    from strategies import examples

    for call in examples(op, count, SEED):
        there = moved(call, device)
        try:
            with fk.use_backend(backend):
                if not compare:
                    results(op, OPS, there.args)
                    continue
                first = check_call(there)
                for _ in range(2):
                    assert same_bits(first, results(op, OPS, there.args)), "other bits in another run"
        except Exception as error:
            raise AssertionError(f"{backend}: {call}: {error}") from error
    if device == "cuda":
        torch.cuda.synchronize()


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(x.contiguous().view(-1).view(torch.uint8).equal(y.contiguous().view(-1).view(torch.uint8))
               for x, y in zip(a, b, strict=True))  # fmt: skip


def poison() -> None:
    """From now on, memory that is allocated holds NaN, or the largest integer."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("ignore", ".*deterministic")


# --- large outputs ---


def tail(sampling: Sampling) -> Sampling:
    """The last outputs of both axes alone."""
    axes = []
    for axis in (sampling.rows, sampling.cols):
        kept = min(TAIL, axis.output_size)
        axes.append(axis._replace(output_size=kept, off=axis.off + axis.num * (axis.output_size - kept)))
    return Sampling(*axes, sampling.boundary)


def last(x: Tensor) -> Tensor:
    return x[-1:, ..., -TAIL:, -TAIL:]


def large(device: str, side: int) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Results at the last pixels of an output with 9 side^2 elements, and those of the reference."""
    bf16 = {"dtype": torch.bfloat16, "device": device}
    up = Sampling.transposed_conv((side // 8, side // 8), 8, offset=4, output_size=(side, side))
    code, end = up.encode(), tail(up)

    def scores(n: int, c: int) -> Tensor:
        return torch.randn(n, c, side // 8, side // 8, **bf16)

    def image(n: int, c: int, size: int = side) -> Tensor:
        return torch.randn(n, c, size, size, **bf16)

    def labels(c: int) -> Tensor:
        return torch.randint(c, (9, side, side), device=device, dtype=torch.uint8)

    def upsample() -> tuple[Tensor, Tensor]:
        x = scores(1, 9)
        return last(fk.upsample(x, up)), reference.upsample(x, end.encode())

    def upsample_backward() -> tuple[Tensor, Tensor]:
        g = image(1, 9)
        return OPS.upsample_backward(g, code)[..., -1, -1], reference.upsample_backward(last(g), end.encode())[
            ..., -1, -1
        ]

    def upsample_add() -> tuple[Tensor, Tensor]:
        x, skip = scores(1, 9), image(1, 9)
        return last(fk.upsample_add(x, skip, up)), reference.upsample_add(x, last(skip), end.encode(), (0, 0), 1.0)

    def upsample_sigmoid() -> tuple[Tensor, Tensor]:
        x = scores(1, 9)
        return last(fk.upsample_sigmoid(x, up)), reference.upsample_sigmoid(x, end.encode())

    def upsample_softmax() -> tuple[Tensor, Tensor]:
        x = scores(1, 9)
        return last(fk.upsample_softmax(x, up)), reference.upsample_softmax(x, end.encode(), False)

    def upsample_argmax() -> tuple[Tensor, Tensor]:
        x = scores(9, 2)
        found = fk.upsample_argmax(x, up, dtype=torch.uint8)
        return last(found), reference.upsample_argmax(x[-1:], end.encode(), torch.uint8, False)[0]

    def upsample_cross_entropy() -> tuple[Tensor, Tensor]:
        """The gradient at the last input pixel, which the last outputs alone read."""
        x, target = scores(9, 2), labels(2)
        ours, theirs = x.clone().requires_grad_(), x[-1:].clone().requires_grad_()
        fk.upsample_cross_entropy(ours, target, up, reduction="sum").backward()
        with fk.use_backend("reference"):
            fk.upsample_cross_entropy(theirs, last(target), end, reduction="sum").backward()
        return ours.grad[-1, :, -1, -1], theirs.grad[-1, :, -1, -1]

    def upsample_confusion_matrix() -> tuple[Tensor, Tensor]:
        x, target = scores(9, 2), labels(2)
        found = fk.upsample_argmax(x, up, dtype=torch.uint8)
        counts = sum(reference.count_labels(a[None], b[None], 2, None) for a, b in zip(found, target, strict=True))
        return fk.upsample_confusion_matrix(x, target, up, ignore_index=None), counts

    def conv_transpose_add() -> tuple[Tensor, Tensor]:
        x, weight, skip = image(1, 9, side // 2), torch.randn(9, 1, 4, 4, **bf16), image(1, 9)
        options = {"stride": 2, "groups": 9, "offset": (1, 1)}
        ours = fk.conv_transpose_add(x, weight, skip, output_size=(side, side), **options)
        kept = TAIL // 2 + 4
        with fk.use_backend("reference"):
            part = x[..., -kept:, -kept:].contiguous()
            theirs = fk.conv_transpose_add(part, weight, output_size=(2 * kept, 2 * kept), **options)
        return last(ours), (last(theirs).float() + last(skip).float()).bfloat16()

    def conv_transpose_concat() -> tuple[Tensor, Tensor]:
        x, weight, skip = image(1, 3, side // 2), torch.randn(3, 4, 2, 2, **bf16), image(1, 5)
        ours = fk.conv_transpose_concat(x, weight, skip, stride=2)
        part = last(x).contiguous()
        with fk.use_backend("reference"):
            theirs = fk.conv_transpose_concat(part, weight, skip[..., -2 * TAIL :, -2 * TAIL :], stride=2)
        return last(ours), last(theirs)

    def score_softmax() -> tuple[Tensor, Tensor]:
        x, weight = image(1, 4), torch.randn(9, 4, **bf16)
        return last(fk.score_softmax(x, weight)), reference.score_softmax(last(x), weight, None, False)

    def score_argmax() -> tuple[Tensor, Tensor]:
        x, weight = image(9, 2), torch.randn(3, 2, **bf16)
        found = fk.score_argmax(x, weight, dtype=torch.uint8)
        return last(found), reference.score_argmax(last(x), weight, None, torch.uint8)

    calls = (
        upsample, upsample_backward, upsample_add, upsample_sigmoid, upsample_softmax, upsample_argmax,
        upsample_cross_entropy, upsample_confusion_matrix, conv_transpose_add, conv_transpose_concat, score_softmax,
        score_argmax,
    )  # fmt: skip
    return {call.__name__: call for call in calls}


def check_large(op: str, backend: str, device: str, side: int) -> None:
    with fk.use_backend(backend):
        ours, theirs = large(device, side)[op]()
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if ours.is_floating_point():
        scale = theirs.float().abs().max()
        error = (ours.float() - theirs.float()).abs().max()
        assert error <= 0.02 * scale, f"{backend}: {op}: off by {error:.3g} of {scale:.3g} at the last pixels"
    else:
        wrong = (ours != theirs).sum().item()
        allowed = 0 if ours.dim() == 2 else ours.numel() // 50  # near ties, in bfloat16
        assert wrong <= allowed, f"{backend}: {op}: {wrong} of {ours.numel()} differ at the last pixels"


# --- the processes ---


def run_all(args: argparse.Namespace) -> int:
    """A process for each operator and backend, a few at once."""
    work = [p for p in pairs(args.device, args.only, args.backend) if not args.large or p[0] in large(args.device, 32)]
    if not work:
        print(f"nothing to check on {args.device}: no backend serves there")
        return 1
    base = [sys.executable, __file__, "--device", args.device, "--calls", str(args.calls), "--side", str(args.side)]
    base += ["--large"] if args.large else []

    def run(pair: tuple[str, str]) -> tuple[str, str, int | str, str]:
        op, backend = pair
        try:
            done = subprocess.run(
                [*base, "--in-process", "--only", op, "--backend", backend],
                capture_output=True, text=True, timeout=args.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return op, backend, "hung", f"no end within {args.limit} s"
        return op, backend, done.returncode, (done.stderr.strip().splitlines() or [""])[-1]

    failed = 0
    begun = time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        for op, backend, code, words in pool.map(run, work):
            failed += code != 0
            print(f"{op:<42}{backend:<8}{'ok' if code == 0 else f'FAILED ({code}): {words[:600]}'}", flush=True)
    what = "large outputs" if args.large else f"{args.calls} calls each"
    verdict = f"{failed} of {len(work)} FAILED" if failed else f"all {len(work)} agree with the reference"
    print(f"{what}: {verdict}, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="*", default=[], help="operators")
    parser.add_argument("--backend", nargs="*", default=[], choices=backends.BACKENDS)
    parser.add_argument("--calls", type=int, default=10, help="of each operator")
    parser.add_argument("--large", action="store_true", help="outputs beyond 2^31 elements")
    parser.add_argument("--side", type=int, default=16384, help="of the large outputs")
    parser.add_argument("--run-only", action="store_true", help="compare nothing: for compute-sanitizer")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), help="processes at once")
    parser.add_argument("--limit", type=float, default=100, help="seconds for a process")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.run_only or args.in_process):
        return run_all(args)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if args.in_process and not args.large:
        poison()
    for op, backend in pairs(args.device, args.only, args.backend):
        if args.large:
            check_large(op, backend, args.device, args.side)
        else:
            drawn(op, backend, args.device, args.calls, compare=not args.run_only)
        print(op, backend, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
