"""Built corpora for the planner: a manifest and an index, and no tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specs.data import Corpus, DataSpec, FileText, Split
from specs.data_inputs import Input, InputFile, absolute, input_files, inputs_of, write_index
from specs.document.write import write_json
from specs.sources import Sources


def corpus(spec: DataSpec, tokens: int = 10**8, **changes: Any) -> Corpus:
    """A corpus with this many tokens in either split, a byte each."""
    split = Split(documents=10, text_bytes=tokens, tokens=tokens, digest="1" * 64)
    file = InputFile("a file", "/text", tokens, 0, 0, "1" * 64)
    plain: dict[str, Any] = {
        "spec": spec,
        "inputs": inputs_of([file]),
        "reading": None,
        "digest": "2" * 64,
        "vocab": 256,
        "token_type": "uint8",
        "end_of_document": 0,
        "train": split,
        "held_out": split,
        "held_out_choices": (),
        "tokenizer_sha256": None,
        "bytes_per_token": 1.0,
    }
    return Corpus(**(plain | changes))


def write_corpus(spec: DataSpec, base: Path, tokens: int = 10**8, **changes: Any) -> Corpus:
    """The manifest and the index in `base / "data"`, as `isoplan data` leaves them; nothing is read or hashed."""
    if isinstance(spec.text, FileText):
        for path in spec.text.paths:
            file = base / path.replace("*", "some")
            file.parent.mkdir(exist_ok=True)
            file.touch()
    files = [_unread(one) for one in input_files(spec, base, base / "data")]
    inputs = write_index(spec, base, base / "data", files)
    written = corpus(spec, tokens, **{"inputs": inputs} | changes)
    write_json(base / "data" / written.name / "manifest.json", written)
    return written


def _unread(one: Input) -> InputFile:
    stat = one.path.stat()
    return InputFile(one.role, absolute(one.path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, "1" * 64)


def write_mix(spec: DataSpec, base: Path, tokens: Mapping[str, int]) -> Sources:
    """The same for every source of a mix, with so many tokens in either split, and for the mix itself."""
    corpora = {
        name: write_corpus(part, base, tokens[name], digest=f"{number}" * 64)
        for number, (name, part) in enumerate(spec.parts().items())
    }
    sources = Sources(corpora)
    write_json(base / "data" / sources.ref.corpus / "manifest.json", sources.manifest)
    return sources
