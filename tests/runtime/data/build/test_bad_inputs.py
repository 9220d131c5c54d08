"""What is wrong with a corpus is one line, with exit code 2, and nothing is left half-written."""

import gzip
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.support.commands import isoplan

LINES = "".join(json.dumps({"text": f"Document {i} of many."}) + "\n" for i in range(40)).encode()
CUT_GZIP = gzip.compress(LINES, mtime=0)[:-9]
ZST = bytes(pyarrow.compress(LINES, codec="zstd", asbytes=True))


def parquet(**columns: object) -> bytes:
    return parquet_of(pyarrow.table(columns))


def parquet_of(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return bytes(sink.getvalue())


def files(**more: str) -> str:
    extra = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{{source: files{extra}}}"


BYTES = "{kind: bytes}"
Case = tuple[Mapping[str, bytes], str, str, str]
"""Files, `data.text`, `data.tokenizer`, and what the line says, its place and remedy included."""

TEXT: dict[str, Case] = {
    "no such file": (
        {},
        files(paths="[a.txt]"),
        BYTES,
        "b.yaml:8:33: a.txt: there is no such file; correct the path",
    ),
    "no file of that pattern": (
        {},
        files(paths="['*.txt']"),
        BYTES,
        "b.yaml:8:33: *.txt: there is no such file; ",
    ),
    "the second path is wrong": (
        {"a.jsonl": LINES},
        files(paths="[a.jsonl, c.jsonl]"),
        BYTES,
        "b.yaml:8:42: c.jsonl: there is no such file",
    ),
    "an empty folder": (
        {"d/x.bin": b""},
        files(paths="[d]"),
        BYTES,
        "d: there is no file of a known type in this folder; give",
    ),
    "a type that is not read": (
        {"a.pdf": b"%PDF"},
        files(paths="[a.pdf]"),
        BYTES,
        "a.pdf: files of this type cannot be read; give .txt, ",
    ),
    "a type among others": (
        {"a.txt": b"a", "a.pdf": b"b"},
        files(paths="['a.*']"),
        BYTES,
        "a.pdf: files of this type cannot be read",
    ),
    "an empty path": ({}, files(paths="['']"), BYTES, "b.yaml:8:33: "),
    "no paths": ({}, files(paths="[]"), BYTES, "b.yaml:8:"),
    "an empty file": (
        {"a.txt": b""},
        files(paths="[a.txt]"),
        BYTES,
        "no documents were found; check the paths",
    ),
    "an empty jsonl": (
        {"a.jsonl": b""},
        files(paths="[a.jsonl]"),
        BYTES,
        "no documents were found; check the paths",
    ),
    "blank lines only": (
        {"a.jsonl": b"\n \n\r\n"},
        files(paths="[a.jsonl]"),
        BYTES,
        "no documents were found",
    ),
    "an empty array": ({"a.json": b"[]"}, files(paths="[a.json]"), BYTES, "no documents were found"),
    "empty texts only": (
        {"a.jsonl": b'{"text": ""}\n'},
        files(paths="[a.jsonl]"),
        BYTES,
        "no documents were found (1 record without any text)",
    ),
    "one document": (
        {"a.jsonl": LINES.splitlines()[0]},
        files(paths="[a.jsonl]"),
        BYTES,
        "of 1 different documents, ",
    ),
    "one document, many times": (
        {"a.jsonl": LINES.splitlines(keepends=True)[0] * 50},
        files(paths="[a.jsonl]"),
        BYTES,
        "of 1 different documents, ",
    ),
    "a number for a text": (
        {"a.jsonl": LINES + b'{"text": 1}\n'},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:41:1: this record is not a document (its 'text' is int, not a string); 1 of 41 records are",
    ),
    "a null for a text": (
        {"a.jsonl": b'{"text": null}\n' + LINES},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:1:1: this record is not a document (its 'text' is NoneType",
    ),
    "another key": (
        {"a.jsonl": b'{"txt": "a"}\n'},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:1:1: this record has no key 'text', but txt; write ",
    ),
    "a key that is not there": (
        {"a.jsonl": LINES},
        files(paths="[a.jsonl]", field="body"),
        BYTES,
        "a.jsonl:1:1: this record has no key 'body', but text; 40 of 40",
    ),
    "half a line": (
        {"a.jsonl": LINES[:-9]},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:40:1: this record is not a document (Unterminated string",
    ),
    "a byte that is not UTF-8": (
        {"a.jsonl": b'{"text": "\xff"}\n'},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:1:1: this record is not a document ('utf-8' codec",
    ),
    "half a character": (
        {"a.jsonl": b'{"text": "\\ud800"}\n'},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:1:1: this record is not a document (its text has a lone surrogate)",
    ),
    "too deep": (
        {"a.jsonl": b"[" * 100_000},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:1:2: this is not JSON (nested too deeply); mend it, or give JSON Lines: there, a line that is ",
    ),
    "half an array": (
        {"a.json": b"[\n" + b",\n".join([b'{"text": "a"}'] * 3000)},
        files(paths="[a.json]"),
        BYTES,
        "a.json:3001:14: this is not JSON (Expecting value); mend it",
    ),
    "an array that is broken after thousands": (
        {"a.json": b"[\n" + b",\n".join([b'{"text": "a"}'] * 3000) + b',\n {"text" "b"}]'},
        files(paths="[a.json]"),
        BYTES,
        "a.json:3002:10: this is not JSON (Expecting ':' delimiter); mend it",
    ),
    "indented objects, of which one is cut": (
        {"a.json": b'{\n"text": "a"\n}\n{\n"text": "b'},
        files(paths="[a.json]"),
        BYTES,
        "a.json:5:9: this is not JSON (Unterminated string starting at); mend it",
    ),
    "an array in Latin-1": (
        {"a.json": '[{"text": "a"},\n{"text": "café"}]'.encode("latin-1")},
        files(paths="[a.json]"),
        BYTES,
        "a.json:2:1: this record is not a document (it holds a byte that is not UTF-8); 1 of 2 records",
    ),
    "an array of numbers": (
        {"a.json": b"[1, 2]"},
        files(paths="[a.json]"),
        BYTES,
        "a.json:1:1: this record is not a document (not a JSON object)",
    ),
    "UTF-16 lines": (
        {"a.jsonl": LINES.decode().encode("utf-16")},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:1:1: the file is UTF-16; ",
    ),
    "UTF-16 text": (
        {"a.txt": "Text.".encode("utf-16")},
        files(paths="[a.txt]"),
        BYTES,
        "a.txt:1:1: the file is UTF-16; save the file as UTF-8",
    ),
    "text that is not UTF-8": (
        {"a.txt": b"first line\nsecond \xff"},
        files(paths="[a.txt]"),
        BYTES,
        "a.txt:2:8: this byte is not UTF-8; save",
    ),
    "text of Windows 1252": (
        {f"{i}.txt": f"{i} café".encode("cp1252") for i in range(9)},
        files(paths="['*.txt']"),
        BYTES,
        "0.txt:1:6: this byte is not UTF-8; 9 of 9 records are malformed",
    ),
    "none malformed allowed": (
        {"a.jsonl": LINES * 60 + b"x\n"},
        files(paths="[a.jsonl]", malformed=0),
        BYTES,
        "a.jsonl:2401:1: this record is not a document (Expecting value: line 1 column 1 (char 0)); 1 of 2,401 ",
    ),
    "a share above one": ({}, files(paths="[a.txt]", malformed=1), BYTES, "b.yaml:8:"),
    "not gzip": (
        {"a.jsonl.gz": LINES},
        files(paths="[a.jsonl.gz]"),
        BYTES,
        "a.jsonl.gz:1:1: the file cannot be decompressed (Not a gzipped file",
    ),
    "half a gzip": (
        {"a.jsonl.gz": CUT_GZIP},
        files(paths="[a.jsonl.gz]"),
        BYTES,
        "a.jsonl.gz:1:1: the file cannot be decompressed (Compressed file ended",
    ),
    "a damaged gzip": (
        {"a.jsonl.gz": gzip.compress(LINES)[:20] + b"\xff" * 40},
        files(paths="[a.jsonl.gz]"),
        BYTES,
        "a.jsonl.gz:1:1: the file cannot be decompressed",
    ),
    "not zstandard": (
        {"a.jsonl.zst": LINES},
        files(paths="[a.jsonl.zst]"),
        BYTES,
        "a.jsonl.zst:1:1: the file cannot be decompressed",
    ),
    "half a zstandard": (
        {"a.jsonl.zst": ZST[:-9]},
        files(paths="[a.jsonl.zst]"),
        BYTES,
        "a.jsonl.zst:1:1: the file cannot be decompressed (Truncated",
    ),
    "not Parquet": (
        {"a.parquet": LINES},
        files(paths="[a.parquet]"),
        BYTES,
        "a.parquet:1:1: the file cannot be read as Parquet (",
    ),
    "half a Parquet": (
        {"a.parquet": parquet(text=["a"])[:-9]},
        files(paths="[a.parquet]"),
        BYTES,
        "a.parquet:1:1: the file cannot be read as Parquet (",
    ),
    "no such column": (
        {"a.parquet": parquet(body=["a"], id=[1])},
        files(paths="[a.parquet]"),
        BYTES,
        "a.parquet:1:1: there is no column 'text'; the columns are body, id; name the column of the ",
    ),
    "a column of numbers": (
        {"a.parquet": parquet(text=[1])},
        files(paths="[a.parquet]"),
        BYTES,
        "a.parquet:1:1: the column 'text' holds int64, not strings; ",
    ),
    "a column of nulls": (
        {"a.parquet": parquet(text=pyarrow.array([None] * 3, pyarrow.string()))},
        files(paths="[a.parquet]"),
        BYTES,
        "a.parquet:1:1: this row has no text (null); 3 of 3",
    ),
    "two columns of that name": (
        {"a.parquet": parquet_of(pyarrow.table([["a"], ["b"]], names=["text", "text"]))},
        files(paths="[a.parquet]"),
        BYTES,
        "a.parquet:1:1: 2 columns are named 'text'; write the file again with one",
    ),
    "a row that is not UTF-8": (
        {"a.parquet": parquet(text=pyarrow.array([b"good", b"caf\xe9"]).view(pyarrow.string()))},
        files(paths="[a.parquet]"),
        BYTES,
        "a.parquet:2:1: this row is not UTF-8 (its byte 3); 1 of 2 records are malformed",
    ),
    "NUL bytes, as a crash leaves them": (
        {"a.jsonl": LINES + b"\0" * 500 + b"\n"},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:41:1: this record is not a document (Expecting value",
    ),
    "a gzip of another name": (
        {"a.jsonl": gzip.compress(LINES)},
        files(paths="[a.jsonl]"),
        BYTES,
        "a.jsonl:1:1: the file is compressed by gzip; ",
    ),
    "a zstandard of another name": (
        {"a.txt": ZST},
        files(paths="[a.txt]"),
        BYTES,
        "a.txt:1:1: the file is compressed by zstd; end its name in .zst",
    ),
    "a Parquet of another name": (
        {"a.json": parquet(text=["a"])},
        files(paths="[a.json]"),
        BYTES,
        "a.json:1:1: the file is Parquet; ",
    ),
    "one short text file": (
        {"a.txt": b"hello"},
        files(paths="[a.txt]"),
        BYTES,
        "of 1 different documents, 1 are held out (one in 4), and both splits need at least one; add text: one .txt",
    ),
    "an unknown key": ({}, files(paths="[a.txt]", colour="red"), BYTES, "b.yaml:8:41: unknown key 'colour'"),
    "a package that is not there": (
        {},
        "{source: installed, packages: [no_such_package]}",
        BYTES,
        "b.yaml:8:40: no_such_package: this is not an installed package",
    ),
    "declared text": (
        {},
        "{source: declared, describe: web, unique: 1T tokens}",
        BYTES,
        "b.yaml:8:9: data.text names no files",
    ),
    "an unknown source": ({}, "{source: web}", BYTES, "b.yaml:8:"),
    "more special tokens than room": (
        {},
        files(paths="[a.txt]"),
        "{kind: bbpe, vocab: 260, special: 5}",
        "vocab 260 has no room for 256 bytes and special: 5; write vocab: 261 or more",
    ),
    "fewer rows than tokens": (
        {},
        files(paths="[a.txt]"),
        "{kind: bbpe, vocab: 400, rows: 300}",
        "rows 300 are fewer than vocab 400; write rows: 400 or more",
    ),
    "ids for text": (
        {},
        files(paths="[a.txt]"),
        "{kind: ids, vocab: 33}",
        "kind: ids turns no text into tokens",
    ),
}


def words(**more: object) -> bytes:
    """A small tokenizer.json: two words and the added tokens that are named."""
    added = [
        {"id": 2 + i, "content": name, "special": True, "single_word": False}
        | dict.fromkeys(("lstrip", "rstrip", "normalized"), False)
        for i, name in enumerate(more.get("special", []))  # type: ignore[call-overload, arg-type]
    ]
    model = {"type": "WordLevel", "vocab": {"many": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    plain = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    return json.dumps(plain).encode()


def letters(**ids: int) -> bytes:
    """A tokenizer.json of letters, which knows nothing else."""
    return json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": ids, "merges": []}}).encode()


def index(
    lengths: list[int], *, magic: bytes = b"MMIDIDX\0\0", version: int = 1, code: int = 8, first: int = 0
) -> bytes:
    """A Megatron index of uint16 documents."""
    ends = np.cumsum(lengths)
    head = struct.pack("<9sQBQQ", magic, version, code, len(lengths), len(lengths) + 1)
    offsets = ((ends - lengths) * 2 + first).astype("<i8")
    firsts = np.arange(len(lengths) + 1, dtype="<i8")
    return head + np.array(lengths, "<i4").tobytes() + offsets.tobytes() + firsts.tobytes()


def ends(*tokens: int) -> bytes:
    return np.array(tokens, "<u8").tobytes()


IDS = "{kind: ids, vocab: 33}"
FILE = "{kind: file, path: t.json}"
TOKENS = (np.arange(5000) % 33).astype("<u2").tobytes()
BIN = "{source: tokens, paths: [a.bin]}"
DS = "{source: tokens, paths: [a.ds]}"
JSONL = {"a.jsonl": LINES}

TOKEN_FILES: dict[str, Case] = {
    "no such tokens": (
        {},
        BIN,
        IDS,
        "b.yaml:8:34: a.bin: there is no such file; correct the path in data.text.paths",
    ),
    "no such held-out file": (
        {"a.bin": TOKENS},
        "{source: tokens, paths: [a.bin], held_out: [val.bin]}",
        IDS,
        "val.bin: there is no such file; correct the path in data.text.held_out",
    ),
    "a type of text": (
        {"a.txt": b"a"},
        "{source: tokens, paths: [a.txt]}",
        IDS,
        "a.txt: files of this type cannot be read; give .bin, .ds or .npy",
    ),
    "all is held out": (
        {"a.bin": TOKENS},
        "{source: tokens, paths: [a.bin], held_out: [a.bin]}",
        IDS,
        "no tokens are to train on, of ",
    ),
    "a tokenizer to train": (
        {"a.bin": TOKENS},
        BIN,
        "{kind: bbpe, vocab: 400}",
        "a tokenizer cannot be trained on tokens",
    ),
    "half a token": (
        {"a.bin": TOKENS[:-1]},
        BIN,
        IDS,
        "a.bin:1:1: 9,999 bytes are not whole tokens of uint16; name their type in data.text.dtype",
    ),
    "no tokens at all": ({"a.bin": b""}, BIN, IDS, "no tokens are to train on, of 0 documents or blocks"),
    "an id beyond the vocabulary": (
        {"a.bin": TOKENS + b"\x21\0"},
        BIN,
        IDS,
        "a.bin:1:1: token 5,000 is 33, but the vocabulary has 33 (read as uint16); correct data.token",
    ),
    "another integer type": (
        {"a.bin": TOKENS},
        "{source: tokens, paths: [a.bin], dtype: uint32}",
        IDS,
        "but the vocabulary has 33 (read as uint32)",
    ),
    "negative ids": (
        {"a.bin": np.array([5, -1], "<i4").tobytes(), "a.idx": index([2], code=4)},
        BIN,
        IDS,
        "a.bin:1:1: token 1 is -1, but the vocabulary has 33",
    ),
    "a NumPy header": (
        {"a.npy": b"\x93NUMPY\1\0" + TOKENS},
        "{source: tokens, paths: [a.npy]}",
        IDS,
        "a.npy:1:1: this is a NumPy file with a header; write its tokens with ndarray.tofile()",
    ),
    "llm.c's header": (
        {"a.bin": struct.pack("<I", 20240520) + TOKENS},
        BIN,
        IDS,
        "a.bin:1:1: this file has the header of llm.c; ",
    ),
    "not an index": (
        {"a.bin": TOKENS, "a.idx": b"index"},
        BIN,
        IDS,
        "a.idx:1:1: this is not a Megatron index",
    ),
    "another magic": (
        {"a.bin": TOKENS, "a.idx": index([5000], magic=b"TNTIDX\0\0")},
        BIN,
        IDS,
        "a.idx:1:1: this is not a Megatron index",
    ),
    "another version": (
        {"a.bin": TOKENS, "a.idx": index([5000], version=2)},
        BIN,
        IDS,
        "a.idx:1:1: this Megatron index has version 2",
    ),
    "an index of floats": (
        {"a.bin": TOKENS, "a.idx": index([5000], code=7)},
        BIN,
        IDS,
        "a.idx:1:1: its type code 7 is not one of token ids",
    ),
    "half an index": (
        {"a.bin": TOKENS, "a.idx": index([50] * 100)[:-900]},
        BIN,
        IDS,
        "a.idx:1:1: the index is cut off",
    ),
    "an index of another file": (
        {"a.bin": TOKENS, "a.idx": index([4999])},
        BIN,
        IDS,
        "a.bin:1:1: the file has 10,000 bytes, but a.idx says 9,998",
    ),
    "sequences with gaps": (
        {"a.bin": TOKENS, "a.idx": index([5000], first=2)},
        BIN,
        IDS,
        "a.idx:1:1: its sequences do not lie one after the other",
    ),
    "an index of datatrove for another file": (
        {"a.ds": TOKENS, "a.ds.index": ends(4999)},
        DS,
        IDS,
        "a.ds:1:1: the file has 5,000 tokens, but a.ds.index ends at 4,999",
    ),
    "half an index of datatrove": (
        {"a.ds": TOKENS, "a.ds.index": ends(5000)[:-1]},
        DS,
        IDS,
        "a.ds.index:1:1: 7 bytes are not whole numbers of 8 bytes",
    ),
    "an index of datatrove that goes back": (
        {"a.ds": TOKENS, "a.ds.index": ends(9, 5, 5000)},
        DS,
        IDS,
        "a.ds.index:1:1: it goes back at document 2",
    ),
    "metadata of datatrove without a size": (
        {"a.ds": TOKENS, "a.ds.index": ends(5000), "a.ds.metadata": b"gpt2"},
        DS,
        IDS,
        "a.ds.metadata:1:1: its first line is not 'tokenizer|bytes'",
    ),
    "four bytes an id, read as two": (
        {"a.bin": np.frombuffer(TOKENS, "<u2").astype("<u4").tobytes()},
        BIN,
        IDS,
        "a.bin:1:1: every second token is 0 when read as uint16, as in a file of uint32; name their type in ",
    ),
    "eight bytes an id, read as two": (
        {"a.ds": np.frombuffer(TOKENS, "<u2").astype("<i8").tobytes()},
        DS,
        IDS,
        "a.ds:1:1: every second token is 0 when read as uint16, as in a file of int64; write its tokens again as ",
    ),
    "another type than the index of Megatron has": (
        {"a.bin": TOKENS, "a.idx": index([5000])},
        "{source: tokens, paths: [a.bin], dtype: uint32}",
        IDS,
        "a.bin:1:1: a.idx says that its tokens are uint16, but data.text.dtype is uint32; remove data.text.dtype",
    ),
    "another type than the metadata of datatrove have": (
        {"a.ds": TOKENS, "a.ds.index": ends(5000), "a.ds.metadata": b"gpt2|4\n"},
        "{source: tokens, paths: [a.ds], dtype: uint16}",
        IDS,
        "a.ds:1:1: a.ds.metadata says that its tokens are uint32, but data.text.dtype is uint16; remove ",
    ),
    "a folder in place of an index": (
        {"a.bin": TOKENS, "a.idx/b": b""},
        BIN,
        IDS,
        "a.idx: this should be the index of a token file, but is a folder or a link to nothing; restore the file",
    ),
    "a copy among the training files": (
        {"a.bin": TOKENS, "b.bin": TOKENS},
        "{source: tokens, paths: ['*.bin']}",
        IDS,
        "b.bin:1:1: its content is that of ",
    ),
    "a copy of a training file, held out": (
        {"a.bin": TOKENS, "b.bin": TOKENS},
        "{source: tokens, paths: [a.bin], held_out: [b.bin]}",
        IDS,
        "/a.bin, which is trained on; give one of them alone",
    ),
    "two integer types": (
        {"a.bin": TOKENS, "b.bin": np.array([5], "<i4").tobytes(), "b.idx": index([1], code=4)},
        "{source: tokens, paths: [a.bin, b.bin]}",
        IDS,
        "b.bin:1:1: its tokens are int32, but those of a.bin are uint16; give files of one type",
    ),
    "one document": (
        {"a.ds": TOKENS, "a.ds.index": ends(5000)},
        "{source: tokens, paths: [a.ds], dtype: uint16}",
        IDS,
        " of 1 documents or blocks; ",
    ),
}

TOKENIZERS: dict[str, Case] = {
    "no such tokenizer": (
        JSONL,
        files(paths="[a.jsonl]"),
        FILE,
        "b.yaml:9:33: t.json: there is no such file; correct the path in tokenizer.path",
    ),
    "not JSON": (
        JSONL | {"t.json": b"{"},
        files(paths="[a.jsonl]"),
        FILE,
        "t.json:1:1: this is not a tokenizer of the tokenizers library (",
    ),
    "SentencePiece": (
        JSONL | {"t.model": b"\n\x0e"},
        files(paths="[a.jsonl]"),
        "{kind: file, path: t.model}",
        "t.model:1:1: this is no SentencePiece model (",
    ),
    "another JSON": (
        JSONL | {"t.json": b'{"model": 3}'},
        files(paths="[a.jsonl]"),
        FILE,
        "t.json:1:1: this is not a tokenizer of the tokenizers library (",
    ),
    "a folder": (
        JSONL | {"t.json/tokenizer.json": words()},
        files(paths="[a.jsonl]"),
        FILE,
        "t.json: there is no such file",
    ),
    "no end of a document": (
        JSONL | {"t.json": words()},
        files(paths="[a.jsonl]"),
        FILE,
        "t.json:1:1: this tokenizer has no token of a usual name between documents; name one in data.tok",
    ),
    "none of a usual name": (
        JSONL | {"t.json": words(special=["<stop>", "<go>"])},
        files(paths="[a.jsonl]"),
        FILE,
        "between documents; its special tokens are <stop>, <go>; name one in",
    ),
    "no token for what it does not know": (
        JSONL | {"t.json": words(special=["</s>"]).replace(b'"[UNK]"', b'"x"', 1)},
        files(paths="[a.jsonl]"),
        FILE,
        "the tokenizer cannot encode a text (WordLevel error: Missing [UNK] token from the vocabulary); give one",
    ),
    "no token of the text": (
        JSONL | {"t.json": letters(z=0, q=1)},
        files(paths="[a.jsonl]"),
        "{kind: file, path: t.json, end_of_document: z}",
        "the tokenizer makes no token of the text, which it leaves out; give one that was made for it",
    ),
    "an id beyond all rows": (
        JSONL | {"t.json": letters(z=0, q=10**9)},
        files(paths="[a.jsonl]"),
        "{kind: file, path: t.json, end_of_document: z}",
        "b.yaml:9:33: t.json: its largest token id is 1,000,000,000, and a vocabulary has 2 to 10,000,000 ids; ",
    ),
    "fewer rows than its ids": (
        JSONL | {"t.json": words(special=["</s>"])},
        files(paths="[a.jsonl]"),
        "{kind: file, path: t.json, rows: 2}",
        "b.yaml:9:47: t.json: it has 3 token ids, more than rows: 2; write rows: 3 or more",
    ),
    "a name that it does not have": (
        JSONL | {"t.json": words(special=["</s>"])},
        files(paths="[a.jsonl]"),
        "{kind: file, path: t.json, end_of_document: <eos>}",
        "t.json:1:1: this tokenizer has no token '<eos>'; correct data.tokenizer.end_of_document",
    ),
    "an end that is no id": (
        {"a.bin": TOKENS},
        BIN,
        "{kind: ids, vocab: 33, end_of_document: 33}",
        "end_of_document 33 is not below vocab 33",
    ),
    "tokens of another tokenizer": (
        {"a.bin": TOKENS, "t.json": words(special=["</s>"])},
        BIN,
        FILE,
        "a.bin:1:1: token 3 is 3, but the vocabulary has 3 (read as uint16)",
    ),
}


CASES = TEXT | TOKEN_FILES | TOKENIZERS
BUDGET = (
    "kind: budget\nname: b\ncompute: 1e9 FLOP\nevidence: {{kind: published, law: tiny}}\nfamily: tiny\n"
    "cluster: laptop\ndata:\n  text: {text}\n  tokenizer: {tokenizer}\n  held_out_one_in: 4"
)


def test_a_held_out_share_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(BUDGET.format(text=files(paths="[a.txt]"), tokenizer=BYTES) + "0" * 20)
    done = isoplan(tmp_path, "data", "b.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("b.yaml:10:20: 400000000000000000000 is too large; ")


@pytest.mark.parametrize(("given", "text", "tokenizer", "message"), CASES.values(), ids=CASES.keys())
def test_a_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, given: Mapping[str, bytes], text: str, tokenizer: str, message: str
) -> None:
    for name, content in given.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b.yaml").write_text(BUDGET.format(text=text, tokenizer=tokenizer))
    done = isoplan(tmp_path, "data", "b.yaml")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr
    left = [path.name for path in (tmp_path / "data").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []
    assert not list(tmp_path.rglob("*.part"))
