"""What a tracker gets of a run: who it is, the points after those that it has, and what happened so far as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.run_folder.curves import Point
from runtime.run_folder.folder import RunFolder
from specs.extras import TRACKERS, require
from specs.record import End, Incident, Rollback, Start
from specs.tracker import Tracker

_TEXT_CHARACTERS = 4000
"""Of the events as one text, the last so many: MLflow's tags have at most 5000 (mlflow/utils/validation.py)."""


class TrackerError(Exception):
    """Why a tracker did not accept a run, in one line; trying again may help."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    step: int
    """Finished steps when it happened."""
    kind: str
    """An incident's kind, `rollback`, `resumed` or `finished`."""
    text: str
    """What happened, with its step."""


@dataclass(frozen=True)
class Delivery:
    """What is sent of a run at once."""

    tracker: Tracker
    """Where to."""
    files: Path
    """The folder of the workspace's offline files."""
    run: str
    """The run's fingerprint: its identity in every tracker."""
    title: str
    """Its name for people."""
    study: str
    """The study that it belongs to; empty for none."""
    config: dict[str, Any]
    """The run's configuration."""
    batch_tokens: int
    """Tokens of a step."""
    sent: int
    """The tracker has all points up to this step, as far as is noted."""
    points: Iterator[Point]
    """The points after it."""
    events: Sequence[Event]
    """All events so far."""
    sent_events: int
    """So many of them were sent before."""
    finished: bool
    """Whether the run has ended."""

    @property
    def kinds(self) -> list[str]:
        """Kinds of the events, each once."""
        return sorted({event.kind for event in self.events})

    @property
    def event_text(self) -> str:
        """All events, a line each; of very many the last ones."""
        return "\n".join(event.text for event in self.events)[-_TEXT_CHARACTERS:]


def config_of(folder: RunFolder, study: str) -> dict[str, Any]:
    """The run spec, what is counted from it, and where it comes from; the same at every start."""
    run, order = folder.run(), folder.order()
    named = {"fingerprint": run.fingerprint(), "title": order.title, "study": study, "seal": order.seal}
    return run.plain() | {"counts": run.counts(), "isoplan": named}


def events_of(folder: RunFolder) -> list[Event]:
    """What the run's record says, in its order."""
    found = []
    for line in folder.records():
        match line:
            case Incident():
                found.append(_event(line.step, line.what, line.message))
            case Rollback():
                found.append(_event(line.skipped.step, "rollback", line.message))
            case Start() if line.from_step:
                found.append(_event(line.from_step, "resumed", f"on {line.environment.host}"))
            case End():
                loss = f"held-out loss {line.loss:.4f} nats per token"
                found.append(_event(line.step, "finished", loss))
    return found


def _event(step: int, kind: str, message: str) -> Event:
    return Event(step, kind, f"step {step}: {kind}: {message}")


def check_installed(tracker: Tracker) -> None:
    """InputError with what to install, where the tracker's package is missing; it is not imported."""
    require(f"sync to {tracker.to}", TRACKERS[tracker.to], f"pip install 'isoplan[{tracker.to}]'")
