"""From a plan or a run spec to jobs, with all checks that are possible before anything is created or started.

An error in a document points at its line. One of this machine (a folder, cores, disk space) is a `RefusedError`.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from runtime.checkpoint.imported_weights import check_imported_weights
from runtime.data.corpus import load_unchanged
from runtime.data.errors import CorpusError
from runtime.launch.local import Job
from runtime.launch.machine import Machine
from runtime.run_folder.folder import open_folder
from runtime.run_folder.tail import last_line
from runtime.run_folder.workspace import RefusedError, Workspace
from specs.budget import Budget
from specs.cluster import Cluster
from specs.data import Corpus, DataSpec, MixCorpus
from specs.document.files import DocumentError, catalog_path, from_catalog, is_file, load, locate
from specs.humanize import several
from specs.layout import Layout
from specs.plan import Forecast, Plan, PlannedRun
from specs.record import Order
from specs.run import Execution, RunSpec
from specs.tracker import Tracker

_PASS_TOKENS = 4096
"""Tokens of a bare run spec's micro-batch: one sequence of DeepSeek LLM's context (section 2.2)."""
_CHECKPOINT_S = 60.0
"""Checkpoint interval of a bare run spec in seconds: our choice; a crash costs at most a minute of training."""
STATE_BYTES = 4 + 4 + 4
"""Bytes of a parameter in a checkpoint: its fp32 master weight and two moments."""
_STEP_BYTES = 400
"""A step's lines in metrics.jsonl, timing.jsonl and TensorBoard's events (about 120 bytes each), rounded up."""


@dataclass(frozen=True)
class RunRequest:
    """A requested run, and the document that requests it."""

    document: Path
    """The plan or run spec."""
    field: str
    """Dotted path of the run in that document; empty for the document itself."""
    title: str
    """One line for tables."""
    run: RunSpec
    """What changes the numbers."""
    order: Order
    """How its ranks carry it out."""
    planned_s: float
    """Planned seconds; for a bare run spec, which is alone in its queue, its FLOP."""
    memory_bytes: float | None = None
    """Memory of its fullest device by the plan; None for a bare run spec."""
    study: str = ""
    """Name of the plan's budget; empty for a bare run spec."""
    tracker: Tracker | None = None
    """Where the cluster file sends its curves."""

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
        """An error that points at a field of this run, named as in a plan."""
        at = f"{self.field}.{field}" if self.field else field.removeprefix("run.")
        return locate(self.document, at, f"{self.title}: {what}", write)

    def folder(self, workspace: Workspace) -> Path:
        """Its run folder, which may not exist yet."""
        return workspace.runs / self.run.fingerprint()

    def finished(self, workspace: Workspace) -> bool:
        """Whether its record ends with an End line."""
        line = last_line(self.folder(workspace) / "record.jsonl")
        return line is not None and line.get("event") == "end"

    def disk_bytes(self) -> int:
        """The most bytes that its folder may take: checkpoints, and the lines of all steps."""
        checkpoints = self.order.execution.retention.max_checkpoints(self.run.optim.steps)
        return self.run.model.params * STATE_BYTES * checkpoints + self.run.optim.steps * _STEP_BYTES


def from_plan(plan: Plan, path: Path) -> list[RunRequest]:
    """The runs of a plan."""
    return [_from_planned(plan, path, index, planned) for index, planned in enumerate(plan.runs)]


def _from_planned(plan: Plan, path: Path, index: int, planned: PlannedRun) -> RunRequest:
    forecast = plan.forecast if planned.role == "target" and isinstance(plan.forecast, Forecast) else None
    cluster = _cluster(plan, path)
    order = Order(
        run=planned.run.fingerprint(),
        title=planned.title,
        seal=plan.seal,
        execution=planned.execution,
        fallback_layouts=planned.fallback_layouts,
        peak_flop_per_s=None if cluster is None else cluster.device.peak_flop_per_s(planned.run.precision),
        curve=None if forecast is None else forecast.curve,
    )
    return RunRequest(
        document=path,
        field=f"runs.{index}",
        title=planned.title,
        run=planned.run,
        order=order,
        planned_s=planned.cost.hours * 3600,
        memory_bytes=planned.cost.memory_bytes,
        study=plan.budget.name,
        tracker=None if cluster is None else cluster.tracker,
    )


def budget_folder(plan: Plan, path: Path) -> Path:
    """Folder of the plan's budget, which holds the ledger; paths in the budget are relative to it."""
    return (path.parent / plan.ledger).parent


def cluster_of(budget: Budget, folder: Path, named_in: Path) -> tuple[Path, Cluster]:
    """A budget's cluster, and its file. `folder` is the budget's; an error points at the document `named_in`."""
    if is_file(budget.cluster):
        path = folder / budget.cluster
        return path, load(path, Cluster)
    return catalog_path(Cluster, budget.cluster), from_catalog(Cluster, budget.cluster, named_in)


def _cluster(plan: Plan, path: Path) -> Cluster | None:
    """The plan's cluster; None where its file is missing or unreadable, which a sealed plan does not need."""
    try:
        return cluster_of(plan.budget, budget_folder(plan, path), path)[1]
    except DocumentError:
        return None


def from_run(run: RunSpec, path: Path, machine: Machine, limit: int | None) -> list[RunRequest]:
    """A bare run spec, with at most `limit` devices: one process with the CPU cores, or one GPU, and with a limit data
    parallelism over as many as the batch divides by."""
    batch, gpus = run.optim.batch_sequences, len(machine.gpus)
    dp = max(size for size in range(1, min(limit or 1, gpus or 1) + 1) if batch % size == 0)
    share = batch // dp
    micro_batches = [
        size for size in range(1, share + 1) if share % size == 0 and size * run.model.context <= _PASS_TOKENS
    ]
    execution = Execution(
        device="cuda" if gpus else "cpu",
        layout=Layout(
            dp=dp,
            pp=1,
            tp=1,
            sequence_parallel=False,
            micro_batch_sequences=max(micro_batches, default=1),
            recompute="none",
        ),
        threads_per_rank=1 if gpus else min(machine.cores, limit or machine.cores),
        checkpoint_interval_s=_CHECKPOINT_S,
    )
    title = f"run {run.fingerprint()}"
    order = Order(
        run=run.fingerprint(), title=title, seal=None, execution=execution, peak_flop_per_s=None, curve=None
    )
    return [RunRequest(path, "", title, run, order, run.compute_flop)]


class MissingResource(NamedTuple):
    """A resource that a run needs and that this machine or workspace does not have."""

    field: str
    """The field that requires it, named as in a plan."""
    what: str
    """What is missing, with the numbers."""
    write: str
    """What to do about it."""


def check_runs(
    requests: Sequence[RunRequest], workspace: Workspace, machine: Machine | None, limit: int | None
) -> None:
    """DocumentError or RefusedError for the first problem of runs that cannot be carried out.

    Without a machine (on SLURM) its devices are not checked.
    """
    for request in requests:
        _check_layout(request)
        for missing in _missing(request, workspace, machine, limit):
            raise request.refuse(*missing)
        check_imported_weights(request.run, workspace.data)
    space = _missing_space(requests, workspace)
    if space:
        raise RefusedError(f"{workspace.runs}: {space}; free disk space, or run in another folder")


def missing_resources(
    requests: Sequence[RunRequest], workspace: Workspace, machine: Machine | None, limit: int | None
) -> tuple[str, ...]:
    """The resources that are missing here and make `check_runs` refuse the runs, each once, for a preview.

    DocumentError for a layout that is impossible anywhere, and for missing weights to start from.
    """
    found: dict[str, None] = {}
    for request in requests:
        _check_layout(request)
        check_imported_weights(request.run, workspace.data)
        found |= dict.fromkeys(missing.what for missing in _missing(request, workspace, machine, limit))
    space = _missing_space(requests, workspace)
    return (*found, space) if space else tuple(found)


def _check_layout(request: RunRequest) -> None:
    layout = request.order.execution.layout
    problems = layout.problems(request.run.model, request.run.optim)
    if problems:
        raise request.refuse(
            "execution.layout", problems[0], "plan the budget again for another number of devices"
        )


def _missing(
    request: RunRequest, workspace: Workspace, machine: Machine | None, limit: int | None
) -> Iterator[MissingResource]:
    if machine is not None:
        yield from _missing_devices(request, machine, limit)
    yield from _missing_data(request, workspace)


def _missing_devices(request: RunRequest, machine: Machine, limit: int | None) -> Iterator[MissingResource]:
    slots, kind = request.job(Path()).slots, "GPU" if request.on_gpu else "CPU core"
    present = len(machine.slots(on_gpu=request.on_gpu, limit=None))
    usable = len(machine.slots(on_gpu=request.on_gpu, limit=limit))
    if slots <= usable:
        return
    if slots <= present:
        write = f"omit --devices, or give at least {slots:,}"
    elif usable:
        most = several(usable, kind)
        write = f"plan the budget again for a cluster of at most {most}, or run on a machine with {slots:,}"
    else:
        write = f"run on a machine with {slots:,}, or plan the budget again for a cluster without GPUs"
    yield MissingResource(
        "execution", f"the run needs {several(slots, kind)}; available on this machine: {usable}", write
    )


def _missing_data(request: RunRequest, workspace: Workspace) -> Iterator[MissingResource]:
    data = request.run.data
    if data.digest is None:
        what = "data.text of the budget names no files (source: declared), so there is no corpus to train on"
        write = "write source: files with paths in the budget, then: isoplan data BUDGET; plan BUDGET"
        yield MissingResource("run.data", what, write)
        return
    source = request.document if request.field else "BUDGET"
    folders = _corpora(request.run, workspace)
    gone = next((folder for folder in folders if not (folder / "manifest.json").exists()), None)
    if gone is not None:
        yield MissingResource(
            "run.data", f"the run's corpus {gone} is missing", f"run: isoplan data {source}"
        )
        return
    manifest = workspace.data / data.corpus / "manifest.json"
    corpus = load(manifest, Corpus) if request.run.mix is None else load(manifest, MixCorpus)
    if corpus.digest != data.digest:
        holds = f"{manifest.parent} holds {str(corpus.digest)[:16]}"
        what = f"the run was planned on corpus {data.digest[:16]}, but {holds}"
        yield MissingResource(
            "run.data", what, "restore that text, or plan the budget again under another name"
        )
        return
    try:
        vocab = load_unchanged(workspace.data, data.corpus).any.vocab
    except CorpusError as error:
        what, _, write = str(error).rpartition("; ")
        yield MissingResource("run.data", what, write)
        return
    if vocab > request.run.model.vocab:
        what = (
            f"the corpus has {vocab:,} token ids, more than the {request.run.model.vocab:,} rows of the model"
        )
        yield MissingResource("run.model.vocab", what, f"write {vocab} or more")


def _corpora(run: RunSpec, workspace: Workspace) -> Iterator[Path]:
    """Folders of the run's corpus, and of those of a mix's sources."""
    folder = workspace.data / run.data.corpus
    yield folder
    if run.mix is not None:
        sources = load(folder / "manifest.json", MixCorpus).sources
        yield from (workspace.data / ref.corpus for ref in sources.values())


def _missing_space(requests: Sequence[RunRequest], workspace: Workspace) -> str:
    """Why the disk space is not enough; empty where it is."""
    needed = sum(request.disk_bytes() for request in requests)
    folder = workspace.runs if workspace.runs.exists() else workspace.path
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return ""
    return f"these runs may write {needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB are free"


def prepare_jobs(requests: Sequence[RunRequest], workspace: Workspace) -> list[Job]:
    """Jobs for the runs, one per run folder; creates the folders and writes their orders."""
    workspace.check_writable()
    distinct = {request.run.fingerprint(): request for request in requests}
    return [
        request.job(open_folder(workspace.runs, request.run, request.order).path)
        for request in distinct.values()
    ]


def data_of(document: Budget | Plan, path: Path) -> tuple[DataSpec, Path]:
    """The data of a budget or plan, and the folder that its paths are relative to."""
    if isinstance(document, Plan):
        return document.budget.data, budget_folder(document, path)
    return document.data, path.parent
