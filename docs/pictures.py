"""Draws the pictures of geometric-softmax.md: python docs/pictures.py (needs numpy and matplotlib).

The chains are emulated in numpy float32 with the kernels' exponential, every operation rounded on its own and denormal
results flushed to zero, as the kernels compute without fused multiply-adds. The oracle is float64.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
STEPS = 8  # outputs of a segment, here those of an input interval: stride 8
F32 = np.float32
LOWEST, HIGHEST, LOG_LOST = F32(-87.3), F32(88.0), F32(-20.0)  # csrc/softmax.h, csrc/cpu/math.h
SMALLEST = np.finfo(F32).tiny


def flush(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < SMALLEST, F32(0), x)


def exp32(x: np.ndarray) -> np.ndarray:
    """`vexp` of csrc/cpu/math.h."""
    x = np.clip(x, LOWEST, HIGHEST).astype(F32)
    n = np.rint(x * F32(1.44269504088896341))
    r = (x - n * F32(0.693359375)) + n * F32(2.12194440054690583e-4)
    q = F32(1.3814464752e-3)
    for c in (8.3687806222e-3, 4.1668394259e-2, 1.6666520106e-1, 4.9999993412e-1):
        q = q * r + F32(c)
    return np.ldexp((q * (r * r) + r) + F32(1), n.astype(int))


def fractions(steps: int = STEPS) -> np.ndarray:
    """Where the outputs of an interval lie, as F.interpolate has it: (k + 1/2) / steps."""
    return (np.arange(steps) + 0.5) / steps


def corners(left: np.ndarray, right: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a and d of a logit that goes from left to right, relative to the maximum m."""
    a = left - m
    return a, (right - m) - a


def chain(left: np.ndarray, right: np.ndarray, m: np.ndarray) -> list[np.ndarray]:
    """exp(logit - m) at the outputs: e_0, then one multiplication by r each."""
    a, d = corners(left, right, m)
    f = fractions()
    e, r = exp32(a + F32(f[0]) * d), exp32(d * F32(1 / STEPS))
    terms = [e]
    for _ in range(STEPS - 1):
        with np.errstate(over="ignore"):  # far beyond what the kernels let a chain do
            e = flush(e * r)
        terms.append(e)
    return terms


def direct(left: np.ndarray, right: np.ndarray, m: np.ndarray) -> list[np.ndarray]:
    """The same with an exponential per output."""
    a, d = corners(left, right, m)
    return [exp32(a + F32(f) * d) for f in fractions()]


def own_maximum(logits: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """log sum exp at the outputs in the weighted form, every output with its own maximum: the fallback."""
    results = []
    for f in fractions():
        z = [(F32(1) - F32(f)) * left + F32(f) * right for left, right in logits]
        m = np.maximum.reduce(z)
        results.append(m.astype(float) + np.log(sum(exp32(v - m) for v in z).astype(float)))
    return results


def exact(left: np.ndarray, right: np.ndarray, m: np.ndarray) -> list[np.ndarray]:
    left, right, m = (np.asarray(v, float) for v in (left, right, m))
    return [np.exp(left + f * (right - left) - m) for f in fractions()]


def relative(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(value.astype(float) / truth - 1)


def draw_row() -> None:
    """A logit along a row, its segments, and the exponential that a chain makes of it."""
    inputs = np.array([-1.0, 0.2, -2.6, -0.9, -0.4])
    m = inputs.max()
    grey, shade = "0.45", "0.92"
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8.2, 5.0), sharex=True, height_ratios=(1, 1.25))
    at = (np.arange(len(inputs)) + 0.5) * STEPS - 0.5  # output column of an input pixel
    curve = np.linspace(at[0], at[-1], 600)
    values = np.interp(curve, at, inputs) - m
    top.plot(curve, values, color=grey, lw=1.2)
    top.plot(at, inputs - m, "ks", ms=7, label="input pixel")
    bottom.plot(curve, np.exp(values), color=grey, lw=1.2, label=r"true $e^{z-M}$")
    for i, (left, right) in enumerate(itertools.pairwise(inputs)):
        columns = at[i] + fractions() * STEPS
        terms = chain(F32(left), F32(right), F32(m))
        for axes in (top, bottom):
            if i % 2 == 0:
                axes.axvspan(at[i], at[i + 1], color=shade, lw=0)
        top.plot(columns, np.interp(columns, at, inputs) - m, "k.", ms=5, label="output pixel" if i == 0 else None)
        first = {"label": r"$e_0$: one exponential"} if i == 0 else {}
        bottom.plot(columns[0], terms[0], "o", ms=9, mfc="white", mec="black", mew=1.4, **first)
        rest = {"label": r"$e_k = e_{k-1}\, r$: one multiplication"} if i == 0 else {}
        bottom.plot(columns[1:], terms[1:], "ko", ms=4, **rest)
        r = np.exp((right - left) / STEPS)
        bottom.text((at[i] + at[i + 1]) / 2, 1.1, f"$r = e^{{d/8}} = {r:.2f}$", ha="center", fontsize=9)
        top.text((at[i] + at[i + 1]) / 2, 0.28, f"segment {i}: $d = {right - left:+.1f}$", ha="center", fontsize=9)
    top.set(ylim=(-3.2, 0.65), ylabel=r"logit of a class, $z - M$")
    bottom.set(ylim=(0, 1.24), ylabel=r"$e^{z-M}$", xlabel="output column", xlim=(at[0] - 0.6, at[-1] + 0.6))
    top.legend(loc="lower right", fontsize=9, framealpha=1)
    bottom.legend(loc="upper right", bbox_to_anchor=(0.995, 0.86), fontsize=9, framealpha=1)
    save(figure, "geometric-softmax-row.png")


def draw_error() -> None:
    """Left: a term against its step, without underflow. Right: the sum against the jump, up to the fallback."""
    rng = np.random.default_rng(0)
    figure, (term, total) = plt.subplots(1, 2, figsize=(9.6, 4.0), width_ratios=(1, 1.15))
    draw_term(term, rng)
    draw_sum(total, rng)
    save(figure, "geometric-softmax-error.png")


def draw_term(axes: plt.Axes, rng: np.random.Generator) -> None:
    """Classes that rise by d to within 1 of the maximum: their last terms weigh most."""
    unit, zero = 2.0**-24, F32(0)
    for jump, marker, tone in ((80, "s", "0.0"), (20, "^", "0.35"), (2, "o", "0.6")):
        d = (jump * rng.uniform(0.8, 1, 200_000)).astype(F32)
        right = -rng.uniform(0, 1, d.size).astype(F32)
        left = right - d
        truth = exact(left, right, zero)
        for kind, line in ((chain, "-"), (direct, "--")):
            worst = [relative(v, t).max() / unit for v, t in zip(kind(left, right, zero), truth, strict=True)]
            style = {"marker": marker, "ms": 5, "color": tone, "mfc": tone if line == "-" else "white"}
            axes.semilogy(worst, line, label=f"{kind.__name__}, $d$ to {jump}", **style)
    axes.set(xlabel="step $k$ of the segment", ylabel="relative error, in units of $2^{-24}$", ylim=(1, 2000))
    axes.set_title("a term that rises to $M$ (largest of 200 000)", fontsize=10)
    axes.legend(fontsize=8, ncols=2, loc="upper left")


def draw_sum(axes: plt.Axes, rng: np.random.Generator) -> None:
    """Two classes that change places, one falling from M to M - d and one rising back."""
    jumps = np.unique(np.concatenate([np.geomspace(0.5, 400, 120), np.linspace(88, 98, 41)]))
    chained, lost, own, begin = [], [], [], jumps[-1]
    for jump in jumps:
        d = (jump * (1 + 0.001 * rng.uniform(-1, 1, 4000))).astype(F32)
        zero = np.zeros_like(d)
        pairs = [(zero, -d), (-d, zero)]
        truth = [a + b for a, b in zip(*(exact(p, q, zero) for p, q in pairs), strict=True)]
        sums = [a + b for a, b in zip(*(chain(p, q, zero) for p, q in pairs), strict=True)]
        error = np.maximum.reduce([relative(s, t) for s, t in zip(sums, truth, strict=True)])
        own.append(max(np.abs(a - b).max() for a, b in zip(own_maximum(pairs), own_oracle(pairs), strict=True)))
        a, slope = corners(-d, zero, zero)
        rise = np.where(a + F32(fractions()[0]) * slope < LOWEST, slope, F32(0))
        enough = np.log(np.minimum.reduce(sums)) >= np.log(2) + LOWEST + rise - LOG_LOST
        chained.append(error[enough].max() if enough.any() else np.nan)
        lost.append(np.nan if enough.all() else error[~enough].max())
        begin = begin if enough.all() else min(begin, jump)
    axes.axvspan(begin, jumps[-1], color="0.88", lw=0)
    axes.loglog(jumps, own, "--", color="0.45", lw=1.4, label="direct, each output with its own maximum")
    axes.loglog(jumps, chained, "k-", lw=1.8, label="chain")
    axes.loglog(jumps, lost, "k:", lw=1.8, label="chain, were it used in the fallback region")
    axes.text(np.sqrt(begin * jumps[-1]), 3e-9, f"fallback\n$d > {begin:.0f}$", ha="center", fontsize=9)
    axes.set(xlabel="jump $d$ between two inputs", ylabel="relative error of $S_k$, worst $k$", ylim=(1e-9, 1e3))
    axes.set_xlim(jumps[0], jumps[-1])
    axes.set_title("the sum of two classes that change places", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")


def own_oracle(logits: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    pairs = [(left.astype(float), right.astype(float)) for left, right in logits]
    return [np.logaddexp.reduce([left + f * (right - left) for left, right in pairs]) for f in fractions()]


def save(figure: plt.Figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(FOLDER / name, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw_row()
    draw_error()
