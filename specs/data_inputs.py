"""The files that a DataSpec reads, and which corpus was built from them.

A corpus is its contents: its name holds the sizes and digests of all input files. So that nothing is hashed twice,
`data/.index/` has a file for each DataSpec and folder: every input with its size, times and digest, and the name of
the corpus. Times decide only whether a file is hashed again, never which corpus it belongs to. The planner reads that
index; the builder of corpora writes it.
"""

import hashlib
import importlib.util
import json
import os
import re
import stat
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from pathlib import Path
from typing import NamedTuple

from specs.curate import C4BadWordsFilter, LanguageFilter
from specs.data import (
    MOST_ROWS,
    Corpus,
    DataSpec,
    DeclaredText,
    FileText,
    Inputs,
    InstalledText,
    MixText,
    TokenFiles,
    TokenizerFile,
    corpus_name,
)
from specs.document.base import canonical_json
from specs.document.files import DocumentError, load
from specs.document.write import write_text

COMPRESSED = (".gz", ".zst")
CURATION_ROLE = "curation "
"""How the roles of files begin that steps of `curate` read."""
TEXT_SUFFIXES = (".txt", ".md")
JSON_SUFFIXES = (".json", ".jsonl")
TOKEN_SUFFIXES = (".bin", ".ds", ".npy")
_LIBRARY_SUFFIXES = (".py", ".pyi", ".rst", ".md", ".txt")
_WRITTEN = r"((runs|exports)/[0-9a-f]{16}/|plans/[^/]+/[^/]+\.json$|ledger\.jsonl$)"
"""What other commands write to a workspace, of types that text has."""
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})


class InputFileError(DocumentError):
    """A file of a DataSpec that is missing or of no known type."""

    def __init__(self, path: Path, field: str, what: str, write: str) -> None:
        super().__init__(path, 1, 1, what, write)
        self.field = field
        """Where the DataSpec names it, `text.paths.0` say."""


class Input(NamedTuple):
    """A file that a DataSpec reads."""

    role: str
    """What it is read as. Two files of different roles cannot change places without being another corpus."""
    path: Path


class InputFile(NamedTuple):
    """An input, as it was when it was hashed."""

    role: str
    """As of `Input`."""
    path: str
    """Absolute."""
    bytes: int
    """Its size."""
    mtime_ns: int
    """When its content was changed last."""
    ctime_ns: int
    """When anything of it was changed last, its times included."""
    sha256: str
    """SHA-256 of its content."""


class BuiltFrom(NamedTuple):
    """What the index says of a DataSpec in a folder."""

    corpus: str
    """Name of the corpus."""
    files: dict[str, InputFile]
    """Every input by its path."""


def suffix(path: Path) -> str:
    """The kind of a text file, lower case and without its compression: `.jsonl` of A.JSONL.GZ."""
    name = path.name.lower().removesuffix(compression(path))
    return os.path.splitext(name)[1]


def compression(path: Path) -> str:
    """`.gz`, `.zst`, or nothing."""
    return next((ending for ending in COMPRESSED if path.name.lower().endswith(ending)), "")


def input_files(spec: DataSpec, base: Path, data: Path) -> list[Input]:
    """Every file that the DataSpec reads, each once; paths in it are relative to the folder `base`. What commands
    wrote to the workspace of `data` (corpora, runs, exports, results of plans, the ledger) is no text, whatever pattern
    it matches.

    InputFileError where one is missing, of no known type, or cannot be looked at.
    """
    try:
        found = _input_files(spec, base)
    except OSError as error:
        raise _unreadable(Path(error.filename or base), "text", error) from None
    written = re.compile(
        f"{re.escape(absolute(data))}/([0-9a-f]{{16}}|weights)/|{re.escape(absolute(data.parent))}/{_WRITTEN}"
    )
    return [one for one in found if one.role == "tokenizer" or not written.match(absolute(one.path))]


def _unreadable(path: Path, field: str, error: OSError) -> InputFileError:
    what, write = f"it cannot be read ({error.strerror})", "make it readable, or correct the path"
    if os.path.islink(path) and isinstance(error, FileNotFoundError):
        what, write = "this is a link to a file that is not there", "restore that file, or remove the link"
    return InputFileError(path, field, what, write)


def _input_files(spec: DataSpec, base: Path) -> list[Input]:
    text = spec.text
    if isinstance(text, TokenFiles):  # their order is that of the tokens
        held_out = _held_out_files(text, base)
        train = _without(_text_files(spec, base), held_out)
        found = [Input(f"train {n}", path) for n, path in enumerate(train)]
        found += [Input(f"held out {n}", path) for n, path in enumerate(held_out)]
        found += [Input(f"index of {role}", index) for role, path in found for index in index_files(path)]
    else:
        found = [Input(suffix(path) + compression(path), path) for path in _text_files(spec, base)]
        found += _curation_files(text, base) if isinstance(text, FileText) else []
    if isinstance(spec.tokenizer, TokenizerFile):
        own = tokenizer_file(spec.tokenizer, base)  # beside the text, it is no text
        found = [one for one in found if absolute(one.path) != absolute(own)]
        found.append(Input("tokenizer", own))
    return found


def _without(paths: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """The files that are none of the others, however both are spelled."""
    left_out = {absolute(path) for path in others}
    return [path for path in paths if absolute(path) not in left_out]


def _curation_files(text: FileText, base: Path) -> list[Input]:
    """Models and lists of words that steps of `curate` name."""
    found = []
    for number, step in enumerate(text.curate):
        match step:
            case LanguageFilter():
                field, name = "model", step.model
            case C4BadWordsFilter():
                field, name = "words", step.words
            case _:
                continue
        if not (base / name).is_file():
            at = f"text.curate.{number}.{field}"
            raise InputFileError(base / name, at, "there is no such file", f"correct the path in data.{at}")
        found.append(Input(f"{CURATION_ROLE}{number}", base / name))
    return found


def _text_files(spec: DataSpec, base: Path) -> list[Path]:
    """The files with text, or the training files with tokens, sorted."""
    match spec.text:
        case InstalledText():
            return [path for root in _roots(spec.text) for path in _library(root)]
        case FileText():
            return sorted(_matches(spec.text.paths, base, "text.paths", _is_text, _TEXT_REMEDY))
        case TokenFiles():
            return sorted(_matches(spec.text.paths, base, "text.paths", _is_tokens, _TOKENS_REMEDY))
        case DeclaredText() | MixText():  # each source of a mix has a DataSpec of its own
            return []


def _held_out_files(text: TokenFiles, base: Path) -> list[Path]:
    """The token files that are held out by name, sorted."""
    return sorted(_matches(text.held_out, base, "text.held_out", _is_tokens, _TOKENS_REMEDY))


def tokenizer_file(tokenizer: TokenizerFile, base: Path) -> Path:
    """The tokenizer's file."""
    path, field = base / tokenizer.path, "tokenizer.path"
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise _unreadable(path, field, error) from None
    raise InputFileError(path, field, "there is no such file", f"correct the path in {field}")


def check_token_count(tokenizer: TokenizerFile, path: Path, count: int) -> None:
    """InputFileError unless a model can have a row for each of the file's token ids, and as many as are asked for."""
    if not 2 <= count <= MOST_ROWS:
        what = f"its largest token id is {count - 1:,}, and a vocabulary has 2 to {MOST_ROWS:,} ids"
        write = "give a tokenizer.json, as save_pretrained writes it"
        raise InputFileError(path, "tokenizer.path", what, write)
    if tokenizer.rows is not None and tokenizer.rows < count:
        what = f"it has {count:,} token ids, more than rows: {tokenizer.rows}"
        raise InputFileError(path, "tokenizer.rows", what, f"write rows: {count} or more")


def index_files(path: Path) -> list[Path]:
    """The files beside a token file that say where its documents end, as far as they are there.

    InputFileError where something else is in their place.
    """
    beside = [path.with_suffix(".idx")] if path.suffix == ".bin" else []
    beside += [path.with_name(path.name + ending) for ending in (".index", ".metadata")]
    for one in beside:
        if os.path.lexists(one) and not one.is_file():
            what = "this should be the index of a token file, but is a folder or a link to nothing"
            raise InputFileError(one, "text.paths", what, "restore the file, or remove it")
    return [one for one in beside if one.is_file()]


_TEXT_REMEDY = "give .txt, .md, .json, .jsonl (each also as .gz or .zst) or .parquet"
_TOKENS_REMEDY = "give .bin, .ds or .npy"


def _is_text(path: Path) -> bool:
    return suffix(path) in (*TEXT_SUFFIXES, *JSON_SUFFIXES) or path.name.lower().endswith(".parquet")


def _is_tokens(path: Path) -> bool:
    return path.name.endswith(TOKEN_SUFFIXES)


def _matches(
    patterns: Iterable[str], base: Path, field: str, known: Callable[[Path], bool], remedy: str
) -> list[Path]:
    """The files that paths and patterns name, and those of a known type in the folders that they name; each once,
    however often and in whatever spelling it is named."""
    found: dict[str, Path] = {}
    for number, pattern in enumerate(patterns):
        at = f"{field}.{number}"
        files = [one for place in _places(pattern, base) for one in _files(place, known)]
        if not files:
            kind = "no file of a known type in this folder" if (base / pattern).is_dir() else "no such file"
            write = remedy if (base / pattern).is_dir() else f"correct the path in data.{field}"
            raise InputFileError(base / pattern, at, f"there is {kind}", write)
        unknown = next((path for path in files if not known(path)), None)
        if unknown is not None:
            raise InputFileError(unknown, at, "files of this type cannot be read", remedy)
        for path in files:
            found.setdefault(absolute(path), path)
    return list(found.values())


def _places(pattern: str, base: Path) -> Iterator[Path]:
    """What a path or pattern names; a name that is there is no pattern, whatever is in it."""
    if (base / pattern).exists():
        yield base / pattern
    else:
        yield from (base / match for match in sorted(glob(pattern, root_dir=base, recursive=True)))


def _files(place: Path, known: Callable[[Path], bool]) -> Iterator[Path]:
    """The file, or the folder's files of a known type; hidden ones are left out. OSError at a link to nothing."""
    if place.is_dir():
        for entry in _walk(str(place), lambda name: not name.startswith("."), set()):
            path = Path(entry.path)
            if known(path) and stat.S_ISREG(entry.stat().st_mode):
                yield path
    elif stat.S_ISREG(place.stat().st_mode):
        yield place


def _roots(text: InstalledText) -> Iterator[Path]:
    """Folders of the standard library and of the packages, which are not imported."""
    yield Path(sysconfig.get_paths()["stdlib"])
    for number, name in enumerate(text.packages):
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise InputFileError(
                Path(name),
                f"text.packages.{number}",
                "this is not an installed package",
                "install or remove it",
            )
        yield Path(places[0])


def _library(root: Path) -> Iterator[Path]:
    for entry in _walk(str(root), lambda name: name not in _NOT_LIBRARY, set()):
        if entry.name.endswith(_LIBRARY_SUFFIXES) and entry.is_file():
            yield Path(entry.path)


def _walk(folder: str, wanted: Callable[[str], bool], seen: set[str]) -> Iterator[os.DirEntry[str]]:
    """All but folders beneath a folder, where it and the folders above it have names that are wanted. Links to folders
    are followed, and no folder is entered twice: `seen` are those that were."""
    seen.add(os.path.realpath(folder))
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if wanted(entry.name)), key=lambda entry: entry.name)
    for entry in found:
        if not entry.is_dir():
            yield entry
        elif os.path.realpath(entry.path) not in seen:
            yield from _walk(entry.path, wanted, seen)


# --- the index ---


def index_path(spec: DataSpec, base: Path, data: Path) -> Path:
    """The index of a DataSpec in this folder."""
    key = canonical_json({"spec": spec.plain(), "folder": str(base.resolve())})
    return (
        data / ".index" / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.jsonl"
    )


def read_index(spec: DataSpec, base: Path, data: Path) -> BuiltFrom | None:
    """What was built from this DataSpec in this folder; None where nothing was, or the index is damaged."""
    try:
        head, *lines = index_path(spec, base, data).read_text(encoding="utf-8").splitlines()
        files = [InputFile(**json.loads(line)) for line in lines]
        return BuiltFrom(json.loads(head)["corpus"], {one.path: one for one in files})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_index(spec: DataSpec, base: Path, data: Path, files: list[InputFile]) -> Inputs:
    """Write the index; what the inputs are, by content."""
    inputs = inputs_of(files)
    lines: list[object] = [{"corpus": corpus_name(spec, inputs.digest)}, *(one._asdict() for one in files)]
    write_text(index_path(spec, base, data), "".join(json.dumps(line) + "\n" for line in lines))
    return inputs


def inputs_of(files: Iterable[InputFile]) -> Inputs:
    """What the files are by content, wherever they are."""
    contents = sorted((one.role, one.sha256, one.bytes) for one in files)
    digest = hashlib.sha256(canonical_json(contents).encode()).hexdigest()
    return Inputs(files=len(contents), bytes=sum(one[2] for one in contents), digest=digest)


def is_unchanged(found: Input, known: InputFile | None) -> bool:
    """Whether role, size and times of a file are those that it was hashed with; not those of one that is gone."""
    try:
        status = found.path.stat()
    except FileNotFoundError:
        return False
    now = (found.role, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return known is not None and now == (known.role, known.bytes, known.mtime_ns, known.ctime_ns)


def find_corpus(spec: DataSpec, base: Path, data: Path) -> Corpus | str:
    """The corpus of this DataSpec as its files are now, or why there is none. Nothing is hashed.

    InputFileError where a file is missing.
    """
    found, built = input_files(spec, base, data), read_index(spec, base, data)
    if built is None:
        return "the corpus is not built yet"
    manifest = data / built.corpus / "manifest.json"
    if not manifest.exists():
        return f"the corpus is not built yet ({manifest} does not exist)"
    changed = next(
        (one.path for one in found if not is_unchanged(one, built.files.get(absolute(one.path)))), None
    )
    if changed is not None:
        return f"{changed} has changed or was added since the corpus was built"
    gone = next(iter(built.files.keys() - {absolute(one.path) for one in found}), None)
    if gone is not None:
        return f"{gone}, from which the corpus was built, is no longer there"
    return load(manifest, Corpus)


def absolute(path: Path) -> str:
    """The path that names an input."""
    return os.path.abspath(path)
