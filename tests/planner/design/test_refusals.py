"""Every remedy of a refusal works: written into the budget or its cluster file, alone, it makes a plan.

A grid of batches, numbers of devices and sizes of memory on small clusters, with and without step times.
"""

import re
from itertools import product
from pathlib import Path

import pytest

from planner.design.allocation import Laws
from planner.design.target_run import find_target
from planner.design.target_search import TargetSearch
from planner.plan import make_plan
from specs.document.files import DocumentError
from specs.host_memory import MARGIN, PROCESS_BYTES
from specs.plan import Plan, PlannedRun
from tests.support.paths import SPECS
from tests.support.planning import inputs_of

BUDGET = """\
kind: budget
name: b
compute: 1e13 FLOP
evidence: {kind: published, law: small, reach: 1e9}
family: small
cluster: c.yaml
data:
  text: {source: declared, describe: web, unique: 1000B tokens}
  tokenizer: {kind: bytes}
precision: fp32
"""
CONTEXT = 256
"""Of the family small."""


def cluster(name: str, devices: int, per_node: int, memory: str) -> str:
    """A catalog cluster with other numbers of devices and another memory."""
    text = (SPECS / "catalog" / "clusters" / f"{name}.yaml").read_text()
    for key, value in (
        ("devices", devices),
        ("devices_per_node", per_node),
        ("  memory", memory),
    ):
        text = re.sub(rf"(?m)^{key}: .*", f"{key}: {value}", text, count=1)
    return text


def target(folder: Path, budget: str, cluster_text: str) -> PlannedRun:
    """The target run by the law; DocumentError where it is refused."""
    (folder / "b.yaml").write_text(budget)
    (folder / "c.yaml").write_text(cluster_text)
    inputs = inputs_of(folder / "b.yaml", folder / "out", folder / "data")
    return find_target(TargetSearch(inputs, Laws(inputs.law.allocation, None))).planned


def remedies(message: str) -> list[str]:
    """What a refusal says to write, one alternative each."""
    return re.split(r", or |, (?=spend|write|name|set)", message.rpartition("; ")[2])


def applied(remedy: str, budget: str, cluster_text: str) -> tuple[str, str]:
    """The budget and the cluster file with the remedy written into them."""
    if found := re.fullmatch(r"name a cluster of (\d+) such devices", remedy):
        return budget, re.sub(r"(?m)^devices: .*", f"devices: {found[1]}", cluster_text)
    if found := re.fullmatch(r"spend at most (\S+ FLOP)", remedy):
        return re.sub(r"(?m)^compute: .*", f"compute: {found[1]}", budget), cluster_text
    if found := re.fullmatch(r"spend at most (\$\S+)", remedy):
        return re.sub(r"(?m)^money: .*", f"money: {found[1]}", budget), cluster_text
    if found := re.fullmatch(r"write batch: (\d+ tokens)", remedy):
        return re.sub(r"(?m)^batch: .*", f"batch: {found[1]}", budget), cluster_text
    if found := re.fullmatch(r"write objective.params: (.*)", remedy):
        return re.sub(r"params: [^}]*", f"params: {found[1]}", budget), cluster_text
    if remedy == "name a cluster whose devices have more memory":
        return budget, re.sub(r"(?m)^  memory: .*", "  memory: 64 GB", cluster_text, count=1)
    raise AssertionError(f"nobody can write: {remedy}")


def check(folder: Path, budget: str, cluster_text: str) -> str:
    """Plan; where that is refused, plan with each remedy. Gives the refusal, empty for a plan."""
    try:
        target(folder, budget, cluster_text)
    except DocumentError as refused:
        message = str(refused)
        for remedy in remedies(message):
            try:
                target(folder, *applied(remedy, budget, cluster_text))
            except DocumentError as again:
                raise AssertionError(f"{message}\n  {remedy}\n  {again}") from None
        return message
    return ""


@pytest.mark.parametrize("name", ["laptop", "h100-64"])
@pytest.mark.parametrize(("devices", "per_node"), [(1, 1), (2, 2), (3, 3), (7, 7), (8, 4), (12, 8)])
def test_every_batch_of_whole_sequences_is_planned(
    tmp_path: Path, name: str, devices: int, per_node: int
) -> None:
    """Where memory is not short, whatever the devices; an uneven batch is refused with one that plans."""
    text = cluster(name, devices, per_node, "4 GB")
    for sequences in (1, 2, 3, 7, 8, 101):
        run = target(tmp_path, BUDGET + f"batch: {sequences * CONTEXT} tokens\n", text)
        assert run.run.optim.batch_sequences == sequences
        assert run.execution.layout.problems(run.run.model, run.run.optim) == []
        assert run.execution.layout.devices <= devices
    for tokens in (100, 1000):
        assert "not a whole number of sequences" in check(
            tmp_path, BUDGET + f"batch: {tokens} tokens\n", text
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["laptop", "h100-64"])
@pytest.mark.parametrize(("devices", "per_node"), [(2, 2), (7, 7), (12, 8)])
def test_a_run_that_does_not_fit_is_refused_with_remedies_that_work(
    tmp_path: Path, name: str, devices: int, per_node: int
) -> None:
    """With the law's batch and the budget's own."""
    refused = set()
    for memory, sequences in product(("3 MB", "1 MB"), (None, 7)):
        batch = "" if sequences is None else f"batch: {sequences * CONTEXT} tokens\n"
        refused.add(check(tmp_path, BUDGET + batch, cluster(name, devices, per_node, memory)) != "")
    assert True in refused


@pytest.mark.slow
def test_money_is_proposed_that_buys_a_run(tmp_path: Path) -> None:
    """Small runs cost far more than the cluster's expected utilisation says, and on other devices another amount."""
    money = BUDGET.replace("compute: 1e13 FLOP", "money: $0.03") + f"batch: {7 * CONTEXT} tokens\n"
    assert "spend at most $" in check(tmp_path, money, cluster("h100-64", 2, 2, "2 MB"))


def test_three_sequences_run_on_two_cores_and_eight_on_seven(tmp_path: Path) -> None:
    """As many devices as can share the batch evenly, as with the law's own."""
    three = target(tmp_path, BUDGET + f"batch: {3 * CONTEXT} tokens\n", cluster("laptop", 2, 2, "4 GB"))
    assert three.execution.layout.devices == 1
    seven = cluster("laptop", 7, 7, "4 GB")
    law = target(tmp_path, BUDGET, seven)
    batch = f"batch: {law.run.batch_tokens} tokens\n"
    own = target(tmp_path, BUDGET + batch, seven)
    assert own.execution.layout.devices >= law.execution.layout.devices


def test_host_memory_that_a_node_lacks_is_refused(tmp_path: Path) -> None:
    """A plan on GPUs needs each rank's process, its batch and a copy of its state on the node."""
    told = cluster("h100-64", 8, 8, "80 GB")
    (tmp_path / "b.yaml").write_text(BUDGET)

    def planned(room: str) -> Plan:
        (tmp_path / "c.yaml").write_text(f"{told}memory_per_node: {room}\n")
        inputs = inputs_of(tmp_path / "b.yaml", tmp_path / "out", tmp_path / "data")
        return make_plan(inputs)

    [run] = planned("1 TB").runs
    ranks = run.execution.layout.devices
    needed = MARGIN * ranks * PROCESS_BYTES["cuda"]
    assert planned(f"{1.1 * needed / 1e9:.4g} GB").runs == (run,)
    with pytest.raises(
        DocumentError, match=r"of host memory on a node .*, but memory_per_node is"
    ) as refused:
        planned(f"{needed / 1e9:.4g} GB")
    assert BUDGET.splitlines()[refused.value.line - 1].startswith("cluster:")
