"""Measures the rates of a cluster file on this machine: of a device, and of the link between two devices.

Each rate is that of one large operation: a matrix multiplication, a copy, an all-gather. Run as
`python -m runtime.doctor.benchmark`, this is one of the two processes whose link is measured.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from model.collectives import all_gather_into, all_reduce_async
from model.kernels import SMALL, Heads, Kernels, KernelShape, choose, positions
from model.mesh import Axis, connect
from runtime.train.environment import communication_variables, is_before_blackwell, set_variables

SIZES = {"cpu": 2048, "cuda": 8192}
"""Rows of the square matrices, large enough for the full rate."""
SHORT_SHARE = 16
"""The second multiplication has an inner dimension so many times smaller, to measure how the rate drops with it."""
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Many times the size of a processor's caches."""
GATHERED_BYTES = 2**26
"""Per rank: a bucket of gradients, large enough that latency does not count."""
CONTEXT, HEADS, HEAD_DIM = {"cpu": 1024, "cuda": 4096}, {"cpu": 8, "cuda": 64}, 128
"""Of the measured attention; on GPUs DeepSeek LLM's context (section 2.2) and heads (Table 2, 67B): .3 TFLOP."""
_QUEUED_CALLS, _BATCHES = 20, 5
"""Calls between two events of a GPU, at least, and how often."""
LINK_TIMEOUT_S = 120.0
"""For two processes to start, rendezvous and communicate."""


def seconds(work: Callable[[], Any], device: str, repeats: int = 20) -> float:
    """Median time of a call by the device's own clock, after three warmup calls.

    A GPU's calls are timed in batches, each queued while the GPU is still busy with something else: it then takes one
    after another, and what the host takes to queue them does not count. A collective has as many calls on all ranks.
    """
    for _ in range(3):
        work()
    if device == "cpu":
        return statistics.median(wall_seconds(work) for _ in range(repeats))
    calls, (filler, filler_s) = max(repeats, _QUEUED_CALLS), _filler()
    torch.cuda.synchronize()
    host_s = wall_seconds(lambda: [work() for _ in range(calls)])
    return statistics.median(
        _queued_s(work, calls, filler, math.ceil(2 * host_s / filler_s)) for _ in range(_BATCHES)
    )


def _queued_s(work: Callable[[], Any], calls: int, filler: Callable[[], Any], fillers: int) -> float:
    """Seconds of a call between two events, with this many behind so many of the filler."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    for _ in range(fillers):
        filler()
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


@cache
def _filler() -> tuple[Callable[[], Any], float]:
    """Something that keeps a GPU busy, and its seconds."""
    a = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16)
    result = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, a, out=result)

    multiply()
    return multiply, _queued_s(multiply, _QUEUED_CALLS, multiply, 1)


def wall_seconds(work: Callable[[], Any]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def multiply_s(device: str, dtype: torch.dtype, rows: int, inner: int, repeats: int = 5) -> float:
    """Seconds of (rows, inner) by (inner, rows)."""
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, rows)))
    result = torch.empty(rows, rows, device=device, dtype=dtype)
    return seconds(lambda: torch.mm(a, b, out=result), device, repeats)


def copy_bytes_per_s(device: str, copied_bytes: int) -> float:
    """Rate of a copy, bytes read and written counted."""
    source = torch.randint(256, (copied_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * copied_bytes / seconds(lambda: target.copy_(source), device, 10)


def half_depth(long_rate: float, short_rate: float, long: int, short: int) -> float:
    """Inner dimension h at half the rate, if the rate goes as k / (k + h), from the rates at two inner dimensions k."""
    ratio = long_rate / short_rate
    if ratio <= 1:
        return 0.0
    return long * short * (ratio - 1) / (long - ratio * short) if long > ratio * short else float(long)


@dataclass(frozen=True)
class DeviceRates:
    """The rates of one device."""

    name: str
    fp32_flop_per_s: float
    bf16_flop_per_s: float
    """Of a multiplication with a large inner dimension."""
    half_depth: float
    """See `half_depth`; in bf16."""
    copy_bytes_per_s: float
    attention_flop_per_s: float
    """Forward, in bf16, half of the causal square counted."""
    launch_s: float
    """Time of a kernel that does almost nothing."""
    kernels: dict[str, str]
    """The kernel back end that `auto` chooses for each operation."""


def device_rates(device: str, size: int | None = None, copied_bytes: int | None = None) -> DeviceRates:
    """Measure one device: a GPU, or one thread of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _device_rates(device, size or SIZES[device], copied_bytes or COPIED_BYTES[device])
    finally:
        torch.set_num_threads(before)


def _device_rates(device: str, size: int, copied_bytes: int) -> DeviceRates:
    flop, short = 2.0 * size**3, size // SHORT_SHARE
    bf16 = flop / multiply_s(device, torch.bfloat16, size, size)
    short_rate = flop / SHORT_SHARE / multiply_s(device, torch.bfloat16, size, short)
    depth = half_depth(bf16, short_rate, size, short)
    kernels = choose("auto", device, "bf16", _attention_shape(device, min(CONTEXT[device], size)))
    one = torch.zeros(1, device=device)
    return DeviceRates(
        name=torch.cuda.get_device_name() if device == "cuda" else "CPU core",
        fp32_flop_per_s=flop / multiply_s(device, torch.float32, size, size),
        bf16_flop_per_s=bf16 * (1 + depth / size),
        half_depth=depth,
        copy_bytes_per_s=copy_bytes_per_s(device, copied_bytes),
        attention_flop_per_s=_attention_flop_per_s(device, min(CONTEXT[device], size), kernels),
        launch_s=seconds(lambda: one.add_(1), device, 200),
        kernels=kernels.describe(),
    )


def _attention_shape(device: str, context: int) -> KernelShape:
    heads = HEADS[device]
    return SMALL._replace(heads=heads, kv_heads=heads, head_size=HEAD_DIM, context=context)


def _attention_flop_per_s(device: str, context: int, kernels: Kernels) -> float:
    """Rate of an attention kernel, rotary positions included."""
    mixed = HEADS[device] * HEAD_DIM
    qkv = torch.randn(context, 3 * mixed, device=device).bfloat16()
    heads = Heads(1, context, HEADS[device], HEADS[device], HEAD_DIM)
    at = positions(HEAD_DIM, context, 10000.0, qkv.dtype, device)
    flop = 4.0 * context * mixed * context / 2
    return flop / seconds(lambda: kernels.attention.forward(qkv, heads, at), device, 5)


@dataclass(frozen=True)
class LinkRates:
    """The rates between devices."""

    gather_bytes_per_s: float
    """What each device receives in a large all-gather."""
    message_s: float
    """Latency of an all-reduce of one number."""


def link_rates(device: str, gathered_bytes: int = GATHERED_BYTES) -> LinkRates:
    """Measure the link between two processes, each with a device; RuntimeError with their error if they fail."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            sys.executable,
            "-P",
            "-m",
            "runtime.doctor.benchmark",
            device,
            (Path(folder) / "rendezvous").as_uri(),
        ]
        own = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
        if device == "cuda":
            set_variables(communication_variables(2, is_before_blackwell()), own)
        ranks = [
            subprocess.Popen(
                [*argv, str(rank), str(gathered_bytes)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=own,
            )
            for rank in range(2)
        ]
        try:
            output = [rank.communicate(timeout=LINK_TIMEOUT_S) for rank in ranks]
        except subprocess.TimeoutExpired:
            raise RuntimeError(
                f"the rendezvous of two processes timed out after {LINK_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    for rank, (_, errors) in zip(ranks, output, strict=True):
        if rank.returncode:
            default = [f"a process exited with status {rank.returncode} without an error message"]
            raise RuntimeError((errors.strip().splitlines() or default)[-1])
    return LinkRates(**json.loads(output[0][0].splitlines()[-1]))


def rates_along(axis: Axis, device: str, gathered_bytes: int) -> LinkRates:
    """Measure the links of a mesh axis, as one of its ranks; each rank contributes so many bytes to the all-gather."""
    part = torch.zeros(gathered_bytes // 4, device=device)
    whole, number = part.new_empty(axis.size * part.numel()), part[:1]
    gather_s = seconds(lambda: all_gather_into(whole, part, axis), device, 10)
    message_s = seconds(lambda: all_reduce_async(number, axis).wait(), device, 50)
    return LinkRates((axis.size - 1) * gathered_bytes / gather_s, message_s)


def main() -> None:
    """One of two processes whose link is measured; rank 0 prints the rates."""
    device, rendezvous, rank, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    with connect(2, 1, 1, rank=rank, rendezvous=rendezvous, device=device, timeout_s=LINK_TIMEOUT_S) as mesh:
        link = rates_along(mesh.dp, device, size)
    if rank == 0:
        print(json.dumps(asdict(link)))


if __name__ == "__main__":
    main()
