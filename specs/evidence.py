"""The runs that a plan's fit saw, in `evidence.jsonl` beside the plan: read once, from a ledger or a table, and kept.

A plan names the file's digest under its seal, so report, explain and audit need neither ledger nor table. The points
are no part of the plan's YAML: ten thousand of them take 6 s to read there, and .15 s here (2026-11-30).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from specs.document.base import Sha256, Spec
from specs.document.files import DocumentError, read_bytes

FILE_NAME = "evidence.jsonl"
"""Of the file, in the plan's folder. A folder has one target, and only a target rests on a fit."""


class EvidencePoint(Spec):
    """A line of `evidence.jsonl`: one finished run, as the fits see it."""

    run: str = Field(min_length=1)
    """Fingerprint of a run of the ledger; the name that a table gives its run, or its line there."""
    line: int | None = Field(default=None, ge=1)
    """Line of the table (row of a Parquet file); null for a run of the ledger."""
    budget_flop: float
    """The budget of its isoFLOP profile; for a table's run its compute as the fit counts it."""
    size: float
    """Its size, as the fit's `size_kind` says."""
    tokens: float
    """D."""
    unique_tokens: float | None = Field(default=None, ge=1)
    """Different training tokens of its text: the run repeats data where `tokens` is larger; null where none repeat."""
    fresh_tokens: float | None = Field(default=None, gt=0, exclude_if=lambda tokens: tokens is None)
    """Of a mix: the fresh tokens that its tokens are worth, each source's repeats discounted; absent without one."""
    loss: float
    """Final held-out loss, nats per token."""
    short: bool
    """It had fewer steps than its family's `min_steps`, or a table's run fewer than 1000."""


class EvidenceFile(Spec):
    """Which runs a fit saw: `evidence.jsonl` beside the plan, a line for each."""

    runs: int = Field(ge=0)
    """Number of lines."""
    sha256: Sha256
    """SHA-256 of the file's bytes, so that the plan's seal covers them."""


def evidence_text(points: Sequence[EvidencePoint]) -> str:
    """The text of the file: a line of canonical JSON for each run."""
    return "".join(point.canonical_json() + "\n" for point in points)


def evidence_file(points: Sequence[EvidencePoint]) -> EvidenceFile:
    """What a plan says of the file of these runs."""
    digest = hashlib.sha256(evidence_text(points).encode()).hexdigest()
    return EvidenceFile(runs=len(points), sha256=digest)


def read_evidence_file(plan: Path, named: EvidenceFile) -> tuple[EvidencePoint, ...]:
    """The runs in the file beside a plan; DocumentError where it is missing, or is not the one that the plan names."""
    path = plan.parent / FILE_NAME
    again = f"restore it beside {plan.name}, or plan the budget again under another name"
    if not path.exists():
        raise DocumentError(path, 1, 1, f"the runs that {plan} rests on are missing", again)
    data = read_bytes(path, None)
    digest = hashlib.sha256(data).hexdigest()
    if digest != named.sha256:
        what = (
            f"the file was changed after {plan} was sealed (its SHA-256 is {digest[:16]}, the plan has "
            f"{named.sha256[:16]})"
        )
        raise DocumentError(path, 1, 1, what, again)
    try:
        return tuple(_LINE.validate_json(line) for line in data.splitlines())
    except ValidationError:
        raise DocumentError(path, 1, 1, "the file is of another version of isoplan", again) from None


_LINE = TypeAdapter(EvidencePoint)
