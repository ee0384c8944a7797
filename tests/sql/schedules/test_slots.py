"""Slots: fired when they are due, made up for by the misfire, and never over a run that has not ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.conftest import Sql, Worker
from tests.sql.schedules.conftest import NONE, Now, Register, arguments, fired, ledger, tick


def test_a_slot_fires_when_it_is_due_and_not_before(sql: Sql, now: Now) -> None:
    assert sql.one("select procjobs.schedule('s', 'plain', '* * * * *')::text") == "2026-06-01 12:01:00+00"
    assert tick(sql, now, "2026-06-01 12:00:59.999Z") == 0
    assert tick(sql, now, "2026-06-01 12:01Z") == 1
    assert tick(sql, now, "2026-06-01 12:01:30Z") == 0
    assert ledger(sql, "s") == [("01 12:01:00", "fired", None)]
    assert sql("select task, queue, state from procjobs.jobs") == [("plain", "default", "waiting")]


@pytest.mark.parametrize(
    ("every", "anchor", "next_slots"),
    [
        ("5 minutes", None, ["12:05:00", "12:10:00"]),
        ("7 seconds", "2026-06-01 12:00:31Z", ["12:00:31", "12:00:38"]),
        ("90 minutes", "2030-01-01 00:00Z", ["13:30:00", "15:00:00"]),
        ("1 day", "2026-05-31 12:00:30Z", ["12:00:30", "12:00:30"]),
    ],
)
def test_an_interval_goes_by_elapsed_time_from_its_anchor(
    sql: Sql, every: str, anchor: str | None, next_slots: list[str]
) -> None:
    sql("select procjobs.schedule('s', 'plain', every => %s, anchor => %s)", every, anchor)
    found = sql("select to_char(slot at time zone 'UTC', 'HH24:MI:SS') from procjobs.preview_schedule('s', 2)")
    assert [slot for (slot,) in found] == next_slots


def test_a_day_as_an_interval_is_24_hours_when_clocks_change_too(sql: Sql) -> None:
    sql("set timezone = 'Europe/Paris'")
    sql("set procjobs.now = '2026-03-27 12:00Z'")
    sql("select procjobs.schedule('s', 'plain', every => '1 day', timezone => 'Europe/Paris')")
    found = sql("select to_char(slot at time zone 'UTC', 'DD HH24:MI') from procjobs.preview_schedule('s', 3)")
    assert found == [("28 00:00",), ("29 00:00",), ("30 00:00",)]


def test_a_task_is_told_its_slot_unless_the_schedule_says_otherwise(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'told', '0 * * * *', args => '{\"a\": 1}')")
    sql("select procjobs.schedule('t', 'told', '0 * * * *', args => '{\"slot\": \"mine\"}', tenant => 'acme')")
    tick(sql, now, "2026-06-01 13:00Z")
    slot = {"timestamp": 1780318800, "manual": False, "triggered_by": "schedule"}
    assert arguments(sql) == [
        {"a": 1, "slot": "2026-06-01T13:00:00Z", **slot},
        {"slot": "mine", "tenant": "acme", **slot},
    ]


def test_options_are_those_of_the_job(sql: Sql, now: Now) -> None:
    sql(
        "select procjobs.schedule('s', 'plain', '0 * * * *', queue => 'q', priority => 3, tenant => 't', "
        "tags => '{x}', "
        "max_attempts => 2, timeout => '1 min', lock => 'l', queueing_lock => 'ql')"
    )
    tick(sql, now, "2026-06-01 13:00Z")
    assert sql(
        "select queue_name, priority, pj_tenant, pj_tags, pj_max_attempts, pj_timeout::text, lock, queueing_lock "
        "from procrastinate_jobs"
    ) == [("q", 3, "t", ["x"], 2, "00:01:00", "l", "ql")]


def test_jitter_moves_the_job_and_not_the_slot_always_the_same(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *', jitter => '10 min', overlap => 'allow')")
    said = [at for (at,) in sql("select job_at from procjobs.preview_schedule('s', 50)")]
    tick(sql, now, "2026-06-01 13:00Z")
    assert sql("select scheduled_at from procrastinate_jobs") == [(said[0],)]
    assert fired(sql, "s") == ["01 13:00:00"]
    late = [at.minute * 60 + at.second for at in said]
    assert max(late) < 600 and len(set(late)) > 40 and min(late) < 120 and max(late) > 480


# -- misfire ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "made_up"),
    [
        ("misfire => 'latest'", ["01 15:00:00"]),
        ("misfire => 'skip'", []),
        ("misfire => 'all'", ["01 13:00:00", "01 14:00:00", "01 15:00:00"]),
        ("misfire => 'all', catch_up => 2", ["01 14:00:00", "01 15:00:00"]),
        ("misfire => 'skip', grace => '1 hour'", ["01 15:00:00"]),
    ],
)
def test_slots_that_nobody_fired_are_treated_by_the_misfire_and_all_are_in_the_ledger(
    sql: Sql, now: Now, options: str, made_up: list[str]
) -> None:
    sql(f"select procjobs.schedule('s', 'plain', '0 * * * *', {options})")
    tick(sql, now, "2026-06-01 15:30Z")
    assert fired(sql, "s") == made_up
    assert [slot for slot, _, _ in ledger(sql, "s")] == ["01 13:00:00", "01 14:00:00", "01 15:00:00"]
    assert {reason for _, outcome, reason in ledger(sql, "s") if outcome == "skipped"} <= {"missed"}
    assert tick(sql, now, "2026-06-01 15:59Z") == 0


def test_a_pause_of_100_slots_is_one_job_or_all_of_them(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('one', 'plain', '* * * * *')")
    sql("select procjobs.schedule('all', 'plain', '* * * * *', misfire => 'all')")
    assert tick(sql, now, "2026-06-01 13:40:45Z") == 101
    assert len(fired(sql, "all")) == 100 == len(set(fired(sql, "all"))) and fired(sql, "one") == ["01 13:40:00"]
    assert len(ledger(sql, "one")) == 100
    assert sql.one("select count(*) from procrastinate_jobs") == 101


def test_what_is_older_than_the_window_is_one_row(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *', misfire => 'all', misfire_window => '3 hours')")
    tick(sql, now, "2026-06-03 12:30Z")
    first, *others = ledger(sql, "s")
    assert first == ("01 13:00:00", "skipped", "older than 03")
    assert [slot for slot, _, _ in others] == ["03 10:00:00", "03 11:00:00", "03 12:00:00"] == fired(sql, "s")


def test_a_year_without_a_clock_costs_little(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '* * * * * *', misfire => 'all', misfire_window => '360 days')")
    assert tick(sql, now, "2027-05-01 12:00Z") == 100
    assert sql.one("select count(*) from procjobs.schedule_ticks") <= 1001


def test_a_few_seconds_are_no_misfire(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '* * * * * *', misfire => 'skip', overlap => 'allow')")
    assert tick(sql, now, "2026-06-01 12:00:34.5Z") == 4
    assert tick(sql, now, "2026-06-01 12:00:36Z") == 2


def test_new_and_changed_schedules_make_up_for_nothing(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 13 * * *', misfire => 'all', overlap => 'allow')")
    now("2026-06-01 14:30Z")
    sql("select procjobs.schedule('s', cron => '0 14 * * *')")
    assert sql.one("select procjobs.tick()") == 0
    sql("select procjobs.schedule('s', every => '1 hour')")
    assert tick(sql, now, "2026-06-01 15:00Z") == 1
    sql("select procjobs.schedule('s', queue => 'q')")  # not its times
    assert tick(sql, now, "2026-06-01 16:30Z") == 1


def test_a_clock_set_back_fires_nothing_twice(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '* * * * *', overlap => 'allow')")
    assert tick(sql, now, "2026-06-01 12:05:05Z") == 1
    assert tick(sql, now, "2026-06-01 12:02:05Z") == 0
    assert tick(sql, now, "2026-06-01 12:06:00Z") == 1
    sql(
        "update procjobs.schedules set last_slot = '2026-06-01 12:00Z', next_slot = '2026-06-01 12:01Z', due_at = now()"
    )
    assert tick(sql, now, "2026-06-01 12:06:05Z") == 0, "what is in the ledger is not fired again"


# -- overlap ---------------------------------------------------------------------------------------------------------


def test_a_slow_run_never_overlaps_itself(sql: Sql, now: Now, worker: Callable[..., Worker]) -> None:
    ann = worker("plain")
    for overlap in ("skip", "queue", "allow"):
        sql("select procjobs.schedule(%s, 'plain', '* * * * *', overlap => %s)", overlap, overlap)
    tick(sql, now, "2026-06-01 12:01Z")
    assert len(ann.claim()) == 3
    tick(sql, now, "2026-06-01 12:02Z")
    tick(sql, now, "2026-06-01 12:03Z")
    assert [len(fired(sql, name)) for name in ("skip", "queue", "allow")] == [1, 2, 3]
    assert ledger(sql, "skip")[1][1:] == ("skipped", "overlap")
    assert len(ann.claim()) == 2, "only those that may overlap"
    for job in list(ann.leases):
        ann.finish(job)
    assert len(ann.claim()) == 1, "what was queued runs after"
    sql("select procjobs.note_run_ends()")
    tick(sql, now, "2026-06-01 12:04Z")
    assert fired(sql, "skip") == ["01 12:01:00", "01 12:04:00"]


def test_a_job_that_waits_for_its_retry_has_not_ended(
    sql: Sql, now: Now, worker: Callable[..., Worker], register: Register
) -> None:
    register("again", NONE, max_attempts=2, backoff_base=600, backoff_cap=600, backoff_jitter=False)
    ann = worker("again")
    sql("select procjobs.schedule('s', 'again', '* * * * *')")
    tick(sql, now, "2026-06-01 12:01Z")
    (job,) = ann.claim()
    ann.fail(job)
    assert sql.one("select state from procjobs.jobs") == "scheduled"
    sql("select procjobs.note_run_ends()")
    tick(sql, now, "2026-06-01 12:02Z")
    assert ledger(sql, "s")[1][1:] == ("skipped", "overlap")
    tick(sql, now, "2026-06-01 12:12Z")
    sql("select procjobs.promote_due()")
    (job,) = ann.claim()
    ann.fail(job)
    assert tick(sql, now, "2026-06-01 12:13Z") == 1, "now it has"
