"""Which implementation of each operation a run uses: decided once, from the setting and the device."""

import torch
import torch.nn.functional as F

from model.kernels import cpu, plain
from model.kernels.kinds import Attention, CrossEntropy, Gate, Kernels, Norm, Positions

_CPU_CHUNK_LOGITS = 2**18
"""1 MiB in fp32, half of a server core's L2 cache."""
_GPU_CHUNK_LOGITS = 2**26
"""256 MiB in fp32: large enough that launching kernels costs nothing, and small beside a GPU's memory."""


def choose(setting: str, device: str) -> Kernels:
    """The implementations for a setting; `auto` takes the fastest that works on this device.

    ValueError for a name that has none.
    """
    if setting not in ("auto", "torch"):
        raise ValueError(f"there are no kernels called {setting!r} for {device}; write auto or torch")
    on_cpu = device == "cpu"
    attention = "torch, blocks of rows" if on_cpu else "torch scaled_dot_product_attention"
    said = {
        "attention": attention,
        "linear": "torch, rows innermost" if on_cpu else "torch",
        "norm": "torch",
        "gate": "torch",
        "cross_entropy": "torch, gradient in place of the logits",
        "accumulate": "torch",
        "adamw": "torch _fused_adamw_",
    }
    return Kernels(
        linear=cpu.linear if on_cpu else F.linear,
        attention=Attention(cpu.attention_forward, cpu.attention_backward)
        if on_cpu
        else Attention(plain.attention_forward, plain.attention_backward),
        norm=Norm(plain.norm_forward, plain.norm_backward),
        gate=Gate(plain.gate_forward, plain.gate_backward),
        cross_entropy=CrossEntropy(
            _CPU_CHUNK_LOGITS if on_cpu else _GPU_CHUNK_LOGITS, plain.measure, plain.differentiate
        ),
        accumulate=plain.accumulate,
        adamw=plain.adamw,
        chosen=tuple(sorted(said.items())),
    )


def positions(head_size: int, context: int, theta: float, dtype: torch.dtype, device: str) -> Positions:
    """Angles s theta^(-2i/K) (RoFormer, arXiv 2104.09864, Eq. 15), computed in fp64."""
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(frequency, torch.arange(context, dtype=torch.float64))
    cos_KS, sin_KS = torch.cat((angle.cos(), angle.cos())), torch.cat((-angle.sin(), angle.sin()))
    size = min(context, cpu.BLOCK_ROWS)
    future_QQ = torch.full((size, size), -torch.inf).triu(1)
    return Positions(*(table.to(device, dtype) for table in (cos_KS, sin_KS, future_QQ)))
