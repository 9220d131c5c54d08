"""Processes that start at once: forked from a server that has imported all that a rank needs, torch first."""

import multiprocessing
from multiprocessing.forkserver import ensure_running

PROCESSES = multiprocessing.get_context("forkserver")
"""The one server of a test run: what it is to import has to be said before the first process starts."""

# A module that cannot be imported is passed over in silence; tests/test_imports.py has them all imported.
PROCESSES.set_forkserver_preload(
    [
        "torch.distributed.checkpoint",
        "model.zero",
        "runtime.checkpoint.shards",
        "runtime.train.async_checkpoint",
        "runtime.train.loop",
        "runtime.train.resume",
        "runtime.train.run_logger",
        "runtime.train.worker",
        "runtime.rehearse.step",
    ]
)


def start() -> None:
    """Start the server with these modules, unless it runs: `rehearse` would start it with what it needs itself."""
    ensure_running()
