"""JSON Schema, in a process that can be killed: schemas hold patterns."""

from __future__ import annotations

import json

from jsonschema.validators import validator_for
from referencing import Registry


def wrong(schema: str, text: str) -> str:
    """What in the JSON ``text`` the JSON ``schema`` does not allow, "" where nothing. Schemas elsewhere are not fetched."""
    rules = json.loads(schema)
    validator = validator_for(rules)(rules, registry=Registry())
    try:
        error = next(validator.iter_errors(json.loads(text)), None)
    except RecursionError:
        return "nested too deep"
    return "" if error is None else f"not as the schema says at {ascii(error.json_path)[1:-1][:100]}: {ascii(error.validator)[1:-1]}"
