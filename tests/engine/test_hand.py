"""What a worker holds: never more running than its concurrency, and little that ended without the database knowing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import procjobs
from procjobs.engine.claimed import Claimed
from procjobs.engine.hand import Hand

SLOTS = 4
#: Finishes that wait for a lock.
WAITING = (
    "select count(*) from pg_stat_activity "
    "where wait_event_type = 'Lock' and query like 'select * from procjobs.finish_jobs%'"
)


class Clock:
    """Stands until moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("procjobs.engine.hand.time", clock)
    return clock


def jobs(first: int, count: int) -> list[Claimed]:
    return [
        Claimed((n, 1, "work", "{}", None, 0, "default", 0, None, None, None, None), 1000.0)
        for n in range(first, first + count)
    ]


def started(hand: Hand) -> Iterator[Claimed]:
    while job := hand.next():
        job.task = object()  # type: ignore[assignment]
        yield job


def at_rate(clock: Clock, rate: float, run_time: float = 0.1) -> Hand:
    """A hand of a worker whose jobs run for so many seconds, and end so many a second."""
    hand = Hand(SLOTS)
    for n in range(50):
        batch = jobs(10_000 + n * SLOTS, SLOTS)
        hand.take(batch)
        assert list(started(hand)) == batch
        for job in batch:
            hand.end(job, run_time)
        clock.now += SLOTS / rate
        hand.release(batch)
    return hand


def test_a_slow_job_holds_its_slot_until_its_end_is_durable(clock: Clock) -> None:
    hand = at_rate(clock, 40)
    assert hand.room() == SLOTS
    hand.take(jobs(1, SLOTS + 3))
    first = list(started(hand))
    assert len(first) == SLOTS
    for job in first:
        hand.end(job, 0.1)
    assert hand.busy == 0 and list(started(hand)) == []
    clock.now += 0.1
    hand.release(first[:2])
    assert len(list(started(hand))) == 2


def test_of_quick_jobs_ten_milliseconds_of_work_may_have_ended_unrecorded(clock: Clock) -> None:
    hand = at_rate(clock, 1020)
    hand.take(jobs(1, 100))
    ended = 0
    while batch := list(started(hand)):
        assert hand.busy <= SLOTS
        for job in batch:
            hand.end(job, 0.1)
            ended += 1
    assert ended == SLOTS + 10


@pytest.mark.parametrize(("run_time", "ahead"), [(0.1, 0), (0.010, 4), (0.001, 40), (1e-6, 500)])
def test_ten_milliseconds_of_work_are_held_ahead_however_slow_the_database_is(
    clock: Clock, run_time: float, ahead: int
) -> None:
    assert at_rate(clock, 50, run_time).room() == SLOTS + ahead


def test_one_long_run_ends_the_holding_ahead_at_once(clock: Clock) -> None:
    hand = at_rate(clock, 50, 1e-5)
    assert hand.room() == SLOTS + 500
    hand.take(jobs(1, 1))
    (job,) = started(hand)
    hand.end(job, 0.2)
    hand.release([job])
    assert hand.room() == SLOTS


def test_no_more_run_than_there_are_slots_however_quick_they_are(clock: Clock) -> None:
    hand = at_rate(clock, 1020)
    hand.take(jobs(1, 100))
    assert len(list(started(hand))) == SLOTS and hand.busy == SLOTS


def test_what_was_given_back_unstarted_leaves_the_hand_without_a_slot(clock: Clock) -> None:
    hand = Hand(SLOTS)
    hand.take(jobs(1, SLOTS + 1))
    running = list(started(hand))
    (ready,) = hand.ready
    assert hand.put_back(ready)
    hand.release([ready])
    assert (len(hand), hand.busy) == (SLOTS, SLOTS)
    hand.end(running[0], 0.1)
    hand.release(running[:1])
    hand.take(jobs(50, SLOTS))
    assert len(list(started(hand))) == 1


async def test_nothing_new_starts_while_the_ends_of_as_many_as_may_run_are_not_durable(
    app: procjobs.App, working: Any, dsn: str, sql: Any, eventually: Any
) -> None:
    ran: list[int] = []

    @app.task(name="count")
    async def count(n: int) -> None:
        ran.append(n)

    async with working(concurrency=3):
        await eventually(lambda: sql.one("select count(*) from procjobs.worker_state") == 1)
        with psycopg.connect(dsn) as other:
            other.execute("lock table procjobs.job_history in share mode")  # no end can be written
            for n in range(20):
                await count.defer_async(n=n)
            await eventually(lambda: sql.one(WAITING) > 0)
            assert len(ran) == 3
        await eventually(lambda: len(ran) == 20)
    assert sorted(ran) == list(range(20))
