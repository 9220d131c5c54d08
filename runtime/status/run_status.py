"""The state of one run, from its files and SLURM's job states. Nothing here writes, or queries SLURM.

The record shows whether a run is finished; SLURM or the folder's lock whether it is running; and if it is not, the
record's last line or the ranks' logs show why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.launch.failure import State, recorded_end, why_not_running
from runtime.launch.jobs import RunRequest
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import Owner
from runtime.run_folder.stragglers import straggler_now
from runtime.run_folder.tail import last_line, last_lines
from runtime.slurm.client import LiveJob
from runtime.slurm.job_states import JobStates
from runtime.slurm.preflight.report import exclusions
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

    def compare(self, loss: float) -> Literal["inside", "above", "below"]:
        """Where a loss lies relative to the 95 % band."""
        if loss > self.high_95:
            return "above"
        return "below" if loss < self.low_95 else "inside"


@dataclass(frozen=True)
class RunStatus:
    """The state of a run."""

    run: str
    """Fingerprint."""
    title: str
    """One line for tables."""
    state: State
    pending_reason: str
    """SLURM's reason why its job is pending; empty where it is not."""
    end_reason: str
    """What ended its last segment, in one line; empty while it is running, or where nothing did."""
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
    """The sealed forecast for that step."""
    tokens_per_s: float | None
    """Over all ranks, in about the last half minute of this segment's training."""
    mfu: float | None
    """Model FLOP utilization in that time."""
    remaining_s: float | None
    """Seconds to the end at this rate, for a running run."""
    straggler: str
    """The slowest rank of a running run, its node, and how much slower it is than its peers; empty without one."""
    restarts: int
    """How often it was resumed or requeued."""
    nodes: str
    """Where it is running, or was last: SLURM's nodes, or a host."""
    job: str
    """Id of its newest SLURM job; empty where it never had one."""
    excluded: tuple[str, ...]
    """Nodes that its job's preflight excluded, and why."""
    expected_start: str
    """When a pending job is expected to start, local time; empty where SLURM does not know."""
    counts: dict[str, int | float]
    """Size and length of the whole run (`RunSpec.counts`)."""

    @property
    def in_progress(self) -> bool:
        """Whether it is running, or will start without anyone's help."""
        return self.state in ("running", "pending", "requeued")

    def plain(self) -> dict[str, Any]:
        """For programs."""
        plain = {name: value for name, value in self.__dict__.items() if name != "counts"} | self.counts
        if self.forecast is not None and self.loss is not None:
            plain["forecast"] = self.forecast.__dict__ | {"loss_is": self.forecast.compare(self.loss)}
        return plain


def status_of(request: RunRequest, folder: RunFolder, slurm: JobStates, owner: Owner | None) -> RunStatus:
    """The state of a run; `owner` is the live process that holds its folder."""
    run, steps = request.run.fingerprint(), request.run.optim.steps
    try:
        records = folder.records()
    except DocumentError as error:
        records, damaged = [], str(error)
    else:
        damaged = ""
    starts = [line for line in records if isinstance(line, Start)]
    live = slurm.live.get(run)
    timed = list(last_lines(folder.timing_jsonl))  # before the metrics, which are written first
    metrics, evaluated = last_line(folder.metrics_jsonl) or {}, last_line(folder.evals_jsonl) or {}
    restarting = _is_restarting(live, starts)
    if restarting:  # lines beyond its newest checkpoint are about to be truncated
        from_step = folder.newest_step
        metrics = metrics if metrics.get("step", 0) <= from_step else {"step": from_step}
        evaluated = evaluated if evaluated.get("step", 0) <= from_step else {}
    step = int(metrics.get("step", 0))
    rate, mfu = (None, None) if restarting else _rates(timed, starts[-1].from_step if starts else 0, step)
    state, end_reason = _state(run, folder, records, slurm, owner)
    if damaged:
        state, end_reason = "unknown", damaged
    running = state == "running"
    return RunStatus(
        run=run,
        title=request.title,
        state=state,
        pending_reason=live.reason if live is not None and live.pending else "",
        end_reason=end_reason,
        step=step,
        steps=steps,
        train_loss=metrics.get("loss"),
        loss=evaluated.get("loss"),
        loss_step=evaluated.get("step"),
        forecast=_forecast(request.order.curve, evaluated.get("step")),
        tokens_per_s=rate,
        mfu=mfu,
        remaining_s=(steps - step) * request.run.batch_tokens / rate if running and rate else None,
        straggler=_straggler(folder, starts) if running else "",
        restarts=max(len(starts) - (not restarting), live.restarts if live else 0, 0),
        nodes=_nodes(live.nodes if live else "", owner if running else None, starts),
        job=slurm.jobs.get(run, ""),
        excluded=exclusions(records, slurm.jobs[run]) if run in slurm.jobs and state != "finished" else (),
        expected_start=live.start_time if live is not None and live.pending else "",
        counts=request.run.counts(),
    )


def _straggler(folder: RunFolder, starts: Sequence[Start]) -> str:
    found = straggler_now(folder.newest_ranks(), starts)
    return "" if found is None else str(found)


def answered(folder: RunFolder, slurm: JobStates) -> bool:
    """Whether SLURM says whether a run is running, and no process need be looked for."""
    run = folder.path.name
    return run in slurm.live or (run in slurm.jobs and slurm.reliable and not _started_here(folder))


def _started_here(folder: RunFolder) -> bool:
    """Whether a run's last start was none of SLURM's."""
    try:
        starts = [line for line in folder.records() if isinstance(line, Start)]
    except DocumentError:
        return False
    return bool(starts) and starts[-1].job is None


def _is_restarting(live: LiveJob | None, starts: Sequence[Start]) -> bool:
    """Whether a resumed run's job is running, but the run has not written its Start line yet."""
    if live is None or live.state != "RUNNING" or not starts:
        return False
    return not (starts[-1].job or "").startswith(f"{live.job}, restart {live.restarts},")


def _state(
    run: str,
    folder: RunFolder,
    records: Sequence[RecordLine],
    slurm: JobStates,
    owner: Owner | None,
) -> tuple[State, str]:
    """A run's state, and what ended its last segment."""
    live, job = slurm.live.get(run), slurm.jobs.get(run, "")
    starts = [line for line in records if isinstance(line, Start)]
    on_slurm = bool(job) and not (starts and starts[-1].job is None)
    if records and isinstance(records[-1], End):
        return "finished", ""
    if live is not None:
        if not live.pending:
            return "running", ""
        begun = live.restarts or starts
        return "held" if live.held else "requeued" if begun else "pending", recorded_end(records)
    if owner is not None and not (on_slurm and slurm.reliable):
        return "running", ""
    if on_slurm and slurm.problem:
        return "unknown", f"its last job was {job}, whose state is unknown while SLURM does not answer"
    if not on_slurm:
        return why_not_running(folder, records, "", None)
    return why_not_running(
        folder,
        records,
        job,
        end.state if (end := slurm.ended.get(run)) else None,
        cancelled=run in slurm.cancelled,
        script_failure=slurm.script_failures.get(run, ""),
    )


def _rates(
    timed: Sequence[Mapping[str, Any]], from_step: int, step: int
) -> tuple[float | None, float | None]:
    """Tokens per second and MFU of a segment's last steps, from its newest lines up to `step`.

    A newest line beyond `step` is of an earlier segment, whose steps were lost.
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
    """SLURM's nodes; else the host of the running process, or of the last start."""
    if now:
        return now
    if owner is not None:
        return owner.host
    if not starts:
        return ""
    job = starts[-1].job
    return job.rpartition(" on ")[2] if job else starts[-1].environment.host
