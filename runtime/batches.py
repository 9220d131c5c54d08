"""Which tokens a step trains on: a pure function of the data, the seed and the step.

The training split is cut into sequences of `context` tokens. Sample number g of a run is sequence P(g mod n) of the n,
where P is a permutation keyed by the seed and the epoch g // n. A step takes the next `batch_sequences` samples, and a
rank looks up its rows of them. So batches are the same for every layout and after every resume, and nothing is stored.

P is a Feistel network over the pairs (left < a, right < b) with a b >= n, additions modulo a and b in place of xor, and
cycle walking for the few pairs beyond n (Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
"""

from hashlib import blake2b
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specs.run import RunSpec

_ROUNDS = 6
"""Four make a Feistel network pseudorandom on large domains (Luby & Rackoff, SIAM J. Comput. 1988), but on ours
neighbours then stay neighbours twice as often as by chance; with six they do not (see tests/test_batches.py)."""

# The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT = np.uint64(31)


class DataError(ValueError):
    """A corpus that is too small for what is asked of it: what is wrong, and what to do."""


def training_rows(tokens: NDArray[Any], context: int, seed: int, first: int, count: int) -> NDArray[Any]:
    """Samples number `first` to `first + count - 1` of a run: int64 of shape (count, context + 1).

    `tokens` is the training split, shape (tokens,). A row's first `context` tokens are the input, its last ones the
    targets. Row r of step s (from 1) is sample (s - 1) batch_sequences + r.
    """
    sequences = sequence_count(tokens, context)
    samples = np.arange(first, first + count, dtype=np.uint64)
    places = np.empty(count, dtype=np.uint64)
    for epoch in range(first // sequences, (first + count - 1) // sequences + 1):
        start = max(epoch * sequences - first, 0)
        stop = min((epoch + 1) * sequences - first, count)
        inside = samples[start:stop] - np.uint64(epoch * sequences)
        places[start:stop] = permuted(inside, sequences, round_keys(seed, epoch))
    return _rows(tokens, context, places)


def held_out_rows(tokens: NDArray[Any], context: int, first: int, count: int) -> NDArray[Any]:
    """Sequences `first` to `first + count - 1` of the held-out split, in order: int64 of shape (count, context + 1)."""
    return _rows(tokens, context, np.arange(first, first + count, dtype=np.uint64))


def check_enough(train: NDArray[Any], held_out: NDArray[Any], run: RunSpec) -> None:
    """DataError where a run would ask for more sequences than its corpus has."""
    sequence_count(train, run.model.context)
    wanted = max(run.evaluation.sequences, run.evaluation.final_sequences)
    there = sequence_count(held_out, run.model.context)
    if wanted > there:
        raise DataError(
            f"the held-out split has {there} sequences of {run.model.context} tokens, and {wanted} are to be "
            "evaluated; lower the evaluation's sequences, or hold out more text"
        )


def sequence_count(tokens: NDArray[Any], context: int) -> int:
    """Sequences in a split; each needs one token more than `context`, which is the next one's first."""
    count = (len(tokens) - 1) // context
    if count < 1:
        raise DataError(
            f"{len(tokens)} tokens hold no sequence of {context}; give more text or a shorter context"
        )
    return count


def round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """The keys of an epoch's permutation: uint64 of shape (_ROUNDS,)."""
    digest = blake2b(f"isoplan data order {seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8")


def permuted(index: NDArray[np.uint64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Where a keyed permutation of range(size) sends each index; uint64 in, uint64 out."""
    a = np.uint64(isqrt(size - 1) + 1)
    b = np.uint64(-(-size // int(a)))
    result = _feistel(index, a, b, keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], a, b, keys)
    return result


def _feistel(
    index: NDArray[np.uint64], a: np.uint64, b: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One pass over the pairs (index // b, index % b); a permutation of range(a b)."""
    left, right = index // b, index % b
    for number, key in enumerate(keys):
        if number % 2:
            right = (right + _mixed(left, key) % b) % b
        else:
            left = (left + _mixed(right, key) % a) % a
    return left * b + right


def _mixed(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Well-mixed 64 bits of a value and a key."""
    mixed = value ^ key
    for shift, factor in _MIX:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> _LAST_SHIFT
    return mixed


def _rows(tokens: NDArray[Any], context: int, places: NDArray[Any]) -> NDArray[Any]:
    starts = places.astype(np.int64) * context
    rows: NDArray[Any] = tokens[starts[:, None] + np.arange(context + 1)]
    return rows.astype(np.int64)
