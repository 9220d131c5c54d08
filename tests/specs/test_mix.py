"""Weights of a mix: what may be written in a budget and in a run spec, and which line is refused with what to write."""

import json
from pathlib import Path

import pytest

from specs.budget import Budget
from specs.document.files import load
from specs.mix import Mix, MixPhase
from specs.run import RunSpec
from tests.specs.test_bad_input import refusal
from tests.support import mixes, samples

BUDGET = """\
kind: budget
name: mixed
compute: 2e10 FLOP
evidence: {kind: published, law: tiny}
family: tiny
cluster: laptop
data:
  text:
    source: mix
    parts:
      web: {text: {source: files, paths: [web.jsonl]}, share: 0.7}
      code: {text: {source: installed}, share: 0.3}
    phases:
      - {start: milestone 1, epochs: {web: 1, code: 4}}
    evaluation: {web: 0.5, code: 0.5}
  tokenizer: {kind: bytes}
"""


def test_a_mix_is_read_and_each_source_is_a_text_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(BUDGET.replace("share: 0.3}", "share: 0.3, held_out_one_in: 7}"))
    data = load(path, Budget).data
    assert {name: part.held_out_one_in for name, part in data.parts().items()} == {"web": 50, "code": 7}
    assert (
        data.parts()["web"].fingerprint()
        == mixes.spec().parts()["web"].model_copy(update={"held_out_one_in": 50}).fingerprint()
    )


# name: (what to replace, by what, line:column, what is wrong, what to write)
REFUSED: dict[str, tuple[str, str, str, str, str]] = {
    "one source": (
        "      code: {text: {source: installed}, share: 0.3}\n",
        "",
        "11:7",
        "the number of entries is 1",
        "2 or more",
    ),
    "more than all numbers": (
        "epochs: {web: 1,",
        "epochs: {web: 1e300,",
        "14:44",
        "1e+300 is too large",
        "1000000 or less",
    ),
    "two kinds": (
        "share: 0.3",
        "epochs: 2",
        "11:7",
        "web is weighted by share and code by epochs",
        "the same for all",
    ),
    "both": (
        "share: 0.3",
        "share: 0.3, epochs: 2",
        "11:7",
        "code has share and epochs",
        "one of share and epochs",
    ),
    "none": (", share: 0.3", "", "11:7", "code has no weight", "write one of share and epochs"),
    "too little": ("share: 0.3", "share: 0.2", "11:7", "the shares add up to 0.9", "shares that add up to 1"),
    "negative": ("share: 0.3", "share: -0.3", "12:48", "-0.3 is too small", "write 0 or more"),
    "unknown source": (
        "code: 4",
        "codes: 4",
        "14:7",
        "there is no source codes",
        "names of parts: web, code",
    ),
    "unknown in evaluation": (
        "web: 0.5, ",
        "wbe: 0.5, ",
        "15:17",
        "there is no source wbe",
        "names of parts",
    ),
    "no weights in a phase": (
        ", epochs: {web: 1, code: 4}",
        "",
        "14:9",
        "a phase has weights of one kind",
        "share and",
    ),
    "all zero in a phase": (
        "{web: 1, code: 4}",
        "{web: 0}",
        "14:9",
        "all weights are 0",
        "one that is larger",
    ),
    "a source nobody reads": (
        "share: 0.7}\n      code: {text: {source: installed}, share: 0.3}",
        "share: 1.0}\n      code: {text: {source: installed}, share: 0.0}\n"
        "      math: {text: {source: installed}, share: 0.0}",
        "9:5",
        "no phase reads math",
        "remove it, or give it a weight above 0",
    ),
    "a start beyond the end": ("milestone 1", "1.0", "14:17", "1.0 is too large", "write a number below 1"),
    "a start of another kind": ("milestone 1", "step 90", "14:17", "'step 90' does not match", "milestone 1"),
    "a name with a capital": ("      web:", "      Web:", "11:7", "'Web' is no name for this", "lower case"),
    "a mix in a mix": (
        "source: installed",
        "source: mix",
        "12:29",
        "'mix' is not allowed here",
        "installed, files",
    ),
    "partly declared": (
        "{source: installed}",
        "{source: declared, describe: x, unique: 1M tokens}",
        "11:7",
        "code is only declared, and web is not",
        "declare all sources",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_budget_is_refused_at_its_line(name: str, tmp_path: Path) -> None:
    find, write, place, wrong, remedy = REFUSED[name]
    assert find in BUDGET
    path = tmp_path / "b.yaml"
    path.write_text(BUDGET.replace(find, write, 1))
    message = refusal(lambda: load(path, Budget))
    assert message.startswith(f"{path}:{place}: ")
    what, _, todo = message.partition("; ")
    assert wrong in what
    assert remedy in todo


RUN = samples.run(
    mix=Mix(
        phases=(
            MixPhase(from_step=0, samples={"web": 7, "code": 3}),
            MixPhase(from_step=50, samples={"web": 1}),
        ),
        evaluation={"web": 1, "code": 1},
    )
)


@pytest.mark.parametrize(
    ("find", "write", "wrong"),
    [
        (
            '"from_step": 50',
            '"from_step": 0',
            "phases begin at [0, 0]; write 0 for the first, and increasing steps",
        ),
        ('"from_step": 50', '"from_step": 100', "begins at step 100, but the run has 100; write at most 99"),
        (
            '"web": 7, "code": 3',
            '"web": 7, "math": 3',
            "evaluation does not name math; write its weight, 0 or more",
        ),
        ('"web": 7, "code": 3', '"web": 7', "no phase reads code; remove it, or give it samples in a phase"),
        ('"web": 7, "code": 3', '"web": 0, "code": 0', "a period has 0 samples; write 1 to 100,000 in all"),
        (
            '"web": 7, "code": 3',
            '"web": 99999, "code": 3',
            "a period has 100,002 samples; write 1 to 100,000 in all",
        ),
        (
            '"web": 1, "code": 1',
            '"web": 0, "code": 0',
            "the weights of evaluation must add up to 1 to 100,000",
        ),
        (
            '"sequences": 16',
            '"sequences": 1',
            "fewer sequences than the mix has sources; write 2 sequences or more",
        ),
    ],
)
def test_a_run_on_a_mix_is_refused_with_what_to_write(
    find: str, write: str, wrong: str, tmp_path: Path
) -> None:
    text = json.dumps(RUN.plain())
    assert find in text
    (tmp_path / "run.json").write_text(text.replace(find, write, 1))
    assert wrong in refusal(lambda: load(tmp_path / "run.json", RunSpec))


def test_a_run_without_a_mix_is_stored_as_it_was_before_there_were_any() -> None:
    """So its fingerprint is the same, and so are its folder and its line in the ledger."""
    assert "mix" not in samples.run().plain()
    assert samples.run().fingerprint() == "353aac1f53c2006b"
    assert RunSpec.model_validate_json(RUN.canonical_json()) == RUN
