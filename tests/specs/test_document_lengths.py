import numpy as np
import pytest

from specs.document_lengths import LengthBin, length_bin, mean_attended_tokens, weighted_mean


def counted(lengths: list[int], context: int) -> float:
    """Over every place where the cuts may lie."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    found = 0.0
    for offset in range(context):
        sequence = (np.arange(len(document)) + offset) // context
        _, sizes = np.unique(np.stack([document, sequence]), axis=1, return_counts=True)
        found += float((sizes.astype(float) ** 2).sum())
    return found / context / len(document)


@pytest.mark.parametrize("context", [1, 2, 7, 32, 100])
@pytest.mark.parametrize("lengths", [[1], [5], [32], [33, 1, 8], [300], [7, 7, 50, 2, 90]])
def test_attended_tokens_are_those_counted_over_all_cuts(lengths: list[int], context: int) -> None:
    bins = [LengthBin(documents=1, tokens=length) for length in lengths]
    assert mean_attended_tokens(bins, context) == pytest.approx(counted(lengths, context), rel=1e-12)


def test_lengths_of_one_bin_are_as_good_as_equal() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1.5, 20_000).astype(int) + 1
    bins: dict[int, list[int]] = {}
    for length in lengths.tolist():
        of_bin = bins.setdefault(length_bin(length), [0, 0])
        of_bin[0] += 1
        of_bin[1] += length
    binned = [LengthBin(documents=count, tokens=tokens) for count, tokens in bins.values()]
    single = [LengthBin(documents=1, tokens=length) for length in lengths.tolist()]
    for context in (256, 4096):
        exact = mean_attended_tokens(single, context)
        assert mean_attended_tokens(binned, context) == pytest.approx(exact, rel=1e-3)
        assert exact < context


def test_a_mix_sees_by_its_shares() -> None:
    assert weighted_mean([(0.75, 100.0), (0.25, 20.0)]) == pytest.approx(80.0)
