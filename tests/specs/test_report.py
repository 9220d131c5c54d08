"""The page: holds what the documents hold, in the same bytes every time, safely, and from one file."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from specs.budget import FixedRatio, FixedSize, Inference
from specs.document.write import write_json, write_yaml
from specs.evidence import EvidenceFile, EvidencePoint
from specs.formatting import device_time, dollars, log_ticks, memory, power, ticks
from specs.law import (
    Allocation,
    FormScore,
    Interval,
    IsoflopProfile,
    LawFit,
    Monomial,
    RateCheck,
)
from specs.plan import HyperAdvice, NoForecast, Plan
from specs.plan_file import save_plan
from specs.record import ActualCurve, Audit, Check, RunAudit
from specs.report import layout_bars, render
from specs.report.context import earlier_plans
from specs.report.html import Html, join, tag
from specs.report.law_parts import formula
from specs.table_fit import TableSource
from tests.support import examples, samples

EVIL = "</script><script>alert(1)</script><img src=http://evil/ onerror=alert(2)>&\"'"
"""What an enemy would write into every text that a document may hold."""


def fit(text: str = "") -> LawFit:
    """Two isoFLOP budgets of four runs, one not bracketed; two forms, one untested; a learning-rate check."""
    sizes = (1e5, 2e5, 4e5, 8e5)
    half = Monomial(coefficient=0.3, exponents={"compute_flop": 0.5})
    return LawFit(
        size_kind="flop_per_token",
        evidence=EvidenceFile(runs=0, sha256="0" * 64),
        points=tuple(
            EvidencePoint(
                run=f"{int(flop / 1e11):08x}{int(size):08x}",
                budget_flop=flop,
                size=size,
                tokens=int(flop / size),
                unique_tokens=10**9,
                loss=3.0 - 0.1 * rung + 0.1 * abs(i - 1.4),
                short=i == 3,
            )
            for rung, flop in enumerate((1e11, 1e12))
            for i, size in enumerate(sizes)
        ),
        profiles=(
            _profile(1e11, (60.0, -10.0, 0.42), bracketed=True),
            _profile(1e12, None, bracketed=False),
        ),
        allocation=Allocation(flop_per_token=half, tokens=half),
        allocation_basis=f"a basis of the allocation {text}",
        forms=(_form("standard", 0.012, text), _form("frontier", None, text)),
        held_out_error=0.012,
        optimum=None,
        rate_check=RateCheck(
            run="0" * 16,
            multiples=(0.5, 1.0, 2.0),
            losses=(3.1, 3.0, 3.2),
            best_multiple=1.02,
            bracketed=True,
            reason="",
            near_optimal=True,
        ),
        flags=(f"a flag of the fit {text}",),
    )


def _profile(flop: float, coefficients: tuple[float, float, float] | None, bracketed: bool) -> IsoflopProfile:
    return IsoflopProfile(
        compute_flop=flop,
        coefficients=coefficients,
        size=2e5,
        tokens=flop / 2e5,
        loss=2.9,
        bracketed=bracketed,
    )


def _form(name: str, error: float | None, text: str) -> FormScore:
    return FormScore(
        form=name + text,
        window_decades=None,
        latex="L = E + A M^{- \\alpha}",
        held_out_error=error,
        weight=0.5,
        constants={"alpha": Interval(value=0.25, low=0.2, high=0.3)},
        forecast=2.01,
    )


def pilots(text: str = "") -> Plan:
    """A plan of three pilots of two budgets."""
    planned = samples.plan().runs[0]
    runs = tuple(
        planned.model_copy(
            update={
                "role": "pilot",
                "title": f"pilot number {seed} {text}",
                "budget_flop": 1e11 * (1 + seed // 2),
                "run": samples.run(seed=seed),
            }
        )
        for seed in range(3)
    )
    return samples.sealed(
        samples.plan(),
        phase="pilots",
        runs=runs,
        forecast=NoForecast(reason=f"no pilot is audited yet {text}"),
        notes=(f"a note of the plan {text}",),
    )


def target(text: str = "") -> Plan:
    """A target plan that rests on pilots."""
    plan = samples.plan()
    (planned,) = plan.runs
    return samples.sealed(
        plan,
        fit=fit(text),
        runs=(planned.model_copy(update={"title": f"the target run {text}"}),),
        notes=(f"a note of the plan {text}",),
    )


def on_a_table(text: str = "") -> Plan:
    """A target plan that rests on a table, in parameters, with runs of a compute of their own."""
    runs = fit(text)
    points = tuple(
        point.model_copy(
            update={"run": f"run {i} {text}", "line": i + 2, "budget_flop": point.budget_flop * 1.5**i}
        )
        for i, point in enumerate(runs.points)
    )
    table = TableSource(
        path=f"runs{text}.csv",
        sha256="0" * 64,
        columns={"loss": f"a column {text}"},
        size_kind="params",
        flop_per_size_token=6.0,
        loss_unit="nats/token",
        bytes_per_token=None,
        notes=(),
    )
    rests_on = runs.model_copy(update={"points": points, "size_kind": "params"})
    return samples.sealed(target(text), fit=rests_on, table=table)


def audit(plan: Plan, text: str = "", **changes: Any) -> Audit:
    """An audit that found the last run outside, with a failed check and an incident."""
    runs = tuple(
        RunAudit(
            run=planned.run.fingerprint(),
            title=planned.title,
            role=planned.role,
            state="accepted",
            loss=2.2,
            steps=100,
            seconds=70.0,
            device_s=70.0 * planned.execution.layout.devices,
            tokens_per_s=9e3,
            restarts=0,
            curve_step=(50, 100),
            curve_loss=(3.1, 2.2),
            incidents=(f"outside_band at step 50: an incident {text}",),
            checks=(Check(name=f"a check {text}", ok=False, detail=f"a detail of it {text}"),),
        )
        for planned in plan.runs
    )
    plain: dict[str, Any] = {
        "seal": plan.seal,
        "verdict": "outside",
        "reason": f"the reason of the verdict {text}",
        "curve_share_inside": 0.5,
        "causes": (f"law: the likely cause {text}",),
        "runs": runs,
    }
    return Audit(**(plain | changes))


class Page(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.drawn: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "json" if dict(attrs).get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        parts = {"script": self.scripts, "json": self.drawn, "style": self.styles}
        parts.get(self._inside, self.words).append(data)

    @property
    def text(self) -> str:
        """What a reader sees, apart from the figures."""
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> list[go.Figure]:
        """Every figure that the page draws, validated by plotly."""
        return [go.Figure(json.loads(text)) for text in self.drawn]


TARGET = target()
CASES: dict[str, tuple[Plan, Audit | None]] = {
    "pilots": (pilots(), None),
    "pilots, audited": (pilots(), audit(pilots())),
    "target": (TARGET, None),
    "target, audited": (TARGET, audit(TARGET)),
    "on a table": (on_a_table(), None),
    "published law, no forecast": (
        samples.sealed(samples.plan(), forecast=NoForecast(reason="nothing is known"), bytes_per_token=None),
        None,
    ),
}
every_case = pytest.mark.parametrize(("plan", "found"), CASES.values(), ids=CASES.keys())


def written(plan: Plan, found: Audit | None) -> list[str]:
    """The texts of the documents that a reader must find on the page."""
    data = plan.runs[-1].run.data
    texts = [
        plan.budget.name,
        plan.phase,
        plan.seal,
        plan.law.name,
        plan.law.source,
        plan.code.sha256,
        data.corpus,
    ]
    texts += [planned.title for planned in plan.runs] + [*plan.notes]
    if not isinstance(plan.forecast, NoForecast):
        texts.append(plan.forecast.basis)
    elif found is None:
        texts.append(plan.forecast.reason)
    if plan.fit is not None:
        texts += [plan.fit.allocation_basis, *plan.fit.flags, *(form.form for form in plan.fit.forms)]
    if found is not None:
        texts += [found.verdict, found.reason[1:], *(cause.partition(": ")[2] for cause in found.causes)]
        texts += [incident.partition(": ")[2] for run in found.runs for incident in run.incidents]
        texts += [part for run in found.runs for check in run.checks for part in (check.name, check.detail)]
    return texts


@every_case
def test_what_the_documents_say_is_on_the_page(plan: Plan, found: Audit | None) -> None:
    text = Page(render(plan, found)).text
    assert [one for one in written(plan, found) if " ".join(one.split()) not in text] == []


@pytest.mark.parametrize(
    ("case", "least"),
    [
        ("pilots", 0),
        ("pilots, audited", 1),
        ("target", 4),
        ("target, audited", 4),
        ("published law, no forecast", 0),
    ],
)
def test_figures_are_there_and_plotly_takes_them(case: str, least: int) -> None:
    """An unknown key or a wrong value in a figure is an error of plotly's."""
    figures = Page(render(*CASES[case])).figures
    assert len(figures) >= least
    assert all(len(figure.data) > 0 for figure in figures)


def test_forecast_and_outcome_are_drawn() -> None:
    """In bits per byte, as the text is at hand: 2 nats per byte are 2.885 bits; the run ended at 2.2, 3.174."""
    before, after = (Page(render(*CASES[case])).figures for case in ("target", "target, audited"))

    def heights(figures: list[go.Figure]) -> set[float]:
        drawn = [y for figure in figures for trace in figure.data for y in trace.y or () if y is not None]
        return {round(float(y), 3) for y in drawn}

    assert 2.885 in heights(before)
    assert 3.174 not in heights(before)
    assert {2.885, 3.174} <= heights(after)


@every_case
def test_the_same_documents_give_the_same_bytes(plan: Plan, found: Audit | None) -> None:
    assert render(plan, found) == render(plan, found)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes() -> None:
    """Whatever its hash seed and locale."""
    program = (
        "import hashlib; from tests.specs.test_report import CASES, render; "
        "print(hashlib.sha256(render(*CASES['target, audited']).encode()).hexdigest())"
    )
    mine = hashlib.sha256(render(*CASES["target, audited"]).encode()).hexdigest()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.strip() == mine


@pytest.mark.parametrize("make", [pilots, target, on_a_table])
def test_no_text_of_a_document_becomes_markup(make: Any) -> None:
    """The page has the very elements that it has with harmless text, and shows the text as it was written."""
    clean, evil = make(), make(EVIL)
    calm, page = (Page(render(plan, audit(plan, text))) for plan, text in ((clean, "&"), (evil, EVIL)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in calm.tags]
    assert len(page.scripts) == len(calm.scripts)
    assert EVIL in page.text
    assert not [
        value for _, attributes in page.tags for value in attributes.values() if value and "evil" in value
    ]
    assert not [script for script in page.scripts if "<img" in script or "<script>alert" in script]


def test_what_is_not_verified_stands_before_the_verdict_and_is_text() -> None:
    """Of a run that another engine trained, whose table may say anything."""
    run = (
        audit(TARGET)
        .runs[0]
        .model_copy(
            update={
                "state": "unverified",
                "seconds": None,
                "device_s": None,
                "tokens_per_s": None,
                "incidents": (),
            }
        )
    )
    actual = ActualCurve(
        path=f"curve{EVIL}.csv",
        sha256="d" * 64,
        columns={"loss": EVIL},
        loss_unit="nats/token",
        bytes_per_token=None,
        notes=(f"a note of the curve {EVIL}",),
    )
    found = audit(TARGET, verified=False, unverified=(f"weights {EVIL}", "data"), actual=actual, runs=(run,))
    page = Page(render(TARGET, found))
    assert "The forecast missed, unverified" in page.text
    at = [
        page.text.index(one)
        for one in ("weights </script>", "not verified data", "verdict outside: the reason")
    ]
    assert at == sorted(at)
    assert all(
        one in page.text for one in (f"curve{EVIL}.csv", "d" * 64, f"curve: a note of the curve {EVIL}")
    )
    assert "ealed before" not in page.text + " ".join(page.drawn)
    assert page.text.count("–") >= 1, "its time is not known"
    assert not [script for script in page.scripts if "<img" in script or "<script>alert" in script]


@every_case
def test_nothing_is_fetched(plan: Plan, found: Audit | None) -> None:
    """No address in any attribute or style; plotly.js is in the page itself."""
    page = Page(render(plan, found))
    loading = {"src", "href", "srcset", "action", "data", "poster"}
    given = [(name, value or "") for _, attributes in page.tags for name, value in attributes.items()]
    assert [value for name, value in given if name in loading and not value.startswith(("#", "data:"))] == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    assert not [style for style in page.styles if "url(" in style or "@import" in style]
    if page.figures:
        assert any("plotly.js v" in script for script in page.scripts)


PILOTS = examples.make_plan("pilots")
PILOTS_AUDIT = examples.make_audit(PILOTS)
WHOLE = examples.make_plan("target")
EARLIER = ((PILOTS, PILOTS_AUDIT),)
LAID_OUT = examples.make_plan("published", layouts=examples.make_layouts())


def headings(page: str) -> list[str]:
    return [part.partition("</h2>")[0] for part in page.split("<h2>")[1:]]


def test_every_section_of_an_audited_target() -> None:
    assert headings(render(WHOLE, examples.make_audit(WHOLE), EARLIER)) == [
        "Notes",
        "Forecast and measured loss",
        "isoFLOP profiles",
        "Compute frontier",
        "Training curves",
        "Tokens per parameter",
        "Learning-rate check",
        "The target run",
        "Loss-law forms compared",
        "Compute-optimal allocation",
        "Formulas",
        "Runs",
        "Cost",
        "Audit checks",
        "Provenance",
    ]


def test_sections_appear_with_what_they_show() -> None:
    assert headings(render(PILOTS, None)) == [
        "Notes",
        "Pilot ladder",
        "Formulas",
        "Runs",
        "Cost",
        "Provenance",
    ]
    assert "isoFLOP profiles" in headings(render(PILOTS, PILOTS_AUDIT))
    published = headings(render(examples.make_plan("published"), None))
    assert published == [
        "Extrapolation of the law",
        "The target run",
        "Formulas",
        "Runs",
        "Cost",
        "Provenance",
    ]
    laid_out = headings(render(LAID_OUT, None))
    assert laid_out[2:4] == ["Layouts compared", "Memory"]


@pytest.mark.parametrize(
    ("plan", "found", "statement"),
    [
        (PILOTS, None, "17 pilot runs, then a forecast"),
        (PILOTS, PILOTS_AUDIT, "17 of 17 pilots accepted"),
        (WHOLE, None, "Forecast: 2.188 bits per byte"),
        (WHOLE, examples.make_audit(WHOLE), "The forecast held"),
        (WHOLE, examples.make_audit(WHOLE, off=0.08), "The forecast missed"),
        (WHOLE, examples.make_audit(WHOLE, finished=0.6), "No verdict yet"),
        (examples.make_plan("published"), None, "A plan without a loss forecast"),
    ],
)
def test_the_first_line_says_what_came_out(plan: Plan, found: Audit | None, statement: str) -> None:
    assert render(plan, found).partition("<h1")[2].partition("</h1>")[0].endswith(f">{statement}")


def test_every_run_of_the_chain_is_in_one_table() -> None:
    text = Page(render(WHOLE, examples.make_audit(WHOLE), EARLIER)).text
    for planned in (*PILOTS.runs, *WHOLE.runs):
        assert planned.title in text
        assert planned.run.fingerprint()[:8] in text
    assert "from the ledger" not in text
    assert PILOTS.seal in text
    assert examples.ENVIRONMENT.cpu in text
    assert Page(render(WHOLE, None)).text.count("from the ledger") == 15


def test_losses_are_in_bits_per_byte_with_nats_per_token_beside() -> None:
    audit = examples.make_audit(WHOLE)
    loss = audit.runs[0].loss
    assert loss is not None
    text = Page(render(WHOLE, audit, EARLIER)).text
    assert f"{loss / 0.6931471805599453:.3f} {loss:.4f}" in text


def test_an_alarm_comes_before_causes_and_flags() -> None:
    audit = examples.make_audit(WHOLE, off=0.08)
    run = audit.runs[0].model_copy(update={"incidents": ("outside_band at step 5: it left",)})
    page = render(WHOLE, audit.model_copy(update={"runs": (run,), "causes": ("law: a cause",)}))
    marks = ['<b class="verdict">', '<b class="alarm">', '<b class="likely">', '<b class="flag">']
    assert [page.index(mark) for mark in marks] == sorted(page.index(mark) for mark in marks)


def traces_of(figure_with: str, page: str) -> Sequence[Any]:
    """The traces of the figure in which a trace has this name."""
    found = [figure for figure in Page(page).figures if any(t.name == figure_with for t in figure.data)]
    assert len(found) == 1
    return list(found[0].data)


def test_milestones_are_marked_and_every_point_is_drawn() -> None:
    audit = examples.make_audit(WHOLE)
    figure = next(
        f
        for f in Page(render(WHOLE, audit)).figures
        if any(t.name == "measured on held-out text" for t in f.data)
    )
    assert [shape.x0 for shape in figure.layout.shapes] == [
        m.step for m in WHOLE.runs[-1].run.optim.milestones
    ]
    measured = next(t for t in figure.data if t.name == "measured on held-out text")
    assert WHOLE.forecast.kind == "forecast"
    assert WHOLE.forecast.curve is not None
    assert list(measured.x) == list(WHOLE.forecast.curve.step)
    bands = [t for t in figure.data if t.name in ("95 % band", "50 % band")]
    assert len(bands) == 2
    assert max(bands[0].x) < WHOLE.runs[-1].run.optim.steps, "the final evaluation is on more text"


def bars(page: str, section: str) -> list[list[tuple[str, float, str]]]:
    """The bars of a section: every segment as what it is, its share of the width, and its colour."""
    inside = page.partition(f"<h2>{section}</h2>")[2].partition("</section>")[0]
    drawn = re.findall(r'<div class="bar">(.*?)</div>', inside)
    segment = r'<i style="width:([0-9.]+)%;background:(#[0-9a-f]{6})" title="([^":]*):'
    return [
        [(name, float(width), colour) for width, colour, name in re.findall(segment, bar)] for bar in drawn
    ]


def test_a_step_is_drawn_by_what_its_seconds_go_to() -> None:
    choice, page = examples.make_layouts(), render(LAID_OUT, None)
    drawn = bars(page, "Layouts compared")
    assert len(drawn) == len(choice.ranked)
    longest = max(one.step_s for one in choice.ranked)
    for bar, one in zip(drawn, choice.ranked, strict=True):
        assert sum(width for _, width, _ in bar) == pytest.approx(100 * one.step_s / longest, abs=0.01)
        for name, width, _ in bar:
            assert width == pytest.approx(100 * one.seconds[name] / longest, abs=0.001)
    colours = {name: {c for bar in drawn for n, _, c in bar if n == name} for name, _, _ in drawn[-1]}
    assert all(len(found) == 1 for found in colours.values()), "a part has one colour in every bar"
    assert "recompute" not in {name for name, _, _ in drawn[0]}, "what takes no time is not drawn"
    text = Page(page).text
    assert "12.4 s, MFU 46" in text
    assert choice.reason in text


def test_memory_is_drawn_against_what_may_be_filled_with_the_nearest_miss() -> None:
    choice, page = examples.make_layouts(), render(LAID_OUT, None)
    miss = choice.nearest_miss
    assert miss is not None
    drawn = bars(page, "Memory")
    ends = [sum(width for _, width, _ in bar) for bar in drawn]
    limit = 100 / layout_bars.ROOM
    assert ends[:-1] == pytest.approx(
        [limit * one.memory_bytes / choice.limit_bytes for one in choice.ranked], abs=0.01
    )
    assert max(ends[:-1]) < limit < ends[-1] < 100
    assert page.count(f'<u style="left:{limit:.3f}%"') == len(drawn)
    assert page.count('<div class="missed">') == 1
    text = Page(page).text
    assert "1,432 layouts are possible, and 211 of them fit" in text
    assert "3.6 GiB over the limit" in text


def test_a_layout_far_beyond_the_memory_is_cut_off_and_none_is_drawn_where_all_fit() -> None:
    choice = examples.make_layouts()
    miss = choice.nearest_miss
    assert miss is not None
    memory = {part: 9 * size for part, size in miss.memory.items()}
    huge = miss.model_copy(update={"memory_bytes": 9 * miss.memory_bytes, "memory": memory})
    for there, kind in ((huge, '<div class="missed cut">'), (None, None)):
        changed = choice.model_copy(update={"nearest_miss": there, "nearest_miss_bytes": there and 1e9})
        page = render(examples.make_plan("published", layouts=changed), None)
        assert len(bars(page, "Memory")) == len(choice.ranked) + (there is not None)
        assert kind is None or page.count(kind) == 1
        assert ("nearest that does not" in page) == (there is not None)


def test_layouts_that_are_shown_differ_in_their_splits_first() -> None:
    one, two, *_ = examples.make_layouts().ranked
    alike = [one.model_copy(update={"step_s": one.step_s + i}) for i in range(9)]
    assert layout_bars.distinct([*alike, two]) == [*alike[: layout_bars.MOST - 1], two]
    assert layout_bars.distinct([one]) == [one]


def test_a_part_without_a_colour_of_its_own_is_drawn_and_its_name_is_text() -> None:
    one = examples.make_layouts().ranked[0]
    strange = one.model_copy(update={"seconds": {EVIL: 6.2, "matmuls": 6.2}})
    choice = examples.make_layouts().model_copy(update={"ranked": (strange,), "reason": EVIL})
    page = Page(render(examples.make_plan("published", layouts=choice), None))
    assert page.text.count(EVIL) == 2
    assert not [tag for tag, attributes in page.tags if tag == "img" or "onerror" in attributes]


def test_formulas_are_set_with_their_values_and_sources() -> None:
    page = render(examples.make_plan("published"), None)
    inside = page.partition("<h2>Formulas</h2>")[2].partition("</section>")[0]
    assert inside.count("<math ") == inside.count("<tr>") - 1
    assert "<mn>0.3118</mn>" in inside
    assert "DeepSeek LLM, Eq. 2" in inside
    assert "weight 0.53" in Page(render(WHOLE, None)).text, "the heaviest form of the fit"


def test_forms_that_nothing_was_held_out_for_have_the_priors_weights() -> None:
    assert WHOLE.fit is not None
    untested = WHOLE.fit.model_copy(update={"held_out_error": None})
    note = "No budget could be held out: the weights are the prior’s."
    assert note in render(samples.sealed(WHOLE, fit=untested), None)
    assert note not in render(WHOLE, None)


def test_forms_of_small_weight_share_a_row_and_windows_are_explained() -> None:
    page = Page(render(WHOLE, None))
    rows = page.text.partition("Loss-law forms compared")[2].partition("Compute-optimal allocation")[0]
    assert "Last 0.8 decades: fitted on the runs down to 1/6.3 of the third largest compute." in rows
    assert "coupled, last 0.8 decades" in rows
    assert "4 more, each under 1 % 0.02 2.140 to 2.269 1.4830 to 1.5728" in rows
    assert "tied" not in rows
    assert sum("weight" in str(trace.text) for figure in page.figures for trace in figure.data) == 4


def test_laws_of_learning_rate_stand_side_by_side_the_one_followed_first() -> None:
    hyper = WHOLE.law.hyper
    assert hyper is not None
    other = hyper.model_copy(update={"regime": "another regime"})
    advice = [
        HyperAdvice(law=law, hyper=hyper, peak_lr=rate, batch_tokens=2e6, used=law == "two")
        for law, rate, hyper in (("one", 0.125, other), ("two", 0.25, hyper), ("three", 0.25, hyper))
    ]
    text = Page(render(samples.sealed(WHOLE, hypers=tuple(advice)), None)).text
    formulas = text.partition("Formulas")[2].partition("Cost")[0]
    assert formulas.index("0.25 two") < formulas.index("0.125 one")
    assert formulas.count("not followed") == 1, "a law that says the same is not repeated"


def test_columns_that_say_nothing_are_left_out() -> None:
    page = Page(render(PILOTS, None)).text
    assert "energy planned" not in page
    assert "device time taken" not in page
    assert "bits per byte" not in page.partition("Runs")[2].partition("Cost")[0]
    target = WHOLE.runs[0]
    spent = target.model_copy(
        update={"cost": target.cost.model_copy(update={"energy_j": 3.6e9, "dollars": 12.5})}
    )
    text = Page(render(samples.sealed(WHOLE, runs=(spent,)), None)).text
    assert "= $12.50 = 1 MWh" in text
    assert "energy planned" in text


@pytest.mark.parametrize(
    ("changes", "question"),
    [
        ({}, "What is the best model that 10¹³ FLOP can train on"),
        ({"compute": None, "device_hours": 2e6}, "What is the best model that 2e+06 device-hours can train"),
        ({"compute": None, "loss": 2.05}, "What does it take to reach a loss of 2.05 nats per token on"),
        (
            {"objective": Inference.model_validate({"kind": "inference", "served": "10T tokens"})},
            "cheapest to train with 10¹³ FLOP",
        ),
        (
            {"objective": FixedSize.model_validate({"kind": "size", "params": "7B params"})},
            "How good does a model of 7B parameters get",
        ),
        ({"objective": FixedRatio(kind="ratio", tokens_per_param=20.0)}, "at 20 tokens per parameter"),
    ],
)
def test_the_page_asks_what_the_budget_asks(changes: dict[str, Any], question: str) -> None:
    plan = examples.make_plan("target")
    assert (
        question
        in Page(render(samples.sealed(plan, budget=plan.budget.model_copy(update=changes)), None)).text
    )


def test_an_unbracketed_budget_gets_no_parabola_and_a_flag() -> None:
    page = render(WHOLE, None)
    assert Page(page).text.count("at 1e+11 FLOP the minimum lies beyond the smallest size that was run") == 1
    assert "no isoFLOP minimum lies inside" not in page
    minima = next(t for t in traces_of("isoFLOP minima", page) if t.name == "isoFLOP minima")
    assert len(minima.x) == 2


def test_the_target_and_the_names_of_budgets_have_room_beside_the_profiles() -> None:
    """Also where the target is far larger than every pilot."""
    target = WHOLE.runs[-1]
    large = target.run.model.model_copy(update={"layers": 64})
    run = target.run.model_copy(update={"model": large})
    plan = samples.sealed(WHOLE, runs=(target.model_copy(update={"run": run}),))
    figure = next(
        f
        for f in Page(render(plan, None)).figures
        if f.layout.xaxis.title.text.startswith("M, non-embedding")
    )
    assert figure.layout.xaxis.range[1] > math.log10(large.flop_per_token)
    names = [trace for trace in figure.data if trace.mode == "text"]
    assert {name.text[0].strip() for name in names} >= {"target", "10¹² FLOP"}


def test_short_runs_are_open_dots() -> None:
    assert WHOLE.fit is not None
    short = sum(point.short for point in WHOLE.fit.points)
    fills = [
        colour
        for figure in Page(render(WHOLE, None)).figures
        for trace in figure.data
        if isinstance(trace.marker.color, tuple)
        for colour in trace.marker.color
    ]
    assert fills.count("#fff") == short == 4


def test_a_page_with_little_to_show_is_still_a_page() -> None:
    """No points, equal losses, one evaluation, a band of no width: no traceback at the end of a long run."""
    fit = WHOLE.fit
    assert fit is not None
    assert WHOLE.forecast.kind == "forecast"
    band = WHOLE.forecast.loss
    flat = band.model_copy(update=dict.fromkeys(("low_50", "high_50", "low_95", "high_95"), band.median))
    forecast = WHOLE.forecast.model_copy(update={"loss": flat, "curve": None})
    empty = fit.model_copy(
        update={"points": (), "profiles": (), "forms": (), "rate_check": None, "flags": ()}
    )
    same = fit.model_copy(
        update={"points": tuple(p.model_copy(update={"loss": band.median}) for p in fit.points)}
    )
    for changed in (empty, same, fit.model_copy(update={"points": fit.points[:1]})):
        plan = samples.sealed(WHOLE, fit=changed, forecast=forecast)
        assert render(plan, None)
        assert render(plan, examples.make_audit(plan, finished=0.0))


def test_the_browser_is_told_to_load_nothing() -> None:
    page = Page(render(WHOLE, None))
    (policy,) = [a["content"] for name, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


@pytest.mark.slow
def test_rendering_imports_neither_plotly_nor_numpy(tmp_path: Path) -> None:
    """Reading plotly.js is quick; importing plotly takes longer than the whole of `plan`."""
    program = (
        "import sys; from specs.plan_file import load_plan; from pathlib import Path; "
        "from specs.report import render; render(load_plan(Path(sys.argv[1])), None); "
        "print([name for name in ('plotly', 'numpy', 'pandas') if name in sys.modules])"
    )
    save_plan(tmp_path / "plan.yaml", WHOLE)
    argv = [sys.executable, "-c", program, str(tmp_path / "plan.yaml")]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_formulae_are_mathml_and_strange_ones_text() -> None:
    assert formula(r"E + \frac{A}{M^{\alpha}}").startswith("<math ")
    for strange in (r"\href{javascript:alert(1)}{x}", r"\text{<script>}", "<b>", ""):
        assert formula(strange) == tag("code", strange)


def test_text_is_escaped_wherever_it_is_put_in() -> None:
    assert tag("p", "<b>", tag("i", "&"), class_='"') == '<p class="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert join(("<", Html("<"))) == "&lt;<"
    assert isinstance(tag("p"), Html)


def test_text_in_figures_is_escaped_for_plotly() -> None:
    """plotly reads links and some HTML in what it shows under the pointer."""
    runs = tuple(
        planned.model_copy(update={"title": "<a href='http://evil/'>x</a>"}) for planned in PILOTS.runs
    )
    page = render(samples.sealed(PILOTS, runs=runs), None)
    texts = [text for figure in Page(page).figures for trace in figure.data for text in trace.text or ()]
    assert any("&lt;a href=" in text for text in texts)
    assert not any("<a" in text for text in texts)


def test_earlier_plans_are_those_of_the_same_budget(tmp_path: Path) -> None:
    assert earlier_plans(tmp_path, WHOLE) == ()
    write_yaml(tmp_path / "plan.pilots.yaml", PILOTS)
    assert earlier_plans(tmp_path, WHOLE) == ()
    write_json(tmp_path / "audit.pilots.json", PILOTS_AUDIT)
    assert earlier_plans(tmp_path, WHOLE) == EARLIER
    assert earlier_plans(tmp_path, PILOTS) == ()
    other = samples.sealed(WHOLE, budget=WHOLE.budget.model_copy(update={"seed": 1}))
    assert earlier_plans(tmp_path, other) == ()
    (tmp_path / "plan.pilots.yaml").write_text("kind: plan\n")
    assert earlier_plans(tmp_path, WHOLE) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (power(1e13), "10¹³"),
        (power(99999999999.99998), "10¹¹"),
        (power(3.16e11), "3.2·10¹¹"),
        (power(9.97e-7), "10⁻⁶"),
        (dollars(None), "–"),
        (dollars(12.5), "$12.50"),
        (dollars(1_360_054.0), "$1.36M"),
        (memory(512), "512 B"),
        (memory(5157888.0), "4.92 MiB"),
        (memory(54 * 2**30), "54 GiB"),
        (memory(100 * 2**10), "100 KiB"),
        (memory(1023 * 2**30), "1,023 GiB"),
        (memory(3 * 2**41), "6 TiB"),
        (device_time(0.5), "30 min 0 s"),
        (device_time(680_027.0), "680k device-hours"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_ticks_are_round_and_few() -> None:
    assert ticks(2.1, 3.6) == [2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]
    assert log_ticks(6e4, 1.2e6) == [1e5, 2e5, 5e5, 1e6]
    assert log_ticks(1e17, 1e24) == pytest.approx([10.0**k for k in range(17, 25)])
    for low, high in ((1.0, 1.001), (0.5, 40.0), (2.0, 2.3)):
        assert 2 <= len(ticks(low, high)) <= 9


# --- runs of a table ---


def test_a_table_is_named_with_its_runs_and_drawn_in_its_own_size() -> None:
    page = Page(render(on_a_table(), None))
    for words in (
        "run 1 of runs.csv",
        "the compute of the largest run",
        "runs.csv, SHA-256 0000",
    ):
        assert words in page.text, words
    assert "from the ledger" not in page.text
    titles = [figure.layout.xaxis.title.text for figure in page.figures]
    assert "N, parameters" in titles
    assert "compute C = 6·N·D, FLOP" in titles


def test_a_table_of_thousands_of_runs_is_listed_by_its_largest() -> None:
    plan = on_a_table()
    assert plan.fit is not None
    many = tuple(
        plan.fit.points[0].model_copy(update={"run": f"r{i}", "budget_flop": 1e11 + 1e8 * i})
        for i in range(3000)
    )
    text = render(samples.sealed(plan, fit=plan.fit.model_copy(update={"points": many})), None)
    page = Page(text)
    assert "2,800 runs more in evidence.jsonl" in page.text
    assert "r2999 of runs.csv" in page.text
    assert "r5 of runs.csv" not in page.text
    drawn = [len(trace.x) for figure in page.figures for trace in figure.data if trace.x is not None]
    assert max(drawn) <= 2000
