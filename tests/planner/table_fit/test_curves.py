"""Training curves join the runs of a table by name; what has no counterpart is named, what does not fit is a flag."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from planner.table_fit.curves import JoinedCurves, join_curves
from specs.run_table.curves import Curve, CurveTable
from tests.support.run_tables import run_table

TABLE = run_table([1e8, 2e8, 4e8], [2e9, 4e9, 8e9], [3.5, 3.25, 3.0], batch_tokens=np.full(3, 1e6))
NAMES = TABLE.name
"""line 2, line 3, line 4."""


def curve(losses: ArrayLike, tokens: ArrayLike | None = None, steps: ArrayLike | None = None) -> Curve:
    loss = np.asarray(losses, float)
    return Curve(
        loss=loss,
        tokens=None if tokens is None else np.asarray(tokens, float),
        steps=None if steps is None else np.asarray(steps, float),
        line=np.arange(2, len(loss) + 2),
    )


def joined(curves: dict[str, Curve], held_out: bool | None = True) -> JoinedCurves:
    table = CurveTable(
        path=Path("curves.csv"),
        sha256="0" * 64,
        curves=curves,
        held_out=held_out,
        loss_unit="nats/token",
        bytes_per_token=None,
        columns={"loss": "a_loss"},
        notes=("a note",),
    )
    return join_curves(TABLE, table)


WHOLE = {
    NAMES[0]: curve([5, 3.51], [1e9, 2e9]),
    NAMES[1]: curve([5, 3.26], steps=[1000, 4000]),
    NAMES[2]: curve([5, 4, 3.0], [1e9, 4e9, 8e9]),
}


def test_curves_are_drawn_against_the_tables_compute() -> None:
    found = joined(WHOLE)
    assert [one.name for one in found.drawn] == list(NAMES)
    assert found.drawn[0].flop == pytest.approx((6e8 * 1e9, 6e8 * 2e9))
    assert found.drawn[1].flop == pytest.approx((12e8 * 1e9, 12e8 * 4e9))  # a million tokens in a step
    assert found.drawn[2].loss == (5, 4, 3)
    assert (found.source.runs, found.source.points, found.source.notes) == (3, 7, ("a note",))
    assert found.flags == ()


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    tokens = np.arange(1, 80_001) * 1e5
    found = joined({NAMES[2]: curve(3 + 1e9 / tokens, tokens)})
    (drawn,) = found.drawn
    assert len(drawn.loss) <= 80
    assert (drawn.flop[0], drawn.flop[-1]) == pytest.approx((24e8 * 1e5, 24e8 * 8e9))
    assert found.source.points == 80_000


def test_what_has_no_counterpart_is_counted_and_named() -> None:
    found = joined({NAMES[0]: WHOLE[NAMES[0]], **{f"other {i}": curve([4, 3], [1e9, 2e9]) for i in range(5)}})
    assert found.source.notes[1:] == (
        "2 runs without a curve: line 3, line 4",
        "5 curves without a run in the table: other 0, other 1, other 2 and 2 more",
    )


def flag(curves: dict[str, Curve], held_out: bool | None = True) -> str:
    (one,) = joined(curves, held_out).flags
    assert one.kind == "curves"
    return one.message


def test_a_last_loss_that_is_not_the_tables_is_a_flag() -> None:
    message = flag(WHOLE | {NAMES[2]: curve([5, 3.1], [1e9, 8e9])})
    assert message.startswith(
        "1 curve with a last loss that is not the table's final one: line 4 by +3.3%; look for"
    )


def test_a_curve_of_a_part_of_the_run_is_a_flag_and_not_compared() -> None:
    message = flag(WHOLE | {NAMES[2]: curve([5, 3.4], [1e9, 4e9])})
    assert message == "1 curve not of the whole run: line 4 at 4B of 8B tokens"


def test_training_losses_are_drawn_and_not_compared() -> None:
    message = flag(WHOLE | {NAMES[2]: curve([5, 2.5], [1e9, 8e9])}, held_out=False)
    assert message.startswith("the curves are of the training loss (a_loss)")


def test_curves_of_other_runs_are_a_flag_that_says_how_they_are_joined() -> None:
    assert "map the column that both have" in flag({"": curve([4, 3], [1e9, 2e9])})


def test_curves_of_steps_need_the_tokens_of_a_step() -> None:
    table = run_table([1e8], [2e9], [3.5])
    curves = CurveTable(
        path=Path("curves.csv"), sha256="0" * 64, curves={"line 2": curve([4, 3], steps=[1, 2])}, held_out=True,
        loss_unit="nats/token", bytes_per_token=None, columns={"loss": "loss"}, notes=(),
    )  # fmt: skip
    found = join_curves(table, curves)
    assert found.drawn == ()
    assert found.source.notes[0].startswith("1 curve of steps whose tokens are not known: line 2; add tokens")
