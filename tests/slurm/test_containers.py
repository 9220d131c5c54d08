"""Ranks in a container through srun. pyxis, enroot and apptainer are not in Debian 12: stand-ins take their options."""

import json
import os
import shlex
from pathlib import Path

import pytest

from specs.run import RunSpec
from tests.support.paths import ROOT
from tests.support.slurm.cluster import Cluster
from tests.support.slurm.running import Running
from tests.support.training import corpus, order, tiny_run

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("client")]

PYXIS = ROOT / "tests" / "support" / "slurm" / "pyxis"


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    return tiny_run(corpus(home), seed=77)


def test_ranks_train_in_the_container_and_the_script_stays_outside(
    cluster: Cluster, home: Path, tmp_path: Path, run: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is an empty folder, into which all that there is here is mounted."""
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "an image"
    image.mkdir()
    (image / "image-name").write_text("in the image\n")
    mounts = ",".join(f"/{name}:/{name}" for name in sorted(os.listdir("/")) if Path("/", name).is_dir())
    prologue = [f"export PATH={shlex.quote(str(PYXIS))}:$PATH", "cat /image-name >>seen || true"]
    running = Running.queued(
        cluster,
        home,
        tmp_path / "work",
        run,
        order(run, dp=2, micro_batch=1),
        f"srun: {json.dumps({'container-image': str(image), 'container-mounts': mounts})}",
        f"prologue: {json.dumps(prologue)}",
    )
    running.wait_for_end()
    assert (tmp_path / "seen").read_text() == "in the image\n" * 2
    assert len(running.starts) == 1
