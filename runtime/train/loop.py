"""The training loop: `python -m runtime.train.loop RUN_FOLDER --data DATA_ROOT`, once per rank, read top to bottom.

New, killed and requeued processes all do the same: open the run folder and resume from the latest intact checkpoint.
With fewer ranks than planned, the run takes the largest fallback layout that fits; ranks that it does not use exit.
Exit status: 0 the run is finished; 75 it stopped on a signal and is saved, start it again to resume; otherwise it
failed: 2 for bad input, 65 where another start would fail in the same way.
"""

import argparse
import gc
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.checkpoint.imported_weights import check_imported_weights
from runtime.data.batches import DataError, RunData, Splits
from runtime.data.corpus import load_sources, tokens
from runtime.data.errors import CorpusError
from runtime.run_folder.folder import RunFolder
from runtime.train.environment import prepare_gpu_rank
from runtime.train.process import RankInfo, StopRequest, collecting_between_steps, end_process
from runtime.train.run_logger import RunLogger, SegmentStart, open_run_logger
from specs.document.files import DocumentError
from specs.exit_codes import BAD_INPUT, FAILED, NO_RETRY, OK, RESUME
from specs.humanize import several
from specs.record import Order, SkippedRange
from specs.run import Execution, Parent, RunSpec
from specs.sources import Sources

if TYPE_CHECKING:
    from runtime.train.async_checkpoint import AsyncCheckpointer
    from runtime.train.resume import ResumeState
    from runtime.train.watchdog import Watchdog
    from runtime.train.worker import RankWorker

_STEPS_BETWEEN_COLLECTIONS = 50
"""As torchtitan's default, `gc_freq`. A step leaves no tensors to the garbage collector."""
_MAX_ROLLBACKS = 3
"""Rollbacks to the same checkpoint after which the run counts as diverged: our choice."""

_AFTER_WATCHDOG_S = 120.0
"""How much longer: the watchdog names the rank that hangs (it takes up to 70 s), a collective's timeout only ends the
run where the watchdog cannot."""


class RunError(ValueError):
    """A run that cannot start or continue: why, and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train one rank of a run folder; the exit status."""
    stop = StopRequest()
    stop.listen()  # before torch is imported: that takes seconds, in which a signal would just kill
    parser = argparse.ArgumentParser(prog="python -m runtime.train.loop", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="runs/<fingerprint>")
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    arguments = parser.parse_args(argv)
    return train_rank(RunFolder(arguments.folder), arguments.data, RankInfo.of(os.environ), stop)


def train_rank(folder: RunFolder, data: Path, rank_info: RankInfo, stop: StopRequest) -> int:
    """As `train`, with errors as exit statuses too; an expected error is printed as one line."""
    try:
        return train(folder, data, rank_info, stop)
    except RunError as error:
        print(f"RunError: {error}", file=sys.stderr, flush=True)
        return NO_RETRY
    except OSError as error:  # a full or unreachable disk, say: the line says enough
        print(f"OSError: {error}", file=sys.stderr, flush=True)
        return FAILED
    except (DocumentError, CorpusError, DataError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return FAILED if isinstance(error.__context__, OSError) else BAD_INPUT
    except Exception:
        traceback.print_exc()
        return FAILED


def train(folder: RunFolder, data: Path, rank_info: RankInfo, stop: StopRequest) -> int:
    """Train this rank's part of the run, resuming where it was; the exit status."""
    if folder.end() is not None:
        return OK
    run, order = folder.run(), _layout_for_ranks(folder.order(), rank_info)
    devices = order.execution.layout.devices
    if rank_info.rank >= devices:
        print(
            f"rank {rank_info.rank} of {rank_info.world_size} exits: the layout uses {several(devices, 'rank')}",
            flush=True,
        )
        return OK
    sources = load_sources(data, run.data.corpus)
    _check_run(run, order, sources)
    check_imported_weights(run, data)
    splits = {
        name: Splits(tokens(data, corpus, "train"), tokens(data, corpus, "held_out"))
        for name, corpus in sources.corpora.items()
    }
    end_of_document = sources.any.end_of_document if run.documents == "masked" else None
    run_data = RunData(run, splits, end_of_document)
    run_data.check_size()

    if order.execution.device == "cuda":
        prepare_gpu_rank(order.execution.layout, folder.path)
    # These import torch: after the signal handlers, and after all that can be refused without it.
    from runtime.train.async_checkpoint import AsyncCheckpointer
    from runtime.train.worker import gpu_count, join_process_group

    host = socket.gethostname()
    if order.execution.device == "cuda" and not gpu_count():
        raise OSError(
            f"the run needs GPUs, but torch finds none on {host}; check the driver and the job's GPUs"
        )
    if devices > 1:  # a rank that hangs before the first step is the one whose log lacks this line
        here = f"process {os.getpid()} on {host}"
        print(f"rank {rank_info.rank} of {devices}, {here}: joins the process group", flush=True)
    with join_process_group(run, order.execution, rank_info.rank, rank_info.local_rank, run_data) as worker:
        checkpointer = AsyncCheckpointer(folder.checkpoints, worker, order.execution.retention)
        while True:
            status = _train_segment(folder, run, order, worker, checkpointer, data, stop)
            if status is not None:
                return status


def _train_segment(
    folder: RunFolder,
    run: RunSpec,
    order: Order,
    worker: "RankWorker",
    checkpointer: "AsyncCheckpointer",
    data: Path,
    stop: StopRequest,
) -> int | None:
    """Train from the latest checkpoint; the exit status, or None after a rollback, when training must resume again."""
    from model.mesh import START_TIMEOUT_S
    from runtime.train.resume import resume_from_latest
    from runtime.train.watchdog import Watchdog

    worker.set_timeout(START_TIMEOUT_S)
    resumed = resume_from_latest(worker, run, folder, data)
    start = SegmentStart(0 if worker.is_rank_zero else 1, resumed.step, worker.kernels, worker.devices)
    limit_s, rank = order.execution.hang_timeout_s, worker.world.rank
    watchdog = Watchdog(folder, rank, worker.hosts, limit_s, lambda: worker.signs_of_life)
    with open_run_logger(folder, run, order, start) as logger:
        for problem in resumed.damaged.values():
            logger.incident("damaged_checkpoint", resumed.step, problem)
        checkpointer.damaged = set(resumed.damaged)
        try:
            with collecting_between_steps():
                return _train_steps(
                    folder, run, order.execution, worker, checkpointer, logger, watchdog, resumed, stop
                )
        finally:
            watchdog.close()
            checkpointer.wait()


def _train_steps(
    folder: RunFolder,
    run: RunSpec,
    execution: Execution,
    worker: "RankWorker",
    checkpointer: "AsyncCheckpointer",
    logger: RunLogger,
    watchdog: "Watchdog",
    resumed: "ResumeState",
    stop: StopRequest,
) -> int | None:
    """The remaining steps, until the last one, a stop request or a rollback."""
    from runtime.train.profiler import StepProfiler
    from runtime.train.rank_times import RankTimes
    from runtime.train.resume import manifest_of, skip_after_rollback
    from runtime.train.spike_guard import SpikeGuard

    steps, evaluation = run.optim.steps, run.evaluation
    guard, held_out_loss = SpikeGuard(run.guard, resumed.guard), resumed.loss
    times, profiler = RankTimes(worker), StepProfiler(folder, execution.profile, worker)
    saved_s = time.monotonic()
    if resumed.step < steps and any(worker.all_reduce_sum([stop.requested])):
        return RESUME
    for step in range(resumed.step + 1, steps + 1):
        times.begin(step)
        profiler.begin(step)

        # Gradient accumulation over the step's micro-batches.
        lr, began_s = run.optim.lr(step), time.monotonic()
        loss_share = worker.accumulate_gradients(step, resumed.skipped)

        # One all-reduce makes all ranks agree: on the loss, a stop request, a due checkpoint, a write's progress.
        save_due = checkpointer.idle and time.monotonic() - saved_s >= execution.checkpoint_interval_s
        due = [worker.is_rank_zero and save_due, worker.is_rank_zero and times.due]
        loss, stop_requested, save_now, times_due, *progress = worker.all_reduce_sum(
            [loss_share, stop.requested, *due, *checkpointer.progress()]
        )
        if problem := checkpointer.advance(*progress):
            logger.incident("unsaved_checkpoint", step - 1, problem)

        # Apply the step, or reject it at a loss spike; after too many rejected in a row, roll back.
        grad_norm = worker.optimizer.reduce_gradients()
        reject_reason = guard.reject_reason(loss, grad_norm)
        if run.guard is None:
            values = {"loss": loss, "gradient norm": grad_norm, "learning rate": lr}
            _fail_if_not_finite(logger, step, values)
        if reject_reason:
            worker.optimizer.reject()
            logger.incident("rejected_step", step, f"step {step} was rejected: {reject_reason}")
        else:
            worker.optimizer.apply(lr, grad_norm)
        logger.step(step, loss, grad_norm, lr, applied=not reject_reason)

        # What the step took on each rank.
        times.end()
        profiler.end(step)
        watchdog.step(step)
        if step == resumed.step + 1:
            worker.set_timeout(collective_timeout_s(run, execution, time.monotonic() - began_s))
        last = step == steps
        if times_due or last or stop_requested:
            logger.ranks(times.line(step))
        if guard.should_roll_back:
            checkpointer.finish()
            skipped = skip_after_rollback(worker, run, folder, resumed, step, guard.rejected_in_a_row)
            _fail_if_stuck(logger, resumed, skipped)
            logger.rollback(skipped, f"{guard.rejected_in_a_row} steps in a row were rejected")
            return None

        # Evaluate the held-out loss.
        if step % evaluation.every_steps == 0 or last:
            sequences = evaluation.final_sequences if last else evaluation.sequences
            held_out_loss, of_sources = worker.evaluate(sequences)
            _fail_if_not_finite(logger, step, {"held-out loss": held_out_loss, "learning rate": lr})
            logger.evaluation(step, held_out_loss, sequences, of_sources)

        # Save a checkpoint: at the interval in time or steps, at a stop request, and after the last step.
        stopping = bool(stop_requested) and not last
        interval_steps = execution.checkpoint_interval_steps
        at_interval = save_now or (interval_steps is not None and step % interval_steps == 0)
        if (at_interval and guard.rejected_in_a_row == 0) or stopping or last:
            if problem := checkpointer.finish():
                logger.incident("unsaved_checkpoint", step, problem)
            logger.flush()  # a checkpoint promises that every line up to its step is on disk
            checkpointer.start(manifest_of(worker, run, resumed, step, held_out_loss, guard.state))
            saved_s = time.monotonic()
        if (stopping or last) and (problem := checkpointer.finish()):
            logger.incident("unsaved_checkpoint", step, problem)
            raise OSError(f"{problem}; correct that and rerun; the run resumes from the latest checkpoint")

        # Collect garbage, on all ranks at the same step.
        if step % _STEPS_BETWEEN_COLLECTIONS == 0:
            gc.collect()

        # Graceful shutdown.
        if stopping:
            origin = signal.Signals(stop.signal).name if stop.requested else "received by another rank"
            logger.incident(
                "interrupted", step, f"saved at step {step} of {steps} after a stop signal ({origin})"
            )
            return RESUME
    logger.end(checkpointer.weights_sha256(steps))
    return OK


def collective_timeout_s(run: RunSpec, execution: Execution, step_s: float) -> float:
    """How long a collective may take once steps take so many seconds: longer than the watchdog waits for any step.

    An NCCL collective's time runs from when the host queues it, which for the transfers of an evaluation may be at its
    beginning.
    """
    from runtime.train.watchdog import SLOW_STEPS

    longest_s = step_s * max(1.0, run.evaluation.final_sequences / run.optim.batch_sequences)
    return max(execution.hang_timeout_s, SLOW_STEPS * longest_s) + _AFTER_WATCHDOG_S


def _layout_for_ranks(order: Order, rank_info: RankInfo) -> Order:
    """The order with the layout for this many ranks; RunError where even the smallest needs more."""
    layout = order.layout_for(rank_info.world_size)
    if layout is None:
        smallest = min(one.devices for one in (order.execution.layout, *order.fallback_layouts))
        started = several(rank_info.world_size, "rank")
        raise RunError(
            f"{started} started, but the smallest layout needs {smallest}; start at least {smallest}"
        )
    return order.model_copy(update={"execution": order.execution.model_copy(update={"layout": layout})})


def _check_run(run: RunSpec, order: Order, sources: Sources) -> None:
    """RunError for what cannot be trained, before anything is written."""
    layout = order.execution.layout
    problems = []
    if isinstance(run.parent, Parent):
        problems.append("a run that branches off another run cannot be trained yet; write parent: null")
    problems += layout.problems(run.model, run.optim)
    if order.run != run.fingerprint():
        problems.append(
            f"order.json is for run {order.run}, not {run.fingerprint()}; rerun the command that started it"
        )
    digest, names = sources.ref.digest, tuple(sorted(sources.corpora))
    if digest != run.data.digest:
        problems.append(
            f"the corpus {run.data.corpus} has digest {digest}, but the run was planned on {run.data.digest}; "
            "plan the budget again"
        )
    if names != (("",) if run.mix is None else run.mix.sources):
        problems.append(
            f"the sources of the corpus {run.data.corpus} are not those of the run's mix "
            f"({', '.join(names) or 'none'}); correct data or mix"
        )
    if sources.any.vocab > run.model.vocab:
        problems.append(
            f"the corpus has {sources.any.vocab} token ids, more than the model's vocabulary of {run.model.vocab}; "
            "plan the budget again with a larger vocabulary"
        )
    if run.documents == "masked" and sources.any.end_of_document is None:
        problems.append(
            f"no token ends the documents of the corpus {run.data.corpus}; plan with documents: joined"
        )
    if problems:
        raise RunError(problems[0])


def _fail_if_stuck(logger: RunLogger, resumed: "ResumeState", skipped: SkippedRange) -> None:
    """RunError, and an incident in the record, after too many rollbacks to the same checkpoint."""
    rollbacks = sum(one.to_step == skipped.to_step for one in resumed.skipped)
    if rollbacks < _MAX_ROLLBACKS:
        return
    message = f"{rollbacks} rollbacks to step {skipped.to_step} did not get the run past step {skipped.step}"
    logger.incident("non_finite", skipped.step, message)
    raise RunError(f"{message}: training diverged; plan with a lower learning rate")


def _fail_if_not_finite(logger: RunLogger, step: int, values: Mapping[str, float]) -> None:
    """RunError, and an incident in the record, where a value of this step is not finite."""
    if all(map(math.isfinite, values.values())):
        return
    message = f"not finite at step {step}: " + ", ".join(
        f"{name} {value:.4g}" for name, value in values.items()
    )
    logger.incident("non_finite", step - 1, message)
    raise RunError(f"{message}; training diverged; plan with a lower learning rate")


if __name__ == "__main__":
    end_process(main())
