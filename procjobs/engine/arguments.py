"""What arguments a task takes, from its Python signature, and the check of a job's arguments before it is enqueued.

The same JSON Schema is registered with the database, which checks what SQL enqueues (`procjobs.check_arguments`).
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from procrastinate.tasks import Task
from procrastinate.types import JSONDict

from procjobs.engine.problems import problems
from procjobs.errors import ArgumentsMalformed, ArgumentsTooDeep, ArgumentsTooLarge, InvalidArguments

__all__ = ["MAX_BYTES", "MAX_DEPTH", "Signature", "encode"]

#: The same limits as procjobs.check_arguments.
MAX_BYTES = 1024 * 1024
MAX_DEPTH = 64
MAX_DIGITS = 1000
_LARGEST = 10**MAX_DIGITS

Dumps = Callable[[Any], str | bytes]


_strict_dumps = json.JSONEncoder(allow_nan=False).encode


def encode(task_name: str, arguments: JSONDict, dumps: Dumps | None = None) -> str:
    """The arguments as JSON text, refused when no worker could read them again.

    dumps: the connector's own serializer, if it has one.
    Raises ArgumentsMalformed, ArgumentsTooDeep, ArgumentsTooLarge.
    """
    _check_shape(task_name, arguments)
    try:
        encoded = (dumps or _strict_dumps)(arguments)
        text = encoded.decode() if isinstance(encoded, bytes) else encoded
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentsMalformed(
            f"the arguments of {task_name} cannot be written as JSON: {error}",
            detail=f"{type(error).__name__} while they were written",
            hint="pass numbers, strings, booleans, None, lists and dicts, or give the connector a json_dumps",
        ) from error
    if len(text) > MAX_BYTES and (size := len(text.encode())) > MAX_BYTES:
        raise ArgumentsTooLarge(
            f"the arguments of {task_name} are {size:,} bytes, more than {MAX_BYTES:,}",
            detail=f"they have {size} bytes, {size - MAX_BYTES} more than the {MAX_BYTES} allowed",
            hint="store the data elsewhere and pass its id",
        )
    if "\\u0000" in text and "\x00" in json.loads(text, object_pairs_hook=_flat):
        raise ArgumentsMalformed(
            f"the arguments of {task_name} contain a NUL character, which PostgreSQL cannot store",
            detail="a key or a string has the character U+0000",
            hint="remove it, or encode binary data as base64",
        )
    return text


def encode_all(task_name: str, arguments: Sequence[JSONDict]) -> str | None:
    """Many arguments as one JSON array, in one go; None when they must be looked at one by one."""
    try:
        for given in arguments:
            _check_shape(task_name, given)
        text = _strict_dumps(list(arguments))
    except (TypeError, ValueError, RecursionError, InvalidArguments):
        return None
    return text if len(text) <= MAX_BYTES and "\\u0000" not in text else None


def _flat(pairs: list[tuple[str, Any]]) -> str:
    """All keys and strings below, in one string: to find a NUL that is not merely an escaped backslash."""
    return "".join(part for pair in pairs for value in pair for part in _strings(value))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [part for item in value for part in _strings(item)]
    return []


def _check_shape(task_name: str, arguments: JSONDict) -> None:
    level: list[Any] = [arguments]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ArgumentsTooDeep(
                f"the arguments of {task_name} are nested more than {MAX_DEPTH} levels deep",
                detail=f"objects and arrays are nested more than {MAX_DEPTH} levels deep",
                hint="store the structure elsewhere and pass its id",
            )
        below: list[Any] = []
        for container in level:
            for value in container.values() if isinstance(container, dict) else container:
                if isinstance(value, dict | list | tuple):
                    below.append(value)
                elif type(value) is int and not -_LARGEST < value < _LARGEST:
                    raise ArgumentsMalformed(
                        f"the arguments of {task_name} contain a number of more than {MAX_DIGITS:,} digits",
                        detail=f"a number has more than {MAX_DIGITS} digits",
                        hint="pass it as a string",
                    )
        level = below


class Signature:
    """The arguments of one task: a JSON Schema for the database, and the same check here."""

    def __init__(self, task: Task[Any, Any, Any]) -> None:
        self._name = task.name
        self.schema, self._validator, self._array = _compile(task)

    def check(self, text: str) -> None:
        """Refuse arguments (JSON text) that the signature does not take. Raises InvalidArguments."""
        if self._validator is None:
            return
        try:
            self._validator.validate_json(text, strict=True)
        except ValueError as error:  # pydantic's ValidationError is one; it is not imported before it is needed
            if not hasattr(error, "errors"):
                raise
            errors = error.errors(include_url=False, include_context=False, include_input=False)
            found = problems(self.schema or {}, text, errors)
            raise InvalidArguments(
                f"arguments of task {self._name} do not fit its signature: {found[0]}",
                detail="; ".join(found),
                hint=f"{self._name} takes {self.describe()}",
            ) from None

    def takes_all(self, text: str) -> bool:
        """Whether the signature takes each of many arguments (a JSON array)."""
        if self._array is None:
            return True
        try:
            self._array.validate_json(text, strict=True)
        except ValueError:
            return False
        return True

    def describe(self) -> str:
        """The arguments in words: `to, subject, body (optional)`."""
        if self.schema is None:
            return "any arguments"
        required = set(self.schema.get("required", ()))
        names = [name if name in required else f"{name} (optional)" for name in self.schema.get("properties", {})]
        return ", ".join(names) or "no arguments"


def _compile(task: Task[Any, Any, Any]) -> tuple[dict[str, Any] | None, Any, Any]:
    """The schema, and what checks one JSON object, and an array of them."""
    try:
        parameters = list(inspect.signature(task.func).parameters.values())
    except (TypeError, ValueError):
        return None, None, None
    if task.pass_context:
        parameters = parameters[1:]
    hints = _hints(task.func)
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    extra = "forbid"
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            annotation = _usable(hints.get(parameter.name, Any))
            optional = parameter.default is not parameter.empty
            fields[parameter.name] = (annotation, optional)
            if optional and isinstance(parameter.default, str | int | float | bool | None):
                defaults[parameter.name] = parameter.default
    schema, adapter, array = _adapter(task.name, fields, extra)
    for name, default in defaults.items():
        schema["properties"][name]["default"] = default  # what the database shows when it describes the task
    return schema, adapter, array


def _hints(func: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(func, include_extras=True)
    except Exception:  # a name that exists only for type checkers: that parameter takes anything, the others not
        return {name: _hint(func, annotation) for name, annotation in getattr(func, "__annotations__", {}).items()}


def _hint(func: Any, annotation: Any) -> Any:
    alone = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(alone, getattr(func, "__globals__", {}), include_extras=True)["it"]
    except Exception:
        return Any


def _usable(annotation: Any) -> Any:
    """The annotation, or Any where it has no JSON form (a class of the application's, say)."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        TypeAdapter(annotation).json_schema()
    except (PydanticUserError, TypeError, NameError, AttributeError):
        return Any
    return annotation


def _adapter(name: str, fields: dict[str, Any], extra: str) -> tuple[dict[str, Any], Any, Any]:
    from typing import NotRequired

    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict

    make: Any = TypedDict
    shape = make(
        "Arguments", {key: NotRequired[kind] if optional else kind for key, (kind, optional) in fields.items()}
    )
    shape.__pydantic_config__ = ConfigDict(extra=extra, title=name)  # type: ignore[typeddict-item]
    adapter: Any = TypeAdapter(shape)
    array: Any = TypeAdapter(list[shape])  # type: ignore[valid-type]
    return adapter.json_schema(), adapter.validator, array.validator
