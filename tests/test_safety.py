"""What files from elsewhere can do: checkpoints execute nothing, images stay bounded, nothing touches the network."""

from __future__ import annotations

import ast
import os
import pickle
import random
import re
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path

import pytest
import torch

import fcn_kernels
from fcn_kernels import images, models
from fcn_kernels._files import replacing

PACKAGE = Path(fcn_kernels.__file__).parent
ROOT = Path(__file__).parents[1]


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_execute_nothing(tmp_path: Path, legacy: bool) -> None:
    made = tmp_path / "made"
    file = tmp_path / "evil.pt"
    torch.save({"model": {"x": torch.zeros(3), "y": Payload(made)}}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"evil\.pt: not a readable checkpoint: it holds \S+, and only") as refused:
        models.weights.read_checkpoint(file)
    assert "weights_only" not in str(refused.value)  # torch's advice, which would execute it
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Payload(made)))
    with pytest.raises(ValueError, match=r"bare\.pt: not a readable checkpoint"):
        models.weights.read_checkpoint(bare)
    assert not made.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_checkpoints_are_refused(tmp_path: Path, legacy: bool) -> None:
    """Bytes changed, left out or cut off: ValueError, or what the file still says."""
    file = tmp_path / "model.pt"
    content = {"model_state_dict": {"w": torch.arange(6.0)}, "step": 3, "names": ["a", "b"]}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    whole, generator, refused, still_read = file.read_bytes(), random.Random(0), 0, 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 1, 2, 8, 64])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        if generator.random() < 0.3:
            del damaged[generator.randrange(len(damaged)) :]
        file.write_bytes(damaged)
        try:
            models.weights.read_checkpoint(file)
        except ValueError as error:
            refused += str(error).startswith(str(file))
        else:
            still_read += 1
    assert refused + still_read == 600
    assert min(refused, still_read) > 20


def png(width: int, height: int) -> bytes:
    """A PNG of one colour: few bytes, whatever its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height) if width * height < 10**6 else bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_images_are_bounded(tmp_path: Path) -> None:
    """A small file that claims to be huge is refused before its pixels get memory."""
    pytest.importorskip("PIL")
    good, bomb = tmp_path / "good.png", tmp_path / "bomb.png"
    good.write_bytes(png(30, 20))
    assert images.read_image(good).shape == (3, 20, 30)
    bomb.write_bytes(png(40_000, 40_000))
    with pytest.raises(ValueError, match=r"bomb\.png: not a readable image: .*decompression bomb"):
        images.read_image(bomb)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_files_have_the_usual_mode_and_nobody_elses_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of the process is not touched: it belongs to all threads."""
    mask = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the mask was changed"))
        with replacing(tmp_path / "file") as out:
            out.write(b"content")
    finally:
        monkeypatch.undo()
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert (tmp_path / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def write(byte: int) -> None:
        for _ in range(20):
            with replacing(file) as out:
                out.write(bytes([byte]) * 10_000)

    threads = [threading.Thread(target=write, args=(byte,)) for byte in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = file.read_bytes()
    assert len(content) == 10_000
    assert len(set(content)) == 1
    assert os.listdir(tmp_path) == ["file"]


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    *(("os", "system"), ("os", "popen"), ("pickle", "load"), ("pickle", "loads"), ("tempfile", "mktemp")),
    *(("marshal", "loads"), ("shelve", "open"), ("torch.hub", "load"), ("np", "load"), ("numpy", "load")),
}
NETWORK = {
    "socket",
    "urllib",
    "http",
    "ftplib",
    "smtplib",
    "requests",
    "httpx",
    "aiohttp",
    "urllib3",
    "huggingface_hub",
}


def test_the_source_neither_executes_text_nor_speaks_to_the_network() -> None:
    """No eval, no unpickling, no shell, torch.load with weights_only=True, no module of the network."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found += [f"{where} imports {n}" for n in names if n.partition(".")[0] in NETWORK]
            if not isinstance(node, ast.Call):
                continue
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            name = ast.unparse(node.func)
            owner, _, attribute = name.rpartition(".")
            if name in FORBIDDEN_CALLS or (owner, attribute) in FORBIDDEN_ATTRIBUTES:
                found.append(f"{where} calls {name}")
            if options.get("shell", "False") != "False":
                found.append(f"{where} starts a shell")
            if name == "torch.load" and options.get("weights_only") != "True":
                found.append(f"{where} loads without weights_only=True")
    assert not found


def test_nothing_connects() -> None:
    """The package is imported and used where no socket can be made."""
    program = """
        import sys
        def refuse(event, args):
            if event.startswith("socket."):
                raise SystemExit(event)
        sys.addaudithook(refuse)
        import torch, fcn_kernels as fk
        from fcn_kernels import cli, evaluation, images, integrations, models, training
        fk.upsample_cross_entropy(torch.randn(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 4, 4).long()).backward()
        cli.main(["info"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_dependency_has_its_reason() -> None:
    """SECURITY.md lists each name that pyproject.toml asks for, and no other."""
    text = (ROOT / "pyproject.toml").read_text()
    extras = text.partition("[project.optional-dependencies]")[2].partition("[project.scripts]")[0]
    lines = [*re.findall(r"^(?:requires|dependencies) = .*$", text, re.MULTILINE), *extras.splitlines()]
    asked = {re.match(r"[\w-]+", item)[0] for line in lines for item in re.findall(r'"([^"]+)"', line)}
    listed = set(re.findall(r"^\| `([\w-]+)`", (ROOT / "SECURITY.md").read_text(), re.MULTILINE))
    assert listed == asked
