"""Training curves are read from what people export, and what is wrong with them is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from specs.document.parse import DocumentError
from specs.run_table.curves import CurveTable, read_curves
from specs.run_table.quantities import is_held_out
from tests.support.paths import ROOT

HEAD = ("run", "tokens", "val_loss")
POINTS = [("a", 1e9, 4.0), ("a", 2e9, 3.5), ("a", 4e9, 3.25), ("b", 1e9, 4.5), ("b", 2e9, 4.25)]


def csv(*rows: tuple[object, ...]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def read(tmp_path: Path, text: str, suffix: str = ".csv", **options: object) -> CurveTable:
    path = tmp_path / f"curves{suffix}"
    path.write_text(text)
    return read_curves(path, **options)  # type: ignore[arg-type]


def has_the_points(table: CurveTable) -> bool:
    found = [
        (run, tokens, loss)
        for run, curve in table.curves.items()
        for tokens, loss in zip(curve.tokens if curve.tokens is not None else (), curve.loss, strict=True)
    ]
    return found == POINTS


FILES = {
    "plain": (".csv", csv(HEAD, *POINTS)),
    "out of order": (".csv", csv(HEAD, *POINTS[2::-1], *POINTS[3:])),
    "runs in turn": (".csv", csv(HEAD, POINTS[0], *POINTS[3:], *POINTS[1:3])),
    "points twice": (".csv", csv(HEAD, *POINTS, *POINTS)),
    "an untrained model": (".csv", csv(HEAD, ("a", 0, 11.2), *POINTS)),
    "decimal commas": (".csv", csv(HEAD, *POINTS).replace(",", ";").replace(".", ",")),
    "JSON lines": (".jsonl", "\n".join(json.dumps(dict(zip(HEAD, row, strict=True))) for row in POINTS)),
    "a history with gaps": (
        ".csv",
        csv(
            ("Name", "_step", "tokens", "train/loss", "eval/loss", "lr"),
            *(
                row
                for at, (run, tokens, loss) in enumerate(POINTS)
                for row in (
                    (run, 2 * at + 1, tokens - 5e8, 9.9, "", 1e-3),
                    (run, 2 * at + 2, tokens, "", loss, ""),
                )
            ),
        ),
    ),
    "the first evaluations are early": (
        ".csv",
        csv(HEAD, *POINTS).replace("a,1000000000.0,4.0", "a,10,7\na,1e9,4"),
    ),
}


WANDB = """"Step","a - eval/loss","a - eval/loss__MIN","a - eval/loss__MAX","b - eval/loss","b - eval/loss__MIN"
100,4.0,4.0,4.0,4.5,4.5
200,3.5,3.5,3.5,,
300,,,,4.25,4.25
"""


def test_a_chart_that_wandb_exported_has_a_column_for_each_run(tmp_path: Path) -> None:
    table = read(tmp_path, WANDB)
    assert {run: curve.loss.tolist() for run, curve in table.curves.items()} == {
        "a": [4, 3.5],
        "b": [4.5, 4.25],
    }
    steps = table.curves["b"].steps
    assert steps is not None
    assert steps.tolist() == [100, 300]
    assert table.curves["b"].line.tolist() == [2, 4]
    assert (table.held_out, table.notes[0]) == (True, "a column for each of 2 runs is read")
    mapped = read(tmp_path, WANDB.replace("eval/loss", "eval/ce"), mapping={"loss": "eval/ce"})
    assert list(mapped.curves) == ["a", "b"]


def test_a_chart_of_several_losses_needs_to_know_which(tmp_path: Path) -> None:
    both = WANDB.replace("b - eval", "b - train")
    with pytest.raises(
        DocumentError, match=r"hold 'eval/loss' and 'train/loss'; export one of them, or map it"
    ):
        read(tmp_path, both)
    assert read(tmp_path, both, mapping={"loss": "train/loss"}).held_out is False
    with pytest.raises(DocumentError) as caught:
        read(tmp_path, WANDB.replace("4.25,4.25", "-4.25,4.25"))
    assert f"{tmp_path / 'curves.csv'}:4:8: loss ('eval/loss') is '-4.25'" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_curves_are_read_from_what_people_export(tmp_path: Path, name: str) -> None:
    suffix, text = FILES[name]
    table = read(tmp_path, text, suffix)
    if name == "the first evaluations are early":
        assert table.curves["a"].tokens is not None
        assert table.curves["a"].tokens.tolist() == [10, 1e9, 2e9, 4e9]
    else:
        assert has_the_points(table)
    assert table.held_out is True


def test_rows_without_a_loss_are_counted(tmp_path: Path) -> None:
    table = read(tmp_path, FILES["a history with gaps"][1])
    assert table.notes[0] == "5 rows without a loss ('eval/loss') skipped"
    assert table.curves["b"].line.tolist() == [9, 11]
    assert table.columns == {"tokens": "tokens", "steps": "_step", "loss": "eval/loss", "name": "Name"}


def test_a_curve_without_a_column_of_runs_is_one_run(tmp_path: Path) -> None:
    table = read(tmp_path, csv(("tokens", "loss"), (1e9, 3.5), (2e9, 3.0)))
    assert list(table.curves) == [""]
    assert (table.points, table.held_out) == (2, None)


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(zip(HEAD, zip(*POINTS, strict=True), strict=True)) | {"note": ["x"] * len(POINTS)}
    parquet.write_table(
        pyarrow.table({name: list(cells) for name, cells in columns.items()}), tmp_path / "c.parquet"
    )
    assert has_the_points(read_curves(tmp_path / "c.parquet"))


def test_runs_named_by_other_types_than_text_are_told_apart(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = [["a", "b"], ["a", "b"], ["c"], ["c"]]
    points = {"run": names, "step": [1000, 2000] * 2, "val_loss": [4.0, 3.5, 3.9, 3.4]}
    parquet.write_table(pyarrow.table(points), tmp_path / "c.parquet")
    assert list(read_curves(tmp_path / "c.parquet").curves) == ["['a', 'b']", "['c']"]
    rows = '{"run": 1, "step": 9, "val_loss": 3}\n{"run": true, "step": 9, "val_loss": 4}\n'
    (tmp_path / "c.jsonl").write_text(rows)
    assert list(read_curves(tmp_path / "c.jsonl").curves) == ["1", "True"]


def test_steps_are_tokens_where_a_batch_is_known(tmp_path: Path) -> None:
    steps = [("step", "batch_size", "seq_len", "loss"), (100, 8, 1024, 4.0), (200, 8, 1024, 3.5)]
    known = read(tmp_path, csv(*steps)).curves[""]
    assert known.tokens is not None
    assert known.tokens.tolist() == [100 * 8192, 200 * 8192]
    alone = read(tmp_path, csv(*((row[0], row[3]) for row in steps))).curves[""]
    assert alone.tokens is None
    assert alone.steps is not None
    assert alone.steps.tolist() == [100, 200]


def test_tokens_of_the_whole_run_in_each_row_are_not_the_place_of_a_point(tmp_path: Path) -> None:
    rows = [("run", "tokens", "step", "loss"), ("a", 8e9, 1, 4.0), ("a", 8e9, 2, 3.5), ("b", 4e9, 1, 4.2)]
    curve = read(tmp_path, csv(*rows)).curves["a"]
    assert curve.tokens is None
    assert curve.steps is not None
    assert curve.steps.tolist() == [1, 2]


def test_units_are_those_of_a_table_of_runs(tmp_path: Path) -> None:
    text = csv(("tokens (B)", "val bpb"), (1, 1.0), (2, 0.9))
    table = read(tmp_path, text, bytes_per_token=4.0)
    assert table.loss_unit == "bits/byte"
    assert table.curves[""].loss.tolist() == pytest.approx([4 * np.log(2), 3.6 * np.log(2)])
    assert table.curves[""].tokens is not None
    assert table.curves[""].tokens.tolist() == [1e9, 2e9]


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("val_loss", True), ("eval/loss", True), ("C4 Eval Loss", True), ("held_out_loss", True), ("valLoss", True),
        ("train_loss", False), ("training loss", False), ("train/loss", False), ("loss_train", False),
        ("loss", None), ("smooth_loss", None), ("wiki/nll", None),
    ],
)  # fmt: skip
def test_the_name_of_a_loss_says_whether_it_is_of_held_out_text(name: str, held_out: bool | None) -> None:
    assert is_held_out(name) is held_out


def test_a_training_loss_is_read_as_such(tmp_path: Path) -> None:
    rows = [("step", "train_loss"), (1, 4.0), (2, 3.5)]
    assert read(tmp_path, csv(*rows)).held_out is False
    both = [("step", "train_loss", "val_loss"), (1, 4.0, ""), (2, 3.5, 3.6)]
    assert read(tmp_path, csv(*both)).held_out is True
    assert read(tmp_path, csv(*both), mapping={"loss": "train_loss"}).held_out is False


def good(*rows: tuple[object, ...]) -> str:
    return csv(HEAD, *POINTS, *rows)


REFUSED = {
    "no loss": (csv(("run", "tokens"), ("a", 1e9)), "1:1", "no column is the loss", "--column loss=NAME"),
    "neither tokens nor steps": (csv(("run", "loss"), ("a", 3)), "1:1", "training tokens", "name it tokens or step"),
    "only a perplexity": (csv(("tokens", "ppl"), (1e9, 30)), "1:8", "a perplexity, 'ppl'", "natural logarithm"),
    "perplexities": (csv(("tokens", "loss"), (1e9, 90), (2e9, 40)), "1:8", "are perplexities", "natural logarithm"),
    "accuracies": (
        csv(("tokens", "loss"), (1e9, 0.1), (2e9, 0.2), (3e9, 0.3), (4e9, 0.4)),
        "1:8",
        "are accuracies",
        "give the loss",
    ),
    "every loss is nan": (csv(("tokens", "loss"), (1e9, "nan")), "1:8", "no row has a loss in 'loss'", "map another"),
    "a text for a loss": (good(("a", 8e9, "high")), "7:16", "which is not a number", "write one such as 2.85"),
    "a negative loss": (good(("a", 8e9, -3)), "7:16", "must be above 0", "write a positive number"),
    "negative tokens": (good(("a", -8e9, 3)), "7:3", "must be above 0", "write a positive number"),
    "tokens in billions": (csv(("tokens", "loss"), (1, 3.5), (2, 3)), "2:1", "too small", "tokens (B)"),
    "no run": (good(("", 8e9, 3)), "7:1", "a loss, but no run", "write the run's name"),
    "two losses": (
        good(("a", 2e9, 3.6)),
        "7:16",
        "the run 'a' has another loss at the same tokens in line 3",
        "keep one",
    ),
    "runs that are not named": (
        csv(("step", "loss"), (1, 4), (2, 3), (1, 5)),
        "4:3",
        "the curve has another loss at the same steps in line 2",
        "name the runs in a column run",
    ),
    "empty": ("", "1:1", "the file is empty", "a row for each point of a curve"),
    "a header alone": (csv(HEAD), "1:1", "there is no point of a curve below the header", "write a row"),
    "two held-out losses": (
        csv(("step", "val_loss", "test_loss"), (1, 4, 4.1), (2, 3, 3.1)),
        "1:15",
        "may both be the loss",
        "say which",
    ),
    "bits per byte": (csv(("tokens", "bpb"), (1e9, 1.0)), "1:8", "bytes of a token are not known", "--bytes-per-token"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_curve_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    text, place, what, write = REFUSED[name]
    with pytest.raises(DocumentError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'curves.csv'}:{place}: ")
    assert what in message
    assert write in message
    assert len(message.splitlines()) == 1


@pytest.mark.slow
def test_a_million_rows_are_read_in_seconds_and_without_a_gigabyte(tmp_path: Path) -> None:
    steps = np.arange(1, 5001) * 10
    losses = 2 + 5 * steps**-0.3
    with (tmp_path / "curves.csv").open("w") as file:
        file.write("run_id,_step,_runtime,tokens,train/loss,eval/loss\n")
        for run in range(200):
            for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
                file.write(f"run-{run:03d},{step},{step * 1.3:.2f},{step * 65536},{loss:.6f},\n")
    code = (  # VmHWM is this program's; ru_maxrss would begin with that of the process that started it
        "import sys, time\nfrom pathlib import Path\nfrom specs.run_table.curves import read_curves\n"
        "begin = time.process_time()\ntable = read_curves(Path(sys.argv[1]))\n"
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]\n"
        "print(table.points, time.process_time() - begin, int(peak) / 2**20)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "curves.csv")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    points, seconds, gibibytes = map(float, done.stdout.split())
    assert points == 1_000_000
    assert seconds < 15  # 4 on an idle core
    assert gibibytes < 0.75
