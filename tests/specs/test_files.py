import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specs.budget import Budget
from specs.cluster import Cluster
from specs.data import Bbpe
from specs.document import schemas
from specs.document.base import Spec
from specs.document.files import DocumentError, from_catalog, load, load_any, locate, read_lines
from specs.document.parse import located, read_json, read_yaml
from specs.document.write import append_line, write_json, write_text, write_yaml
from specs.document.yaml_writer import yaml_text
from specs.law import Family, PublishedLaw
from specs.record import EvalLine, RecordLine, StepLine
from tests.support.paths import ROOT

DOCUMENTS = sorted((ROOT / "specs").rglob("*.yaml"))
NOWHERE = Path("nowhere.yaml")
STEP = StepLine(step=1, tokens=2048, loss=5.5, grad_norm=0.1, lr=1e-3)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.from_regex(r"[-+.0-9eExo_:~ ]{0,8}", fullmatch=True)
    | st.sampled_from(
        [
            "null",
            "True",
            "NO",
            "y",
            "~",
            "-",
            "- a",
            "a: b",
            "a #b",
            "1e5",
            "0x1",
            "2024-01-01",
            "<<",
            "=",
            "---",
        ]
    )
)
plains = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def same(left: object, right: object) -> bool:
    """Equal with equal types: 1, 1.0 and True are three things."""
    return json.dumps(left) == json.dumps(right)


def refusal(read: Callable[[], object]) -> str | None:
    """The message of the DocumentError; any other exception fails the test."""
    try:
        read()
    except DocumentError as error:
        return str(error)
    return None


# --- documents that are in the repository ---


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_document_here_is_valid_and_reads_back_equal(path: Path, tmp_path: Path) -> None:
    spec = load_any(path)
    for copy, write in ((tmp_path / "copy.yaml", write_yaml), (tmp_path / "copy.json", write_json)):
        write(copy, spec)
        again = load(copy, type(spec))
        assert again == spec
        assert again.fingerprint() == spec.fingerprint()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_an_editor_finds_the_schema_that_a_document_names(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    if path.parent == ROOT / "specs" or first.startswith("#"):
        prefix, _, schema = first.partition("$schema=")
        assert prefix == "# yaml-language-server: "
        kind = located(read_yaml(path, path.read_text())).plain["kind"]
        assert (path.parent / schema).resolve() == schemas.schema_path(kind)


@pytest.mark.parametrize("kind", schemas.kinds())
def test_the_checked_in_schema_is_current(kind: str) -> None:
    written = schemas.schema_path(kind).read_text(encoding="utf-8")
    assert written == schemas.generate(kind), "run `python -m specs.document.schemas`"
    assert json.loads(written)["$schema"].startswith("https://json-schema.org/")


def test_every_kind_that_a_type_declares_has_a_schema() -> None:
    def every(spec: type[Spec]) -> list[type[Spec]]:
        return [spec, *(deeper for below in spec.__subclasses__() for deeper in every(below))]

    top = {schemas.type_of(kind) for kind in schemas.kinds()}
    assert top <= set(every(Spec))
    assert {path.stem for path in schemas.FOLDER.glob("*.json")} == set(schemas.kinds())


# --- YAML ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e24", 1e24),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-1e-3", -1e-3),
        ("12", 12),
        ("0x10", 16),
        ("0o17", 15),
        ("017", 17),
        ("12:00:00", "12:00:00"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("true", True),
        ("'true'", "true"),
        ("null", None),
        ("", None),
        ("'1e24'", "1e24"),
        ("[1, a, {b: c}]", [1, "a", {"b": "c"}]),
        ("|\n  two\n  lines", "two\nlines\n"),
        ('"\\u00fc\\n"', "ü\n"),
    ],
)
def test_yaml_is_version_1_2(text: str, value: object) -> None:
    assert same(read_yaml(NOWHERE, f"key: {text}\n").plain, {"key": value})


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.dictionaries(texts, plains, max_size=5))
def test_yaml_that_we_write_reads_back_as_exactly_the_same(plain: dict[str, object]) -> None:
    text = yaml_text(plain)
    assert same(read_yaml(NOWHERE, text or "{}").plain, plain)
    assert text == yaml_text(plain)


def test_yaml_is_written_in_block_style_with_lists_of_numbers_in_one_line() -> None:
    plain = {
        "a": {"b": [1, 2.5], "c": []},
        "d": [{"e": "1e24 FLOP", "f": "no"}, "x: y"],
        "g": [[1, 2], [3, 4]],
        "h": 1e24,
    }
    assert yaml_text(plain) == (
        'a:\n  b: [1, 2.5]\n  c: []\nd:\n  - e: 1e24 FLOP\n    f: "no"\n  - "x: y"\ng: [[1, 2], [3, 4]]\nh: 1e+24\n'
    )


def test_places_of_keys_and_values() -> None:
    document = read_yaml(NOWHERE, "# comment\na:\n  b: [1, 22]\n  c:   x\n")
    assert document.place(("a",), at_key=True) == (2, 1)
    assert document.place(("a", "b", 1)) == (3, 10)
    assert document.place(("a", "c")) == (4, 8)
    assert document.place(("a", "absent", 3)) == (3, 3)
    assert document.place(()) == (2, 1)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(texts, plains, min_size=1, max_size=4), st.booleans())
def test_json_gets_its_places_by_being_yaml(plain: dict[str, object], wide: bool) -> None:
    text = json.dumps(plain, indent="\t" if wide else None, ensure_ascii=False)
    document = read_json(NOWHERE, text)
    assert same(document.plain, plain)
    found = located(document)
    if found.values:  # characters that YAML refuses leave a document without places
        assert same(found.plain, plain)
        for key in plain:
            line, column = found.place((key,), at_key=True)
            assert text.split("\n")[line - 1][column - 1 :].startswith(json.dumps(key, ensure_ascii=False))


def test_a_refusal_points_at_the_field_or_its_nearest_part(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("runs:\n  - run: {seed: 1}\n  - run: {seed: 2}\n")
    assert str(locate(path, "runs.1.run.seed", "w", "x")) == f"{path}:3:17: w; x"
    assert str(locate(path, "runs.1.run.parent.step", "w", "x")) == f"{path}:3:10: w; x"
    assert str(locate(path, "absent", "w", "x")) == f"{path}:1:1: w; x"


# --- arbitrary input ---


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.text(alphabet="abk:{}[],&*!|>'\"%#?- \n\t\\x01eE.~@`<=", max_size=80).map(str.encode)
    | st.builds(
        lambda key, text: f"kind: budget\n{key}: {text}\n".encode(),
        st.sampled_from(list(Budget.model_fields)),
        st.text(),
    ),
    st.sampled_from(["yaml", "json", "txt"]),
)
def test_arbitrary_bytes_never_give_anything_but_a_document_error(
    tmp_path: Path, data: bytes, suffix: str
) -> None:
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(data)
    for read in (lambda: load(path, Budget), lambda: load_any(path), lambda: read_lines(path, RecordLine)):
        message = refusal(read)
        if message is not None:
            place = re.match(re.escape(str(path)) + r":([1-9]\d*):[1-9]\d*: .+; .+", message)
            assert place
            assert int(place[1]) <= data.count(b"\n") + data.count(b"\r") + 1
            assert message.isprintable()


# --- files ---


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old\n")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DocumentError, match="No space left on device"):
        write_text(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(path.parent.iterdir()) == [path]


def test_written_bytes_depend_on_the_content_only(tmp_path: Path) -> None:
    budget = load(ROOT / "specs" / "demo.yaml", Budget)
    write_yaml(tmp_path / "a.yaml", budget, "made by hand\nsecond line")
    write_yaml(tmp_path / "b.yaml", budget, "made by hand\nsecond line")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    assert (tmp_path / "a.yaml").read_text().startswith("# made by hand\n# second line\nkind: budget\n")


def test_lines_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [STEP.model_copy(update={"step": step}) for step in (1, 2, 3)]
    for line in lines:
        append_line(path, line)
    assert read_lines(path, StepLine) == lines
    assert path.read_text().count("\n") == 3


def _append_many(path: Path, worker: int) -> None:
    for step in range(1, 51):
        append_line(path, StepLine(step=step, tokens=1 + worker, loss=1.0, grad_norm=1.0, lr=1.0))


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = {(line.tokens, line.step) for line in read_lines(path, StepLine)}
    assert found == {(1 + worker, step) for worker in range(4) for step in range(1, 51)}


def test_nothing_is_appended_behind_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, STEP)
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    with pytest.raises(DocumentError, match=r"ledger.jsonl:2:1: the last line is cut off; "):
        append_line(path, STEP)
    with pytest.raises(DocumentError, match=r"ledger.jsonl:2:1: the last line is cut off; "):
        read_lines(path, StepLine)
    assert path.read_text() == whole + whole[:20]


def test_lines_of_a_union_are_told_apart_by_their_tag(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text('{"event": "incident", "time": 1.5, "step": 3, "what": "interrupted", "message": "m"}\n')
    assert read_lines(path, RecordLine)[0].step == 3
    path.write_text(
        path.read_text()
        + '{"event": "incident", "time": 1.5, "step": 3, "whta": "interrupted", "message": "m"}\n'
    )
    with pytest.raises(DocumentError, match=r"record.jsonl:2:47: unknown key 'whta'; write 'what'"):
        read_lines(path, RecordLine)


def test_ten_thousand_lines_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "evals.jsonl"
    path.write_text('{"step": 1, "tokens": 1, "loss": 1.0, "sequences": 1}\n' * 10_000)
    assert len(read_lines(path, EvalLine)) == 10_000


# --- catalog ---


@pytest.mark.parametrize(
    ("kind", "folder"), [(PublishedLaw, "laws"), (Cluster, "clusters"), (Family, "families")]
)
def test_the_catalog_finds_what_is_there_by_its_name(kind: type[Spec], folder: str) -> None:
    names = [path.stem for path in (ROOT / "specs" / "catalog" / folder).glob("*.yaml")]
    assert names
    for name in names:
        assert from_catalog(kind, name, None).name == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["deepsek", "../laws/deepseek", "/etc/passwd", "", "deepseek.yaml"])
def test_what_is_not_in_the_catalog_is_refused_where_it_is_named(name: str, tmp_path: Path) -> None:
    named_in = tmp_path / "b.yaml"
    named_in.write_text(f"kind: budget\nevidence:\n  law: {json.dumps(name)}\n")
    with pytest.raises(
        DocumentError, match=r"b.yaml:3:8: there is no law .* in the catalog; write "
    ) as caught:
        from_catalog(PublishedLaw, name, named_in)
    assert "deepseek" in caught.value.write
    with pytest.raises(DocumentError):
        from_catalog(PublishedLaw, name, None)


# --- imports ---


def test_reading_a_budget_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pathlib import Path; from specs.document.files import load; from specs.budget import Budget;"
        "load(Path('specs/demo.yaml'), Budget);"
        "print([name for name in ('torch', 'numpy', 'scipy', 'sympy', 'plotly', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_bbpe_tokenizer_is_part_of_a_document_and_no_document(tmp_path: Path) -> None:
    write_yaml(tmp_path / "t.yaml", Bbpe(kind="bbpe", vocab=300))
    with pytest.raises(DocumentError, match=r"t.yaml:1:7: 'bbpe' is the wrong kind of document"):
        load_any(tmp_path / "t.yaml")
