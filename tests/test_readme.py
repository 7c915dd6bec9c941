"""The examples of README.md and docs/fcn.md run, in their order and in one namespace each, as the text says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


FCN = README.parent / "docs" / "fcn.md"


@pytest.mark.parametrize(("page", "least"), [(README, 10), (FCN, 7)], ids=lambda v: getattr(v, "name", ""))
def test_examples(page: Path, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that examples write
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= least
    namespace: dict[str, object] = {"__name__": "readme"}  # where its classes come from: not from builtins
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block.group(1), str(page), "exec")  # so that a traceback shows the page's line
        exec(code, namespace)


GUIDES = ("design", "geometric-softmax", "drop-in", "export", "fcn", "reliability")


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", *(f"docs/{name}.md" for name in GUIDES)])
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


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_results_runs_the_commands_of_the_page() -> None:
    run = ["make", "--dry-run", "results"]
    recipe = subprocess.run(run, cwd=README.parent, capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^\.venv/bin/((?:fcn-kernels bench|python -m benchmarks\.).*)$", recipe, re.MULTILINE)
    page = (README.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `((?:fcn-kernels bench|python -m benchmarks\.).*)` \| \d+ \|$", page, re.MULTILINE)
    assert commands == [*shown, "python -m benchmarks.report"]
