"""The scaling laws, each declared once as plain arithmetic.

A law says what loss a model of a given size reaches after a given number of tokens. Each is one Python
expression in its constants, which numbers, NumPy arrays and sympy symbols all pass through: the value needs
no sympy, while the gradient in log-constants, the LaTeX and the compute-optimal allocation are derived from that
same expression: by sympy, whose import and derivations take .8 s of CPU, so `make generate` writes them into
`derived_laws.py`. The size X is any positive number that grows with the model; the caller decides whether it is
N (parameters) or M (FLOP per token) and says so through `cost_per`, the FLOP that one unit of size costs per
token: 6 for N, 1 for M.

Legend: L loss, X size, D tokens, C compute in FLOP; E floor; A, alpha and B, beta the size and data terms; k
the coupling; K, gamma the frontier; Q, a and kappa the isoFLOP valley around X* = C**a / Q. Every constant is
positive, so fits work on their logarithms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.scaling import derived_laws

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """One law: its expression, the order of its constants, and which of them are powers of what."""

    name: str
    variables: tuple[str, ...]
    """("X", "D") for a law of size and tokens, ("X", "C") of size and compute."""
    constants: tuple[str, ...]
    """Names, in the order of every parameter vector of this form."""
    powers: tuple[tuple[str, str | float, str], ...]
    """(coefficient, exponent, variable) of each factor coefficient * variable**-exponent; the exponent is a
    constant's name or a number."""
    expression: Callable[..., Any]
    """expression(*variables, *constants) -> loss; numbers, arrays or sympy symbols."""
    source: str
    """Paper and equation."""

    def index(self, constant: str) -> int:
        """Position of a constant in this form's parameter vectors."""
        return self.constants.index(constant)


def _standard(X: Any, D: Any, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    return E + A * X**-alpha + B * D**-beta


def _tied(X: Any, D: Any, E: Any, A: Any, B: Any, alpha: Any) -> Any:
    return E + A * X**-alpha + B * D**-alpha


def _coupled(X: Any, D: Any, E: Any, A: Any, B: Any, alpha: Any, beta: Any, k: Any) -> Any:
    return E + (A * X**-alpha + B * D**-beta) ** k


def _valley(X: Any, C: Any, E: Any, K: Any, gamma: Any, Q: Any, a: Any, kappa: Any) -> Any:
    off_optimum = _log(X * Q * C**-a)
    return (E + K * C**-gamma) * _exp(kappa * off_optimum**2 / 2)


def _log(value: Any) -> Any:
    if not hasattr(value, "free_symbols"):
        return np.log(value)
    import sympy

    return sympy.log(value)


def _exp(value: Any) -> Any:
    if not hasattr(value, "free_symbols"):
        return np.exp(value)
    import sympy

    return sympy.exp(value)


_SIZE_AND_DATA = (("A", "alpha", "X"), ("B", "beta", "D"))
STANDARD = Form(
    "standard",
    ("X", "D"),
    ("E", "A", "B", "alpha", "beta"),
    _SIZE_AND_DATA,
    _standard,
    "Hoffmann et al. 2022 (arXiv 2203.15556), Eq. 2",
)
TIED = Form(
    "tied",
    ("X", "D"),
    ("E", "A", "B", "alpha"),
    (("A", "alpha", "X"), ("B", "alpha", "D")),
    _tied,
    "Hoffmann et al. 2022 (arXiv 2203.15556), Eq. 2 with alpha = beta",
)
COUPLED = Form(
    "coupled",
    ("X", "D"),
    ("E", "A", "B", "alpha", "beta", "k"),
    _SIZE_AND_DATA,
    _coupled,
    "Kaplan et al. 2020 (arXiv 2001.08361), Eq. 1.5, with a floor",
)
VALLEY = Form(
    "isoFLOP valley",
    ("X", "C"),
    ("E", "K", "gamma", "Q", "a", "kappa"),
    (("K", "gamma", "C"), ("Q", "a", "C"), ("Q", -1.0, "X")),
    _valley,
    "the isoFLOP parabolas of all budgets at once: DeepSeek LLM (arXiv 2401.02954), section 3.2, with one "
    "curvature kappa, minima X* = C**a / Q and the frontier K * C**-gamma above E as their depth",
)


def columns(form: Form, size: ArrayLike, tokens: ArrayLike, cost_per: float = 1.0) -> tuple[Array, ...]:
    """The form's variables for runs of these sizes and tokens, with C = cost_per * X * D."""
    sizes, token_counts = np.asarray(size, float), np.asarray(tokens, float)
    known = {"X": sizes, "D": token_counts, "C": cost_per * sizes * token_counts}
    return tuple(known[name] for name in form.variables)


def value(form: Form, params: ArrayLike, *variables: ArrayLike) -> Array:
    """Loss, shape params.shape[:-1] + variable.shape, for params (..., constants) and the form's
    variables."""
    arrays = np.broadcast_arrays(*(np.asarray(v, float) for v in variables))
    stacked = np.asarray(params, float)
    spread = stacked.reshape(stacked.shape[:-1] + (1,) * arrays[0].ndim + stacked.shape[-1:])
    with np.errstate(over="ignore"):
        return np.asarray(form.expression(*arrays, *np.moveaxis(spread, -1, 0)), float)


@cache
def _symbols(form: Form) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """The form's variables, constants and expression as sympy."""
    import sympy

    variables = tuple(sympy.Symbol(name, positive=True) for name in form.variables)
    constants = tuple(sympy.Symbol(name, positive=True) for name in form.constants)
    return variables, constants, form.expression(*variables, *constants)


FORMS = (STANDARD, TIED, COUPLED, VALLEY)
"""The laws whose derivations are written into derived_laws.py."""
LATEX_SYMBOLS = ("M", "N")
"""The letters of the size that LaTeX is written for."""


@cache
def _log_value_and_gradient(form: Form) -> Callable[..., Any]:
    if form in FORMS:
        return derived_laws.LOG_VALUE_AND_GRADIENT[form.name]
    return derive_log_value_and_gradient(form)


def derive_log_value_and_gradient(form: Form) -> Callable[..., Any]:
    """[log L, its derivative in each log-constant] as a function of (log variables, log-constants), by sympy."""
    import sympy

    variables, constants, loss = _symbols(form)
    logs = {s: sympy.Symbol(f"log_{s.name}", real=True) for s in (*variables, *constants)}
    log_loss = sympy.log(loss.subs({s: sympy.exp(log) for s, log in logs.items()}, simultaneous=True))
    log_loss = sympy.powsimp(sympy.powdenest(log_loss, force=True), combine="exp", deep=True)
    gradient = [sympy.diff(log_loss, logs[s]) for s in constants]
    arguments = [logs[s] for s in (*variables, *constants)]
    return sympy.lambdify(arguments, [log_loss, *gradient], modules="numpy", cse=True)  # type: ignore[no-any-return]


def log_value_and_gradient(
    form: Form, log_params: Array, log_variables: tuple[Array, ...]
) -> tuple[Array, Array]:
    """log L, shape (batch, runs), and its derivatives in the log-constants, (batch, constants, runs).

    `log_params` is (batch, constants); each log variable is (runs,) or (batch, runs). Overflow gives inf or nan,
    never an exception.
    """
    arguments = [log_params[:, i, None] for i in range(log_params.shape[1])]
    with np.errstate(all="ignore"):
        log_loss, *gradient = _log_value_and_gradient(form)(*log_variables, *arguments)
    jacobian = np.empty((log_params.shape[0], log_params.shape[1], log_variables[0].shape[-1]))
    for i, column in enumerate(gradient):
        jacobian[:, i] = column
    return log_loss, jacobian


def log_gradient(form: Form, log_params: Array, variables: tuple[Array, ...]) -> Array:
    """Derivatives of log L in the log-constants at one set of them, (constants, runs).

    By complex steps (Squire & Trapp 1998, SIAM Review 40:110): exact to rounding, and without sympy, whose import and
    derivations take .7 s of CPU. For many sets of constants `log_value_and_gradient` is faster.
    """
    params, step = np.exp(log_params).tolist(), 1e-20
    gradient = np.empty((len(params), len(variables[0])))
    for i, constant in enumerate(params):
        moved = [*params[:i], constant * np.exp(1j * step), *params[i + 1 :]]
        gradient[i] = np.log(form.expression(*variables, *moved)).imag / step
    return gradient


@cache
def _optimal_log_size(form: Form) -> Callable[..., Any]:
    return derived_laws.OPTIMAL_LOG_SIZE[form.name] if form in FORMS else derive_optimal_log_size(form)


def derive_optimal_log_size(form: Form) -> Callable[..., Any]:
    """log X* as a function of (log T, log cost_per, constants), where T = X * D is what the budget buys.

    At the optimum a per cent more size and a per cent fewer tokens change nothing. For a law of X and D that
    is X dL/dX = D dL/dD, in logarithms linear in log X whatever function of the two power terms' sum the loss
    is; for a law of X and C it is dL/dX = 0.
    """
    import sympy

    (size, other), constants, loss = _symbols(form)
    log_size, log_product, log_cost = sympy.symbols("log_X log_T log_c", real=True)
    if form.variables == ("X", "C"):
        at = {size: sympy.exp(log_size), other: sympy.exp(log_product + log_cost)}
        slope = sympy.diff(sympy.expand_log(sympy.log(loss.subs(at)), force=True), log_size)
        balance = sympy.expand(sympy.expand_log(slope, force=True))
    else:
        at = {size: sympy.exp(log_size), other: sympy.exp(log_product - log_size)}
        ratio = sympy.simplify(size * sympy.diff(loss, size) / (other * sympy.diff(loss, other)))
        balance = sympy.expand(sympy.expand_log(sympy.log(ratio.subs(at, simultaneous=True)), force=True))
    (solution,) = sympy.solve(balance, log_size)
    arguments = [log_product, log_cost, *constants]
    return sympy.lambdify(arguments, sympy.simplify(solution), modules="numpy")  # type: ignore[no-any-return]


def optimum(
    form: Form, params: ArrayLike, flop: ArrayLike, cost_per: float = 1.0
) -> tuple[Array, Array, Array]:
    """The size, tokens and loss of the best run with cost_per * X * D = flop.

    `params` is (..., constants), `flop` any shape; each result is params.shape[:-1] + flop.shape.
    """
    stacked, budgets = np.asarray(params, float), np.asarray(flop, float)
    spread = stacked.reshape(stacked.shape[:-1] + (1,) * budgets.ndim + stacked.shape[-1:])
    constants = np.moveaxis(spread, -1, 0)
    product = budgets / cost_per
    size = np.exp(_optimal_log_size(form)(np.log(product), np.log(cost_per), *constants))
    tokens = product / size
    loss = form.expression(*columns(form, size, tokens, cost_per), *constants)
    return size, tokens, np.asarray(loss, float)


def latex(form: Form, size_symbol: str = "M") -> str:
    """The law as LaTeX, with the size written as `size_symbol` (M or N)."""
    if form in FORMS and size_symbol in LATEX_SYMBOLS:
        return derived_laws.LATEX[form.name, size_symbol]
    return derive_latex(form, size_symbol)


def derive_latex(form: Form, size_symbol: str) -> str:
    """The law as LaTeX, by sympy."""
    import sympy

    _, _, loss = _symbols(form)
    named = loss.subs(sympy.Symbol("X", positive=True), sympy.Symbol(size_symbol, positive=True))
    return f"L = {sympy.latex(named)}"
