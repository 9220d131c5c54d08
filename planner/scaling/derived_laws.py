"""Gradients, best sizes and LaTeX of the laws, as sympy derives them from laws.py; `make generate` writes it.

Each function is what `laws.derive_*` of that law gives, and a test holds them equal.
"""

from collections.abc import Callable
from typing import Any

from numpy import exp, log


def _standard_log_value_and_gradient(
    log_X: Any, log_D: Any, log_E: Any, log_A: Any, log_B: Any, log_alpha: Any, log_beta: Any
) -> Any:
    x0 = exp(log_E)
    x1 = log_X * exp(log_alpha)
    x2 = exp(log_A - x1)
    x3 = log_D * exp(log_beta)
    x4 = exp(log_B - x3)
    x5 = x0 + x2 + x4
    x6 = x5 ** (-1.0)
    x7 = x2 * x6
    x8 = x4 * x6
    return [log(x5), x0 * x6, x7, x8, -x1 * x7, -x3 * x8]


def _standard_optimal_log_size(log_T: Any, log_c: Any, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    return (beta * log_T + log(A * alpha / (B * beta))) / (alpha + beta)


def _tied_log_value_and_gradient(
    log_X: Any, log_D: Any, log_E: Any, log_A: Any, log_B: Any, log_alpha: Any
) -> Any:
    x0 = exp(log_E)
    x1 = exp(log_alpha)
    x2 = log_X * x1
    x3 = exp(log_A - x2)
    x4 = log_D * x1
    x5 = exp(log_B - x4)
    x6 = x0 + x3 + x5
    x7 = x6 ** (-1.0)
    return [log(x6), x0 * x7, x3 * x7, x5 * x7, x7 * (-x2 * x3 - x4 * x5)]


def _tied_optimal_log_size(log_T: Any, log_c: Any, E: Any, A: Any, B: Any, alpha: Any) -> Any:
    return (1 / 2) * (alpha * log_T + log(A / B)) / alpha


def _coupled_log_value_and_gradient(
    log_X: Any, log_D: Any, log_E: Any, log_A: Any, log_B: Any, log_alpha: Any, log_beta: Any, log_k: Any
) -> Any:
    x0 = exp(log_E)
    x1 = log_X * exp(log_alpha)
    x2 = exp(log_A - x1)
    x3 = log_D * exp(log_beta)
    x4 = exp(log_B - x3)
    x5 = x2 + x4
    x6 = exp(log_k)
    x7 = x5**x6
    x8 = x0 + x7
    x9 = x8 ** (-1.0)
    x10 = x6 * x7 * x9
    x11 = x10 / x5
    x12 = x11 * x2
    x13 = x11 * x4
    return [log(x8), x0 * x9, x12, x13, -x1 * x12, -x13 * x3, x10 * log(x5)]


def _coupled_optimal_log_size(
    log_T: Any, log_c: Any, E: Any, A: Any, B: Any, alpha: Any, beta: Any, k: Any
) -> Any:
    return (beta * log_T + log(A * alpha / (B * beta))) / (alpha + beta)


def _isoflop_valley_log_value_and_gradient(
    log_X: Any, log_C: Any, log_E: Any, log_K: Any, log_gamma: Any, log_Q: Any, log_a: Any, log_kappa: Any
) -> Any:
    x0 = exp(log_E)
    x1 = log_C * exp(log_gamma)
    x2 = exp(log_K - x1)
    x3 = x0 + x2
    x4 = log_C * exp(log_a)
    x5 = log_Q + log_X - x4
    x6 = exp(log_kappa)
    x7 = (1 / 2) * x6
    x8 = x5**2 * x7
    x9 = x3 ** (-1.0)
    x10 = x2 * x9
    return [
        log(x3 * exp(x8)),
        x0 * x9,
        x10,
        -x1 * x10,
        x7 * (2 * log_Q + 2 * log_X - 2 * x4),
        -x4 * x5 * x6,
        x8,
    ]


def _isoflop_valley_optimal_log_size(
    log_T: Any, log_c: Any, E: Any, K: Any, gamma: Any, Q: Any, a: Any, kappa: Any
) -> Any:
    return a * log_T + a * log_c - log(Q)


LOG_VALUE_AND_GRADIENT: dict[str, Callable[..., Any]] = {
    "standard": _standard_log_value_and_gradient,
    "tied": _tied_log_value_and_gradient,
    "coupled": _coupled_log_value_and_gradient,
    "isoFLOP valley": _isoflop_valley_log_value_and_gradient,
}
"""By name of the form."""

OPTIMAL_LOG_SIZE: dict[str, Callable[..., Any]] = {
    "standard": _standard_optimal_log_size,
    "tied": _tied_optimal_log_size,
    "coupled": _coupled_optimal_log_size,
    "isoFLOP valley": _isoflop_valley_optimal_log_size,
}
"""By name of the form."""

LATEX = {
    ("standard", "M"): "L = A M^{- \\alpha} + B D^{- \\beta} + E",
    ("standard", "N"): "L = A N^{- \\alpha} + B D^{- \\beta} + E",
    ("tied", "M"): "L = A M^{- \\alpha} + B D^{- \\alpha} + E",
    ("tied", "N"): "L = A N^{- \\alpha} + B D^{- \\alpha} + E",
    ("coupled", "M"): "L = E + \\left(A M^{- \\alpha} + B D^{- \\beta}\\right)^{k}",
    ("coupled", "N"): "L = E + \\left(A N^{- \\alpha} + B D^{- \\beta}\\right)^{k}",
    (
        "isoFLOP valley",
        "M",
    ): "L = \\left(E + C^{- \\gamma} K\\right) e^{\\frac{\\kappa \\log{\\left(C^{- a} M Q \\right)}^{2}}{2}}",
    (
        "isoFLOP valley",
        "N",
    ): "L = \\left(E + C^{- \\gamma} K\\right) e^{\\frac{\\kappa \\log{\\left(C^{- a} N Q \\right)}^{2}}{2}}",
}
"""By name of the form and letter of its size."""
