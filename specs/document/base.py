"""What every document is: frozen, closed to unknown keys, and identified by its content.

A `Spec` is validated once, when it is made; afterwards it can only be read. Two specs are the same when their canonical
JSON is the same, and `fingerprint()` names that JSON. Text that becomes the name of a file is limited to `Slug`.
"""

import hashlib
import json
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$"), Field(examples=["demo-1"])]
"""A name that may become a folder: lower case, digits, `_`, `.` and `-`, at most 64 characters."""

_OF_NOTHING = hashlib.sha256(b"").hexdigest()

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Field(examples=[_OF_NOTHING])]
"""A SHA-256 digest in lower-case hexadecimal."""

Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$"), Field(examples=[_OF_NOTHING[:16]])]
"""The first 64 bits of a spec's SHA-256: short enough for a folder's name, long enough never to collide in a lab."""


class Spec(BaseModel):
    """Base of every document and of every part of one."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        revalidate_instances="never",
    )

    def plain(self) -> dict[str, Any]:
        """The spec as JSON types only (dict, list, str, int, float, bool, None)."""
        return self.model_dump(mode="json")

    def answer(self) -> dict[str, Any]:
        """`plain`, and beside each part's fields what it derives from them (its properties that are numbers or text):
        what commands print with --json. Not a document: `load` refuses it."""
        plain = self.plain()
        fields = {name: _answer(getattr(self, name), plain[name]) for name in plain}
        derived = {name: getattr(self, name) for name in _properties(type(self))}
        return fields | {
            name: value for name, value in derived.items() if isinstance(value, str | int | float)
        }

    def canonical_json(self) -> str:
        """The canonical text of this content: sorted keys, no spaces, shortest round-trip floats."""
        return canonical_json(self.plain())

    def content_sha256(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def fingerprint(self) -> str:
        """The 16 hexadecimal digits that name this content."""
        return self.content_sha256()[:16]


def _answer(value: Any, plain: Any) -> Any:
    """A field's value as an answer has it; `plain` is the same as JSON types."""
    if isinstance(value, Spec):
        return value.answer()
    if isinstance(value, tuple):
        return [_answer(part, one) for part, one in zip(value, plain, strict=True)]
    return plain


@cache
def _properties(kind: type[Spec]) -> tuple[str, ...]:
    """Names of what a Spec derives from its fields, in alphabetical order."""
    return tuple(
        name
        for name in sorted(set(dir(kind)) - set(dir(Spec)))
        if isinstance(getattr(kind, name, None), property) and not name.startswith("_")
    )


def canonical_json(plain: Any) -> str:
    """Canonical JSON of plain data: sorted keys, no spaces, no NaN; equal data give equal text."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
