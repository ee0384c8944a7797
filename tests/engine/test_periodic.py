"""Periodic tasks: time zones, what is caught up, what is left out. See also fault 14 of test_upstream_faults.py."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import procrastinate
import pytest

import procjobs
from procjobs.engine.periodic import Cron, seconds_first
from tests.conftest import Sql

from .clockwork import Clockwork


@pytest.fixture
async def clockwork(dsn: str) -> AsyncIterator[Clockwork]:
    async with Clockwork.on(dsn) as made:
        yield made


def declare(blueprint: Any, cron: str, name: str = "tick", **options: Any) -> Any:
    """A periodic task of this cron."""

    @blueprint.periodic(cron=cron, **options)
    @blueprint.task(name=name)
    async def task(timestamp: int) -> None:
        pass

    return task


def slots(sql: Sql, task: str = "tick") -> list[str]:
    """The slots of the jobs deferred until now, in UTC, in the order of their ids."""
    return [
        slot
        for (slot,) in sql(
            "select to_char(to_timestamp((args ->> 'timestamp')::bigint) at time zone 'UTC', 'DD HH24:MI:SS') "
            "from procrastinate_jobs where task_name = %s order by id",
            task,
        )
    ]


@pytest.mark.parametrize(
    ("cron", "read"),
    [
        ("*/5 * * * *", "*/5 * * * *"),
        ("0 8 * * MON 30", "30 0 8 * * MON"),
        ("@daily", "@daily"),
        ("* * * * * * *", "* * * * * * *"),
    ],
)
def test_of_six_fields_the_last_are_the_seconds(cron: str, read: str) -> None:
    assert seconds_first(Cron(cron)) == read


async def test_seconds_come_last_as_procrastinate_has_them(clockwork: Clockwork, sql: Sql) -> None:
    declare(clockwork.app, "30 2 * * * 15")
    assert await clockwork.at("2026-06-01 02:30:14Z") == 1
    assert slots(sql) == []
    await clockwork.at("2026-06-01 02:30:15Z")
    assert slots(sql) == ["01 02:30:15"]


async def test_the_worker_sleeps_until_the_next_slot_of_any_task_and_a_minute_at_most(clockwork: Clockwork) -> None:
    declare(clockwork.app, "@daily", "daily")
    declare(clockwork.app, "30 14 * * *", "paris", timezone="Europe/Paris")
    assert await clockwork.at("2026-06-01 12:00:00Z") == 60
    assert await clockwork.at("2026-06-01 12:29:30.5Z") == 29.5


async def test_zones_come_along_from_blueprint_to_blueprint(clockwork: Clockwork, sql: Sql) -> None:
    inner, foreign, outer = procjobs.Blueprint(), procrastinate.Blueprint(), procjobs.Blueprint()
    declare(inner, "0 9 * * *", timezone="Asia/Tokyo")
    declare(foreign, "0 9 * * *", "utc")
    foreign.add_tasks_from(inner, namespace="in")
    outer.add_tasks_from(foreign, namespace="foreign")
    clockwork.app.add_tasks_from(outer, namespace="out")
    await clockwork.at("2026-06-01 00:00Z")
    await clockwork.at("2026-06-01 09:00Z")
    assert slots(sql, "out:foreign:in:tick") == ["01 00:00:00"]
    assert slots(sql, "out:foreign:utc") == ["01 09:00:00"]


async def test_options_and_ids_are_kept(clockwork: Clockwork, sql: Sql) -> None:
    options: dict[str, Any] = {"queue": "ticks", "lock": "l", "priority": 7}

    @clockwork.app.periodic(
        cron="@hourly", periodic_id="one", task_kwargs={"a": 1}, timezone="Asia/Kathmandu", **options
    )
    @clockwork.app.periodic(cron="@hourly", periodic_id="two", task_kwargs={"a": 2})
    @clockwork.app.task(name="tick")
    async def tick(timestamp: int, a: int) -> None:
        pass

    await clockwork.at("2026-06-01 12:00Z")
    await clockwork.at("2026-06-01 12:15Z")
    found = sql(
        "select queue_name, lock, priority, args ->> 'a', to_timestamp((args ->> 'timestamp')::bigint)::text "
        "from procrastinate_jobs order by id"
    )
    assert [row[:4] for row in found] == [("default", None, 0, "2"), ("ticks", "l", 7, "1")]
    assert sql("select periodic_id, defer_timestamp / 60 % 60 from procrastinate_periodic_defers order by 1") == [
        ("one", 15),
        ("two", 0),
    ]


async def test_a_pause_is_caught_up_within_the_greatest_delay(clockwork: Clockwork, sql: Sql) -> None:
    declare(clockwork.app, "*/2 * * * *")
    await clockwork.at("2026-06-01 12:00:30Z")
    clockwork.restart(max_delay=300)
    await clockwork.at("2026-06-01 12:20:30Z")
    assert slots(sql) == ["01 12:00:00", "01 12:16:00", "01 12:18:00", "01 12:20:00"]


async def test_a_new_task_is_not_backfilled(clockwork: Clockwork, sql: Sql) -> None:
    declare(clockwork.app, "* * * * *", "often")
    declare(clockwork.app, "0 12 * * *", "seldom")
    await clockwork.at("2026-06-01 12:10:30Z")
    assert slots(sql, "often") == ["01 12:10:00"]  # the last one alone
    assert slots(sql, "seldom") == []  # more than ten minutes ago


async def test_two_workers_and_a_restart_defer_each_slot_once(clockwork: Clockwork, sql: Sql) -> None:
    declare(clockwork.app, "* * * * *")
    for minute in range(5):
        await clockwork.at(f"2026-06-01 12:0{minute}:00Z")
        clockwork.restart()
        await clockwork.at(f"2026-06-01 12:0{minute}:01Z")
        await clockwork.at(f"2026-06-01 12:0{minute}:59Z")
    assert slots(sql) == [f"01 12:0{minute}:00" for minute in range(5)]


async def test_a_clock_set_back_defers_no_older_slot(clockwork: Clockwork, sql: Sql) -> None:
    declare(clockwork.app, "* * * * *")
    await clockwork.at("2026-06-01 12:05Z")
    clockwork.restart()
    await clockwork.at("2026-06-01 12:03Z")
    assert slots(sql) == ["01 12:05:00"]


async def test_a_slot_whose_queueing_lock_is_taken_is_passed_over(clockwork: Clockwork, sql: Sql) -> None:
    declare(clockwork.app, "* * * * *", queueing_lock="one at a time")
    await clockwork.at("2026-06-01 12:00Z")
    await clockwork.at("2026-06-01 12:01Z")
    sql("delete from procrastinate_jobs")
    await clockwork.at("2026-06-01 12:01:30Z")
    assert slots(sql) == []
    await clockwork.at("2026-06-01 12:02Z")
    assert slots(sql) == ["01 12:02:00"]


@pytest.mark.parametrize(
    ("cron", "timezone", "fault"),
    [
        ("0 0 30 2 *", "UTC", 'cron "0 0 30 2 *" never fires'),
        ("61 * * * *", "UTC", "61 is not between 0 and 59"),
        ("H * * * *", "UTC", "H is not between 0 and 59"),
        ("0 0 15W * *", "UTC", 'day of month "15W": cannot be read'),
        ("* * * * * * 2030", "UTC", "7 fields instead of five"),
        ("@daily", "Mars/Olympus", 'time zone "Mars/Olympus" is not known'),
    ],
)
async def test_what_never_fires_is_left_out_and_harms_no_other_task(
    clockwork: Clockwork, sql: Sql, caplog: pytest.LogCaptureFixture, cron: str, timezone: str, fault: str
) -> None:
    declare(clockwork.app, cron, "bad", timezone=timezone)
    declare(clockwork.app, "* * * * *")
    await clockwork.at("2026-06-01 12:00Z")
    await clockwork.at("2026-06-01 12:01Z")
    assert slots(sql) == ["01 12:00:00", "01 12:01:00"]
    (said,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert said.getMessage().startswith("periodic task bad (cron ")
    assert "never fires and is left out" in said.getMessage() and fault in said.getMessage()


async def test_one_question_for_all_tasks(clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        declare(clockwork.app, "0 0 1 1 *", f"task{number}")
    await clockwork.at("2026-06-01 12:00Z")
    asked: list[str] = []
    ask = clockwork.link.fetch

    async def counted(query: Any, parameters: Any = ()) -> Any:
        asked.append(query)
        return await ask(query, parameters)

    monkeypatch.setattr(clockwork.link, "fetch", counted)
    await clockwork.at("2026-06-01 12:01Z")
    assert len([query for query in asked if "set_config" not in query]) == 1


async def test_the_worker_role_may_ask(clockwork: Clockwork, sql: Sql) -> None:
    declare(clockwork.app, "* * * * *", timezone="Europe/Paris")
    await clockwork.link.fetch("select set_config('role', 'procjobs_worker', false)")
    await clockwork.at("2026-06-01 12:00Z")
    assert slots(sql) == ["01 12:00:00"]
