"""The top of the page: the budget's question, the verdict or the forecast in one sentence, a gauge, large numbers."""

from collections.abc import Iterator

from specs.budget import FixedRatio, FixedSize, Inference, Pilots, Runs
from specs.data import DeclaredText, FileText, InstalledText, MixText, TokenFiles
from specs.formatting import device_time, dollars, flop, half_width, percent, signed
from specs.humanize import count, duration, several
from specs.plan import NoForecast
from specs.report.context import Case
from specs.report.html import Html, large_numbers, tag
from specs.report.law_parts import gauge


def headline(case: Case) -> Html:
    """Everything above the first figure."""
    plan = case.plan
    above = f"{plan.budget.name} · {'pilots' if plan.phase == 'pilots' else 'target'}"
    parts = [
        tag("p", "isoplan", tag("span", above), class_="above"),
        tag("h1", _title(case), class_=_verdict_class(case)),
        tag("p", *_sentences(case), class_="lede"),
    ]
    if case.forecast is not None:
        parts.append(gauge(case.losses, case.forecast.loss, case.actual))
    return tag("header", *parts, large_numbers(_numbers(case)))


def _verdict_class(case: Case) -> str:
    if case.audit is None:
        return "open"
    return {"inside": "inside", "outside": "outside", "cannot tell": "unknown"}[case.audit.verdict]


def _title(case: Case) -> str:
    """The page in one line."""
    plan, audit, forecast = case.plan, case.audit, case.forecast
    if plan.phase == "pilots":
        if audit is None:
            return f"{len(plan.runs)} pilot runs, then a forecast"
        accepted = sum(run.state == "accepted" for run in audit.runs)
        return f"{accepted} of {len(audit.runs)} pilots accepted"
    if audit is not None and audit.verdict != "cannot tell":
        title = "The forecast held" if audit.verdict == "inside" else "The forecast missed"
        return title if audit.verified else f"{title}, unverified"
    if audit is not None:
        return "No verdict yet" if forecast is not None else "Audited, without a forecast"
    if forecast is None:
        return "A plan without a loss forecast"
    return f"Forecast: {case.losses.text(forecast.loss.median)} {case.losses.unit}"


def _sentences(case: Case) -> Iterator[str]:
    yield _question(case)
    forecast, actual, losses = case.forecast, case.actual, case.losses
    if forecast is not None:
        band = forecast.loss
        if not case.verified:
            yield tag("strong", "Not verified: another engine trained this run. ")
        sealed = "Sealed before the run" if case.verified else "Sealed forecast"
        yield (
            f"{sealed}: {losses.text(band.median)} {losses.unit}, "
            f"95 % interval {losses.text(band.low_95)} to {losses.text(band.high_95)}. "
        )
        if actual is not None:
            measured = f"Measured: {losses.text(actual)} {losses.unit}, {signed(actual / band.median - 1)}."
            yield tag("strong", measured)
    elif isinstance(case.plan.forecast, NoForecast) and (case.audit is None or case.target is not None):
        yield f"No forecast of the loss: {case.plan.forecast.reason}."


def _question(case: Case) -> str:
    """What the budget asks, in one sentence."""
    budget = case.plan.budget
    basis = "published laws"
    if isinstance(budget.evidence, Pilots):
        basis = f"pilot runs that cost at most {percent(budget.evidence.share, 0)} of that"
        basis += f", and on runs of {budget.evidence.also.table}" if budget.evidence.also is not None else ""
    elif isinstance(budget.evidence, Runs):
        basis = f"the runs in {budget.evidence.table}"
    return f"{_objective_question(case)} The plan is based on {basis}. "


def _objective_question(case: Case) -> str:
    budget, text = case.plan.budget, _text(case)
    given = budget.amount_text if budget.compute is None else flop(budget.compute)
    if budget.currency == "loss":
        return f"What does it take to reach {given} on {text}?"
    if budget.currency == "deadline":
        given = f"{given} on {budget.cluster}"
    match budget.objective:
        case Inference():
            served = count(budget.objective.served)
            return f"Which model is cheapest to train with {given} on {text} and for inference on {served} tokens?"
        case FixedSize():
            size = count(budget.objective.params)
            return f"How good does a model of {size} parameters get with {given} on {text}?"
        case FixedRatio():
            ratio = f"{budget.objective.tokens_per_param:g} tokens per parameter"
            return f"Which model can {given} train on {text} at {ratio}, and how good will it be?"
    return f"What is the best model that {given} can train on {text}, and how good will it be?"


def _text(case: Case) -> str:
    data = case.plan.budget.data
    match data.text:
        case MixText():
            return f"a mix of {_listed([*data.text.parts])}"
        case DeclaredText():
            return data.text.describe
        case FileText():
            return f"the text in {', '.join(data.text.paths)}"
        case TokenFiles():
            return f"the tokens in {', '.join(data.text.paths)}"
        case InstalledText():
            return f"the source and documentation of {_listed(['Python', *data.text.packages])}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _numbers(case: Case) -> Iterator[tuple[str, str]]:
    plan, forecast, target = case.plan, case.forecast, case.target
    if forecast is not None:
        yield (
            case.losses.text(forecast.loss.median),
            f"{case.losses.unit} forecast, {half_width(forecast.loss)}",
        )
    if forecast is not None and case.actual is not None:
        off = case.actual / forecast.loss.median - 1
        yield case.losses.text(case.actual), f"{case.losses.unit} measured, {signed(off)}"
    elif forecast is None and case.actual is not None:
        yield case.losses.text(case.actual), f"{case.losses.unit} measured"
    done = case.target_audit
    if target is not None and done is not None and done.state == "unfinished":
        yield percent(done.steps / target.run.optim.steps, 0), "of the steps done"
    spent = sum(planned.run.compute_flop for planned in plan.runs)
    if target is None:
        yield f"{len(plan.runs)}", "runs, isoFLOP pilots and learning rates"
        yield flop(max(planned.budget_flop for planned in plan.runs)), "for the largest of them"
    yield flop(spent), "of training compute" if target is not None else "for all of them"
    if plan.fit is not None and plan.fit.points and target is not None:
        of = "pilot" if plan.table is None else "run"
        top = max(point.size * point.tokens for point in plan.fit.points)
        size = float(getattr(target.run.model, plan.fit.size_kind))
        yield f"{size * target.run.tokens / top:.3g}×", f"the compute of the largest {of}"
    if target is not None:
        model = target.run.model
        yield count(model.params), f"parameters, {count(target.run.tokens)} tokens"
    yield from _spent(case)


def _spent(case: Case) -> Iterator[tuple[str, str]]:
    """Time and money: of the target from start to end, of pilots over all devices, as these run side by side."""
    costs = [planned.cost for planned in case.plan.runs]
    hours = sum(cost.device_hours for cost in costs)
    done = case.audit is not None and all(run.state != "unfinished" for run in case.audit.runs)
    runs = case.audit.runs if case.audit is not None and done else ()
    taken = sum(run.device_s or 0.0 for run in runs) / 3600
    if case.target is None:
        yield (
            (device_time(taken), f"device time, {device_time(hours)} planned")
            if done
            else (
                device_time(hours),
                "device time planned",
            )
        )
        return
    planned_time, devices = duration(costs[-1].hours * 3600), case.target.execution.layout.devices
    if done and runs[-1].seconds is not None:
        yield duration(runs[-1].seconds), f"{planned_time} planned, on {several(devices, 'device')}"
    else:
        yield planned_time, f"planned on {several(devices, 'device')}, {device_time(hours)}"
    if costs[-1].dollars is not None:
        yield dollars(costs[-1].dollars), "price planned"
