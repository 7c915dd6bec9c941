"""How fast the machine is just now. For seconds or minutes a processor may take up to twice the time for the same work,
with nobody waiting for it: the other half of its cores computes for someone else, or its clock has been lowered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SLOW = 1.2  # times the fastest so far


def _exponentials() -> Callable[[], object]:
    """So many that one thread computes them, in the first cache: a few times 0.1 ms. The time of anything parallel
    would depend on whether other threads sleep or spin."""
    with torch.inference_mode(False):  # who looks first may be in it, who looks next may not
        x = torch.linspace(-3, 3, 1 << 12)
        out = torch.empty_like(x)

    def call() -> None:
        for _ in range(80):
            torch.exp(x, out=out)

    return call


@dataclass
class Rounds:
    """Of measurements in turns: how many count, how many of those were in a slow phase, and how many were repeated."""

    counted: int = 0
    slow: int = 0
    repeated: int = 0

    @property
    def slow_share(self) -> float:
        return self.slow / self.counted if self.counted else 0.0


class Pace:
    """Times one fixed call; the same object for a whole process, which knows the machine better with every look."""

    def __init__(self, call: Callable[[], object] | None = None, looks: int = 5) -> None:
        self._call, self._looks = call, looks
        self._fastest = math.inf

    def now(self) -> float:
        """Seconds of the call."""
        if self._call is None:
            self._call = _exponentials()
        fastest = math.inf
        for _ in range(self._looks):
            start = time.perf_counter()
            self._call()
            fastest = min(fastest, time.perf_counter() - start)
        self._fastest = min(self._fastest, fastest)
        return fastest

    def is_slow(self, *looks: float) -> bool:
        """Whether one of these times is far above the fastest that was ever seen, until now."""
        return max(looks) > SLOW * self._fastest
