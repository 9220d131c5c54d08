"""datatrove's pipelines for the steps of a budget: what one task of a stage carries out.

A stage has a task for each part of the text, whatever the number of processes, so that the same documents come out in
the same order. Between stages they lie in `kept/`, a file for each task.

The user's files are read as those of any other text. So every format that is built is curated, the same records are
malformed, and texts are settled (no byte order mark, one kind of line ends) before a step sees them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from runtime.data.build.shards import RecordCounts, total
from runtime.data.build.text_files import FilePart, records_with
from runtime.data.errors import CorpusError
from specs.curate import (
    C4BadWordsFilter,
    CurationStep,
    ExactDedup,
    FilterStep,
    LanguageFilter,
    MinhashDedup,
)
from specs.data import FileText
from specs.document.write import write_text


@dataclass(frozen=True)
class TextSource:
    """The user's files, in parts."""

    text: FileText
    parts: tuple[tuple[FilePart, ...], ...]
    """Of each task."""
    counts: Path
    """Folder of what each task has counted of the records."""

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.parts)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        every = (part for parts in self.parts for part in parts)
        return sum((part.stop or part.path.stat().st_size) - part.start for part in every)

    def read(self, data: Any, rank: int, world_size: int) -> Iterator[Any]:
        """The documents of a task, for datatrove, whose ids begin with the task's number. DocumentError where a file,
        or hardly any of its records, is readable."""
        from datatrove.data import Document

        found = RecordCounts()
        keys = [step.key for step in self.text.curate if isinstance(step, ExactDedup) and step.key != "text"]
        for part in self.parts[rank]:
            for record, others in records_with(part, self.text.field, keys, lambda done: None):
                text = found.document(part, record, self.text.malformed)
                if text is not None:
                    yield Document(text.decode(), f"{rank}/{found.records}", metadata=dict(others))
        write_text(self._counts(rank), json.dumps(asdict(found)))

    def only(self, rank: int) -> "TextSource":
        """The same with the parts of this task alone, which is little to send to a process where files are many."""
        none: tuple[FilePart, ...] = ()
        return replace(self, parts=tuple(one if at == rank else none for at, one in enumerate(self.parts)))

    def counted(self) -> RecordCounts:
        """What its tasks have counted, all of which are done. Errors as `RecordCounts.check` has them."""
        texts = (self._counts(rank).read_text() for rank in range(self.tasks))
        found = total(RecordCounts(**json.loads(text)) for text in texts)
        found.check(self.text.malformed)
        return found

    def _counts(self, rank: int) -> Path:
        return self.counts / f"{rank:05d}.json"


@dataclass(frozen=True)
class KeptSource:
    """What a step has kept, a file for each task."""

    files: tuple[Path, ...]
    """The files; one may be missing, where the step kept nothing of it."""

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.files)

    def only(self, rank: int) -> "KeptSource":
        """The same, whose files are as many as tasks."""
        return self

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files if file.exists())

    def read(self, data: Any, rank: int, world_size: int) -> Iterator[Any]:
        """The documents of a task, as datatrove's reader gives them."""
        from datatrove.pipeline.readers import JsonlReader

        path = self.files[rank]
        if path.exists():
            yield from JsonlReader(str(path.parent), add_file_path=False).read_files_shard([path.name])


Source = TextSource | KeptSource


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
    """datatrove's pattern for a list of words (C4BadWordsFilter). CorpusError where it has none: every text has
    nothing in it."""
    import re

    words = sorted({line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()} - {""})
    if not words:
        raise CorpusError(
            f"{path}: the list has no words; write one in each line, or remove C4BadWordsFilter"
        )
    return re.compile(r"(?:\W|^)({})(?:\W|$)".format("|".join(map(re.escape, words))))


class Pass(NamedTuple):
    """A pass over all documents."""

    name: str
    """Its name within the step."""
    tasks: int
    """Number of its tasks."""
    pipeline: Callable[[], list[Any]]
    """datatrove's pipeline of each; reads models and lists of words."""


def passes(step: CurationStep, source: Source, folder: Path, base: Path) -> Iterator[Pass]:
    """The passes that a step takes, in order. The last one writes what is kept to `folder / "kept"`, and what is
    dropped to `folder / "dropped"`."""
    match step:
        case MinhashDedup():
            yield from _minhash(step, source, folder)
        case ExactDedup():
            yield from _exact(step, source, folder)
        case _:
            dropped, kept = folder / "dropped", folder / "kept"
            yield Pass(
                "filter",
                source.tasks,
                lambda: [source.read, filter_of(step, base, dropped), writer(kept)],
            )


def _minhash(step: MinhashDedup, source: Source, folder: Path) -> Iterator[Pass]:
    signatures, buckets, remove = (str(folder / name) for name in ("signatures", "buckets", "remove"))
    tasks = source.tasks

    def config() -> Any:
        from datatrove.pipeline.dedup.minhash import MinhashConfig

        return MinhashConfig(step.n_grams, step.num_buckets, step.hashes_per_bucket, step.seed)

    def sign() -> list[Any]:
        from datatrove.pipeline.dedup import MinhashDedupSignature

        return [source.read, MinhashDedupSignature(signatures, config(), language=step.language)]

    def match() -> list[Any]:
        from datatrove.pipeline.dedup import MinhashDedupBuckets

        return [MinhashDedupBuckets(signatures, buckets, config=config())]

    def cluster() -> list[Any]:
        from datatrove.pipeline.dedup import MinhashDedupCluster

        return [MinhashDedupCluster(buckets, remove, config())]

    def remove_duplicates() -> list[Any]:
        from datatrove.pipeline.dedup import MinhashDedupFilter

        removing = MinhashDedupFilter(remove, exclusion_writer=writer(folder / "dropped"))
        return [source.read, removing, writer(folder / "kept")]

    yield Pass("signatures", tasks, sign)
    yield Pass("buckets", step.num_buckets, match)
    yield Pass("cluster", 1, cluster)
    yield Pass("filter", tasks, remove_duplicates)


def _exact(step: ExactDedup, source: Source, folder: Path) -> Iterator[Pass]:
    signatures, found = str(folder / "signatures"), str(folder / "found")
    tasks = source.tasks

    def config() -> Any:
        from datatrove.pipeline.dedup import ExactDedupConfig

        return ExactDedupConfig(content_getter=partial(_content, step.key), document_priority=_priority)

    def sign() -> list[Any]:
        from datatrove.pipeline.dedup import ExactDedupSignature

        return [source.read, ExactDedupSignature(signatures, config())]

    def find() -> list[Any]:
        from datatrove.pipeline.dedup import ExactFindDedups

        return [ExactFindDedups(signatures, found, config())]

    def remove_duplicates() -> list[Any]:
        from datatrove.pipeline.dedup import ExactDedupFilter

        removing = ExactDedupFilter(found, config(), exclusion_writer=writer(folder / "dropped"))
        return [source.read, removing, writer(folder / "kept")]

    yield Pass("signatures", tasks, sign)
    yield Pass("duplicates", 1, find)
    yield Pass("filter", tasks, remove_duplicates)


def _priority(document: Any) -> int:
    """Larger for those of earlier tasks, whose first one stays; datatrove knows 65,535."""
    return max(1, 65_535 - int(document.id.partition("/")[0]))


def _content(key: str, document: Any) -> str:
    """What is compared of a document; its own id, which no other has, where it lacks that."""
    if key == "text":
        return str(document.text)
    return str(document.metadata.get(key) or f"\0{document.id}")
