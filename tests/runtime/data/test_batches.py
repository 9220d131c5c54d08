import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.data.batches import (
    DataError,
    RunData,
    Splits,
    held_out_rows,
    permuted_index,
    round_keys,
    sequence_count,
    training_rows,
)
from specs.run import Evaluation
from tests.support import samples

CONTEXT = 4
TOKENS = np.arange(10 * CONTEXT + 3, dtype=np.uint8)  # ten sequences; a token says where it lies


def starts(first: int, count: int, seed: int = 0) -> list[int]:
    """Which sequences a stretch of samples consists of."""
    return [int(row[0]) // CONTEXT for row in training_rows(TOKENS, CONTEXT, seed, first, count)]


def permutation(size: int, seed: int, epoch: int = 0) -> list[int]:
    keys = round_keys(f"{seed} {epoch}")
    return [permuted_index(index, size, keys) for index in range(size)]


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**40))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(size, seed, epoch)) == list(range(size))


def test_a_permutation_of_a_large_corpus_stays_inside_it() -> None:
    size = 10**12 + 39
    keys = round_keys("large")
    places = [permuted_index(index, size, keys) for index in range(0, size, size // 1000)]
    assert len(set(places)) == len(places)
    assert max(places) < size


def test_neighbours_stay_neighbours_no_more_often_than_by_chance() -> None:
    size, keys = 500, 200
    follows = 0
    for seed in range(keys):
        follows += int((np.diff(permutation(size, seed)) == 1).sum())
    assert abs(follows - keys) < 5 * keys**0.5  # one a permutation is expected; five standard deviations


def test_every_place_is_as_likely_as_any_other() -> None:
    size, keys = 24, 2000
    counts = np.zeros((size, size))
    for seed in range(keys):
        counts[np.arange(size), permutation(size, seed)] += 1
    chi_square = ((counts - keys / size) ** 2 / (keys / size)).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_each_epoch_goes_through_all_sequences_in_an_order_of_its_own() -> None:
    epochs = [starts(10 * epoch, 10) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_another_seed_is_another_order() -> None:
    assert starts(0, 10, seed=0) != starts(0, 10, seed=1)


@given(first=st.integers(0, 100), count=st.integers(1, 40), cut=st.integers(0, 40))
def test_rows_do_not_depend_on_how_they_are_divided_among_ranks(first: int, count: int, cut: int) -> None:
    cut = min(cut, count - 1)
    whole = training_rows(TOKENS, CONTEXT, 3, first, count)
    parts = [training_rows(TOKENS, CONTEXT, 3, first, cut)] if cut else []
    parts.append(training_rows(TOKENS, CONTEXT, 3, first + cut, count - cut))
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_order_of_the_data_never_changes() -> None:
    # A run that was begun with an earlier version of this program must go on with the same batches.
    assert starts(0, 12) == [0, 2, 8, 9, 1, 5, 7, 6, 4, 3, 7, 3]


def test_a_row_is_the_input_and_the_token_after_it() -> None:
    rows = training_rows(TOKENS, CONTEXT, 0, 0, 10)
    assert rows.shape == (10, CONTEXT + 1)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(CONTEXT + 1), (10, 1)))


def test_held_out_sequences_are_each_there_once_in_an_order_that_never_changes() -> None:
    rows = held_out_rows(TOKENS, CONTEXT, 0, 10)
    assert (rows[:, 0] // CONTEXT).tolist() == [9, 5, 7, 2, 8, 3, 6, 4, 0, 1]
    np.testing.assert_array_equal(held_out_rows(TOKENS, CONTEXT, 4, 3), rows[4:7])


def test_the_last_sequence_needs_its_target() -> None:
    assert sequence_count(np.zeros(2 * CONTEXT), CONTEXT) == 1
    assert sequence_count(np.zeros(2 * CONTEXT + 1), CONTEXT) == 2
    with pytest.raises(DataError, match="4 tokens are too few for one sequence of 4; add text"):
        sequence_count(np.zeros(CONTEXT), CONTEXT)


def test_a_held_out_split_that_is_too_small_is_refused_before_training() -> None:
    run = samples.run(
        model=samples.model(context=CONTEXT),
        evaluation=Evaluation(every_steps=10, sequences=2, final_sequences=11),
    )
    with pytest.raises(DataError, match="has 10 sequences of 4 tokens, but the evaluation needs 11"):
        RunData(run, {"": Splits(TOKENS, TOKENS)}).check_size()
    RunData(run, {"": Splits(TOKENS, np.zeros(11 * CONTEXT + 1))}).check_size()
