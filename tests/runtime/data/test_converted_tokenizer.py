"""Tokenizers of SentencePiece and tiktoken: what is converted gives the same ids as the original, or is refused."""

import base64
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import regex
import sentencepiece
from rich.console import Console
from tiktoken_ext import openai_public

from runtime.data import converted_tokenizer, tokenizer
from runtime.data.build.corpus import build
from runtime.data.corpus import tokens
from specs.data import Corpus, DataSpec, FileText, TokenizerFile
from specs.document.files import DocumentError
from specs.tiktoken_file import TIKTOKEN_ENCODINGS
from specs.tokenizer_file import token_count

WORDS = "the a of and to in is it was He's won't naïve straße 漢字 한국 12 345 😀 x=1 foo(bar) - … Ünïcode".split()  # noqa: SIM905


def sentences(number: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [
        " ".join(chance.choices(WORDS, k=12)) + chance.choice([".", "!", "  \n", "\t?"])
        for _ in range(number)
    ]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a SentencePiece model with these options."""
    folder = tmp_path_factory.mktemp("models")
    printable = " ".join(map(chr, range(33, 127)))
    (folder / "text.txt").write_text("\n".join([*sentences(400), *[printable] * 40]))

    def trained(name: str, **options: object) -> Path:
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"),
            model_prefix=str(folder / name),
            vocab_size=options.pop("vocab_size", 380),
            minloglevel=2,
            num_threads=1,
            **options,
        )
        return folder / f"{name}.model"

    return trained


MERGED = [
    " t",
    "he",
    "in",
    " the",
    "an",
    " a",
    " an",
    "th",
    "12",
    "345",
    "to",
    " to",
    "\n\n",
    "  ",
    "    ",
    "漢",
    " 漢",
    "😀",
]


BYTE_RANKS = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of tiktoken's ranks: all bytes, and some pieces that merge in several ways or in none."""
    path = tmp_path_factory.mktemp("ranks") / "own.tiktoken"
    found = [*(bytes([byte]) for byte in range(256)), *(piece.encode() for piece in MERGED)]
    lines = (base64.b64encode(token).decode() + f" {rank}\n" for rank, token in enumerate(found))
    path.write_text("".join(lines))
    return path


def corpus(folder: Path, file: Path, **options: object) -> Corpus:
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": one}) + "\n" for one in sentences(60, seed=1))
    )
    asked = TokenizerFile(kind="file", path=str(file), **options)  # type: ignore[arg-type]
    text = FileText(source="files", paths=("text.jsonl",))
    spec = DataSpec(text=text, tokenizer=asked, held_out_one_in=4)
    return build(spec, folder, folder / "data", Console(quiet=True), processes=1)


LLAMA = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
         "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}  # fmt: skip
"""As Llama's and Mistral's were trained."""
MODELS = {
    "llama": LLAMA,
    "bpe": {"model_type": "bpe", "character_coverage": 0.98, "vocab_size": 200},
    "gemma": LLAMA | {"add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "vocab_size": 130},
    "unigram with bytes": LLAMA | {"model_type": "unigram", "vocab_size": 370},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sentencepiece_model_gives_its_own_ids(
    tmp_path: Path, train: Callable[..., Path], name: str
) -> None:
    file = train(name.replace(" ", "-"), **MODELS[name])
    built = corpus(tmp_path, file)
    original = sentencepiece.SentencePieceProcessor(model_file=str(file))
    assert built.vocab == token_count(file) == original.vocab_size()
    assert built.end_of_document == original.piece_to_id("</s>")
    there = tokenizer.load(tmp_path / "data" / built.name / "tokenizer.json")
    held_out = [int(one) for one in tokens(tmp_path / "data", built, "held_out")]
    documents = split(held_out, built.end_of_document)
    assert len(documents) == built.held_out.documents
    originals = {tuple(original.encode(text.rstrip("\n"))) for text in sentences(60, seed=1)}
    assert {tuple(document) for document in documents} < originals
    if original.unk_id() not in documents[0]:  # which it writes as " ⁇ "
        assert there.decode(documents[0]) == original.decode(documents[0])


def split(ids: list[int], separator: int | None) -> list[list[int]]:
    """The documents of a split."""
    found: list[list[int]] = [[]]
    for one in ids:
        if one == separator:
            found.append([])
        else:
            found[-1].append(one)
    return [document for document in found if document]


@pytest.mark.parametrize(("encoding", "end"), [("llama3", "<|end_of_text|>"), ("qwen", "<|endoftext|>")])
def test_a_tiktoken_file_gives_its_own_ids(tmp_path: Path, ranks: Path, encoding: str, end: str) -> None:
    """Of the documents that the build has checked, and of the hard texts."""
    built = corpus(tmp_path, ranks, encoding=encoding)
    assert built.vocab == token_count(ranks, encoding)
    there = tokenizer.load(tmp_path / "data" / built.name / "tokenizer.json")
    assert built.end_of_document == there.token_to_id(end)
    assert built.end_of_document >= 256 + len(MERGED)
    text = "the anthem, in 12345 and 漢😀 to"
    assert there.decode(there.encode(text).ids) == text


def test_special_tokens_may_lie_among_the_ranks(tmp_path: Path) -> None:
    """As that of p50k_base does."""
    texts = [bytes([one]) for one in range(256)] + [
        bytes([one, other]) for one in range(256) for other in range(256)
    ]
    numbers = (number for number in range(50281) if number != 50256)
    lines = [base64.b64encode(text) + b" %d\n" % number for text, number in zip(texts, numbers, strict=False)]
    (tmp_path / "p50k.tiktoken").write_bytes(b"".join(lines))
    asked = TokenizerFile(kind="file", path="p50k.tiktoken", encoding="p50k_base")
    found = converted_tokenizer.convert(asked, tmp_path / "p50k.tiktoken")
    assert found.token_to_id("<|endoftext|>") == 50256
    assert found.get_vocab_size() == 50281


def test_patterns_and_special_tokens_are_tiktokens_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Possessive quantifiers are left out, so the same bytes may be written in another way: they split the same."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    texts = [*converted_tokenizer._HARD_TEXTS, *sentences(100)]
    for name in ("r50k_base", "p50k_base", "cl100k_base", "o200k_base"):
        theirs, ours = openai_public.ENCODING_CONSTRUCTORS[name](), TIKTOKEN_ENCODINGS[name]
        assert theirs["special_tokens"] == ours.special
        for text in texts:
            assert regex.findall(theirs["pat_str"], text) == regex.findall(ours.pattern, text)


def test_the_same_file_gives_the_same_bytes(tmp_path: Path, ranks: Path, train: Callable[..., Path]) -> None:
    asked = TokenizerFile(kind="file", path="x", encoding="qwen")
    for file in (ranks, train("again", **LLAMA)):
        written = []
        for number in range(2):
            converted_tokenizer.convert(asked, file).save(str(tmp_path / f"{number}.json"))
            written.append((tmp_path / f"{number}.json").read_bytes())
        assert written[0] == written[1]


def test_a_conversion_that_gives_other_ids_is_refused(
    tmp_path: Path, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted_tokenizer, "_normalizer", lambda spec: None)
    with pytest.raises(
        DocumentError, match=r"gives other ids than the original, first at token 0 of 'The quick"
    ):
        corpus(tmp_path, train("planted", **LLAMA))
    assert list(tmp_path.glob("data/[!.]*")) == []


@pytest.mark.parametrize(
    ("name", "content", "options", "what"),
    [
        ("own.tiktoken", None, {}, "holds no pattern and no special tokens; name its encoding"),
        ("own.model", None, {}, "holds no pattern and no special tokens; name its encoding"),
        ("cut.tiktoken", b"IQ== 0\nIg=", {"encoding": "qwen"}, ":2:1: this line is no token in base 64"),
        ("few.tiktoken", b"IQ== 0\nIg== 1\n", {"encoding": "qwen"}, "these ranks lack some byte"),
        (
            "own.tiktoken",
            None,
            {"encoding": "cl100k_base"},
            "has 274 ranks, and cl100k_base has 100,256; name another",
        ),
        (
            "far.tiktoken",
            BYTE_RANKS + b"b2Y= 99999999999999\n",
            {"encoding": "qwen"},
            ":257:1: this line is no token in base 64 with its rank",
        ),
        (
            "high.tiktoken",
            BYTE_RANKS + b"b2Y= 999999999\n",
            {"encoding": "qwen"},
            "do not count from 0 to 256",
        ),
        ("below.tiktoken", BYTE_RANKS + b"b2Y= -3\n", {"encoding": "qwen"}, ":257:1: this line is no token"),
        ("none.model", b"\x00\x01\x02", {}, "this is no SentencePiece model"),
        ("empty.model", b"", {}, "this SentencePiece model has no pieces"),
        ("tokenizer.json", b"{}", {"encoding": "qwen"}, "only a tiktoken file has an encoding"),
    ],
)
def test_what_is_no_such_file_is_one_line(
    tmp_path: Path, ranks: Path, name: str, content: bytes | None, options: dict[str, str], what: str
) -> None:
    (tmp_path / name).write_bytes(ranks.read_bytes() if content is None else content)
    with pytest.raises(DocumentError) as refused:
        corpus(tmp_path, tmp_path / name, **options)
    assert what in str(refused.value)
    assert list(tmp_path.glob("data/[!.]*")) == []


def test_a_damaged_model_is_one_line(tmp_path: Path, train: Callable[..., Path]) -> None:
    """Each cut or changed byte is refused, or makes another tokenizer that still gives its own ids."""
    whole = train("damaged", model_type="bpe", vocab_size=200).read_bytes()
    file, asked = tmp_path / "t.model", TokenizerFile(kind="file", path="t.model")
    refused: list[str] = []
    for at in range(7, len(whole), len(whole) // 60):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xC0]) + whole[at + 1 :]):
            file.write_bytes(damaged)
            try:
                made = converted_tokenizer.convert(asked, file)
                encode = partial(_ids, made)
                converted_tokenizer.check_conversion(asked, file, encode, [])
            except DocumentError as error:
                refused.append(str(error))
    assert all(len(one.splitlines()) == 1 for one in refused)
    assert len(refused) > 60


def _ids(made: Any, text: str) -> list[int]:
    ids: list[int] = made.encode(text, add_special_tokens=False).ids
    return ids


def test_a_missing_library_is_named(
    tmp_path: Path, ranks: Path, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, package in ((ranks, "tiktoken"), (train("absent", **LLAMA), "sentencepiece")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(DocumentError, match=rf"package {package}, .*pip install 'isoplan\[tokenizers\]'"):
            corpus(tmp_path, file, **({"encoding": "qwen"} if package == "tiktoken" else {}))
