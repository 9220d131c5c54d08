"""Laws as formulae: plain text for the terminal and LaTeX for the page, written from the law's own constants.

C compute (FLOP)    M non-embedding FLOP per token    N parameters in blocks    D tokens    d width
"""

import re

from specs.law import LossLaw, Monomial

SYMBOLS = {"compute_flop": "C", "flop_per_token": "M", "block_params": "N", "tokens": "D", "width": "d"}
"""The letter of each variable of a law."""
_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "kappa": "κ", "lambda": "λ"}
_COMMANDS = {rf"\{name}": letter for name, letter in _GREEK.items()} | {
    r"{\left(": "(",
    r" \right)}": ")",
    r"\left": "",
    r"\right": "",
    r"\cdot": "·",
    r"\log": "ln",
    r"\,": " ",
}


def monomial_text(law: Monomial) -> str:
    """`0.3118 C^-0.125`."""
    powers = [
        SYMBOLS[name] if power == 1 else f"{SYMBOLS[name]}^{_number(power)}"
        for name, power in law.exponents.items()
        if power
    ]
    return " ".join([_number(law.coefficient), *powers])


def monomial_latex(law: Monomial) -> str:
    """`0.3118 \\, C^{-0.125}`."""
    powers = [
        SYMBOLS[name] if power == 1 else f"{SYMBOLS[name]}^{{{_number(power)}}}"
        for name, power in law.exponents.items()
        if power
    ]
    return r" \, ".join([_scientific(law.coefficient), *powers])


def loss_latex(law: LossLaw) -> str:
    """A published loss law with its constants."""
    size = {"flop_per_token": "M", "block_params": "N", "params": "N"}[law.size]
    terms = [(law.A, size, law.alpha), (law.B, "D", law.beta)]
    powers = [rf"{_scientific(factor)} \, {of}^{{-{_number(power)}}}" for factor, of, power in terms]
    return " + ".join([f"L = {_number(law.E)}", *powers])


def text_of(latex: str) -> str:
    """A form's LaTeX as one line of text: `A M^(-α) + B D^(-β) + E`. Only what our own forms use is known."""
    said = latex
    while fraction := re.search(r"\\frac\{", said):
        above, end = _braced(said, fraction.end() - 1)
        below, stop = _braced(said, end)
        said = f"{said[: fraction.start()]}({above})/({below}){said[stop:]}"
    for command, letter in _COMMANDS.items():
        said = said.replace(command, letter)
    said = said.replace("{", "(").replace("}", ")")
    said = re.sub(r"(?<!ln)\((\w)\)", r"\1", said)
    return " ".join(said.replace("(- ", "(-").split())


def readable(latex: str) -> str:
    """LaTeX with `e^{...}` as `exp(...)`: what stands in an exponent is set too small to read."""
    start = latex.find("e^{")
    if start < 0 or latex[start - 1 : start].isalpha():
        return latex
    inside, end = _braced(latex, start + 2)
    return rf"{latex[:start]}\exp\left({inside}\right){latex[end:]}"


def _braced(text: str, start: int) -> tuple[str, int]:
    """What stands between the brace at `start` and its partner, and where the text goes on."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at], at + 1
    return text[start + 1 :], len(text)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _scientific(value: float) -> str:
    """A number as LaTeX: `0.3118`, `2.1 \\cdot 10^{-7}`."""
    digits, _, power = _number(value).partition("e")
    return digits if not power else rf"{digits} \cdot 10^{{{int(power)}}}"
