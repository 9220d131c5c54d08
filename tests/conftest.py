"""What every test can rely on: one thread, no network, quick tests first, and a clear word for what cannot run here.

Two marks need more than Python: `slurm` a real SLURM, `gpu` a CUDA device. Their tests are skipped where it is absent;
with REQUIRE_SLURM=1, as on a machine that is meant to have it, an absent SLURM is a failure.
"""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.support.slurm.needs import lacking

# Before NumPy and torch are imported, since both read it once: sums are taken in one order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
if not os.path.exists(
    "/dev/nvidiactl"
):  # no GPU: our kernels run in Triton's interpreter, which it decides at import
    os.environ["TRITON_INTERPRET"] = "1"

# A job that was started in the background inherits SIGINT ignored, and so would every process of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine, and no time limit for one of them: a machine under load is no failure.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

ORDER = ("slow", "slurm", "gpu")
"""Marks from the quickest to the slowest; a test without any of them comes before all of these."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus of tests/support/training.py; runs in it differ by their specs."""
    from tests.support.training import corpus  # torch: most tests never need it

    home = tmp_path_factory.mktemp("home")
    corpus(home)
    return home


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, then slow, slurm, gpu; otherwise as they were collected."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    return max((1 + ORDER.index(mark.name) for mark in item.iter_markers() if mark.name in ORDER), default=0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that this machine cannot run, and say why."""
    if item.get_closest_marker("slurm"):
        _need_slurm()
    if item.get_closest_marker("gpu"):
        import torch  # late: most tests never need it

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def _need_slurm() -> None:
    reason = lacking()
    if reason is None:
        return
    if os.environ.get("REQUIRE_SLURM") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
