"""The instruction sets that the extension was built for and that this processor has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fcn_kernels._library import load_extension

EXTENSION = load_extension()


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Its kernels run, inside."""
    before = EXTENSION.instruction_set()
    EXTENSION.use_instruction_set(name)
    try:
        assert EXTENSION.instruction_set() == name
        yield
    finally:
        EXTENSION.use_instruction_set(before)


def _supported() -> list[str]:
    found = []
    for name in EXTENSION.built()["instruction_sets"] if EXTENSION else []:
        with contextlib.suppress(ValueError), instruction_set(name):
            found.append(name)
    return found


INSTRUCTION_SETS = _supported()
