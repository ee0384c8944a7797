"""Forgetting old jobs under load, and cancels that race with claims: scenarios 39 and 40."""

from __future__ import annotations

import random
import threading

import psycopg

from tests.chaos.harness.client import Load
from tests.chaos.harness.site import Site, until
from tests.engine.fleet import Fleet as ByHand
from tests.engine.fleet import Thread, opened


def test_39_purge_during_load_takes_what_is_old_and_nothing_else(site: Site, dsn: str) -> None:
    old = 20_000
    site.sql("select procjobs.ensure_history_partitions()")
    site.sql(
        "insert into procjobs.job_history (id, queue_name, task_name, priority, args, status, attempts, crashes, "
        "lease, finished_at) select -n, 'default', 'work', 0, '{}', 'succeeded', 1, 0, 1, now() - interval '3 days' "
        "from generate_series(1, %s) n", old,
    )  # fmt: skip
    purged = 0
    site.fleet.start_many(2, concurrency=10)
    with Load(site.client, lambda n: [{"task": "work", "lock": f"lock {n % 4}" if n % 2 else None}]) as load:
        until(lambda: load.acknowledged > 50)
        with psycopg.connect(dsn, autocommit=True) as janitor:
            query = b"select procjobs.delete_old_jobs(48, null, array['succeeded', 'failed', 'cancelled'], 1000)"
            while (gone := janitor.execute(query).fetchall()[0][0]) or load.acknowledged < 300:
                assert gone <= 2000, "bounded"
                purged += gone
    assert purged == old
    site.check_all_succeeded()
    assert site.sql.one("select count(*) from procjobs.job_history") == len(site.ledger.read().acknowledged)


def test_40_cancels_against_claims_end_every_job_once(site: Site, dsn: str, dice: random.Random) -> None:
    jobs = site.client.enqueue("work", 300, args={"seconds": 0.01})
    answers: dict[int, str] = {}
    stop = threading.Event()

    def cancel(chosen: list[int]) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for job in chosen:
                if stop.is_set():
                    return
                answers[job] = connection.execute("select procjobs.cancel(%s, 'changed our mind')", (job,)).fetchall()[
                    0
                ][0]

    chosen = dice.sample(jobs, 200)
    workers = site.fleet.start_many(2, concurrency=5)
    until(lambda: site.sql.one("select count(*) from chaos.executions") > 5, what=site.left)
    threads = [Thread(lambda part=chosen[n::3]: cancel(part)) for n in range(3)]  # type: ignore[misc]
    for thread in threads:
        thread.result(60)
    stop.set()
    site.drained()
    site.check()
    ends = dict(site.sql("select id, status::text from procjobs.jobs where id = any(%s)", jobs))
    for job in jobs:
        allowed = {"cancelled": {"cancelled"}, "requested": {"aborted", "succeeded"}, "finished": {"succeeded"}}
        assert ends[job] in allowed.get(answers.get(job, ""), {"succeeded"}), (job, answers.get(job), ends[job])
    query = (
        "select count(*) from chaos.executions join procjobs.job_history h on h.id = job where h.status = 'cancelled'"
    )
    assert site.sql.one(query) == 0, "what was cancelled while it waited never ran"
    assert {"cancelled", "finished"} & set(answers.values()) and all(worker.alive for worker in workers)


def test_40_call_by_call_many_claimers_and_cancellers(site: Site, dsn: str) -> None:
    """The same between the SQL functions alone, where every interleaving is short."""
    jobs = site.client.enqueue("work", 400)
    claimed: list[int] = []
    answers: dict[int, str] = {}

    def claim() -> None:
        with opened(dsn) as fleet:
            worker = fleet.worker("work")
            while found := fleet.claim(worker, 3):
                claimed.extend(claim.id for claim in found)
                finish(fleet, found)

    def finish(fleet: ByHand, found: list) -> None:  # type: ignore[type-arg]
        fleet.finish(*found)

    def cancel(part: list[int]) -> None:
        with opened(dsn) as fleet:
            for job in part:
                answers[job] = fleet.sql.one("select procjobs.cancel(%s)", job)

    threads = [Thread(claim) for _ in range(3)]
    threads += [Thread(lambda part=jobs[::-1][n::3]: cancel(part)) for n in range(3)]  # type: ignore[misc]
    for thread in threads:
        thread.result(60)
    cancelled = {job for job, answer in answers.items() if answer == "cancelled"}
    assert cancelled.isdisjoint(claimed)
    assert sorted([*cancelled, *claimed]) == sorted(jobs)
    found = [v for v in site.violations() if v.invariant not in ("I3", "I6")]
    assert not found, found
