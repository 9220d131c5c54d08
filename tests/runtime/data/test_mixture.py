"""Which source a sample comes from: held to its share after every prefix, and to a replay of all that was read."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.data.batches import RunData, Splits, first_sample_of_step, training_rows
from runtime.data.mixture import Sampler, batches_by_phase, fair_order
from specs.mix import PERIOD, Mix, MixPhase, held_out_sequences
from specs.record import SkippedRange
from specs.run import Evaluation
from tests.support import samples


def most_off(counts: Sequence[int]) -> float:
    """The largest distance of a source from its share of any prefix of a period, in samples."""
    share = np.array(counts) / sum(counts)
    given_by = np.cumsum(np.array(fair_order(counts))[:, None] == np.arange(len(counts)), axis=0)
    due = share * np.arange(1, sum(counts) + 1)[:, None]
    assert given_by[-1].tolist() == list(counts)
    return float(np.abs(given_by - due).max())


def test_no_source_is_a_sample_off_its_share_after_any_prefix() -> None:
    """All mixes of up to four sources with up to five samples each in a period."""
    for sources in range(1, 5):
        for counts in product(range(6), repeat=sources):
            if any(counts):
                assert most_off(counts) < 1 - 1e-9, counts


@pytest.mark.parametrize(
    "counts", [(277, 277, 21, 1), (PERIOD - 2, 1, 1), (33_333, 33_333, 33_334), (1, 2, 4, 99_000, 900, 93)]
)
def test_nor_at_extreme_weights(counts: tuple[int, ...]) -> None:
    """Taking the largest deficit first is 1.04 samples off in the first of these."""
    assert most_off(counts) < 1 - 1e-9


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(any))
def test_nor_of_any_number_of_sources(counts: list[int]) -> None:
    assert most_off(counts) < 1 - 1e-9


@st.composite
def histories(draw: st.DrawFn) -> tuple[Mix, int, int, list[SkippedRange]]:
    """A mix, a batch, a number of steps, and the rollbacks of a run in order."""
    names = ["code", "math", "web"][: draw(st.integers(1, 3))]
    weight = st.sampled_from([0, 1, 2, 7, 100, 2000])
    starts = sorted({0, *draw(st.lists(st.integers(1, 19), max_size=3))})
    some = st.fixed_dictionaries(dict.fromkeys(names, weight)).filter(lambda found: any(found.values()))
    phases = tuple(MixPhase(from_step=start, samples=draw(some)) for start in starts)
    read = {name for phase in phases for name, count in phase.samples.items() if count}
    steps, skipped, batches, at = 20, list[SkippedRange](), 0, 0
    for _ in range(draw(st.integers(0, 3))):
        step = draw(st.integers(at + 1, steps))
        batches += step - at
        at = draw(st.integers(0, step - 1))
        skipped.append(SkippedRange(step=step, to_step=at, batches=batches))
    return Mix(phases=phases, evaluation=dict.fromkeys(read, 1)), draw(st.integers(1, 5)), steps, skipped


@given(histories())
def test_a_sample_is_what_a_replay_of_the_whole_run_finds(
    history: tuple[Mix, int, int, list[SkippedRange]],
) -> None:
    """Read in the order of time, rollbacks included: each source counts on, and each phase keeps its shares."""
    mix, batch, steps, skipped = history
    sampler, given_by, read = Sampler.of(mix), Counter[str](), Counter[int]()
    at = 0
    for number in range(len(skipped) + 1):
        known = skipped[:number]
        last = skipped[number].step if number < len(skipped) else steps
        for step in range(at + 1, last + 1):
            phase = max(i for i, one in enumerate(mix.phases) if one.from_step < step)
            assert batches_by_phase(sampler.starts, step, known) == [read[i] for i in range(len(mix.phases))]
            assert sum(read.values()) * batch == first_sample_of_step(step, batch, known)
            assert sampler.given(step, batch, known) == {name: given_by[name] for name in mix.sources}
            places = np.full(batch, -1)
            for taken in sampler.samples(step, batch, known, 0, batch):
                assert taken.first == given_by[taken.source]
                given_by[taken.source] += len(taken.places)
                places[taken.places] = 1
            assert (places == 1).all()
            read[phase] += 1
        at = skipped[number].to_step if number < len(skipped) else at


CONTEXT = 4
SIZES = {"code": 5, "math": 3, "web": 9}
"""Sequences of each source."""
MIX = Mix(
    phases=(
        MixPhase(from_step=0, samples={"web": 7, "code": 2, "math": 1}),
        MixPhase(from_step=6, samples={"web": 1, "math": 3}),
    ),
    evaluation={"web": 90, "code": 9, "math": 1},
)


def run_data(mix: Mix | None = MIX, **evaluation: int) -> RunData:
    """Sources whose tokens say where they lie: web from 0 on, code from 1000 on, math from 2000 on."""
    firsts = {"web": 0, "code": 1000, "math": 2000}
    splits = {}
    for name, first in firsts.items():
        tokens = first + np.arange(SIZES[name] * CONTEXT + 1)
        splits[name] = Splits(tokens, tokens)
    run = samples.run(
        model=samples.model(context=CONTEXT),
        optim=samples.optim(batch_sequences=4),
        mix=mix,
        evaluation=Evaluation(**({"every_steps": 10, "sequences": 3, "final_sequences": 5} | evaluation)),
    )
    return RunData(run, splits)


def sequences_of(steps: range, skipped: Sequence[SkippedRange] = ()) -> list[tuple[str, int]]:
    """Source and number of every sequence of these steps' batches."""
    rows = np.concatenate([run_data().training_rows(step, skipped, 0, 4) for step in steps])
    names = {0: "web", 1: "code", 2: "math"}
    return [(names[first // 1000], first % 1000 // CONTEXT) for first in rows[:, 0].tolist()]


def test_every_sequence_of_a_source_comes_once_before_one_comes_again() -> None:
    found = sequences_of(range(1, 13))
    for name, size in SIZES.items():
        own = [number for source, number in found if source == name]
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == list(range(size)), name


def test_sources_of_the_same_size_have_orders_of_their_own() -> None:
    tokens = np.arange(40 * CONTEXT + 1)
    orders = [training_rows(tokens, CONTEXT, 0, 0, 40, name)[:, 0].tolist() for name in ("web", "code", "")]
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_of_a_mix_never_changes() -> None:
    """A run that was begun with an earlier version of this program must go on with the same batches."""
    after_rollback = (SkippedRange(step=8, to_step=4, batches=8),)
    assert letters(sequences_of(range(1, 3))) == "w6 w2 c0 w8 w0 w7 c3 w3"
    assert letters(sequences_of(range(5, 8), after_rollback)) == "w5 w1 c3 w4 m1 w2 w6 w3 m2 m0 m1 w0"


def letters(found: list[tuple[str, int]]) -> str:
    return " ".join(f"{source[0]}{number}" for source, number in found)


def test_rows_do_not_depend_on_how_they_are_divided_among_ranks() -> None:
    data = run_data()
    whole = data.training_rows(7, (), 0, 4)
    parts = [data.training_rows(7, (), place, count) for place, count in ((0, 1), (1, 2), (3, 1))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_an_evaluation_takes_of_each_source_by_its_share_and_one_at_least() -> None:
    assert held_out_sequences({"web": 90, "code": 9, "math": 1}, 100) == {"code": 9, "math": 1, "web": 90}
    assert held_out_sequences({"web": 999, "code": 0, "math": 1}, 10) == {"code": 1, "math": 1, "web": 8}
    parts = run_data().held_out_parts(5)
    assert [(part.source, part.sequences, part.share) for part in parts] == [
        ("code", 1, 0.09),
        ("math", 1, 0.01),
        ("web", 3, 0.9),
    ]


def test_a_source_that_holds_out_too_little_is_named() -> None:
    run_data().check_size()
    with pytest.raises(
        ValueError, match=r"web: the held-out split has 9 sequences of 4 tokens, but .* needs 18"
    ):
        run_data(final_sequences=20).check_size()
