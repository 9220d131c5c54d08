import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from model.kernels import choose
from model.mesh import Axis, Mesh
from model.parameters import Piece
from model.transformer import Stage
from model.zero import AdamW, Box
from runtime.checkpoint.export_hf import Export, export, load_tokenizer
from runtime.checkpoint.format import CheckpointError, commit, load_checkpoint, read_manifest, stage, weights
from runtime.checkpoint.import_hf import import_weights, run_from
from runtime.checkpoint.imported_weights import check_imported_weights
from runtime.data.batches import RunData, Splits
from runtime.data.build.corpus import build
from runtime.data.corpus import load_corpus, tokens
from runtime.run_folder.folder import RunFolder
from specs.checkpoint_retention import Retention
from specs.data import Bbpe, Bytes, Corpus, CorpusRef, DataSpec, FileText
from specs.document.files import DocumentError, load
from specs.document.write import write_yaml
from specs.exit_codes import OK
from specs.run import Imported, RunSpec
from tests.support import samples
from tests.support.commands import isoplan
from tests.support.training import opened, tiny_run, train_here

QUIET = Console(quiet=True)
TEXTS = [f"Document {i} says «{i * 7919 % 1009}» things of naïve {i}, ∑ and 日本. " * 30 for i in range(40)]
HARD = "\0 <|document|> \t  naïve ∑ 日本\r\n\n x\U0001f600 Ā the the  the"


def corpus_of(home: Path, tokenizer: Bytes | Bbpe) -> Corpus:
    (home / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    text = FileText(source="files", paths=("text.jsonl",))
    return build(DataSpec(text=text, tokenizer=tokenizer, held_out_one_in=4), home, home / "data", QUIET)


def trained(
    home: Path, tokenizer: Bytes | Bbpe | None = None, rows: int | None = None, **changes: Any
) -> RunFolder:
    corpus = corpus_of(home, tokenizer or Bytes(kind="bytes"))
    vocab = {"vocab": rows or corpus.rows}
    data = CorpusRef(corpus=corpus.name, digest=corpus.digest)
    model = samples.model(width=32, heads=2, kv_heads=1, ffn=48, context=32, init_std=0.1, **vocab)
    folder = opened(home, tiny_run(data, model=model, **changes))
    assert train_here(folder, home / "data") == OK
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("export")
    trained(home)
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> RunFolder:
    return RunFolder(next((home / "runs").iterdir()))


def our_logits(folder: RunFolder, step: int, rows: torch.Tensor) -> torch.Tensor:
    """Those of the checkpoint, computed by the engine in the run's precision."""
    spec = folder.run()
    kernels = choose("auto", "cpu")
    stage = Stage(spec.model, precision=spec.precision, mesh=Mesh(), kernels=kernels, device="cpu")
    optimizer = AdamW(stage, Axis(), spec.optim)
    load_checkpoint(folder.checkpoints / f"step-{step:08d}", optimizer.boxes())
    optimizer.sync_parameters()
    return stage.logits(rows).detach().double()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 0.03)])
@pytest.mark.parametrize(
    "tokenizer", [Bytes(kind="bytes"), Bbpe(kind="bbpe", vocab=300)], ids=["bytes", "bbpe"]
)
def test_transformers_gives_the_ids_and_logits_of_the_run(
    tmp_path: Path, tokenizer: Bytes | Bbpe, precision: str, bound: float
) -> None:
    """The bounds are those of test_hf.py."""
    transformers = pytest.importorskip("transformers")
    folder = trained(tmp_path, tokenizer, precision=precision)
    out = export(folder, tmp_path / "data", None, tmp_path / "out", QUIET)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    reader = transformers.AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == "LlamaForCausalLM"
    corpus = load(next((tmp_path / "data").glob("*/manifest.json")), Corpus)
    for text in [HARD, *TEXTS[:3]]:
        ids = load_tokenizer(corpus, tmp_path / "data").encode(text, add_special_tokens=False).ids
        assert reader(text)["input_ids"] == (list(text.encode()) if isinstance(tokenizer, Bytes) else ids)
        assert reader.decode(ids) == text
    rows = torch.from_numpy(tokens(tmp_path / "data", corpus, "held_out")[:64].astype(np.int64)).view(2, 32)
    found, expected = model(rows).logits.detach().double(), our_logits(folder, 20, rows)
    assert float((found - expected).norm() / expected.norm()) < bound
    assert model.config.eos_token_id == 0


@pytest.mark.slow
def test_rows_without_a_token_are_never_generated(tmp_path: Path) -> None:
    """A bare run spec whose model has more rows than its corpus has tokens."""
    transformers = pytest.importorskip("transformers")
    console = Console(record=True, width=200, file=io.StringIO())
    run = trained(tmp_path, Bbpe(kind="bbpe", vocab=300), rows=320)
    out = export(run, tmp_path / "data", None, tmp_path / "out", console)
    vocab = load_corpus(tmp_path / "data", run.run().data.corpus).vocab
    assert console.export_text().splitlines()[-1] == (
        f"{320 - vocab} of the model's 320 rows have no token; generation_config.json suppresses them"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == 0
    found = model.generate(
        torch.tensor([[5]]),
        attention_mask=torch.ones(1, 1),
        pad_token_id=0,
        max_new_tokens=24,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for scores in found.scores:
        assert torch.isneginf(scores[0, vocab:]).all()
        assert torch.isfinite(scores[0, :vocab]).all()


def test_the_ids_of_training_are_those_of_the_exported_tokenizer(tmp_path: Path) -> None:
    """Text that spells the separator included."""
    corpus = corpus_of(tmp_path, Bbpe(kind="bbpe", vocab=300))
    stream = tokens(tmp_path / "data", corpus, "held_out").tolist()
    reader = load_tokenizer(corpus, tmp_path / "data")
    documents = [reader.decode(list(part)) for part in split_at(stream, 0)]
    assert sorted(documents) == sorted(set(documents) & set(TEXTS))
    assert [reader.encode(text).ids for text in documents] == split_at(stream, 0)


def split_at(stream: list[int], separator: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in stream:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def test_a_folder_says_which_run_and_step_it_is(home: Path, run: RunFolder, tmp_path: Path) -> None:
    out = export(run, home / "data", None, tmp_path / "out", QUIET)
    said = Export.model_validate_json((out / "isoplan.json").read_bytes())
    end = run.end()
    assert end is not None
    assert (said.run, said.step, said.weights_sha256) == (run.run(), 20, end.weights_sha256)


def test_exporting_twice_is_free_and_gives_the_same_bytes(home: Path, run: RunFolder, tmp_path: Path) -> None:
    one = export(run, home / "data", 20, tmp_path / "one", QUIET)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in one.iterdir()}
    assert export(run, home / "data", 20, tmp_path / "one", QUIET) == one
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in one.iterdir()} == before
    two = export(run, home / "data", 20, tmp_path / "two", QUIET)
    assert {path.name: path.read_bytes() for path in two.iterdir()} == {n: b for n, (_, b) in before.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_checkpoints_of_any_layout_give_the_same_export(home: Path, run: RunFolder, tmp_path: Path) -> None:
    """Boxes cut in rows and columns, as tensor-parallel ranks and their owners of rows hold them."""
    other = RunFolder(tmp_path / run.path.name)
    other.path.mkdir()
    shutil.copy(run.run_json, other.run_json)
    theirs = run.checkpoints / "step-00000020"
    boxes = [cut(name, tensor) for name, tensor in weights(theirs)]
    for rank in range(6):
        stage(other.checkpoints, 20, rank, [held[rank] for held in boxes if rank < len(held)])
    commit(other.checkpoints, read_manifest(theirs), 6, Retention())
    one = export(run, home / "data", 20, tmp_path / "one", QUIET)
    two = export(other, home / "data", 20, tmp_path / "two", QUIET)
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }


def cut(name: str, tensor: torch.Tensor) -> list[Box]:
    """The tensor in six boxes, or a vector in three."""
    rows, cols = tensor.shape[0], tensor.shape[1] if tensor.dim() == 2 else 1
    found = []
    for top, bottom in ((0, 3), (3, 4), (4, rows)):
        for left, right in ((0, cols // 3), (cols // 3, cols)) if cols > 1 else ((0, 1),):
            window = (slice(top, bottom), slice(left, right))[: tensor.dim()]
            part = tensor[window]
            piece = Piece(name, tuple(tensor.shape), top, left, bottom - top, right - left)
            found.append(Box(piece, part, torch.zeros_like(part), torch.zeros_like(part)))
    return found


def test_what_is_in_the_way_stays(home: Path, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(DocumentError, match="not the export of this run and step"):
        export(run, home / "data", None, tmp_path / "out", QUIET)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_a_damaged_or_absent_checkpoint_is_not_exported(home: Path, run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(tmp_path / run.path.name)
    shutil.copytree(run.path, copy.path)
    with pytest.raises(DocumentError, match=r"no checkpoint of step 7; its checkpoints: 20"):
        export(copy, home / "data", 7, tmp_path / "out", QUIET)
    file = copy.checkpoints / "step-00000020" / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its digest differs"):
        export(copy, home / "data", 20, tmp_path / "out", QUIET)
    with pytest.raises(DocumentError, match="is damaged: its digest differs"):
        export(copy, home / "data", None, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


# --- import ---


@pytest.fixture(scope="module")
def exported(home: Path, run: RunFolder) -> Path:
    return export(run, home / "data", None, home / "exported", QUIET)


def test_imported_weights_bear_the_digest_that_the_run_ended_with(
    run: RunFolder, exported: Path, tmp_path: Path
) -> None:
    stored = import_weights(exported, tmp_path / "data", QUIET)
    end = run.end()
    assert end is not None
    assert stored.manifest.sha256 == end.weights_sha256
    assert stored.folder == tmp_path / "data" / "weights" / end.weights_sha256[:16]
    assert import_weights(exported, tmp_path / "data", QUIET) == stored
    assert [path.name for path in (tmp_path / "data" / "weights").iterdir()] == [stored.folder.name]


def from_import(home: Path, exported: Path, **changes: Any) -> RunSpec:
    """A run that starts from the exported weights in this workspace."""
    stored = import_weights(exported, home / "data", QUIET)
    corpus = load(next((home / "data").glob("*/manifest.json")), Corpus)
    plain = {
        "data": CorpusRef(corpus=corpus.name, digest=corpus.digest),
        "model": samples.model(context=32),
        "seed": 9,
    }
    path = home / "run.yaml"
    write_yaml(path, tiny_run(**(plain | changes)))
    return run_from(stored, path, load(path, RunSpec), home / "data")


def test_a_run_starts_from_imported_weights(
    run: RunFolder, home: Path, exported: Path, tmp_path: Path
) -> None:
    """Its first loss is the last one of the run they are from, not that of fresh weights; another run all the same."""
    shutil.copytree(home / "data", tmp_path / "data")
    spec = from_import(tmp_path, exported)
    assert spec.model == run.run().model
    assert spec.parent == Imported(sha256=run.end().weights_sha256)  # type: ignore[union-attr]
    assert spec.fingerprint() != run.run().fingerprint()
    folder = opened(tmp_path, spec)
    assert train_here(folder, tmp_path / "data") == OK
    first, last = folder.metrics()[0].loss, run.metrics()[-1].loss
    fresh = run.metrics()[0].loss
    assert abs(first - last) < 0.2 * (fresh - last)


def test_its_first_checkpoint_without_steps_has_those_weights_bit_for_bit(
    home: Path, exported: Path, tmp_path: Path
) -> None:
    from runtime.checkpoint.format import weights_sha256
    from runtime.train.async_checkpoint import AsyncCheckpointer
    from runtime.train.resume import manifest_of, resume_from_latest
    from runtime.train.worker import join_process_group

    shutil.copytree(home / "data", tmp_path / "data")
    spec = from_import(tmp_path, exported)
    folder = opened(tmp_path, spec)
    rows = Splits(np.zeros(1000, np.uint8), np.zeros(1000, np.uint8))
    execution = folder.order().execution
    with join_process_group(spec, execution, 0, 0, RunData(spec, {"": rows})) as worker:
        resumed = resume_from_latest(worker, spec, folder, tmp_path / "data")
        assert (resumed.step, resumed.damaged) == (0, {})
        checkpointer = AsyncCheckpointer(folder.checkpoints, worker, execution.retention)
        checkpointer.start(manifest_of(worker, spec, resumed, 1, None, resumed.guard))
        assert checkpointer.finish() == ""
    stored = import_weights(exported, tmp_path / "data", QUIET)
    assert weights_sha256(folder.checkpoints / "step-00000001") == stored.manifest.sha256


def test_weights_that_are_gone_or_cut_or_of_another_shape_are_refused(
    home: Path, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    spec = from_import(tmp_path, exported)
    check_imported_weights(spec, tmp_path / "data")
    wide = spec.model_copy(update={"model": samples.model(context=32)})
    with pytest.raises(DocumentError, match="a different shape"):
        check_imported_weights(wide, tmp_path / "data")
    file = next((tmp_path / "data" / "weights").glob("*/model.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DocumentError, match="not the weights that the run starts from"):
        check_imported_weights(spec, tmp_path / "data")
    shutil.rmtree(file.parent)
    with pytest.raises(DocumentError, match="import them with: isoplan import"):
        check_imported_weights(spec, tmp_path / "data")


def test_a_longer_context_and_another_tokenizer_are_refused_at_their_line(
    home: Path, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    with pytest.raises(DocumentError, match="at most 32 positions, not 64"):
        from_import(tmp_path, exported, model=samples.model(context=64))
    other = corpus_of(tmp_path, Bbpe(kind="bbpe", vocab=300))
    data = CorpusRef(corpus=other.name, digest=other.digest)
    with pytest.raises(DocumentError, match=r"run\.yaml:.*has another tokenizer"):
        from_import(tmp_path, exported, data=data)


def test_the_verbs(home: Path, run: RunFolder, tmp_path: Path) -> None:
    """Out of one workspace and into another, as typed."""
    for name in ("data", "runs"):
        shutil.copytree(home / name, tmp_path / name)
    fingerprint = run.path.name
    folder = f"exports/{fingerprint}/step-00000020"
    assert json.loads(isoplan(tmp_path, "export", fingerprint, "--json").stdout) == {"folder": folder}
    write_yaml(tmp_path / "next.yaml", run.run().model_copy(update={"seed": 3}))
    done = isoplan(tmp_path, "import", folder, "--run", "next.yaml")
    assert "next: run next.imported.yaml" in done.stdout, done.stderr
    assert load(tmp_path / "next.imported.yaml", RunSpec).parent is not None
    done = isoplan(tmp_path, "run", "next.imported.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr


def test_the_verbs_refuse_in_one_line(home: Path, run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    for words in (("export", "nothing"), ("export", run.path, "--step", 3), ("import", "data")):
        done = isoplan(tmp_path, *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
