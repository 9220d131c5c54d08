"""The cluster that the tests of this folder share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm.cluster import Cluster
from tests.support.slurm.desk import Desk, at_desk


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes of four CPUs, 4000 MB and two GPUs; see tests/support/slurm/cluster.py."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test leaves behind, the next one finds every daemon up, every node idle and no job."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").resume_all()


@pytest.fixture
def client(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, whose SLURM is that of this process too."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "CUDA_VISIBLE"))]:
        monkeypatch.delenv(name)
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture
def desk(
    client: Cluster,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Desk:
    """A workspace with the corpus of tests/support/training.py, the cluster of its budget being the tests'."""
    desk = at_desk(tmp_path / "work", home, client, capfd)
    monkeypatch.chdir(desk.folder)
    return desk
