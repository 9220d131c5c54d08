"""The page: headline, figures, tables, provenance, in one HTML file that asks the network for nothing."""

import json
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files

from specs.plan import Forecast, Plan
from specs.record import Audit
from specs.report import figures, tables

_STYLE = """
:root { --ink:#22262b; --soft:#5d646d; --line:#e2e5e9; --good:#1d7a46; --bad:#c8452f; --open:#a06a00; }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1080px; padding: 32px 20px }
h1 { font-size: 28px; margin: 0; letter-spacing: -.01em } h2 { font-size: 18px; margin: 44px 0 4px }
p { margin: 6px 0; max-width: 76ch } .soft { color: var(--soft) } .small { font-size: 14px }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; flex: 1 1 150px }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums }
.card span { color: var(--soft); font-size: 13px }
.inside { color: var(--good) } .outside { color: var(--bad) } .cannot { color: var(--open) }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 0 28px }
.pair > div { min-width: 0 } .figure { height: 380px } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin-top: 8px; width: 100% }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; white-space: nowrap } td.key { color: var(--soft); white-space: nowrap; width: 1% }
.flags li { margin: 2px 0 } code { font-size: 12.5px; overflow-wrap: anywhere }
@media print { .figure { break-inside: avoid } body { max-width: none } }
"""


def page(plan: Plan, audit: Audit | None) -> str:
    """The whole document."""
    title = f"{plan.budget.name}: {plan.phase}"
    body = [
        _headline(plan, audit),
        _figures(plan, audit),
        _flags(plan, audit),
        _section("The run", _pairs(tables.target(plan))) if plan.phase == "target" else "",
        _section("Runs", _grid(tables.runs(plan, audit)), _unit_note(plan)),
        _section("Forms side by side", _grid(tables.forms(plan))) if plan.fit is not None else "",
        _section("Evidence", _grid(tables.evidence(plan))) if plan.fit is not None else "",
        _section("Checks", _grid(tables.checks(audit))) if audit is not None else "",
        _section("Provenance", _pairs(tables.provenance(plan, audit))),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n<script>{_plotly()}</script></head>\n<body>{''.join(body)}</body></html>\n"
    )


@cache
def _plotly() -> str:
    """plotly.js as the installed package ships it. Reading it does not import plotly's Python classes."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _headline(plan: Plan, audit: Audit | None) -> str:
    verdict = (
        "" if audit is None else f'<span class="{audit.verdict.split()[0]}">{escape(audit.verdict)}</span>'
    )
    heading = f"{escape(plan.budget.name)} <span class='soft'>{plan.phase}</span> {verdict}"
    return f"<h1>{heading}</h1><p>{escape(_sentence(plan, audit))}</p>{_cards(plan, audit)}"


def _sentence(plan: Plan, audit: Audit | None) -> str:
    if audit is not None:
        return audit.reason[0].upper() + audit.reason[1:] + "."
    if isinstance(plan.forecast, Forecast):
        return (
            f"Forecast before the run: {tables.loss(plan, plan.forecast.loss.median)} {figures.unit(plan)}."
        )
    return f"No forecast of the loss: {plan.forecast.reason}."


def _cards(plan: Plan, audit: Audit | None) -> str:
    cost = [planned.cost for planned in plan.runs]
    cards = [
        (f"{sum(c.compute_flop for c in cost):.3g} FLOP", f"{len(cost)} run{'s' if len(cost) > 1 else ''}"),
        (f"{sum(c.device_hours for c in cost):.3g}", "device-hours planned"),
    ]
    if isinstance(plan.forecast, Forecast):
        band = plan.forecast.loss
        ends = f"{figures.shown(plan, band.low_95):.3f} to {figures.shown(plan, band.high_95):.3f}"
        cards.append((f"{figures.shown(plan, band.median):.4f}", f"forecast, {figures.unit(plan)}"))
        cards.append((ends, f"95 % band, {tables.width_of(band.low_95, band.high_95)}"))
    if audit is not None and plan.phase == "target" and audit.runs[-1].loss is not None:
        cards.append((f"{figures.shown(plan, audit.runs[-1].loss):.4f}", f"actual, {figures.unit(plan)}"))
    inner = "".join(f'<div class="card"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in cards)
    return f'<div class="cards">{inner}</div>'


def _figures(plan: Plan, audit: Audit | None) -> str:
    drawn = [
        (
            "Planned against actual",
            "curve",
            figures.curve(plan, audit),
            "Dotted lines: the learning rate drops.",
        ),
        ("Frontier", "frontier", figures.frontier(plan, audit), "Loss at the best size of each budget."),
        (
            "isoFLOP profiles",
            "isoflop",
            figures.isoflop(plan, audit),
            "Diamonds: minima that the sizes bracket.",
        ),
        ("Learning-rate check", "rates", figures.rates(plan), "The middle pilot at several peak rates."),
    ]
    blocks = [
        f'<div><h2>{title}</h2><p class="soft small">{note}</p><div class="figure" id="{name}"></div>'
        f"<script>Plotly.newPlot({json.dumps(name)}, {_data(figure)}, {{responsive: true, displayModeBar: false}})"
        "</script></div>"
        for title, name, figure, note in drawn
        if figure is not None
    ]
    return f'<div class="pair">{"".join(blocks)}</div>' if blocks else ""


def _data(figure: figures.Figure) -> str:
    """Data and layout as arguments; `<` is escaped so that no text can end the script."""
    return ", ".join(
        json.dumps(figure[key], sort_keys=True).replace("<", "\\u003c") for key in ("data", "layout")
    )


def _flags(plan: Plan, audit: Audit | None) -> str:
    said = [*plan.notes, *(plan.fit.flags if plan.fit is not None else ())]
    if audit is not None:
        said += [f"likely cause: {cause}" for cause in audit.causes]
        said += [f"{run.title}: {incident}" for run in audit.runs for incident in run.incidents]
    items = "".join(f"<li>{escape(one)}</li>" for one in said)
    return f'<h2>What to know</h2><ul class="flags">{items}</ul>' if items else ""


def _unit_note(plan: Plan) -> str:
    beside = " (nats per token in brackets)" if plan.bytes_per_token is not None else ""
    return f"Losses on held-out text in {figures.unit(plan)}{beside}."


def _section(title: str, content: str, note: str = "") -> str:
    said = f'<p class="soft small">{escape(note)}</p>' if note else ""
    return f"<h2>{title}</h2>{said}{content}"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _pairs(rows: Sequence[Sequence[str]]) -> str:
    lines = [f'<tr><td class="key">{escape(key)}</td><td>{escape(value)}</td></tr>' for key, value in rows]
    return f"<table>{''.join(lines)}</table>"
