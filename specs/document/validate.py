"""Plain data to a Spec: JSON Schema first, then pydantic, and the first error in the file as a message.

JSON Schema checks the form, pydantic and our validators the meaning. In a tagged union only the branch that the tag
names is checked, so that the message is about what the writer meant.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from specs.document.parse import Document, DocumentError, Route, located, nearest, show

T = TypeVar("T")

_NAMES = {
    "object": "keys and values",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
"""What JSON Schema's types are called in messages."""


@dataclass(frozen=True)
class ValidationProblem:
    """One thing that is wrong with a document."""

    route: Route
    """Where."""
    what: str
    """What is wrong."""
    write: str
    """What to write instead."""
    at_key: bool = False
    """It is the key that is wrong, not its value."""
    missing: bool = False
    """A key is missing, so it has no place of its own and is reported last."""


def check(document: Document, adapter: TypeAdapter[T], schema: dict[str, Any]) -> T:
    """The document as the adapter's type, or DocumentError for the first of its problems."""
    found = list(schema_problems(document.plain, schema))
    try:
        value = adapter.validate_json(json.dumps(document.plain))
    except ValidationError as error:
        has_problems = bool(found)  # pydantic reports what the schema has found once more
        details = [
            d for d in error.errors(include_url=False) if not has_problems or d["type"] == "value_error"
        ]
        found += [_from_pydantic(document.plain, detail) for detail in details]
    if not found:
        return value
    document = located(document)
    first = min(found, key=lambda problem: (problem.missing, document.place(problem.route, problem.at_key)))
    place = document.place(first.route, first.at_key)
    raise DocumentError(document.path, *place, first.what, first.write)


def schema_problems(plain: Any, schema: dict[str, Any]) -> Iterator[ValidationProblem]:
    """Everything that JSON Schema finds, as messages. Unlike JSON Schema, 1.0 is not an integer here."""
    from jsonschema import Draft202012Validator, validators

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    validator = validators.extend(Draft202012Validator, type_checker=types)(schema)  # type: ignore[no-untyped-call]
    for error in validator.iter_errors(plain):
        yield from _explain(error, schema.get("$defs", {}))


def _explain(error: Any, definitions: dict[str, Any]) -> Iterator[ValidationProblem]:
    """What one error of jsonschema means, unions resolved to the branch that was meant."""
    route, value, schema = tuple(error.absolute_path), error.instance, error.schema
    match error.validator:
        case "oneOf" | "anyOf":
            yield from _explain_union(error, definitions)
        case _ if "propertyNames" in error.schema_path:
            yield _unknown_key((*route, value), error.validator_value)
        case "additionalProperties":
            known = list(schema.get("properties", {}))
            free = [name for name in known if name not in value]
            yield from (_unknown_key((*route, key), free or known) for key in value if key not in known)
        case "required":
            missing = [key for key in error.validator_value if key not in value]
            yield from (_missing_key(route, key, schema["properties"][key], definitions) for key in missing)
        case "type":
            yield ValidationProblem(route, *_wrong_type(value, schema, definitions))
        case "enum" | "const":
            allowed = error.validator_value if error.validator == "enum" else [error.validator_value]
            yield ValidationProblem(route, f"{show(value)} is not allowed here", _one_of(value, allowed))
        case _:
            yield ValidationProblem(route, *_wrong_value(error))


def _explain_union(error: Any, definitions: dict[str, Any]) -> Iterator[ValidationProblem]:
    """The problems of the branch that the tag names; without a tag, of the first one of the value's type."""
    route, value, schema = tuple(error.absolute_path), error.instance, error.schema
    other_type = {
        child.schema_path[0] for child in error.context if child.validator == "type" and not child.path
    }
    branch = next((number for number in range(len(schema[error.validator])) if number not in other_type), 0)
    if "discriminator" in schema:
        tag, branches = schema["discriminator"]["propertyName"], schema["discriminator"]["mapping"]
        targets = [option["$ref"] for option in schema["oneOf"]]
        problem = _wrong_tag(
            route, value, tag, sorted(branches, key=lambda name: targets.index(branches[name]))
        )
        if problem:
            yield problem
            return
        branch = targets.index(branches[value[tag]])
    for child in error.context:
        if child.schema_path[0] == branch:
            yield from _explain(child, definitions)


def _wrong_tag(route: Route, value: Any, tag: str, known: list[str]) -> ValidationProblem | None:
    if not isinstance(value, dict):
        write = f"write keys and values, beginning with '{tag}: {known[0]}'"
        return ValidationProblem(route, f"expected keys and values, found {show(value)}", write)
    if tag not in value:
        return ValidationProblem(
            route,
            f"the key '{tag}' is missing",
            f"write '{tag}:' with one of {', '.join(known)}",
            missing=True,
        )
    if value[tag] not in known:
        return ValidationProblem(
            (*route, tag), f"{show(value[tag])} is not allowed here", _one_of(value[tag], known)
        )
    return None


def _unknown_key(route: Route, known: list[str]) -> ValidationProblem:
    key = str(route[-1])
    meant = nearest(key, known)
    write = f"write '{meant}'" if meant else f"remove it, or write one of {', '.join(known)}"
    return ValidationProblem(route, f"unknown key {show(key)}", write, at_key=True)


def _missing_key(
    route: Route, key: str, schema: dict[str, Any], definitions: dict[str, Any]
) -> ValidationProblem:
    about = " ".join(schema.get("description", "").split()).rstrip(".")
    write = f"write for example '{key}: {_example(schema, definitions)}'" + (f" ({about})" if about else "")
    return ValidationProblem(route, f"the key '{key}' is missing", write, missing=True)


def _wrong_type(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> tuple[str, str]:
    name, example = _NAMES[schema["type"]], _example(schema, definitions)
    if "examples" in schema and "pattern" not in schema and type(value) in (int, float):
        return f"{show(value)} has no unit", f"write it like '{example}'"
    return f"expected {name}, found {show(value)}", f"write it like '{example}'"


def _one_of(value: Any, allowed: list[Any]) -> str:
    """What to write where only these values are allowed."""
    choices = [str(choice) for choice in allowed]
    meant = nearest(str(value), choices, at_least=0.8)
    if meant or len(choices) == 1:
        return f"write '{meant or choices[0]}'"
    return f"write one of {', '.join(choices)}"


def _wrong_value(error: Any) -> tuple[str, str]:
    """Limits on numbers, lengths and texts."""
    value, limit = show(error.instance), error.validator_value
    match error.validator:
        case "minimum":
            return f"{value} is too small", f"write {limit} or more"
        case "maximum":
            return f"{value} is too large", f"write {limit} or less"
        case "exclusiveMinimum":
            return f"{value} is too small", f"write a number above {limit}"
        case "exclusiveMaximum":
            return f"{value} is too large", f"write a number below {limit}"
        case "minItems" | "maxItems" if error.schema.get("minItems") == error.schema.get("maxItems"):
            return f"the list has {len(error.instance)} items", f"write exactly {limit}"
        case "minItems":
            return f"the list has {len(error.instance)} items", f"write {limit} or more"
        case "maxItems":
            return f"the list has {len(error.instance)} items", f"write {limit} or fewer"
        case "minProperties":
            return f"the number of entries is {len(error.instance)}", f"write {limit} or more"
        case "minLength":
            return "the text is empty", "write a value"
        case "pattern":
            return f"{value} does not match {limit}", f"write it like '{_example(error.schema, {})}'"
    return error.message, "correct the value"


def _example(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A value as one may write it for this part of a schema."""
    match schema:
        case {"$ref": str(target)}:
            return _example(definitions[target.rsplit("/", 1)[-1]], definitions)
        case {"oneOf": [first, *_]} | {"anyOf": [first, *_]}:
            return _example(first, definitions)
        case {"const": value} | {"examples": [value, *_]} | {"enum": [value, *_]}:
            return str(value)
        case {"type": "object"}:
            parts = [(key, schema["properties"][key]) for key in schema.get("required", [])[:2]]
            return "{" + ", ".join(f"{key}: {_example(part, definitions)}" for key, part in parts) + "}"
        case {"type": "array"}:
            items = schema.get("prefixItems") or [schema.get("items", {})]
            return "[" + ", ".join(_example(item, definitions) for item in items) + "]"
        case {"type": "integer"}:
            return str(max(schema.get("minimum", 1), 1))
        case {"type": "number"}:
            return "0.5"
        case {"type": "boolean"}:
            return "true"
    return "some text"


def _from_pydantic(plain: Any, detail: Any) -> ValidationProblem:
    """A problem that pydantic or one of our validators found. After `;` their message has what to write."""
    route: list[str | int] = []
    for part in detail["loc"]:  # the tags of unions are among them, and are no keys
        if (isinstance(plain, dict) and part in plain) or (isinstance(plain, list) and isinstance(part, int)):
            plain = plain[part]
            route.append(part)
    if detail["type"] == "value_error":
        what, _, write = str(detail["ctx"]["error"]).partition("; ")
        return ValidationProblem(tuple(route), what, write or "correct the value")
    if detail["type"] == "missing":
        return ValidationProblem(
            tuple(route), f"the key '{detail['loc'][-1]}' is missing", "add it", missing=True
        )
    if detail["loc"][-1] == "[key]":  # to JSON Schema, keys of a map may be any
        what = f"{show(detail['input'])} is no name for this"
        write = "write letters in lower case, digits, '_', '.' and '-', beginning with a letter or digit"
        return ValidationProblem(tuple(route), what, write, at_key=True)
    if detail["type"] == "string_pattern_mismatch":  # to JSON Schema, `$` also matches before a last line end
        what = f"{show(detail['input'])} does not match {detail['ctx']['pattern']}"
        return ValidationProblem(tuple(route), what, "remove the line end")
    if detail["type"] == "finite_number":
        return ValidationProblem(
            tuple(route), f"{detail['input']} is not a finite number", "write a number such as 0.5"
        )
    return ValidationProblem(tuple(route), detail["msg"], "correct the value")
