"""Arguments that nobody can read: scenario 35. What SQL and client refuse is tested in tests/sql/test_arguments.py,
tests/engine/test_arguments.py and, row by row, tests/engine/test_upstream_faults.py (06); here they are all in one
table before real workers, mixed with honest jobs."""

from __future__ import annotations

import json
import random

import psycopg
import pytest

from tests.chaos.harness.site import Site, until

#: What a row may hold if somebody writes past every check.
ABSURD = [
    '{"n": ' + "7" * 5000 + "}",
    '{"n": ' + "[" * 3000 + "]" * 3000 + "}",
    '{"n": 1e400}',
    "[1, 2]",
    '"text"',
    "null",
    "17",
    "true",
    '{"key": {"a": 1}}',
    '{"key": "x", "unknown": 1}',
    "{}",
    '{"key": "\\ud83d\\ude00"}',
    '{"": ""}',
    '{"key": null}',
    '{"self": 1, "context": 2, "key": "y"}',
    json.dumps({"key": "z" * 1_000_000}),
    json.dumps({"key": "big", "more": "q" * 10_000_000}),
    json.dumps({"k" * 100_000: 1}),
]
REFUSED = [
    ('{"key": "a\\u0000b"}', "22P05"),
    ('{"key": "\\ud800"}', "22P02"),
    ('{"key": ' + "[" * 100 + "]" * 100 + "}", "PJ004"),
    (json.dumps({"key": "q" * 10_000_000}), "PJ003"),
    ("[]", "PJ005"),
    ("{", "22P02"),
]


def test_35_rows_that_nobody_can_read_fail_alone(site: Site, dice: random.Random) -> None:
    honest = []
    with site.sql.connection.transaction():
        site.sql("set local procjobs.args_checked = 'on'")
        for number, absurd in enumerate(ABSURD):
            for task in ("work", "work_thread", "work_process"):
                site.sql(
                    "insert into procrastinate_jobs (queue_name, task_name, args, lock) values ('default', %s, %s, %s)",
                    task, absurd, f"lock {number % 3}" if dice.random() < 0.5 else None,
                )  # fmt: skip
    absurd_ids = {row[0] for row in site.sql("select id from procrastinate_jobs")}
    honest += site.client.enqueue("work", 40, lock="lock {n}")
    workers = site.fleet.start_many(2, heartbeat=1.0)
    site.drained()
    assert all(worker.alive for worker in workers)
    query = "select count(*) from procjobs.job_history where status = 'succeeded' and id = any(%s)"
    assert site.sql.one(query, honest) == len(honest)
    left = site.sql("select distinct id, status::text from procjobs.jobs where id = any(%s)", list(absurd_ids))
    assert len(left) == len(absurd_ids) and {status for _, status in left} <= {"failed", "succeeded"}
    assert site.sql.one("select max(pj_crashes) from procrastinate_jobs") == 0
    failed = [row[0] for row in site.sql("select id from procrastinate_jobs where status = 'failed'")]
    assert len(failed) >= 3 * 10
    query = "select count(distinct job_id) from procjobs.job_attempts where outcome in ('unreadable', 'failed')"
    assert site.sql.one(query) == len(failed)


@pytest.mark.parametrize(("args", "sqlstate"), REFUSED, ids=["NUL", "surrogate", "depth", "size", "array", "broken"])
def test_35_what_is_refused_leaves_nothing(site: Site, args: str, sqlstate: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        site.sql("insert into procrastinate_jobs (queue_name, task_name, args) values ('default', 'work', %s)", args)
    assert refused.value.sqlstate == sqlstate
    assert site.sql.one("select count(*) from procrastinate_jobs") == 0


def test_35_random_json_in_three_thousand_rows_stops_no_worker(site: Site, dice: random.Random) -> None:
    def any_value(depth: int) -> object:
        kind = dice.randrange(7 if depth else 5)
        if kind == 0:
            return dice.choice([None, True, False, 0, -1, 2**63, -(2**70), 1e308, 5e-324])
        if kind == 1:
            return "".join(
                chr(dice.choice([9, 10, 13, 34, 39, 92, 0x7F, 0xE9, 0x2028, 0xFFFD, 0x1F600])) for _ in range(9)
            )
        if kind in (2, 3, 4):
            return dice.random() if kind == 2 else dice.choice(["key", "secret", "seconds", ""])
        if kind == 5:
            return [any_value(depth - 1) for _ in range(dice.randrange(4))]
        return {dice.choice(["key", "secret", "x", ""]): any_value(depth - 1) for _ in range(dice.randrange(4))}

    rows = [json.dumps(any_value(4)) for _ in range(3000)]
    with site.sql.connection.transaction():
        site.sql("set local procjobs.args_checked = 'on'")
        site.sql("alter table procrastinate_jobs disable trigger chaos_note_transition")
        site.sql("insert into procrastinate_jobs (queue_name, task_name, args) "
                 "select 'default', 'effect', a::jsonb from unnest(%s::text[]) a", rows)  # fmt: skip
    worker = site.fleet.start(concurrency=50)
    until(lambda: not site.sql("select from procrastinate_jobs where status in ('todo', 'doing') limit 1"),
          what=site.left)  # fmt: skip
    assert worker.alive
    assert site.sql.one("select count(*) from procjobs.jobs") == len(rows)
    assert site.sql.one("select coalesce(max(pj_crashes), 0) from procrastinate_jobs") == 0
