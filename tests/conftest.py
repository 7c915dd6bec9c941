"""One test body for all backends: a test that asks for `backend` runs once on each that serves its operator here.

`any_backend` includes Triton's interpreter, which takes about 20 ms a program: for tiny images. A test module names its
operator in OPERATOR. Backends that cannot run on this machine are not collected; `fcn-kernels info` says why.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

from instruction_sets import INSTRUCTION_SETS, instruction_set

import fcn_kernels
from fcn_kernels import backends

# Hypothesis: the same few cases in every run of the suite; `make fuzz` draws many, always others.
settings.register_profile("suite", max_examples=20, derandomize=True, database=None, deadline=None)
settings.register_profile("fuzz", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("suite")

_BEGUN = time.monotonic()

# The images are tiny, and threads would wait for each other only; test_determinism.py varies their number.
torch.set_num_threads(1)


class Backend(NamedTuple):
    """A backend that is in use while the test runs, and the device of its tensors."""

    name: str
    device: str

    @property
    def interpreted(self) -> bool:
        return self.name == "triton" and self.device == "cpu"


@pytest.fixture(params=INSTRUCTION_SETS)
def on_instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """The CPU kernels of each instruction set in turn."""
    with instruction_set(request.param):
        yield


def serving(op: str) -> list[Backend]:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    names = [op] if backends.backward_of(op) is None else [op, backends.backward_of(op)]
    found = []
    for device in devices:
        common = [{c.backend for c in backends.candidates(n, device) if c.reason is None} for n in names]
        found += [Backend(name, device) for name in backends.BACKENDS if all(name in s for s in common)]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in {"backend", "any_backend"} & set(metafunc.fixturenames):
        found = [b for b in serving(metafunc.module.OPERATOR) if fixture == "any_backend" or not b.interpreted]
        ids = [b.name if b.device == "cpu" else f"{b.name}-{b.device}" for b in found]
        metafunc.parametrize(fixture, found, ids=ids, indirect=True)


def _with_room(function: Callable[..., object], /, **arguments: object) -> object:
    return function(**arguments)


# CPython keeps frames in chunks of 16 KiB. Where a loop calls across the end of one, as Triton's interpreter does, the
# next chunk comes from the kernel and goes back to it in every turn. This frame asks for half of 2 MiB: those above it
# have the other half.
_with_room.__code__ = _with_room.__code__.replace(co_stacksize=2**17)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    pyfuncitem.obj = functools.partial(_with_room, pyfuncitem.obj)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="only tests of a GPU's backends, on that type of device: cuda")
    parser.addoption("--seconds", type=float, help="in another order, and after so many seconds skip what is left")
    parser.addoption("--package", help="fail unless fcn_kernels is imported from below this folder")


def pytest_configure(config: pytest.Config) -> None:
    wanted, found = config.getoption("--package"), Path(fcn_kernels.__file__).resolve()
    if wanted and not found.is_relative_to(Path(wanted).resolve()):
        raise pytest.UsageError(f"fcn_kernels is {found}, not below {wanted}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("--device")
    if device is not None:
        config.hook.pytest_deselected(items=[item for item in items if not _runs_on(item, device)])
        items[:] = [item for item in items if _runs_on(item, device)]
    if config.getoption("--seconds") is not None:
        random.Random(0).shuffle(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    seconds = item.config.getoption("--seconds")
    if seconds is not None and time.monotonic() > _BEGUN + seconds:
        pytest.skip("no time left")


def _runs_on(item: pytest.Item, device: str) -> bool:
    """Whether it is parametrized with a backend there, or a test of the GPU kernels as such."""
    parameters = getattr(item, "callspec", None)
    chosen = [p for p in parameters.params.values() if isinstance(p, Backend)] if parameters else []
    if chosen:
        return any(b.device == device and b.name != "reference" for b in chosen)
    return any(item.get_closest_marker(name) for name in ("cuda", "triton"))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A wrong access leaves CUDA unusable in a process: one of several that share the tests gives way to a new one."""
    if report.failed and "CUDA error" in report.longreprtext and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many drawn calls were compared with the reference."""
    tried = getattr(sys.modules.get("against_reference"), "tried", None)
    if tried:
        terminalreporter.write_line(
            f"{tried.total()} drawn calls of {len(tried)} operators compared with the reference"
        )


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with fcn_kernels.use_backend(request.param.name):
        yield request.param


@pytest.fixture
def any_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with fcn_kernels.use_backend(request.param.name):
        yield request.param


@pytest.fixture
def triton_backend() -> Iterator[Backend]:
    """Triton on a GPU, else in its interpreter."""
    with fcn_kernels.use_backend("triton"):
        yield Backend("triton", "cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    """The module build_kernels.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("build_kernels", Path(__file__).parents[1] / "build_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
