"""`isoplan data --slurm`: the corpus that one machine builds, each task once, also where one is killed."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from submitit import SlurmExecutor

from runtime.data.build.corpus import build
from runtime.run_folder.workspace import Workspace
from runtime.slurm.data_state import DataState, data_state, noted_jobs
from specs.budget import Budget
from specs.data import Corpus
from specs.document.files import load
from specs.slurm_submission import Submission
from tests.runtime.data.build.test_curation import edited, prose
from tests.support.commands import call, isoplan
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.desk import BUDGET, CLUSTER, HELD

pytestmark = pytest.mark.slurm

ASK = ("data", "budget.yaml", "--slurm")
CURATE = "curate: [{step: MinhashDedup, num_buckets: 2, hashes_per_bucket: 4}]"
"""Four passes: two tasks that sign, one for each bucket, one that clusters, two that drop."""
ALL = "curate: [{step: GopherQualityFilter, min_doc_words: 20}, {step: ExactDedup}, {step: MinhashDedup}]"
BREAK = (
    '[ ! -e broken -o "$SLURM_ARRAY_TASK_ID" != 1 ] || '
    "{ until [ -e go ]; do sleep 0.1; done; rm broken go; echo disk on fire >&2; kill -9 $$; }"
)
"""Kills the second job of the first array, once, when it is told to."""


def write_budget(folder: Path, curate: str = CURATE) -> None:
    """Two files with a near duplicate in each, and a budget on them."""
    folder.mkdir()
    texts = [prose(seed, 60) for seed in range(12)]
    for number, name in enumerate(("a", "b")):
        records = [*texts[number::2], edited(texts[1 - number])]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in records))
    text = BUDGET.replace("paths: [text.jsonl]", f"paths: ['*.jsonl'], {curate}")
    (folder / "budget.yaml").write_text(text)


def corpus(folder: Path) -> Corpus:
    """The corpus that is built in a folder."""
    [path] = folder.glob("data/*/manifest.json")
    return load(path, Corpus)


def test_jobs_build_the_corpus_of_one_machine_also_where_one_was_killed(
    client: Cluster, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "a $HOME of 'one'; touch x"
    write_budget(here)
    write_budget(there)
    setup = f"slurm:\n  partition: main\n  memory: 800 MB\n  prologue: [{json.dumps(BREAK)}]\n"
    (there / "lab.yaml").write_text(CLUSTER + setup)
    (there / "broken").touch()

    first = isoplan(there, *ASK)
    assert first.returncode == 0, first.stderr
    assert [line.partition(" as ")[0] for line in first.stdout.splitlines()[:5]] == [
        "queued 2 tasks of step 1 MinhashDedup, signatures",
        "queued 2 tasks of step 1 MinhashDedup, buckets",
        "queued 1 task of step 1 MinhashDedup, cluster",
        "queued 2 tasks of step 1 MinhashDedup, filter",
        "queued the build of the corpus",
    ]
    assert "see: isoplan status budget.yaml -f" in first.stdout
    signing, buckets, *_, building = jobs(there)
    assert (client.states(f"{buckets}_0"), client.states(building)) == (["PENDING"], ["PENDING"])
    again = isoplan(there, *ASK)
    assert (again.returncode, "queued" in again.stdout) == (0, False), again.stdout
    assert len(jobs(there)) == 5
    for words in (("data", "budget.yaml"), ("plan", "budget.yaml")):
        refused = isoplan(there, *words)
        assert refused.returncode == 2
        assert "SLURM jobs build it" in refused.stderr

    spec = load(here / "budget.yaml", Budget).data
    (there / "go").touch()
    whole = build(spec, here, here / "data", Console(quiet=True), 1)
    client.wait(f"{signing}_0", "COMPLETED")
    status = isoplan(there, "status", "budget.yaml").stdout
    assert "1 of 2 tasks done; " in status
    assert f"signatures: job {signing}_1 failed: disk on fire (its log: {there}/slurm/" in status
    assert "continue with: isoplan data budget.yaml --slurm" in status

    second = isoplan(there, *ASK)
    assert f"job {signing}_1 failed: disk on fire" in second.stdout
    assert "queued 1 task of step 1 MinhashDedup, signatures" in second.stdout
    assert len(jobs(there)) == 10
    assert not {job.partition("_")[0] for job in client.run("squeue", "-h", "-o", "%i").split()} & {
        buckets,
        build,
    }
    client.wait(jobs(there)[-1], "COMPLETED")
    assert corpus(there) == whole
    assert whole.reading is not None
    assert [(one.read, one.dropped) for one in whole.reading.curation] == [(14, 2)]
    done = isoplan(there, *ASK)
    assert (done.returncode, f"digest {whole.digest[:16]}" in done.stdout) == (0, True)
    assert sorted(path.name for path in there.iterdir()) == [
        "a.jsonl", "b.jsonl", "budget.yaml", "data", "lab.yaml", "slurm"
    ]  # fmt: skip


def test_each_job_is_queued_once_until_they_are_cancelled(
    client: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the command is stopped after sbatch, before it has written down the number of the job."""
    there = tmp_path / "there"
    write_budget(there)
    (there / "lab.yaml").write_text(f"{CLUSTER}slurm:\n  partition: nope\n")
    refused = isoplan(there, *ASK)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("lab.yaml:19:14: SLURM refuses the job: "), refused.stderr
    assert (list(there.glob("slurm/*/*")), list(there.glob("data/.index/*.jobs.json"))) == ([], [])
    (there / "lab.yaml").write_text(f"{CLUSTER}slurm:\n  {HELD}\n")
    for words in (("run", "budget.yaml", "--slurm"), ("run", "budget.yaml", "--slurm", "--until-done")):
        refused = call(*words, folder=there)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "; run: isoplan data budget.yaml --slurm, or on this machine: isoplan data " in refused.stderr

    parse, seen = SlurmExecutor._get_job_id_from_submission_command, list[str]()

    def stopped(said: str) -> str:
        seen.append(said)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return parse(said)

    with monkeypatch.context() as patched:
        patched.setattr(SlurmExecutor, "_get_job_id_from_submission_command", staticmethod(stopped))
        assert isoplan(there, *ASK).returncode == 75
    assert len(queued(client)) == 3
    resumed = isoplan(there, *ASK)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("queued ") == 2
    names = queued(client)
    assert len(names) == len(set(names)) == 5
    for words in (ASK, (*ASK, "--json")):
        said = isoplan(there, *words)
        assert (said.returncode, queued(client)) == (0, names)
    plain = json.loads(said.stdout)
    assert [one["pending"] for one in plain["passes"]] == [2, 2, 1, 2]
    assert plain["build"]["state"] == "pending"
    cancelled = isoplan(there, "cancel", "budget.yaml")
    assert "cancelled 8 jobs that would have built the corpus" in cancelled.stdout
    client.until(lambda: not queued(client), "nothing is left in the queue")
    assert "1. data    the corpus is not built yet" in isoplan(there, "status", "budget.yaml").stdout
    assert "nothing to cancel" in isoplan(there, "cancel", "budget.yaml").stdout


@pytest.mark.soak
def test_a_job_of_each_pass_is_killed(client: Cluster, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        write_budget(folder, ALL)
    (there / "lab.yaml").write_text(CLUSTER + "slurm:\n  memory: 800 MB\n")
    spec = load(here / "budget.yaml", Budget).data
    whole = build(spec, here, here / "data", Console(quiet=True), 1)
    asked = isoplan(there, *ASK)
    assert asked.returncode == 0, asked.stderr
    workspace = Workspace(there)

    def state() -> DataState:
        noted = noted_jobs(workspace, spec, there)
        assert noted is not None
        return data_state(workspace, noted)

    killed = 0
    for number in range(len(state().passes)):

        def running(number: int = number) -> list[str]:
            one = state().passes[number]
            return [job.job for job in one.live.values() if job.state == "RUNNING"] or ["done"] * (
                not one.not_done
            )

        first = client.until(running, f"pass {number} runs", 300)[0]
        if first != "done":
            client.call("scancel", "--full", "--signal=KILL", first)
            killed += 1
            client.until(lambda: not state().in_progress, "what can go on has ended", 300)
            asked = isoplan(there, *ASK)
            assert f"job {first} " in asked.stdout, asked.stdout
    assert killed >= len(state().passes) // 2
    client.until(lambda: list(there.glob("data/*/manifest.json")), "the corpus is built", 300)
    assert corpus(there) == whole


def queued(cluster: Cluster) -> list[str]:
    """Names of the jobs and arrays in the queue."""
    return sorted(cluster.run("squeue", "--noheader", "--format=%j").split())


def jobs(folder: Path) -> list[str]:
    """SLURM's numbers of all that was queued, in order."""
    found = [load(path, Submission) for path in folder.glob("slurm/*/submission.json")]
    return [str(number) for number in sorted(one.job or 0 for one in found)]
