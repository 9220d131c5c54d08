"""Documents sorted by their digest, in files that are too many to hold in memory: the runs of an external merge sort.

    00012-0.text      texts, one after the other, sorted by digest
    00012-0.digests   32 bytes each, in the same order
    00012-0.lengths   their lengths in bytes, uint64
    00012-0.slots     first document and first byte of each of 4096 slots of digests, uint64 pairs, and the ends

A slot is the documents whose digest begins with the same 12 bits. The runs' parts of a few neighbouring slots fit into
memory, and hold every copy of a document: there duplicates are found and the order is made, one group of slots after
the other or side by side.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.data.errors import CorpusError

SLOTS = 4096
_SHIFT = np.uint64(64 - 12)
RUN_BYTES = 32 * 2**20
"""Text of a run: what a process that reads holds in memory."""
_OVERHEAD_BYTES = 200
"""What Python needs for a document besides its text."""


@dataclass(frozen=True)
class SortedDocuments:
    """Different documents, in the order of their digests."""

    texts: list[bytes]
    digests: NDArray[Any]
    """Bytes, shape (documents, 32)."""

    def held_out(self, one_in: int) -> NDArray[np.bool_]:
        """Whether each is in the held-out split; decided by other bits of the digest than the order."""
        last = np.ascontiguousarray(self.digests[:, 24:]).view(">u8")[:, 0]
        return np.asarray(last % np.uint64(one_in) == 0)


class RunWriter:
    """Collects documents and writes them to runs `<stem>-0`, `<stem>-1`, and so on."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._pending: list[tuple[bytes, bytes]] = []
        self._pending_bytes = 0
        self.runs: list[Path] = []

    def add(self, text: bytes) -> None:
        """Add a document."""
        self._pending.append((hashlib.sha256(text).digest(), text))
        self._pending_bytes += len(text) + _OVERHEAD_BYTES
        if self._pending_bytes >= RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last run."""
        if not self._pending:
            return
        self._pending.sort()
        run = self._stem.with_name(f"{self._stem.name}-{len(self.runs)}")
        digests = np.frombuffer(b"".join(digest for digest, _ in self._pending), np.uint8).reshape(-1, 32)
        lengths = np.array([len(text) for _, text in self._pending], np.uint64)
        firsts = np.searchsorted(_slot_of(digests), np.arange(SLOTS + 1, dtype=np.uint64))
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
        digests.tofile(run.with_suffix(".digests"))
        lengths.tofile(run.with_suffix(".lengths"))
        np.stack([firsts.astype(np.uint64), starts[firsts]], axis=1).tofile(run.with_suffix(".slots"))
        with open(run.with_suffix(".text"), "wb") as file:
            file.writelines(text for _, text in self._pending)
        self.runs.append(run)
        self._pending, self._pending_bytes = [], 0


def _slot_of(digests: NDArray[Any]) -> NDArray[np.uint64]:
    first = np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    return np.asarray(first >> _SHIFT)


def documents_in(runs: Sequence[Path], first_slot: int, last_slot: int) -> SortedDocuments:
    """The different documents of the slots from `first_slot` to before `last_slot`, of all runs."""
    found = [part for run in runs for part in _read(run, first_slot, last_slot)]
    texts = [text for part in found for text in part.texts]
    digests = np.concatenate([np.empty((0, 32), np.uint8), *(part.digests for part in found)])
    words = np.ascontiguousarray(digests).view(">u8")
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    ordered = digests[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return SortedDocuments([texts[at] for at in order[new]], ordered[new])


def _read(run: Path, first_slot: int, last_slot: int) -> Iterator[SortedDocuments]:
    """A run's part of these slots, if it has one."""
    slots = np.fromfile(
        run.with_suffix(".slots"), np.uint64, 2 * (last_slot - first_slot + 1), offset=16 * first_slot
    )
    first, start, last, stop = slots[[0, 1, -2, -1]].tolist()
    if first == last:
        return
    digests = np.fromfile(run.with_suffix(".digests"), np.uint8, 32 * (last - first), offset=32 * first)
    lengths = np.fromfile(run.with_suffix(".lengths"), np.uint64, last - first, offset=8 * first)
    with open(run.with_suffix(".text"), "rb") as file:
        file.seek(start)
        text = file.read(stop - start)
    if len(text) != stop - start or len(digests) != 32 * (last - first):
        raise CorpusError(f"{run} is cut off; rerun, and the text is read again")
    ends = np.cumsum(lengths).tolist()
    texts = [text[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
    yield SortedDocuments(texts, digests.reshape(-1, 32))
