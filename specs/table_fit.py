"""What a table of finished runs says: isoFLOP profiles, the law, best splits, forecasts, and a test of these.

N parameters or M FLOP per token: the size, as the table counts it    D tokens    C compute (FLOP) = c x size x D, with
c = 6 for parameters and 1 for FLOP per token    L loss (nats per token)
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from specs.document.base import Sha256, Spec
from specs.humanize import Losses
from specs.law import Band, Interval, LossUnit, SizeKind

FlagKind = Literal[
    "compute",
    "excluded run",
    "diverged run",
    "one budget",
    "few budgets",
    "single ray",
    "open split",
    "unbracketed minimum",
    "short runs",
    "repeated text",
    "no backtest",
    "curves",
    "sweep",
]


class TableSource(Spec):
    """The table, and in which units it counts."""

    path: str
    """The file, as it was named; `table` where a program gave the columns."""
    sha256: Sha256
    """Of the file's bytes, or of the columns as JSON where a program gave them."""
    columns: dict[str, str]
    """The table's column for each quantity that was found."""
    size_kind: SizeKind
    """What its sizes count: all parameters, those without embeddings, or FLOP per token."""
    flop_per_size_token: float = Field(gt=0)
    """c: the FLOP that one unit of size costs per token."""
    loss_unit: LossUnit
    """Unit of its losses. All losses of this document are in nats per token."""
    bytes_per_token: float | None
    """Bytes of a token of its text; null where it is not known."""
    notes: tuple[str, ...]
    """What was assumed or skipped when it was read."""

    @property
    def symbol(self) -> str:
        """The letter of its size."""
        return "M" if self.size_kind == "flop_per_token" else "N"

    @property
    def size_name(self) -> str:
        """What its size counts, in words."""
        names = {
            "params": "parameters",
            "block_params": "non-embedding parameters",
            "flop_per_token": "FLOP per token",
        }
        return names[self.size_kind]

    @property
    def compute_formula(self) -> str:
        """What C is: `6 N D`."""
        factor = "" if self.flop_per_size_token == 1 else f"{self.flop_per_size_token:g} "
        return f"{factor}{self.symbol} D"

    @property
    def losses(self) -> Losses:
        """How its losses are shown: in its own unit."""
        per_byte = self.bytes_per_token if self.loss_unit == "bits/byte" else None
        return Losses(per_byte, per_token_in_bits=self.loss_unit == "bits/token")


class CurvesSource(Spec):
    """The training curves that were given beside the table; their points are drawn, and not part of this document."""

    path: str
    """The file, as it was named."""
    sha256: Sha256
    """Of the file's bytes."""
    columns: dict[str, str]
    """The file's column for each quantity that was found."""
    held_out: bool | None
    """Whether its losses are of held-out text; false: of the training text; null: their column does not say."""
    runs: int
    """Runs of the table that have a curve."""
    points: int
    """Points of these curves."""
    notes: tuple[str, ...]
    """What was assumed or skipped, and which runs and curves have no counterpart."""


class TableRun(Spec):
    """One run of the table."""

    name: str
    """Its name, or its line."""
    line: int
    """Line of the file that it stands in."""
    size: float
    """N or M."""
    tokens: float
    """D."""
    compute_flop: float
    """C."""
    budget: int
    """Number of its compute, from 0, smallest first; within 5 % they are the same."""
    loss: float
    """L, nats per token."""
    short: bool
    """It had under 1000 steps."""
    diverged: bool
    """Its loss is far off what all others say; nothing is fitted on it."""
    lr: float | None
    """Peak learning rate; null where the table has none."""
    batch_tokens: float | None
    """Tokens of a step; null where the table has none."""
    residual: float | None
    """Its loss over that of the law, less one; null without a law."""


class SizeProfile(Spec):
    """Parabola of ln L in ln(size) through the runs of one budget."""

    budget: int
    """Number of its compute, as its runs have it."""
    compute_flop: float
    """C: the geometric mean of its runs'."""
    runs: int
    """Number of its runs."""
    bracketed: bool
    """Runs lie on both sides of a true minimum."""
    reason: str
    """Why it is not bracketed; empty where it is."""
    curvature: float
    """Second derivative of ln L in ln(size): positive for a valley."""
    size: float
    """Size at the lowest point within its runs."""
    size_factor_95: float | None
    """The 95 % interval of that size is from size / factor to size x factor; null where the runs cannot tell."""
    tokens: float
    """Tokens there."""
    loss: float
    """Loss there."""


class LawMember(Spec):
    """One member of the mixture: a form of the loss law, fitted on all runs or on those of the largest compute."""

    form: str
    """Name of the form."""
    window_decades: float | None
    """It is fitted on the runs of this many decades of compute, the third largest run's at the top, and those above;
    null for all runs."""
    latex: str
    """The form as LaTeX."""
    weight: float = Field(ge=0, le=1)
    """Its share in every forecast."""
    held_out_error: float | None
    """Mean absolute relative error on held-out larger budgets, fitted on the smaller ones; null where no budget could
    be held out."""
    constants: dict[str, Interval]
    """Constants of its draws: median with 95 % interval."""


class SplitExponents(Spec):
    """How the best split moves with compute."""

    size: Interval
    """a of best size ~ C^a."""
    tokens: Interval
    """b of best tokens ~ C^b; a + b = 1."""


class BestSplit(Spec):
    """The compute-optimal split of one compute by all members together: medians with 95 % intervals."""

    compute_flop: float
    """C."""
    size: Interval
    """Best size."""
    tokens: Interval
    """Best tokens."""
    tokens_per_size: Interval
    """D over size there."""
    loss: Interval
    """Loss there, without the noise of a run."""
    run: Band
    """Loss of one run of the median size with this compute: noise and error of the extrapolation included."""


class LossSurface(Spec):
    """The loss of the law, without a run's noise, on a grid of compute and size."""

    compute_flop: tuple[float, ...]
    """C, from the smallest of the table to 100 times its largest."""
    size: tuple[float, ...]
    """N or M."""
    loss: tuple[tuple[float, ...], ...]
    """L at each size, a row each, and each compute: the median of the law's draws."""


class ConventionSplit(Spec):
    """A best split as it comes out in one convention of N and C."""

    at: str
    """Which compute: of the largest run, or a target."""
    compute_flop: float
    """It, as the convention counts it."""
    size: Interval
    """Best size, as the convention counts it."""
    tokens: Interval
    """Best tokens."""
    tokens_per_size: Interval
    """D over size there."""


class Convention(Spec):
    """The law fitted once more, with size or compute counted in another way that the table allows."""

    name: str
    """How it counts: `N non-embedding parameters, C = 6 N D`."""
    size_kind: SizeKind
    """What its sizes count."""
    exponents: SplitExponents
    """How the best split moves."""
    splits: tuple[ConventionSplit, ...]
    """At the largest compute of the table, and at each target."""


class TableForecast(Spec):
    """The forecast of one run that was asked for."""

    target: str
    """What was asked for."""
    size: float
    """N or M."""
    tokens: float
    """D."""
    compute_flop: float
    """C."""
    loss: Band
    """Final loss of one run."""
    extrapolation: float
    """C over the largest of the table; at least 1."""
    noise_sd: float
    """Standard deviation of ln L from run to run, part of the band."""
    extrapolation_sd: float
    """Standard deviation of ln L that the distance from the table's runs adds, part of the band."""
    split: BestSplit | None
    """Where a compute was asked for: its best split. Null where size and tokens were given."""


class BacktestRun(Spec):
    """One held-out run: what was forecast without it, and what it came to."""

    name: str
    """Its name, or its line."""
    line: int
    """Line of the file."""
    size: float
    """N or M."""
    tokens: float
    """D."""
    compute_flop: float
    """C."""
    forecast: Band
    """From the smaller runs alone."""
    measured: float
    """Its loss."""
    error: float
    """Measured over forecast, less one."""
    inside_50: bool
    """It is in the 50 % band."""
    inside_95: bool
    """It is in the 95 % band."""


class Backtest(Spec):
    """A forecast of the table's own largest runs from the others, which are all that it was fitted on."""

    decades: float
    """All runs of this many decades of compute below the largest are held out."""
    fitted_runs: int
    """Runs that it was fitted on."""
    fitted_to_flop: float
    """The largest compute among these."""
    mean_error: float
    """Mean |ln(measured / forecast)|."""
    bias: float
    """Mean ln(measured / forecast): positive where the runs came out worse than forecast."""
    coverage_50: float
    """Share of the runs in their 50 % band."""
    coverage_95: float
    """Share of the runs in their 95 % band."""
    interval_score: float
    """Of the 95 % band in ln L, lower is better: its width, plus 40 times what a run lies outside (Gneiting & Raftery
    2007, JASA 102:359, Eq. 43)."""
    runs: tuple[BacktestRun, ...]
    """The held-out runs, largest compute first."""

    @property
    def window_text(self) -> str:
        """What is held out: `0.5 decades`."""
        return f"{self.decades:g} {'decade' if self.decades == 1 else 'decades'}"


class Flag(Spec):
    """What weakens the evidence, and what follows from it."""

    kind: FlagKind
    """Which weakness."""
    message: str
    """The finding, its consequence, and what would help."""


def is_open_split(flags: Sequence[Flag]) -> bool:
    """Whether the runs leave open how to split compute."""
    return any(flag.kind in ("open split", "single ray") for flag in flags)


class TableFit(Spec):
    """Everything that a table of runs says."""

    table: TableSource
    """The table."""
    runs: tuple[TableRun, ...]
    """Its runs, in its order."""
    budgets: int
    """Different computes among its runs; within 5 % they are the same."""
    profiles: tuple[SizeProfile, ...]
    """Of every budget with three sizes or more, smallest first."""
    members: tuple[LawMember, ...]
    """The mixture, largest weight first; empty without a forecast."""
    held_out_error: float | None
    """Of the mixture on held-out larger budgets; null where no budget could be held out."""
    exponents: SplitExponents | None
    """How the best split moves; null without a forecast."""
    splits: tuple[BestSplit, ...]
    """Best splits from the smallest compute of the table to 100 times its largest; empty without a forecast."""
    surface: LossSurface | None
    """For contours of equal loss; null without a forecast."""
    conventions: tuple[Convention, ...]
    """The same law in every convention of N and C that the table allows, its own first; empty where that is the only
    one or the runs leave the split open."""
    forecasts: tuple[TableForecast, ...]
    """One for each target."""
    no_forecast: str | None
    """Why there is no law, and so no forecast; null where there is one."""
    backtests: tuple[Backtest, ...]
    """What it would have said of its own largest runs, before them."""
    curves: CurvesSource | None
    """Training curves of its runs; null where none were given."""
    flags: tuple[Flag, ...]
    """What weakens the evidence."""

    @property
    def every_note(self) -> tuple[str, ...]:
        """What was assumed or skipped when the table and its curves were read."""
        own = () if self.curves is None else self.curves.notes
        return (*self.table.notes, *(f"curves: {note}" for note in own))

    @property
    def largest_flop(self) -> float:
        """The largest compute of the table."""
        return max(run.compute_flop for run in self.runs)

    @property
    def open_split(self) -> bool:
        """Whether the runs leave open how to split compute."""
        return is_open_split(self.flags)
