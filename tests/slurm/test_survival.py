"""A run on two nodes, and what happens to runs on clusters.

Whatever it is, the job completes by itself, and the run's numbers are those of one to which nothing happened: the same
under both of these layouts, since a pipeline changes no bit.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from runtime.run_folder.stragglers import straggler_summary
from specs.exit_codes import OK
from specs.record import Order
from specs.run import Evaluation, RunSpec
from tests.support import samples
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.running import Running, paced
from tests.support.training import Outcome, Ranks, corpus, opened, order, outcome, tiny_run

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("client")]

STEPS, PACE_S = 200, 0.04
"""Eight seconds of training, whatever the machine."""
LIMITED = ("time_limit: 1 min", "warning: 10 s")
"""The warning comes 20 to 50 s after a start (SLURM's tick is 30 s)."""
FEWER = samples.layout(dp=2, micro_batch_sequences=1)
"""For one node."""
PARITY = 1e-6
"""Of the final loss under another layout, as everywhere (tests/model/test_parity.py)."""
LONG_S = 0.5
"""A pace at which a run takes 100 s: three such segments at least."""


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    each = Evaluation(every_steps=50, sequences=4, final_sequences=8)
    return tiny_run(corpus(home), steps=STEPS, evaluation=each)


@pytest.fixture(scope="module")
def two_ranks(run: RunSpec) -> Order:
    """Data parallel over the nodes."""
    return order(run, dp=2, micro_batch=1, every_s=1.0)


@pytest.fixture(scope="module")
def four_ranks(run: RunSpec) -> Order:
    """Data parallel over the nodes, a pipeline within each; one node of two has a layout as well."""
    planned = order(run, dp=2, pp=2, micro_batch=1, every_s=1.0)
    return planned.model_copy(update={"fallback_layouts": (FEWER,)})


@pytest.fixture(scope="module")
def undisturbed(home: Path, run: RunSpec, four_ranks: Order) -> Outcome:
    folder = opened(home / "undisturbed", run, four_ranks)
    assert Ranks(folder, home / "data", 4).join() == [OK] * 4
    return outcome(folder)


class Start(Protocol):
    """Queues the run with these lines in its cluster file, on two ranks unless another order is given."""

    def __call__(
        self,
        *lines: str,
        pace_s: float = PACE_S,
        crash: str = "",
        slow: str = "",
        deaf: bool = False,
        partition: str = "main",
        order: Order | None = None,
    ) -> Running: ...


Capture = pytest.CaptureFixture[str]


@pytest.fixture
def start(cluster: Cluster, home: Path, tmp_path: Path, run: RunSpec, two_ranks: Order) -> Start:
    """Queues the run in a workspace of its own."""

    def started(
        *lines: str,
        pace_s: float = PACE_S,
        crash: str = "",
        slow: str = "",
        deaf: bool = False,
        partition: str = "main",
        order: Order | None = None,
    ) -> Running:
        said = (f"partition: {partition}", paced(pace_s, crash, slow=slow, deaf=deaf), *lines)
        return Running.queued(cluster, home, tmp_path / "work", run, order or two_ranks, *said)

    return started


def report(
    capsys: pytest.CaptureFixture[str], what: str, running: Running, since_s: float, start: int = 1
) -> None:
    """Print how long it took from what befell the run until it trained again."""
    with capsys.disabled():
        print(f"\n{what}: {running.starts[start].time - since_s:.1f} s until it trained again", end=" ")


def befalls(
    what: str, running: Running, undisturbed: Outcome, capsys: Capture, happens: Callable[[], object]
) -> None:
    """Have something happen to a run at work: it trains again by itself, and ends as if nothing had happened."""
    running.wait_for_step(50)
    since_s = time.time()
    happens()
    running.wait_for_step(60, starts=2)
    running.wait_for_end()
    assert outcome(running.folder) == undisturbed
    report(capsys, what, running, since_s)


def test_it_runs_where_nothing_happens(start: Start, undisturbed: Outcome, four_ranks: Order) -> None:
    running = start(order=four_ranks)
    running.wait_for_end()
    assert outcome(running.folder) == undisturbed
    assert running.starts[0].job == f"{running.job}, restart 0, on node[1-2]"
    assert len(running.starts) == 1


@pytest.mark.soak
def test_it_survives_its_time_limit_twice(start: Start, undisturbed: Outcome, capsys: Capture) -> None:
    running = start(*LIMITED, pace_s=LONG_S)
    running.wait_for_end(timeout_s=600)
    assert outcome(running.folder) == undisturbed
    left = running.incidents("interrupted")
    assert len(running.starts) >= 3
    assert len(left) == len(running.starts) - 1
    assert all("saved" in one.message for one in left)
    report(capsys, "time limit", running, left[0].time)


def test_it_survives_the_end_of_its_time_without_a_warning(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture
) -> None:
    """Or with one that was too short to save in. SLURM never queues such a job again; its script does."""
    running = start(*LIMITED, pace_s=LONG_S, deaf=True)
    # Out of time, the job is TIMEOUT for a moment: as often as a busy machine needs.
    cluster.until(lambda: running.folder.end() is not None, "it has been queued again until its end", 600)
    cluster.wait(
        running.job, "COMPLETED", "TIMEOUT"
    )  # that it finished as its last time was up is no failure
    assert outcome(running.folder) == undisturbed
    left = running.incidents("interrupted")
    assert len(running.starts) >= 2
    assert len(left) == len(running.starts) - 1
    assert all("SIGTERM" in one.message for one in left)
    report(capsys, "the end of its time", running, left[0].time)


def test_it_survives_a_signal(start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture) -> None:
    running = start()
    befalls(
        "scancel --signal=USR2",
        running,
        undisturbed,
        capsys,
        lambda: cluster.run("scancel", "--signal=USR2", running.job),
    )
    assert [start.lost_steps for start in running.starts] == [0, 0]


@pytest.mark.parametrize(
    ("partition", "grace_s"), [("low", 30), pytest.param("low0", 0, marks=pytest.mark.soak)]
)
def test_it_survives_preemption(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture, partition: str, grace_s: int
) -> None:
    running = start(partition=partition)

    def preempted() -> None:
        high = cluster.submit("--partition=high", "--nodes=4", "--ntasks=16", "--wrap", "sleep 3")
        cluster.wait(high, "COMPLETED", timeout_s=120)

    befalls(f"preemption, {grace_s} s of grace", running, undisturbed, capsys, preempted)
    assert running.incidents("crashed") == []


@pytest.mark.parametrize("node", ["node1", pytest.param("node2", marks=pytest.mark.soak)])
def test_it_survives_a_node_without_power(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture, four_ranks: Order, node: str
) -> None:
    """node1 has the batch script and rank 0, whose lock its successor on another host must take for dead first."""
    running = start(order=four_ranks)
    running.wait_for_step(50)
    cluster.wait_for_history(running.job, ["RUNNING"])
    since_s = time.time()
    cluster.fail_node(node)
    running.wait_for_end()
    assert outcome(running.folder) == undisturbed
    assert len(running.starts) == 2
    assert "NODE_FAIL" in cluster.history(running.job)
    report(capsys, f"power cut of {node}", running, since_s)


def test_it_comes_back_on_fewer_nodes(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture, four_ranks: Order
) -> None:
    """Where no other node is free, under the best layout for what there is; the numbers differ by rounding."""
    running = start("min_nodes: 1", order=four_ranks)
    running.wait_for_step(50)
    for node in ("node3", "node4"):
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    since_s = time.time()
    cluster.fail_node("node2")
    running.wait_for_end()
    assert [start.execution.layout.devices for start in running.starts] == [4, 2]
    assert running.starts[1].execution.layout == FEWER
    assert str(running.starts[1].job).endswith("on node1")
    assert outcome(running.folder)[3] == pytest.approx(undisturbed[3], rel=PARITY)
    report(capsys, "power cut, and no other node", running, since_s)


def test_it_survives_the_death_of_a_rank(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture, four_ranks: Order
) -> None:
    running = start(order=four_ranks)
    befalls(
        "kill -9 of a rank",
        running,
        undisturbed,
        capsys,
        lambda: os.kill(cluster.task(running.job, rank=3).pid, signal.SIGKILL),
    )
    [crash] = running.incidents("crashed")
    assert "Killed (rank 3 on node2; its log: " in crash.message
    assert "retry 1 of 3" in crash.message


def test_it_survives_a_rank_that_is_slow_and_then_hangs(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture, four_ranks: Order
) -> None:
    """While it is slow it is named; once it hangs, the others end the run, which is queued again."""
    impatient = four_ranks.execution.model_copy(update={"hang_timeout_s": 5.0})
    impatient_order = four_ranks.model_copy(update={"execution": impatient})
    running = start(
        order=impatient_order, pace_s=0.1, slow="3 0.15"
    )  # beside which the load of other tests is little
    befalls(
        "a rank that hangs",
        running,
        undisturbed,
        capsys,
        lambda: os.kill(cluster.task(running.job, rank=3).pid, signal.SIGSTOP),
    )
    [hang], [crash] = running.incidents("hung"), running.incidents("crashed")
    assert "rank 3 on node2 does not answer; rank 0 waits in model/" in hang.message
    assert crash.message.startswith(f"HangError: {hang.message[:30]}")
    assert "retry 1 of 3" in crash.message
    [slow] = straggler_summary(running.folder.ranks(), running.starts)
    assert slow.startswith("rank 3 on node2 computes ")


@pytest.mark.soak
def test_it_survives_without_a_controller(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture
) -> None:
    """Down while a rank is killed: what follows waits for it."""
    running = start()

    def killed() -> None:
        cluster.stop_controller()
        os.kill(cluster.task(running.job, rank=0).pid, signal.SIGKILL)
        cluster.until(lambda: "slurm_load_jobs error" in running.said(), "what follows asks in vain", 120)
        cluster.start_controller()

    befalls("kill -9 of rank 0 while slurmctld is down", running, undisturbed, capsys, killed)


def test_it_survives_without_accounts(
    start: Start, cluster: Cluster, undisturbed: Outcome, capsys: Capture
) -> None:
    cluster.stop_accounting()
    running = start()
    befalls(
        "scontrol requeue while slurmdbd is down",
        running,
        undisturbed,
        capsys,
        lambda: cluster.run("scontrol", "requeue", running.job),
    )


def test_it_is_given_up_where_it_crashes_again_and_again(
    start: Start, cluster: Cluster, tmp_path: Path, undisturbed: Outcome
) -> None:
    """At the same step, so that it comes to no other checkpoint; queued anew once that is mended, it goes on."""
    broken = tmp_path / "broken"
    broken.touch()
    running = start("retries: 1", crash=f"1 40 {broken}")
    cluster.wait(running.job, "FAILED", timeout_s=240)
    crashes = running.incidents("crashed")
    assert "retry 1 of 1" in crashes[-2].message
    assert "not retried, after 2 failures and no new checkpoint since step" in crashes[-1].message
    [outcome_] = running.queue(retry_failed=False).outcomes
    assert outcome_.state == "failed"
    assert crashes[-1].message in outcome_.message
    broken.unlink()
    [outcome_] = running.queue().outcomes
    assert outcome_.state == "queued"
    running.wait_for_end()
    assert outcome(running.folder) == undisturbed


def test_what_cannot_get_better_is_not_tried_again(start: Start, cluster: Cluster) -> None:
    """A corpus that is not the run's is bad input, whenever the run is started."""
    running = start("retries: 3")
    for path in (running.workspace.path / "data").resolve().glob("*/manifest.json"):
        text = path.read_text()
        path.write_text(text.replace('"digest": "', '"digest": "0', 1))
        try:
            cluster.wait(running.job, "FAILED", timeout_s=120)
        finally:
            path.write_text(text)
    [crash] = running.incidents("crashed")
    assert "not retried, since it would fail in the same way" in crash.message
