"""The data loader and its sampler: which tokens a step trains on, a pure function of the data, the seed and the step.

The training split is cut into sequences of `context` tokens. Sample number g of a run is sequence P(g mod n) of the n,
where P is a permutation keyed by the seed and the epoch g // n (a shuffle of every epoch). A step takes the next
`batch_sequences` samples, and each data-parallel rank its rows of them. So batches are the same for every layout and
after every resume, and the data loader has no state to save. Sequences are packed: they may span documents. In a mix
each source counts its own samples (runtime/data/mixture.py), and its permutations are keyed by its name too.

P is a Feistel network over the pairs (left < a, right < b) with a b >= n, additions modulo a and b in place of xor, and
cycle walking for the few pairs beyond n (Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
"""

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.data.mixture import Sampler
from runtime.data.token_stream import Tokens
from specs.mix import held_out_sequences
from specs.record import SkippedRange
from specs.run import RunSpec

_ROUNDS = 6
"""Four make a Feistel network pseudorandom on large domains (Luby & Rackoff, SIAM J. Comput. 1988), but on ours
neighbours then stay neighbours twice as often as by chance; with six they do not (see
tests/runtime/data/test_batches.py)."""

_BITS = 2**64 - 1


class DataError(ValueError):
    """A corpus that is too small for the run: what is wrong, and what to do."""


class Splits(NamedTuple):
    """The tokens of a source."""

    train: Tokens
    held_out: Tokens


class HeldOutPart(NamedTuple):
    """What an evaluation takes of a source."""

    source: str
    sequences: int
    """The first ones of its shuffled held-out split."""
    share: float
    """Of the held-out loss."""


class RunData:
    """The data of a run: its sources' tokens, and which of them a step or an evaluation takes."""

    def __init__(
        self, run: RunSpec, splits: Mapping[str, Splits], end_of_document: int | None = None
    ) -> None:
        """`end_of_document` is the token behind which another document begins, for a run that masks documents."""
        self._run, self._splits = run, splits
        self.end_of_document = end_of_document
        self._sampler = Sampler.of(run.mix)

    def check_size(self) -> None:
        """DataError where a source has fewer sequences than the run needs."""
        evaluation = self._run.evaluation
        parts = [
            part
            for sequences in (evaluation.sequences, evaluation.final_sequences)
            for part in self.held_out_parts(sequences)
        ]
        for name, splits in self._splits.items():
            needed = max(part.sequences for part in parts if part.source == name)
            try:
                check_corpus_size(splits, needed, self._run.model.context)
            except DataError as error:
                raise DataError(f"{name}: {error}" if name else str(error)) from None

    def training_rows(
        self, step: int, skipped: Sequence[SkippedRange], place: int, count: int
    ) -> NDArray[Any]:
        """Rows number `place` to `place + count - 1` of a step's batch (steps from 1), of all their sources."""
        context, batch = self._run.model.context, self._run.optim.batch_sequences
        found = self._sampler.samples(step, batch, skipped, place, count)
        rows = [
            training_rows(
                self._splits[one.source].train,
                context,
                self._run.seed,
                one.first,
                len(one.places),
                one.source,
            )
            for one in found
        ]
        if len(rows) == 1:
            return rows[0]
        order = np.argsort(np.concatenate([one.places for one in found]))
        return np.asarray(np.concatenate(rows)[order])

    def held_out_parts(self, sequences: int) -> list[HeldOutPart]:
        """What an evaluation on so many held-out sequences takes of each source."""
        mix = self._run.mix
        if mix is None:
            return [HeldOutPart("", sequences, 1.0)]
        counts = held_out_sequences(mix.evaluation, sequences)
        return [HeldOutPart(name, count, mix.evaluation_share(name)) for name, count in counts.items()]

    def held_out_rows(self, source: str, first: int, count: int) -> NDArray[Any]:
        """Sequences `first` to `first + count - 1` of a source's shuffled held-out split."""
        return held_out_rows(self._splits[source].held_out, self._run.model.context, first, count)


def training_rows(
    tokens: Tokens, context: int, seed: int, first: int, count: int, source: str = ""
) -> NDArray[Any]:
    """Load samples number `first` to `first + count - 1` of a source: int64 of shape (count, context + 1).

    `tokens` is the source's training split, `source` its name in a mix, empty without one. A row's first `context`
    tokens are the input, its last ones the targets. Without a mix, `first_sample_of_step` gives the samples of a step.
    """
    sequences = sequence_count(tokens, context)
    name = f" source {source}" if source else ""
    indices: list[int] = []
    while len(indices) < count:
        epoch, start = divmod(first + len(indices), sequences)
        stop = min(start + count - len(indices), sequences)
        keys = round_keys(f"seed {seed} epoch {epoch}{name}")
        indices += [permuted_index(index, sequences, keys) for index in range(start, stop)]
    return _rows(tokens, context, indices)


def first_sample_of_step(step: int, batch_sequences: int, skipped: Sequence[SkippedRange]) -> int:
    """Number of a step's first sample (steps from 1): the next one, after the data skipped by rollbacks."""
    last = next((one for one in reversed(skipped) if one.to_step < step), None)
    batches = step - 1 if last is None else last.batches + step - 1 - last.to_step
    return batches * batch_sequences


def held_out_rows(tokens: Tokens, context: int, first: int, count: int) -> NDArray[Any]:
    """Sequences `first` to `first + count - 1` of the shuffled held-out split: int64 of shape (count, context + 1).

    Neighbouring sequences are parts of one document: unshuffled, the first 512 of our corpus are a few files, and a
    model's loss on such ranges was 2.88 to 3.51 bits per byte. Shuffled, the loss on the first 512 is within 0.03 of
    the next.
    """
    sequences = sequence_count(tokens, context)
    keys = round_keys("held out")
    indices = [permuted_index(index, sequences, keys) for index in range(first, first + count)]
    return _rows(tokens, context, indices)


def check_corpus_size(splits: Splits, needed: int, context: int) -> None:
    """DataError where a training split has no sequence, or a held-out split fewer than are needed."""
    sequence_count(splits.train, context)
    available = sequence_count(splits.held_out, context)
    if needed > available:
        raise DataError(
            f"the held-out split has {available} sequences of {context} tokens, but the evaluation needs "
            f"{needed}; lower the evaluation's sequences, or hold out more text"
        )


def sequence_count(tokens: Tokens, context: int) -> int:
    """Sequences in a split; the last target of each is the first token of the next, or one token at the end."""
    count = (len(tokens) - 1) // context
    if count < 1:
        raise DataError(
            f"{len(tokens)} tokens are too few for one sequence of {context}; add text or shorten the context"
        )
    return count


def round_keys(order: str) -> tuple[int, ...]:
    """The keys of the permutation with this name, 64 bits per round."""
    digest = blake2b(order.encode(), digest_size=8 * _ROUNDS).digest()
    return struct.unpack(f"<{_ROUNDS}Q", digest)


def permuted_index(index: int, size: int, keys: tuple[int, ...]) -> int:
    """The index that a keyed permutation of range(size) maps this one to.

    On Python's integers: 5 us an index, where NumPy needs 60 us for the first (measured; a step of our smallest model
    takes 3 ms for two sequences).
    """
    a = isqrt(size - 1) + 1
    b = -(-size // a)
    while True:
        index = _feistel(index, a, b, keys)
        if index < size:
            return index


def _feistel(index: int, a: int, b: int, keys: tuple[int, ...]) -> int:
    """One pass over the pair (index // b, index % b); a permutation of range(a b)."""
    left, right = divmod(index, b)
    for number, key in enumerate(keys):
        if number % 2:
            right = (right + _mixed(left ^ key)) % b
        else:
            left = (left + _mixed(right ^ key)) % a
    return left * b + right


def _mixed(value: int) -> int:
    """64 well-mixed bits: the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _BITS
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _BITS
    return value ^ value >> 31


def _rows(tokens: Tokens, context: int, indices: Sequence[int]) -> NDArray[Any]:
    rows = [tokens[index * context : (index + 1) * context + 1] for index in indices]
    return np.stack(rows).astype(np.int64)
