"""Locks and queueing locks under a fleet that is killed: scenarios 30 to 32."""

from __future__ import annotations

import random

from tests.chaos.harness.site import Site, until


def test_30_jobs_of_one_lock_run_one_at_a_time_and_by_priority(site: Site, dice: random.Random) -> None:
    """Four workers fight for three locks; the order holds for what waited before anybody looked."""
    priorities = [dice.randrange(5) for _ in range(60)]
    site.client.enqueue_all([{"task": "work", "lock": f"lock {n % 3}", "priority": p}
                             for n, p in enumerate(priorities)])  # fmt: skip
    site.fleet.start_many(4)
    site.check_all_succeeded()
    order = """
        select lock, array_agg((-h.priority, e.job) order by lower(e.span)) = array_agg((-h.priority, e.job)
          order by -h.priority, e.job)
        from chaos.executions e join procjobs.job_history h on h.id = e.job group by lock order by lock
    """.replace("select lock", "select e.lock").replace("group by lock order by lock", "group by e.lock order by 1")
    assert site.sql(order) == [(f"lock {n}", True) for n in range(3)]


def test_30_locks_while_workers_are_killed(site: Site, dice: random.Random) -> None:
    site.client.enqueue_all([{"task": "work", "lock": f"lock {n % 6}", "priority": dice.randrange(3),
                              "args": {"seconds": 0.02}} for n in range(240)])  # fmt: skip
    site.fleet.start_many(3, concurrency=5)
    for done in (30, 80, 130):
        site.ended(count=done)
        dice.choice(site.fleet.alive).kill()
        site.fleet.start(concurrency=5)
    site.check_all_succeeded()


def test_31_a_future_job_does_not_hold_its_lock(site: Site) -> None:
    """Neither one that is scheduled nor one that waits for its retry; when due it takes its turn."""
    later = site.sql.one("select clock_timestamp() + interval '1 hour'")
    future = site.client.enqueue("work", 3, lock="one", at=later, priority=9)
    now = site.client.enqueue("work", 20, lock="one")
    site.fleet.start_many(2)
    site.ended(now)
    assert [site.status(job) for job in future] == ["todo"] * 3
    site.sql("update procrastinate_jobs set scheduled_at = clock_timestamp()")
    site.check_all_succeeded()


def test_32_a_retry_and_a_rescue_whose_sibling_waits_end_as_superseded(site: Site) -> None:
    """The one that died and the one that failed give way to the waiting job with their queueing lock."""
    (died,) = site.client.enqueue("hang_once", queueing_lock="a")
    (failed,) = site.client.enqueue("flaky", queueing_lock="b")
    first = site.fleet.start(PROCJOBS_FAILPOINT="before_settle:kill").may_end(-9)
    assert first.exit_code() == -9
    later = site.sql.one("select clock_timestamp() + interval '1 hour'")
    siblings = [*site.client.enqueue("work", queueing_lock="a", at=later),
                *site.client.enqueue("work", queueing_lock="b", at=later)]  # fmt: skip
    site.fleet.start()
    until(lambda: [site.status(job) for job in (died, failed)] == ["cancelled"] * 2, what=site.left)
    assert [site.status(job) for job in siblings] == ["todo"] * 2
    site.sql("update procrastinate_jobs set scheduled_at = clock_timestamp()")
    site.drained()
    site.check()
    assert [site.status(job) for job in siblings] == ["succeeded"] * 2
