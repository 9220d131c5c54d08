"""The NVIDIA apex back end: AdamW, weight gradients and RMSNorm by its extensions, each used where it was built.

apex comes from its source tree, and its setup builds what its options select (github.com/NVIDIA/apex, setup.py); the
calls are those of its tree of July 2026. Its FusedAdam is not among them: it ignores fp32 masters of bf16 weights
(apex issue 1728). Nor is its cross-entropy, which allocates a second tensor of the logits' size.

R rows    H width    F rows of a weight
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.kernels.backend import Candidate, Candidates, Offer, function
from model.kernels.interfaces import NormKernel

_CHUNK = 2048 * 32
"""Elements of a block of threads: what apex's own optimizers pass (apex/multi_tensor_apply)."""
_TENSOR_ELEMENTS = 2**30
"""Its kernels count a tensor's elements in 32 bits."""
_DECOUPLED, _BIAS_CORRECTED = 1, 1
"""Modes of the kernel: weight decay as in AdamW, moments divided by 1 - beta^step."""


def candidates() -> Candidates:
    """What apex may have been built with, by operation."""
    return {
        operation: (Candidate("apex", partial(_offer, module, names, make)),)
        for operation, module, names, make in (
            ("adamw", "distributed_adam_cuda", ("multi_tensor_fused_adam",), _adamw),
            ("accumulate", "fused_weight_gradient_mlp_cuda", ("wgrad_gemm_accum_fp32",), _accumulate),
            ("norm", "fused_layer_norm_cuda", ("rms_forward_affine", "rms_backward_affine"), _norm),
        )
    }


def _offer(
    module: str, names: tuple[str, ...], make: Callable[..., Any], precision: str, deterministic: bool
) -> Offer:
    return Offer(make(*(function(module, name) for name in names)), f"apex {module}")


def _adamw(update: Callable[..., None]) -> Callable[..., None]:
    """fp32 masters and moments, and the rounded weights, in one pass (apex/contrib, DistAdamFunctor)."""

    def adamw(
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
        tensors = (weights, exp_avg, exp_avg_sq, gradients, weights if rounded is None else rounded)
        update(
            _CHUNK,
            torch.zeros(1, dtype=torch.int32, device=weights.device),
            [list(one.split(_TENSOR_ELEMENTS)) for one in tensors],
            torch.full((1,), 1 / grad_scale, dtype=torch.float32, device=weights.device),
            lr,
            *betas,
            eps,
            step,
            _DECOUPLED,
            _BIAS_CORRECTED,
            weight_decay,
        )

    return adamw


def _accumulate(multiply: Callable[..., None]) -> Callable[[Tensor, Tensor, Tensor], None]:
    """gradient += dy' x of bf16, added in fp32 inside the multiplication (apex csrc/megatron)."""

    def accumulate(gradient: Tensor, dy_RF: Tensor, x_RH: Tensor) -> None:
        multiply(x_RH.contiguous(), dy_RF.contiguous(), gradient)

    return accumulate


def _norm(forward: Callable[..., Any], backward: Callable[..., Any]) -> NormKernel:
    """RMSNorm with the residual added before and behind it. The gain's gradient comes in the gain's precision."""

    def norm_forward(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Any]:
        total = x.contiguous() if delta is None else x + delta
        y, inverse = forward(total, gain.shape, gain, eps)
        return total, y, (total, inverse, eps)

    def norm_backward(
        dy: Tensor, ds: Tensor | None, saved: Any, gain: Tensor, gain_gradient: Tensor
    ) -> Tensor:
        total, inverse, eps = saved
        dx: Tensor
        dx, dgain = backward(dy.contiguous(), inverse, total, gain.shape, gain, eps, False)
        gain_gradient.add_(dgain)
        return dx if ds is None else dx.add_(ds)

    return NormKernel(norm_forward, norm_backward)
