"""The cost of a model: parameters, FLOP, bytes and communication, each declared once as plain arithmetic.

A declaration takes an `Architecture` of ints and gives a count, or of NumPy arrays and gives counts. The counts that
runs need too are in specs/model.py; here they are used, not repeated.

    L layers    d width    h heads    k kv heads    e head size    f feed-forward width    V vocabulary    s context
    R rows = tokens of a micro-batch    t tensor-parallel ranks    w bytes of a weight or activation

Tensor parallelism divides the split tensors by t; sequence parallelism (`sp`, 0 or 1) divides the others too.
"""

from dataclasses import dataclass
from typing import Any

from specs import model as counts
from specs.model import ModelSpec


@dataclass(frozen=True)
class Architecture:
    """Sizes and features of a decoder that the counts need; by default LLaMA's, optionally GPT's (arXiv 2005.14165)."""

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
    learned_positions: bool = False
    """A row of the embedding for each position, instead of rotation."""
    tied: bool = False
    """The head is the embedding."""
    dropout: bool = False
    """Dropout after both sub-layers and on attention's probabilities."""
    attended_share: Any = 1.0
    """Tokens that attention counts for each token, over the full square, as a share of the context: less than 1 where
    it stays within documents."""


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
        attended_share=model.attended_tokens / model.context,
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


# FLOP of one token. A multiplication and an addition are two.


def attention_flop(a: Architecture, causal: bool = False) -> Any:
    """Forward FLOP of the scores and the mixing of values in all blocks, projections not counted.

    The full square is 4 L d s; causal attention computes s + 1 of 2 s columns on average, grouped queries change
    nothing. Within documents s is their mean attended tokens.
    """
    s = a.context * a.attended_share
    return a.layers * (2 * a.width * (s + 1) if causal else 4 * a.width * s)


def head_flop(a: Architecture) -> Any:
    """Forward FLOP of the logits."""
    return 2 * a.vocab * a.width


def forward_flop(a: Architecture, causal: bool = False) -> Any:
    """Forward FLOP: matrices of the blocks, attention, head."""
    return 2 * block_params(a) + attention_flop(a, causal) + head_flop(a)


# Activations: bytes per token of a micro-batch that a block saves for its backward pass, on one rank.


def saved_whole_bytes(a: Architecture, w: Any) -> Any:
    """Not split by tensor parallelism: inputs of both norms and of both sub-layers, and dropout's masks.

    10 d in GPT of 16 bit (Korthikanti et al., arXiv 2205.05198, section 4.2.1).
    """
    return 4 * w * a.width + (2 * a.width if a.dropout else 0)


def saved_split_bytes(a: Architecture, w: Any, inner: Any = 2) -> Any:
    """Split by tensor parallelism: q, k, v, attention's output, and `inner` inner tensors of the feed-forward.

    24 d in GPT of 16 bit, which saves GELU's input and output (Korthikanti et al., section 4.2.1). SwiGLU saves gate
    and up, if its backward recomputes their product.
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
    """Not saved with selective recomputation of norms and attention: both norms' outputs, and attention's."""
    return 2 * w * a.width / (1 + sp * (t - 1)) + w * a.width / t


def block_input_bytes(a: Architecture, t: Any, sp: Any, w: Any) -> Any:
    """A block's input: all that full activation recomputation (checkpointing) saves of a token."""
    return w * a.width / (1 + sp * (t - 1))


# Memory traffic: bytes per token that a block's elementwise operations read and write, forward then backward.


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
    """Moved again by selective recomputation: norms (whole); rotation and a copy of the projection (split)."""
    kv = a.kv_heads * a.head_dim
    return 4 * w * a.width, 2 * w * (2 * a.width + 3 * kv)


def moved_score_bytes(a: Architecture, w: Any) -> tuple[Any, Any]:
    """Attention's scores if stored: softmax and dropout are one pass each; the matrix products are not counted."""
    forward, backward = (2 * w, 3 * w)
    if a.dropout:
        forward, backward = forward + 2 * w + 1, backward + 2 * w + 1
    return a.heads * a.context * forward, a.heads * a.context * backward


# Communication: bytes that one rank sends in a ring, which is optimal in bytes (arXiv 1909.09756).


def gather_bytes(size: Any, ranks: Any) -> Any:
    """All-gather or reduce-scatter of a tensor of `size` bytes in all; an all-reduce is one of each."""
    return size * (ranks - 1) / ranks


BLOCK_GATHERS = 4
"""Gathers and scatters of a block's rows in a forward pass, and again in a backward pass: two a sub-layer (Korthikanti
et al., section 4.2.2); without sequence parallelism they are two halves of an all-reduce, of the same bytes."""
REGATHERS = 2
"""All-gathers of inputs that sequence parallelism repeats in a backward pass, for the weights' gradients."""
BLOCK_PARAMETERS = 6
"""Parameters of a block: two norms, and four matrices (model/parameters.py)."""


def stage_boundary_bytes(a: Architecture, rows: Any, t: Any, sp: Any, w: Any) -> Any:
    """A micro-batch's activations or gradients between two pipeline stages."""
    return rows * a.width * w / (1 + sp * (t - 1))
