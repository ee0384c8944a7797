"""The log of settings: every change, by whatever way, and nothing takes it back. The kinds: test_setting_kinds.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from tests.conftest import with_user
from tests.sql.conftest import Sql, Worker

Refused = Callable[..., Diagnostic]


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int], empty_log: None) -> None:
    register("noop")


def log(sql: Sql, *columns: str) -> list[tuple[Any, ...]]:
    chosen = ", ".join(columns or ("kind", "name", "change", "reason", "before", "after"))
    return sql(f"select {chosen} from procjobs.setting_log order by id")


def test_pauses_of_queues_and_tasks_each_with_its_reason(sql: Sql, now: Callable[[str], None]) -> None:
    for word, name in (("queue", "mail"), ("task", "noop")):
        now("2030-01-01 12:00Z")
        sql(f"select procjobs.pause_{word}(%s, 'provider down')", name)
        sql(f"select procjobs.pause_{word}(%s, 'again')", name)  # it is paused already: nothing changes
        now("2030-01-01 13:00Z")
        sql(f"select procjobs.resume_{word}(%s, reason => 'provider up')", name)
        sql(f"select procjobs.resume_{word}(%s)", name)
        sql(f"select procjobs.pause_{word}(%s)", name)
        found = log(sql, "name", "change", "reason", "at", "before ->> 'paused_at'", "after ->> 'paused_at'")[-3:]
        assert [row[:3] for row in found] == [
            (name, "paused", "provider down"), (name, "resumed", "provider up"), (name, "paused", None),
        ]  # fmt: skip
        assert [row[3].hour for row in found] == [12, 13, 13]
        assert found[0][5] == found[1][4] and found[1][5] is None and found[2][5] is not None
    assert len(log(sql)) == 6


def test_limits_tell_what_was_and_what_is(sql: Sql) -> None:
    sql("select procjobs.set_limit('smtp', queue => 'mail', max_running => 5, reason => 'new provider')")
    sql("select procjobs.set_limit('smtp', queue => 'mail', max_running => 5)")
    sql("select procjobs.set_limit('smtp', queue => 'mail', rate => 50, per => '1 s')")
    sql("select procjobs.drop_limit('smtp', 'not needed')")
    made = {"queue": "mail", "max_running": 5, "on_excess": "wait"}
    rated = {"rate": 50, "per": "00:00:01"}
    assert log(sql) == [
        ("limit", "smtp", "set", "new provider", None, made),
        (
            "limit", "smtp", "set", None, {"max_running": 5, "rate": None, "per": None},
            {"max_running": None, **rated},
        ),
        ("limit", "smtp", "dropped", "not needed", {"queue": "mail", "on_excess": "wait", **rated}, None),
    ]  # fmt: skip


def test_settings_of_tasks_and_queues(sql: Sql) -> None:
    sql("select procjobs.set_task('noop', priority => 3, reason => 'urgent')")
    sql("select procjobs.set_task('noop', priority => 3, timeout => '1 min')")
    sql("select procjobs.reset_task('noop', 'no more')")
    sql("select procjobs.set_queue('mail', fair => true)")
    sql("select procjobs.set_queue('mail', ageing => '10 min', reason => 'low ones starve')")
    assert log(sql) == [
        ("task", "noop", "set", "urgent", None, {"priority": 3}),
        ("task", "noop", "set", None, {"timeout": None}, {"timeout": "00:01:00"}),
        ("task", "noop", "set", "no more", {"priority": 3, "timeout": "00:01:00"}, {"priority": None, "timeout": None}),
        ("queue", "mail", "set", None, None, {"fair": True}),
        (
            "queue", "mail", "set", "low ones starve", {"fair": True, "ageing": None},
            {"fair": False, "ageing": "00:10:00"},
        ),
    ]  # fmt: skip


def test_what_is_changed_by_hand_is_there_too_with_a_reason_if_one_was_said(sql: Sql) -> None:
    sql("set procjobs.reason = 'night shift'")
    sql("select procjobs.set_limit('a', task => 'noop', max_running => 1)")
    sql("select procjobs.set_limit('a', task => 'noop', max_running => 2, reason => 'this one')")
    sql("update procjobs.limits set max_running = 9 where name = 'a'")
    sql("reset procjobs.reason")
    sql("delete from procjobs.limits where name = 'a'")
    sql("insert into procjobs.queue_settings (name, paused_at, pause_reason) values ('mail', now(), 'fire')")
    sql("delete from procjobs.queue_settings")
    sql("insert into procjobs.task_settings (task, priority) values ('noop', 1)")
    assert log(sql, "name", "change", "reason", "after ->> 'max_running'") == [
        ("a", "set", "night shift", "1"), ("a", "set", "this one", "2"), ("a", "set", "night shift", "9"),
        ("a", "dropped", None, None), ("mail", "paused", "fire", None), ("mail", "dropped", None, None),
        ("noop", "set", None, None),
    ]  # fmt: skip


def test_the_reason_of_a_call_goes_before_that_of_the_session(sql: Sql) -> None:
    sql("set procjobs.reason = 'night shift'")
    sql("select procjobs.pause_queue('mail', 'provider down')")
    sql("select procjobs.set_schedule_group('cleanup', false, 'moving')")
    sql("select procjobs.set_schedule_group('cleanup', true, 'moving')")
    sql("select procjobs.resume_queue('mail')")
    assert log(sql, "reason") == [("provider down",), ("moving",), ("moving",), ("night shift",)]


def test_it_is_of_the_transaction_of_the_change(sql: Sql, another: Callable[[], psycopg.Connection[Any]]) -> None:
    other = another()
    other.execute("select procjobs.pause_queue('mail', 'first')")
    other.rollback()
    assert log(sql) == []
    other.execute("select procjobs.pause_queue('mail', 'second'), procjobs.resume_queue('mail', 'third')")
    other.commit()
    assert log(sql, "change", "reason") == [("paused", "second"), ("resumed", "third")]


def test_claims_and_breakers_write_nothing(sql: Sql, worker: Callable[..., Worker]) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    sql("select procjobs.set_breaker('smtp', tasks => array['noop'], failures => 2)")
    mine = worker("noop")
    for tenant in ("a", "b", None):
        sql("select procjobs.defer('noop', tenant => %s)", tenant)
    before = log(sql)
    while claimed := mine.claim(1):
        mine.finish(*claimed)
    assert sql.one("select last_tenant is not null from procjobs.queue_settings")
    assert [sql.one("select procjobs.report_outcome('smtp', false)") for _ in range(2)] == ["closed", "open"]
    assert sql("select name from procjobs.limits where breaker is not null")
    sql("select procjobs.close_breaker('smtp')")
    sql("select procjobs.open_breaker('smtp')")
    sql("select procjobs.close_breaker('smtp')")
    assert log(sql) == before


def test_it_is_only_added_to(sql: Sql, refused: Refused, now: Callable[[str], None]) -> None:
    sql("select procjobs.pause_queue('mail')")
    for tampering in (
        "update procjobs.setting_changes set actor = 'bob'", "delete from procjobs.setting_changes",
        "truncate procjobs.setting_changes",
    ):  # fmt: skip
        refused("42501", tampering)
    assert len(log(sql)) == 1


def test_it_is_kept_for_a_year(sql: Sql, now: Callable[[str], None]) -> None:
    now("2030-01-01 12:00Z")
    sql("select procjobs.pause_queue('mail')")
    now("2030-12-31 12:00Z")
    sql("select procjobs.resume_queue('mail')")
    sql("select procjobs.upkeep()")
    assert log(sql, "change") == [("paused",), ("resumed",)]
    now("2031-01-02 12:00Z")
    sql("select procjobs.upkeep()")
    assert log(sql, "change") == [("resumed",)]


def test_readers_see_it_admins_write_it_and_nobody_reads_the_table(sql: Sql, dsn: str) -> None:
    sql("drop role if exists log_reader, log_admin")
    sql("create role log_reader login in role procjobs_reader; create role log_admin login in role procjobs_admin")
    try:
        with psycopg.connect(with_user(dsn, "log_admin"), autocommit=True) as admin:
            admin.execute("select procjobs.pause_queue('mail', 'x')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute(
                    "insert into procjobs.setting_changes (at, kind, name, change) values (now(), 'queue', 'x', 'set')"
                )
        with psycopg.connect(with_user(dsn, "log_reader"), autocommit=True) as reader:
            assert reader.execute(
                "select actor, change from procjobs.list_setting_changes('queue', 'mail')"
            ).fetchall() == [("log_admin", "paused")]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute("select from procjobs.setting_changes")
    finally:
        sql("drop role log_reader, log_admin")


def test_it_is_listed_by_kind_and_name_newest_first(sql: Sql) -> None:
    sql("select procjobs.pause_queue('a'), procjobs.pause_queue('b'), procjobs.pause_task('noop')")
    asked = "select name from procjobs.list_setting_changes({})"
    assert sql(asked.format("'queue'")) == [("b",), ("a",)]
    assert sql(asked.format("'queue', 'a'")) == [("a",)]
    assert sql(asked.format("p_max_rows => 1")) == [("noop",)]
