import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from specs.document.base import Fingerprint, Sha256, Slug, Spec, canonical_json
from tests.support.paths import ROOT


class Leaf(Spec):
    number: float
    """A number."""
    words: tuple[str, ...] = ()
    """Some words."""


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Leaf(number=1.0).number = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ['{"number": true}', '{"number": "1"}', '{"number": 1, "extra": 1}', '{"number": NaN}']
)
def test_wrong_types_unknown_keys_and_nan_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Leaf.model_validate_json(text)


def test_a_list_is_read_as_a_tuple() -> None:
    assert Leaf.model_validate_json('{"number": 1, "words": ["a"]}') == Leaf(number=1.0, words=("a",))


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": 1e24, "a": [0.1, None, True, "ü"]}) == '{"a":[0.1,null,true,"ü"],"b":1e+24}'
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


@given(st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text(), max_size=3))
def test_canonical_json_reads_back_as_the_same_spec(number: float, words: list[str]) -> None:
    try:
        leaf = Leaf(number=number, words=tuple(words))
    except ValidationError:  # half a character is no text
        return
    again = Leaf.model_validate_json(leaf.canonical_json())
    assert again == leaf
    assert again.fingerprint() == leaf.fingerprint()


@pytest.mark.slow
def test_the_fingerprint_does_not_depend_on_the_process() -> None:
    program = "from specs.data import Bbpe; print(Bbpe(kind='bbpe', vocab=1024).fingerprint())"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert found == {hashlib.sha256(b'{"kind":"bbpe","rows":null,"special":1,"vocab":1024}').hexdigest()[:16]}


def test_the_fingerprint_begins_the_digest() -> None:
    leaf = Leaf(number=1.0)
    assert leaf.content_sha256().startswith(leaf.fingerprint())
    TypeAdapter(Fingerprint).validate_python(leaf.fingerprint())
    TypeAdapter(Sha256).validate_python(leaf.content_sha256())
    assert json.loads(leaf.canonical_json()) == leaf.plain()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", "-x", ".hidden", "A", "a b", "a\n", "a\x00", "a" * 65, "ä"]
)
def test_no_name_leaves_its_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Slug).validate_python(name)


@pytest.mark.parametrize("name", ["demo", "budget_1e24", "h800-2048", "a..b", "0", "a" * 64])
def test_names(name: str) -> None:
    assert TypeAdapter(Slug).validate_python(name) == name
