"""The loss curve under another learning-rate schedule: annealing laws, fitted on curves, predict other schedules.

By an annealing law the loss falls along a power law while the learning rate is constant, and additionally after every
drop of it, over some time:

    L(t) = L0 + A P(t)^-alpha - B sum_k d_k G_k(t)      P(t) = sum_{i <= t} eta_i^p

with eta the learning rate in units of its peak, d_k = eta_{k-1} - eta_k the drops after the warmup, and G_k(t) from 0
to 1 the share of drop k's gain that is reached by step t. Published laws take p = 1. With p = 1/2 they extrapolate
better, to longer runs and from one drop to another (bench/curves.py). The reason: once updates and weight decay are in
balance, AdamW rotates the weights by sqrt(2 eta lambda) a step (Kosson et al. 2023, arXiv 2305.17212), so that progress
grows with the root.

Legend: L held-out loss (nats per token), S sum of eta since a drop, n steps since a drop, both in thousands.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.scaling.levenberg_marquardt import HUBER_DELTA

Array = NDArray[np.float64]

_DROPS = 256
"""A smooth schedule's drops are merged into this many equal ones; more change no prediction by 1e-5."""
_LOG_BOUND = 25.0
"""Log-constants stay within +-25 of unit scale, so that no power overflows."""


@dataclass(frozen=True)
class Trace:
    """A loss curve and its learning-rate schedule."""

    lr: Array
    """(steps,) learning rate of every update, from the first."""
    step: NDArray[np.int64]
    """(points,) finished steps, 1 to steps. Points inside the warmup are not used."""
    loss: Array
    """(points,) nats per token."""


@dataclass(frozen=True)
class _ScheduleView:
    """A law's variables of a schedule at some points; eta in units of `peak_lr`, sums in thousands of steps."""

    progress: Array
    """(points,) P."""
    drop: Array
    """(drops,) d_k."""
    eta: Array
    """(drops,) learning rate after the drop."""
    area: Array
    """(points, drops) S."""
    age: Array
    """(points, drops) n."""


@dataclass(frozen=True)
class AnnealingLaw:
    """One law: how progress depends on the learning rate, and how fast the gain of a drop is reached."""

    name: str
    power: float
    """p."""
    kernel_constants: tuple[str, ...]
    """Constants of G, all positive, in thousands of steps."""
    kernel: Callable[[Array, _ScheduleView], Array]
    """kernel(constants, view) -> G, (points, drops)."""
    source: str

    @property
    def constants(self) -> tuple[str, ...]:
        """Names in the order of every parameter vector."""
        return ("L0", "A", "alpha", "B", *self.kernel_constants)


def _exponential(constants: Array, view: _ScheduleView) -> Array:
    return np.asarray(1 - np.exp(-constants[0] * view.age))


def _power(constants: Array, view: _ScheduleView) -> Array:
    c, beta, gamma = constants
    return np.asarray(1 - (1 + c * view.eta**-gamma * view.area) ** -beta)


MOMENTUM = AnnealingLaw(
    "momentum",
    1.0,
    ("rate",),
    _exponential,
    "Tissue et al. 2024 (arXiv 2408.11029); their lambda is exp(-rate / 1000), their C is B (1 - lambda)",
)
MULTI_POWER = AnnealingLaw(
    "multi-power", 1.0, ("C", "beta", "gamma"), _power, "Luo et al. 2025 (arXiv 2503.12811)"
)
ROOT = AnnealingLaw(
    "root", 0.5, ("rate",), _exponential, "the momentum law with progress by the root of the learning rate"
)
LAWS = (MOMENTUM, MULTI_POWER, ROOT)


@dataclass(frozen=True)
class AnnealingFit:
    """A law's constants, and how well they do on the curves they were fitted on."""

    law: AnnealingLaw
    params: Array
    """In the order of law.constants."""
    peak_lr: float
    """The learning rate that is called 1."""
    objective: float
    """Summed Huber (delta 1e-3) of the residuals of ln L."""
    held: Mapping[str, float] = field(default_factory=dict)
    """Constants that were fixed, not fitted."""

    @property
    def constants(self) -> dict[str, float]:
        """Constants by name."""
        return dict(zip(self.law.constants, self.params.tolist(), strict=True))

    def predict(self, lr: ArrayLike, steps: ArrayLike) -> Array:
        """Loss after these finished steps under a schedule (learning rate of every update), nats per token."""
        rates, step = np.asarray(lr, float), np.asarray(steps, np.int64)
        _check_steps(rates, step, "")
        return np.asarray(
            np.exp(_log_loss(self.law, self.params, _view(self.law, rates, step, self.peak_lr)))
        )


def fit_annealing(
    traces: Sequence[Trace], law: AnnealingLaw = ROOT, *, held: Mapping[str, float] | None = None
) -> AnnealingFit:
    """The law's constants for curves of one model, by summed log-Huber from a grid of starts.

    `held` fixes constants that are known from elsewhere, as B and the kernel's from another run's drop. ValueError
    if these are to be fitted and no curve has a drop.
    """
    held = dict(held or {})
    for name in held:
        if name not in law.constants:
            raise ValueError(
                f"the {law.name} law has no constant {name}; its constants are {', '.join(law.constants)}"
            )
    for i, trace in enumerate(traces):
        _check(trace, i)
    peak_lr = max(float(trace.lr.max()) for trace in traces)
    used = [trace.step > int(np.argmax(trace.lr)) for trace in traces]
    views = [_view(law, t.lr, t.step[keep], peak_lr) for t, keep in zip(traces, used, strict=True)]
    seen = [(view.age > 0).any() for view in views]
    if not any(seen) and not {"B", *law.kernel_constants} <= set(held):
        raise ValueError(
            "no curve has points after a drop of its learning rate; add one that has, or fix the constants of a drop"
        )
    log_loss = np.concatenate([np.log(t.loss[keep]) for t, keep in zip(traces, used, strict=True)])
    starts = _starts(law, float(np.exp(log_loss.min())), held)
    params, objective = _descend(law, views, log_loss, held, starts)
    return AnnealingFit(law, params, peak_lr, objective, held)


def smoothed(trace: Trace, law: AnnealingLaw = ROOT) -> Array:
    """The losses of a curve, smoothed by the law fitted to it, nats per token; those of the warmup are unchanged.

    One curve needs half of the grid's starts, since on 18 tiny runs all starts ended in the same constants
    (docs/log.md). ValueError where the curve has no drop, or is invalid.
    """
    _check(trace, 0)
    peak_lr, used = float(trace.lr.max()), trace.step > int(np.argmax(trace.lr))
    view = _view(law, trace.lr, trace.step[used], peak_lr)
    if not (view.age > 0).any():
        raise ValueError("the curve has no points after a drop of its learning rate")
    starts, loss = _starts(law, float(trace.loss[used].min()), {}), trace.loss.copy()
    params, _ = _descend(law, [view], np.log(loss[used]), {}, starts[: len(starts) // 2])
    loss[used] = np.exp(_log_loss(law, params, view))
    return loss


def _check(trace: Trace, i: int) -> None:
    if trace.step.shape != trace.loss.shape or trace.step.ndim != 1:
        raise ValueError(
            f"curve {i}: step {trace.step.shape} and loss {trace.loss.shape} must be 1-D and of the same length"
        )
    if not (len(trace.step) and trace.step.min() >= 1 and trace.step.max() <= len(trace.lr)):
        raise ValueError(
            f"curve {i}: finished steps must lie in 1 to {len(trace.lr)}, the length of its schedule"
        )
    if not (np.isfinite(trace.loss).all() and trace.loss.min() > 0 and (trace.lr > 0).all()):
        raise ValueError(f"curve {i}: losses and learning rates must be positive and finite")


def _check_steps(lr: Array, step: NDArray[np.int64], where: str) -> None:
    if not (len(step) and step.min() >= 1 and step.max() <= len(lr)):
        raise ValueError(f"{where}finished steps must lie in 1 to {len(lr)}, the length of the schedule")


def _view(law: AnnealingLaw, lr: Array, step: NDArray[np.int64], peak_lr: float) -> _ScheduleView:
    eta = lr / peak_lr
    area = np.concatenate([[0.0], np.cumsum(eta)]) / 1000
    at, drop, after = _drops(eta)
    return _ScheduleView(
        progress=np.cumsum(eta**law.power)[step - 1] / 1000,
        drop=drop,
        eta=after,
        area=np.maximum(area[step][:, None] - np.interp(at, np.arange(len(area)), area), 0.0),
        age=np.maximum(step[:, None] - at, 0.0) / 1000,
    )


def _drops(eta: Array) -> tuple[Array, Array, Array]:
    """Drops after the first peak: finished steps before each, its size (a rise is negative), and eta after it."""
    change = -np.diff(eta)
    change[: int(np.argmax(eta))] = 0.0
    where = np.flatnonzero(change)
    if not len(where):
        return np.zeros(0), np.zeros(0), np.zeros(0)
    size = np.abs(change[where])
    group = np.minimum(np.cumsum(size) / size.sum() * _DROPS, _DROPS - 1e-9).astype(np.int64)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    total = np.add.reduceat(size, starts)
    at = np.add.reduceat(size * (where + 1.0), starts) / total
    after = np.add.reduceat(size * eta[where + 1], starts) / total
    return at, np.add.reduceat(change[where], starts), after


def _log_loss(law: AnnealingLaw, params: Array, view: _ScheduleView) -> Array:
    floor, a, alpha, b = params[:4]
    gained = b * (law.kernel(params[4:], view) @ view.drop)
    return np.asarray(np.log(np.maximum(floor + a * view.progress**-alpha - gained, 1e-6)))


def _starts(law: AnnealingLaw, lowest: float, held: Mapping[str, float]) -> Array:
    """Log-constants: the floor below the lowest loss, exponents and kernels over the range of the papers."""
    kernels = {"rate": (0.5, 2.0, 8.0), "C": (1.0, 10.0, 60.0), "beta": (0.5,), "gamma": (0.6, 1.2)}
    choices = [(0.85 * lowest,), (0.35 * lowest,), (0.45,), (0.04 * lowest, 0.1 * lowest)]
    choices += [kernels[name] for name in law.kernel_constants]
    choices = [(held[name],) if name in held else c for name, c in zip(law.constants, choices, strict=True)]
    grid = np.stack(np.meshgrid(*choices, indexing="ij"), axis=-1).reshape(-1, len(choices))
    return np.asarray(np.log(grid))


def _descend(
    law: AnnealingLaw,
    views: Sequence[_ScheduleView],
    log_loss: Array,
    held: Mapping[str, float],
    starts: Array,
) -> tuple[Array, float]:
    from scipy.optimize import least_squares

    free = np.array([name not in held for name in law.constants])

    def residuals(inner: Array, start: Array) -> Array:
        params = np.exp(np.where(free, 0.0, start))
        params[free] = np.exp(np.clip(inner, -_LOG_BOUND, _LOG_BOUND))
        return np.asarray(log_loss - np.concatenate([_log_loss(law, params, view) for view in views]))

    found = [
        least_squares(residuals, start[free], loss="huber", f_scale=HUBER_DELTA, args=(start,), max_nfev=300)
        for start in starts
    ]
    best = min(range(len(found)), key=lambda i: float(found[i].cost))
    params = np.exp(starts[best])
    params[free] = np.exp(np.clip(found[best].x, -_LOG_BOUND, _LOG_BOUND))
    return params, float(found[best].cost)
