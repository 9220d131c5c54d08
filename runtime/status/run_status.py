"""How one run stands, from its files and from what SLURM says of it. Nothing here writes, or asks anybody.

The record says whether a run is finished; SLURM's word or the folder's lock whether somebody is at work; and where
nobody is, the record's last line or the ranks' last words say why not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.launch.failure import State, ended, recorded_end
from runtime.launch.jobs import RunRequest
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import Owner, keeper
from runtime.run_folder.tail import last_line, last_lines
from runtime.slurm.client import LiveJob
from runtime.slurm.job_states import JobStates
from specs.document.files import DocumentError
from specs.plan import CurveBand
from specs.record import End, RecordLine, Start


@dataclass(frozen=True)
class StepForecast:
    """The sealed forecast at a step, nats per token."""

    median: float
    """Median."""
    low_95: float
    """2.5 % end."""
    high_95: float
    """97.5 % end."""

    def judge(self, loss: float) -> Literal["inside", "above", "below"]:
        """Where a loss lies, against the 95 % band."""
        if loss > self.high_95:
            return "above"
        return "below" if loss < self.low_95 else "inside"


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    run: str
    """Fingerprint."""
    title: str
    """One line for tables."""
    state: State
    reason: str
    """Why it waits, in SLURM's word; empty where it does not."""
    held: bool
    """Whether it waits for a person to release it."""
    why: str
    """What ended it last, in one line; empty while it is at work, or where nothing did."""
    step: int
    """Finished steps."""
    steps: int
    """Steps of the whole run."""
    train_loss: float | None
    """Training loss of the last step, nats per token."""
    loss: float | None
    """Newest held-out loss, nats per token."""
    loss_step: int | None
    """Finished steps at which it was measured."""
    forecast: StepForecast | None
    """StepForecast for that step."""
    tokens_per_s: float | None
    """Over all ranks, in about the last half minute of training of this segment."""
    mfu: float | None
    """Model FLOP per second over the devices' peak, in that time."""
    left_s: float | None
    """Seconds to the end at this pace, for a run at work."""
    restarts: int
    """Times that it was taken up again."""
    nodes: str
    """Where it is at work, or was last: SLURM's nodes, or a host."""
    job: str
    """SLURM's newest job of it; empty where it never had one."""
    starts: str
    """When a queued job is expected to start, local time; empty where SLURM does not know."""

    @property
    def moves(self) -> bool:
        """Whether it will go on by itself."""
        return self.state in ("at work", "queued", "requeued") and not self.held

    def plain(self) -> dict[str, Any]:
        """For programs."""
        said = dict(self.__dict__)
        if self.forecast is not None and self.loss is not None:
            said["forecast"] = self.forecast.__dict__ | {"judged": self.forecast.judge(self.loss)}
        return said


def status_of(wanted: RunRequest, folder: RunFolder, where: JobStates) -> RunStatus:
    """How a run stands."""
    run, steps = wanted.run.fingerprint(), wanted.run.optim.steps
    try:
        records = folder.records()
    except DocumentError as error:
        records, damaged = [], str(error)
    else:
        damaged = ""
    starts = [line for line in records if isinstance(line, Start)]
    live, owner = where.live.get(run), keeper(folder.path)
    timed = list(last_lines(folder.timing_jsonl))  # before the metrics, which are written first
    metrics, evaluated = last_line(folder.metrics_jsonl) or {}, last_line(folder.evals_jsonl) or {}
    again = _starts_again(live, starts)
    if again:  # what the lines say beyond its newest checkpoint is about to be cut
        from_step = folder.newest_step
        metrics = metrics if metrics.get("step", 0) <= from_step else {"step": from_step}
        evaluated = evaluated if evaluated.get("step", 0) <= from_step else {}
    step = int(metrics.get("step", 0))
    rate, mfu = (None, None) if again else _rates(timed, starts[-1].from_step if starts else 0, step)
    state, why = _state(run, folder, records, where, owner)
    if damaged:
        state, why = "unknown", damaged
    busy = state == "at work"
    return RunStatus(
        run=run,
        title=wanted.title,
        state=state,
        reason=live.reason if live is not None and live.waits else "",
        held=live is not None and live.held,
        why=why,
        step=step,
        steps=steps,
        train_loss=metrics.get("loss"),
        loss=evaluated.get("loss"),
        loss_step=evaluated.get("step"),
        forecast=_forecast(wanted.order.curve, evaluated.get("step")),
        tokens_per_s=rate,
        mfu=mfu,
        left_s=(steps - step) * wanted.run.batch_tokens / rate if busy and rate else None,
        restarts=max(len(starts) - (not again), live.restarts if live else 0, 0),
        nodes=_nodes(live.nodes if live else "", owner if busy else None, starts),
        job=where.jobs.get(run, ""),
        starts=live.starts if live is not None and live.waits else "",
    )


def _starts_again(live: LiveJob | None, starts: Sequence[Start]) -> bool:
    """Whether a run that had begun is at work under SLURM anew, and has not got to its Start line yet."""
    if live is None or live.state != "RUNNING" or not starts:
        return False
    return not (starts[-1].job or "").startswith(f"{live.job}, restart {live.restarts},")


def _state(
    run: str,
    folder: RunFolder,
    records: Sequence[RecordLine],
    where: JobStates,
    owner: Owner | None,
) -> tuple[State, str]:
    """What a run does now, and why."""
    live, job = where.live.get(run), where.jobs.get(run, "")
    starts = [line for line in records if isinstance(line, Start)]
    slurms = bool(job) and not (starts and starts[-1].job is None)
    if records and isinstance(records[-1], End):
        return "finished", ""
    if live is not None:
        if not live.waits:
            return "at work", ""
        return ("requeued" if live.restarts or starts else "queued"), recorded_end(records)
    if owner is not None and not (slurms and where.reliable):
        return "at work", ""
    if slurms and where.problem:
        return "unknown", f"SLURM has or had it as job {job}"
    if not slurms:
        return ended(folder, records, "", None)
    return ended(
        folder,
        records,
        job,
        end.state if (end := where.ended.get(run)) else None,
        cancelled=run in where.cancelled,
    )


def _rates(
    timed: Sequence[Mapping[str, Any]], from_step: int, step: int
) -> tuple[float | None, float | None]:
    """Tokens per second and MFU of a segment's last steps, from its newest lines; it has come to `step`.

    A newest line beyond that is of a segment before, whose steps were lost.
    """
    seconds = tokens = weighted = 0.0
    last, known = None, True
    for line in timed:
        if line["step"] <= from_step or line["step"] > step or (last is not None and line["step"] >= last):
            break
        last = line["step"]
        seconds += line["seconds"]
        tokens += line["tokens_per_s"] * line["seconds"]
        known = known and line["mfu"] is not None
        weighted += (line["mfu"] or 0.0) * line["seconds"]
    if seconds <= 0:
        return None, None
    return tokens / seconds, weighted / seconds if known else None


def _forecast(curve: CurveBand | None, step: int | None) -> StepForecast | None:
    if curve is None or step not in curve.step:
        return None
    at = curve.step.index(step)
    return StepForecast(curve.median[at], curve.low_95[at], curve.high_95[at])


def _nodes(now: str, owner: Owner | None, starts: Sequence[Start]) -> str:
    """SLURM's nodes; else the host of who is at work, or of the last start."""
    if now:
        return now
    if owner is not None:
        return owner.host
    if not starts:
        return ""
    job = starts[-1].job
    return job.rpartition(" on ")[2] if job else starts[-1].environment.host
