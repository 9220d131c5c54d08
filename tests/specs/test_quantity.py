import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specs.document import quantity as q

ALL = [
    q.FLOP,
    q.FLOP_PER_S,
    q.BYTES,
    q.BYTES_PER_S,
    q.SECONDS,
    q.DOLLARS,
    q.DOLLARS_PER_HOUR,
    q.DEVICE_HOURS,
    q.WATTS,
    q.JOULES,
    q.LOSS,
]
POSITIVE = st.floats(min_value=sys.float_info.min, max_value=1e300)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (q.FLOP, "1e24 FLOP", 1e24),
        (q.FLOP, "2.5 YFLOP", 2.5e24),
        (q.FLOP, "7EFLOP", 7e18),
        (q.FLOP_PER_S, "989 TFLOP/s", 989e12),
        (q.BYTES, "80 GiB", 80 * 2**30),
        (q.BYTES, "4 GB", 4e9),
        (q.BYTES_PER_S, "400 Gb/s", 50e9),
        (q.BYTES_PER_S, "3.35 TB/s", 3.35e12),
        (q.SECONDS, "30 d", 30 * 24 * 3600),
        (q.SECONDS, "700 ms", 0.7),
        (q.SECONDS, "90 min", 5400),
        (q.DOLLARS, "$2M", 2e6),
        (q.DOLLARS, "$ 1_000", 1000),
        (q.DOLLARS_PER_HOUR, "$2.20/h", 2.2),
        (q.DEVICE_HOURS, "1.5M GPU-hours", 1.5e6),
        (q.DEVICE_HOURS, "664 device-hours", 664),
        (q.TOKENS, "2T tokens", 2 * 10**12),
        (q.TOKENS, "0.017T tokens", 17 * 10**9),
        (q.TOKENS, "1_000 tokens", 1000),
        (q.TOKENS, "1.5e3 k tokens", 1_500_000),
        (q.PARAMS, "6.7B params", 6_700_000_000),
        (q.WATTS, "0.7 kW", 700),
        (q.JOULES, "500 MWh", 1.8e12),
        (q.JOULES, "2 GJ", 2e9),
        (q.LOSS, "2.05 nats/token", 2.05),
    ],
)
def test_texts_that_people_write(kind: q.Quantity, text: str, value: float) -> None:
    assert kind.parse(text) == value
    assert type(kind.parse(text)) is (int if kind.whole else float)


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        (q.FLOP, 1e24, "has no unit"),
        (q.FLOP, 1, "has no unit"),
        (q.FLOP, True, "has no unit"),
        (q.FLOP, None, "has no unit"),
        (q.FLOP, "1e24", "has no unit"),
        (q.FLOP, "1e24 flop", "is not a unit"),
        (q.FLOP, "1e24 FLOP/s", "is not a unit"),
        (q.FLOP_PER_S, "1 FLOP", "is not a unit"),
        (q.BYTES, "80 Gib", "is not a unit"),
        (q.BYTES, "80 Gb", "is not a unit"),
        (q.SECONDS, "30 days", "is not a unit"),
        (q.SECONDS, "12:00:00", "is not a unit"),
        (q.DOLLARS, "2M", "is not a quantity"),
        (q.DOLLARS, "$2 million", "is not a unit"),
        (q.TOKENS, "2T", "is not a unit"),
        (q.TOKENS, "0.5 tokens", "is not a whole number"),
        (q.TOKENS, "1,000 tokens", "is not a unit"),
        (q.FLOP, "0 FLOP", "is not a positive, finite"),
        (q.FLOP, "-1 FLOP", "is not a quantity"),
        (q.FLOP, "nan FLOP", "is not a quantity"),
        (q.FLOP, "inf FLOP", "is not a quantity"),
        (q.FLOP, "1e999 FLOP", "is not a positive, finite"),
        (q.FLOP, "1e-999 FLOP", "is not a positive, finite"),
        (q.FLOP, "1__0 FLOP", "is not a unit"),
        (q.FLOP, "٣ FLOP", "is not a quantity"),
        (q.FLOP, "1" * 5000 + " FLOP", "is not a quantity"),
        (q.FLOP, "", "is not a quantity"),
    ],
)
def test_refused_with_an_example_that_is_accepted(kind: q.Quantity, value: object, what: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        kind.parse(value)
    assert str(caught.value).endswith(f"; write it like '{kind.example}'")
    assert kind.parse(kind.example) > 0


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.base or "$")
@given(value=POSITIVE)
def test_writing_and_reading_changes_nothing(kind: q.Quantity, value: float) -> None:
    assert kind.parse(kind.write(value)) == value


@given(st.integers(min_value=1, max_value=10**30))
def test_tokens_are_exact(tokens: int) -> None:
    assert q.TOKENS.parse(q.TOKENS.write(tokens)) == tokens


@given(st.integers(min_value=1, max_value=10**9), st.sampled_from(["k", "M", "B", "T"]))
def test_decimal_fractions_of_tokens_are_exact(thousandths: int, prefix: str) -> None:
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{prefix} tokens"
    assert q.TOKENS.parse(text) == thousandths * {"k": 1, "M": 10**3, "B": 10**6, "T": 10**9}[prefix]


@pytest.mark.parametrize("kind", [*ALL, q.TOKENS, q.PARAMS], ids=lambda kind: kind.base or "$")
def test_every_unit_is_read_with_its_factor(kind: q.Quantity) -> None:
    for unit, factor in kind.units:
        text = f"{kind.prefix}3000000{unit}"
        assert kind.parse(text) == pytest.approx(float(3_000_000 * factor), rel=1e-15)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.sampled_from([*ALL, q.TOKENS, q.PARAMS]),
    st.text() | st.from_regex(r"\$?[0-9._eE+-]{1,20} ?[A-Za-z/-]{0,12}"),
)
def test_any_text_gives_a_quantity_or_a_value_error(kind: q.Quantity, text: str) -> None:
    try:
        value = kind.parse(text)
    except ValueError as error:
        message = str(error)
    else:
        assert value > 0
        assert math.isfinite(value)
        return
    assert "; write it like '" in message
