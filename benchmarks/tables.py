"""Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = "| " + " | ".join(titles) + " |"
    return [line, "|" + "---|" * len(titles), *("| " + " | ".join(cells) + " |" for cells in rows)]
