"""The ledger's lines: audited runs, runs added from tables, and which of both are excluded. Only ever appended to.

Reading, comparing and appending happen under a lock beside the ledger, since several commands may run at once.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from specs.document.base import Fingerprint, Sha256, Spec
from specs.document.files import DocumentError, read_lines
from specs.law import SizeKind
from specs.record import LedgerRecord

_SOURCE = ("table", "table_sha256", "line", "text")
"""Fields that say where a line came from, and not which run it is."""


class TableRunRecord(Spec):
    """One run added from a table: a line of the ledger. It has no run spec, so only fits of tables use it."""

    kind: Literal["table_run"] = "table_run"
    """Selects this document."""
    table: str
    """Name of the table's file."""
    table_sha256: Sha256
    """Of the file's bytes."""
    line: int = Field(ge=1)
    """Line of the file that the run stands in."""
    name: str | None
    """The run's own name; null where the table has none."""
    text: str | None
    """Text, tokenizer and held-out set that the loss is of, in the words of the user; null where nobody said."""
    sizes: dict[SizeKind, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """The model's size, in every convention that the table gives."""
    tokens: float = Field(gt=0)
    """Training tokens."""
    loss: float = Field(gt=0)
    """Final loss, nats per token, whatever the table's unit was."""
    bytes_per_token: float | None
    """Held-out UTF-8 bytes per token; null where they are not known."""
    compute_flop: float = Field(gt=0)
    """Compute as the table gives it; 6 per parameter and token, or M per token, where it gives none."""
    steps: float | None
    """Optimizer steps."""
    peak_lr: float | None
    """Maximum learning rate."""
    batch_tokens: float | None
    """Tokens per step."""
    seed: float | None
    """Seed."""
    unique_tokens: float | None
    """Different training tokens."""

    def same_run(self) -> tuple[Any, ...]:
        """What two lines of one run have in common, whichever export of the table they came from."""
        plain = self.plain()
        return tuple(str(plain[name]) for name in plain if name not in _SOURCE)


class Exclusion(Spec):
    """Whether plans and fits leave a run out, and why: a line of the ledger. The last line on a run counts."""

    kind: Literal["exclusion"] = "exclusion"
    """Selects this document."""
    run: Fingerprint
    """The run: an audited run's fingerprint, or that of the line of a run from a table."""
    excluded: bool
    """True leaves the run out; false takes it back in."""
    reason: str = Field(min_length=1)
    """Why."""


LedgerLine = Annotated[LedgerRecord | TableRunRecord | Exclusion, Field(discriminator="kind")]
"""A line of `ledger.jsonl`."""


@dataclass(frozen=True)
class Ledger:
    """The lines of a ledger, in order."""

    lines: tuple[LedgerRecord | TableRunRecord | Exclusion, ...]

    @property
    def audited(self) -> tuple[LedgerRecord, ...]:
        """Runs of our engine that an audit accepted."""
        return tuple(line for line in self.lines if isinstance(line, LedgerRecord))

    @property
    def from_tables(self) -> tuple[TableRunRecord, ...]:
        """Runs added from tables."""
        return tuple(line for line in self.lines if isinstance(line, TableRunRecord))

    @property
    def excluded(self) -> dict[str, str]:
        """The runs that are excluded now, each with the reason."""
        last = {line.run: line for line in self.lines if isinstance(line, Exclusion)}
        return {run: line.reason for run, line in last.items() if line.excluded}


def run_id(line: LedgerRecord | TableRunRecord) -> str:
    """What a run of the ledger is called by."""
    return line.fingerprint_of_run if isinstance(line, LedgerRecord) else line.fingerprint()


def text_of(line: LedgerRecord | TableRunRecord) -> str:
    """What a run's loss is of: only losses of one text are comparable.

    The first 16 digits of an audited run's text, with those of its mix if it has one, the words of whoever added a
    table, else the table's name.
    """
    if isinstance(line, LedgerRecord):
        data = (line.run.data.digest or line.run.data.corpus)[:16]
        return data if line.run.mix is None else f"{data} mixed {line.run.mix.shares_digest()}"
    return line.text or line.table


def read_ledger(path: Path) -> Ledger:
    """The ledger in a file; DocumentError where it has an invalid or incomplete line."""
    return Ledger(tuple(read_lines(path, LedgerLine)))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the ledger's lock, in a file beside it that is left behind; its folder is made where it is missing.

    DocumentError where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115, closed below
    except OSError as error:
        what, write = (
            f"this file cannot be written ({error.strerror})",
            "choose a folder that you can write to",
        )
        raise DocumentError(path, 1, 1, what, write) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
