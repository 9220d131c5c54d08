"""What `plan` prints: small runs and huge ones, and the layout that does not fit."""

import io
from pathlib import Path

from rich.console import Console

from planner.tables import rows, show
from specs.plan import Plan
from tests.support import examples, samples


def printed(plan: Plan) -> str:
    """The terminal's text, in lines of any length."""
    console = Console(file=io.StringIO(), width=400)
    show(plan, Path("plans/x/plan.target.yaml"), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_nearest_layout_that_does_not_fit_is_named_with_its_bytes() -> None:
    """And with what it would bring; nothing is missed where all fit."""
    choice = examples.make_layouts()
    plan = examples.make_plan()
    text = printed(samples.sealed(plan, layouts=choice))
    assert (
        "nearest that does not fit: dp 64 x pp 4 x tp 8 + sp, micro-batch 1; 3.6 GiB too much memory, step time -3.0 %"
        in text
    )
    all_fit = choice.model_copy(update={"nearest_miss": None, "nearest_miss_bytes": None})
    assert "all layouts fit" in printed(samples.sealed(plan, layouts=all_fit))


def test_small_amounts_are_not_rounded_to_nothing() -> None:
    """Memory of a tiny run, one layer, few tokens per parameter of a huge model."""
    planned = samples.plan().runs[0]
    model = samples.model(layers=1, width=4096, heads=32, kv_heads=32, ffn=11008)
    run = planned.run.model_copy(update={"model": model})
    cost = planned.cost.model_copy(update={"memory_bytes": 3e6})
    said = dict(
        rows(samples.sealed(samples.plan(), runs=(planned.model_copy(update={"run": run, "cost": cost}),)))
    )
    assert said["memory"] == "2.86 MiB of the fullest device"
    assert said["shape"].startswith("1 layer x 4,096")
    assert said["tokens"] == "102k, 0.000501 per parameter, 0.00102 epochs over the text"


def test_forms_of_small_weight_share_a_line_and_windows_are_explained() -> None:
    lines = [" ".join(line.split()) for line in printed(examples.make_plan()).splitlines()]
    first = lines.index("coupled 1.39% 0.53 1.5145")
    assert lines[first + 2] == "coupled, last 0.8 decades 1.31% 0.12 1.5025"
    assert lines[first + 4] == "4 more, each under 1 % 0.02 1.4830 to 1.5728"
    assert "last 0.8 decades: fitted on the runs down to 1/6.3 of the third largest" in " ".join(lines)
    assert "held-out error: 1.47% (all forms together, by weight)" in " ".join(lines)


def test_a_long_flag_is_wrapped_beside_its_mark() -> None:
    plan = examples.make_plan()
    assert plan.fit is not None
    flag = "a run is left out of the fits: " + "its loss is off what all other runs say; " * 4
    console = Console(file=io.StringIO(), width=60)
    show(samples.sealed(plan, fit=plan.fit.model_copy(update={"flags": (flag,)})), Path("plan.yaml"), console)
    assert isinstance(console.file, io.StringIO)
    first, *rest = console.file.getvalue().partition("flag  ")[2].splitlines()
    assert first.startswith("a run is left out")
    assert rest[0].startswith("      ")
    assert max(map(len, rest[:3])) <= 60


def test_the_best_split_is_shown_with_its_interval() -> None:
    assert "compute-optimal allocation  by these forms (95 % interval): M* " in printed(examples.make_plan())
    assert "compute-optimal allocation" not in printed(examples.make_plan("published"))
