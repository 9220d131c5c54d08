"""What `isoplan doctor` measures, and what it makes of it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from runtime.commands.tools import doctor_command
from runtime.doctor import local
from runtime.doctor.benchmark import DeviceRates, LinkRates, device_rates, half_depth, link_rates
from runtime.doctor.local import (
    DoctorReport,
    MeasuredRates,
    base_cluster,
    check_output,
    examine,
    measured_cluster,
)
from runtime.launch.machine import Machine
from runtime.run_folder.workspace import RefusedError
from specs.cluster import Cluster
from specs.document.files import DocumentError, from_catalog, load
from specs.document.write import write_yaml
from tests.support import samples
from tests.support.commands import isoplan, isoplan_process

H100 = from_catalog(Cluster, "h100-64", None)
RATES = DeviceRates("a GPU", 5e13, 7.5e14, 640.0, 3e12, 4.2e14, 2e-6, {"attention": "flash-attn"})


@pytest.mark.parametrize("depth", [0.0, 7.0, 800.0])
def test_the_depth_at_which_half_of_the_rate_is_left_is_found(depth: float) -> None:
    rates = [1e12 * k / (k + depth) for k in (8192, 512)]
    assert half_depth(rates[0], rates[1], 8192, 512) == pytest.approx(depth, abs=1e-6)
    assert half_depth(1.0, 2.0, 8192, 512) == 0.0
    assert half_depth(1.0, 0.01, 8192, 512) == 8192.0


def test_a_core_is_measured() -> None:
    rates = device_rates("cpu", size=256, copied_bytes=2**22)
    for rate in (rates.fp32_flop_per_s, rates.bf16_flop_per_s, rates.attention_flop_per_s):
        assert 1e7 < rate < 1e14
    assert 1e7 < rates.copy_bytes_per_s < 1e13
    assert rates.kernels["attention"].startswith("torch")


@pytest.mark.slow
def test_a_link_is_measured_between_two_processes() -> None:
    link = link_rates("cpu", gathered_bytes=2**20)
    assert 1e5 < link.gather_bytes_per_s < 1e12
    assert 1e-6 < link.message_s < 5


def test_a_gpu_keeps_its_data_sheet_and_gets_its_shares() -> None:
    found = measured_cluster(H100, 8, RATES, LinkRates(3.6e11, 2e-5))
    assert found.device == H100.device
    share, before = found.efficiency, H100.efficiency
    assert share is not None
    assert before is not None
    assert (share.matmul, share.attention, share.memory, share.links) == (0.758, 0.425, 0.896, 0.8)
    assert (share.matmul_half_depth, share.launch, share.message) == (640.0, 2e-6, 2e-5)
    assert (share.overlap, share.uptime, share.multiprocessors) == (
        before.overlap,
        before.uptime,
        before.multiprocessors,
    )
    assert share.source.startswith("measured by isoplan doctor on ")
    alone = measured_cluster(H100, 1, RATES, None).efficiency
    assert alone is not None
    assert (alone.links, alone.message) == (before.links, before.message)


def test_only_what_the_doctor_wrote_gives_way(tmp_path: Path) -> None:
    path, laptop = tmp_path / "mine.yaml", from_catalog(Cluster, "laptop", None)
    check_output(path)
    for base in (H100, H100.model_copy(update={"efficiency": None}), laptop):
        write_yaml(path, measured_cluster(base, 8, RATES, LinkRates(3.6e11, 2e-5)))
        check_output(path)
        write_yaml(path, base)
        with pytest.raises(
            DocumentError,
            match="did not write this file and does not overwrite it; choose another name with --out",
        ):
            check_output(path)
    for text in ("kind: cluster\nsource: measured by isoplan doctor on me\n", "notes: [", ""):
        path.write_text(text)
        with pytest.raises(DocumentError, match="did not write this file"):
            check_output(path)
    with pytest.raises(DocumentError, match="did not write this file"):
        check_output(tmp_path)


def test_a_second_measurement_names_its_sources_once() -> None:
    for base in (H100, H100.model_copy(update={"efficiency": None})):
        once = measured_cluster(base, 8, RATES, LinkRates(3.6e11, 2e-5))
        assert once != base
        assert measured_cluster(once, 8, RATES, LinkRates(3.6e11, 2e-5)).efficiency == once.efficiency
        assert measured_cluster(once, 8, RATES, LinkRates(3.6e11, 2e-5)).source == once.source


def test_the_doctor_may_be_called_again_and_refuses_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measure(base: Cluster, machine: Machine, folder: Path) -> DoctorReport:
        calls.append(base)
        rates = replace(RATES, fp32_flop_per_s=1e11 * len(calls))
        measured = MeasuredRates(rates, None, None, None, ("here",))
        return DoctorReport((), measured, measured_cluster(base, 2, rates, None), 0.0)

    monkeypatch.setattr(local, "examine", measure)
    path = tmp_path / "out.yaml"
    for peak in (1e11, 2e11):
        with pytest.raises(typer.Exit) as ended:
            doctor_command(cluster="laptop", out=path)
        assert ended.value.exit_code == 0
        assert load(path, Cluster).device.peak_fp32 == peak
    write_yaml(path, H100)
    with pytest.raises(DocumentError, match="did not write this file"):
        doctor_command(cluster="laptop", out=path)
    assert load(path, Cluster) == H100
    assert len(calls) == 2


def test_what_is_not_here_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="has GPUs and this machine has none"):
        examine(H100, Machine(2, ()), tmp_path)
    with pytest.raises(RefusedError, match="whose data sheet is not known"):
        base_cluster(None, Machine(2, ("0",)))


@pytest.mark.slow
def test_the_file_that_is_written_can_be_planned_with(tmp_path: Path) -> None:
    done = isoplan_process(tmp_path, "doctor", "--json", RANK="", SLURM_JOB_ID="7")
    assert done.returncode == 1, done.stderr  # for the variables
    told = json.loads(done.stdout)
    (wrong,) = (one for one in told["findings"] if not one["ok"])
    assert wrong["message"] == "environment variables of a launcher or job are set: RANK, SLURM_JOB_ID"
    cluster = load(tmp_path / told["file"], Cluster)
    assert cluster.device.peak_fp32 == pytest.approx(told["rates"]["device"]["fp32_flop_per_s"], rel=0.01)
    assert cluster.devices == len(os.sched_getaffinity(0))
    text = samples.BUDGET.replace("cluster: laptop", f"cluster: {told['file']}")
    text = text.replace("{kind: pilots, prior: tiny, share: 0.5}", "{kind: published, law: tiny}")
    (tmp_path / "budget.yaml").write_text(text)
    built = isoplan(tmp_path, "data", "budget.yaml")
    assert built.returncode == 0, built.stderr
    planned = isoplan(tmp_path, "plan", "budget.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    refused = isoplan(tmp_path, "doctor", "--cluster", "h100-64")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
