"""What is in a ledger: a row for each run, as JSON or as a table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specs.humanize import count, scientific, several
from specs.law import SizeKind
from specs.ledger import Ledger, TableRunRecord, run_id, text_of
from specs.record import LedgerRecord

_SIZES: dict[SizeKind, str] = {"params": "", "block_params": " non-emb.", "flop_per_token": " FLOP/token"}
"""What follows a size, by what it counts."""


@dataclass(frozen=True)
class Row:
    """One run of a ledger."""

    run: str
    """What `exclude` names it by."""
    name: str | None
    """The run's name in its table; null for audited runs."""
    source: str
    """Where it came from."""
    text: str
    """What its loss is of: the digest of an audited run's text, its first 16 digits, or the words of the user."""
    sizes: dict[SizeKind, float]
    """The model's size by what it counts."""
    tokens: float
    compute_flop: float
    loss: float
    """Nats per token."""
    excluded: str | None
    """Why plans and fits leave it out; null where they do not."""


def rows(ledger: Ledger) -> Iterator[Row]:
    """The runs, in order; a run that was audited under several plans has a row for each."""
    excluded = ledger.excluded
    for line in ledger.lines:
        if isinstance(line, LedgerRecord):
            model = line.run.model
            sizes: dict[SizeKind, float] = {"params": model.params, "block_params": model.block_params}
            yield Row(
                run=run_id(line),
                name=None,
                source=f"audit, {line.role}, seal {line.seal[:8]}",
                text=text_of(line),
                sizes={**sizes, "flop_per_token": model.flop_per_token},
                tokens=line.tokens,
                compute_flop=line.compute_flop,
                loss=line.loss,
                excluded=excluded.get(run_id(line)),
            )
        elif isinstance(line, TableRunRecord):
            yield Row(
                run=run_id(line),
                name=line.name,
                source=f"{line.table}, line {line.line}",
                text=text_of(line),
                sizes=line.sizes,
                tokens=line.tokens,
                compute_flop=line.compute_flop,
                loss=line.loss,
                excluded=excluded.get(run_id(line)),
            )


def plain(path: Path, ledger: Ledger) -> dict[str, Any]:
    """The ledger's runs and the history of its exclusions, as JSON types."""
    decisions = [line.plain() for line in ledger.lines if line.kind == "exclusion"]
    return {"ledger": str(path), "runs": [asdict(row) for row in rows(ledger)], "exclusions": decisions}


def show(path: Path, ledger: Ledger, console: Console) -> None:
    """Print the ledger as a table; excluded runs are dim, with their reason."""
    found = list(rows(ledger))
    audited, tables = len(ledger.audited), len(ledger.from_tables)
    out = sum(row.excluded is not None for row in found)
    title = f"{path}: {several(audited, 'audited run')}, {tables} from tables, {out} excluded"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("run", "size", "tokens", "FLOP", "nats/token", "text", "from", "excluded"):
        right = name in ("size", "tokens", "FLOP", "nats/token")
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "run" or right)
    for row in found:
        kind = next(iter(row.sizes))
        table.add_row(
            row.run,
            count(row.sizes[kind]) + _SIZES[kind],
            count(row.tokens),
            scientific(row.compute_flop),
            f"{row.loss:.4f}",
            escape(row.text),
            escape(row.source + (f", {row.name}" if row.name else "")),
            escape(row.excluded or ""),
            style="" if row.excluded is None else "dim",
        )
    console.print(table)
