"""Operators called by many threads at once, in forked workers and while the interpreter ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from call import Call, results
from strategies import examples, operators

import fcn_kernels as fk

OPS = torch.ops.fcn_kernels


@pytest.fixture(scope="module")
def cases() -> list[tuple[Call, tuple[torch.Tensor, ...]]]:
    """Some calls of every operator, and their results on one thread."""
    return [(call, results(call.op, OPS, call.args)) for op in operators() for call in examples(op, 4)]


def same(call: Call, expected: tuple[torch.Tensor, ...]) -> bool:
    got = results(call.op, OPS, call.args)
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(got, expected, strict=True))


def test_sixteen_threads_at_once(cases: list) -> None:
    """Each calls all operators, from another one on, while the number of torch's own threads changes."""
    barrier, done = threading.Barrier(16), threading.Event()

    def work(first: int) -> int:
        barrier.wait()
        turn = cases[first:] + cases[:first]
        return sum(same(*case) for case in turn)

    def change() -> None:
        while not done.is_set():
            for count in (1, 4, 2):
                torch.set_num_threads(count)
                done.wait(0.002)

    threads = torch.get_num_threads()
    changer = threading.Thread(target=change)
    changer.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            right = list(pool.map(work, range(0, len(cases), len(cases) // 16)[:16]))
    finally:
        done.set()
        changer.join()
        torch.set_num_threads(threads)
    assert right == [len(cases)] * 16


def test_backward_passes_at_once() -> None:
    """Every thread has a graph of its own; autograd runs them on its threads."""
    x, target = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 20, 30))

    def gradient(seed: int) -> torch.Tensor:
        y = (x * (seed + 1)).requires_grad_()
        (fk.upsample_cross_entropy(y, target) + fk.upsample(y, (9, 9)).square().sum()).backward()
        return y.grad

    expected = [gradient(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            assert all(a.equal(b) for a, b in zip(pool.map(gradient, range(16)), expected, strict=True))


def test_a_backend_is_chosen_per_thread() -> None:
    """use_backend holds in the thread that entered it."""
    inside, checked = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with fk.use_backend("cuda"):  # serves no CPU tensor
            inside.set()
            checked.wait(600)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert inside.wait(600)
    try:
        assert fk.upsample(torch.ones(1, 1, 2, 2), (3, 3)).equal(torch.ones(1, 1, 3, 3))
    finally:
        checked.set()
        thread.join()


PROGRAMS = {
    # The parent has used its pool of threads, which no child inherits.
    "workers": """
        import torch, fcn_kernels as fk
        from torch.utils.data import DataLoader, Dataset
        torch.set_num_threads(2)
        x = torch.randn(8, 19, 20, 30)
        expected = fk.upsample_argmax(x, (160, 240))
        class Labels(Dataset):
            def __len__(self): return 8
            def __getitem__(self, i): return fk.upsample_argmax(x[i : i + 1], (160, 240))[0]
        for _ in range(2):
            loader = DataLoader(Labels(), batch_size=4, num_workers=2, multiprocessing_context="{method}")
            assert torch.cat(list(loader)).equal(expected)
            assert fk.upsample_argmax(x, (160, 240)).equal(expected)
    """,
    # Threads that stop when the main thread has left; a handler; an object that dies with the module.
    "exit": """
        import atexit, threading, torch, fcn_kernels as fk
        torch.set_num_threads(2)
        x = torch.randn(2, 19, 20, 30)
        target = torch.zeros(2, 160, 240, dtype=torch.long)
        left = threading.Event()
        def work():
            while not left.is_set():
                fk.upsample_cross_entropy(x, target)
                fk.upsample_softmax(x, (160, 240))
        for _ in range(4):
            threading.Thread(target=work).start()
        threading._register_atexit(left.set)
        def last(labels=fk.upsample_argmax):
            assert labels(x, (160, 240)).shape == (2, 160, 240)
            print("done")
        atexit.register(last)
        class Dies:
            labels, x = staticmethod(fk.upsample_argmax), x
            def __del__(self): self.labels(self.x, (160, 240))
        dies = Dies()
        threading.Event().wait(0.3)
    """,
}


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
def test_after_fork_in_workers() -> None:
    run(PROGRAMS["workers"].format(method="fork"))


def test_while_the_interpreter_ends() -> None:
    """Not with daemon threads: there torch's own operators end the process, waiting for the interpreter's lock."""
    assert run(PROGRAMS["exit"]) == "done\n"
