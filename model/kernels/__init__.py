"""One door to the operations that have more than one implementation.

`choose` decides once, from an explicit setting and the device, and the result describes itself for the run's record;
whoever computes is handed the `Kernels` and never asks what is installed.

    kinds.py    what each operation takes and gives
    door.py     choose, and the tables of rotary positions
    plain.py    torch alone, any device
    cpu.py      torch, arranged for a CPU
"""

from model.kernels.door import choose, positions
from model.kernels.kinds import Attention, CrossEntropy, Heads, Kernels, Positions

__all__ = ["Attention", "CrossEntropy", "Heads", "Kernels", "Positions", "choose", "positions"]
