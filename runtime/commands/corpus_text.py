"""A built corpus in words: what is in it, and what was left out."""

from collections.abc import Iterator
from pathlib import Path

from specs.data import Corpus, MixCorpus
from specs.formatting import FUNNEL_HEAD, funnel_rows
from specs.humanize import several
from specs.sources import Sources

_SAMPLE = 100
"""Characters of the sample that are shown."""


def describe(sources: Sources, data: Path) -> Iterator[str]:
    """Lines for the user."""
    for name, corpus in sources.corpora.items():
        if name:
            yield f"source {name}"
        yield from _corpus(corpus, data)
    if isinstance(sources.manifest, MixCorpus):
        mix, tokens = sources.manifest, sum(one.train.tokens for one in sources.corpora.values())
        yield (
            f"{data / mix.name}: the mix of {', '.join(mix.sources)}, {tokens:,} tokens to train on in all, "
            f"digest {str(mix.digest)[:16]}"
        )


def _corpus(corpus: Corpus, data: Path) -> Iterator[str]:
    per_token = (
        "losses in nats per token, as the bytes of its text are not known"
        if corpus.bytes_per_token is None
        else f"{corpus.bytes_per_token:.3f} bytes per token"
    )
    yield (
        f"{data / corpus.name}: {corpus.train.tokens:,} tokens to train on, {corpus.held_out.tokens:,} held out, "
        f"{per_token}, digest {corpus.digest[:16]}"
    )
    yield from _curation(corpus, data)
    yield from _left_out(corpus)
    yield from corpus.notes
    if corpus.sample is not None:
        yield f"the first held-out tokens read: {corpus.sample[:_SAMPLE]!r}"


def _curation(corpus: Corpus, data: Path) -> Iterator[str]:
    """What the steps of data.text.curate kept and dropped."""
    stages = () if corpus.reading is None else corpus.reading.curation
    if stages:
        rows = [FUNNEL_HEAD, *funnel_rows(stages)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *numbers in rows:
            right = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
            yield "  ".join((name.ljust(widths[0]), *right))
        yield f"what was dropped, and why: {data / corpus.name / 'curation.html'}"


def _left_out(corpus: Corpus) -> Iterator[str]:
    """What of the text is not in the corpus."""
    reading = corpus.reading
    if reading is None:
        return
    parts = [
        f"{several(reading.duplicates, 'duplicate')} left out" if reading.duplicates else "",
        f"{several(reading.empty, 'empty text')} left out" if reading.empty else "",
        f"{several(reading.malformed, 'malformed record')} skipped" if reading.malformed else "",
    ]
    if any(parts):
        yield f"of {several(reading.records, 'record')}: {', '.join(filter(None, parts))}"
    for example in reading.examples:
        yield f"  {example}"
