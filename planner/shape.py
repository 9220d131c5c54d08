"""From a target M (non-embedding FLOP per token) to a legal LLaMA shape of a family."""

import math

from specs.law import Family
from specs.model import ModelSpec

MAX_WIDTH_MULTIPLES = 512
"""Widths beyond this many multiples are not searched: 131072 for a multiple of 256, far past any model built."""
DEPTH_FREEDOM = 0.1
"""Depths within a tenth of the family's practice are tried; Table 2's 67B is that far from Table 3's line."""
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
    heads = heads_for(width, family.head_dim)
    grouped = family.gqa_from_width is not None and width >= family.gqa_from_width
    return ModelSpec(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=math.gcd(heads, family.gqa_kv_heads) if grouped else heads,
        ffn=_round_up(8 * width / 3, family.ffn_multiple),
        vocab=_round_up(vocab, family.vocab_multiple),
        context=family.context,
        init_std=family.init_std,
    )


def sizes_of_family(family: Family, vocab: int, below_flop_per_token: float) -> list[ModelSpec]:
    """Every shape of the family with M up to the given one and the first few beyond, by width and depth."""
    found: list[ModelSpec] = []
    for multiple in range(1, MAX_WIDTH_MULTIPLES + 1):
        width = multiple * family.width_multiple
        if width < family.min_width:
            continue
        candidates = [make_shape(family, width, layers, vocab) for layers in _depths(family, width)]
        found += candidates
        if min(shape.flop_per_token for shape in candidates) > below_flop_per_token:
            break
    return found


def shape_for(family: Family, vocab: int, flop_per_token: float) -> ModelSpec:
    """The shape whose exact M is nearest to the wanted one, near the family's practice in depth."""

    def distance(shape: ModelSpec) -> tuple[float, int]:
        off = abs(math.log(shape.flop_per_token / flop_per_token))
        depth = abs(math.log(shape.layers / practice_depth(family, shape.width)))
        return off + DEPTH_PENALTY * depth, shape.width

    return min(sizes_of_family(family, vocab, flop_per_token), key=distance)


def _depths(family: Family, width: int) -> range:
    practice = practice_depth(family, width)
    low, high = (1 - DEPTH_FREEDOM) * practice, (1 + DEPTH_FREEDOM) * practice
    return range(max(1, math.ceil(low)), max(1, math.floor(high)) + 1)


def _round_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
