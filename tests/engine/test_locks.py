"""Locks: one running job each, in order; what cannot run holds none up. Hints may go wrong; the sweep mends them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Sql
from tests.engine.fleet import Claim, Fleet, Thread, opened


def drain(fleet: Fleet, worker: int) -> list[int]:
    """Claims and finishes one by one until nothing is claimable; the jobs in the order they ran."""
    order = []
    while claims := fleet.claim(worker):
        order += fleet.finish(*claims)
    return order


# -- order ---------------------------------------------------------------------------------------------------------


def test_jobs_of_a_lock_run_by_priority_and_then_by_id(fleet: Fleet) -> None:
    jobs = [(fleet.defer(lock="l", priority=priority), priority) for priority in (0, 3, -1, 3, 0)]
    assert drain(fleet, fleet.worker()) == [job for job, _ in sorted(jobs, key=lambda job: (-job[1], job[0]))]


def test_one_statement_that_enqueues_many_jobs_of_a_lock_keeps_their_order(fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(50, lock="l")
    assert sql.one("select count(*) from procrastinate_jobs where pj_waits_for is null") == 1
    order = drain(fleet, fleet.worker())
    assert order == sorted(order) and len(order) == 50


def test_the_order_holds_over_queues(fleet: Fleet) -> None:
    jobs = [fleet.defer(lock="l", queue=queue) for queue in "ba"]
    assert drain(fleet, fleet.worker()) == jobs


def test_ten_thousand_jobs_on_one_lock_hold_up_nobody_else(fleet: Fleet) -> None:
    fleet.defer_many(10_000, lock="busy")
    free = [fleet.defer() for _ in range(5)]
    assert fleet.claim_ids(fleet.worker(), 6)[1:] == free


@pytest.mark.parametrize("lock", ["", " ", "ü" * 400, "a'b%s{}", "\t"])
def test_any_lock_that_can_be_stored_works(fleet: Fleet, rival: Fleet, lock: str) -> None:
    first = fleet.defer(lock=lock)
    worker = fleet.worker()
    claims = fleet.claim(worker)
    assert [claim.id for claim in claims] == [first]
    with rival.sql.connection.transaction():
        second = rival.defer(lock=lock)
        fleet.finish(*claims)
    fleet.sql("select procjobs.sweep_locks()")
    assert fleet.claim_ids(worker) == [second]


# -- what cannot run holds up nobody -------------------------------------------------------------------------------


def test_a_job_that_is_not_due_does_not_hold_its_lock(fleet: Fleet) -> None:
    future = fleet.defer(lock="l", priority=9, scheduled_at=3600)
    now = fleet.defer(lock="l")
    worker = fleet.worker()
    (claim,) = fleet.claim(worker, 10)
    assert claim.id == now

    with fleet.at(fleet.later(3601)):
        assert fleet.sql.one("select procjobs.promote_due()") == 1
        assert fleet.waits_for(future) == "lock"
        fleet.finish(claim)
        assert fleet.claim_ids(worker, 10) == [future]


def test_a_job_that_becomes_due_goes_before_one_it_precedes(fleet: Fleet) -> None:
    urgent = fleet.defer(lock="l", priority=9, scheduled_at=60)
    plain = fleet.defer(lock="l")
    worker = fleet.worker()
    with fleet.at(fleet.later(61)):
        fleet.sql("select procjobs.promote_due()")
        assert drain(fleet, worker) == [urgent, plain]


def test_jobs_that_become_due_together_run_in_order(fleet: Fleet) -> None:
    jobs = [fleet.defer(lock="l", priority=priority, scheduled_at=60 - priority) for priority in range(5)]
    with fleet.at(fleet.later(61)):
        assert fleet.sql.one("select procjobs.promote_due()") == 5
        assert drain(fleet, fleet.worker()) == jobs[::-1]


def test_a_retry_in_the_future_does_not_hold_the_lock(fleet: Fleet) -> None:
    fleet.policy(max_attempts=3, backoff_base=60, backoff_cap=3600, backoff_jitter=False)
    failing, next_one = fleet.defer(lock="l"), fleet.defer(lock="l")
    worker = fleet.worker()
    (claim,) = fleet.claim(worker)
    assert fleet.settle(claim, "failed") == "retrying"
    (claim,) = fleet.claim(worker, 10)
    assert claim.id == next_one
    with fleet.at(fleet.later(61)):
        fleet.sql("select procjobs.promote_due()")
        fleet.finish(claim)
        assert fleet.claim_ids(worker, 10) == [failing]


def test_a_paused_queue_does_not_hold_the_lock_of_its_jobs(fleet: Fleet) -> None:
    fleet.sql("select procjobs.pause_queue('mail')")
    paused = fleet.defer(lock="l", queue="mail", priority=9)
    free = fleet.defer(lock="l")
    worker = fleet.worker()
    (claim,) = fleet.claim(worker, 10)
    assert claim.id == free
    fleet.sql("select procjobs.resume_queue('mail')")
    assert fleet.claim(worker, 10) == []
    fleet.finish(claim)
    assert fleet.claim_ids(worker, 10) == [paused]


def test_pausing_a_queue_lets_those_go_that_waited_behind_its_jobs(fleet: Fleet) -> None:
    first, second = fleet.defer(lock="l", queue="mail"), fleet.defer(lock="l")
    assert fleet.waits_for(second) == "lock"
    fleet.sql("select procjobs.pause_queue('mail')")
    fleet.sql("select procjobs.sweep_locks()")
    worker = fleet.worker()
    (claim,) = fleet.claim(worker, 10)
    assert claim.id == second
    fleet.finish(claim)
    fleet.sql("select procjobs.resume_queue('mail')")
    assert fleet.claim_ids(worker, 10) == [first]


def test_a_lock_held_by_a_paused_queues_running_job_stays_held(fleet: Fleet) -> None:
    running = fleet.defer(lock="l", queue="mail")
    worker = fleet.worker()
    claims = fleet.claim(worker)
    fleet.sql("select procjobs.pause_queue('mail')")
    fleet.defer(lock="l")
    fleet.sql("select procjobs.sweep_locks()")
    assert fleet.claim(worker, 10) == []
    assert fleet.finish(*claims) == [running]
    assert len(fleet.claim(worker, 10)) == 1


def test_cancelling_the_first_in_line_lets_the_next_go(fleet: Fleet) -> None:
    first, second, third = (fleet.defer(lock="l") for _ in range(3))
    assert fleet.sql.one("select procjobs.cancel(%s)", first) == "cancelled"
    assert fleet.sql.one("select procjobs.cancel(%s)", second) == "cancelled"
    assert fleet.claim_ids(fleet.worker(), 10) == [third]


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "discarded"])
def test_whatever_way_a_run_ends_the_next_job_goes(fleet: Fleet, outcome: str) -> None:
    fleet.defer(lock="l")
    worker = fleet.worker()
    (claim,) = fleet.claim(worker)
    behind = fleet.defer(lock="l")
    fleet.settle(claim, outcome)
    assert fleet.claim_ids(worker, 10) == [behind]


@pytest.mark.parametrize("outcome", ["released", "crashed"])
def test_a_job_given_back_goes_before_those_behind_it(fleet: Fleet, outcome: str) -> None:
    fleet.policy(max_attempts=3, backoff_base=0, backoff_cap=0, backoff_jitter=False)
    first, second = fleet.defer(lock="l"), fleet.defer(lock="l")
    worker = fleet.worker()
    (claim,) = fleet.claim(worker)
    fleet.settle(claim, outcome)
    if outcome == "crashed":  # it waits a while, and holds up nobody meanwhile
        assert drain(fleet, worker) == [second]
    else:
        assert drain(fleet, worker) == [first, second]


# -- races, and what mends them ------------------------------------------------------------------------------------


def test_a_job_enqueued_while_the_lock_is_being_freed_is_found_by_the_sweep(fleet: Fleet, rival: Fleet) -> None:
    fleet.defer(lock="l")
    worker = fleet.worker()
    claims = fleet.claim(worker)
    with rival.sql.connection.transaction():
        stranded = rival.defer(lock="l")  # it sees the lock held
        fleet.finish(*claims)  # which sees no job that waits
    assert fleet.waits_for(stranded) == "lock"
    assert fleet.sql.one("select procjobs.sweep_locks()") == 1
    assert fleet.claim_ids(worker) == [stranded]


def test_upkeep_sweeps_without_being_asked(fleet: Fleet, rival: Fleet, eventually: Callable[..., Any]) -> None:
    fleet.defer(lock="l")
    worker = fleet.worker()
    claims = fleet.claim(worker)
    with rival.sql.connection.transaction():
        stranded = rival.defer(lock="l")
        fleet.finish(*claims)
    with fleet.at(fleet.later(10)):
        fleet.sql("select procjobs.upkeep()")
    assert fleet.waits_for(stranded) is None


def test_a_lock_freed_by_upstreams_own_worker_is_found_by_the_sweep(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer(lock="l")
    stock = sql.one("select worker_id from procrastinate_register_worker_v1()")
    assert sql.one("select id from procrastinate_fetch_job_v2(null, %s)", stock) == job
    behind = fleet.defer(lock="l")
    sql("select procrastinate_finish_job_v1(%s, 'succeeded', false)", job)
    assert sql.one("select procjobs.sweep_locks()") == 1
    assert fleet.claim_ids(fleet.worker()) == [behind]


@pytest.mark.parametrize("change", ["lock = null", "lock = 'other'", "priority = 99"])
def test_a_waiting_job_that_somebody_edits_by_hand_is_not_lost(fleet: Fleet, change: str) -> None:
    first, edited = fleet.defer(lock="l"), fleet.defer(lock="l")
    fleet.sql(f"update procrastinate_jobs set {change} where id = %s", edited)
    fleet.sql("select procjobs.sweep_locks()")
    claims = fleet.claim_ids(fleet.worker(), 10)
    assert edited in claims
    assert (first in claims) == ("lock" in change)


def test_the_sweep_goes_on_where_its_last_slice_ended(fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(25, lock="lock{n}")
    sql("update procrastinate_jobs set pj_waits_for = 'lock'")
    promoted = [sql.one("select procjobs.sweep_locks(10)") for _ in range(3)]
    assert promoted == [10, 10, 5]
    sql("update procrastinate_jobs set pj_waits_for = 'lock'")
    assert [sql.one("select procjobs.sweep_locks(25)") for _ in range(2)] == [25, 0]


def test_locks_that_cannot_be_freed_do_not_keep_the_sweep_from_others(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    for n in range(20):
        fleet.defer(lock=f"a{n:02}")
    assert len(fleet.claim(worker, 20)) == 20
    for n in range(20):
        fleet.defer(lock=f"a{n:02}")
    stranded = fleet.defer(lock="z")
    sql("update procrastinate_jobs set pj_waits_for = 'lock' where id = %s", stranded)
    for _ in range(4):
        sql("select procjobs.sweep_locks(6)")
    assert fleet.waits_for(stranded) is None


def test_a_row_that_somebody_holds_is_left_to_the_next_sweep(fleet: Fleet, rival: Fleet) -> None:
    first, second = fleet.defer(lock="one"), fleet.defer(lock="two")
    fleet.sql("update procrastinate_jobs set pj_waits_for = 'lock'")
    fleet.sql("set lock_timeout = '300ms'")
    with rival.sql.connection.transaction(force_rollback=True):
        rival.sql("select procjobs.cancel(%s)", first)
        assert fleet.sql.one("select procjobs.sweep_locks()") == 1
    assert fleet.waits_for(second) is None
    assert fleet.sql.one("select procjobs.sweep_locks()") == 1
    assert fleet.waits_for(first) is None


def test_an_open_transaction_that_resumed_a_queue_does_not_stop_upkeep(fleet: Fleet, rival: Fleet) -> None:
    """The whole fleet's rescue and due jobs hang on upkeep: nobody's open transaction may hold it up."""
    fleet.sql("select procjobs.pause_queue('mail')")
    fleet.sql("select procjobs.sweep_locks()")
    due = fleet.defer(scheduled_at=30)
    fleet.sql("set lock_timeout = '300ms'")
    with rival.sql.connection.transaction():
        rival.sql("select procjobs.resume_queue('mail')")
        with fleet.at(fleet.later(60)):
            fleet.sql("select procjobs.upkeep()")
        assert fleet.waits_for(due) is None


def test_an_open_transaction_that_swept_a_slice_does_not_stop_the_sweep(fleet: Fleet, rival: Fleet) -> None:
    fleet.defer_many(25, lock="lock{n}")
    fleet.sql("update procrastinate_jobs set pj_waits_for = 'lock'")
    fleet.sql("select procjobs.sweep_locks(10)")
    fleet.sql("set lock_timeout = '300ms'")
    with rival.sql.connection.transaction():
        assert rival.sql.one("select procjobs.sweep_locks(10)") == 10
        fleet.sql("select procjobs.sweep_locks(10)")
        heard: list[str] = []
        fleet.sql.connection.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
        fleet.sql("select procjobs.upkeep()")
        assert heard == []
    for _ in range(3):
        fleet.sql("select procjobs.sweep_locks(10)")
    assert fleet.sql.one("select count(*) from procrastinate_jobs where pj_waits_for is null") == 25


# -- many at once --------------------------------------------------------------------------------------------------

SEED = random.randrange(2**32)


@pytest.fixture
def spans(sql: Sql) -> None:
    """Who ran what when: two spans that overlap on one lock are refused by the database."""
    sql("create extension if not exists btree_gist")
    sql("create sequence step")
    sql(
        "create table span (job bigint, lease int, lock text, during int8range, "
        "exclude using gist (lock with =, during with &&))"
    )


def work_until_empty(dsn: str, seed: int, total: int) -> list[Claim]:
    """A worker that claims, ends its jobs in some way, and looks after upkeep; its claims that it ended well."""
    dice = random.Random(seed)
    done: list[Claim] = []
    with opened(dsn) as mine:
        worker = mine.worker()
        while mine.sql.one("select count(*) from procjobs.job_history") < total:
            claims = mine.claim(worker, dice.randint(1, 12))
            began = mine.sql.one("select nextval('step')")
            dice.shuffle(claims)
            ended: list[Claim] = []
            for claim in claims:
                if dice.random() < 0.8:
                    ended.append(claim)
                else:
                    over = mine.sql.one("select nextval('step')")
                    mine.sql(
                        "insert into span values (%s, %s, %s, int8range(%s, %s))",
                        claim.id, claim.lease, claim.lock, began, over,
                    )  # fmt: skip
                    mine.settle(claim, dice.choice(["released", "failed"]))
            over = mine.sql.one("select nextval('step')")
            for claim in ended:
                mine.sql(
                    "insert into span values (%s, %s, %s, int8range(%s, %s))",
                    claim.id, claim.lease, claim.lock, began, over,
                )  # fmt: skip
            if ended:
                assert len(mine.finish(*ended)) == len(ended)
            done += ended
            if not claims or dice.random() < 0.1:
                mine.sql("select procjobs.promote_due(), procjobs.sweep_locks(3), procjobs.rescue_jobs()")
    return done


def test_whatever_happens_at_once_no_lock_is_held_twice_no_job_is_lost_and_nothing_deadlocks(
    dsn: str, fleet: Fleet, spans: None
) -> None:
    print(f"seed {SEED}")
    total = 250
    fleet.policy(max_attempts=100, backoff_base=0, backoff_cap=0, backoff_jitter=False)
    enqueued = threading.Event()

    def enqueue() -> None:
        dice = random.Random(SEED)
        with opened(dsn) as mine:
            for _ in range(total):
                mine.defer(
                    queue=dice.choice("ab"), priority=dice.randint(0, 2), lock=dice.choice([None, "x", "y", "z", ""])
                )
        enqueued.set()

    producer = Thread(enqueue)
    workers = [Thread(lambda n=n: work_until_empty(dsn, SEED + n, total)) for n in range(1, 4)]  # type: ignore[misc]
    producer.result()
    done = Counter(claim.id for worker in workers for claim in worker.result(50))
    assert len(done) == total and set(done.values()) == {1}
    assert fleet.sql.one("select count(*) from procrastinate_jobs") == 0


def test_cancels_in_any_order_do_not_deadlock_with_promotion(
    dsn: str, fleet: Fleet, rival: Fleet, eventually: Callable[..., Any]
) -> None:
    """A transaction that cancels two jobs, the later first, meets upkeep that promotes both."""
    worker = fleet.worker()
    low, high = fleet.defer(lock="one", scheduled_at=30), fleet.defer(lock="two", scheduled_at=30)
    with opened(dsn) as observer, fleet.sql.connection.transaction():
        fleet.sql("select procjobs.cancel(%s)", high)
        with rival.at(rival.later(60)):
            promotion = Thread(lambda: rival.sql.one("select procjobs.promote_due()"))
            assert promotion.result() == 1
        blocked = observer.sql.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        assert blocked == 0
        fleet.sql("select procjobs.cancel(%s)", low)
    assert fleet.claim(worker, 10) == []


def test_workers_that_end_batches_of_crossing_locks_do_not_deadlock(dsn: str, fleet: Fleet) -> None:
    """Each batch frees locks whose next jobs were enqueued in the other order."""
    rounds = 12
    start = threading.Barrier(2)

    def work(locks: list[str]) -> int:
        with opened(dsn) as mine:
            mine.sql("set deadlock_timeout = '50ms'")
            worker = mine.worker()
            ended = 0
            for _ in range(rounds):
                for lock in locks:
                    mine.defer(lock=lock, queue=locks[0])
                start.wait(10)
                claims = mine.claim(worker, 10, queues=[locks[0]])
                ended += len(mine.settle_all([(claim, {"outcome": "discarded"}) for claim in claims])) if claims else 0
                mine.sql("select procjobs.sweep_locks()")
            while claims := mine.claim(worker, 10, queues=[locks[0]]):
                ended += len(mine.finish(*claims))
            return ended

    crossing = [Thread(lambda: work(["a", "b", "c"])), Thread(lambda: work(["c", "b", "a"]))]
    assert sum(thread.result() for thread in crossing) + drain_rest(fleet) == rounds * 6


def drain_rest(fleet: Fleet) -> int:
    worker = fleet.worker()
    count = 0
    while fleet.sql.one("select procjobs.sweep_locks()") or fleet.sql.one(
        "select count(*) from procrastinate_jobs where status = 'todo' and pj_waits_for is null"
    ):
        count += len(drain(fleet, worker))
    return count
