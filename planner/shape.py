"""From a target M (non-embedding FLOP per token) to a legal LLaMA shape of a family."""

import math

from specs.law import Family
from specs.model import ModelSpec

MAX_WIDTH_MULTIPLES = 512
"""Widths beyond this many multiples are not searched: 65536 for a multiple of 128, far past any model built."""
DEPTH_FREEDOM = 0.15
"""Depths within this share of the family's practice are tried: enough to bridge the step from one legal width to the
next in M (a step of 1024 at a width of 9216 is 43 %, as M grows with the 3.6th power of the width), within 5 %."""
DEPTH_PENALTY = 0.25
"""Cost of a relative departure in depth against one in M: M decides, depth breaks near-ties."""


def practice_depth(family: Family, width: int) -> float:
    """Layers that the family's practice gives this width: piecewise linear in log-log, end slopes continued."""
    knots = family.depths
    if len(knots) == 1:
        return float(knots[0][1])
    upper = next((i for i in range(1, len(knots) - 1) if knots[i][0] >= width), len(knots) - 1)
    (w0, l0), (w1, l1) = knots[upper - 1], knots[upper]
    slope = math.log(l1 / l0) / math.log(w1 / w0)
    return float(l0 * (width / w0) ** slope)


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
        init_std=family.init_std,
    )


def sizes_of_family(family: Family, vocab: int, below_flop_per_token: float) -> list[ModelSpec]:
    """The family's shapes at practice depth, one a width, smallest first, up to one beyond the given M."""
    found: list[ModelSpec] = []
    for width in _widths(family):
        found.append(make_shape(family, width, max(1, round(practice_depth(family, width))), vocab))
        if found[-1].flop_per_token > below_flop_per_token:
            break
    return found


def shape_for(family: Family, vocab: int, flop_per_token: float) -> ModelSpec:
    """The shape whose exact M is nearest to the wanted one, near the family's practice in depth."""
    room = (1 + DEPTH_FREEDOM) / (1 - DEPTH_FREEDOM)
    practice = sizes_of_family(family, vocab, room * flop_per_token)
    nearest = [_deepened(family, shape, flop_per_token) for shape in practice]

    def distance(shape: ModelSpec) -> tuple[float, int]:
        off = abs(math.log(shape.flop_per_token / flop_per_token))
        depth = abs(math.log(shape.layers / practice_depth(family, shape.width)))
        return off + DEPTH_PENALTY * depth, shape.width

    return min(nearest, key=distance)


def _deepened(family: Family, shape: ModelSpec, flop_per_token: float) -> ModelSpec:
    """The shape with the depth that comes nearest to M within the freedom; M is proportional to depth."""
    practice = practice_depth(family, shape.width)
    low = max(1, math.ceil((1 - DEPTH_FREEDOM) * practice))
    high = max(low, math.floor((1 + DEPTH_FREEDOM) * practice))
    wanted = round(flop_per_token / (shape.flop_per_token / shape.layers))
    return shape.model_copy(update={"layers": min(high, max(low, wanted))})


def _widths(family: Family) -> list[int]:
    """Legal widths; where queries are grouped, the heads must divide into the groups."""
    every = range(
        family.width_multiple, MAX_WIDTH_MULTIPLES * family.width_multiple + 1, family.width_multiple
    )
    grouped = family.head_dim * family.gqa_kv_heads
    return [w for w in every if w >= family.min_width and (not _is_grouped(family, w) or w % grouped == 0)]


def _is_grouped(family: Family, width: int) -> bool:
    return family.gqa_from_width is not None and width >= family.gqa_from_width


def _round_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
