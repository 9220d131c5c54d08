"""What `isoplan status` shows: runs of plans, the steps of a budget, studies that continue automatically.

A collector remembers the plans that it has read, so that a refresh reads only the runs' own files.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.launch.jobs import RunRequest, budget_folder, cluster_of, from_plan
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.lock import OwnerWatch
from runtime.run_folder.lookup import find_run, workspace_of
from runtime.run_folder.workspace import Workspace
from runtime.slurm.job_states import JobStates, job_states
from runtime.status.run_status import RunStatus, answered, status_of
from runtime.study import chain_steps, runs_of
from specs.budget import Budget
from specs.data_inputs import InputFileError
from specs.data_jobs import DataJobs, jobs_path
from specs.document.files import DocumentError, is_file, load
from specs.humanize import Losses
from specs.plan import Plan
from specs.plan_file import load_document, load_plan
from specs.record import Audit
from specs.run import RunSpec
from specs.slurm_submission import StudyState, Submission
from specs.sources import Sources, find_sources

if TYPE_CHECKING:
    from runtime.slurm.data_state import DataState

QueryJobs = Callable[[Workspace, Sequence[str], Sequence[str]], JobStates]
"""Queries SLURM for the jobs of runs and of studies, as `job_states` does."""
_NAME_PREFIX = 50
"""Characters of a submission's name before its random end (runtime/slurm/submit.py)."""


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
    requests: tuple[tuple[RunRequest, RunFolder], ...]
    """The runs, each with its folder, which may not exist yet."""
    slurm: bool = False
    """Whether the cluster file has a slurm section."""


@dataclass(frozen=True)
class StudyStatus:
    """The state of a study that was started with --until-done."""

    name: str
    """The budget's name."""
    state: Literal["waiting", "held", "done", "stopped", "cancelled", "lost"]
    """`held`: its job is pending until it is released; `lost`: SLURM no longer has its job."""
    message: str
    """Its state, and what to do next, in one line."""

    @property
    def in_progress(self) -> bool:
        """Whether it continues automatically."""
        return self.state == "waiting"


@dataclass(frozen=True)
class StatusSnapshot:
    """The states of all runs and studies at one time."""

    groups: tuple[tuple[RunGroup, tuple[RunStatus, ...]], ...]
    """Runs by plan."""
    chain_steps: tuple[tuple[str, str], ...]
    """The steps of the requested budget, each with its state; empty where another document is requested."""
    studies: tuple[StudyStatus, ...]
    """Studies that were started with --until-done."""
    slurm_problem: str
    """Why SLURM did not answer; empty where it did, or was not needed."""
    unreadable: tuple[str, ...]
    """Plans that cannot be read, and why."""
    other_workspace: str
    """That the requested document belongs to another workspace, and which; empty where it does not."""
    data: "DataState | None" = None
    """The jobs that build the requested budget's corpus; None where there are none."""

    @property
    def runs(self) -> list[RunStatus]:
        """All runs."""
        return [run for _, runs in self.groups for run in runs]

    @property
    def in_progress(self) -> bool:
        """Whether anything is running, or continues automatically."""
        unknown = self.slurm_problem and any(run.state == "unknown" for run in self.runs)
        held = {group.name for group, runs in self.groups if any(run.state == "held" for run in runs)}
        studies = any(study.in_progress and study.name not in held for study in self.studies)
        data = self.data is not None and self.data.in_progress
        return bool(unknown or studies or data or any(run.in_progress for run in self.runs))

    def next_of(self, group: RunGroup, runs: Sequence[RunStatus]) -> str:
        """What to do next about runs, in one line; empty where there is nothing to do, or their study says it."""
        held = [run.job for run in runs if run.state == "held"]
        if held:
            return f"check why the jobs are held, then: scontrol release {','.join(held)}"
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
            "data": None if self.data is None else self.data.plain(),
            "studies": [study.__dict__ for study in self.studies],
            "slurm_problem": self.slurm_problem,
            "unreadable": list(self.unreadable),
            "other_workspace": self.other_workspace,
        }


class StatusCollector:
    """Collects the states of the target's runs: a document's, one run, or everything under plans/."""

    def __init__(self, workspace: Workspace, target: Path | None) -> None:
        """DocumentError where the target is no budget, plan, run spec or run."""
        self.workspace = workspace
        self.target = target
        self._owners = OwnerWatch()
        self._known: dict[Path, tuple[int, RunGroup | str]] = {}
        document = load_document(target) if target is not None and _is_document(target) else None
        self._budget = document if isinstance(document, Budget) else None
        self._plan = target if isinstance(document, Plan) else None
        self._run: RunFolder | None = None
        if isinstance(document, RunSpec):
            self._run = find_run(Path(document.fingerprint()), workspace)
        elif target is not None and document is None:
            self._run = find_run(target, workspace)
            self.workspace = workspace_of(self._run, workspace)
        elif target is not None and not isinstance(document, Budget | Plan):
            raise DocumentError(
                target, 1, 1, "this is not a budget, a plan or a run spec", "name one of these"
            )

    @property
    def budget(self) -> str:
        """The name of the target budget; empty where the target is something else."""
        return "" if self._budget is None else self._budget.name

    @property
    def is_single_run(self) -> bool:
        """Whether the target is one run."""
        return self._run is not None

    def groups(self) -> list[RunGroup]:
        """The target's runs; plans that cannot be read are skipped."""
        if self._run is not None:
            return [self._alone(self._run)]
        return [group for path in self._plans() if isinstance(group := self._group(path), RunGroup)]

    def collect(self, query: QueryJobs = job_states) -> StatusSnapshot:
        """Collect all states now."""
        groups = self.groups()
        requests = {folder.path.name: one for group in groups for one, folder in group.requests}
        noted = self._studies(groups)
        unfinished = [run for run, one in requests.items() if not one.finished(self.workspace)]
        submissions = [state.submission for state in noted.values() if state.submission is not None]
        slurm = query(self.workspace, unfinished, submissions)
        folders = [folder for group in groups for _, folder in group.requests]
        owners = self._owners.owners(
            [one.path for one in folders if one.path.name in unfinished and not answered(one, slurm)]
        )
        with_states = tuple(
            (
                group,
                tuple(
                    status_of(one, folder, slurm, owners.get(folder.path)) for one, folder in group.requests
                ),
            )
            for group in groups
        )
        studies = tuple(
            _study_status(name, state, slurm, self._continue_command(name), _target_loss(name, with_states))
            for name, state in noted.items()
        )
        unreadable = tuple(error for path in self._plans() if isinstance(error := self._group(path), str))
        other = self.other_workspace(groups)
        data = self._data_state()
        chain = self._chain(data)
        return StatusSnapshot(with_states, chain, studies, slurm.problem, unreadable, other, data)

    def other_workspace(self, groups: Sequence[RunGroup]) -> str:
        """That the target document belongs to another workspace and this one has no runs of it, and which; empty where
        that is not so."""
        name = self.budget or next((group.name for group in groups if self._plan is not None), "")
        if self.target is None or not name:
            return ""
        here = self.workspace.path.resolve()
        runs = [folder for group in groups for _, folder in group.requests]
        if (here / "plans" / name).exists() or any(folder.path.exists() for folder in runs):
            return ""
        above = self.target.resolve().parents
        other = next((one for one in above if (one / "plans" / name).exists() and one != here), None)
        if other is None:
            return ""
        return f"the runs of {name} are in {other}, not in {here}; change to that folder: cd {shlex.quote(str(other))}"

    def _continue_command(self, name: str) -> str:
        """The command that continues a study, with the target budget, or the one that its newest job was given."""
        if self.target is not None and self.budget == name:
            return _run_study(self.target)
        beginning = f"{name}-study"[:_NAME_PREFIX]
        written = self.workspace.path.glob(f"slurm/{beginning}-??????/submission.json")
        known = {one.time: one.budget for path in written if (one := load(path, Submission)).budget}
        return _run_study(Path(known[max(known)]) if known else None)

    def _plans(self) -> list[Path]:
        """The target's plans that exist."""
        if self._run is not None:
            return []
        if self._plan is not None:
            return [self._plan]
        if self._budget is not None:
            paths = [self.workspace.plan(self._budget.name, phase) for phase in ("pilots", "target")]
            return [path for path in paths if path.exists()]
        return sorted((self.workspace.path / "plans").glob("*/plan.*.yaml"))

    def _group(self, path: Path) -> RunGroup | str:
        """A plan's runs, read again when it has changed; the error where it cannot be read."""
        changed_ns = path.stat().st_mtime_ns
        if path not in self._known or self._known[path][0] != changed_ns:
            try:
                self._known[path] = changed_ns, _group_of(path, self.workspace)
            except DocumentError as error:
                self._known[path] = changed_ns, str(error)
        return self._known[path][1]

    def _alone(self, folder: RunFolder) -> RunGroup:
        """A single run, as in its plan where that still exists."""
        order = folder.order()
        for path in sorted((self.workspace.path / "plans").glob("*/plan.*.yaml")):
            if order.seal is None or order.seal not in path.read_text(errors="replace"):
                continue
            group = self._group(path)
            if isinstance(group, RunGroup):
                own = tuple((one, folder) for one, _ in group.requests if one.run.fingerprint() == order.run)
                return replace(group, requests=own)
        one = RunRequest(folder.run_json, "", order.title, folder.run(), order, 0.0)
        return RunGroup(None, "", "", Losses(None), ((one, folder),))

    def _studies(self, groups: Sequence[RunGroup]) -> dict[str, StudyState]:
        """The noted states of the studies of these plans and the target budget, by name."""
        names = {group.name for group in groups if group.name}
        names |= {self._budget.name} if self._budget is not None else set()
        return {
            name: noted for name in sorted(names) if (noted := self.workspace.study_state(name)) is not None
        }

    def data_jobs(self) -> DataJobs | None:
        """The jobs that are noted to build the target budget's corpus; None where there are none."""
        if self._budget is None or self.target is None:
            return None
        path = jobs_path(self._budget.data, self.target.parent, self.workspace.data)
        return load(path, DataJobs) if path.exists() else None

    def _data_state(self) -> "DataState | None":
        """How far the jobs are that build the target budget's corpus; None where it is built, or there are none."""
        jobs = self.data_jobs()
        if jobs is None or isinstance(
            find_sources(jobs.spec, Path(jobs.folder), self.workspace.data), Sources
        ):
            return None
        from runtime.slurm.data_state import data_state  # takes a second

        return data_state(self.workspace, jobs)

    def _chain(self, data: "DataState | None") -> tuple[tuple[str, str], ...]:
        if self._budget is None or self.target is None:
            return ()
        try:
            steps = chain_steps(self.workspace, self._budget, self.target, self._requests)
        except DocumentError as error:
            return (("plan", str(error)),)
        if data is not None:
            message = data.message(f"isoplan data {shlex.quote(str(self.target))} --slurm")
            steps = [("data", message) if name == "data" else (name, state) for name, state in steps]
        return tuple(steps)

    def _requests(self, plan: Path) -> list[RunRequest]:
        group = self._group(plan)
        return [one for one, _ in group.requests] if isinstance(group, RunGroup) else list(runs_of(plan))


def _is_built(jobs: DataJobs, workspace: Workspace) -> bool:
    try:
        return isinstance(find_sources(jobs.spec, Path(jobs.folder), workspace.data), Sources)
    except InputFileError:  # of its text
        return False


def _is_document(target: Path) -> bool:
    return target.is_file() or is_file(target.name)


def _group_of(path: Path, workspace: Workspace) -> RunGroup:
    plan = load_plan(path)
    requests = tuple((one, RunFolder(one.folder(workspace))) for one in from_plan(plan, path))
    return RunGroup(path, plan.budget.name, plan.phase, plan.losses, requests, _uses_slurm(plan, path))


def _uses_slurm(plan: Plan, path: Path) -> bool:
    try:
        _, cluster = cluster_of(plan.budget, budget_folder(plan, path), path)
    except DocumentError:
        return False
    return "slurm" in cluster.model_fields_set


def _run_study(budget: Path | None) -> str:
    file = "BUDGET" if budget is None else shlex.quote(str(budget))
    return f"run {file} --slurm --until-done"


def _target_loss(name: str, groups: Sequence[tuple[RunGroup, Sequence[RunStatus]]]) -> str:
    """The target's loss and its forecast in the table's unit, where that is not nats per token."""
    for group, runs in groups:
        if (group.name, group.phase) != (name, "target") or group.losses.bytes_per_token is None:
            continue
        for run in runs:
            if run.state == "finished" and run.loss is not None:
                forecast = f", forecast {group.losses.text(run.forecast.median)}" if run.forecast else ""
                return f"{group.losses.text(run.loss)} {group.losses.unit}{forecast}"
    return ""


def _study_status(
    name: str, noted: StudyState, slurm: JobStates, command: str, target_loss: str
) -> StudyStatus:
    """A study's state, and what to do next; `command` continues it."""
    if noted.state == "done":
        message = f"{noted.message} ({target_loss})" if target_loss else noted.message
        return StudyStatus(name, "done", f"done, {message}; see plans/{name}/audit.html")
    if noted.state == "stopped":
        return StudyStatus(
            name, "stopped", f"stopped: {noted.message}; fix that, then continue with: {command}"
        )
    if noted.state == "cancelled" or noted.submission in slurm.cancelled:
        return StudyStatus(name, "cancelled", f"cancelled; continue with: {command}")
    job = slurm.studies.get(noted.submission or "")
    if job is not None and job.held:
        message = (
            f"{noted.message}, but its job is held ({job.reason}); release it: scontrol release {job.job}"
        )
        return StudyStatus(name, "held", message)
    if job is not None:
        reason = f", {job.reason}" if job.reason else ""
        state = f"job {job.job}, {job.state.lower()}{reason}"
        return StudyStatus(name, "waiting", f"continues automatically, {noted.message} ({state})")
    if not slurm.reliable:
        message = f"continues automatically, {noted.message}, as of the last answer from SLURM"
        return StudyStatus(name, "waiting", message)
    return StudyStatus(
        name, "lost", f"cannot continue: SLURM no longer has its job; continue with: {command}"
    )


def next_step(group: RunGroup, runs: Sequence[RunStatus]) -> str:
    """What to do next about runs of which none is in progress, in one line; empty where there is nothing to do."""
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
    return f"next: run {plan}{slurm}" + (", which resumes from the latest checkpoints" if begun else "")


def _has_verdict(verdict: Path) -> bool:
    return verdict.exists() and load(verdict, Audit).verdict != "cannot tell"


def count_states(runs: Sequence[RunStatus]) -> Mapping[str, int]:
    """The number of runs in each state, in the order in which states are shown."""
    order = (
        "finished", "running", "requeued", "pending", "held", "failed", "cancelled", "stopped", "unknown", "not started"
    )  # fmt: skip
    counts = {state: sum(run.state == state for run in runs) for state in order}
    return {state: number for state, number in counts.items() if number}
