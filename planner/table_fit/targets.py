"""What a forecast is asked for: a compute, which is split in the best way, or a run of given size and tokens."""

import re
from dataclasses import dataclass

from specs.document.quantity import FLOP, PARAMS, TOKENS
from specs.exit_codes import InputError
from specs.humanize import count, flop_text, scientific
from specs.law import SizeKind

_EXAMPLES = {
    "params": "7B params 2T tokens",
    "block_params": "7B params 2T tokens",
    "flop_per_token": "42 GFLOP/token 2T tokens",
}


class TargetError(InputError):
    """A target is refused; the message says what to write instead."""


@dataclass(frozen=True)
class ComputeTarget:
    """A run at the best split of a compute."""

    flop: float


@dataclass(frozen=True)
class RunTarget:
    """A run of this size, as the table counts it, and these tokens."""

    size: float
    tokens: float


Target = ComputeTarget | RunTarget


def parse_target(text: str, size_kind: SizeKind) -> Target:
    """The target that a user wrote: `1e22 FLOP`, or `7B params 2T tokens` in the table's own size.

    TargetError with what to write instead.
    """
    try:
        return _parsed(str(text), size_kind)  # 1e22, which a program may have written
    except ValueError as error:
        raise TargetError(f"--at: {error}") from None


def _parsed(text: str, size_kind: SizeKind) -> Target:
    example = _EXAMPLES[size_kind]
    parts = re.fullmatch(r"\s*(.+?(params|FLOP/token))[\s,]+(.+tokens)\s*", text)
    if parts is None and re.search(r"FLOP\s*$", text):
        return ComputeTarget(float(FLOP.parse(text)))
    if parts is None:
        raise ValueError(f"'{text}' is not a target; write it like '1e22 FLOP' or '{example}'")
    size, unit, tokens = parts.groups()
    if (unit == "FLOP/token") != (size_kind == "flop_per_token"):
        counted = "FLOP per token" if size_kind == "flop_per_token" else "parameters"
        raise ValueError(f"'{text}' names {unit}, but the table counts {counted}; write it like '{example}'")
    found = FLOP.parse(size.removesuffix("/token")) if unit == "FLOP/token" else PARAMS.parse(size)
    run = RunTarget(float(found), float(TOKENS.parse(tokens)))
    if min(run.size, run.tokens) <= 0:
        raise ValueError(f"'{text}' has no size or no tokens; write it like '{example}'")
    return run


def target_text(target: Target, size_kind: SizeKind) -> str:
    """A target as a user would write it."""
    if isinstance(target, ComputeTarget):
        return flop_text(target.flop)
    if size_kind == "flop_per_token":
        size = f"{scientific(target.size)} FLOP/token"
    else:
        size = f"{count(target.size)} params"
    return f"{size}, {count(target.tokens)} tokens"
