import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runtime.data.batches import held_out_rows, sequence_count, training_rows
from runtime.data.build.corpus import build
from runtime.data.build.token_files import open_token_file
from runtime.data.corpus import load_corpus, tokens, verify
from runtime.data.errors import CorpusError
from runtime.data.token_stream import TokenStream
from specs.data import Bbpe, Bytes, Corpus, CorpusRef, DataSpec, FileText, TokenFiles, TokenIds, TokenizerFile
from specs.data_inputs import find_corpus
from specs.document.files import DocumentError
from specs.document.write import write_yaml
from tests.support import samples
from tests.support.commands import call
from tests.support.token_files import write_datatrove, write_flat, write_megatron
from tests.support.training import opened, outcome, tiny_run, train_here

TEXTS = [f"Document {i} says: " + f"{i * 7919 % 1009} things about {i}. " * 20 for i in range(60)]
CONTEXT = 32
Writer = Callable[..., None]


def built(folder: Path, text: TokenFiles | FileText, tokenizer: Any, one_in: int = 4) -> Corpus:
    spec = DataSpec(text=text, tokenizer=tokenizer, held_out_one_in=one_in)
    return build(spec, folder, folder / "data", Console(quiet=True))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    """A corpus that was built from text, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("ours")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    corpus = built(folder, FileText(source="files", paths=("text.jsonl",)), Bbpe(kind="bbpe", vocab=400))
    return folder, corpus


def documents_of(folder: Path, corpus: Corpus, split: str) -> list[list[int]]:
    """Its documents, each with the separator behind it."""
    stream = np.asarray(tokens(folder / "data", corpus, split)[:])  # type: ignore[arg-type]
    return [part.tolist() for part in np.split(stream, np.flatnonzero(stream == corpus.end_of_document) + 1)]


FORMATS: dict[str, tuple[str, Writer, dict[str, str], str | None]] = {
    "megatron": (".bin", write_megatron, {}, None),
    "megatron of int32": (".bin", write_megatron, {"dtype": "int32"}, None),
    "datatrove": (".ds", write_datatrove, {}, None),
    "datatrove of uint32": (".ds", write_datatrove, {"dtype": "uint32"}, None),
    "nanoGPT": (".bin", write_flat, {}, None),
    "OLMo": (".npy", write_flat, {"dtype": "uint32"}, "uint32"),
}


@pytest.mark.parametrize(("ending", "write", "options", "dtype"), FORMATS.values(), ids=FORMATS.keys())
def test_a_corpus_of_ours_read_back_from_each_format_gives_the_same_batches(
    tmp_path: Path,
    ours: tuple[Path, Corpus],
    ending: str,
    write: Writer,
    options: dict[str, str],
    dtype: Any,
) -> None:
    folder, corpus = ours
    train, held_out = (documents_of(folder, corpus, split) for split in ("train", "held_out"))
    write(tmp_path / f"a{ending}", train[:20], **options)
    write(tmp_path / f"b{ending}", train[20:], **options)
    write(tmp_path / f"val{ending}", held_out, **options)
    (tmp_path / "tokenizer.json").write_bytes((folder / "data" / corpus.name / "tokenizer.json").read_bytes())
    text = TokenFiles(source="tokens", paths=(f"*{ending}",), held_out=(f"val{ending}",), dtype=dtype)
    found = built(tmp_path, text, TokenizerFile(kind="file", path="tokenizer.json"))
    assert (found.vocab, found.end_of_document) == (corpus.vocab, 0)
    for split, rows in (("train", training_rows), ("held_out", held_out_rows)):
        theirs, mine = (
            tokens(at / "data", one, split)
            for at, one in ((tmp_path, found), (folder, corpus))  # type: ignore[arg-type]
        )
        count = sequence_count(mine, CONTEXT)
        assert sequence_count(theirs, CONTEXT) == count
        seed = {"seed": 3} if split == "train" else {}
        both = [rows(stream, CONTEXT, first=0, count=count, **seed) for stream in (theirs, mine)]  # type: ignore[operator]
        np.testing.assert_array_equal(*both)
    assert found.bytes_per_token == pytest.approx(corpus.bytes_per_token, rel=1e-3)
    assert found.sample is not None
    assert found.sample.startswith("Document ")
    assert verify(tmp_path / "data", found.name) == found
    written = [
        path for path in (tmp_path / "data" / found.name).iterdir() if path.suffix not in (".json", ".jsonl")
    ]
    assert sum(path.stat().st_size for path in written) < 500, "the tokens stay where they lie"


@pytest.mark.slow
def test_a_run_on_tokens_as_they_are_is_the_run_on_the_corpus_they_came_from(
    tmp_path: Path, ours: tuple[Path, Corpus]
) -> None:
    folder, corpus = ours
    for split, name in (("train", "train.bin"), ("held_out", "val.bin")):
        write_flat(tmp_path / name, documents_of(folder, corpus, split))
    text = TokenFiles(source="tokens", paths=("train.bin",), held_out=("val.bin",))
    found = built(tmp_path, text, TokenIds(kind="ids", vocab=400, end_of_document=0))
    outcomes = []
    for home, one in ((folder, corpus), (tmp_path, found)):
        data = CorpusRef(corpus=one.name, digest=one.digest)
        model = samples.model(width=16, heads=2, kv_heads=1, ffn=32, context=CONTEXT, vocab=400)
        run = opened(home, tiny_run(data, model=model))
        assert train_here(run, home / "data") == 0
        outcomes.append(outcome(run))
    assert outcomes[0] == outcomes[1]


# --- held out by hash ---

PROTEINS = [[*np.random.default_rng(i).integers(1, 33, 50 + i).tolist(), 0] for i in range(120)]


def falls_to_held_out(document: list[int]) -> bool:
    digest = hashlib.sha256(np.array(document, "<u4").tobytes()).digest()
    return int.from_bytes(digest[-8:], "big") % 4 == 0


def whole(folder: Path, found: Corpus, split: str) -> list[list[int]]:
    stream = np.asarray(tokens(folder / "data", found, split)[:])  # type: ignore[arg-type]
    return [part.tolist() for part in np.split(stream, np.flatnonzero(stream == 0) + 1) if len(part)]


@pytest.mark.parametrize(
    ("name", "write", "dtype"),
    [
        ("p.bin", write_megatron, "uint8"),
        ("p.bin", write_megatron, "int64"),
        ("p.ds", write_datatrove, "uint32"),
    ],
)
def test_whole_documents_are_held_out_by_their_hash_in_any_format(
    tmp_path: Path, name: str, write: Writer, dtype: str
) -> None:
    """No text at all: losses are in nats per token."""
    write(tmp_path / name, PROTEINS, dtype=dtype)
    ids = TokenIds(kind="ids", vocab=33, end_of_document=0)
    found = built(tmp_path, TokenFiles(source="tokens", paths=(name,)), ids)
    train, held_out = (whole(tmp_path, found, split) for split in ("train", "held_out"))
    assert sorted(train + held_out) == sorted(PROTEINS)
    assert (found.train.documents, found.held_out.documents) == (len(train), len(held_out))
    assert (found.train.tokens, found.held_out.tokens) == (sum(map(len, train)), sum(map(len, held_out)))
    assert held_out == [one for one in PROTEINS if falls_to_held_out(one)], "whatever the integer type"
    assert (found.bytes_per_token, found.sample, found.notes) == (None, None, ())


def test_files_without_an_index_are_held_out_in_blocks(tmp_path: Path) -> None:
    stream = np.arange(40_000) % 33
    stream.astype("uint16").tofile(tmp_path / "p.bin")
    found = built(tmp_path, TokenFiles(source="tokens", paths=("p.bin",)), TokenIds(kind="ids", vocab=33))
    assert found.train.documents + found.held_out.documents == 40
    assert found.train.tokens + found.held_out.tokens == 40_000
    assert found.notes == (
        "1 of 1 files have no index of their documents: "
        "they are taken in blocks, and documents that repeat are not noticed",
    )


def test_an_end_of_a_document_that_is_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.ds").write_bytes(bytes(20))
    np.array([2**64 - 5, 10], "<u8").tofile(tmp_path / "p.ds.index")
    with pytest.raises(DocumentError, match=r"p\.ds\.index:1:1: it goes back at document 1"):
        open_token_file(tmp_path / "p.ds", TokenFiles(source="tokens", paths=("p.ds",)), 33)


def test_documents_without_an_end_are_said(tmp_path: Path) -> None:
    write_megatron(tmp_path / "p.bin", [one[:-1] for one in PROTEINS])
    found = built(
        tmp_path,
        TokenFiles(source="tokens", paths=("p.bin",)),
        TokenIds(kind="ids", vocab=33, end_of_document=0),
    )
    assert found.notes[0].startswith("120 of 120 documents do not end with token 0")


def test_a_token_that_ends_no_document_is_said(tmp_path: Path) -> None:
    write_flat(tmp_path / "p.bin", [one[:-1] for one in PROTEINS])
    ids = TokenIds(kind="ids", vocab=33, end_of_document=0)
    found = built(tmp_path, TokenFiles(source="tokens", paths=("p.bin",)), ids, one_in=2)
    assert (
        found.notes[0]
        == "token 0, the end of a document, is nowhere in them: a model does not learn where they end"
    )


@pytest.mark.parametrize("spelled", ["{}/val.bin", "./val.bin", "../{name}/val.bin", "d/../val.bin"])
def test_a_file_is_read_once_however_it_is_spelled(tmp_path: Path, spelled: str) -> None:
    """As one that is held out if it is named so."""
    (tmp_path / "d").mkdir()
    write_megatron(tmp_path / "p.bin", PROTEINS[:100])
    write_megatron(tmp_path / "val.bin", PROTEINS[100:])
    spelled = spelled.format(tmp_path, name=tmp_path.name)
    text = TokenFiles(source="tokens", paths=("*.bin", f"{tmp_path}/p.bin"), held_out=(spelled, "val.bin"))
    found = built(tmp_path, text, TokenIds(kind="ids", vocab=33))
    assert found.train.tokens == sum(map(len, PROTEINS[:100]))
    assert found.held_out.tokens == sum(map(len, PROTEINS[100:]))
    assert isinstance(find_corpus(found.spec, tmp_path, tmp_path / "data"), Corpus)


@pytest.mark.parametrize("name", ["a\u2028b.bin", "a\x85b.bin", "a\udcffb.bin", "a\nb.bin", "$(touch x).bin"])
def test_token_files_may_have_any_name(tmp_path: Path, name: str) -> None:
    write_megatron(tmp_path / name, PROTEINS)
    found = built(tmp_path, TokenFiles(source="tokens", paths=("*.bin",)), TokenIds(kind="ids", vocab=33))
    assert verify(tmp_path / "data", found.name) == found


def test_a_tokenizer_beside_the_text_is_no_text(tmp_path: Path, ours: tuple[Path, Corpus]) -> None:
    folder, corpus = ours
    (tmp_path / "d").mkdir()
    (tmp_path / "d/text.jsonl").write_bytes((folder / "text.jsonl").read_bytes())
    (tmp_path / "d/tokenizer.json").write_bytes(
        (folder / "data" / corpus.name / "tokenizer.json").read_bytes()
    )
    text, tokenizer = (
        FileText(source="files", paths=("d",)),
        TokenizerFile(kind="file", path="d/tokenizer.json"),
    )
    found = built(tmp_path, text, tokenizer)
    assert found.digest == corpus.digest
    assert isinstance(find_corpus(found.spec, tmp_path, tmp_path / "data"), Corpus)


def test_what_another_share_would_hold_out_is_counted(tmp_path: Path) -> None:
    write_megatron(tmp_path / "p.bin", PROTEINS)
    text, ids = TokenFiles(source="tokens", paths=("p.bin",)), TokenIds(kind="ids", vocab=33)
    choices = {one.one_in: one.tokens for one in built(tmp_path, text, ids, one_in=10).held_out_choices}
    for one_in in (2, 5):
        assert built(tmp_path, text, ids, one_in=one_in).held_out.tokens == choices[one_in]


def test_bytes_as_tokens_have_a_byte_each(tmp_path: Path) -> None:
    np.frombuffer("".join(f"Größe {i}, café. " for i in range(900)).encode(), np.uint8).tofile(
        tmp_path / "p.bin"
    )
    text = TokenFiles(source="tokens", paths=("p.bin",), dtype="uint8")
    found = built(tmp_path, text, Bytes(kind="bytes"))
    assert found.bytes_per_token == 1.0
    assert found.sample is not None
    assert ", café." in found.sample


@pytest.mark.parametrize("change", ["shorter", "gone", "other content"])
def test_a_token_file_that_changed_after_it_was_checked_is_noticed(tmp_path: Path, change: str) -> None:
    write_megatron(tmp_path / "p.bin", PROTEINS)
    found = built(tmp_path, TokenFiles(source="tokens", paths=("p.bin",)), TokenIds(kind="ids", vocab=33))
    path = tmp_path / "p.bin"
    content = path.read_bytes()
    match change:
        case "shorter":
            path.write_bytes(content[:-2])
        case "gone":
            path.unlink()
        case _:
            path.write_bytes(content[:-2] + b"\1\0")
            load_corpus(tmp_path / "data", found.name)
            with pytest.raises(CorpusError, match=r"p\.bin is damaged: its digest differs"):
                verify(tmp_path / "data", found.name)
            return
    with pytest.raises(CorpusError, match=r"p\.bin does not have the [\d,]+ bytes that the corpus"):
        load_corpus(tmp_path / "data", found.name)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "ranges are cut": lambda corpus: (corpus / "train.ranges").write_bytes(b"abc"),
    "ranges are gone": lambda corpus: (corpus / "held_out.ranges").unlink(),
    "ranges are others": lambda corpus: np.array([[0, 0, 10**9]], "<i8").tofile(corpus / "train.ranges"),
    "inputs are gone": lambda corpus: (corpus / "inputs.jsonl").unlink(),
    "inputs are cut": lambda corpus: (corpus / "inputs.jsonl").write_text('{"role": "tr'),
    "inputs are empty": lambda corpus: (corpus / "inputs.jsonl").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_corpus_of_token_files_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_megatron(tmp_path / "p.bin", PROTEINS)
    found = built(tmp_path, TokenFiles(source="tokens", paths=("p.bin",)), TokenIds(kind="ids", vocab=33))
    damage(tmp_path / "data" / found.name)
    with pytest.raises(CorpusError, match=f"is missing or damaged; delete {tmp_path}/data/{found.name} and "):
        load_corpus(tmp_path / "data", found.name)


@pytest.mark.parametrize("same_content", [True, False])
def test_a_token_file_that_was_written_again_is_hashed_before_anything_runs(
    tmp_path: Path, same_content: bool
) -> None:
    """Of the same size, and with the time of its content set back."""
    write_megatron(tmp_path / "p.bin", PROTEINS)
    ids = TokenIds(kind="ids", vocab=33)
    found = built(tmp_path, TokenFiles(source="tokens", paths=("p.bin",)), ids)
    run = tiny_run(CorpusRef(corpus=found.name, digest=found.digest), model=samples.model(vocab=32))
    write_yaml(tmp_path / "run.yaml", run)
    done = call("run", "run.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "the corpus has 33 token ids, more than the 32 rows of the model; write 33 or more" in done.stderr

    path = tmp_path / "p.bin"
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content if same_content else content[:-4] + b"\1\0\0\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = call("run", "run.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "p.bin may have changed since the corpus " in done.stderr
    assert "was built; hash it again: isoplan data BUDGET; if its content is another, " in done.stderr
    assert not (tmp_path / "runs").exists()

    again = build(found.spec, tmp_path, tmp_path / "data", Console(quiet=True))
    assert (again == found) == same_content
    done = call("run", "run.yaml", folder=tmp_path)
    assert ("write 33 or more" in done.stderr) == same_content


def test_building_names_the_files_of_its_own_folder_where_another_has_the_same(tmp_path: Path) -> None:
    """Two folders with the same files share a corpus; when one goes, the other's are named."""
    text, ids = TokenFiles(source="tokens", paths=("p.bin",)), TokenIds(kind="ids", vocab=33)
    spec = DataSpec(text=text, tokenizer=ids, held_out_one_in=4)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_megatron(tmp_path / name / "p.bin", PROTEINS)
        found = build(spec, tmp_path / name, tmp_path / "data", Console(quiet=True))
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(CorpusError, match="build again: isoplan data BUDGET"):
        load_corpus(tmp_path / "data", found.name)
    assert build(spec, tmp_path / "one", tmp_path / "data", Console(quiet=True)) == found


def test_token_files_that_were_moved_are_the_same_corpus_where_they_are_now(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_megatron(tmp_path / "old" / "p.bin", PROTEINS)
    text, ids = TokenFiles(source="tokens", paths=("p.bin",)), TokenIds(kind="ids", vocab=33)
    spec = DataSpec(text=text, tokenizer=ids, held_out_one_in=4)
    first = build(spec, tmp_path / "old", tmp_path / "data", Console(quiet=True))
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(CorpusError, match="restore the file, or build again: isoplan data BUDGET"):
        load_corpus(tmp_path / "data", first.name)
    assert build(spec, tmp_path / "new", tmp_path / "data", Console(quiet=True)) == first
    assert verify(tmp_path / "data", first.name) == first


# --- a stream of ranges ---


@given(st.data())
def test_a_stream_is_its_ranges_one_after_the_other(data: st.DataObject) -> None:
    arrays = [
        np.arange(100 * i, 100 * i + length)
        for i, length in enumerate(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))
    ]
    ranges = []
    for _ in range(data.draw(st.integers(1, 6))):
        number = data.draw(st.integers(0, len(arrays) - 1))
        first = data.draw(st.integers(0, len(arrays[number]) - 1))
        ranges.append((number, first, data.draw(st.integers(first + 1, len(arrays[number])))))
    expected = np.concatenate([arrays[number][first:last] for number, first, last in ranges])
    stream = TokenStream(arrays, np.array(ranges))
    assert len(stream) == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(0, len(expected) + 5))
    np.testing.assert_array_equal(stream[start:stop], expected[start:stop])
