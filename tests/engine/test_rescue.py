"""Rescue: jobs whose worker died wait again, each once, and nobody who lives loses one."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet, Thread, opened


def rescue(fleet: Fleet, moment: Any = None) -> int:
    """One rescue, now or at a moment; how many jobs it took."""
    count: int
    if moment is None:
        count = fleet.sql.one("select procjobs.rescue_jobs()")
    else:
        with fleet.at(moment):
            count = fleet.sql.one("select procjobs.rescue_jobs()")
    return count


# -- who is dead ---------------------------------------------------------------------------------------------------


def test_a_worker_is_dead_only_when_it_is_found_silent_twice(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    worker = fleet.worker(beat=10, lease=30)
    fleet.claim(worker)
    assert rescue(fleet, fleet.later(29)) == 0
    assert sql.one("select suspected_at is null from procjobs.worker_state")

    assert rescue(fleet, fleet.later(3600)) == 0  # the first look, however long the silence
    assert sql.one("select suspected_at is not null and dead_at is null from procjobs.worker_state")
    assert rescue(fleet, fleet.later(3609)) == 0  # less than a heartbeat later
    assert fleet.status(job) == "doing"
    assert rescue(fleet, fleet.later(3611)) == 1
    assert fleet.status(job) == "todo"
    assert sql.one("select dead_at is not null from procjobs.worker_state")


def test_a_heartbeat_in_between_clears_the_suspicion(fleet: Fleet, sql: Sql) -> None:
    """After an outage of the database every heartbeat looks old at first sight."""
    job = fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    assert rescue(fleet, fleet.later(100)) == 0
    with fleet.at(fleet.later(105)):
        assert sql("select alive, abort_ids from procjobs.heartbeat(%s)", worker) == [(True, [])]
    assert rescue(fleet, fleet.later(134)) == 0
    assert rescue(fleet, fleet.later(136)) == 0  # silent again: suspected anew
    assert rescue(fleet, fleet.later(145)) == 0
    assert fleet.status(job) == "doing"
    assert rescue(fleet, fleet.later(147)) == 1


def test_a_dead_worker_stays_dead(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    fleet.die(worker)
    rescue(fleet)
    assert sql("select alive from procjobs.heartbeat(%s)", worker) == [(False,)]
    assert sql("select count(*) from procrastinate_workers") == [(0,)]
    sql("select procjobs.stop_worker(%s)", worker)
    assert sql("select dead_at is not null, stopped_at from procjobs.worker_state") == [(True, None)]


def test_each_worker_has_the_lease_it_registered_with(fleet: Fleet) -> None:
    quick, slow = fleet.defer(), fleet.defer()
    fleet.claim(fleet.worker(beat=1, lease=3))
    fleet.claim(fleet.worker(beat=60, lease=180))
    moment = fleet.later(10)
    rescue(fleet, moment)
    rescue(fleet, fleet.later(20))
    assert (fleet.status(quick), fleet.status(slow)) == ("todo", "doing")


def test_a_lease_shorter_than_two_heartbeats_is_refused(fleet: Fleet) -> None:
    with pytest.raises(Exception, match="too short"):
        fleet.worker(beat=10, lease=19)


def test_an_upstream_worker_that_prunes_ours_does_it_no_harm(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    sql("update procrastinate_workers set last_heartbeat = now() - interval '1 day'")
    assert sql("select * from procrastinate_prune_stalled_workers_v1(30)") == [(worker,)]
    assert rescue(fleet) == 0
    sql("select * from procjobs.heartbeat(%s)", worker)
    assert sql("select id from procrastinate_workers") == [(worker,)]
    assert sql("select status::text, worker_id from procrastinate_jobs where id = %s", job) == [("doing", worker)]


# -- what is rescued -----------------------------------------------------------------------------------------------


def test_a_rescued_job_has_one_crash_more_waits_a_while_and_runs_again_once(fleet: Fleet, sql: Sql) -> None:
    jobs = [fleet.defer(lock=lock) for lock in (None, "l")]
    worker = fleet.worker(name="victim", beat=2, lease=6)
    fleet.claim(worker, 10)
    fleet.die(worker)
    with fleet.at("2031-05-01 12:00+00"):
        assert fleet.sql.one("select procjobs.rescue_jobs()") == 2
        assert fleet.sql.one("select procjobs.rescue_jobs()") == 0
    assert sql(
        "select id, status::text, attempts, pj_crashes, worker_id, scheduled_at = '2031-05-01 12:00:02+00', "
        "pj_waits_for "
        "from procrastinate_jobs order by id"
    ) == [(job, "todo", 0, 1, None, True, "time") for job in jobs]
    assert sql("select job_id, outcome, error_class, worker_name from procjobs.job_attempts order by id") == [
        (job, "crashed", "WorkerDied", "victim") for job in jobs
    ]
    assert sql("select job_id, type, detail ->> 'worker' from procjobs.job_events order by id") == [
        (job, "rescued", "victim") for job in jobs
    ]
    with fleet.at("2031-05-01 12:00:03+00"):
        sql("select procjobs.promote_due()")
        assert fleet.claim_ids(fleet.worker(), 10) == jobs


def test_the_third_crash_is_a_dead_letter_with_the_last_workers_name(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=100)
    job = fleet.defer(lock="l")
    behind = fleet.defer(lock="l", priority=-1)
    for n in range(3):
        worker = fleet.worker(name=f"victim {n}")
        sql("update procrastinate_jobs set scheduled_at = now() where id = %s", job)
        sql("select procjobs.promote_due()")
        assert fleet.claim_ids(worker) == [job]
        fleet.die(worker)
        assert rescue(fleet) == 1
    assert sql("select status::text, pj_crashes, attempts from procrastinate_jobs where id = %s", job) == [
        ("failed", 3, 0)
    ]
    assert sql("select worker_name, outcome from procjobs.job_attempts order by id") == [
        (f"victim {n}", "crashed") for n in range(3)
    ]
    assert fleet.claim_ids(fleet.worker(), 10) == [behind]


def test_the_third_crash_and_no_other_is_job_stalled(fleet: Fleet, sql: Sql) -> None:
    """In events, actions, the timeline and by NOTIFY; where the job was at that time says that it failed."""
    job = fleet.defer()
    told: list[str] = []
    sql.connection.add_notify_handler(lambda notice: told.append(notice.payload))
    sql("listen procjobs_events")
    for crash in range(1, 4):
        worker = fleet.worker(name=f"victim {crash}")
        sql("update procrastinate_jobs set scheduled_at = now() where id = %s", job)
        sql("select procjobs.promote_due()")
        assert fleet.claim_ids(worker) == [job]
        fleet.die(worker)
        assert rescue(fleet) == 1
        sql("select 1")
        assert told == ([f"job.stalled {job}"] if crash == 3 else [])
    assert sql("select job_id, action, actor, detail from procjobs.actions where action = 'job.stalled'") == [
        (job, "job.stalled", "procjobs", {"worker": "victim 3", "worker_id": worker, "crashes": 3})
    ]
    timeline = sql("select event, detail from procjobs.job_timeline(%s)", job)
    assert [event for event, _ in timeline].count("job.stalled") == 1
    assert "worker victim 3" in dict(timeline)["job.stalled"]
    assert sql("select state from procjobs.jobs_as_of(clock_timestamp())") == [("failed",)]


def test_a_dead_letter_for_another_reason_is_not_stalled(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=1)
    fleet.defer()
    (failing,) = fleet.claim(fleet.worker())
    assert fleet.settle(failing, "failed") == "failed"
    cancelled = fleet.defer()
    worker = fleet.worker()
    assert fleet.claim_ids(worker) == [cancelled]
    sql("select procjobs.cancel(%s)", cancelled)
    fleet.die(worker)
    assert rescue(fleet) == 1
    assert sql("select action from procjobs.actions where action = 'job.stalled'") == []


def test_a_crash_of_a_job_that_was_to_be_cancelled_is_final(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    sql("select procjobs.cancel(%s)", job)
    fleet.die(worker)
    assert rescue(fleet) == 1
    assert fleet.status(job) in ("failed", "aborted")


def test_a_job_whose_sibling_waits_is_superseded_and_does_not_stop_the_rescue(fleet: Fleet) -> None:
    first, second, third = (fleet.defer(queueing_lock=lock) for lock in ("a", "b", "c"))
    worker = fleet.worker()
    fleet.claim(worker, 3)
    sibling = fleet.defer(queueing_lock="b")
    fleet.die(worker)
    assert rescue(fleet) == 3
    assert [fleet.status(job) for job in (first, second, third, sibling)] == ["todo", "cancelled", "todo", "todo"]
    assert fleet.runs(second) == ["superseded"]


def test_a_worker_that_left_gives_its_jobs_back_at_once_and_no_crash_is_counted(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    sql("select procjobs.stop_worker(%s)", worker)
    assert rescue(fleet) == 1
    assert sql("select status::text, attempts, pj_crashes from procrastinate_jobs") == [("todo", 0, 0)]
    assert fleet.runs(job) == ["released"]
    assert fleet.claim_ids(fleet.worker()) == [job]


def test_a_job_whose_worker_nobody_knows_is_rescued(fleet: Fleet, sql: Sql) -> None:
    for unknown in (None, 10**12):
        job = fleet.defer()
        fleet.claim(fleet.worker())
        sql("update procrastinate_jobs set worker_id = %s where id = %s", unknown, job)
        assert rescue(fleet) == 1
        assert fleet.status(job) == "todo" and fleet.runs(job) == ["crashed"]


# -- what is left alone --------------------------------------------------------------------------------------------


def test_a_long_job_of_a_living_worker_is_never_taken_by_its_age(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    sql("update procrastinate_jobs set pj_started_at = now() - interval '30 days'")
    for _ in range(3):
        assert rescue(fleet) == 0
    assert fleet.status(job) == "doing"


def test_a_draining_worker_keeps_its_jobs(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    sql("select procjobs.drain_worker(%s)", worker)
    assert rescue(fleet) == 0
    assert sql("select alive from procjobs.heartbeat(%s)", worker) == [(True,)]
    assert fleet.status(job) == "doing"


def test_workers_of_upstreams_are_left_alone_while_they_beat(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    stock = sql.one("select worker_id from procrastinate_register_worker_v1()")
    sql("select procrastinate_fetch_job_v2(null, %s)", stock)
    assert rescue(fleet) == 0
    assert rescue(fleet, fleet.later(50)) == 0
    assert fleet.status(job) == "doing"
    assert rescue(fleet, fleet.later(61)) == 1
    assert fleet.status(job) == "todo"


def test_the_job_of_an_upstream_worker_that_left_is_rescued(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    stock = sql.one("select worker_id from procrastinate_register_worker_v1()")
    sql("select procrastinate_fetch_job_v2(null, %s)", stock)
    sql("select procrastinate_unregister_worker_v1(%s)", stock)
    assert rescue(fleet) == 1
    assert fleet.status(job) == "todo"


def test_a_job_that_a_living_worker_runs_by_now_is_not_taken_from_it(fleet: Fleet, sql: Sql) -> None:
    """Two rescues at once: one rescued the job, it was claimed again, and then the other comes to it."""
    job = fleet.defer()
    dead = fleet.worker()
    fleet.claim(dead)
    fleet.die(dead)
    rescue(fleet)
    with fleet.at(fleet.later(60)):
        sql("select procjobs.promote_due()")
    (current,) = fleet.claim(fleet.worker())
    assert sql.one("select procjobs.rescue_job(%s)", job) is None
    assert fleet.finish(current) == [job]


# -- bounded, and safe row by row ----------------------------------------------------------------------------------


def test_a_rescue_takes_at_most_as_many_as_it_was_asked_for(fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(25)
    worker = fleet.worker()
    fleet.claim(worker, 25)
    fleet.die(worker)
    assert [sql.one("select procjobs.rescue_jobs(10)") for _ in range(4)] == [10, 10, 5, 0]


def test_rows_that_somebody_holds_are_passed_over_and_do_not_use_up_the_batch(fleet: Fleet, rival: Fleet) -> None:
    jobs = [fleet.defer() for _ in range(4)]
    worker = fleet.worker()
    fleet.claim(worker, 4)
    fleet.die(worker)
    fleet.sql("set lock_timeout = '300ms'")
    with rival.sql.connection.transaction():
        rival.sql("select * from procrastinate_jobs where id = any (%s) for update", jobs[:2])
        assert fleet.sql.one("select procjobs.rescue_jobs(2)") == 2
        assert [fleet.status(job) for job in jobs] == ["doing", "doing", "todo", "todo"]
    assert fleet.sql.one("select procjobs.rescue_jobs(2)") == 2


def test_a_job_that_cannot_be_rescued_does_not_keep_the_others_and_is_heard_of(fleet: Fleet, sql: Sql) -> None:
    poison, good = fleet.defer(args='{"n": 1}'), fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker, 2)
    sql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not this one'; end $$;"
        "create trigger refuse before update on procrastinate_jobs for each row when (new.args <> '{}') "
        "execute function refuse()"
    )
    fleet.die(worker)
    heard: list[str] = []
    sql.connection.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
    assert rescue(fleet) == 1
    assert (fleet.status(poison), fleet.status(good)) == ("doing", "todo")
    assert any(f"job {poison} could not be rescued" in message and "not this one" in message for message in heard)
    sql("drop trigger refuse on procrastinate_jobs")
    assert rescue(fleet) == 1


def test_jobs_that_cannot_be_rescued_do_not_use_up_every_batch(fleet: Fleet, sql: Sql) -> None:
    """As many of them as a batch holds, with the lowest ids: the others come first the next time or the one after."""
    poison = [fleet.defer(args='{"n": 1}') for _ in range(3)]
    good = [fleet.defer() for _ in range(3)]
    worker = fleet.worker()
    fleet.claim(worker, 6)
    sql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not this one'; end $$;"
        "create trigger refuse before update on procrastinate_jobs for each row when (new.args <> '{}') "
        "execute function refuse()"
    )
    fleet.die(worker)
    for _ in range(4):
        sql("select procjobs.rescue_jobs(3)")
    assert [fleet.status(job) for job in good] == ["todo"] * 3
    assert [fleet.status(job) for job in poison] == ["doing"] * 3


def test_rescues_at_once_count_each_crash_once(dsn: str, fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(200, lock="lock{n}")
    worker = fleet.worker()
    assert len(fleet.claim(worker, 200)) == 200
    fleet.die(worker)
    start = threading.Barrier(3)

    def work() -> int:
        with opened(dsn) as mine:
            start.wait(10)
            return sum(rescue(mine) for _ in range(3))

    assert sum(thread.result() for thread in [Thread(work) for _ in range(3)]) == 200
    assert sql("select pj_crashes, count(*) from procrastinate_jobs group by 1") == [(1, 200)]
    assert sql("select count(*) from procjobs.job_attempts") == [(200,)]


# -- claims whose reply was lost -----------------------------------------------------------------------------------


def test_jobs_that_their_worker_does_not_know_of_are_given_back(fleet: Fleet, sql: Sql) -> None:
    jobs = [fleet.defer(lock=lock) for lock in (None, "l", "m")]
    worker, other = fleet.worker(), fleet.worker()
    fleet.claim(worker, 3)
    behind = fleet.defer(lock="l")
    others = fleet.defer()
    (kept,) = fleet.claim(other)
    assert kept.id == others

    assert sql.one("select procjobs.release_unknown(%s, %s)", worker, [jobs[0]]) == 2
    assert sql("select id, status::text, attempts, pj_crashes from procrastinate_jobs order by id") == [
        (jobs[0], "doing", 0, 0), (jobs[1], "todo", 0, 0), (jobs[2], "todo", 0, 0),
        (behind, "todo", 0, 0), (others, "doing", 0, 0),
    ]  # fmt: skip
    assert sql("select * from procjobs.job_attempts") == []
    assert fleet.claim_ids(other, 10) == jobs[1:]
    assert sql.one("select procjobs.release_unknown(%s, %s)", worker, jobs) == 0


def test_giving_back_meets_a_sibling_that_waits(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer(queueing_lock="sync")
    worker = fleet.worker()
    fleet.claim(worker)
    sibling = fleet.defer(queueing_lock="sync")
    assert sql.one("select procjobs.release_unknown(%s, '{}')", worker) == 1
    assert (fleet.status(job), fleet.status(sibling)) == ("cancelled", "todo")


def test_a_worker_hears_of_cancel_requests_with_its_heartbeat(fleet: Fleet, sql: Sql) -> None:
    job, other = fleet.defer(), fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker, 2)
    sql("select procjobs.cancel(%s)", other)
    assert sql("select alive, abort_ids from procjobs.heartbeat(%s)", worker) == [(True, [other])]
    assert sql("select alive, coalesce(abort_ids, '{}') from procjobs.heartbeat(%s)", worker + 1) == [(False, [])]
    assert job != other
