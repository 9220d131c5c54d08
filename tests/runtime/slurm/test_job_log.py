"""Why a job's script failed, from SLURM's exit code and what the script printed."""

from pathlib import Path

import pytest

from runtime.slurm.client import EndedJob
from runtime.slurm.job_log import script_failure
from runtime.slurm.requeue import START_MARK


@pytest.mark.parametrize(
    ("exit_code", "logged"),
    [
        pytest.param("0:53", True, id="its second start could not open it"),
        pytest.param("0:53", False, id="SLURM 22.05, its folder absent on the node"),
        pytest.param("3:0", False, id="SLURM 24.11, which makes the folder on the node"),
    ],
)
def test_a_log_that_could_not_be_written(tmp_path: Path, exit_code: str, logged: bool) -> None:
    if logged:
        (tmp_path / "7_0_log.err").write_text(f"{START_MARK} 0\n")
    failure = script_failure(tmp_path, "7", EndedJob("FAILED", exit_code, "node1"))
    assert failure == f"it left no log; check that {tmp_path} is mounted on node1 and has space"


def test_the_last_error_of_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "7_0_log.err"
    log.write_text(f"{START_MARK} 0\nno space\n{START_MARK} 1\nmodule not found\nsrun: error: it failed\n")
    end = EndedJob("FAILED", "3:0", "node1")
    assert script_failure(tmp_path, "7", end) == f"module not found (its log: {log})"
