"""Retention: by age, by number, by days; what is never forgotten; every pass is seen; and nobody waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet, Thread, opened
from tests.engine.test_plans import Watched

NOON = "2031-05-10 12:00+00"


@pytest.fixture
def fleet(sql: Sql) -> Fleet:
    sql("set client_min_messages = warning")
    return Fleet(sql)


@pytest.fixture
def rival(dsn: str) -> Iterator[Fleet]:
    with opened(dsn) as other:
        yield other


def end(
    sql: Sql,
    count: int,
    at: str,
    *,
    queue: str = "default",
    task: str = "work",
    state: str = "succeeded",
    every: str = "1 second",
    kept: bool = False,
) -> list[int]:
    """`count` jobs that ended from a moment on, one `every`; their ids, the oldest first."""
    into, columns = (
        ("public.procrastinate_jobs", "queue_name, task_name, args, status, attempts, pj_created_at, pj_finished_at")
        if kept
        else (
            "procjobs.job_history",
            "id, priority, crashes, lease, queue_name, task_name, args, status, attempts, created_at, finished_at",
        )
    )
    first = "" if kept else "nextval('procrastinate_jobs_id_seq'), 0, 0, 1, "
    rows = sql(
        f"insert into {into} ({columns}) select {first} %s, %s, '{{}}', %s::procrastinate_job_status, 1, "
        "%s::timestamptz, %s::timestamptz + n * %s::interval from generate_series(0, %s - 1) n returning id",
        queue, task, state, at, at, every, count,
    )  # fmt: skip
    return [job for (job,) in rows]


def left(sql: Sql, **where: str) -> list[int]:
    """The ids of ended jobs that are still known."""
    condition = " and ".join(f"{key} = '{value}'" for key, value in where.items()) or "true"
    return [
        job for (job,) in sql(f"select id from procjobs.jobs where finished_at is not null and {condition} order by id")
    ]


def passes(fleet: Fleet, most: int = 50) -> int:
    """Passes until nothing is left to do; how many jobs were forgotten."""
    total = 0
    for _ in range(most):
        total += fleet.sql.one("select procjobs.run_retention()") or 0
        if not fleet.sql.one(
            "select exists (select from procjobs.upkeep_state where chore = 'run_retention' and ran_at = '-infinity')"
        ):
            return total
        fleet.sql("update procjobs.upkeep_state set ran_at = procjobs.clock() where chore = 'run_retention'")
    raise AssertionError("it does not end")


@pytest.fixture(autouse=True)
def chore(sql: Sql) -> None:
    """As upkeep leaves it."""
    sql("insert into procjobs.upkeep_state (chore, ran_at) values ('run_retention', now())")


def partitions(sql: Sql) -> list[str]:
    return [
        name for (name,) in sql(
            "select right(c.relname, 8) from pg_inherits i join pg_class c on c.oid = i.inhrelid "
            "where i.inhparent = 'procjobs.job_history'::regclass and c.relname ~ '[0-9]{8}$' order by 1"
        )
    ]  # fmt: skip


# -- which policy --------------------------------------------------------------------------------------------------


def test_out_of_the_box_the_history_is_kept_a_week_and_dead_letters_for_ever(sql: Sql) -> None:
    rules = {
        state: (age, last)
        for _, _, state, age, last in sql(
            "select task, queue, state, max_age::text, keep_last from procjobs.retention where queue is null"
        )
    }
    assert rules == {
        "succeeded": ("7 days", None), "cancelled": ("7 days", None), "aborted": ("7 days", None),
        "failed": (None, None),
    }  # fmt: skip


def test_what_stays_in_the_job_table_is_left_alone_until_somebody_says_so(fleet: Fleet, sql: Sql) -> None:
    """An application that moves over keeps what it kept: upstream forgets nothing by itself."""
    kept = [
        job for state in ("succeeded", "failed", "aborted") for job in end(sql, 2, "2020-01-01", state=state, kept=True)
    ]
    with fleet.at(NOON):
        assert passes(fleet) == 0
        assert left(sql) == kept
        sql("select procjobs.set_retention('30 days')")
        assert passes(fleet) == 4
    assert left(sql) == left(sql, state="failed") == kept[2:4]


def test_the_task_goes_before_the_queue_and_that_before_the_others(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_retention('1 hour')")
    sql("select procjobs.set_retention('3 hours', queue => 'mail')")
    sql("select procjobs.set_retention('5 hours', task => 'letter')")
    sql("select procjobs.set_retention(queue => 'mail', state => 'cancelled')")
    made = {}
    for queue, task, state in [
        ("default", "work", "succeeded"), ("mail", "work", "succeeded"), ("mail", "letter", "succeeded"),
        ("other", "letter", "aborted"), ("mail", "work", "cancelled"), ("mail", "letter", "cancelled"),
    ]:  # fmt: skip
        for hours in (2, 4, 6):
            (made[queue, task, state, hours],) = end(
                sql, 1, f"2031-05-10 {12 - hours}:00+00", queue=queue, task=task, state=state
            )
    with fleet.at(NOON):
        passes(fleet)
    allowed = {
        ("default", "work", "succeeded"): 1, ("mail", "work", "succeeded"): 3, ("mail", "letter", "succeeded"): 5,
        ("other", "letter", "aborted"): 5, ("mail", "work", "cancelled"): 99, ("mail", "letter", "cancelled"): 5,
    }  # fmt: skip
    assert left(sql) == sorted(job for (*key, hours), job in made.items() if hours < allowed[tuple(key)])  # type: ignore[index]


@pytest.mark.parametrize(
    "policy",
    ["queue => 'a', task => 'b'", "state => 'doing'", "max_age => '-1 day'", "keep_last => -1", "queue => ''",
     "task => repeat('x', 129)"],
)  # fmt: skip
def test_a_policy_that_cannot_be_is_refused_with_the_reason(refused: Callable[..., Any], policy: str) -> None:
    refused("PJ009", f"select procjobs.set_retention({policy})")


def test_a_policy_is_changed_and_taken_back(sql: Sql) -> None:
    assert (
        sql.one("select procjobs.set_retention('3 days', 10, queue => 'mail')")
        == "queue mail, all: 3 days and the last 10"
    )
    assert sql.one("select procjobs.set_retention(keep_last => 5, queue => 'mail')") == "queue mail, all: the last 5"
    assert sql.one("select count(*) from procjobs.retention where queue = 'mail'") == 4
    assert [sql.one("select procjobs.drop_retention('mail')") for _ in range(2)] == [True, False]
    sql("select procjobs.set_retention()")
    assert sql.one("select bool_and(max_age is null) from procjobs.retention")
    assert [sql.one("select procjobs.drop_retention()") for _ in range(2)] == [True, False]
    assert (
        sql.one("select max_age::text from procjobs.retention where state = 'succeeded' and queue is null") == "7 days"
    )
    assert [what for (what,) in sql("select what from procjobs.retention_passes order by id")] == [
        "set", "set", "drop", "set", "drop",
    ]  # fmt: skip


# -- the last N ----------------------------------------------------------------------------------------------------


def test_keep_the_last_100_completed_and_200_failed_jobs_of_a_queue(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_retention(keep_last => 100, queue => 'mail', state => 'succeeded')")
    sql("select procjobs.set_retention(keep_last => 200, queue => 'mail', state => 'failed')")
    done = end(sql, 250, "2031-05-10 11:00+00", queue="mail")
    dead = end(sql, 300, "2031-05-10 11:00+00", queue="mail", state="failed", kept=True)
    others = end(sql, 250, "2031-05-10 11:00+00")
    with fleet.at(NOON):
        assert passes(fleet) == 250
        assert left(sql, queue="mail", state="succeeded") == done[-100:]
        assert left(sql, queue="mail", state="failed") == dead[-200:]
        assert left(sql, queue="default") == others
    done += end(sql, 30, "2031-05-10 12:00+00", queue="mail", every="0.1 s")
    with fleet.at("2031-05-10 12:01+00"):
        assert passes(fleet) == 30
        assert left(sql, queue="mail", state="succeeded") == done[-100:]
        assert passes(fleet) == 0


def test_jobs_that_ended_in_one_moment_are_told_apart(fleet: Fleet, sql: Sql) -> None:
    """A worker ends a hundred jobs in one statement, with one time."""
    sql("select procjobs.set_retention(keep_last => 7)")
    done = end(sql, 20, "2031-05-10 11:00+00", every="0")
    with fleet.at(NOON):
        assert passes(fleet) == 13
    assert left(sql) == done[-7:]


def test_keep_none_keeps_none_and_each_queue_counts_for_itself(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_retention(keep_last => 2)")
    sql("select procjobs.set_retention(keep_last => 0, task => 'noise')")
    a, b = (end(sql, 4, "2031-05-10 11:00+00", queue=queue) for queue in ("a", "b"))
    end(sql, 4, "2031-05-10 11:00+00", queue="a", task="noise")
    with fleet.at(NOON):
        passes(fleet)
    assert left(sql) == sorted(a[-2:] + b[-2:])


def test_age_and_number_together_keep_what_both_keep(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_retention('1 hour', 3)")
    old, young = end(sql, 5, "2031-05-10 10:00+00"), end(sql, 2, "2031-05-10 11:30+00")
    assert old
    with fleet.at(NOON):
        passes(fleet)
        assert left(sql) == young
    young += end(sql, 4, "2031-05-10 12:00+00")
    with fleet.at("2031-05-10 12:01+00"):
        passes(fleet)
    assert left(sql) == young[-3:]


def test_jobs_that_went_another_way_do_not_make_younger_ones_go(fleet: Fleet, sql: Sql) -> None:
    """The last five are five that are there: a count that still had those retried by hand would delete too many."""
    sql("select procjobs.set_retention(keep_last => 5, state => 'failed')")
    dead = end(sql, 5, "2031-05-10 11:00+00", state="failed", kept=True)
    with fleet.at(NOON):
        assert passes(fleet) == 0
        sql("select procjobs.purge_dead_letters(max_jobs => 3, dry_run => false)")
    more = end(sql, 3, "2031-05-10 12:01+00", state="failed", kept=True)
    with fleet.at("2031-05-10 12:02+00"):
        assert passes(fleet) == 0
        assert left(sql) == dead[3:] + more
    more += end(sql, 1, "2031-05-10 12:02+00", state="failed", kept=True)
    with fleet.at("2031-05-10 12:03+00"):
        assert passes(fleet) == 1
    assert left(sql) == [dead[4], *more]


def test_a_long_history_is_counted_in_slices_and_trimmed_in_batches(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_retention(keep_last => 1000)")
    done = end(sql, 45_000, "2031-05-09 11:00+00")
    with fleet.at(NOON):
        counts = []
        while len(left(sql)) > 1000:
            counts.append(sql.one("select procjobs.run_retention(max_rows => 20000)"))
            assert len(counts) < 10
    assert max(counts) <= 20_000
    assert left(sql) == done[-1000:]


# -- days ----------------------------------------------------------------------------------------------------------


def test_a_day_whose_jobs_may_all_go_is_dropped_whole(fleet: Fleet, sql: Sql) -> None:
    for day in ("2031-05-01", "2031-05-02", "2031-05-03"):
        sql("select procjobs.ensure_history_partition(%s)", day)
        end(sql, 10, f"{day} 13:00+00")
    with fleet.at(NOON):
        assert passes(fleet) == 20
    assert "20310501" not in partitions(sql) and "20310502" not in partitions(sql) and "20310503" in partitions(sql)
    assert sorted(sql("select partitions, jobs from procjobs.retention_passes where what = 'pass'")) == [
        (["2031-05-01"], 10), (["2031-05-02"], 10),
    ]  # fmt: skip


def test_one_job_that_is_to_be_kept_keeps_its_day_and_the_others_go_by_rows(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.ensure_history_partition('2031-05-01')")
    sql("select procjobs.set_retention('90 days', queue => 'books')")
    end(sql, 10, "2031-05-01 13:00+00")
    (kept,) = end(sql, 1, "2031-05-01 13:00+00", queue="books")
    with fleet.at(NOON):
        assert passes(fleet) == 10
        assert left(sql) == [kept]
        assert "20310501" in partitions(sql)
    with fleet.at("2031-08-10 12:00+00"):
        assert passes(fleet) == 1
        assert "20310501" not in partitions(sql)


def test_a_batch_that_has_not_finished_keeps_its_jobs(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.ensure_history_partition('2031-05-01')")
    sql("select procjobs.set_retention('1 hour', 0)")
    batch = sql.one("insert into procjobs.job_batches (name, created_at) values ('b', now()) returning id")
    jobs = end(sql, 3, "2031-05-01 13:00+00") + end(sql, 3, "2031-05-10 10:00+00")
    jobs += end(sql, 3, "2031-05-10 10:00+00", kept=True)
    sql("update procjobs.job_history set batch = %s", batch)
    sql("alter table procrastinate_jobs disable trigger user")
    sql("update procrastinate_jobs set pj_batch = %s", batch)
    with fleet.at(NOON):
        assert passes(fleet) == 0
        assert sql.one("select procjobs.delete_old_jobs(0, null, '{succeeded}')") == 0
        assert left(sql) == sorted(jobs)
        sql("update procjobs.job_batches set sealed_at = now(), finished_at = now()")
    with fleet.at("2031-05-11 12:01+00"):
        assert passes(fleet) == 9


def test_jobs_that_wait_or_run_are_never_forgotten(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_retention('0', 0)")
    fleet.defer_many(3)
    fleet.claim(fleet.worker(), 1)
    fleet.defer(scheduled_at=60)
    with fleet.at("2040-01-01 00:00+00"):
        passes(fleet)
    assert sql.one("select count(*) from procrastinate_jobs") == 4


# -- what belongs to jobs ------------------------------------------------------------------------------------------


def traced(sql: Sql, jobs: list[int], at: str) -> None:
    sql(
        "insert into procjobs.job_attempts (job_id, attempt, lease, outcome, finished_at) "
        "select j, 1, 1, 'failed', %s::timestamptz from unnest(%s::bigint[]) j", at, jobs,
    )  # fmt: skip
    sql(
        "insert into procjobs.job_events (job_id, at, type) "
        "select j, %s::timestamptz, 'retried' from unnest(%s::bigint[]) j",
        at,
        jobs,
    )


def traces(sql: Sql) -> set[int]:
    return {
        job for (job,) in sql("select job_id from procjobs.job_attempts union select job_id from procjobs.job_events")
    }


def test_attempts_and_events_go_with_their_jobs_in_batches_and_in_days(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.ensure_history_partition('2031-05-01')")
    dropped = end(sql, 5, "2031-05-01 13:00+00")
    kept = end(sql, 5, "2031-05-09 13:00+00")
    hourly = end(sql, 5, "2031-05-09 13:00+00", queue="hourly")
    dead = end(sql, 2, "2031-05-01 13:00+00", state="failed", kept=True)
    waiting = fleet.defer()
    sql("select procjobs.set_retention('1 hour', queue => 'hourly')")
    traced(sql, [*dropped, *dead, waiting], "2031-05-01 13:00+00")
    traced(sql, kept + hourly, "2031-05-09 13:00+00")
    with fleet.at(NOON):
        assert passes(fleet) == 10
    assert traces(sql) == {*kept, *dead, waiting}


# -- the pass ------------------------------------------------------------------------------------------------------


def test_upkeep_does_it_and_what_it_did_is_in_the_log(fleet: Fleet, sql: Sql) -> None:
    sql("delete from procjobs.upkeep_state")
    sql("select procjobs.set_retention('1 hour', queue => 'mail', state => 'succeeded')")
    end(sql, 3, "2031-05-10 10:00+00", queue="mail")
    with fleet.at(NOON):
        sql("select procjobs.upkeep()")
        assert left(sql) == []
    ((jobs, partitions, took, detail),) = sql(
        "select jobs, partitions, took, detail from procjobs.retention_passes where what = 'pass'"
    )
    assert (jobs, partitions, detail) == (3, None, {"queue mail, succeeded: 01:00:00": 3})
    assert took is not None


def test_one_pass_is_bounded_and_the_next_comes_at_once(fleet: Fleet, sql: Sql) -> None:
    sql("delete from procjobs.upkeep_state")
    sql("select procjobs.set_retention('1 hour')")
    end(sql, 12_000, "2031-05-10 05:00+00", every="0.1 s")
    with fleet.at(NOON):
        counts = []
        for _ in range(4):
            sql("select procjobs.upkeep()")
            counts.append(len(left(sql)))
        assert counts == [7000, 2000, 0, 0]
        end(sql, 1, "2031-05-10 10:59:59+00")
        sql("select procjobs.upkeep()")
        assert len(left(sql)) == 1  # not again within the minute


def test_who_reads_the_history_for_long_delays_the_drop_and_nobody_else(fleet: Fleet, rival: Fleet, sql: Sql) -> None:
    sql("select procjobs.ensure_history_partition('2031-05-01')")
    end(sql, 10, "2031-05-01 13:00+00")
    worker = fleet.worker()
    with rival.sql.connection.transaction():
        rival.sql("select count(*) from procjobs.job_history")
        began = time.monotonic()
        with fleet.at(NOON):
            # It goes by rows then, as long as that lasts.
            assert Thread(lambda: sql.one("select procjobs.run_retention()")).result() == 10
        assert time.monotonic() - began < 1
        fleet.defer()
        (claim,) = fleet.claim(worker)
        assert fleet.finish(claim) == [claim.id]
        assert "20310501" in partitions(sql)
    with fleet.at("2031-05-10 12:11+00"):
        sql("select procjobs.run_retention()")
    assert "20310501" not in partitions(sql)


def test_a_row_that_somebody_holds_is_passed_over(fleet: Fleet, rival: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_retention('1 hour')")
    held, free = end(sql, 1, "2031-05-10 09:00+00"), end(sql, 1, "2031-05-10 09:00+00")
    sql("set lock_timeout = '300ms'")
    with rival.sql.connection.transaction(force_rollback=True), fleet.at(NOON):
        rival.sql("select * from procjobs.job_history where id = %s for update", held[0])
        assert passes(fleet) == 1
    assert free and left(sql) == held
    with fleet.at("2031-05-11 12:01+00"):
        assert passes(fleet) == 1


def test_two_passes_at_once_are_one(fleet: Fleet, rival: Fleet, sql: Sql) -> None:
    with rival.sql.connection.transaction():
        rival.sql("select procjobs.run_retention()")
        assert sql.one("select procjobs.run_retention()") is None


def test_a_purge_during_load_loses_nothing_and_makes_nobody_wait(dsn: str, fleet: Fleet, sql: Sql) -> None:
    """Days are dropped and rows deleted while two workers finish jobs as fast as they can."""
    sql("select procjobs.ensure_history_partitions()")
    for ago in range(9, 15):
        sql("select procjobs.ensure_history_partition((now() - make_interval(days => %s))::date)", ago)
    sql("select procjobs.set_retention('1 hour', queue => 'old')")
    sql(
        "insert into procjobs.job_history (id, queue_name, task_name, priority, args, status, attempts, crashes, "
        "lease, finished_at) "
        "select -n, case when n % 2 = 0 then 'old' else 'x' end, 'work', 0, '{}', 'succeeded', 1, 0, 1, "
        "now() - interval '1 minute' - n * interval '18 seconds' from generate_series(1, 60000) n"
    )
    total = 3000
    fleet.defer_many(total)

    def work() -> float:
        slowest = 0.0
        with opened(dsn) as mine:
            worker = mine.worker()
            while claims := mine.claim(worker, 20):
                began = time.monotonic()
                assert len(mine.finish(*claims)) == len(claims)  # or lock_timeout: it waits 300 ms at most
                slowest = max(slowest, time.monotonic() - began)
        return slowest

    workers = [Thread(work) for _ in range(2)]
    rounds = 0
    while any(worker.is_alive() for worker in workers) or rounds < 15:
        sql("select procjobs.run_retention(max_rows => 2000)")
        rounds += 1
    assert max(worker.result(60) for worker in workers) < 1
    assert sql.one("select count(*) from procjobs.job_history where queue_name = 'default'") == total
    assert sql.one("select count(*) from procjobs.retention_passes where partitions is not null") >= 3
    assert sql.one("select sum(jobs) from procjobs.retention_passes where partitions is null") >= 2000


# -- plans ---------------------------------------------------------------------------------------------------------


def test_at_a_hundred_thousand_rows_a_pass_reads_what_is_new_and_what_goes(dsn: str, sql: Sql) -> None:
    sql("set client_min_messages = warning")
    for queue in ("rare", "busy"):
        sql("select procjobs.set_retention(keep_last => 100, queue => %s)", queue)
    sql("select procjobs.set_retention('30 days')")
    end(sql, 100_000, "2031-05-09 06:00+00", every="1 s")
    end(sql, 150, "2031-05-09 06:00+00", every="10 minutes", queue="rare", state="failed", kept=True)
    end(sql, 5000, "2031-05-09 06:00+00", every="10 s", queue="busy")
    end(sql, 5000, "2031-05-09 06:00+00", every="10 s", state="failed", kept=True)
    sql("vacuum analyze procjobs.job_history, procrastinate_jobs")
    fleet = Fleet(sql)
    with fleet.at("2031-05-10 12:00+00"):
        assert passes(fleet) == 4950
    end(sql, 50, "2031-05-10 12:00+00", every="0.1 s", queue="busy")
    end(sql, 500, "2031-05-10 12:00+00", every="0.1 s")
    watched = Watched(dsn)

    def act(_: Fleet) -> None:
        watched.sql("select set_config('procjobs.now', '2031-05-10 12:01+00', true)")
        assert watched.sql.one("select procjobs.run_retention()") == 50

    statements = watched.watch(act)
    watched.sql.connection.close()
    scans = [scan for statement in statements for scan in statement.scans]
    assert not [scan for scan in scans if scan[0] == "Seq Scan" and scan[2] > 10]
    assert sum(statement.reads for statement in statements) < 10_000


def test_a_policy_with_no_work_leaves_no_row_in_the_log(fleet: Fleet, sql: Sql) -> None:
    with fleet.at(NOON):
        assert passes(fleet) == 0
    assert sql("select * from procjobs.retention_passes") == []


def test_deletes_of_procrastinate_take_attempts_and_events_along(fleet: Fleet, sql: Sql) -> None:
    jobs = end(sql, 2, "2031-05-01 13:00+00") + end(sql, 2, "2031-05-01 13:00+00", state="failed", kept=True)
    traced(sql, jobs, "2031-05-01 13:00+00")
    with fleet.at(NOON):
        assert sql.one("select procjobs.delete_old_jobs(24, null, '{succeeded,failed}')") == 4
    assert traces(sql) == set()
    assert sql("select what, jobs, detail ->> 'hours' from procjobs.retention_passes") == [("delete_old_jobs", 4, "24")]
