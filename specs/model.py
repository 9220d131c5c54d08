"""A LLaMA-style shape, and its counts of parameters and FLOP.

The counts are plain arithmetic: they take Python ints here and sympy symbols in planner/performance/cost.py, which
derives gradients and LaTeX from the same lines. N counts weights of matrices inside the blocks; norms are left out, as
in the paper.

    L layers    d width    h heads    k kv heads    e head size    f feed-forward width    V vocabulary
    s context, or what attention sees of it
"""

import math
from typing import Any, Self

from pydantic import Field, model_validator

from specs.document.base import Spec


class ModelSpec(Spec):
    """Shape of a LLaMA-style decoder: RMSNorm, RoPE, (grouped-query) attention, SwiGLU, untied embedding and head."""

    layers: int = Field(ge=1, le=10_000)
    """Number of blocks."""
    width: int = Field(ge=8)
    """Size of the residual stream."""
    heads: int = Field(ge=1)
    """Query heads."""
    kv_heads: int = Field(ge=1)
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    ffn: int = Field(ge=8)
    """Inner width of SwiGLU."""
    vocab: int = Field(ge=2)
    """Rows of the embedding and of the head, padding included."""
    context: int = Field(ge=1)
    """Tokens of a training sequence."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary angles (LLaMA, arXiv 2302.13971, uses 10000)."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in RMSNorm (LLaMA's value)."""
    init_std: float = Field(default=0.006, gt=0)
    """Standard deviation of the initial weights (DeepSeek LLM, section 2.3)."""
    mean_attended_tokens: float | None = Field(default=None, gt=0, exclude_if=lambda tokens: tokens is None)
    """Mean tokens of a token's document within a sequence of the run's text, where attention stays within documents: it
    counts in place of the context in M and MFU. Absent where documents are joined."""

    @model_validator(mode="after")
    def _legal(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not an even multiple of heads {self.heads} (rotary halves); "
                f"write a width that is a multiple of {2 * self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; write a divisor of {self.heads}"
            )
        return self

    @property
    def attended_tokens(self) -> float:
        """Tokens that attention counts for each token, over the full square: the context, or its document's part."""
        return self.context if self.mean_attended_tokens is None else self.mean_attended_tokens

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.width // self.heads

    @property
    def block_params(self) -> int:
        """Weights of the matrices of all blocks."""
        return int(block_params(self.layers, self.width, self.kv_heads * self.head_dim, self.ffn))

    @property
    def params(self) -> int:
        """All parameters: blocks, embedding, head and norms."""
        return int(params(self.block_params, self.layers, self.width, self.vocab))

    @property
    def uniform_loss(self) -> float:
        """ln V: loss of a uniform prediction over the vocabulary, nats per token. No model that learned is above it."""
        return math.log(self.vocab)

    @property
    def flop_per_token(self) -> int:
        """M: non-embedding FLOP per training token, counted from this shape (see `flop_per_token`)."""
        return int(flop_per_token(self.block_params, self.layers, self.width, self.attended_tokens))

    @property
    def paper_flop_per_token(self) -> int:
        """M by Eq. 2 of DeepSeek LLM, 72 L d^2 + 12 L d s, which takes 12 L d^2 parameters for granted."""
        return int(paper_flop_per_token(self.layers, self.width, self.attended_tokens))

    @property
    def mfu_flop_per_token(self) -> int:
        """FLOP per token that MFU counts (see `mfu_flop_per_token`)."""
        size = (self.block_params, self.layers, self.width)
        return int(mfu_flop_per_token(*size, self.attended_tokens, self.vocab))


def block_params(L: Any, d: Any, kv_width: Any, f: Any, ffn_matrices: Any = 3) -> Any:
    """Weights of all blocks' matrices: q and o (d x d), k and v (d x k e), gate, up and down (d x f).

    A feed-forward without a gate (GELU) has two matrices instead of three.
    """
    return L * (2 * d * d + 2 * d * kv_width + ffn_matrices * d * f)


def params(block_params: Any, L: Any, d: Any, V: Any) -> Any:
    """All parameters: blocks, embedding and head (V x d each), and the norms' weights."""
    return block_params + 2 * V * d + (2 * L + 1) * d


def flop_per_token(block_params: Any, L: Any, d: Any, s: Any) -> Any:
    """M = 6 N + 12 L d s: forward and backward, attention over the full square, vocabulary left out.

    DeepSeek LLM, Eq. 2, with the shape's own parameter count in place of 12 L d^2.
    """
    return 6 * block_params + 12 * L * d * s


def paper_flop_per_token(L: Any, d: Any, s: Any) -> Any:
    """M = 72 L d^2 + 12 L d s (DeepSeek LLM, Eq. 2)."""
    return 72 * L * d * d + 12 * L * d * s


def mfu_flop_per_token(block_params: Any, L: Any, d: Any, s: Any, V: Any) -> Any:
    """FLOP per token for MFU: 6 N + 6 L d s + 6 V d, causal attention counted once, the head counted.

    The convention of model FLOPs without recomputation (PaLM, arXiv 2204.02311, appendix B), with half the square.
    """
    return 6 * block_params + 6 * L * d * s + 6 * V * d
