"""Shapes: the paper's models come out of their M and family; every shape is legal; M decides."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.design.model_shape import (
    family_shapes,
    heads_for,
    make_shape,
    practice_depth,
    shape_for,
    stage_balance,
)
from specs.document.files import from_catalog
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


@pytest.mark.parametrize(
    ("layers", "width", "ffn"),
    [(32, 4096, 11008), (40, 5120, 13824), (60, 6656, 17920), (80, 8192, 22016)],
    ids=["7B", "13B", "33B", "65B"],
)
def test_llamas_come_out_of_their_own_size(layers: int, width: int, ffn: int) -> None:
    """LLaMA, Table 2, from the M of each at its published depth and width; FFN widths as in its released weights."""
    family = from_catalog(Family, "llama", None)
    published = make_shape(family, width, layers, 32000)
    shape = shape_for(family, 32000, published.flop_per_token)
    assert (shape.layers, shape.width, shape.ffn) == (layers, width, ffn)


@pytest.mark.parametrize(
    ("flop_per_token", "layers", "stages"),
    [(4.228e10, 30, (2, 4, 8)), (4.33e11, 95, (2, 4, 8, 16))],
    ids=["7B", "67B"],
)
def test_the_papers_depths_are_those_that_balance(
    flop_per_token: float, layers: int, stages: tuple[int, ...]
) -> None:
    """With the head as work of the last stage 30 and 95 layers make even pieces; one more would cost a tenth."""
    for count in stages:
        shape = shape_for(DEEPSEEK, 100015, flop_per_token, stages=count)
        assert shape.layers == layers
        assert stage_balance(shape, count) > 0.985
    deeper = shape.model_copy(update={"layers": layers + 1})
    assert stage_balance(deeper, stages[-1]) < 0.9


@pytest.mark.slow
@given(st.floats(min_value=11.0, max_value=13.0), st.sampled_from([2, 4, 8]))
def test_stages_balance_whatever_the_size(log_m: float, stages: int) -> None:
    """From 1e11 on, where pipelines are used: under 4 % of the stages' time is lost to the fullest, M within 8 %."""
    shape = shape_for(DEEPSEEK, 100015, 10**log_m, stages=stages)
    assert stage_balance(shape, stages) > 0.96
    assert abs(math.log(shape.flop_per_token / 10**log_m)) < 0.08


def test_balance_is_the_mean_over_the_fullest_stage() -> None:
    """A head worth exactly one block (6 V d = 6 N_block + 12 d s): 7 layers on 4 stages are even, 8 are not."""
    shape = shape_for(DEEPSEEK, 100015, 1e10)
    per_block = shape.flop_per_token / shape.layers
    even = shape.model_copy(update={"vocab": round(per_block / (6 * shape.width)), "layers": 7})
    assert stage_balance(even, 4) == pytest.approx(1, rel=1e-3)
    assert stage_balance(even.model_copy(update={"layers": 8}), 4) == pytest.approx(9 / 4 / 3, rel=1e-3)
    assert stage_balance(even, 8) == 1 / 8
    assert stage_balance(even, 1) == 1


@given(st.integers(1, 60), st.integers(2, 12), st.integers(256, 500_000))
def test_balance_is_the_best_of_all_cuts(layers: int, stages: int, vocab: int) -> None:
    """Against every number of blocks that the last stage may have."""
    shape = shape_for(DEEPSEEK, 100015, 1e10).model_copy(update={"layers": layers, "vocab": vocab})
    if layers < stages:
        return
    head = 6 * vocab * shape.width / (shape.flop_per_token / layers)
    every = [
        max(math.ceil((layers - last) / (stages - 1)), last + head) for last in range(1, layers - stages + 2)
    ]
    assert stage_balance(shape, stages) == pytest.approx((layers + head) / stages / min(every))


def test_heads_can_be_cut_as_wide_models_are() -> None:
    """Where practice cuts a block over 8 devices, so can these, in all but a few sizes between two widths."""
    shapes = [shape_for(DEEPSEEK, 100015, 10 ** (11.6 + 0.02 * i)) for i in range(70)]
    assert sum(shape.heads % 8 == 0 for shape in shapes) >= 68


@pytest.mark.parametrize("measure", ["params", "block_params", "flop_per_token"])
def test_any_count_can_be_asked_for(measure: str) -> None:
    """7e9 of each within 5 %, by a shape near practice."""
    wanted = 7e9 if measure != "flop_per_token" else 4.2e10
    shape = shape_for(DEEPSEEK, 100015, wanted, lambda shape: float(getattr(shape, measure)))
    assert getattr(shape, measure) == pytest.approx(wanted, rel=0.05)
    assert shape.layers == pytest.approx(practice_depth(DEEPSEEK, shape.width), rel=0.18)


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
    assert practice_depth(TINY, 8) == practice_depth(TINY, 128) == TINY.depths[0][1]


@given(log_m=st.floats(12, 13.5), stages=st.sampled_from((1, 8, 16, 64)))
def test_no_shape_is_deeper_than_models_are_built_unless_the_family_is(log_m: float, stages: int) -> None:
    shape = shape_for(DEEPSEEK, 102400, 10**log_m, stages=stages)
    assert shape.layers <= 126
    assert shape.flop_per_token == pytest.approx(10**log_m, rel=0.06)
    deep = DEEPSEEK.model_copy(update={"depths": ((64, 1), (64000, 1000))})
    assert shape_for(deep, 102400, 10**13.5).layers > 200


@pytest.mark.parametrize(("width", "heads"), [(4096, 32), (8192, 64), (16, 1), (48, 2), (72, 2), (96, 3)])
def test_heads_divide_the_width_evenly(width: int, heads: int) -> None:
    """Head sizes near 128 for the large, near 32 for the tiny, always even."""
    assert heads_for(width, 128 if width > 1000 else 32) == heads


def test_shapes_grow_with_width() -> None:
    """The list covers the wanted M and ends just beyond it."""
    found = family_shapes(TINY, 256, 1e6)
    assert found[0].width == TINY.min_width
    assert found[-1].flop_per_token > 1e6 >= found[-2].flop_per_token
