"""What every test can rely on: one thread, no network, and a clear word for what cannot run here (support/needs.py).

Tests may run in several processes (`-n`), in the groups of support/groups.py.
"""

import gc
import os
import signal
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.groups import GroupScheduling, group, place
from tests.support.needs import absent
from tests.support.slurm.needs import lacking

# Before NumPy and torch are imported, since both read it once: sums are taken in one order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a run takes two threads, the one that waits spins: five times the CPU seconds where others wait for the cores.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
if not os.path.exists(
    "/dev/nvidiactl"
):  # no GPU: our kernels run in Triton's interpreter, which it decides at import
    os.environ["TRITON_INTERPRET"] = "1"

# What imports leave is no garbage, and to look for garbage in it again and again is a tenth of the tests' CPU seconds.
gc.disable()

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of tests/support/groups.py; of single tests the slow ones first, so that none is left at the end."""
    items.sort(key=lambda item: (place(item.nodeid), group(item.nodeid) == item.nodeid and not _slow(item)))


def pytest_collection_finish() -> None:
    """From here on garbage is collected, of what the tests make."""
    gc.freeze()
    gc.enable()


def _slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """With `-n`: groups of tests."""
    return GroupScheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that this machine cannot run, and say why."""
    if item.get_closest_marker("slurm") and (reason := lacking()) is not None:
        absent("slurm", reason)
    if item.get_closest_marker("gpu"):
        import torch  # late: most tests never need it

        if not torch.cuda.is_available():
            absent("gpu", "there is no CUDA device")
