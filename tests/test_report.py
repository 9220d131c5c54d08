"""The page: holds what the documents hold, in the same bytes every time, safely, and from one file."""

import hashlib
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects as go
import pytest

from specs.law import (
    Allocation,
    EvidencePoint,
    FormScore,
    Interval,
    IsoflopProfile,
    LawFit,
    Monomial,
    RateCheck,
)
from specs.plan import NoForecast, Plan
from specs.record import Audit, Check, RunAudit
from specs.report import render
from tests import examples, samples

EVIL = "</script><script>alert(1)</script><img src=http://evil/ onerror=alert(2)>&\"'"
"""What an enemy would write into every text that a document may hold."""


def fit(text: str = "") -> LawFit:
    """Two isoFLOP budgets of four runs, one not bracketed; two forms, one untested; a learning-rate check."""
    sizes = (1e5, 2e5, 4e5, 8e5)
    half = Monomial(coefficient=0.3, exponents={"compute_flop": 0.5})
    return LawFit(
        points=tuple(
            EvidencePoint(
                run=f"{int(flop / 1e11):08x}{int(size):08x}",
                budget_flop=flop,
                flop_per_token=size,
                tokens=int(flop / size),
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
        rate_check=RateCheck(
            run="0" * 16,
            multiples=(0.5, 1.0, 2.0),
            losses=(3.1, 3.0, 3.2),
            best_multiple=1.02,
            bracketed=True,
            near_optimal=True,
        ),
        flags=(f"a flag of the fit {text}",),
    )


def _profile(flop: float, coefficients: tuple[float, float, float] | None, bracketed: bool) -> IsoflopProfile:
    return IsoflopProfile(
        compute_flop=flop,
        coefficients=coefficients,
        flop_per_token=2e5,
        tokens=flop / 2e5,
        loss=2.9,
        bracketed=bracketed,
    )


def _form(name: str, error: float | None, text: str) -> FormScore:
    return FormScore(
        form=name + text,
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
    "published law, no forecast": (
        samples.sealed(samples.plan(), forecast=NoForecast(reason="nothing is known"), bytes_per_token=None),
        None,
    ),
}
every_case = pytest.mark.parametrize(("plan", "found"), CASES.values(), ids=CASES.keys())


def written(plan: Plan, found: Audit | None) -> list[str]:
    """The texts of the documents that a reader must find on the page."""
    data = plan.runs[-1].run.data
    said = [
        plan.budget.name,
        plan.phase,
        plan.seal,
        plan.law.name,
        plan.law.source,
        plan.code.sha256,
        data.corpus,
    ]
    said += [planned.title for planned in plan.runs] + [*plan.notes]
    if not isinstance(plan.forecast, NoForecast):
        said.append(plan.forecast.basis)
    elif found is None:
        said.append(plan.forecast.reason)
    if plan.fit is not None:
        said += [plan.fit.allocation_basis, *plan.fit.flags, *(form.form for form in plan.fit.forms)]
    if found is not None:
        said += [found.verdict, found.reason[1:], *(cause.partition(": ")[2] for cause in found.causes)]
        said += [incident.partition(": ")[2] for run in found.runs for incident in run.incidents]
        said += [part for run in found.runs for check in run.checks for part in (check.name, check.detail)]
    return said


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


def test_another_process_writes_the_same_bytes() -> None:
    """Whatever its hash seed and locale."""
    program = (
        "import hashlib; from tests.test_report import CASES, render; "
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


@pytest.mark.parametrize("make", [pilots, target])
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
