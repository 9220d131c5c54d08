import numpy as np
import pytest

from runtime.data import document_lengths as lengths
from runtime.data.document_lengths import document_lengths
from specs.document_lengths import LengthBin


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_documents_are_counted_by_what_ends_them_wherever_blocks_begin(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "_AT_ONCE", at_once)
    tokens = np.array([5, 0, 6, 7, 0, 0, 8, 9, 1, 2, 0, 3, 3], np.uint16)  # 2, 3, 1, 5 and an end of 2
    assert document_lengths(tokens, 0) == (
        LengthBin(documents=1, tokens=1),
        LengthBin(documents=2, tokens=4),
        LengthBin(documents=1, tokens=3),
        LengthBin(documents=1, tokens=5),
    )
