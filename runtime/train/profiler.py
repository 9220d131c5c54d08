"""A profile of a few steps: profile/rank-0-steps-100-105.json.gz, which ui.perfetto.dev and chrome://tracing open.

The first rank of each pipeline stage writes one: its data- and tensor-parallel peers do the same work.
"""

import torch
from torch.profiler import ProfilerActivity, profile

from runtime.run_folder.folder import RunFolder
from runtime.train.worker import RankWorker
from specs.profile_window import ProfileWindow


class StepProfiler:
    """Profiles the steps of a window on this rank; does nothing without a window."""

    def __init__(self, folder: RunFolder, window: ProfileWindow | None, worker: RankWorker) -> None:
        self._folder, self._window = folder.path / "profile", window if worker.is_first_of_stage else None
        self._rank = worker.world.rank
        self._activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if worker.on_gpu else [])]
        self._profile: profile | None = None
        self._first = 0

    def begin(self, step: int) -> None:
        """A step begins."""
        if self._window is None or not self._window.first <= step <= self._window.last:
            return
        if self._profile is None:
            self._first = step
            self._profile = profile(activities=self._activities)
            self._profile.start()

    def end(self, step: int) -> None:
        """A step ends; the last one of the window writes the trace."""
        if self._profile is None or self._window is None or step < self._window.last:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"rank-{self._rank}-steps-{self._first}-{step}.json.gz"
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        print(f"profile of steps {self._first} to {step}: {path}", flush=True)
