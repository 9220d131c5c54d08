"""A tiny mix of three sources, and runs on it."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from runtime.data.build.mix import build_sources
from specs.data import Bytes, DataSpec, FileText, MixPart, MixText
from specs.mix import Mix, MixPhase
from specs.sources import Sources

DOCUMENTS = {"web": 60, "code": 30, "math": 20}
"""Documents of each source."""


def spec(**changes: Any) -> DataSpec:
    """The mix of the files `<source>.jsonl`, whose text is of lengths of their own."""
    parts = {
        name: MixPart(text=FileText(source="files", paths=(f"{name}.jsonl",)), share=share)
        for name, share in {"web": 0.7, "code": 0.2, "math": 0.1}.items()
    }
    plain: dict[str, Any] = {
        "text": MixText(source="mix", parts=parts),
        "tokenizer": Bytes(kind="bytes"),
        "held_out_one_in": 4,
    }
    return DataSpec(**(plain | changes))


def write_texts(home: Path) -> None:
    """The files of `spec`."""
    for name, documents in DOCUMENTS.items():
        texts = [f"{name} {i}: " + f"{i * 7919 % 1009} {name} things. " * 20 for i in range(documents)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def built(home: Path) -> Sources:
    """The mix under `home / "data"`."""
    write_texts(home)
    return build_sources(spec(), home, home / "data", Console(quiet=True), 1)


def mix(anneal_from: int) -> Mix:
    """Shares of 70, 20 and 10 %, and mostly math from a step on."""
    return Mix(
        phases=(
            MixPhase(from_step=0, samples={"web": 7, "code": 2, "math": 1}),
            MixPhase(from_step=anneal_from, samples={"web": 1, "math": 4}),
        ),
        evaluation={"web": 6, "code": 2, "math": 3},
    )
