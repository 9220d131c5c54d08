"""The environment of a rank on a GPU, which needs none here."""

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.run_folder import provenance
from runtime.train import environment, loop
from runtime.train.environment import (
    communication_variables,
    gpu_index,
    is_before_blackwell,
    node_cache,
    rank_variables,
    set_variables,
)
from specs.exit_codes import OK
from tests.support import samples
from tests.support.training import corpus, opened, order, tiny_run, train_here

RUN, CACHE = Path("runs/0123"), Path("/tmp/here")


def variables(before_blackwell: bool = True, **layout: Any) -> dict[str, str]:
    return rank_variables(samples.layout(**layout), RUN, CACHE, before_blackwell)


def test_ranks_sum_in_one_order_and_communicate_beside_multiplications() -> None:
    found = variables(dp=2, tp=4)
    assert found["NCCL_ALGO"] == "Ring"
    assert found["TORCH_NCCL_HIGH_PRIORITY"] == "1"
    assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert found["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_one_hardware_queue_is_for_tensor_parallelism_before_blackwell() -> None:
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in variables(dp=8)
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in variables(before_blackwell=False, tp=8)
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in communication_variables(8, False)


def test_one_rank_sets_nothing_of_nccl() -> None:
    assert not [name for name in variables(dp=1, pp=1, tp=1) if "NCCL" in name or "FR" in name]


def test_kernels_are_cached_on_the_node_and_events_are_dumped_into_the_run() -> None:
    found = variables(tp=2)
    assert found["TRITON_CACHE_DIR"] == "/tmp/here/triton"
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/tmp/here/inductor"
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == "runs/0123/log/flight-recorder-rank-"
    assert int(found["TORCH_FR_BUFFER_SIZE"]) > 0


def test_what_the_user_set_stays_and_is_said() -> None:
    theirs = {
        "NCCL_ALGO": "Tree",
        "PYTORCH_CUDA_ALLOC_CONF": "backend:native",
        "TORCH_NCCL_HIGH_PRIORITY": "1",
    }
    found = dict(theirs)
    lines = set_variables(variables(dp=2), found)
    assert {name: found[name] for name in theirs} == theirs
    assert "PYTORCH_ALLOC_CONF" not in found
    assert found["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert lines == [
        "PYTORCH_CUDA_ALLOC_CONF is backend:native, as set by you; "
        "isoplan would set PYTORCH_ALLOC_CONF=expandable_segments:True",
        "NCCL_ALGO is Tree, as set by you; isoplan would set NCCL_ALGO=Ring",
    ]


def test_the_record_has_what_changes_the_numbers_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/tmp/here/triton")
    recorded = provenance.environment(["NVIDIA H100"]).variables
    assert recorded["NCCL_ALGO"] == "Tree"
    assert "TRITON_CACHE_DIR" not in recorded
    on_cpus = provenance.environment([])
    assert on_cpus.variables == {}
    assert "variables" not in on_cpus.model_dump()


@pytest.mark.parametrize(("local_rank", "visible", "expected"), [(0, 1, 0), (3, 1, 0), (3, 8, 3), (5, 4, 1)])
def test_a_rank_has_a_gpu_however_many_it_sees(local_rank: int, visible: int, expected: int) -> None:
    assert gpu_index(local_rank, visible) == expected


def test_the_cache_is_the_runs_and_nobody_elses(tmp_path: Path) -> None:
    found = node_cache("0123", tmp_path)
    assert found == node_cache("0123", tmp_path) == tmp_path / f"isoplan-{os.getuid()}" / "0123"
    assert found.parent.stat().st_mode & 0o077 == 0
    found.parent.chmod(0o777)
    other = node_cache("0123", tmp_path)
    assert other.parent == tmp_path
    assert other.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("planted", ["file", "link", "dangling"])
def test_a_cache_that_another_user_could_have_made_is_not_used(tmp_path: Path, planted: str) -> None:
    place = tmp_path / f"isoplan-{os.getuid()}"
    if planted == "file":
        place.touch()
    else:
        target = tmp_path / "elsewhere"
        if planted == "link":
            target.mkdir()
        place.symlink_to(target)
    assert node_cache("0123", tmp_path).parent == tmp_path


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("9.0\n9.0\n", True), ("10.0\n", False), ("12.0\n8.6\n", True), ("[N/A]\n", False)],
)
def test_the_generation_is_asked_of_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, expected: bool
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(environment.shutil, "which", lambda _: str(tool))
    assert is_before_blackwell() is expected


@pytest.mark.slow
def test_a_rank_on_a_gpu_is_prepared_before_it_looks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one on a CPU is not."""
    run, prepared = tiny_run(corpus(tmp_path)), list[Path]()
    monkeypatch.setattr(loop, "prepare_gpu_rank", lambda layout, folder: prepared.append(folder))
    monkeypatch.setattr("runtime.train.worker.gpu_count", lambda: len(prepared) - 1)
    on_gpu = order(run)
    on_gpu = on_gpu.model_copy(update={"execution": on_gpu.execution.model_copy(update={"device": "cuda"})})
    folder = opened(tmp_path, run, on_gpu)
    with pytest.raises(OSError, match="torch finds none"):
        train_here(folder, tmp_path / "data")
    assert prepared == [folder.path]
    monkeypatch.setattr(loop, "prepare_gpu_rank", lambda layout, folder: pytest.fail("prepared"))
    assert train_here(opened(tmp_path / "cpu", run), tmp_path / "data") == OK
