"""From a plan or a run spec to jobs; what can be refused is refused here, before anything is made or started.

A refusal about a document points at its line. One about this machine (a folder, cores, disk space) is a
`RefusedError`.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from runtime.checkpoint.imported_weights import check_imported_weights
from runtime.launch.local import Job
from runtime.launch.machine import Machine
from runtime.run_folder.folder import open_folder
from runtime.run_folder.tail import last_line
from runtime.run_folder.workspace import RefusedError, Workspace
from specs.budget import Budget
from specs.cluster import Cluster
from specs.data import Corpus, DataSpec
from specs.document.files import DocumentError, catalog_path, from_catalog, is_file, load, locate
from specs.humanize import several
from specs.layout import Layout
from specs.plan import Forecast, Plan, PlannedRun
from specs.record import Order
from specs.run import Execution, RunSpec

_PASS_TOKENS = 4096
"""Tokens of a forward pass of a bare run spec: one sequence of the paper's context (DeepSeek LLM, section 2.2)."""
_CHECKPOINT_S = 60.0
"""Seconds between checkpoints of a bare run spec: our choice, a minute at most is trained twice after a crash."""
STATE_BYTES = 4 + 4 + 4
"""A parameter in a checkpoint: its fp32 master weight and two moments."""
_STEP_BYTES = 400
"""A step's lines in metrics.jsonl, timing.jsonl and TensorBoard's events (about 120 bytes each), rounded up."""


@dataclass(frozen=True)
class RunRequest:
    """A run that was asked for, and where."""

    document: Path
    """The plan or run spec."""
    field: str
    """Dotted path of the run in that document; empty for the document itself."""
    title: str
    """One line for tables."""
    run: RunSpec
    """What changes the numbers."""
    order: Order
    """What its ranks are told besides."""
    planned_s: float
    """Seconds it should take; for a bare run spec its FLOP, which orders a queue of one as well."""

    @property
    def on_gpu(self) -> bool:
        """Whether its ranks need a GPU each."""
        return self.order.execution.device == "cuda"

    def job(self, folder: Path) -> Job:
        """The job for the launcher, in this run folder."""
        return Job(
            folder=folder,
            title=self.title,
            ranks=self.order.execution.layout.devices,
            threads_per_rank=self.order.execution.threads_per_rank,
            on_gpu=self.on_gpu,
            steps=self.run.optim.steps,
            step_tokens=self.run.batch_tokens,
            compute_flop=self.run.compute_flop,
            planned_s=self.planned_s,
        )

    def refuse(self, field: str, what: str, write: str) -> DocumentError:
        """A refusal that points at a field of this run, named as in a plan."""
        at = f"{self.field}.{field}" if self.field else field.removeprefix("run.")
        return locate(self.document, at, f"{self.title}: {what}", write)

    def folder(self, workspace: Workspace) -> Path:
        """Its run folder, which may not exist."""
        return workspace.runs / self.run.fingerprint()

    def finished(self, workspace: Workspace) -> bool:
        """Whether its record has an end."""
        line = last_line(self.folder(workspace) / "record.jsonl")
        return line is not None and line.get("event") == "end"

    def disk_bytes(self) -> int:
        """Bytes that its folder may grow to: checkpoints of all state, and lines per step."""
        checkpoints = self.order.execution.retention.most(self.run.optim.steps)
        return self.run.model.params * STATE_BYTES * checkpoints + self.run.optim.steps * _STEP_BYTES


def from_plan(plan: Plan, path: Path) -> list[RunRequest]:
    """The runs of a plan."""
    return [_from_planned(plan, path, index, planned) for index, planned in enumerate(plan.runs)]


def _from_planned(plan: Plan, path: Path, index: int, planned: PlannedRun) -> RunRequest:
    forecast = plan.forecast if planned.role == "target" and isinstance(plan.forecast, Forecast) else None
    order = Order(
        run=planned.run.fingerprint(),
        title=planned.title,
        seal=plan.seal,
        execution=planned.execution,
        fallback_layouts=planned.fallback_layouts,
        peak_flop_per_s=_peak_flop_per_s(plan, path, planned),
        curve=None if forecast is None else forecast.curve,
    )
    return RunRequest(path, f"runs.{index}", planned.title, planned.run, order, planned.cost.hours * 3600)


def budget_folder(plan: Plan, path: Path) -> Path:
    """Where the plan's budget was: the ledger lies beside it. Paths in the budget are relative to it."""
    return (path.parent / plan.ledger).parent


def cluster_of(budget: Budget, folder: Path, named_in: Path) -> tuple[Path, Cluster]:
    """A budget's cluster, and the file that says so; `folder` is the budget's, `named_in` the document to blame."""
    if is_file(budget.cluster):
        path = folder / budget.cluster
        return path, load(path, Cluster)
    return catalog_path(Cluster, budget.cluster), from_catalog(Cluster, budget.cluster, named_in)


def _peak_flop_per_s(plan: Plan, path: Path, planned: PlannedRun) -> float | None:
    """A device's peak for MFU; None where the cluster's file is no longer there to say."""
    try:
        _, cluster = cluster_of(plan.budget, budget_folder(plan, path), path)
    except DocumentError:
        return None
    return cluster.device.peak_bf16 if planned.run.precision == "bf16" else cluster.device.peak_fp32


def from_run(run: RunSpec, path: Path, machine: Machine) -> list[RunRequest]:
    """A bare run spec, on one device: a GPU where there is one, else one process with every core."""
    batch = run.optim.batch_sequences
    fitting = [
        size for size in range(1, batch + 1) if batch % size == 0 and size * run.model.context <= _PASS_TOKENS
    ]
    execution = Execution(
        device="cuda" if machine.gpus else "cpu",
        layout=Layout(
            dp=1,
            pp=1,
            tp=1,
            sequence_parallel=False,
            micro_batch_sequences=max(fitting, default=1),
            recompute="none",
        ),
        threads_per_rank=1 if machine.gpus else machine.cores,
        checkpoint_interval_s=_CHECKPOINT_S,
    )
    title = f"run {run.fingerprint()}"
    order = Order(
        run=run.fingerprint(), title=title, seal=None, execution=execution, peak_flop_per_s=None, curve=None
    )
    return [RunRequest(path, "", title, run, order, run.compute_flop)]


class MissingResource(NamedTuple):
    """What this machine or workspace lacks for a run."""

    field: str
    """Of the run as a plan names it, that asks for it."""
    what: str
    """In words, with the numbers."""
    write: str
    """What to do about it."""


def check_runs(
    wanted: Sequence[RunRequest], workspace: Workspace, machine: Machine | None, limit: int | None
) -> None:
    """Refuse runs that cannot be carried out, the first problem first: DocumentError or RefusedError.

    Without a machine its devices are no question: they are another's.
    """
    for one in wanted:
        _check_layout(one)
        for lack in _missing(one, workspace, machine, limit):
            raise one.refuse(*lack)
        check_imported_weights(one.run, workspace.data)
    space = _missing_space(wanted, workspace)
    if space:
        raise RefusedError(f"{workspace.runs}: {space}; make room, or run in another folder")


def missing_resources(
    wanted: Sequence[RunRequest], workspace: Workspace, machine: Machine | None, limit: int | None
) -> tuple[str, ...]:
    """What `check_runs` would refuse runs for that another machine or workspace may have, each once, for a preview.

    DocumentError for a layout that no machine can carry out, and for weights to start from that are not here.
    """
    found: dict[str, None] = {}
    for one in wanted:
        _check_layout(one)
        check_imported_weights(one.run, workspace.data)
        found |= dict.fromkeys(lack.what for lack in _missing(one, workspace, machine, limit))
    space = _missing_space(wanted, workspace)
    return (*found, space) if space else tuple(found)


def _check_layout(one: RunRequest) -> None:
    layout = one.order.execution.layout
    problems = layout.problems(one.run.model, one.run.optim)
    if problems:
        raise one.refuse("execution.layout", problems[0], "plan again for a cluster of another size")


def _missing(
    one: RunRequest, workspace: Workspace, machine: Machine | None, limit: int | None
) -> Iterator[MissingResource]:
    if machine is not None:
        yield from _missing_devices(one, machine, limit)
    yield from _missing_data(one, workspace)


def _missing_devices(one: RunRequest, machine: Machine, limit: int | None) -> Iterator[MissingResource]:
    slots, kind = one.job(Path()).slots, "GPU" if one.on_gpu else "CPU core"
    all_there = len(machine.slots(on_gpu=one.on_gpu, limit=None))
    usable = len(machine.slots(on_gpu=one.on_gpu, limit=limit))
    if slots <= usable:
        return
    if slots <= all_there:
        write = f"leave out --devices, or give {slots:,}"
    elif usable:
        most = several(usable, kind)
        write = (
            f"name a cluster of at most {most} in the budget and plan it, or run where there are {slots:,}"
        )
    else:
        write = f"run where there are {slots:,}, or name a cluster without GPUs in the budget and plan it"
    yield MissingResource(
        "execution", f"it needs {several(slots, kind)} at once, and {usable} may be used here", write
    )


def _missing_data(one: RunRequest, workspace: Workspace) -> Iterator[MissingResource]:
    data = one.run.data
    if data.digest is None:
        what = "its text is only declared, so there is nothing here to train on"
        write = "write 'source: files' with paths in the budget, run 'isoplan data BUDGET', and plan again"
        yield MissingResource("run.data", what, write)
        return
    manifest = workspace.data / data.corpus / "manifest.json"
    source = one.document if one.field else "BUDGET"
    if not manifest.exists():
        yield MissingResource(
            "run.data", f"its corpus {manifest.parent} is not here", f"run: isoplan data {source}"
        )
        return
    there = load(manifest, Corpus)
    if there.digest != data.digest:
        what = f"its corpus was {data.digest[:16]} when it was planned, and {manifest.parent} holds {there.digest[:16]}"
        yield MissingResource("run.data", what, "bring that text back, or plan again under another name")


def _missing_space(wanted: Sequence[RunRequest], workspace: Workspace) -> str:
    """What is missing on disk, in words; empty where there is room."""
    needed = sum(one.disk_bytes() for one in wanted)
    there = workspace.runs if workspace.runs.exists() else workspace.path
    free = shutil.disk_usage(there).free
    if needed <= free:
        return ""
    return f"these runs may write {needed / 2**30:,.1f} GiB and {free / 2**30:,.1f} GiB are free"


def prepare_jobs(wanted: Sequence[RunRequest], workspace: Workspace) -> list[Job]:
    """Jobs for the runs, one per run folder; the folders are made and given their orders."""
    workspace.check_writable()
    distinct = {one.run.fingerprint(): one for one in wanted}
    return [one.job(open_folder(workspace.runs, one.run, one.order).path) for one in distinct.values()]


def data_of(document: Budget | Plan, path: Path) -> tuple[DataSpec, Path]:
    """The text that a budget or plan is about, and the folder that its paths are relative to."""
    if isinstance(document, Plan):
        return document.budget.data, budget_folder(document, path)
    return document.data, path.parent
