"""What the operations that have several back ends look like, whichever back end runs them.

An operation with a gradient is a pair: forward gives the result and what its backward needs. No operation
knows of ranks; where one has to hear from other ranks half way (cross-entropy), it comes in two halves.

B batch    S sequence    R = B S rows    H width    T query heads    G key and value heads    K head size
F = (T + 2 G) K rows of a fused projection, or 2 I of gate and up    I inner width    V this rank's vocabulary
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Heads(NamedTuple):
    """How a fused projection divides."""

    batch: int
    sequence: int
    query: int
    kv: int
    size: int


class Positions(NamedTuple):
    """What attention knows of positions, in the activations' dtype."""

    cos_KS: Tensor
    """Rotary cosines; dimensions i and i + K/2 are a pair, as in LLaMA's Hugging Face weights."""
    sin_KS: Tensor
    """Rotary sines, negative for the first half: x cos + (x, halves exchanged) sin is x turned."""
    future_QQ: Tensor
    """-inf above the diagonal, else 0: added to a block of scores on the diagonal."""
    start_BS: Tensor | None = None
    """Where each token's document begins in its sequence, int64: no token sees one before. None where documents are
    joined. Rotary positions are relative, so that a document counts from its own beginning wherever that is."""
    ends_N: Tensor | None = None
    """Where documents begin in the sequences one after another, and the end of all, int32, if that is known: to find it
    on a GPU means to wait for it."""

    def first(self, sequence: int) -> "Positions":
        """Those of the first positions; itself where that is all of them."""
        if sequence == self.cos_KS.shape[1]:
            return self
        return self._replace(cos_KS=self.cos_KS[:, :sequence], sin_KS=self.sin_KS[:, :sequence])


class Attention(NamedTuple):
    """Causal grouped-query attention on a fused projection, rotary positions included."""

    forward: Callable[[Tensor, Heads, Positions], tuple[Tensor, Any]]
    """(qkv_RF, heads, positions) -> (output (R, T K), what backward needs). The projection may be overwritten."""
    backward: Callable[[Tensor, Any, Heads, Positions], Tensor]
    """(the output's gradient, what was saved, heads, positions) -> gradient of qkv_RF"""


class NormKernel(NamedTuple):
    """RMSNorm of a sum: s = x + delta, y = s / sqrt(mean(s^2) + eps) times the gain."""

    forward: Callable[[Tensor, Tensor | None, Tensor, float], tuple[Tensor, Tensor, Any]]
    """(x_RH, delta_RH or None for none, gain_H, eps) -> (s_RH, which is x for no delta, y_RH, what backward needs)"""
    backward: Callable[[Tensor, Tensor | None, Any, Tensor, Tensor], Tensor]
    """(dy_RH, ds_RH from s' other uses or None, what was saved, gain_H, the gain's gradient, which is added to)
    -> the gradient of x, and of delta, (R, H)"""


class ForwardBackward(NamedTuple):
    """An operation without weights and its gradient: SwiGLU's silu(gate) * up, on gate and up side by side."""

    forward: Callable[[Tensor], tuple[Tensor, Any]]
    """(projected (R, 2 I), gate first) -> (inner (R, I), what backward needs)"""
    backward: Callable[[Tensor, Any], tuple[Tensor, Tensor]]
    """(gradient of inner, which may be overwritten, what was saved) -> (gradient of projected, inner once more)"""


class Measured(NamedTuple):
    """What this rank's columns say of each row, in fp32 (fp64 of fp64), each (R, 1)."""

    peak: Tensor
    """The largest logit."""
    total: Tensor
    """Sum of exp(logit - peak)."""
    target_logit: Tensor
    """The target's logit; 0 where its column is on another rank."""
    saved: Any
    """What `differentiate` needs."""


class CrossEntropy(NamedTuple):
    """Cross-entropy of rows of logits whose gradient takes their place; between the halves, ranks may compare.

    Arithmetic is fp32 for bf16 and fp32 logits. Logits are row-major; rows may be strided.
    """

    chunk_logits: int
    """Logits that one call should get, as it may need as many fp32 numbers beside them; 0 if all at once are best."""
    measure: Callable[[Tensor, Tensor], Measured]
    """(logits_RV, which may be overwritten, the targets' columns (R,) int64, outside [0, V) where they are on another
    rank) -> what was found"""
    differentiate: Callable[[Tensor, Tensor, Measured, Tensor, float], None]
    """(logits_RV, columns, what was found, scale_R1, share): logits become exp(logit - peak) scale - share [target],
    the logit being that from before `measure`"""


class AccumulateKernel(Protocol):
    """Adds a weight's gradient dy' x (F, H) to a buffer, which may be of higher precision."""

    def __call__(self, gradient: Tensor, dy_RF: Tensor, x_RH: Tensor) -> None:
        """Nothing is returned; `gradient` is changed."""


class AdamWKernel(Protocol):
    """One AdamW update in place, one pass over memory. `step` counts this update: 1 at the first.

    Gradients count as divided by `grad_scale`; their buffer is spent. `rounded`, where given, takes the new weights in
    its own precision.
    """

    def __call__(
        self,
        weights: Tensor,
        gradients: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        rounded: Tensor | None = None,
        *,
        step: int,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
        grad_scale: float,
    ) -> None:
        """Nothing is returned; weights and moments are changed."""


@dataclass(frozen=True)
class Kernels:
    """The chosen implementations."""

    linear: Callable[[Tensor, Tensor], Tensor]
    """(x (R, in), weight (out, in)) -> x weight' (R, out), laid out as the operations that follow like it."""
    attention: Attention
    norm: NormKernel
    gate: ForwardBackward
    cross_entropy: CrossEntropy
    accumulate: AccumulateKernel
    adamw: AdamWKernel
    chosen: tuple[tuple[str, str], ...]
    failed_here: tuple[str, ...] = ()
    """What was tried in vain on this rank and why, a line each."""

    def describe(self) -> dict[str, str]:
        """Operation -> what carries it out, for the run's record."""
        return dict(self.chosen)
