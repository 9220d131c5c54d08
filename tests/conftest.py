"""What every test can rely on: one thread, no network, and a clear word for what cannot run here (support/needs.py).

Tests run in several processes. Those of one `xdist_group` run one after the other in one of them: `slurm-...` share a
cluster, `ranks` are those that would disturb each other, since they start processes and kill them at chosen moments.
"""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.support.needs import absent
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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus of tests/support/training.py; runs in it differ by their specs."""
    from tests.support.training import corpus  # torch: most tests never need it

    home = tmp_path_factory.mktemp("home")
    corpus(home)
    return home


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups first, since their tests wait for each other; then what takes long, so that none is left at the end."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[int, str]:
    group = item.get_closest_marker("xdist_group")
    if group is not None:
        return (0 if item.get_closest_marker("slurm") else 1), group.args[0]
    return (2 if item.get_closest_marker("slow") or item.get_closest_marker("soak") else 3), ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that this machine cannot run, and say why."""
    if item.get_closest_marker("slurm") and (reason := lacking()) is not None:
        absent("slurm", reason)
    if item.get_closest_marker("gpu"):
        import torch  # late: most tests never need it

        if not torch.cuda.is_available():
            absent("gpu", "there is no CUDA device")
