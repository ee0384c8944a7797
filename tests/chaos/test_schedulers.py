"""Several clocks at once, and clocks that freeze: scenarios 26 and 27. Every slot once, one job each (I5).

Each scenario runs with its safeguards and without them: then I5 must be broken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from procjobs.migrate import migrate
from tests.chaos.conftest import Build
from tests.chaos.harness.clock import Clock
from tests.chaos.harness.fleet import Worker
from tests.chaos.harness.site import Site, until
from tests.conftest import _numbers
from tests.test_pg_cron import cron_server, with_pg_cron

SAFEGUARDS = pytest.mark.parametrize("safe", [True, False], ids=["as it is", "no row lock, no ledger"])


def remove_safeguards(site: Site) -> None:
    """Clocks do not lock what they fire, and the ledger takes a slot twice. Each of the two is enough alone:
    tests/chaos/test_mutations_claims.py."""
    site.replace("tick_schedules", "for update skip locked", "")
    # However slow the machine is, no clock gives up waiting for the other.
    site.replace("tick_schedules", "'300ms'", "'30s'")
    site.sql("alter table procjobs.schedule_ticks drop constraint schedule_ticks_pkey")


def fired_by(site: Site) -> dict[str, int]:
    """How many slots each clock has fired."""
    query = "select fired_by, count(*) from procjobs.schedule_ticks where outcome = 'fired' group by 1"
    return dict(site.sql(query))


def name_of(site: Site, scheduler: Worker) -> str:
    """How the ledger names a scheduler, once it is there."""
    query = "select name from procjobs.schedulers where pid = %s"
    ((name,),) = until(lambda: site.sql(query, scheduler.pid), what=site.logs)
    return str(name)


# -- 26: several clocks at once --------------------------------------------------------------------------------------


def schedule_seconds(site: Site, count: int = 10) -> None:
    """Schedules with a slot every second, one after another within it: clocks meet at each."""
    for n in range(count):
        site.sql(
            "select procjobs.schedule(%s, 'tell_slot', every => '1 s', anchor => '2000-01-01Z'::timestamptz + %s,"
            " args => %s, misfire => 'all', catch_up => 1000, overlap => 'allow')",
            f"s{n}", f"{n / count} s", json.dumps({"schedule": f"s{n}"}),
        )  # fmt: skip


def tick_at_once(site: Site, clocks: set[str], safe: bool) -> None:
    """Let them tick until each has fired, and a hundred slots have; or until something is wrong that must be."""
    if not safe:
        remove_safeguards(site)
        until(lambda: "I5" in site.broken(), what=lambda: fired_by(site))
        return
    before = sum(fired_by(site).values())
    until(
        lambda: set(fired_by(site)) >= clocks and sum(fired_by(site).values()) >= before + 100,
        what=lambda: (fired_by(site), site.logs()),
    )
    site.sql("select procjobs.pause_schedule(name, 'the end') from procjobs.schedules where source = 'sql'")
    site.check()
    assert site.sql("select distinct outcome, missed from procjobs.schedule_ticks") == [("fired", False)]


@SAFEGUARDS
def test_26_two_schedulers_and_a_worker_at_once(site: Site, safe: bool) -> None:
    schedule_seconds(site)
    schedulers = [site.fleet.start_scheduler() for _ in range(2)]
    site.fleet.start()
    clocks = {"w2", *(name_of(site, scheduler) for scheduler in schedulers)}
    tick_at_once(site, clocks, safe)
    if safe:
        site.check_all_succeeded()


@pytest.fixture
def with_cron(build: Build, folder: Path) -> Iterator[Site]:
    """A site whose server has pg_cron, which keeps time for it from now on."""
    with cron_server(folder / f"cron{next(_numbers)}") as server:
        dsn = server.create_database("clock")
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create extension pg_cron")
            connection.execute("select procjobs.pg_cron_install()")
            # Once, when the server starts: within a second, and not with the next minute.
            connection.execute("select cron.alter_job(jobid, '@reboot') from cron.job where jobname like '% time'")
        server.stop()
        server.start()
        yield build(dsn)


@with_pg_cron
@SAFEGUARDS
def test_26_two_schedulers_and_pg_cron_at_once(with_cron: Site, safe: bool) -> None:
    site = with_cron
    schedule_seconds(site)
    until(lambda: "pg_cron" in fired_by(site), what=lambda: site.sql("select * from cron.job_run_details"))
    schedulers = [site.fleet.start_scheduler() for _ in range(2)]
    tick_at_once(site, {"pg_cron", *(name_of(site, scheduler) for scheduler in schedulers)}, safe)


# -- 27: a scheduler that is frozen for a hundred slots --------------------------------------------------------------

BEFORE, FIRST, AFTER, NEXT = (f"2026-06-01 {time}Z" for time in ("12:00:30", "12:01", "13:41:30", "13:42"))


def schedule_minutes(site: Site, misfire: str, *names: str, catch_up: int = 100) -> None:
    for name in names:
        site.sql(
            "select procjobs.schedule(%s, 'tell_slot', every => '1 min', args => %s, misfire => %s,"
            " catch_up => %s, grace => '20 s', overlap => 'allow')",
            name, json.dumps({"schedule": name}), misfire, catch_up,
        )  # fmt: skip


#: How many clocks want to write to the ledger and cannot yet.
WAITING = (
    "select count(*) from pg_locks l join pg_stat_activity a using (pid) where not l.granted"
    " and l.relation = 'procjobs.schedule_ticks'::regclass"
    " and a.datname = current_database() and a.application_name = 'procjobs tick'"
)


def slots(site: Site) -> int:
    return int(site.sql.one("select count(*) from procjobs.schedule_ticks"))


def ledger(site: Site) -> list[tuple[str, str | None, int, str, str]]:
    """What became of the slots, with the reason, how many and from when to when."""
    return site.sql(
        "select outcome, reason, count(*)::int, to_char(min(slot) at time zone 'UTC', 'HH24:MI'),"
        " to_char(max(slot) at time zone 'UTC', 'HH24:MI') from procjobs.schedule_ticks group by 1, 2 order by 4, 5"
    )


EXPECTED = {
    ("skip", 100): [
        ("fired", None, 2, "12:01", "13:42"),
        ("skipped", "missed: misfire is skip", 100, "12:02", "13:41"),
    ],
    ("latest", 100): [
        ("fired", None, 3, "12:01", "13:42"),
        ("skipped", "missed: only the latest is made up for", 99, "12:02", "13:40"),
    ],
    ("all", 100): [("fired", None, 102, "12:01", "13:42")],
    ("all", 30): [
        ("fired", None, 32, "12:01", "13:42"),
        ("skipped", "missed: only the last 30 are made up for", 70, "12:02", "13:11"),
    ],
}
#: How each policy says which slots fire, without saying which.
FORGETFUL = {
    "skip": ("p_schedule.misfire = 'skip' and p_now - u.slot <= p_schedule.grace", "p_schedule.misfire = 'skip'"),
    "latest": ("p_schedule.misfire = 'latest' and u.n = cardinality(p_slots)", "p_schedule.misfire = 'latest'"),
    "all": ("cardinality(p_slots) - u.n < p_schedule.catch_up", "u.n = cardinality(p_slots)"),
}


@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "mutated"])
@pytest.mark.parametrize(("misfire", "catch_up"), EXPECTED)
def test_27_a_scheduler_frozen_for_100_slots(site: Site, misfire: str, catch_up: int, mutated: bool) -> None:
    clock = Clock(site.sql, BEFORE)
    if mutated:
        site.replace("misfire_reasons", *FORGETFUL[misfire])
    schedule_minutes(site, misfire, "s", catch_up=catch_up)
    scheduler = site.fleet.start_scheduler()
    clock.to(FIRST)
    until(lambda: slots(site) == 1, what=site.logs)
    scheduler.freeze()
    clock.to(AFTER)
    scheduler.thaw()
    until(lambda: slots(site) == 101, what=site.logs)
    assert site.sql.one("select details -> 'slots' from procjobs.alerts where kind = 'missed_slot'") == 100
    clock.to(NEXT)
    until(lambda: slots(site) == 102, what=site.logs)
    assert (ledger(site) == EXPECTED[misfire, catch_up]) == (not mutated), ledger(site)
    site.check()
    assert scheduler.alive


def test_27_another_takes_over_and_the_first_fires_nothing_twice(site: Site) -> None:
    clock = Clock(site.sql, BEFORE)
    schedule_minutes(site, "all", "a", "b")
    first = site.fleet.start_scheduler()
    frozen = name_of(site, first)
    clock.to(FIRST)
    until(lambda: slots(site) == 2, what=site.logs)
    first.freeze()
    clock.to(AFTER)
    second = site.fleet.start_scheduler()
    other = name_of(site, second)
    until(lambda: slots(site) == 202, what=site.logs)
    died = "select exists (select from procjobs.worker_state where name = %s and dead_at is not null)"
    clock.to(NEXT)  # silent for longer than its lease, and looked at twice
    until(lambda: site.sql.one(died, frozen), what=site.logs)
    until(lambda: slots(site) == 204, what=site.logs)
    assert fired_by(site) == {frozen: 2, other: 202}
    first.thaw()
    name_of_living = "select exists (select from procjobs.worker_state where name = %s and dead_at is null)"
    until(lambda: site.sql.one(name_of_living, frozen), what=site.logs)
    clock.to("2026-06-01 13:43Z")
    until(lambda: slots(site) == 206, what=site.logs)
    site.check()
    second.kill()
    clock.to("2026-06-01 13:44Z")
    until(lambda: slots(site) == 208, what=site.logs)  # it goes on as if nothing had been
    site.check()
    assert site.sql("select distinct outcome from procjobs.schedule_ticks") == [("fired",)]
    assert fired_by(site)[frozen] >= 4


@SAFEGUARDS
def test_27_two_that_wake_up_together(site: Site, safe: bool) -> None:
    """Both see a hundred slots of each schedule that nobody has fired."""
    clock = Clock(site.sql, BEFORE)
    schedule_minutes(site, "all", *"abcde")
    both = [site.fleet.start_scheduler() for _ in range(2)]
    for scheduler in both:
        name_of(site, scheduler)
    clock.to(FIRST)
    until(lambda: slots(site) == 5, what=site.logs)
    if not safe:
        remove_safeguards(site)
    for scheduler in both:
        scheduler.freeze()
    clock.to(AFTER)
    with psycopg.connect(site.dsn) as gate:
        gate.execute("lock table procjobs.schedule_ticks in share mode")
        for scheduler in both:
            scheduler.thaw()
        # Who has locked what it fires waits alone; the other finds nothing to do.
        until(lambda: site.sql.one(WAITING) == (1 if safe else 2), what=site.logs)
    until(lambda: slots(site) >= (505 if safe else 1005), what=site.logs)
    if safe:
        site.check()
        assert ledger(site) == [("fired", None, 505, "12:01", "13:41")]
    else:
        assert "I5" in site.broken()
