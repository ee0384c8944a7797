"""Enqueueing from SQL: defaults, keys, races, and many at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from .conftest import SEND, Sql

Refused = Callable[..., Diagnostic]
Another = Callable[[], psycopg.Connection[Any]]

JOB = (
    "select queue_name, priority, scheduled_at, lock, queueing_lock, pj_unique_key, pj_max_attempts, pj_tags "
    "from procrastinate_jobs"
)
MANY = "select ordinal, id, duplicate from procjobs.defer_many(%s)"


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int]) -> None:
    register("send", SEND, queue="mail", priority=3)
    register("noop")


def many(sql: Sql, *jobs: dict[str, Any]) -> list[tuple[Any, ...]]:
    return sql(MANY, json.dumps(jobs))


def test_queue_and_priority_are_the_tasks_unless_said(sql: Sql) -> None:
    sql("""select procjobs.defer('send', '{"to": "ann"}')""")
    assert sql(JOB) == [("mail", 3, None, None, None, None, None, None)]


def test_every_option_reaches_the_job(sql: Sql) -> None:
    sql("""select procjobs.defer(task => 'send', args => '{"to": "ann"}', queue => 'other', priority => -1,
             scheduled_at => '2030-01-01 00:00Z', lock => 'l', queueing_lock => 'ql', unique_key => 'u',
             max_attempts => 7, tags => '{a,b}')""")
    ((queue, priority, at, *rest),) = sql(JOB)
    assert (queue, priority, at.timestamp()) == ("other", -1, 1893456000)
    assert rest == ["l", "ql", "u", 7, ["a", "b"]]


@pytest.mark.parametrize(
    "enqueue",
    [
        "select procjobs.defer('guarded')",
        "select procjobs.defer('guarded', tenant => 'acme')",
        'select id from procjobs.defer_many(\'[{"task": "guarded"}]\')',
        'select id from procjobs.defer_many(\'[{"task": "guarded", "lock": null, "queueing_lock": null}]\')',
        "select procjobs.throttle('guarded', 'k', '1 minute')",
    ],
)
def test_a_tasks_own_locks_are_those_of_its_jobs(sql: Sql, register: Callable[..., int], enqueue: str) -> None:
    assert register("guarded", lock="house", queueing_lock="door") == 1
    assert register("guarded", lock="house", queueing_lock="door") == 0
    sql(enqueue)
    assert sql("select lock, queueing_lock from procrastinate_jobs") == [("house", "door")]


def test_a_job_that_names_locks_has_those(sql: Sql, register: Callable[..., int]) -> None:
    register("guarded", lock="house", queueing_lock="door")
    sql("select procjobs.defer('guarded', lock => 'l', queueing_lock => 'q')")
    many(
        sql,
        {"task": "guarded", "lock": "m", "queueing_lock": "r"},
        {"task": "noop"},
        {"task": "guarded", "lock": "n"},
    )
    assert sql("select lock, queueing_lock from procrastinate_jobs order by id") == [
        ("l", "q"), ("m", "r"), (None, None), ("n", "door"),
    ]  # fmt: skip


def test_debounced_jobs_those_of_triggers_and_of_schedules_have_the_tasks_lock(
    sql: Sql, register: Callable[..., int]
) -> None:
    register("guarded", lock="house")
    sql("select procjobs.debounce('guarded', 'k', '1 minute')")
    sql("select procjobs.schedule('nightly', 'guarded', '0 3 * * *')")
    sql("select procjobs.run_now('nightly')")
    sql("create table things (id integer primary key)")
    sql("select procjobs.enqueue_on_change('things', 'guarded')")
    sql("insert into things values (1)")
    assert sql("select lock, count(*) from procrastinate_jobs group by 1") == [("house", 3)]


def test_a_job_belongs_to_its_transaction(sql: Sql, another: Another) -> None:
    connection = another()
    connection.execute("select procjobs.defer('noop')")
    assert sql.one("select count(*) from procjobs.jobs") == 0
    connection.rollback()
    assert sql.one("select count(*) from procjobs.jobs") == 0
    connection.execute("select procjobs.defer('noop')")
    connection.commit()
    assert sql.one("select count(*) from procjobs.jobs") == 1


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("queue => ''", "PJ010"),
        ("queue => repeat('q', 129)", "PJ010"),
        ("max_attempts => 0", "PJ009"),
        ("scheduled_at => 'infinity'", "PJ009"),
        ("scheduled_at => '-infinity'", "PJ009"),
        ("scheduled_at => '10000-01-01'", "PJ009"),
        ("scheduled_at => '0100-01-01 BC'", "PJ009"),
        ("lock => repeat('l', 1001)", "PJ009"),
        ("queueing_lock => repeat('ä', 501)", "PJ009"),
        ("unique_key => repeat('u', 1001)", "PJ009"),
        ("tags => array['a', null]", "PJ009"),
        ("tags => array[repeat('t', 129)]", "PJ009"),
        ("tags => array_fill('t'::text, array[65])", "PJ009"),
    ],
)
def test_an_option_out_of_range_is_refused(refused: Refused, option: str, code: str) -> None:
    refused(code, f"select procjobs.defer('noop', {option})")


@pytest.mark.parametrize("option", ["queue", "lock", "queueing_lock", "unique_key"])
def test_the_longest_keys_are_stored_and_indexed(sql: Sql, option: str) -> None:
    size = 128 if option == "queue" else 1000
    sql(f"select procjobs.defer('noop', {option} => %s)", "k" * size)
    assert sql.one(f"select length({option}) from procjobs.jobs") == size


@pytest.mark.parametrize(
    ("columns", "values", "code"),
    [
        ("scheduled_at", "'infinity'", "PJ009"),
        ("lock", "repeat('l', 1001)", "PJ009"),
        ("pj_max_attempts", "0", "PJ009"),
        ("pj_tags", "array[null]::text[]", "PJ009"),
        ("pj_timeout", "'-1 s'", "PJ009"),
        ("pj_tenant", "''", "PJ009"),
        ("pj_batch", "4711", "PJ007"),
        ("pj_batch", "(select max(id) from procjobs.batches)", "PJ008"),
    ],
)
def test_a_plain_insert_has_the_same_options(sql: Sql, refused: Refused, columns: str, values: str, code: str) -> None:
    sql("select procjobs.seal_batch(procjobs.create_batch('sealed'))")
    refused(code, f"insert into procrastinate_jobs (queue_name, task_name, {columns}) values ('q', 'noop', {values})")


def test_a_due_time_in_the_future_or_a_held_lock_makes_it_wait(sql: Sql) -> None:
    sql("select procjobs.defer('noop', scheduled_at => now() + interval '1 hour')")
    sql("select procjobs.defer('noop', lock => 'l') from generate_series(1, 2)")
    assert sql("select state from procjobs.jobs order by id") == [("scheduled",), ("waiting",), ("blocked",)]


def test_one_statement_sends_one_notify_a_queue_whatever_the_number_of_jobs(sql: Sql, another: Another) -> None:
    listener = another()
    listener.autocommit = True
    listener.execute('listen "procrastinate_queue_v1#default"')
    listener.execute("listen procrastinate_any_queue_v1")
    many(sql, *[{"task": "noop"}] * 50)
    heard = [notify.channel for notify in listener.notifies(timeout=5, stop_after=2)]
    assert sorted(heard) == ["procrastinate_any_queue_v1", "procrastinate_queue_v1#default"]
    sql("select 1")
    assert list(listener.notifies(timeout=0)) == []


# queueing_lock


def test_a_queueing_lock_in_use_names_the_job_that_waits(sql: Sql, refused: Refused) -> None:
    first = sql.one("select procjobs.defer('noop', queueing_lock => 'sync')")
    diag = refused("PJ006", "select procjobs.defer('noop', queueing_lock => 'sync')")
    assert diag.message_detail == f"job {first} of task noop"


def test_a_running_job_does_not_hold_the_queueing_lock(sql: Sql, worker: Callable[..., Any]) -> None:
    first = sql.one("select procjobs.defer('noop', queueing_lock => 'sync')")
    assert worker("noop").claim() == [first]
    assert sql.one("select procjobs.defer('noop', queueing_lock => 'sync')") != first


# unique_key


def test_a_unique_key_in_use_returns_the_job_that_has_it(sql: Sql, worker: Callable[..., Any]) -> None:
    call = "select procjobs.defer('noop', unique_key => 'invoice 7')"
    first = sql.one(call)
    assert sql.one(call) == first, "it waits"
    claimed = worker("noop")
    assert claimed.claim() == [first]
    assert sql.one(call) == first, "it runs"
    assert claimed.finish(first)
    assert sql.one(call) != first, "it is over"


def test_the_unique_key_comes_before_the_queueing_lock(sql: Sql) -> None:
    call = "select procjobs.defer('noop', unique_key => 'k', queueing_lock => 'q')"
    assert sql.one(call) == sql.one(call)


class Racer(threading.Thread):
    """Runs one statement in a connection of its own."""

    def __init__(self, connection: psycopg.Connection[Any], query: str, *params: Any) -> None:
        super().__init__()
        self.connection, self.query, self.params = connection, query, params
        self.rows: list[Any] = []
        self.error: psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.rows = self.connection.execute(self.query.encode(), self.params or None).fetchall()
            self.connection.commit()
        except psycopg.Error as error:
            self.error = error
            self.connection.rollback()

    def waits(self, sql: Sql) -> bool:
        pid = self.connection.info.backend_pid
        return bool(sql.one("select cardinality(pg_blocking_pids(%s)) > 0", pid))


@pytest.mark.parametrize("commits", [True, False])
def test_a_unique_key_of_an_open_transaction_is_waited_for(
    sql: Sql, another: Another, eventually: Callable[..., Any], commits: bool
) -> None:
    call = "select procjobs.defer('noop', unique_key => 'k')"
    first = another()
    ((held,),) = first.execute(call.encode()).fetchall()
    second = Racer(another(), call)
    eventually(lambda: second.waits(sql))
    first.commit() if commits else first.rollback()
    second.join()
    ((got,),) = second.rows
    assert (got == held) is commits
    assert sql("select id from procjobs.jobs") == [(got,)]


@pytest.mark.parametrize("commits", [True, False])
def test_a_queueing_lock_of_an_open_transaction_is_waited_for(
    sql: Sql, another: Another, eventually: Callable[..., Any], commits: bool
) -> None:
    call = "select procjobs.defer('noop', queueing_lock => 'k')"
    first = another()
    first.execute(call.encode())
    second = Racer(another(), call)
    eventually(lambda: second.waits(sql))
    first.commit() if commits else first.rollback()
    second.join()
    assert (second.error.sqlstate if second.error else None) == ("PJ006" if commits else None)
    assert sql.one("select count(*) from procjobs.jobs") == 1


def test_a_key_that_comes_free_while_we_wait_is_taken(
    sql: Sql, another: Another, worker: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    call = "select procjobs.defer('noop', unique_key => 'k')"
    held = sql.one(call)
    running = worker("noop")
    running.claim()
    ending = another()
    ending.execute(
        "select * from procjobs.finish_jobs(%s, array[%s]::bigint[], array[%s]::int[])",
        [running.id, held, running.leases[held]],
    )
    second = Racer(another(), call)
    eventually(lambda: second.waits(sql))
    ending.commit()
    second.join()
    ((got,),) = second.rows
    assert got != held
    assert sql("select id, status::text from procjobs.jobs order by id") == [(held, "succeeded"), (got, "todo")]


def test_of_many_at_once_with_one_key_one_is_enqueued(sql: Sql, another: Another) -> None:
    racers = [Racer(another(), "select procjobs.defer('noop', unique_key => 'k')") for _ in range(8)]
    for racer in racers:
        racer.join()
    assert {racer.rows[0][0] for racer in racers} == {sql.one("select id from procjobs.jobs")}


# defer_many


def test_many_jobs_come_back_in_the_order_they_were_given(sql: Sql) -> None:
    found = many(
        sql,
        {"task": "noop"},
        {"task": "send", "args": {"to": "ann"}, "tags": ["t"]},
        {"task": "noop", "queue": "other"},
    )
    assert [(ordinal, duplicate) for ordinal, _, duplicate in found] == [(1, False), (2, False), (3, False)]
    assert [job for _, job, _ in found] == sorted(job for _, job, _ in found)
    jobs = sql("select id, task, queue, priority, args, tags from procjobs.jobs order by id")
    assert jobs == [
        (found[0][1], "noop", "default", 0, {}, None),
        (found[1][1], "send", "mail", 3, {"to": "ann"}, ["t"]),
        (found[2][1], "noop", "other", 0, {}, None),
    ]


def test_each_key_of_an_element_is_an_argument_of_defer(sql: Sql) -> None:
    ((_, job, _),) = many(
        sql,
        {
            "task": "noop", "args": {"a": 1}, "queue": "other", "priority": 4, "scheduled_at": "2030-01-01T00:00:00Z",
            "lock": "l", "queueing_lock": "ql", "unique_key": "u", "max_attempts": 2, "tags": ["a"],
        },
    )  # fmt: skip
    as_many = sql(f"{JOB} where id = %s", job)
    sql("select procjobs.cancel(%s)", job)
    alone = sql.one(
        "select procjobs.defer('noop', '{\"a\": 1}', 'other', 4, '2030-01-01 00:00Z', 'l', 'ql', 'u', 2, '{a}')"
    )
    assert sql(f"{JOB} where id = %s", alone) == as_many
    names = sql.one("select proargnames from pg_proc where proname = 'defer'")
    keys = sql.one("select array(select jsonb_object_keys(procjobs.deferral_schema() -> 'properties'))")
    assert set(names) == set(keys)


def test_null_says_nothing(sql: Sql) -> None:
    many(
        sql, {"task": "send", "args": {"to": "a"}, "queue": None, "priority": None, "tags": None, "scheduled_at": None}
    )
    assert sql(JOB) == [("mail", 3, None, None, None, None, None, None)]


def test_a_key_in_use_is_a_duplicate_also_within_the_array(sql: Sql) -> None:
    held = sql.one("select procjobs.defer('noop', unique_key => 'old')")
    new = {"task": "noop", "unique_key": "new"}
    found = many(sql, {"task": "noop", "unique_key": "old"}, new, new, {"task": "noop"})
    assert [duplicate for *_, duplicate in found] == [True, False, True, False]
    assert found[0][1] == held and found[1][1] == found[2][1]
    assert sql.one("select count(*) from procjobs.jobs") == 3


@pytest.mark.parametrize(
    ("bad", "code", "detail"),
    [
        ({"task": "nope"}, "PJ001", "nearest"),
        ({"task": "send"}, "PJ002", "to is missing"),
        ({"task": "noop", "args": [1]}, "PJ005", "array"),
        ({"task": "noop", "colour": "red"}, "PJ009", "colour is not expected"),
        ({}, "PJ009", "task is missing"),
        ({"task": "noop", "priority": "high"}, "PJ009", "priority must be integer or null, is string"),
        ({"task": "noop", "priority": 2**31}, "PJ009", "priority must be at most"),
        ({"task": "noop", "scheduled_at": "tomorrow"}, "PJ009", "scheduled_at must be a date-time"),
        ({"task": "noop", "scheduled_at": "0000-01-01T00:00:00Z"}, "PJ009", "scheduled_at"),
        ({"task": "noop", "max_attempts": 0}, "PJ009", "max_attempts must be at least 1"),
        ({"task": "noop", "tags": ["a", 1]}, "PJ009", "tags[1] must be string"),
        ({"task": "noop", "queue": ""}, "PJ010", "0"),
        ({"task": "noop", "queueing_lock": "held"}, "PJ006", "of task noop"),
        ("noop", "PJ009", "must be object, is string"),
    ],
)
def test_an_error_names_the_element_and_nothing_is_enqueued(
    sql: Sql, refused: Refused, bad: Any, code: str, detail: str
) -> None:
    sql("select procjobs.defer('noop', queueing_lock => 'held')")
    diag = refused(code, MANY, json.dumps([{"task": "noop"}, bad, {"task": "noop"}]))
    assert str(diag.message_primary).startswith("job 2 of the array: ")
    assert detail in str(diag.message_detail)
    assert sql.one("select count(*) from procjobs.jobs") == 1


@pytest.mark.parametrize("jobs", ['{"task": "noop"}', "null", None])
def test_no_array_is_refused(refused: Refused, jobs: str | None) -> None:
    assert "must be a JSON array" in str(refused("PJ009", MANY, jobs).message_primary)


def test_an_empty_array_is_no_job(sql: Sql) -> None:
    assert many(sql) == []


def test_two_arrays_with_the_same_keys_in_another_order_do_not_deadlock(
    sql: Sql, another: Another, eventually: Callable[..., Any]
) -> None:
    # Somebody holds the key in the middle, so that both stop there, or one behind the other, and then go on.
    middle = another()
    middle.execute("select procjobs.defer('noop', unique_key => 'k5')")
    racers = []
    for step in (1, -1):
        jobs = [{"task": "noop", "unique_key": f"k{n}"} for n in range(10)][::step]
        racers.append(Racer(another(), MANY, json.dumps(jobs)))
        eventually(lambda: racers[-1].waits(sql))
    middle.rollback()
    for racer in racers:
        racer.join()
    assert [racer.error for racer in racers] == [None, None]
    assert sql.one("select count(*) from procjobs.jobs") == 10


def test_ten_thousand_jobs_in_one_call(sql: Sql) -> None:
    found = sql(
        'select count(*), count(distinct id) from procjobs.defer_many((select jsonb_agg(\'{"task": "noop"}\'::jsonb) '
        "from generate_series(1, 10000)))"
    )
    assert found == [(10000, 10000)]
