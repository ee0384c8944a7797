"""Schedules in code and files: declared, merged with what SQL says, fired on time while somebody declares them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import procjobs
from procjobs.engine.scheduler import Scheduler
from procjobs.errors import ScheduleNotFound
from procjobs.settings import Settings
from tests.conftest import Sql

from .clockwork import Clockwork


@pytest.fixture
async def clockwork(dsn: str) -> AsyncIterator[Clockwork]:
    async with Clockwork.on(dsn) as made:
        yield made


def rows(sql: Sql, columns: str = "name, task, times, timezone, source") -> list[tuple[Any, ...]]:
    return sql(f"select {columns} from procjobs.schedule_list order by name")


# -- declaring -------------------------------------------------------------------------------------------------------


async def test_what_the_decorator_says_is_a_row_and_fires(clockwork: Clockwork, sql: Sql) -> None:
    @clockwork.app.schedule("0 9 * * *", timezone="Europe/Paris", jitter=timedelta(seconds=0))
    @clockwork.app.schedule(every=timedelta(hours=1), name="hourly", args={"short": True}, queue="q")
    @clockwork.app.task(name="report")
    async def report(slot: str, short: bool = False) -> None: ...

    await clockwork.app.register_tasks()
    assert await clockwork.at("2026-06-01 06:59:30Z") == 30
    assert rows(sql) == [
        ("hourly", "report", "every 01:00:00", "UTC", "code"),
        ("report", "report", "0 9 * * *", "Europe/Paris", "code"),
    ]
    await clockwork.at("2026-06-01 07:00Z")
    assert sql("select queue, args from procjobs.jobs order by queue") == [
        ("default", {"slot": "2026-06-01T07:00:00Z"}),
        ("q", {"slot": "2026-06-01T07:00:00Z", "short": True}),
    ]


async def test_blueprints_bring_their_schedules_along(clockwork: Clockwork, sql: Sql) -> None:
    blueprint = procjobs.Blueprint()

    @blueprint.schedule("@daily")
    @blueprint.schedule("@hourly", name="often")
    @blueprint.task(name="tick")
    async def tick() -> None: ...

    clockwork.app.add_tasks_from(blueprint, namespace="ns")
    await clockwork.at("2026-06-01 06:00Z")
    assert rows(sql, "name, task") == [("ns:often", "ns:tick"), ("ns:tick", "ns:tick")]


def test_what_cannot_be_is_refused_at_once() -> None:
    app = procjobs.Blueprint()
    with pytest.raises(ValueError, match="either a cron or every="):
        app.schedule()
    with pytest.raises(ValueError, match="either a cron or every="):
        app.schedule("@daily", every=60)
    with pytest.raises(TypeError, match=r"above @app\.task"):
        app.schedule("@daily")(print)
    with pytest.raises(ValueError, match="give this one another"):

        @app.schedule("@daily")
        @app.schedule("@hourly")
        @app.task(name="tick")
        async def tick() -> None: ...


async def test_a_fault_is_logged_and_harms_no_other(
    clockwork: Clockwork, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    @clockwork.app.schedule("61 * * * *", name="bad")
    @clockwork.app.schedule("@daily", misfire="sometimes", name="worse")
    @clockwork.app.schedule("@daily", colour="red", name="worst")
    @clockwork.app.schedule("@daily", name="good")
    @clockwork.app.task(name="tick")
    async def tick() -> None: ...

    await clockwork.at("2026-06-01 06:00Z")
    assert rows(sql, "name") == [("good",)]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert (
        ["61" in said[0], "misfire is skip" in said[1], "it has no colour" in said[2]]
        == [True] * 3
        == [True, True, True]
    )


async def test_an_administrators_change_stays_until_the_code_says_something_else(dsn: str, sql: Sql) -> None:
    async def start(cron: str, **options: Any) -> None:
        async with Clockwork.on(dsn) as clockwork:

            @clockwork.app.schedule(cron, **options)
            @clockwork.app.task(name="tick")
            async def tick() -> None: ...

            await clockwork.app.register_tasks()
            await clockwork.at("2026-06-01 06:00Z")

    await start("0 9 * * *", queue="a", priority=1)
    sql("select procjobs.schedule('tick', cron => '0 10 * * *', priority => 7)")
    sql("select procjobs.pause_schedule('tick')")
    await start("0 9 * * *", queue="b", priority=1)
    assert rows(sql, "times, queue, priority, state") == [("0 10 * * *", "b", 7, "paused")]
    await start("0 11 * * *", priority=1)
    assert rows(sql, "times, queue, priority, state") == [("0 11 * * *", None, 7, "paused")]


async def test_the_same_code_writes_nothing(clockwork: Clockwork, sql: Sql) -> None:
    @clockwork.app.schedule("@daily", args={"a": 1})
    @clockwork.app.task(name="tick")
    async def tick(a: int) -> None: ...

    await clockwork.at("2026-06-01 06:00Z")
    before = sql("select xmin, * from procjobs.schedules")
    clockwork.restart()
    await clockwork.at("2026-06-01 06:01Z")
    assert sql("select xmin, * from procjobs.schedules") == before


async def test_a_schedule_of_sql_is_not_taken_over_by_code(
    clockwork: Clockwork, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    @clockwork.app.schedule("@daily")
    @clockwork.app.task(name="tick")
    async def tick() -> None: ...

    await clockwork.app.register_tasks()
    sql("select procjobs.schedule('tick', 'tick', '@hourly')")
    await clockwork.at("2026-06-01 06:00Z")
    assert rows(sql, "times, source") == [("@hourly", "sql")]
    assert "made a schedule of that name with SQL" in caplog.text


# -- procjobs.toml and the environment -------------------------------------------------------------------------------

FILE = """
[schedules.nightly]
task = "clean_up"
cron = "30 2 * * *"
args = {rows = 10}
timeout = "5min"
anchor = 2026-01-01T00:00:00Z
[schedules.tick]
queue = "slow"
[environments.staging.schedules.nightly]
enabled = false
cron = "30 3 * * *"
"""


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in a folder with that procjobs.toml."""
    (tmp_path / "procjobs.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_folder")
async def test_the_file_is_applied_by_environment_over_what_code_says(dsn: str, sql: Sql) -> None:

    async def start(environment: str | None) -> None:
        async with Clockwork.on(dsn) as clockwork:
            clockwork.app._settings = Settings.load(environ={}, environment=environment)

            @clockwork.app.schedule("@daily")
            @clockwork.app.task(name="tick")
            async def tick() -> None: ...

            await clockwork.at("2026-06-01 06:00Z")

    await start(None)
    await start(None)
    wanted = [("nightly", "30 2 * * *", None, "active", "file"), ("tick", "@daily", "slow", "active", "code")]
    assert rows(sql, "name, times, queue, state, source") == wanted
    assert sql("select args, timeout::text from procjobs.schedules where name = 'nightly'") == [
        ({"rows": 10}, "00:05:00")
    ]
    await start("staging")
    assert rows(sql, "times, state, paused_by")[0] == ("30 3 * * *", "paused", "file")
    await start(None)
    assert rows(sql, "times, state, paused_by")[0] == ("30 2 * * *", "active", None)


def test_the_environment_is_written_when_it_says_something_else(sql: Sql) -> None:
    def say(timezone: str | None, **groups: bool) -> list[str]:
        said: list[str] = sql.one("select procjobs.apply_environment(%s, %s)", timezone, json.dumps(groups))
        return said

    assert say("Europe/Paris", cleanup=False) == ["time zone Europe/Paris", "group cleanup off"]
    assert say("Europe/Paris", cleanup=False) == []
    sql("select procjobs.set_schedule_group('cleanup', true), procjobs.set_cron_timezone('Asia/Tokyo')")
    assert say("Europe/Paris", cleanup=False) == [], "what SQL switched since then stays"
    assert sql("select enabled from procjobs.schedule_groups where name = 'cleanup'") == [(True,)]
    assert sql.one("select procjobs.cron_timezone()") == "Asia/Tokyo"
    assert say("UTC", cleanup=True, email_queue=True) == ["time zone UTC", "group cleanup on", "group email_queue on"]


# -- who declares ----------------------------------------------------------------------------------------------------


async def test_code_fires_while_somebody_declares_it_or_nobody_lives(clockwork: Clockwork, sql: Sql) -> None:
    @clockwork.app.schedule("* * * * *", overlap="allow")
    @clockwork.app.task(name="tick")
    async def tick() -> None: ...

    async def slots_at(when: str) -> int:
        await clockwork.at(when)
        return int(sql.one("select count(*) from procjobs.schedule_ticks where outcome = 'fired'"))

    def worker(at: str, declares: list[str]) -> int:
        sql("select set_config('procjobs.now', %s, false)", at)
        found: int = sql.one("select procjobs.register_worker('w', 'h', 1, '1', null, '{}', 1, '1 min', '10 min')")
        sql("update procjobs.worker_state set schedules = %s where id = %s", declares, found)
        return found

    await clockwork.app.register_tasks()
    assert await slots_at("2026-06-01 12:00:30Z") == 0
    assert await slots_at("2026-06-01 12:01:00Z") == 1, "no process lives: another clock goes on"
    ours = worker("2026-06-01 12:01:30Z", ["tick"])
    worker("2026-06-01 12:01:30Z", [])
    assert await slots_at("2026-06-01 12:02:00Z") == 2
    sql("select procjobs.stop_worker(%s)", ours)
    assert await slots_at("2026-06-01 12:03:00Z") == 2
    assert rows(sql, "state") == [("undeclared",)]
    assert await slots_at("2026-06-01 13:00:00Z") == 2, "all are gone: what was given up before stays so"
    clockwork.restart()
    assert await slots_at("2026-06-01 13:00:30Z") == 3, "declared again, the latest slot is made up for"
    sql("update procjobs.schedules set undeclared_at = '2026-06-01 12:00Z'")
    sql("set procjobs.now = '2026-06-09 12:00Z'")
    assert sql.one("select procjobs.forget_schedules()") == 1


async def test_a_worker_and_a_scheduler_say_what_they_declare(
    app: procjobs.App, working: Any, sql: Sql, eventually: Any
) -> None:
    @app.schedule("@yearly")
    @app.task(name="tick")
    async def tick() -> None: ...

    scheduler = Scheduler(app, app.target, name="sam", heartbeat_every=0.1, lease=0.5)
    keeping = asyncio.create_task(scheduler.run())
    async with working():
        await eventually(
            lambda: (
                sql("select kind from procjobs.worker_state where schedules = '{tick}' order by 1")
                == [("scheduler",), ("worker",)]
            )
        )
        assert sql("select name, state, declares from procjobs.schedulers") == [("sam", "alive", 1)]
    scheduler.stop()
    await asyncio.wait_for(keeping, 10)
    assert sql("select state from procjobs.schedulers") == [("stopped",)]


async def test_a_scheduler_that_is_stopped_while_it_starts_signs_off(
    app: procjobs.App, sql: Sql, dsn: str, eventually: Any
) -> None:
    scheduler = Scheduler(app, app.target, name="sam")
    with psycopg.connect(dsn) as in_the_way:
        in_the_way.execute("lock table procjobs.upkeep_state")
        keeping = asyncio.create_task(scheduler.run())
        await eventually(lambda: sql("select 1 from procjobs.schedulers"))
        scheduler.stop()
    await asyncio.wait_for(keeping, 10)
    assert sql("select state from procjobs.schedulers") == [("stopped",)]


async def test_a_scheduler_that_was_declared_dead_comes_back(app: procjobs.App, sql: Sql, eventually: Any) -> None:
    scheduler = Scheduler(app, app.target, name="sam", heartbeat_every=0.1, lease=0.5)
    keeping = asyncio.create_task(scheduler.run())
    await eventually(lambda: sql("update procjobs.worker_state set dead_at = now() where name = 'sam' returning id"))
    await eventually(lambda: sql("select 1 from procjobs.schedulers where state = 'alive'"))
    scheduler.stop()
    await asyncio.wait_for(keeping, 10)


# -- on time ---------------------------------------------------------------------------------------------------------


async def test_slots_fire_within_50_ms_and_are_run(app: procjobs.App, working: Any, sql: Sql, eventually: Any) -> None:
    @app.schedule("* * * * * *", overlap="allow")
    @app.task(name="tick")
    async def tick(slot: str) -> None: ...

    async with working():
        await eventually(lambda: sql.one("select count(*) from procjobs.job_history") >= 4)
    late = sql("select extract(epoch from fired_at - slot)::float from procjobs.schedule_ticks order by slot")
    assert sorted(seconds for (seconds,) in late)[len(late) // 2] < 0.05, late


async def test_a_schedule_made_meanwhile_is_seen_within_a_second(
    app: procjobs.App, working: Any, sql: Sql, eventually: Any
) -> None:
    @app.task(name="tick")
    async def tick() -> None: ...

    async with working():
        await eventually(lambda: sql("select 1 from procjobs.worker_state where kind = 'worker'"))
        sql("select procjobs.schedule('s', 'tick', every => '1 second')")
        await eventually(lambda: sql("select 1 from procjobs.job_history"), 5)


async def test_many_clocks_fire_each_slot_once_and_go_on_when_one_dies(
    app: procjobs.App, working: Any, sql: Sql, eventually: Any
) -> None:
    @app.task(name="tick")
    async def tick(slot: str) -> None: ...

    for number in range(5):
        sql("select procjobs.register_tasks('[{\"name\": \"tick\"}]', 'test')")
        sql("select procjobs.schedule(%s, 'tick', every => '1 second', overlap => 'allow')", f"s{number}")
    schedulers = [Scheduler(app, app.target, name=f"clock{number}") for number in range(3)]
    keeping = [asyncio.create_task(scheduler.run()) for scheduler in schedulers]

    async def fired() -> int:
        sql("select procjobs.tick('pg_cron')")  # and a fourth clock of another kind
        return int(sql.one("select count(*) from procjobs.schedule_ticks"))

    for scheduler in schedulers:
        count = await fired()
        await eventually(lambda count=count: _more(fired, count + 10))
        scheduler.stop()
    await asyncio.wait_for(asyncio.gather(*keeping), 10)
    assert sql("select count(*) from procjobs.schedule_ticks where outcome <> 'fired'") == [(0,)]
    assert (
        sql(
            "select t.schedule from procjobs.schedule_ticks t group by 1 "
            "having count(*) <> extract(epoch from max(slot) - min(slot)) + 1"
        )
        == []
    )
    assert sql.one("select count(*) from procjobs.schedule_ticks") == sql.one("select count(*) from procrastinate_jobs")


async def _more(fired: Any, than: int) -> bool:
    return bool(await fired() >= than)


# -- by hand ---------------------------------------------------------------------------------------------------------


async def test_calls_by_hand(app: procjobs.App, sql: Sql) -> None:
    sql("select procjobs.register_tasks('[{\"name\": \"tick\"}]', 'test')")
    made = await app.schedules.set("s", task="tick", every=timedelta(hours=1), args={"a": 1})
    assert made is not None and made > datetime.now(UTC)
    assert await app.schedules.set_for("s", "ann", cron="@daily") is not None
    first = await app.schedules.run_now("s", key="click")
    assert await app.schedules.run_now("s", key="click", args={"a": 2}) == first
    assert await app.schedules.pause("s", "loud") and not await app.schedules.pause("s")
    assert await app.schedules.resume("s")
    begin = made - timedelta(hours=3)
    assert await app.schedules.backfill("s", begin, at_most=2) == (2, 1)
    assert [preview.slot for preview in await app.schedules.preview("s", 2)] == [made, made + timedelta(hours=1)]
    assert await app.schedules.remove("s") and not await app.schedules.remove("s")
    with pytest.raises(ScheduleNotFound, match="there is no schedule 's'"):
        await app.schedules.run_now("s")
