"""A workspace beside the tests' SLURM, and the command as a person types it there, carried out in this process."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isoplan.cli import run_main
from runtime.run_folder.folder import RunFolder
from specs.document.files import load
from specs.document.write import write_yaml
from specs.run import Execution, RunSpec
from specs.slurm_submission import Queued, Submission
from tests.support import samples
from tests.support.slurm.cluster import Cluster

CLUSTER = """\
kind: cluster
name: lab
source: virtual nodes on one machine
device:
  name: CPU core
  backend: cpu
  peak_bf16: 172 GFLOP/s
  peak_fp32: 66 GFLOP/s
  memory: 4 GB
  memory_bandwidth: 10 GB/s
devices: 8
devices_per_node: 2
intra_node: 5 GB/s
inter_node: 1 GB/s
model_flop_utilisation: 0.4
model_flop_utilisation_source: a guess
checkpoint_interval: 10 s
"""

BUDGET = """\
kind: budget
name: mini
compute: 1e9 FLOP
evidence: {kind: published, law: tiny}
family: tiny
cluster: lab.yaml
data:
  text: {source: files, paths: [text.jsonl]}
  tokenizer: {kind: bytes}
  held_out_one_in: 4
precision: fp32
"""
"""Its text holds out as much as the evaluations of the family `tiny` take."""
TEXT = "".join(
    json.dumps({"text": f"Document {i} {'says the same again. ' * 900}"}) + "\n" for i in range(60)
)
HELD = "extra: {hold: true}"
"""Jobs stay in the queue, so that there is time to look at them."""


@dataclass(frozen=True)
class Typed:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Desk:
    """A workspace, which is the current folder, and the cluster that jobs go to."""

    folder: Path
    cluster: Cluster
    captured: pytest.CaptureFixture[str]

    def says(self, *lines: str, **top: object) -> str:
        """The cluster file, with these lines under `slurm:` and these values of others, the device's too; its text."""
        text = CLUSTER
        for key, value in top.items():
            [line] = [line for line in text.splitlines() if line.strip().startswith(f"{key}:")]
            text = text.replace(line, f"{line.partition(key)[0]}{key}: {value}")
        if lines:
            text += "slurm:\n" + "".join(f"  {line}\n" for line in lines)
        (self.folder / "lab.yaml").write_text(text)
        return text

    def plan(self, *runs: RunSpec, executions: tuple[Execution, ...] = ()) -> str:
        """A sealed plan of these runs on that cluster, each with an execution of its own or on one core."""
        sample = samples.plan()
        budget = sample.budget.model_copy(update={"name": "mini", "cluster": "lab.yaml"})
        planned = tuple(
            sample.runs[0].model_copy(
                update={"title": f"pilot {index}", "role": "pilot", "run": run, "execution": execution}
            )
            for index, (run, execution) in enumerate(
                zip(runs, executions or [execution()] * len(runs), strict=True)
            )
        )
        path = Path("plans/mini/plan.pilots.yaml")
        plan = samples.sealed(
            sample, budget=budget, phase="pilots", runs=planned, ledger="../../ledger.jsonl"
        )
        write_yaml(self.folder / path, plan)
        return str(path)

    def run(self, *words: str) -> Typed:
        """What `run` prints, and its exit code."""
        self.captured.readouterr()
        kept, sys.argv = sys.argv, ["run", *words]
        try:
            with pytest.raises(SystemExit) as ended:
                run_main()
        finally:
            sys.argv = kept
        said = self.captured.readouterr()
        code = ended.value.code
        return Typed(code if isinstance(code, int) else 0, said.out, said.err)

    def queued(self, *fields: str) -> list[list[str]]:
        """Every job and element of an array that SLURM has in hand: these fields of `squeue --Format`."""
        wanted = ",".join(f"{field}:|" for field in fields or ("JobArrayID",))
        lines = self.cluster.run("squeue", "--noheader", "--array", "--Format", wanted).splitlines()
        return sorted(line.split("|")[:-1] for line in lines)

    def job(self, number: object) -> dict[str, str]:
        """What SLURM knows of a job; devices as `gres/gpu`, which SLURM 22.05 calls `gres:gpu`."""
        lines = self.cluster.run("scontrol", "show", "job", str(number)).splitlines()
        whole = {}
        for line in lines:
            for word in [line.strip()] if "Comment=" in line else line.split():
                key, _, value = word.partition("=")
                whole.setdefault(key, re.sub("^gres:", "gres/", value))
        return whole

    def submissions(self) -> list[Submission]:
        """What is written down of submissions, in the order of SLURM's numbers."""
        found = [load(path, Submission) for path in self.folder.glob("slurm/*/submission.json")]
        return sorted(found, key=lambda one: one.job or 0)

    def submission_of(self, run: RunSpec) -> str:
        """The name of the submission that a run is of."""
        return load(self.run_folder(run).queued_json, Queued).submission

    def run_folder(self, run: RunSpec) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.folder / "runs" / run.fingerprint())

    def written(self) -> dict[str, bytes]:
        """What submissions leave: the folders of submissions, and what the runs' folders say of them."""
        files = [*self.folder.glob("slurm/*/*"), *self.folder.glob("runs/*/queued.json")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files if path.is_file()}


def at_desk(
    folder: Path, home: Path, cluster: Cluster, captured: pytest.CaptureFixture[str], *says: str
) -> Desk:
    """A new workspace with the corpora that `home` has, a budget, its text, and a cluster file with these lines."""
    folder.mkdir()
    (folder / "data").symlink_to(home / "data")
    (folder / "text.jsonl").write_text(TEXT)
    (folder / "budget.yaml").write_text(BUDGET)
    desk = Desk(folder, cluster, captured)
    desk.says(*says)
    return desk


def execution(device: str = "cpu", threads: int = 1, **layout: Any) -> Execution:
    """How a run is carried out: one rank, unless the layout's parts say otherwise."""
    cut = samples.layout(**({"dp": 1, "micro_batch_sequences": 1} | layout))
    return Execution.model_validate(
        {"device": device, "layout": cut, "threads_per_rank": threads, "checkpoint_interval_s": 60.0}
    )
