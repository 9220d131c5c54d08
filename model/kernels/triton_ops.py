"""The Triton back end: RMSNorm with its residual, rotary positions, SwiGLU and cross-entropy, each one pass.

Their interfaces are in interfaces.py, the kernels themselves in triton_kernels.py. bf16 and fp32 only: anything
else is a ValueError. Results repeat bit by bit on one device: no kernel adds by atomics.

R rows    H width    B batch    S sequence    N heads    K head size    V this rank's vocabulary
"""

from typing import Any

import torch
import triton
from torch import Tensor

from model.kernels import triton_kernels as source
from model.kernels.interfaces import Measured, Positions

TILE = 1024
"""Elements of a row that one program works on where rows are cut: 8 a thread of four warps, 16 bytes of bf16."""
LOGITS_AT_ONCE, LOGITS_WARPS = 4096, 8
"""Logits between two reductions of a row: 16 a thread of eight warps, so that reducing costs little beside reading."""
ROTARY_ROWS = 16
"""Rows of a head in one program: with a head size of 128, 1024 pairs."""
PROGRAMS_PER_PROCESSOR = 4
"""Norm's backward keeps one row a program in flight; four hide the latency of memory and leave few partial sums."""


def norm_forward(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Any]:
    """RMSNorm of x + delta; keeps the sum and a number a row."""
    _check(x)
    rows, width = x.shape
    x, delta_ = _by_rows(x), x if delta is None else _by_rows(delta)
    total = x if delta is None else x.new_empty(rows, width)
    y, inverse = x.new_empty(rows, width), x.new_empty(rows, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    source.norm_forward[(rows,)](
        x,
        delta_,
        gain,
        total,
        y,
        inverse,
        x.stride(0),
        delta_.stride(0),
        width,
        eps,
        HAS_DELTA=delta is not None,
        BLOCK=block,
        num_warps=warps(block),
    )
    return total, y, (total, inverse)


def norm_backward(dy: Tensor, ds: Tensor | None, saved: Any, gain: Tensor, gain_gradient: Tensor) -> Tensor:
    """Its gradient, with the residual's added; the gain's is summed over programs, then rows of programs, in order."""
    total, inverse = saved
    rows, width = total.shape
    dy, ds_ = _by_rows(dy), dy if ds is None else _by_rows(ds)
    programs = min(rows, PROGRAMS_PER_PROCESSOR * _processors(dy))
    dx, partial = dy.new_empty(rows, width), dy.new_empty(programs, width, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    source.norm_backward[(programs,)](
        dy,
        ds_,
        total,
        inverse,
        gain,
        dx,
        partial,
        dy.stride(0),
        ds_.stride(0),
        total.stride(0),
        rows,
        width,
        HAS_DS=ds is not None,
        BLOCK=block,
        num_warps=backward_warps(block),
    )
    gain_gradient.add_(partial.sum(0))
    return dx


def gate_forward(projected: Tensor) -> tuple[Tensor, Any]:
    """silu(gate) * up; keeps the projection only."""
    _check(projected)
    projected = _by_rows(projected)
    rows, width = len(projected), projected.shape[1] // 2
    inner = projected.new_empty(rows, width)
    source.gate_forward[(rows, triton.cdiv(width, TILE))](
        projected, inner, projected.stride(0), width, BLOCK=TILE
    )
    return inner, projected


def gate_backward(dinner: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """Gradient of gate and up, and the inner activations computed again."""
    projected: Tensor = saved
    dinner = _by_rows(dinner)
    rows, width = dinner.shape
    dprojected, inner = projected.new_empty(rows, 2 * width), projected.new_empty(rows, width)
    source.gate_backward[(rows, triton.cdiv(width, TILE))](
        dinner, projected, dprojected, inner, dinner.stride(0), projected.stride(0), width, BLOCK=TILE
    )
    return dprojected, inner


def rotate(x_BSNK: Tensor, at: Positions, sign: int, out_BSNK: Tensor) -> None:
    """x turned by its positions into `out`, which may be x; sign -1 turns back. K must be innermost in both."""
    _check(x_BSNK)
    batch, sequence, heads, size = x_BSNK.shape
    source.rotate[(heads, triton.cdiv(sequence, ROTARY_ROWS), batch)](
        x_BSNK,
        out_BSNK,
        at.cos_KS,
        at.sin_KS,
        float(sign),
        *x_BSNK.stride()[:3],
        *out_BSNK.stride()[:3],
        *at.cos_KS.stride(),
        sequence,
        size // 2,
        ROWS=ROTARY_ROWS,
        BLOCK=triton.next_power_of_2(size // 2),
    )


def measure(logits_RV: Tensor, column_R: Tensor) -> Measured:
    """Peak, total and target of each row, in one pass over the logits, which stay as they are."""
    _check(logits_RV)
    rows, columns = logits_RV.shape
    peak, total, target_logit = (logits_RV.new_empty(rows, 1, dtype=torch.float32) for _ in range(3))
    source.measure[(rows,)](
        logits_RV,
        column_R,
        peak,
        total,
        target_logit,
        logits_RV.stride(0),
        columns,
        BLOCK=LOGITS_AT_ONCE,
        num_warps=LOGITS_WARPS,
    )
    return Measured(peak, total, target_logit, None)


def differentiate(
    logits_RV: Tensor, column_R: Tensor, found: Measured, scale_R1: Tensor, share: float
) -> None:
    """The gradient in place of the logits, in one pass; see `CrossEntropy`."""
    rows, columns = logits_RV.shape
    source.differentiate[(rows, triton.cdiv(columns, TILE))](
        logits_RV, column_R, found.peak, scale_R1, share, logits_RV.stride(0), columns, BLOCK=TILE
    )


def _check(x: Tensor) -> None:
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"the Triton kernels compute in fp32, not {x.dtype}; write kernels: torch")


def _by_rows(x: Tensor) -> Tensor:
    """x with its columns side by side; most are."""
    return x if x.stride(1) == 1 else x.contiguous()


def warps(block: int) -> int:
    """Warps for a row in one program: 16 elements a thread, between 4 warps and 16."""
    return min(max(block // 512, 4), 16)


def backward_warps(block: int) -> int:
    """The same for norm's backward, which holds four numbers an element: from 8192 on 32 warps, of half as many."""
    return warps(block) if block <= 4096 else 32


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
