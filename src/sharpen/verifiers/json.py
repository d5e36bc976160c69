"""Answers in JSON: the reference as data, or what a schema asks for."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any, Literal

from sharpen.errors import SettingsError
from sharpen.records import Task, Trajectory, Verdict
from sharpen.verifiers.base import Properties, name_of, says, shown
from sharpen.verifiers.function import answer_of
from sharpen.verifiers.part import Reading, read
from sharpen.verifiers.workers import pool


class Json(Reading, frozen=True, kw_only=True, tag_field="verifier", tag="json"):
    """The answer is JSON (RFC 8259), the last code block of it where there is one.

    Without a ``schema`` it equals the reference as data: the order of keys does not count, that of lists does, 1 is 1.0 and true is not 1. A
    reference that is a string is JSON too. With a ``schema`` (JSON Schema: the mapping itself, or a JSON file of it) it is held to that, and the
    reference is not looked at. A key given twice, NaN, infinity, 1e999 and text around the JSON fail.
    """

    part: Literal["whole", "last_line", "boxed", "code"] = "code"
    schema: dict[str, Any] | str | None = None


class JsonVerifier:
    """See ``Json``. SettingsError where the schema is none, or jsonschema is missing."""

    properties = Properties(
        needs="reference: JSON, as data or as text; none with a `schema`",
        cost="cpu",
        gameable="with a `schema`, by any content of the right form",
        fails="not JSON, a key twice, NaN; other data; not as the schema says",
        errors="the schema's patterns take longer than `timeout_s`",
    )

    def __init__(self, settings: Json) -> None:
        self._schema = _schema(settings.schema)
        self.name = name_of(settings, self._schema) if isinstance(settings.schema, str) else name_of(settings)
        self.exact, self._settings = settings.exact, settings

    def problem(self, task: Task) -> str:
        if self._schema is not None:
            return ""
        if task.reference is None:
            return "has no reference, which the answer is compared with; fill it in, or give verifier json a schema"
        try:
            _reference(task.reference)
        except ValueError as error:
            return f"has the reference {shown(task.reference)}, which is not JSON ({error}); write it as JSON"
        return ""

    def cheats(self, task: Task) -> dict[str, str]:
        """What has a form and says nothing; where the reference is one of them, that is no cheat."""
        made = {"an empty object": "{}", "an empty list": "[]", "null": "null", "true": "true"}
        if self._schema is not None:
            return made
        right = _reference(task.reference)
        return {name: text for name, text in made.items() if not same(parse(text), right)} | {
            "the reference among others": json.dumps([right, "something else"]),
            "a key given twice": json.dumps({"answer": 0})[:-1] + f', "answer": {json.dumps(right)}}}',
        }

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        right = None if self._schema is not None else _reference(task.reference)
        said, missing = read(self._settings, answer_of(trajectory))
        if missing:
            return says(self.name, trajectory, False, missing)
        try:
            data = parse(said)
        except ValueError as error:
            return says(self.name, trajectory, False, f"not JSON: {error}")
        if self._schema is None:
            try:
                return says(self.name, trajectory, same(data, right), "other data than the reference")
            except RecursionError:
                return says(self.name, trajectory, False, "nested too deep")
        wrong = pool().call("sharpen.verifiers.schema_side:wrong", json.dumps(self._schema), said, timeout_s=self._settings.timeout_s)
        return says(self.name, trajectory, not wrong, wrong)


def parse(text: str) -> Any:
    """The data of a JSON text. ValueError where it is none, holds a key twice or a number that is none, or is nested too deep."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key is given twice")
        return found

    def number(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            raise ValueError(f"{digits[:20]} is no finite number")
        return value

    try:
        return json.loads(text, object_pairs_hook=once, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as error:
        raise ValueError(shown(str(error)).strip("'\"")) from None


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same data."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and isinstance(one, dict | list) == isinstance(other, dict | list)


def _reference(given: Any) -> Any:
    if given is None:
        raise ValueError("there is none")
    try:
        return parse(given if isinstance(given, str) else json.dumps(given))
    except TypeError as error:
        raise ValueError(str(error)) from None


def _schema(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    if given is None:
        return None
    if importlib.util.find_spec("jsonschema") is None:
        raise SettingsError("verifier json with a schema needs jsonschema; pip install 'sharpen[verifiers]'")
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    try:
        schema = parse(Path(given).read_text()) if isinstance(given, str) else given
        if not isinstance(schema, dict):
            raise ValueError("it is no object")
        validator_for(schema).check_schema(schema)
    except OSError as error:
        raise SettingsError(f"schema {given!r} cannot be read: {error.strerror}") from None
    except (ValueError, SchemaError) as error:
        message = error.message if isinstance(error, SchemaError) else str(error)
        raise SettingsError(f"schema {shown(given)} is no JSON Schema: {message[:200]}") from None
    return schema
