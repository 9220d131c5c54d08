from itertools import pairwise

import numpy as np
import pytest

from planner.scaling.data_constrained import MixedText, effective_tokens, one_epoch


def test_repeats_are_discounted_as_published() -> None:
    assert effective_tokens(4e9, 1e9) == pytest.approx(3.73e9, rel=2e-3)
    assert effective_tokens(16e9, 1e9) == pytest.approx(10.6e9, rel=2e-3)
    assert effective_tokens(1e30, 1e9) == pytest.approx(16.39e9)
    assert effective_tokens(5e8, 1e9) == 5e8
    assert effective_tokens(1e9, 1e9) == 1e9


def test_a_repeat_is_worth_less_than_a_fresh_token_and_more_than_nothing() -> None:
    worth = [effective_tokens(epochs * 1e6, 1e6) / 1e6 for epochs in np.linspace(1, 60, 100)]
    gains = [b - a for a, b in pairwise(worth)]
    assert all(gain > 0 for gain in gains)
    assert all(later < earlier < 59 / 99 for earlier, later in pairwise(gains))


def test_tokens_of_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="unique tokens 0 must be positive"):
        effective_tokens(1e9, 0)


def test_arrays_are_discounted_as_their_numbers() -> None:
    """Tokens alone or with as many unique ones, which may be infinite."""
    tokens, unique = np.array([1e8, 1e9, 4e9, 1e12]), np.array([1e9, 1e9, 1e9, np.inf])
    assert effective_tokens(tokens, 1e9).tolist() == [effective_tokens(float(d), 1e9) for d in tokens]
    assert effective_tokens(tokens, unique).tolist() == [
        effective_tokens(float(d), float(u)) for d, u in zip(tokens, unique, strict=True)
    ]
    assert effective_tokens(1e12, np.inf) == 1e12
    with pytest.raises(ValueError, match="must be positive"):
        effective_tokens(tokens, np.array([1e9, 0, 1e9, 1e9]))


def test_the_sources_of_a_mix_repeat_each_for_itself() -> None:
    mixed = MixedText(((0.9, 1e10), (0.1, 1e8)))
    tokens = np.array([1e8, 1e9, 1e11])
    expected = effective_tokens(0.9 * tokens, 1e10) + effective_tokens(0.1 * tokens, 1e8)
    assert effective_tokens(tokens, mixed).tolist() == expected.tolist()
    assert effective_tokens(1e9, mixed) == 1e9 == one_epoch(mixed)
    assert effective_tokens(1e11, mixed) < effective_tokens(1e11, 1.01e10)
    assert effective_tokens(3e9, MixedText(((1.0, 1e9),))) == effective_tokens(3e9, 1e9)
    assert one_epoch(mixed.scaled(2)) == 2e9
