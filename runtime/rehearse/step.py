"""Rehearse a training step of a layout at full size without a cluster: any of its ranks, on tensors without values.

A rank builds its stage and runs micro-batches, the optimizer step and the all-gather of the weights with the engine's
own code (see tracer.py). One rank of each kind is rehearsed: the first and the last tensor-parallel rank of every
stage, and one of the last data-parallel replica. Micro-batches after the pipeline's warmup and three steady ones
repeat, so their communication is multiplied.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from model.kernels import Kernels, choose
from model.mesh import Mesh
from model.pipeline_parallel import Pipeline
from model.transformer import Stage
from model.zero import AdamW
from runtime.rehearse.message_matching import mismatch
from runtime.rehearse.tracer import FlashAttentionOnMeta, Message, StepTracer, fake_mesh
from runtime.rehearse.triton_shapes import with_triton_shapes
from specs.layout import Layout
from specs.run import Execution, RunSpec

_STEADY = 3
"""Micro-batches after a pipeline's warmup: two results may still be in flight while a third is computed
(model/pipeline_parallel.py)."""


@dataclass(frozen=True)
class RehearsedRank:
    """What one rank did in the rehearsal."""

    rank: int
    dp: int
    pp: int
    tp: int
    memory: Mapping[str, int]
    """Bytes: parameters, gradients, optimizer, and the peak of the forward and backward passes (activations and all
    temporary tensors)."""
    forward_backward: tuple[Message, ...]
    """Communication of the rehearsed micro-batches."""
    update: tuple[Message, ...]
    """Communication of the rest of the step."""

    @property
    def memory_bytes(self) -> int:
        """Peak bytes in use."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Volume:
    """Communication of one kind in a rank's step."""

    what: str
    axis: str
    calls: int
    """Number of them."""
    size_bytes: int
    """Sum of their full tensors: after a gather, before a reduction or scatter."""
    sent_bytes: int
    """Bytes that the rank sends in rings: (n - 1) / n of a gather or scatter over n ranks, twice that for a sum."""

    @property
    def kind(self) -> str:
        """The communication and its axis, as a plan names its traffic."""
        return f"{self.what} {self.axis}"

    @property
    def moved_bytes(self) -> int:
        """Bytes that the rank sends, or for `receive` receives, as a plan counts them."""
        return self.size_bytes if self.what == "receive" else self.sent_bytes


@dataclass(frozen=True)
class Rehearsal:
    """The rehearsed ranks of a layout."""

    layout: Layout
    micro_batches: int
    """Of a step."""
    rehearsed: int
    """Of those, rehearsed."""
    kernels: Mapping[str, str]
    """Kernel back end of each operation."""
    ranks: tuple[RehearsedRank, ...]
    mismatch: str | None
    """Where ranks' communication does not match (see message_matching.py); None where all of it does."""

    @property
    def fullest(self) -> RehearsedRank:
        """The rank that needs the most memory."""
        return max(self.ranks, key=lambda rank: rank.memory_bytes)

    def volumes(self, rank: RehearsedRank) -> list[Volume]:
        """A rank's communication in a whole step: that of all micro-batches and of the update.

        ValueError where some of it is not the same for every micro-batch.
        """
        calls, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for message, repeats in self._repeated(rank):
            calls[message.what, message.axis] += repeats
            sizes[message.what, message.axis] += repeats * message.size_bytes
        odd = [kind for kind in calls if calls[kind] % self.rehearsed or sizes[kind] % self.rehearsed]
        if odd:
            raise ValueError(f"{' '.join(odd[0])}: its communication differs between micro-batches")
        counts = {
            kind: (calls[kind] // self.rehearsed, sizes[kind] // self.rehearsed) for kind in sorted(calls)
        }
        return [Volume(*kind, *both, self._sent(*kind, both[1])) for kind, both in counts.items()]

    def _sent(self, what: str, axis: str, size_bytes: int) -> int:
        """The part of these bytes that a rank sends."""
        if what in ("send", "receive"):
            return size_bytes if what == "send" else 0
        size = {"dp": self.layout.dp, "pp": self.layout.pp, "tp": self.layout.tp}.get(
            axis, self.layout.devices
        )
        return (2 if what == "all_reduce" else 1) * size_bytes * (size - 1) // size

    def _repeated(self, rank: RehearsedRank) -> Iterator[tuple[Message, int]]:
        """Every message with its number per step, times the rehearsed micro-batches."""
        for message in rank.forward_backward:
            repeats = self.micro_batches if message.axis in ("tp", "pp") else self.rehearsed
            yield message, repeats
        for message in rank.update:
            yield message, self.rehearsed


def rehearse(run: RunSpec, execution: Execution, only: int | None = None) -> Rehearsal:
    """Rehearse one rank of each kind, or only one; ValueError for a layout that does not fit the model and batch."""
    layout = execution.layout
    problems = layout.problems(run.model, run.optim)
    if problems:
        raise ValueError(problems[0])
    if only is not None and only >= layout.devices:
        raise ValueError(f"the layout has no rank {only}; write --rank 0 to {layout.devices - 1}")
    chosen = representative_ranks(layout) if only is None else [only]
    total = layout.micro_batches(run.optim)
    few = _rehearsed_micro_batches(layout, total)
    ranks = tuple(_rehearse_all(run, execution, chosen, few))
    kernels = kernels_of(execution).describe()
    wrong = mismatch(layout, {rank.rank: (*rank.forward_backward, *rank.update) for rank in ranks})
    return Rehearsal(layout, total, few, kernels, ranks, wrong)


def _rehearse_all(
    run: RunSpec, execution: Execution, ranks: list[int], micro_batches: int
) -> list[RehearsedRank]:
    """Rehearse these ranks, in parallel on all cores."""
    cores = min(len(ranks), len(os.sched_getaffinity(0)))
    if cores == 1:
        return [rehearse_rank(run, execution, rank, micro_batches) for rank in ranks]
    several = len(ranks)
    context = get_context("forkserver")  # torch is imported once for all, and forked before it has threads
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(cores, mp_context=context) as pool:
        return list(
            pool.map(rehearse_rank, [run] * several, [execution] * several, ranks, [micro_batches] * several)
        )


def kernels_of(execution: Execution) -> Kernels:
    """The kernels of an execution; those of Triton are replaced by ones that allocate the same memory."""
    plain = choose("torch", execution.device)
    fused = execution.device == "cuda" and execution.kernels in ("auto", "triton")
    return with_triton_shapes(plain) if fused else plain


def representative_ranks(layout: Layout) -> list[int]:
    """The first and the last tensor-parallel rank of every stage, and the first rank of the last replica."""
    edges = {stage * layout.tp + tp for stage in range(layout.pp) for tp in (0, layout.tp - 1)}
    return sorted(edges | {(layout.dp - 1) * layout.pp * layout.tp})


def _rehearsed_micro_batches(layout: Layout, total: int) -> int:
    """Micro-batches to rehearse: warmup and `_STEADY` more; for interleaved schedules a multiple of the stages."""
    return min(total, 2 * layout.pp if layout.interleave > 1 else layout.pp - 1 + _STEADY)


def rehearse_rank(run: RunSpec, execution: Execution, rank: int, micro_batches: int) -> RehearsedRank:
    """Rehearse one rank in this process: a step with this many micro-batches, on tensors without values."""
    torch.set_num_threads(1)
    with fake_mesh(execution.layout, rank) as mesh:
        return trace_step(run, execution, mesh, "meta", micro_batches)


def trace_step(
    run: RunSpec, execution: Execution, mesh: Mesh, device: str, micro_batches: int
) -> RehearsedRank:
    """Trace a rank's step with this many micro-batches, from zero weights and tokens."""
    layout, model = execution.layout, run.model
    with StepTracer(mesh) as tracer, FlashAttentionOnMeta():
        stage = Stage(
            model,
            precision=run.precision,
            mesh=mesh,
            kernels=kernels_of(execution),
            device=device,
            layout=layout,
            end_of_document=0 if run.documents == "masked" else None,
        )
        stage.weights.zero_()
        pipeline = Pipeline(stage)
        before = tracer.live_bytes
        optimizer = AdamW(stage, mesh.dp, run.optim)
        memory = {
            "parameters": stage.weights.nbytes,
            "gradients": stage.gradients.nbytes,
            "optimizer": tracer.live_bytes - before,
        }
        shape = (layout.micro_batch_sequences, model.context + 1)
        rows_BT = torch.zeros(shape, dtype=torch.int64, device=device)
        held_bytes = tracer.live_bytes
        optimizer.sync_parameters()  # as after the previous step: the all-gather of the parameters is in flight
        tracer.reset()
        optimizer.start_accumulation(micro_batches)
        pipeline.train([len(rows_BT)] * micro_batches, lambda _: rows_BT, run.batch_tokens)
        forward_backward, tracer.messages = tuple(tracer.messages), []
        optimizer.step(run.optim.peak_lr)
        memory["activations"] = tracer.peak_bytes - held_bytes
        places = (mesh.world.rank, mesh.dp.rank, mesh.pp.rank, mesh.tp.rank)
        return RehearsedRank(*places, memory, forward_backward, tuple(tracer.messages))
