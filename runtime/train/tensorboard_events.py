"""Scalars for TensorBoard, in its file format: records of length, checksum, a serialised Event, checksum.

TensorBoard's own writer imports for 0.3 s and a thread; here a file is opened, and each call appends to it. A run that
resumes begins a new file whose first event tells TensorBoard to hide what an earlier segment wrote past that step.
"""

import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog

_CASTAGNOLI = 0x82F63B78
"""Polynomial of CRC-32C, reversed (RFC 3720, appendix B.4)."""
_MASK = 0xA282EAD8
"""Added to a rotated checksum, so that a checksum of data with checksums in it stays good (TFRecord's format)."""


class Events:
    """One event file of one segment of a run."""

    def __init__(self, folder: Path, from_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._table = _crc_table()
        self._file = open(folder / f"events.out.tfevents.{time.time_ns():020d}", "ab")  # noqa: SIM115
        now_s = time.time()
        start = SessionLog(status=SessionLog.START)
        self._write([Event(wall_time=now_s, file_version="brain.Event:2")])
        self._write([Event(wall_time=now_s, step=from_step + 1, session_log=start)])

    def add(self, scalars: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Append values by name for each step."""
        now_s = time.time()
        events = []
        for step, values in scalars:
            event = Event(wall_time=now_s, step=step)
            for name, value in values.items():
                event.summary.value.add(tag=name, simple_value=value)
            events.append(event)
        self._write(events)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, events: Iterable[Event]) -> None:
        records = []
        for event in events:
            data = event.SerializeToString()
            length = struct.pack("<Q", len(data))
            records += [length, self._checksum(length), data, self._checksum(data)]
        self._file.write(b"".join(records))
        self._file.flush()

    def _checksum(self, data: bytes) -> bytes:
        """CRC-32C, rotated and masked as TFRecord wants it."""
        crc, table = 0xFFFFFFFF, self._table
        for byte in data:
            crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        crc ^= 0xFFFFFFFF
        return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return table
