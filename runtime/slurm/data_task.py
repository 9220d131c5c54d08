"""What the jobs that build a corpus do: tasks of a pass of curation, and the build. All state is in files."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runtime.data.build.curation import CurationPass
from runtime.data.build.mix import build_sources, noted_curation
from runtime.data.errors import CorpusError
from runtime.run_folder.workspace import Workspace
from specs.data_jobs import DataJobs, PassJobs
from specs.document.files import DocumentError, load
from specs.exit_codes import BAD_INPUT

DATA = Workspace(Path()).data
"""Folder of corpora, from the workspace, which is the current folder of a job."""


@dataclass(frozen=True)
class CurateTask:
    """Some tasks of a pass, one after the other."""

    workspace: str
    """The workspace, an absolute path."""
    jobs: str
    """Where the jobs are noted, relative to the workspace."""
    folder: str
    """The pass: where it notes which of its tasks are done, relative to the workspace."""
    tasks: tuple[int, ...]
    """Numbers of the tasks; what is done is not done again."""

    def __call__(self) -> None:
        """Carry them out; SystemExit with 2 and a line on standard error where one fails."""
        with _job(self.workspace):
            jobs = load(Path(self.jobs), DataJobs)
            one = next(one for one in jobs.passes if one.folder == self.folder)
            to_do = pass_of(jobs, one)
            for task in self.tasks:
                try:
                    to_do.run(task)
                except CorpusError as error:
                    raise CorpusError(f"task {task}: {error}") from None


@dataclass(frozen=True)
class BuildTask:
    """The build of a corpus whose text is curated."""

    workspace: str
    """The workspace, an absolute path."""
    jobs: str
    """Where the jobs are noted, relative to the workspace."""
    processes: int
    """CPUs."""

    def __call__(self) -> None:
        """Build it; SystemExit with 2 and a line on standard error where that fails."""
        with _job(self.workspace):
            path = Path(self.jobs)
            jobs = load(path, DataJobs)
            built = build_sources(jobs.spec, Path(jobs.folder), DATA, Console(width=120), self.processes)
            print(f"{DATA / built.ref.corpus} is built")
            path.unlink()


def pass_of(jobs: DataJobs, one: PassJobs) -> CurationPass:
    """How a pass is carried out; paths are relative to the workspace, which is the current folder."""
    work = Path(one.folder).parents[1]
    curation = noted_curation(jobs.spec, Path(jobs.folder), DATA, one.source or "", work)
    passes = (each for step in curation.steps() for each in step)
    return next(each for each in passes if each.log == Path(one.folder))


@contextmanager
def _job(workspace: str) -> Iterator[None]:
    """In this folder, and with one line for an error."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, and would last the site's KillWait
    os.chdir(workspace)
    try:
        yield
    except (CorpusError, DocumentError) as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(BAD_INPUT)
