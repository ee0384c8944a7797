"""Cron against cronsim: random expressions in every time zone, most of them around the hours when clocks change."""

from __future__ import annotations

import random
import zoneinfo
from collections import Counter
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from .conftest import Sql

CASES = 30_000
SEED = 20261122
BEGIN, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
#: lowest, highest, names
FIELDS = {
    "second": (0, 59, None),
    "minute": (0, 59, None),
    "hour": (0, 23, None),
    "day": (1, 31, None),
    "month": (1, 12, MONTHS),
    "weekday": (0, 7, DAYS),
}


def item(chance: random.Random, field: str) -> str:
    low, high, names = FIELDS[field]

    def word(number: int) -> str:
        if names is None or chance.random() < 0.5 or number - low >= len(names):
            return str(number)
        name = names[number - low]
        return name if chance.random() < 0.5 else name.lower()

    kind = chance.random()
    first = chance.randint(low, high)
    if field == "hour" and chance.random() < 0.7:
        first = chance.randint(0, 4)  # when clocks change
    if kind < 0.5:
        return word(first)
    if kind < 0.6:
        return f"*/{chance.randint(1, high)}"
    if kind < 0.7:
        return f"{first}/{chance.randint(1, high)}"
    if field == "day" and kind < 0.75:
        return chance.choice(["L", "LW"])
    if field == "weekday" and kind < 0.75:
        return word(first) + "#" + str(chance.randint(1, 5))
    if field == "weekday" and kind < 0.8:
        return f"{chance.randint(0, 7)}L"
    if first == high:
        return word(first)
    until = chance.randint(first + 1, high)
    step = f"/{chance.randint(1, 5)}" if kind > 0.9 else ""
    return f"{word(first)}-{until}{step}"


def one_field(chance: random.Random, field: str, star: float) -> str:
    if chance.random() < star:
        return "*"
    return ",".join(item(chance, field) for _ in range(chance.choice([1, 1, 1, 2, 3])))


def expression(chance: random.Random) -> str:
    fields = [
        one_field(chance, "minute", 0.2),
        one_field(chance, "hour", 0.3),
        one_field(chance, "day", 0.8),
        one_field(chance, "month", 0.85),
        one_field(chance, "weekday", 0.8),
    ]
    # With six fields cronsim does not treat fixed times on their own: there it says nothing about them.
    if chance.random() < 0.2 and (fields[0].startswith("*") or fields[1].startswith("*")):
        fields.insert(0, one_field(chance, "second", 0.3))
    return " ".join(fields)


def changes(zone: zoneinfo.ZoneInfo) -> list[datetime]:
    """Instants up to three days before the clocks of a zone change."""
    found, at, step = [], BEGIN, timedelta(days=3)
    before = at.astimezone(zone).utcoffset()
    while at < END:
        after = (at + step).astimezone(zone).utcoffset()
        if after != before:
            found.append(at)
        before, at = after, at + step
    return found


def cases(chance: random.Random, zones: list[str]) -> list[tuple[str, str, datetime, datetime]]:
    """Expression, zone, instant, and what cronsim says comes next."""
    near = {name: changes(zoneinfo.ZoneInfo(name)) for name in zones}
    moving = [name for name in zones if near[name]]
    found: list[tuple[str, str, datetime, datetime]] = []
    for number in range(CASES):
        # Every zone has its turn; half of the cases are about those that change their clocks.
        name = zones[number // 2 % len(zones)] if number % 2 else moving[number // 2 % len(moving)]
        at = BEGIN + timedelta(seconds=chance.randrange(int((END - BEGIN).total_seconds())))
        if near[name] and chance.random() < 0.8:
            at = chance.choice(near[name]) + timedelta(seconds=chance.randrange(3 * 86400))
        if chance.random() < 0.5:
            at = at.replace(minute=chance.choice([0, 30]), second=0)
        cron = expression(chance)
        try:
            simulated = next(CronSim(cron, at.astimezone(zoneinfo.ZoneInfo(name))))
        except (CronSimError, StopIteration):
            continue  # never fires
        found.append((cron, name, at, simulated.astimezone(UTC)))
    return found


def same_clocks(sql: Sql, name: str, *instants: datetime) -> bool:
    """Whether PostgreSQL and Python, each with its own edition of the zones, agree on the clocks at some instants."""
    near = [at + timedelta(minutes=minutes) for at in instants for minutes in (-180, -60, -30, -1, 0, 30, 60, 180)]
    query = "select t at time zone %s from unnest(%s::timestamptz[]) with ordinality u (t, n) order by n"
    zone = zoneinfo.ZoneInfo(name)
    return [at.astimezone(zone).replace(tzinfo=None) for at in near] == [local for (local,) in sql(query, name, near)]


def fires(cron: str, local: datetime) -> bool:
    """Whether a wall time matches: cronsim's reading of the fields, without its walk through time."""
    sim = CronSim(cron, datetime(2020, 1, 1))  # noqa: DTZ001
    return (
        local.second in sim.seconds
        and local.minute in sim.minutes
        and local.hour in sim.hours
        and local.month in sim.months
        and sim.match_day(local.date())
    )


def every_instant(cron: str, zone: zoneinfo.ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    """The first instant that matches, found by looking at each: what a wildcard hour or minute means."""
    step = timedelta(seconds=1 if len(cron.split()) == 6 else 60)
    at = after.replace(second=0) if step.seconds == 60 else after
    while at < until:
        at += step
        if at > after and fires(cron, at.astimezone(zone)):
            return at
    return None


def every_wall_time(cron: str, zone: zoneinfo.ZoneInfo, after: datetime) -> datetime:
    """The first fixed wall time whose first instant is after this one: what a fixed hour and minute mean."""
    walls = CronSim(cron, after.astimezone(zone).replace(tzinfo=None))
    while (at := next(walls).replace(tzinfo=zone, fold=0).astimezone(UTC)) <= after:
        pass
    return at


def reason(cron: str, name: str, after: datetime, theirs: datetime, ours: datetime) -> str:
    """Why cronsim says something else, where ours is what looking at each instant or wall time gives."""
    zone = zoneinfo.ZoneInfo(name)
    fields = cron.split()[-5:]
    if not any(field.startswith("*") for field in fields[:2]):
        # After the clocks were set back, cronsim begins with the wall time and gives the first time it came.
        assert theirs <= after and ours == every_wall_time(cron, zone, after)
        return "cronsim answers with an instant that is over"
    assert ours == every_instant(cron, zone, after, ours)
    if name in ("Australia/Lord_Howe", "Australia/LHI"):
        return "cronsim steps by whole hours, the clocks of Lord Howe move by half an hour"
    midnight = theirs.astimezone(zone).replace(hour=0, minute=0, second=0, fold=0)
    assert midnight.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != midnight.replace(tzinfo=None)
    return "cronsim begins a day at a midnight that the clocks skip"


def test_random_expressions_in_every_zone_agree_with_cronsim(sql: Sql) -> None:
    known = {name for (name,) in sql("select name from pg_timezone_names")}
    zones = sorted(known & zoneinfo.available_timezones() - {"Factory", "localtime", "posixrules"})
    drawn = cases(random.Random(SEED), zones)
    answers = sql(
        "select procjobs.cron_next(c, z, a) from unnest(%s::text[], %s::text[], %s::timestamptz[]) "
        "with ordinality u (c, z, a, n) order by n",
        *[[case[n] for case in drawn] for n in range(3)],
    )
    left_out = 0
    reasons: Counter[str] = Counter()
    for (cron, name, after, theirs), (ours,) in zip(drawn, answers, strict=True):
        if theirs == ours:
            continue
        if not same_clocks(sql, name, after, theirs, ours):
            left_out += 1
            continue
        reasons[reason(cron, name, after, theirs, ours)] += 1
    print(f"seed {SEED}: {len(drawn)} cases in {len(zones)} zones, {left_out} left out since the clocks differ")
    print(*[f"{count} times: {why}" for why, count in reasons.items()], sep="\n")
    assert len(drawn) > 0.95 * CASES and len(zones) > 400
    assert left_out < 0.01 * CASES and sum(reasons.values()) < 0.002 * CASES
