"""Runs of one loss law differ in size and rate only, and they have learned something."""

import math
from functools import partial
from typing import Any

import pytest

from planner.design.run_draft import RunSettings, same_size_run
from planner.evidence.ledger_evidence import LedgerEvidence, rate_check, rate_flags
from planner.evidence.usable_runs import MAY_DIFFER, differences, distinct, matching, sound
from specs.budget import Budget
from specs.cluster import Cluster
from specs.data import CorpusRef
from specs.document.files import from_catalog, load
from specs.law import Family, PublishedLaw
from specs.model import ModelSpec
from specs.optim import Milestone
from specs.record import LedgerRecord
from specs.run import Imported, RunSpec
from tests.support import samples
from tests.support.paths import SPECS

LAW = from_catalog(PublishedLaw, "tiny", None)
assert LAW.hyper is not None
SETTINGS = RunSettings(
    budget=load(SPECS / "demo.yaml", Budget),
    family=from_catalog(Family, "tiny", None),
    cluster=from_catalog(Cluster, "laptop", None),
    hyper=LAW.hyper,
    data=CorpusRef(corpus="0123456789abcdef", digest="5" * 64),
    vocab=2800,
    mix=None,
)
OWN = partial(same_size_run, SETTINGS)
LAW_LR = 0.01


def run(section: str = "", **changes: Any) -> RunSpec:
    """One of the budget's own runs with these fields changed, in `model`, `optim`, `evaluation` or the run itself."""
    own = OWN(
        samples.run(model=samples.model(layers=1, width=64), optim=samples.optim(steps=2000, peak_lr=LAW_LR))
    )
    if not section:
        return own.model_copy(update=changes)
    return own.model_copy(update={section: getattr(own, section).model_copy(update=changes)})


def record(spec: RunSpec, loss: float, multiple: float = 1.0, **changes: Any) -> LedgerRecord:
    """A ledger line of this run, with a curve that ends at its loss."""
    fields: dict[str, Any] = {
        "run": spec,
        "role": "pilot" if multiple == 1 else "rate",
        "budget_flop": 1e12,
        "rate_multiple": multiple,
        "seal": "3" * 64,
        "tokens": spec.tokens,
        "compute_flop": spec.compute_flop,
        "loss": loss,
        "bytes_per_token": 1.0,
        "curve_step": (1000, 2000),
        "curve_loss": (1.1 * loss, loss),
        "tokens_per_s": 1e5,
        "weights_sha256": "3" * 64,
        "flags": (),
    }
    return LedgerRecord(**(fields | changes))


def at_rate(multiple: float, loss: float, seed: int = 0, **changes: Any) -> LedgerRecord:
    """The run of a learning-rate check at a multiple of the law's rate."""
    spec = run("optim", peak_lr=multiple * LAW_LR).model_copy(update={"seed": seed})
    return record(spec, loss, multiple, **changes)


def check_of(*records: LedgerRecord) -> Any:
    """The learning-rate check of these runs, found as `plan` finds it."""
    kept, failed, _ = sound(records)
    ledger = LedgerEvidence(
        pilots=tuple(one for one in kept if one.role != "rate"),
        rates=tuple(one for one in kept if one.role == "rate"),
        failed=tuple(failed),
    )
    return rate_check(ledger, lambda shape, flop: LAW_LR)


@pytest.mark.parametrize(
    "spec",
    [
        run(),
        run(seed=7),
        run(guard=None),
        run("optim", peak_lr=1.0),
        run("optim", batch_sequences=3),
        run("model", layers=3),
        run("evaluation", every_steps=7, sequences=2),
        OWN(run("optim", steps=140)),
        OWN(run("model", width=96, layers=2)),
    ],
)
def test_size_length_batch_rate_and_seed_may_differ(spec: RunSpec) -> None:
    assert differences(spec, OWN) == ()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (run("model", vocab=1400), "vocabulary 1400, not 2800"),
        (run("model", context=128), "context 128, not 256"),
        (run("model", rope_theta=1e4), "rope theta 10000.0, not 1000.0"),
        (run("model", norm_eps=1e-5), "norm eps 1e-05, not 1e-06"),
        (run("model", init_std=0.1), "init std 0.1, not 0.02"),
        (run("model", heads=4, kv_heads=4), "another family's number of heads"),
        (run("model", ffn=256), "another family's feed-forward width"),
        (run("optim", betas=(0.9, 0.99)), "AdamW's betas 0.9 and 0.99, not 0.9 and 0.95"),
        (run("optim", weight_decay=0.0), "weight decay 0.0, not 0.1"),
        (run("optim", clip_norm=9.0), "clip norm 9.0, not 1.0"),
        (run("optim", eps=1e-6), "eps 1e-06, not 1e-08"),
        (run("optim", milestones=(Milestone(step=1600, factor=0.1),)), "another learning-rate schedule"),
        (run("optim", warmup_steps=3), "another warmup"),
        (run("evaluation", final_sequences=3), "a final loss over 3 held-out sequences, not 512"),
        (run(precision="bf16"), "precision bf16, not fp32"),
        (run(parent=Imported(sha256="1" * 64)), "the weights of another run or of an import at the start"),
        (run("data", digest="6" * 64), "another text"),
        (run("model", width=65), "a width or a length that the budget's family does not have"),
    ],
)
def test_all_else_that_moves_the_loss_must_be_the_same(spec: RunSpec, says: str) -> None:
    found = differences(spec, OWN)
    assert says in found
    kept, flags = matching([record(run(), 3.0), record(spec, 3.0)], OWN)
    assert len(kept) == 1
    assert flags[0].startswith("1 of the ledger's 2 runs on this text is not used: ")
    assert says in flags[0]


def test_what_may_differ_names_fields_that_exist() -> None:
    """A field that is renamed must not become one that has to match, nor the other way round."""
    plain = run().plain()
    for name in MAY_DIFFER:
        section, _, field = name.rpartition(".")
        assert field in (plain[section] if section else plain)


def test_runs_are_counted_by_what_differs() -> None:
    runs = [run(seed=seed) for seed in range(3)]
    others = [run("model", vocab=1400).model_copy(update={"seed": seed}) for seed in range(2)]
    ledger = [record(spec, 3.0) for spec in (*runs, *others, run(precision="bf16"))]
    kept, flags = matching(ledger, OWN)
    assert [one.run for one in kept] == runs
    assert flags == (
        "3 of the ledger's 6 runs on this text are not used: 2 with vocabulary 1400, not 2800; 1 with precision bf16, "
        "not fp32",
    )


def test_one_training_under_two_names_counts_once_and_a_second_seed_twice() -> None:
    runs = [run(), run(seed=1), run("optim", peak_lr=2 * LAW_LR)]
    again = [
        run("data", corpus="fedcba9876543210"),
        run("evaluation", every_steps=run().evaluation.every_steps + 1),
        run(seed=1, guard=None),
    ]
    kept, flags = distinct([record(spec, 3.0) for spec in (*runs, *again)])
    assert [one.run for one in kept] == runs
    assert flags == (
        "3 of the ledger's runs on this text are trained twice under other names (another corpus folder of the same "
        "text, or another evaluation interval) and count once",
    )
    assert distinct(kept) == (kept, ())


UNIFORM = math.log(2800)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (record(run(), 11.0), "its loss 11.0000 is not below ln V = 7.9374 nats per token"),
        (record(run(), UNIFORM), "over 2,800 tokens"),
        (
            record(run(), 7.6),
            "is near ln V = 7.9374 nats per token, the loss of a uniform prediction, while the best",
        ),
        (record(run(), 0.4, curve_loss=(0.2, 0.4)), "rose during training, from 0.2000 to 0.4000"),
        (
            record(run(), math.exp(1.9), curve_loss=(2.5, 1.9)),
            "is not that at the end of its loss curve, 1.9000",
        ),
        (record(run(), -1.0), "its loss -1 is not above 0"),
    ],
)
def test_a_loss_that_is_no_evidence_is_named_with_what_to_do(bad: LedgerRecord, says: str) -> None:
    """Above ln V, beside ln V, rising as an accuracy does, a perplexity: each is left out, and the others stay."""
    good = [record(run(seed=seed), 3.0 + 0.1 * seed) for seed in (1, 2)]
    kept, failed, flags = sound([*good, bad])
    assert (kept, failed) == (good, [bad])
    assert flags[0].startswith(
        f"run {bad.fingerprint_of_run} (1.0e+12 FLOP, width 64) is left out of the fits: "
    )
    assert says in flags[0]
    assert f"see its curve in runs/{bad.fingerprint_of_run}" in flags[0]


def test_a_slow_run_is_no_failed_one() -> None:
    """Compared only with runs of its own budget: a small budget's best has learned little itself."""
    small = [record(run(seed=seed), loss, budget_flop=1e9) for seed, loss in ((1, 7.3), (2, 7.6))]
    large = [record(run(seed=3), 2.0), record(run(seed=4), 5.0)]
    assert sound([*small, *large])[0] == [*small, *large]


def test_many_such_runs_are_not_named_one_by_one() -> None:
    _, failed, flags = sound([record(run(seed=seed), 20.0) for seed in range(9)])
    assert len(failed) == 9
    assert len(flags) == 5
    assert flags[-1].startswith("5 more runs are left out")


def test_a_diverged_rate_moves_no_target() -> None:
    """300 times the rate ends near or above ln V: no parabola leads through it."""
    for loss in (7.7, 11.0):
        check = check_of(at_rate(0.5, 3.2), at_rate(1, 2.7), at_rate(300, loss))
        assert (check.best_multiple, check.bracketed, check.near_optimal) == (1, False, True)
        assert check.multiples == (0.5, 1)
        assert check.reason == "the highest rate tried that learned"
    assert rate_flags(check) == (
        "learning-rate check: x 1 is the highest rate tried that learned; the best rate may lie beside it",
    )


def test_parabolas_lead_through_near_neighbours_only() -> None:
    """At a factor 4 on either side, one further away is no support: the best that was tried is taken."""
    near = check_of(at_rate(0.25, 3.0), at_rate(1, 2.7), at_rate(4, 2.8))
    assert near.bracketed
    assert 1 < near.best_multiple < 2
    far = check_of(at_rate(0.5, 3.0), at_rate(1, 2.7), at_rate(5, 2.8))
    assert (far.best_multiple, far.bracketed) == (1, False)
    assert far.reason == "the best rate tried, as x 5 is too far away for a parabola"
    both = check_of(at_rate(0.1, 2.8), at_rate(1, 2.7), at_rate(300, 4.0))
    assert "as x 0.1 and x 300 are too far away" in both.reason


def test_rates_are_counted_once_whatever_the_seeds() -> None:
    """Two seeds of three rates give the check of their mean losses."""
    losses = {0.5: 2.9, 1: 2.7, 2: 2.8}
    once = check_of(*(at_rate(multiple, loss) for multiple, loss in losses.items()))
    seeds = [
        at_rate(multiple, loss * math.exp(noise), seed)
        for seed, noise in ((0, 0.01), (1, -0.01))
        for multiple, loss in losses.items()
    ]
    twice = check_of(*seeds)
    assert twice.multiples == once.multiples == (0.5, 1, 2)
    assert twice.losses == pytest.approx(once.losses)
    assert twice.best_multiple == pytest.approx(once.best_multiple)
    assert check_of(at_rate(1, 2.7), at_rate(1, 2.8, seed=1)) is None


def test_a_law_whose_own_rate_diverges_gives_way_to_the_rate_that_learned() -> None:
    check = check_of(at_rate(0.5, 2.7), at_rate(1, 9.0))
    assert (check.best_multiple, check.near_optimal, check.multiples) == (0.5, False, (0.5,))
    assert check.reason == "the only rate tried that learned"


def test_multiples_are_of_the_plans_own_law() -> None:
    """A check made under a law with twice the rate says nothing on this law's rate, unless it holds it as well."""
    other = [at_rate(2 * multiple, loss, rate_multiple=multiple) for multiple, loss in ((1, 2.7), (2, 2.9))]
    assert check_of(*other) is None
    check = check_of(*other, at_rate(1, 2.6))
    assert check.multiples == (1, 2, 4)


def test_rates_at_another_batch_are_another_check() -> None:
    def with_batch(one: LedgerRecord) -> LedgerRecord:
        optim = one.run.optim.model_copy(update={"batch_sequences": 2})
        return one.model_copy(update={"run": one.run.model_copy(update={"optim": optim})})

    shape: ModelSpec = run().model
    assert shape.uniform_loss == pytest.approx(UNIFORM)
    assert check_of(at_rate(1, 2.7), with_batch(at_rate(2, 2.5))) is None
