"""From a body's fields to the constraint on its text."""

import json

import msgspec

from lightvl.api.openai_schema import ResponseFormat
from lightvl.api.schema import NativeParameters
from lightvl.errors import RequestError
from lightvl.types import Constraint

MAX_BYTES = 1 << 16
"""Of a schema, expression or grammar."""

_MAX_DEPTH = 64
_ANY_OBJECT = '{"type":"object"}'


def native_constraint(p: NativeParameters) -> Constraint | None:
    """Returns the constraint of a native request, or None.

    Raises:
        RequestError: There are several, or one is malformed; names the field.
    """
    constraints = []
    if p.regular_constraint is not None:
        constraints.append(_constraint("regular_constraint", "regex", p.regular_constraint))
    if p.guided_grammar is not None:
        constraints.append(_constraint("guided_grammar", "grammar", p.guided_grammar))
    if p.guided_json is not None:
        constraints.append(json_constraint("guided_json", p.guided_json))
    if not constraints:
        return None
    first = constraints[0].field
    others = [constraint.field for constraint in constraints[1:]]
    if p.allowed_token_ids is not None:
        others.append("allowed_token_ids")
    if others:
        raise RequestError(f"{others[0]}: not together with {first}", param=others[0])
    return constraints[0]


def openai_constraint(response_format: ResponseFormat | None) -> Constraint | None:
    """Returns the constraint that a `response_format` asks for, or None.

    Raises:
        RequestError: It is of an unknown type, or its schema is absent or malformed.
    """
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return json_constraint("response_format", _ANY_OBJECT)
    if response_format.type != "json_schema":
        raise RequestError(
            "response_format.type: expected text, json_object or json_schema",
            param="response_format",
        )
    holder = response_format.json_schema
    if holder is None or holder.schema is None:
        raise RequestError("response_format.json_schema.schema: required", param="response_format")
    return json_constraint("response_format", holder.schema)


def json_constraint(field: str, schema: object) -> Constraint:
    """Returns the constraint to what a JSON schema, an object or its text, describes.

    Raises:
        RequestError: 400 naming the field.
    """
    if isinstance(schema, str):
        _check_size(field, schema)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise RequestError(f"{field}: expected a JSON schema", param=field) from None
    if not isinstance(schema, dict):
        raise RequestError(f"{field}: expected a JSON schema, an object", param=field)
    constraint = _constraint(field, "json", msgspec.json.encode(schema).decode())
    if _is_deep(schema):
        raise RequestError(f"{field}: nested more than {_MAX_DEPTH} deep", param=field)
    return constraint


def _constraint(field: str, kind: str, text: str) -> Constraint:
    _check_size(field, text)
    if not text:
        raise RequestError(f"{field}: empty", param=field)
    return msgspec.convert({"kind": kind, "text": text, "field": field}, Constraint)


def _check_size(field: str, text: str) -> None:
    if len(text.encode()) > MAX_BYTES:
        raise RequestError(f"{field}: expected at most {MAX_BYTES} bytes", param=field)


def _is_deep(value: object) -> bool:
    """Whether lists and objects are nested deeper than `_MAX_DEPTH`, without recursion."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
