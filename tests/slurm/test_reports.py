"""What the doctor makes of what its tasks report; no SLURM needed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.doctor.benchmark import DeviceRates, LinkRates
from runtime.doctor.findings import Reports, findings, measured_cluster, measured_rates, time_to_save
from runtime.doctor.local import Finding
from runtime.doctor.node_benchmark import NodeRates
from runtime.doctor.node_probe import NameCheck, NodeFacts, Software, read_report, task_log, write_report
from runtime.doctor.probe_order import ProbeOrder
from specs.cluster import Cluster
from specs.document.files import from_catalog

HERE = Software("3.11.7", {"isoplan": "0.1.0", "torch": "2.13.0"}, "c0ffee")
ORDER = ProbeOrder("token", "cpu", 2, 2, None)
FACTS = NodeFacts("token", "node1", 100.0, HERE, 2**40, 2**34, True, True, 0.0, 0)
DEVICE = DeviceRates("CPU core", 4e10, 1e11, 8.0, 9e9, 3e10, 2e-6, {"attention": "torch"})
RATES = NodeRates(0.0, DEVICE, LinkRates(4e9, 1e-4), LinkRates(1e9, 3e-4), 1e8)


def facts(rank: int, **changes: Any) -> NodeFacts:
    return replace(FACTS, node=f"node{1 + rank // 2}", **changes)


def reports(**changes: Any) -> Reports:
    whole = Reports(
        ORDER,
        ("node1", "node2"),
        {rank: facts(rank) for rank in range(4)},
        {0: NameCheck("node1", {}), 2: NameCheck("node2", {})},
        dict.fromkeys(range(4), RATES),
        {},
    )
    return replace(whole, **changes)


def told(found: Reports) -> list[Finding]:
    return list(findings(found, HERE, 99.0, 101.0))


def wrong(found: Reports) -> list[str]:
    return [one.message for one in told(found) if not one.ok]


def test_nothing_is_wrong_with_what_is_alike() -> None:
    assert wrong(reports()) == []
    assert len(told(reports())) == 5


def test_reports_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    for rank in range(4):
        write_report(tmp_path, f"facts-{rank}", facts(rank))
        write_report(tmp_path, f"rates-{rank}", RATES)
    write_report(tmp_path, "names-0", NameCheck("node1", {}))
    write_report(tmp_path, "names-2", NameCheck("node2", {}))
    assert Reports.read(tmp_path, "7", ORDER, ("node1", "node2")) == reports()
    assert read_report(tmp_path, "order", ProbeOrder) is None


def test_who_is_silent_is_named_with_what_it_printed(tmp_path: Path) -> None:
    write_report(tmp_path, "facts-0", facts(0))
    task_log(tmp_path, 0).parent.mkdir()
    task_log(tmp_path, 0).write_text("RuntimeError: no such network\nbye\n")
    (tmp_path / "7_2_log.err").write_text("python: not found\n")
    (tmp_path / "7_0_log.err").write_text("srun: error: node1: tasks 1,3-4: Killed\n")
    said = wrong(Reports.read(tmp_path, "7", ORDER, ("node1", "node2")))
    assert said[0].startswith("rank 2 on node2 did not report; last output: python: not found")
    assert said[1] == "rank 1 on node1 did not report; srun: Killed"
    assert said[2].startswith("rank 0 on node1 failed in the rendezvous (timeout 60 s) or benchmark; ")
    assert "RuntimeError: no such network" in said[2]
    assert len(said) == 3


@pytest.mark.parametrize(
    ("changes", "says", "fatal"),
    [
        ({"software": replace(HERE, python="3.12.1")}, "node2 has Python 3.12.1, here 3.11.7", True),
        (
            {"software": replace(HERE, packages={"isoplan": "0.1.0"})},
            "node2 has torch is not installed, here 2.13.0",
            True,
        ),
        ({"software": replace(HERE, commit="bad")}, "node2 has commit bad, here c0ffee", True),
        (
            {"software": replace(HERE, commit="c0ffee+dirty")},
            "node2 has commit c0ffee+dirty, here c0ffee",
            True,
        ),
        ({"software": replace(HERE, commit=None)}, "", True),
        ({"token": "other"}, "node2 has another folder", True),
        ({"data": False}, "node2 cannot read", True),
        ({"free_bytes": 2**20}, "0.0 GiB of disk space are free", True),
        ({"shm_bytes": 2**26}, "/dev/shm of node2 has 64 MiB", False),
        ({"time": 90.0}, "the clock of node2 differs by at least 9 s from the one here", False),
        ({"time": 111.0}, "the clock of node2 differs by at least 10 s from the one here", False),
        ({"sbatch": False}, "there is no sbatch on node2, so studies cannot continue automatically", False),
        ({"load": 3.0}, "other processes used 3.0 cores of node2", False),
    ],
)
def test_what_is_wrong_with_a_node(changes: dict[str, Any], says: str, fatal: bool) -> None:
    found = reports(facts={0: facts(0), 1: facts(1), 2: facts(2, **changes), 3: facts(3, **changes)})
    bad = [one for one in told(found) if not one.ok]
    assert [says in one.message for one in bad] == ([True] if says else [])
    assert all(one.fatal is fatal for one in bad)


def test_a_name_that_leads_nowhere_is_said_once() -> None:
    names = {
        rank: NameCheck(f"node{1 + rank // 2}", {"node2": "does not resolve (no such name)"})
        for rank in (0, 2)
    }
    assert wrong(reports(names=names)) == ["on node1, node2 the name node2 does not resolve (no such name)"]


def test_clocks_and_devices_that_are_behind_the_others() -> None:
    slow = replace(RATES, clock_s=-2.5, device=replace(DEVICE, bf16_flop_per_s=5e10))
    said = wrong(reports(rates=dict.fromkeys(range(3), RATES) | {3: slow}))
    assert said[0] == "the nodes' clocks differ by 2500.0 ms at a barrier"
    assert said[1] == "straggler: rank 3 on node2 reaches 50% of the median rate"


def test_the_cluster_keeps_its_devices_and_gets_both_links() -> None:
    rates = measured_rates(reports())
    assert rates is not None
    laptop = from_catalog(Cluster, "laptop", None)
    found = measured_cluster(laptop, rates)
    assert (found.devices, found.devices_per_node) == (laptop.devices, laptop.devices_per_node)
    assert (found.device.peak_bf16, found.device.peak_fp32) == (1e11, 4e10)
    assert (found.intra_node, found.inter_node) == (4e9, 1e9)
    assert found.source.startswith("measured by isoplan doctor on node1, node2")


def test_a_gpus_links_are_what_was_measured_of_them() -> None:
    h100 = from_catalog(Cluster, "h100-64", None)
    alone = reports(rates=dict.fromkeys(range(4), replace(RATES, inter_node=None)))
    rates = measured_rates(alone)
    assert rates is not None
    found = measured_cluster(h100, rates)
    assert found.device == h100.device
    assert found.efficiency is not None
    assert (found.efficiency.links, found.efficiency.message) == (1.0, 1e-4)
    assert found.intra_node == 4e9
    assert h100.efficiency is not None
    assert found.inter_node == h100.inter_node * h100.efficiency.links


def test_what_can_be_saved_in_time() -> None:
    rates = measured_rates(reports())
    assert rates is not None
    said = time_to_save(rates, 30.0, 120.0).message  # 4 x 0.1 GB/s, 12 bytes for each parameter
    assert said.startswith(
        "node1, node2 write 0.40 GB/s, enough to save models of up to 1B parameters after a cancel (30 s"
    )
    assert said.endswith("4B before the time limit (120 s)")


def test_there_are_no_figures_where_one_is_missing() -> None:
    assert measured_rates(reports(failures={3: "no"})) is None
