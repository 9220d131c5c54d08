"""Which of the ledger's runs are evidence for a budget: those that differ from its own only in size and rate.

A loss law has two variables, size and tokens. Whatever else moves the loss must be the same in all of its runs, or the
fit takes a difference in vocabulary, say, for one in size. And a run that learned nothing has no place on the surface.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from planner.scaling.isoflop import budget_groups
from specs.document.base import canonical_json
from specs.record import LedgerRecord
from specs.run import RunSpec

MAY_DIFFER = frozenset(
    {
        "model.layers",  # the size; and depth for width, which a budget's `aspect` sets
        "model.width",
        "optim.steps",  # the length
        "optim.batch_sequences",  # batch and learning rate, each near its best (planner.scaling.lr_and_batch)
        "optim.peak_lr",
        "evaluation.every_steps",  # points of the curve; the final loss is measured on `final_sequences`
        "evaluation.sequences",
        "seed",  # noise, which the fits estimate
        "guard",  # acts only on a loss spike, so a sound run is the same with another guard
        "data.corpus",  # the name of the folder; `data.digest` is the text's identity
    }
)
"""Fields in which runs of one loss law may differ. All others must be equal, fields to come included."""
_SAME_TRAINING = frozenset({"data.corpus", "evaluation.every_steps", "evaluation.sequences", "guard"})
"""Runs that differ in nothing else are one training, measured once: no second seed."""
_DESCRIPTIONS = {
    "model.heads": "another family's number of heads",
    "model.kv_heads": "another family's key and value heads",
    "model.ffn": "another family's feed-forward width",
    "model.vocab": "vocabulary {}, not {}",
    "data.digest": "another text",
    "optim.milestones": "another learning-rate schedule",
    "optim.decay": "another learning-rate schedule",
    "optim.warmup_steps": "another warmup",
    "optim.betas": "AdamW's betas {}, not {}",
    "mix": "another mix of sources",
    "evaluation.final_sequences": "a final loss over {} held-out sequences, not {}",
    "parent": "the weights of another run or of an import at the start",
}
"""How a difference is named; other fields by their own name with both values."""
MIN_LEARNED_SHARE = 0.1
"""A run has learned nothing where it lowers the loss from ln V by less than this share of what the best run of its
budget does. Pilots of 20 steps reach .7 of their budget's best, 300 times the law's learning rate .03 (docs/log.md)."""
MAX_CURVE_RATIO = 1.5
"""The final loss and the last point of the curve are one model's, on more or fewer held-out sequences."""
MAX_NAMED = 4
"""Runs that flags name one by one; of more they give the number."""


def differences(run: RunSpec, own: Callable[[RunSpec], RunSpec]) -> tuple[str, ...]:
    """In what that moves the loss, besides size and rate, a run differs from the budget's own runs.

    `own` gives the budget's run of a run's size, length, batch and rate; ValueError where it has none.
    """
    try:
        theirs, ours = _fields(run), _fields(own(run))
    except ValueError:
        return ("a width or a length that the budget's family does not have",)
    return tuple(
        _DESCRIPTIONS.get(name, name.rpartition(".")[2].replace("_", " ") + " {}, not {}").format(
            _text(theirs.get(name)), _text(ours.get(name))
        )
        for name in sorted({*theirs, *ours} - MAY_DIFFER)
        if theirs.get(name) != ours.get(name)
    )


def _fields(run: RunSpec) -> dict[str, Any]:
    """Every field by its dotted name, two levels deep."""
    found: dict[str, Any] = {}
    for name, value in run.plain().items():
        if name in ("model", "data", "optim", "evaluation"):
            found |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            found[name] = value
    return found


def _text(value: Any) -> str:
    """A value in a message: 0.9 and 0.95 for a pair of numbers."""
    numbers = isinstance(value, list) and all(isinstance(one, float) for one in value)
    return " and ".join(f"{one:g}" for one in value) if numbers else str(value)


def not_excluded(
    records: Sequence[LedgerRecord], excluded: Mapping[str, str]
) -> tuple[list[LedgerRecord], tuple[str, ...]]:
    """The records that nobody excluded from the ledger, and a flag for each of the others, with the reason."""
    kept = [record for record in records if record.fingerprint_of_run not in excluded]
    flags = tuple(
        f"run {run} ({name_of(record)}) is left out, as the ledger says: {excluded[run]}"
        for record in records
        if (run := record.fingerprint_of_run) in excluded
    )
    return kept, flags


def matching(
    records: Sequence[LedgerRecord], own: Callable[[RunSpec], RunSpec]
) -> tuple[list[LedgerRecord], tuple[str, ...]]:
    """The records that match the budget's own runs, and a flag that counts the others by what differs."""
    found = [", ".join(differences(record.run, own)) for record in records]
    counts = Counter(kind for kind in found if kind)
    kept = [record for record, kind in zip(records, found, strict=True) if not kind]
    if not counts:
        return kept, ()
    total = sum(counts.values())
    kinds = [(kind, number) for kind, number in counts.most_common(MAX_NAMED)]
    what = "; ".join(kind if number == total else f"{number} with {kind}" for kind, number in kinds)
    rest = total - sum(number for _, number in kinds)
    more = f"; {rest} with other differences" if rest else ""
    are = "is" if total == 1 else "are"
    return kept, (f"{total} of the ledger's {len(records)} runs on this text {are} not used: {what}{more}",)


def distinct(records: Sequence[LedgerRecord]) -> tuple[list[LedgerRecord], tuple[str, ...]]:
    """The first record of each training, and a flag that counts the others.

    One text in two corpus folders, say, gives a run two fingerprints. Its loss is the same in both, and would pass for
    a second seed without any noise.
    """
    first: dict[str, LedgerRecord] = {}
    for record in records:
        fields = _fields(record.run)
        training = {name: value for name, value in fields.items() if name not in _SAME_TRAINING}
        first.setdefault(canonical_json(training), record)
    if not (copies := len(records) - len(first)):
        return list(records), ()
    are, names = ("is", "another name") if copies == 1 else ("are", "other names")
    flag = (
        f"{copies} of the ledger's runs on this text {are} trained twice under {names} (another corpus folder of the "
        "same text, or another evaluation interval) and count once"
    )
    return list(first.values()), (flag,)


def sound(
    records: Sequence[LedgerRecord],
) -> tuple[list[LedgerRecord], list[LedgerRecord], tuple[str, ...]]:
    """The runs that learned, those that did not, and a flag for each of the latter: its loss, the reason, a remedy."""
    reasons = _reasons(records)
    kept = [record for record, reason in zip(records, reasons, strict=True) if not reason]
    bad = [(record, reason) for record, reason in zip(records, reasons, strict=True) if reason]
    flags = [_flag(record, reason) for record, reason in bad[:MAX_NAMED]]
    if len(bad) > MAX_NAMED:
        flags.append(f"{len(bad) - MAX_NAMED} more runs are left out of the fits for such losses")
    return kept, [record for record, _ in bad], tuple(flags)


def _reasons(records: Sequence[LedgerRecord]) -> list[str]:
    """Why each run's loss is no evidence; empty where it is."""
    reasons = [_alone(record) for record in records]
    for group in budget_groups([record.budget_flop for record in records]) if records else []:
        learned = [records[i].loss for i in group if not reasons[i]]
        for i in group:
            reasons[i] = reasons[i] or _beside(records[i], min(learned))
    return reasons


def _alone(record: LedgerRecord) -> str:
    """What a run's own line says against its loss."""
    loss, uniform, curve = record.loss, record.run.model.uniform_loss, record.curve_loss
    if not loss > 0:
        return f"its loss {loss:.4g} is not above 0"
    if loss >= uniform:
        return (
            f"its loss {loss:.4f} is not below ln V = {uniform:.4f} nats per token, the loss of a uniform prediction "
            f"over {record.run.model.vocab:,} tokens"
        )
    if curve and not 1 / MAX_CURVE_RATIO <= loss / curve[-1] <= MAX_CURVE_RATIO:
        return f"its loss {loss:.4f} is not that at the end of its loss curve, {curve[-1]:.4f} nats per token"
    if curve and curve[-1] > curve[0]:
        return f"its loss rose during training, from {curve[0]:.4f} to {curve[-1]:.4f}"
    return ""


def _beside(record: LedgerRecord, best: float) -> str:
    """What the best run of its budget says against a run's loss."""
    uniform = record.run.model.uniform_loss
    if uniform - record.loss >= MIN_LEARNED_SHARE * (uniform - best):
        return ""
    return (
        f"its loss {record.loss:.4f} is near ln V = {uniform:.4f} nats per token, the loss of a uniform prediction, "
        f"while the best run of its budget reached {best:.4f}"
    )


def _flag(record: LedgerRecord, reason: str) -> str:
    remedy = f"see its curve in runs/{record.fingerprint_of_run}, and train another pilot in its place"
    if record.role == "rate":
        remedy = "try learning rates nearer to the law's own (evidence.rates)"
    return f"run {record.fingerprint_of_run} ({name_of(record)}) is left out of the fits: {reason}; {remedy}"


def name_of(record: LedgerRecord) -> str:
    """A run of the ledger as its plan's tables name it."""
    rate = "" if record.rate_multiple == 1 else f", lr x{record.rate_multiple:g}"
    return f"{record.budget_flop:.1e} FLOP, width {record.run.model.width}{rate}"
