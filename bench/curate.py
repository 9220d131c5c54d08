"""Curating text with planted duplicates on this machine: `python -m bench.curate [--gigabytes 1] [--processes 2]`.

The text is that of the installed packages, as JSON lines: the words of each document in an order of their own for each
time that the packages are gone through, so that any amount of it has no near duplicates but the planted ones. Of every
hundred documents three are followed by themselves with 1, 3 or 5 % of the words replaced, one by itself, one by a short
one. They are curated by a filter that drops what is short, ExactDedup and MinhashDedup, all with datatrove's defaults.

Printed are the seconds of each pass; how many of the planted ones are found, beside the share that is expected of
near duplicates as similar as these are; and how many sound documents are lost, which have no version left. Resident
memory is that of all processes together, every fifth of a second. It needs 4 times its size on disk.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.corpora import Watch, children_cpu_s, documents
from runtime.data.build.curation import Curated, Curation, CurationPass, carry_out
from runtime.data.build.workers import Workers, open_workers
from specs.curate import ExactDedup, GopherQualityFilter, MinhashDedup
from specs.data import FileText

SHORT_WORDS = 50
"""Words of a document that the filter keeps."""
NEAR = {"edited by 1 %": 0.01, "edited by 3 %": 0.03, "edited by 5 %": 0.05}
"""Kinds of near duplicates, and the share of their words that is replaced."""
KINDS = (*NEAR, "equal", "short")
"""What follows a document that is planted upon."""
_EACH = 100
"""Documents of which one is planted upon in each way."""
_LATER = 1000
"""Planted documents wait until so many do, then one of them is written: they are apart, and in other files."""
_FILE_BYTES = 10**8
_DIFFERENT_WORDS = 2 * SHORT_WORDS
"""Different words of a sound document, at least: those of a table of few would be near duplicates however ordered."""
_SIMILAR = 50
"""Near duplicates of each kind whose similarity is computed."""
MINHASH = MinhashDedup(step="MinhashDedup")
STEPS = (
    GopherQualityFilter(
        step="GopherQualityFilter",
        min_doc_words=SHORT_WORDS,
        max_doc_words=None,
        min_avg_word_length=None,
        max_avg_word_length=None,
        max_symbol_word_ratio=None,
        max_bullet_lines_ratio=None,
        max_ellipsis_lines_ratio=None,
        max_non_alpha_words_ratio=None,
        min_stop_words=None,
    ),
    ExactDedup(step="ExactDedup"),
    MINHASH,
)


class Written(NamedTuple):
    """A document of the text."""

    number: int
    """Of the sound document that it is, or that it is a version of."""
    kind: str
    """`sound`, or one of `KINDS`."""
    text: str


class Found(NamedTuple):
    """What was planted of a kind, and what of it curation dropped."""

    planted: int
    dropped: int
    expected: float
    """Share of it that is expected to be dropped."""


class Took(NamedTuple):
    """What a pass took."""

    seconds: float
    cpu_s: float
    """CPU seconds of all processes, which say more where other programs run too."""


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    text_bytes: int
    passes: dict[str, Took]
    found: dict[str, Found]
    """By kind."""
    sound: int
    """Sound documents."""
    lost: int
    """Those of which no version is left."""
    resident_bytes: float


def planted(most_bytes: int) -> Iterator[Written]:
    """Sound documents and what is planted, of so many bytes together."""
    left, waiting, chance = most_bytes, list[Written](), Random(0)
    for number, source in enumerate(documents(10 * most_bytes)):
        given = np.array(source.split(), object)
        if len(set(given)) < _DIFFERENT_WORDS:
            continue
        words = given[np.random.default_rng(number).permutation(len(given))].tolist()
        some = [Written(number, "sound", _text(number, "sound", words))]
        if number % _EACH < len(KINDS):
            waiting.append(_version(number, KINDS[number % _EACH], words))
        if len(waiting) > _LATER:
            some.append(waiting.pop(chance.randrange(len(waiting))))
        yield from some
        left -= sum(len(one.text.encode()) for one in some)
        if left <= 0:
            break
    yield from waiting


def _version(number: int, kind: str, words: Sequence[str]) -> Written:
    """What is planted upon a document of these words."""
    if kind == "equal":
        return Written(number, kind, _text(number, "sound", words))
    if kind == "short":
        return Written(number, kind, _text(number, kind, words[: SHORT_WORDS // 5]))
    chance = np.random.default_rng(number)
    replaced = chance.random(len(words)) < NEAR[kind]
    new = [
        f"edited{chance.integers(10**9)}" if at else word for word, at in zip(words, replaced, strict=True)
    ]
    return Written(number, kind, _text(number, kind, new))


def _text(number: int, kind: str, words: Sequence[str]) -> str:
    """The words in lines of twelve, below one that names the document."""
    lines = [" ".join(words[first : first + 12]) for first in range(0, len(words), 12)]
    return "\n".join((f"{number} {kind}", *lines))


def write(folder: Path, most_bytes: int, progress: Progress) -> Iterator[tuple[Path, Written]]:
    """Write the text to files; every document, with the file that it is in."""
    bar = progress.add_task("writing the text", total=most_bytes)
    texts, number = planted(most_bytes), 0
    while (one := next(texts, None)) is not None:
        path = folder / f"{number:03}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            while one is not None:
                file.write(json.dumps({"text": one.text}) + "\n")
                progress.advance(bar, len(one.text.encode()))
                yield path, one
                one = next(texts, None) if file.tell() < _FILE_BYTES else None
        number += 1


class _Pairs(NamedTuple):
    """Sound documents and their near duplicates, some of each kind."""

    waiting: dict[int, str]
    found: dict[str, list[tuple[str, str]]]

    def see(self, one: Written) -> None:
        """Keep a document that is of use."""
        if one.kind == "sound" and one.number % _EACH < len(NEAR):
            if len(self.found[KINDS[one.number % _EACH]]) < _SIMILAR:
                self.waiting[one.number] = one.text
        elif one.kind in NEAR and (other := self.waiting.pop(one.number, None)) is not None:
            self.found[one.kind].append((other, one.text))

    def expected(self) -> dict[str, float]:
        """The mean chance of a band in common, by the pairs' Jaccard similarity of datatrove's shingles."""
        from datatrove.pipeline.dedup import MinhashDedupSignature

        shingles = MinhashDedupSignature("/", language=MINHASH.language).get_shingles
        found = {}
        for kind, pairs in self.found.items():
            chances = []
            for texts in pairs:
                one, other = (set(shingles(text).ravel().tolist()) for text in texts)
                band = (len(one & other) / len(one | other)) ** MINHASH.hashes_per_bucket
                chances.append(1 - (1 - band) ** MINHASH.num_buckets)
            found[kind] = float(np.mean(chances)) if chances else float("nan")
        return found


def measure(folder: Path, most_bytes: int, processes: int, console: Console) -> Outcome:
    """Write the text, curate it, and compare what is left with what was planted."""
    numbers: dict[str, list[int]] = {kind: [] for kind in ("sound", *KINDS)}
    files, pairs, text_bytes = dict[Path, None](), _Pairs({}, {kind: [] for kind in NEAR}), 0
    with open_workers(console, processes) as workers:
        for file, one in write(folder, most_bytes, workers.progress):
            files[file] = None
            numbers[one.kind].append(one.number)
            pairs.see(one)
            text_bytes += len(one.text.encode())
        text, watch = FileText(source="files", paths=("*.jsonl",), curate=STEPS), Watch(os.getpid())
        curation = Curation(text, folder, tuple(files), folder / "curated")
        watch.start()
        passes = {
            f"{one.step.step}, {one.name}": timed(one, workers) for step in curation.steps() for one in step
        }
        watch.stop()
    left = remaining(curation.left())
    versions = {number: sum(left[number, kind] for kind in ("sound", *NEAR)) for number in numbers["sound"]}
    expected = pairs.expected() | {"equal": 1.0, "short": 1.0}
    dropped = {kind: sum(versions[one] < 2 for one in numbers[kind]) for kind in (*NEAR, "equal")}
    dropped["short"] = sum(not left[one, "short"] for one in numbers["short"])
    return Outcome(
        text_bytes,
        passes,
        {kind: Found(len(numbers[kind]), dropped[kind], expected[kind]) for kind in KINDS},
        len(versions),
        sum(not one for one in versions.values()),
        watch.most_bytes,
    )


def timed(one: CurationPass, workers: Workers) -> Took:
    """Carry out a pass."""
    begun, cpu_s = time.perf_counter(), time.process_time() + children_cpu_s()
    carry_out(one, workers)
    return Took(time.perf_counter() - begun, time.process_time() + children_cpu_s() - cpu_s)


def remaining(curated: Curated) -> Counter[tuple[int, str]]:
    """The documents that are left, by number and kind; an equal one is another sound one."""
    found = Counter[tuple[int, str]]()
    for path in curated.files:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                number, _, kind = json.loads(line)["text"].partition("\n")[0].partition(" ")
                found[int(number), kind] += 1
    return found


def show(outcome: Outcome, processes: int, console: Console) -> None:
    """Print what was measured."""
    megabytes = outcome.text_bytes / 1e6
    passes = Table("pass", "seconds", "MB/s", "CPU s", box=None, pad_edge=False)
    total = Took(*map(sum, zip(*outcome.passes.values(), strict=True)))
    for name, took in (outcome.passes | {"all": total}).items():
        passes.add_row(name, f"{took.seconds:,.1f}", f"{megabytes / took.seconds:,.2f}", f"{took.cpu_s:,.1f}")
    kinds = Table("planted", "documents", "dropped", "expected", box=None, pad_edge=False)
    for kind, found in outcome.found.items():
        kinds.add_row(
            kind, f"{found.planted:,}", f"{found.dropped / found.planted:.1%}", f"{found.expected:.1%}"
        )
    console.print(passes, "", kinds, "", sep="\n")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    console.print(
        f"{megabytes:,.0f} MB in {outcome.sound:,} sound documents, of which {outcome.lost:,} "
        f"({outcome.lost / outcome.sound:.2%}) were lost; {processes} processes, "
        f"{outcome.resident_bytes / 1e6:,.0f} MB resident in all together; load {load}"
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.curate")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of text (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that curate (default: %(default)s)")
    options = parser.parse_args(argv)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="isoplan-bench-") as folder:
        outcome = measure(Path(folder), int(options.gigabytes * 1e9), options.processes, console)
    show(outcome, options.processes, console)


if __name__ == "__main__":
    main(sys.argv[1:])
