"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: str | os.PathLike) -> Iterator[BinaryIO]:
    """A stream whose content becomes `file` at the end: written beside it, synced to the disk, renamed.

    Whatever interrupts it, `file` is what it was before."""
    path = Path(file)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    # A new file or none, with the mode that every new file gets: to ask for the mask would mean to change it.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)
