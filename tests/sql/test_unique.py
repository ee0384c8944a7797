"""Jobs that are the same: keys, how long they hold, rules of tasks, debounce and throttle."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from .conftest import SEND, Sql, Worker

Refused = Callable[..., Any]
Another = Callable[[], psycopg.Connection[Any]]
Now = Callable[[str], None]
Make = Callable[..., Worker]

NOON = "2030-01-01 12:00Z"


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int]) -> None:
    register("send", SEND, queue="mail", priority=3)
    register("noop")


def defer(sql: Sql, options: str = "", task: str = "noop") -> int:
    job: int = sql.one(f"select procjobs.defer('{task}'{', ' + options if options else ''})")
    return job


def jobs(sql: Sql) -> int:
    count: int = sql.one("select count(*) from procjobs.jobs")
    return count


# keys


def test_a_key_holds_while_its_job_is_unfinished(sql: Sql, worker: Make) -> None:
    first = defer(sql, "unique_key => 'k'")
    running = worker("noop")
    assert running.claim() == [first]
    assert defer(sql, "unique_key => 'k'") == first
    running.finish(first)
    assert defer(sql, "unique_key => 'k'") != first


def test_a_key_of_waiting_jobs_is_free_once_one_runs(sql: Sql, worker: Make) -> None:
    first = defer(sql, "unique_key => 'k', unique_while => 'waiting'")
    assert defer(sql, "unique_key => 'k', unique_while => 'waiting'") == first
    running = worker("noop")
    assert running.claim() == [first]
    second = defer(sql, "unique_key => 'k', unique_while => 'waiting'")
    assert second != first
    assert defer(sql, "unique_key => 'k', unique_while => 'waiting'") == second


def test_a_key_holds_while_its_job_is_retained(sql: Sql, worker: Make) -> None:
    first = defer(sql, "unique_key => 'k', unique_while => 'retained'")
    running = worker("noop")
    running.claim()
    running.finish(first)
    assert defer(sql, "unique_key => 'k', unique_while => 'retained'") == first
    assert sql.one("select procjobs.sweep_unique_keys()") == 0
    sql("delete from procjobs.job_history")
    second = defer(sql, "unique_key => 'k', unique_while => 'retained'")
    assert second != first
    sql("delete from procrastinate_jobs")
    assert sql.one("select procjobs.sweep_unique_keys()") == 1
    assert sql("select * from procjobs.unique_keys") == []


def test_a_key_for_a_period_holds_even_when_the_job_was_deleted(sql: Sql, now: Now) -> None:
    now(NOON)
    first = defer(sql, "unique_key => 'k', unique_for => '1 hour'")
    sql("delete from procrastinate_jobs")
    now("2030-01-01 12:59:59Z")
    assert defer(sql, "unique_key => 'k', unique_for => '1 hour'") == first
    assert sql.one("select procjobs.sweep_unique_keys()") == 0
    assert jobs(sql) == 0
    now("2030-01-01 13:00Z")
    assert sql.one("select procjobs.sweep_unique_keys()") == 1
    second = defer(sql, "unique_key => 'k', unique_for => '1 hour'")
    assert second != first
    now("2030-01-01 14:30Z")
    assert defer(sql, "unique_key => 'k', unique_for => '1 hour'") == second, "the period is over, but it is unfinished"


def test_the_period_of_a_new_job_counts_from_it(sql: Sql, now: Now) -> None:
    now(NOON)
    defer(sql, "unique_key => 'k', unique_for => '1 hour'")
    sql("delete from procrastinate_jobs")
    now("2030-01-01 13:30Z")
    second = defer(sql, "unique_key => 'k', unique_for => '1 hour'")
    sql("delete from procrastinate_jobs")
    now("2030-01-01 14:29Z")
    assert defer(sql, "unique_key => 'k', unique_for => '1 hour'") == second


def test_a_period_counts_a_job_that_was_enqueued_without_one(sql: Sql) -> None:
    first = defer(sql, "unique_key => 'k'")
    assert defer(sql, "unique_key => 'k', unique_for => '1 hour'") == first
    sql("delete from procrastinate_jobs")
    assert defer(sql, "unique_key => 'k', unique_for => '1 hour'") == first


def test_a_key_of_a_transaction_that_was_undone_is_free(sql: Sql, another: Another) -> None:
    other = another()
    other.execute(
        "select procjobs.defer('noop', unique_key => 'k', unique_while => 'retained', unique_for => '1 hour')"
    )
    other.rollback()
    first = defer(sql, "unique_key => 'k', unique_while => 'retained', unique_for => '1 hour'")
    assert sql.one("select id from procjobs.jobs") == first


def test_sweeping_goes_on_where_it_stopped(sql: Sql, now: Now) -> None:
    now(NOON)
    for n in range(7):
        defer(sql, f"unique_key => 'k{n}', unique_for => '1 hour'")
    now("2030-01-02 12:00Z")
    assert [sql.one("select procjobs.sweep_unique_keys(3)") for _ in range(4)] == [3, 3, 1, 0]


@pytest.mark.parametrize(
    "options",
    [
        "unique_key => 'k'",
        "unique_key => 'k', unique_while => 'waiting'",
        "unique_key => 'k', unique_while => 'retained'",
        "unique_key => 'k', unique_for => '1 hour'",
    ],
)
def test_of_many_callers_at_once_one_makes_the_job_and_all_learn_its_id(sql: Sql, dsn: str, options: str) -> None:
    together = threading.Barrier(20)
    found: list[int] = []

    def call() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            together.wait()
            row = connection.execute(f"select procjobs.defer('noop', {options})").fetchone()
            assert row is not None
            found.append(row[0])

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert set(found) == {sql.one("select id from procjobs.jobs")}


def test_arrays_with_the_same_keys_in_other_orders_do_not_deadlock(sql: Sql, dsn: str) -> None:
    keys = [f"k{n}" for n in range(30)]
    failed: list[Exception] = []

    def call(order: list[str]) -> None:
        array = json.dumps([{"task": "noop", "unique_key": k, "unique_for": 3600} for k in order])
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for _ in range(10):
                    connection.execute("select * from procjobs.defer_many(%s)", (array,))
                    connection.execute("delete from procrastinate_jobs")
                    connection.execute("delete from procjobs.unique_keys")
        except psycopg.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(order,)) for order in (keys, keys[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_an_array_tells_its_duplicates_and_those_within_it(sql: Sql) -> None:
    first = defer(sql, "unique_key => 'a', unique_for => '1 day'")
    found = sql(
        "select * from procjobs.defer_many(%s)",
        json.dumps(
            [
                {"task": "noop", "unique_key": "b", "unique_while": "retained"},
                {"task": "noop", "unique_key": "a", "unique_for": "1 day"},
                {"task": "noop", "unique_key": "b", "unique_while": "retained"},
                {"task": "noop", "unique_key": "c", "unique_while": "waiting"},
                {"task": "noop", "unique_key": "c", "unique_while": "waiting"},
                {"task": "noop"},
            ]
        ),
    )
    assert [row[0] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row[2] for row in found] == [False, True, True, False, True, False]
    ids = [row[1] for row in found]
    assert (ids[1], ids[2], ids[4]) == (first, ids[0], ids[3])
    assert {job for (job,) in sql("select id from procjobs.jobs")} == set(ids)


@pytest.mark.parametrize(
    "options",
    [
        "unique_key => 'k', unique_while => 'always'",
        "unique_key => 'k', unique_for => '-1 s'",
        "unique_for => '1 hour'",
        "unique_while => 'waiting'",
        "tenant => ''",
        "tenant => repeat('t', 129)",
        "timeout => '0 s'",
    ],
)
def test_an_option_out_of_range_is_refused(refused: Refused, options: str) -> None:
    refused("PJ009", f"select procjobs.defer('noop', {options})")


@pytest.mark.parametrize("job", [{"unique_key": "k", "unique_for": "soon"}, {"timeout": "x"}, {"tenant": ""}])
def test_an_element_out_of_range_is_refused(refused: Refused, job: dict[str, Any]) -> None:
    diag = refused("PJ009", "select procjobs.defer_many(%s)", json.dumps([{"task": "noop"}, {"task": "noop", **job}]))
    assert "job 2 of the array" in diag.message_primary


def test_tenant_and_timeout_reach_the_job(sql: Sql) -> None:
    defer(sql, "tenant => 'acme', timeout => '90 s'")
    array = json.dumps([{"task": "noop", "tenant": "acme", "timeout": 90}])
    sql("select * from procjobs.defer_many(%s)", array)
    assert sql("select distinct pj_tenant, pj_timeout = interval '90 s' from procrastinate_jobs") == [("acme", True)]


# rules of tasks


def rule(sql: Sql, task: str, **uniqueness: Any) -> None:
    sql("update procjobs.tasks set uniqueness = %s where name = %s", json.dumps(uniqueness), task)


def test_a_tasks_own_rule_holds_for_every_way_of_enqueueing(sql: Sql) -> None:
    rule(sql, "send", args=["to"], period=None, **{"while": "unfinished"})
    first = sql.one("""select procjobs.defer('send', '{"to": "ann", "copies": 1}')""")
    assert sql.one("""select procjobs.defer('send', '{"to": "ann", "copies": 2}')""") == first
    assert sql("select id, duplicate from procjobs.defer_many(%s)", '[{"task": "send", "args": {"to": "ann"}}]') == [
        (first, True)
    ]
    enqueue = (
        "select ids[1], array_length(ids, 1), duplicates from procjobs.enqueue('send', 'mail', 3, null, null, null, %s)"
    )
    assert sql(enqueue, '[{"to": "ann"}, {"to": "bob"}]') == [(first, 2, [1])]
    assert (
        sql.one(
            "select procjobs.enqueue_jobs('{send}', '{mail}', '{3}', '{null}', '{null}', array[%s], '{null}')",
            '{"to": "ann"}',
        )
        == first
    )
    assert jobs(sql) == 2


def test_a_rule_over_all_arguments_ignores_their_order(sql: Sql) -> None:
    rule(sql, "noop", args=None)
    first = sql.one("""select procjobs.defer('noop', '{"a": 1, "b": [1, 2]}')""")
    assert sql.one("""select procjobs.defer('noop', '{"b": [1, 2], "a": 1}')""") == first
    assert sql.one("""select procjobs.defer('noop', '{"b": [2, 1], "a": 1}')""") != first


def test_a_rule_may_hold_for_a_period_and_a_job_may_bring_its_own_key(sql: Sql, now: Now) -> None:
    rule(sql, "noop", args=["a"], period=3600)
    now(NOON)
    first = sql.one("""select procjobs.defer('noop', '{"a": 1}')""")
    sql("delete from procrastinate_jobs")
    assert sql.one("""select procjobs.defer('noop', '{"a": 1}')""") == first
    assert sql.one("""select procjobs.defer('noop', '{"a": 1}', unique_key => 'mine')""") != first


def test_what_was_set_for_a_task_goes_before_its_code_but_not_before_the_job(sql: Sql) -> None:
    sql("insert into procjobs.task_settings (task, queue, priority) values ('send', 'bulk', -5)")
    enqueue = "select procjobs.enqueue('send', %s, %s, null, null, null, '[{\"to\": \"ann\"}]')"
    sql(enqueue, "mail", 3)
    sql(enqueue, "other", 9)
    sql("""select procjobs.defer('send', '{"to": "ann"}')""")
    sql("""select procjobs.defer('send', '{"to": "ann"}', tenant => 't')""")
    sql("""select procjobs.defer_many('[{"task": "send", "args": {"to": "ann"}}]')""")
    sql(
        "select procjobs.enqueue_jobs('{send}', '{mail}', '{3}', '{null}', '{null}', array[%s], '{null}')",
        '{"to": "ann"}',
    )
    found = sql("select queue_name, priority from procrastinate_jobs order by id")
    assert found == [("bulk", -5), ("other", 9), *[("bulk", -5)] * 4]


# debounce and throttle


def test_debounce_runs_once_after_the_last_call_with_its_arguments(sql: Sql, now: Now) -> None:
    call = "select procjobs.debounce('send', 'ann', '1 minute', %s)"
    now(NOON)
    first = sql.one(call, '{"to": "1"}')
    now("2030-01-01 12:00:50Z")
    assert sql.one(call, '{"to": "2"}') == first
    ((at, args, queue, priority, state),) = sql("select scheduled_at, args, queue, priority, state from procjobs.jobs")
    assert at.timestamp() == 1893499310
    assert (args, queue, priority, state) == ({"to": "2"}, "mail", 3, "scheduled")


def test_debounce_does_not_put_a_job_off_for_ever(sql: Sql, now: Now) -> None:
    call = "select procjobs.debounce('noop', 'k', '1 minute', max_wait => '90 s')"
    now(NOON)
    first = sql.one(call)
    now("2030-01-01 12:00:45Z")
    sql(call)
    now("2030-01-01 12:01:40Z")
    assert sql.one(call) == first
    assert sql("select state, scheduled_at <= '2030-01-01 12:01:40Z' from procjobs.jobs") == [("waiting", True)]


def test_debounce_makes_a_new_job_while_one_runs(sql: Sql, now: Now, worker: Make) -> None:
    call = "select procjobs.debounce('noop', 'k', '1 minute')"
    now(NOON)
    first = sql.one(call)
    now("2030-01-01 12:02Z")
    sql("select procjobs.promote_due()")
    assert worker("noop").claim() == [first]
    second = sql.one(call)
    assert second != first
    assert sql.one(call) == second


def test_debounce_of_a_job_that_waits_for_a_retry_begins_anew(sql: Sql, now: Now) -> None:
    call = "select procjobs.debounce('noop', 'k', '1 minute', max_wait => '5 minutes')"
    now(NOON)
    first = sql.one(call)
    sql("update procrastinate_jobs set attempts = 2, scheduled_at = '2030-01-01 14:00Z'")
    now("2030-01-01 13:00Z")
    assert sql.one(call) == first
    assert sql("select attempts, scheduled_at = '2030-01-01 13:01Z' from procjobs.jobs") == [(0, True)]


@pytest.mark.parametrize(
    "call",
    [
        "select procjobs.debounce('index', 'k', '1 min', '{\"n\": %s}')",
        "select procjobs.defer('index', '{\"n\": %s}', unique_key => 'k', unique_while => 'waiting')",
    ],
    ids=["debounce", "while waiting"],
)
@pytest.mark.parametrize("end", ["failed", "crashed"])
def test_a_run_whose_key_a_newer_job_waits_with_is_superseded_and_tells_so(
    sql: Sql, now: Now, worker: Make, register: Any, refused: Refused, call: str, end: str
) -> None:
    register("index", None, max_attempts=3, backoff_base=0, backoff_jitter=False)
    mine = worker("index")
    now("2030-01-01 12:00Z")
    old = sql.one(call.replace("%s", "1"))
    now("2030-01-01 12:02Z")
    sql("select procjobs.promote_due()")
    assert mine.claim() == [old]
    now("2030-01-01 12:03Z")
    new = sql.one(call.replace("%s", "2"))
    assert new != old
    now("2030-01-01 12:04Z")
    assert mine.fail(old, outcome=end) == "superseded"

    state, note, key = sql("select state, note, unique_key from procjobs.jobs where id = %s", old)[0]
    assert (state, note) == ("cancelled", f"superseded: job {new} waits with the same queueing lock or key")
    assert key and sql.one("select waiting_key is not null from procjobs.job_history where id = %s", old)
    assert sql("select outcome, attempt, error_class, retry_at from procjobs.attempts") == [
        ("superseded", 1, "ValueError", None)
    ]
    timeline = sql("select event, detail from procjobs.job_timeline(%s)", old)
    assert [event for event, _ in timeline if event != "due"] == ["enqueued", "started", "superseded", "cancelled"]
    assert f"job {new} waits" in timeline[-1][1]
    assert sql("select state from procjobs.jobs_as_of('2030-01-01 12:03:30Z') where id = %s", old) == [("running",)]
    assert sql("select state from procjobs.jobs_as_of('2030-01-01 12:05Z') where id = %s", old) == [("cancelled",)]
    # The newer one does the work, and the old one does not come back beside it.
    assert f"job {new} has the unique key '" in refused("PJ008", "select procjobs.retry(%s)", old).message_detail
    now("2030-01-01 12:06Z")
    sql("select procjobs.promote_due()")
    assert mine.claim() == [new]
    assert sql.one("select args ->> 'n' from procjobs.jobs where id = %s", new) == "2"


def test_keys_of_other_tasks_are_other_keys(sql: Sql) -> None:
    first = sql.one("select procjobs.debounce('noop', 'k', '1 minute')")
    assert sql.one("""select procjobs.debounce('send', 'k', '1 minute', '{"to": "ann"}')""") != first


def test_of_many_debouncing_at_once_one_job_is_left(sql: Sql, dsn: str) -> None:
    def call(n: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for _ in range(5):
                connection.execute("select procjobs.debounce('noop', 'k', '1 minute', %s)", (json.dumps({"n": n}),))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert jobs(sql) == 1


def test_throttle_lets_the_first_through_in_a_period(sql: Sql, now: Now) -> None:
    call = "select procjobs.throttle('send', 'ann', '10 minutes', %s)"
    now(NOON)
    first = sql.one(call, '{"to": "1"}')
    sql("select procjobs.cancel(%s)", first)
    now("2030-01-01 12:09Z")
    assert sql.one(call, '{"to": "2"}') == first
    now("2030-01-01 12:10Z")
    assert sql.one(call, '{"to": "3"}') != first
    assert sql("select args from procjobs.jobs where state = 'waiting'") == [({"to": "3"},)]


@pytest.mark.parametrize(
    "call",
    [
        "debounce('noop', '', '1 minute')",
        "debounce('noop', repeat('k', 801), '1 minute')",
        "debounce('noop', 'k', '0 s')",
        "debounce('noop', 'k', '1 minute', max_wait => '1 s')",
        "debounce('noop', 'k', null)",
        "throttle('noop', 'k', '0 s')",
        "throttle('noop', null, '1 s')",
    ],
)
def test_debounce_and_throttle_refuse_what_makes_no_sense(refused: Refused, call: str) -> None:
    refused("PJ009", f"select procjobs.{call}")


def test_debounce_checks_task_and_arguments(refused: Refused) -> None:
    refused("PJ001", "select procjobs.debounce('nothing', 'k', '1 s')")
    refused("PJ002", "select procjobs.debounce('send', 'k', '1 s')")
