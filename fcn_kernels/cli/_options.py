"""What several subcommands ask of their arguments."""

from __future__ import annotations

import argparse

import torch


def positive(text: str) -> int:
    """An integer from 1 on, as a type of argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return value


def usable_device(name: str) -> torch.device:
    """The device of this name, tried out: ValueError where torch knows none, has no support for it or finds none."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch raises any of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--device {name} cannot be used: {reason}") from error
    return device
