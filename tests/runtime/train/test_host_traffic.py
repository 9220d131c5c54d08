"""What a step costs a GPU's queue: where the host waits for the device, and what it copies there.

On torch's meta device, whose tensors have no values: what would need one is recorded.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.data.batches import RunData, Splits
from runtime.rehearse.tracer import FlashAttentionOnMeta, fake_mesh
from runtime.train.process import collecting_between_steps
from runtime.train.worker import RankWorker, evaluated_at_once
from specs.data import CorpusRef
from specs.layout import Layout
from specs.run import RunSpec
from tests.support import samples, training

aten = torch.ops.aten
CORPUS = CorpusRef(corpus="0123456789abcdef", digest="5" * 64)
_DEPENDS_ON_VALUES = {aten.nonzero, aten.masked_select, aten._unique2, aten.repeat_interleave}
"""The size of their result is a value: a GPU is waited for."""


class HostTraffic(TorchDispatchMode):
    """Records waits for the device, and copies to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []
        self.copies: list[int] = []
        """Bytes of each copy from the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            self.waits.append(str(func))
            return 1.0
        if func is aten._assert_async.msg and args[0].is_meta:
            return None
        if func.overloadpacket in _DEPENDS_ON_VALUES and args[0].is_meta:
            self.waits.append(str(func))
        if func is aten._to_copy.default:
            to_meta = torch.device(named.get("device") or args[0].device).type == "meta"
            self._copied(args[0], args[0].is_meta, to_meta, bool(named.get("non_blocking")))
            if args[0].is_meta and not to_meta:
                return torch.zeros(args[0].shape, dtype=named.get("dtype") or args[0].dtype)
        if func is aten.copy_.default:
            self._copied(args[1], args[1].is_meta, args[0].is_meta, len(args) > 2 and bool(args[2]))
        return func(*args, **named)

    def _copied(self, x: Tensor, from_meta: bool, to_meta: bool, non_blocking: bool) -> None:
        if from_meta == to_meta:
            return
        if to_meta:
            self.copies.append(x.nbytes)
        if from_meta or not non_blocking:
            self.waits.append("copy")


@contextmanager
def on_meta(
    run: RunSpec, layout: Layout, rank: int = 0, end_of_document: int | None = None
) -> Iterator[RankWorker]:
    """A rank's worker whose device is torch's meta device."""
    execution = training.order(run).execution.model_copy(update={"device": "meta", "layout": layout})
    tokens = np.arange(4000, dtype=np.uint8)
    splits = {"": Splits(tokens, tokens)}
    with fake_mesh(layout, rank) as mesh, FlashAttentionOnMeta():
        with HostTraffic():
            worker = RankWorker(run, execution, mesh, RunData(run, splits, end_of_document))
        yield worker


def one_step(worker: RankWorker) -> HostTraffic:
    """A step as runtime/train/loop.py has it."""
    with HostTraffic() as traffic:
        loss_share = worker.accumulate_gradients(1, ())
        worker.all_reduce_sum([loss_share, False, True, 0.0, 0.0])
        worker.optimizer.apply(0.1, worker.optimizer.reduce_gradients())
    return traffic


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "rank"),
    [({}, 0), ({"dp": 2}, 1), ({"pp": 2}, 0), ({"pp": 2}, 1), ({"tp": 2, "sequence_parallel": True}, 0)],
    ids=str,
)
def test_no_micro_batch_waits_for_the_gpu_and_a_step_does_so_twice(cut: dict[str, Any], rank: int) -> None:
    found = []
    for micro_batches in (2, 6):
        layout = samples.layout(**({"dp": 1, "micro_batch_sequences": 1} | cut))
        optim = samples.optim(batch_sequences=micro_batches * layout.dp)
        run = training.tiny_run(
            CORPUS, model=samples.model(layers=2, heads=2, kv_heads=2, context=32), optim=optim
        )
        with on_meta(run, layout, rank) as worker:
            found.append((one_step(worker), micro_batches * 33 * 8))
    for traffic, rows_bytes in found:
        assert len(traffic.waits) == 2, (
            traffic.waits
        )  # the loss with all that is agreed on, and the gradient's norm
        scalars = [] if layout.devices == 1 else [5 * 8]
        assert sorted(traffic.copies) == sorted([rows_bytes, *scalars])


def test_masked_documents_cost_one_copy_more_and_no_wait() -> None:
    model = samples.model(layers=2, heads=2, kv_heads=2, context=32, mean_attended_tokens=20.0)
    run = training.tiny_run(CORPUS, model=model, documents="masked")
    with on_meta(run, samples.layout(dp=1, micro_batch_sequences=2), end_of_document=7) as worker:
        step = one_step(worker)
        with HostTraffic() as evaluation:
            worker.evaluate(9)
    assert len(step.waits) == 2, step.waits
    assert len(step.copies) == 2
    assert len(evaluation.waits) == 1, evaluation.waits


def test_an_evaluation_waits_once_at_its_end() -> None:
    run = training.tiny_run(CORPUS)
    with (
        on_meta(run, samples.layout(dp=1, micro_batch_sequences=2)) as worker,
        HostTraffic() as traffic,
    ):
        worker.evaluate(9)
    assert len(traffic.waits) == 1, traffic.waits


def test_an_evaluations_batch_suits_its_device_and_needs_no_more_memory_than_training() -> None:
    model = samples.model(layers=24, width=2048, heads=16, kv_heads=16, ffn=5504, vocab=32000, context=2048)
    run = samples.run(model=model, optim=samples.optim(batch_sequences=512))

    def at_once(device: str, **cut: Any) -> int:
        return evaluated_at_once(run, samples.layout(**({"dp": 1} | cut)), device)

    assert at_once("cpu", micro_batch_sequences=1) == 2  # 4096 tokens
    assert at_once("cuda", micro_batch_sequences=4) == 16  # 32768 tokens
    assert at_once("cuda", micro_batch_sequences=1) < 16
    assert at_once("cuda", micro_batch_sequences=1, recompute="full") == 1
    assert at_once("cuda", micro_batch_sequences=2, recompute="full", pp=8) == 2
    assert at_once("cuda", micro_batch_sequences=32) == 32  # training holds more


def test_a_step_leaves_no_tensors_to_the_garbage_collector() -> None:
    """It is asked every fifty steps only: what waits for it would fill the memory meanwhile."""
    layout = samples.layout(dp=1, micro_batch_sequences=2)
    with on_meta(training.tiny_run(CORPUS), layout) as worker:
        one_step(worker)
        gc.collect()
        with collecting_between_steps():
            one_step(worker)
            with HostTraffic():
                worker.evaluate(9)
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                gc.collect()
                assert not [one for one in gc.garbage if isinstance(one, Tensor)]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()


def test_nothing_is_collected_between_steps() -> None:
    before = gc.get_freeze_count()
    with collecting_between_steps():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > before
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
