"""A node that fails its job's preflight is excluded, and the run trains on others."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from specs.run import RunSpec
from tests.support.paths import ROOT
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.running import Running
from tests.support.training import corpus, order, tiny_run

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("client")]

FULL = ROOT / "tests" / "support" / "slurm" / "full"
LIMITS = "preflight: {rate: 0, rate_of_file: 0, links: 0, clock: 10 s}"
"""Of virtual nodes, which share two cores: rates are judged in tests/runtime/slurm/test_preflight.py."""


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    return tiny_run(corpus(home), seed=78)


def test_a_node_that_fails_is_excluded_and_the_run_trains_on_the_others(
    cluster: Cluster, home: Path, tmp_path: Path, run: RunSpec
) -> None:
    """node1, where the script itself runs, has a full disk; node4 is not to be had by the cluster file."""
    path = os.pathsep.join(filter(None, (str(FULL), os.environ.get("PYTHONPATH"))))
    running = Running.queued(
        cluster,
        home,
        tmp_path / "work",
        run,
        order(run, dp=2, micro_batch=1),
        f"prologue: {json.dumps([f'export PYTHONPATH={shlex.quote(path)} FULL_NODE=node1'])}",
        "extra: {exclude: node4}",
        top=LIMITS,
    )
    running.wait_for_end()
    [failed] = running.incidents("failed_preflight")
    why = "0 GB are free in /tmp, 1 GB needed"
    assert failed.message == f"node1 is excluded from job {running.job}: {why}"
    [start] = running.starts
    assert start.job == f"{running.job}, restart 1, on node[2-3]"
    shown = cluster.run("scontrol", "show", "job", "-o", running.job)
    [excluded] = re.findall(r" ExcNodeList=(\S+)", shown)
    assert set(cluster.run("scontrol", "show", "hostnames", excluded).split()) == {"node1", "node4"}
