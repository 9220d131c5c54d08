"""Tables that people have published are read as they are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from specs.document.parse import DocumentError
from specs.run_table.read import read_table
from specs.run_table.table import Array, SizeKind
from tests.support.needs import shared
from tests.support.paths import SHARED

DATA = SHARED / "data"
Range = tuple[float, float]


@dataclass(frozen=True)
class Published:
    """What a public table holds; ranges to three digits."""

    file: str
    runs: int
    size: Range
    tokens: Range
    loss: Range
    columns: dict[str, str]
    size_kind: SizeKind = "params"


KEMPNER = {"params": "n", "tokens": "d", "loss": "loss", "steps": "steps"}
GEMSTONES = {
    "params": "params_active_precise",
    "tokens": "tokens",
    "loss": "final_loss",
    "steps": "step",
    "name": "run_name",
}
PUBLISHED = [
    Published(
        "epoch_chinchilla/svg_extracted_data.csv",
        245,
        (5.73e7, 1.62e10),
        (2.45e8, 3.18e11),
        (2.08, 5.01),
        {"params": "Model Size", "flop": "Training FLOP", "loss": "loss"},
    ),
    Published("kempner/fineweb.csv", 91, (1.95e7, 3.31e9), (3.70e8, 5.04e10), (2.33, 3.97), KEMPNER),
    Published("kempner/proof-pile-2.csv", 87, (1.95e7, 3.31e9), (3.02e8, 5.04e10), (1.40, 2.45), KEMPNER),
    Published("kempner/starcoder.csv", 85, (1.95e7, 3.31e9), (3.02e8, 5.04e10), (0.948, 2.04), KEMPNER),
    Published(
        "gemstones/wandb_df_for_fitting_cool_end.jsonl",
        199,
        (4.84e7, 2.01e9),
        (1.10e10, 1.10e11),
        (2.51, 3.51),
        GEMSTONES,
    ),
    Published(
        "gemstones/wandb_df_for_fitting_hot.jsonl",
        220,
        (4.84e7, 2.01e9),
        (1.00e10, 1.00e11),
        (2.58, 3.61),
        GEMSTONES,
    ),
    Published(
        "misfitting/scaling_results_last_ckpt_only.csv",
        260,
        (5.72e7, 1.18e9),
        (1.05e8, 2.10e10),
        (2.69, 6.38),
        {
            "params": "N",
            "block_params": "N_no_emb",
            "tokens": "D",
            "flop": "C",
            "loss": "C4 Eval Loss",
            "steps": "current_steps",
            "lr": "peak_lr",
        },
    ),
    Published(
        "datablations/c4_repeat_runs.csv",
        296,
        (7.10e6, 8.67e9),
        (1.00e8, 9.00e11),
        (2.34, 11.0),
        {
            "params": "params",
            "tokens": "tokens",
            "loss": "val_loss",
            "unique_tokens": "unique_tokens",
            "name": "name",
        },
    ),
    Published(
        "step_law/dense_lr_bs_loss.csv",
        1911,
        (2.15e8, 1.07e9),
        (4.00e9, 1.00e11),
        (2.10, 11.1),
        {"params": "N", "tokens": "D", "loss": "loss", "steps": "ti", "lr": "lr", "name": "exp_name"},
    ),
    Published(
        "porian/isoflop_points.csv",
        1745,
        (3.32e5, 9.94e8),
        (5.05e6, 2.88e10),
        (2.65, 10.1),
        {"params": "n", "tokens": "tokens", "flop": "flops", "loss": "loss"},
    ),
    Published(
        "scalebench/farseer_scaling_law/train-00000-of-00001.parquet",
        400,  # of 404: four are equal to others
        (9.96e7, 6.37e9),
        (1.00e9, 5.12e11),
        (0.462, 0.709),
        {"params": "N", "tokens": "D", "loss": "loss"},
    ),
    Published(
        "scalebench/lr_bsz_scaling_law/train-00000-of-00001.parquet",
        2702,
        (6.00e7, 1.07e9),
        (2.00e9, 1.00e11),
        (2.12, 3.70),
        {"block_params": "non_embedding_param_size", "tokens": "data_size", "loss": "lm_loss", "lr": "lr"},
        "block_params",
    ),
]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.file)
def test_a_published_table_is_read_without_a_word_about_it(published: Published) -> None:
    path = shared(DATA / published.file)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    table = read_table(path)
    assert len(table.name) == len(table.line) == published.runs
    assert (table.size_kind, table.loss_unit) == (published.size_kind, "nats/token")
    assert table.columns == published.columns
    for array, (least, most) in (
        (table.size, published.size),
        (table.tokens, published.tokens),
        (table.loss, published.loss),
    ):
        assert array.shape == (published.runs,)
        assert array.min() == pytest.approx(least, rel=5e-3)
        assert array.max() == pytest.approx(most, rel=5e-3)


def ratio(a: Array | None, b: Array) -> Array:
    assert a is not None
    return a / b


def test_compute_of_chinchilla_gives_its_tokens_and_that_of_porian_is_their_own() -> None:
    chinchilla = read_table(shared(DATA / "epoch_chinchilla" / "svg_extracted_data.csv"))
    np.testing.assert_allclose(6 * chinchilla.size * chinchilla.tokens, chinchilla.flop, rtol=1e-12)
    porian = read_table(shared(DATA / "porian" / "isoflop_points.csv"))
    assert np.abs(porian.flop / (6 * porian.size * porian.tokens) - 1).max() < 0.01


def test_batches_are_found_by_steps() -> None:
    gemstones = read_table(shared(DATA / "gemstones" / "wandb_df_for_fitting_cool_end.jsonl"))
    np.testing.assert_allclose(ratio(gemstones.batch_tokens, np.full(199, 2.0**22)), 1, rtol=0.01)
    step_law = read_table(shared(DATA / "step_law" / "dense_lr_bs_loss.csv"))
    sequences = ratio(step_law.batch_tokens, np.full(1911, 2048.0))  # of 2,048 tokens; D is rounded
    np.testing.assert_allclose([sequences.min(), sequences.max()], [16, 2048], rtol=0.01)


def test_a_spreadsheet_of_several_tables_is_refused() -> None:
    path = shared(DATA / "misfitting" / "data.csv")
    with pytest.raises(DocumentError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}:1:145: 'Params' and 'N' may both be the model size")


def test_a_table_without_losses_is_refused() -> None:
    path: Path = shared(DATA / "porian" / "optimal_pairs.csv")
    with pytest.raises(DocumentError, match="no column is the loss"):
        read_table(path)
