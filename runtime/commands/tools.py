"""The verbs of `isoplan` beside the loop. As in cli.py, nothing is decided here.

torch is imported when one of them computes, not before.
"""

import json as jsonlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from runtime.commands.options import AsJson, Debug, print_json
from runtime.launch.machine import this_machine
from runtime.run_folder.lookup import run_named
from runtime.run_folder.workspace import RefusedError, Workspace
from specs.cluster import Cluster
from specs.document.files import DocumentError, catalog_path, from_catalog, is_file, load
from specs.document.write import write_yaml
from specs.document.yaml_writer import yaml_text
from specs.plan import Plan
from specs.run import Imported, RunSpec


def export_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="runs/<fingerprint>, or how its fingerprint begins.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write.", show_default="exports/<fingerprint>/step-<step>"),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="Checkpoint to take.", show_default="the newest")
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's weights and tokenizer as a folder that Hugging Face's transformers loads.

    config.json, safetensors and tokenizer.json: a LlamaForCausalLM in the run's precision.
    Exporting twice is free. A run may be in progress meanwhile.
    """
    from runtime.checkpoint.export_hf import export
    from runtime.checkpoint.format import CheckpointError

    try:
        folder = export(run_named(run, Workspace(Path())), Path("data"), step, out, Console(stderr=json))
    except CheckpointError as error:
        raise RefusedError(f"{error}; give another --step") from None
    if json:
        typer.echo(jsonlib.dumps({"folder": str(folder)}))
        return
    Console().print(
        f"{escape(str(folder))}: load it with AutoModelForCausalLM.from_pretrained", soft_wrap=True
    )


def import_command(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A Hugging Face Llama's folder.", show_default=False)
    ],
    run: Annotated[
        Path | None,
        typer.Option(help="A run spec that is to start from these weights.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run spec to write.", show_default="<run>.imported.yaml beside it"),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring a Llama's weights into the workspace, so that runs can start from them.

    They are copied to data/weights/, checked, and named by their values.
    With --run, writes that run's spec anew: the weights' shape, and the weights as its parent.
    """
    from runtime.checkpoint.import_hf import import_folder, run_from

    stored = import_folder(source, Path("data"), Console(stderr=True))
    origin = Imported(sha256=stored.manifest.sha256)
    said = {"folder": str(stored.folder), "sha256": origin.sha256}
    if run is None:
        lines = yaml_text({"model": stored.manifest.model.plain(), "parent": origin.plain()})
        then = f"{stored.folder}\na run spec that starts from it has:\n{lines}"
    else:
        written = out or run.with_suffix(".imported.yaml")
        _write_run(written, run_from(stored, run, load(run, RunSpec), Path("data")))
        said["run"] = str(written)
        then = f"{stored.folder}\nnext: run {written}"
    typer.echo(jsonlib.dumps(said) if json else then.rstrip("\n"))


def _write_run(path: Path, run: RunSpec) -> None:
    """Write the spec, unless another document is there."""
    if path.exists() and load(path, RunSpec) != run:
        raise DocumentError(path, 1, 1, "another run spec is there", "give another name as --out")
    write_yaml(path, run)


def rehearse_command(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="plans/<name>/plan.target.yaml", show_default=False)
    ],
    rank: Annotated[
        str, typer.Option(metavar="all|N", help="One rank, or all that differ from each other.")
    ] = "all",
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Go through a training step of a plan at its full size, without its cluster.

    The engine's own code runs on shapes alone, at the plan's number of ranks.
    Shows each rank's memory and communication beside the planner's figures.
    Of a plan with several runs, the one on the most devices is taken.

    Exit codes: 0 every communication meets its partners, 1 one does not, 2 bad input.
    """
    from runtime.rehearse.report import plain, show
    from runtime.rehearse.step import rehearse

    document = load(plan, Plan)
    if rank != "all" and not rank.isdigit():
        raise RefusedError(f"--rank {rank}: write all, or the number of a rank")
    planned = max(document.runs, key=lambda one: one.execution.layout.devices)
    try:
        rehearsal = rehearse(planned.run, planned.execution, None if rank == "all" else int(rank))
    except ValueError as error:
        raise RefusedError(f"{plan}: {planned.title}: {error}") from None
    if json:
        typer.echo(jsonlib.dumps(plain(rehearsal, document, planned), indent=1))
    else:
        show(rehearsal, document, planned, Console())
    raise typer.Exit(1 if rehearsal.mismatch else 0)


def checkpoints_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="runs/<fingerprint>, or how its fingerprint begins.", show_default=False
        ),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its digest.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Verify, then remove what is damaged or need not stay.")
    ] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List a run's checkpoints, and what its restarts have cost.

    Pruning keeps what the run itself would keep, never removes the last whole checkpoint, and
    waits for nobody: a run in progress is left alone.

    Exit codes: 0 nothing is damaged, 1 something is, 2 bad input.
    """
    from runtime.checkpoint import inspect
    from runtime.checkpoint.export_hf import bar

    folder, console = run_named(run, Workspace(Path())), Console(stderr=json)
    if verify or prune:
        total = sum(file.stat().st_size for file in folder.checkpoints.glob("step-*/*") if file.is_file())
        with bar(console) as progress:
            task = progress.add_task("reading", total=total)
            lines = inspect.read_all(
                folder, lambda name, size: progress.update(task, advance=size, description=name)
            )
    else:
        lines = inspect.read_all(folder, None)
    finished = folder.end() is not None
    gone = inspect.prune(folder, lines) if prune else []
    left = [line for line in lines if line.path not in gone]
    if json:
        said = {"checkpoints": [line.plain() for line in left], "removed": [str(path) for path in gone]}
        typer.echo(jsonlib.dumps(said, indent=1))
    else:
        for path in reversed(gone):
            console.print(f"removed {escape(str(path))}", soft_wrap=True, highlight=False)
        if gone and finished and folder.end() is None:
            console.print("the final weights were damaged; run again to train the last steps anew")
        inspect.show(folder, left, console)
    raise typer.Exit(1 if any(line.damaged for line in left) else 0)


def doctor_command(
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Whose data sheet and links the devices have.",
            show_default="this machine's cores",
        ),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Of a cluster: what SLURM would refuse, and two nodes at work.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Of --slurm: how long its job may wait.")
    ] = 10.0,
    out: Annotated[
        Path | None, typer.Option(help="The cluster file to write.", show_default="<name>.measured.yaml")
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look for what would stop a run on this machine, and measure it into a cluster file.

    The figures are those of one device at work alone, and of the link between two.
    A budget that names the file is planned with them. The next call writes it anew; a file that is not the
    doctor's own is left alone.

    With --slurm, what the cluster file asks of SLURM is compared with what the site has. Where that stops no
    run, a job of a few minutes has two nodes look around and measure, all devices at once. Ctrl-C cancels it.

    Exit codes: 0 nothing would stop a run, 1 something would, 2 bad input.
    """
    from runtime.doctor import local

    if slurm:
        raise typer.Exit(_doctor_slurm(cluster, patience, out, json))
    machine, console = this_machine(), Console(stderr=json)
    base = local.base_cluster(cluster, machine)
    path = out or Path(f"{base.name}.measured.yaml")
    local.check_place(path)
    with console.status("measuring: half a minute"):
        examined = local.examine(base, machine, Path())
    write_yaml(path, examined.cluster)
    if json:
        typer.echo(jsonlib.dumps(examined.plain() | {"file": str(path)}, indent=1))
    else:
        local.show(examined, base, console)
        console.print(
            f"wrote {escape(str(path))}; a budget takes it as: cluster: {escape(str(path))}", soft_wrap=True
        )
    raise typer.Exit(0 if examined.healthy else 1)


def _doctor_slurm(named: str | None, patience_min: float, out: Path | None, json: bool) -> int:
    """The exit code of `isoplan doctor --slurm`."""
    from runtime.doctor import cluster
    from runtime.doctor.local import check_place
    from runtime.slurm.submit import ClusterFile

    if named is None:
        raise RefusedError(
            "--slurm: say with --cluster which cluster, by its file or its name in the catalog"
        )
    path = Path(named) if is_file(named) else catalog_path(Cluster, named)
    base = load(path, Cluster) if is_file(named) else from_catalog(Cluster, named, None)
    written = out or Path(f"{base.name}.measured.yaml")
    check_place(written)
    console = Console(stderr=json)
    examined = cluster.examine(ClusterFile(path, base), Workspace(Path()), 60 * patience_min, console)
    if examined.cluster is not None:
        write_yaml(written, examined.cluster)
    if json:
        said = examined.plain() | {"file": None if examined.cluster is None else str(written)}
        typer.echo(jsonlib.dumps(said, indent=1))
    else:
        cluster.show(examined, base, console)
        if examined.cluster is not None:
            console.print(
                f"wrote {escape(str(written))}; a budget takes it as: cluster: {escape(str(written))}",
                soft_wrap=True,
            )
    return 0 if examined.healthy else 1


VERBS: dict[str, Callable[..., None]] = {
    "checkpoints": checkpoints_command,
    "doctor": doctor_command,
    "export": export_command,
    "import": import_command,
    "rehearse": rehearse_command,
}
"""What `isoplan` has besides the loop."""


def init_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write them.")] = Path("budgets"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write starter budgets to edit: a demo of minutes, an afternoon's study, plans in FLOP, GPU-hours and money."""
    written: dict[str, bool] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(files("specs").iterdir(), key=lambda entry: entry.name):
            if source.name.endswith(".yaml"):
                written[str(folder / source.name)] = _write_new(folder / source.name, source.read_text())
    except OSError as error:
        raise RefusedError(f"{folder}: {error.strerror}; name a folder that you may write to") from None
    if json:
        print_json({"budgets": [{"path": path, "written": new} for path, new in written.items()]})
        return
    for path, new in written.items():
        typer.echo(f"wrote  {path}" if new else f"kept   {path}, which is there already")
    typer.echo(f"next: isoplan run {folder / 'demo.yaml'} --dry-run")


def _write_new(path: Path, text: str) -> bool:
    """Write a file that is not there yet; False where it is."""
    try:
        with path.open("x") as file:
            file.write("".join(line for line in text.splitlines(True) if "yaml-language-server" not in line))
    except FileExistsError:
        return False
    return True
