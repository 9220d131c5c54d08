"""What a column's name means: the one table of the names that quantities go by, and the units in them."""

import re
from dataclasses import dataclass
from functools import cache

from specs.law import LossUnit

NAMES: dict[str, tuple[str, ...]] = {
    "params": (
        "n params nparams numparams params_total total_params n_total parameters num_parameters n_parameters"
        " parameter_count param_count n_params_total params_active_precise active_params n_active n_act"
        " params_active active_parameters n_a params_with_embeddings n_with_emb n_w_emb",
        "model_size size model_params",
    ),
    "block_params": (
        "block_params non_embedding_params nonembedding_params n_non_embedding non_embedding_parameters"
        " non_embedding_param_size n_no_emb n_noemb params_no_emb params_no_embedding params_non_embedding"
        " params_wo_emb n_wo_emb non_emb_params total_non_emb_params non_vocab_parameters non_vocab_params n_nonemb"
        " n_nv nnv",
    ),
    "flop_per_token": (
        "m flop_per_token flops_per_token flop_token flops_token train_flop_per_token train_flops_per_token",
    ),
    "tokens": (
        "tokens_seen tokens_trained consumed_tokens trained_tokens",
        "d tokens n_tokens num_tokens token_count total_tokens",
        "train_tokens training_tokens tokens_train data_size dataset_size",
        "tokens_target goal_train_tokens token_budget",
    ),
    "loss": (
        "val_loss valid_loss validation_loss eval_loss evaluation_loss test_loss heldout_loss final_val_loss"
        " final_validation_loss final_eval_loss final_test_loss loss_val loss_eval loss_validation loss_test"
        " val_cross_entropy eval_cross_entropy validation_cross_entropy val_ce val_nll eval_nll",
        "",  # losses of a named held-out set, as in "C4 Eval Loss": see `_is_held_out`
        "loss final_loss lm_loss loss_final cross_entropy ce_loss nll",
        "smooth_loss loss_smooth smoothed_loss ema_loss",
        "train_loss training_loss avg_train_loss final_train_loss loss_train mean_train_loss",
    ),
    "flop": (
        "c flop flops compute train_flop train_flops training_flop training_flops total_flop total_flops"
        " total_train_flops total_training_flops flop_total flops_total train_compute training_compute"
        " compute_flop compute_flops flop_budget compute_budget",
    ),
    "steps": (
        "steps n_steps num_steps train_steps training_steps optimizer_steps iterations iters n_iters num_iters",
        "step current_steps current_step global_step iter iteration",
        "total_steps max_steps train_iters ti",
    ),
    "lr": ("lr peak_lr max_lr learning_rate peak_learning_rate max_learning_rate base_lr",),
    "batch_tokens": (
        "batch_tokens tokens_per_batch tok_batch tok_per_batch batch_size_tokens batch_size_in_tokens"
        " global_batch_tokens global_batch_size_tokens tokens_per_step",
    ),
    "batch": ("batch_size global_batch_size train_batch_size total_batch_size bs bsz batch gbs",),
    "seed": ("seed random_seed init_seed data_seed",),
    "unique_tokens": ("unique_tokens n_unique_tokens num_unique_tokens tokens_unique unique_data u",),
    "name": ("run_name", "name", "exp_name experiment_name experiment", "run_id", "run", "id"),
    "layers": ("layers n_layers num_layers n_layer num_hidden_layers depth numl n_blocks",),
    "width": ("width d_model hidden_size hidden_dim model_dim model_width n_embd embed_dim dim dmodel",),
    "heads": ("heads n_heads num_heads n_head num_attention_heads numh",),
    "kv_heads": ("kv_heads n_kv_heads num_kv_heads num_key_value_heads n_query_groups",),
    "ffn": ("ffn ffn_dim d_ff dff ffn_width ffn_hidden_size intermediate_size mlp_dim ffnh feedforward_dim",),
    "vocab": ("vocab vocab_size n_vocab vocabulary vocabulary_size",),
    "context": (
        "context seq_len seq_length sequence_length context_length ctx_len max_seq_len block_size n_ctx",
    ),
    "unit": ("loss_unit unit loss_units",),
}
"""Quantity -> names in order of preference, a line for those that mean the same. Case and punctuation do not matter."""

SIZES = ("params", "block_params", "flop_per_token")
"""In order of preference: a table that counts all parameters is fitted in them."""
SHAPES = ("layers", "width", "heads", "kv_heads", "ffn", "vocab", "context")
MAPPABLE = tuple(quantity for quantity in NAMES if quantity != "unit")

UNITS: dict[str, LossUnit] = {
    "nats/token": "nats/token",
    "nats_per_token": "nats/token",
    "nats": "nats/token",
    "nat": "nats/token",
    "nats_token": "nats/token",
    "bits_per_token": "bits/token",
    "bits_token": "bits/token",
    "bits": "bits/token",
    "bpt": "bits/token",
    "bits_per_byte": "bits/byte",
    "bits_byte": "bits/byte",
    "bpb": "bits/byte",
}
"""How units are written, words joined by underscores."""

_SCALES = {
    **dict.fromkeys(("k", "thousand", "thousands"), 1e3),
    **dict.fromkeys(("m", "mn", "million", "millions"), 1e6),
    **dict.fromkeys(("b", "bn", "g", "billion", "billions"), 1e9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), 1e12),
}
_FLOP_SCALES = {"e": 1e18, "z": 1e21, "y": 1e24}
"""Of amounts; TFLOPS and PFLOPS are mostly rates."""
PF_DAY = 1e15 * 86400
"""FLOP of a petaFLOP/s-day (Kaplan et al. 2020, section 1.3)."""
_PF_DAYS = (
    "pf_days",
    "pfdays",
    "pf_day",
    "pflop_s_days",
    "pflops_days",
    "petaflop_s_days",
    "compute_pf_days",
)
_SCALED = ("params", "block_params", "tokens", "unique_tokens", "batch_tokens", "flop")
_NOT_A_MEAN = {"std", "sd", "stderr", "se", "max", "min", "var", "count"}
_HELD_OUT = {"val", "valid", "validation", "eval", "evaluation", "test", "heldout"}
_HELD_OUT_LOSS, _TRAINING_LOSS = ("loss", 0), ("loss", len(NAMES["loss"]) - 1)
"""What names of losses that say it mean: the first and the last line of `NAMES`."""


@dataclass(frozen=True)
class Meaning:
    """What a column holds, by its name."""

    quantity: str
    tier: int
    """Place of the name in its quantity's order of preference."""
    scale: float = 1.0
    """Factor to base units: 1e9 for "tokens (B)"."""
    unit: LossUnit | None = None
    """Of a loss, where the name has one."""


def squeeze(name: str) -> str:
    """A name without case and punctuation: what names are compared by."""
    return "".join(_words(name))


def meaning(name: str) -> Meaning | None:
    """What a column of this name holds; of a nested key the last part counts where the whole says nothing."""
    return _meaning(name) or (_meaning(name.rpartition(".")[2]) if "." in name else None)


def is_perplexity(name: str) -> bool:
    """Whether a column is named for a perplexity."""
    return bool({"ppl", "perplexity"} & set(_words(name)))


def is_accuracy(name: str) -> bool:
    """Whether a column is named for an accuracy."""
    return bool({"acc", "accuracy", "exactmatch"} & set(_words(name)))


def is_held_out(name: str) -> bool | None:
    """Whether a loss of this name is of held-out text, False for a training loss; None where it does not say."""
    words = {*_words(name), squeeze(name)}
    tier = _index().get(squeeze(name), ("", 0))
    if {"train", "training"} & words or tier == _TRAINING_LOSS:
        return False
    return True if _HELD_OUT & words or {"held", "out"} <= words or tier == _HELD_OUT_LOSS else None


def per_character(name: str) -> bool:
    """Whether a loss is named for bits per character, which depends on the text's alphabet."""
    return bool(re.search(r"(^|_)(bpc|bits_(per_)?char(acter)?s?)(_|$)", "_".join(_words(name))))


def as_unit(text: str) -> LossUnit | None:
    """The unit of a loss that a text names."""
    return UNITS.get("_".join(_words(text)))


@cache
def _index() -> dict[str, tuple[str, int]]:
    """Squeezed name -> (quantity, tier)."""
    return {
        squeeze(name): (quantity, tier)
        for quantity, tiers in NAMES.items()
        for tier, names in enumerate(tiers)
        for name in names.split()
    }


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _meaning(name: str) -> Meaning | None:
    if found := _index().get(squeeze(name)):
        return Meaning(*found)
    words = _words(name)
    return _scaled(words) or _loss(words)


def _scaled(words: list[str]) -> Meaning | None:
    """A name that ends with a scale, as "tokens (B)", "params_m", "total ZFLOPs" and "PF-days" do."""
    if "_".join(words) in _PF_DAYS:
        return Meaning("flop", 0, PF_DAY)
    flop = re.fullmatch(r"([ezy])flops?", words[-1]) if words else None
    head = "".join([*words[:-1], "flops"]) if flop else "".join(words[:-1])
    scale = _FLOP_SCALES[flop[1]] if flop else _SCALES.get(words[-1]) if words else None
    quantity, tier = _index().get(head, ("", 0))
    return Meaning(quantity, tier, scale) if scale and quantity in _SCALED else None


def _loss(words: list[str]) -> Meaning | None:
    """A name with a unit in it, or one of a named held-out set."""
    text = "_".join(words)
    unit = None
    for written in sorted(UNITS, key=len, reverse=True):
        if re.search(rf"(^|_){written}(_|$)", text):
            unit = UNITS[written]
            words = [word for word in words if word not in written.split("_")]
            break
    plain = "".join(words)
    for head in (plain, f"{plain}loss") if unit else ():
        quantity, tier = _index().get(head, ("", 0))
        if quantity == "loss":
            return Meaning("loss", tier, unit=unit)
    if (unit or "loss" in words) and _is_held_out(words):
        return Meaning("loss", 1, unit=unit)
    return None


def _is_held_out(words: list[str]) -> bool:
    """A loss of a named held-out set: "C4 Eval Loss", "eval/wiki/loss"."""
    return bool(_HELD_OUT & set(words)) and not _NOT_A_MEAN & set(words)
