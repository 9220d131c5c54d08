"""Initial weights as a function of (seed, global name, row): the same under every layout and on every device.

Philox is a counter-based generator: the key is the hash of seed and name, and each row starts at a counter of its own,
so that a rank draws its rows and no others. Normals come from pairs of 32-bit uniforms by Box and Muller (1958).
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_NORMALS_PER_COUNT = 8
"""Philox4x64 gives four 64-bit words a count, each of them two uniforms and so two normals."""


def normal_rows(seed: int, name: str, rows: range, cols: int, std: float) -> NDArray[np.float32]:
    """(len(rows), cols) normal weights: rows `rows` of the global tensor `name`, whatever else is drawn."""
    counts = math.ceil(cols / _NORMALS_PER_COUNT)
    generator = np.random.Philox(key=_key(seed, name)).advance(rows.start * counts)
    words = generator.random_raw(len(rows) * counts * 4).reshape(len(rows), counts * 4)
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)) + 1.0) * 2.0**-32))
    angle = (words & np.uint64(0xFFFFFFFF)) * (2.0 * np.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return (std * pairs.reshape(len(rows), -1)[:, :cols]).astype(np.float32)


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
