"""How time and memory are measured on a GPU, and the ceilings of the one that is there.

Every sample finds a cold L2 cache: a large buffer is read before it, which leaves no line to be written back. The GPU
is kept busy while the host queues a call, so that device time is measured and not the host's; what is left of launches
is the gap between kernels.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from fcn_kernels import use_backend
from fcn_kernels.benchmarking import measure
from fcn_kernels.benchmarking.floors import Ceilings, of_multiprocessors
from fcn_kernels.benchmarking.measure import Timing

Call = Callable[[], object]


class Clock:
    """Times calls on the device that is current."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        self.buffer = torch.ones(max(4 * properties.L2_cache_size, 64 << 20) // 4, device="cuda")
        self.total = torch.empty((), device="cuda")
        self.rate = self._cycles_per_second()

    def _cycles_per_second(self) -> float:
        cycles = 20_000_000
        torch.cuda._sleep(cycles)
        return max(cycles / self._elapsed(lambda: torch.cuda._sleep(cycles)) for _ in range(3))

    def _elapsed(self, call: Call) -> float:
        """Seconds between events around a call."""
        start, end = self._start(0.0)
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _start(self, busy: float) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if busy:
            torch.sum(self.buffer, dim=0, out=self.total)
            torch.cuda._sleep(int(busy * self.rate))
        start.record()
        return start, end

    def interleaved(
        self, calls: Mapping[str, Call], seconds: float, minimum: int = 5, most: int = 60
    ) -> dict[str, Timing]:
        """Times all calls in turns for about `seconds` in all, `minimum` to `most` times each."""
        queueing, own = {}, 0.0
        for name, call in calls.items():
            call()
            torch.cuda.synchronize()
            begun = time.perf_counter()
            call()
            queueing[name] = min(time.perf_counter() - begun, 5e-3)
            torch.cuda.synchronize()
            own += time.perf_counter() - begun + 2 * queueing[name]
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(max(minimum, min(most, int(seconds / own)))):
            events = {}
            for name, call in calls.items():
                start, end = self._start(1.5 * queueing[name] + 2e-5)
                call()
                end.record()
                events[name] = start, end
            torch.cuda.synchronize()
            for name, (start, end) in events.items():
                samples[name].append(start.elapsed_time(end) / 1e3)
        return {name: Timing.of(times) for name, times in samples.items()}


class HostClock:
    """The same for the CPU, to try programs out where there is no GPU."""

    def interleaved(self, calls: Mapping[str, Call], seconds: float, minimum: int = 5) -> dict[str, Timing]:
        return measure.interleaved(calls, seconds, minimum)


def clock(device: str) -> Clock | HostClock:
    return Clock() if device == "cuda" else HostClock()


def in_backend(name: str, call: Call) -> Call:
    """The call within `use_backend`."""

    def there() -> object:
        with use_backend(name):
            return call()

    return there


def peak(call: Call, device: str) -> int | None:
    """Bytes over what is allocated before the call, at most; None where nobody counts them."""
    if device != "cuda":
        call()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def graphed(call: Call, device: str) -> Call:
    """The call as the replay of a graph; on other devices the call itself."""
    if device != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> object:
        graph.replay()
        return result

    return replay


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """float32 products and convolutions on tensor cores, or exactly."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def ceilings(device: str, seconds: float = 0.5) -> Ceilings:
    """What this device can move and compute; on the CPU rough numbers, which only let programs run."""
    timer = clock(device)
    large = device == "cuda"
    source = torch.randn((1 << 30) // 4 if large else 1 << 20, device=device)
    target = torch.empty_like(source)
    timing = timer.interleaved({"copy": lambda: target.copy_(source)}, seconds)["copy"]
    rate = 2 * source.nbytes / timing.median * 1e3
    products = {}
    for arithmetic, side in (("fp32", 4096), ("tf32", 8192), ("bf16", 8192)):
        side = side if large else 128
        dtype = torch.bfloat16 if arithmetic == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with tf32(arithmetic == "tf32"):
            timing = timer.interleaved({"product": lambda a=a, b=b: a @ b}, seconds)["product"]
        products[arithmetic] = side**3 / timing.median * 1e3
    if isinstance(timer, HostClock):
        return Ceilings(rate, products["fp32"], products["fp32"], products)
    properties = torch.cuda.get_device_properties()
    rates = of_multiprocessors(properties.multi_processor_count, timer.rate, (properties.major, properties.minor))
    graph, kernel = _launches(timer, seconds)
    return Ceilings(rate, *rates, products, graph, kernel)


def _launches(timer: Clock, seconds: float) -> tuple[float, float]:
    """Seconds of a graph, and of each kernel in it, from graphs of 1 and of 21 kernels on one number."""
    one = torch.zeros(1, device="cuda")

    def chain(count: int) -> Call:
        return graphed(lambda: [one.add_(1) for _ in range(count)], "cuda")

    times = timer.interleaved({"1": chain(1), "21": chain(21)}, seconds)
    kernel = max(0.0, times["21"].median - times["1"].median) / 20 / 1e3
    return max(0.0, times["1"].median / 1e3 - kernel), kernel
