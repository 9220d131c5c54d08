"""What `isoplan status` looks at: runs of plans, the chain of a budget, studies that go on by themselves.

A survey remembers the plans that it has read, so that looking again costs the runs' own files only.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runtime.launch.jobs import RunRequest, budget_folder, cluster_of, from_plan
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lookup import find_run, workspace_of
from runtime.run_folder.workspace import Workspace
from runtime.slurm.job_states import JobStates, job_states
from runtime.status.run_status import RunStatus, status_of
from runtime.study import chain_steps, runs_of
from specs.budget import Budget
from specs.document.files import DocumentError, is_file, load, load_any
from specs.humanize import Losses
from specs.plan import Plan
from specs.record import Audit
from specs.run import RunSpec
from specs.slurm_submission import StudyState, Submission

QueryJobs = Callable[[Workspace, Sequence[str], Sequence[str]], JobStates]
"""Asks SLURM where runs are, and jobs that go on with studies; as `job_states` does."""
_NAME_PREFIX = 50
"""Characters of a submission's name that are its budget's and its kind's (runtime/slurm/submit.py)."""


@dataclass(frozen=True)
class RunGroup:
    """Runs that belong together: a plan's, or one alone."""

    plan: Path | None
    """Their plan; None where there is none."""
    name: str
    """The budget's name; empty without a plan."""
    phase: Literal["pilots", "target", ""]
    """What the plan is of."""
    losses: Losses
    """How their losses are shown."""
    wanted: tuple[tuple[RunRequest, RunFolder], ...]
    """The runs, and where each is or would be."""
    slurm: bool = False
    """Whether its cluster's file says how they are queued."""


@dataclass(frozen=True)
class StudyStatus:
    """A study that goes on by itself, or did."""

    name: str
    """The budget's name."""
    state: Literal["waiting", "held", "done", "stopped", "cancelled", "lost"]
    """`held` waits for a person to release its job, `lost` for a job that SLURM does not have."""
    said: str
    """How far it is, and what to do next, in one line."""

    @property
    def in_progress(self) -> bool:
        """Whether it will go on by itself."""
        return self.state == "waiting"


@dataclass(frozen=True)
class StatusSnapshot:
    """How everything stood at one look."""

    groups: tuple[tuple[RunGroup, tuple[RunStatus, ...]], ...]
    """Runs by plan."""
    chain_steps: tuple[tuple[str, str], ...]
    """The steps of the budget that was asked for, each with how far it is; empty where none was."""
    studies: tuple[StudyStatus, ...]
    """Studies that go on by themselves."""
    silent: str
    """Why SLURM could not be asked; empty where it was, or had not to be."""
    unread: tuple[str, ...]
    """Plans that cannot be read, and why."""
    elsewhere: str
    """Which folder was looked in, and which to change to, where what was asked for has its own; empty elsewhere."""

    @property
    def runs(self) -> list[RunStatus]:
        """All runs."""
        return [run for _, runs in self.groups for run in runs]

    @property
    def in_progress(self) -> bool:
        """Whether anything will go on by itself."""
        pending = self.silent and any(run.state == "unknown" for run in self.runs)
        held = {group.name for group, runs in self.groups if any(run.held for run in runs)}
        studies = any(study.in_progress and study.name not in held for study in self.studies)
        return bool(pending or studies or any(run.in_progress for run in self.runs))

    def next_of(self, group: RunGroup, runs: Sequence[RunStatus]) -> str:
        """What to do next about runs, in one line; empty where there is nothing, or their study says it."""
        held = [run.job for run in runs if run.held]
        if held:
            return f"see why SLURM holds what is queued, then: scontrol release {','.join(held)}"
        return "" if any(study.name == group.name for study in self.studies) else next_step(group, runs)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "plans": [
                {
                    "plan": None if group.plan is None else str(group.plan),
                    "budget": group.name,
                    "phase": group.phase,
                    "bytes_per_token": group.losses.bytes_per_token,
                    "runs": [run.plain() for run in runs],
                    "next": self.next_of(group, runs),
                }
                for group, runs in self.groups
            ],
            "chain": [{"step": name, "state": state} for name, state in self.chain_steps],
            "studies": [study.__dict__ for study in self.studies],
            "slurm_is_silent": self.silent,
            "unread": list(self.unread),
            "elsewhere": self.elsewhere,
        }


class StatusCollector:
    """What was asked for: a document, a run, or everything under plans/."""

    def __init__(self, workspace: Workspace, asked: Path | None) -> None:
        """DocumentError where nothing of ours is meant."""
        self.workspace = workspace
        self.asked = asked
        self._known: dict[Path, tuple[int, RunGroup | str]] = {}
        document = load_any(asked) if asked is not None and _is_document(asked) else None
        self._budget = document if isinstance(document, Budget) else None
        self._plan = asked if isinstance(document, Plan) else None
        self._run: RunFolder | None = None
        if isinstance(document, RunSpec):
            self._run = find_run(Path(document.fingerprint()), workspace)
        elif asked is not None and document is None:
            self._run = find_run(asked, workspace)
            self.workspace = workspace_of(self._run, workspace)
        elif asked is not None and not isinstance(document, Budget | Plan):
            raise DocumentError(
                asked, 1, 1, "this is neither a budget, nor a plan, nor a run spec", "name one of these"
            )

    @property
    def budget(self) -> str:
        """The name of the budget that was asked for; empty where none was."""
        return "" if self._budget is None else self._budget.name

    def groups(self) -> list[RunGroup]:
        """The runs that were asked for; what could not be read is left out."""
        if self._run is not None:
            return [self._alone(self._run)]
        return [group for path in self._plans() if isinstance(group := self._group(path), RunGroup)]

    def collect(self, locate: QueryJobs = job_states) -> StatusSnapshot:
        """How everything stands now."""
        groups = self.groups()
        folders = {folder.path.name: one for group in groups for one, folder in group.wanted}
        noted = self._studies(groups)
        open_ = [run for run, one in folders.items() if not one.finished(self.workspace)]
        jobs = [state.submission for state in noted.values() if state.submission is not None]
        where = locate(self.workspace, open_, jobs)
        looked = tuple(
            (group, tuple(status_of(one, folder, where) for one, folder in group.wanted)) for group in groups
        )
        studies = tuple(
            _study_status(name, state, where, self._again(name), _target_loss(name, looked))
            for name, state in noted.items()
        )
        unread = tuple(said for path in self._plans() if isinstance(said := self._group(path), str))
        return StatusSnapshot(looked, self._chain(), studies, where.problem, unread, self.elsewhere(groups))

    def elsewhere(self, groups: Sequence[RunGroup]) -> str:
        """Which folder was looked in, and which to change to, where the file that was asked for is of a workspace of
        its own and this one has nothing of it; empty where that is not so."""
        name = self.budget or next((group.name for group in groups if self._plan is not None), "")
        if self.asked is None or not name:
            return ""
        here = self.workspace.path.resolve()
        runs = [folder for group in groups for _, folder in group.wanted]
        if (here / "plans" / name).exists() or any(folder.path.exists() for folder in runs):
            return ""
        above = self.asked.resolve().parents
        other = next((one for one in above if (one / "plans" / name).exists() and one != here), None)
        if other is None:
            return ""
        return f"looked in {here}, which has nothing of {name}; {other} has: cd {shlex.quote(str(other))}"

    def _again(self, name: str) -> str:
        """The command that goes on with a study: with the file that was asked for, or its newest job was given."""
        if self.asked is not None and self.budget == name:
            return _continue_command(self.asked)
        beginning = f"{name}-study"[:_NAME_PREFIX]
        written = self.workspace.path.glob(f"slurm/{beginning}-??????/submission.json")
        known = {one.time: one.budget for path in written if (one := load(path, Submission)).budget}
        return _continue_command(Path(known[max(known)]) if known else None)

    def _plans(self) -> list[Path]:
        """The plans that were asked for and are there."""
        if self._run is not None:
            return []
        if self._plan is not None:
            return [self._plan]
        if self._budget is not None:
            paths = [self.workspace.plan(self._budget.name, phase) for phase in ("pilots", "target")]
            return [path for path in paths if path.exists()]
        return sorted((self.workspace.path / "plans").glob("*/plan.*.yaml"))

    def _group(self, path: Path) -> RunGroup | str:
        """A plan's runs, read again when it has changed; what is wrong with it where it cannot be read."""
        changed_ns = path.stat().st_mtime_ns
        if path not in self._known or self._known[path][0] != changed_ns:
            try:
                self._known[path] = changed_ns, _group_of(path, self.workspace)
            except DocumentError as error:
                self._known[path] = changed_ns, str(error)
        return self._known[path][1]

    def _alone(self, folder: RunFolder) -> RunGroup:
        """A run by itself, as its plan has it where that is still there."""
        order = folder.order()
        for path in sorted((self.workspace.path / "plans").glob("*/plan.*.yaml")):
            if order.seal is None or order.seal not in path.read_text(errors="replace"):
                continue
            group = self._group(path)
            if isinstance(group, RunGroup):
                own = tuple((one, folder) for one, _ in group.wanted if one.run.fingerprint() == order.run)
                return replace(group, wanted=own)
        one = RunRequest(folder.run_json, "", order.title, folder.run(), order, 0.0)
        return RunGroup(None, "", "", Losses(None), ((one, folder),))

    def _studies(self, groups: Sequence[RunGroup]) -> dict[str, StudyState]:
        """Studies of the plans and the budget that were asked for, by name."""
        names = {group.name for group in groups if group.name}
        names |= {self._budget.name} if self._budget is not None else set()
        return {name: noted for name in sorted(names) if (noted := self.workspace.noted(name)) is not None}

    def _chain(self) -> tuple[tuple[str, str], ...]:
        if self._budget is None:
            return ()
        try:
            return tuple(chain_steps(self.workspace, self._budget, self._wanted))
        except DocumentError as error:
            return (("plan", str(error)),)

    def _wanted(self, plan: Path) -> list[RunRequest]:
        group = self._group(plan)
        return [one for one, _ in group.wanted] if isinstance(group, RunGroup) else list(runs_of(plan))


def _is_document(asked: Path) -> bool:
    return asked.is_file() or is_file(asked.name)


def _group_of(path: Path, workspace: Workspace) -> RunGroup:
    plan = load(path, Plan)
    wanted = from_plan(plan, path)
    placed = tuple((one, RunFolder(one.folder(workspace))) for one in wanted)
    return RunGroup(path, plan.budget.name, plan.phase, plan.losses, placed, _is_queued(plan, path))


def _is_queued(plan: Plan, path: Path) -> bool:
    try:
        _, cluster = cluster_of(plan.budget, budget_folder(plan, path), path)
    except DocumentError:
        return False
    return "slurm" in cluster.model_fields_set


def _continue_command(budget: Path | None) -> str:
    file = "its budget" if budget is None else shlex.quote(str(budget))
    return f"run {file} --slurm --until-done"


def _target_loss(name: str, looked: Sequence[tuple[RunGroup, Sequence[RunStatus]]]) -> str:
    """The target's loss and its forecast as the table has them, where that is not in nats per token."""
    for group, runs in looked:
        if (group.name, group.phase) != (name, "target") or group.losses.bytes_per_token is None:
            continue
        for run in runs:
            if run.state == "finished" and run.loss is not None:
                told = f", forecast {group.losses.text(run.forecast.median)}" if run.forecast else ""
                return f"{group.losses.text(run.loss)} {group.losses.unit}{told}"
    return ""


def _study_status(name: str, noted: StudyState, where: JobStates, again: str, outcome: str) -> StudyStatus:
    """How a study stands, and what to do next; `again` is the command that goes on with it."""
    if noted.state == "done":
        said = f"{noted.message} ({outcome})" if outcome else noted.message
        return StudyStatus(name, "done", f"done, {said}; see plans/{name}/audit.html")
    if noted.state == "stopped":
        return StudyStatus(name, "stopped", f"stopped, {noted.message}; see to that, then to go on: {again}")
    if noted.state == "cancelled" or noted.submission in where.cancelled:
        return StudyStatus(name, "cancelled", f"cancelled; to go on: {again}")
    job = where.studies.get(noted.submission or "")
    if job is not None and job.held:
        said = f"{noted.message}, and SLURM holds its job ({job.reason}): scontrol release {job.job}"
        return StudyStatus(name, "held", said)
    if job is not None:
        end_reason = f", {job.reason}" if job.reason else ""
        return StudyStatus(
            name,
            "waiting",
            f"goes on by itself, {noted.message} (job {job.job}, {job.state.lower()}{end_reason})",
        )
    if not where.reliable:
        return StudyStatus(name, "waiting", f"went on by itself, {noted.message}, when SLURM was asked last")
    return StudyStatus(
        name, "lost", f"was to go on by itself, but SLURM no longer has its job; to go on: {again}"
    )


def next_step(group: RunGroup, runs: Sequence[RunStatus]) -> str:
    """What to do next about runs of which none will go on by itself, in one line; empty where there is nothing."""
    if any(run.in_progress for run in runs) or group.plan is None:
        return ""
    plan = shlex.quote(str(group.plan))
    if all(run.state == "finished" for run in runs):
        verdict = group.plan.parent / f"audit.{group.phase}.json"
        return "" if _has_verdict(verdict) else f"every run is finished; next: audit {plan}"
    if any(run.state == "unknown" for run in runs):
        return ""
    rest = [run for run in runs if run.state != "finished"]
    begun = any(run.step for run in rest)
    here = any(run.nodes and not run.job for run in rest)
    slurm = " --slurm" if any(run.job for run in rest) or (group.slurm and not here) else ""
    return f"run {plan}{slurm}" + (" goes on from the newest checkpoints" if begun else " starts the rest")


def _has_verdict(verdict: Path) -> bool:
    return verdict.exists() and load(verdict, Audit).verdict != "cannot tell"


def count_states(runs: Sequence[RunStatus]) -> Mapping[str, int]:
    """How many runs are in each state, in the order in which states are shown."""
    order = (
        "finished", "at work", "requeued", "queued", "failed", "cancelled", "stopped", "unknown", "not started"
    )  # fmt: skip
    counts = {state: sum(run.state == state for run in runs) for state in order}
    return {state: number for state, number in counts.items() if number}
