"""What cannot fire, or cannot be a schedule at all, is told and harms no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.conftest import Sql, Worker
from tests.sql.schedules.conftest import TOLD, Now, Refused, Register, alerts, ledger, tick


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
