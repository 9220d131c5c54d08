"""A run, trained: `python -m runtime.train RUN_FOLDER --data DATA_ROOT`, once per rank. The loop, read top to bottom.

A fresh process, a killed one and a requeued one do the same: open the folder, take the newest whole checkpoint, go on.
Exit status: 0 the run is finished, 75 it was saved after a signal and wants to be started again, else it failed.
"""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from runtime.batches import DataError, check_enough
from runtime.corpus import load_corpus, tokens
from runtime.documents import CorpusError
from runtime.folder import RunFolder
from runtime.journal import Begun, Journal, journal_of
from runtime.metrics import RecordError
from runtime.origin import check_origin
from specs.data import Corpus
from specs.files import DocumentError
from specs.record import Order
from specs.run import Execution, Parent, RunSpec

if TYPE_CHECKING:
    from runtime.replica import Replica

FINISHED, FAILED, BAD_INPUT = 0, 1, 2
RESUME = 75
"""EX_TEMPFAIL of sysexits.h: saved, start me again."""


class RunError(ValueError):
    """A run that cannot start or go on: why, and what to do."""


class Leave:
    """Whether this process was asked to leave: the handlers only note it, the loop acts at the next step's end."""

    def __init__(self) -> None:
        self.asked = 0

    def listen(self) -> None:
        """Take over the signals that mean it: SIGTERM (kill, SLURM), SIGUSR1 and SIGUSR2 (time is nearly up)."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number


@dataclass(frozen=True)
class Seat:
    """Which of how many ranks this process is."""

    rank: int
    local_rank: int
    ranks: int

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Seat":
        """The seat that the launcher's variables name; alone where there are none."""
        return Seat(
            rank=int(environment.get("RANK", "0")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            ranks=int(environment.get("WORLD_SIZE", "1")),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Train one rank of a run folder; the exit status."""
    leave = Leave()
    leave.listen()  # before torch, whose import takes seconds in which a signal would just kill
    parser = argparse.ArgumentParser(prog="python -m runtime.train", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="runs/<fingerprint>")
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    arguments = parser.parse_args(argv)
    try:
        return train(RunFolder(arguments.folder), arguments.data, Seat.of(os.environ), leave)
    except RunError as error:
        print(f"RunError: {error}", file=sys.stderr, flush=True)
        return FAILED
    except (DocumentError, CorpusError, DataError, RecordError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT


def train(folder: RunFolder, data: Path, seat: Seat, leave: Leave) -> int:
    """Train this rank's part of the run from where it stands; the exit status."""
    if folder.end() is not None:
        return FINISHED
    run, order = folder.run(), folder.order()
    corpus = load_corpus(data, run.data.corpus)
    _refuse(run, order, corpus, seat)
    check_origin(run, data)
    train_tokens, held_out = tokens(data, corpus, "train"), tokens(data, corpus, "held_out")
    check_enough(train_tokens, held_out, run)

    from runtime.replica import joined  # torch: after the handlers, and after what can be refused at once

    with joined(run, order.execution, seat.rank, seat.local_rank, train_tokens, held_out) as replica:
        from_step, damaged = replica.restore(folder.checkpoints, data)
        begun = Begun(seat.rank, from_step, replica.kernels, replica.devices)
        with journal_of(folder, run, order, begun) as journal:
            for problem in damaged:
                journal.incident("damaged_checkpoint", from_step, problem)
            return _go_on(folder, run, order.execution, replica, journal, from_step, leave)


def _go_on(
    folder: RunFolder,
    run: RunSpec,
    execution: Execution,
    replica: "Replica",
    journal: Journal,
    from_step: int,
    leave: Leave,
) -> int:
    """The steps after `from_step`, up to the last one or until this process is asked to leave; the exit status."""
    steps, evaluation = run.optim.steps, run.evaluation
    saved_s = time.monotonic()
    leaving = any(replica.summed([leave.asked]))
    for step in range(from_step + 1, steps + 1):
        if leaving:
            return RESUME
        lr = run.optim.lr(step)
        share = replica.accumulate(step)
        grad_norm = replica.update(lr)
        due = replica.leads and time.monotonic() - saved_s >= execution.checkpoint_every_s
        loss, asked, saving = replica.summed(
            [share, leave.asked, due]
        )  # so that all ranks agree on all three
        _stop_where_diverged(journal, step, {"loss": loss, "gradient norm": grad_norm, "learning rate": lr})
        journal.step(step, loss, grad_norm, lr)

        last = step == steps
        if step % evaluation.every_steps == 0 or last:
            sequences = evaluation.final_sequences if last else evaluation.sequences
            held_out_loss = replica.evaluate(sequences)
            _stop_where_diverged(journal, step, {"held-out loss": held_out_loss, "learning rate": lr})
            journal.evaluation(step, held_out_loss, sequences)

        leaving = bool(asked) and not last
        if saving or leaving or last:
            journal.flush()  # a checkpoint promises that every line up to its step is on disk
            replica.save(folder.checkpoints, step)
            saved_s = time.monotonic()
        if leaving:
            journal.incident("interrupted", step, f"saved at step {step} of {steps} after a signal to leave")
    journal.end(replica.weights_sha256(folder.checkpoints, steps))
    return FINISHED


def _refuse(run: RunSpec, order: Order, corpus: Corpus, seat: Seat) -> None:
    """RunError for what cannot be trained, before anything is written."""
    layout = order.execution.layout
    problems = []
    if isinstance(run.parent, Parent):
        problems.append("runs that branch off another cannot be trained yet; write parent: null")
    problems += layout.problems(run.model, run.optim)
    if order.run != run.fingerprint():
        problems.append(f"the order is for run {order.run}, not {run.fingerprint()}; launch the run again")
    if seat.ranks != layout.devices:
        problems.append(f"{seat.ranks} processes were started for a layout of {layout.devices} ranks")
    if corpus.digest != run.data.digest:
        problems.append(
            f"the corpus {run.data.corpus} has the digest {corpus.digest}, not {run.data.digest}; plan again"
        )
    if corpus.spec.vocab > run.model.vocab:
        problems.append(f"{corpus.spec.vocab} different tokens do not fit a vocabulary of {run.model.vocab}")
    if problems:
        raise RunError(problems[0])


def _stop_where_diverged(journal: Journal, step: int, values: Mapping[str, float]) -> None:
    """RunError, and an incident in the record, where a value of this step is not finite."""
    if all(map(math.isfinite, values.values())):
        return
    said = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    journal.incident("non_finite", step - 1, f"step {step} gave {said}")
    raise RunError(f"step {step} gave {said}: training diverged; plan with a lower learning rate")


if __name__ == "__main__":
    sys.exit(main())
