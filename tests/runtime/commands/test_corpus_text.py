"""What `isoplan data` prints of a corpus."""

from pathlib import Path

from runtime.commands.corpus_text import describe
from specs.curate import CurationStage
from specs.data import Bytes, DataSpec, FileText, Reading
from specs.sources import Sources
from tests.support.corpora import corpus


def test_curation_is_a_funnel() -> None:
    steps = [("GopherQualityFilter", 12_000, 2_400), ("ExactDedup", 9_600, 96)]
    curation = tuple(
        CurationStage(step=step, read=read, dropped=dropped, reasons={}, examples=())
        for step, read, dropped in steps
    )
    text = FileText(source="files", paths=("a.jsonl",))
    reading = Reading(records=9504, empty=0, duplicates=0, malformed=0, examples=(), curation=curation)
    built = corpus(DataSpec(text=text, tokenizer=Bytes(kind="bytes")), reading=reading)
    lines = [line.replace("\u202f", " ") for line in describe(Sources({"": built}), Path("data"))]
    assert lines[1:5] == [
        "step                   read  dropped  of these  left of all",
        "GopherQualityFilter  12,000    2,400    20.0 %       80.0 %",
        "ExactDedup            9,600       96     1.0 %       79.2 %",
        f"what was dropped, and why: data/{built.name}/curation.html",
    ]
