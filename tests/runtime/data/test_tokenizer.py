import json
from pathlib import Path

import pytest
from rich.console import Console

from planner.design.inputs import declared_vocab
from runtime.checkpoint.export_hf import export
from runtime.commands.corpus_text import describe
from runtime.data import tokenizer
from runtime.data.build.corpus import build
from runtime.data.corpus import tokens
from specs.budget import Budget
from specs.data import Bbpe, Bytes, Corpus, CorpusRef, DataSpec, DeclaredText, FileText, TokenizerFile
from specs.sources import Sources
from specs.tokenizer_file import token_count
from tests.support import samples
from tests.support.training import opened, tiny_run, train_here

QUIET = Console(quiet=True)
TEXTS = [
    f"Doc {i}: naïve café, 你好世界 {i * 7919 % 1009}!\n\n\tx += 1  # <|document|>\n" * 6 for i in range(60)
]


def built(folder: Path, asked: Bbpe | Bytes | TokenizerFile, texts: list[str] = TEXTS) -> Corpus:
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = FileText(source="files", paths=("text.jsonl",))
    return build(DataSpec(text=text, tokenizer=asked, held_out_one_in=4), folder, folder / "data", QUIET)


def wordpiece(path: Path) -> None:
    """A tokenizer of another kind, with a template and special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>"),
    )
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    made.enable_truncation(5)
    made.save(str(path))


def test_a_pre_tokenizer_keeps_kinds_of_characters_apart(tmp_path: Path) -> None:
    """DeepSeek LLM, section 2.1: newlines, punctuation and CJK are not merged with others, digits stand alone."""
    reader = tokenizer.load(
        tmp_path / "data" / built(tmp_path, Bbpe(kind="bbpe", vocab=2000)).name / "tokenizer.json"
    )
    for text in TEXTS[:5]:
        pieces = [reader.decode([token]) for token in reader.encode(text).ids]
        assert "".join(pieces).replace("�", "") in text or "�" in "".join(pieces)
        for piece in filter(None, pieces):
            assert piece in ("\n", "\r") or "\n" not in piece
            assert len(piece) == 1 or not any(character.isdigit() for character in piece)
            assert not any("一" <= character <= "龥" for character in piece) or all(
                "一" <= character <= "龥" or character == "�" for character in piece
            )


def test_special_tokens_come_first_and_rows_are_kept_in_reserve(tmp_path: Path) -> None:
    corpus = built(tmp_path, Bbpe(kind="bbpe", vocab=300, special=15, rows=512))
    reader = tokenizer.load(tmp_path / "data" / corpus.name / "tokenizer.json")
    assert [reader.id_to_token(number) for number in (0, 1, 14)] == [
        "<|document|>",
        "<|reserved_1|>",
        "<|reserved_14|>",
    ]
    assert (corpus.vocab, corpus.rows, corpus.end_of_document) == (300, 512, 0)


def test_a_text_that_supports_fewer_tokens_gives_fewer_and_says_so(tmp_path: Path) -> None:
    corpus = built(
        tmp_path, Bbpe(kind="bbpe", vocab=70_000), [f"Document {i}: a b c d e" for i in range(200)]
    )
    reader = tokenizer.load(tmp_path / "data" / corpus.name / "tokenizer.json")
    assert corpus.vocab == corpus.rows == reader.get_vocab_size() < 700
    assert corpus.token_type == "uint16", "as few bytes as the real number needs"
    said = list(describe(Sources({"": corpus}), tmp_path))
    assert f"the tokenizer has {corpus.vocab} tokens, not 70,000: " in said[1]


def test_a_tokenizer_that_exists_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its template, its truncation and its special tokens do not come into the corpus, but between documents."""
    wordpiece(tmp_path / "mine.json")
    corpus = built(tmp_path, TokenizerFile(kind="file", path="mine.json"))
    assert (tmp_path / "data" / corpus.name / "tokenizer.json").read_bytes() == (
        tmp_path / "mine.json"
    ).read_bytes()
    assert (corpus.vocab, corpus.end_of_document) == (token_count(tmp_path / "mine.json"), 1)
    stream = tokens(tmp_path / "data", corpus, "train")[:].tolist()
    assert stream.count(1) == corpus.train.documents - 1
    assert 0 not in stream
    assert len(stream) > 50 * corpus.train.documents


def test_another_tokenizer_is_another_corpus(tmp_path: Path) -> None:
    asked = TokenizerFile(kind="file", path="mine.json")
    wordpiece(tmp_path / "mine.json")
    first = built(tmp_path, asked)
    plain = json.loads((tmp_path / "mine.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps(plain | {"truncation": None}))
    second = built(tmp_path, asked)
    assert first.name != second.name
    assert first.digest != second.digest
    assert first.train.digest == second.train.digest


@pytest.mark.slow
def test_a_tokenizer_that_exists_is_exported_as_it_is(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    wordpiece(tmp_path / "mine.json")
    corpus = built(tmp_path, TokenizerFile(kind="file", path="mine.json", rows=200))
    model = samples.model(width=16, heads=2, kv_heads=1, ffn=32, context=32, vocab=corpus.rows)
    folder = opened(tmp_path, tiny_run(CorpusRef(corpus=corpus.name, digest=corpus.digest), model=model))
    assert train_here(folder, tmp_path / "data") == 0
    out = export(folder, tmp_path / "data", None, tmp_path / "out", QUIET)
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "mine.json").read_bytes()
    reader = transformers.AutoTokenizer.from_pretrained(out)
    config = transformers.AutoConfig.from_pretrained(out)
    assert (reader.eos_token, reader.eos_token_id, config.eos_token_id, config.vocab_size) == (
        "</s>",
        1,
        1,
        200,
    )
    ours = tokenizer.load(tmp_path / "mine.json")
    for text in ("Doc 3: naïve café", "你好"):
        assert (
            reader(text, add_special_tokens=False)["input_ids"]
            == ours.encode(text, add_special_tokens=False).ids
        )


def test_declared_text_takes_its_vocabulary_from_the_tokenizers_file(tmp_path: Path) -> None:
    wordpiece(tmp_path / "mine.json")
    declared = DeclaredText(source="declared", describe="web", unique="1T tokens")  # type: ignore[arg-type]
    data = DataSpec(text=declared, tokenizer=TokenizerFile(kind="file", path="mine.json"))
    vocab = tokenizer.load(tmp_path / "mine.json").get_vocab_size(with_added_tokens=True)
    assert declared_vocab(data, tmp_path / "b.yaml") == vocab


def test_the_papers_rows_are_planned() -> None:
    from specs.document.files import load
    from tests.support.paths import ROOT
    from tests.support.planning import inputs_of

    path = ROOT / "specs" / "budget_1e24.yaml"
    assert load(path, Budget).data.reserved_rows == 102_400
    assert inputs_of(path, ROOT / "plans", ROOT / "data").rows == 102_400


def test_what_a_tokenizer_does_to_the_text_is_said(tmp_path: Path) -> None:
    """Letters that it does not know, ends of documents in the text, and more than one name for them."""
    from tokenizers import AddedToken, Tokenizer, models

    made = Tokenizer(models.BPE({name: n for n, name in enumerate("abc</s>")}, []))
    made.add_tokens([AddedToken("</s>", special=False)])
    made.add_special_tokens(["<eos>"])
    made.save(str(tmp_path / "mine.json"))
    texts = [f"a</s>bc {'ab' * i}" for i in range(60)] + ["123"]
    corpus = built(tmp_path, TokenizerFile(kind="file", path="mine.json", end_of_document="</s>"), texts)
    documents = corpus.train.documents + corpus.held_out.documents
    assert [note.split(":")[0] for note in corpus.notes] == [
        f"60 documents with token {corpus.end_of_document} in the text, which stands between documents",
        "1 document without a token",
        "of 50 documents that were encoded and decoded, 50 came back as other text",
    ]
    assert documents == 61
    corpus = built(tmp_path, TokenizerFile(kind="file", path="mine.json"), texts)
    assert corpus.end_of_document == made.token_to_id("<eos>"), (
        "a special token is meant before one that is text"
    )
    assert corpus.notes[0].startswith(
        "documents are joined by <eos>; the tokenizer also has </s>: name one in "
    )


def test_bytes_that_join_documents_are_counted_in_them(tmp_path: Path) -> None:
    corpus = built(tmp_path, Bytes(kind="bytes"), [*TEXTS, "NUL \0 in it", "and \0 \0 here"])
    assert corpus.notes == (
        "2 documents with token 0 in the text, which stands between documents: a model sees each as several",
    )


def test_merges_that_are_left_out_at_random_are_not(tmp_path: Path) -> None:
    made = built(tmp_path, Bbpe(kind="bbpe", vocab=400))
    plain = json.loads((tmp_path / "data" / made.name / "tokenizer.json").read_text())
    for dropout in (None, 0.5):
        (tmp_path / "mine.json").write_text(
            json.dumps(plain | {"model": plain["model"] | {"dropout": dropout}})
        )
        again = built(tmp_path, TokenizerFile(kind="file", path="mine.json"))
        assert again.train.digest == made.train.digest
        assert again.notes == ()
