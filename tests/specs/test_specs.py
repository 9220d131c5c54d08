import hashlib
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from specs.budget import Budget
from specs.document.files import from_catalog
from specs.law import Allocation, Band, Hyper, Monomial, PublishedLaw
from specs.model import ModelSpec, block_params, flop_per_token, mfu_flop_per_token, paper_flop_per_token
from specs.optim import Cosine, Decay, Milestone, MultiStep, Wsd, in_steps, multi_step
from specs.plan import Plan, seal_of
from specs.record import Order
from specs.run import RunSpec
from tests.support import samples

# --- model: counts against the paper (DeepSeek LLM, arXiv 2401.02954) ---

VOCAB, CONTEXT = 102400, 4096
TABLE_3 = [
    # layers, width, N1, N2, M, 6 N1 / M, 6 N2 / M
    (8, 512, "25.2M", "77.6M", "352M", ".43", "1.32"),
    (12, 768, "84.9M", "164M", "963M", ".53", "1.02"),
    (24, 1024, "302M", "407M", "3.02B", ".60", ".81"),
    (24, 2048, "1.21B", "1.42B", "9.66B", ".75", ".88"),
    (32, 4096, "6.44B", "6.86B", "45.1B", ".86", ".91"),  # the paper prints .85 for what is 6/7
    (40, 5120, "12.6B", "13.1B", "85.6B", ".88", ".92"),
    (80, 8192, "64.4B", "65.3B", "419B", ".92", ".94"),
]
SEVEN_B = ModelSpec(layers=30, width=4096, heads=32, kv_heads=32, ffn=11008, vocab=VOCAB, context=CONTEXT)
SIXTY_SEVEN_B = ModelSpec(
    layers=95, width=8192, heads=64, kv_heads=8, ffn=22016, vocab=VOCAB, context=CONTEXT
)


def agrees_with_print(value: float, printed: str) -> bool:
    """The value is the printed number to within its last digit's rounding."""
    digits, factor = printed.rstrip("MB"), {"M": 1e6, "B": 1e9}.get(printed[-1], 1.0)
    last = 10.0 ** -len(digits.partition(".")[2]) * factor
    return abs(value - float(digits) * factor) <= 0.5 * last * (1 + 1e-9)


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: f"{row[0]}x{row[1]}")
def test_table_3_of_the_paper(row: tuple[int, int, str, str, str, str, str]) -> None:
    layers, width, n1, n2, m, ratio_1, ratio_2 = row
    # The paper's 12 L d^2 is multi-head attention with an inner width of exactly 8/3 d.
    blocks = block_params(layers, width, width, Fraction(8, 3) * width)
    assert blocks == 12 * layers * width**2
    with_vocabulary = blocks + VOCAB * width
    flop = paper_flop_per_token(layers, width, CONTEXT)
    assert flop == flop_per_token(blocks, layers, width, CONTEXT)
    assert agrees_with_print(blocks, n1)
    assert agrees_with_print(with_vocabulary, n2)
    assert agrees_with_print(flop, m)
    assert agrees_with_print(6 * blocks / flop, ratio_1)
    assert agrees_with_print(6 * with_vocabulary / flop, ratio_2)


def test_counts_of_the_67b() -> None:
    assert SIXTY_SEVEN_B.block_params == 65_745_715_200
    assert round(SIXTY_SEVEN_B.params, -8) == 67_400_000_000
    assert SIXTY_SEVEN_B.flop_per_token == 6 * 65_745_715_200 + 12 * 95 * 8192 * 4096 == 432_726_343_680
    assert f"{SIXTY_SEVEN_B.paper_flop_per_token:.2e}" == "4.97e+11"
    # Grouped queries: the formula that takes 12 L d^2 for granted overstates it by 15 %.
    assert SIXTY_SEVEN_B.paper_flop_per_token / SIXTY_SEVEN_B.flop_per_token == pytest.approx(1.15, abs=0.005)


def test_counts_of_the_7b() -> None:
    assert f"{SEVEN_B.paper_flop_per_token:.3e}" == "4.228e+10"
    assert (
        f"{SEVEN_B.flop_per_token:.3e}" == "4.247e+10"
    )  # the inner width 11008 is a little above 8/3 of 4096
    assert f"{SEVEN_B.params / 1e9:.1f}" == "6.9"


def test_products_of_flop_and_tokens_do_not_overflow() -> None:
    """M D passes 2**63 for every serious run; ints are unbounded and C is a float."""
    run = samples.run(model=SIXTY_SEVEN_B, optim=samples.optim(steps=105964, batch_sequences=4608))
    assert run.tokens == 105964 * 4608 * 4096
    assert run.compute_flop == pytest.approx(432_726_343_680 * 2.0e12, rel=1e-3)
    assert run.compute_flop > 2**63


def test_counts_are_declared_once_for_numbers_and_symbols() -> None:
    sympy = pytest.importorskip("sympy")
    L, d, f, s, V, k = sympy.symbols("L d f s V k", positive=True)
    blocks = block_params(L, d, k, f)
    at = {L: 95, d: 8192, f: 22016, s: 4096, V: VOCAB, k: 1024}
    assert blocks.subs(at) == SIXTY_SEVEN_B.block_params
    assert flop_per_token(blocks, L, d, s).subs(at) == SIXTY_SEVEN_B.flop_per_token
    assert mfu_flop_per_token(blocks, L, d, s, V).subs(at) == SIXTY_SEVEN_B.mfu_flop_per_token
    assert sympy.diff(paper_flop_per_token(L, d, s), s) == 12 * L * d


def test_mfu_counts_half_the_square_and_the_head() -> None:
    m = samples.model()
    half_square = 6 * m.layers * m.width * m.context
    assert m.mfu_flop_per_token == m.flop_per_token - half_square + 6 * m.vocab * m.width


def test_params_are_those_of_a_llama_of_this_shape() -> None:
    torch_names = {
        "embed": 256 * 64,
        "head": 256 * 64,
        "norms": 5 * 64,
        "q, o": 2 * 2 * 64 * 64,
        "k, v": 2 * 2 * 64 * 32,
        "gate, up, down": 2 * 3 * 64 * 176,
    }
    assert samples.model().params == sum(torch_names.values())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"width": 66, "heads": 4},
            "width 66 is not an even multiple of heads 4 .*; write a width that is a multiple of 8",
        ),
        ({"width": 62, "heads": 2}, "is not an even multiple of heads"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3; write a divisor of 4"),
        ({"heads": 2, "kv_heads": 4}, "is not a multiple of kv_heads"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"layers": True}, "valid integer"),
        ({"layers": 2.0}, "valid integer"),
        ({"init_std": 0.0}, "greater than 0"),
        ({"rope_theta": math.inf}, "finite"),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        samples.model(**changes)


# --- optim: the schedule ---


def test_the_multi_step_schedule_of_the_paper() -> None:
    """Section 2.3: warmup over 2000 steps, then the maximum, 31.6 % of it after 80 % and 10 % after 90 %."""
    warmup, milestones = multi_step(100_000, 2000)
    spec = samples.optim(steps=100_000, peak_lr=4.2e-4, warmup_steps=warmup, milestones=milestones)
    shares = {
        step: spec.lr(step) / 4.2e-4 for step in (1, 1000, 2000, 80_000, 80_001, 90_000, 90_001, 100_000)
    }
    assert shares == pytest.approx(
        {1: 1 / 2000, 1000: 0.5, 2000: 1, 80_000: 1, 80_001: 0.316, 90_000: 0.316, 90_001: 0.1, 100_000: 0.1}
    )


def test_cosine_is_the_textbooks_and_ends_at_its_floor() -> None:
    """Loshchilov and Hutter, Eq. 5, with the floor of Chinchilla."""
    stepped = in_steps(Cosine(kind="cosine"), 1000, 100)
    spec = samples.optim(steps=1000, peak_lr=1.0, **{**stepped._asdict(), "milestones": ()})
    assert stepped.warmup_steps == 50
    expected = {
        step: 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 50) / 950)) for step in (51, 525, 999, 1000)
    }
    assert {step: spec.lr(step) for step in expected} == pytest.approx(expected)
    assert (spec.lr(25), spec.lr(50), spec.lr(1000)) == pytest.approx((0.5, 1.0, 0.1))
    assert spec.drop_steps == ()
    assert spec.schedule_text == "cosine decay to x 0.1 from step 50 to 1,000"


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd_is_constant_and_then_decays(shape: Any, half: float) -> None:
    """Haegele et al., Eq. 1 and 2."""
    stepped = in_steps(Wsd(kind="wsd", shape=shape), 1000, 100)
    spec = samples.optim(steps=1000, peak_lr=1.0, **stepped._asdict())
    assert {spec.lr(step) for step in range(50, 801)} == {1.0}
    assert (spec.lr(900), spec.lr(1000)) == pytest.approx((half, 0.0))
    assert spec.drop_steps == (800,)


@given(
    st.sampled_from([MultiStep(kind="multi-step"), Cosine(kind="cosine"), Wsd(kind="wsd", decay=0.99)]),
    st.integers(min_value=20, max_value=10**6),
    st.integers(min_value=1, max_value=5000),
)
def test_every_schedule_is_legal_for_runs_of_every_length(kind: Any, steps: int, warmup_steps: int) -> None:
    spec = samples.optim(steps=steps, **in_steps(kind, steps, warmup_steps)._asdict())
    assert max(spec.lr(step) for step in (1, spec.warmup_steps, spec.warmup_steps + 1)) == spec.peak_lr
    assert 0 <= spec.lr(steps) <= 0.1 * spec.peak_lr * (1 + 1e-12)


def test_a_decay_that_begins_before_a_drop_is_refused() -> None:
    with pytest.raises(ValidationError, match="the decay starts at step 85; write 90 to 99"):
        samples.optim(steps=100, decay=Decay(start_step=85, shape="linear", floor=0.0))


def test_a_run_without_warm_up_begins_at_the_peak() -> None:
    assert samples.optim(warmup_steps=0).lr(1) == 0.003


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_steps": 80},
        {"warmup_steps": 100, "milestones": ()},
        {"steps": 90},
        {"milestones": (Milestone(step=90, factor=0.1), Milestone(step=80, factor=0.316))},
        {"milestones": (Milestone(step=80, factor=0.1), Milestone(step=80, factor=0.1))},
    ],
)
def test_a_schedule_out_of_order_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"must increase, but are .*; write them strictly increasing"):
        samples.optim(**changes)


# --- layout ---


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"dp": 3}, "not a multiple of dp x micro-batch = 3 x 4"),
        ({"micro_batch_sequences": 8}, "not a multiple of dp x micro-batch = 2 x 8"),
        ({"pp": 3}, "3 pipeline stages are more than the 2 layers"),
        ({"tp": 4}, "heads 2 is not a multiple of tp 4"),
        ({"tp": 2}, "kv_heads 1 is not a multiple of tp 2"),
        ({"sequence_parallel": True}, "sequence parallelism needs tp > 1"),
    ],
)
def test_layouts_that_do_not_fit_say_why(changes: dict[str, Any], why: str | None) -> None:
    problems = samples.layout(**changes).problems(samples.model(), samples.optim())
    assert problems == [] if why is None else any(why in problem for problem in problems)


def test_a_layout_counts_devices_and_micro_batches() -> None:
    wide = samples.layout(dp=4, pp=3, tp=2, micro_batch_sequences=2)
    assert wide.devices == 24
    assert wide.micro_batches(samples.optim(batch_sequences=64)) == 8


# --- run: identity ---

CANONICAL_RUN = (
    '{"data":{"corpus":"0123456789abcdef","digest":"' + "5" * 64 + '"},"documents":"joined",'
    '"evaluation":{"every_steps":10,"final_sequences":64,"sequences":16},'
    '"guard":{"patience_steps":4,"spike_deviations":15.0,"window_steps":128},"kind":"run",'
    '"model":{"context":128,"ffn":176,"heads":2,"init_std":0.006,"kv_heads":1,"layers":2,"norm_eps":1e-06,'
    '"rope_theta":10000.0,"vocab":256,"width":64},'
    '"optim":{"batch_sequences":8,"betas":[0.9,0.95],"clip_norm":1.0,"eps":1e-08,'
    '"milestones":[{"factor":0.316,"step":80},{"factor":0.1,"step":90}],"peak_lr":0.003,"steps":100,'
    '"warmup_steps":5,"weight_decay":0.1},"parent":null,"precision":"fp32","seed":0}'
)


@pytest.mark.parametrize(("ranks", "dp"), [(9, 8), (8, 8), (7, 4), (4, 4), (3, 1), (1, 1), (0, None)])
def test_an_order_has_the_largest_layout_for_so_many_ranks(ranks: int, dp: int | None) -> None:
    planned, fallbacks = samples.layout(dp=8), tuple(samples.layout(dp=dp) for dp in (4, 1))
    order = Order(
        run=samples.run().fingerprint(),
        title="a run",
        seal=None,
        execution=samples.execution().model_copy(update={"layout": planned}),
        fallback_layouts=fallbacks,
        peak_flop_per_s=None,
        curve=None,
    )
    found = order.layout_for(ranks)
    assert (None if found is None else found.dp) == dp


def test_the_fingerprint_of_a_run_is_stable() -> None:
    """Every run folder is named so: a change here orphans everybody's runs and must be meant."""
    assert samples.run().canonical_json() == CANONICAL_RUN
    assert samples.run().fingerprint() == hashlib.sha256(CANONICAL_RUN.encode()).hexdigest()[:16]


def leaves(plain: Any, route: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Routes to everything in plain data that holds nothing else."""
    parts = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else []
    deeper = [leaf for key, value in parts for leaf in leaves(value, (*route, key))]
    yield from deeper or [route]


def name(route: tuple[str | int, ...]) -> str:
    return ".".join(map(str, route))


IN_A_RUN = list(leaves(samples.run().plain()))
IN_A_PLAN = list(leaves(samples.plan().plain()))


def changed(plain: Any, route: tuple[str | int, ...]) -> Any:
    """A copy with another value at the end of the route, of the same type where that is possible."""
    copy = json.loads(json.dumps(plain))
    holder = copy
    for part in route[:-1]:
        holder = holder[part]
    value = holder[route[-1]]
    match value:
        case bool():
            holder[route[-1]] = not value
        case int() | float():
            holder[route[-1]] = value + 1 if isinstance(value, int) else value * 1.0000001
        case str():
            holder[route[-1]] = value[:-1] + ("0" if value[-1] != "0" else "1")
        case _:
            holder[route[-1]] = "something"
    return copy


LEGAL: dict[tuple[str | int, ...], Any] = {
    ("precision",): "bf16",
    ("parent",): {"kind": "run", "run": "0" * 16, "step": 1},
    ("model", "heads"): 1,
    ("model", "width"): 128,
}
ONLY_ONE_VALUE = {("kind",), ("documents",)}


@pytest.mark.parametrize("route", IN_A_RUN, ids=name)
def test_everything_in_a_run_is_in_its_fingerprint(route: tuple[str | int, ...]) -> None:
    if route in ONLY_ONE_VALUE:
        return
    other = changed(samples.run().plain(), route)
    if route in LEGAL:
        *holders, last = route
        reduce(getitem, holders, other)[last] = LEGAL[route]
    assert RunSpec.model_validate_json(json.dumps(other)).fingerprint() != samples.run().fingerprint()


def test_how_a_run_is_carried_out_is_not_in_its_fingerprint() -> None:
    in_a_run = {part for route in IN_A_RUN for part in route}
    in_an_execution = {part for route in leaves(samples.execution().plain()) for part in route}
    assert in_a_run.isdisjoint(in_an_execution)


def test_a_curve_that_never_comes_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"every_steps 10 is past the last step 9; write at most 9"):
        samples.run(optim=samples.optim(steps=9, warmup_steps=1, milestones=()))


# --- budget ---

CURRENCIES = {
    "compute": "1e13 FLOP",
    "device_hours": "10 GPU-hours",
    "money": "$100",
    "energy": "5 kWh",
    "loss": "2.1 nats/token",
    "deadline": "2 h",
}


@pytest.mark.parametrize(
    ("given_ones", "says"),
    [
        ((), "no key sets how much may be spent"),
        (("compute", "money"), "compute and money both set .*; keep one"),
        (("device_hours", "energy", "loss"), "device_hours and energy both set"),
    ],
)
def test_a_budget_has_exactly_one_currency(given_ones: tuple[str, ...], says: str) -> None:
    plain = {key: value for key, value in samples.budget().plain().items() if key not in CURRENCIES}
    plain |= {name: CURRENCIES[name] for name in given_ones}
    with pytest.raises(ValidationError, match=says):
        Budget.model_validate_json(json.dumps(plain))


def test_a_deadline_may_stand_beside_a_currency() -> None:
    plain = samples.budget().plain() | {"deadline": CURRENCIES["deadline"]}
    assert Budget.model_validate_json(json.dumps(plain)).currency == "compute"


@pytest.mark.parametrize("name", CURRENCIES)
def test_every_currency_will_do(name: str) -> None:
    plain = {key: value for key, value in samples.budget().plain().items() if key not in CURRENCIES}
    budget = Budget.model_validate_json(json.dumps(plain | {name: CURRENCIES[name]}))
    assert [key for key in CURRENCIES if getattr(budget, key) is not None] == [name] == [budget.currency]
    assert budget.amount_text


def test_pilots_need_text_that_is_here() -> None:
    plain = samples.budget().plain()
    plain["data"]["text"] = {"source": "declared", "describe": "mine", "unique": "1T tokens"}
    with pytest.raises(ValidationError, match="pilots train on real text"):
        Budget.model_validate_json(json.dumps(plain))


# --- plan: the seal ---


def test_a_sealed_plan_reads_back_equal() -> None:
    plan = samples.plan()
    assert Plan.model_validate_json(plan.canonical_json()) == plan
    assert plan.seal == seal_of(plan)


@pytest.mark.parametrize("route", IN_A_PLAN, ids=name)
def test_the_seal_notices_every_edit(route: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate_json(json.dumps(changed(samples.plan().plain(), route)))


def test_an_edit_that_is_legal_but_for_the_seal_is_told_so() -> None:
    plain = samples.plan().plain()
    plain["forecast"]["loss"]["high_95"] = 2.5
    with pytest.raises(
        ValidationError, match=r"the plan was changed after it was sealed, .*; restore the file"
    ):
        Plan.model_validate_json(json.dumps(plain))


def test_a_plan_without_runs_is_no_plan() -> None:
    with pytest.raises(ValidationError, match="runs"):
        samples.sealed(samples.plan(), runs=())


def test_the_columns_of_a_curve_have_one_length() -> None:
    plain = samples.plan().plain()
    plain["forecast"]["curve"]["median"] = [3.0]
    with pytest.raises(ValidationError, match="must have one value per step"):
        Plan.model_validate_json(json.dumps(plain))


# --- laws, bands, clusters, corpora ---


@pytest.mark.parametrize(
    ("compute", "lr", "batch", "flop", "tokens"),
    [
        (1e17, 2.3382e-3, 1.0619e5, 1.404e8, 7.1234e8),
        (1e20, 9.860e-4, 1.0171e6, 5.2513e9, 1.9045e10),
        (1e24, 3.118e-4, 2.069e7, 6.5685e11, 1.5226e12),
    ],
)
def test_the_papers_laws_at_three_budgets(
    compute: float, lr: float, batch: float, flop: float, tokens: float
) -> None:
    """Eqs. 1 and 4, evaluated by hand."""
    law = from_catalog(PublishedLaw, "deepseek", None)
    assert isinstance(law.hyper, Hyper)
    assert isinstance(law.allocation, Allocation)
    found = [
        monomial.at(compute_flop=compute)
        for monomial in (
            law.hyper.peak_lr,
            law.hyper.batch_tokens,
            law.allocation.flop_per_token,
            law.allocation.tokens,
        )
    ]
    assert found == pytest.approx([lr, batch, flop, tokens], rel=3e-4)


def test_a_monomial_needs_all_its_variables() -> None:
    with pytest.raises(KeyError):
        Monomial(coefficient=1.0, exponents={"tokens": 0.5}).at(compute_flop=1.0)


def test_a_band_knows_what_lies_inside() -> None:
    band = Band(median=2.0, low_50=1.9, high_50=2.1, low_95=1.5, high_95=2.5)
    assert [band.inside_95(x) for x in (1.4, 1.5, 2.0, 2.5, 2.6, math.nan)] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
