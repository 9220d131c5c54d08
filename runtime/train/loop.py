"""The training loop: `python -m runtime.train.loop RUN_FOLDER --data DATA_ROOT`, once per rank, read top to bottom.

A fresh process, a killed one and a requeued one do the same: open the folder, take the newest whole checkpoint, go on.
Fewer ranks than were planned take the layout that the plan has for so many; ranks that it does not need leave.
Exit status: 0 the run is finished, 75 it was saved after a signal and wants to be started again, else it failed: 2 for
bad input, 65 where another start would end the same way.
"""

import argparse
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

from runtime.checkpoint.imported_weights import check_origin
from runtime.data.batches import DataError, check_enough
from runtime.data.corpus import load_corpus, tokens
from runtime.data.text_sources import CorpusError
from runtime.run_folder.folder import RunFolder
from runtime.train.metrics import RecordError
from runtime.train.process import RankInfo, StopRequest, end_process
from runtime.train.run_logger import RunLogger, SegmentStart, open_run_logger
from specs.data import Corpus
from specs.document.files import DocumentError
from specs.exit_codes import BAD_INPUT, FAILED, NO_RETRY, OK, RESUME
from specs.humanize import several
from specs.record import Order, SkippedRange
from specs.run import Execution, Parent, RunSpec

if TYPE_CHECKING:
    from runtime.train.async_checkpoint import AsyncCheckpointer
    from runtime.train.resume import ResumeState
    from runtime.train.worker import RankWorker

_TRIES = 3
"""Times that a run goes back to the same checkpoint before it is taken for diverged: our choice."""


class RunError(ValueError):
    """A run that cannot start or go on: why, and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train one rank of a run folder; the exit status."""
    leave = StopRequest()
    leave.listen()  # before torch, whose import takes seconds in which a signal would just kill
    parser = argparse.ArgumentParser(prog="python -m runtime.train.loop", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="runs/<fingerprint>")
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    arguments = parser.parse_args(argv)
    return train_rank(RunFolder(arguments.folder), arguments.data, RankInfo.of(os.environ), leave)


def train_rank(folder: RunFolder, data: Path, rank_info: RankInfo, leave: StopRequest) -> int:
    """As `train`, and an error is a status too: what can be expected to go wrong, in one line."""
    try:
        return train(folder, data, rank_info, leave)
    except RunError as error:
        print(f"RunError: {error}", file=sys.stderr, flush=True)
        return NO_RETRY
    except OSError as error:  # a disk that is full or gone, say: what to do about it is plain
        print(f"OSError: {error}", file=sys.stderr, flush=True)
        return FAILED
    except (DocumentError, CorpusError, DataError, RecordError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return FAILED if isinstance(error.__context__, OSError) else BAD_INPUT
    except Exception:
        traceback.print_exc()
        return FAILED


def train(folder: RunFolder, data: Path, rank_info: RankInfo, leave: StopRequest) -> int:
    """Train this rank's part of the run from where it stands; the exit status."""
    if folder.end() is not None:
        return OK
    run, order = folder.run(), _laid_out(folder.order(), rank_info)
    devices = order.execution.layout.devices
    if rank_info.rank >= devices:
        print(f"rank {rank_info.rank} of {rank_info.ranks} leaves: the layout takes {devices}", flush=True)
        return OK
    corpus = load_corpus(data, run.data.corpus)
    _refuse(run, order, corpus)
    check_origin(run, data)
    train_tokens, held_out = tokens(data, corpus, "train"), tokens(data, corpus, "held_out")
    check_enough(train_tokens, held_out, run)

    from runtime.train.async_checkpoint import AsyncCheckpointer
    from runtime.train.worker import (  # torch: after the handlers, and after what can be refused at once
        gpus,
        join_process_group,
    )

    if order.execution.device == "cuda" and not gpus():
        raise OSError(f"the run is for GPUs, and torch sees none on {socket.gethostname()}")
    if devices > 1:  # whoever hangs before the first step is found by who has got this far
        here = f"process {os.getpid()} on {socket.gethostname()}"
        print(f"rank {rank_info.rank} of {devices}, {here}: meets the others", flush=True)
    with join_process_group(
        run, order.execution, rank_info.rank, rank_info.local_rank, train_tokens, held_out
    ) as worker:
        checkpointer = AsyncCheckpointer(folder.checkpoints, worker, order.execution.keep)
        while True:
            status = _segment(folder, run, order, worker, checkpointer, data, leave)
            if status is not None:
                return status


def _segment(
    folder: RunFolder,
    run: RunSpec,
    order: Order,
    worker: "RankWorker",
    checkpointer: "AsyncCheckpointer",
    data: Path,
    leave: StopRequest,
) -> int | None:
    """From the newest checkpoint on; the exit status, or None where the run went back and is to be taken up anew."""
    from runtime.train.resume import resume_from_latest

    begun = resume_from_latest(worker, run, folder, data)
    here = SegmentStart(0 if worker.leads else 1, begun.step, worker.kernels, worker.devices)
    with open_run_logger(folder, run, order, here) as logger:
        for problem in begun.damaged.values():
            logger.incident("damaged_checkpoint", begun.step, problem)
        checkpointer.damaged = set(begun.damaged)
        try:
            return _go_on(folder, run, order.execution, worker, checkpointer, logger, begun, leave)
        finally:
            checkpointer.wait()


def _go_on(
    folder: RunFolder,
    run: RunSpec,
    execution: Execution,
    worker: "RankWorker",
    checkpointer: "AsyncCheckpointer",
    logger: RunLogger,
    begun: "ResumeState",
    leave: StopRequest,
) -> int | None:
    """The steps after those finished, up to the last one or until this process is asked to leave."""
    from runtime.train.resume import given_up, manifest_of
    from runtime.train.spike_guard import SpikeGuard

    steps, evaluation = run.optim.steps, run.evaluation
    guard, held_out_loss = SpikeGuard(run.guard, begun.memory), begun.loss
    saved_s = time.monotonic()
    if begun.step < steps and any(worker.summed([leave.asked])):
        return RESUME
    for step in range(begun.step + 1, steps + 1):
        lr = run.optim.lr(step)
        share = worker.accumulate(step, begun.skipped)
        due = checkpointer.idle and time.monotonic() - saved_s >= execution.checkpoint_every_s
        # In one sum, so that all ranks agree: the loss, whether to leave, whether to save, how far a save is.
        loss, asked, saving, *reports = worker.summed(
            [share, leave.asked, worker.leads and due, *checkpointer.report()]
        )
        if problem := checkpointer.hear(*reports):
            logger.incident("unsaved_checkpoint", step - 1, problem)
        grad_norm = worker.optimizer.reduce()
        objection = guard.objection(loss, grad_norm)
        if run.guard is None:
            _stop_where_diverged(
                logger, step, {"loss": loss, "gradient norm": grad_norm, "learning rate": lr}
            )
        if objection:
            worker.optimizer.drop()
            logger.incident("skipped_step", step, f"step {step} was not applied: {objection}")
        else:
            worker.optimizer.apply(lr, grad_norm)
        logger.step(step, loss, grad_norm, lr, applied=not objection)
        if guard.impatient:
            checkpointer.finish()
            skipped = given_up(worker, run, folder, begun, step, guard.in_a_row)
            _stop_where_stuck(logger, begun, skipped)
            logger.rollback(skipped, f"{guard.in_a_row} steps in a row were not applied")
            return None

        last = step == steps
        if step % evaluation.every_steps == 0 or last:
            sequences = evaluation.final_sequences if last else evaluation.sequences
            held_out_loss = worker.evaluate(sequences)
            _stop_where_diverged(logger, step, {"held-out loss": held_out_loss, "learning rate": lr})
            logger.evaluation(step, held_out_loss, sequences)

        leaving = bool(asked) and not last
        by_step = (
            execution.checkpoint_every_steps is not None and step % execution.checkpoint_every_steps == 0
        )
        if ((saving or by_step) and guard.in_a_row == 0) or leaving or last:
            if problem := checkpointer.finish():
                logger.incident("unsaved_checkpoint", step, problem)
            logger.flush()  # a checkpoint promises that every line up to its step is on disk
            checkpointer.begin(manifest_of(worker, run, begun, step, held_out_loss, guard.memory))
            saved_s = time.monotonic()
        if leaving or last:
            problem = checkpointer.finish()
            if problem:
                logger.incident("unsaved_checkpoint", step, problem)
                raise OSError(
                    f"{problem}; once it can be, run again: that goes on from the newest checkpoint"
                )
        if leaving:
            who = signal.Signals(leave.asked).name if leave.asked else "to another rank"
            said = f"saved at step {step} of {steps} after a signal to leave ({who})"
            logger.incident("interrupted", step, said)
            return RESUME
    logger.end(checkpointer.weights_sha256(steps))
    return OK


def _laid_out(order: Order, rank_info: RankInfo) -> Order:
    """The order with the layout for the ranks that are here; RunError where even the least one needs more."""
    layout = order.layout_for(rank_info.ranks)
    if layout is None:
        least = min(one.devices for one in (order.execution.layout, *order.fewer))
        started = several(rank_info.ranks, "rank")
        raise RunError(f"{started} started, and the least layout needs {least}; start at least as many")
    return order.model_copy(update={"execution": order.execution.model_copy(update={"layout": layout})})


def _refuse(run: RunSpec, order: Order, corpus: Corpus) -> None:
    """RunError for what cannot be trained, before anything is written."""
    layout = order.execution.layout
    problems = []
    if isinstance(run.parent, Parent):
        problems.append("runs that branch off another cannot be trained yet; write parent: null")
    problems += layout.problems(run.model, run.optim)
    if order.run != run.fingerprint():
        problems.append(f"the order is for run {order.run}, not {run.fingerprint()}; launch the run again")
    if corpus.digest != run.data.digest:
        problems.append(
            f"the corpus {run.data.corpus} has the digest {corpus.digest}, not {run.data.digest}; plan again"
        )
    if corpus.spec.vocab > run.model.vocab:
        problems.append(f"{corpus.spec.vocab} different tokens do not fit a vocabulary of {run.model.vocab}")
    if problems:
        raise RunError(problems[0])


def _stop_where_stuck(logger: RunLogger, begun: "ResumeState", skipped: SkippedRange) -> None:
    """RunError, and an incident in the record, where going back to this checkpoint has not helped before."""
    tries = sum(one.to_step == skipped.to_step for one in begun.skipped)
    if tries < _TRIES:
        return
    said = f"went back to step {skipped.to_step} {tries} times, and came no further than step {skipped.step}"
    logger.incident("non_finite", skipped.step, said)
    raise RunError(f"{said}: training diverged; plan with a lower learning rate")


def _stop_where_diverged(logger: RunLogger, step: int, values: Mapping[str, float]) -> None:
    """RunError, and an incident in the record, where a value of this step is not finite."""
    if all(map(math.isfinite, values.values())):
        return
    said = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    logger.incident("non_finite", step - 1, f"step {step} gave {said}")
    raise RunError(f"step {step} gave {said}: training diverged; plan with a lower learning rate")


if __name__ == "__main__":
    end_process(main())
