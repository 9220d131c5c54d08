"""Send what a run folder has and a tracker has not; what was accepted is noted in the run's folder.

    runs/<fingerprint>/trackers/<tracker>-<digest>.json     a Sent per destination, written once it has accepted
    trackers/                                               offline files: wandb/, mlflow.db, trackio/

Lines are sent once a checkpoint covers them, so that no restart or rollback takes back what was sent. A sender may be
killed between a tracker's acceptance and the note. So MLflow, Trackio and W&B's server are asked for the last step that
they have; W&B's offline files are written aside, noted, and then moved to their place.
"""

import contextlib
import fcntl
import hashlib
import importlib
import io
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pydantic import Field, ValidationError

from runtime.run_folder.curves import Point, covered_step, points
from runtime.run_folder.folder import RunFolder
from runtime.tracking.delivery import Delivery, TrackerError, config_of, events_of
from specs.document.base import Fingerprint, Spec
from specs.document.files import DocumentError
from specs.document.write import write_json
from specs.exit_codes import InputError
from specs.humanize import first_line
from specs.tracker import Tracker

_PATIENCE_S = 60.0
"""How long another process of this workspace that is sending is waited for: our choice; a pass takes seconds."""


class Sent(Spec):
    """What a tracker has of a run."""

    run: Fingerprint
    """The run."""
    tracker: Tracker
    """The tracker, with the project and server that the run was sent to."""
    step: int = Field(default=0, ge=0)
    """All points up to this step."""
    events: int = Field(default=0, ge=0)
    """So many lines of what happened."""
    aside: str | None = None
    """The offline folder with the newest of these points, which is still to be moved to its place; null for none."""


@dataclass(frozen=True)
class Synced:
    """What one call has sent of a run."""

    run: str
    """Its fingerprint."""
    title: str
    """Its title."""
    first: int
    """The first step that was sent; 0 where none was."""
    step: int
    """The tracker has the points up to this step."""
    new: bool
    """Whether anything was sent."""

    @property
    def text(self) -> str:
        """That, in words."""
        if not self.new:
            return f"nothing new after step {self.step}" if self.step else "nothing to send yet"
        return (
            f"sent steps {self.first} to {self.step}"
            if self.first
            else f"sent what happened by step {self.step}"
        )


def sync(folder: RunFolder, tracker: Tracker, study: str, workspace: Path) -> Synced:
    """Send what is new of a run; TrackerError where the tracker does not accept it, InputError for a damaged folder."""
    files = workspace.absolute() / "trackers"
    with _one_sender(files):
        note = sent_path(folder, tracker)
        sent = _read(note) if note.exists() else Sent(run=folder.run().fingerprint(), tracker=tracker)
        sent = _in_place(sent, note, files)
        covered, events = covered_step(folder), events_of(folder)
        if not covered or (covered <= sent.step and len(events) == sent.events):
            return Synced(sent.run, folder.order().title, 0, sent.step, False)
        steps: list[int] = []
        delivery = Delivery(
            tracker=tracker,
            files=files,
            run=sent.run,
            title=folder.order().title,
            study=study,
            config=config_of(folder, study),
            batch_tokens=folder.run().batch_tokens,
            sent=sent.step,
            points=_noted(points(folder, sent.step, covered), steps),
            events=events,
            sent_events=sent.events,
            finished=folder.end() is not None,
        )
        aside = _send(delivery)
        sent = sent.model_copy(
            update={"step": max(covered, sent.step), "events": len(events), "aside": aside}
        )
        write_json(note, sent)
        _in_place(sent, note, files)
    return Synced(sent.run, delivery.title, min(steps, default=0), sent.step, True)


def sent_path(folder: RunFolder, tracker: Tracker) -> Path:
    """Where it is noted what this destination has of a run."""
    digest = hashlib.sha256(tracker.canonical_json().encode()).hexdigest()[:8]
    return folder.path / "trackers" / f"{tracker.to}-{digest}.json"


def _read(note: Path) -> Sent:
    try:
        return Sent.model_validate_json(note.read_bytes())
    except ValidationError:
        write = "delete it; W&B's offline files are then written once more, other trackers are asked what they have"
        raise DocumentError(note, 1, 1, "what was sent cannot be read", write) from None


def _send(delivery: Delivery) -> str | None:
    """Hand over to the tracker's own module, which imports its package; the name of an offline folder to be moved."""
    module = importlib.import_module(f"runtime.tracking.to_{delivery.tracker.to}")
    hand_over: Callable[[Delivery], str | None] = module.send
    try:
        with _quiet():
            return hand_over(delivery)
    except (TrackerError, InputError):
        raise
    except Exception as error:
        raise TrackerError(
            f"{delivery.tracker.to} did not accept {delivery.title}: {first_line(error)}"
        ) from error


def _noted(of: Iterator[Point], steps: list[int]) -> Iterator[Point]:
    """The same points; the first step that is taken is put in `steps`."""
    for point in of:
        if not steps:
            steps.append(point.step)
        yield point


def _in_place(sent: Sent, note: Path, files: Path) -> Sent:
    """Move an offline folder that was accepted to its place, and remove what a killed sender has left aside."""
    part = files / ".part" / sent.run
    if sent.aside is not None:
        for finished in part.glob(f"wandb/*{sent.run}*"):
            if not finished.is_symlink() and not (files / "wandb" / sent.aside).exists():
                (files / "wandb").mkdir(exist_ok=True)
                os.rename(finished, files / "wandb" / sent.aside)
        sent = sent.model_copy(update={"aside": None})
        write_json(note, sent)
    shutil.rmtree(part, ignore_errors=True)
    return sent


@contextlib.contextmanager
def _one_sender(files: Path) -> Iterator[None]:
    """One process at a time sends from a workspace; TrackerError where another one takes too long."""
    files.mkdir(parents=True, exist_ok=True)
    with open(files / ".lock", "ab") as lock:
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise TrackerError(f"another process is sending from {files.parent}") from None
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the trackers' own greetings and warnings, their statistics of use, and minutes of retries."""
    os.environ |= {
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        "DO_NOT_TRACK": "1",
    }
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7, its default, are four minutes
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def offline_hint(tracker: Tracker, files: Path) -> str:
    """The command that shows offline files, or sends them on; empty for a server."""
    if tracker.server is not None:
        return ""
    match tracker.to:
        case "wandb":
            return f"wandb sync {quote(str(files))}/wandb/offline-run-*"
        case "mlflow":
            return f"mlflow ui --backend-store-uri {quote(f'sqlite:///{files}/mlflow.db')}"
        case "trackio":
            return (
                f"TRACKIO_DIR={quote(str(files / 'trackio'))} trackio show --project {quote(tracker.project)}"
            )
