"""isoplan: from runs that you have, or from a training budget, to an audited training run.

    import isoplan

    fit = isoplan.fit("runs.csv")                 # or a dict of arrays, or a data frame
    isoplan.forecast(fit, at="1e22 FLOP").loss    # 50 and 95 % bands, nats per token
    plan = isoplan.plan("budget.yaml")            # sealed, and written with its report under plans/
    isoplan.audit(plan.path).verdict

Whatever is wrong with an input is an `InputError`, a ValueError of one line that says what to write instead. Importing
this package imports nothing else; the first use of a name does.

It is the top floor: it may import every other package. `library` has the functions, `cli` the console scripts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isoplan.shadowing import shadowing

if TYPE_CHECKING:
    from isoplan.library import audit, fit, forecast, plan
    from isoplan.results import Audit, Fit, Forecast, Plan
    from specs.exit_codes import InputError

__all__ = ["Audit", "Fit", "Forecast", "InputError", "Plan", "audit", "fit", "forecast", "plan"]

_HOMES = {
    "isoplan.library": ("audit", "fit", "forecast", "plan"),
    "isoplan.results": ("Audit", "Fit", "Forecast", "Plan"),
    "specs.exit_codes": ("InputError",),
}


def __getattr__(name: str) -> Any:
    """A public name; ImportError where a file of the user's would be imported in place of one of ours."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'isoplan' has no attribute {name!r}")
    hidden_by = shadowing()
    if hidden_by is not None:
        raise ImportError(hidden_by)
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
