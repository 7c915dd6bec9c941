"""The command `fcn-kernels`. A subcommand is a module beside this file with `add_arguments(parser)` and `run(args)`,
and a line in COMMANDS; it is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .. import __version__

COMMANDS = {
    "info": "what is built, which backend serves each operator, and why another does not",
    "bench": "compare the fused heads with eager PyTorch and torch.compile, on features of real photographs",
    "demo": "the story of FCN: a classifier of digits becomes FCN-32s, 16s and 8s, on scenes made of real data",
    "segment": "label the pixels of pictures: palette PNGs, overlays and a legend",
    "train": "train FCN-32s, 16s and 8s on a folder in the layout of PASCAL VOC",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="fcn-kernels", description="Fused operators for fully convolutional segmentation in PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if argv[:1] == [name]:
            _module(name).add_arguments(command)
    args = parser.parse_args(argv)
    try:
        return _module(args.command).run(args)
    except KeyboardInterrupt:
        return 130


def _module(name: str):
    return importlib.import_module(f"{__name__}.{name}")
