"""What of a DataSpec is curated, in which folders: for those who carry the steps out elsewhere than in the build.

The build finds their tasks done, and goes on from there.
"""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from runtime.data.build.corpus import disk_errors, hash_corpus, only_builder, part_of
from runtime.data.build.curation import Curation, check
from runtime.data.build.mix import check_files, hash_mix, write_tokenizer_index
from runtime.data.build.text import curation_of, discard_other_work, is_text
from runtime.data.build.workers import open_workers
from runtime.data.errors import CorpusError
from specs.data import Bbpe, DataSpec, FileText
from specs.data_inputs import input_files, read_index
from specs.sources import with_tokenizer


def prepare_curations(spec: DataSpec, base: Path, data: Path, console: Console) -> dict[str, Curation]:
    """What is to be curated by source (under no name where there is no mix), with its folder made: nothing where
    corpora are built, or texts are not curated. All inputs are hashed, and known from now on.

    CorpusError or DocumentError where a text is missing, or datatrove is or cannot read it.
    """
    found: dict[str, Curation] = {}
    with disk_errors(data), open_workers(console) as workers:
        data.mkdir(parents=True, exist_ok=True)
        check_files(spec, base, data)
        for part in spec.parts().values():
            if isinstance(part.text, FileText) and part.text.curate:
                texts = [one.path for one in input_files(part, base, data) if is_text(one.role)]
                check(part.text, texts)
        parts: Mapping[str, DataSpec] = spec.parts()
        if "" not in parts and isinstance(spec.tokenizer, Bbpe):
            folder, files = hash_mix(spec, base, data, workers)
            work = part_of(data, folder.name)
            if not (folder / "tokenizer.json").exists():
                with only_builder(data, folder.name):
                    found = {
                        name: curation_of(one.text, base, files[name], work / name)
                        for name, one in parts.items()
                        if isinstance(one.text, FileText) and one.text.curate
                    }
                    return _opened(found, [work])
            write_tokenizer_index(spec, base, data, folder)
            parts = with_tokenizer(spec, base, data) or parts
        for name, part in parts.items():
            corpus, inputs = hash_corpus(part, base, data, workers)
            if isinstance(part.text, FileText) and part.text.curate:
                with only_builder(data, corpus):
                    if not (data / corpus).exists():
                        one = curation_of(part.text, base, inputs, part_of(data, corpus))
                        found |= _opened({name: one}, [])
        return found


def _opened(found: dict[str, Curation], above: list[Path]) -> dict[str, Curation]:
    """The same, once their folders are there, and those above them."""
    for folder in [*above, *(one.work.parent for one in found.values())] if found else ():
        folder.mkdir(exist_ok=True)
        discard_other_work(folder)
    return found


def noted_curation(spec: DataSpec, base: Path, data: Path, source: str, work: Path) -> Curation:
    """A curation that was prepared, with its folder. CorpusError where its inputs are no longer known."""
    part = spec.parts()[source]
    known = read_index(part, base, data)
    if known is None or not isinstance(part.text, FileText):
        raise CorpusError(f"the inputs of {work} are no longer known; run isoplan data again")
    return curation_of(part.text, base, known.files.values(), work.parent)
