"""The corpora of a mix: built as any others are, with one tokenizer, and never twice for other weights."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from runtime.data import tokenizer
from runtime.data.build import inputs, mix, shards
from runtime.data.build.corpus import build
from runtime.data.build.mix import build_sources
from runtime.data.corpus import load_sources, tokens, verify_sources
from runtime.data.errors import CorpusError, KilledWorkerError
from runtime.data.tokenizer import load
from specs.data import Bbpe, DataSpec, FileText, MixCorpus, MixPart, MixText
from specs.data_inputs import InputFileError
from specs.mix import WeightsFrom
from specs.sources import Sources, find_sources, last_built
from tests.support import mixes

QUIET = Console(quiet=True)


def built(spec: DataSpec, home: Path) -> Sources:
    return build_sources(spec, home, home / "data", QUIET, 1)


def with_paths(**paths: str) -> DataSpec:
    """The mix with other files for some sources."""
    parts = {
        name: MixPart(text=FileText(source="files", paths=(paths.get(name, f"{name}.jsonl"),)), epochs=1.0)
        for name in (*mixes.DOCUMENTS, *paths)
    }
    return mixes.spec(text=MixText(source="mix", parts=parts))


def test_each_source_is_the_corpus_that_it_is_alone_and_weights_build_nothing_anew(tmp_path: Path) -> None:
    sources = mixes.built(tmp_path)
    alone = mixes.spec().parts()["web"]
    assert build(alone, tmp_path, tmp_path / "data", QUIET, 1) == sources.corpora["web"]
    manifest = tmp_path / "data" / sources.ref.corpus / "manifest.json"
    written = manifest.stat().st_mtime_ns
    text = mixes.spec().text
    assert isinstance(text, MixText)
    phase = WeightsFrom(start=0.9, epochs={"math": 2.0})
    other = mixes.spec(text=text.model_copy(update={"phases": (phase,)}))
    assert find_sources(other, tmp_path, tmp_path / "data") == sources
    assert built(other, tmp_path).ref == sources.ref
    assert manifest.stat().st_mtime_ns == written
    assert verify_sources(tmp_path / "data", sources.ref.corpus).ref == sources.ref
    assert isinstance(sources.manifest, MixCorpus)
    assert last_built(other, tmp_path, tmp_path / "data") == sources.ref.corpus


def test_the_name_of_a_source_is_part_of_a_mix(tmp_path: Path) -> None:
    sources = mixes.built(tmp_path)
    renamed = Sources({{"web": "pages"}.get(name, name): one for name, one in sources.corpora.items()})
    assert renamed.ref.digest != sources.ref.digest


def test_a_tokenizer_is_trained_on_all_sources_and_found_again(tmp_path: Path) -> None:
    mixes.write_texts(tmp_path)
    spec = mixes.spec(tokenizer=Bbpe(kind="bbpe", vocab=340))
    assert find_sources(spec, tmp_path, tmp_path / "data") == "the corpus is not built yet"
    sources = built(spec, tmp_path)
    assert len({one.tokenizer_sha256 for one in sources.corpora.values()}) == 1
    assert find_sources(spec, tmp_path, tmp_path / "data") == sources
    reader = load(tmp_path / "data" / sources.any.name / "tokenizer.json")
    for name, corpus in sources.corpora.items():
        first = reader.decode(tokens(tmp_path / "data", corpus, "train")[0:40].tolist())
        assert first.startswith(f"{name} ")
        assert reader.token_to_id(f"Ġ{name}") is not None
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert built(spec, tmp_path / "moved").ref == sources.ref
    assert not list((tmp_path / "data").glob(".*.part"))


def test_text_is_hashed_and_read_once_for_a_tokenizer_and_its_corpora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the build is interrupted after the tokenizer is there."""
    read, hashed = list[str](), list[str]()
    read_task, hash_one = shards._read, inputs.hash_one
    monkeypatch.setattr(shards, "_read", lambda task, report: (read.append("x"), read_task(task, report))[1])
    monkeypatch.setattr(
        inputs, "hash_one", lambda one, report: (hashed.append(one.path.name), hash_one(one, report))[1]
    )
    mixes.write_texts(tmp_path)
    spec = mixes.spec(tokenizer=Bbpe(kind="bbpe", vocab=340))
    for module, name in ((tokenizer, "trained"), (mix, "_hand_on")):
        with monkeypatch.context() as broken:
            broken.setattr(module, name, killed)
            with pytest.raises(KilledWorkerError):
                built(spec, tmp_path)
    sources = built(spec, tmp_path)
    assert (len(read), sorted(hashed)) == (3, ["code.jsonl", "math.jsonl", "web.jsonl"])
    assert not list((tmp_path / "data").glob(".*.part"))
    assert [corpus.reading.records for corpus in sources.corpora.values() if corpus.reading] == [60, 30, 20]


def killed(*_: object) -> None:
    raise KilledWorkerError("killed")


def test_text_that_changed_is_another_mix(tmp_path: Path) -> None:
    spec, sources = mixes.spec(tokenizer=Bbpe(kind="bbpe", vocab=340)), mixes.built(tmp_path)
    before = built(spec, tmp_path)
    with open(tmp_path / "code.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    found = find_sources(mixes.spec(), tmp_path, tmp_path / "data")
    assert found == f"code: {tmp_path}/code.jsonl has changed or was added since the corpus was built"
    assert built(mixes.spec(), tmp_path).ref != sources.ref
    after = built(spec, tmp_path)
    assert after.ref != before.ref
    assert load_sources(tmp_path / "data", before.ref.corpus) == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (with_paths(again="web.jsonl"), "web.jsonl is in the sources web and again; name it in one of them"),
        (with_paths(copy="copy.jsonl"), "the sources web and copy are the same text; remove one of them"),
        (with_paths(all="*.jsonl"), "code.jsonl is in the sources code and all; name it in one of them"),
        (with_paths(few="few.jsonl"), "few: of 1 different documents, "),
    ],
)
def test_a_source_that_is_there_twice_or_too_small_is_refused(
    tmp_path: Path, spec: DataSpec, message: str
) -> None:
    mixes.write_texts(tmp_path)
    shutil.copy(tmp_path / "web.jsonl", tmp_path / "copy.jsonl")
    (tmp_path / "few.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(CorpusError) as caught:
        built(spec, tmp_path)
    assert message in str(caught.value)


def test_a_source_that_is_refused_leaves_nothing_unfinished_of_the_others(tmp_path: Path) -> None:
    mixes.write_texts(tmp_path)
    (tmp_path / "few.jsonl").write_text('{"text": "a"}\n')
    parts = {
        name: MixPart(text=FileText(source="files", paths=(f"{name}.jsonl",)), epochs=1.0)
        for name in ("few", "code", "math")
    }
    asked = Bbpe(kind="bbpe", vocab=340)
    with pytest.raises(CorpusError, match="few: of 1 different documents"):
        built(mixes.spec(text=MixText(source="mix", parts=parts), tokenizer=asked), tmp_path)
    assert list((tmp_path / "data").glob(".*.part")) == []


def test_a_missing_file_is_refused_at_its_source(tmp_path: Path) -> None:
    mixes.write_texts(tmp_path)
    (tmp_path / "math.jsonl").unlink()
    for asked in (mixes.spec().tokenizer, Bbpe(kind="bbpe", vocab=340)):
        with pytest.raises(InputFileError) as caught:
            built(mixes.spec(tokenizer=asked), tmp_path)
        assert caught.value.field == "text.parts.math.text.paths.0"
