"""Text that is curated by datatrove before it is a corpus: what each step keeps, counts and shows; kills; refusals."""

import gzip
import json
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runtime.data.build import curation, text_sources
from runtime.data.build.corpus import build
from runtime.data.build.curation import Curation, carry_out
from runtime.data.build.mix import build_sources
from runtime.data.build.workers import Workers, open_workers
from runtime.data.corpus import tokens
from runtime.data.errors import CorpusError
from specs.data import Bytes, Corpus, DataSpec, FileText
from specs.document.files import DocumentError

pytestmark = pytest.mark.slow

WORDS = [
    f"{a}{b}"
    for a in ("ba", "ne", "ti", "ko", "lu", "mar", "sel", "gon")
    for b in ("da", "re", "si", "to", "vu", "n")
]
STOP = "the of and to in that with have be is".split()  # noqa: SIM905


def prose(seed: int, words: int = 120) -> str:
    """Words as a filter of quality wants them."""
    chance = random.Random(seed)
    lines = []
    for _ in range(words // 12):
        line = [chance.choice(STOP if n % 4 == 0 else WORDS) for n in range(12)]
        lines.append(" ".join(line).capitalize() + ".")
    return "\n".join(lines)


def edited(text: str) -> str:
    """A near duplicate: one word in a hundred is another."""
    words = text.split(" ")
    return " ".join("qu" if n % 97 == 50 else word for n, word in enumerate(words))


def write(folder: Path, names: tuple[str, str, str] = ("a", "b", "c")) -> None:
    """Three files: 30 texts, 6 of them again nearly, 4 exactly, 3 by URL alone; and 5 too short."""
    texts = [prose(seed) for seed in range(30)]
    records = [{"text": text, "url": f"https://a.org/{n}"} for n, text in enumerate(texts)]
    records += [{"text": edited(texts[n]), "url": f"https://b.org/{n}"} for n in range(6)]
    records += [{"text": texts[n], "url": f"https://c.org/{n}"} for n in range(10, 14)]
    records += [{"text": prose(100 + n), "url": f"https://a.org/{n}"} for n in range(20, 23)]
    records += [{"text": f"Too short {n}.", "url": f"https://d.org/{n}"} for n in range(5)]
    for number, name in enumerate(names):
        some = records[number::3]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))


GOPHER: dict[str, Any] = {"step": "GopherQualityFilter", "language": "eng"}
ALL: tuple[dict[str, Any], ...] = (
    GOPHER,
    {"step": "ExactDedup", "key": "url"},
    {"step": "ExactDedup"},
    {"step": "MinhashDedup"},
)


def spec(*steps: dict[str, Any], paths: str = "*.jsonl") -> DataSpec:
    text = json.dumps({"source": "files", "paths": [paths], "curate": steps})
    return DataSpec(text=FileText.model_validate_json(text), tokenizer=Bytes(kind="bytes"), held_out_one_in=4)


def curated(folder: Path, *steps: dict[str, Any], processes: int = 1) -> Corpus:
    return build(spec(*steps), folder, folder / "data", Console(quiet=True), processes)


def texts_of(folder: Path, corpus: Corpus) -> set[str]:
    both = (bytes(tokens(folder / "data", corpus, split)) for split in ("train", "held_out"))
    return {text.decode() for one in both for text in one.split(b"\0") if text}


def test_every_step_drops_what_it_should_and_says_so(tmp_path: Path) -> None:
    write(tmp_path)
    corpus = curated(tmp_path, *ALL)
    assert corpus.reading is not None
    funnel = [(one.step, one.read, one.dropped) for one in corpus.reading.curation]
    assert funnel == [
        ("GopherQualityFilter", 48, 5),
        ("ExactDedup", 43, 3),
        ("ExactDedup", 40, 4),
        ("MinhashDedup", 36, 6),
    ]
    assert corpus.train.documents + corpus.held_out.documents == 30
    gopher = corpus.reading.curation[0]
    assert gopher.reasons == {"gopher_short_doc": 5}
    assert gopher.examples[0].reason == "gopher_short_doc"
    assert gopher.examples[0].text.startswith("Too short ")
    page = (tmp_path / "data" / corpus.name / "curation.html").read_text(encoding="utf-8")
    assert all(
        part in page for part in ("gopher_short_doc", "Too short", '<td class="number">16.7\u202f%</td>')
    )
    left = texts_of(tmp_path, corpus)
    assert left <= {prose(seed) for seed in (*range(30), *range(120, 123))} | {
        edited(prose(seed)) for seed in range(6)
    }


def write_as(path: Path, texts: list[str]) -> None:
    """These texts in the format that the file's name says; a .txt and a .md hold one."""
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    match path.suffixes:
        case [".txt"] | [".md"]:
            path.write_bytes(texts[0].encode())
        case [".json"]:
            path.write_text(json.dumps([{"text": text} for text in texts], indent=1))
        case [".parquet"]:
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
        case [".jsonl", ".gz"]:
            path.write_bytes(gzip.compress(lines))
        case [".jsonl", ".zst"]:
            path.write_bytes(pyarrow.Codec("zstd").compress(lines, asbytes=True))
        case _:
            path.write_bytes(lines)


def test_every_format_is_curated(tmp_path: Path) -> None:
    """In folders; a text that Windows has saved is the same text."""
    folder = tmp_path / "texts" / "below"
    folder.mkdir(parents=True)
    names = ("a.jsonl", "b.json", "c.jsonl.gz", "d.jsonl.zst", "e.parquet")
    for number, name in enumerate(names):
        write_as(folder / name, [prose(10 * number), prose(10 * number + 1), f"Too short {number}."])
    for number, name in enumerate(("f.txt", "g.md")):
        write_as(folder / name, [prose(90 + number)])
    (folder / "h.txt").write_bytes(b"\xef\xbb\xbf" + prose(90).replace("\n", "\r\n").encode() + b"\r\n")
    asked = spec(GOPHER, {"step": "ExactDedup"}, paths="texts")
    corpus = build(asked, tmp_path, tmp_path / "data", Console(quiet=True), 1)
    assert corpus.reading is not None
    assert [(one.read, one.dropped) for one in corpus.reading.curation] == [(18, 5), (13, 1)]
    assert (corpus.reading.records, corpus.reading.empty, corpus.reading.duplicates) == (18, 0, 0)
    seeds = [*(10 * number + n for number in range(5) for n in (0, 1)), 90, 91]
    assert texts_of(tmp_path, corpus) == {prose(seed) for seed in seeds}


@pytest.mark.parametrize("cut_bytes", [text_sources.SMALLEST_CUT_BYTES, 6000])
def test_of_equal_documents_the_first_stays_however_a_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_bytes: int
) -> None:
    monkeypatch.setattr(text_sources, "SMALLEST_CUT_BYTES", cut_bytes)
    records = [{"text": prose(n), "url": f"https://a.org/{n % 15}"} for n in (*range(15), 29, *range(15, 29))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    corpus = curated(tmp_path, {"step": "ExactDedup", "key": "url"})
    assert texts_of(tmp_path, corpus) == {prose(n) for n in range(15)}
    asked = spec().text
    assert isinstance(asked, FileText)
    tasks = Curation(asked, tmp_path, (tmp_path / "a.jsonl",), tmp_path).source.tasks
    assert tasks == (1 if cut_bytes > 6000 else 4)


def test_what_a_process_is_sent_does_not_grow_with_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do tasks become more than a node has cores for."""
    sizes, tasks = [], []
    monkeypatch.setattr(
        Workers,
        "map",
        lambda self, what, size, work, each: sizes.append(max(map(len, map(pickle.dumps, each)))),
    )
    asked = spec(GOPHER).text
    assert isinstance(asked, FileText)
    for files in (64, 640):
        paths = tuple(tmp_path / f"{number:03}.md" for number in range(files))
        for path in paths:
            path.write_bytes(bytes(1000))
        made = Curation(asked, tmp_path, paths, tmp_path / "work")
        [one] = next(made.steps())
        tasks.append(one.tasks)
        with open_workers(Console(quiet=True), 1) as workers:
            carry_out(one, workers)
    assert tasks == [64, 64]
    assert sizes[1] < 2 * sizes[0]


def test_the_same_records_are_malformed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": prose(seed)}) for seed in range(18)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], '{"text": ', *lines[3:], '{"text": " "}']))
    with pytest.raises(
        DocumentError, match=r"a.jsonl:4:1: .*; 1 of 20 records are malformed, .* allows 0.1 %"
    ):
        curated(tmp_path, GOPHER)
    assert list(tmp_path.glob("data/*.part")) == []
    asked = spec(GOPHER)
    text = asked.text.model_copy(update={"malformed": 0.05})
    corpus = build(
        asked.model_copy(update={"text": text}), tmp_path, tmp_path / "data", Console(quiet=True), 1
    )
    reading = corpus.reading
    assert reading is not None
    assert (reading.records, reading.malformed, reading.empty) == (20, 1, 1)
    assert reading.curation[0].read == 18
    assert reading.examples[0].startswith("a.jsonl:4: this record is not a document")


def test_urls_are_columns_or_keys_also_within_the_metadata(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    urls = ["https://a.org", "https://b.org", None]
    columns = {"text": [prose(n) for n in range(3)], "url": urls, "dump": ["x"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    records: list[dict[str, Any]] = [
        {"text": prose(10), "url": "https://a.org"},
        {"text": prose(11), "metadata": {"url": "https://b.org"}},
        {"text": prose(12), "url": ""},
        {"text": prose(13), "url": "\ud800"},
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    asked = spec({"step": "ExactDedup", "key": "url"}, paths="*.*")
    corpus = build(asked, tmp_path, tmp_path / "data", Console(quiet=True), 1)
    assert corpus.reading is not None
    assert [(one.read, one.dropped) for one in corpus.reading.curation] == [(7, 2)]


def test_it_depends_on_contents_alone(tmp_path: Path) -> None:
    """Neither on the names of files nor on the number of processes."""
    found = []
    for place, names, processes in (("one", ("a", "b", "c"), 1), ("two", ("z", "y", "x"), 2)):
        folder = tmp_path / place
        folder.mkdir()
        write(folder, names)
        found.append(curated(folder, {"step": "ExactDedup", "key": "url"}, processes=processes))
    assert found[0] == found[1]


BUILD = """
import sys
from pathlib import Path
from rich.console import Console
from runtime.data.build.corpus import build
from runtime.data.build.mix import build_sources
from specs.data import DataSpec
folder = Path(sys.argv[1])
build(DataSpec.model_validate_json(sys.argv[2]), folder, folder / "data", Console(quiet=True), 2)
"""


@pytest.mark.soak
def test_a_build_that_is_killed_in_any_step_goes_on_to_the_same_corpus(tmp_path: Path) -> None:
    asked = spec(*ALL)
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole")
    whole = build(asked, tmp_path / "whole", tmp_path / "whole" / "data", Console(quiet=True), 1)
    folder = tmp_path / "killed"
    folder.mkdir()
    write(folder)
    argv = [sys.executable, "-c", BUILD, str(folder), asked.canonical_json()]
    for step in ("0-Gopher*/filter", "1-Exact*/duplicates", "3-Minhash*/signatures", "3-Minhash*/filter"):
        with subprocess.Popen(argv) as process:
            while process.poll() is None and not list(
                folder.glob(f"data/.*.part/curated/{step}/completions/*")
            ):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    assert build(asked, folder, folder / "data", Console(quiet=True), 1) == whole


def test_a_language_is_known_by_a_model_of_ones_own(tmp_path: Path) -> None:
    import fasttext

    other = ["".join(reversed(prose(seed))).lower() for seed in range(12)]
    lines = [f"__label__eng {prose(seed)}" for seed in range(30)] + [f"__label__gne {text}" for text in other]
    (tmp_path / "train.txt").write_text("\n".join(line.replace("\n", " ") for line in lines))
    model = fasttext.train_supervised(
        str(tmp_path / "train.txt"), lr=0.3, epoch=100, dim=16, minn=2, maxn=4, verbose=0, thread=1
    )
    model.save_model(str(tmp_path / "languages.bin"))
    (tmp_path / "words.txt").write_text("bada\n")
    records = [{"text": prose(seed)} for seed in range(20)] + [{"text": text} for text in other]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    corpus = curated(
        tmp_path,
        {"step": "LanguageFilter", "model": "languages.bin", "languages": ["eng"]},
        {"step": "C4BadWordsFilter", "words": "words.txt"},
    )
    assert corpus.reading is not None
    language, words = corpus.reading.curation
    assert (language.read, language.dropped) == (32, 12)
    assert words.dropped == sum("bada" in prose(seed).lower().replace(".", " ").split() for seed in range(20))
    assert corpus.inputs.files == 3


@pytest.mark.parametrize(
    ("name", "steps", "error", "what"),
    [
        (
            "a.jsonl",
            ({**GOPHER, "min_doc_words": 10**6},),
            CorpusError,
            "curate left no document (dropped: GopherQ",
        ),
        (
            "a.jsonl",
            ({**GOPHER, "language": "klingon"},),
            CorpusError,
            "GopherQualityFilter failed (ValueError: Lang",
        ),
        (
            "a.jsonl",
            ({"step": "C4BadWordsFilter", "words": "none.words"},),
            CorpusError,
            "none.words: the list has no words",
        ),
    ],
)
def test_what_cannot_be_curated_is_one_line(
    tmp_path: Path,
    name: str,
    steps: tuple[dict[str, Any], ...],
    error: type[Exception],
    what: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    (tmp_path / "none.words").write_bytes(b"\xef\xbb\xbf\n \n")
    for file in tmp_path.glob("*.jsonl"):
        file.rename(file.with_suffix(Path(name).suffix))
    asked = spec(*steps, paths=f"*{Path(name).suffix}")
    with pytest.raises(error) as refused:
        build(asked, tmp_path, tmp_path / "data", Console(quiet=True), 1)
    assert what in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""
    assert list(tmp_path.glob("data/*.part")) == []


def test_without_datatrove_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(curation, "CURATE", ("datatrove", "no_such_package"))
    with pytest.raises(
        CorpusError, match=r"needs no_such_package, which is not installed; .*'isoplan\[data\]'"
    ):
        curated(tmp_path, GOPHER)


def test_each_source_of_a_mix_is_curated_by_itself_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a tokenizer that is trained on all of them."""
    from datatrove.executor import LocalPipelineExecutor

    done, mark = list[int](), LocalPipelineExecutor.mark_rank_as_completed
    monkeypatch.setattr(
        LocalPipelineExecutor,
        "mark_rank_as_completed",
        lambda self, rank: (done.append(rank), mark(self, rank))[1],
    )
    for name, first in (("web", 0), ("code", 50)):
        records = [{"text": prose(first + seed)} for seed in range(30)] + [{"text": f"Too short {name}."}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    parts = {
        name: {"text": {"source": "files", "paths": [f"{name}.jsonl"], "curate": [GOPHER]}, "share": 0.5}
        for name in ("web", "code")
    }
    asked = DataSpec.model_validate_json(
        json.dumps(
            {
                "text": {"source": "mix", "parts": parts},
                "tokenizer": {"kind": "bbpe", "vocab": 300},
                "held_out_one_in": 4,
            }
        )
    )
    sources = build_sources(asked, tmp_path, tmp_path / "data", Console(quiet=True), 1)
    for corpus in sources.corpora.values():
        assert corpus.train.documents + corpus.held_out.documents == 30
        assert corpus.reading is not None
        assert [(one.read, one.dropped) for one in corpus.reading.curation] == [(31, 1)]
        assert "Too short" in corpus.reading.curation[0].examples[0].text
    assert done == [0, 0]
