"""Batch, devices and layout of a run, chosen together, since each limits the others.

The batch is the law's, rounded so that many devices can share it evenly. The devices are those of the cluster, as long
as doubling them makes a step clearly faster. A batch that the budget fixes is kept exactly: it decides how many devices
can share it evenly.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.performance.layout_search import (
    LayoutFit,
    LayoutProblem,
    NoLayoutError,
    UndividedBatchError,
    fastest_by_closed_form,
    fastest_that_divides,
)
from specs.cluster import Cluster
from specs.layout import Layout
from specs.model import ModelSpec

BATCH_GRAIN = 16
"""A batch is a multiple of the largest power of two below a 16th of it: 2252 becomes 2304, as in DeepSeek
LLM, Table 2."""
BATCH_FREEDOM = 0.05
"""Batches this close to the law's are as good: DeepSeek LLM's own are up to 9 % from it (2304 for 2252, 4608 for 5043),
and its near-optimal bands are far wider (Fig. 3)."""
MIN_DOUBLING_SPEEDUP = 1.25
"""Devices are doubled as long as that makes a step at least this much faster; more would mostly be idle."""


@dataclass(frozen=True)
class BatchAndLayout:
    """A run's batch and layout, with the memory and time of a step."""

    batch_sequences: int
    layout: Layout
    memory_bytes: float
    step_s: float | None
    """Seconds of a step; None on a cluster without efficiencies."""


def choose_batch_and_layout(
    model: ModelSpec,
    cluster: Cluster,
    precision: str,
    devices: int,
    law_sequences: float,
    fixed_sequences: int | None,
) -> BatchAndLayout:
    """Batch and layout on at most these devices, with about `law_sequences` a step or exactly `fixed_sequences`.

    NoLayoutError where no layout fits the memory.
    """
    if fixed_sequences is not None:
        return _with_fixed_batch(LayoutProblem(model, cluster, devices, fixed_sequences, precision))
    try:
        if cluster.efficiency is None:
            return _by_memory(model, cluster, precision, devices, law_sequences)
        return _by_speed(
            devices,
            lambda count: layout_of_batch(
                model, cluster, precision, count, divisible_batch(law_sequences, count)
            ),
        )
    except (
        NoLayoutError
    ) as error:  # the devices may not divide into layouts that fit, and fewer or more of them may
        batch = divisible_batch(law_sequences, _power_of_two(min(devices, law_sequences)))
        try:
            return _with_fixed_batch(LayoutProblem(model, cluster, devices, batch, precision))
        except NoLayoutError:
            raise error from None


def round_batch(sequences: float, multiple: int) -> int:
    """Whole sequences near `sequences`: a multiple of `multiple` and of a power of two that costs at most 3 %."""
    grain = 2 ** math.floor(math.log2(sequences / BATCH_GRAIN)) if sequences > BATCH_GRAIN else 1
    unit = math.lcm(grain, multiple)
    return max(1, round(sequences / unit)) * unit


def divisible_batch(sequences: float, devices: int) -> int:
    """Whole sequences near `sequences` that as many of the devices as possible can share evenly."""
    near = (round_batch(sequences, share) for share in (*_halvings(devices), 1))
    return next(
        (batch for batch in near if abs(batch / sequences - 1) <= BATCH_FREEDOM), round_batch(sequences, 1)
    )


def _halvings(devices: int) -> Iterator[int]:
    yield devices
    while devices % 2 == 0:
        devices //= 2
        yield devices


def _power_of_two(number: float) -> int:
    """The largest power of two that is not above the number; 1 at least."""
    return int(2 ** math.floor(math.log2(max(1.0, number))))


def layout_of_batch(
    model: ModelSpec, cluster: Cluster, precision: str, devices: int, batch: int
) -> BatchAndLayout:
    """The best layout that divides a batch on exactly these devices; errors as in `fastest_by_closed_form`."""
    if cluster.efficiency is None:
        problem = LayoutProblem(model, cluster, devices, batch, precision)
        return _chosen(batch, fastest_that_divides(problem, fewest=devices))
    return _chosen(batch, fastest_by_closed_form(model, cluster, devices, batch, precision))


def _chosen(batch: int, fit: LayoutFit) -> BatchAndLayout:
    return BatchAndLayout(batch, fit.layout, fit.memory_bytes, fit.step_s)


def _with_fixed_batch(problem: LayoutProblem) -> BatchAndLayout:
    """The batch as it is, on as many of the devices as can share it and are worth it; NoLayoutError where none can."""
    batch = problem.batch_sequences
    fit = fastest_that_divides(problem)
    if problem.cluster.efficiency is None:
        return _chosen(batch, fit)

    def up_to(devices: int) -> BatchAndLayout:
        fewest = devices // 2 + 1
        return _chosen(batch, fastest_that_divides(replace(problem, devices=devices), fewest))

    return _by_speed(problem.devices, up_to)


def _by_memory(
    model: ModelSpec, cluster: Cluster, precision: str, devices: int, sequences: float
) -> BatchAndLayout:
    """Without step times to compare: at most one device per sequence, and the batch rounded to the replicas."""
    devices = min(devices, _power_of_two(sequences))
    fit = fastest_by_closed_form(model, cluster, devices, round_batch(sequences, 1), precision)
    layout, batch = fit.layout, round_batch(sequences, fit.layout.dp)
    micro_batch = math.gcd(layout.micro_batch_sequences, batch // layout.dp)
    divided = layout.model_copy(update={"micro_batch_sequences": micro_batch})
    return BatchAndLayout(batch, divided, fit.memory_bytes, fit.step_s)


def _by_speed(devices: int, best_on: Callable[[int], BatchAndLayout]) -> BatchAndLayout:
    """The best on these devices, halved as long as that costs little time; NoLayoutError where none fits."""
    best: BatchAndLayout | None = None
    misfit: NoLayoutError | None = None
    while devices:
        try:
            half = best_on(devices)
        except NoLayoutError as error:
            if best is not None:
                break
            half, misfit = None, misfit or error
        except UndividedBatchError:
            half = None
        if (
            best is not None
            and half is not None
            and _sequence_s(half) > MIN_DOUBLING_SPEEDUP * _sequence_s(best)
        ):
            break
        best = half or best
        devices //= 2
    if best is None:
        assert misfit is not None  # one device divides any batch
        raise misfit
    return best


def _sequence_s(chosen: BatchAndLayout) -> float:
    assert chosen.step_s is not None  # the cluster has efficiencies
    return chosen.step_s / chosen.batch_sequences
