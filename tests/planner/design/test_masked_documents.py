"""A budget whose documents stay apart: what attention sees of this text counts in M, and so in everything after it."""

from pathlib import Path
from typing import Any

import pytest

from planner.evidence.usable_runs import differences
from planner.plan import make_plan
from specs.budget import Budget
from specs.document.files import DocumentError, load
from specs.document_lengths import LengthBin, mean_attended_tokens
from specs.plan import Plan
from tests.support.corpora import write_corpus
from tests.support.planning import inputs_of

BUDGET = """\
kind: budget
name: apart
compute: 1e12 FLOP
evidence: {kind: published, law: tiny}
family: tiny
cluster: laptop
data:
  text: {source: files, paths: [text.jsonl]}
  tokenizer: {kind: bytes}
precision: fp32
"""
LENGTHS = (LengthBin(documents=1000, tokens=40_000), LengthBin(documents=10, tokens=90_000))


def planned(folder: Path, documents: str, **corpus: Any) -> Plan:
    path = folder / "apart.yaml"
    path.write_text(f"{BUDGET}documents: {documents}\n")
    write_corpus(load(path, Budget).data, folder, **corpus)
    return make_plan(inputs_of(path, folder / "plans", folder / "data"))


def test_attention_counts_what_it_sees(tmp_path: Path) -> None:
    apart, joined = (
        planned(tmp_path, how, document_lengths=LENGTHS).runs[-1] for how in ("masked", "joined")
    )
    run, model = apart.run, apart.run.model
    seen = mean_attended_tokens(LENGTHS, model.context)
    assert seen < model.context
    assert run.documents == "masked"
    assert model.mean_attended_tokens == seen
    assert model.flop_per_token == int(6 * model.block_params + 12 * model.layers * model.width * seen)
    same = model.model_copy(update={"mean_attended_tokens": None})
    assert same.mfu_flop_per_token - model.mfu_flop_per_token == pytest.approx(
        6 * model.layers * model.width * (model.context - seen), abs=1
    )
    assert run.compute_flop == float(model.flop_per_token) * run.tokens
    assert run.compute_flop == pytest.approx(1e12, rel=0.02)
    assert joined.run.model.flop_per_token != model.flop_per_token
    assert "mean_attended_tokens" not in joined.run.model.plain()
    assert "documents masked, not joined" in differences(run, lambda one: joined.run)


def test_without_lengths_it_is_refused_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        DocumentError, match=r"apart.yaml:11:12: no token ends the documents of this text, .*joined"
    ):
        planned(tmp_path, "masked", document_lengths=())
    text = (tmp_path / "apart.yaml").read_text()
    declared = "{source: declared, describe: some text, unique: 10B tokens}"
    (tmp_path / "apart.yaml").write_text(text.replace("{source: files, paths: [text.jsonl]}", declared))
    with pytest.raises(
        DocumentError, match=r"apart.yaml:11:12: how long the documents are is known of built corpora"
    ):
        inputs_of(tmp_path / "apart.yaml", tmp_path / "plans", tmp_path / "data")
