"""`isoplan data --slurm`: the corpus that one machine builds, each task once, also where one is killed."""

import json
from pathlib import Path

import pytest

from specs.data import Corpus
from specs.data_jobs import DataJobs
from specs.document.files import load
from tests.runtime.data.build.test_curation import edited, prose
from tests.support.commands import isoplan
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.desk import BUDGET, CLUSTER

pytestmark = pytest.mark.slurm

CURATE = "curate: [{step: MinhashDedup, num_buckets: 2, hashes_per_bucket: 4}]"
"""Four passes: two tasks that sign, one for each bucket, one that clusters, two that drop."""
BREAK = '[ ! -e broken -o "$SLURM_ARRAY_TASK_ID" != 1 ] || { rm broken; echo disk on fire >&2; kill -9 $$; }'
"""Kills the second job of the first array, once."""


def write_budget(folder: Path) -> None:
    """Two files with a near duplicate in each, and a budget on them."""
    folder.mkdir()
    texts = [prose(seed, 60) for seed in range(12)]
    for number, name in enumerate(("a", "b")):
        records = [*texts[number::2], edited(texts[1 - number])]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in records))
    text = BUDGET.replace("paths: [text.jsonl]", f"paths: ['*.jsonl'], {CURATE}")
    (folder / "budget.yaml").write_text(text)


def manifest(folder: Path) -> Corpus:
    [path] = folder.glob("data/*/manifest.json")
    return load(path, Corpus)


def test_jobs_build_the_corpus_of_one_machine_also_when_one_is_killed(
    client: Cluster, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "a $HOME of 'one'; touch x"
    write_budget(here)
    write_budget(there)
    setup = f"slurm:\n  partition: main\n  memory: 800 MB\n  prologue: [{json.dumps(BREAK)}]\n"
    (there / "lab.yaml").write_text(CLUSTER + setup)
    (there / "broken").touch()
    asked = ("data", "budget.yaml", "--slurm")
    first = isoplan(there, *asked)
    assert first.returncode == 0, first.stderr
    assert [line.partition(" as ")[0] for line in first.stdout.splitlines()[:5]] == [
        "queued 2 tasks of step 1 MinhashDedup, signatures",
        "queued 2 tasks of step 1 MinhashDedup, buckets",
        "queued 1 task of step 1 MinhashDedup, cluster",
        "queued 2 tasks of step 1 MinhashDedup, filter",
        "queued the build of the corpus",
    ]
    assert "see: isoplan status budget.yaml -f" in first.stdout
    again = isoplan(there, *asked)
    assert (again.returncode, "queued" in again.stdout) == (0, False), again.stdout
    print(first.stdout, again.stdout)
    whole = isoplan(here, "data", "budget.yaml")
    assert whole.returncode == 0, whole.stderr
    client.until(lambda: client.run("squeue", "--noheader") == "", "what can start has ended")
    status = isoplan(there, "status", "budget.yaml").stdout
    print(status)
    second = isoplan(there, *asked)
    print(second.stdout, second.stderr)
    client.until(lambda: client.run("squeue", "--noheader") == "", "all have ended")
    print(isoplan(there, *asked).stdout)
    assert manifest(there).digest == manifest(here).digest
