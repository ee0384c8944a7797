"""The `log` of queues, tasks, limits, breakers, schedules and retention: who changed what was set for them, and why."""

from __future__ import annotations

import json
from typing import Any

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, print_json, print_table, text, when

__all__ = ["add_log", "reason_option"]

#: Why a setting is changed, for the log.
reason_option = click.option("--reason", help="Kept in the log.")


def _values(value: Any) -> str:
    return ", ".join(f"{name}={json.dumps(found, ensure_ascii=False)}" for name, found in (value or {}).items())


_CHANGES: tuple[Column, ...] = (
    ("at", "at", when),
    ("name", "name", text),
    ("change", "change", text),
    ("by", "actor", text),
    ("reason", "reason", text),
    ("was", "before", _values),
    ("is", "after", _values),
)


def add_log(group: click.Group, kind: str, *, command: str = "log", noun: str | None = None) -> None:
    """Give a group the command `log` for its kind, one of procjobs.setting_kinds(); noun: what people call it."""
    noun = noun or kind

    @group.command(
        command, help=f"Each change of what was set for one {noun}, or all: who, when, why, what was and is."
    )
    @click.argument("name", metavar=f"[{noun.upper()}]", required=False)
    @click.option(
        "--limit", "most", type=click.IntRange(1, 10_000), default=50, help="At most that many.  [default: 50]"
    )
    @json_option
    @database_options
    def log(name: str | None, most: int, as_json: bool, dsn: str | None, data: str | None) -> None:
        found = call(dsn, data, "list_setting_changes", p_kind=kind, p_name=name, p_max_rows=most)
        if as_json:
            print_json(found)
        else:
            print_table(found, _CHANGES, empty="Nothing was changed within the last year.")
