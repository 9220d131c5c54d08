"""A corpus is its contents, whatever its files are called and whenever they were written."""

import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest

from runtime.data.build import text as build_text
from specs.data import Corpus, DataSpec, FileText
from specs.data_inputs import find_corpus
from specs.document.files import load
from tests.support.commands import call, isoplan

BUDGET = """\
kind: budget
name: {name}
compute: 1e9 FLOP
evidence: {{kind: published, law: tiny}}
family: tiny
cluster: laptop
data:
  text: {{source: files, paths: [web.jsonl]}}
  tokenizer: {{kind: bytes}}
  held_out_one_in: 4
epochs: 1000
precision: fp32
"""


def write(folder: Path, documents: int, words: str = "the king of france", name: str = "a") -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(f'{{"text": "Doc {i} {words * 250}"}}\n' for i in range(documents))
    (folder / "web.jsonl").write_text(text)
    (folder / "b.yaml").write_text(BUDGET.format(name=name))
    return folder / "b.yaml"


def corpora(home: Path) -> dict[str, Corpus]:
    return {path.parent.name: load(path, Corpus) for path in (home / "data").glob("*/manifest.json")}


def refused(done: object, *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr  # type: ignore[attr-defined]
    line: str = done.stderr  # type: ignore[attr-defined]
    assert len(line.splitlines()) == 1
    for part in parts:
        assert part in line


def test_a_file_that_grew_is_another_corpus_and_no_plan_is_made_on_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 400)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    write(tmp_path, 500)
    refused(
        call("plan", "b.yaml", folder=tmp_path),
        "b.yaml:8:3: ",
        "web.jsonl has changed",
        "; run: isoplan data b.yaml",
    )
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert sorted(
        sum(split.documents for split in (one.train, one.held_out)) for one in corpora(tmp_path).values()
    ) == [
        400,
        500,
    ]
    assert call("plan", "b.yaml", folder=tmp_path).returncode == 0


def test_files_of_one_name_in_two_folders_are_two_corpora(tmp_path: Path) -> None:
    write(tmp_path / "u1", 400, name="one")
    write(tmp_path / "u2", 400, "mots en langue francaise", name="two")
    for folder in ("u1", "u2"):
        assert isoplan(tmp_path, "data", f"{folder}/b.yaml").returncode == 0
        assert call("plan", f"{folder}/b.yaml", folder=tmp_path).returncode == 0
    assert len({one.digest for one in corpora(tmp_path).values()}) == 2
    for name, words in (("one", b"king"), ("two", b"mots")):
        text = (tmp_path / "plans" / name / "plan.target.yaml").read_text()
        (used,) = (folder for folder in corpora(tmp_path) if folder in text)
        assert words in (tmp_path / "data" / used / "train.bin").read_bytes()


def test_a_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    write(tmp_path, 400)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    (tmp_path / "web.jsonl").unlink()
    for done in (isoplan(tmp_path, "data", "b.yaml"), call("plan", "b.yaml", folder=tmp_path)):
        refused(done, "b.yaml:8:33: ", "web.jsonl: there is no such file; correct the path")


def test_a_sealed_plan_is_not_taken_for_one_of_the_text_that_changed(tmp_path: Path) -> None:
    write(tmp_path, 400)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert call("plan", "b.yaml", folder=tmp_path).returncode == 0
    write(tmp_path, 500)
    refused(call("plan", "b.yaml", folder=tmp_path), "web.jsonl has changed")
    assert isoplan(tmp_path, "data", "plans/a/plan.target.yaml").returncode == 0, "its corpus is still there"
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    refused(
        call("plan", "b.yaml", folder=tmp_path),
        "b.yaml:8:3: plans/a/plan.target.yaml is sealed and was planned on other text",
        "give this budget another name",
    )
    for folder in (tmp_path / "data").iterdir():
        if folder.is_dir() and folder.name in (tmp_path / "plans/a/plan.target.yaml").read_text():
            folder.rename(tmp_path / "away")
    refused(
        isoplan(tmp_path, "data", "plans/a/plan.target.yaml"),
        "the plan was sealed on corpus ",
        "; restore the text",
    )


def test_times_decide_only_whether_a_file_is_hashed_again(tmp_path: Path) -> None:
    """The same content written again is the same corpus; other content with the same size and time is not."""
    write(tmp_path, 400)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    (name,) = corpora(tmp_path)
    file = tmp_path / "web.jsonl"
    before = file.stat()
    file.write_bytes(file.read_bytes())
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert list(corpora(tmp_path)) == [name]
    file.write_bytes(file.read_bytes().replace(b"king", b"duke"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(call("plan", "b.yaml", folder=tmp_path), "web.jsonl has changed")


@pytest.mark.parametrize("changed", ["another ending", "one more file", "one fewer"])
def test_files_that_come_go_or_change_kind_are_noticed(tmp_path: Path, changed: str) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path, 40, words=name)
        (tmp_path / "web.jsonl").rename(tmp_path / name)
    (tmp_path / "b.yaml").write_text(BUDGET.format(name="a").replace("web.jsonl", "'*.jsonl*'"))
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    data = DataSpec.model_validate_json(next(iter(corpora(tmp_path).values())).spec.canonical_json())
    assert isinstance(data.text, FileText)
    assert isinstance(find_corpus(data, tmp_path, tmp_path / "data"), Corpus)
    match changed:
        case "another ending":
            (tmp_path / "b.jsonl").rename(tmp_path / "b.jsonl.txt")
        case "one more file":
            (tmp_path / "c.jsonl").write_text('{"text": "more"}\n')
        case _:
            (tmp_path / "b.jsonl").unlink()
    found = find_corpus(data, tmp_path, tmp_path / "data")
    assert isinstance(found, str), "the corpus that was built is of other files"


def test_a_pattern_over_everything_does_not_read_what_commands_write(tmp_path: Path) -> None:
    """Nor does a folder: else each build or run would add files to its own text."""
    write(tmp_path, 60)
    for path in ("ledger.jsonl", f"runs/{'0' * 16}/metrics.jsonl", "plans/a/audit.target.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}\n")
    for path in ("'**/*.json*'", "."):
        (tmp_path / "b.yaml").write_text(BUDGET.format(name="a").replace("web.jsonl", path))
        for _ in range(2):
            assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert {one.inputs.files for one in corpora(tmp_path).values()} == {1}
    assert len(corpora(tmp_path)) == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"corpus": "x"}\n{"path": 1}\n', b"[]\n3"])
def test_an_index_that_is_damaged_is_made_again(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 400)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    (index,) = (tmp_path / "data" / ".index").iterdir()
    index.write_bytes(content)
    refused(call("plan", "b.yaml", folder=tmp_path), "the corpus is not built yet; run: isoplan data b.yaml")
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert call("plan", "b.yaml", folder=tmp_path).returncode == 0
    assert len(corpora(tmp_path)) == 1


@pytest.mark.parametrize("still_at_work", [False, True])
def test_what_a_killed_build_left_goes_when_the_text_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still_at_work: bool
) -> None:
    write(tmp_path, 60)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_text, "_join", killed)
        assert isoplan(tmp_path, "data", "b.yaml").returncode == 75
    assert len(list((tmp_path / "data").glob(".*.part"))) == 1
    write(tmp_path, 70)
    (left,) = (tmp_path / "data").glob(".*.part")
    with open(left.with_suffix(".lock"), "w") as lock:
        if still_at_work:  # another process
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert left.exists() == still_at_work


# --- a held-out split that is too small ---


def test_a_held_out_split_that_is_too_small_is_refused_with_a_share_that_is_enough(tmp_path: Path) -> None:
    """1.1 MB in 200 documents, the defaults: the last evaluation takes 512 sequences of 256 tokens."""
    write(tmp_path, 400, words="the king of france and his men")
    text = (tmp_path / "b.yaml").read_text().replace("held_out_one_in: 4", "held_out_one_in: 100")
    (tmp_path / "b.yaml").write_text(text)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    done = call("plan", "b.yaml", folder=tmp_path)
    refused(
        done,
        "b.yaml:10:20: ",
        " sequences of 256 tokens, but the evaluations of the family tiny take 512; write ",
    )
    share = done.stderr.rpartition("held_out_one_in: ")[2].partition(",")[0]
    (tmp_path / "b.yaml").write_text(text.replace("held_out_one_in: 100", f"held_out_one_in: {share}"))
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert call("plan", "b.yaml", folder=tmp_path).returncode == 0
    held_out = [
        one.held_out.tokens for one in corpora(tmp_path).values() if str(one.spec.held_out_one_in) == share
    ]
    assert held_out[0] < 2 * 512 * 256, "no more than is needed"


def test_a_plan_says_what_is_unusual_in_its_corpus(tmp_path: Path) -> None:
    """Ids alone, and no index."""
    (np.arange(900_000) * 7919 % 1009 % 33).astype("<u2").tofile(tmp_path / "p.bin")
    text = BUDGET.format(name="a").replace(
        "{source: files, paths: [web.jsonl]}", "{source: tokens, paths: [p.bin]}"
    )
    (tmp_path / "b.yaml").write_text(text.replace("{kind: bytes}", "{kind: ids, vocab: 33}"))
    assert "losses in nats per token, as the bytes" in isoplan(tmp_path, "data", "b.yaml").stdout
    plan = json.loads(call("plan", "b.yaml", "--json", folder=tmp_path).stdout)
    assert plan["bytes_per_token"] is None
    assert "losses are in nats per token, as the bytes of the text are not known" in plan["notes"]
    assert any(note.startswith("1 of 1 files have no index of their documents") for note in plan["notes"])


def test_text_too_short_to_hold_enough_out_is_refused_with_how_much_more(tmp_path: Path) -> None:
    write(tmp_path, 20)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    done = call("plan", "b.yaml", folder=tmp_path)
    refused(done, "b.yaml:8:3: ", " times as much text and write held_out_one_in: 2")
    more = float(done.stderr.partition("; provide ")[2].partition(" times")[0])
    write(tmp_path, round(20 * more))
    text = (tmp_path / "b.yaml").read_text().replace("held_out_one_in: 4", "held_out_one_in: 2")
    (tmp_path / "b.yaml").write_text(text)
    assert isoplan(tmp_path, "data", "b.yaml").returncode == 0
    assert call("plan", "b.yaml", folder=tmp_path).returncode == 0
