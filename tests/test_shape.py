"""Shapes: the paper's models come out of their M and family; every shape is legal; M decides."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.shape import heads_for, practice_depth, shape_for, sizes_of_family
from specs.files import from_catalog
from specs.law import Family

DEEPSEEK = from_catalog(Family, "deepseek", None)
TINY = from_catalog(Family, "tiny", None)


@pytest.mark.parametrize(
    ("flop_per_token", "layers", "width", "kv_heads", "ffn"),
    [(4.228e10, 30, 4096, 32, 11008), (4.33e11, 95, 8192, 8, 22016)],
    ids=["7B", "67B"],
)
def test_the_papers_models_come_out(
    flop_per_token: float, layers: int, width: int, kv_heads: int, ffn: int
) -> None:
    """DeepSeek LLM, Table 2; M of the 67B is the exact one."""
    shape = shape_for(DEEPSEEK, 100015, flop_per_token)
    assert (shape.layers, shape.width, shape.kv_heads, shape.ffn) == (layers, width, kv_heads, ffn)
    assert shape.flop_per_token == pytest.approx(flop_per_token, rel=0.01)


def test_the_vocabulary_is_padded() -> None:
    """100015 tokens become a multiple of 128."""
    assert shape_for(DEEPSEEK, 100015, 1e10).vocab == 100096


@settings(deadline=None)  # the first example pays for imports
@given(st.floats(min_value=8.6, max_value=13.0))
def test_a_target_is_met_within_a_few_per_cent(log_m: float) -> None:
    """Any M from 4e8, the smallest shape, to 1e13: within 35 %, from 1e9 on 20 %, from 1e10 on 5 %."""
    shape = shape_for(DEEPSEEK, 100015, 10**log_m)
    off = abs(math.log(shape.flop_per_token / 10**log_m))
    assert off < (0.05 if log_m > 10 else 0.35 if log_m < 9 else 0.2)


def test_depth_follows_practice_between_the_knots() -> None:
    """Knots are met exactly; between them depth is monotone."""
    for width, layers in DEEPSEEK.depths:
        assert practice_depth(DEEPSEEK, width) == pytest.approx(layers)
    assert 30 < practice_depth(DEEPSEEK, 6144) < 95 < practice_depth(DEEPSEEK, 9216)
    assert practice_depth(TINY, 8) == practice_depth(TINY, 128) == 2


@pytest.mark.parametrize(("width", "heads"), [(4096, 32), (8192, 64), (16, 1), (48, 2), (72, 2), (96, 3)])
def test_heads_divide_the_width_evenly(width: int, heads: int) -> None:
    """Head sizes near 128 for the large, near 32 for the tiny, always even."""
    assert heads_for(width, 128 if width > 1000 else 32) == heads


def test_shapes_grow_with_width() -> None:
    """The list covers the wanted M and ends just beyond it."""
    found = sizes_of_family(TINY, 256, 1e6)
    assert found[0].width == TINY.min_width
    assert found[-1].flop_per_token > 1e6 >= found[-2].flop_per_token
