"""Schedules at a clock that the test sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.errors import Diagnostic

from tests.sql.conftest import Sql, Worker

Register = Callable[..., int]
Now = Callable[[str], None]
Refused = Callable[..., Diagnostic]

TOLD = {
    "type": "object",
    "properties": {
        "slot": {"type": "string"},
        "timestamp": {"type": "integer"},
        "tenant": {"type": "string"},
        "manual": {"type": "boolean"},
        "triggered_by": {"type": "string"},
        "a": {"type": "integer"},
    },
    "additionalProperties": False,
}
NONE = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.fixture(autouse=True)
def tasks(register: Register, now: Now) -> None:
    register("plain", NONE)
    register("told", TOLD)
    now("2026-06-01 12:00:30Z")


def ledger(sql: Sql, name: str) -> list[tuple[str, str, str | None]]:
    """Slots in UTC with their outcome and the beginning of the reason."""
    return sql(
        "select to_char(slot at time zone 'UTC', 'DD HH24:MI:SS'), outcome, split_part(reason, ':', 1) "
        "from procjobs.schedule_history where schedule = %s order by slot",
        name,
    )


def fired(sql: Sql, name: str) -> list[str]:
    return [slot for slot, outcome, _ in ledger(sql, name) if outcome == "fired"]


def tick(sql: Sql, now: Now, at: str, by: str = "test") -> int:
    now(at)
    return int(sql.one("select procjobs.tick(%s)", by))


def arguments(sql: Sql) -> list[dict[str, Any]]:
    return [args for (args,) in sql("select args from procrastinate_jobs order by id")]


def finish(sql: Sql, worker: Worker, result: Any = None) -> None:
    """Runs everything that waits."""
    for job in worker.claim():
        sql(
            "select procjobs.finish_jobs(%s, array[%s]::bigint[], array[%s], 'archive', array[%s::jsonb])",
            worker.id, job, worker.leases[job], json.dumps(result),
        )  # fmt: skip


def alerts(sql: Sql) -> list[tuple[str, str]]:
    return sql("select kind, subject from procjobs.list_alerts() order by 1, 2")
