"""The tables of the page: forms, runs, the target in full, cost, checks, provenance."""

from collections.abc import Iterator, Sequence

from specs.curate import EXAMPLE_CHARACTERS, CuratedText, CurationStage
from specs.evidence import FILE_NAME, EvidencePoint
from specs.formatting import (
    FUNNEL_HEAD,
    attended_text,
    best_split,
    device_time,
    dollars,
    evaluation_mix_text,
    flop,
    funnel_rows,
    listed_members,
    member_name,
    memory,
    mix_text,
    percent,
    power,
    shape,
    small_members_name,
)
from specs.humanize import count, duration, energy, several
from specs.law import FormScore
from specs.plan import Plan, PlannedRun
from specs.record import Audit, RunAudit
from specs.report.context import Case
from specs.report.html import Html, dense, join, pairs, table, tag
from specs.report.law_parts import constants_text, formula, weight_bar
from specs.report.layout_bars import lines
from specs.run import RunSpec

_MOST_LISTED = 200
"""Runs of the evidence that the table of runs lists."""
_CURATION_TEXT = ("source", "step", "reason", "the first of them")
"""Columns of text in the tables of curation."""


def forms(case: Case) -> Html:
    """The members of the forecast side by side, heaviest first; those of small weight in one line."""
    listed, small = listed_members(() if case.plan.fit is None else case.plan.fit.forms)
    losses, last = case.losses.heads, "constants with 95 % interval"
    head = ("form", "L =", "held-out error", "weight", *losses, last)
    rows = [_form(case, form) for form in listed]
    if small:
        lowest, highest = (case.losses.cells(end(form.forecast for form in small)) for end in (min, max))
        forecasts = (f"{low} to {high}" for low, high in zip(lowest, highest, strict=True))
        weight = weight_bar(sum(form.weight for form in small))
        rows.append((small_members_name(small), "", "", weight, *forecasts, ""))
    return dense(head, rows, text=("form", "L =", last))


def best(case: Case) -> Html:
    """The best split of the target's compute by all members together; nothing without one."""
    optimum = None if case.plan.fit is None else case.plan.fit.optimum
    return Html() if optimum is None else pairs(best_split(optimum, case.losses))


def _form(case: Case, form: FormScore) -> tuple[str, ...]:
    error = "–" if form.held_out_error is None else percent(form.held_out_error)
    right = form.latex.removeprefix("L = ")
    return (
        member_name(form),
        formula(right),
        error,
        weight_bar(form.weight),
        *case.losses.cells(form.forecast),
        tag("small", constants_text(form.constants)),
    )


def runs(case: Case) -> Html:
    """Every run of this plan and of the earlier ones, with its results."""
    shape_and_plan = ("run", "shape", "M", "tokens", "batch", "peak lr", "steps")
    head = (*shape_and_plan, *case.losses.heads, "time", "tokens/s", "state", "flags", "folder")
    rows = [_run(case, planned, run) for planned, run in case.runs]
    return dense(head, rows + list(_evidence(case)), text=("run", "state", "flags", "folder"))


def _evidence(case: Case) -> Iterator[tuple[str, ...]]:
    """The fit's runs that are in no plan of this page: those of the ledger and of a table, largest first if many."""
    here = {planned.run.fingerprint() for planned, _ in case.runs}
    points = [point for point in case.points() if point.run not in here]
    if len(points) > _MOST_LISTED:
        points.sort(key=lambda point: -point.budget_flop)
    for point in points[:_MOST_LISTED]:
        size = count(point.size) if case.size_kind == "flop_per_token" else f"N {count(point.size)}"
        sizes = ("–", size, count(point.tokens), "–", "–", "–")
        losses = (*case.losses.cells(point.loss), "–", "–")
        state, name, folder = _origin(case, point)
        yield (name, *sizes, *losses, state, "short" if point.short else "", folder)
    if len(points) > _MOST_LISTED:
        blank = ("–",) * (11 + len(case.losses.heads))
        yield (f"{several(len(points) - _MOST_LISTED, 'run')} more in {FILE_NAME}", *blank)


def _origin(case: Case, point: EvidencePoint) -> tuple[Html | str, str, Html | str]:
    """State, name and folder of a run that is in no plan of this page."""
    if point.line is None:
        state = tag("span", "accepted", class_="state accepted")
        folder = tag("code", point.run[:8], title=f"runs/{point.run}")
        return state, f"{flop(point.budget_flop)}, from the ledger", folder
    table = "the table" if case.plan.table is None else case.plan.table.path
    return "–", f"{flop(point.budget_flop)}, {point.run} of {table}", "–"


def _run(case: Case, planned: PlannedRun, run: RunAudit | None) -> tuple[str, ...]:
    model, optim, spec = planned.run.model, planned.run.optim, planned.run
    taken = None if run is None or not run.steps else run.seconds
    speed = None if run is None or not run.steps else run.tokens_per_s
    loss = None if run is None else run.loss
    state = "planned" if run is None else run.state
    return (
        planned.title,
        shape(model),
        count(model.flop_per_token),
        count(spec.tokens),
        f"{optim.batch_sequences:,}",
        f"{optim.peak_lr:.2g}",
        f"{optim.steps:,}",
        *case.losses.cells(loss),
        f"~{duration(planned.cost.hours * 3600)}" if taken is None else duration(taken),
        f"~{count(planned.cost.tokens_per_s)}" if speed is None else count(speed),
        tag("span", state, class_=f"state {state}"),
        "; ".join(_flags(case, planned, run)),
        tag("code", spec.fingerprint()[:8], title=f"runs/{spec.fingerprint()}"),
    )


def _flags(case: Case, planned: PlannedRun, run: RunAudit | None) -> Iterator[str]:
    short = {point.run for point in case.points() if point.short}
    if planned.run.fingerprint() in short:
        yield "short"
    for name, epochs in case.plan.epochs(planned.run).items():
        if epochs > 1:
            yield f"{epochs:.2f} epochs" + (f" of {name}" if name else "")
    if run is not None:
        if run.restarts:
            yield run.restarts_text
        yield from run.incidents
        yield from (f"{check.name}: {check.detail}" for check in run.checks if not check.ok)


def target(plan: Plan, planned: PlannedRun) -> Html:
    """The target run in full."""
    run, model, optim, layout = planned.run, planned.run.model, planned.run.optim, planned.execution.layout
    kv = "" if model.kv_heads == model.heads else f", {model.kv_heads} key-value heads"
    exact, paper = count(model.flop_per_token), count(model.paper_flop_per_token)
    return pairs(
        [
            (
                "shape",
                f"{several(model.layers, 'layer')} of width {model.width:,}, {several(model.heads, 'head')}{kv}, "
                f"feed-forward {model.ffn:,}",
            ),
            ("vocabulary", f"{model.vocab:,}, context {model.context:,}{attended_text(model)}"),
            ("parameters", f"{model.params:,}, of which {model.block_params:,} in blocks"),
            ("M", f"{exact} FLOP per token, counted from this shape; {paper} by Eq. 2 of DeepSeek LLM"),
            ("tokens", f"{run.tokens:,}, {run.tokens / model.params:.3g} per parameter"),
            *_mix(plan, run),
            ("batch", f"{optim.batch_sequences:,} sequences, {run.batch_tokens:,} tokens"),
            (
                "learning rate",
                f"{optim.peak_lr:.4g} after {optim.warmup_steps:,} warmup steps; {optim.schedule_text}",
            ),
            ("steps", f"{optim.steps:,}"),
            ("precision", f"{run.precision}, seed {run.seed}"),
            (
                "layout",
                f"{', '.join(lines(layout))}, on {several(layout.devices, planned.execution.device + ' device')}",
            ),
            ("memory", f"{memory(planned.cost.memory_bytes)} on the fullest device"),
            ("cost", _currencies(planned)),
        ]
    )


def _mix(plan: Plan, run: RunSpec) -> Iterator[tuple[str, str]]:
    """Shares and epochs of the sources of a mix."""
    if run.mix is None:
        return
    epochs, shares = plan.epochs(run), run.mix.shares(run.optim.steps)
    yield "mix", mix_text(run.mix)
    for name in sorted(shares, key=lambda name: (-shares[name], name)):
        unique = f"{plan.sources[name].unique_tokens:,} unique tokens"
        yield (
            f"source {name}",
            f"{percent(shares[name])} of the tokens, {epochs[name]:.3g} epochs over {unique}",
        )
    yield "held-out loss", f"the mean over {evaluation_mix_text(run.mix)}"


def cost(case: Case) -> Html:
    """What was planned to be spent and what was spent, by role."""
    head = ("", "runs", "FLOP", "device time planned", "device time taken", "price planned", "energy planned")
    roles = (("pilot", "isoFLOP pilots"), ("rate", "learning-rate check"), ("target", "target"))
    rows = []
    for role, label in roles:
        chosen = [(planned, run) for planned, run in case.runs if planned.role == role]
        if not chosen:
            continue
        hours = sum(planned.cost.device_hours for planned, _ in chosen)
        taken = sum(run.device_s or 0.0 for _, run in chosen if run is not None)
        price = _total([planned.cost.dollars for planned, _ in chosen])
        joules = _total([planned.cost.energy_j for planned, _ in chosen])
        rows.append(
            (
                label,
                str(len(chosen)),
                power(sum(planned.run.compute_flop for planned, _ in chosen)),
                device_time(hours),
                device_time(taken / 3600) if taken else "–",
                dollars(price),
                "–" if joules is None else energy(joules),
            )
        )
    basis = dict.fromkeys(planned.cost.basis for planned, _ in case.runs)
    return join(
        (dense(head, rows, text=("",)), tag("p", f"Planned speed: {'; '.join(basis)}.", class_="note"))
    )


def _total(parts: list[float | None]) -> float | None:
    """A sum; None where a part of it is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _currencies(planned: PlannedRun) -> str:
    """What a run costs, in every currency that the cluster has a rate for."""
    cost = planned.cost
    parts = [flop(cost.compute_flop), f"{count(cost.device_hours)} device-hours", duration(cost.hours * 3600)]
    parts += [] if cost.dollars is None else [dollars(cost.dollars)]
    parts += [] if cost.energy_j is None else [energy(cost.energy_j)]
    return " = ".join(parts)


def checks(audit: Audit) -> Html:
    """Every check of every run; details of a single run's checks and of those that failed."""
    names = list(dict.fromkeys(check.name for run in audit.runs for check in run.checks))
    if len(audit.runs) == 1:
        return pairs(
            (check.name, join((_mark(check.ok), " ", check.detail)))
            for run in audit.runs
            for check in run.checks
        )
    rows = []
    for run in audit.runs:
        found = {check.name: check for check in run.checks}
        rows.append((run.title, *(_mark(found[name].ok) if name in found else "–" for name in names)))
    failed = [
        (run.title, join((_mark(False), f" {check.name}: {check.detail}")))
        for run in audit.runs
        for check in run.checks
        if not check.ok
    ]
    return join((table(("run", *names), rows), pairs(failed) if failed else ""))


def _mark(ok: bool) -> Html:
    return tag("span", "✓" if ok else "✗", class_="yes" if ok else "no", title="passed" if ok else "failed")


def funnel(texts: Sequence[CuratedText]) -> Html:
    """A row for each step of each text."""
    rows = [(text.source, *row) for text in texts for row in funnel_rows(text.steps)]
    return dense(("source", *FUNNEL_HEAD), rows, _CURATION_TEXT)


def dropped(texts: Sequence[CuratedText]) -> Html:
    """A row for each reason of each step, the commonest first, with examples; nothing where nothing was dropped."""
    rows = [(text.source, step.step, *row) for text in texts for step in text.steps for row in _reasons(step)]
    return dense(("source", "step", "reason", "documents", "the first of them"), rows, _CURATION_TEXT)


def _reasons(stage: CurationStage) -> Iterator[tuple[str, str, Html]]:
    reasons = stage.reasons or ({"": stage.dropped} if stage.dropped else {})
    for reason, documents in sorted(reasons.items(), key=lambda one: -one[1]):
        texts = [one.text for one in stage.examples if one.reason == reason]
        cut = ("…" if len(text) == EXAMPLE_CHARACTERS else "" for text in texts)
        examples = (tag("small", text, end) for text, end in zip(texts, cut, strict=True))
        yield reason, f"{documents:,}", join(examples)


def provenance(case: Case) -> Html:
    """What every figure of the page rests on."""
    return pairs(_provenance(case))


def _provenance(case: Case) -> Iterator[tuple[str, str]]:
    plan, data = case.plan, case.plan.runs[-1].run.data
    yield "seal", tag("code", plan.seal)
    yield "code", join((f"isoplan {plan.code.version}, sources ", tag("code", plan.code.sha256)))
    digest = "not built yet" if data.digest is None else join(("digest ", tag("code", data.digest)))
    yield "corpus", join((tag("code", data.corpus), ", ", digest))
    tokens = f"{plan.unique_tokens:,} unique training tokens"
    if plan.bytes_per_token is not None:
        tokens += f", {plan.bytes_per_token:.3f} bytes per held-out token"
    yield "data", tokens
    for name, text in plan.sources.items():
        of_source = f"{text.unique_tokens:,} unique training tokens"
        if text.bytes_per_token is not None:
            of_source += f", {text.bytes_per_token:.3f} bytes per held-out token"
        yield f"source {name}", of_source
    mix = plan.runs[-1].run.mix
    if mix is not None:
        yield "mix", f"{mix_text(mix)}; held-out loss: {evaluation_mix_text(mix)}"
    yield "law", f"{plan.law.name}: {plan.law.source}"
    if plan.table is not None:
        yield "table", join((f"{plan.table.path}, SHA-256 ", tag("code", plan.table.sha256)))
    if plan.fit is not None:
        runs = f"{several(plan.fit.evidence.runs, 'run')} in {FILE_NAME}, SHA-256 "
        yield "evidence", join((runs, tag("code", plan.fit.evidence.sha256)))
        yield "allocation", plan.fit.allocation_basis
    if case.forecast is not None:
        yield "forecast", case.forecast.basis
    if case.audit is not None and case.audit.actual is not None:
        actual = case.audit.actual
        columns = ", ".join(f"{quantity} from {column!r}" for quantity, column in actual.columns.items())
        yield "curve", join((f"{actual.path}: {columns}; digest ", tag("code", actual.sha256)))
    for earlier, _ in case.earlier:
        yield "earlier plan", join((f"{earlier.phase}, seal ", tag("code", earlier.seal)))
    yield from _environments(case)


def _environments(case: Case) -> Iterator[tuple[str, str]]:
    seen = dict.fromkeys(
        e.canonical_json() for _, run in case.runs if run is not None for e in run.environments
    )
    found = {e.canonical_json(): e for _, run in case.runs if run is not None for e in run.environments}
    for key in seen:
        e = found[key]
        packages = ", ".join(f"{name} {version}" for name, version in sorted(e.packages.items()))
        commit = "no checkout" if e.commit is None else f"commit {e.commit}"
        where = ", ".join(e.devices) or e.cpu
        yield "environment", f"{e.host}: {where}; Python {e.python}, {packages}; {commit}"
