"""Every bad table gets one line: where, what is wrong, what to write."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from specs.document.parse import DocumentError
from specs.run_table.grid import MOST_RUNS
from specs.run_table.read import MOST_BYTES, read_table

GOOD = "params,tokens,loss\n1e8,2e9,3.5\n2e8,4e9,3.2\n4e8,8e9,3.0\n8e8,16e9,2.8\n16e8,32e9,2.6\n"


def good(old: str = "", new: str = "") -> str:
    """The good table with one stretch of it replaced."""
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def column(name: str, *cells: object) -> str:
    """The good table with this column in place of its loss."""
    rows = [line.rpartition(",")[0] for line in GOOD.splitlines()]
    return "\n".join(f"{row},{cell}" for row, cell in zip(rows, [name, *cells], strict=True)) + "\n"


# name: (suffix, content, line:column, what is wrong, what to write)
TABLES: dict[str, tuple[str, str | bytes, str, str, str]] = {
    # files
    "empty": (".csv", "", "1:1", "the file is empty", "write a header, and a row for each run"),
    "only blank lines": (".csv", "\n \n\n", "1:1", "the file is empty", "write a header"),
    "only comments": (".csv", "# N,D,loss\n# runs\n", "1:1", "the file is empty", "write a header"),
    "header alone": (".csv", "N,D,loss\n", "1:1", "no run below the header", "write a row for each run"),
    "one row": (".csv", "N,D,loss\n1e8,2e9,3.5\n", "1:1", "a single run", "write runs of several sizes"),
    "one row, twice": (".csv", "N,D,loss\n" + 2 * "1e8,2e9,3.5\n", "1:1", "a single run", "several sizes"),
    "no header": (
        ".csv",
        good("params,tokens,loss\n"),
        "1:1",
        "the first row has numbers",
        "write a header such",
    ),
    "header behind a comment sign": (".csv", "# " + GOOD, "2:1", "the first row has numbers", "without '#'"),
    "binary": (
        ".csv",
        b"\x89PNG\r\n\x1a\n\x00\x00",
        "1:1",
        "byte 0 (0x89) is not UTF-8",
        "save the file as UTF-8",
    ),
    "nul bytes": (".csv", "N,D\0,loss\n", "1:1", "character U+0000", "export the table as CSV"),
    "UTF-16": (".csv", GOOD.encode("utf-16"), "1:1", "is not UTF-8", "save the file as UTF-8"),
    "Latin-1": (
        ".csv",
        good("loss", "größe").encode("latin-1"),
        "1:17",
        "is not UTF-8",
        "save the file as UTF-8",
    ),
    "spreadsheet": (
        ".xlsx",
        b"PK\3\4",
        "1:1",
        "'.xlsx' is not a table's suffix",
        "save the table as one of .csv",
    ),
    "compressed": (
        ".csv.gz",
        b"\x1f\x8b",
        "1:1",
        "'.gz' is not a table's suffix",
        "save the table as one of .csv",
    ),
    "no suffix": ("", GOOD, "1:1", "the file's name has no suffix", "save the table as one of .csv"),
    "too many runs": (
        ".csv",
        GOOD + "1e8,2e9,3\n" * MOST_RUNS,
        "1:1",
        "more than 100,000 rows",
        "give one row for",
    ),
    "too many objects": (
        ".jsonl",
        '{"N":1}\n' * (MOST_RUNS + 1),
        "1:1",
        "more than 100,000 rows",
        "give one row for each finished run",
    ),
    # rows and cells
    "one column": (
        ".csv",
        GOOD.replace(",", "|"),
        "1:1",
        "is a single column",
        "separate the columns with commas",
    ),
    "column twice": (
        ".csv",
        good("tokens", "params"),
        "1:8",
        "'params' appears twice",
        "rename or remove one",
    ),
    "short row": (
        ".csv",
        good("8e9,3.0", "8e9"),
        "4:1",
        "the row has 2 cells where the header has 3",
        "write 3",
    ),
    "long row": (".csv", good("3.0", "3.0,1"), "4:1", "the row has 4 cells where", "write 3 cells"),
    "decimal commas between commas": (
        ".csv",
        GOOD.replace(".", ","),
        "2:1",
        "the row has 4 cells",
        "decimal points",
    ),
    "semicolons below commas": (
        ".csv",
        good("4e8,8e9,3.0", "4e8;8e9;3.0"),
        "4:1",
        "has 1 cell",
        "separated by commas",
    ),
    "open quote": (".csv", good("4e8", '"4e8'), "4:1", "the quotes do not match", "close the quote"),
    "another header below": (
        ".csv",
        GOOD + "tokens,params,loss\n1,2,3\n",
        "7:1",
        "params is 'tokens', as in a header",
        "give one table in a file",
    ),
    # columns
    "no size": (
        ".csv",
        good("params", "model"),
        "1:1",
        "no column is the model size",
        "--column params=NAME",
    ),
    "no tokens": (
        ".csv",
        good("tokens", "text"),
        "1:1",
        "no column is the number of training tokens",
        "in a column flop",
    ),
    "no loss": (
        ".csv",
        good("loss", "score"),
        "1:1",
        "no column is the loss (columns: params, tokens, score)",
        "=NAME",
    ),
    "empty loss": (
        ".csv",
        column("loss", *[""] * 5),
        "1:15",
        "the column 'loss' is empty",
        "fill it, or map another",
    ),
    "two sizes": (
        ".csv",
        "N,params,D,loss\n1e8,2e8,2e9,3\n1e8,3e8,2e9,3\n",
        "1:3",
        "'N' and 'params' may both be",
        "say",
    ),
    "two losses": (
        ".csv",
        column("C4 Eval Loss,Wiki Eval Loss", "3,4", "3,3.9", "3,3.8", "3,3.7", "3,3.6"),
        "1:28",
        "may both be the loss, and differ",
        "--column 'loss=C4 Eval Loss' or --column 'loss=Wiki Eval Loss'",
    ),
    "shape without ffn": (
        ".csv",
        "layers,width,tokens,loss\n8,512,2e9,3.5\n9,512,2e9,3.4\n",
        "1:1",
        "there is no size, and of the shape (layers, width) ffn is missing",
        "add ffn, or params",
    ),
    "shape with kv_heads alone": (
        ".csv",
        "layers,width,ffn,kv_heads,tokens,loss\n8,512,2048,2,2e9,3.5\n9,512,2048,2,2e9,3.4\n",
        "1:1",
        "heads is missing",
        "add heads",
    ),
    # values
    "no loss in a row": (".csv", good("3.0"), "4:9", "loss is missing", "write it, or drop the row"),
    "no loss in two rows": (
        ".csv",
        good("3.0").replace("2.8", "n/a"),
        "4:9",
        "(1 row below cannot be used either)",
        "drop",
    ),
    "nan": (".csv", good("3.0", "NaN"), "4:9", "loss is nan", "write a number, or drop the row"),
    "infinite": (".csv", good("3.0", "inf"), "4:9", "loss is 'inf', which is not finite", "or drop the row"),
    "out of range": (
        ".csv",
        good("4e8", "4e800"),
        "4:1",
        "params is '4e800', which is not finite",
        "write a number",
    ),
    "negative": (
        ".csv",
        good("3.0", "-3.0"),
        "4:9",
        "loss is '-3.0' and must be above 0",
        "write a positive",
    ),
    "no tokens trained": (
        ".csv",
        good("8e9", "0"),
        "4:5",
        "tokens is '0' and must be above 0",
        "or drop the row",
    ),
    "text": (".csv", good("4e8", "llama"), "4:1", "params is 'llama', which is not a number", "such as 410M"),
    "two suffixes": (
        ".csv",
        good("4e8", "4MB"),
        "4:1",
        "params is '4MB', which is not a number",
        "such as 410M",
    ),
    "billions": (
        ".csv",
        good("4e8", ".4"),
        "4:1",
        "params of '.4' is too small to be in units",
        "'params (B)'",
    ),
    "more than all text": (
        ".csv",
        good("8e9", "8e29"),
        "4:5",
        "is more than any run has",
        "write it like 8B",
    ),
    "ambiguous thousands": (
        ".csv",
        good("4e8", '"1,234M"'),
        "4:1",
        "separator in '1,234M' may be",
        "write 410M",
    ),
    "ambiguous point": (
        ".csv",
        GOOD.replace(",", ";").replace(".", ",").replace("8e9", "8.000"),
        "4:5",
        "the separator in '8.000' may be one of thousands or of decimals",
        "write 8B or 8e9",
    ),
    "compute in EFLOP": (
        ".csv",
        "N,C,loss\n1e8,1.2,3.5\n2e8,4.8,3.2\n",
        "2:5",
        "flop ('C') of '1.2' is too small to be in units",
        "write it like 3e21",
    ),
    "compute in GFLOP": (
        ".csv",
        "N,D,C,loss\n1e8,2e9,1.2e9,3.5\n2e8,4e9,4.8e9,3.2\n",
        "1:5",
        "compute ('C') is 1e-09 times 6 * params * tokens",
        "write it in FLOP, or name its unit",
    ),
    "compute in GFLOP, without tokens": (
        ".csv",
        "N,C,loss\n1e8,1.2e9,3.5\n2e8,4.8e9,3.2\n",
        "1:3",
        "compute / (6 * params) would be 2 tokens",
        "or add a column tokens",
    ),
    # units
    "perplexity by name": (
        ".csv",
        good("loss", "val_ppl"),
        "1:15",
        "the only loss is a perplexity",
        "logarithm",
    ),
    "perplexity by value": (
        ".csv",
        column("loss", 33, 24, 20, 16, 15),
        "1:15",
        "they are perplexities",
        "logarithm",
    ),
    "perplexity among losses": (
        ".csv",
        good("3.0", "20.1"),
        "4:9",
        "a perplexity among losses",
        "drop the row",
    ),
    "accuracy by name": (
        ".csv",
        good("loss", "arc_acc"),
        "1:15",
        "the table has an accuracy",
        "give the loss",
    ),
    "accuracy by value": (
        ".csv",
        column("loss", 0.2, 0.3, 0.35, 0.4, 0.5),
        "1:15",
        "they are accuracies",
        "give the loss",
    ),
    "accuracy in percent": (
        ".csv",
        column("loss", 21, 30, 35, 40, 50),
        "1:15",
        "they are accuracies",
        "give the loss",
    ),
    "bits per byte of unknown bytes": (
        ".csv",
        good("loss", "val_bpb"),
        "1:15",
        "bits per byte, and",
        "--bytes-per-token",
    ),
    "bits per character": (
        ".csv",
        good("loss", "eval_loss_bpc"),
        "1:15",
        "bits per character",
        "write it in nats/token",
    ),
    "units mixed in cells": (
        ".csv",
        column("loss", "3.5 nats", "3.2 nats", "0.9 bits/byte", "2.8 nats", "2.6 nats"),
        "4:9",
        "the units are mixed: bits/byte here, nats/token in line 2",
        "write every loss in one unit",
    ),
    "units mixed in a column": (
        ".csv",
        column("loss,unit", "3.5,nats", "3.2,bpb", "3,nats", "2.8,nats", "2.6,nats"),
        "3:9",
        "the units are mixed: bits/byte here",
        "write every loss in one unit",
    ),
    "unknown unit": (
        ".csv",
        column("loss,unit", "3,dB", "3,dB", "3,dB", "2,dB", "2,dB"),
        "2:11",
        "'dB' is no unit of a loss",
        "write nats/token, bits/token or bits/byte",
    ),
    # names
    "one name, two sizes": (
        ".csv",
        "name,N,D,loss\na,1e8,2e9,3.5\na,2e8,2e9,3.4\n",
        "3:1",
        "the run 'a' has another params in line 2",
        "give each run a name of its own",
    ),
    "one id, two losses": (
        ".csv",
        "N,D,loss,run_id\n1e8,2e9,3.5,7\n1e8,2e9,3.4,7\n",
        "3:13",
        "the run '7' has another loss in line 2",
        "keep one of the rows",
    ),
    # JSON
    "empty JSON": (".json", "[]", "1:1", "the file has no run", "write one object for each run"),
    "JSON of columns": (".json", '{"N": [1, 2], "D": [3, 4]}', "1:1", "a single object", "orient='records'"),
    "JSON of numbers": (
        ".json",
        "[1, 2]",
        "1:2",
        "expected an object, found 1",
        "write one object for each run",
    ),
    "JSON cut off": (".json", '[{"N": 1},\n {"N": 2}', "2:10", "the list has no end", "write ']'"),
    "JSON cut off in an object": (
        ".jsonl",
        '{"N": 1}\n{"N": ',
        "2:7",
        "this is not JSON",
        "correct the JSON here",
    ),
    "JSON without a comma": (
        ".json",
        '[{"N": 1}\n{"N": 2}]',
        "2:1",
        "goes on without a comma",
        "write ',' or ']'",
    ),
    "JSON with a key twice": (
        ".jsonl",
        '{"N": 1, "N": 2}\n',
        "1:1",
        "a key appears twice",
        "write each key once",
    ),
    "JSON with true": (
        ".jsonl",
        '{"N": 1e8, "D": 2e9, "loss": 3}\n{"N": 2e8, "D": 2e9, "loss": true}\n',
        "2:22",
        "loss is true, which is not a number",
        "write one such as 2.85",
    ),
    "JSON without a loss": (
        ".jsonl",
        '{"N": 1e8, "D": 2e9, "loss": 3}\n{"N": 2e8, "D": 2e9}\n',
        "2:1",
        "loss is missing",
        "write it, or drop the row",
    ),
    "JSON with NaN": (
        ".json",
        '[{"N": 1e8, "D": 2e9, "eval": {"loss": 3}},\n{"N": 2e8, "D": 2e9, "eval": {"loss": NaN}}]',
        "2:31",
        "loss ('eval.loss') is nan",
        "write a number, or drop the row",
    ),
    "nested without end": (
        ".jsonl",
        '{"a":' * 9000 + "1" + "}" * 9000,
        "1:1",
        "cannot be read",
        "few levels",
    ),
    "losses of nothing": (
        ".csv",
        "params,tokens,loss\n1e8,2e9,3e-200\n2e8,2e9,2e-200\n",
        "1:15",
        "every value of 'loss' is below 1e-06 nats per token",
        "correct its unit and bytes per token",
    ),
    "CSV called Parquet": (".parquet", GOOD, "1:1", "this is not a Parquet file", "or save the table as CSV"),
}


def refusal(path: Path, mapping: dict[str, str] | None = None, **options: object) -> str:
    """The one line of the DocumentError that reading gives; anything else fails."""
    with pytest.raises(DocumentError) as caught:
        read_table(path, mapping or {}, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.isprintable(), "a message is one line without control characters"
    assert not message.endswith("; ")
    return message


@pytest.mark.parametrize(("suffix", "content", "place", "what", "write"), TABLES.values(), ids=TABLES)
def test_a_bad_table_is_one_line_that_says_what_to_write(
    tmp_path: Path, suffix: str, content: str | bytes, place: str, what: str, write: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"runs{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(path)
    assert message.startswith(f"{path}:{place}: "), message
    found, _, remedy = message.removeprefix(f"{path}:{place}: ").partition("; ")
    assert what in found, message
    assert write in remedy, message


# name: (mapping, options, what is wrong, what to write)
REQUESTS: dict[str, tuple[dict[str, str], dict[str, object], str, str]] = {
    "no such quantity": ({"losss": "loss"}, {}, "'losss', which is no quantity", "write 'loss'"),
    "no such column": ({"loss": "los"}, {}, "no column 'los' for loss", "write 'loss'"),
    "column in other letters": ({"loss": "Loss"}, {}, "no column 'Loss' for loss", "write 'loss'"),
    "one column for two": (
        {"loss": "loss", "params": "loss"},
        {},
        "mapped to two quantities",
        "map it to one",
    ),
    "no such unit": ({}, {"loss_unit": "dB"}, "'dB' is no unit of a loss", "write nats/token"),
    "perplexity": ({}, {"loss_unit": "ppl"}, "'ppl' is no unit of a loss", "natural logarithm"),
    "bits without bytes": ({}, {"loss_unit": "bits/byte"}, "in bits per byte", "--bytes-per-token 4.3"),
    "negative bytes": ({}, {"bytes_per_token": -1.0}, "bytes per token of -1", "write a number such as 4.3"),
    "not so many bytes": ({}, {"bytes_per_token": float("nan")}, "bytes per token of nan", "write a number"),
    "text for a loss": (
        {"loss": "model"},
        {},
        "loss ('model') is 'a', which is not a number",
        "such as 2.85",
    ),
    "accuracy for a loss": ({"loss": "arc_acc"}, {}, "'arc_acc' is an accuracy", "give the loss"),
    "perplexity for a loss": ({"loss": "ppl"}, {}, "'ppl' is a perplexity", "natural logarithm"),
    "two units": ({"loss": "val_bpt"}, {"loss_unit": "nats"}, "in nats/token and in bits/token", "leave one"),
}


@pytest.mark.parametrize(("mapping", "options", "what", "write"), REQUESTS.values(), ids=REQUESTS)
def test_a_bad_request_is_one_line_too(
    tmp_path: Path, mapping: dict[str, str], options: dict[str, object], what: str, write: str
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        "model,params,tokens,loss,arc_acc,ppl,val_bpt\na,1e8,2e9,3.5,.2,33,5\nb,2e8,4e9,3.2,.3,24,4\n"
    )
    if "val_bpt" not in mapping.values():
        path.write_text(path.read_text().replace("val_bpt", "other"))
    message = refusal(path, mapping, **options)
    found, _, remedy = message.partition("; ")
    assert what in found, message
    assert write in remedy, message


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(GOOD)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "points-to-nothing.csv").symlink_to("nowhere.csv")
    (tmp_path / ".hidden-table.csv").write_text("")
    os.mkfifo(tmp_path / "pipe.csv")
    for path, what, write in (
        (tmp_path / "rnus.csv", "there is no such file", f"give {tmp_path / 'runs.csv'}"),
        (tmp_path / "folder.csv", "this is a folder", "give the path of a file in it"),
        (tmp_path / "pipe.csv", "this is not a regular file", "give the path of a regular file"),
        (tmp_path / "points-to-nothing.csv", "there is no such file", "give the path of a file that exists"),
        (tmp_path / "hidden-table.csv", "there is no such file", "give the path of a file that exists"),
        (
            tmp_path / f"{'r' * 300}.csv",
            "the file cannot be read",
            "give the path of a file that can be read",
        ),
        (tmp_path / "a\0b.csv", "the file cannot be read", "give the path of a file that can be read"),
    ):
        message = refusal(path)
        found, _, remedy = message.partition(":1:1: ")[2].partition("; ")
        assert found.startswith(what)
        assert remedy == write


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(GOOD)
    path.chmod(0)
    assert "the file cannot be read (Permission denied)" in refusal(path)


def test_a_file_too_large_to_be_read_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # sparse
    assert "the file is larger than 256 MiB; give one row for each finished run" in refusal(path)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"params": MOST_RUNS + 1},
            ":1:1: the table has more than 100,000 rows; give one row for each finished run",
        ),
        (
            {"params": 2, "loss": 2, "params ": 2},
            ":1:3: the column 'params' appears twice; rename or remove one",
        ),
    ],
)
def test_a_parquet_file_is_refused_as_a_text_is(tmp_path: Path, columns: dict[str, int], says: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    arrays, names = [pyarrow.array(np.ones(rows)) for rows in columns.values()], [n.strip() for n in columns]
    parquet.write_table(pyarrow.Table.from_arrays(arrays, names=names), tmp_path / "runs.parquet")
    assert refusal(tmp_path / "runs.parquet").startswith(f"{tmp_path / 'runs.parquet'}{says}")


def test_without_pyarrow_parquet_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pyarrow, which is not installed; run pip install 'isoplan[parquet]'" in refusal(path)
