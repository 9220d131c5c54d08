"""Pipeline parallelism: one loop over this rank's schedule, the forward and backward passes of micro-batches.

The schedule (specs/pipeline_schedule.py) says which passes this rank computes, in which order, and where between them
it sends and receives. One process is the case without transfers. All that a forward pass saves is its input and a node
of autograd's graph: the graph is freed by its backward pass, and a result that was sent as soon as the send is done.

B sequences    S this rank's part of them    H width    T tokens and the target after the last one
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from model.mesh import Axis
from model.transformer import Stage
from model.waiting import WAITING
from specs.pipeline_schedule import Action, Transfer, forward_only, one_f_one_b, rank_schedule

_MAX_SENDS_IN_FLIGHT = 2
"""Sends in flight while the next result is computed: the one just made, and the one before it."""

ReadMicroBatch = Callable[[int], Tensor]
"""Gives the tokens of a micro-batch, (B, T). Only the first and the last stage of a pipeline call it, and all stages
where attention stays within documents."""

ReadDocumentEnds = Callable[[int], Tensor]
"""Gives a micro-batch's `Positions.ends_N`, where attention stays within documents."""

RankSchedule = Sequence[Action | list[Transfer]]
"""A rank's actions, and the transfers that start before them."""


class Pipeline:
    """This rank's stage, connected to its neighbours in the pipeline."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        connect_neighbours(stage.mesh.pp, stage.gradients.new_zeros(1), ring=len(stage.chunks) > 1)

    def train(
        self,
        sizes: Sequence[int],
        read: ReadMicroBatch,
        step_tokens: float,
        ends: ReadDocumentEnds | None = None,
    ) -> Tensor:
        """Gradient accumulation over micro-batches of `sizes` sequences; their share of the mean loss of a step.

        The share is the sum of their cross-entropies over `step_tokens`, an fp64 scalar in nats, on the last rank of
        the pipeline, and zero on the others.
        """
        return self._run(_training, sizes, read, step_tokens, ends)

    @torch.no_grad()
    def evaluate(
        self,
        sizes: Sequence[int],
        read: ReadMicroBatch,
        step_tokens: float,
        ends: ReadDocumentEnds | None = None,
    ) -> Tensor:
        """The same share of a loss, without gradients."""
        return self._run(_evaluation, sizes, read, step_tokens, ends)

    def _run(
        self,
        schedule: Callable[[int, int, int, int], RankSchedule],
        sizes: Sequence[int],
        read: ReadMicroBatch,
        step_tokens: float,
        ends: ReadDocumentEnds | None,
    ) -> Tensor:
        pp, chunks = self._stage.mesh.pp, len(self._stage.chunks)
        passes = _Passes(self._stage, sizes, read, step_tokens, ends)
        for step in schedule(pp.size, pp.rank, len(sizes), chunks):
            if isinstance(step, list):
                passes.transfer(step)
            elif step.kind == "forward":
                passes.forward(step)
            else:
                passes.backward(step)
        return passes.finish()


def connect_neighbours(axis: Axis, element: Tensor, ring: bool) -> None:
    """Exchange one element between neighbouring ranks, both ways; on a ring the last and the first are neighbours too.

    NCCL connects a pair at its first transfer: both hosts wait for each other there. Here that happens in one order on
    all ranks, so in no circle: first the pairs (0, 1), (2, 3) ..., all at once, then those between them.
    """
    pairs = [
        (at, (at + 1) % axis.size) for at in range(axis.size if ring and axis.size > 2 else axis.size - 1)
    ]
    for low, high in sorted(pairs, key=lambda pair: pair[0] % 2):
        for sender, receiver in ((low, high), (high, low)):
            if axis.rank == sender:
                dist.send(element, group=axis.group, group_dst=receiver)
            elif axis.rank == receiver:
                dist.recv(element, group=axis.group, group_src=sender)


@cache  # a run has few numbers of micro-batches: those of its steps and of its evaluations
def _training(pp: int, rank: int, micro_batches: int, chunks: int) -> RankSchedule:
    return rank_schedule([one_f_one_b(pp, each, micro_batches, chunks) for each in range(pp)], chunks, rank)


@cache
def _evaluation(pp: int, rank: int, micro_batches: int, chunks: int) -> RankSchedule:
    return rank_schedule([forward_only(pp, micro_batches, chunks)] * pp, chunks, rank)


class _Passes:
    """The forward and backward passes of one step through this rank's chunks."""

    def __init__(
        self,
        stage: Stage,
        sizes: Sequence[int],
        read: ReadMicroBatch,
        step_tokens: float,
        ends: ReadDocumentEnds | None,
    ) -> None:
        self._ends = ends
        self._stage, self._sizes, self._read, self._step_tokens = stage, sizes, read, step_tokens
        self._p2p = _PointToPoint(stage.mesh.pp)
        self._saved: dict[tuple[int, int], tuple[Tensor, GradientEdge]] = {}
        """By micro-batch and chunk, until its backward pass: the input, and the output's node in autograd's graph."""
        self._loss = torch.zeros((), dtype=torch.float64, device=stage.weights.device)

    def transfer(self, transfers: Sequence[Transfer]) -> None:
        """Start transfers."""
        self._p2p.start_transfers(transfers, self._empty)

    def forward(self, action: Action) -> None:
        """A micro-batch's forward pass through a chunk: the output is for the next chunk, or it is the loss."""
        chunk, tokens_BS = self._stage.chunks[action.chunk], None
        if chunk.first or chunk.last or self._stage.end_of_document is not None:
            rows_BT = self._read(action.micro_batch)
            tokens_BS = rows_BT[:, :-1]
        ends_N = None if self._ends is None else self._ends(action.micro_batch)
        x = rows_BT[:, :-1] if chunk.first else self._p2p.wait_received(action)
        if not chunk.first:
            x.requires_grad_(torch.is_grad_enabled())
        if chunk.last:
            y = chunk(x, rows_BT[:, 1:], self._step_tokens, tokens_BS, ends_N)
            self._loss += y.detach()
        else:
            y = chunk(x, tokens_BS=tokens_BS, ends_N=ends_N)
            self._p2p.put(action, y.detach())
        if torch.is_grad_enabled():
            self._saved[action.micro_batch, action.chunk] = x, get_gradient_edge(y)

    def backward(self, action: Action) -> None:
        """A micro-batch's backward pass through a chunk, which frees its graph."""
        chunk = self._stage.chunks[action.chunk]
        x, y = self._saved.pop((action.micro_batch, action.chunk))
        dy = None if chunk.last else self._p2p.wait_received(action)
        # of a node, not of a tensor: torch has modes of its functions leave theirs off within a tensor's backward,
        # and a recomputed attention would escape the one of runtime/rehearse/tracer.py
        torch.autograd.backward(y, dy)
        if x.grad is not None:
            self._p2p.put(action, x.grad)

    def finish(self) -> Tensor:
        """Wait for all sends; this rank's share of the loss."""
        self._p2p.finish()
        return self._loss

    def _empty(self, action: Action) -> Tensor:
        """A buffer for what an action receives: activations or their gradient."""
        shape = self._stage.boundary(self._sizes[action.micro_batch], self._stage.spec.context)
        return self._stage.weights.new_empty(shape)


class _PointToPoint:
    """This rank's sends and receives in flight, by the action that gives or takes the result.

    Each is a call of its own (isend, irecv), in the schedule's order. For these torch gives every pair of ranks an NCCL
    communicator and a stream (ProcessGroupNCCL, initialized lazily, that is without `device_id`), on which both sides
    have the same calls in the same order. What ranks group in one call (batch_isend_irecv) NCCL defines only where both
    sides group alike (NVIDIA/nccl issue 1279), and neighbours in a pipeline cannot.
    """

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self._outputs: dict[Action, Tensor] = {}
        self._sending: deque[tuple[Tensor, Any]] = deque()
        self._receiving: dict[Action, tuple[Tensor, Any]] = {}

    def put(self, action: Action, result: Tensor) -> None:
        """Store an action's result until its send starts."""
        self._outputs[action] = result

    def wait_received(self, action: Action) -> Tensor:
        """Wait for what an action receives."""
        result, handle = self._receiving.pop(action)
        with WAITING.on(self._axis.name):
            handle.wait()
        return result

    def start_transfers(self, transfers: Sequence[Transfer], empty: Callable[[Action], Tensor]) -> None:
        """Start sends and receives, in this order; wait for older sends first."""
        self._wait_sent(_MAX_SENDS_IN_FLIGHT)
        for kind, peer, action in transfers:
            if kind == "send":
                result = self._outputs.pop(action)
                handle = dist.isend(result, group=self._axis.group, group_dst=peer)
                self._sending.append((result, handle))
            else:
                buffer = empty(action)
                handle = dist.irecv(buffer, group=self._axis.group, group_src=peer)
                self._receiving[action] = buffer, handle

    def finish(self) -> None:
        """Wait for all sends."""
        self._wait_sent(0)

    def _wait_sent(self, remaining: int) -> None:
        """Wait for sends, the oldest first, and free their results, until so many remain in flight."""
        with WAITING.on(self._axis.name):
            while len(self._sending) > remaining:
                self._sending.popleft()[1].wait()
