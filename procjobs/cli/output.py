"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from typing import Any

import click

from procjobs.logs import one_line

__all__ = ["Column", "age", "json_option", "moment", "print_facts", "print_json", "print_table", "text", "when"]

#: Title, key of the row, and how to show the value.
Column = tuple[str, str, Callable[[Any], str]]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def when(value: Any) -> str:
    """A time in this machine's zone, to the second. PostgreSQL's `infinity` is never."""
    if value == "infinity":
        return "never"
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S") if isinstance(value, datetime) else ""


def moment(value: Any) -> str:
    """The same for a time that came as JSON."""
    if not isinstance(value, str) or value in ("infinity", "-infinity"):
        return when(value)
    return when(datetime.fromisoformat(value))


def age(value: Any) -> str:
    """A span in the two units that matter: 4 s, 12 min, 3 h 5 min, 2 d 4 h."""
    if not isinstance(value, timedelta):
        return ""
    seconds = int(value.total_seconds())
    if seconds < 60:
        return f"{max(seconds, 0)} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def print_json(value: Any) -> None:
    """Print rows, dataclasses and times as indented JSON; times in RFC 3339, spans in seconds."""
    click.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, empty: str) -> None:
    """Print rows as a table: fitted to a terminal, uncut when piped. `empty` is said when there are none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo(empty)
        return
    tty = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if tty else None, pad_edge=False, header_style="bold" if tty else "")
    for title, _, _ in columns:
        table.add_column(title)
    for row in rows:
        table.add_row(*(Text(one_line(show(row.get(key)))) for _, key, show in columns))
    Console(width=None if tty else 4000, highlight=False).print(table)


def print_facts(facts: Iterable[tuple[str, Any]]) -> None:
    """Print `name  value` lines, the empty ones left out."""
    listed = [(name, one_line(str(value))) for name, value in facts if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        click.echo(f"{name:<{width}}  {value}")


def text(value: Any) -> str:
    """Any value as short text; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
