"""Options of every command that reads a table: which column holds what, and the unit of its losses."""

from collections.abc import Sequence
from typing import Annotated

import typer

from specs.exit_codes import InputError
from specs.law import LossUnit as _Unit

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="QUANTITY=COLUMN",
        help="Which column holds a quantity, where its name does not say: loss=val/loss. Repeat for others.",
    ),
]
BytesPerToken = Annotated[
    float | None, typer.Option(metavar="X", help="UTF-8 bytes of a token, for losses per byte.")
]
LossUnit = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT",
        help="Unit of the losses where the table does not say: nats/token, bits/token, bits/byte.",
    ),
]


def column_mapping(texts: Sequence[str], option: str = "--column") -> dict[str, str]:
    """Quantity -> column, from every `quantity=column`; InputError where one is not, or two contradict."""
    mapping: dict[str, str] = {}
    for text in texts:
        quantity, equals, name = text.partition("=")
        if not (quantity and equals and name):
            raise InputError(f"{option} {text}: write quantity=column, for example loss=val/loss")
        if mapping.get(quantity, name) != name:
            raise InputError(
                f"{option} {text}: {quantity} is already in column {mapping[quantity]}; keep one of them"
            )
        mapping[quantity] = name
    return mapping


def checked_unit(text: str | None) -> _Unit | None:
    """The unit of --loss-unit; InputError where it is none."""
    match text:
        case None | "nats/token" | "bits/token" | "bits/byte":
            return text
    raise InputError(f"--loss-unit {text}: write nats/token, bits/token or bits/byte")
