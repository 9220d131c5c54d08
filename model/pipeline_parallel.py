"""One loop that carries out a list of work: micro-batches through the virtual stages of a pipeline, there and back.

The list (specs/pipeline_schedule.py) says what this rank computes, in which order, and where between its works it
sends and receives. One process is the case without transfers. What a forward leaves for its backward is a node of
autograd's graph: the graph dies in that backward, and a result that was sent dies as soon as the neighbour has it.

B sequences    S this rank's part of them    H width    T tokens and the target after the last one
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from model.collectives import sum_over
from model.mesh import Axis
from model.transformer import Stage
from specs.pipeline_schedule import Transfer, Work, forward_only, one_f_one_b, script

_SENT_AT_ONCE = 2
"""Results that may be under way while the next is computed: the one just made, and the one before it."""

Read = Callable[[int], Tensor]
"""Gives the tokens of a micro-batch, (B, T). The ends of a pipeline ask for them, what lies between does not."""

Steps = Sequence[Work | list[Transfer]]
"""A rank's works and its batches of transfers."""

_STARTS = {"send": dist.isend, "receive": dist.irecv}


class Pipeline:
    """This rank's stage, linked to its neighbours."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        sum_over(
            stage.gradients.new_zeros(1), stage.mesh.pp
        )  # NCCL wants all ranks at its first transfer of a group

    def train(self, sizes: Sequence[int], read: Read, step_tokens: int) -> Tensor:
        """Add up the gradients of micro-batches of `sizes` sequences; their share of the mean loss of a step.

        The share is the sum of their cross-entropies over `step_tokens`, an fp64 scalar in nats, on the last rank of
        the pipeline, and zero on the others.
        """
        pp, chunks = self._stage.mesh.pp, len(self._stage.chunks)
        return self._carry_out(_training(pp.size, pp.rank, len(sizes), chunks), sizes, read, step_tokens)

    @torch.no_grad()
    def evaluate(self, sizes: Sequence[int], read: Read, step_tokens: int) -> Tensor:
        """The same share of a loss, without gradients."""
        pp, chunks = self._stage.mesh.pp, len(self._stage.chunks)
        return self._carry_out(_evaluation(pp.size, pp.rank, len(sizes), chunks), sizes, read, step_tokens)

    def _carry_out(self, steps: Steps, sizes: Sequence[int], read: Read, step_tokens: int) -> Tensor:
        passes = _Passes(self._stage, sizes, read, step_tokens)
        for step in steps:
            if isinstance(step, list):
                passes.exchange(step)
            elif step.kind == "forward":
                passes.forward(step)
            else:
                passes.backward(step)
        return passes.finish()


@cache  # a run has few numbers of micro-batches: those of its steps and of its evaluations
def _training(pp: int, rank: int, micro_batches: int, chunks: int) -> Steps:
    return script([one_f_one_b(pp, each, micro_batches, chunks) for each in range(pp)], chunks, rank)


@cache
def _evaluation(pp: int, rank: int, micro_batches: int, chunks: int) -> Steps:
    return script([forward_only(pp, micro_batches, chunks)] * pp, chunks, rank)


class _Passes:
    """The passes of one step over this rank's chunks: what came for them, what they keep, what they send."""

    def __init__(self, stage: Stage, sizes: Sequence[int], read: Read, step_tokens: int) -> None:
        self._stage, self._sizes, self._read, self._step_tokens = stage, sizes, read, step_tokens
        self._links = _Links(stage.mesh.pp)
        self._kept: dict[tuple[int, int], tuple[Tensor, GradientEdge]] = {}
        """Of forwards whose backward is to come: what went in, and the node of what came out."""
        self._loss = torch.zeros((), dtype=torch.float64, device=stage.weights.device)

    def exchange(self, batch: Sequence[Transfer]) -> None:
        """Start the transfers of a batch."""
        self._links.start(batch, self._empty)

    def forward(self, work: Work) -> None:
        """Take a micro-batch through a chunk; what comes out is for the next chunk, or it is the loss."""
        chunk = self._stage.chunks[work.chunk]
        if chunk.first or chunk.last:
            rows_BT = self._read(work.micro_batch)
        x = rows_BT[:, :-1] if chunk.first else self._links.take(work)
        if not chunk.first:
            x.requires_grad_(torch.is_grad_enabled())
        if chunk.last:
            y = chunk(x, rows_BT[:, 1:], self._step_tokens)
            self._loss += y.detach()
        else:
            y = chunk(x)
            self._links.offer(work, y.detach())
        if torch.is_grad_enabled():
            self._kept[work.micro_batch, work.chunk] = x, get_gradient_edge(y)

    def backward(self, work: Work) -> None:
        """Take a gradient back through a chunk, whose graph is spent by that."""
        chunk = self._stage.chunks[work.chunk]
        x, y = self._kept.pop((work.micro_batch, work.chunk))
        dy = None if chunk.last else self._links.take(work)
        # of a node, not of a tensor: torch has modes of its functions leave theirs off within a tensor's backward,
        # and a recomputed attention would escape the one of runtime/rehearse/tracer.py
        torch.autograd.backward(y, dy)
        if x.grad is not None:
            self._links.offer(work, x.grad)

    def finish(self) -> Tensor:
        """Wait until the neighbours have everything; this rank's share of the loss."""
        self._links.finish()
        return self._loss

    def _empty(self, work: Work) -> Tensor:
        """Room for what a work takes in: activations or their gradient."""
        shape = self._stage.boundary(self._sizes[work.micro_batch], self._stage.spec.context)
        return self._stage.weights.new_empty(shape)


class _Links:
    """This rank's transfers under way: each result is known by the work that it comes from or goes into."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self._made: dict[Work, Tensor] = {}
        self._leaving: deque[tuple[Tensor, list[dist.Work]]] = deque()
        self._coming: dict[Work, tuple[Tensor, list[dist.Work]]] = {}

    def offer(self, work: Work, result: Tensor) -> None:
        """Have a work's result ready to be sent."""
        self._made[work] = result

    def take(self, work: Work) -> Tensor:
        """What has come for a work, once it is here."""
        result, handles = self._coming.pop(work)
        for handle in handles:
            handle.wait()
        return result

    def start(self, batch: Sequence[Transfer], empty: Callable[[Work], Tensor]) -> None:
        """Start sending and receiving, all at once; earlier results are let go."""
        self._let_go(_SENT_AT_ONCE)
        held = [self._made.pop(work) if kind == "send" else empty(work) for kind, _, work in batch]
        operations = [
            dist.P2POp(_STARTS[one.kind], tensor, group=self._axis.group, group_peer=one.peer)
            for one, tensor in zip(batch, held, strict=True)
        ]
        handles = dist.batch_isend_irecv(operations)
        for place, (one, tensor) in enumerate(zip(batch, held, strict=True)):
            # gloo has a handle of each transfer, NCCL one of the whole batch
            own = handles[place : place + 1] if len(handles) == len(batch) else handles
            if one.kind == "send":
                self._leaving.append((tensor, own))
            else:
                self._coming[one.work] = tensor, own

    def finish(self) -> None:
        """Wait for what is still under way."""
        self._let_go(0)

    def _let_go(self, remaining: int) -> None:
        """Drop what was sent, the oldest first, until so many results are left."""
        while len(self._leaving) > remaining:
            for handle in self._leaving.popleft()[1]:
                handle.wait()
