"""What other tools make of the same rows: scipy's BFGS with an analytic gradient, and PyPI's `chinchilla`.

`chinchilla` is no dependency of ours. To compare, install it somewhere and show the way:
`pip install --target DIR chinchilla==0.2.0`, then `PYTHONPATH=DIR python -m bench.laws`.
"""

import importlib.util
import tempfile
import time
from functools import partial

import numpy as np

from bench.bootstrap import resampled_counts
from bench.log_huber import FormFit
from planner.scaling.laws import Array

CHINCHILLA_GRID = {
    "e": np.linspace(-1, 1, 5),
    "a": np.linspace(0, 25, 6),
    "b": np.linspace(0, 25, 6),
    "alpha": np.linspace(0, 2, 5),
    "beta": np.linspace(0, 2, 5),
}
"""The 4500 starts of Hoffmann et al. 2022, appendix D.3, in chinchilla's own words."""


def has_chinchilla() -> bool:
    """Whether the package can be imported here."""
    return importlib.util.find_spec("chinchilla") is not None


def chinchilla_fit(size: Array, tokens: Array, loss: Array, delta: float) -> tuple[float, tuple[float, ...]]:
    """Seconds and (E, A, B, alpha, beta) of chinchilla's fit by log-Huber, in all of this machine's processes."""
    from chinchilla import Chinchilla  # type: ignore[import-not-found, unused-ignore]
    from chinchilla._metrics import log_huber  # type: ignore[import-not-found, unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        peer = Chinchilla(
            folder, param_grid=CHINCHILLA_GRID, loss_fn=partial(log_huber, delta=delta), log_level=100
        )
        for n, d, nats in zip(size, tokens, loss, strict=True):
            peer.database.append(N=float(n), D=float(d), loss=float(nats))
        peer.visualizer.optim = lambda *args, **options: None  # its picture is not part of the fit
        start = time.perf_counter()
        peer.fit()
        seconds = time.perf_counter() - start
    return seconds, tuple(float(x) for x in (peer.E, peer.A, peer.B, peer.alpha, peer.beta))


def bfgs_on_same_draws(fitted: FormFit, draws: int, count: int) -> tuple[float, Array]:
    """Seconds and objectives of scipy's BFGS with analytic gradient, one after the other, on the first `count` of
    bootstrap's `draws` resamples (seed 0) of a fit of the standard law."""
    from scipy.optimize import minimize

    weights = resampled_counts(fitted.size, fitted.tokens, draws, 0, len(fitted.params))[:count]
    log_size, log_tokens, log_loss = np.log(fitted.size), np.log(fitted.tokens), np.log(fitted.loss)
    delta = 1e-3

    def value_and_gradient(state: Array, weight: Array) -> tuple[float, Array]:
        e, a, b, alpha, beta = np.exp(state[0]), state[1], state[2], np.exp(state[3]), np.exp(state[4])
        from_size, from_data = np.exp(a - alpha * log_size), np.exp(b - beta * log_tokens)
        total = e + from_size + from_data
        residual = log_loss - np.log(total)
        inside = np.abs(residual) <= delta
        loss = np.where(inside, 0.5 * residual**2, delta * (np.abs(residual) - 0.5 * delta))
        pull = weight * np.where(inside, residual, delta * np.sign(residual)) / total
        gradient = [
            pull.sum() * e,
            pull @ from_size,
            pull @ from_data,
            -(pull @ (from_size * log_size)) * alpha,
            -(pull @ (from_data * log_tokens)) * beta,
        ]
        return float(weight @ loss), -np.array(gradient)

    start_at, start = np.log(fitted.params), time.perf_counter()
    found = [minimize(value_and_gradient, start_at, args=(w,), jac=True, method="BFGS").fun for w in weights]
    return time.perf_counter() - start, np.array(found)
