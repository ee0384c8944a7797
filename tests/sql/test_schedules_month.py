"""A simulated month of schedules in five zones, with two clocks that tick at once: each expected slot exactly once."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from .conftest import Sql

ZONES = ["Europe/London", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kolkata"]
#: cron, and the fixed wall time or the minutes of a wildcard hour that it means.
FIXED = {"30 1 * * *": (1, 30), "30 2 * * *": (2, 30), "0 0 * * *": (0, 0), "45 23 * * *": (23, 45)}
WILD = {"*/20 * * * *": (0, 20, 40), "10 * * * *": (10,)}
SEED = 20261125


def instant_of(wall: datetime, zone: ZoneInfo) -> datetime:
    """When a fixed wall time fires: the first time it comes, or just after the gap that skips it."""
    at = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if at.astimezone(zone).replace(tzinfo=None) == wall:
        return at
    shift = wall.replace(tzinfo=zone, fold=1).utcoffset()
    before = wall.replace(tzinfo=zone, fold=0).utcoffset()
    assert shift is not None and before is not None and shift != before
    # In a gap: minute by minute to where the clocks moved.
    at = (wall - max(shift, before)).replace(tzinfo=UTC)
    while at.astimezone(zone).replace(tzinfo=None) < wall:
        at += timedelta(minutes=1)
    return at


def expected(begin: datetime, end: datetime) -> Counter[tuple[str, datetime]]:
    """Every slot of the month, without our cron: by looking at each day and at each minute."""
    found: Counter[tuple[str, datetime]] = Counter()
    for name in ZONES:
        zone = ZoneInfo(name)
        for cron, (hour, minute) in FIXED.items():
            day: date = begin.date() - timedelta(days=2)
            while day <= end.date() + timedelta(days=2):
                at = instant_of(datetime(day.year, day.month, day.day, hour, minute), zone)  # noqa: DTZ001
                if begin < at <= end:
                    found[f"{name} {cron}", at] += 1
                day += timedelta(days=1)
        at = begin
        while (at := at + timedelta(minutes=1)) <= end:
            local = at.astimezone(zone)
            for cron, minutes in WILD.items():
                if local.minute in minutes:
                    found[f"{name} {cron}", at] += 1
    at = begin
    while (at := at + timedelta(hours=5)) <= end:
        found["every", at] += 1
    return found


@pytest.mark.parametrize("begin", [datetime(2026, 3, 7, tzinfo=UTC), datetime(2026, 10, 3, tzinfo=UTC)], ids=str)
def test_each_slot_of_a_month_fires_once_whichever_clock_is_first(
    sql: Sql, register: Callable[..., int], another: Callable[[], psycopg.Connection[Any]], begin: datetime
) -> None:
    register("plain")
    end = begin + timedelta(days=31)
    sql("select set_config('procjobs.now', %s, false)", begin.isoformat())
    options = "misfire => 'all', overlap => 'allow', grace => '2 hours'"
    for name in ZONES:
        for cron in (*FIXED, *WILD):
            query = f"select procjobs.schedule(%s, 'plain', %s, timezone => %s, {options})"
            sql(query, f"{name} {cron}", cron, name)
    sql(f"select procjobs.schedule('every', 'plain', every => '5 hours', anchor => %s, {options})", begin)

    chance = random.Random(SEED)
    times = []
    at = begin
    while at < end:
        at = min(end, at + timedelta(seconds=chance.randrange(60, 3600)))
        times.append(at)
    together = threading.Barrier(2)
    fired = [0, 0]

    def keep_time(number: int) -> None:
        clock = another()
        clock.autocommit = True
        for time in times:
            clock.execute("select set_config('procjobs.now', %s, false)", (time.isoformat(),))
            together.wait(60)
            row = clock.execute("select procjobs.tick(%s)", (f"clock {number}",)).fetchone()
            assert row is not None
            fired[number] += row[0]

    threads = [threading.Thread(target=keep_time, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    sql("select set_config('procjobs.now', %s, false)", end.isoformat())
    sql("select procjobs.tick('last')")  # what one clock passed over, since the other one was at it

    found = Counter(sql("select schedule, slot from procjobs.schedule_ticks where outcome = 'fired'"))
    wanted = expected(begin, end)
    assert found - wanted == Counter() and wanted - found == Counter()
    assert sql("select schedule, slot from procjobs.schedule_ticks where outcome <> 'fired'") == []
    assert sql.one("select count(*) from procrastinate_jobs") == wanted.total() > 9000
    assert min(fired) > 0, "both clocks had their part"
