"""Actions on many jobs: counted first, then done in batches, each job on record and the whole too."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from tests.sql.conftest import Sql, Worker

Refused = Callable[..., Diagnostic]
MakeWorker = Callable[..., Worker]

Y21 = "2021-01-01T00:00:00Z"


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int]) -> None:
    for name in ("send", "noop"):
        register(name)


def defer(sql: Sql, task: str = "send", options: str = "") -> int:
    found: int = sql.one(f"select procjobs.defer('{task}'{options})")
    return found


def act(sql: Sql, function: str, chosen: dict[str, Any], more: str = "") -> tuple[Any, ...]:
    return sql(f"select * from procjobs.{function}(%s::jsonb{more})", json.dumps(chosen))[0]


def count(sql: Sql, function: str, **chosen: Any) -> int:
    found: int = act(sql, function, chosen)[0]
    return found


def test_the_count_changes_nothing(sql: Sql) -> None:
    jobs = [defer(sql) for _ in range(12)]
    assert act(sql, "cancel_jobs", {"task": "send"}) == (12, None, jobs[:10])
    assert sql.one("select count(*) from procjobs.jobs where state = 'waiting'") == 12
    assert sql("select * from procjobs.bulk_log") == []


def test_each_key_narrows_the_choice(sql: Sql) -> None:
    a = defer(sql, options=", queue => 'mail', tags => array['x', 'y']")
    b = defer(sql, "noop", ", queue => 'mail'")
    c = defer(sql, options=", scheduled_at => now() + interval '1 day'")
    sql("update procrastinate_jobs set pj_created_at = '2020-01-01Z' where id = %s", b)
    for chosen, expected in (
        ({"queue": "mail"}, [a, b]), ({"task": "send"}, [a, c]), ({"tag": "y"}, [a]), ({"state": "scheduled"}, [c]),
        ({"state": "waiting"}, [a, b]), ({"state": "todo"}, [a, b, c]), ({"created_before": Y21}, [b]),
        ({"created_after": Y21}, [a, c]), ({"ids": [a, c, 999]}, [a, c]),
        ({"queue": "mail", "task": "send"}, [a]), ({"queue": "none"}, []), ({"state": "running"}, []),
    ):  # fmt: skip
        assert act(sql, "cancel_jobs", chosen)[2] == expected, chosen


def test_values_are_never_sql(sql: Sql) -> None:
    defer(sql)
    assert count(sql, "cancel_jobs", queue="' or true --", error="'; drop table x") == 0


@pytest.mark.parametrize(
    "chosen", ["{}", "null", "[]", '{"qeue": "mail"}', '{"state": "odd"}', '{"ids": "1"}', '{"created_before": "soon"}']
)
def test_a_filter_that_is_none_is_refused(sql: Sql, refused: Refused, chosen: str) -> None:
    refused("PJ009", "select * from procjobs.cancel_jobs(%s::jsonb, dry_run => false)", chosen)


def test_batches_go_on_where_the_last_one_ended(sql: Sql) -> None:
    jobs = [defer(sql) for _ in range(5)]
    chosen = {"task": "send"}
    done, after = [], 0
    while after is not None:
        n, after, _ = act(sql, "cancel_jobs", chosen, f", 'obsolete', false, 2, {after}")
        done.append(n)
    assert done == [2, 2, 1, 0]
    assert sql("select status::text, note from procjobs.jobs group by 1, 2") == [("cancelled", "obsolete")]
    assert sql("select job_id, action, detail from procjobs.actions order by 1") == [
        (job, "cancelled", {"reason": "obsolete"}) for job in jobs
    ]
    assert sql("select action, filter, reason, jobs, actor = session_user from procjobs.bulk_log order by id") == [
        ("cancel", chosen, "obsolete", n, True) for n in (2, 2, 1)
    ]


def test_running_jobs_are_asked_to_stop_once(sql: Sql, worker: MakeWorker) -> None:
    running = defer(sql)
    ann = worker("send")
    ann.claim()
    waiting = defer(sql)
    assert act(sql, "cancel_jobs", {"task": "send"}, ", dry_run => false")[0] == 2
    assert sql.one("select procjobs.abort_requests(%s)", ann.id) == [running]
    assert sql.one("select state from procjobs.jobs where id = %s", waiting) == "cancelled"
    assert count(sql, "cancel_jobs", task="send") == 0
    assert ann.fail(running) == "failed"  # no retry after a request


def test_a_run_that_is_only_over_its_time_is_cancelled_too(sql: Sql, worker: MakeWorker) -> None:
    job = defer(sql)
    running = worker("send")
    running.claim()
    sql(
        "update procrastinate_jobs set abort_requested = true, "
        """pj_cancel = '{"by": "procjobs", "reason": "it runs longer than its timeout", "timeout": true}'"""
    )
    assert count(sql, "cancel_jobs", state="running") == 1
    assert act(sql, "cancel_jobs", {"task": "send"}, ", dry_run => false")[0] == 1
    assert running.fail(job, outcome="cancelled") == "cancelled"
    assert sql("select state from procjobs.jobs") == [("aborted",)]


def test_cancelling_the_holder_of_a_lock_lets_the_next_go(sql: Sql, worker: MakeWorker) -> None:
    defer(sql, options=", lock => 'l', tags => array['old']")
    after = defer(sql, options=", lock => 'l'")
    act(sql, "cancel_jobs", {"tag": "old"}, ", dry_run => false")
    assert worker("send").claim() == [after]


def test_what_somebody_holds_is_passed_over(sql: Sql, another: Callable[[], psycopg.Connection[Any]]) -> None:
    held, free = defer(sql), defer(sql)
    holder = another()
    holder.execute("select from procrastinate_jobs where id = %s for update", (held,))
    assert act(sql, "cancel_jobs", {"task": "send"}, ", dry_run => false") == (1, free, [free])


def dead(sql: Sql, ann: Worker, error: str = "ValueError", options: str = "") -> int:
    job = defer(sql, options=options)
    assert ann.claim() == [job]
    assert ann.fail(job, error_class=error) == "failed"
    return job


def test_dead_letters_of_one_error_are_retried(sql: Sql, worker: MakeWorker) -> None:
    ann = worker("send")
    one, _ = dead(sql, ann, "TimeoutError"), dead(sql, ann)
    defer(sql, options=", scheduled_at => now() + interval '1 day'")
    assert act(sql, "retry_jobs", {"task": "send"})[0] == 2  # dead letters, not what waits
    assert act(sql, "retry_jobs", {"error": "TimeoutError"}, ", dry_run => false") == (1, one, [one])
    assert ann.claim() == [one]


def test_a_state_says_what_else_is_retried(sql: Sql, worker: MakeWorker) -> None:
    ann = worker("send")
    job = defer(sql)
    sql("select procjobs.cancel(%s)", job)
    assert act(sql, "retry_jobs", {"task": "send"}, ", dry_run => false")[0] == 0
    assert act(sql, "retry_jobs", {"state": "cancelled"}, ", dry_run => false") == (1, job, [job])
    assert ann.claim() == [job]


def test_one_that_another_stands_in_for_does_not_keep_the_others(sql: Sql, worker: MakeWorker) -> None:
    ann = worker("send")
    blocked = dead(sql, ann, options=", queueing_lock => 'q'")
    other = dead(sql, ann)
    defer(sql, "noop", ", queueing_lock => 'q'")
    assert act(sql, "retry_jobs", {"state": "failed"}, ", dry_run => false")[:2] == (1, other)
    assert sql.one("select status::text from procjobs.jobs where id = %s", blocked) == "failed"


def test_discarding_moves_dead_letters_and_waiting_jobs_to_the_history(sql: Sql, worker: MakeWorker) -> None:
    ann = worker("send")
    letter = dead(sql, ann)
    waiting = defer(sql)
    assert act(sql, "discard_jobs", {"task": "send"}, ", 'looked at', false")[0] == 2
    assert sql("select count(*) from procrastinate_jobs") == [(0,)]
    assert sql("select id, status::text, note from procjobs.jobs order by id") == [
        (letter, "failed", "discarded: looked at"), (waiting, "cancelled", "discarded: looked at"),
    ]  # fmt: skip
    assert {row[0] for row in sql("select action from procjobs.actions")} == {"discarded"}


@pytest.mark.parametrize("size", ["0", "10001", "null"])
def test_a_batch_has_bounds_and_a_filter_ids_that_fit(refused: Refused, size: str) -> None:
    refused("PJ009", f"""select * from procjobs.cancel_jobs('{{"state": "todo"}}', max_jobs => {size})""")
    refused("PJ009", """select * from procjobs.cancel_jobs('{"ids": [9223372036854775808]}')""")


def test_a_batch_has_bounds(refused: Refused) -> None:
    refused("PJ009", """select * from procjobs.cancel_jobs('{"state": "todo"}', dry_run => false, max_jobs => 0)""")


def test_batches_end_although_some_jobs_are_left_as_they_are(sql: Sql, worker: MakeWorker) -> None:
    ann = worker("send")
    letters = [dead(sql, ann, options=f", queueing_lock => 'q{n}'") for n in range(3)]
    for n in range(3):
        defer(sql, "noop", f", queueing_lock => 'q{n}'")
    found: list[tuple[int, int | None]] = []
    after: int | None = 0
    while after is not None and len(found) < 10:
        n, after, _ = act(sql, "retry_jobs", {"state": "failed"}, f", false, 2, {after}")
        found.append((n, after))
    assert found == [(0, letters[1]), (0, letters[2]), (0, None)]
