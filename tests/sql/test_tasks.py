"""Registering tasks: only what changed is written, whoever comes first."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg.errors import Diagnostic

from .conftest import SEND, Sql

Register = Callable[..., int]


def test_registering_again_writes_only_what_changed(sql: Sql, register: Register, now: Callable[[str], None]) -> None:
    now("2030-01-01 00:00Z")
    assert register("send", SEND, queue="mail", max_attempts=3, backoff_base=60, backoff_cap=3600) == 1
    now("2030-01-02 00:00Z")
    assert register("send", SEND, queue="mail", max_attempts=3, backoff_base=60, backoff_cap=3600) == 0
    assert sql.one("select registered_at::date::text from procjobs.tasks where name = 'send'") == "2030-01-01"
    assert register("send", SEND, queue="mail", max_attempts=4) == 1
    row = "select max_attempts, backoff_base, queue, registered_by from procjobs.tasks where name = 'send'"
    assert sql(row) == [(4, None, "mail", "test")]


def test_what_is_not_said_has_a_default(sql: Sql, register: Register) -> None:
    register("plain")
    columns = "queue, priority, execution, args_schema, max_attempts, backoff_jitter"
    assert sql(f"select {columns} from procjobs.tasks where name = 'plain'") == [
        ("default", 0, "async", None, None, None)
    ]


def test_seconds_may_be_fractions(sql: Sql, register: Register) -> None:
    register("fast", backoff_base=0.25)
    assert sql.one("select extract(epoch from backoff_base)::float from procjobs.tasks where name = 'fast'") == 0.25


@pytest.mark.parametrize("name", ["", "x" * 129, None])
def test_a_name_is_required(refused: Callable[..., Diagnostic], name: str | None) -> None:
    refused("PJ010", "select procjobs.register_tasks(%s, 'test')", json.dumps([{"name": "good"}, {"name": name}]))


def test_workers_that_start_together_do_not_deadlock(dsn: str, sql: Sql) -> None:
    names = [f"task{n:03}" for n in range(100)]
    errors: list[Exception] = []

    def start(order: list[str], turn: int) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for time in range(10):
                    tasks = json.dumps([{"name": name, "priority": turn * 100 + time} for name in order])
                    connection.execute("select procjobs.register_tasks(%s, 'test')", [tasks])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(names[:: 1 if n % 2 else -1], n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sql.one("select count(*) from procjobs.tasks where name like 'task%%'") == 100


def test_a_task_left_by_adoption_is_filled_in(sql: Sql, register: Register) -> None:
    sql(
        "insert into procjobs.tasks (name, execution, registered_at, registered_by) "
        "values ('old', 'unknown', now(), 'adoption')"
    )
    assert register("old", SEND, execution="thread") == 1
    assert sql("select execution, registered_by from procjobs.tasks where name = 'old'") == [("thread", "test")]
