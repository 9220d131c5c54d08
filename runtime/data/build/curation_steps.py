"""datatrove's pipelines for the steps of a budget: what one task of a stage carries out.

A stage has a task for each file of the text, whatever the number of processes, so that the same documents come out in
the same order. Between stages they lie in `kept/`, a file for each task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from specs.curate import (
    C4BadWordsFilter,
    CurationStep,
    ExactDedup,
    FilterStep,
    LanguageFilter,
    MinhashDedup,
)
from specs.data_inputs import suffix


@dataclass(frozen=True)
class Source:
    """Where a stage reads documents, a file for each task."""

    files: tuple[Path, ...]
    """The files; one may be missing, where a stage before kept nothing of it."""
    field: str
    """Key or column of the text."""

    def read(self, data: Any, rank: int, world_size: int) -> Iterator[Any]:
        """The documents of a task, as datatrove's readers give them."""
        from datatrove.pipeline.readers import JsonlReader, ParquetReader

        path = self.files[rank]
        if path.exists():
            reader = ParquetReader if suffix(path) == ".parquet" else JsonlReader
            made = reader(str(path.parent), text_key=self.field, add_file_path=False)
            yield from made.read_files_shard([path.name])


def writer(folder: Path) -> Any:
    """Writes documents to this folder, a file for each task."""
    from datatrove.pipeline.writers import JsonlWriter

    return JsonlWriter(str(folder), compression=None)


def filter_of(step: FilterStep, base: Path, dropped: Path) -> Any:
    """datatrove's filter; paths in the step are relative to the folder `base`."""
    from datatrove.pipeline import filters

    parameters = step.plain()
    del parameters["step"]
    made: Any
    match step:
        case LanguageFilter():
            del parameters["model"]
            parameters["languages"] = list(step.languages)
            made = filters.LanguageFilter(**parameters, exclusion_writer=writer(dropped))
            made.model._model = _fasttext(base / step.model)  # which it would download
        case C4BadWordsFilter():
            made = filters.C4BadWordsFilter(exclusion_writer=writer(dropped))
            pattern = _any_of(base / step.words)
            made._get_badwords = lambda language: pattern  # which it would download
        case _:
            made = getattr(filters, step.step)(**parameters, exclusion_writer=writer(dropped))
    return made


def _fasttext(path: Path) -> Any:
    from fasttext.FastText import _FastText

    return _FastText(str(path))


def _any_of(path: Path) -> Any:
    """datatrove's pattern for a list of words (C4BadWordsFilter)."""
    import re

    words = sorted({line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""})
    return re.compile(r"(?:\W|^)({})(?:\W|$)".format("|".join(map(re.escape, words))))


def passes(
    step: CurationStep, source: Source, folder: Path, base: Path
) -> Iterator[tuple[str, int, Sequence[Any]]]:
    """The passes over all documents that a step takes: name, number of tasks, and the pipeline of each. The last one
    writes what is kept to `folder / "kept"`, and what is dropped to `folder / "dropped"`."""
    tasks, dropped, kept = len(source.files), folder / "dropped", writer(folder / "kept")
    match step:
        case MinhashDedup():
            yield from _minhash(step, source, folder)
        case ExactDedup():
            yield from _exact(step, source, folder)
        case _:
            yield "filter", tasks, [source.read, filter_of(step, base, dropped), kept]


def _minhash(step: MinhashDedup, source: Source, folder: Path) -> Iterator[tuple[str, int, Sequence[Any]]]:
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster
    from datatrove.pipeline.dedup import MinhashDedupFilter as Filter
    from datatrove.pipeline.dedup import MinhashDedupSignature as Signature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = MinhashConfig(step.n_grams, step.num_buckets, step.hashes_per_bucket, step.seed)
    signatures, buckets, remove = (str(folder / name) for name in ("signatures", "buckets", "remove"))
    tasks = len(source.files)
    signing = Signature(signatures, config, language=step.language)
    removing = Filter(remove, exclusion_writer=writer(folder / "dropped"))
    yield "signatures", tasks, [source.read, signing]
    yield "buckets", step.num_buckets, [MinhashDedupBuckets(signatures, buckets, config=config)]
    yield "cluster", 1, [MinhashDedupCluster(buckets, remove, config)]
    yield "filter", tasks, [source.read, removing, writer(folder / "kept")]


def _exact(step: ExactDedup, source: Source, folder: Path) -> Iterator[tuple[str, int, Sequence[Any]]]:
    from datatrove.pipeline.dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )

    config = ExactDedupConfig(content_getter=partial(_content, step.key))
    signatures, found = str(folder / "signatures"), str(folder / "found")
    tasks = len(source.files)
    removing = ExactDedupFilter(found, config, exclusion_writer=writer(folder / "dropped"))
    yield "signatures", tasks, [source.read, ExactDedupSignature(signatures, config)]
    yield "duplicates", 1, [ExactFindDedups(signatures, found, config)]
    yield "filter", tasks, [source.read, removing, writer(folder / "kept")]


def _content(key: str, document: Any) -> str:
    """What is compared of a document; its own id, which no other has, where it lacks that."""
    if key == "text":
        return str(document.text)
    return str(document.metadata.get(key) or f"\0{document.id}")
