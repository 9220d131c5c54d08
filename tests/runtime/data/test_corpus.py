import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from runtime.data.build import corpus as build_corpus
from runtime.data.build.corpus import build
from runtime.data.build.text_sources import read_parts, text_parts
from runtime.data.corpus import load_corpus, tokens, verify
from runtime.data.errors import CorpusError
from specs.data import Bbpe, Bytes, Corpus, DataSpec, DeclaredText, FileText, InstalledText
from specs.data_inputs import input_files
from specs.document.files import DocumentError
from specs.tokenizer_file import SEPARATOR
from tests.support.paths import ROOT

TEXTS = [f"Document {i} says: " + f"{i * 7919 % 1009} things about {i}. " * 20 for i in range(40)]


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def spec(*paths: str, vocab: int | None = None, field: str = "text", one_in: int = 4) -> DataSpec:
    tokenizer = Bbpe(kind="bbpe", vocab=vocab) if vocab else Bytes(kind="bytes")
    text = FileText(source="files", paths=paths or ("text.jsonl",), field=field)
    return DataSpec(text=text, tokenizer=tokenizer, held_out_one_in=one_in)


def built(data_spec: DataSpec, beside: Path, data: str = "data") -> Corpus:
    return build(data_spec, beside, beside / data, Console(quiet=True))


def texts_of(data_spec: DataSpec, beside: Path) -> list[str]:
    paths = [one.path for one in input_files(data_spec, beside, beside / "data")]
    parts = [part for some in text_parts(data_spec, paths) for part in some]
    found = [record for _, record in read_parts(data_spec, parts, lambda done: None)]
    return sorted(record.decode() for record in found if isinstance(record, bytes))


def falls_to_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[-8:], "big") % 4 == 0


def split_texts(beside: Path, corpus: Corpus, split: str) -> list[bytes]:
    return tokens(beside / "data", corpus, split).tobytes().split(b"\0")  # type: ignore[arg-type]


def test_bytes_are_the_documents_in_the_order_of_their_hashes_joined_by_nul(beside: Path) -> None:
    corpus = built(spec(), beside)
    train, held_out = (split_texts(beside, corpus, split) for split in ("train", "held_out"))
    assert sorted(train + held_out) == sorted(text.encode() for text in TEXTS)
    for documents_, split in ((train, corpus.train), (held_out, corpus.held_out)):
        assert documents_ == sorted(documents_, key=lambda text: hashlib.sha256(text).digest())
        assert split.documents == len(documents_)
        assert split.tokens == split.text_bytes == sum(map(len, documents_)) + len(documents_) - 1
    assert corpus.bytes_per_token == 1.0


def test_held_out_documents_are_chosen_by_their_hash(beside: Path) -> None:
    corpus = built(spec(), beside)
    assert all(falls_to_held_out(text.decode()) for text in split_texts(beside, corpus, "held_out"))
    assert not any(falls_to_held_out(text.decode()) for text in split_texts(beside, corpus, "train"))


def test_the_corpus_depends_on_the_texts_alone(beside: Path) -> None:
    first = built(spec(), beside)
    (beside / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in reversed(TEXTS[20:])))
    (beside / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS[:25]))
    assert built(spec("b.jsonl", "a.jsonl"), beside).digest == first.digest


def test_a_finished_corpus_is_never_built_again(beside: Path) -> None:
    corpus = built(spec(), beside)
    before = (beside / "data" / corpus.name / "train.bin").stat().st_mtime_ns
    assert built(spec(), beside) == corpus
    assert load_corpus(beside / "data", corpus.name) == corpus
    assert (beside / "data" / corpus.name / "train.bin").stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_builders_at_once_build_it_once(beside: Path) -> None:
    code = f"""
from pathlib import Path
from rich.console import Console
from runtime.data.build import corpus as build_corpus
from runtime.data.build.corpus import build
from specs.data import DataSpec
spec = DataSpec.model_validate_json({spec().canonical_json()!r})
print(build(spec, Path("."), Path("data"), Console(quiet=True)).digest)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=beside, env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert len({process.communicate()[0] for process in both}) == 1
    assert [process.returncode for process in both] == [0, 0]


@pytest.mark.parametrize("name", ["train.bin", "held_out.bin", "tokenizer.json"])
def test_a_flipped_byte_is_found_when_asked(beside: Path, name: str) -> None:
    corpus = built(spec(vocab=300), beside)
    path = beside / "data" / corpus.name / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    load_corpus(beside / "data", corpus.name)
    with pytest.raises(
        CorpusError, match=f"{name} is damaged: its digest differs from the manifest's; delete"
    ):
        verify(beside / "data", corpus.name)


def test_a_cut_file_is_found_at_once(beside: Path) -> None:
    corpus = built(spec(), beside)
    path = beside / "data" / corpus.name / "train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CorpusError, match=r"train\.bin does not have the \d+ bytes that its manifest requires"
    ):
        load_corpus(beside / "data", corpus.name)


@pytest.mark.parametrize("edited", ["digest", "inputs", "spec"])
def test_a_manifest_that_was_edited_is_noticed_at_once(beside: Path, edited: str) -> None:
    manifest = beside / "data" / built(spec(vocab=300), beside).name / "manifest.json"
    plain = json.loads(manifest.read_text())
    match edited:
        case "digest":
            plain["digest"] = "0" * 64
        case "inputs":
            plain["inputs"]["digest"] = "0" * 64
        case "spec":
            plain["spec"]["held_out_one_in"] = 5
    manifest.write_text(json.dumps(plain))
    with pytest.raises(
        CorpusError, match=r"manifest\.json is not as it was written, .*; delete .* and rerun"
    ):
        load_corpus(beside / "data", manifest.parent.name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizer.json", r"tokenizer\.json is gone; delete "),
        ("manifest.json", r"has no manifest\.json; delete "),
    ],
)
def test_a_file_that_is_gone_is_missed(beside: Path, name: str, message: str) -> None:
    (beside / "data" / built(spec(vocab=300), beside).name / name).unlink()
    with pytest.raises(CorpusError, match=message):
        built(spec(vocab=300), beside)


@pytest.mark.parametrize("at", ["hash_inputs", "build_text"])
def test_a_file_that_is_removed_during_a_build_is_named_and_nothing_stays(
    beside: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    of = build_corpus.hash_inputs if at == "hash_inputs" else build_corpus.build_text

    def after_removal(*given: Any) -> Any:
        (beside / "text.jsonl").unlink()
        return of(*given)

    monkeypatch.setattr(build_corpus, at, after_removal)
    with pytest.raises(
        (CorpusError, DocumentError), match=r"text\.jsonl.* (changed while it was read|no such file)"
    ):
        built(spec(), beside)
    assert list((beside / "data").glob(".*.part")) == []


def test_a_disk_that_is_full_at_the_end_keeps_what_is_finished(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DocumentError(beside, 1, 1, "the file cannot be written (No space left on device)", "free some")

    with monkeypatch.context() as patch:
        patch.setattr(build_corpus, "write_json", full)
        with pytest.raises(DocumentError):
            built(spec(), beside)
        assert list((beside / "data").glob(".*.part/train.bin")) != []
        for error, message in (
            (OSError(), "data: No space left on device; free disk space and rerun"),  # as NumPy's
            (OSError(errno.EROFS, "", "x"), "x: Read-only file system; choose another folder"),
        ):
            patch.setattr(build_corpus, "write_json", Mock(side_effect=error))
            with pytest.raises(CorpusError, match=message):
                built(spec(), beside)
    assert built(spec(), beside).train.documents > 20


def test_a_corpus_that_is_not_there_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="run: isoplan data"):
        load_corpus(tmp_path, "0" * 16)


def test_a_trained_tokenizer_gives_the_text_back_with_separators_between_documents(beside: Path) -> None:
    from tokenizers import Tokenizer

    corpus = built(spec(vocab=400), beside)
    tokenizer = Tokenizer.from_file(str(beside / "data" / corpus.name / "tokenizer.json"))
    ids = tokens(beside / "data", corpus, "held_out")
    separator = tokenizer.token_to_id(SEPARATOR)
    parts = [part[part != separator] for part in np.split(ids, np.flatnonzero(ids == separator))]
    assert sorted(tokenizer.decode(part.tolist()) for part in parts) == sorted(
        filter(falls_to_held_out, TEXTS)
    )
    assert ids.dtype == np.uint16
    assert int(ids.max()) < 400
    assert corpus.bytes_per_token > 1.5


def test_a_tokenizer_is_trained_on_the_training_split_alone_and_the_same_every_time(beside: Path) -> None:
    corpus = built(spec(vocab=400), beside)
    other = next(text for i in range(1000) if falls_to_held_out(text := "z" * 4000 + str(i)))
    with open(beside / "text.jsonl", "a") as file:
        file.write(json.dumps({"text": other}) + "\n")
    changed = built(spec(vocab=400), beside, "changed")
    assert changed.held_out.documents == corpus.held_out.documents + 1
    assert changed.tokenizer_sha256 == corpus.tokenizer_sha256
    assert changed.train == corpus.train


def test_text_that_spells_the_separator_is_only_text(tmp_path: Path) -> None:
    texts = [f"{SEPARATOR} is spelled in document {i}" for i in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = built(spec(vocab=300), tmp_path)
    assert int((tokens(tmp_path / "data", corpus, "train") == 0).sum()) == corpus.train.documents - 1


def test_too_few_documents_to_hold_something_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("one document")
    with pytest.raises(CorpusError, match=r"of 1 different documents, . are held out \(one in 4\)"):
        built(spec("only.txt"), tmp_path)
    assert not list((tmp_path / "data").glob("*.part"))


def test_declared_text_cannot_be_built(tmp_path: Path) -> None:
    declared = DeclaredText(source="declared", describe="elsewhere", unique="1T tokens")  # type: ignore[arg-type]
    data_spec = DataSpec(text=declared, tokenizer=Bytes(kind="bytes"))
    with pytest.raises(
        CorpusError, match=r"names no files to read \(source: declared\); write source: files"
    ):
        built(data_spec, tmp_path)


def test_a_data_folder_that_cannot_be_made_is_refused_in_a_line(beside: Path) -> None:
    (beside / "data").write_text("a file is in the way")
    with pytest.raises(CorpusError, match=r"data: File exists; .* choose another folder"):
        built(spec(), beside)


def test_installed_text_is_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    (package / "site-packages").mkdir(parents=True)
    prose = "A line of ordinary words that is long enough.\n" * 10
    kept = {"module.py": prose + "1", "stub.pyi": prose + "2", "guide.rst": prose + "3"}
    dropped = {
        "small.py": "x = 1\n",
        "large.txt": prose * 1000,
        "wide.md": "long lines " * 100,
        "table.txt": "0123456789 " * 10 + "\n" + prose[:10] + "\n1234\n" * 60,
        "binary.txt": b"\xff" * 400,
        "data.json": prose,
        "site-packages/other.py": prose + "4",
    }
    for name, content in (kept | dropped).items():
        (package / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.syspath_prepend(str(tmp_path))
    installed = InstalledText(source="installed", packages=("some_package",))
    found = texts_of(DataSpec(text=installed, tokenizer=Bytes(kind="bytes")), tmp_path)
    assert set(kept.values()) <= set(found)
    assert not set(dropped.values()) & set(found)
    assert len(found) > 300, (
        "the standard library is part of it"
    )  # Debian ships it without its tests, 645 files
    assert "some_package" not in sys.modules


def test_a_package_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    installed = InstalledText(source="installed", packages=("no_such_package",))
    with pytest.raises(
        DocumentError, match="no_such_package:1:1: this is not an installed package; install or remove it"
    ):
        built(DataSpec(text=installed, tokenizer=Bytes(kind="bytes")), tmp_path)
