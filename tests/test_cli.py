"""What the subcommands of `fcn-kernels` have in common; each has its own tests beside."""

from __future__ import annotations

import argparse
import importlib

import pytest
import torch

import fcn_kernels
from fcn_kernels import cli
from fcn_kernels.cli import _options


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fcn-kernels {fcn_kernels.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"fcn_kernels.cli.{name}").add_arguments(parser)
    assert not [action.dest for action in parser._actions if not action.help]
    parser.format_help()  # a % in a text must be doubled


@pytest.mark.parametrize("name", ["foo", "cpu:x", "meta", *(() if torch.cuda.is_available() else ("cuda", "cuda:0"))])
def test_a_device_that_cannot_be_used(name: str) -> None:
    with pytest.raises(ValueError, match=f"--device {name} cannot be used: ."):
        _options.usable_device(name)


def test_arguments_that_several_commands_take() -> None:
    assert _options.usable_device("cpu") == torch.device("cpu")
    assert _options.positive("7") == 7
    for text in ("0", "-1", "1.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"at least 1, not '{text}'"):
            _options.positive(text)
