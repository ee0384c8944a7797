"""Digests over both changes of clocks in twelve zones: each recipient got exactly those that zoneinfo says."""

from __future__ import annotations

import calendar
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

ZONES = [
    "Africa/Cairo", "America/Havana", "America/New_York", "America/Santiago", "Asia/Beirut", "Asia/Kolkata",
    "Australia/Lord_Howe", "Australia/Sydney", "Europe/Berlin", "Europe/London", "Pacific/Apia", "UTC",
]  # fmt: skip
#: Times that clocks skip or repeat somewhere (midnight in Cairo, Havana and Beirut), and one that they never do.
TIMES = [time(0, 0), time(1, 30), time(2, 15), time(2, 30), time(23, 30), time(9, 0)]
#: frequency, day of week, day of month; 30 and 31 are clamped in February and in months of thirty days.
RHYTHMS = [("daily", None, None), ("weekly", 7, None), ("monthly", None, 31)]
SPANS = {
    "spring": (datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 4, 28, tzinfo=UTC)),
    "autumn": (datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 11, 14, tzinfo=UTC)),
}


def test_every_change_of_clocks_of_the_year_lies_within_a_span() -> None:
    hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in range(365 * 24)]
    changes = {
        name: [
            at for at, later in pairwise(hours) if at.astimezone(zone).utcoffset() != later.astimezone(zone).utcoffset()
        ]
        for name, zone in ((name, ZoneInfo(name)) for name in ZONES)
    }
    assert [name for name, found in changes.items() if len(found) != 2] == ["Asia/Kolkata", "Pacific/Apia", "UTC"]
    margin = timedelta(days=3)  # before and after, so that the usual time is seen, too
    for found in changes.values():
        assert all(any(begin + margin < at < end - margin for begin, end in SPANS.values()) for at in found)


def instant(day: date, at: time, zone: ZoneInfo) -> datetime:
    """When clocks of the zone first show this time on this day, or just after the gap that skips it."""
    wall = datetime.combine(day, at)
    found = wall.replace(tzinfo=zone).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None) == wall:
        return found
    # In a gap: the first minute at which the clocks are past it.
    found = (wall - timedelta(hours=26)).replace(tzinfo=UTC)
    while found.astimezone(zone).replace(tzinfo=None) < wall:
        found += timedelta(minutes=1)
    return found


def is_day(day: date, rhythm: tuple[str, int | None, int | None]) -> bool:
    _, of_week, of_month = rhythm
    if of_week is not None:
        return day.isoweekday() == of_week
    if of_month is not None:
        return day.day == min(of_month, calendar.monthrange(day.year, day.month)[1])
    return True


def expected(begin: datetime, end: datetime) -> Counter[tuple[str, str, time, datetime]]:
    found: Counter[tuple[str, str, time, datetime]] = Counter()
    for name in ZONES:
        for at in TIMES:
            for rhythm in RHYTHMS:
                day = begin.date() - timedelta(days=2)
                while day <= end.date() + timedelta(days=2):
                    if is_day(day, rhythm) and begin < (due := instant(day, at, ZoneInfo(name))) <= end:
                        found[name, rhythm[0], at, due] += 1
                    day += timedelta(days=1)
    return found


@pytest.mark.parametrize(("begin", "end"), SPANS.values(), ids=SPANS)
def test_each_recipient_gets_exactly_the_expected_ones(sql: Any, begin: datetime, end: datetime) -> None:
    wanted = expected(begin, end)
    instants = sorted({due for *_, due in wanted})
    sql("set timezone = 'UTC'")
    sql("select set_config('procjobs.now', %s, false)", begin.isoformat())
    sql("insert into procjobs_demo.people (name, email) values ('Ann', 'ann@example.org')")
    sql("insert into procjobs_demo.groups (name) values ('All')")
    sql(
        "insert into procjobs_demo.recipients (owner_id, name, email, timezone) "
        "select p.id, z || ' ' || t, 'r@example.org', z from procjobs_demo.people p, unnest(%s::text[]) z, "
        "unnest(%s::time[]) t",
        ZONES, TIMES,
    )  # fmt: skip
    sql(
        "insert into procjobs_demo.group_recipients select g.id, r.id from procjobs_demo.groups g, "
        "procjobs_demo.recipients r"
    )
    for frequency, of_week, of_month in RHYTHMS:
        sql(
            "select procjobs.create_digest_schedule(r.id, %s, g.id, split_part(r.name, ' ', 2), day_of_week => "
            "%s, day_of_month => %s) "
            "from procjobs_demo.recipients r, procjobs_demo.groups g",
            frequency, of_week, of_month,
        )  # fmt: skip
    # Something new for each of them every time.
    sql(
        "insert into procjobs_demo.updates (group_id, author_id, title, created_at) "
        "select g.id, p.id, 'News', t - interval '1 minute' from procjobs_demo.groups g, procjobs_demo.people "
        "p, unnest(%s::timestamptz[]) t",
        instants,
    )  # fmt: skip
    # The clock stands at every time that is expected of anybody: too early would show as much as too late.
    for due in instants:
        sql("select set_config('procjobs.now', %s, false)", due.isoformat())
        sql("select procjobs.create_digest_jobs()")
    sql("select set_config('procjobs.now', %s, false)", end.isoformat())
    sql("select procjobs.create_digest_jobs()")

    found = Counter(
        sql(
            "select r.timezone, d.frequency, split_part(r.name, ' ', 2)::time, d.ran_at from procjobs.digest_runs d "
            "join procjobs_demo.recipients r on r.id = d.recipient_id where d.outcome = 'created'"
        )
    )
    assert found - wanted == Counter() and wanted - found == Counter()
    assert wanted.total() > 3500
    assert sql("select distinct outcome from procjobs.digest_runs") == [("created",)]
    assert sql("select * from procjobs.digest_runs where slot <> ran_at") == []
    counted = "select count(*) from procjobs.notification_jobs where template = 'digest'"
    assert sql.one(counted) == wanted.total()
    gaps = [key for key in wanted if (local := key[3].astimezone(ZoneInfo(key[0]))).time() != key[2] or local.fold]
    assert gaps, "some fell into a gap"


@pytest.mark.parametrize(
    ("arguments", "after", "due"),
    [
        ("'monthly', '09:00', null, 31", "2027-01-31 09:00Z", "2027-02-28 09:00Z"),
        ("'monthly', '09:00', null, 30", "2027-01-30 09:00Z", "2027-02-28 09:00Z"),
        ("'monthly', '09:00', null, 30", "2027-02-28 09:00Z", "2027-03-30 09:00Z"),
        ("'monthly', '09:00', null, 29", "2028-01-31 09:00Z", "2028-02-29 09:00Z"),
        ("'monthly', '09:00', null, 29", "2027-01-31 09:00Z", "2027-02-28 09:00Z"),
        ("'monthly', '09:00', null, 31", "2027-04-01 09:00Z", "2027-04-30 09:00Z"),
        ("'monthly', '09:00'", "2027-04-01 09:00Z", "2027-05-01 09:00Z"),
        ("'weekly', '09:00', 1", "2027-04-01 09:00Z", "2027-04-05 09:00Z"),
        ("'weekly', '09:00', 7", "2027-04-01 09:00Z", "2027-04-04 09:00Z"),
        ("'daily', '23:59:30'", "2027-04-01 23:59:30Z", "2027-04-02 23:59:30Z"),
        ("'daily', '02:30', null, null, 'Europe/Berlin'", "2027-03-27 12:00Z", "2027-03-28 01:00Z"),
        ("'daily', '02:30', null, null, 'Europe/Berlin'", "2027-10-30 12:00Z", "2027-10-31 00:30Z"),
        ("'daily', '02:30', null, null, 'Europe/Berlin'", "2027-10-31 00:30Z", "2027-11-01 01:30Z"),
    ],
)  # fmt: skip
def test_days_are_clamped_and_clocks_minded(sql: Any, arguments: str, after: str, due: str) -> None:
    assert sql.one(f"select procjobs.next_digest_at({arguments}, after => %s) = %s::timestamptz", after, due)
