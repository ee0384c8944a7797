"""The claim: the right jobs, in the right order, to one worker each, whoever else is at it."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import procjobs
from tests.conftest import Sql, with_user
from tests.engine.conftest import FAST
from tests.engine.fleet import Claim, Fleet, Thread, opened, waits_for_a_row, without_judging

LONG_QUEUE = "q" * 128


# -- order ---------------------------------------------------------------------------------------------------------


def test_higher_priority_first_and_then_the_older_job(fleet: Fleet) -> None:
    low, high, low2, high2 = (fleet.defer(priority=priority) for priority in (0, 7, 0, 7))
    worker = fleet.worker()
    assert fleet.claim_ids(worker, 3) == [high, high2, low]
    assert fleet.claim_ids(worker, 3) == [low2]


def test_the_order_is_one_line_over_all_queues(fleet: Fleet) -> None:
    jobs = {(queue, priority): fleet.defer(queue=queue, priority=priority) for queue in "cab" for priority in (1, 9, 5)}
    in_line = [jobs[queue, priority] for priority in (9, 5, 1) for queue in "cab"]
    worker = fleet.worker()
    assert fleet.claim_ids(worker, 4) == in_line[:4]
    assert fleet.claim_ids(worker, 4, queues=["c", "a", "b"]) == in_line[4:8]
    assert fleet.claim_ids(worker, 4) == in_line[8:]


@pytest.mark.parametrize("queues", [None, ["mail", "other", "paused"]])
def test_next_jobs_of_one_queue_need_no_judging_whatever_other_queues_hold(
    fleet: Fleet, queues: list[str] | None
) -> None:
    fleet.sql("select procjobs.pause_queue('paused')")
    fleet.defer(queue="paused", priority=9)
    first = [fleet.defer(queue="mail") for _ in range(4)]
    other = fleet.defer(queue="other")
    second = [fleet.defer(queue="mail") for _ in range(2)]
    urgent = fleet.defer(queue="other", priority=1)
    worker = fleet.worker()
    with without_judging(fleet.sql):
        assert fleet.claim_ids(worker, 1, queues=queues) == [urgent]
        assert fleet.claim_ids(worker, 3, queues=queues) == first[:3]
        with pytest.raises(psycopg.errors.UndefinedFunction):
            fleet.claim(worker, 3, queues=queues)
    assert fleet.claim_ids(worker, 4, queues=queues) == [first[3], other, *second]
    assert fleet.claim_ids(worker, 3, queues=queues) == []


@pytest.mark.parametrize("front", [None, ["a", "b", "c"]])
def test_random_backlogs_of_several_queues_are_worked_in_one_line(fleet: Fleet, front: list[str] | None) -> None:
    draw = random.Random(7)
    jobs = [
        (-priority, fleet.defer(queue=draw.choice("abc"), priority=priority))
        for priority in draw.choices([0, 0, 0, 1], k=120)
    ]
    worker = fleet.worker()
    got: list[int] = []
    while claimed := fleet.claim_ids(worker, draw.randint(1, 9), queues=front):
        got += claimed
        if len(got) % 2:
            fleet.sql("select set_config('procjobs.judging', '', false)")
    assert got == [job for _, job in sorted(jobs)]


def test_only_from_the_queues_asked_for(fleet: Fleet) -> None:
    fleet.defer(queue="mail", priority=99)
    wanted = fleet.defer(queue="reports")
    worker = fleet.worker()
    assert fleet.claim_ids(worker, 10, queues=["reports", "nothing here"]) == [wanted]
    assert fleet.claim_ids(worker, 10, queues=[]) == []


def test_a_queue_named_twice_gives_each_job_once(fleet: Fleet) -> None:
    jobs = [fleet.defer(queue="mail") for _ in range(4)]
    assert fleet.claim_ids(fleet.worker(), 10, queues=["mail", "mail"]) == jobs


@pytest.mark.parametrize("queue", ["a", "ünï" * 20, "q" * 41, LONG_QUEUE, "with ' and % and {0}", "procrastinate#"])
def test_any_queue_name_that_can_be_stored_can_be_worked(fleet: Fleet, queue: str) -> None:
    job = fleet.defer(queue=queue)
    assert fleet.claim_ids(fleet.worker(), queues=[queue]) == [job]


def test_never_more_than_asked_for(fleet: Fleet) -> None:
    for queue in "abc":
        fleet.defer_many(10, queue=queue)
    worker = fleet.worker()
    assert len(fleet.claim(worker, 7)) == 7
    assert fleet.claim(worker, 0) == []
    assert len(fleet.claim(worker, 100)) == 23


def test_a_claimed_job_says_what_the_worker_needs(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(args_schema=None)
    job = sql.one(
        "select procjobs.defer('work', '{\"a\": [1, null]}', queue => 'mail', priority => 3, lock => 'l', "
        "queueing_lock => 'ql', scheduled_at => now() - interval '1 hour', max_attempts => 4)"
    )
    ((row),) = sql(
        "select id, lease, task_name, args::jsonb, lock, attempts, queue_name, priority, queueing_lock, max_attempts, "
        "scheduled_at < now() from procjobs.claim_jobs(%s, null, 1)",
        fleet.worker(),
    )
    assert row == (job, 1, "work", {"a": [1, None]}, "l", 0, "mail", 3, "ql", 4, True)
    assert sql("select status::text, pj_started_at is not null from procrastinate_jobs") == [("doing", True)]


# -- several claimers ----------------------------------------------------------------------------------------------


def test_claimers_in_parallel_take_every_job_once(dsn: str, fleet: Fleet) -> None:
    for queue in ("a", "b", "c"):
        fleet.defer_many(120, queue=queue)
    start = threading.Barrier(4)

    def work() -> list[int]:
        with opened(dsn) as mine:
            worker = mine.worker()
            taken: list[int] = []
            start.wait(10)
            while claimed := mine.claim_ids(worker, 7):
                taken += claimed
            return taken

    taken = [job for thread in [Thread(work) for _ in range(4)] for job in thread.result()]
    assert len(taken) == len(set(taken)) == 360


def test_what_another_claim_holds_is_passed_over_without_waiting(fleet: Fleet, rival: Fleet) -> None:
    first, second, third = fleet.defer(), fleet.defer(), fleet.defer()
    ann, bob = fleet.worker(), fleet.worker()
    rival.sql("set lock_timeout = 1")
    with fleet.sql.connection.transaction():
        assert fleet.claim_ids(ann, 2) == [first, second]
        assert rival.claim_ids(bob, 2) == [third]


def test_a_claim_in_one_queue_leaves_the_other_queues_to_others(fleet: Fleet, rival: Fleet) -> None:
    """A worker that got nothing would sleep, or with wait=False leave, while there is work."""
    urgent = [fleet.defer(queue="urgent", priority=9) for _ in range(5)]
    slow = [fleet.defer(queue="slow") for _ in range(5)]
    ann, bob = fleet.worker(), fleet.worker()
    with fleet.sql.connection.transaction():
        assert fleet.claim_ids(ann, 5) == urgent
        assert rival.claim_ids(bob, 5) == slow


def test_many_rows_held_in_front_do_not_hide_those_behind(fleet: Fleet, rival: Fleet) -> None:
    fleet.defer_many(3000, queue="front")
    behind = fleet.defer(queue="back", priority=-1)
    ann, bob = fleet.worker(), fleet.worker()
    with fleet.sql.connection.transaction():
        assert len(fleet.claim(ann, 3000)) == 3000
        assert rival.claim_ids(bob, 1) == [behind]


def test_a_claim_that_is_rolled_back_leaves_nothing(fleet: Fleet) -> None:
    job = fleet.defer(lock="l")
    worker = fleet.worker()
    with fleet.sql.connection.transaction(force_rollback=True):
        fleet.claim(worker)
    assert [(claim.id, claim.lease) for claim in fleet.claim(worker)] == [(job, 1)]


# -- leases --------------------------------------------------------------------------------------------------------


def test_each_claim_of_a_job_has_a_new_lease(fleet: Fleet) -> None:
    job = fleet.defer()
    worker = fleet.worker()
    leases = []
    for _ in range(3):
        (claim,) = fleet.claim(worker)
        assert fleet.settle(claim, "released") == "released"
        leases.append((claim.id, claim.lease))
    assert leases == [(job, 1), (job, 2), (job, 3)]


def test_a_claim_by_upstreams_own_function_has_a_new_lease_too(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    (ours,) = fleet.claim(fleet.worker())
    fleet.settle(ours, "released")
    stock = sql.one("select worker_id from procrastinate_register_worker_v1()")
    assert sql.one("select id from procrastinate_fetch_job_v2(null, %s)", stock) == job
    assert sql("select pj_lease, pj_started_at is not null, pj_waits_for from procrastinate_jobs") == [(2, True, None)]
    assert fleet.finish(ours) == []


@pytest.mark.parametrize("fate", ["never registered", "stopped", "dead"])
def test_a_worker_that_is_not_there_any_more_claims_nothing(fleet: Fleet, fate: str) -> None:
    fleet.defer()
    worker = fleet.worker()
    match fate:
        case "never registered":
            worker += 1000
        case "stopped":
            fleet.sql("select procjobs.stop_worker(%s)", worker)
        case "dead":
            fleet.die(worker)
            fleet.sql("select procjobs.rescue_jobs()")
    with pytest.raises(psycopg.Error) as refused:
        fleet.claim(worker)
    assert refused.value.sqlstate == "PJ011" and "register" in (refused.value.diag.message_hint or "")
    assert fleet.sql.one("select status::text from procrastinate_jobs") == "todo"


# -- unknown tasks -------------------------------------------------------------------------------------------------


def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it(fleet: Fleet) -> None:
    unknown, known = fleet.defer("tomorrow", priority=5), fleet.defer()
    old = fleet.worker()
    assert fleet.claim_ids(old, 10) == [known]
    assert fleet.waits_for(unknown) == "task"
    assert fleet.claim_ids(old, 10) == []

    new = fleet.worker("tomorrow")
    (claim,) = fleet.claim(new, 10)
    assert (claim.id, claim.attempts) == (unknown, 0)
    assert fleet.runs(unknown) == []


def test_whoever_sets_an_unknown_task_aside_wakes_those_who_may_know_it(fleet: Fleet, rival: Fleet) -> None:
    """A worker that knows it may have looked just when the job was locked, and found nothing."""
    fleet.defer("tomorrow", queue="mail")
    rival.sql('listen "procrastinate_queue_v1#mail"')
    assert fleet.claim_ids(fleet.worker(), 10) == []
    (told,) = rival.sql.connection.notifies(timeout=5, stop_after=1)
    assert told.channel == "procrastinate_queue_v1#mail"


def test_a_parked_job_is_found_only_on_a_queue_that_its_worker_works(fleet: Fleet) -> None:
    parked = fleet.defer("tomorrow", queue="mail")
    fleet.claim(fleet.worker())
    new = fleet.worker("tomorrow")
    assert fleet.claim_ids(new, 10, queues=["reports"]) == []
    assert fleet.waits_for(parked) == "task"
    assert fleet.claim_ids(new, 10, queues=["mail"]) == [parked]


def test_thousands_of_unknown_jobs_hide_no_known_one(fleet: Fleet) -> None:
    """A rolling deploy: the new release enqueued its backlog before the old workers are gone."""
    fleet.defer_many(10_000, "tomorrow")
    known = fleet.defer()
    assert fleet.claim_ids(fleet.worker(), 1) == [known]


def test_a_parked_job_does_not_hold_its_lock(fleet: Fleet) -> None:
    parked = fleet.defer("tomorrow", lock="account")
    behind = fleet.defer(lock="account")
    old = fleet.worker()
    claims = fleet.claim(old, 10)
    fleet.sql("select procjobs.sweep_locks()")
    claims = claims or fleet.claim(old, 10)
    assert [claim.id for claim in claims] == [behind]

    new = fleet.worker("tomorrow")
    assert fleet.claim_ids(new, 10) == []  # the lock is held, and it stays behind it
    fleet.finish(*claims)
    fleet.sql("select procjobs.sweep_locks()")
    assert fleet.claim_ids(new, 10) == [parked]


def test_two_workers_that_know_a_task_share_what_was_parked(dsn: str, fleet: Fleet) -> None:
    fleet.defer_many(200, "tomorrow", lock="lock{n}")
    old = fleet.worker()
    while fleet.sql.one("select count(*) from procrastinate_jobs where pj_waits_for is null"):
        assert fleet.claim(old, 50) == []
    start = threading.Barrier(2)

    def work() -> list[int]:
        with opened(dsn) as mine:
            worker = mine.worker("tomorrow")
            taken: list[int] = []
            start.wait(10)
            for _ in range(400):
                taken += mine.claim_ids(worker, 5)
            return taken

    taken = [job for thread in [Thread(work), Thread(work)] for job in thread.result()]
    assert len(taken) == len(set(taken)) == 200


# -- pauses --------------------------------------------------------------------------------------------------------


def test_a_paused_queue_is_passed_over_until_it_is_resumed(fleet: Fleet) -> None:
    held, free = fleet.defer(queue="mail", priority=9), fleet.defer(queue="reports")
    fleet.sql("select procjobs.pause_queue('mail')")
    worker = fleet.worker()
    assert fleet.claim_ids(worker, 10) == [free]
    assert fleet.claim_ids(worker, 10, queues=["mail"]) == []
    fleet.sql("select procjobs.resume_queue('mail')")
    assert fleet.claim_ids(worker, 10) == [held]


# -- locks: who may run --------------------------------------------------------------------------------------------


def test_a_held_lock_is_a_skipped_candidate(fleet: Fleet) -> None:
    running, waiting, free = fleet.defer(lock="l", priority=9), fleet.defer(lock="l", priority=5), fleet.defer()
    ann, bob = fleet.worker(), fleet.worker()
    assert fleet.claim_ids(ann) == [running]
    assert fleet.claim_ids(bob, 10) == [free]
    assert fleet.waits_for(waiting) == "lock"


def test_a_lost_race_for_a_lock_is_a_skipped_candidate_and_never_an_error(
    fleet: Fleet, rival: Fleet, sql: Sql, dsn: str, eventually: Callable[..., Any]
) -> None:
    first = fleet.defer(lock="l")
    ann, bob = fleet.worker(), fleet.worker()
    with opened(dsn) as observer:
        with fleet.sql.connection.transaction():
            assert fleet.claim_ids(ann) == [first]
            # Whoever enqueues now sees the lock free and itself first in line; so does the other claimer.
            second = observer.defer(lock="l", priority=5)
            free = observer.defer(priority=-5)
            assert observer.waits_for(second) is None
            loser = Thread(lambda: rival.claim_ids(bob, 10))
            eventually(lambda: waits_for_a_row(observer.sql, rival.sql.connection))
        assert loser.result() == [free]
    assert fleet.waits_for(second) == "lock"


def test_a_race_for_a_lock_that_the_other_gives_up_is_won(
    fleet: Fleet, rival: Fleet, dsn: str, eventually: Callable[..., Any]
) -> None:
    fleet.defer(lock="l")
    ann, bob = fleet.worker(), fleet.worker()
    with opened(dsn) as observer:
        with fleet.sql.connection.transaction(force_rollback=True):
            fleet.claim(ann)
            second = observer.defer(lock="l", priority=5)
            winner = Thread(lambda: rival.claim_ids(bob, 1))
            eventually(lambda: waits_for_a_row(observer.sql, rival.sql.connection))
        assert winner.result() == [second]


def test_claimers_in_parallel_never_run_two_jobs_of_a_lock(dsn: str, fleet: Fleet) -> None:
    """Priorities rise, so that each new job is claimable beside the older ones of its lock: the claim alone decides."""
    for priority in range(8):
        for lock in range(20):
            fleet.defer(lock=f"lock{lock}", priority=priority)
    start = threading.Barrier(4)

    def work() -> list[Claim]:
        with opened(dsn) as mine:
            worker = mine.worker()
            start.wait(10)
            return [claim for _ in range(10) for claim in mine.claim(worker, 9)]

    claims = [claim for thread in [Thread(work) for _ in range(4)] for claim in thread.result()]
    assert sorted(claim.lock or "" for claim in claims) == sorted(f"lock{lock}" for lock in range(20))
    assert {claim.priority for claim in claims} == {7}


# -- rights --------------------------------------------------------------------------------------------------------


async def test_a_worker_needs_no_more_rights_than_its_role_has(
    dsn: str, fleet: Fleet, sql: Sql, eventually: Callable[..., Any]
) -> None:
    sql("drop role if exists plain_worker")
    sql("create role plain_worker login in role procjobs_worker")
    app = procjobs.App(with_user(dsn, "plain_worker"))
    ran: list[str] = []

    @app.periodic(cron="* * * * * *")
    @app.task(name="tick", queueing_lock="tick")
    async def tick(timestamp: int) -> None:
        ran.append("tick")

    @app.task(name="boom", retry=procjobs.Retry(max_attempts=2, base=0, cap=0))
    async def boom() -> None:
        ran.append("boom")
        raise ValueError

    @app.task(name="parent", lock="l")
    async def parent() -> None:
        await boom.configure(lock="l").defer_async()

    @app.task(name="endless")
    async def endless() -> None:
        await asyncio.Event().wait()

    async with app.open_async():
        await parent.defer_async()
        stopped = await endless.configure(schedule_in={"seconds": 0}).defer_async()
        worker = asyncio.create_task(app.run_worker_async(**FAST))
        await eventually(lambda: ran.count("boom") == 2 and "tick" in ran)
        await eventually(lambda: fleet.status(stopped) == "doing")
        sql("select procjobs.cancel(%s)", stopped)
        await eventually(lambda: fleet.status(stopped) == "aborted")
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    assert sql.one("select stopped_at is not null from procjobs.worker_state")
    sql("drop role plain_worker")


# -- the clock -----------------------------------------------------------------------------------------------------


def test_the_setting_fakes_the_clock(fleet: Fleet) -> None:
    job = fleet.defer(scheduled_at="2031-05-01 12:00+00")
    worker = fleet.worker()
    with fleet.at("2031-05-01 11:59:59+00"):
        assert fleet.sql.one("select procjobs.promote_due()") == 0
        assert fleet.claim(worker) == []
    with fleet.at("2031-05-01 12:00:00+00"):
        assert fleet.sql.one("select procjobs.promote_due()") == 1
        assert fleet.claim_ids(worker) == [job]
    assert fleet.sql.one("select pj_started_at = '2031-05-01 12:00+00' from procrastinate_jobs")


def test_the_setting_is_the_sessions_own(fleet: Fleet, rival: Fleet) -> None:
    with fleet.at("2031-05-01 12:00+00"):
        assert fleet.sql.one("select extract(year from procjobs.clock())") == 2031
        assert rival.sql.one("select procjobs.clock() = statement_timestamp()")
    assert fleet.sql.one("select procjobs.clock() = statement_timestamp()")
