import gc
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from model.kernels import Kernels, registry
from model.mesh import Mesh, mesh_of
from planner.performance import cost
from planner.performance.communication import stage_traffic
from planner.performance.engine_features import OURS
from planner.performance.layout_search import compare_layouts
from runtime.commands.tools import rehearse_command
from runtime.rehearse.message_matching import mismatch, ranks_on_axis
from runtime.rehearse.step import (
    Rehearsal,
    RehearsedRank,
    rehearse,
    rehearse_rank,
    representative_ranks,
    trace_step,
)
from runtime.rehearse.tracer import Message, StepTracer
from runtime.rehearse.triton_shapes import with_triton_shapes
from specs.cluster import Cluster
from specs.document.files import from_catalog
from specs.document.write import write_yaml
from specs.layout import Layout
from specs.plan import Plan
from specs.run import Execution, RunSpec
from tests.support import forkserver, samples
from tests.support.spawn import spawn

MICRO_BATCHES = 4


@pytest.fixture(autouse=True, scope="module")
def _forkserver() -> None:
    forkserver.start()


def laid(**changes: Any) -> Layout:
    plain = {"dp": 1, "pp": 1, "tp": 1, "micro_batch_sequences": 1}
    return samples.layout(**(plain | changes))


def asked(layout: Layout, precision: str = "bf16", **model: Any) -> tuple[RunSpec, Execution]:
    """A run of four micro-batches per replica, on GPUs."""
    batch = MICRO_BATCHES * layout.dp * layout.micro_batch_sequences
    shape = samples.model(**({"layers": 4, "heads": 4, "kv_heads": 2} | model))
    run = samples.run(model=shape, optim=samples.optim(batch_sequences=batch), precision=precision)
    return run, Execution(device="cuda", layout=layout, checkpoint_interval_s=1.0)


LAYOUTS = [
    laid(dp=2),
    laid(tp=2),
    laid(tp=2, sequence_parallel=True, micro_batch_sequences=2),
    laid(pp=2, recompute="selective"),
    laid(dp=2, pp=2, tp=2, sequence_parallel=True, recompute="full"),
    laid(pp=2, tp=2, interleave=2, sequence_parallel=True),
    laid(dp=3, pp=4, stage_layers=(2, 1, 3, 3)),
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_ranks_meet(layout: Layout) -> None:
    """Every one of them, not those alone that `rehearse` takes; an uneven vocabulary."""
    run, execution = asked(layout, vocab=301, layers=sum(layout.stage_layers or (4,)))
    found = {rank: rehearse_rank(run, execution, rank, MICRO_BATCHES) for rank in range(layout.devices)}
    assert (
        mismatch(layout, {rank: (*one.forward_backward, *one.update) for rank, one in found.items()}) is None
    )
    taken = [found[rank] for rank in representative_ranks(layout)]
    assert {said(one) for one in found.values()} == {said(one) for one in taken}
    assert max(one.memory_bytes for one in found.values()) == max(one.memory_bytes for one in taken)


def said(rank: RehearsedRank) -> tuple[Any, ...]:
    """A rank's messages without the peers, who differ."""
    return tuple(message._replace(peer=-1) for message in (*rank.forward_backward, *rank.update))


def _real_steps(world: Mesh, cases: list[tuple[RunSpec, Execution]]) -> list[RehearsedRank]:
    found = []
    for run, execution in cases:
        layout = execution.layout
        mesh = mesh_of(layout.dp, layout.pp, layout.tp)
        found.append(trace_step(run, execution, mesh, "cpu", MICRO_BATCHES))
    return found


@pytest.mark.slow
def test_the_rehearsal_is_what_real_processes_do() -> None:
    """Four gloo processes on a CPU, with values: the same messages in the same order, the same bytes at the peak."""
    layouts = [
        laid(dp=2, pp=2),
        laid(dp=2, tp=2, sequence_parallel=True),
        laid(pp=2, tp=2, recompute="full"),
        laid(pp=4, recompute="selective"),
    ]
    cases = []
    for layout, precision in zip(layouts, ("fp32", "bf16", "fp32", "bf16"), strict=True):
        run, execution = asked(layout, precision=precision, vocab=301)
        cases.append((run, execution.model_copy(update={"device": "cpu"})))
    for rank, real in enumerate(spawn(4, _real_steps, cases, timeout_s=300.0)):
        for (run, execution), one in zip(cases, real, strict=True):
            assert_same(one, rehearse_rank(run, execution, rank, MICRO_BATCHES))


def assert_same(real: RehearsedRank, pretended: RehearsedRank) -> None:
    """Equal, but for scalars and a list of parameters in memory, made of numbers out of sight of one or the other.

    gloo's threads may hold an activation for a moment longer when it was sent: two, if two are under way.
    """
    assert replace(real, memory={}) == replace(pretended, memory={})
    results = [message.size_bytes for message in real.forward_backward if message.axis in ("pp", "tp")]
    late = {"activations": 2 * max(results, default=0)}
    for part, size in real.memory.items():
        assert -1024 <= size - pretended.memory[part] <= 1024 + late.get(part, 0)


# --- beside the planner's symbolic counts ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        *LAYOUTS,
        *(
            laid(tp=2, dp=2, recompute=recompute, sequence_parallel=sp)
            for recompute in ("selective", "full")
            for sp in (False, True)
        ),
        laid(pp=4, tp=2, interleave=2, sequence_parallel=True, recompute="full", micro_batch_sequences=2),
        laid(dp=3, tp=2),
        laid(pp=2),
        laid(),
    ],
    ids=str,
)
def test_traffic_is_the_planners(layout: Layout) -> None:
    """Of every stage, every collective on every axis, to the byte; replicas and vocabulary that do not divide too."""
    run, execution = asked(layout, vocab=301, layers=9, kv_heads=4)
    planned = stage_traffic(cost.architecture(run.model), OURS, 2, layout, run.optim.batch_sequences)
    assert len(planned) == layout.pp
    for stage, expected in enumerate(planned):
        one = rehearse_rank(run, execution, stage * layout.tp, MICRO_BATCHES)
        found = Rehearsal(layout, MICRO_BATCHES, MICRO_BATCHES, {}, (one,), None).volumes(one)
        assert {volume.kind: volume.moved_bytes for volume in found} == pytest.approx(expected, abs=1)


# --- kernels that need a GPU ---


@pytest.mark.slow
def test_our_triton_kernels_keep_what_the_rehearsal_says() -> None:
    """In Triton's interpreter, with values: bytes alive after each operation's two halves."""
    knobs = pytest.importorskip("triton", reason="Triton is not installed").knobs
    if not knobs.runtime.interpret:
        pytest.skip("this process has Triton's compiler")
    offers = {operation: one.find("bf16", True) for operation, (one,) in registry._triton().items()}
    ours = registry._assembled(registry._torch() | offers)
    assert kept_by(ours, "cpu") == kept_by(with_triton_shapes(registry.choose("torch", "cuda")), "meta")


def kept_by(kernels: Kernels, device: str) -> list[int]:
    """Bytes alive after forward and after backward of norm, gate and loss, results included."""

    def drawn(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)

    def now() -> int:
        gc.collect()  # the interpreter leaves circles behind
        return seen.live_bytes

    with StepTracer(Mesh()) as seen:
        x, delta, gain, gradient = drawn(6, 64), drawn(6, 64), drawn(64), drawn(64).float()
        alive = [now()]
        *_, kept = first = kernels.norm.forward(x, delta, gain, 1e-6)
        alive.append(now())
        dx = kernels.norm.backward(x, delta, kept, gain, gradient)
        alive.append(now())
        inner, kept = kernels.gate.forward(x)
        alive.append(now())
        both = kernels.gate.backward(inner, kept)
        alive.append(now())
        column_R = torch.zeros(6, dtype=torch.int64, device=device)
        found = kernels.cross_entropy.measure(x, column_R)
        alive.append(now())
        kernels.cross_entropy.differentiate(x, column_R, found, found.total, 1.0)
        alive.append(now())
        del first, dx, both
    return alive


# --- mismatched communication is found ---

SUM = Message("all_reduce", "tp", -1, 8, 4)
PAIR = laid(tp=2)
STAGES = laid(pp=2)


def transfer(what: str, peer: int, elements: int = 8) -> Message:
    return Message(what, "pp", peer, elements, 2)


@pytest.mark.parametrize(
    ("layout", "messages", "wrong"),
    [
        (PAIR, {0: [SUM], 1: [SUM]}, None),
        (PAIR, {0: [SUM], 1: [SUM._replace(elements=9)]}, "elements=9"),
        (PAIR, {0: [SUM], 1: [SUM._replace(element_bytes=2)]}, "element_bytes=2"),
        (PAIR, {0: [SUM], 1: [SUM._replace(what="all_gather")]}, "all_gather"),
        (PAIR, {0: [SUM, SUM], 1: [SUM]}, "rank 1 has no communication left"),
        (STAGES, {0: [transfer("send", 1)], 1: [transfer("receive", 0)]}, None),
        (STAGES, {0: [transfer("send", 1)], 1: [transfer("send", 0)]}, "but rank 1 is at"),
        (STAGES, {0: [transfer("send", 1)], 1: [transfer("receive", 0, 9)]}, "elements=9"),
        (STAGES, {0: [transfer("send", 1)], 1: []}, "no communication left"),
    ],
)
def test_mismatched_communication_is_found(layout: Layout, messages: Any, wrong: str | None) -> None:
    found = mismatch(layout, messages)
    assert (found is None) if wrong is None else (found is not None and wrong in found)


def test_ranks_that_wait_for_each_other_in_a_circle_are_found() -> None:
    """Three stages, each of which sends to the next before it receives: nobody is there to receive."""
    circle = {
        rank: [transfer("send", (rank + 1) % 3), transfer("receive", (rank - 1) % 3)] for rank in range(3)
    }
    assert "wait for each other" in str(mismatch(laid(pp=3), circle))


def test_members_of_an_axis_are_the_meshs() -> None:
    layout = laid(dp=2, pp=3, tp=4)
    for dp, pp, tp in itertools.product(range(2), range(3), range(4)):
        rank = (dp * 3 + pp) * 4 + tp
        assert ranks_on_axis(layout, rank, "dp")[dp] == rank
        assert ranks_on_axis(layout, rank, "pp")[pp] == rank
        assert ranks_on_axis(layout, rank, "tp")[tp] == rank
    assert ranks_on_axis(layout, 5, "world") == list(range(24))


# --- the whole, and the verb ---


@pytest.mark.slow
def test_micro_batches_are_multiplied_out() -> None:
    """A step of many micro-batches says what a rehearsal of all of them says."""
    layout = laid(dp=2, pp=2)
    run, execution = asked(layout)
    long = run.model_copy(update={"optim": samples.optim(batch_sequences=2 * 12)})
    short = rehearse(long, execution)
    assert (short.micro_batches, short.rehearsed) == (12, 4)
    ranks = tuple(rehearse_rank(long, execution, rank.rank, 12) for rank in short.ranks)
    whole = Rehearsal(layout, 12, 12, {}, ranks, None)
    for one, other in zip(short.ranks, whole.ranks, strict=True):
        assert short.volumes(one) == whole.volumes(other)
        assert one.memory == other.memory


@pytest.mark.slow
def test_the_verb(tmp_path: Path) -> None:
    write_yaml(tmp_path / "plan.yaml", samples.plan())
    done = asked_for(tmp_path / "plan.yaml")
    assert done.exit_code == 0, done.output
    assert "rehearsed 2 of 2 ranks (dp 2 x pp 1 x tp 1)" in done.output
    assert "the communication of all rehearsed ranks matches" in done.output
    said = json.loads(asked_for(tmp_path / "plan.yaml", "--json", "--rank", "1").output)
    assert [rank["rank"] for rank in said["ranks"]] == [1]
    assert said["mismatch"] is None
    for wrong in ("2", "-1", "none"):
        assert asked_for(tmp_path / "plan.yaml", "--rank", wrong).exit_code != 0


def planned_on_gpus(devices: int) -> Plan:
    """A sample's plan on so many GPUs, laid out by the planner."""
    cluster = from_catalog(Cluster, "h100-64", None)
    shape = samples.model(layers=8, width=1024, heads=8, kv_heads=8, ffn=2816, vocab=32768, context=2048)
    run = samples.run(model=shape, optim=samples.optim(batch_sequences=32), precision="bf16")
    layouts = compare_layouts(shape, cluster, devices, 32, "bf16")
    execution = Execution(device="cuda", layout=layouts.ranked[0].layout, checkpoint_interval_s=1.0)
    target = samples.plan().runs[0].model_copy(update={"run": run, "execution": execution})
    return samples.sealed(samples.plan(), runs=(target,), layouts=layouts)


@pytest.mark.slow
def test_memory_and_communication_stand_beside_the_plans(tmp_path: Path) -> None:
    write_yaml(tmp_path / "plan.yaml", planned_on_gpus(8))
    said = json.loads(asked_for(tmp_path / "plan.yaml", "--json").output)
    for rank in said["ranks"]:
        told = {f"{one['what']} {one['axis']}": one for one in rank["communication"]}
        assert told
        for one in told.values():
            moved = one["size_bytes" if one["what"] == "receive" else "sent_bytes"]
            assert moved == pytest.approx(one["planned_bytes"], abs=1)
    fullest = next(rank for rank in said["ranks"] if rank["rank"] == said["fullest_rank"])
    planned = said["planned_memory_bytes"]
    assert sum(fullest["memory_bytes"].values()) == pytest.approx(planned["all"], rel=0.02)
    assert fullest["memory_bytes"]["activations"] == pytest.approx(planned["activations"], rel=0.05)
    shown = asked_for(tmp_path / "plan.yaml", "--rank", "3").output
    assert "memory of rank 3 and of the plan's fullest device, maybe another rank, in GiB" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("reduce_scatter"))
    assert line.split()[-1] == "1.000"


@pytest.mark.slow
def test_a_small_plan_is_shown_in_small_units(tmp_path: Path) -> None:
    """Of a plan without compared layouts the sum is compared, with what its run's cost says."""
    write_yaml(tmp_path / "plan.yaml", samples.plan())
    shown = asked_for(tmp_path / "plan.yaml").output
    (line,) = (line for line in shown.splitlines() if line.startswith("all "))
    _, real, planned, ratio = line.split()
    assert float(planned.replace(",", "")) == pytest.approx(1e8 / 2**20, abs=0.01)
    assert float(ratio) == pytest.approx(float(real) / float(planned), abs=0.002)
    assert "the fullest, and of the plan's fullest device, in MiB" in shown


def test_a_rank_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    write_yaml(tmp_path / "plan.yaml", samples.plan())
    refused = asked_for(tmp_path / "plan.yaml", "--rank", "2")
    assert "the layout has no rank 2; write --rank 0 to 1" in str(refused.exception)


def asked_for(*words: object) -> Any:
    app = typer.Typer()
    app.command()(rehearse_command)
    return CliRunner().invoke(app, [str(word) for word in words])
