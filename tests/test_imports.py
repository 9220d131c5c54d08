import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAY_IMPORT = {
    "specs": {"specs"},
    "planner": {"planner", "specs"},
    "model": {"model", "specs"},
    "runtime": {"runtime", "model", "specs"},
    "isoplan": {"isoplan", "planner", "runtime", "model", "specs"},
}
OURS = {*MAY_IMPORT, "tests", "bench"}
FLOORS = (
    ("specs.exit_codes", "specs.humanize"),
    ("specs.document",),
    ("specs",),
    ("specs.report", "specs.run_table"),
    ("planner.scaling", "planner.performance"),
    ("planner.evidence", "planner.ledger"),
    ("planner.design", "planner.table_fit"),
    ("planner.explain", "planner.plan", "planner.tables"),
    ("planner.cli",),
    ("model.kernels",),
    ("model",),
    ("runtime.run_folder", "runtime.data", "runtime.rehearse"),
    ("runtime.data.build",),
    ("runtime.checkpoint", "runtime.audit"),
    ("runtime.train", "runtime.launch"),
    ("runtime.tracking",),
    ("runtime.study",),
    ("runtime.slurm",),
    ("runtime.status", "runtime.doctor"),
    ("runtime.commands",),
    ("isoplan",),
)
"""The packages from the lowest to the highest; one imports itself and those on lower floors, wherever in a file."""
WITHOUT_TORCH = ("specs", "planner")

SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, package: str) -> set[str]:
    """Top-level packages that a module imports, wherever in it: at its head, in a function, or by name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            found.update(
                str(arg.value).partition(".")[0] for arg in node.args[:1] if isinstance(arg, ast.Constant)
            )
    return found


def _called(call: ast.Call) -> str | None:
    return getattr(call.func, "attr", getattr(call.func, "id", None))


def forbidden(package: str, found: set[str]) -> set[str]:
    """What a module of a package may not import, of all that it does."""
    return found & (OURS - MAY_IMPORT[package] | ({"torch"} if package in WITHOUT_TORCH else set()))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way_and_each_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parts[0]
    assert forbidden(package, imported(tree, package)) == set()
    assert ast.get_docstring(tree), "a module begins with what it is for"


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("specs", "def f():\n    from planner.laws import fit", {"planner"}),
        ("specs", "if TYPE_CHECKING:\n    import torch.nn as nn", {"torch"}),
        ("planner", "import numpy, torch", {"torch"}),
        ("planner", "from runtime import launch", {"runtime"}),
        ("model", "import torch, planner.cost", {"planner"}),
        ("model", "from runtime.batches import rows", {"runtime"}),
        ("runtime", "importlib.import_module('planner.cli')", {"planner"}),
        ("runtime", "from tests.spawn import spawn", {"tests"}),
        ("runtime", "from isoplan.cli import main", {"isoplan"}),
        (
            "runtime",
            "import torch\nfrom . import cli\nfrom model.mesh import Mesh\nfrom specs.run import RunSpec",
            set(),
        ),
    ],
)
def test_the_walk_sees_an_import_wherever_it_stands(package: str, source: str, expected: set[str]) -> None:
    assert forbidden(package, imported(ast.parse(source), package)) == expected


def import_cold(modules: list[str], then: str, folder: Path) -> str:
    """Import modules in a new process that stands in `folder`, run a line more, and give back all that it printed."""
    code = "\n".join([*(f"import {name}" for name in modules), "import sys", then])
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_planning_never_loads_torch(tmp_path: Path) -> None:
    modules = [module_name(path) for path in SOURCES if path.relative_to(ROOT).parts[0] in WITHOUT_TORCH]
    loaded = import_cold(
        modules, "print([m for m in ('torch', 'model', 'runtime') if m in sys.modules])", tmp_path
    )
    assert loaded == "[]\n"


@pytest.mark.slow
def test_importing_has_no_effect(tmp_path: Path) -> None:
    modules = [module_name(path) for path in SOURCES]
    assert import_cold(modules, "", tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def imported_modules(path: Path) -> set[str]:
    """Our modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(whole & MODULES or {str(node.module)})
    return (found & MODULES) - {module_name(path)}


MODULES = {module_name(path) for path in SOURCES}


def floor(module: str) -> tuple[int, str]:
    """The floor of a module's package, and the package: the longest name that it begins with."""
    names = [(len(name), at, name) for at, floor in enumerate(FLOORS) for name in floor]
    _, at, package = max(one for one in names if f"{module}.".startswith(f"{one[2]}."))
    return at, package


def test_no_import_goes_up_and_none_goes_in_a_circle() -> None:
    imports = {module_name(path): imported_modules(path) for path in SOURCES}
    list(TopologicalSorter(imports).static_order())  # CycleError names the circle
    up = []
    for module, others in imports.items():
        for other in others:
            (at, package), (below, of) = floor(module), floor(other)
            if of != package and below >= at:
                up.append(f"{module} -> {other}")
    assert up == []


def test_no_folder_is_a_street_without_houses() -> None:
    """About fifteen files side by side can be looked through; the kinds of documents in specs/ are many by nature."""
    folders = [path.parent for path in SOURCES if path.parent != ROOT / "specs"]
    assert {folder: folders.count(folder) for folder in folders if folders.count(folder) > 16} == {}


def test_the_street_map_in_the_design_shows_every_package_in_import_order() -> None:
    """From the highest floor down, as FLOORS has them."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = design.partition("## Street map\n")[2].partition("\n## ")[0]
    shown = [line.split()[0] for line in section.splitlines() if line.startswith("    ")]
    assert sorted(shown) == sorted(name for floor in FLOORS for name in floor)
    floors = {name: at for at, names in enumerate(FLOORS) for name in names}
    for top in MAY_IMPORT:
        own = [floors[name] for name in shown if name.partition(".")[0] == top]
        assert own == sorted(own, reverse=True), top


def test_tasks_begin_before_torch_is_loaded(tmp_path: Path) -> None:
    """The doctor's, so that a node without a working torch is named; a run's ranks, which set variables before it."""
    tasks = ["runtime.doctor.node_probe", "runtime.train.loop", "runtime.slurm.task"]
    loaded = import_cold(tasks, "print('torch' in sys.modules)", tmp_path)
    assert loaded == "False\n"
