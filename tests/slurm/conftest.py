"""The cluster that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster


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
