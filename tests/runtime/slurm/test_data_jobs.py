"""What is queued to curate a text and build its corpus, without a SLURM: each task once, one pass after the other."""

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runtime.data.build.mix import build_sources
from runtime.launch.machine import Machine
from runtime.run_folder.workspace import Workspace
from runtime.slurm import client, data_jobs
from runtime.slurm.client import LiveJob
from runtime.slurm.data_jobs import Queue
from runtime.slurm.data_state import DataState, PassState
from runtime.slurm.data_task import BuildTask, CurateTask
from runtime.slurm.submit import ClusterFile, PreparedSubmission
from runtime.study import Driver
from specs.cluster import Cluster
from specs.data import Bytes, DataSpec, FileText, InstalledText
from specs.data_jobs import DataJobs, PassJobs, jobs_path
from specs.document.files import from_catalog
from specs.document.write import write_json
from specs.slurm import Slurm
from specs.slurm_submission import Submission
from specs.sources import find_sources
from tests.support.commands import isoplan

AWKWARD = """a $HOME of 'one' "own"; touch x # `touch y` $(touch z) & ü*"""
LAPTOP = from_catalog(Cluster, "laptop", None)
PASSES = {"signatures": 5, "cluster": 1, "filter": 5}


def job(name: str, state: str = "RUNNING", reason: str = "") -> LiveJob:
    return LiveJob(name, "mini-data", state, reason, "", 0, "")


def passed(
    name: str,
    done: Collection[int] = (),
    live: Mapping[int, LiveJob] = {},
    source: str | None = None,
    queued: int = 0,
) -> PassState:
    """A pass with these tasks done and in live jobs, for which so much was queued before."""
    names = tuple(f"mini-data-{number}" for number in range(queued))
    folder = f"data/.0.part/curated/0-MinhashDedup/{source}{name}"
    jobs = PassJobs(
        source=source, step="1 MinhashDedup", name=name, tasks=PASSES[name], folder=folder, submissions=names
    )
    return PassState(jobs, done, live)


def filled(
    folder: Path, *passes: PassState, build: LiveJob | None = None, most: int = 8, **slurm: Any
) -> tuple[Queue, DataJobs]:
    """What is queued on a cluster of four cores a node, and the jobs as they are noted."""
    changes = {"devices_per_node": 4, "slurm": Slurm(**slurm)}
    cluster = ClusterFile(Path("lab.yaml"), LAPTOP.model_copy(update=changes))
    spec = DataSpec(text=InstalledText(source="installed"), tokenizer=Bytes(kind="bytes"))
    jobs = DataJobs(spec=spec, folder="/", passes=tuple(one.jobs for one in passes), builds=())
    queue = Queue(Workspace(folder), cluster, "mini-data", "data/.index/0.jobs.json")
    return queue, queue.fill(jobs, DataState(passes, build, ()), most)


def options(script: PreparedSubmission) -> set[str]:
    return {line for line in script.text.splitlines() if line.startswith("#SBATCH")}


def test_an_array_for_each_pass_and_a_build_that_waits_for_the_last(tmp_path: Path) -> None:
    queue, jobs = filled(tmp_path, *map(passed, PASSES), memory="8 GiB")
    signing, clustering, filtering, building = queue.prepared
    assert [one.after for one in queue.prepared] == [
        (),
        (signing.submission.name,),
        (clustering.submission.name,),
        (filtering.submission.name,),
    ]
    assert all(one.only_after_success for one in queue.prepared)
    assert [one.submissions[-1] for one in jobs.passes] == [one.submission.name for one in queue.prepared[:3]]
    assert jobs.builds == (building.submission.name,)
    alike = {"#SBATCH --nodes=1", "#SBATCH --ntasks=1", "#SBATCH --requeue"}
    assert options(signing) >= {
        *alike,
        "#SBATCH --array=0-4%5",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem=2048M",
    }
    assert options(clustering) >= {*alike, "#SBATCH --cpus-per-task=1", "#SBATCH --mem=8192M"}
    assert options(building) >= {*alike, "#SBATCH --cpus-per-task=4", "#SBATCH --mem=8192M"}
    assert not re.search("gres|gpu|exclusive|srun", "".join(one.text for one in queue.prepared))
    assert signing.tasks[3] == CurateTask(
        str(tmp_path), "data/.index/0.jobs.json", jobs.passes[0].folder, (3,)
    )
    assert building.tasks == (BuildTask(str(tmp_path), "data/.index/0.jobs.json", 4),)


def test_an_array_longer_than_the_site_allows_has_jobs_of_several_tasks(tmp_path: Path) -> None:
    queue, _ = filled(tmp_path, passed("signatures"), most=2)
    assert queue.prepared[0].submission.tasks == ((0, 2, 4), (1, 3))
    assert len(queue.prepared[0].tasks) == 2
    alone, _ = filled(tmp_path, passed("signatures"), most=1)
    assert alone.prepared[0].submission.tasks == ((0, 1, 2, 3, 4),)
    assert "--array" not in alone.prepared[0].text


def test_what_is_done_or_in_the_queue_is_not_queued(tmp_path: Path) -> None:
    pending = job("9", "PENDING", "Dependency")
    states = (
        passed("signatures", range(5), queued=1),
        passed("cluster", (), {0: job("7")}, queued=1),
        passed("filter", (), dict.fromkeys(range(5), pending), queued=1),
    )
    queue, jobs = filled(tmp_path, *states, build=job("10", "PENDING", "Dependency"))
    assert queue.prepared == []
    assert queue.kept == {"7", "9", "10"}
    assert jobs.passes == tuple(one.jobs for one in states)


def test_a_job_whose_tasks_are_done_is_left_to_end(tmp_path: Path) -> None:
    """What waits for it would never start if it were cancelled."""
    states = (
        passed("signatures", range(5), {4: job("7_4")}, queued=1),
        passed("cluster", (), {0: job("8", "PENDING", "Dependency")}, queued=1),
    )
    queue, _ = filled(tmp_path, *states, build=job("10", "PENDING", "Dependency"))
    assert (queue.prepared, queue.kept) == ([], {"7_4", "8", "10"})


def test_what_failed_is_queued_alone_and_what_waited_for_it_anew(tmp_path: Path) -> None:
    states = (
        passed("signatures", (0, 1), {2: job("7_2"), 3: job("7_3")}, queued=1),
        passed("cluster", (), {0: job("8", "PENDING", "Dependency")}, queued=1),
        passed("filter", (), dict.fromkeys(range(5), job("9", "PENDING", "Dependency")), queued=1),
    )
    queue, jobs = filled(tmp_path, *states, build=job("10", "PENDING", "Dependency"))
    assert [one.submission.tasks for one in queue.prepared] == [
        ((4,),),
        ((0,),),
        ((0,), (1,), (2,), (3,), (4,)),
        ((),),
    ]
    assert queue.prepared[1].after == ("7_2", "7_3", queue.prepared[0].submission.name)
    assert queue.kept == {"7_2", "7_3"}
    assert [len(one.submissions) for one in jobs.passes] == [2, 2, 2]


def test_a_whole_array_is_waited_for_by_its_number_unless_a_job_of_it_failed(tmp_path: Path) -> None:
    live = {3: job("7_3"), 4: job("7_4")}
    for queued, after in ((1, ("7",)), (2, ("7_3", "7_4"))):
        states = passed("signatures", range(3), live, queued=queued), passed("cluster")
        queue, _ = filled(tmp_path, *states)
        assert queue.prepared[0].after == after


def test_sources_are_curated_side_by_side_and_built_at_last(tmp_path: Path) -> None:
    states = [passed(name, source=source) for source in ("code", "web") for name in PASSES]
    queue, _ = filled(tmp_path, *states)
    *of_code, _, _, _, building = queue.prepared
    assert [one.after for one in (queue.prepared[0], queue.prepared[3])] == [(), ()]
    assert building.after == (of_code[2].submission.name, queue.prepared[5].submission.name)


def test_nothing_of_a_path_or_a_cluster_file_is_read_by_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / AWKWARD
    folder.mkdir()
    queue, _ = filled(
        folder, passed("signatures"), partition=AWKWARD, modules=(AWKWARD,), container=("env", AWKWARD)
    )
    for one in queue.prepared:
        [command] = [line for line in one.text.splitlines() if "submitit.core._submit" in line]
        assert shlex.split(command)[:2] == ["env", AWKWARD]
        assert shlex.split(command)[-1] == str(folder / "slurm" / one.submission.name)
        module = next(line for line in one.text.splitlines() if line.startswith("module"))
        assert shlex.split(module, comments=True) == ["module", "load", AWKWARD]
        stubs = "module() { :; }; env() { :; };"
        ran = subprocess.run(
            ["bash", "-c", f"{stubs}\n{one.text}"], cwd=folder, capture_output=True, check=True
        )
        assert ran.stderr == b"isoplan: start 0\n"
        assert list(folder.iterdir()) == []


def test_a_state_says_what_is_due_and_what_failed() -> None:
    pending = dict.fromkeys(range(5), job("9", "PENDING", "Dependency"))
    going = DataState(
        (
            passed("signatures", (0, 1), {2: job("7_2"), 3: job("8_0"), 4: job("8_1", "PENDING")}),
            passed("filter", (), pending),
        ),
        job("10", "PENDING", "Dependency"),
        (),
    )
    assert going.in_progress
    assert going.message("again") == (
        "0 of 2 passes of curation done; step 1 MinhashDedup, signatures: 2 of 5 tasks done, 2 running, 1 pending "
        "(job 7, 8)"
    )
    failed = DataState(
        (passed("signatures", (0, 1, 2, 3)), passed("filter", (), pending)),
        job("10", "PENDING", "Dependency"),
        tuple(f"job 7_{number} failed: disk full (its log: x)" for number in range(5)),
    )
    assert not failed.in_progress
    assert failed.message("again").endswith(
        "4 of 5 tasks done; job 7_0 failed: disk full (its log: x); job 7_1 failed: disk full (its log: x); "
        "job 7_2 failed: disk full (its log: x); 2 other jobs failed; continue with: again"
    )
    building = DataState((passed("signatures", range(5)),), job("10"), ())
    assert building.in_progress
    assert building.message("again") == "a job builds the corpus from what the steps left (job 10)"
    last = DataState((passed("signatures", range(5)),), job("10", "PENDING", "Priority"), ())
    assert last.in_progress
    assert (
        last.message("again") == "1 of 1 passes of curation done; the build of the corpus is pending (job 10)"
    )
    held = DataState((passed("signatures", (), {0: job("7", "PENDING", "JobHeldUser")}),), None, ())
    assert not held.in_progress
    assert held.message("again").endswith(
        "1 pending (job 7); check why jobs are held, then: scontrol release 7"
    )
    away = DataState((passed("signatures", range(5)),), None, (), "SLURM does not answer; try again later")
    assert away.in_progress
    assert "SLURM does not answer" in away.message("again")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--slurm",), "is not installed here; run this on one of the cluster's login nodes"),
        (("--cluster", "laptop"), "--cluster names where to queue it; add --slurm, or drop it"),
        (("--slurm", "--cluster", "nope"), "nope"),
    ],
)
def test_what_cannot_be_queued_is_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    isoplan(tmp_path, "init")
    before = sorted(tmp_path.rglob("*"))
    refused = isoplan(tmp_path, "data", "budgets/demo.yaml", *words, PATH="")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert message in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corpus_that_is_being_built_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its build holds a lock, and moves the folders of what was curated."""
    (tmp_path / "a.jsonl").touch()
    text = FileText(source="files", paths=("a.jsonl",))
    spec = DataSpec(text=text, tokenizer=Bytes(kind="bytes"))
    driver = Driver(Workspace(tmp_path), Machine(1, ()), None, Console(quiet=True))
    moved = (passed("signatures").jobs,)
    noted = DataJobs(spec=spec, folder=str(tmp_path), passes=moved, builds=("mini-data-1",))
    write_json(jobs_path(spec, tmp_path, tmp_path / "data"), noted)
    submission = Submission(name="mini-data-1", time=0.0, runs=(), tasks=((),), job=10, retries=0)
    write_json(tmp_path / "slurm" / "mini-data-1" / "submission.json", submission)
    monkeypatch.setattr(client, "live_jobs", lambda *_: {"10": job("10")})
    monkeypatch.setattr(data_jobs, "prepare_curations", lambda *_: pytest.fail("it is not to be prepared"))
    cluster = ClusterFile(Path("lab.yaml"), LAPTOP)
    state = data_jobs.queue_data(driver, spec, tmp_path, cluster, "mini")
    assert isinstance(state, DataState)
    assert state.in_progress
    assert state.plain()["build"] == {"job": "10", "state": "running"}


@pytest.mark.slow
def test_the_jobs_of_a_mix_build_what_one_machine_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer is trained on what the steps left of all sources. A repeated task changes nothing."""
    curate = [{"step": "ExactDedup"}]
    parts = {
        name: {"text": {"source": "files", "paths": [f"{name}-*.jsonl"], "curate": curate}, "share": 0.5}
        for name in ("web", "code")
    }
    text = {"source": "mix", "parts": parts}
    plain = {"text": text, "tokenizer": {"kind": "bbpe", "vocab": 300}, "held_out_one_in": 4}
    spec = DataSpec.model_validate_json(json.dumps(plain))
    for place in ("here", "there"):
        (tmp_path / place / "texts").mkdir(parents=True)
        for file in ("web-a", "web-b", "code-a", "code-b"):
            lines = [json.dumps({"text": f"{file[:3]} {one % 20} says the same. " * 20}) for one in range(30)]
            (tmp_path / place / "texts" / f"{file}.jsonl").write_text("\n".join(lines))
    here, there = tmp_path / "here", tmp_path / "there"
    quiet = Console(quiet=True)
    whole = build_sources(spec, here / "texts", here / "data", quiet, 1)

    monkeypatch.chdir(there)
    ended = signal.getsignal(signal.SIGTERM)
    driver = Driver(Workspace(Path()), Machine(1, ()), None, quiet)
    passes = tuple(data_jobs._passes(driver, spec, Path("texts")))
    noted = DataJobs(spec=spec, folder=str(there / "texts"), passes=passes, builds=())
    path = jobs_path(spec, Path("texts"), Path("data"))
    write_json(path, noted)
    try:
        for one in [*noted.passes, *noted.passes]:
            CurateTask(str(there), str(path), one.folder, tuple(range(one.tasks)))()
        BuildTask(str(there), str(path), 1)()
    finally:
        signal.signal(signal.SIGTERM, ended)
    assert find_sources(spec, Path("texts"), Path("data")) == whole
    assert [one.reading.curation[0].dropped for one in whole.corpora.values() if one.reading] == [40, 40]
    assert not path.exists()
    assert list(there.glob("data/.*.part")) == []
