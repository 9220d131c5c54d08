"""Every legal parallel layout of a model on a cluster with its memory and step time; the fastest that fits is chosen.

All layouts are ranked at once by closed forms (planner/performance/step_time.py, planner/performance/memory.py); the
best twenty are then timed by simulating their pipelines (planner/performance/pipeline_simulator.py), and ranked again.
On a cluster without efficiencies, like a laptop, no step time is known: there the least model parallelism that fits is
taken, with the largest micro-batch."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.performance.communication import stage_traffic
from planner.performance.cost import Architecture, architecture
from planner.performance.engine_features import ON_CPU, OURS, Engine
from planner.performance.layout_grid import (
    RECOMPUTE,
    DeviceRange,
    LayoutGrid,
    balanced_cut,
    divisors,
    grid_of,
    legal_grid,
    splits,
)
from planner.performance.memory import memory_parts
from planner.performance.pipeline_simulator import PassTimes, Simulator
from planner.performance.step_time import (
    ClusterRates,
    block_seconds,
    cluster_rates,
    head_seconds,
    step_seconds,
    transfer_seconds,
)
from specs.cluster import Cluster
from specs.formatting import layout_text, memory
from specs.humanize import several
from specs.layout import Layout
from specs.model import ModelSpec
from specs.plan import LayoutChoice, LayoutEstimate

USABLE_MEMORY = 0.9
"""Share of a device's memory that a plan may use; the rest is for the allocator, CUDA's context and NCCL."""
SIMULATED = 20
"""Layouts that are timed by simulation."""
Column = NDArray[np.float64]


class NoLayoutError(ValueError):
    """No layout fits; the message says by how many bytes the nearest one misses."""


class UndividedBatchError(ValueError):
    """No legal layout divides the batch."""

    def __init__(self, devices: int, sequences: int) -> None:
        super().__init__(
            f"no layout of {devices} devices has a data-parallel size that divides the batch of {sequences} sequences"
        )


@dataclass(frozen=True)
class LayoutFit:
    """A layout with the memory of its fullest device and the seconds of a step."""

    layout: Layout
    memory_bytes: float
    step_s: float | None
    """None on a cluster without efficiencies."""


@dataclass(frozen=True)
class LayoutProblem:
    """The run and the devices that a layout is searched for."""

    model: ModelSpec
    cluster: Cluster
    devices: int
    batch_sequences: int
    precision: str

    @property
    def a(self) -> Architecture:
        """The model as the counts see it."""
        return architecture(self.model)

    @property
    def width_bytes(self) -> int:
        """Bytes of a weight."""
        return 2 if self.precision == "bf16" else 4

    @property
    def engine(self) -> Engine:
        """The engine on this kind of device."""
        return OURS if self.cluster.device.backend == "cuda" else ON_CPU

    @property
    def rates(self) -> ClusterRates:
        """The cluster's rates."""
        return cluster_rates(self.cluster, self.width_bytes)

    @property
    def limit_bytes(self) -> float:
        """Memory of one device that a layout may fill."""
        return USABLE_MEMORY * self.cluster.device.memory


@dataclass(frozen=True)
class Ranking:
    """All legal layouts with their bytes and seconds, columns of one length."""

    problem: LayoutProblem
    grid: LayoutGrid
    memory: Column
    step_s: Column

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Where a layout fits the memory."""
        return self.memory <= self.problem.limit_bytes

    def order(self, among: NDArray[np.bool_]) -> list[int]:
        """Rows, fastest first; of equals the one with less memory."""
        rows = np.flatnonzero(among)
        found: list[int] = rows[np.lexsort((self.memory[rows], self.step_s[rows]))].tolist()
        return found

    def layout(self, row: int) -> Layout:
        """A row as a layout, its pipeline stages balanced with the head."""
        at = {f.name: int(getattr(self.grid, f.name)[row]) for f in fields(LayoutGrid)}
        model = self.problem.model
        plain = Layout(
            dp=at["dp"],
            pp=at["pp"],
            tp=at["tp"],
            sequence_parallel=bool(at["sp"]),
            micro_batch_sequences=at["micro_batch"],
            recompute=RECOMPUTE[at["recompute"]],  # type: ignore[arg-type]
            interleave=at["interleave"],
        )
        sizes = balanced_cut(self.problem.a, at["pp"], at["interleave"])
        even = tuple(len(blocks) for blocks in plain.blocks(model.layers))
        return plain if sizes == even else plain.model_copy(update={"stage_layers": sizes})


def rank_layouts(problem: LayoutProblem, devices: DeviceRange | None = None) -> Ranking:
    """Every legal layout by closed form, on exactly the problem's devices or in a range below them.

    UndividedBatchError where there is none.
    """
    exactly = DeviceRange(problem.devices, problem.devices)
    grid = legal_grid(problem.model, devices or exactly, problem.batch_sequences)
    if grid is None:
        raise UndividedBatchError(problem.devices, problem.batch_sequences)
    width = problem.width_bytes
    memory = sum(memory_parts(problem.a, problem.engine, width, grid).values())
    seconds = sum(step_seconds(problem.a, problem.engine, problem.rates, width, grid).values())
    return Ranking(problem, grid, np.asarray(memory), np.asarray(seconds))


def fastest_by_closed_form(
    model: ModelSpec, cluster: Cluster, devices: int, batch: int, precision: str
) -> LayoutFit:
    """The fastest layout by closed form (without efficiencies: the first that fits), not simulated.

    NoLayoutError where none fits, UndividedBatchError where none divides the batch; without efficiencies the first that
    fits need not divide it.
    """
    problem = LayoutProblem(model, cluster, devices, batch, precision)
    if cluster.efficiency is None:
        return _by_memory(problem, _least_parallel(problem))
    return _fastest(rank_layouts(problem))


def fastest_that_divides(problem: LayoutProblem, fewest: int = 1) -> LayoutFit:
    """The fastest layout by closed form that divides the batch, on at most the problem's devices and at least `fewest`.

    Without efficiencies it is the first that fits. UndividedBatchError where there is none, NoLayoutError where none
    fits.
    """
    devices = DeviceRange(fewest, problem.devices, problem.cluster.devices_per_node)
    if problem.cluster.efficiency is None:
        layouts = _ordered(problem, splits(problem.model, devices, problem.batch_sequences))
        if not layouts:
            raise UndividedBatchError(problem.devices, problem.batch_sequences)
        return _by_memory(problem, layouts, "at most ")
    return _fastest(rank_layouts(problem, devices), "at most ")


def _fastest(ranking: Ranking, at_most: str = "") -> LayoutFit:
    rows = ranking.order(ranking.fits)
    if not rows:
        raise _no_layout_error(ranking, at_most)
    return LayoutFit(ranking.layout(rows[0]), float(ranking.memory[rows[0]]), float(ranking.step_s[rows[0]]))


def compare_layouts(
    model: ModelSpec, cluster: Cluster, devices: int, batch_sequences: int, precision: str
) -> LayoutChoice:
    """The best layouts, timed by simulation; the target run takes the first (planner/design/target_run.py).

    Errors as in `fastest_by_closed_form`; ValueError without efficiencies.
    """
    problem = LayoutProblem(model, cluster, devices, batch_sequences, precision)
    ranking = rank_layouts(problem)
    fits = ranking.fits
    rows = ranking.order(fits)[:SIMULATED]
    if not rows:
        raise _no_layout_error(ranking)
    simulator = Simulator()
    ranked = sorted((_estimate(ranking, row, simulator) for row in rows), key=lambda found: found.step_s)
    nearest = _nearest_miss(ranking, float(ranking.step_s[rows[0]]))
    miss = None if nearest is None else _estimate(ranking, nearest, simulator)
    return LayoutChoice(
        ranked=tuple(ranked),
        considered=len(fits),
        fitting=int(fits.sum()),
        limit_bytes=problem.limit_bytes,
        nearest_miss_bytes=None if miss is None else miss.memory_bytes - problem.limit_bytes,
        nearest_miss=miss,
        reason=why_fastest(ranked),
        traffic=stage_traffic(
            problem.a, problem.engine, problem.width_bytes, ranked[0].layout, batch_sequences
        ),
    )


def _nearest_miss(ranking: Ranking, best_s: float) -> int | None:
    """The row that misses the memory limit least, among those faster than the best; among all, where none is faster."""
    misses = ~ranking.fits
    faster = misses & (ranking.step_s < best_s)
    rows = np.flatnonzero(faster if faster.any() else misses)
    return int(rows[ranking.memory[rows].argmin()]) if len(rows) else None


def _estimate(ranking: Ranking, row: int, simulator: Simulator) -> LayoutEstimate:
    """A row with its simulated seconds: the simulation gives the time that the pipeline's ranks wait."""
    problem, layout = ranking.problem, ranking.layout(row)
    a, rates, width = problem.a, problem.rates, problem.width_bytes
    grid = grid_of(layout, a.layers, problem.batch_sequences)
    memory = {name: float(part) for name, part in memory_parts(a, problem.engine, width, grid).items()}
    seconds = {
        name: float(part) for name, part in step_seconds(a, problem.engine, rates, width, grid).items()
    }
    waiting = seconds["bubble"] + seconds["pipeline transfers"]
    once = seconds["data parallel"] + seconds["optimizer"]
    busy = sum(seconds.values()) - waiting - once
    whole = simulator.pipeline_s(
        layout.pp, grid.micro_batches, layout.interleave, _pass_times(problem, layout, grid)
    )
    seconds["pipeline transfers"] = min(seconds["pipeline transfers"], max(0.0, whole - busy))
    seconds["bubble"] = max(0.0, whole - busy - seconds["pipeline transfers"])
    step_s = sum(seconds.values())
    flop = problem.model.mfu_flop_per_token * problem.batch_sequences * problem.model.context
    return LayoutEstimate(
        layout=layout,
        step_s=step_s,
        seconds=seconds,
        memory_bytes=sum(memory.values()),
        memory=memory,
        model_flop_utilisation=flop / step_s / (problem.devices * rates.peak_flop_per_s),
    )


def _pass_times(problem: LayoutProblem, layout: Layout, grid: LayoutGrid) -> PassTimes:
    """Seconds of a micro-batch's passes through every virtual stage."""
    a, engine, rates, width = problem.a, problem.engine, problem.rates, problem.width_bytes
    block, head = block_seconds(a, engine, rates, width, grid), head_seconds(a, engine, rates, width, grid)
    sizes = [len(blocks) for blocks in layout.blocks(a.layers)]
    passes = [
        [
            float(size * each + (beside if stage == len(sizes) - 1 else 0.0))
            for stage, size in enumerate(sizes)
        ]
        for each, beside in ((block.forward, head[0]), (block.backward, head[1]))
    ]
    travel, busy = transfer_seconds(a, engine, rates, width, grid)
    return PassTimes(tuple(passes[0]), tuple(passes[1]), float(travel), float(busy))


COMPUTE_PARTS = ("matmuls", "attention", "elementwise", "head and loss")
"""Parts of a step that compute the model; they depend on the split into stages and are compared as one."""


def why_fastest(ranked: list[LayoutEstimate]) -> str:
    """Why the first layout is faster than the second: the parts in which they differ most, with numbers."""
    if len(ranked) == 1:
        return "the only layout that fits"
    first, second = ranked[:2]
    one, other = (_comparable_parts(estimate.seconds) for estimate in (first, second))
    saved = {name: other[name] - one[name] for name in one}
    won, lost = max(saved, key=lambda name: saved[name]), min(saved, key=lambda name: saved[name])
    text = (
        f"{first.step_s:.4g} s a step, the next best {second.step_s:.4g} s ({layout_text(second.layout)}): "
        f"{won} takes {saved[won]:.3g} s less"
    )
    return text if saved[lost] > -0.0005 * first.step_s else f"{text}, {lost} {-saved[lost]:.3g} s more"


def _comparable_parts(seconds: dict[str, float]) -> dict[str, float]:
    computing = sum(seconds[name] for name in COMPUTE_PARTS)
    return {"computing": computing} | {name: s for name, s in seconds.items() if name not in COMPUTE_PARTS}


def _no_layout_error(ranking: Ranking, at_most: str = "") -> NoLayoutError:
    row = int(ranking.memory.argmin())
    return _no_fit_error(ranking.problem, ranking.layout(row), float(ranking.memory[row]), at_most)


def _no_fit_error(
    problem: LayoutProblem, layout: Layout, memory_bytes: float, at_most: str = ""
) -> NoLayoutError:
    """The error of layouts on exactly the problem's devices, or on "at most " as many that divide its batch."""
    over = memory_bytes - problem.limit_bytes
    divides = f" that divides a batch of {several(problem.batch_sequences, 'sequence')}" if at_most else ""
    return NoLayoutError(
        f"no layout on {at_most}{several(problem.devices, 'device')} ({problem.cluster.device.name}){divides} fits in "
        f"memory; the closest ({layout_text(layout)}) needs {memory(over)} more than the "
        f"{memory(problem.limit_bytes)} that a plan may use"
    )


def _by_memory(problem: LayoutProblem, layouts: list[Layout], at_most: str = "") -> LayoutFit:
    """The first of the layouts that fits with at least one sequence per replica, with the largest micro-batch."""
    misses: list[tuple[float, Layout]] = []
    for layout in layouts:
        if layout.dp > problem.batch_sequences or layout.problems_of_shape(problem.model):
            continue
        needed = _memory_bytes(problem, layout)
        if needed <= problem.limit_bytes:
            return _largest_micro_batch(problem, layout)
        misses.append((needed, layout))
    if not misses:
        raise NoLayoutError(
            f"a batch of {problem.batch_sequences} sequences is too small for {problem.devices} devices"
        )
    needed, layout = min(misses, key=lambda miss: miss[0])
    raise _no_fit_error(problem, layout, needed, at_most)


def _least_parallel(problem: LayoutProblem) -> list[Layout]:
    """Layouts on exactly the problem's devices, whether or not they divide the batch."""
    devices = problem.devices
    return _ordered(
        problem,
        ((tp, pp, devices // (tp * pp)) for tp in divisors(devices) for pp in divisors(devices // tp)),
    )


def _ordered(problem: LayoutProblem, found: Iterable[tuple[int, int, int]]) -> list[Layout]:
    """Layouts of (tp, pp, dp), least model parallelism first; tensor parallelism inside a node before stages."""
    layouts = [
        Layout(
            dp=dp,
            pp=pp,
            tp=tp,
            sequence_parallel=tp > 1 and problem.model.context % tp == 0,
            micro_batch_sequences=1,
            recompute="none",
        )
        for tp, pp, dp in found
        if tp <= problem.cluster.devices_per_node
    ]
    return sorted(layouts, key=lambda layout: (layout.pp * layout.tp, layout.pp))


def _memory_bytes(problem: LayoutProblem, layout: Layout) -> float:
    batch = max(1, problem.batch_sequences // layout.dp) * layout.dp
    grid = grid_of(layout, problem.model.layers, batch)
    parts = memory_parts(problem.a, problem.engine, problem.width_bytes, grid)
    return float(sum(parts.values()))


def _largest_micro_batch(problem: LayoutProblem, layout: Layout) -> LayoutFit:
    per_replica = problem.batch_sequences // layout.dp
    best = layout, _memory_bytes(problem, layout)
    for size in divisors(per_replica):
        if per_replica // size < layout.pp:
            break
        wider = layout.model_copy(update={"micro_batch_sequences": size})
        needed = _memory_bytes(problem, wider)
        best = (wider, needed) if needed <= problem.limit_bytes else best
    return LayoutFit(*best, step_s=None)
