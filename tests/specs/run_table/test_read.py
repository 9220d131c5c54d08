import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from specs.model import ModelSpec
from specs.run_table.numbers import number
from specs.run_table.quantities import MAPPABLE, NAMES, meaning
from specs.run_table.read import read_table
from specs.run_table.table import Array, RunTable

SIZE, TOKENS, LOSS = [1e8, 2e8, 4e8], [2e9, 4e9, 8e9], [3.5, 3.25, 3.0]
ROWS = list(zip(SIZE, TOKENS, LOSS, strict=True))


def read(tmp_path: Path, text: str, suffix: str = ".csv", **options: object) -> RunTable:
    path = tmp_path / f"runs{suffix}"
    path.write_bytes(text.encode())
    return read_table(path, **options)  # type: ignore[arg-type]


def is_plain(table: RunTable) -> bool:
    """Whether the table has the three plain runs."""
    arrays = ((table.size, SIZE), (table.tokens, TOKENS), (table.loss, LOSS))
    return all(array.tolist() == pytest.approx(values) for array, values in arrays)


def csv(*rows: tuple[object, ...], separator: str = ",") -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


HEAD = ("params", "tokens", "loss")
FILES = {
    "commas": (".csv", csv(HEAD, *ROWS)),
    "tabs": (".tsv", csv(HEAD, *ROWS, separator="\t")),
    "semicolons": (".csv", csv(HEAD, *ROWS, separator=";")),
    "decimal commas": (".csv", csv(HEAD, *ROWS, separator=";").replace(".", ",")),
    "quoted decimal commas": (".csv", 'N,D,loss\n1e8,2e9,"3,5"\n2e8,4e9,"3,25"\n4e8,8e9,"3"\n'),
    "byte order mark": (".csv", "\ufeff" + csv(HEAD, *ROWS)),
    "CRLF": (".csv", csv(HEAD, *ROWS).replace("\n", "\r\n")),
    "no last end of line": (".csv", csv(HEAD, *ROWS)[:-1]),
    "quoted": (".csv", csv(HEAD, *ROWS).replace("params", '"params"').replace("3.5", '"3.5"')),
    "text over two lines": (".csv", csv((*HEAD, "note"), *((*row, '"a,\nb"') for row in ROWS))),
    "spaces": (".csv", csv(HEAD, *ROWS, separator=" , ")),
    "comments": (".csv", '# our "runs, 2025\n' + csv(HEAD, *ROWS) + "# the last one\n#1e9,1e9,9\n"),
    "colours first": (".csv", csv(("color", *HEAD), *(("#faebdd", *row) for row in ROWS))),
    "header twice": (".csv", csv(HEAD, ROWS[0], HEAD, *ROWS[1:])),
    "blank lines": (".csv", "\n" + csv(HEAD, *ROWS).replace("\n", "\n\n") + ",,\n"),
    "last separator": (".csv", csv((*HEAD, ""), *((*row, "") for row in ROWS))),
    "surplus empty cells": (".csv", csv(HEAD, *((*row, "", "") for row in ROWS))),
    "index without a name": (".csv", csv(("", *HEAD), *((at, *row) for at, row in enumerate(ROWS)))),
    "equal rows": (".csv", csv(HEAD, *ROWS, *ROWS)),
    "empty column of the same name": (".csv", csv((*HEAD, "N"), *((*row, "") for row in ROWS))),
    "label of the same name": (".csv", csv((*HEAD, "size", "N"), *((*row, "small", "x") for row in ROWS))),
    "suffixes": (
        ".csv",
        csv(HEAD, ("100M", "2B", 3.5), ("0.2b", "4 B tokens", 3.25), ("400 M", "0.008T", 3)),
    ),
    "thousands": (
        ".csv",
        'N,D,loss\n"100,000,000","2,000,000,000",3.5\n"200,000,000","4 000 000 000",3.25\n"400,000,000.0",8x10^9,3\n',
    ),
    "thousands with points": (".csv", "N;D;loss\n100.000.000;2e9;3,5\n2e8;4.000.000.000;3,25\n4e8;8e9;3,0\n"),
    "scaled names": (
        ".csv",
        csv(("Params (M)", "tokens_B", "loss"), *((N / 1e6, D / 1e9, L) for N, D, L in ROWS)),
    ),
    "JSON lines": (".jsonl", "".join(json.dumps(dict(zip(HEAD, row, strict=True))) + "\n" for row in ROWS)),
    "JSON list": (".json", json.dumps([dict(zip(HEAD, row, strict=True)) for row in ROWS], indent=2)),
    "JSON nested": (
        ".ndjson",
        "".join(
            json.dumps(
                {"tags": ["a", "b"], "config": {"n_params": N, "tokens": D}, "summary": {"val/loss": L}}
            )
            + "\n"
            for N, D, L in ROWS
        ),
    ),
    "JSON texts": (
        ".json",
        json.dumps([{"N": f"{N / 1e6}M", "D": str(D), "eval": {"loss": L}} for N, D, L in ROWS]),
    ),
}


@pytest.mark.parametrize(("suffix", "text"), FILES.values(), ids=FILES)
def test_the_same_runs_are_read_from_every_file(tmp_path: Path, suffix: str, text: str) -> None:
    table = read(tmp_path, text, suffix)
    assert is_plain(table)
    assert table.size_kind == "params"
    assert table.cost_per == 6
    assert table.flop.tolist() == pytest.approx([6 * N * D for N, D, _ in ROWS])
    assert table.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert "compute is taken as 6 * params * tokens" in table.notes


def test_parquet_is_read_and_its_lines_are_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"config": {"n_params": int(N)}, "tokens": int(D), "eval/loss": L, "tags": ["a"]} for N, D, L in ROWS
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "runs.parquet")
    table = read_table(tmp_path / "runs.parquet")
    assert is_plain(table)
    assert table.columns == {"params": "config.n_params", "tokens": "tokens", "loss": "eval/loss"}
    assert table.line.tolist() == [1, 2, 3]


def test_lines_and_names_are_of_the_file(tmp_path: Path) -> None:
    text = '# runs\nname,N,D,loss,note\na,1e8,2e9,3.5,"two\nlines"\n\n,2e8,4e9,3.25,\nc,4e8,8e9,3,\n'
    table = read(tmp_path, text)
    assert table.line.tolist() == [3, 6, 7]
    assert table.name == ("a", "line 6", "c")
    listed = read(
        tmp_path,
        json.dumps([{"id": D // 1e9, "N": N, "D": D, "loss": L} for N, D, L in ROWS], indent=1),
        ".json",
    )
    assert listed.line.tolist() == [2, 8, 14]
    assert listed.name == ("2.0", "4.0", "8.0")


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("410M", 410e6),
        ("1.2B", 1.2e9),
        ("70b", 70e9),
        ("2 T", 2e12),
        ("3e21", 3e21),
        ("2.6e9", 2.6e9),
        ("1,000,000", 1e6),
        ("12,345", 12345),
        ("1,234.5", 1234.5),
        ("1 000 000", 1e6),
        ("1\u202f000", 1000),
        ("1_000_000", 1e6),
        ("6.5 ZFLOP", 6.5e21),
        ("3e21 FLOPs", 3e21),
        ("2B tokens", 2e9),
        ("6.1×10^21", 6.1e21),
        ("2 x 10**9", 2e9),
        ("+5", 5),
        (7, 7),
        (10**400, math.inf),
        ("1,23,456", math.nan),
        ("1,234M", math.nan),
        ("7 E", math.nan),
        ("12B34", math.nan),
        ("", math.nan),
        (None, math.nan),
        (True, math.nan),
    ],
)
def test_a_cell_is_read_as_people_write_numbers(cell: object, value: float) -> None:
    assert number(cell, decimal_comma=False) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("3,214", 3.214),
        ("1,2B", 1.2e9),
        ("2,6E+09", 2.6e9),
        ("1.000.000", 1e6),
        ("1.234,5", 1234.5),
        ("1.234", math.nan),
    ],
)
def test_a_cell_with_a_decimal_comma(cell: str, value: float) -> None:
    assert number(cell, decimal_comma=True) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("N", "params"),
        ("Model Size", "params"),
        ("num-params", "params"),
        ("params_active_precise", "params"),
        ("N_no_emb", "block_params"),
        ("flops/token", "flop_per_token"),
        ("Tokens Seen", "tokens"),
        ("eval/loss", "loss"),
        ("C4 Eval Loss", "loss"),
        ("val_bpb", "loss"),
        ("loss (bits/byte)", "loss"),
        ("summary.val_loss", "loss"),
        ("Training FLOP", "flop"),
        ("PF-days", "flop"),
        ("total train ZFLOPs", "flop"),
        ("learning-rate", "lr"),
        ("Seed", "seed"),
        ("Name", "name"),
        ("n_layer", "layers"),
        ("D/N", None),
        ("Max Eval Loss", None),
        ("C4 Eval PPL", None),
        ("C_6ND", None),
        ("HW TFLOP/s/GPU", None),
        ("", None),
    ],
)
def test_columns_are_known_by_their_usual_names(name: str, quantity: str | None) -> None:
    found = meaning(name)
    assert (found.quantity if found else None) == quantity


def test_no_name_means_two_quantities() -> None:
    for quantity, tiers in NAMES.items():
        for name in " ".join(tiers).split():
            found = meaning(name)
            assert found is not None
            assert found.quantity == quantity, name


def test_the_user_maps_columns_by_quantity_or_by_its_usual_names(tmp_path: Path) -> None:
    text = csv(("weights", "loss", "text", "wiki/nll"), *((N, 9, D, L) for N, D, L in ROWS))
    mapping = {"N": "weights", "tokens": "text", "loss": "wiki/nll"}
    table = read(tmp_path, text, mapping=mapping)
    assert is_plain(table)
    assert table.columns == {"params": "weights", "tokens": "text", "loss": "wiki/nll"}
    assert "loss" in MAPPABLE


def test_a_scale_in_a_mapped_name_counts(tmp_path: Path) -> None:
    text = csv(("N (M)", "active (B)", "tokens (B)", "loss"), *((1, N / 1e9, D / 1e9, L) for N, D, L in ROWS))
    with pytest.raises(Exception, match=r"active \(B\)"):
        read(tmp_path, text, mapping={"params": "active (B)"})
    assert read(tmp_path, text.replace("N (M)", "x").replace("active", "N")).size.tolist() == pytest.approx(
        SIZE
    )


def units(tmp_path: Path, name: str, cells: list[object], **options: object) -> RunTable:
    rows = ((N, D, cell) for (N, D, _), cell in zip(ROWS, cells, strict=True))
    return read(tmp_path, csv(("N", "D", name), *rows), **options)


def test_losses_come_out_in_nats_per_token(tmp_path: Path) -> None:
    bits = [loss / math.log(2) for loss in LOSS]
    bpb = [loss / math.log(2) / 4.3 for loss in LOSS]
    assert is_plain(units(tmp_path, "loss (nats)", list(LOSS)))
    assert is_plain(units(tmp_path, "eval loss [bits/token]", list(bits)))
    assert is_plain(units(tmp_path, "loss", list(bits), loss_unit="bits/token"))
    table = units(tmp_path, "val_bpb", list(bpb), bytes_per_token=4.3)
    assert is_plain(table)
    assert (table.loss_unit, table.bytes_per_token) == ("bits/byte", 4.3)
    assert is_plain(units(tmp_path, "loss", [f"{loss} bits/byte" for loss in bpb], bytes_per_token=4.3))
    assert is_plain(units(tmp_path, "unit,loss", [f"bpb,{loss}" for loss in bpb], bytes_per_token=4.3))
    assert not [note for note in table.notes if "is taken to be" in note]


def test_an_assumed_unit_is_noted_and_a_low_one_doubted(tmp_path: Path) -> None:
    assert "loss ('loss') is taken to be in nats per token" in units(tmp_path, "loss", list(LOSS)).notes
    low = units(tmp_path, "loss", [0.9, 0.8, 0.75])
    assert any("if they are, say so with --loss-unit bits/byte" in note for note in low.notes)


def test_of_two_losses_the_held_out_one_in_nats_is_read(tmp_path: Path) -> None:
    heads = ("N", "D", "train_loss", "loss", "val_bpb", "val_loss")
    table = read(tmp_path, csv(heads, *((N, D, L + 1, L + 2, 0.8, L) for N, D, L in ROWS)))
    assert is_plain(table)
    assert [note for note in table.notes if note.startswith("loss:")] == [
        "loss: 'val_loss' is read, and not 'val_bpb', which differs",
        "loss: 'val_loss' is read, and not 'loss', which differs",
        "loss: 'val_loss' is read, and not 'train_loss', which differs",
    ]
    assert (
        read(
            tmp_path,
            csv(heads, *((N, D, 1, 2, L, 4) for N, D, L in ROWS)),
            loss_unit="bits/byte",
            bytes_per_token=4.0,
        ).columns["loss"]
        == "val_bpb"
    )


def test_what_is_not_given_is_derived_from_compute(tmp_path: Path) -> None:
    without_tokens = read(tmp_path, csv(("N", "C", "loss"), *((N, 6 * N * D, L) for N, D, L in ROWS)))
    assert is_plain(without_tokens)
    assert "tokens are derived from C = 6 * params * tokens" in without_tokens.notes
    without_size = read(tmp_path, csv(("C", "D", "loss"), *((6 * N * D, D, L) for N, D, L in ROWS)))
    assert is_plain(without_size)
    assert "params are derived from C = 6 * params * tokens" in without_size.notes
    by_steps = read(
        tmp_path, csv(("N", "steps", "batch_tokens", "loss"), *((N, D / 1e5, 1e5, L) for N, D, L in ROWS))
    )
    assert is_plain(by_steps)
    by_cost = read(tmp_path, csv(("M", "C", "loss"), *((N, N * D, L) for N, D, L in ROWS)))
    assert is_plain(by_cost)
    assert (by_cost.size_kind, by_cost.cost_per) == ("flop_per_token", 1)


def test_compute_is_the_tables_own(tmp_path: Path) -> None:
    heads = ("N", "D", "total EFLOPs", "loss")
    table = read(
        tmp_path, csv(heads, *((N, D, 2.5 * 6 * N * D / 1e18, L) for N, D, L in ROWS)).replace("1.2,", ",", 1)
    )
    assert table.flop.tolist() == pytest.approx([2.5 * 6 * N * D for N, D, _ in ROWS])
    assert any("is 2.5 times 6 * params * tokens" in note for note in table.notes)
    gap = read(
        tmp_path, csv(("N", "D", "C", "loss"), *((N, D, "" if N < 2e8 else 7 * N * D, L) for N, D, L in ROWS))
    )
    assert gap.flop.tolist() == pytest.approx([6 * 1e8 * 2e9, 7 * 2e8 * 4e9, 7 * 4e8 * 8e9])
    assert any(note.startswith("compute of 1 run") for note in gap.notes)


def test_size_is_counted_from_the_shape(tmp_path: Path) -> None:
    heads = ("n_layer", "d_model", "n_head", "num_kv_heads", "d_ff", "vocab_size", "seq_len", "D", "loss")
    shapes = [
        (4, 256, 4, 2, 1024, 32000, 1024),
        (8, 512, 8, 4, 1536, 32000, 2048),
        (12, 768, 12, 12, 2048, 32000, 2048),
    ]
    rows = [(*shape, D, L) for shape, (_, D, L) in zip(shapes, ROWS, strict=True)]
    specs = [
        ModelSpec(layers=L, width=d, heads=h, kv_heads=k, ffn=f, vocab=V, context=s)
        for L, d, h, k, f, V, s in shapes
    ]
    table = read(tmp_path, csv(heads, *rows))
    assert table.size.tolist() == [spec.params for spec in specs]
    assert table.other_sizes["block_params"].tolist() == [spec.block_params for spec in specs]
    assert table.other_sizes["flop_per_token"].tolist() == [spec.flop_per_token for spec in specs]
    bare = read(
        tmp_path, csv(("layers", "width", "ffn", "D", "loss"), *((2, 128, 512, D, L) for _, D, L in ROWS))
    )
    assert bare.size_kind == "block_params"
    assert any(note.startswith("size is counted from the shape") for note in bare.notes)


def test_of_two_conventions_of_size_the_mapped_one_is_fitted_in(tmp_path: Path) -> None:
    text = csv(("N", "N_no_emb", "D", "loss"), *((N, N / 2, D, L) for N, D, L in ROWS))
    table = read(tmp_path, text)
    assert is_plain(table)
    assert table.other_sizes["block_params"].tolist() == [N / 2 for N in SIZE]
    other = read(tmp_path, text, mapping={"block_params": "N_no_emb"})
    assert other.size_kind == "block_params"
    assert other.size.tolist() == [N / 2 for N in SIZE]
    assert other.other_sizes["params"].tolist() == SIZE


def batches(tmp_path: Path, head: str, *cells: str) -> RunTable:
    return read(
        tmp_path,
        csv(("N", "D", "loss", head), *((*row, cell) for row, cell in zip(ROWS, cells, strict=True))),
    )


def test_a_batch_is_in_tokens(tmp_path: Path) -> None:
    def of(table: RunTable) -> list[float] | None:
        return None if table.batch_tokens is None else table.batch_tokens.tolist()

    assert of(batches(tmp_path, "batch_tokens", "1M", "1M", "2M")) == [1e6, 1e6, 2e6]
    assert of(batches(tmp_path, "steps", "2000", "4000", "4000")) == [1e6, 1e6, 2e6]
    assert of(batches(tmp_path, "bs,steps", "1e6,2000", "1e6,4000", "2e6,4000")) == [1e6, 1e6, 2e6]
    assert of(batches(tmp_path, "bs,steps", "512,2000", "512,4000", "1024,4000")) == [1e6, 1e6, 2e6]
    assert of(batches(tmp_path, "bs,seq_len", "512,2048", "512,2048", "1024,2048")) == [2**20, 2**20, 2**21]
    alone = batches(tmp_path, "bs", "512", "512", "1024")
    assert of(alone) is None
    assert any("may count tokens or sequences" in note for note in alone.notes)


def test_what_runs_may_lack_is_nan(tmp_path: Path) -> None:
    table = batches(
        tmp_path, "lr,seed,steps,unique_tokens,color", "3e-4,0,,1B,", ",1,,n/a,red", "cosine,2,,2e9,"
    )
    assert table.lr is not None
    assert table.seed is not None
    assert table.unique_tokens is not None
    same(table.lr, [3e-4, math.nan, math.nan])
    same(table.seed, [0, 1, 2])
    same(table.unique_tokens, [1e9, math.nan, 2e9])
    assert table.steps is None
    assert "lr: 1 cell of 'lr' left out as not positive ('cosine' in line 4)" in table.notes


def same(array: Array, values: list[float]) -> None:
    np.testing.assert_array_equal(array, values)


def test_equal_rows_count_once_and_repeats_of_a_name_are_noted(tmp_path: Path) -> None:
    head = ("name", *HEAD)
    twice = read(tmp_path, csv(head, *(("a", *ROWS[0]), ("b", *ROWS[1]), ("c", *ROWS[2]), ("b", *ROWS[1]))))
    assert is_plain(twice)
    assert "1 row equal to another in every column skipped: line 5" in twice.notes
    repeats = read(tmp_path, csv(head, ("a", *ROWS[0]), ("a", 1e8, 2e9, 3.6), ("a", 1e8, 3e9, 3.4)))
    assert len(repeats.name) == 3
    assert any(note.startswith("1 run with the name, size and tokens of another") for note in repeats.notes)


def test_a_repeated_header_is_noted(tmp_path: Path) -> None:
    assert (
        "the header stands again in line 3; skipped"
        in read(tmp_path, csv(HEAD, ROWS[0], HEAD, *ROWS[1:])).notes
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_ten_thousand_runs_are_read_well_under_a_second(tmp_path: Path, suffix: str) -> None:
    heads = ("name", "N", "D", "loss", "steps", "lr", "bs", "seed", "note")
    rows = [(f"r{i}", 1e8 + i, 2e9 + i, 3 + i / 1e5, 1000 + i, 3e-4, 512, i, "x") for i in range(10_000)]
    text = csv(heads, *rows)
    if suffix == ".jsonl":
        text = "".join(json.dumps(dict(zip(heads, row, strict=True))) + "\n" for row in rows)
    start = time.process_time()
    table = read(tmp_path, text, suffix)
    assert time.process_time() - start < 1
    assert len(table.name) == 10_000


def test_runs_in_one_line_are_named_by_row(tmp_path: Path) -> None:
    text = json.dumps([dict(zip(HEAD, row, strict=True)) for row in ROWS])
    assert read(tmp_path, text, ".json").name == ("row 1", "row 2", "row 3")
