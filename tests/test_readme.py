"""The commands of the README and of docs/ are run, as a newcomer would type them; what the pages name is there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import ByteLevelBPETokenizer

from specs.budget import Budget
from specs.document.files import load
from specs.document.yaml_writer import yaml_text
from tests.support import commands_page
from tests.support.paths import ROOT
from tests.support.token_files import write_flat

NAV = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
GENERATED = [page for page in NAV if page.startswith("reference/")] + ["commands.md"]
PAGES = {page: (ROOT / "docs" / page).read_text() for page in NAV if page not in GENERATED}
"""The pages that people write, in the order in which they are read."""
README = (ROOT / "README.md").read_text()
RUN = re.compile(r"\bRUN\b")
"""Stands for a run's fingerprint."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, of the README and then of each page."""
    return [
        block
        for text in (README, *PAGES.values())
        for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    ]


def tables() -> list[tuple[str, str]]:
    """Name and content of the tables that the pages show."""
    return [
        found
        for text in (README, *PAGES.values())
        for found in re.findall(r'```csv title="(\S+)"\n(.*?)```', text, flags=re.DOTALL)
    ]


def commands() -> list[str]:
    """Every command line that is not make's."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if not line.startswith("make ")]


def typed(command: str, folder: Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """What a command prints that is typed in a folder; it must succeed."""
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def prepare(folder: Path) -> None:
    """The shipped budgets, the files that the pages show, a folder of notes, and the same notes as a team has them."""
    shutil.copytree(ROOT / "specs", folder / "specs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for block in blocks("yaml"):
        if match := re.match(r"# (\S+)\n", block):
            (folder / match[1]).write_text(block)
    for name, block in tables():
        (folder / name).write_text(block)
    (folder / "notes").mkdir()
    sources = [
        path
        for top in ("specs", "planner", "runtime", "model", "tests")
        for path in sorted((ROOT / top).rglob("*.py"))
    ]
    for number, path in enumerate(sources):
        shutil.copy(path, folder / "notes" / f"{number}.md")
    texts = [path.read_text() for path in sources]
    (folder / "mix").mkdir()
    for number, name in enumerate(("web", "code", "math")):
        lines = [json.dumps({"text": text}) for text in texts[number::3]]
        (folder / "mix" / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "web").mkdir()
    for number in range(2):
        table = pyarrow.table({"url": texts[number::2], "content": texts[number::2]})
        pyarrow.parquet.write_table(table, folder / "web" / f"part-{number}.parquet")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts[:100], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    documents = [[*one.ids, 0] for one in tokenizer.encode_batch(texts)]
    write_flat(folder / "train.bin", documents[100:])
    write_flat(folder / "val.bin", documents[:100])


@pytest.mark.slow
def test_the_commands_work_in_order(tmp_path: Path) -> None:
    """In a workspace with the shipped budgets, the files that are shown, and nothing else."""
    prepare(tmp_path)
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for command in commands():
        run = max((tmp_path / "runs").glob("*/"), key=lambda path: path.stat().st_ctime, default=Path("none"))
        typed(RUN.sub(run.name, command), tmp_path, environment, timeout_s=600)
    assert (tmp_path / "plans" / "smoke" / "audit.html").exists()
    assert (tmp_path / "plans" / "budget_1e24" / "report.html").exists()
    assert (tmp_path / "exports" / "example" / "config.json").exists()
    assert (tmp_path / "fits" / "runs" / "fit.html").exists()


def test_the_budget_that_is_shown_is_a_budget(tmp_path: Path) -> None:
    """And it is the demo's."""
    [shown] = [block for block in blocks("yaml") if "\nname: demo\n" in block]
    (tmp_path / "demo.yaml").write_text(shown)
    assert load(tmp_path / "demo.yaml", Budget) == load(ROOT / "specs" / "demo.yaml", Budget)


@pytest.mark.parametrize(
    "snippet",
    sorted(
        set(
            re.findall(r"`((?:objective|evidence): \{.*?\}|[a-z_]+: [$0-9][^`]*)`", PAGES["guides/budget.md"])
        )
    ),
)
def test_every_line_of_a_budget_that_is_proposed_is_accepted(snippet: str, tmp_path: Path) -> None:
    budget = load(ROOT / "specs" / "budget_1e24.yaml", Budget).plain()
    name = snippet.partition(":")[0]
    rest = {
        key: value
        for key, value in budget.items()
        if value is not None and key not in (name, "data", "guard")
    }
    if name not in ("objective", "evidence"):
        rest.pop("compute", None)
    data = {"data": {"text": {"source": "installed"}, "tokenizer": {"kind": "bytes"}}}
    (tmp_path / "budget.yaml").write_text(yaml_text(rest | data) + f"{snippet}\n")
    assert getattr(load(tmp_path / "budget.yaml", Budget), name) is not None


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{page}" for page in PAGES)])
def test_every_file_that_is_named_is_there(page: str) -> None:
    """Paths into the repository, pictures and links. The log is history: it may name what is gone."""
    text = (ROOT / page).read_text()
    named = re.findall(r"(?<![\w./-])(?:docs|specs|planner|model|runtime|tests|bench)/[\w./-]*\w", text)
    for name in named if page != "docs/log.md" else []:
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_every_page_is_in_the_site() -> None:
    docs = ROOT / "docs"
    assert sorted(NAV) == sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))


def test_the_page_of_the_commands_is_current() -> None:
    assert commands_page.PAGE.read_text() == commands_page.generate(), "run `make generate`"


def test_decisions_are_numbered_in_reading_order() -> None:
    """So that a number names one of them."""
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", PAGES["design.md"], re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
