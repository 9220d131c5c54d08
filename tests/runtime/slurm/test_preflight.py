"""Which nodes fail a preflight, judged from what their tasks report; and what the script is told to do."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.run_folder.folder import RunFolder
from runtime.slurm.preflight import judge as judged
from runtime.slurm.preflight import probe
from runtime.slurm.preflight.judge import EXCLUDE, GO, STOP, Memory, Reports, Verdict, judge
from runtime.slurm.preflight.probe import Place
from runtime.slurm.preflight.report import LinkReport, NodeReport, exclusions, read_reports, write_report
from runtime.slurm.preflight.script import lines
from specs.document.write import write_json
from specs.preflight import Preflight, PreflightOrder
from specs.record import Incident
from specs.slurm_submission import Submission
from tests.support.forkserver import PROCESSES

RUN = "0123456789abcdef"
FINE = NodeReport(
    devices=8,
    bound=False,
    device_free_bytes=78e9,
    host_free_bytes=900e9,
    folder_free_bytes=1e12,
    temporary="/tmp",
    temporary_free_bytes=1e11,
    flop_per_s=600e12,
)
NODES = ("a", "b", "c", "d")


def wanted(**changes: Any) -> PreflightOrder:
    """Of nodes with two GPUs each."""
    plain = {
        "limits": Preflight(),
        "device": "cuda",
        "min_nodes": 4,
        "tasks_per_node": 2,
        "threads": 1,
        "gres": "gpu",
        "flop_per_s": 628e12,
        "device_memory_bytes": 80e9,
        "host_memory_bytes": 100e9,
    }
    return PreflightOrder(**(plain | changes))


def link(rank: int, peer: int, **changes: Any) -> LinkReport:
    return replace(LinkReport(rank, peer, 40e9, 20e-6, 0.001), **changes)


def links(nodes: int, *others: LinkReport) -> list[LinkReport]:
    """Of each node's two ranks, and of the same ranks of neighbours; `others` in place of theirs."""
    all_of_them = [link(rank, rank + 1, bytes_per_s=400e9) for rank in range(0, 2 * nodes, 2)]
    all_of_them += [link(rank, rank + 2) for rank in range(2 * nodes - 2)]
    by_pair = {(one.rank, one.peer): one for one in (*all_of_them, *others)}
    return list(by_pair.values())


def reports(
    of_nodes: dict[int, NodeReport] | None = None,
    of_links: Sequence[LinkReport] = (),
    gone: Sequence[int] = (),
    nodes: Sequence[str] = NODES,
    **order: Any,
) -> Reports:
    """Of a job on these nodes, fine but for these ranks and links."""
    found = {rank: FINE for rank in range(2 * len(nodes)) if rank not in gone} | (of_nodes or {})
    return Reports(wanted(**order), nodes, found, links(len(nodes), *of_links))


def failed(verdict: Verdict) -> dict[str, str]:
    return {one.node: one.message for one in verdict.failures}


def test_nodes_that_are_fine_start() -> None:
    assert judge(reports(), Memory()) == Verdict()
    assert judge(reports(nodes=("a",)), Memory()) == Verdict()


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ({4: replace(FINE, devices=1)}, "has 1 GPU, 2 needed"),
        ({4: replace(FINE, device_free_bytes=30e9)}, "30 GB of a GPU's 80 GB are free (another process?)"),
        ({5: replace(FINE, host_free_bytes=50e9)}, "50 GB of host memory are available, 100 GB requested"),
        ({5: replace(FINE, temporary_free_bytes=2e8)}, "0.2 GB are free in /tmp, 1 GB needed"),
        ({4: replace(FINE, folder_free_bytes=0.0)}, "0 GB are free in the run's folder, 1 GB needed"),
        ({5: replace(FINE, flop_per_s=470e12)}, "rank 5 multiplies at 470TFLOP/s, the median is 600TFLOP/s"),
        ({4: replace(FINE, error="RuntimeError: CUDA error")}, "rank 4: RuntimeError: CUDA error"),
    ],
)
def test_a_node_that_lacks_something_fails_with_the_figure(ranks: dict[int, NodeReport], says: str) -> None:
    assert failed(judge(reports(ranks), Memory())) == {"c": says}


def test_a_rank_that_did_not_report_fails_its_node_unless_none_did() -> None:
    assert failed(judge(reports(gone=[7]), Memory())) == {"d": "rank 7 did not report within 1 min 0 s"}
    [warning] = judge(reports(gone=range(8)), Memory()).warnings
    assert "the preflight could not start" in warning


def test_a_gpu_that_slurm_has_bound_is_one() -> None:
    bound = replace(FINE, devices=1, bound=True)
    assert judge(reports(dict.fromkeys(range(8), bound)), Memory()) == Verdict()


def test_a_full_shared_disk_is_no_nodes_fault() -> None:
    full = replace(FINE, folder_free_bytes=0.0)
    verdict = judge(reports(dict.fromkeys(range(8), full)), Memory())
    assert verdict.problem == "0 GB are free in the run's folder, 1 GB needed; free disk space"


def test_the_files_figure_judges_one_node_and_is_judged_by_several() -> None:
    slow = replace(FINE, flop_per_s=100e12)
    alone = judge(reports(dict.fromkeys(range(2), slow), nodes=("a",)), Memory())
    assert failed(alone) == {"a": "rank 0 multiplies at 100TFLOP/s, the cluster file promises 628TFLOP/s"}
    verdict = judge(reports(dict.fromkeys(range(8), slow)), Memory())
    assert not verdict.failures
    assert (
        "no node multiplies at 50% of the cluster file's 628TFLOP/s: the median is 100TFLOP/s"
        in verdict.warnings[0]
    )


def test_a_slow_link_fails_the_node_that_both_of_its_neighbours_have_it_with() -> None:
    slow = [link(0, 2, bytes_per_s=10e9), link(3, 5, bytes_per_s=10e9)]
    verdict = judge(reports(of_links=slow), Memory())
    assert failed(verdict) == {
        "b": "the link of a and b (ranks 0 and 2): 10 GB/s, the median is 40 GB/s",
    }
    assert verdict.bad_pairs == (("a", "b"), ("b", "c"))
    late = judge(reports(of_links=[link(4, 6, message_s=100e-6)]), Memory())
    assert failed(late) == {
        "d": "the link of c and d (ranks 4 and 6): 10,000 messages a second, the median is 50,000"
    }
    inner = judge(reports(of_links=[link(4, 5, bytes_per_s=20e9)]), Memory())
    assert failed(inner) == {"c": "the link of ranks 4 and 5: 20 GB/s, the median is 400 GB/s"}


def test_of_two_ends_the_next_start_tells_which_it_was() -> None:
    """One start cannot tell; the later one is excluded. Then the other has failed with two neighbours."""
    broken = link(0, 2, error="TimeoutError: a peer")
    first = judge(reports(of_links=[broken], nodes=("a", "b")), Memory())
    assert list(failed(first)) == ["b"]
    memory = Memory({"b": "its link"}, first.bad_pairs)
    second = judge(reports(of_links=[broken], nodes=("a", "c")), memory)
    assert list(failed(second)) == ["a"]


def test_links_of_a_node_that_fails_anyway_are_no_evidence() -> None:
    dead = [link(0, 2, error="TimeoutError: rank 2 does not listen")]
    assert list(failed(judge(reports(gone=[2, 3], of_links=dead), Memory()))) == ["b"]


def test_clocks_are_compared_between_neighbours() -> None:
    late = [link(2, 4, clock_s=7.0), link(4, 6, clock_s=-7.0)]
    assert failed(judge(reports(of_links=late), Memory())) == {"c": "the clocks of b and c differ by 7 s"}


def test_a_job_that_comes_back_on_an_excluded_node_stops() -> None:
    verdict = judge(reports(), Memory({"c": "slow"}))
    assert verdict.problem == "SLURM started the job on c again, which it had been told to exclude"


@pytest.mark.parametrize(("tasks", "nodes"), [(1, 1), (2, 2), (3, 4), (4, 3), (1, 5)])
def test_neighbours_meet_each_other_and_nobody_waits_in_a_circle(tasks: int, nodes: int) -> None:
    ranks = range(tasks * nodes)
    waiting = {rank: list(Place(rank, rank % tasks, tasks, nodes).pairs) for rank in ranks}
    expected = {(r, r + 1) for r in ranks if r % tasks < tasks - 1} | {
        (r, r + tasks) for r in ranks if r + tasks in ranks
    }
    assert {pair for pairs in waiting.values() for pair in pairs} == expected
    while any(waiting.values()):
        met = [pairs[0] for pairs in waiting.values() if pairs]
        both = [pair for pair in met if met.count(pair) == 2]
        assert both, waiting
        for pair in both:
            for rank in pair:
                if waiting[rank] and waiting[rank][0] == pair:
                    waiting[rank].pop(0)


def shown(*names: str, partition: str = "main", gpus: int = 8) -> str:
    """As scontrol shows these nodes."""
    return "".join(
        f"NodeName={name} CPUTot=64 RealMemory=1000 Gres=gpu:{gpus} State=IDLE Partitions={partition} \n"
        for name in names
    )


class Job:
    """A job on two nodes of two GPUs each, as its script finds it."""

    def __init__(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.run = RunFolder(path / "runs" / RUN)
        self.run.path.mkdir(parents=True)
        self.place, self.capsys = path / "slurm" / "small-0a0b0c" / "preflight-12", capsys
        self.place.mkdir(parents=True)
        order = wanted(min_nodes=2)
        submission = Submission(
            name="small-0a0b0c", time=1.0, runs=(RUN,), job=12, retries=2, preflight=order
        )
        write_json(self.place.parent / "submission.json", submission)
        monkeypatch.setenv("SLURM_JOB_PARTITION", "main")
        monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)

    def judges(
        self, nodes: Sequence[str], there: str, of_nodes: dict[int, NodeReport], state: str = "RUNNING"
    ) -> tuple[int, str]:
        """The exit status, and what is printed for the shell."""
        for path in self.place.iterdir():
            path.unlink()
        for rank, one in (dict.fromkeys(range(2 * len(nodes)), FINE) | of_nodes).items():
            write_report(self.place, f"node-{rank}", one)
        for one in links(len(nodes)):
            write_report(self.place, f"link-{one.rank}-{one.peer}", one)
        (self.place / "nodes.txt").write_text(there)
        status = judged.main([str(self.place), "\n".join(nodes), state])
        return status, self.capsys.readouterr().out

    def incidents(self) -> list[tuple[str, str]]:
        return [(one.what, one.message) for one in self.run.records() if isinstance(one, Incident)]


def test_failed_nodes_are_excluded_until_too_few_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, few = Job(tmp_path, monkeypatch, capsys), {2: replace(FINE, devices=1)}
    there = shown("a", "b", "c") + shown("x", partition="other") + shown("y", gpus=1)
    assert job.judges(("a", "b"), there, {}) == (GO, "")
    assert job.judges(("a", "b"), there, few) == (EXCLUDE, "b\n")
    assert job.judges(("a", "c"), there, few) == (STOP, "")
    said = "has 1 GPU, 2 needed"
    assert job.incidents() == [
        ("failed_preflight", f"b is excluded from job 12: {said}"),
        ("failed_preflight", f"c is excluded from job 12: {said}"),
        ("crashed", "preflight: 1 node of main is left without b, c, 2 needed; repair them, and rerun"),
    ]
    assert len(exclusions(job.run.records(), "12")) == 2
    assert exclusions(job.run.records(), "1") == ()


def test_a_job_that_slurm_is_ending_excludes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path, monkeypatch, capsys)
    few = {2: replace(FINE, devices=0)}
    assert job.judges(("a", "b"), shown("a", "b"), few, "COMPLETING") == (STOP, "")
    assert job.incidents() == []
    assert json.loads((job.place.parent / "submission.json").read_text())["preflight"]["device"] == "cuda"


STANDINS = {
    "srun": "echo srun",
    "sleep": "true",
    "squeue": "echo RUNNING",
    "python": 'case $3 in *judge) echo b,c; exit "$VERDICT" ;; esac',
    "scontrol": """\
case "$1 $2" in
"show job") echo "JobId=12 ExcNodeList=$(cat excluded) Features=(null)" ;;
"show hostnames") echo "$3" | tr , '\\n' ;;
"show node") echo "NodeName=a" ;;
update*) [ -e tried ] && echo "${3#*=}" >excluded; touch tried; echo "$*" >>calls ;;
*) echo "$*" >>calls ;;
esac""",
}
"""SLURM's programs; scontrol forgets the first list that it is given."""


@pytest.mark.parametrize(
    ("verdict", "before", "calls", "goes_on"),
    [
        (GO, "(null)", [], True),
        (1, "(null)", [], True),
        (STOP, "(null)", [], False),
        (EXCLUDE, "(null)", ["b,c", "b,c"], False),
        (EXCLUDE, "x", ["x,b,c", "x,b,c"], False),
    ],
)
def test_a_job_is_released_once_slurm_shows_what_it_excludes(
    tmp_path: Path, verdict: int, before: str, calls: list[str], goes_on: bool
) -> None:
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "excluded").write_text(f"{before}\n")
    folder = tmp_path / "a 'folder'"
    written = ["job=12", *lines("python", ["--wait=0"], folder, 5.0), "echo ranks"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(written)],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "VERDICT": str(verdict),
            "SLURM_JOB_NODELIST": "a,b",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "ranks" in done.stdout.splitlines()) == (0 if goes_on else 1, goes_on), done
    called = (tmp_path / "calls").read_text().splitlines() if calls else []
    updates = [f"update JobId=12 ExcNodeList={names}" for names in calls]
    assert called == (["requeuehold Incomplete 12", *updates, "release 12"] if calls else [])
    assert (folder / "preflight-12" / "nodes.txt").exists()


def _task(folder: Path, rank: int, tasks: int, nodes: int) -> None:
    os.environ.update(
        SLURM_PROCID=str(rank),
        SLURM_LOCALID=str(rank % tasks),
        SLURM_NNODES=str(nodes),
        SLURMD_NODENAME="localhost",
        GLOO_SOCKET_IFNAME="lo",
    )
    probe.main(folder)
    os._exit(0)


@pytest.mark.slow
def test_tasks_measure_their_nodes_and_the_links_to_their_neighbours(tmp_path: Path) -> None:
    """Two nodes of two tasks."""
    folder = tmp_path / "slurm" / "small-0a0b0c" / "preflight-12"
    folder.mkdir(parents=True)
    limits = Preflight(timeout="120 s", rate=0, disk="1 B")
    order = wanted(device="cpu", limits=limits, flop_per_s=1.0, host_memory_bytes=1e6)
    submission = Submission(name="small-0a0b0c", time=1.0, runs=(RUN,), job=12, retries=2, preflight=order)
    write_json(folder.parent / "submission.json", submission)
    tasks = [PROCESSES.Process(target=_task, args=(folder, rank, 2, 2)) for rank in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(120)
    of_nodes, of_links = read_reports(folder)
    assert list(of_nodes) == [0, 1, 2, 3]
    assert all(one.error == "" and one.flop_per_s > 1e8 and one.devices >= 1 for one in of_nodes.values())
    assert sorted((one.rank, one.peer, one.error) for one in of_links) == [
        (0, 1, ""),
        (0, 2, ""),
        (1, 3, ""),
        (2, 3, ""),
    ]
    assert all(one.bytes_per_s > 1e5 and one.message_s > 0 and abs(one.clock_s) < 60 for one in of_links)
