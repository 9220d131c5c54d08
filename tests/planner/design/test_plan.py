"""Plans: the paper's check values, sealed, the same bytes twice, every run legal, refusals with a line."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import isoplan.cli
import planner.cli
from planner.cli import write_plan
from planner.design.model_shape import shape_for
from planner.performance.batch_and_layout import choose_batch_and_layout, divisible_batch, round_batch
from planner.performance.layout_search import NoLayoutError
from planner.plan import make_plan
from specs.cluster import Cluster
from specs.document.files import DocumentError, from_catalog, load
from specs.law import Family, PublishedLaw
from specs.plan import NoForecast, Plan
from tests.support.paths import SPECS
from tests.support.planning import inputs_of

DEEPSEEK = from_catalog(PublishedLaw, "deepseek", None)


@pytest.mark.parametrize(
    ("flop", "lr", "batch_tokens", "m_opt", "d_opt"),
    [
        (1e17, 2.3382e-3, 1.0619e5, 1.404e8, 7.1234e8),
        (1e20, 9.860e-4, 1.0171e6, 5.2513e9, 1.9045e10),
        (1e24, 3.118e-4, 2.069e7, 6.5685e11, 1.5226e12),
    ],
)
def test_the_papers_laws(flop: float, lr: float, batch_tokens: float, m_opt: float, d_opt: float) -> None:
    """DeepSeek LLM, Eq. 1 and 4, at three budgets; the expected values have four or five digits."""
    hyper, allocation = DEEPSEEK.hyper, DEEPSEEK.allocation
    assert hyper is not None
    assert allocation is not None
    assert hyper.peak_lr.at(compute_flop=flop) == pytest.approx(lr, rel=2e-4)
    assert hyper.batch_tokens.at(compute_flop=flop) == pytest.approx(batch_tokens, rel=2e-4)
    assert allocation.flop_per_token.at(compute_flop=flop) == pytest.approx(m_opt, rel=2e-4)
    assert allocation.tokens.at(compute_flop=flop) == pytest.approx(d_opt, rel=2e-4)


def test_budget_1e24() -> None:
    """The shipped frontier budget: compute met, milestones at 80 and 90 %, legal, no invented loss."""
    plan = make_plan(inputs_of(SPECS / "budget_1e24.yaml", Path("plans/budget_1e24"), Path("data")))
    (target,) = plan.runs
    run, optim = target.run, target.run.optim
    assert run.compute_flop == pytest.approx(1e24, rel=0.01)
    assert run.model.flop_per_token == pytest.approx(6.5685e11, rel=0.02)
    assert optim.peak_lr == pytest.approx(3.118e-4, rel=1e-3)
    assert run.batch_tokens == pytest.approx(2.069e7, rel=0.03)
    assert optim.warmup_steps == 2000
    assert [(m.step / optim.steps, m.factor) for m in optim.milestones] == [(0.8, 0.316), (0.9, 0.1)]
    assert target.execution.layout.problems(run.model, optim) == []
    assert target.execution.layout.devices == 2048
    assert target.cost.memory_bytes < 80e9
    assert isinstance(plan.forecast, NoForecast)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Twice from scratch, in different folders."""
    digests = set()
    for name in ("a", "b"):
        folder = tmp_path / name / "specs"
        folder.mkdir(parents=True)
        shutil.copy(SPECS / "budget_1e24.yaml", folder)
        path, _ = write_plan(folder / "budget_1e24.yaml", tmp_path / name / "plans")
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        digests.add(hashlib.sha256((tmp_path / name / "plans" / "plan.target.yaml").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.slow
def test_a_sealed_plan_is_never_rewritten(tmp_path: Path) -> None:
    """Asked again it is read; asked with another budget of the same name it is refused, and the file stays."""
    budget = tmp_path / "b.yaml"
    text = (SPECS / "budget_1e24.yaml").read_text()
    budget.write_text(text)
    path, first = write_plan(budget, tmp_path / "out")
    before = path.stat().st_mtime_ns
    assert write_plan(budget, tmp_path / "out") == (path, first)
    budget.write_text(text.replace("1e24 FLOP", "2e24 FLOP"))
    with pytest.raises(DocumentError, match="sealed"):
        write_plan(budget, tmp_path / "out")
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_plan_that_is_there_has_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any write, `plan` leaves no plan, and asked again it writes all files."""
    budget, folder = SPECS / "budget_1e24.yaml", tmp_path / "out"
    for write in ("write_text", "save_plan"):
        with monkeypatch.context() as patch:
            patch.setattr(planner.cli, write, interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_plan(budget, folder)
        assert not list(folder.glob("plan.*.yaml"))
    write_plan(budget, folder)
    assert {path.name for path in folder.iterdir()} == {"plan.target.yaml", "report.html"}


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_edited_plan_is_noticed(tmp_path: Path) -> None:
    """One digit of one learning rate."""
    budget = tmp_path / "b.yaml"
    shutil.copy(SPECS / "budget_1e24.yaml", budget)
    path, plan = write_plan(budget, tmp_path / "out")
    lr = str(plan.runs[0].run.optim.peak_lr)
    path.write_text(path.read_text().replace(lr, "0.0004"))
    with pytest.raises(DocumentError, match="changed after it was sealed"):
        load(path, Plan)


@pytest.mark.parametrize(
    ("find", "write", "line", "says"),
    [
        ("compute: 1e24 FLOP", "compute: 1e24 FLOP\ndeadline: 1 d", 6, "takes 32"),
        ("law: deepseek}", "law: step-law}", 6, "gives no compute-optimal allocation"),
        ("law: deepseek}", "law: epoch-chinchilla}", 6, "no learning rate and batch size"),
        ("cluster: h800-2048", "cluster: h100", 8, "h100-64"),
        pytest.param("cluster: h800-2048", "cluster: laptop", 8, "more than the ", marks=pytest.mark.slow),
        ("compute: 1e24 FLOP", "compute: 1e24 FLOP\nmoney: $2M", 6, "keep one"),
        (
            "cluster: h800-2048",
            "cluster: my/machines.yaml",
            8,
            r"the file .*my/machines\.yaml does not exist; give the ",
        ),
        (
            "compute: 1e24 FLOP",
            "compute: 1 FLOP",
            5,
            "this budget buys 1 FLOP, but the shortest run of the smallest",
        ),
        (
            "compute: 1e24 FLOP",
            "compute: 1.1e30 FLOP",
            5,
            "this budget buys 1.1e.30 FLOP, but a plan may use at most 1e.30",
        ),
        ("compute: 1e24 FLOP", "money: $1e300", 5, "a plan may use at most"),
        ("compute: 1e24 FLOP", "money: $1e-300", 5, "the shortest run of the smallest"),
        ("compute: 1e24 FLOP", "device_hours: 1e308 GPU-hours", 5, "this budget buys inf FLOP"),
    ],
    ids=[
        "deadline",
        "law without allocation",
        "law without learning rate",
        "unknown cluster",
        "nothing fits",
        "two currencies",
        "no such cluster file",
        "too little compute",
        "too much compute",
        "too much money",
        "too little money",
        "too many hours",
    ],
)
def test_refusals_point_at_the_budget(tmp_path: Path, find: str, write: str, line: int, says: str) -> None:
    """A line of the file, what is wrong, and what to write; nothing is left behind."""
    text = (SPECS / "budget_1e24.yaml").read_text()
    assert find in text
    budget = tmp_path / "b.yaml"
    budget.write_text(text.replace(find, write))
    with pytest.raises(DocumentError, match=says) as refused:
        write_plan(budget, tmp_path / "out")
    assert refused.value.line == line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wanted", "batch"), [(2252, 2304), (5043, 5120), (4608, 4608), (2.8, 3), (0.4, 1), (7, 7)]
)
def test_batches_are_rounded_as_in_the_paper(wanted: float, batch: int) -> None:
    """2252 sequences became 2304 in Table 2; 4608 stays."""
    assert round_batch(wanted, 1) == batch


def test_devices_are_used_where_they_are_worth_having() -> None:
    """A 1B on 64 H100s takes them all; with a batch of 16 sequences most of 2048 would only wait."""
    cluster = from_catalog(Cluster, "h100-64", None)
    model = shape_for(from_catalog(Family, "deepseek", None), 100015, 6e9)
    assert choose_batch_and_layout(model, cluster, "bf16", 64, 512, None).layout.devices == 64
    few = choose_batch_and_layout(model, cluster, "bf16", 2048, 16, None)
    assert few.layout.devices < 256
    assert few.batch_sequences == 16
    with pytest.raises(NoLayoutError, match="more than the"):
        choose_batch_and_layout(
            shape_for(from_catalog(Family, "deepseek", None), 100015, 4.33e11), cluster, "bf16", 4, 512, None
        )


@pytest.mark.parametrize(
    ("wanted", "devices", "batch"), [(250, 64, 256), (248.3, 2048, 256), (290, 96, 288), (5055, 2048, 5120)]
)
def test_batches_are_moved_so_that_devices_can_share_them(wanted: float, devices: int, batch: int) -> None:
    """By 5 % at most."""
    assert divisible_batch(wanted, devices) == batch


def test_an_internal_error_is_one_line_with_its_traceback_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 70; the log is where the line says it is."""

    def fails(budget: Path, out: Path | None) -> tuple[Path, Plan]:
        raise ZeroDivisionError("a slip\nof two lines")

    monkeypatch.setattr(planner.cli, "write_plan", fails)
    monkeypatch.setattr(sys, "argv", ["plan", "b.yaml"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        isoplan.cli.plan_main()
    (log,) = tmp_path.iterdir()
    said = capsys.readouterr()
    line = f"internal error: ZeroDivisionError: a slip (the traceback is in {log})\n"
    assert (ended.value.code, said.out, said.err) == (70, "", line)
    assert "in fails" in log.read_text()


@pytest.mark.slow
def test_plan_never_imports_torch(tmp_path: Path) -> None:
    """The whole command, in a fresh interpreter."""
    program = (
        "import sys; from pathlib import Path; from planner.cli import write_plan;"
        f"write_plan(Path({str(SPECS / 'budget_1e24.yaml')!r}), Path({str(tmp_path)!r}));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "main"), [("plan", isoplan.cli.plan_main), ("isoplan plan", isoplan.cli.main)]
)
def test_help_names_the_command_as_people_call_it(
    name: str,
    main: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not the module that happens to hold it."""
    monkeypatch.setattr(sys, "argv", [*name.split(), "--help"])
    with pytest.raises(SystemExit):
        main()
    assert f"Usage: {name} " in capsys.readouterr().out
