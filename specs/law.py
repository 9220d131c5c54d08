"""Laws: published ones with their source, and the fit on the user's own ledger, evidence and errors included.

C compute (FLOP)    M non-embedding FLOP per token    N parameters in blocks    D tokens    L loss (nats per token)
"""

from typing import Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from specs.document.base import Fingerprint, Slug, Spec
from specs.evidence import EvidenceFile, EvidencePoint
from specs.optim import MultiStep, Schedule

Variable = Literal["compute_flop", "flop_per_token", "block_params", "tokens", "width"]
SizeKind = Literal["params", "block_params", "flop_per_token"]
"""What a size counts: all parameters, those in blocks (without embeddings), or non-embedding FLOP per token."""
LossUnit = Literal["nats/token", "bits/token", "bits/byte"]
"""Units of a loss."""
FLOP_PER_SIZE_TOKEN: dict[SizeKind, float] = {"params": 6.0, "block_params": 6.0, "flop_per_token": 1.0}
"""FLOP that one unit of size costs per trained token (Kaplan et al. 2020, Table 1: C = 6 N D)."""


class Monomial(Spec):
    """coefficient times a product of powers, e.g. 0.3118 C^-0.125."""

    coefficient: float = Field(gt=0)
    """The factor in front."""
    exponents: dict[Variable, float]
    """Exponent of each variable."""

    def at(self, **values: float) -> float:
        """Value for the named variables; KeyError where one is missing."""
        result = self.coefficient
        for variable, exponent in self.exponents.items():
            result *= float(values[variable]) ** exponent
        return result


class Allocation(Spec):
    """How the best model and the best amount of data grow with compute."""

    flop_per_token: Monomial
    """M_opt(C)."""
    tokens: Monomial
    """D_opt(C)."""


class Hyper(Spec):
    """Learning rate and batch size."""

    peak_lr: Monomial
    """Maximum learning rate."""
    batch_tokens: Monomial
    """Tokens per step."""
    regime: str
    """What the batch does while the learning rate follows its law: published laws disagree where this differs."""


class LossLaw(Spec):
    """L = E + A / X^alpha + B / D^beta, with X the size variable."""

    size: Literal["flop_per_token", "block_params", "params"]
    """What X is."""
    E: float = Field(gt=0)
    """Irreducible loss, nats per token."""
    A: float = Field(gt=0)
    """Factor of the size term."""
    B: float = Field(gt=0)
    """Factor of the data term."""
    alpha: float = Field(gt=0)
    """Power of the size."""
    beta: float = Field(gt=0)
    """Power of the tokens."""

    def at(self, size: float, tokens: float) -> float:
        """Loss in nats per token."""
        return float(self.E + self.A * size**-self.alpha + self.B * tokens**-self.beta)


class PublishedLaw(Spec):
    """One published set of laws. What the source does not print is null, never guessed."""

    kind: Literal["law"]
    """Selects this document."""
    name: Slug
    """Name in the catalog."""
    source: str
    """Paper with equation or table."""
    data: Slug
    """The text it was fitted on; its loss holds for no other."""
    compute_low_flop: float = Field(gt=0)
    """Smallest compute it was fitted on."""
    compute_high_flop: float = Field(gt=0)
    """Largest compute it was fitted or checked on."""
    allocation: Allocation | None = None
    """Size and data against compute."""
    hyper: Hyper | None = None
    """Learning rate and batch size."""
    loss: LossLaw | None = None
    """Loss against size and data."""


class Family(Spec):
    """A family of shapes: how depth, heads and feed-forward width follow from the width."""

    kind: Literal["family"]
    """Selects this document."""
    name: Slug
    """Name in the catalog."""
    source: str
    """Whose practice it is."""
    context: int = Field(ge=1)
    """Tokens of a training sequence."""
    mean_attended_tokens: float | None = Field(default=None, gt=0, exclude_if=lambda tokens: tokens is None)
    """As of a run's model; the planner counts it from the text."""
    depths: tuple[tuple[int, int], ...] = Field(min_length=1)
    """(width, layers) pairs of practice, widths increasing; between them depth follows a line in log-log. No shape is
    deeper than 126 layers, or the deepest of these."""
    width_multiple: int = Field(ge=2)
    """Widths are multiples of this."""
    min_width: int = Field(ge=8)
    """Smallest width."""
    head_dim: int = Field(ge=2)
    """Size of a head, where the number of heads is not fixed."""
    heads: int | None = Field(default=None, ge=1)
    """Heads of every width; null is as many as `head_dim` gives."""
    gqa_from_width: int | None = None
    """Grouped-query attention from this width on; null is never."""
    gqa_kv_heads: int = Field(default=8, ge=1)
    """Key and value heads where queries are grouped."""
    ffn_multiple: int = Field(ge=1)
    """8/3 of the width is rounded to a multiple of this."""
    vocab_multiple: int = Field(default=1, ge=1)
    """The vocabulary is padded to a multiple of this."""
    warmup_steps: int = Field(ge=1)
    """Warmup steps, cut for very short runs."""
    schedule: Schedule = MultiStep(kind="multi-step")
    """How the learning rate falls after the warmup."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary angles (LLaMA's, for contexts of thousands of tokens); short contexts want less."""
    min_steps: int = Field(ge=1)
    """Runs shorter than this are flagged: their loss has not settled."""
    init_std: float = Field(gt=0)
    """Standard deviation of the initial weights."""
    curve_tokens: int = Field(ge=1)
    """Held-out tokens of one point of the curve; the same for every size, so that runs compare."""
    final_tokens: int = Field(ge=1)
    """Held-out tokens of the last evaluation."""


class Interval(Spec):
    """An estimate with the ends of its 95 % interval."""

    value: float
    """The estimate."""
    low: float
    """2.5 % end."""
    high: float
    """97.5 % end."""


class Band(Spec):
    """A forecast of one number: median, 50 % and 95 % bands. A loss's come from planner/scaling/model_averaging.py."""

    median: float
    """Half of the probability lies below."""
    low_50: float
    """Lower quartile."""
    high_50: float
    """Upper quartile."""
    low_95: float
    """2.5 % end."""
    high_95: float
    """97.5 % end."""

    def inside_95(self, value: float) -> bool:
        """Whether the value lies in the 95 % interval."""
        return self.low_95 <= value <= self.high_95


class IsoflopProfile(Spec):
    """Parabola of ln L in ln(size) through the runs of one budget."""

    compute_flop: float
    """The budget."""
    coefficients: tuple[float, float, float] | None
    """c0, c1, c2 of ln L = c0 + c1 x + c2 x^2 with x = ln(size); null where the parabola has no lowest point inside."""
    size: float
    """Size at the minimum, as the fit's `size_kind` says."""
    tokens: float
    """D at the minimum."""
    loss: float
    """Loss at the minimum, nats per token."""
    bracketed: bool
    """The minimum lies inside the sizes that were tried, and the parabola opens upwards."""


class FormScore(Spec):
    """One member of the mixture that forecasts: a form of the loss law, fitted on all runs or on the largest of them.

    Exponents and floor drift with scale, so a form that has seen the largest runs only may predict larger ones better.
    """

    form: str
    """Name of the form; members of several windows have the same."""
    window_decades: float | None
    """It is fitted on the runs of this many decades of compute, the third largest run's at the top, and those above;
    null for all runs."""
    latex: str
    """The form as LaTeX."""
    held_out_error: float | None
    """Mean absolute relative error on held-out larger budgets, fitted on the smaller ones; null where no budget could
    be held out."""
    weight: float = Field(ge=0, le=1)
    """Its share in the forecast: a prior weight times the density that it gave to the held-out runs."""
    constants: dict[str, Interval]
    """Constants of its draws: their median with 95 % interval."""
    forecast: float
    """Loss it predicts for the target, nats per token."""


class Optimum(Spec):
    """The best split of a compute by all members together, each with its weight: medians with 95 % intervals.

    The allocation, which comes from the isoFLOP minima, is kept inside the interval of M*, unless the runs leave the
    split open (a flag says so).
    """

    compute_flop: float
    """C, the target's."""
    flop_per_token: Interval
    """M*."""
    block_params: Interval
    """N*, in blocks: M* times N / M of the target's shape."""
    tokens: Interval
    """D* = C / M*, repeats among them where the text has fewer."""
    tokens_per_block_param: Interval
    """D* / N*."""
    loss: Interval
    """L*, without the noise of a run, nats per token."""


class RateCheck(Spec):
    """The learning-rate check: the same run at several peak learning rates."""

    run: Fingerprint
    """The run at the law's own rate."""
    multiples: tuple[float, ...]
    """Multiples of the law's learning rate that were tried, each once, without runs that learned nothing."""
    losses: tuple[float, ...]
    """Their final held-out losses, nats per token; of several seeds the geometric mean."""
    best_multiple: float
    """Minimum of a parabola of ln L in ln lr through the best rate and its neighbours, or the best rate tried."""
    bracketed: bool
    """The best is the minimum of a parabola."""
    reason: str
    """Why the best is a rate that was tried: it is at an edge, or a neighbour is too far; empty for a parabola's."""
    near_optimal: bool
    """The law's own rate is within 0.25 % of the best loss (near-optimal by DeepSeek LLM, section 3.1)."""


class LawFit(Spec):
    """The fit on the runs of a ledger or a table: evidence, profiles, forms with their held-out errors, and the laws
    used."""

    size_kind: SizeKind
    """What the sizes of runs, profiles and forms count. The ledger's runs are fitted in M, a table's in its own N or M;
    a shape is then counted the same way."""
    evidence: EvidenceFile
    """The runs that are used, in a file of their own; diverged ones are named in `flags`."""
    points: SkipJsonSchema[tuple[EvidencePoint, ...]] = Field(default=(), exclude=True)
    """The runs that are used, in the order of the fit: the lines of `evidence.jsonl`, and no part of the plan's own
    file."""
    profiles: tuple[IsoflopProfile, ...]
    """isoFLOP profiles, by budget."""
    allocation: Allocation
    """M_opt(C) and D_opt(C) that the plan uses, inside the interval of `optimum` at the target's compute."""
    allocation_basis: str
    """Where that allocation comes from."""
    forms: tuple[FormScore, ...]
    """The members of the forecast's mixture, largest weight first."""
    held_out_error: float | None
    """Mean absolute relative error of the members together, each with its weight, on held-out larger budgets; null
    where the runs allow none to be held out, and the weights are the prior's."""
    optimum: Optimum | None
    """The best split of the target's compute; null where the runs carry no forecast."""
    rate_check: RateCheck | None
    """The learning-rate check; null where there was none."""
    flags: tuple[str, ...]
    """Warnings: runs that are not used and why, diverged runs among them, unbracketed minima, short runs, missing
    evidence."""

    @property
    def flop_per_size_token(self) -> float:
        """FLOP that a unit of size costs per token in the fit: 1 for M, 6 for N."""
        return FLOP_PER_SIZE_TOKEN[self.size_kind]

    @property
    def symbol(self) -> str:
        """The letter of the size: M or N."""
        return "M" if self.size_kind == "flop_per_token" else "N"
