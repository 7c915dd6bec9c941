"""Drop-in for other people's models, one file per library, named like the library; each is imported on demand.

A file that `fcn_kernels.fuse` asks has `untested`, `fuse_module` and `fuse_object`. The rest of a file is for calling.
"""

from __future__ import annotations

import importlib.metadata


def untested_version(package: str, tested: tuple[str, ...]) -> str | None:
    """A sentence if the installed major.minor version of the package is not among those tested."""
    version = importlib.metadata.version(package)
    if ".".join(version.split(".")[:2]) in tested:
        return None
    return (
        f"fcn_kernels.fuse was tested with {package} {', '.join(tested)}, and this is {version}: "
        "compare a few outputs with fcn_kernels.unfuse(model)"
    )
