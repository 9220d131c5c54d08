"""Scalars for TensorBoard: an event file for each start of a run, named by the start's number.

A run that resumes begins a new file whose first event tells TensorBoard to hide what an earlier segment wrote past that
step. TensorBoard's record writer takes a tenth of a second to import, file systems in the cloud included: it waits for
the first lines, when the run is training.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog


class Events:
    """One event file of one segment of a run."""

    def __init__(self, folder: Path, start_number: int, from_step: int) -> None:
        self._path = folder / f"events.out.tfevents.{start_number:06d}"
        self._from_step = from_step
        self._writer: Any = None

    def add(self, scalars: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Append values by name for each step."""
        now_s = time.time()
        if self._writer is None:
            self._open(now_s)
        for step, values in scalars:
            event = Event(wall_time=now_s, step=step)
            for name, value in values.items():
                event.summary.value.add(tag=name, simple_value=value)
            self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, now_s: float) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(open(self._path, "wb"))  # noqa: SIM115
        start = SessionLog(status=SessionLog.START)
        for event in (
            Event(wall_time=now_s, file_version="brain.Event:2"),
            Event(wall_time=now_s, step=self._from_step + 1, session_log=start),
        ):
            self._writer.write(event.SerializeToString())
