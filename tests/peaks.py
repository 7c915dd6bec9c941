"""Peak memory of a call, from what torch's CPU allocator gave and took back."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak(call: Callable[[], object]) -> int:
    """Bytes that are allocated at most during `call`, beyond those before it. Kernels' own scratch does not count."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def training_peaks(step: Callable[[], object], fuse: Callable[[], object]) -> tuple[int, int]:
    """Of a training step before and after `fuse`; the parameters' gradients are there already."""
    found = []
    for change in (None, fuse):
        if change is not None:
            change()
        step()
        found.append(peak(step))
    return found[0], found[1]
