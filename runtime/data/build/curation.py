"""Curates the files of a text: every step of its `curate`, in order, as tasks that datatrove carries out.

A task is some of the text in a pass, about as much in each; a step takes one pass over all documents, or several. They
are carried out by the processes of this machine (`curate`), or as jobs of SLURM (`runtime.slurm.data_jobs`).

curated/records/00000.json                          what the first step found in the files of each task
        0-GopherQualityFilter/kept/00000.jsonl      what a step left of it
                              dropped/00000.jsonl   what it dropped, with the reason
                              filter/completions/   tasks that are done, which are not done again
"""

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from runtime.data.build.curation_steps import KeptSource, Source, TextSource, passes
from runtime.data.build.shards import RecordCounts
from runtime.data.build.text_sources import curated_parts
from runtime.data.build.workers import Report, Workers
from runtime.data.errors import CorpusError
from specs.curate import EXAMPLE_CHARACTERS, CurationStage, CurationStep, DroppedDocument
from specs.data import FileText
from specs.document.parse import DocumentError
from specs.exit_codes import InputError
from specs.extras import CURATE, INSTALL_DATA, require

CURATED = "curated"
"""Where a build keeps what curation wrote, until the corpus is done."""
_EXAMPLES = 3
"""Dropped documents of each step that the manifest shows."""


@dataclass(frozen=True)
class CurationPass:
    """A pass of a step over all documents, and where it keeps what it did."""

    step: CurationStep
    source: Source
    """What it reads."""
    folder: Path
    """The step's folder."""
    base: Path
    """Folder of the budget."""
    number: int
    """Which of the step's passes."""
    name: str
    """Its name within the step."""
    tasks: int
    """Number of its tasks."""

    @property
    def log(self) -> Path:
        """datatrove's folder of its logs, counts and finished tasks."""
        return self.folder / self.name

    def run(self, task: int) -> None:
        """Carry out a task, unless it is done. CorpusError where it fails, DocumentError where a file is unreadable."""
        os.environ["TQDM_DISABLE"] = "1"  # its bars would be drawn over ours
        from datatrove.executor import LocalPipelineExecutor
        from loguru import logger

        logger.remove()  # its logs are files beside what it writes
        made = next(islice(passes(self.step, self.source, self.folder, self.base), self.number, None))
        try:
            executor = LocalPipelineExecutor(made.pipeline(), tasks=self.tasks, logging_dir=str(self.log))
            with redirect_stderr(io.StringIO()):  # to which it would write a traceback as well as to its log
                executor._run_for_rank(task, local_rank=1)  # of rank 0, it would log everything there
        except (CorpusError, DocumentError):
            raise
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            raise CorpusError(
                f"data.text.curate: {self.step.step} failed ({type(error).__name__}: {line})"
            ) from None


class Curated(NamedTuple):
    """What curation has left of a text."""

    files: list[Path]
    """The files that the last step has left, with their documents' text under `text`."""
    stages: tuple[CurationStage, ...]
    """What each step did."""
    read: RecordCounts
    """What the first one has read."""


@dataclass(frozen=True)
class Curation:
    """The steps of a text."""

    text: FileText
    base: Path
    """Folder of the budget."""
    files: tuple[Path, ...]
    """What the first step reads."""
    work: Path
    """Folder to write to."""

    @cached_property
    def source(self) -> TextSource:
        """The files, as the first step reads them."""
        return TextSource(self.text, tuple(curated_parts(self.text, self.files)), self.work / "records")

    def steps(self) -> Iterator[tuple[CurationPass, ...]]:
        """The passes of each step, in order. CorpusError where they cannot be carried out."""
        check()
        source: Source = self.source
        for step, folder in zip(self.text.curate, self._folders, strict=True):
            yield tuple(
                CurationPass(step, source, folder, self.base, place, one.name, one.tasks)
                for place, one in enumerate(passes(step, source, folder, self.base))
            )
            source = KeptSource(self._kept(folder))

    def left(self) -> Curated:
        """What the steps have left, all of which are carried out. DocumentError where too much of the text is
        malformed, CorpusError where there is no document in it or nothing is left."""
        read = self.source.counted()
        stages = tuple(
            _stage(step.step, folder, self.source.tasks)
            for step, folder in zip(self.text.curate, self._folders, strict=True)
        )
        left = [file for file in self._kept(self._folders[-1]) if file.exists()]
        if not left:
            funnel = ", ".join(f"{one.step} {one.dropped:,} of {one.read:,}" for one in stages)
            raise CorpusError(f"data.text.curate left no document (dropped: {funnel}); loosen a step")
        return Curated(left, stages, read)

    @property
    def _folders(self) -> list[Path]:
        """Each step's folder."""
        return [self.work / f"{number}-{step.step}" for number, step in enumerate(self.text.curate)]

    def _kept(self, folder: Path) -> tuple[Path, ...]:
        return tuple(folder / "kept" / f"{task:05d}.jsonl" for task in range(self.source.tasks))


def finished_tasks(log: Path) -> set[int]:
    """Numbers of the tasks of a pass that are done, by its folder of logs."""
    folder = log / "completions"
    return {int(path.name) for path in folder.iterdir()} if folder.exists() else set()


def check() -> None:
    """CorpusError where datatrove is missing."""
    try:
        require("data.text.curate", CURATE, INSTALL_DATA)
    except InputError as error:
        raise CorpusError(str(error)) from None


@dataclass(frozen=True)
class PassTask:
    """A task of a pass, for a process of this machine."""

    of: CurationPass
    number: int
    bytes: int
    """Of its text, for the progress."""


def curate(curation: Curation, workers: Workers) -> Curated:
    """As `Curation.left`, once all steps are carried out.

    Of equal documents the first is kept, in the order of the files, of near duplicates one of each cluster, the same
    for the same files. Tasks that an earlier call has finished are not done again. CorpusError or DocumentError where
    datatrove is missing, a file cannot be read, a step fails, or nothing is left.
    """
    for step in curation.steps():
        for one in step:
            carry_out(one, workers)
            if one.source is curation.source:
                curation.source.counted()  # which refuses what is malformed before hours of work
    return curation.left()


def carry_out(one: CurationPass, workers: Workers) -> None:
    """Carry out the tasks of a pass that are not done. Errors as `CurationPass.run` has them."""
    size, done = one.source.bytes, finished_tasks(one.log)
    todo = (number for number in range(one.tasks) if number not in done)
    tasks = [
        PassTask(replace(one, source=one.source.only(number)), number, size // one.tasks) for number in todo
    ]
    workers.map(f"{one.step.step}, {one.name}", size, run, tasks)


def run(task: PassTask, report: Report) -> None:
    """Carry out a task, unless it is done."""
    task.of.run(task.number)
    report(task.bytes)


def _stage(step: str, folder: Path, tasks: int) -> CurationStage:
    """What datatrove has counted, and the first documents that it dropped."""
    counts: Counter[str] = Counter()
    for rank in range(tasks):
        of_steps = json.loads((folder / "filter" / "stats" / f"{rank:05d}.json").read_text())
        for name, value in of_steps[0]["stats"].items():  # of the step itself; its reader keeps none
            counts[name] += value["total"] if isinstance(value, dict) else value
    reasons = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    return CurationStage(
        step=step,
        read=counts["total"],
        dropped=counts["dropped"],
        reasons=dict(sorted(reasons.items())),
        examples=tuple(islice(_dropped(folder / "dropped", tasks), _EXAMPLES)),
    )


def _dropped(folder: Path, tasks: int) -> Iterator[DroppedDocument]:
    for rank in range(tasks):
        path = folder / f"{rank:05d}.jsonl"
        if path.exists():
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    document = json.loads(line)
                    reason = str(document.get("metadata", {}).get("filter_reason", ""))
                    yield DroppedDocument(reason=reason, text=document["text"][:EXAMPLE_CHARACTERS])
