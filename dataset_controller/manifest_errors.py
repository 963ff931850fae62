"""What is wrong with a manifest, in words: the path of the field, what it is, and what is allowed."""

import difflib
import json
import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

_SHOWN = 5
"""Problems of one document in a message; more help nobody."""

_KINDS = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """All problems, at most five, as one line."""
    found = [_problem(each, model) for each in error.errors()]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def field_path(location: Sequence[str | int]) -> str:
    """'spec.mounts[0].readOnly'."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _problem(error: Any, model: type[BaseModel]) -> str:
    location = error["loc"]
    return f"{field_path(location) or 'the document'}: {_words(error, location, model)}"


def _words(error: Any, location: Sequence[str | int], model: type[BaseModel]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _fields(location[:-1], model)
        lower = {name.lower(): name for name in allowed}
        near = difflib.get_close_matches(str(location[-1]).lower(), lower, 1)
        hint = f"; did you mean {lower[near[0]]}?" if near else ";"
        return f"unknown field{hint} allowed: {', '.join(allowed)}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        return f"{_shown(value)} is not allowed; allowed: {context['expected'].replace(' or ', ', ')}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'{_shown(value)} is not text; write it in quotes: "{json.dumps(value)}"'
    if kind in _KINDS:
        return f"{_shown(value)} is not {_KINDS[kind]}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return (
            f"{_shown(value)} is not allowed; write lower-case letters, digits and '-', beginning with a letter"
            if location[-1] in ("name", "namespace") and location[0] == "metadata"
            else f"{_shown(value)} does not match {context['pattern']}"
        )
    message = str(error["msg"])
    return f"{_shown(value)}: {message[:1].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields(location: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """The field names of the model at a place below another one."""
    found: Any = model
    for part in location:
        if isinstance(part, str) and isinstance(found, type) and issubclass(found, BaseModel):
            field = next((f for n, f in found.model_fields.items() if part in (n, f.alias)), None)
            found = field.annotation if field is not None else None
        found = _inner(found)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        return []
    return [field.alias or name for name, field in found.model_fields.items()]


def _inner(annotation: Any) -> Any:
    """The model in an optional, annotated or listed one."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _inner(next(a for a in get_args(annotation) if a is not type(None)))
    if origin is Annotated:
        return _inner(get_args(annotation)[0])
    if origin is list:
        return _inner(get_args(annotation)[0])
    return annotation
