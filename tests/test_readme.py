"""The examples of README.md run, in their order and in one namespace, as the text says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_examples() -> None:
    text = README.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) > 10
    namespace: dict[str, object] = {}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block.group(1), str(README), "exec")  # so that a traceback shows the README's line
        exec(code, namespace)


@pytest.mark.parametrize("page", ["README.md", "docs/design.md", "docs/geometric-softmax.md", "docs/drop-in.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = README.parent / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


def test_every_public_name_is_shown() -> None:
    import fcn_kernels

    text = README.read_text(encoding="utf-8")
    modules = [name for name in fcn_kernels.nn.__all__ if name not in text]
    assert not modules
    assert not [name for name in fcn_kernels.__all__ if name not in text]
