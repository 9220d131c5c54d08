"""Which implementation of each operation a run uses: decided once, from the setting and what works on the device."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from model.kernels import apex, flash, torch_cpu, torch_ops
from model.kernels.backend import Offer, Offers, UnavailableError, function
from model.kernels.fused_attention import fused_attention
from model.kernels.interfaces import Attention, CrossEntropy, ForwardBackward, Kernels, NormKernel, Positions

_CPU_CHUNK_LOGITS = 2**18
"""1 MiB in fp32, half of a server core's L2 cache."""
_GPU_CHUNK_LOGITS = 2**26
"""256 MiB in fp32: large enough that launching kernels costs nothing, and small beside a GPU's memory."""


def choose(setting: str, device: str, precision: str = "bf16", *, deterministic: bool = True) -> Kernels:
    """The implementations for a setting, one of `Execution.kernels`.

    A back end's name takes from it what it has, and the rest from torch; `auto` takes each operation from the fastest
    that works on this device. `deterministic` asks for gradients that repeat bit by bit. ValueError for a name that
    does not exist, or a back end that cannot run here; the text says why.
    """
    if setting not in ("auto", "torch", *_BACK_ENDS):
        raise ValueError(f"unknown kernels {setting!r}; write auto, torch, {', '.join(_BACK_ENDS)}")
    found = _cpu() if device == "cpu" else _torch()
    for name, offers in _BACK_ENDS.items():
        if setting not in ("auto", name) or (setting == "auto" and device == "cpu"):
            continue
        try:
            found |= _offered(offers, device, precision, deterministic)
        except UnavailableError as reason:
            if setting == name:
                raise ValueError(
                    f"{name} kernels cannot run here: {reason}; write kernels: auto or kernels: torch"
                ) from None
    return _assembled(found)


def positions(head_size: int, context: int, theta: float, dtype: torch.dtype, device: str) -> Positions:
    """Angles s theta^(-2i/K) (RoFormer, arXiv 2104.09864, Eq. 15), computed in fp64.

    On a CPU the sequence is innermost in memory, elsewhere the head size: as the kernels there read them.
    """
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(frequency, torch.arange(context, dtype=torch.float64))
    cos_KS, sin_KS = torch.cat((angle.cos(), angle.cos())), torch.cat((-angle.sin(), angle.sin()))
    if device != "cpu":
        cos_KS, sin_KS = (table.t().contiguous().t() for table in (cos_KS, sin_KS))
    size = min(context, torch_cpu.BLOCK_ROWS)
    future_QQ = torch.full((size, size), -torch.inf).triu(1)
    return Positions(*(table.to(device, dtype) for table in (cos_KS, sin_KS, future_QQ)))


OffersOf = Callable[[str, str, bool], Offers]
"""(device, precision, deterministic) -> what a back end offers, or UnavailableError."""


def _apex(device: str, precision: str, deterministic: bool) -> Offers:
    return apex.offers()


def _triton(device: str, precision: str, deterministic: bool) -> Offers:
    function("triton", "jit")
    from model.kernels import triton_ops as calls  # imports triton, which not every machine has

    text = "ours, in Triton"
    return {
        "rotary": Offer(calls.rotate, text),
        "norm": Offer(NormKernel(calls.norm_forward, calls.norm_backward), text),
        "gate": Offer(ForwardBackward(calls.gate_forward, calls.gate_backward), text),
        "cross_entropy": Offer(CrossEntropy(0, calls.measure, calls.differentiate), text),
    }


def _flash_attn(device: str, precision: str, deterministic: bool) -> Offers:
    if precision != "bf16":
        raise UnavailableError(f"flash-attn computes in bf16, not {precision}")
    return flash.offers(device, deterministic)


_BACK_ENDS: dict[str, OffersOf] = {"apex": _apex, "triton": _triton, "flash-attn": _flash_attn}
"""In the order in which `auto` takes from them: where two have an operation, the later one's is used. Triton's norm
adds the residual in the same pass, which apex's does not."""


def _offered(offers: OffersOf, device: str, precision: str, deterministic: bool) -> Offers:
    if device == "cpu" or not torch.cuda.is_available():
        raise UnavailableError("they need a CUDA device")
    return offers(device, precision, deterministic)


def _torch() -> Offers:
    """torch on a GPU."""
    text = "torch"
    return {
        "linear": Offer(F.linear, text),
        "rotary": Offer(torch_ops.rotate_heads, text),
        "core_attention": Offer(torch_ops.core_attention, "torch scaled_dot_product_attention"),
        "norm": Offer(NormKernel(torch_ops.norm_forward, torch_ops.norm_backward), text),
        "gate": Offer(ForwardBackward(torch_ops.gate_forward, torch_ops.gate_backward), text),
        "cross_entropy": Offer(
            CrossEntropy(_GPU_CHUNK_LOGITS, torch_ops.measure, torch_ops.differentiate),
            "torch, gradient in place of the logits",
        ),
        "accumulate": Offer(torch_ops.accumulate_cuda, "torch addmm into fp32"),
        "adamw": Offer(torch_ops.adamw, "torch _fused_adamw_"),
    }


def _cpu() -> Offers:
    """torch on a CPU: attention is one piece, positions included."""
    shared = {name: offer for name, offer in _torch().items() if name not in ("rotary", "core_attention")}
    ours = {
        "linear": Offer(torch_cpu.linear, "torch, rows innermost"),
        "attention": Offer(
            Attention(torch_cpu.attention_forward, torch_cpu.attention_backward), "torch, blocks of rows"
        ),
        "cross_entropy": Offer(
            CrossEntropy(_CPU_CHUNK_LOGITS, torch_ops.measure, torch_ops.differentiate),
            "torch, gradient in place of the logits",
        ),
        "accumulate": Offer(torch_ops.accumulate, "torch"),
    }
    return shared | ours


def _assembled(found: Offers) -> Kernels:
    if "attention" not in found:
        rotary, core_attention = found.pop("rotary"), found.pop("core_attention")
        attention = fused_attention(rotary.function, core_attention.function)
        found = found | {
            "attention": Offer(
                attention, f"{core_attention.description}; rotary positions: {rotary.description}"
            )
        }
    chosen = tuple((name, found[name].description) for name in sorted(found))
    return Kernels(**{name: offer.function for name, offer in found.items()}, chosen=chosen)
