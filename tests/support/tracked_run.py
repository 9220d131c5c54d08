"""A run folder as the engine writes it, without training; and what each tracker has of the run, read from its files."""

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.run_folder.folder import RunFolder, open_folder
from runtime.run_folder.tail import truncate_after_step
from specs.document.write import append_line, append_lines
from specs.record import (
    End,
    Environment,
    EvalLine,
    Incident,
    Order,
    Rollback,
    SkippedRange,
    Start,
    StepLine,
    TimingLine,
)
from tests.support import samples

STEPS = 20


@dataclass
class TrackedRun:
    """A run that is started, trained and killed step by step."""

    home: Path
    folder: RunFolder = field(init=False)

    def __post_init__(self) -> None:
        run = samples.run(optim=samples.optim(steps=STEPS, milestones=(), warmup_steps=0))
        order = Order(
            run=run.fingerprint(),
            title="a run",
            seal=None,
            execution=samples.execution(),
            peak_flop_per_s=None,
            curve=None,
        )
        self.folder = open_folder(self.home / "runs", run, order)

    def start(self, from_step: int) -> None:
        """Begin a segment: what an earlier one wrote past that step is taken back."""
        for path in (self.folder.metrics_jsonl, self.folder.evals_jsonl):
            truncate_after_step(path, from_step)
        environment = Environment(host="n1", python="3", packages={}, commit=None, cpu="", devices=())
        run, how = self.folder.run().fingerprint(), samples.execution()
        start = Start(
            time=0.0,
            run=run,
            seal=None,
            from_step=from_step,
            execution=how,
            kernels={},
            environment=environment,
        )
        append_line(self.folder.record_jsonl, start)

    def train(self, first: int, last: int, batch: int = 0) -> None:
        """Steps with losses that depend on which batches they read; an evaluation every fourth."""
        tokens = self.folder.run().batch_tokens
        for step in range(first, last + 1):
            loss = 5 / (step + batch)
            line = StepLine(step=step, tokens=step * tokens, loss=loss, grad_norm=1.0, lr=1e-3)
            append_line(self.folder.metrics_jsonl, line)
            if step % 4 == 0:
                held_out = EvalLine(
                    step=step, tokens=step * tokens, loss=loss + 1, sequences=4, sources={"web": loss + 2}
                )
                append_line(self.folder.evals_jsonl, held_out)
        timing = TimingLine(step=last, seconds=1.0, tokens_per_s=100.0, mfu=None)
        append_lines(self.folder.timing_jsonl, [timing])

    def save(self, step: int, rejected: int = 0) -> None:
        """A checkpoint, after so many rejected steps in a row."""
        path = self.folder.checkpoints / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "manifest.json").write_text(json.dumps({"guard": {"rejected_in_a_row": rejected}}))

    def incident(self, step: int) -> None:
        """An incident."""
        line = Incident(time=0.0, step=step, what="interrupted", message="a stop signal")
        append_line(self.folder.record_jsonl, line)

    def roll_back(self, step: int, to_step: int) -> None:
        """Take back the steps after one; what follows reads other data."""
        skipped = SkippedRange(step=step, to_step=to_step, batches=step)
        append_line(self.folder.record_jsonl, Rollback(time=0.0, skipped=skipped, message="rejected"))
        self.start(to_step)

    def end(self) -> None:
        """The run is finished."""
        self.save(STEPS)
        append_line(self.folder.record_jsonl, End(time=0.0, step=STEPS, loss=2.0, weights_sha256="0" * 64))


Points = list[tuple[int, str, float]]
"""Steps, names and values, as often as they are there."""


@dataclass
class Tracked:
    """What a tracker has."""

    runs: int
    """Runs."""
    points: Points
    """Their points, sorted."""
    configs: list[Any]
    """The configurations that were sent."""
    text: str
    """What happened to the run."""


def expected(folder: RunFolder) -> Points:
    """What a tracker has of a finished run, without its times."""
    found = [(line.step, "train/loss", line.loss or 0.0) for line in folder.metrics()]
    found += [(line.step, "tokens", line.tokens) for line in folder.metrics()]
    for line in folder.evals():
        found += [(line.step, "held_out/loss", line.loss)]
        found += [(line.step, f"held_out/source/{name}", loss) for name, loss in line.sources.items()]
    return sorted(found)


def _of(points: Any) -> Points:
    """The points with the names that are compared."""
    return sorted(
        (step, name, value)
        for step, values in points
        for name, value in values.items()
        if name in ("train/loss", "tokens") or name.startswith("held_out")
    )


def stand_in_tracked(to: str, files: Path) -> Tracked:
    """What a stand-in has (tests/support/trackers)."""
    if to == "wandb":
        parts = [json.loads(path.read_text()) for path in sorted((files / "wandb").glob("*/run.json"))]
        heads = [part["head"] for part in parts]
        return Tracked(
            runs=len({head["id"] for head in heads}),
            points=_of(point for part in parts for point in part["points"]),
            configs=[head["config"] for head in heads if head["config"]],
            text=parts[-1]["summary"]["events"],
        )
    if to == "mlflow":
        content = json.loads((files / "mlflow.db").read_text())
        assert content["status"] == "FINISHED"
        text = content["tags"]["mlflow.note.content"]
        return Tracked(1, _of(content["points"]), [content["params"]], text)
    content = json.loads((files / "trackio" / "isoplan.json").read_text())
    text = "\n".join(alert["text"] for alert in content["alerts"])
    return Tracked(1, _of(content["points"]), [content["head"]["config"]], text)


def tracked(to: str, files: Path) -> Tracked:
    """What the real one has."""
    if to == "wandb":
        return _wandb(files / "wandb")
    if to == "mlflow":
        rows = sqlite3.connect(files / "mlflow.db")
        points = rows.execute("select step, key, value from metrics").fetchall()
        texts = rows.execute("select value from tags where key = 'mlflow.note.content'").fetchall()
        [[runs]] = rows.execute("select count(*) from runs").fetchall()
        configs = [dict(rows.execute("select key, value from params").fetchall())]
        return Tracked(runs, _of((step, {name: value}) for step, name, value in points), configs, texts[0][0])
    rows = sqlite3.connect(files / "trackio" / "isoplan.db")
    points = [(step, json.loads(text)) for step, text in rows.execute("select step, metrics from metrics")]
    [[runs]] = rows.execute("select count(distinct run_id) from metrics").fetchall()
    configs = [json.loads(text) for (text,) in rows.execute("select config from configs")]
    texts = [text for (text,) in rows.execute("select text from alerts order by step")]
    return Tracked(runs, _of(points), configs, "\n".join(texts))


def _wandb(folder: Path) -> Tracked:
    from wandb.proto.wandb_internal_pb2 import Record

    points, ids, configs, text = [], set(), [], ""
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        for data in _log_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = {
                    (item.key or item.nested_key[0]): json.loads(item.value_json)
                    for item in record.history.item
                }
                points.append((items["_step"], items))
            if record.HasField("run"):
                ids.add(record.run.run_id)
                own = [item.key for item in record.run.config.update if not item.key.startswith("_")]
                configs += [own] if own else []
            for item in record.summary.update if record.HasField("summary") else ():
                text = json.loads(item.value_json) if "events" in (item.key, *item.nested_key) else text
    return Tracked(len(ids), _of(points), configs, text)


def _log_records(data: bytes) -> list[bytes]:
    """The records of a file in LevelDB's log format, behind W&B's header of seven bytes."""
    found, parts, at = [], b"", 7
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(parts)
            parts = b""
    return found
