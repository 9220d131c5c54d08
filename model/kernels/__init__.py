"""The operations that have more than one implementation.

`choose` decides once, from an explicit setting and what works on the device, and the result describes itself for the
run's record; the model gets the `Kernels` and never checks what is installed.

    interfaces.py       what each operation takes and gives
    torch_ops.py        torch alone, any device: what the others are measured against
    torch_cpu.py        torch, arranged for a CPU
    fused_attention.py  attention from rotary positions and a fused kernel
    triton_kernels.py   our kernels in Triton
    triton_ops.py       how they are called
    backend.py          what a back end offers, or why it cannot
    apex.py, flash.py   NVIDIA apex and flash-attn, where they are installed
    trial.py            a small example of the run, on which an implementation proves that it works
    registry.py         choose, and the tables of rotary positions
"""

from model.kernels.backend import KernelShape
from model.kernels.interfaces import Attention, CrossEntropy, Heads, Kernels, Positions
from model.kernels.registry import SMALL, choose, positions, shape_of

__all__ = [
    "SMALL",
    "Attention",
    "CrossEntropy",
    "Heads",
    "KernelShape",
    "Kernels",
    "Positions",
    "choose",
    "positions",
    "shape_of",
]
