"""The log of settings, kind by kind: made, changed, dropped, by hand, and what the engine does to the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from procjobs import migrate
from tests.conftest import with_user

from .conftest import Sql


@dataclass(frozen=True)
class Case:
    """made, changed and dropped take a reason, except where `session` says it; changed gives `was` and `now`."""

    name: str
    made: str
    changed: str
    was: dict[str, Any]
    now: dict[str, Any]
    hand: str
    dropped: str
    session: bool = False


CASES = {
    "breaker": Case(
        "crm",
        "set_breaker('crm', tasks => array['noop'])",
        "set_breaker('crm', tasks => array['noop'], failures => 9)",
        {"failures": 5},
        {"failures": 9},
        "update procjobs.breakers set cool_down = '1 min', state = 'closed' where name = 'crm'",
        "drop_breaker('crm')",
    ),
    "schedule": Case(
        "nightly",
        "schedule('nightly', 'noop', '0 2 * * *')",
        "schedule('nightly', timezone => 'Europe/Paris', overlap => 'queue')",
        {"timezone": None, "overlap": "skip"},
        {"timezone": "Europe/Paris", "overlap": "queue"},
        "update procjobs.schedules set cron = '0 3 * * *', next_slot = now() where name = 'nightly'",
        "unschedule('nightly')",
    ),
    "retention": Case(
        "queue mail, failed",
        "set_retention('7 days', queue => 'mail', state => 'failed')",
        "set_retention('7 days', 100, queue => 'mail', state => 'failed')",
        {"keep_last": None},
        {"keep_last": 100},
        "update procjobs.retention_policies set max_age = null where queue = 'mail'",
        "drop_retention('mail', state => 'failed')",
    ),
    "table_policy": Case(
        "old_notes",
        "set_table_policy('old_notes', 'public.notes', 'at', '1 day')",
        "set_table_policy('old_notes', 'public.notes', 'at', '2 days')",
        {"keep": "1 day"},
        {"keep": "2 days"},
        "update procjobs.table_policies set enabled = false where name = 'old_notes'",
        "drop_table_policy('old_notes')",
    ),
    "retry_rule": Case(
        "noop RateLimited",
        "set_retry_rule('RateLimited', 'noop')",
        "set_retry_rule('RateLimited', 'noop', 7)",
        {"rounds": 3},
        {"rounds": 7},
        "update procjobs.retry_rules set rounds = 0 where task = 'noop'",
        "drop_retry_rule('RateLimited', 'noop')",
    ),
    "delivery_policy": Case(
        "apprise",
        "set_delivery_policy('apprise', 'retry')",
        "set_delivery_policy('apprise', 'hold')",
        {"after_unknown": "retry"},
        {"after_unknown": "hold"},
        "update procjobs.delivery_policies set after_unknown = 'retry' where delivery_method = 'apprise'",
        "",
    ),
    "reminder_step": Case(
        "payment fourth",
        "set_reminder_step('payment', 'fourth', after => '30 days')",
        "set_reminder_step('payment', 'fourth', urgency => 'urgent')",
        {"urgency": "normal"},
        {"urgency": "urgent"},
        "update procjobs.reminder_steps set enabled = false where name = 'fourth'",
        "drop_reminder_step('payment', 'fourth')",
        session=True,
    ),
    "alert_recipient": Case(
        "slack #ops",
        "set_alert_recipient('#ops', 'slack')",
        "set_alert_recipient('#ops', 'slack', kinds => array['backlog'])",
        {"kinds": None},
        {"kinds": ["backlog"]},
        "update procjobs.alert_recipients set pause = '1 h', told_at = now() where address = '#ops'",
        "drop_alert_recipient('#ops', 'slack')",
        session=True,
    ),
    "sql_task": Case(
        "clean",
        "register_sql_task('clean', 'public.clean')",
        "register_sql_task('clean', 'public.clean', timeout => '1 min')",
        {"timeout": None},
        {"timeout": "00:01:00"},
        "update procjobs.tasks set run_as = 'bob' where name = 'clean'",
        "drop_sql_task('clean')",
        session=True,
    ),
}


@pytest.fixture(autouse=True)
def things(sql: Sql, register: Callable[..., int], empty_log: None) -> None:
    register("noop")
    sql("create table public.notes (at timestamptz primary key)")
    sql("create function public.clean() returns integer language sql as 'select 1'")


def log(sql: Sql, columns: str = "kind, name, change, reason, before, after") -> list[tuple[Any, ...]]:
    return sql(f"select {columns} from procjobs.setting_log order by id")


@pytest.mark.parametrize("kind", CASES)
def test_set_changed_by_hand_and_dropped(sql: Sql, kind: str) -> None:
    case = CASES[kind]

    def call(function: str, reason: str) -> None:
        if case.session:
            sql("select set_config('procjobs.reason', %s, false)", reason)
            sql(f"select procjobs.{function}")
            sql("reset procjobs.reason")
        else:
            sql(f"select procjobs.{function[:-1]}, reason => %s)", reason)

    def last() -> tuple[Any, ...]:
        found = [row[1:] for row in log(sql) if row[0] == kind]
        assert all(row[0] == case.name for row in found)
        return (len(found), *found[-1][1:])

    call(case.made, "asked for")
    _, change, reason, before, after = last()
    assert (change, reason, before) == ("set", "asked for", None) and after
    assert after.keys() >= {word for word, value in case.was.items() if value is not None}
    call(case.made, "again")
    assert last()[0] == 1, "nothing changed"
    call(case.changed, "better")
    assert last() == (2, "set", "better", case.was, case.now)
    assert sql.one("select coalesce(current_setting('procjobs.reason', true), '')") == ""
    sql(case.hand)
    count, change, reason, before, after = last()
    assert (count, change, reason) == (3, "set", None)
    assert len(before) == len(after) == 1 and before != after
    if case.dropped:
        call(case.dropped, "enough")
        count, change, reason, before, after = last()
        assert (count, change, reason, after) == (4, "dropped", "enough", None) and before
    else:
        sql("delete from procjobs.delivery_policies where delivery_method = %s", case.name)
        assert last()[:3] == (4, "dropped", None)
    assert {row[0] for row in sql("select distinct actor from procjobs.setting_log")} == {
        sql.one("select session_user")
    }


def test_what_holds_for_all(sql: Sql) -> None:
    sql("select procjobs.set_backlog_alert(500, array['mail'], 'busier')")
    sql("select procjobs.set_backlog_alert(500)")
    sql("select procjobs.set_failed_alert(7, reason => 'stricter')")
    sql("select procjobs.set_cron_timezone('Europe/Paris', 'we live there')")
    sql("select procjobs.apply_environment('Asia/Tokyo', '{\"cleanup\": false}')")
    sql("select procjobs.apply_environment('Asia/Tokyo', '{\"cleanup\": false}')")
    sql("update procjobs.schedule_settings set keep_history = '1 year'")
    said = "the environment says so"
    assert log(sql) == [
        (
            "general", "all", "set", "busier", {"backlog_limit": 1000, "backlog_queues": ["notifications"]},
            {"backlog_limit": 500, "backlog_queues": ["mail"]},
        ),
        ("general", "all", "set", "stricter", {"failed_limit": 100}, {"failed_limit": 7}),
        ("general", "all", "set", "we live there", {"timezone": "UTC"}, {"timezone": "Europe/Paris"}),
        ("general", "all", "set", said, {"timezone": "Europe/Paris"}, {"timezone": "Asia/Tokyo"}),
        (
            "schedule_group", "cleanup", "set", said,
            {"enabled": True, "reason": None}, {"enabled": False, "reason": said},
        ),
        ("general", "all", "set", None, {"keep_history": "400 days"}, {"keep_history": "1 year"}),
    ]  # fmt: skip


def test_a_schedule_is_paused_and_resumed(sql: Sql) -> None:
    sql("select procjobs.schedule('nightly', 'noop', '0 2 * * *')")
    sql("select procjobs.pause_schedule('nightly', 'fire'), procjobs.pause_schedule('nightly', 'again')")
    sql("select procjobs.resume_schedule('nightly', 'out'), procjobs.resume_schedule('nightly', 'again')")
    assert log(sql, "change, reason")[1:] == [("paused", "fire"), ("resumed", "out")]


def test_the_clock_and_whatever_else_the_engine_does_to_schedules_write_nothing(
    sql: Sql, now: Callable[[str], None]
) -> None:
    now("2030-01-01 12:00:30Z")
    sql("select procjobs.schedule(n, 'noop', '* * * * *', \"group\" => 'g') from unnest('{a, b}'::text[]) n")
    sql("update procjobs.schedules set task = 'gone' where name = 'b'")
    sql("select procjobs.set_schedule_group('g', false), procjobs.set_schedule_group('g', true)")
    before = log(sql)
    now("2030-01-01 12:01Z")
    assert sql.one("select procjobs.tick()") == 1  # b is refused, and has a fault
    found = "select name, fault is null, last_slot = procjobs.clock() from procjobs.schedules order by name"
    assert sql(found) == [("a", True, True), ("b", False, True)]
    sql("select procjobs.run_now('a'), procjobs.backfill('a', '2030-01-01 11:00Z')")
    sql("select procjobs.retry_schedules(), procjobs.upkeep()")
    assert log(sql) == before


def test_the_engines_updates_do_not_even_come_to_the_trigger(sql: Sql) -> None:
    """What they cost: the triggers are for columns that people set."""
    sql("select procjobs.schedule('a', 'noop', '* * * * *')")

    def triggers(query: str) -> set[str]:
        (plan,) = sql.one(f"explain (analyze, format json) {query}")
        return {trigger["Trigger Name"] for trigger in plan["Triggers"]}

    for relation, kept in sql("select relation, kept from procjobs.setting_kinds() where part = ''"):
        columns = sql(
            "select attname::text from pg_attribute "
            "where attrelid = %s::regclass and attnum > 0 and attname = any (%s) and attidentity = ''",
            f"procjobs.{relation}", kept,
        )  # fmt: skip
        assert columns, relation
        words = ", ".join(f"{column} = {column}" for (column,) in columns)
        assert not {name for name in triggers(f"update procjobs.{relation} set {words}") if "note" in name}, relation
    hot = "update procjobs.schedules set last_slot = now(), next_slot = now(), due_at = now(), fault = null"
    assert triggers(hot) == set()
    assert triggers("update procjobs.schedules set cron = cron") == {"pj_note_new"}


def test_a_schedule_for_a_tenant_follows_silently_and_its_own_changes_are_told(sql: Sql) -> None:
    sql("select procjobs.schedule('digest', 'noop', '0 8 * * *')")
    sql("select procjobs.schedule_for('digest', t, '0 9 * * *', reason => 'asked') from unnest('{ann, bob}'::text[]) t")
    sql("select procjobs.schedule('digest', queue => 'mail', overlap => 'queue', reason => 'all')")
    sql("select procjobs.schedule_for('digest', 'ann', '0 10 * * *')")
    assert sql("select distinct queue from procjobs.schedules where name like 'digest%%'") == [("mail",)]
    assert log(sql, "name, change, reason, after -> 'cron', after -> 'queue'") == [
        ("digest", "set", None, "0 8 * * *", None),
        ("digest/ann", "set", "asked", "0 9 * * *", None),
        ("digest/bob", "set", "asked", "0 9 * * *", None),
        ("digest", "set", "all", None, "mail"),
        ("digest/ann", "set", None, "0 10 * * *", None),
    ]


def test_what_code_declares_is_told_when_it_says_something_else(sql: Sql, now: Callable[[str], None]) -> None:
    now("2030-01-01 12:00Z")

    def declare(**words: str) -> None:
        said = json.dumps([{"name": "report", "task": "noop", **words}])
        sql("select procjobs.declare_schedules('code', %s)", said)

    declare(cron="0 1 * * *")
    for _ in range(2):
        declare(cron="0 2 * * *")
    sql("update procjobs.schedules set undeclared_at = procjobs.clock()")
    before = log(sql, "name, change, reason, before -> 'cron', after -> 'cron'")
    assert before == [
        ("report", "set", "declared by code", None, "0 1 * * *"),
        ("report", "set", "declared by code", "0 1 * * *", "0 2 * * *"),
    ]
    declare(cron="0 2 * * *")  # it is back
    assert sql.one("select undeclared_at is null from procjobs.schedules where name = 'report'")
    sql("update procjobs.schedules set undeclared_at = procjobs.clock()")
    now("2030-01-09 12:00Z")
    assert sql.one("select procjobs.forget_schedules()") == 1
    assert log(sql, "name, change, reason")[2:] == [("report", "dropped", "nobody declared it for seven days")]


def test_an_upgrade_writes_nothing(sql: Sql, dsn: str) -> None:
    def again() -> None:
        sql("update procjobs.schema_state set checksum = null")
        assert migrate.migrate(dsn).changed

    again()  # the database of a test lacks what comes with procjobs
    assert {row[3] for row in log(sql) if row[0] == "sql_task"} == {"comes with procjobs"}
    sql("select procjobs.schedule('nightly', 'noop', '0 2 * * *')")
    before, triggers = log(sql), sql("select count(*) from pg_trigger where tgname like 'pj\\_note%%'")
    again()
    assert log(sql) == before
    assert sql("select count(*) from pg_trigger where tgname like 'pj\\_note%%'") == triggers


def test_going_back_keeps_what_was_logged_of_queues(sql: Sql, dsn: str) -> None:
    sql("select procjobs.pause_queue('mail'), procjobs.set_backlog_alert(5)")
    migrate.downgrade(dsn, "0027")
    assert sql("select kind, name from procjobs.setting_changes") == [("queue", "mail")]
    migrate.migrate(dsn)
    sql("select procjobs.set_backlog_alert(6)")
    assert log(sql, "kind, name")[-1:] == [("general", "all")]


def test_readers_see_neither_arguments_nor_addresses(sql: Sql, dsn: str) -> None:
    sql("select procjobs.schedule('nightly', 'noop', '0 2 * * *', args => '{}')")
    sql("select procjobs.set_alert_recipient('#ops', 'slack')")
    sql("drop role if exists kinds_reader, kinds_admin")
    sql("create role kinds_reader login in role procjobs_reader; create role kinds_admin login in role procjobs_admin")
    query = "select kind, after ? 'args' from procjobs.list_setting_changes() order by id"
    try:
        with psycopg.connect(with_user(dsn, "kinds_reader"), autocommit=True) as reader:
            assert reader.execute(query).fetchall() == [("schedule", False)]
        with psycopg.connect(with_user(dsn, "kinds_admin"), autocommit=True) as admin:
            assert admin.execute(query).fetchall() == [("schedule", True), ("alert_recipient", False)]
    finally:
        sql("drop role kinds_reader, kinds_admin")


def test_no_table_of_settings_is_forgotten(sql: Sql) -> None:
    """Who set a row is a column of it: then it is a kind, or a wish of whom it is for, which is nobody else's."""
    found = sql(
        """
        select distinct c.relname::text from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'procjobs'::regnamespace and c.relkind = 'r'
          and a.attname in ('set_by', 'updated_by', 'paused_by')
        """
    )
    kinds = sql("select relation from procjobs.setting_kinds()")
    assert {name for (name,) in found} - {name for (name,) in kinds} == {"report_subscriptions"}


def test_what_is_kept_from_the_log_is_there(sql: Sql) -> None:
    everywhere = {
        "set_at", "set_by", "paused_by", "created_at", "updated_at", "updated_by", "registered_at",
    }  # fmt: skip
    for relation, key, kept in sql("select relation, key, kept from procjobs.setting_kinds()"):
        columns = {
            name
            for (name,) in sql(
                "select attname::text from pg_attribute where attrelid = %s::regclass and attnum > 0",
                f"procjobs.{relation}",
            )
        }
        assert set(kept) - everywhere <= columns, relation
        assert set(key) <= columns, relation
