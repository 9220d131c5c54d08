import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from runtime.data.build import text_files, text_sources
from runtime.data.build.corpus import build
from runtime.data.build.text_files import FilePart, Malformed, records, settled
from runtime.data.corpus import tokens
from runtime.data.errors import CorpusError
from specs.data import Bytes, Corpus, DataSpec, FileText, TokenizerFile
from specs.data_inputs import InputFileError, input_files
from specs.document.files import DocumentError

TEXTS = [f"Document {i} – Größe, café, “quoted”, 日本.\nLine two of {i}. " * 8 for i in range(40)]


def lines(texts: list[str] = TEXTS) -> str:
    return "".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts)


def built(folder: Path, *paths: str, one_in: int = 4, malformed: float = 0.001) -> Corpus:
    text = FileText(source="files", paths=paths, malformed=malformed)
    spec = DataSpec(text=text, tokenizer=Bytes(kind="bytes"), held_out_one_in=one_in)
    return build(spec, folder, folder / "data", Console(quiet=True))


def write_texts(folder: Path, name: str, change: Callable[[str], bytes]) -> None:
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / name.format(i)).write_bytes(change(text))


def parquet(path: Path, kind: pyarrow.DataType, **options: object) -> None:
    table = pyarrow.table({"id": range(40), "text": pyarrow.array(TEXTS).cast(kind)})
    pyarrow.parquet.write_table(table, path, **options)


def zst(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


HALF = len(lines()) // 2
FORMATS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "json lines": ("t.jsonl", lambda at: (at / "t.jsonl").write_text(lines())),
    "json lines of Windows": (
        "t.jsonl",
        lambda at: (at / "t.jsonl").write_bytes(lines().replace("\n", "\r\n").encode()),
    ),
    "json lines with a mark": ("t.jsonl", lambda at: (at / "t.jsonl").write_text(lines(), "utf-8-sig")),
    "json lines of an old Mac": (
        "t.jsonl",
        lambda at: (at / "t.jsonl").write_bytes(lines().replace("\n", "\r").encode()),
    ),
    "json lines, no end": ("t.jsonl", lambda at: (at / "t.jsonl").write_text(lines()[:-1])),
    "json lines, blank ones between": (
        "t.jsonl",
        lambda at: (at / "t.jsonl").write_text("\n" + lines().replace("\n", "\n\n  \n") + "\r\n\n"),
    ),
    "json lines in .json": ("t.json", lambda at: (at / "t.json").write_text(lines())),
    "an array": (
        "t.json",
        lambda at: (at / "t.json").write_text(json.dumps([{"text": text} for text in TEXTS])),
    ),
    "an array in .jsonl": (
        "t.jsonl",
        lambda at: (at / "t.jsonl").write_text(json.dumps([{"text": text} for text in TEXTS]) + "\n"),
    ),
    "indented objects": (
        "t.jsonl",
        lambda at: (at / "t.jsonl").write_text(
            "".join(json.dumps({"text": t}, indent=1) + "\n" for t in TEXTS)
        ),
    ),
    "gzip of two members": (
        "t.jsonl.gz",
        lambda at: (at / "t.jsonl.gz").write_bytes(
            gzip.compress(lines()[:HALF].encode()) + gzip.compress(lines()[HALF:].encode())
        ),
    ),
    "gzip of json": ("t.json.gz", lambda at: (at / "t.json.gz").write_bytes(gzip.compress(lines().encode()))),
    "zstandard of two frames": (
        "t.jsonl.zst",
        lambda at: (at / "t.jsonl.zst").write_bytes(
            zst(lines()[:HALF].encode()) + zst(lines()[HALF:].encode())
        ),
    ),
    "parquet": ("t.parquet", lambda at: parquet(at / "t.parquet", pyarrow.string())),
    "parquet of large strings, zstandard, groups of 7": (
        "t.parquet",
        lambda at: parquet(at / "t.parquet", pyarrow.large_string(), compression="zstd", row_group_size=7),
    ),
    "parquet with a dictionary": (
        "t.parquet",
        lambda at: parquet(at / "t.parquet", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
    ),
    "a folder of text": ("d", lambda at: write_texts(at / "d", "{}.txt", str.encode)),
    "a folder of text in folders": (
        "up",
        lambda at: ((at / "up").mkdir(), write_texts(at / "up/d", "{}.md", str.encode)),
    ),
    "text of Windows": (
        "d/*.txt",
        lambda at: write_texts(
            at / "d", "{}.txt", lambda text: (text.replace("\n", "\r\n") + "\r\n").encode("utf-8-sig")
        ),
    ),
    "names in capitals, with spaces and brackets": (
        "d [1]/*.TXT",
        lambda at: write_texts(at / "d [1]", "Ü {} [a].TXT", str.encode),
    ),
    "compressed text": (
        "d/*.gz",
        lambda at: write_texts(at / "d", "{}.txt.gz", lambda t: gzip.compress(t.encode())),
    ),
    "the same twice": (
        "*",
        lambda at: (
            (at / "a.jsonl").write_text(lines()),
            (at / "b.jsonl.gz").write_bytes(gzip.compress(lines().encode())),
        ),
    ),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, bytes]:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "t.jsonl").write_text(lines())
    corpus = built(folder, "t.jsonl")
    return corpus, tokens(folder / "data", corpus, "train").tobytes()


@pytest.mark.parametrize(("path", "write"), FORMATS.values(), ids=FORMATS.keys())
def test_the_same_texts_are_the_same_corpus_in_every_format(
    tmp_path: Path, expected: tuple[Corpus, bytes], path: str, write: Callable[[Path], object]
) -> None:
    if path == "d [1]/*.TXT":  # a pattern in a folder that a pattern cannot spell
        path = "d [[]1]/*.TXT"
    write(tmp_path)
    corpus = built(tmp_path, path)
    assert corpus.digest == expected[0].digest
    assert tokens(tmp_path / "data", corpus, "train").tobytes() == expected[1]
    assert corpus.reading is not None
    assert corpus.reading.records == 40 + corpus.reading.duplicates
    assert (corpus.reading.empty, corpus.reading.malformed) == (0, 0)


@pytest.mark.parametrize("field", ["text", "tokenizer.path"])
def test_a_name_longer_than_any_file_has_is_refused_where_it_is_written(tmp_path: Path, field: str) -> None:
    (tmp_path / "t.jsonl").write_text(lines())
    long = {"text": "t.jsonl", "tokenizer.path": "tokenizer.json"} | {field: "x" * 300}
    text = FileText(source="files", paths=(long["text"],))
    spec = DataSpec(text=text, tokenizer=TokenizerFile(kind="file", path=long["tokenizer.path"]))
    with pytest.raises(InputFileError, match="File name too long") as found:
        input_files(spec, tmp_path, tmp_path / "data")
    assert found.value.field == field


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text(lines())
    (tmp_path / "a1.jsonl").write_text("not read")
    assert built(tmp_path, "a[1].jsonl").train.documents > 1


@pytest.mark.parametrize("part_bytes", [1, 7, 500, 10_000])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n"])
def test_a_large_file_is_read_in_parts_that_cut_no_line(
    tmp_path: Path, expected: tuple[Corpus, bytes], part_bytes: int, ends: str
) -> None:
    """Each line belongs to the part that it begins in."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines(TEXTS[:8]).replace("\n", ends).encode())
    size = path.stat().st_size
    starts = range(0, size, part_bytes if part_bytes > 1 else 13)
    parts = [FilePart(path, start, start + starts.step) for start in starts]
    found = [record for part in parts for record in records(part, "text", lambda done: None)]
    assert found == [settled(text.encode()) for text in TEXTS[:8]]


def test_a_large_file_is_cut_into_parts(
    tmp_path: Path, expected: tuple[Corpus, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sources, "PART_BYTES", 4000)
    (tmp_path / "t.jsonl").write_text(lines())
    spec = DataSpec(text=FileText(source="files", paths=("t.jsonl",)), tokenizer=Bytes(kind="bytes"))
    assert len(text_sources.text_parts(spec, [tmp_path / "t.jsonl"])) > 5
    assert built(tmp_path, "t.jsonl").digest == expected[0].digest


def test_one_single_file_is_cut_into_blocks_at_its_lines(tmp_path: Path) -> None:
    """The commonest first try, Shakespeare in one file."""
    text = "\n".join(f"Line {i} of {i * i}: the king of France." for i in range(20_000))
    (tmp_path / "input.txt").write_text(text)
    for one_in in (2, 50):
        corpus = built(tmp_path, "input.txt", one_in=one_in)
        blocks = [
            block
            for split in ("train", "held_out")
            for block in tokens(tmp_path / "data", corpus, split).tobytes().split(b"\0")  # type: ignore[arg-type]
        ]
        assert len(blocks) > 150
        assert sorted(line for block in blocks for line in block.split(b"\n")) == sorted(
            text.encode().split(b"\n")
        )
        assert max(map(len, blocks)) <= 4096


def test_a_text_without_lines_is_cut_between_characters(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("日本€é" * 2000)
    part = FilePart(tmp_path / "input.txt", block_bytes=1000)
    found = [
        record.decode() for record in records(part, "text", lambda done: None) if isinstance(record, bytes)
    ]
    assert "".join(found) == "日本€é" * 2000
    assert len(found) > 20


BAD_LINES = {
    "cut off": b'{"text": "half',
    "Latin-1": '{"text": "café"}'.encode("latin-1"),
    "half a character": b'{"text": "lone \\ud800 surrogate"}',
    "null": b'{"text": null}',
    "two records": b'{"text": "a"}{"text": "b"}',
    "no text": b'{"body": "a"}',
    "a number": b"3",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_one_bad_line_among_thousands_is_counted_named_and_skipped(tmp_path: Path, bad: bytes) -> None:
    good = [json.dumps({"text": f"Document {i}."}).encode() for i in range(3000)]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join([*good[:1500], bad, *good[1500:], b""]))
    reading = built(tmp_path, "t.jsonl").reading
    assert reading is not None
    assert (reading.records, reading.malformed) == (3001, 1)
    assert reading.examples[0].startswith("t.jsonl:1501: this record ")
    with pytest.raises(
        DocumentError, match=r"t\.jsonl:1501:1: this record .*; 1 of 3,001 records are malformed, and "
    ):
        built(tmp_path, "t.jsonl", malformed=0.0)


@pytest.mark.parametrize("number", ["NaN", "-" + "1" * 5000])
@pytest.mark.parametrize("form", ["RECORD\n", "[RECORD, 1]"])
def test_a_record_with_a_number_that_python_does_not_read_is_read(
    tmp_path: Path, number: str, form: str
) -> None:
    (tmp_path / "t.json").write_text(form.replace("RECORD", f'{{"text": "x", "score": {number}}}'))
    found = list(records(FilePart(tmp_path / "t.json"), "text", lambda done: None))
    assert found[0] == b"x"


def test_lines_of_a_bad_record_are_counted_over_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sources, "PART_BYTES", 4000)
    (tmp_path / "t.jsonl").write_text(lines() + "{}\n")
    with pytest.raises(DocumentError, match=r"t\.jsonl:41:1: "):
        built(tmp_path, "t.jsonl")


ARRAYS: dict[str, Callable[[bytes], bytes]] = {
    "array.json": lambda content: content,
    "array.json.gz": gzip.compress,
    "array.json.zst": lambda content: zst(content),
}


@pytest.mark.parametrize(("name", "pack"), ARRAYS.items(), ids=ARRAYS.keys())
def test_a_json_array_is_read_record_by_record(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory that does not grow with the file."""
    monkeypatch.setattr(text_files, "_READ_BYTES", 2**14)
    values = [{"text": f"Größe {i} " + "of many words " * 200} for i in range(1000)]
    content = json.dumps(values, ensure_ascii=False).encode()
    (tmp_path / name).write_bytes(pack(content))
    tracemalloc.start()
    count = sum(
        isinstance(one, bytes) for one in records(FilePart(tmp_path / name), "text", lambda done: None)
    )
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1000
    assert peak_bytes < len(content) / 5


@pytest.mark.parametrize("read_bytes", [1, 3, 7, 50])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("array", [True, False])
def test_json_values_are_the_same_wherever_reads_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int, indent: int | None, array: bool
) -> None:
    monkeypatch.setattr(text_files, "_READ_BYTES", read_bytes)
    values = [
        {"text": 'a["é\\ud', "n": -12.5e3, "x": float("-inf"), "y": [True, None]},
        {"text": 1},
        {"text": "日\U0001f600"},
        123,
    ]
    written = [
        json.dumps(value, indent=indent, ensure_ascii=number < 1) for number, value in enumerate(values)
    ]
    content = "[" + ",\n".join(written) + "]\n" if array else "\n".join(written)
    (tmp_path / "t.json").write_bytes(b"\xef\xbb\xbf" + content.encode())
    monkeypatch.setattr(text_files, "holds_values", lambda path: True)
    found = list(records(FilePart(tmp_path / "t.json"), "text", lambda done: None))
    assert (
        [one if isinstance(one, bytes) else one.line for one in found]
        == [
            values[0]["text"].encode(),  # type: ignore[index]
            1 + content[: content.index('"text": 1') - (3 if indent else 1)].count("\n"),
            values[2]["text"].encode(),  # type: ignore[index]
            1 + content[: content.index("123")].count("\n"),
        ]
    )


@pytest.mark.parametrize(
    "content", [b'[{"text": "%s"}, 1' % (b"a" * 99), b'[{"text": "a"}, x, %s]' % (b"1," * 99)]
)
def test_where_json_breaks_is_told_to_the_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """However much of the line is no longer in memory."""
    monkeypatch.setattr(text_files, "_READ_BYTES", 20)
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(content)
    with pytest.raises(DocumentError, match="this is not JSON") as found:
        list(records(FilePart(tmp_path / "t.json"), "text", lambda done: None))
    assert (found.value.line, found.value.column) == (1, expected.value.colno)


def test_empty_texts_and_duplicates_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(lines() + '{"text": ""}\n{"text": " \\n"}\n' + lines(TEXTS[:3]))
    reading = built(tmp_path, "t.jsonl").reading
    assert reading is not None
    assert (reading.records, reading.empty, reading.duplicates) == (45, 2, 3)


def test_nothing_but_blank_lines_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n\n")
    with pytest.raises(CorpusError, match="no documents were found; check the paths"):
        built(tmp_path, "t.jsonl")


def test_a_wrong_key_is_refused_long_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"body": "text"}\n' * 5000)
    with pytest.raises(
        DocumentError, match=r"t\.jsonl:1:1: this record has no key 'text', but body; 1,000 of 1,000 "
    ):
        built(tmp_path, "t.jsonl")


def test_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text", "utf-16")
    (found,) = records(FilePart(tmp_path / "t.txt"), "text", lambda done: None)
    assert found == Malformed(1, 1, "the file is UTF-16", "save the file as UTF-8")


def test_a_column_is_taken_by_its_whole_name(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [{"b": "wrong"}] * 40, "a.b": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    found = list(records(FilePart(tmp_path / "t.parquet"), "a.b", lambda done: None))
    assert found == [settled(text.encode()) for text in TEXTS]


def test_links_are_followed_once_and_one_to_nothing_is_missed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "t.jsonl").write_text(lines())
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "here")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    reading = built(tmp_path, "here").reading
    assert reading is not None
    assert (reading.records, reading.duplicates) == (40, 0)
    (tmp_path / "here" / "b.jsonl").symlink_to("gone.jsonl")
    for path in ("here", "here/*.jsonl", "here/b.jsonl"):
        with pytest.raises(
            DocumentError, match=r"b\.jsonl:1:1: this is a link to a file that is not there; "
        ):
            built(tmp_path, path)


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"new\nline.jsonl", "line\u2028end.jsonl".encode()])
def test_files_have_any_name(tmp_path: Path, name: bytes) -> None:
    home = tmp_path / os.fsdecode(name).removesuffix(".jsonl")
    path = home / "d" / os.fsdecode(name)
    path.parent.mkdir(parents=True)
    path.write_text(lines() + "bad\n")
    corpus = built(home, "d", malformed=0.1)
    assert corpus.reading is not None
    assert len(corpus.reading.examples[0].splitlines()) == 1
    (line,) = (home / "data" / corpus.name / "inputs.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(path)
