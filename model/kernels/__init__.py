"""One door to the operations that have more than one implementation.

`choose` decides once, from an explicit setting and the device, and the result describes itself for the run's record;
whoever computes is handed the `Kernels` and never asks what is installed.

    kinds.py            what each operation takes and gives
    plain.py            torch alone, any device: what the others are measured against
    cpu.py              torch, arranged for a CPU
    fused.py            attention from rotary positions and a fused kernel
    triton_source.py    our kernels in Triton
    triton_calls.py     how they are called
    offers.py           what a back end offers, or why it cannot
    apex.py, flash.py   NVIDIA apex and flash-attn, where they are installed and work
    door.py             choose, and the tables of rotary positions
"""

from model.kernels.door import choose, positions
from model.kernels.kinds import Attention, CrossEntropy, Heads, Kernels, Positions

__all__ = ["Attention", "CrossEntropy", "Heads", "Kernels", "Positions", "choose", "positions"]
