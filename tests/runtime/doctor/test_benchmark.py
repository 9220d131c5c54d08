"""Timing on a GPU, against a GPU that takes exactly known times."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime.doctor import benchmark
from runtime.doctor.benchmark import seconds


class Gpu:
    """Takes what is queued one after another; the host's clock goes on while it queues, and stands still otherwise."""

    def __init__(self) -> None:
        self.host_s = self.free_s = 0.0
        self.calls = 0

    def queue(self, host_s: float, device_s: float) -> Callable[[], None]:
        """Something to call."""

        def call() -> None:
            self.calls += 1
            self.host_s += host_s
            self.free_s = max(self.free_s, self.host_s) + device_s

        return call

    def synchronize(self) -> None:
        self.host_s = max(self.host_s, self.free_s)

    def event(self, **_: Any) -> Any:
        """As torch.cuda.Event."""
        at = SimpleNamespace()
        at.record = lambda: setattr(at, "s", max(self.free_s, self.host_s))
        at.elapsed_time = lambda end: (end.s - at.s) * 1e3
        return at


@pytest.mark.parametrize(
    ("host_s", "device_s"),
    [(150e-6, 90e-6), (30e-6, 12e-6), (5e-6, 2e-6), (10e-6, 2e-3)],
    ids=["attention", "all-reduce", "launch", "multiplication"],
)
def test_what_the_host_takes_to_queue_does_not_count(
    host_s: float, device_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of a call as read from the code for an H100: timed one by one, three of these measured the host."""
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: gpu.host_s)
    monkeypatch.setattr(benchmark, "_filler", lambda: (gpu.queue(5e-6, 170e-6), 170e-6))
    assert seconds(gpu.queue(host_s, device_s), "cuda", 10) == pytest.approx(device_s, rel=0.01)


def test_ranks_make_as_many_calls_however_slow_their_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a collective would wait for one that never starts."""
    counts = set()
    for host_s in (1e-6, 1e-3):
        gpu = Gpu()
        monkeypatch.setattr(torch.cuda, "Event", gpu.event)
        monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
        monkeypatch.setattr(benchmark.time, "perf_counter", lambda gpu=gpu: gpu.host_s)
        monkeypatch.setattr(benchmark, "_filler", lambda: (lambda: None, 170e-6))
        seconds(gpu.queue(host_s, 10e-6), "cuda", 50)
        counts.add(gpu.calls)
    assert len(counts) == 1
