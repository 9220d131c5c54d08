"""The watchdog of a rank: a run that makes no step for too long is ended, and the rank that is stuck is named.

A rank that hangs, in a GPU, a link or a file system, blocks the others in their next collective without an error. So
a thread of each rank looks for signs of life: rows read, waits for other ranks that have ended. When none came for too
long, it prints the stacks of this rank's threads, with the collectives in flight (PyTorch's flight recorder), leaves a
note in the run's log folder, and reads the notes of the other ranks: who left none does not answer, and who does not
wait for the others is what they wait for. Then the process ends, and the run is started again.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from model.waiting import WAITING
from runtime.run_folder.folder import RunFolder
from specs.document.write import append_line, write_text
from specs.exit_codes import HUNG
from specs.humanize import duration
from specs.record import Incident

SLOW_STEPS = 10
"""A step may take so many times the median one, as when a file system is slow: our choice."""
_RECENT_STEPS = 101
"""Steps whose median counts."""
_ANSWER_S = 10.0
"""How long a rank that hangs is waited for; the others' clocks started within a step of each other."""
_SOURCE = Path(__file__).parents[2]
"""Our packages' folder."""
_LOCKED_S = 60.0
"""After so much longer the process is ended even if a thread holds the interpreter's lock and this one cannot run."""


class RankNote(NamedTuple):
    """What a rank says of itself when no sign of life came for too long."""

    step: int
    """Its finished steps."""
    waits_on: str
    """The axis whose ranks it waits for; empty where it waits for none."""
    place: str
    """The innermost line of ours that its main thread is in."""


class Watchdog:
    """Watches this rank from its first finished step on."""

    def __init__(
        self,
        folder: RunFolder,
        rank: int,
        hosts: Sequence[str],
        limit_s: float,
        signs_of_life: Callable[[], int],
    ) -> None:
        """`hosts` names each rank's node; `signs_of_life` counts what has happened so far."""
        self._folder, self._rank, self._hosts = folder, rank, hosts
        self._shortest_limit_s, self._signs_of_life = limit_s, signs_of_life
        self._note(rank).unlink(
            missing_ok=True
        )  # of an earlier start; the others look for it after the first step
        self._main = threading.get_ident()
        self._step, self._step_s = 0, time.monotonic()
        self._steps_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._quiet_s = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def limit_s(self) -> float:
        """Seconds without a sign of life after which the run is ended."""
        return max(self._shortest_limit_s, SLOW_STEPS * median(self._steps_s or [0.0]))

    def step(self, step: int) -> None:
        """A finished step; with the first of a segment the watch begins."""
        now_s = time.monotonic()
        if self._thread is None:
            self._put_off_the_end()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        else:
            self._steps_s.append(now_s - self._step_s)
        self._step, self._step_s = step, now_s

    def close(self) -> None:
        """The steps are over."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        tick_s = min(5.0, self._shortest_limit_s / 10)
        ticked_s, signs = time.monotonic(), 0
        while not self._over.wait(tick_s):
            # Only time in which this thread ran counts: a process that was suspended has not been hanging.
            now_s, signs_before, signs = time.monotonic(), signs, self._signs_of_life()
            passed_s, ticked_s = min(now_s - ticked_s, 2 * tick_s), now_s
            self._quiet_s = 0.0 if signs != signs_before else self._quiet_s + passed_s
            self._put_off_the_end()
            if self._quiet_s > self.limit_s:
                self._end()
        faulthandler.cancel_dump_traceback_later()

    def _put_off_the_end(self) -> None:
        """End the process, with its stacks, if this is not called again in time."""
        faulthandler.dump_traceback_later(self.limit_s + _LOCKED_S, exit=True, file=2)  # standard error

    def _end(self) -> None:
        """Say what hangs, and end the process."""
        faulthandler.cancel_dump_traceback_later()
        quiet_s = self._quiet_s
        _print_stacks()
        mine = RankNote(self._step, WAITING.now, place_of(self._main))
        with contextlib.suppress(OSError):  # a disk that hangs or is full: the others name this rank
            write_text(self._note(self._rank), json.dumps(mine._asdict()))
        _dump_collectives(self._folder.log / f"collectives-{self._rank}.json")
        notes = self._notes(mine)
        message = f"no sign of life for {duration(quiet_s)} after step {self._step}: {diagnosis(notes, self._hosts)}"
        if self._rank == min(notes):
            with contextlib.suppress(OSError):
                incident = Incident(time=time.time(), step=self._step, what="hung", message=message)
                append_line(self._folder.record_jsonl, incident)
        print(f"HangError: {message}", file=sys.stderr, flush=True)
        os._exit(HUNG)

    def _note(self, rank: int) -> Path:
        return self._folder.log / f"hang-rank-{rank}.json"

    def _notes(self, mine: RankNote) -> Mapping[int, RankNote]:
        """The notes of all ranks that leave one in time."""
        notes = {self._rank: mine}
        until_s = time.monotonic() + min(_ANSWER_S, self.limit_s) + max(self._steps_s, default=0.0)
        while len(notes) < len(self._hosts) and time.monotonic() < until_s:
            time.sleep(0.1)
            for rank in set(range(len(self._hosts))) - set(notes):
                with contextlib.suppress(OSError, ValueError, TypeError):
                    notes[rank] = RankNote(**json.loads(self._note(rank).read_text()))
        return notes


def diagnosis(notes: Mapping[int, RankNote], hosts: Sequence[str]) -> str:
    """Which ranks hang, and what the others wait for.

    Ranks without a note do not answer. Of those that answer, one that waits for nobody is what the others wait for. If
    all wait, those behind the others in steps are named, else all of them.
    """
    silent = [rank for rank in range(len(hosts)) if rank not in notes]
    busy = [rank for rank, note in sorted(notes.items()) if not note.waits_on]
    first = min(note.step for note in notes.values())
    behind = [rank for rank, note in sorted(notes.items()) if note.step == first]
    if silent:
        stuck = f"{_ranks(silent, hosts)} {'does' if len(silent) == 1 else 'do'} not answer"
    elif busy:
        stuck = f"{_ranks(busy, hosts)} {'is' if len(busy) == 1 else 'are'} stuck in {notes[busy[0]].place}"
    else:
        one = notes[behind[0]]
        stuck = f"{_ranks(behind, hosts)} wait{'s' if len(behind) == 1 else ''} in {one.place} on axis {one.waits_on}"
    waiting = [rank for rank, note in sorted(notes.items()) if note.waits_on and (silent or busy)]
    if not waiting:
        return stuck
    one = notes[waiting[0]]
    return f"{stuck}; rank {waiting[0]} waits in {one.place} on axis {one.waits_on}"


def _ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    named = ", ".join(f"{rank} on {hosts[rank]}" for rank in ranks[:4])
    return f"rank{'s' if len(ranks) > 1 else ''} {named}" + (
        f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    )


def place_of(thread: int) -> str:
    """Where a thread is, as its innermost line in our packages: `model/collectives.py:81, all_reduce`."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_SOURCE / "model") or path.is_relative_to(_SOURCE / "runtime"):
            return f"{path.relative_to(_SOURCE)}:{frame.f_lineno}, {frame.f_code.co_name}"
        frame = frame.f_back
    return "code of other packages"


def _print_stacks() -> None:
    print("stacks of all threads, the innermost call first:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()


def _dump_collectives(path: Path) -> None:
    """Write the flight recorder's collectives, newest last, where this PyTorch has one for the back end in use."""
    from torch._C import _distributed_c10d

    c10d: Any = _distributed_c10d
    dump: Callable[[], bytes] = getattr(c10d, "_dump_nccl_trace_json", None) or c10d._dump_fr_trace_json
    with contextlib.suppress(OSError, RuntimeError):
        path.write_bytes(dump())
        print(f"collectives in flight: {path}", file=sys.stderr, flush=True)
