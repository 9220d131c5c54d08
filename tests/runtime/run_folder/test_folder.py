from pathlib import Path

import pytest

from runtime.run_folder.folder import RunFolder, differing_fields, open_folder
from specs.document.files import DocumentError
from specs.document.write import append_line
from specs.record import End, Incident, Order, StepLine
from tests.support import samples


def order(title: str = "a run") -> Order:
    run = samples.run().fingerprint()
    return Order(
        run=run, title=title, seal=None, execution=samples.execution(), peak_flop_per_s=None, curve=None
    )


def test_a_folder_is_named_by_its_run_and_reads_back_what_was_written(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "runs", samples.run(), order())
    assert folder.path == tmp_path / "runs" / samples.run().fingerprint()
    assert folder.run() == samples.run()
    assert folder.order() == order()
    assert folder.records() == folder.metrics() == folder.evals() == folder.timing() == []
    assert folder.end() is None


def test_opening_again_keeps_the_run_and_takes_the_new_order(tmp_path: Path) -> None:
    before = open_folder(tmp_path, samples.run(), order()).run_json.stat().st_mtime_ns
    folder = open_folder(tmp_path, samples.run(), order("another title"))
    assert folder.run_json.stat().st_mtime_ns == before
    assert folder.order().title == "another title"


def test_a_folder_of_another_run_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    folder = open_folder(tmp_path, samples.run(), order())
    other = samples.run(seed=7, model=samples.model(width=128))
    folder.run_json.write_text(other.canonical_json())
    with pytest.raises(DocumentError, match=r"which differs in model\.width, seed; move .* away"):
        open_folder(tmp_path, samples.run(), order())


def test_fields_that_only_one_has_differ() -> None:
    assert differing_fields({"a": 1, "b": {"c": 1}}, {"b": {"c": 1, "d": 2}}) == ["a", "b.d"]
    assert differing_fields({"a": [1, 2]}, {"a": [1, 3]}) == ["a"]


def test_a_run_has_ended_when_its_last_record_is_the_end(tmp_path: Path) -> None:
    folder = open_folder(tmp_path, samples.run(), order())
    incident = Incident(time=1.0, step=3, what="interrupted", message="saved")
    append_line(folder.record_jsonl, incident)
    assert folder.end() is None
    end = End(time=2.0, step=100, loss=1.5, weights_sha256="a" * 64)
    append_line(folder.record_jsonl, end)
    assert folder.records() == [incident, end]
    assert folder.end() == end


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    line = StepLine(step=1, tokens=8, loss=2.5, grad_norm=1.0, lr=0.1)
    folder.metrics_jsonl.write_text(line.canonical_json() + "\n" + line.canonical_json()[:20])
    assert folder.metrics() == [line]


def test_a_line_that_is_no_line_is_refused_with_its_place(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.evals_jsonl.write_text('{"step": 1, "tokens": 8, "loss": 2.5, "sequences": 4}\n{"step": 0}\n')
    with pytest.raises(DocumentError, match=r"evals\.jsonl:2:"):
        folder.evals()
