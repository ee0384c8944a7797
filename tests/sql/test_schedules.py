"""Schedules in SQL: made, fired, skipped, missed, paused, run by hand, filled in later; and what is said of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from .conftest import Sql, Worker

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


# -- slots -----------------------------------------------------------------------------------------------------------


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


# -- faults ----------------------------------------------------------------------------------------------------------


def test_one_that_cannot_be_enqueued_harms_nobody(sql: Sql, now: Now, register: Register) -> None:
    sql("select procjobs.schedule('bad', 'told', '* * * * *', args => '{\"a\": 1}')")
    sql("select procjobs.schedule('good', 'plain', '* * * * *')")
    register("told", {**TOLD, "required": ["b"], "properties": {**TOLD["properties"], "b": {"type": "string"}}})  # type: ignore[dict-item]
    assert tick(sql, now, "2026-06-01 12:01Z") == 1
    assert ledger(sql, "good") == [("01 12:01:00", "fired", None)]
    ((outcome, reason),) = sql("select outcome, reason from procjobs.schedule_history where schedule = 'bad'")
    assert outcome == "refused" and "b" in reason
    assert "b" in sql.one("select fault from procjobs.schedule_list where name = 'bad'")
    assert sql("select kind, subject from procjobs.list_alerts()") == [("schedule_failing", "bad")]
    register("told", TOLD)
    assert tick(sql, now, "2026-06-01 12:02Z") == 1
    assert sql.one("select fault from procjobs.schedule_list where name = 'bad'") is None


FAULTS = {"zone": "timezone = 'Mars/Olympus'", "cron": "cron = '99 * * * *'"}


def two_of_which_one_is_faulty(sql: Sql, now: Now, fault: str) -> None:
    for name in ("bad", "good"):
        sql("select procjobs.schedule(%s, 'plain', '* * * * *', overlap => 'allow', misfire => 'all')", name)
    sql(f"update procjobs.schedules set {FAULTS[fault]} where name = 'bad'")
    assert tick(sql, now, "2026-06-01 12:01Z") == 1
    assert sql("select state, next_slot from procjobs.schedule_list where name = 'bad'") == [("faulty", None)]
    assert alerts(sql) == [("schedule_failing", "bad")]


@pytest.mark.parametrize("fault", FAULTS)
def test_times_that_cannot_be_read_hold_one_schedule_off(sql: Sql, now: Now, fault: str) -> None:
    two_of_which_one_is_faulty(sql, now, fault)
    ((slot, outcome, reason),) = sql(
        "select slot::text, outcome, reason from procjobs.schedule_history where schedule = 'bad'"
    )
    assert (slot[:16], outcome) == ("2026-06-01 12:01", "refused")
    assert reason.endswith(": this slot and all until it can be read again")
    sql("select procjobs.schedule('bad', cron => '* * * * *', timezone => 'Asia/Tokyo')")
    assert tick(sql, now, "2026-06-01 12:02Z") == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_times_that_can_be_read_again_go_on_and_no_slot_is_lost(
    sql: Sql, now: Now, worker: Callable[..., Worker], fault: str
) -> None:
    ann = worker("plain")
    two_of_which_one_is_faulty(sql, now, fault)
    run = sql.one("select procjobs.run_now('bad')")
    while ann.claim(1) != [run]:
        pass
    ann.finish(run)
    sql("select procjobs.note_run_ends()")
    now("2026-06-01 12:05Z")
    assert sql.one("select procjobs.retry_schedules()") == 0
    assert alerts(sql) == [("schedule_failing", "bad")], "a run by hand does not mend it"
    sql("update procjobs.schedules set cron = '* * * * *', timezone = 'Europe/Paris' where name = 'bad'")
    sql("select procjobs.upkeep()")
    assert sql.one("select fault from procjobs.schedule_list where name = 'bad'") is None
    assert tick(sql, now, "2026-06-01 12:06Z") == 10
    # All from the first on, beside the run by hand.
    assert sql(
        "select extract(minute from slot)::int, outcome from procjobs.schedule_ticks where schedule = 'bad' order by 1"
    ) == [(1, "refused"), *((minute, "fired") for minute in range(2, 7))]


def test_slots_of_a_task_that_is_unknown_are_refused_one_by_one(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '* * * * *', misfire => 'all')")
    sql("update procjobs.schedules set task = 'gone'")
    assert tick(sql, now, "2026-06-01 12:02Z") == 0
    assert tick(sql, now, "2026-06-01 12:03Z") == 0
    assert [(slot[-5:-3], outcome) for slot, outcome, _ in ledger(sql, "s")] == [
        ("01", "refused"),
        ("02", "refused"),
        ("03", "refused"),
    ]
    assert "gone" in sql.one("select fault from procjobs.schedule_list")
    assert ("schedule_failing", "s") in alerts(sql)


def test_a_taken_queueing_lock_skips_the_slot(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '* * * * *', queueing_lock => 'q', overlap => 'allow')")
    sql("select procjobs.schedule('t', 'plain', '* * * * *')")
    tick(sql, now, "2026-06-01 12:01Z")
    assert tick(sql, now, "2026-06-01 12:02Z") == 0
    assert ledger(sql, "s")[1] == ("01 12:02:00", "skipped", "a job with its queueing lock waits already")
    assert sql("select count(*) from procjobs.alerts") == [(0,)]


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("PJ009", "task => 'plain'"),
        ("PJ009", "task => 'plain', cron => '* * * * *', every => '1 min'"),
        ("PJ009", "task => 'plain', every => '0.5 s'"),
        ("PJ009", "task => 'plain', every => '1 month'"),
        ("PJ009", "cron => '* * * * *'"),
        ("PJ009", "task => 'plain', cron => '* * * * *', misfire => 'never'"),
        ("PJ009", "task => 'plain', cron => '* * * * *', overlap => 'never'"),
        ("PJ009", "task => 'plain', cron => '* * * * *', catch_up => 0"),
        ("PJ009", "task => 'plain', cron => '* * * * *', args => '[]'"),
        ("PJ009", "task => 'plain', cron => '* * * * *', timeout => '0'"),
        ("PJ014", "task => 'plain', cron => '0 0 30 2 *'"),
        ("PJ014", "task => 'plain', cron => '* * * * *', timezone => 'Mars/Olympus'"),
        ("PJ001", "task => 'plan', cron => '* * * * *'"),
        ("PJ002", "task => 'plain', cron => '* * * * *', args => '{\"b\": 1}'"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(sql: Sql, refused: Refused, code: str, options: str) -> None:
    refused(code, f"select procjobs.schedule('s', {options})")
    assert sql("select * from procjobs.schedules") == []


@pytest.mark.parametrize(
    "call",
    ["pause_schedule('x')", "resume_schedule('x')", "run_now('x')", "schedule_for('x', 't')",
     "preview_schedule('x')", "backfill('x', '2026-01-01')"],
)  # fmt: skip
def test_an_unknown_name_is_told(sql: Sql, refused: Refused, call: str) -> None:
    sql("select procjobs.schedule('nightly', 'plain', '@daily')")
    assert "nightly" in (refused("PJ015", f"select procjobs.{call}").message_detail or "")
    assert sql.one("select procjobs.unschedule('x')") is False


# -- pause, groups, zone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misfire", ["latest", "skip", "all"])
def test_a_pause_is_held_to_and_treated_by_the_misfire(sql: Sql, now: Now, misfire: str) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *', misfire => %s)", misfire)
    assert sql.one("select procjobs.pause_schedule('s', 'too loud')") is True
    assert sql.one("select procjobs.pause_schedule('s')") is False
    assert sql("select state, next_slot, reason from procjobs.schedule_list") == [("paused", None, "too loud")]
    assert tick(sql, now, "2026-06-01 15:30Z") == 0
    assert sql.one("select procjobs.resume_schedule('s')") is True
    assert sql.one("select procjobs.resume_schedule('s')") is False
    assert sql.one("select procjobs.tick()") == {"latest": 1, "skip": 0, "all": 3}[misfire]
    assert sql.one("select count(*) from procjobs.schedule_history where missed") == 0
    assert sql("select * from procjobs.alerts") == [], "nobody missed them"
    assert tick(sql, now, "2026-06-01 16:00Z") == (1 if misfire == "skip" else 0)  # else the last has not ended


def test_a_group_is_switched_together(sql: Sql, now: Now) -> None:
    for name in ("a", "b"):
        sql("select procjobs.schedule(%s, 'plain', '0 * * * *', \"group\" => 'cleanup')", name)
    sql("select procjobs.schedule('c', 'plain', '0 * * * *')")
    assert sql.one("select procjobs.set_schedule_group('cleanup', false, 'moving')") is True
    assert sql.one("select procjobs.set_schedule_group('cleanup', false)") is False
    sql("select procjobs.schedule('d', 'plain', '0 * * * *', \"group\" => 'cleanup')")
    assert tick(sql, now, "2026-06-01 13:00Z") == 1
    assert sql("select name, state, reason from procjobs.schedule_list where state = 'off' order by 1") == [
        (name, "off", "moving") for name in "abd"
    ]
    sql("select procjobs.pause_schedule('b')")
    sql("select procjobs.set_schedule_group('cleanup', true)")
    assert sql.one("select procjobs.tick()") == 2
    assert sql("select name from procjobs.schedule_list where state <> 'active'") == [("b",)]
    assert sql("select name, enabled, schedules from procjobs.schedule_group_list where schedules > 0") == [
        ("cleanup", True, 3)
    ]


def test_the_default_zone_moves_those_that_name_none_and_nothing_is_made_up_for(
    sql: Sql, now: Now, refused: Refused
) -> None:
    sql("select procjobs.schedule('own', 'plain', '0 9 * * *', timezone => 'Asia/Tokyo')")
    sql("select procjobs.schedule('none', 'plain', '0 9 * * *', misfire => 'all')")
    assert sql.one("select procjobs.set_cron_timezone('America/New_York')") is True
    assert sql.one("select procjobs.set_cron_timezone('America/New_York')") is False
    assert sql("select name, next_local::text, next_slot::text from procjobs.schedule_list order by 1") == [
        ("none", "2026-06-01 09:00:00", "2026-06-01 13:00:00+00"),
        ("own", "2026-06-02 09:00:00", "2026-06-02 00:00:00+00"),
    ]
    now("2026-06-01 12:59Z")
    sql("select procjobs.set_cron_timezone('Europe/London')")  # where nine was long ago
    assert sql.one("select procjobs.tick()") == 0
    refused("PJ014", "select procjobs.set_cron_timezone('Mars/Olympus')")


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_run_now_is_a_run_of_its_own(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'told', '0 * * * *', args => '{\"a\": 1}')")
    sql("select procjobs.pause_schedule('s')")
    job = sql.one("select procjobs.run_now('s', args => '{\"a\": 2}')")
    assert arguments(sql) == [
        {"a": 2, "slot": "2026-06-01T12:00:30Z", "timestamp": 1780315230, "manual": True, "triggered_by": "postgres"}
    ]
    assert sql("select kind, outcome, by, job_id, status from procjobs.schedule_history") == [
        ("manual", "fired", "postgres", job, "todo")
    ]
    sql("select procjobs.resume_schedule('s')")
    assert sql.one("select next_slot::text from procjobs.schedule_list") == "2026-06-01 13:00:00+00"


def test_a_double_click_is_one_run(sql: Sql) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    sql("select procjobs.schedule('t', 'plain', '0 * * * *')")
    first = sql.one("select procjobs.run_now('s', 'click')")
    assert sql.one("select procjobs.run_now('s', 'click')") == first
    assert sql.one("select procjobs.run_now('t', 'click')") != first
    assert sql.one("select procjobs.run_now('s')") not in (first, sql.one("select procjobs.run_now('s')"))


@pytest.mark.parametrize("commits", [True, False])
def test_two_clicks_at_once_are_one_run(
    sql: Sql, another: Callable[[], psycopg.Connection[Any]], eventually: Callable[..., Any], commits: bool
) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    click = "select procjobs.run_now('s', 'click')"
    ours, theirs = another(), another()
    (first,) = ours.execute(click).fetchone() or (None,)
    jobs: list[int] = []

    def again() -> None:
        jobs.extend(theirs.execute(click).fetchone() or ())
        theirs.commit()

    thread = threading.Thread(target=again)
    thread.start()
    eventually(lambda: sql.one("select cardinality(pg_blocking_pids(%s)) > 0", theirs.info.backend_pid))
    (ours.commit if commits else ours.rollback)()
    thread.join()
    assert (jobs == [first]) == commits, "what was rolled back is nobody's run"
    assert [job for (job,) in sql("select id from procrastinate_jobs")] == jobs
    assert [job for (job,) in sql("select job_id from procjobs.schedule_runs")] == jobs


def test_run_now_waits_for_a_run_that_has_not_ended(sql: Sql, worker: Callable[..., Worker]) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    ann = worker("plain")
    first, second = (sql.one("select procjobs.run_now('s')") for _ in range(2))
    assert ann.claim() == [first]
    ann.finish(first)
    assert ann.claim() == [second]


def test_backfill_is_a_job_for_each_slot_that_has_not_fired(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'told', '0 * * * *', overlap => 'allow')")
    tick(sql, now, "2026-06-01 15:30Z")  # 13 and 14 are skipped
    assert sql("select * from procjobs.backfill('s', '2026-06-01 11:00Z', '2026-06-01 18:00Z', 3)") == [(3, 1)]
    assert sql("select * from procjobs.backfill('s', '2026-06-01 11:00Z')") == [(1, 0)]
    assert sql("select * from procjobs.backfill('s', '2026-06-01 11:00Z')") == [(0, 0)]
    assert fired(sql, "s") == [f"01 {hour}:00:00" for hour in range(11, 16)]
    assert sorted(args["slot"][11:13] for args in arguments(sql)) == ["11", "12", "13", "14", "15"]
    assert sql("select kind, count(*) from procjobs.schedule_history group by 1 order by 1") == [
        ("backfill", 4),
        ("slot", 1),
    ]


@pytest.mark.parametrize("span", ["'infinity'", "'2026-06-02', '2026-06-01'", "'2026-06-02'", "'2026-05-01', now(), 0"])
def test_what_cannot_be_backfilled_is_refused(sql: Sql, refused: Refused, span: str) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    refused("PJ009", f"select procjobs.backfill('s', {span})")


def test_preview_marks_where_clocks_change(sql: Sql, now: Now) -> None:
    now("2026-10-25 00:00Z")
    sql("select procjobs.schedule('s', 'plain', '30 * * * *', timezone => 'Europe/Paris')")
    assert sql("select local::text, mark from procjobs.preview_schedule('s', 3)") == [
        ("2026-10-25 02:30:00", "repeat 1"),
        ("2026-10-25 02:30:00", "repeat 2"),
        ("2026-10-25 03:30:00", None),
    ]


# -- tenants ---------------------------------------------------------------------------------------------------------


def test_a_tenant_has_a_time_a_pause_and_a_history_of_its_own_and_follows_in_the_rest(
    sql: Sql, now: Now, refused: Refused
) -> None:
    sql("select procjobs.schedule('digest', 'told', '0 8 * * *', args => '{\"a\": 1}', queue => 'q')")
    assert (
        sql.one("select procjobs.schedule_for('digest', 'ann', '0 9 * * *', timezone => 'Asia/Tokyo')::text")
        == "2026-06-02 00:00:00+00"
    )
    sql("select procjobs.schedule_for('digest', 'bob', every => '1 hour', args => '{\"a\": 7}')")
    sql("select procjobs.pause_schedule('digest')")
    sql("select procjobs.schedule('digest', args => '{\"a\": 2}', queue => 'r')")
    tick(sql, now, "2026-06-01 13:00Z")
    tick(sql, now, "2026-06-02 00:00Z")
    assert sql("select queue_name, pj_tenant, args ->> 'tenant', args ->> 'a' from procrastinate_jobs order by id") == [
        ("r", "bob", "bob", "7"),
        ("r", "ann", "ann", "2"),
    ]
    assert fired(sql, "digest/ann") == ["02 00:00:00"]
    sql("select procjobs.schedule_for('digest', 'ann', '30 9 * * *')")
    assert (
        sql.one("select next_local::text from procjobs.schedule_list where name = 'digest/ann'")
        == "2026-06-02 09:30:00"
    )
    assert "queue" in (refused("PJ009", "select procjobs.schedule('digest/ann', queue => 'x')").message_detail or "")
    refused("PJ009", "select procjobs.schedule_for('digest/ann', 'x')")
    assert sql.one("select procjobs.unschedule('digest')") is True
    assert sql("select name from procjobs.schedule_list") == []
    assert len(ledger(sql, "digest/ann")) == 1, "its history stays"


# -- the ledger after the fact ---------------------------------------------------------------------------------------


def finish(sql: Sql, worker: Worker, result: Any = None) -> None:
    """Runs everything that waits."""
    for job in worker.claim():
        sql(
            "select procjobs.finish_jobs(%s, array[%s]::bigint[], array[%s], 'archive', array[%s::jsonb])",
            worker.id, job, worker.leases[job], json.dumps(result),
        )  # fmt: skip


def test_how_jobs_ended_outlives_them(sql: Sql, now: Now, worker: Callable[..., Worker]) -> None:
    ann = worker("plain")
    sql("select procjobs.schedule('s', 'plain', '* * * * *')")
    tick(sql, now, "2026-06-01 12:01Z")
    now("2026-06-01 12:01:02Z")
    finish(sql, ann, 42)
    run = sql.one("select procjobs.run_now('s')")
    (job,) = ann.claim()
    ann.fail(job)
    assert sql.one("select procjobs.note_run_ends()") == 1
    sql("delete from procrastinate_jobs")
    sql("delete from procjobs.job_history")
    assert sql("select kind, status, rows, attempts, error from procjobs.schedule_history order by slot") == [
        ("slot", "succeeded", 42, 1, None),
        ("manual", "failed", None, 1, "ValueError: boom"),
    ]
    assert sql("select fired, succeeded, failed, success_percent::text, rows from procjobs.schedule_stats") == [
        (2, 1, 1, "50.0", 42)
    ]
    assert run == job


def test_a_job_that_was_deleted_without_a_trace_is_over(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '* * * * *')")
    tick(sql, now, "2026-06-01 12:01Z")
    sql("delete from procrastinate_jobs")
    sql("select procjobs.note_run_ends()")
    assert sql("select status, ended_at is null from procjobs.schedule_history") == [(None, False)]
    assert tick(sql, now, "2026-06-01 12:02Z") == 1


def test_many_open_rows_are_looked_at_in_turns(sql: Sql, now: Now) -> None:
    for number in range(10):
        sql("select procjobs.schedule(%s, 'plain', '* * * * *', queue => %s)", f"s{number}", f"q{number}")
    tick(sql, now, "2026-06-01 12:01Z")
    sql("delete from procrastinate_jobs where queue_name = 'q9'")
    for _ in range(6):
        sql("select procjobs.note_run_ends(3)")
    assert sql("select schedule from procjobs.schedule_ticks where ended_at is not null") == [("s9",)]


def test_the_ledger_is_forgotten_in_its_own_time(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 0 1 * *', misfire_window => '366 days', overlap => 'allow')")
    sql("select procjobs.schedule('t', 'plain', '0 0 1 * *', overlap => 'allow')")
    tick(sql, now, "2026-07-01 00:00Z")
    sql("select procjobs.run_now('t')")
    sql("update procjobs.schedule_settings set keep_history = '30 days'")
    now("2026-07-15 00:00Z")
    assert sql.one("select procjobs.forget_ticks()") == 0
    now("2026-09-15 00:00Z")
    assert sql.one("select procjobs.forget_ticks()") == 2
    assert sql("select schedule from procjobs.schedule_history") == [("s",)], "its window may still be looked into"


# -- alerts ----------------------------------------------------------------------------------------------------------


def alerts(sql: Sql) -> list[tuple[str, str]]:
    return sql("select kind, subject from procjobs.list_alerts() order by 1, 2")


def test_a_missed_slot_is_an_alert_until_the_next_is_in_time(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    tick(sql, now, "2026-06-01 15:02Z")
    assert alerts(sql) == [("missed_slot", "s")]
    assert sql("select missed from procjobs.schedule_list") == [(3,)]
    tick(sql, now, "2026-06-01 16:00Z")
    assert alerts(sql) == []
    assert sql("select subject, closed_by from procjobs.list_alerts(true)") == [("s", "the next slot came in time")]


def test_three_failures_in_a_row_are_an_alert_until_it_succeeds(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    ann = worker("plain")
    sql("select procjobs.schedule('s', 'plain', '* * * * *')")
    for minute in range(1, 4):
        assert alerts(sql) == []
        tick(sql, now, f"2026-06-01 12:0{minute}Z")
        (job,) = ann.claim()
        ann.fail(job)
        sql("select procjobs.note_run_ends()")
    assert alerts(sql) == [("schedule_failing", "s")]
    tick(sql, now, "2026-06-01 12:04Z")
    finish(sql, ann)
    sql("select procjobs.note_run_ends()")
    assert alerts(sql) == []


def test_a_clean_up_with_nothing_to_do_for_a_week_is_an_alert(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    ann = worker("plain")
    sql("select procjobs.schedule('s', 'plain', '0 2 * * *', \"group\" => 'cleanup')")
    sql("select procjobs.schedule('t', 'plain', '0 2 * * *')")
    for day in range(2, 11):
        assert alerts(sql) == [] or day > 9
        tick(sql, now, f"2026-06-{day:02} 02:00Z")
        finish(sql, ann, 0)
        sql("select procjobs.note_run_ends()")
    assert alerts(sql) == [("cleanup_idle", "s")]
    tick(sql, now, "2026-06-11 02:00Z")
    finish(sql, ann, 3)
    sql("select procjobs.note_run_ends()")
    assert alerts(sql) == []


def test_a_queue_that_grows_is_an_alert(sql: Sql) -> None:
    sql("select procjobs.set_backlog_alert(2, '{mail}')")
    for _ in range(3):
        sql("select procjobs.defer('plain', queue => 'mail')")
        sql("select procjobs.defer('plain', queue => 'other')")
        assert alerts(sql) == []
        if sql.one("select count(*) from procrastinate_jobs") < 6:
            sql("select procjobs.watch_backlog()")
    sql("select procjobs.watch_backlog()")
    sql("select procjobs.watch_backlog()")
    assert sql("select subject, times from procjobs.list_alerts()") == [("mail", 2)]
    sql("delete from procrastinate_jobs")
    sql("select procjobs.watch_backlog()")
    assert alerts(sql) == []


def test_schedules_that_nobody_fires_are_an_alert(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    now("2026-06-01 13:05Z")
    sql("select procjobs.watch_clocks()")
    assert alerts(sql) == [("no_clock", "schedules")]
    sql("select procjobs.tick()")
    sql("select procjobs.watch_clocks()")
    assert alerts(sql) == [("missed_slot", "s")]


def test_a_process_that_died_is_an_alert_until_another_takes_its_place(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    worker("plain", name="ann")
    left = worker("plain", name="bob")
    sql("select procjobs.stop_worker(%s)", left.id)
    for minute in (5, 6):
        now(f"2026-06-01 12:0{minute}Z")
        sql("select procjobs.upkeep()")
    now("2026-06-01 12:07Z")
    sql("select procjobs.upkeep()")
    assert alerts(sql) == [("process_down", "ann")]
    worker("plain", name="carl", queues=["other"])
    sql("select procjobs.watch_processes()")
    assert alerts(sql) == [("process_down", "ann")], "it does other work"
    worker("plain", "told", name="dora")
    sql("select procjobs.watch_processes()")
    assert alerts(sql) == []


def test_a_process_whose_successor_knows_fewer_tasks(sql: Sql, now: Now, worker: Callable[..., Worker]) -> None:
    """It is one, unless somebody still wants what it does not know."""

    def look(at: str) -> list[tuple[str, str]]:
        now(at)
        sql("select procjobs.heartbeat(id) from procjobs.worker_state where name = 'bob'")
        sql("select procjobs.watch_processes()")
        return alerts(sql)

    worker("plain", "told", name="ann")
    for minute in (5, 6, 7):
        now(f"2026-06-01 12:0{minute}Z")
        sql("select procjobs.upkeep()")
    bob = worker("plain", name="bob")
    sql("select procjobs.defer('told')")
    assert bob.claim() == []  # it parks it
    assert look("2026-06-01 12:07:30Z") == [("process_down", "ann")], "it may not have claimed yet"
    assert look("2026-06-01 12:08:30Z") == [("process_down", "ann")], "a job waits for what only ann knew"
    sql("select procjobs.cancel(id) from procrastinate_jobs")
    sql("select procjobs.schedule('s', 'told', '0 0 * * *')")
    assert look("2026-06-01 12:08:40Z") == [("process_down", "ann")], "there will be one"
    sql("select procjobs.unschedule('s')")
    assert look("2026-06-01 12:08:50Z") == []
    assert sql("select closed_by from procjobs.list_alerts(true)") == [("another has taken its place",)]


def test_a_process_that_nobody_came_after_is_an_alert_for_a_week(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    worker("plain", name="ann")
    for at in ("01 12:05", "01 12:06", "01 12:07", "08 12:00"):
        now(f"2026-06-{at}Z")
        sql("select procjobs.upkeep()")
        assert alerts(sql) == [("process_down", "ann")] or at < "01 12:06"
    now("2026-06-08 13:30Z")
    sql("select procjobs.forget_workers(), procjobs.watch_processes()")
    assert alerts(sql) == []
    assert sql("select closed_by from procjobs.list_alerts(true)") == [("it is gone for seven days",)]


def test_an_alert_is_announced_once_and_can_be_closed(sql: Sql, another: Callable[[], psycopg.Connection[Any]]) -> None:
    listener = another()
    listener.autocommit = True
    listener.execute("listen procjobs_alerts")
    sql("select procjobs.raise_alert('backlog', 'mail', 'many')")
    sql("select procjobs.raise_alert('backlog', 'mail', 'more')")
    assert [hint.payload for hint in listener.notifies(timeout=5, stop_after=1)] == ["backlog mail"]
    assert list(listener.notifies(timeout=0)) == []
    alert = sql.one("select id from procjobs.list_alerts()")
    assert [sql.one("select procjobs.close_alert(%s)", alert) for _ in range(2)] == [True, False]
