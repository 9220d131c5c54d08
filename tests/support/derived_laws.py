"""What sympy derives from the laws, as code: `python -m tests.support.derived_laws` writes it.

It is here since it calls ruff, which users do not have.
"""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from planner.scaling import laws
from specs.document.write import write_text
from tests.support.paths import ROOT

FILE = ROOT / "planner" / "scaling" / "derived_laws.py"
HEAD = '''"""Gradients, best sizes and LaTeX of the laws, as sympy derives them from laws.py; `make generate` writes it.

Each function is what `laws.derive_*` of that law gives, and a test holds them equal.
"""

from collections.abc import Callable
from typing import Any

from numpy import exp, log
'''


def generate() -> str:
    """The file."""
    parts = [HEAD]
    for form in laws.FORMS:
        parts.append(function(form, "log_value_and_gradient", laws.derive_log_value_and_gradient(form)))
        parts.append(function(form, "optimal_log_size", laws.derive_optimal_log_size(form)))
    for table in ("log_value_and_gradient", "optimal_log_size"):
        rows = ", ".join(f"{form.name!r}: {name(form, table)}" for form in laws.FORMS)
        parts.append(
            f'{table.upper()}: dict[str, Callable[..., Any]] = {{{rows},}}\n"""By name of the form."""'
        )
    pairs = [(form, symbol) for form in laws.FORMS for symbol in laws.LATEX_SYMBOLS]
    rows = ", ".join(
        f"({form.name!r}, {symbol!r}): {laws.derive_latex(form, symbol)!r}" for form, symbol in pairs
    )
    parts.append(f'LATEX = {{{rows},}}\n"""By name of the form and letter of its size."""')
    return formatted("\n\n".join(parts) + "\n")


def name(form: laws.Form, what: str) -> str:
    return f"_{form.name.replace(' ', '_').lower()}_{what}"


def function(form: laws.Form, what: str, derived: Callable[..., Any]) -> str:
    """The source of one derivation, named and typed."""
    source = inspect.getsource(derived)
    arguments = ", ".join(f"{one}: Any" for one in inspect.signature(derived).parameters)
    return re.sub(
        r"def \w+\(.*?\):", f"def {name(form, what)}({arguments}) -> Any:", source, count=1
    ).rstrip()


def formatted(source: str) -> str:
    """The source as `ruff format` leaves it."""
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(
        [ruff, "format", "--stdin-filename", str(FILE), "-"],
        input=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    write_text(FILE, generate())
    print(FILE)
