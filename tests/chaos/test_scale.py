"""A hundred thousand jobs that wait and as many that are not due, and a reader who never ends: scenarios 33 and 34.

What each statement of the claim reads is tested in tests/engine/test_plans.py; here it is the whole worker.
"""

from __future__ import annotations

import psycopg

from tests.chaos.harness.reads import entries_read
from tests.chaos.harness.site import Site, until
from tests.conftest import Sql

MANY = 100_000


def reads(sql: Sql, count: int) -> float:
    """Entries of the job table's indexes and rows that each of `count` claims of ten jobs reads."""
    worker = sql.one(
        "select procjobs.register_worker('probe', 'host', 1, '0', array['probe'], array['effect'], 10, '10 s', '30 s')"
    )

    def claim() -> None:
        for _ in range(count):
            assert len(sql("select * from procjobs.claim_jobs(%s, null, 10)", worker)) == 10

    return sum(entries_read(sql, claim).values()) / count


def fill(site: Site) -> None:
    """Waiting, not due, and behind one lock."""
    columns = "task_name, queue_name, lock, scheduled_at, pj_waits_for, args"
    with site.sql.connection.transaction():
        site.sql("set local procjobs.args_checked = 'on'")
        for lock, at, waits in (
            ("null", "null", "null"),
            ("null", "clock_timestamp() + interval '1 day'", "'time'"),
            ("case when n % 10 = 0 then 'crowd' end", "clock_timestamp() + interval '1 day'", "'time'"),
        ):
            count = MANY if lock == "null" else MANY // 10
            site.sql(
                f"insert into procrastinate_jobs ({columns}) select 'effect', 'default', {lock}, {at}, {waits}, "
                f"jsonb_build_object('key', 'crowd-' || n) from generate_series(1, {count}) n"
            )


def test_33_a_hundred_thousand_waiting_and_as_many_scheduled(site: Site) -> None:
    site.sql("alter table procrastinate_jobs disable trigger chaos_note_transition")
    few = [*site.client.enqueue("effect", 30)]
    small = reads(site.sql, 3)
    fill(site)
    large = reads(site.sql, 3)
    assert large < 4 * small + 200, f"a claim reads {large:g} entries, {small:g} of few"
    workers = site.fleet.start_many(2, concurrency=200)
    urgent = site.client.enqueue("work", 5, priority=100)
    site.ended(urgent)
    assert site.sql.one("select exists (select from procrastinate_jobs where pj_waits_for is null)"), "long before"
    until(
        lambda: site.sql.one("select count(*) from procjobs.job_history") >= len(few) + len(urgent) + MANY,
        timeout=180, what=site.left,
    )  # fmt: skip
    assert all(worker.alive and worker.memory() < 300_000_000 for worker in workers)
    left = "select pj_waits_for, count(*) from procrastinate_jobs where status = 'todo' group by 1"
    assert site.sql(left) == [("time", MANY + MANY // 10)]


def test_34_a_reader_who_never_ends(site: Site, dsn: str) -> None:
    """A REPEATABLE READ transaction keeps every dead row: claims go on, though each passes what ended since, until the
    reader is gone."""
    site.client.enqueue("effect", 30)
    small = reads(site.sql, 3)
    with psycopg.connect(dsn) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("select count(*) from procrastinate_jobs")
        site.fleet.start_many(2, concurrency=50)
        for _ in range(5):
            site.client.enqueue_all([{"task": "effect", "lock": f"lock {n % 9}" if n % 2 else None}
                                     for n in range(1000)])  # fmt: skip
        site.drained()
        site.sql("vacuum procrastinate_jobs")
        for worker in site.fleet.alive:
            worker.terminate(0)
            assert worker.exit_code() == 0
        site.client.enqueue("effect", 30)
        site.sql("select count(*) from procrastinate_jobs")
        large = reads(site.sql, 3)
        ended = site.sql.one("select count(*) from procjobs.job_history")
        assert large < 2 * ended + 4 * small + 200, f"a claim reads {large:g} entries, {small:g} without a reader"
        reader.rollback()
    reads(site.sql, 1)  # who comes first marks what is dead for everybody
    again = reads(site.sql, 3)
    assert again < 4 * small + 200, f"a claim reads {again:g} entries, {small:g} before there was a reader"
    site.fleet.start()
    site.check_all_succeeded()
