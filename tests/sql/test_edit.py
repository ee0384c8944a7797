"""Editing a job that waits: what is given changes, checked as at its birth, and is on record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from tests.conftest import with_user
from tests.sql.conftest import SEND, Sql, Worker

Refused = Callable[..., Diagnostic]
MakeWorker = Callable[..., Worker]


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int]) -> None:
    register("send", SEND, queue="mail")
    register("noop")


def job(sql: Sql, options: str = "") -> int:
    found: int = sql.one(f"select procjobs.defer('send', '{{\"to\": \"ann\"}}'{options})")
    return found


def test_only_what_is_given_changes(sql: Sql) -> None:
    id_ = job(sql, ", lock => 'l', tags => array['a'], max_attempts => 4")
    assert sql.one("select procjobs.edit_job(%s, priority => 5, queue => 'urgent')", id_) is True
    assert sql("select queue, priority, lock, tags, max_attempts, args from procjobs.jobs") == [
        ("urgent", 5, "l", ["a"], 4, {"to": "ann"})
    ]


def test_arguments_take_the_place_of_all_and_must_fit(sql: Sql, refused: Refused) -> None:
    id_ = job(sql)
    assert sql.one('select procjobs.edit_job(%s, args => \'{"to": "bob", "copies": 2}\')', id_) is True
    assert sql.one("select args from procjobs.jobs") == {"to": "bob", "copies": 2}
    refused("PJ002", "select procjobs.edit_job(%s, args => '{\"copies\": 2}')", id_)
    refused("PJ005", "select procjobs.edit_job(%s, args => '[]')", id_)
    assert sql.one("select args from procjobs.jobs") == {"to": "bob", "copies": 2}


def test_who_did_it_what_was_and_what_is_are_on_record_and_readers_see_no_arguments(sql: Sql, dsn: str) -> None:
    id_ = job(sql)
    sql('select procjobs.edit_job(%s, args => \'{"to": "bob"}\', priority => 5)', id_)
    ((action, actor, detail),) = sql("select action, actor, detail from procjobs.actions")
    assert (action, actor) == ("edited", sql.one("select session_user"))
    assert detail["before"] == {"priority": 0} and detail["after"] == {"priority": 5}
    assert detail["args_before"] == {"to": "ann"} and detail["args_after"] == {"to": "bob"}
    sql("drop role if exists edit_reader")
    sql("create role edit_reader login in role procjobs_reader")
    try:
        with psycopg.connect(with_user(dsn, "edit_reader")) as reader:
            (seen,) = reader.execute("select detail from procjobs.actions").fetchone() or ({},)
            assert seen == {"before": {"priority": 0}, "after": {"priority": 5}}
    finally:
        sql("drop role edit_reader")


def test_nothing_different_is_no_edit(sql: Sql) -> None:
    id_ = job(sql)
    assert sql.one('select procjobs.edit_job(%s, priority => 0, args => \'{"to": "ann"}\')', id_) is False
    assert sql("select * from procjobs.actions") == []


def test_a_time_is_waited_for_and_now_is_due(sql: Sql, worker: MakeWorker) -> None:
    id_ = job(sql)
    sql("select procjobs.edit_job(%s, scheduled_at => now() + interval '1 hour')", id_)
    ann = worker("send")
    assert ann.claim() == []
    sql("select procjobs.edit_job(%s, scheduled_at => now())", id_)
    assert ann.claim() == [id_]


def test_a_lock_that_is_left_lets_the_next_go_and_a_new_one_is_waited_for(sql: Sql, worker: MakeWorker) -> None:
    first, second = job(sql, ", lock => 'a'"), job(sql, ", lock => 'a'")
    ann = worker("send")
    sql("select procjobs.edit_job(%s, lock => 'b')", first)
    assert ann.claim() == [first, second]
    third, fourth = job(sql), job(sql, ", lock => 'b'")
    sql("select procjobs.edit_job(%s, lock => 'b')", third)
    assert ann.claim() == []
    sql("select procjobs.edit_job(%s, lock => '')", fourth)
    assert ann.claim() == [fourth]


def test_a_priority_moves_a_job_to_the_front_of_its_lock(sql: Sql, worker: MakeWorker) -> None:
    first, second = job(sql, ", lock => 'a'"), job(sql, ", lock => 'a'")
    sql("select procjobs.edit_job(%s, priority => 9)", second)
    ann = worker("send")
    assert ann.claim() == [second]
    ann.finish(second)
    assert ann.claim() == [first]


def test_a_job_that_runs_is_over_or_never_was_cannot_be_edited(sql: Sql, worker: MakeWorker, refused: Refused) -> None:
    id_ = job(sql)
    ann = worker("send")
    ann.claim()
    assert "running" in str(refused("PJ008", "select procjobs.edit_job(%s, priority => 1)", id_).message_detail)
    ann.finish(id_)
    assert "succeeded" in str(refused("PJ008", "select procjobs.edit_job(%s, priority => 1)", id_).message_detail)
    refused("PJ007", "select procjobs.edit_job(%s, priority => 1)", id_ + 1)


def test_a_queueing_lock_that_a_waiting_job_has_is_refused(sql: Sql, refused: Refused) -> None:
    job(sql, ", queueing_lock => 'q'")
    id_ = job(sql)
    refused("PJ006", "select procjobs.edit_job(%s, queueing_lock => 'q')", id_)
    assert sql.one("select queueing_lock from procjobs.jobs where id = %s", id_) is None


def test_options_are_checked(sql: Sql, refused: Refused) -> None:
    id_ = job(sql)
    refused("PJ009", "select procjobs.edit_job(%s, max_attempts => 0)", id_)
    refused("PJ009", "select procjobs.edit_job(%s, timeout => '0 s')", id_)
    refused("PJ010", "select procjobs.edit_job(%s, queue => repeat('q', 129))", id_)


def test_an_edit_and_a_claim_do_not_both_win(
    sql: Sql, worker: MakeWorker, another: Callable[[], psycopg.Connection[Any]]
) -> None:
    id_ = job(sql)
    editor = another()
    editor.execute('select procjobs.edit_job(%s, args => \'{"to": "bob"}\')', (id_,))
    ann = worker("send")
    assert ann.claim() == []  # passed over while it is being edited
    editor.commit()
    (row,) = sql("select args from procjobs.claim_jobs(%s, null, 1)", ann.id)
    assert row == ('{"to": "bob"}',)
