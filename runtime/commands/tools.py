"""`init`, `import`, `export`, `checkpoints`, `rehearse` and `doctor`. Nothing is decided here.

torch is imported only when one of them computes.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from runtime.commands.options import AsJson, Debug, PlanFile
from runtime.launch.machine import this_machine
from runtime.run_folder.lookup import find_run
from runtime.run_folder.workspace import RefusedError, Workspace
from specs.document.files import DocumentError, load
from specs.document.write import print_json, write_yaml
from specs.document.yaml_writer import yaml_text
from specs.plan_file import load_plan
from specs.run import Imported, RunSpec

if TYPE_CHECKING:
    from runtime.doctor.local import DoctorReport


def export_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="runs/<fingerprint>, or the first characters of it.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write.", show_default="exports/<fingerprint>/step-<step>"),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="Step of the checkpoint to export.", show_default="the newest")
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's weights and tokenizer as a folder that Hugging Face's transformers loads.

    config.json, safetensors and tokenizer.json: a LlamaForCausalLM in the run's precision.
    Exporting twice is free, and works while the run is in progress.
    """
    from runtime.checkpoint.export_hf import export
    from runtime.checkpoint.format import CheckpointError

    try:
        folder = export(find_run(run, Workspace(Path())), Path("data"), step, out, Console(stderr=json))
    except CheckpointError as error:
        raise RefusedError(f"{error}; choose another --step") from None
    if json:
        print_json({"folder": str(folder)})
        return
    Console().print(
        f"{escape(str(folder))}: load it with AutoModelForCausalLM.from_pretrained", soft_wrap=True
    )


def import_command(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a Hugging Face Llama.", show_default=False)
    ],
    run: Annotated[
        Path | None,
        typer.Option(help="A run spec to start from these weights.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run spec to write.", show_default="<run>.imported.yaml beside it"),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Copy a Llama's weights into the workspace, so that runs can start from them.

    They are checked, and stored under data/weights/ by the digest of their values.
    With --run, also writes a copy of that run spec with the weights' shape and with the weights as its parent.
    """
    from runtime.checkpoint.import_hf import import_weights, run_from

    stored = import_weights(source, Path("data"), Console(stderr=True))
    origin = Imported(sha256=stored.manifest.sha256)
    answer = {"folder": str(stored.folder), "sha256": origin.sha256}
    if run is None:
        lines = yaml_text({"model": stored.manifest.model.plain(), "parent": origin.plain()})
        text = f"{stored.folder}\nto start a run from it, write in its spec:\n{lines}"
    else:
        written = out or run.with_suffix(".imported.yaml")
        _write_run(written, run_from(stored, run, load(run, RunSpec), Path("data")))
        answer["run"] = str(written)
        text = f"{stored.folder}\nnext: run {written}"
    if json:
        print_json(answer)
    else:
        typer.echo(text.rstrip("\n"))


def _write_run(path: Path, run: RunSpec) -> None:
    """Write the spec; DocumentError where another document would be overwritten."""
    if path.exists() and load(path, RunSpec) != run:
        raise DocumentError(
            path, 1, 1, "this file exists and is a different run spec", "choose another name with --out"
        )
    write_yaml(path, run)


def rehearse_command(
    plan: PlanFile,
    rank: Annotated[
        str, typer.Option(metavar="all|N", help="One rank, or one of each kind of rank.")
    ] = "all",
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Rehearse a training step of a plan at its full size, without its cluster.

    The engine's own code runs on tensor shapes alone, at the plan's number of ranks.
    Shows each rank's memory and communication, compared with the planner's estimates.
    Of a plan with several runs, the one on the most devices is rehearsed.

    Exit codes: 0 all sends, receives and collectives match, 1 some do not, 2 bad input.
    """
    from runtime.rehearse.report import plain, show
    from runtime.rehearse.step import rehearse

    document = load_plan(plan)
    if rank != "all" and not rank.isdigit():
        raise RefusedError(f"--rank {rank}: this is not a rank; write all, or the number of a rank")
    planned = max(document.runs, key=lambda one: one.execution.layout.devices)
    try:
        rehearsal = rehearse(planned.run, planned.execution, None if rank == "all" else int(rank))
    except ValueError as error:
        raise RefusedError(f"{plan}: {planned.title}: {error}") from None
    if json:
        print_json(plain(rehearsal, document, planned))
    else:
        show(rehearsal, document, planned, Console())
    raise typer.Exit(1 if rehearsal.mismatch else 0)


def checkpoints_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="runs/<fingerprint>, or the first characters of it.", show_default=False
        ),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and check its digest.")] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Verify, then delete checkpoints that are damaged or past their retention."
        ),
    ] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List a run's checkpoints, and what its restarts have cost.

    --prune follows the run's own retention, never deletes the latest intact checkpoint, and refuses while
    the run is in progress.

    Exit codes: 0 no checkpoint is damaged, 1 some are, 2 bad input.
    """
    from runtime.checkpoint import inspect
    from runtime.checkpoint.export_hf import progress_bar

    folder, console = find_run(run, Workspace(Path())), Console(stderr=json)
    if verify or prune:
        total = sum(file.stat().st_size for file in folder.checkpoints.glob("step-*/*") if file.is_file())
        with progress_bar(console) as progress:
            task = progress.add_task("reading", total=total)
            lines = inspect.checkpoint_statuses(
                folder, lambda name, size: progress.update(task, advance=size, description=name)
            )
    else:
        lines = inspect.checkpoint_statuses(folder, None)
    finished = folder.end() is not None
    gone = inspect.prune(folder, lines) if prune else []
    left = [line for line in lines if line.path not in gone]
    if json:
        print_json({"checkpoints": [line.plain() for line in left], "removed": [str(path) for path in gone]})
    else:
        for path in reversed(gone):
            console.print(f"removed {escape(str(path))}", soft_wrap=True, highlight=False)
        if gone and finished and folder.end() is None:
            console.print("the final weights were damaged; rerun to repeat the last steps")
        inspect.show(folder, left, console)
    raise typer.Exit(1 if any(line.damaged for line in left) else 0)


def doctor_command(
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="The cluster whose data sheet and links are compared with the measurement.",
            show_default="this machine's cores",
        ),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Check a cluster: its SLURM limits, then two of its nodes.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="With --slurm: how long its job may be pending.")
    ] = 10.0,
    out: Annotated[
        Path | None, typer.Option(help="The cluster file to write.", show_default="<name>.measured.yaml")
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check this machine for problems that would prevent a run, and write its measured speed to a cluster file.

    Measures one device alone, and the link between two.
    A budget that names the file is planned with these rates. The next call overwrites it; a file that the
    doctor did not write is never overwritten.

    With --slurm, a preflight compares the cluster file with the site's partitions, limits and nodes. If it finds
    no problem, a job of a few minutes checks and measures two nodes, all devices at once. Ctrl-C
    cancels the job.

    Exit codes: 0 no problem would prevent a run, 1 at least one would, 2 bad input.
    """
    from runtime.doctor import local

    if slurm:
        raise typer.Exit(_doctor_slurm(cluster, patience, out, json))
    machine, console = this_machine(), Console(stderr=json)
    base = local.base_cluster(cluster, machine)
    path = out or Path(f"{base.name}.measured.yaml")
    local.check_output(path)
    with console.status("measuring, for about half a minute"):
        report = local.examine(base, machine, Path())
    if not json:
        local.show(report, base, console)
    raise typer.Exit(_finish_doctor(report, path, console, json))


def _doctor_slurm(named: str | None, patience_min: float, out: Path | None, json: bool) -> int:
    """The exit code of `isoplan doctor --slurm`."""
    from runtime.doctor import cluster
    from runtime.doctor.local import check_output
    from runtime.slurm.submit import named_cluster_file

    if named is None:
        raise RefusedError(
            "--slurm: the cluster is not known; add --cluster with its file, or its name in the catalog"
        )
    cluster_file = named_cluster_file(named)
    base = cluster_file.cluster
    written = out or Path(f"{base.name}.measured.yaml")
    check_output(written)
    console = Console(stderr=json)
    report = cluster.examine(cluster_file, Workspace(Path()), 60 * patience_min, console)
    if not json:
        cluster.show(report, base, console)
    return _finish_doctor(report, written, console, json)


def _finish_doctor(report: "DoctorReport", path: Path, console: Console, json: bool) -> int:
    """Write the measured cluster, if there is one, and give the exit code."""
    if report.cluster is not None:
        write_yaml(path, report.cluster)
    if json:
        print_json(report.plain() | {"file": None if report.cluster is None else str(path)})
    elif report.cluster is not None:
        name = escape(str(path))
        console.print(f"wrote {name}; to plan with it, write in a budget: cluster: {name}", soft_wrap=True)
    return 0 if report.healthy else 1


COMMANDS: dict[str, Callable[..., None]] = {
    "checkpoints": checkpoints_command,
    "doctor": doctor_command,
    "export": export_command,
    "import": import_command,
    "rehearse": rehearse_command,
}
"""The commands of `isoplan` besides the loop of plan, run and audit."""


def init_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write them to.")] = Path(
        "budgets"
    ),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write starter budgets to edit: a demo of minutes, an afternoon's study, plans in FLOP, GPU-hours and money, and
    one on a table of runs."""
    written: dict[str, bool] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(files("specs").iterdir(), key=lambda entry: entry.name):
            if source.name.endswith((".yaml", ".csv")):
                written[str(folder / source.name)] = _write_new(folder / source.name, source.read_text())
    except OSError as error:
        raise RefusedError(
            f"{folder}: cannot be written ({error.strerror}); name a folder that you may write to"
        ) from None
    if json:
        print_json({"budgets": [{"path": path, "written": new} for path, new in written.items()]})
        return
    for path, new in written.items():
        typer.echo(f"wrote  {path}" if new else f"kept   {path}, which exists already")
    typer.echo(f"next: run {folder / 'demo.yaml'} --dry-run")


def _write_new(path: Path, text: str) -> bool:
    """Write a new file; False where it exists already."""
    try:
        with path.open("x") as file:
            file.write("".join(line for line in text.splitlines(True) if "yaml-language-server" not in line))
    except FileExistsError:
        return False
    return True
