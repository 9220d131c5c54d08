"""Initial weights as a function of (seed, global name, row): the same under every layout and on every device.

Philox is a counter-based generator: the key is the hash of seed and name, and each row starts at a counter of its own,
so that a rank draws its rows and no others. Normals come from pairs of 32-bit uniforms by Box and Muller (1958).
"""

import hashlib
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

_NORMALS_PER_COUNT = 8
"""Philox4x64 gives four 64-bit words a count, each of them two uniforms and so two normals."""
_NORMALS_AT_ONCE = 2**20
"""Bounds the working space of a thread to a few arrays of 8 MiB."""


def normal_rows(
    seed: int, name: str, rows: range, cols: int, std: float, threads: int = 1
) -> NDArray[np.float32]:
    """(len(rows), cols) normal weights: rows `rows` of the global tensor `name`, whatever else is drawn."""
    step = max(1, _NORMALS_AT_ONCE // cols)
    drawn = np.empty((len(rows), cols), np.float32)

    def draw(first: int) -> None:
        part = rows[first : first + step]
        drawn[first : first + step] = std * _standard_normals(seed, name, part, cols)

    firsts = range(0, len(rows), step)
    if threads == 1 or len(firsts) < 2:
        for first in firsts:
            draw(first)
    else:
        with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of the interpreter
            deque(pool.map(draw, firsts), maxlen=0)
    return drawn


def _standard_normals(seed: int, name: str, rows: range, cols: int) -> NDArray[np.float64]:
    """In fp64, so that after rounding to fp32 no two processors' libraries of functions differ."""
    counts = math.ceil(cols / _NORMALS_PER_COUNT)
    generator = np.random.Philox(key=_key(seed, name)).advance(rows.start * counts)
    words = generator.random_raw(len(rows) * counts * 4)
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)) + 1.0) * 2.0**-32))
    angle = (words & np.uint64(0xFFFFFFFF)) * (2.0 * np.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(len(rows), -1)[:, :cols]


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
