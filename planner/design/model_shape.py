"""From a target size to a legal LLaMA shape of a family.

The size is usually M (non-embedding FLOP per token), but any count that grows with the shape will do. Width and depth
are searched together: the depth stays near the family's practice, and if the model is split into pipeline stages, the
depth balances them. The head is work of the last stage, worth about V / (12 d) blocks: 1.8 of the paper's 7B and 1.1 of
its 67B, so that 30 and 95 layers make nearly 32 and 96 equal pieces (DeepSeek LLM, section 2.2).
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

from specs.law import Family
from specs.model import ModelSpec

MAX_WIDTH_MULTIPLES = 512
"""Widths beyond this many multiples are not searched: 65536 for a multiple of 128, far past any model built."""
NEAREST_WIDTHS = 12
"""Widths whose depths are searched: those nearest to the target size at the depth of practice."""
DEPTH_FREEDOM = 0.18
"""Depths within this share of the family's practice are tried: enough to bridge the step from one legal width to the
next in M (a step of 1024 at a width of 9216 is 43 %, as M grows with the 3.6th power of the width), within 5 %."""
DEEPEST = 126
"""Most layers, unless the family or a budget's `aspect` itself goes deeper: those of Llama 3 405B (arXiv 2407.21783,
Table 3). PaLM 540B is 118 deep at a width of 18,432 (arXiv 2204.02311, Table 1), MT-NLG 530B 105 at 20,480 (arXiv
2201.11990, section 3.1): wider models are no deeper."""
DEPTH_PENALTY = 0.25
"""Cost of a relative deviation in depth against one in size: size decides, depth breaks near-ties."""
CUT_PENALTY = 0.05
"""Cost of each halving of tensor parallelism below practice that the number of heads enforces."""
_TENSOR_PARALLEL = ((4096, 2), (6144, 4), (7168, 8))
"""From a width on, the tensor-parallel size in use: Megatron-core's table of model sizes on H100s (README, r0.8.0)."""
SIZE_FREEDOM = 0.05
"""How much further from the target size balanced stages may lead: 5 % cost 0.02 % of compute (a factor 4 costs 16 % by
the epoch-chinchilla law, quadratically)."""
IDLE_PENALTY = 2.0
"""Cost of the share of time that pipeline stages wait for the fullest one, against a relative deviation in size. All of
that time is lost."""


def practice_depth(family: Family, width: int) -> float:
    """Layers that the family's practice gives this width: piecewise linear in log-log, end slopes continued, but no
    deeper than models are built."""
    knots = family.depths
    if len(knots) == 1:
        return float(knots[0][1])
    upper = next((i for i in range(1, len(knots) - 1) if knots[i][0] >= width), len(knots) - 1)
    (w0, l0), (w1, l1) = knots[upper - 1], knots[upper]
    slope = math.log(l1 / l0) / math.log(w1 / w0)
    return min(float(l0 * (width / w0) ** slope), float(deepest(family)))


def deepest(family: Family) -> int:
    """Most layers of a shape."""
    return max(DEEPEST, *(layers for _, layers in family.depths))


@cache
def heads_for(width: int, head_dim: int) -> int:
    """The number of heads whose size is nearest to `head_dim` (in ratio) among those that divide the width evenly."""
    legal = [h for h in range(1, width // 2 + 1) if width % (2 * h) == 0]
    return min(legal, key=lambda h: (abs(math.log(width / h / head_dim)), h))


def make_shape(family: Family, width: int, layers: int, vocab: int) -> ModelSpec:
    """The family's shape of this width and depth: heads, GQA groups, rounded FFN, padded vocabulary."""
    heads = family.heads or heads_for(width, family.head_dim)
    return ModelSpec(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=family.gqa_kv_heads if _is_grouped(family, width) else heads,
        ffn=_round_up(8 * width / 3, family.ffn_multiple),
        vocab=_round_up(vocab, family.vocab_multiple),
        context=family.context,
        mean_attended_tokens=family.mean_attended_tokens,
        rope_theta=family.rope_theta,
        init_std=family.init_std,
    )


def family_shapes(family: Family, vocab: int, below_flop_per_token: float) -> list[ModelSpec]:
    """The family's shapes at practice depth, one a width, smallest first, up to one beyond the given M."""
    shapes: list[ModelSpec] = []
    for shape in _practice_shapes(family, vocab):
        shapes.append(shape)
        if shape.flop_per_token > below_flop_per_token:
            break
    return shapes


def shape_for(
    family: Family,
    vocab: int,
    target_size: float,
    measure: Callable[[ModelSpec], float] = lambda shape: shape.flop_per_token,
    stages: int = 1,
) -> ModelSpec:
    """The shape whose size is nearest to the target, near practice in depth and balanced over pipeline stages.

    `measure` gives the size of a shape, by default M; it must grow with width and depth.
    """
    candidates = [
        (abs(math.log(measure(shape) / target_size)), penalty, shape)
        for practice in _nearest_practice_shapes(family, vocab, target_size, measure)
        for shape, penalty in _shapes_of_width(family, practice)
    ]
    size_error, *_ = min(candidates, key=lambda one: (one[0] + one[1], one[2].width))
    close = [one for one in candidates if one[0] <= size_error + SIZE_FREEDOM]
    return min(close, key=lambda one: one[0] + one[1] + IDLE_PENALTY * (1 - stage_balance(one[2], stages)))[2]


def stage_balance(shape: ModelSpec, stages: int) -> float:
    """Mean over largest FLOP of the pipeline stages at the best cut, the head being work of the last one; 1 is even."""
    if stages == 1:
        return 1.0
    if shape.layers < stages:
        return 1 / stages
    head = 6 * shape.vocab * shape.width / (shape.flop_per_token / shape.layers)
    even = max(1, math.floor((shape.layers + head) / stages))
    fullest = min(
        max(blocks, max(1, shape.layers - blocks * (stages - 1)) + head) for blocks in (even, even + 1)
    )  # blocks of the other stages; fewer would leave the last stage more than one block over, more are never needed
    return (shape.layers + head) / stages / fullest


def _forbidden_halvings(shape: ModelSpec) -> int:
    """How many halvings of its width's usual tensor parallelism the heads of a shape need."""
    usual = max((size for width, size in _TENSOR_PARALLEL if width <= shape.width), default=1)
    return (usual // math.gcd(usual, shape.heads)).bit_length() - 1


def _nearest_practice_shapes(
    family: Family, vocab: int, target_size: float, measure: Callable[[ModelSpec], float]
) -> list[ModelSpec]:
    """The shapes at practice depth that are nearest to the target size."""
    shapes: list[ModelSpec] = []
    for shape in _practice_shapes(family, vocab):
        shapes.append(shape)
        if measure(shape) * (1 - DEPTH_FREEDOM) > target_size:
            break
    return sorted(shapes, key=lambda shape: abs(math.log(measure(shape) / target_size)))[:NEAREST_WIDTHS]


@cache
def _shapes_of_width(family: Family, practice: ModelSpec) -> tuple[tuple[ModelSpec, float], ...]:
    """The shapes of this width whose depths are near practice, each with what its depth and its heads cost."""
    depth = practice_depth(family, practice.width)
    low = max(1, math.ceil((1 - DEPTH_FREEDOM) * depth))
    high = min(deepest(family), max(low, math.floor((1 + DEPTH_FREEDOM) * depth)))
    cut = CUT_PENALTY * _forbidden_halvings(practice)
    return tuple(
        (practice.model_copy(update={"layers": layers}), DEPTH_PENALTY * abs(math.log(layers / depth)) + cut)
        for layers in range(low, high + 1)
    )


def _practice_shapes(family: Family, vocab: int) -> Iterator[ModelSpec]:
    """The family's shapes at practice depth, one a width, smallest first."""
    return (_practice_shape(family, vocab, width) for width in _widths(family))


@cache
def _practice_shape(family: Family, vocab: int, width: int) -> ModelSpec:
    return make_shape(family, width, max(1, round(practice_depth(family, width))), vocab)


def _widths(family: Family) -> list[int]:
    """Legal widths; where queries are grouped, the heads must divide into the groups."""
    widths = range(
        family.width_multiple, MAX_WIDTH_MULTIPLES * family.width_multiple + 1, family.width_multiple
    )
    grouped = family.head_dim * family.gqa_kv_heads
    return [w for w in widths if w >= family.min_width and (not _is_grouped(family, w) or w % grouped == 0)]


def _is_grouped(family: Family, width: int) -> bool:
    return family.gqa_from_width is not None and width >= family.gqa_from_width


def _round_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
