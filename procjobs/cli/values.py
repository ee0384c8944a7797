"""Values of options: JSON objects, times, lengths of time."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timedelta
from typing import Any

import click

__all__ = ["JsonObject", "Moment", "Span"]

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not a number in JSON")


class JsonObject(click.ParamType[str]):
    """A JSON object, passed on letter by letter: no number is rounded on its way to PostgreSQL."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        source = sys.stdin.read() if value == "-" else str(value)
        try:
            found = json.loads(source, parse_int=str, parse_float=str, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            self.fail(f"the arguments are not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail("the arguments must be a JSON object, e.g. '{\"user_id\": 1}'", param, ctx)
        return source


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601; without a zone it is this machine's."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if value == "now":
            return datetime.now().astimezone()
        try:
            found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2030-01-31T09:00 or 2030-01-31T09:00+01:00", param, ctx)
        return found.astimezone()


class Span(click.ParamType[timedelta]):
    """A length of time: 90, 90s, 5m, 2h, 1d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*(s|m|min|h|d)?", value.strip())
        if found is None:
            self.fail(f"{value!r} is not a length of time such as 90s, 5m, 2h or 1d", param, ctx)
        return timedelta(seconds=float(found[1]) * _UNITS[found[2] or ""])
