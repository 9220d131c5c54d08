"""Curates the files of a text: every step of its `curate`, in order, as tasks of datatrove's local executor.

curated/0-GopherQualityFilter/kept/00000.jsonl      what a step left of each file
                              dropped/00000.jsonl   what it dropped, with the reason
                              filter/completions/   tasks that are done, which are not done again
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from runtime.data.build.curation_steps import Source, passes
from runtime.data.build.workers import Report, Workers
from runtime.data.errors import CorpusError
from specs.curate import CurationStage, CurationStep, DroppedDocument
from specs.data import FileText
from specs.data_inputs import suffix
from specs.document.parse import DocumentError
from specs.exit_codes import InputError
from specs.extras import CURATE, INSTALL_DATA, require

CURATED = "curated"
"""Where a build keeps what curation wrote, until the corpus is done."""
_SUFFIXES = (".jsonl", ".parquet")
_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 300
"""Dropped documents of each step that the manifest shows, and how much of each."""


@dataclass(frozen=True)
class PassTask:
    """A task of one pass of a step."""

    step: CurationStep
    source: Source
    folder: Path
    """The step's folder."""
    base: Path
    """Folder of the budget."""
    number: int
    """Which of the step's passes."""
    rank: int
    bytes: int
    """Of its file, for the progress."""


def curate(
    text: FileText, base: Path, files: Sequence[Path], work: Path, workers: Workers
) -> tuple[list[Path], tuple[CurationStage, ...]]:
    """The files that the last step has left, with their documents' text under `text`; and what each step did.

    Of equal documents the first is kept, in the order of `files`, of near duplicates one of each cluster, the same for
    the same files. `work` is a folder to write to, where tasks that an earlier call has finished are not done again.
    CorpusError or DocumentError where datatrove is missing or cannot read a file, a step fails, or nothing is left.
    """
    try:
        require("data.text.curate", CURATE, INSTALL_DATA)
    except InputError as error:
        raise CorpusError(str(error)) from None
    unknown = next((path for path in files if suffix(path) not in _SUFFIXES), None)
    if unknown is not None:
        write = "give .jsonl (also as .gz or .zst) or .parquet, or remove data.text.curate"
        raise DocumentError(unknown, 1, 1, "files of this type cannot be curated", write)
    source, stages = Source(tuple(files), text.field), []
    for number, step in enumerate(text.curate):
        folder = work / f"{number}-{step.step}"
        for place, (name, tasks, _) in enumerate(passes(step, source, folder, base)):
            size = sum(file.stat().st_size for file in source.files if file.exists())
            each = [PassTask(step, source, folder, base, place, rank, size // tasks) for rank in range(tasks)]
            workers.map(f"{step.step}, {name}", size, run, each)
        stages.append(_stage(step, folder, len(source.files)))
        kept = (folder / "kept" / f"{rank:05d}.jsonl" for rank in range(len(source.files)))
        source = Source(tuple(kept), "text")
    left = [file for file in source.files if file.exists()]
    if not left:
        funnel = ", ".join(f"{one.step} {one.dropped:,} of {one.read:,}" for one in stages)
        raise CorpusError(f"data.text.curate left no document (dropped: {funnel}); loosen a step")
    return left, tuple(stages)


def run(task: PassTask, report: Report) -> None:
    """Carry out a task, unless it is done."""
    os.environ["TQDM_DISABLE"] = "1"  # its bars would be drawn over ours
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    logger.remove()  # its logs are files beside what it writes
    made = passes(task.step, task.source, task.folder, task.base)
    name, tasks, pipeline = next(islice(made, task.number, None))
    executor = LocalPipelineExecutor(list(pipeline), tasks=tasks, logging_dir=str(task.folder / name))
    try:
        executor._run_for_rank(task.rank, local_rank=1)  # of rank 0, it would log to the terminal
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise CorpusError(
            f"data.text.curate: {task.step.step} failed ({type(error).__name__}: {line}); see {task.folder / name}"
        ) from None
    report(task.bytes)


def _stage(step: CurationStep, folder: Path, tasks: int) -> CurationStage:
    """What datatrove has counted, and the first documents that it dropped."""
    counts: Counter[str] = Counter()
    for rank in range(tasks):
        of_steps = json.loads((folder / "filter" / "stats" / f"{rank:05d}.json").read_text())
        for name, value in of_steps[0]["stats"].items():  # of the step itself; its reader keeps none
            counts[name] += value["total"] if isinstance(value, dict) else value
    reasons = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    return CurationStage(
        step=step.step,
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
                    yield DroppedDocument(reason=reason, text=document["text"][:_EXAMPLE_CHARACTERS])
