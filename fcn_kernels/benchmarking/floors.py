"""The least time that a GPU needs for a job: what must be moved and computed, over the rates of the units that do it.

The units work beside each other, so that the floor is the largest of the terms, and its name says which limit is hit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """What the fused way cannot do without."""

    bytes: float = 0  # of inputs, each read once, and of outputs, each written once
    exponentials: float = 0  # special functions of any kind
    instructions: float = 0  # of float32 lanes; a multiply-add is one
    products: float = 0  # multiply-adds of matrix products
    arithmetic: str = "fp32"  # of the products: fp32, tf32, bf16

    as_dict = asdict

    def __add__(self, other: Work) -> Work:
        sums = [getattr(self, f) + getattr(other, f) for f in ("bytes", "exponentials", "instructions", "products")]
        return Work(*sums, self.arithmetic)


@dataclass(frozen=True)
class Ceilings:
    """Rates per second of one device, and the time of launches in a graph, in seconds."""

    bytes: float  # read and written, of a large copy
    exponentials: float
    instructions: float
    products: Mapping[str, float]  # arithmetic -> multiply-adds
    graph: float = 0.0  # of an empty graph
    kernel: float = 0.0  # of each kernel in it

    as_dict = asdict

    def launches(self, kernels: int) -> float:
        """Milliseconds of a graph of kernels that do nothing."""
        return 1e3 * (self.graph + kernels * self.kernel)


def of_multiprocessors(count: int, clock: float, capability: tuple[int, int]) -> tuple[float, float]:
    """Exponentials and instructions per second: 16 and 128 (64 on 8.0) to a clock of NVIDIA's multiprocessors."""
    return 16 * count * clock, (64 if capability == (8, 0) else 128) * count * clock


# An H200 before anybody has measured it here: copy and bf16 products as reported for it, the others by its data sheet.
PREDICTED_H200 = Ceilings(
    4.3e12,
    *of_multiprocessors(132, 1.75e9, (9, 0)),
    {"fp32": 67e12 / 2, "tf32": 495e12 / 2, "bf16": 790e12 / 2},
    graph=5e-6,
    kernel=1.5e-6,
)


def terms(work: Work, ceilings: Ceilings) -> dict[str, float]:
    """Milliseconds by limit."""
    found = {
        "bytes": work.bytes / ceilings.bytes,
        "exponentials": work.exponentials / ceilings.exponentials,
        "instructions": work.instructions / ceilings.instructions,
        "products": work.products / ceilings.products[work.arithmetic],
    }
    return {name: 1e3 * seconds for name, seconds in found.items()}


def floor(work: Work, ceilings: Ceilings) -> tuple[float, str]:
    """Milliseconds, and the limit that they are."""
    found = terms(work, ceilings)
    limit = max(found, key=found.__getitem__)
    return found[limit], limit


# --- the work of the heads on upsampled logits ---


@dataclass(frozen=True)
class Geometry:
    """Images [batch, classes, *small], sampled at `large` outputs."""

    batch: int
    classes: int
    small: tuple[int, int]
    large: tuple[int, int]
    itemsize: int = 4

    @property
    def pixels(self) -> int:
        return self.batch * self.large[0] * self.large[1]

    @property
    def run(self) -> float:
        """Outputs of an interval between two columns, whose progression is started by two exponentials."""
        return max(1.0, self.large[1] / self.small[1])

    @property
    def x(self) -> int:
        return self.batch * self.classes * self.small[0] * self.small[1] * self.itemsize

    @property
    def y(self) -> int:
        return self.pixels * self.classes * self.itemsize


def cross_entropy(g: Geometry, label: int = 8) -> Work:
    """Forward and backward: x is read, labels are read, the gradient is written. Per class and output a multiplication
    and an addition for the sum, two multiply-adds of Horner's rule for the gradient; progressions are started twice."""
    outputs = g.pixels * g.classes
    return Work(2 * g.x + label * g.pixels, 4 * outputs / g.run + 2 * g.pixels, 4 * outputs)


def softmax(g: Geometry) -> Work:
    """Per class and output a multiplication and an addition for the sum, two multiplications for the probability."""
    outputs = g.pixels * g.classes
    return Work(g.x + g.y, 2 * outputs / g.run + g.pixels, 4 * outputs)


def argmax(g: Geometry, label: int = 8) -> Work:
    """Per class and output a multiply-add, a comparison and two selections, where no class can be left out."""
    return Work(g.x + label * g.pixels, 0, 4 * g.pixels * g.classes)


def binary_cross_entropy(g: Geometry, label: int = 4) -> Work:
    """Forward and backward: exponential, logarithm and reciprocal of every output; the target is read twice."""
    return Work(2 * g.x + 2 * label * g.pixels, 3 * g.pixels, 8 * g.pixels)


def streaming(g: Geometry, images: int) -> Work:
    """x, and so many images of the size of the output; per output two multiply-adds."""
    return Work(g.x + images * g.y, 0, 2 * g.pixels * g.classes)
