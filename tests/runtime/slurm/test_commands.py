"""`run --slurm` where there is no SLURM: a dry run shows its scripts all the same, the rest is refused in one line."""

import json
from pathlib import Path

import pytest

from runtime.slurm.study import continue_study
from specs.data import CorpusRef
from specs.document.files import load
from specs.document.write import write_json, write_yaml
from specs.slurm_submission import StudyState
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.desk import Desk, at_desk, execution
from tests.support.training import corpus, tiny_run

NOT_INSTALLED = "scontrol is not installed here; run this on one of the cluster's login nodes\n"


@pytest.fixture(scope="module")
def data(home: Path) -> CorpusRef:
    return corpus(home)


@pytest.fixture
def desk(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Desk:
    """Beside a cluster that is never brought up, and no program that would know of another."""
    monkeypatch.setenv("PATH", "")
    desk = at_desk(tmp_path / "work", home, Cluster(), capfd)
    monkeypatch.chdir(desk.folder)
    return desk


@pytest.mark.parametrize("words", [["--slurm"], ["--slurm", "--until-done"], ["--slurm", "--json"]])
def test_without_slurm_a_budget_is_refused_before_anything_is_built(desk: Desk, words: list[str]) -> None:
    before = sorted(desk.folder.rglob("*"))
    done = desk.run("budget.yaml", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err == NOT_INSTALLED
    assert sorted(desk.folder.rglob("*")) == before


def test_without_slurm_a_plan_is_refused_and_nothing_is_written(desk: Desk, data: CorpusRef) -> None:
    path = desk.plan(tiny_run(data))
    before = sorted(desk.folder.rglob("*"))
    done = desk.run(path, "--slurm")
    assert (done.code, done.out, done.err) == (2, "", NOT_INSTALLED)
    assert sorted(desk.folder.rglob("*")) == before


def test_without_slurm_a_dry_run_shows_the_scripts(desk: Desk, data: CorpusRef) -> None:
    path = desk.plan(
        *(tiny_run(data, seed=seed) for seed in range(3)),
        executions=(execution(dp=2), execution(), execution()),
    )
    before = sorted(desk.folder.rglob("*"))
    shown = desk.run(path, "--slurm", "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.count("#!/bin/bash") == 2
    assert "#SBATCH --array=0-1%2\n" in shown.out
    run = desk.run_folder(tiny_run(data, seed=2)).path
    assert f"  pilot 2: Task(folder='{run}')\n" in shown.out
    assert shown.out.endswith(
        "SLURM is not installed here: pending and running jobs are unknown, and arrays have at most 1001 jobs, "
        "SLURM's default.\n3 runs to queue, 0 already pending or running, 0 finished.\nNothing was queued.\n"
    )
    plain = desk.run(path, "--slurm", "--dry-run", "--json")
    scripts = json.loads(plain.out)["scripts"]
    assert [[job["title"] for job in script["jobs"]] for script in scripts] == [
        ["pilot 0"],
        ["pilot 1", "pilot 2"],
    ]
    assert sorted(desk.folder.rglob("*")) == before


def test_a_dry_run_of_a_budget_says_how_far_it_is(desk: Desk) -> None:
    before = sorted(desk.folder.rglob("*"))
    shown = desk.run("budget.yaml", "--slurm", "--dry-run")
    assert shown.code == 0, shown.err
    assert "2. plan    plans/mini/plan.target.yaml does not exist yet\n" in shown.out
    assert shown.out.endswith("\nThe next runs are known once the budget is planned.\nNothing was queued.\n")
    on = desk.run("budget.yaml", "--slurm", "--dry-run", "--until-done", "--json")
    [study] = json.loads(on.out)["scripts"]
    assert [job["title"] for job in study["jobs"]] == ["the study's next step"]
    assert [step["step"] for step in json.loads(on.out)["steps"]] == ["data", "plan", "target", "audit"]
    assert sorted(desk.folder.rglob("*")) == before


def test_a_dry_run_says_what_would_be_refused(desk: Desk, data: CorpusRef) -> None:
    path = desk.plan(tiny_run(data))
    (desk.folder / "data").unlink()
    shown = desk.run(path, "--slurm", "--dry-run")
    assert shown.code == 0, shown.err
    assert f"These runs could not start: the run's corpus data/{data.corpus} is missing.\n" in shown.out


@pytest.mark.parametrize("words", [["--slurm"], ["--slurm", "--dry-run"]])
def test_a_folder_that_slurm_would_misread(
    desk: Desk, data: CorpusRef, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    path = desk.plan(tiny_run(data))
    odd = desk.folder.with_name("100%\n")
    desk.folder.rename(odd)
    monkeypatch.chdir(odd)
    for document in (path, "budget.yaml"):
        done = desk.run(document, *words)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert r"100%\n: SLURM misreads % in a path; move to a folder without this character" in done.err
    assert not (odd / "slurm").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["budget.yaml", "--slurm", "--local"], "drop one of them"),
        (
            ["budget.yaml", "--slurm", "--devices", "2"],
            "--devices: with --slurm the plan's layout sets the number",
        ),
        (["budget.yaml", "--until-done"], "always run until it is done; drop it"),
        (["PLAN", "--slurm", "--until-done"], "--until-done continues the study of a budget"),
        (["lab.yaml", "--slurm"], "lab.yaml:1:1: this is not a budget, a plan or a run spec"),
        (["run.yaml", "--slurm"], "--slurm: a run spec names no cluster; add --cluster with its file"),
        (["run.yaml", "--slurm", "--cluster", "nope"], "nope"),
        (["run.yaml", "--cluster", "lab.yaml"], "--cluster is for a run spec on SLURM"),
        (["PLAN", "--slurm", "--cluster", "lab.yaml"], "a plan or a budget names its own; drop it"),
    ],
)
def test_words_that_do_not_go_together(desk: Desk, data: CorpusRef, words: list[str], says: str) -> None:
    path = desk.plan(tiny_run(data))
    write_yaml(desk.folder / "run.yaml", tiny_run(data))
    done = desk.run(*(path if word == "PLAN" else word for word in words))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert says in done.err


@pytest.mark.parametrize(
    ("words", "device", "tasks", "cpus"),
    [
        ([], "cpu", 1, 2),
        (["--devices", "1"], "cpu", 1, 1),
        ([], "cuda", 1, None),
        (["--devices", "3"], "cuda", 2, None),  # of four sequences
    ],
)
def test_a_run_spec_is_queued_on_the_cluster_that_is_named(
    desk: Desk, data: CorpusRef, words: list[str], device: str, tasks: int, cpus: int | None
) -> None:
    desk.says("partition: main", backend=device)
    write_yaml(desk.folder / "run.yaml", tiny_run(data))
    shown = desk.run("run.yaml", "--slurm", "--cluster", "lab.yaml", *words, "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    assert f"#SBATCH --ntasks-per-node={tasks}" in shown.out
    assert ("#SBATCH --cpus-per-task" in shown.out) == (cpus is not None)
    assert cpus is None or f"#SBATCH --cpus-per-task={cpus}" in shown.out


def test_a_cluster_file_that_is_wrong_is_refused_at_its_line(desk: Desk, data: CorpusRef) -> None:
    path = desk.plan(tiny_run(data))
    desk.says("partition: main", "time_limit: 24")
    for document, words in (
        (path, ["--slurm", "--dry-run"]),
        ("budget.yaml", ["--slurm", "--dry-run", "--until-done"]),
    ):
        done = desk.run(document, *words)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert done.err.startswith("lab.yaml:20:15: 24 has no unit; write it like ")


def test_a_study_whose_budget_cannot_be_read_any_more_stops_with_a_note(desk: Desk) -> None:
    (desk.folder / "budget.yaml").write_text("kind: budget\nname: [\n")
    own, path = "mini-study-0a0b0c", desk.folder / "plans" / "mini" / "study.json"
    assert continue_study(Path("budget.yaml"), own) == 2
    assert not path.exists()
    write_json(path, StudyState(state="waiting", message="waiting for 1 job of the target", submission=own))
    desk.captured.readouterr()
    assert continue_study(Path("budget.yaml"), own) == 2
    noted = load(path, StudyState)
    assert (noted.state, noted.submission) == ("stopped", None)
    assert noted.message.startswith("budget.yaml:")
    assert desk.captured.readouterr().out == f"{noted.message}\n"
