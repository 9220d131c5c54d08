"""The cluster that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk, at_desk


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes of four CPUs, 4000 MB and two GPUs; see tests/slurm/cluster.py."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test leaves behind, the next one finds every daemon up, every node idle and no job."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").resume_all()


@pytest.fixture
def desk(
    cluster: Cluster,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Desk:
    """A workspace with the corpus of tests/training.py, the cluster of its budget being the tests'."""
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    desk = at_desk(tmp_path / "work", home, cluster, capfd)
    monkeypatch.chdir(desk.folder)
    return desk
