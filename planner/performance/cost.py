"""What a model costs: parameters, FLOP, bytes and traffic, each declared once as plain arithmetic.

A declaration takes an `Architecture` of ints and gives a count, of NumPy arrays and gives counts, or of sympy symbols
and gives a formula. Value, gradient, optimum and LaTeX all come from that one declaration; sympy is imported only
where a formula is asked for. The counts that runs need too are in specs/model.py; here they are used, not repeated.

    L layers    d width    h heads    k kv heads    e head size    f feed-forward width    V vocabulary    s context
    R rows = tokens of a micro-batch    t tensor-parallel ranks    w bytes of a weight or activation

Tensor parallelism divides by t what is split; sequence parallelism (`sp`, 0 or 1) divides the rest too.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from specs import model as counts
from specs.model import ModelSpec


@dataclass(frozen=True)
class Architecture:
    """A decoder as the counts see it; LLaMA's features by default, GPT's (arXiv 2005.14165) where asked for."""

    layers: Any
    width: Any
    heads: Any
    kv_heads: Any
    head_dim: Any
    ffn: Any
    vocab: Any
    context: Any
    ffn_matrices: int = 3
    """Gate, up and down of SwiGLU; 2 with GELU."""
    norm_vectors: int = 1
    """Gain; 2 with LayerNorm's bias."""
    learned_positions: bool = False
    """A row of the embedding for each position, instead of rotation."""
    tied: bool = False
    """The head is the embedding."""
    dropout: bool = False
    """Dropout after both sub-layers and on attention's probabilities."""


def architecture(model: ModelSpec) -> Architecture:
    """The architecture of a model of ours."""
    return Architecture(
        model.layers,
        model.width,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.ffn,
        model.vocab,
        model.context,
    )


# Parameters.


def layer_params(a: Architecture) -> Any:
    """Weights of one block's matrices."""
    return counts.block_params(1, a.width, a.kv_heads * a.head_dim, a.ffn, a.ffn_matrices)


def block_params(a: Architecture) -> Any:
    """N: weights of the matrices of all blocks."""
    return a.layers * layer_params(a)


def embedding_params(a: Architecture) -> Any:
    """The embedding, with the positions where they are learned."""
    return a.vocab * a.width + (a.context * a.width if a.learned_positions else 0)


def params(a: Architecture) -> Any:
    """All parameters: blocks, embedding, head, norms."""
    head = 0 if a.tied else a.vocab * a.width
    norms = (2 * a.layers + 1) * a.norm_vectors * a.width
    return block_params(a) + embedding_params(a) + head + norms


# FLOP of one token. A multiplication and an addition are two.


def attention_flop(a: Architecture, causal: bool = False) -> Any:
    """Forward FLOP of the scores and the mixing of values in all blocks, projections not counted.

    The full square is 4 L d s; causal attention computes s + 1 of 2 s columns on average, grouped queries change
    nothing.
    """
    return a.layers * (2 * a.width * (a.context + 1) if causal else 4 * a.width * a.context)


def head_flop(a: Architecture) -> Any:
    """Forward FLOP of the logits."""
    return 2 * a.vocab * a.width


def forward_flop(a: Architecture, causal: bool = False) -> Any:
    """Forward FLOP: matrices of the blocks, attention, head."""
    return 2 * block_params(a) + attention_flop(a, causal) + head_flop(a)


def backward_flop(a: Architecture, causal: bool = False) -> Any:
    """Backward FLOP: every product has two gradients of its own size."""
    return 2 * forward_flop(a, causal)


def flop_per_token(a: Architecture) -> Any:
    """M, exact: 6 N + 12 L d s (DeepSeek LLM, Eq. 2, with the shape's own N)."""
    return counts.flop_per_token(block_params(a), a.layers, a.width, a.context)


def paper_flop_per_token(a: Architecture) -> Any:
    """M as the paper writes it: 72 L d^2 + 12 L d s (DeepSeek LLM, Eq. 2)."""
    return counts.paper_flop_per_token(a.layers, a.width, a.context)


def paper_6n1(a: Architecture) -> Any:
    """6 N1: non-embedding parameters as the paper counts them, without attention's FLOP (DeepSeek LLM, Eq. 2)."""
    return 72 * a.layers * a.width * a.width


def paper_6n2(a: Architecture) -> Any:
    """6 N2: the same with the vocabulary (DeepSeek LLM, Eq. 2)."""
    return paper_6n1(a) + 6 * a.vocab * a.width


def mfu_flop_per_token(a: Architecture) -> Any:
    """What utilisation counts: 6 N + 6 L d s + 6 V d, causal attention once, the head, no recomputation."""
    return counts.mfu_flop_per_token(block_params(a), a.layers, a.width, a.context, a.vocab)


# Bytes that a block keeps of one token of a micro-batch for its backward pass, on one rank.


def saved_whole_bytes(a: Architecture, w: Any) -> Any:
    """What tensor parallelism leaves whole: inputs of both norms and of both sub-layers, and dropout's masks.

    10 d in GPT of 16 bit (Korthikanti et al., arXiv 2205.05198, section 4.2.1).
    """
    return 4 * w * a.width + (2 * a.width if a.dropout else 0)


def saved_split_bytes(a: Architecture, w: Any, inner: Any = 2) -> Any:
    """What it splits: q, k, v, attention's result, and so many inner tensors of the feed-forward.

    24 d in GPT of 16 bit, which keeps GELU's input and result (Korthikanti et al., section 4.2.1). SwiGLU keeps gate
    and up, if its backward makes their product again.
    """
    attention = 2 * a.width + 2 * a.kv_heads * a.head_dim
    return w * (attention + inner * a.ffn)


def saved_score_bytes(a: Architecture, w: Any) -> Any:
    """Attention's probabilities, where they are stored: 5 h s with dropout in 16 bit (Korthikanti et al., Eq. 1).

    Flash attention (arXiv 2205.14135) stores none, and selective recomputation drops them.
    """
    return a.heads * a.context * (2 * w + 1 if a.dropout else w)


def saved_activation_bytes(a: Architecture, t: Any, sp: Any, w: Any, scores: Any, inner: Any = 2) -> Any:
    """Activations of a block per token on one rank; `scores` is 1 where attention's probabilities are stored."""
    split = (saved_split_bytes(a, w, inner) + scores * saved_score_bytes(a, w)) / t
    return saved_whole_bytes(a, w) / (1 + sp * (t - 1)) + split


def dropped_by_selective_bytes(a: Architecture, t: Any, sp: Any, w: Any) -> Any:
    """What selective recomputation of norms and attention leaves out: both norms' results, and attention's."""
    return 2 * w * a.width / (1 + sp * (t - 1)) + w * a.width / t


def block_input_bytes(a: Architecture, t: Any, sp: Any, w: Any) -> Any:
    """A block's input, all that full recomputation keeps of a token."""
    return w * a.width / (1 + sp * (t - 1))


# Bytes that elementwise operations of a block move of one token: read and written, forward then backward.


def moved_whole_bytes(a: Architecture, w: Any) -> tuple[Any, Any]:
    """Both norms and both residual additions, each one pass over memory, with dropout's masks where it is used.

    Forward a norm reads and writes a row and an addition reads two and writes one; backward either takes three.
    """
    forward, backward = (2 + 3) * w, (3 + 3) * w
    if a.dropout:
        forward, backward = forward + 1, backward + 2 * w + 1
    return 2 * a.width * forward, 2 * a.width * backward


def moved_split_bytes(a: Architecture, w: Any) -> tuple[Any, Any]:
    """The feed-forward's activation, one pass each way, and the rotation of queries and keys.

    SwiGLU reads two rows and writes one; backward it reads three and writes two, and the product once more. GELU reads
    one and writes one; backward it reads two and writes one.
    """
    forward, backward = (3, 6) if a.ffn_matrices == 3 else (2, 3)
    turned = 0 if a.learned_positions else 2 * (a.width + a.kv_heads * a.head_dim)
    return w * (forward * a.ffn + turned), w * (backward * a.ffn + turned)


def recompute_moved_bytes(a: Architecture, w: Any) -> tuple[Any, Any]:
    """What selective recomputation moves once more: norms (whole); rotation and a copy of the projection (split)."""
    kv = a.kv_heads * a.head_dim
    return 4 * w * a.width, 2 * w * (2 * a.width + 3 * kv)


def moved_score_bytes(a: Architecture, w: Any) -> tuple[Any, Any]:
    """Attention's square where it is stored: softmax and dropout one pass each; the products' own are not counted."""
    forward, backward = (2 * w, 3 * w)
    if a.dropout:
        forward, backward = forward + 2 * w + 1, backward + 2 * w + 1
    return a.heads * a.context * forward, a.heads * a.context * backward


# Traffic: bytes that one rank sends. Rings are optimal in them (arXiv 1909.09756 names the collectives' costs).


def gather_bytes(size: Any, ranks: Any) -> Any:
    """All-gather or reduce-scatter of a tensor of `size` bytes in all; an all-reduce is one of each."""
    return size * (ranks - 1) / ranks


BLOCK_GATHERS = 4
"""Gathers and scatters of a block's rows in a forward pass, and again in a backward pass: two a sub-layer (Korthikanti
et al., section 4.2.2); without sequence parallelism they are two halves of an all-reduce, of the same bytes."""
REGATHERS = 2
"""Inputs that sequence parallelism gathers again in a backward pass, for the weights' gradients."""
BLOCK_PARAMETERS = 6
"""Parameters of a block: two norms, and four matrices (model/parameters.py)."""


def stage_boundary_bytes(a: Architecture, rows: Any, t: Any, sp: Any, w: Any) -> Any:
    """What a stage hands on of a micro-batch, forward or backward."""
    return rows * a.width * w / (1 + sp * (t - 1))


# Pipelines.


def pipeline_overhead_s(pp: Any, interleave: Any, micro_batches: Any, work_s: Any, transfer_s: Any) -> Any:
    """Seconds that a pipeline adds to its micro-batches' work.

    The bubble is (p - 1) / v times a rank's forward and backward of a micro-batch, `work_s` (Narayanan et al., arXiv
    2104.04473, section 2.2); every micro-batch crosses v boundaries both ways, each an exposed `transfer_s`.
    """
    return (pp - 1) * work_s / interleave + 2 * interleave * micro_batches * transfer_s


# The declarations as formulas.

SYMBOLS = {
    "layers": "L",
    "width": "d",
    "heads": "h",
    "kv_heads": "k",
    "head_dim": "e",
    "ffn": "f",
    "vocab": "V",
    "context": "s",
}
"""How formulas write the sizes of an architecture."""


@dataclass(frozen=True)
class Formula:
    """A declaration with what it counts; everything else is derived from it."""

    name: str
    unit: str
    source: str
    of: Callable[[Architecture], Any]

    def expression(self) -> Any:
        """The sympy expression, in the letters of SYMBOLS."""
        import sympy

        return sympy.expand(self.of(_symbolic()))

    def gradient(self, by: str) -> Any:
        """Its derivative by a size, like `width`, as an expression."""
        return self.expression().diff(symbol(by))

    def slope(self, a: Architecture, by: str) -> float:
        """That derivative's value at an architecture."""
        sizes = {symbol(name): getattr(a, name) for name in SYMBOLS}
        return float(self.gradient(by).subs(sizes))

    def latex(self) -> str:
        """The formula as LaTeX, without a left side."""
        import sympy

        return str(sympy.latex(self.expression()))


def symbol(name: str) -> Any:
    """The sympy symbol of a size, or of any other positive quantity by its own name."""
    import sympy

    return sympy.Symbol(SYMBOLS.get(name, name), positive=True)


def optimum(expression: Any, by: str) -> Any:
    """Where the derivative by a positive quantity vanishes, in closed form; ValueError if not at just one place."""
    import sympy

    places = sympy.solve(expression.diff(symbol(by)), symbol(by))
    if len(places) != 1:
        raise ValueError(f"the derivative by {by} vanishes at {len(places)} places: {places}")
    return places[0]


def _symbolic() -> Architecture:
    return Architecture(**{f.name: symbol(f.name) for f in fields(Architecture) if f.name in SYMBOLS})


PAPER = "DeepSeek LLM, arXiv 2401.02954, Eq. 2"
FORMULAS = (
    Formula("block_params", "parameters", "counted: matrices of the blocks", block_params),
    Formula("params", "parameters", "counted: blocks, embedding, head, norms", params),
    Formula("flop_per_token", "FLOP/token", f"{PAPER}, with the shape's own parameters", flop_per_token),
    Formula("paper_flop_per_token", "FLOP/token", PAPER, paper_flop_per_token),
    Formula("paper_6n1", "FLOP/token", PAPER, paper_6n1),
    Formula("paper_6n2", "FLOP/token", PAPER, paper_6n2),
    Formula("forward_flop", "FLOP/token", "counted: full attention, head", forward_flop),
    Formula("backward_flop", "FLOP/token", "counted: twice the forward pass", backward_flop),
    Formula("mfu_flop_per_token", "FLOP/token", "PaLM, arXiv 2204.02311, appendix B", mfu_flop_per_token),
)
"""Counts of a whole model, for tables and explanations."""
