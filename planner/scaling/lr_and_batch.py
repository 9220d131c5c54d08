"""Laws of learning rate and batch size, fitted on a grid of one's own runs.

Near its lowest point ln L is a bowl in ln learning rate and ln batch, and the bowl's bottom moves along power laws of
size and tokens (Step Law, Li et al. 2025, arXiv 2503.04715; DeepSeek LLM, section 3.1, along compute). All cells of a
grid, each a size with its tokens, share the bowl's shape; so one linear regression on the runs near each cell's best
gives the shape and the laws together, and few runs per cell are enough. What did not vary is not fitted: a grid with
one batch gives the law of the learning rate at that batch, and a single cell gives no exponents. What varied is counted
in different rates, batches and sizes, never in runs: a second seed of the same settings adds none.

Legend: z = (ln lr, ln batch), z* the bottom, H the bowl's curvature: ln L = c + (z - z*)' H (z - z*) / 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.scaling.isoflop import BUDGET_TOLERANCE, budget_groups
from planner.scaling.laws import Array
from specs.law import Hyper, Monomial
from specs.record import LedgerRecord

NEAR_OPTIMAL = 0.0025
"""Runs within 0.25 % of the lowest loss are as good as the best (DeepSeek LLM, section 3.1)."""
BOWL_SHARE = 0.01
"""Runs within this share of their cell's lowest loss are in the bowl; further out the loss is not a parabola. On Step
Law's grid a cell's rate and batch fitted on the other cells cost .09 % at .01, .12 at .015, .16 at .02, .22 at .03."""
LEVEL_TOLERANCE = 0.01
"""Rates, batches, sizes or tokens that differ by less than this share are one level: rounding, or a second seed."""
_MIN_LEVELS = 3
"""A parabola needs three."""
_NEGLIGIBLE_POWER = 0.05
"""Powers below this change a batch by at most an eighth per decade."""
_MAX_CORRELATION = 0.98
"""With sizes and tokens correlated above this, only the effect of their product, compute, can be fitted."""


@dataclass(frozen=True)
class RateGrid:
    """Finished runs over learning rates and batches; arrays of one length."""

    size: Array
    """FLOP per token, or parameters."""
    tokens: Array
    lr: Array
    """Maximum learning rate."""
    batch: Array
    """Tokens per step."""
    loss: Array
    """Nats per token."""

    @property
    def cell(self) -> NDArray[np.int64]:
        """Number of each run's (size, tokens)."""
        return _number(_level(self.size), _level(self.tokens))

    @property
    def setting(self) -> NDArray[np.int64]:
        """Number of each run's (size, tokens, learning rate, batch); runs that differ only in seed share one."""
        return _number(self.cell, _level(self.lr), _level(self.batch))

    def take(self, rows: Array | NDArray[np.bool_] | NDArray[np.int64]) -> "RateGrid":
        """The runs under a mask or at indices."""
        return RateGrid(*(column[rows] for column in vars(self).values()))

    def above_best(self) -> Array:
        """Each run's loss over the lowest of its cell, minus one."""
        lowest = np.full(self.cell.max() + 1, np.inf)
        np.minimum.at(lowest, self.cell, self.loss)
        return np.asarray(self.loss / lowest[self.cell] - 1)


def grid_of(records: Sequence[LedgerRecord]) -> RateGrid:
    """Audited runs as a grid."""
    columns = [
        (
            r.run.model.flop_per_token,
            r.tokens,
            r.run.optim.peak_lr,
            r.run.optim.batch_sequences * r.run.model.context,
            r.loss,
        )
        for r in records
    ]
    return RateGrid(*np.array(columns, float).reshape(-1, 5).T)


@dataclass(frozen=True)
class RateLaw:
    """Power laws of the best learning rate and batch, and the cost of other settings."""

    bottom: Array
    """(knobs, 3): ln lr, and ln batch where it varied, as constant + a ln size + b ln tokens."""
    curvature: Array
    """(knobs, knobs) H."""
    batch_varied: bool
    """If False, the learning rate is the best at the grid's own batches."""
    cells: int
    runs: int
    """Runs in the bowls."""

    def best(self, size: float, tokens: float) -> tuple[float, float | None]:
        """The best learning rate and batch in tokens; the batch is None where it did not vary."""
        bottom = np.exp(self.bottom @ _features(size, tokens))
        return float(bottom[0]), float(bottom[1]) if self.batch_varied else None

    def band(self, size: float, tokens: float) -> tuple[float, float]:
        """The lowest and highest learning rate that are near-optimal at the best batch."""
        half = float(np.sqrt(2 * np.log1p(NEAR_OPTIMAL) / self.curvature[0, 0]))
        middle = self.best(size, tokens)[0]
        return middle * float(np.exp(-half)), middle * float(np.exp(half))

    @property
    def regime(self) -> str:
        """What the batch does while the learning rate follows its law; laws disagree where this differs."""
        if not self.batch_varied:
            constant = (
                ""
                if self.bottom[:, 1:].any()
                else "; the learning rate is the same for all sizes, of which few were run"
            )
            return f"the batch is that of the runs, which varied only the learning rate{constant}"
        powers = dict(zip(("size", "tokens"), self.bottom[1, 1:].tolist(), strict=True))
        moving = [f"{name}^{power:.2f}" for name, power in powers.items() if abs(power) >= _NEGLIGIBLE_POWER]
        return f"the batch grows as {' '.join(moving)}" if moving else "the batch is fixed"

    def hyper(self, fixed_batch: float) -> Hyper:
        """As a document in FLOP per token and tokens; `fixed_batch` tokens where the batch did not vary."""
        rows = [_monomial(row) for row in self.bottom]
        batch = rows[1] if self.batch_varied else Monomial(coefficient=fixed_batch, exponents={})
        return Hyper(peak_lr=rows[0], batch_tokens=batch, regime=self.regime)


def fit_rates(grid: RateGrid) -> RateLaw:
    """The bowl and its laws from a grid; ValueError where the learning rate has no lowest point inside."""
    several = grid.take(
        _settings_in_cell(grid) > 1
    )  # one setting of a cell says nothing about the learning rate
    if len(several.loss) == 0:
        raise ValueError("no size was run at several learning rates; run several around the best")
    inside = several.take(several.above_best() <= BOWL_SHARE)
    if not _varies(inside.lr, inside.cell):
        raise ValueError(
            f"no size was run at {_MIN_LEVELS} different learning rates within {BOWL_SHARE:.1%} of its lowest loss; "
            "run more learning rates around the best"
        )
    log_lr, log_batch = np.log(inside.lr), np.log(inside.batch)
    batch_varied = _varies(inside.batch, inside.cell)
    knobs = np.stack([log_lr, log_batch] if batch_varied else [log_lr])
    directions, features = _directions(inside)
    middle = knobs.mean(axis=1)
    curvature, moved = _bowl(knobs - middle[:, None], features, inside)
    slopes = np.linalg.solve(curvature, moved)
    bottom = slopes @ directions
    bottom[:, 0] += middle
    _check_inside(bottom, inside)
    return RateLaw(bottom, curvature, batch_varied, int(inside.cell.max()) + 1, len(inside.loss))


def _bowl(knobs: Array, features: Array, inside: RateGrid) -> tuple[Array, Array]:
    """H and H times the bottom's coefficients on the features, by least squares on ln L."""
    count, cells = len(knobs), int(inside.cell.max()) + 1
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    squares = [knobs[i] * knobs[j] * (0.5 if i == j else 1.0) for i, j in pairs]
    moved = [-knobs[i] * feature for i in range(count) for feature in features]
    design = np.stack([*np.eye(cells)[:, inside.cell], *squares, *moved], axis=1)
    different = len(np.unique(inside.setting))
    if different <= design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(
            f"{different} different settings within {BOWL_SHARE:.1%} of the lowest loss of their size are too few to "
            f"fit {design.shape[1]} constants; run more learning rates around the best"
        )
    solution = np.linalg.lstsq(design, np.log(inside.loss), rcond=None)[0]
    curvature = np.zeros((count, count))
    for (i, j), value in zip(pairs, solution[cells:], strict=False):
        curvature[i, j] = curvature[j, i] = value
    if np.linalg.eigvalsh(curvature).min() <= 0:
        raise ValueError("the loss has no minimum among these learning rates and batches; run a wider range")
    return curvature, solution[cells + len(pairs) :].reshape(count, len(features))


def _directions(inside: RateGrid) -> tuple[Array, Array]:
    """What the bottom may move along: (features, 3) in (1, ln size, ln tokens), and its values, (features, runs).

    Size and tokens where they vary by themselves, compute where they vary together, a constant where few cells do or
    all have one compute.
    """
    _, first = np.unique(inside.cell, return_index=True)
    logs = np.stack([np.log(inside.size), np.log(inside.tokens)])
    at = logs[:, first]
    still = np.ptp(at, axis=1) < BUDGET_TOLERANCE
    rows: list[Array] = []
    if len(first) >= 3 and still.any():
        rows = [row for row, same in zip(np.eye(2), still, strict=True) if not same]
    elif len(first) >= 3:
        apart = len(first) >= 4 and abs(np.corrcoef(at)[0, 1]) < _MAX_CORRELATION
        rows = list(np.eye(2)) if apart else [np.ones(2)] if np.ptp(at.sum(axis=0)) > BUDGET_TOLERANCE else []
    centre = at.mean(axis=1)
    directions = np.array([[1.0, 0.0, 0.0], *([-float(row @ centre), *row] for row in rows)])
    return directions, directions @ np.vstack([np.ones(logs.shape[1]), logs])


def _check_inside(bottom: Array, inside: RateGrid) -> None:
    """ValueError where in every cell the best rate or batch lies beyond those that were run: an extrapolation."""
    at = np.stack([np.ones_like(inside.size), np.log(inside.size), np.log(inside.tokens)])
    for name, row, values in zip(("learning rate", "batch"), bottom, (inside.lr, inside.batch), strict=False):
        best = np.exp(row @ at)
        cells = [inside.cell == one for one in np.unique(inside.cell)]
        if not any(values[cell].min() <= best[cell][0] <= values[cell].max() for cell in cells):
            raise ValueError(f"the best {name} lies beyond those that were run; run a wider range")


def _varies(values: Array, cell: NDArray[np.int64]) -> bool:
    """Whether the values take three different levels inside some cell."""
    return any(len(np.unique(_level(values[cell == one]))) >= _MIN_LEVELS for one in np.unique(cell))


def _level(values: Array) -> NDArray[np.int64]:
    """Number of each value's level, from the lowest."""
    numbers = np.zeros(len(values), np.int64)
    for number, members in enumerate(budget_groups(values, LEVEL_TOLERANCE) if len(values) else []):
        numbers[members] = number
    return numbers


def _number(*levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of each run's combination of levels."""
    return np.asarray(np.unique(np.stack(levels), axis=1, return_inverse=True)[1]).reshape(-1)


def _settings_in_cell(grid: RateGrid) -> NDArray[np.int64]:
    """How many different settings were run in each run's cell."""
    counts = np.bincount(
        [cell for cell, _ in {*zip(grid.cell.tolist(), grid.setting.tolist(), strict=True)}], minlength=1
    )
    return counts[grid.cell]


def _features(size: float, tokens: float) -> Array:
    return np.array([1.0, np.log(size), np.log(tokens)])


def _monomial(row: Array) -> Monomial:
    constant, on_size, on_tokens = (float(x) for x in row)
    powers = {"flop_per_token": on_size, "tokens": on_tokens}
    return Monomial.model_validate(
        {"coefficient": float(np.exp(constant)), "exponents": {k: v for k, v in powers.items() if v}}
    )
