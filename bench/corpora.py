"""Building a corpus beside `tokenizers`' own batch encoder: `python -m bench.corpora [MB] [ROUNDS]`, else 250 and 3;
and the memory that a large one takes: `python -m bench.corpora memory [GB]`, else 20.

The text is that of the installed packages as JSON lines, each copy of a document with another first line, so that no
two are the same. In every round the same text is encoded by `encode_batch_fast` alone, from strings in memory; built by
all cores; and built by one process. Speeds are bytes of text per second of the whole build: hashing the file, reading,
sorting, encoding, writing and joining. Resident memory is that of all processes of a build together, every fifth of a
second.

The large one is in files of a gigabyte each, compressed, and its tokenizer has whole words, which takes a fraction of
BPE's time: what a batch takes in memory does not depend on how many there are. It needs 2.5 times its size on disk.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pyarrow
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from runtime.data.build.corpus import build
from runtime.data.build.text_sources import read_parts, text_parts
from runtime.data.tokenizer import load
from specs.data import Bbpe, Bytes, DataSpec, FileText, InstalledText, TokenizerFile
from specs.data_inputs import input_files

VOCAB = 32_768
_BATCH_BYTES = 2**22
"""Text that is given to the batch encoder at once: more is not faster."""
_BUILD = """
import sys
from pathlib import Path
from rich.console import Console
from runtime.data.build.corpus import build
from specs.data_inputs import input_files
from specs.data import DataSpec
folder, data, processes = Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]) or None
build(DataSpec.model_validate_json(sys.argv[2]), folder, folder / data, Console(quiet=True), processes)
"""


@dataclass(frozen=True)
class Built:
    """A build."""

    seconds: float
    cpu_s: float
    """CPU seconds of all its processes, which say more where other programs run too."""
    resident_bytes: float
    """The most of all its processes together."""


def main(megabytes: int = 250, rounds: int = 3) -> None:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="isoplan-bench-") as place:
        folder = Path(place)
        texts = list(documents(megabytes * 10**6))
        text_bytes = sum(len(text.encode()) for text in texts)
        with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        train_tokenizer(folder, texts)
        found: dict[str, list[Built]] = {
            "batch encoder": [],
            "isoplan data": [],
            "one process": [],
        }
        for number in range(rounds):
            found["batch encoder"].append(encode(folder, texts))
            found["isoplan data"].append(built(folder, f"all-{number}", 0))
            found["one process"].append(built(folder, f"one-{number}", 1))
        console.print(table(found, text_bytes))


def memory(gigabytes: int = 20) -> None:
    """Build a large corpus once, and print what it took."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="isoplan-bench-") as place:
        folder = Path(place)
        console.print(f"writing {gigabytes} GB of text")
        (folder / "text").mkdir()
        texts = documents(gigabytes * 10**9)
        count = sum(
            _write_gigabyte(folder / "text" / f"{one:03}.jsonl.zst", texts) for one in range(gigabytes)
        )
        word_tokenizer(folder / "tokenizer.json", [*documents(10**7)])
        done = built(folder, "data", 0, "text")
        console.print(
            f"{gigabytes} GB, {count:,} documents: {gigabytes * 1e3 / done.seconds:.1f} MB/s, {done.cpu_s:,.0f} CPU s, "
            f"{done.resident_bytes / 1e6:,.0f} MB resident in all processes together"
        )


def _write_gigabyte(path: Path, texts: Iterator[str]) -> int:
    """The next gigabyte of these texts as one file; the number of documents."""
    written = count = 0
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        while written < 10**9 and (text := next(texts, None)) is not None:
            file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            written, count = written + len(text.encode()), count + 1
    return count


def word_tokenizer(path: Path, texts: list[str]) -> None:
    """A tokenizer of whole words, as tokenizer.json."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "<|endoftext|>"]
    trainer = trainers.WordLevelTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def documents(most_bytes: int) -> Iterator[str]:
    """Different documents, of so many bytes together."""
    packages = ("torch", "scipy", "sympy", "numpy")
    spec = DataSpec(text=InstalledText(source="installed", packages=packages), tokenizer=Bytes(kind="bytes"))
    parts = [
        part
        for some in text_parts(spec.text, [one.path for one in input_files(spec, Path(), Path("data"))])
        for part in some
    ]
    left, copy = most_bytes, 0
    while left > 0:
        for _, record in read_parts(spec, parts, lambda done: None):
            assert isinstance(record, bytes)  # installed text that is malformed is left out
            text = f"# copy {copy}\n{record.decode()}"
            left -= len(record)
            yield text
            if left <= 0:
                return
        copy += 1


def train_tokenizer(folder: Path, texts: list[str]) -> None:
    """A BBPE of these texts, as tokenizer.json."""
    (folder / "sample.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:300]))
    text = FileText(source="files", paths=("sample.jsonl",))
    spec = DataSpec(text=text, tokenizer=Bbpe(kind="bbpe", vocab=VOCAB), held_out_one_in=50)
    corpus = build(spec, folder, folder / "sample", Console(quiet=True))
    (folder / "sample" / corpus.name / "tokenizer.json").rename(folder / "tokenizer.json")


def encode(folder: Path, texts: list[str]) -> Built:
    """What the library takes for all texts, on all cores; its memory, with that of this program, is not counted."""
    tokenizer = load(folder / "tokenizer.json")
    begun, cpu_s = time.perf_counter(), time.process_time()
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES or text is texts[-1]:
            tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            batch, size = [], 0
    return Built(time.perf_counter() - begun, time.process_time() - cpu_s, 0.0)


def built(folder: Path, data: str, processes: int, text: str = "text.jsonl") -> Built:
    """A build of this text in a process of its own; all cores where `processes` is 0."""
    files = FileText(source="files", paths=(text,))
    spec = DataSpec(text=files, tokenizer=TokenizerFile(kind="file", path="tokenizer.json"))
    argv = [sys.executable, "-c", _BUILD, str(folder), spec.canonical_json(), data, str(processes)]
    environment = os.environ | ({"TOKENIZERS_PARALLELISM": "false"} if processes == 1 else {})
    begun, cpu_s = time.perf_counter(), children_cpu_s()
    with subprocess.Popen(argv, env=environment) as process:
        watch = Watch(process.pid)
        watch.start()
        code = process.wait()
    seconds = time.perf_counter() - begun
    watch.stop()
    assert code == 0
    return Built(seconds, children_cpu_s() - cpu_s, watch.most_bytes)


def children_cpu_s() -> float:
    """CPU seconds of this process's children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Watch(threading.Thread):
    """The resident memory of a process and its children, now and then."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._stopped = pid, threading.Event()
        self.most_bytes = 0.0

    def run(self) -> None:
        """Look until it is stopped."""
        while not self._stopped.wait(0.2):
            self.most_bytes = max(self.most_bytes, sum(map(_resident_bytes, _tree(self._pid))))

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self.join()


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


def table(found: dict[str, list[Built]], text_bytes: int) -> Table:
    """Speeds, beside the library's and one process's, and memory."""
    rates = {name: text_bytes / 1e6 / median(one.seconds for one in builds) for name, builds in found.items()}
    shown = Table(
        "", "MB/s", "of the encoder's", "of one process", "CPU s", "resident MB", box=None, pad_edge=False
    )
    for name, builds in found.items():
        memory = max(one.resident_bytes for one in builds) / 1e6
        shown.add_row(
            name,
            f"{rates[name]:.2f}",
            f"{rates[name] / rates[next(iter(found))]:.0%}",
            f"{rates[name] / rates['one process']:.2f}x",
            f"{median(one.cpu_s for one in builds):.1f}",
            f"{memory:,.0f}" if memory else "",
        )
    shown.title = f"{text_bytes / 1e6:,.0f} MB of text, medians of {len(next(iter(found.values())))} rounds"
    return shown


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(*map(int, sys.argv[2:]))
    else:
        main(*map(int, sys.argv[1:]))
