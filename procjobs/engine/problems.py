"""What is wrong with arguments, in the words of `procjobs.schema_problems`: a refusal reads alike from Python and SQL.

pydantic finds the faults, at places in the arguments; the words come from the JSON Schema there, as in the database.
Values never appear in a problem, only their place, type and length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["problems"]

#: As many as the database lists.
_MOST = 20

_BOUNDS = {
    "greater_than_equal": ("minimum", "at least"),
    "greater_than": ("exclusiveMinimum", "more than"),
    "less_than_equal": ("maximum", "at most"),
    "less_than": ("exclusiveMaximum", "less than"),
    "multiple_of": ("multipleOf", "a multiple of"),
}
_LENGTHS = {
    "string_too_short": ("minLength", "at least", "characters"),
    "string_too_long": ("maxLength", "at most", "characters"),
    "too_short": ("minItems", "at least", "items"),
    "too_long": ("maxItems", "at most", "items"),
}


def problems(schema: dict[str, Any], text: str, errors: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each place at which pydantic found something wrong in arguments (JSON text)."""
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    found = dict.fromkeys(_sentence(schema, arguments, error) for error in errors)
    return list(found)[:_MOST]


def _sentence(root: dict[str, Any], arguments: Any, error: Mapping[str, Any]) -> str:
    path, schema, value = _at(root, arguments, error["loc"])
    here, kind = path or "the value", error["type"]
    if kind == "missing":
        return f"{here} is missing"
    if kind == "extra_forbidden":
        return f"{here} is not expected"
    if kind == "json_invalid":
        return f"{here}: {error['msg']}"
    if not _has_type(root, schema, value):
        return f"{here} must be {_words(root, schema)}, is {_kind(value)}"
    form = _only_form(root, schema)
    if "const" in form or "enum" in form:
        return f"{here} must be {_words(root, form)}"
    if kind in _BOUNDS and (bound := _BOUNDS[kind])[0] in form:
        return f"{here} must be {bound[1]} {_json(form[bound[0]])}"
    if kind in _LENGTHS and (length := _LENGTHS[kind])[0] in form:
        return f"{here} must have {length[1]} {form[length[0]]} {length[2]}, has {len(value)}"
    if "pattern" in form and kind == "string_pattern_mismatch":
        return f"{here} must match {form['pattern']}"
    if "format" in form and isinstance(value, str):
        return f"{here} must be a {form['format']}"
    return f"{here}: {error['msg']}"


def _at(root: dict[str, Any], value: Any, places: Sequence[str | int]) -> tuple[str, Any, Any]:
    """Path, schema and value of a place. It ends where pydantic goes on to name one of several forms."""
    path, schema = "", _target(root, root)
    for place in places:
        inside = _only_form(root, schema)
        if isinstance(place, int) and isinstance(value, list):
            prefix = inside.get("prefixItems", [])
            below = prefix[place] if place < len(prefix) else inside.get("items", True)
            path, value = f"{path}[{place}]", value[place] if place < len(value) else None
        elif isinstance(place, str) and isinstance(value, dict) and (place in value or _knows(inside, place)):
            below = inside.get("properties", {}).get(place, inside.get("additionalProperties", True))
            path, value = _path_to(path, place), value.get(place)
        else:
            break
        schema = _target(root, below)
    return path, schema, value


def _knows(schema: dict[str, Any], key: str) -> bool:
    return key in schema.get("properties", {})


def _path_to(path: str, key: str) -> str:
    if not re.fullmatch(r"[^\W\d][\w-]{0,99}", key):
        return f"{path}[{_json(key[:100])}]"
    return f"{path}.{key}" if path else key


def _target(root: dict[str, Any], schema: Any) -> Any:
    """The schema itself, or what its $ref points to."""
    while isinstance(schema, dict) and "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].split("/")[1:]:
            found = found[part.replace("~1", "/").replace("~0", "~")]
        schema = found
    return schema


def _forms(schema: Any) -> list[Any]:
    return list(schema.get("anyOf") or schema.get("oneOf") or []) if isinstance(schema, dict) else []


def _only_form(root: dict[str, Any], schema: Any) -> dict[str, Any]:
    """What a schema asks of anything but null: itself, or its only form beside null; nothing where it has several."""
    others = [form for form in _forms(schema) if form != {"type": "null"}]
    chosen = _target(root, others[0]) if len(others) == 1 else schema
    return chosen if isinstance(chosen, dict) and len(others) <= 1 else {}


def _has_type(root: dict[str, Any], schema: Any, value: Any) -> bool:
    schema = _target(root, schema)
    if forms := _forms(schema):
        return any(_has_type(root, form, value) for form in forms)
    if not isinstance(schema, dict) or "type" not in schema:
        return True
    wanted, kind = schema["type"], _kind(value)
    if kind == "number" and "integer" in wanted and value % 1 == 0:
        return True
    return kind in wanted if isinstance(wanted, list) else kind == wanted


def _kind(value: Any) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "number")


def _words(root: dict[str, Any], schema: Any, depth: int = 0) -> str:
    """What a schema asks for, in a few words, as `procjobs.schema_words` says it."""
    if depth > 5 or not isinstance(schema, dict) or not schema:
        return "any"
    if "const" in schema:
        return schema["const"] if isinstance(schema["const"], str) else _json(schema["const"])
    if "enum" in schema:
        return " or ".join(_json(value) for value in schema["enum"])
    if "$ref" in schema:
        return _words(root, _target(root, schema), depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(kind)
    if forms := _forms(schema):
        return " or ".join(dict.fromkeys(_words(root, form, depth + 1) for form in forms))
    if kind == "array" and isinstance(schema.get("items"), dict) and schema["items"]:
        return f"array of {_words(root, schema['items'], depth + 1)}"
    if kind == "object" and "properties" in schema:
        return str(schema.get("title", "object"))
    return str((schema.get("format") if kind == "string" else None) or kind or "any")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
