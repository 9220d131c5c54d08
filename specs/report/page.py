"""The page of a plan: headline, figures, tables, provenance."""

from collections.abc import Iterator

from specs.formatting import evaluation_mix_text, mix_text, percent, windows_text
from specs.humanize import count
from specs.law import LawFit
from specs.report import (
    forecast_figure,
    formulas,
    layout_bars,
    pilot_figures,
    scaling_figures,
    source_figures,
    tables,
)
from specs.report.context import Case
from specs.report.headline import headline
from specs.report.html import Html, bullets
from specs.report.page_parts import document, place_of_figure, section, two_columns
from specs.report.run_figures import rates_and_batches


def page(case: Case) -> str:
    """The whole document."""
    title = f"{case.plan.budget.name}, {case.plan.phase}"
    return document(title, headline(case), _sections(case))


def _sections(case: Case) -> Iterator[Html]:
    """Everything below the headline."""
    notes = _notes(case)
    yield section("Notes", bullets(notes) if notes else None)
    yield from _figures(case)
    yield two_columns(
        _reach(case) or _rates(case),
        section("The target run", tables.target(case.plan, case.target) if case.target is not None else None),
    )
    yield from _layouts(case)
    if case.plan.fit is not None:
        yield section("Loss-law forms compared", tables.forms(case), _form_note(case.plan.fit))
        note = "At the target’s compute, by all forms together, with 95 % intervals. "
        if case.plan.budget.evidence.kind == "pilots":
            note += "The plan’s allocation follows the minima of the isoFLOP profiles, inside the interval of M*. "
        note += "M counts non-embedding FLOP per token; N and N* are parameters in blocks."
        yield section("Compute-optimal allocation", tables.best(case), note)
    note = f"The formulas behind the numbers, with their values for {formulas.shown_for(case).title}."
    yield section("Formulas", formulas.formulas(case), note)
    yield section(
        "Runs", tables.runs(case), "Times with ~ are planned. Losses are from the final evaluation."
    )
    yield section("Cost", tables.cost(case))
    if case.audit is not None and any(run.checks for run in case.audit.runs):
        note = "What the audit recomputed from the runs’ records."
        note = note if case.verified else "What the curve’s table shows; nothing else was there to check."
        yield section("Audit checks", tables.checks(case.audit), note)
    yield from _curation(case)
    yield section("Provenance", tables.provenance(case))


def _form_note(fit: LawFit) -> str:
    """What the rows of the table of forms are, and where their weights come from."""
    note = "The forecast mixes these laws by their weights. "
    if fit.held_out_error is None:
        note += "No budget could be held out: the weights are the prior’s. "
    else:
        note += (
            "A law gains weight by how well it, fitted on the smaller budgets, predicted the larger ones that were "
            f"held out; together they missed these by {percent(fit.held_out_error)} on average. "
        )
    windows = windows_text(fit.forms)
    note += f"{windows[0].upper()}{windows[1:]}. " if windows else ""
    return f"{note}Constants: medians of the draws behind the forecast."


def _layouts(case: Case) -> Iterator[Html]:
    """How the target's layout compares with the others."""
    choice = case.plan.layouts
    if choice is None:
        return
    yield two_columns(
        section(
            "Layouts compared",
            layout_bars.steps(choice),
            "Seconds per step, by part. This plan’s layout is on top, the best of each other split below. "
            f"Why this layout: {choice.reason}.",
        ),
        section(
            "Memory",
            layout_bars.memories(choice),
            f"Memory of the device that needs most. {layout_bars.counts(choice)}",
        ),
    )


def _curation(case: Case) -> Iterator[Html]:
    """What the steps of curation kept of the text, and what they dropped."""
    texts = case.plan.curation
    note = "Documents that came to each step of the budget’s data.text.curate, and those that it dropped."
    yield section("Curation", tables.funnel(texts) if texts else None, note)
    note = "By datatrove’s reasons, with the first documents of each."
    dropped = any(step.dropped for text in texts for step in text.steps)
    yield section("Dropped documents", tables.dropped(texts) if dropped else None, note)


def _figures(case: Case) -> Iterator[Html]:
    """The forecast's curve and what it rests on; the ladder where nothing is known yet."""
    curve = place_of_figure("curve", forecast_figure.curve(case), tall=True)
    note = "Held-out loss at every evaluation. " + _final(case) + _inside(case)
    title = "Forecast" if case.audit is None else "Forecast and measured loss"
    yield section(title, curve, note)
    sources = place_of_figure("sources", source_figures.by_source(case))
    yield section("Held-out loss by source", sources, _of_sources(case))
    fitted = "One curve per budget. Diamonds: the best size. Open dots: short runs."
    fitted += " Grey: runs of a compute of their own." if case.plan.table is not None else ""
    joined = "One line per budget. The target’s plan will fit parabolas."
    yield two_columns(
        section(
            "isoFLOP profiles",
            place_of_figure("isoflop", scaling_figures.isoflop(case)),
            joined if case.plan.fit is None else fitted,
        ),
        section(
            "Compute frontier",
            place_of_figure("frontier", scaling_figures.frontier(case)),
            "The lowest loss at each compute. Ticks beside the target: each form’s forecast, thicker with its weight.",
        ),
    )
    yield two_columns(
        section(
            "Training curves",
            place_of_figure("curves", pilot_figures.curves(case)),
            "Held-out loss of every audited run against compute, dark for large ones. No run lies far below the line "
            "through the minima.",
        ),
        section(
            "Tokens per parameter",
            place_of_figure("ratio", pilot_figures.tokens_per_param(case)),
            "At the best split. Bar: the 95 % interval by all forms together at the target’s compute.",
        ),
    )
    grid = pilot_figures.rates_and_batches(case)
    if grid is not None:
        drawn = rates_and_batches(grid, case.losses)
        note = f"Final loss of the runs of M {count(grid.size)}, and by colour how far it is above the best."
        yield section("Learning rate and batch", place_of_figure("rate-map", drawn), note)
    ladder = place_of_figure("ladder", scaling_figures.ladder(case))
    yield section("Pilot ladder", ladder, "Every pilot: its size, and the tokens that its budget pays for.")


def _of_sources(case: Case) -> str:
    """What the mean over a mix's sources is, and its phases."""
    mix = None if case.target is None else case.target.run.mix
    if mix is None:
        return ""
    return f"The held-out loss is their mean over {evaluation_mix_text(mix)}. Training reads {mix_text(mix)}."


def _reach(case: Case) -> Html:
    """How far a published law is extrapolated."""
    note = "The law’s allocation, solid within the compute that its source covers. Dots: this plan’s target"
    off = case.plan.budget.objective.kind != "optimal"
    note += ", off the lines because its objective is not the lowest loss." if off else "."
    return section("Extrapolation of the law", place_of_figure("reach", scaling_figures.reach(case)), note)


def _rates(case: Case) -> Html:
    """The learning-rate check."""
    note = "The same pilot at several peak learning rates." + _best_rate(case)
    return section("Learning-rate check", place_of_figure("rates", scaling_figures.rates(case)), note)


def _notes(case: Case) -> list[tuple[str, str]]:
    """What a reader must know: what is not verified and alarms first, then causes, then flags and notes."""
    plan, audit = case.plan, case.audit
    found = [] if audit is None else [("not verified", one) for one in audit.unverified]
    found += [] if audit is None else [("verdict", f"{audit.verdict}: {audit.reason}")]
    for planned, run in case.runs:
        found += [("alarm", f"{planned.title}: {one}") for one in (run.incidents if run is not None else ())]
    found += [("likely cause", cause) for cause in (audit.causes if audit is not None else ())]
    found += [("flag", flag) for flag in (plan.fit.flags if plan.fit is not None else ())]
    found += [("note", note) for note in plan.notes]
    return found + [
        ("note", f"curve: {note}") for note in (audit.actual.notes if audit and audit.actual else ())
    ]


def _inside(case: Case) -> str:
    share = None if case.audit is None else case.audit.curve_share_inside
    if share is None:
        return ""
    return f"{percent(share, 0)} of the points{'' if case.actual else ' so far'} are inside the 95 % band."


def _final(case: Case) -> str:
    forecast = case.forecast and case.forecast.curve
    if not forecast or case.target is None or not forecast_figure.final_is_separate(forecast, case.target):
        return ""
    if not case.verified:
        return "The last point of the curve decides the verdict. "
    evaluation = case.target.run.evaluation
    return (
        f"The final evaluation decides the verdict. It uses {evaluation.final_sequences:,} sequences, the others "
        f"{evaluation.sequences:,}, so it is drawn apart from the curve. "
    )


def _best_rate(case: Case) -> str:
    check = None if case.plan.fit is None else case.plan.fit.rate_check
    if check is None:
        return ""
    edge = "" if check.bracketed else f", {check.reason}"
    own = (
        "is as good" if check.near_optimal else "is worse, so the target’s rate is changed by the same factor"
    )
    return f" The best is × {check.best_multiple:.2g}{edge}; the law’s own rate {own}."
