import re

import pytest

from specs.document import reference
from specs.document.schemas import kinds, type_of

PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_the_checked_in_page_is_current(name: str) -> None:
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == PAGES[name], "run `make generate`"


def test_no_page_is_left_of_a_kind_that_is_gone() -> None:
    assert {path.name for path in reference.FOLDER.glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("kind", kinds())
def test_every_key_has_a_row_that_says_what_it_does(kind: str) -> None:
    rows = [line.split(" | ") for line in PAGES[f"{kind}.md"].splitlines() if line.startswith("| `")]
    assert {f"| `{name}`" for name in type_of(kind).model_fields} <= {row[0] for row in rows}
    for row in rows:
        assert len(row) == 5
        assert len(row[-1]) > len(" |"), row


@pytest.mark.parametrize("kind", kinds())
def test_every_part_that_is_linked_has_a_heading(kind: str) -> None:
    page = PAGES[f"{kind}.md"]
    headings = [
        re.sub("[^a-z0-9_ -]", "", line[3:].lower()) for line in page.splitlines() if line[:3] == "## "
    ]
    assert len(headings) == len(set(headings))
    assert set(re.findall(r"\(#(.*?)\)", page)) <= {heading.replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "row"),
    [
        (
            "budget.md",
            "| `compute` | quantity, such as `1e24 FLOP` or `null` | FLOP | `null` | Training compute",
        ),
        ("budget.md", "| `objective` | [objective (kind: optimal)](#objective-kind-optimal) or"),
        ("budget.md", "| `rates` | list of: number, above 0 |  | `[0.5, 2]` |"),
        ("cluster.md", "| `time_limit` | quantity, such as `30 d` | s | `1 d` |"),
        ("run.md", "| `seed` | whole number, at least 0, below 4,294,967,296 |  | required |"),
        ("run.md", "| `warmup_steps` | whole number, at least 0 | steps | required |"),
        ("plan.md", "| `budget` | a [budget](budget.md) |  | required |"),
    ],
)
def test_a_row_says_values_unit_and_default(page: str, row: str) -> None:
    assert row in PAGES[page]
