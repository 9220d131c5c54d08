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

from model.kernels import Kernels, door
from model.mesh import Mesh, mesh_of
from planner import cost
from runtime.footprint import as_on_gpu
from runtime.partners import members_of, mismatch
from runtime.recorder import Message, Recorder
from runtime.rehearse import Rank, Rehearsal, different_ranks, go_through, rehearse, rehearse_rank
from runtime.verbs import rehearse_command
from specs.files import write_yaml
from specs.layout import Layout
from specs.run import Execution, RunSpec
from tests import samples
from tests.spawn import spawn

MICRO_BATCHES = 4


def laid(**changes: Any) -> Layout:
    plain = {"dp": 1, "pp": 1, "tp": 1, "micro_batch_sequences": 1}
    return samples.layout(**(plain | changes))


def asked(layout: Layout, precision: str = "bf16", **model: Any) -> tuple[RunSpec, Execution]:
    """A run of four micro-batches per replica, on GPUs."""
    batch = MICRO_BATCHES * layout.dp * layout.micro_batch_sequences
    shape = samples.model(**({"layers": 4, "heads": 4, "kv_heads": 2} | model))
    run = samples.run(model=shape, optim=samples.optim(batch_sequences=batch), precision=precision)
    return run, Execution(device="cuda", layout=layout, checkpoint_every_s=1.0)


def alone(layout: Layout, rank: int, **options: Any) -> Rehearsal:
    """One rank, in this process."""
    one = rehearse_rank(*asked(layout, **options), rank, MICRO_BATCHES)
    return Rehearsal(layout, MICRO_BATCHES, MICRO_BATCHES, {}, (one,), None)


def sent(rehearsal: Rehearsal, axis: str) -> dict[str, int]:
    """Bytes that its rank sends on an axis, by what."""
    found = rehearsal.volumes(rehearsal.ranks[0])
    return {volume.what: volume.sent_bytes for volume in found if volume.axis == axis}


LAYOUTS = [
    laid(dp=2),
    laid(tp=2),
    laid(tp=2, sequence_parallel=True, micro_batch_sequences=2),
    laid(pp=2, recompute="selective"),
    laid(dp=2, pp=2, tp=2, sequence_parallel=True, recompute="full"),
    laid(pp=2, tp=2, interleave=2, sequence_parallel=True),
    laid(dp=3, pp=4, stage_layers=(2, 1, 1, 1)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_ranks_meet(layout: Layout) -> None:
    """Every one of them, not those alone that `rehearse` takes; an uneven vocabulary."""
    run, execution = asked(layout, vocab=301, layers=sum(layout.stage_layers or (4,)))
    found = {rank: rehearse_rank(run, execution, rank, MICRO_BATCHES) for rank in range(layout.devices)}
    assert mismatch(layout, {rank: (*one.passes, *one.update) for rank, one in found.items()}) is None
    taken = [found[rank] for rank in different_ranks(layout)]
    assert {said(one) for one in found.values()} == {said(one) for one in taken}
    assert max(one.memory_bytes for one in found.values()) == max(one.memory_bytes for one in taken)


def said(rank: Rank) -> tuple[Any, ...]:
    """A rank's messages without the peers, who differ."""
    return tuple(message._replace(peer=-1) for message in (*rank.passes, *rank.update))


def _real_steps(world: Mesh, cases: list[tuple[RunSpec, Execution]]) -> list[Rank]:
    found = []
    for run, execution in cases:
        layout = execution.layout
        mesh = mesh_of(layout.dp, layout.pp, layout.tp)
        found.append(go_through(run, execution, mesh, "cpu", MICRO_BATCHES))
    return found


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


def assert_same(real: Rank, pretended: Rank) -> None:
    """Equal, but for scalars and a list of parameters in memory, made of numbers out of sight of one or the other.

    gloo's threads may hold an activation for a moment longer when it was sent: two, if two are under way.
    """
    assert replace(real, memory={}) == replace(pretended, memory={})
    results = [message.size_bytes for message in real.passes if message.axis in ("pp", "tp")]
    late = {"passes": 2 * max(results, default=0)}
    for part, size in real.memory.items():
        assert -1024 <= size - pretended.memory[part] <= 1024 + late.get(part, 0)


# --- beside the planner's symbolic counts ---


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("tp", [2, 4])
def test_a_blocks_tensor_parallel_traffic_is_the_planners(
    tp: int, recompute: str, sequence_parallel: bool
) -> None:
    layout = laid(
        dp=2, tp=tp, sequence_parallel=sequence_parallel, recompute=recompute, micro_batch_sequences=2
    )
    shape = {"heads": 4, "kv_heads": 4}
    more, less = (sent(alone(layout, 0, layers=layers, **shape), "tp") for layers in (3, 2))
    difference = sum(more.values()) - sum(less.values())
    run, _ = asked(layout, **shape)
    a, rows = cost.architecture(run.model), 2 * run.model.context
    replays = int(recompute == "full")
    expected = cost.tensor_parallel_bytes(a, rows, tp, int(sequence_parallel), 2, replays)
    gains = 2 * cost.gather_bytes(2 * run.model.width * 4, tp) if sequence_parallel else 0
    assert difference == MICRO_BATCHES * expected + gains


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("interleave", [1, 2])
def test_a_boundarys_traffic_is_the_planners(interleave: int, sequence_parallel: bool) -> None:
    layout = laid(pp=2, tp=2, interleave=interleave, sequence_parallel=sequence_parallel)
    run, _ = asked(layout)
    one = cost.stage_boundary_bytes(
        cost.architecture(run.model), run.model.context, 2, int(sequence_parallel), 2
    )
    for rank in range(4):
        boundaries = (
            2 * interleave - 1
        )  # of both directions: each chunk has one more neighbour, but one end has none
        expected = {"receive": 0, "send": MICRO_BATCHES * boundaries * one}
        assert sent(alone(layout, rank), "pp") == expected


@pytest.mark.parametrize("dp", [2, 4])
def test_what_replicas_exchange_is_the_planners(dp: int) -> None:
    """Rows are multiples of dp here, so that no padding travels."""
    for rank in (0, 1):
        found = alone(laid(dp=dp, pp=2), rank)
        params = found.ranks[0].memory["parameters"] / 2
        assert sum(sent(found, "dp").values()) == cost.zero_bytes(params, dp, 4, 2)


# --- kernels that need a GPU ---


def test_our_triton_kernels_keep_what_the_rehearsal_says() -> None:
    """In Triton's interpreter, with values: bytes alive after each operation's two halves."""
    knobs = pytest.importorskip("triton", reason="Triton is not installed").knobs
    if not knobs.runtime.interpret:
        pytest.skip("this process has Triton's compiler")
    ours = door._assembled(door._torch() | door._triton("cpu", "bf16", True))
    assert kept_by(ours, "cpu") == kept_by(as_on_gpu(door.choose("torch", "cuda")), "meta")


def kept_by(kernels: Kernels, device: str) -> list[int]:
    """Bytes alive after forward and after backward of norm, gate and loss, results included."""

    def drawn(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)

    def now() -> int:
        gc.collect()  # the interpreter leaves circles behind
        return seen.live_bytes

    with Recorder(Mesh()) as seen:
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


# --- what does not meet is said ---

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
        (PAIR, {0: [SUM, SUM], 1: [SUM]}, "rank 1 has nothing more to say"),
        (STAGES, {0: [transfer("send", 1)], 1: [transfer("receive", 0)]}, None),
        (STAGES, {0: [transfer("send", 1)], 1: [transfer("send", 0)]}, "where rank 1 is at"),
        (STAGES, {0: [transfer("send", 1)], 1: [transfer("receive", 0, 9)]}, "elements=9"),
        (STAGES, {0: [transfer("send", 1)], 1: []}, "nothing more to say"),
    ],
)
def test_what_does_not_meet_is_said(layout: Layout, messages: Any, wrong: str | None) -> None:
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
        assert members_of(layout, rank, "dp")[dp] == rank
        assert members_of(layout, rank, "pp")[pp] == rank
        assert members_of(layout, rank, "tp")[tp] == rank
    assert members_of(layout, 5, "world") == list(range(24))


# --- the whole, and the verb ---


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


def test_the_verb(tmp_path: Path) -> None:
    write_yaml(tmp_path / "plan.yaml", samples.plan())
    done = asked_for(tmp_path / "plan.yaml")
    assert done.exit_code == 0, done.output
    assert "rehearsed 2 of 2 ranks (dp 2 x pp 1 x tp 1)" in done.output
    assert "every communication meets its partners" in done.output
    said = json.loads(asked_for(tmp_path / "plan.yaml", "--json", "--rank", "1").output)
    assert [rank["rank"] for rank in said["ranks"]] == [1]
    assert said["mismatch"] is None
    for wrong in ("2", "-1", "none"):
        assert asked_for(tmp_path / "plan.yaml", "--rank", wrong).exit_code != 0


def asked_for(*words: object) -> Any:
    app = typer.Typer()
    app.command()(rehearse_command)
    return CliRunner().invoke(app, [str(word) for word in words])
