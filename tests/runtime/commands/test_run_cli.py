import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import study
from runtime.run_folder.folder import RunFolder
from specs.data import Corpus, CorpusRef
from specs.document.files import load
from specs.document.write import write_yaml
from specs.optim import Milestone
from specs.plan import Plan
from specs.record import Audit, Start
from specs.run import Evaluation, Execution, RunSpec
from tests.support import samples
from tests.support.commands import Done, isoplan, isoplan_process

BUDGET = """\
kind: budget
name: mini
compute: 1e9 FLOP
evidence: {kind: published, law: tiny}
family: tiny
cluster: laptop
data:
  text: {source: files, paths: [text.jsonl]}
  tokenizer: {kind: bytes}
  held_out_one_in: 4
precision: fp32
"""

DECOY = "raise RuntimeError('a module of the current folder was imported')\n"


@pytest.fixture(scope="session")
def corpus_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a budget and its built corpus."""
    home = tmp_path_factory.mktemp("corpus")
    (home / "budget.yaml").write_text(BUDGET)
    lines = (
        json.dumps({"text": f"document {i}: " + f"{i * 7919 % 1000} and so on. " * 200}) for i in range(256)
    )
    (home / "text.jsonl").write_text("\n".join(lines) + "\n")
    done = isoplan(home, "data", "budget.yaml")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(corpus_home: Path, tmp_path: Path) -> Path:
    """A workspace of its own, with that budget and corpus, whose path has what a shell would interpret."""
    home = tmp_path / "a $HOME of 'one' own"
    shutil.copytree(corpus_home, home)
    assert isoplan(home, "data", "budget.yaml").returncode == 0, "files of other times are hashed again"
    return home


def tiny_run(home: Path, **changes: Any) -> RunSpec:
    """A run of about a second on the built corpus."""
    corpus = load(next((home / "data").glob("*/manifest.json")), Corpus)
    plain = {
        "model": samples.model(width=16, ffn=32, context=64),
        "data": CorpusRef(corpus=corpus.name, digest=corpus.digest),
        "optim": samples.optim(steps=30, batch_sequences=2, milestones=(Milestone(step=24, factor=0.3),)),
        "evaluation": Evaluation(every_steps=10, sequences=4, final_sequences=8),
    }
    return samples.run(**(plain | changes))


def tiny_plan(home: Path, *runs: RunSpec, execution: Execution | None = None) -> Path:
    """A sealed plan of these runs."""
    plan = samples.plan()
    layout = samples.layout(dp=1, micro_batch_sequences=1)
    execution = execution or Execution(device="cpu", layout=layout, checkpoint_interval_s=0.2)
    planned = tuple(
        plan.runs[0].model_copy(
            update={"title": f"pilot {index}", "role": "pilot", "run": run, "execution": execution}
        )
        for index, run in enumerate(runs)
    )
    path = home / "plans" / "mini" / "plan.pilots.yaml"
    write_yaml(path, samples.sealed(plan, phase="pilots", runs=planned, ledger="../../ledger.jsonl"))
    return path


def one_line(done: Done, *parts: str) -> None:
    """It was refused as bad input, in one line with these parts, and no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def test_a_corpus_is_built_once_and_described(home: Path) -> None:
    again = isoplan(home, "data", "budget.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["train"]["documents"] > 1
    manifest = next((home / "data").glob("*/manifest.json"))
    assert home / json.loads(again.stdout)["folder"] == manifest.parent
    before = manifest.stat().st_mtime_ns
    said = isoplan(home, "data", "budget.yaml")
    assert "tokens to train on" in said.stdout
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_command_never_imports_torch(home: Path) -> None:
    path = tiny_plan(home, tiny_run(home))
    code = (
        "import sys\nfrom isoplan.cli import run_main\n"
        f"sys.argv = ['run', {str(path)!r}, '--dry-run']\n"
        "try:\n    run_main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_dry_run_shows_all_and_writes_nothing(home: Path) -> None:
    path = tiny_plan(home, tiny_run(home), tiny_run(home, seed=1))
    before = sorted(home.rglob("*"))
    shown = isoplan(home, "run", path, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "pilot 1" in shown.stdout
    assert "2 of 2 runs to do" in shown.stdout
    listed = isoplan(home, "run", path, "--dry-run", "--json")
    assert [run["state"] for run in json.loads(listed.stdout)["runs"]] == ["new", "new"]
    chain = isoplan(home, "run", "budget.yaml", "--dry-run", "--json")
    assert [step["step"] for step in json.loads(chain.stdout)["steps"]] == ["data", "plan", "target", "audit"]
    assert sorted(home.rglob("*")) == before


def test_a_dry_run_shows_what_this_machine_lacks(home: Path) -> None:
    """A cluster's plan on a laptop: the table, then one line; a run is refused, with what may be done."""
    execution = Execution(device="cuda", layout=samples.layout(dp=2), checkpoint_interval_s=1.0)
    run = tiny_run(home, data=CorpusRef(corpus="0" * 16, digest=None), optim=samples.optim(batch_sequences=8))
    path = tiny_plan(home, run, tiny_run(home, optim=samples.optim(batch_sequences=8)), execution=execution)
    before = sorted(home.rglob("*"))
    shown = isoplan(home, "run", path, "--dry-run", CUDA_VISIBLE_DEVICES="")
    assert shown.returncode == 0, shown.stderr
    head, *rows, last = shown.stdout.splitlines()
    assert head.split()[:3] == ["run", "state", "devices"]
    assert len(rows) == 2
    assert last == (
        "These runs cannot start on this machine: the run needs 2 GPUs; available on this machine: 0; "
        "data.text of the budget names no files (source: declared), so there is no corpus to train on. "
        "Nothing was started."
    )
    listed = isoplan(home, "run", path, "--dry-run", "--json", CUDA_VISIBLE_DEVICES="")
    assert len(json.loads(listed.stdout)["missing"]) == 2
    refused = isoplan(home, "run", path, CUDA_VISIBLE_DEVICES="")
    one_line(
        refused,
        "needs 2 GPUs",
        "run on a machine with 2, or plan the budget again for a cluster without GPUs",
    )
    one_line(
        isoplan(home, "run", path, CUDA_VISIBLE_DEVICES="0"),
        "plan the budget again for a cluster of at most 1 GPU",
    )
    asked = isoplan(home, "run", path, "--devices", "1", CUDA_VISIBLE_DEVICES="0,1")
    one_line(asked, "omit --devices, or give at least 2")
    assert sorted(home.rglob("*")) == before


def test_an_audit_that_was_asked_too_early_is_to_be_done_again(home: Path) -> None:
    assert isoplan(home, "plan", "budget.yaml").returncode == 0
    plan = home / "plans" / "mini" / "plan.target.yaml"
    assert isoplan(home, "audit", plan).returncode == 3
    steps = json.loads(isoplan(home, "run", "budget.yaml", "--dry-run", "--json").stdout)["steps"]
    assert [step["state"] for step in steps[2:]] == [
        "0 of 1 runs are finished",
        "to be repeated: no verdict yet",
    ]
    verdict = plan.parent / "audit.target.json"
    verdict.write_text(verdict.read_text().replace('"cannot tell"', '"inside"'))
    steps = json.loads(isoplan(home, "run", "budget.yaml", "--dry-run", "--json").stdout)["steps"]
    assert steps[-1]["state"] == "done: inside"


@pytest.mark.slow
def test_starter_budgets_are_written_and_never_overwritten(tmp_path: Path) -> None:
    first = isoplan_process(tmp_path, "init", "mine")
    assert first.returncode == 0, first.stderr
    demo = tmp_path / "mine" / "demo.yaml"
    assert "kind: budget" in demo.read_text()
    demo.write_text("mine\n")
    second = isoplan_process(tmp_path, "init", "mine")
    assert "kept   mine/demo.yaml" in second.stdout
    assert demo.read_text() == "mine\n"
    (tmp_path / "file").touch()
    one_line(isoplan_process(tmp_path, "init", "file"), "file", "name a folder")


def test_an_internal_error_is_one_line_with_its_traceback_in_a_log(home: Path) -> None:
    path = tiny_plan(home, tiny_run(home))
    (home / "runs" / tiny_run(home).fingerprint() / "record.jsonl").mkdir(parents=True)
    done = isoplan(home, "run", path)
    assert done.returncode == 70
    assert len(done.stderr.splitlines()) == 1
    log = Path(done.stderr.split("the traceback is in ")[1].rstrip(")\n"))
    assert "Traceback" in log.read_text()
    log.unlink()
    shown = isoplan(home, "run", path, "--debug")
    assert shown.stderr.startswith("Traceback")
    Path(shown.stderr.split("the traceback is in ")[1].rstrip(")\n")).unlink()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"pp": 9}, ["9 pipeline stages are more than the"]),
        ({"tp": 3}, ["heads", "not a multiple of tp 3"]),
        ({"micro_batch_sequences": 3}, ["2 sequences is not a multiple"]),
        ({"dp": 2, "micro_batch_sequences": 1}, ["needs 2 CPU cores; available on this machine: 1"]),
    ],
)
def test_a_layout_that_cannot_run_is_refused_before_anything_starts(
    home: Path, changes: dict[str, int], parts: list[str]
) -> None:
    layout = samples.layout(**({"dp": 1, "micro_batch_sequences": 1} | changes))
    path = tiny_plan(
        home, tiny_run(home), execution=Execution(device="cpu", layout=layout, checkpoint_interval_s=1.0)
    )
    one_line(isoplan(home, "run", path, "--devices", "1"), "plan.pilots.yaml:", "pilot 0", *parts)
    assert not (home / "runs").exists()


def test_a_run_spec_takes_as_many_cores_as_it_may(home: Path) -> None:
    write_yaml(home / "run.yaml", tiny_run(home))
    for words, cores in (([], len(os.sched_getaffinity(0))), (["--devices", "1"], 1)):
        shown = isoplan(home, "run", "run.yaml", *words, "--dry-run")
        assert shown.returncode == 0, shown.stderr
        assert f"1 of 1 runs to do on {cores} CPU cores" in shown.stdout


def test_gpus_that_are_not_there_are_not_used(home: Path) -> None:
    layout = samples.layout(dp=1, micro_batch_sequences=1)
    execution = Execution(device="cuda", layout=layout, checkpoint_interval_s=1.0)
    path = tiny_plan(home, tiny_run(home), execution=execution)
    done = isoplan(home, "run", path, CUDA_VISIBLE_DEVICES="")
    one_line(done, "needs 1 GPU; available on this machine: 0")


def test_data_that_is_not_here_is_named_with_what_to_type(home: Path) -> None:
    declared = tiny_run(home, data=CorpusRef(corpus="0" * 16, digest=None))
    path = tiny_plan(home, declared)
    one_line(isoplan(home, "run", path), "plan.pilots.yaml:", "source: declared", "isoplan data BUDGET")
    path = tiny_plan(home, tiny_run(home))
    shutil.rmtree(home / "data")
    one_line(isoplan(home, "run", path), "plan.pilots.yaml:", "is missing", f"isoplan data {path}")


def test_data_that_changed_since_it_was_planned_is_refused(home: Path) -> None:
    data = tiny_run(home).data
    changed = data.model_copy(update={"digest": "1" * 64})
    path = tiny_plan(home, tiny_run(home, data=changed))
    one_line(isoplan(home, "run", path), "the run was planned on corpus", "1" * 16, str(data.digest)[:16])


def test_a_declared_text_can_be_planned_for_not_run(home: Path) -> None:
    text = "text: {source: declared, describe: web, unique: 1B tokens}\n"
    budget = home / "declared.yaml"
    budget.write_text(BUDGET.replace("text: {source: files, paths: [text.jsonl]}\n", text))
    for verb in ("data", "run"):
        one_line(isoplan(home, verb, budget), "declared.yaml:8:", "source: declared", "source: files")


def test_text_that_is_not_there_is_refused_at_the_budgets_own_line(home: Path) -> None:
    budget = home / "absent.yaml"
    budget.write_text(BUDGET.replace("paths: [text.jsonl]", "paths: [text.jsonl, more/*.jsonl.gz]"))
    line = next(i for i, said in enumerate(BUDGET.splitlines(), start=1) if "text.jsonl" in said)
    said = f"absent.yaml:{line}:"
    one_line(isoplan(home, "data", budget), said, "more/*.jsonl.gz: there is no such file; correct the path")


@pytest.mark.parametrize("verb", ["run", "audit", "data"])
def test_a_document_that_is_none_of_these_is_one_line(home: Path, verb: str) -> None:
    one_line(isoplan(home, verb, "absent.yaml"), "absent.yaml:1:1:")
    (home / "odd.yaml").write_text("kind: budget\nname: x\nbudget: 3\n")
    one_line(isoplan(home, verb, "odd.yaml"), "odd.yaml:")
    one_line(isoplan(home, verb, next(home.glob("data/*/manifest.json"))), "manifest.json:")


def test_a_plan_that_was_edited_is_refused(home: Path) -> None:
    path = tiny_plan(home, tiny_run(home))
    path.write_text(path.read_text().replace("seed: 0", "seed: 7"))
    one_line(isoplan(home, "run", path), "plan.pilots.yaml:", "changed after it was sealed")


def test_a_workspace_that_cannot_be_written_to_is_one_line(home: Path) -> None:
    path = tiny_plan(home, tiny_run(home))
    (home / "runs").touch()
    one_line(isoplan(home, "run", path), "runs: run folders cannot be created here", "change to a folder")


def test_a_run_folder_of_another_run_is_refused(home: Path) -> None:
    run = tiny_run(home)
    path = tiny_plan(home, run)
    folder = home / "runs" / run.fingerprint()
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(tiny_run(home, seed=9).canonical_json())
    one_line(isoplan(home, "run", path), "run.json", "holds another run", "seed")


@pytest.fixture
def started(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `isoplan` in the workspace without waiting for it; what a failed test leaves is killed."""
    all_started: list[subprocess.Popen[str]] = []

    def start(*words: object) -> subprocess.Popen[str]:
        argv = [sys.executable, "-P", "-m", "isoplan", *map(str, words)]
        process = subprocess.Popen(
            argv, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        all_started.append(process)
        return process

    yield start
    for process in all_started:
        process.kill()
        with process:
            pass


def folder_of(home: Path, run: RunSpec) -> RunFolder:
    return RunFolder(home / "runs" / run.fingerprint())


def until(ready: Callable[[], bool]) -> None:
    """Wait for something that will be so in seconds."""
    limit_s = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < limit_s, "waited a minute in vain"
        time.sleep(0.05)


def long_run(home: Path, **changes: Any) -> RunSpec:
    """A run of some seconds, which can be caught in the middle."""
    plain = {"optim": samples.optim(steps=800, batch_sequences=2, milestones=())}
    return tiny_run(
        home,
        **(plain | {"evaluation": Evaluation(every_steps=200, sequences=4, final_sequences=8)} | changes),
    )


def curves(home: Path, run: RunSpec) -> tuple[bytes, bytes]:
    """What must not depend on whether the run was interrupted."""
    folder = folder_of(home, run)
    return folder.metrics_jsonl.read_bytes(), folder.evals_jsonl.read_bytes()


@pytest.mark.slow
def test_a_plan_is_run_once_whatever_lies_in_the_current_folder(home: Path) -> None:
    for module in ("model", "specs", "runtime", "torch"):
        (home / f"{module}.py").write_text(DECOY)
    runs = [tiny_run(home), tiny_run(home, seed=1), tiny_run(home, seed=2)]
    path = tiny_plan(home, *runs)
    done = isoplan_process(home, "run", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished pilot") == 3
    assert f"next: audit {shlex.quote(str(path))}\n" in done.stdout
    ends = [folder_of(home, run).end() for run in runs]
    assert all(end is not None and end.step == 30 for end in ends)

    records = [folder_of(home, run).record_jsonl.read_bytes() for run in runs]
    again = isoplan_process(home, "run", path, "--json")
    assert again.returncode == 0, again.stderr
    assert [run["state"] for run in json.loads(again.stdout)["runs"]] == ["finished"] * 3
    assert "3 of 3 runs are already finished" in again.stderr
    assert [folder_of(home, run).record_jsonl.read_bytes() for run in runs] == records


@pytest.mark.slow
def test_two_ranks_train_one_run(home: Path) -> None:
    run = tiny_run(home)
    layout = samples.layout(dp=2, micro_batch_sequences=1)
    path = tiny_plan(home, run, execution=Execution(device="cpu", layout=layout, checkpoint_interval_s=60.0))
    done = isoplan(home, "run", path)
    assert done.returncode == 0, done.stdout + done.stderr
    start = folder_of(home, run).records()[0]
    assert isinstance(start, Start)
    assert start.execution.layout.dp == 2
    assert start.seal == load(path, Plan).seal


@pytest.mark.slow
def test_a_bare_run_spec_is_run(home: Path) -> None:
    run = tiny_run(home)
    write_yaml(home / "run.yaml", run)
    done = isoplan(home, "run", "run.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder_of(home, run).end() is not None
    assert folder_of(home, run).order().seal is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_an_interrupted_plan_goes_on_and_ends_as_if_it_never_was(
    home: Path, started: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    run, plain = long_run(home), long_run(home, seed=0)
    path = tiny_plan(home, run)
    assert isoplan(home, "run", path).returncode == 0
    undisturbed = curves(home, plain)
    shutil.rmtree(home / "runs")

    folder = folder_of(home, run)
    launcher = started("run", path)
    until(lambda: any(folder.checkpoints.glob("step-*")) and len(folder.metrics()) > 20)
    launcher.send_signal(number)
    said, _ = launcher.communicate()
    assert folder.end() is None
    if number == signal.SIGINT:
        assert launcher.returncode == 75
        assert "rerun the same command to resume" in said
    done = isoplan(home, "run", path)
    assert done.returncode == 0, done.stdout + done.stderr
    starts = [line for line in folder.records() if isinstance(line, Start)]
    assert len(starts) == 2
    assert starts[1].from_step > 0
    assert curves(home, run) == undisturbed


LAST_MOMENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(os.getppid(), signal.SIGINT)
time.sleep(0.3)
"""
"""A rank that is about to end when a stop is requested."""


def test_a_stop_in_the_last_moment_of_the_last_pilot_stops_the_study(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_plan(home, tiny_run(home))
    planned = [path, load(path, Plan)]
    monkeypatch.setattr(study, "rank_command", lambda _: lambda _: [sys.executable, "-c", LAST_MOMENT])
    monkeypatch.setattr(study, "call_planner", lambda *_: planned)
    monkeypatch.setattr(study.verdict, "audit_plan", None)  # nothing new may start
    done = isoplan(home, "run", "budget.yaml")
    assert done.returncode == 75, done.stderr
    assert "stopped when these runs had finished; rerun the same command to continue" in done.stdout


def test_a_stop_that_only_the_planner_heard_of_stops_the_study(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        study.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 75, "", "interrupted")
    )
    done = isoplan(home, "run", "budget.yaml")
    assert (done.returncode, done.stderr) == (75, "interrupted; rerun the same command to resume\n")


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_only_that_one_is_repeated(
    home: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    bad, good = long_run(home), tiny_run(home)
    layout = samples.layout(dp=2, micro_batch_sequences=1)
    path = tiny_plan(
        home, bad, good, execution=Execution(device="cpu", layout=layout, checkpoint_interval_s=2.0)
    )
    folder = folder_of(home, bad)
    launcher = started("run", path)
    until(lambda: folder.metrics_jsonl.exists() and len(folder.metrics()) > 20)
    victim = next(pid for pid in ranks_of(folder) if b"RANK=1" in environment_of(pid))
    os.kill(victim, signal.SIGKILL)
    said, _ = launcher.communicate()
    assert launcher.returncode == 70, said
    assert "failed pilot 0: killed (signal 9), possibly out of memory (rank 1 of 2" in said
    assert "1 of 2 runs are not finished" in said
    assert folder_of(home, good).end() is not None
    done = isoplan(home, "run", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 runs are already finished" in done.stdout
    assert folder.end() is not None


def ranks_of(folder: RunFolder) -> list[int]:
    """Process ids of the ranks at work in a run folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"runtime.train.rank" in words and any(
                word.endswith(folder.path.name.encode()) for word in words
            ):
                found.append(int(entry.parent.name))
    return found


def environment_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.mark.slow
def test_two_launchers_never_share_a_run(home: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    run = long_run(home)
    path = tiny_plan(home, run)
    folder = folder_of(home, run)
    first = started("run", path)
    until(lambda: folder.metrics_jsonl.exists() and len(folder.metrics()) > 10)
    os.kill(first.pid, signal.SIGSTOP)  # so that it is at work for as long as the second one waits
    ranks = ranks_of(folder)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    second = isoplan(home, "run", path)
    assert second.returncode == 75, second.stdout
    assert f"busy pilot 0: process {first.pid} on " in second.stdout
    for pid in [*ranks, first.pid]:
        os.kill(pid, signal.SIGCONT)
    said, _ = first.communicate()
    assert first.returncode == 0, said
    assert len([line for line in folder.records() if isinstance(line, Start)]) == 1


@pytest.mark.slow
def test_a_budget_goes_all_the_way_and_twice_costs_nothing(home: Path) -> None:
    first = isoplan(home, "run", "budget.yaml", "--json")
    assert first.returncode == 3, first.stderr  # its published law has no loss, so there is no forecast
    said = json.loads(first.stdout)
    [run] = said.pop("runs")
    assert said == {"plan": "plans/mini/plan.target.yaml", "verdict": "cannot tell", "exit_code": 3}
    assert run["state"] == "finished"
    assert "audit.html" in first.stderr
    plan = load(home / "plans/mini/plan.target.yaml", Plan)
    record = folder_of(home, plan.runs[0].run).record_jsonl
    written, ledger = record.read_bytes(), (home / "ledger.jsonl").read_bytes()
    assert isoplan(home, "run", "budget.yaml").returncode == 3
    assert isoplan(home, "audit", "plans/mini/plan.target.yaml").returncode == 3
    assert record.read_bytes() == written
    assert (home / "ledger.jsonl").read_bytes() == ledger


@pytest.mark.soak
def test_a_study_killed_among_its_pilots_goes_on_to_its_verdict(
    home: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    evidence = "{kind: pilots, prior: tiny, share: 0.8, budgets: 2, sizes: 4, spread: 2, rates: []}"
    text = BUDGET.replace("{kind: published, law: tiny}", evidence).replace("1e9 FLOP", "1e12 FLOP")
    real = "{source: installed, packages: [numpy]}"  # at 1e11 FLOP its best size is well inside the ladder
    (home / "budget.yaml").write_text(text.replace("{source: files, paths: [text.jsonl]}", real))
    study = started("run", "budget.yaml")
    until(lambda: len(ended(home)) >= 2)
    study.kill()
    study.wait()
    finished = ended(home)

    metrics = next(iter(finished)).with_name("metrics.jsonl")
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])  # its last step is missing
    stuck = isoplan(home, "run", "budget.yaml")
    assert stuck.returncode == 3, stuck.stdout + stuck.stderr
    assert "rejected" in stuck.stdout
    assert "requests the same pilots again" in stuck.stdout
    metrics.write_bytes(whole)

    done = isoplan(home, "run", "budget.yaml")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    audit = load(home / "plans/mini/audit.target.json", Audit)
    assert done.returncode == {"inside": 0, "outside": 1, "cannot tell": 3}[audit.verdict]
    assert audit.verdict in done.stdout
    assert {path: path.read_bytes() for path in finished} == finished
    pilots, target = (load(home / f"plans/mini/plan.{phase}.yaml", Plan) for phase in ("pilots", "target"))
    for planned in (*pilots.runs, *target.runs):
        assert folder_of(home, planned.run).end() is not None


def ended(home: Path) -> dict[Path, bytes]:
    """The records of finished runs."""
    found = {path: path.read_bytes() for path in home.glob("runs/*/record.jsonl")}
    return {path: record for path, record in found.items() if b'"event": "end"' in record}
