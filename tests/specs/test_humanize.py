"""Counts, durations and energies as a person says them."""

import pytest

from specs.humanize import count, duration, energy, several


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.42, "0.42 s"),
        (9.96, "10 s"),
        (42.3, "42 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (18720, "5 h 12 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (640, "640"),
        (1024, "1.02k"),
        (23_592_960, "23.6M"),
        (999_700, "1M"),
        (1.5e9, "1.5B"),
        (1.52e12, "1.52T"),
    ],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("joules", "text"), [(3600, "1 Wh"), (4.32e6, "1.2 kWh"), (1.75e12, "486 MWh"), (3.6e13, "10 GWh")]
)
def test_energy_is_in_watt_hours(joules: float, text: str) -> None:
    assert energy(joules) == text


def test_one_thing_is_not_many() -> None:
    assert [several(1, "layer"), several(2048, "device"), several(0, "run")] == [
        "1 layer",
        "2,048 devices",
        "0 runs",
    ]
