"""A small run on two nodes of the tests' SLURM, its steps paced, watched while something happens to it."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runtime.launch.jobs import RunRequest
from runtime.launch.machine import Machine
from runtime.run_folder.folder import RunFolder
from runtime.run_folder.workspace import Workspace
from runtime.slurm import submit
from runtime.slurm.study import submit_runs
from runtime.slurm.submit import ClusterFile
from runtime.study import Driver, RunResults
from specs.cluster import Cluster as ClusterSpec
from specs.document.files import load
from specs.record import Incident, Order, Start
from specs.run import RunSpec
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.desk import CLUSTER

PACED = Path(__file__).parent / "paced"


def cluster_file(folder: Path, *lines: str, devices_per_node: int = 2, top: str = "") -> Path:
    """A cluster file for the tests' SLURM, with these lines under `slurm:`, and this one beside it."""
    path = folder / "lab.yaml"
    nodes = CLUSTER.replace("devices_per_node: 2", f"devices_per_node: {devices_per_node}")
    path.write_text(
        f"{nodes}{top}\n" + "slurm:\n" + "".join(f"  {line}\n" for line in (*lines, "memory: 800 MB"))
    )
    return path


def paced(pace_s: float, crash: str = "", *, slow: str = "", deaf: bool = False) -> str:
    """A line of the cluster file that paces the steps; see paced/sitecustomize.py."""
    path = os.pathsep.join(filter(None, (str(PACED), os.environ.get("PYTHONPATH"))))
    said = f"export PYTHONPATH={shlex.quote(path)} PACE_S={pace_s} CRASH={shlex.quote(crash or '-1 0 -')}"
    said += f" SLOW={shlex.quote(slow)}" if slow else ""
    said += " DEAF=1" if deaf else ""
    return f"prologue: [{json.dumps(said)}]"


@dataclass
class Running:
    """A run that was queued."""

    cluster: Cluster
    folder: RunFolder
    workspace: Workspace
    cluster_file: ClusterFile
    request: RunRequest

    @staticmethod
    def queued(
        cluster: Cluster, home: Path, place: Path, run: RunSpec, order: Order, *lines: str, top: str = ""
    ) -> "Running":
        """A run of a workspace of its own, on two nodes, queued with these lines in its cluster file."""
        place.mkdir(parents=True, exist_ok=True)
        (place / "data").symlink_to(home / "data")
        each = order.execution.layout.devices // 2
        path = cluster_file(place, *lines, devices_per_node=each, top=top)
        lab, workspace = ClusterFile(path, load(path, ClusterSpec)), Workspace(place)
        request = RunRequest(path, "", "a small run", run, order, 1.0)
        running = Running(cluster, RunFolder(request.folder(workspace)), workspace, lab, request)
        running.queue()
        return running

    def queue(self, *, retry_failed: bool = True) -> RunResults:
        """Queue it, unless it is finished or queued already."""
        driver = Driver(self.workspace, Machine(1, ()), None, Console(quiet=True))
        return submit_runs(driver, [self.request], self.cluster_file, "small", retry_failed=retry_failed)

    @property
    def job(self) -> str:
        """SLURM's number for it."""
        said = submit.latest_submission(self.workspace, self.folder)
        assert said is not None
        job = said[0].job_of(self.folder.path.name)
        assert job is not None
        return job

    @property
    def starts(self) -> list[Start]:
        """Its segments so far."""
        return [line for line in self.folder.records() if isinstance(line, Start)]

    def incidents(self, what: str) -> list[Incident]:
        """What it recorded of this kind."""
        return [line for line in self.folder.records() if isinstance(line, Incident) and line.what == what]

    def wait_for_step(self, step: int, starts: int = 1, timeout_s: float = 240) -> None:
        """Until it has made this step, in its segment of this number or a later one."""

        def there() -> bool:
            return len(self.starts) >= starts and self._step() >= step

        self.cluster.until(
            there, f"the run is at step {step} after {starts} starts\n{self.said()}", timeout_s
        )

    def wait_for_end(self, timeout_s: float = 300) -> None:
        """Until its job has completed and its record has an end."""
        self.cluster.wait(self.job, "COMPLETED", timeout_s=timeout_s)
        assert self.folder.end() is not None, self.said()

    def came_back_s(self, since_s: float, start: int) -> float:
        """Seconds from a moment to the run's start of this number; its first step follows within a pace."""
        return self.starts[start].time - since_s

    def said(self) -> str:
        """What its ranks and its script printed."""
        logs = [*self.folder.log.glob("*.txt"), *(self.workspace.path / "slurm").glob("*/*_log.*")]
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in sorted(logs))

    def _step(self) -> int:
        try:
            return len(self.folder.metrics_jsonl.read_bytes().splitlines())
        except FileNotFoundError:
            return 0
