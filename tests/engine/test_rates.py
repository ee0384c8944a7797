"""Rates: never more within any span of the period, over the fleet, by starts or by runs."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet, held, limit


def test_no_more_start_within_the_period_and_the_next_when_it_is_over(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, rate=2, per="10 seconds")
    jobs = [fleet.defer() for _ in range(5)]
    worker = fleet.worker(lease=1000)
    start = sql.one("select clock_timestamp()")
    at = lambda seconds: fleet.at(sql.one("select %s + make_interval(secs => %s)", start, seconds))  # noqa: E731
    with at(0):
        fleet.finish(*fleet.claim(worker, 1))
    with at(4):
        fleet.finish(*fleet.claim(worker, 5))
        assert fleet.claim(worker, 5) == [] and held(fleet) == 3
        assert sql.one("select procjobs.limits_due_in()") == pytest.approx(6, abs=0.2)
        assert sql.one("select procjobs.upkeep()") == pytest.approx(6, abs=0.2)
    with at(10.2):
        sql("select procjobs.upkeep()")
        assert fleet.claim_ids(worker, 5) == [jobs[2]]
    with at(14.2):
        sql("select procjobs.upkeep()")
        assert fleet.claim_ids(worker, 5) == [jobs[3]]


def test_what_exceeds_a_rate_is_dropped_and_recorded_and_the_next_period_starts_anew(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, "slow", rate=2, per="1 minute", on_excess="drop")
    worker = fleet.worker(lease=86400)
    with fleet.at("2031-05-01 12:00:00+00"):
        jobs = [fleet.defer() for _ in range(5)]
        assert fleet.claim_ids(worker, 5) == jobs[:2]
    dropped = "select id, status::text, note from procjobs.job_history order by id"
    assert sql(dropped) == [(job, "cancelled", "dropped: limit slow was reached") for job in jobs[2:]]
    assert sql("select id from procrastinate_jobs where status = 'todo'") == []
    assert sql("select * from procjobs.limit_grants") == []
    with fleet.at("2031-05-01 12:00:59+00"):
        late = fleet.defer()
        assert fleet.claim(worker, 5) == []
    assert sql.one("select status::text from procjobs.job_history where id = %s", late) == "cancelled"
    with fleet.at("2031-05-01 12:01:00.1+00"):
        more = [fleet.defer() for _ in range(3)]
        assert fleet.claim_ids(worker, 5) == more[:2]
    timeline = [event for (event,) in sql("select event from procjobs.job_timeline(%s)", jobs[4])]
    assert timeline[0] == "enqueued" and timeline[-1] == "cancelled" and "started" not in timeline


def test_in_no_span_of_the_period_start_more_whatever_the_moments_of_the_claims(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, rate=5, per="1 second")
    fleet.defer_many(200)
    worker = fleet.worker(lease=1000)
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    began = sql.one("select clock_timestamp()")
    moment, starts = 0, []  # in milliseconds
    while moment < 12_000:
        moment += chance.choice([1, 10, 50, 300])
        with fleet.at(sql.one("select %s + make_interval(secs => %s / 1000.0)", began, moment)):
            sql("select procjobs.sweep_limits()")
            starts += [moment] * len(fleet.claim(worker, chance.randint(1, 7)))
    for start in starts:
        assert sum(start <= other < start + 1000 for other in starts) <= 5
    assert len(starts) >= 5 * 10, "and it is used up"


def test_a_rate_over_two_connections(fleet: Fleet, rival: Fleet) -> None:
    limit(fleet, rate=3, per="1 hour")
    fleet.defer_many(10)
    one, other = fleet.worker(), rival.worker()
    assert len(fleet.claim(one, 2)) + len(rival.claim(other, 2)) + len(fleet.claim(one, 2)) == 3


def test_the_state_of_a_key_stays_small(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, rate=1000, per="1 hour")
    fleet.defer_many(300)
    worker = fleet.worker()
    for _ in range(300):
        fleet.finish(*fleet.claim(worker))
    assert sql.one("select cardinality(starts) from procjobs.limit_state") <= 101
    assert sql.one("select started from procjobs.limit_use where name = 'l'") == 300


@pytest.mark.parametrize("counts", ["starts", "runs"])
def test_when_more_room_comes_is_known_before_what_was_let_go_is_claimed(fleet: Fleet, sql: Sql, counts: str) -> None:
    limit(fleet, rate=2, per="10 seconds", rate_counts=counts)
    fleet.defer_many(5)
    worker = fleet.worker(lease=1000)
    start = sql.one("select clock_timestamp()")
    at = lambda seconds: fleet.at(sql.one("select %s + make_interval(secs => %s)", start, seconds))  # noqa: E731
    with at(0):
        fleet.finish(*fleet.claim(worker, 5))
    with at(12):
        assert sql.one("select procjobs.sweep_limits()") == 2 and held(fleet) == 1
        assert sql.one("select procjobs.limits_due_in()") == pytest.approx(10, abs=0.2)
        fleet.claim(worker, 1)
    with at(13):
        due = 9 if counts == "starts" else 10  # it runs
        assert sql.one("select procjobs.limits_due_in()") == pytest.approx(due, abs=0.2)


@pytest.mark.parametrize("counts", ["starts", "runs"])
def test_a_full_limit_is_looked_at_again_only_near_its_rate(fleet: Fleet, sql: Sql, counts: str) -> None:
    limit(fleet, max_running=1, rate=4, per="1 hour", rate_counts=counts)
    fleet.defer_many(5)
    worker = fleet.worker()
    (first,) = fleet.claim(worker, 5)
    assert held(fleet) == 4
    assert sql.one("select procjobs.limits_due_in()") is None, "the end of the first lets the second go"
    fleet.finish(first)
    assert len(fleet.claim(worker, 5)) == 1
    assert sql.one("select procjobs.limits_due_in()") == pytest.approx(3600, abs=5)


# -- a rate that counts runs ------------------------------------------------------------------------------------------


def limit_runs(fleet: Fleet, **keys: Any) -> None:
    limit(fleet, rate_counts="runs", **keys)


def test_a_run_counts_until_the_period_after_its_end(fleet: Fleet, sql: Sql) -> None:
    limit_runs(fleet, rate=2, per="10 seconds")
    jobs = [fleet.defer() for _ in range(5)]
    worker = fleet.worker(lease=1000)
    start = sql.one("select clock_timestamp()")
    at = lambda seconds: fleet.at(sql.one("select %s + make_interval(secs => %s)", start, seconds))  # noqa: E731
    with at(0):
        one, other = fleet.claim(worker, 5)
        assert [one.id, other.id] == jobs[:2] and held(fleet) == 3
    with at(20):
        sql("select procjobs.upkeep()")
        assert fleet.claim(worker, 5) == []  # both run on
        fleet.finish(one)
        assert fleet.claim(worker, 5) == []
        assert sql.one("select procjobs.limits_due_in()") == pytest.approx(10, abs=0.2)
    with at(25):
        fleet.finish(other)
    with at(30.2):
        sql("select procjobs.upkeep()")
        assert fleet.claim_ids(worker, 5) == [jobs[2]]
    with at(34.8):
        sql("select procjobs.upkeep()")
        assert fleet.claim(worker, 5) == []
    with at(35.2):
        sql("select procjobs.upkeep()")
        assert fleet.claim_ids(worker, 5) == [jobs[3]]


def test_in_no_span_of_the_period_do_more_run_whatever_the_moments(fleet: Fleet, sql: Sql) -> None:
    limit_runs(fleet, rate=5, per="1 second")
    fleet.defer_many(200)
    worker = fleet.worker(lease=1000)
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    began = sql.one("select clock_timestamp()")
    moment, runs, running = 0, [], []  # in milliseconds: from, to
    while moment < 12_000:
        moment += chance.choice([1, 10, 50, 300])
        with fleet.at(sql.one("select %s + make_interval(secs => %s / 1000.0)", began, moment)):
            sql("select procjobs.sweep_limits()")
            running += [(moment, claim) for claim in fleet.claim(worker, chance.randint(1, 7))]
            chance.shuffle(running)
            for _ in range(chance.randint(0, len(running))):
                start, claim = running.pop()
                fleet.finish(claim)
                runs.append((start, moment))
    for moment in {start for start, _ in runs}:
        # Whatever a job does, it does between its start and its end: in the second that ends now at most five do.
        assert sum(start <= moment and end > moment - 1000 for start, end in runs) <= 5
    assert len(runs) >= 5 * 6, "and it is used up"


@pytest.mark.parametrize("end", ["crashed", "failed", "released", "cancelled", "snoozed"])
def test_every_end_of_a_run_counts_for_the_period(fleet: Fleet, sql: Sql, end: str) -> None:
    limit_runs(fleet, rate=1, per="1 hour")
    fleet.defer(), fleet.defer()
    worker = fleet.worker()
    (claim,) = fleet.claim(worker, 1)
    with fleet.at(sql.one("select clock_timestamp() + interval '3 hours'")):
        fleet.settle(claim, outcome=end)
        sql("select procjobs.sweep_limits()")
        assert sql("select key from procjobs.limit_grants") == []
        assert fleet.claim(worker, 1) == []
    with fleet.at(sql.one("select clock_timestamp() + interval '4 hours 1 second'")):
        sql("select procjobs.sweep_limits()")
        assert len(fleet.claim(worker, 1)) == 1


def test_a_rate_that_counts_starts_is_told_to_count_runs(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, rate=2, per="1 hour")
    fleet.defer_many(4)
    worker = fleet.worker()
    first, _ = fleet.claim(worker, 2)
    with fleet.at(sql.one("select clock_timestamp() + interval '2 hours'")):
        limit_runs(fleet, rate=2, per="1 hour")
        assert fleet.claim(worker, 2) == []  # what runs already counts
        fleet.finish(first)
        assert fleet.claim(worker, 2) == []
        limit(fleet, rate=3, per="1 hour")
        assert sql.one("select rate_counts from procjobs.limit_use where name = 'l'") == "runs"
        assert len(fleet.claim(worker, 2)) == 1
        limit(fleet, rate=3, per="1 hour", rate_counts="starts")
        assert len(fleet.claim(worker, 2)) == 1


def test_what_ended_before_its_rate_counted_runs_counts_as_a_start(fleet: Fleet) -> None:
    limit(fleet, rate=1, per="1 hour")
    fleet.defer_many(2)
    worker = fleet.worker()
    fleet.finish(*fleet.claim(worker, 1))
    limit_runs(fleet, rate=1, per="1 hour")
    assert fleet.claim(worker, 1) == []


def test_a_rate_that_counts_runs_can_be_seen(fleet: Fleet, sql: Sql) -> None:
    limit_runs(fleet, rate=2, per="1 minute")
    fleet.defer_many(3)
    worker = fleet.worker()
    fleet.finish(fleet.claim(worker, 3)[0])
    use = "select started, rate, resets_at between clock_timestamp() and clock_timestamp() + '1 minute', waiting from "
    assert sql(f"{use} procjobs.limit_use where name = 'l'") == [(2, 2, True, 1)]
    waiting = sql.one("select max(id) from procjobs.jobs where state = 'limited'")
    assert "2 run or ended within 1 min, the next may at" in sql.one("select procjobs.why_not_running(%s)", waiting)


def test_ends_that_count_no_more_are_forgotten(fleet: Fleet, sql: Sql) -> None:
    limit_runs(fleet, rate=2, per="1 minute")
    fleet.defer_many(2)
    worker = fleet.worker()
    one, other = fleet.claim(worker, 2)
    fleet.finish(one)
    with fleet.at(sql.one("select clock_timestamp() + interval '50 seconds'")):
        fleet.finish(other)
    with fleet.at(sql.one("select clock_timestamp() + interval '70 seconds'")):
        sql("select procjobs.forget_limit_state()")
        assert sql.one("select count(*) from procjobs.limit_ends") == 1
        sql("select procjobs.drop_limit('l')")
        assert sql.one("select count(*) from procjobs.limit_ends") == 0


@pytest.mark.parametrize("counts", ["starts", "runs"])
def test_a_clock_that_is_set_back_holds_nothing_up_for_longer(fleet: Fleet, sql: Sql, counts: str) -> None:
    limit(fleet, rate=3, per="1 second", rate_counts=counts)
    fleet.defer_many(10)
    worker = fleet.worker(lease=86400)
    with fleet.at("2031-05-01 12:00:00+00"):
        fleet.finish(*fleet.claim(worker, 10))
    for moment, used in ("11:00:05", 0), ("12:00:00", 0):
        with fleet.at(f"2031-05-01 {moment}+00"):
            assert sql("select coalesce(sum(started), 0), max(resets_at) from procjobs.limit_use") == [(used, None)]
            sql("select procjobs.sweep_limits()")
            claims = fleet.claim(worker, 10)
            assert len(claims) == 3
            assert sql.one("select sum(started) from procjobs.limit_use") == 3
            fleet.finish(*claims)
            assert fleet.claim(worker, 10) == []
        with fleet.at("2031-05-01 11:00:07+00"):
            sql("select procjobs.forget_limit_state()")
            assert sql("select key from procjobs.limit_ends") == []
