"""Published step times and memory: mean errors of ours, of the rows that fitted our constants and of those held out."""

import pytest

from bench.published import TABLES
from bench.tables import COMPARISONS, Comparison, clusters, mean_error


@pytest.mark.skipif(not TABLES.is_dir(), reason="the published tables are not at hand")
@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda c: c.title)
def test_mean_errors(comparison: Comparison) -> None:
    """At most what is asked, in all and on the rows held out; no more than half of the rows are fitted."""
    cases = list(comparison.cases(clusters()))
    held_out = [case for case in cases if not case.fitted]
    assert mean_error(cases) <= comparison.at_most
    assert mean_error(held_out) <= comparison.at_most
    assert 2 * len(held_out) >= len(cases)
