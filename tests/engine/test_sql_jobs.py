"""SQL jobs in a worker: routines that succeed, fail, commit as they go, run too long, are cancelled and cut off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest

import procjobs
from tests.conftest import Sql, with_user

from .conftest import Drain, Working

Run = Callable[..., Any]

ROUTINES = """
create table public.marks (what text, who text, at timestamptz default clock_timestamp());

create function public.double(n int) returns int language sql as 'select n * 2';

create function public.broken(n int) returns int language plpgsql as $$
begin
  insert into marks values ('broken', current_user);
  raise exception 'no % left', n using detail = 'the shelf', hint = 'buy some', errcode = 'UE001';
end$$;

create procedure public.batches(n int, inout done int default 0) language plpgsql as $$
begin
  for i in 1 .. n loop
    insert into marks values ('batch ' || i, current_user);
    done := done + 1;
    perform procjobs.progress(100.0 * i / n, 'batch ' || i);
    commit;
  end loop;
end$$;

create procedure public.half() language plpgsql as $$
begin
  insert into marks values ('first half', current_user);
  commit;
  insert into marks values ('second half', current_user);
  raise exception 'stuck';
end$$;

-- Says that it runs, then waits for whoever holds the advisory lock 77.
create function public.wait() returns text language plpgsql as $$
begin
  perform procjobs.progress(10, 'waiting');
  perform pg_advisory_xact_lock(77);
  insert into marks values ('waited', current_user);
  return current_setting('application_name');
end$$;

create procedure public.wait_after_commit() language plpgsql as $$
begin
  insert into marks values ('committed', current_user);
  commit;
  perform pg_advisory_xact_lock(77);
  insert into marks values ('not committed', current_user);
end$$;

create function public.whoami() returns text language sql as 'select current_user || '' '' || session_user';
create procedure public.iam(inout who text default null) language plpgsql as $$
begin
  commit;
  who := current_user;
end$$;
create function public.pollute() returns void language plpgsql as $$
begin
  perform set_config('work_mem', '77MB', false), set_config('search_path', 'nowhere', false);
end$$;
create function public.settings() returns text language sql as
  'select current_setting(''work_mem'') || '' '' || current_setting(''search_path'')';
create function public.exact() returns numeric language sql as 'select 1.00000000000000000000000000001';
create function public.large() returns text language sql as 'select repeat(''x'', 1100000)';
"""
TASKS = (
    "double", "broken", "batches", "half", "wait", "wait_after_commit", "whoami", "iam", "pollute", "settings", "exact",
    "large",
)  # fmt: skip


@pytest.fixture
def routines(sql: Sql) -> None:
    for statement in ROUTINES.split("\n\n"):
        sql(statement)
    for name in TASKS:
        sql("select procjobs.register_sql_task(%s, %s)", name, name)


@pytest.fixture
def gate(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Holds the lock that `wait` waits for; closing it lets go."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute("select pg_advisory_lock(77)")
    yield connection
    connection.close()


def defer(sql: Sql, task: str, *, timeout: str | None = None, attempts: int | None = None, **args: Any) -> int:
    query = "select procjobs.defer(%s, %s, timeout => %s::interval, max_attempts => %s)"
    return int(sql.one(query, task, json.dumps(args), timeout, attempts))


def outcome(sql: Sql, job: int) -> tuple[Any, ...]:
    (row,) = sql("select status, result, error_class, error_message from procjobs.job_outcome(%s)", job)
    return row


def marks(sql: Sql) -> list[str]:
    return [what for (what,) in sql("select what from marks order by at")]


def progress(sql: Sql, job: int) -> list[tuple[Any, ...]]:
    return sql("select percent, message from procjobs.job_progress where job_id = %s", job)


def backend(sql: Sql, job: int) -> list[int]:
    """The server process that waits in the routine of a job."""
    return [
        pid
        for (pid,) in sql(
            "select pid from pg_stat_activity where application_name like %s and wait_event_type = 'Lock'",
            f"procjobs job {job} %",
        )
    ]


@pytest.mark.usefixtures("routines")
async def test_the_result_of_a_routine_is_the_jobs(sql: Sql, drain: Drain) -> None:
    double, batches, exact, large = (
        defer(sql, "double", n=21), defer(sql, "batches", n=3), defer(sql, "exact"), defer(sql, "large"),
    )  # fmt: skip
    await drain()
    assert outcome(sql, double)[:2] == ("succeeded", 42)
    assert outcome(sql, batches)[:2] == ("succeeded", 3)
    assert sql.one("select procjobs.job_result(%s)::text", exact) == "1.00000000000000000000000000001"
    assert outcome(sql, large)[:2] == ("succeeded", None)
    assert "1100002 bytes" in sql.one("select note from procjobs.jobs where id = %s", large)
    assert marks(sql) == ["batch 1", "batch 2", "batch 3"]


@pytest.mark.usefixtures("routines")
async def test_an_error_of_a_routine_is_told_and_retried_by_policy(sql: Sql, drain: Drain) -> None:
    sql(
        "select procjobs.register_sql_task('broken', 'broken', max_attempts => 2, backoff_base => '0',"
        " backoff_cap => '0')"
    )
    job = defer(sql, "broken", n=3)
    await drain()
    assert outcome(sql, job) == (
        "failed", None, "SQLSTATE UE001", "no 3 left\nDETAIL: the shelf\nHINT: buy some",
    )  # fmt: skip
    runs = sql("select outcome, traceback from procjobs.job_attempts where job_id = %s", job)
    assert [run for run, _ in runs] == ["failed", "failed"]
    assert "function public.broken(integer) line 4 at RAISE" in runs[0][1] or "broken(integer) line 4" in runs[0][1]
    assert marks(sql) == [], "a function that fails has done nothing"


@pytest.mark.usefixtures("routines")
async def test_what_a_procedure_committed_before_it_failed_stays(sql: Sql, drain: Drain) -> None:
    job = defer(sql, "half")
    await drain()
    assert outcome(sql, job)[0::2] == ("failed", "SQLSTATE P0001")
    assert marks(sql) == ["first half"]


@pytest.mark.usefixtures("routines")
async def test_progress_is_seen_before_the_routine_commits(
    sql: Sql, working: Working, gate: psycopg.Connection[Any], eventually: Run
) -> None:
    job = defer(sql, "wait")
    async with working():
        await eventually(lambda: progress(sql, job) == [(10.0, "waiting")])
        assert marks(sql) == []
        assert len(await eventually(lambda: backend(sql, job))) == 1
        gate.close()
        await eventually(lambda: outcome(sql, job)[0] == "succeeded")
    assert outcome(sql, job)[1] == f"procjobs job {job} wait", "the server shows which job it runs"


@pytest.mark.usefixtures("routines", "gate")
async def test_a_routine_over_its_time_is_stopped_in_the_server(sql: Sql, working: Working, eventually: Run) -> None:
    job = defer(sql, "wait", timeout="0.3 s")
    async with working():
        await eventually(lambda: outcome(sql, job)[0] == "failed")
        assert outcome(sql, job)[2] == "JobTimeout"
        assert backend(sql, job) == []
    assert marks(sql) == []


@pytest.mark.usefixtures("routines", "gate")
async def test_a_cancelled_routine_is_stopped_in_the_server(sql: Sql, working: Working, eventually: Run) -> None:
    job = defer(sql, "wait_after_commit")
    async with working():
        await eventually(lambda: backend(sql, job))
        sql("select procjobs.cancel(%s)", job)
        await eventually(lambda: outcome(sql, job)[0] == "aborted")
        assert backend(sql, job) == []
    assert marks(sql) == ["committed"]


@pytest.mark.usefixtures("routines")
async def test_a_worker_that_stops_gives_the_job_back(
    sql: Sql, working: Working, gate: psycopg.Connection[Any], eventually: Run, drain: Drain
) -> None:
    job = defer(sql, "wait")
    async with working(shutdown_graceful_timeout=0.0):
        await eventually(lambda: backend(sql, job))
    assert sql("select status::text, attempts from procrastinate_jobs where id = %s", job) == [("todo", 0)]
    assert backend(sql, job) == []
    gate.close()
    await drain()
    assert outcome(sql, job)[0] == "succeeded"


@pytest.mark.usefixtures("routines", "gate")
async def test_a_lost_connection_is_a_crash(sql: Sql, working: Working, eventually: Run) -> None:
    job = defer(sql, "wait")
    async with working():
        (pid,) = await eventually(lambda: backend(sql, job))
        sql("select pg_terminate_backend(%s)", pid)
        await eventually(lambda: sql("select 1 from procjobs.job_attempts where job_id = %s", job))
    assert sql("select outcome, error_class from procjobs.job_attempts where job_id = %s", job) == [
        ("crashed", "ProcessDied")
    ]


@pytest.mark.usefixtures("routines")
async def test_a_job_whose_last_run_is_still_on_the_server_waits(
    sql: Sql, dsn: str, working: Working, eventually: Run
) -> None:
    """The worker is gone, its jobs were given to others; its statement goes on: the next must not run beside it."""
    job = defer(sql, "double", n=1)
    with psycopg.connect(dsn, autocommit=True) as old:
        taken = "select pg_advisory_lock(procjobs.sql_lock_class('job'), %s)"
        old.execute(taken.encode(), (job,))
        async with working():
            await eventually(lambda: sql("select 1 from procjobs.job_attempts where job_id = %s", job))
            assert sql("select outcome, error_message from procjobs.job_attempts where job_id = %s", job) == [
                ("snoozed", "its last run has not ended on the server yet")
            ]
            assert sql("select attempts from procrastinate_jobs where id = %s", job) == [(0,)]
    sql("update procrastinate_jobs set scheduled_at = null where id = %s", job)
    async with working():
        await eventually(lambda: outcome(sql, job)[0] == "succeeded")


@pytest.mark.usefixtures("routines")
async def test_what_a_routine_sets_in_its_session_is_gone_for_the_next(sql: Sql, drain: Drain) -> None:
    before, _, after = defer(sql, "settings"), defer(sql, "pollute"), defer(sql, "settings")
    await drain(concurrency=1)
    assert outcome(sql, after)[1] == outcome(sql, before)[1]
    assert "77MB" not in outcome(sql, before)[1]


@pytest.mark.usefixtures("routines")
async def test_a_worker_knows_of_a_task_that_is_registered_while_it_runs(
    sql: Sql, working: Working, eventually: Run
) -> None:
    async with working():
        sql("create function late() returns int language sql as 'select 1'")
        sql("select procjobs.register_sql_task('late', 'late')")
        job = defer(sql, "late")
        await eventually(lambda: outcome(sql, job)[0] == "succeeded")
        sql("select procjobs.drop_sql_task('late')")


@pytest.mark.usefixtures("routines")
async def test_a_routine_that_is_gone_fails_with_what_to_do(sql: Sql, drain: Drain) -> None:
    job = defer(sql, "double", n=1)
    sql("drop function double")
    await drain()
    assert outcome(sql, job)[2] == "SQLSTATE PJ016"
    assert "HINT: Create it again" in outcome(sql, job)[3]


@pytest.mark.usefixtures("routines")
async def test_more_jobs_than_connections(sql: Sql, drain: Drain) -> None:
    jobs = [defer(sql, "double", n=n) for n in range(30)]
    await drain(concurrency=20)
    assert [outcome(sql, job)[1] for job in jobs] == [2 * n for n in range(30)]


@pytest.fixture
async def clerk(sql: Sql, dsn: str) -> AsyncIterator[procjobs.App]:
    """The app of a login pj_clerk, who may work, and act as pj_cleaner."""
    sql("create role pj_cleaner")
    sql("create role pj_clerk login in role procjobs_worker, pj_cleaner")
    sql("grant insert, select on marks to pj_cleaner")
    application = procjobs.App(with_user(dsn, "pj_clerk"))
    async with application.open_async():
        yield application
    sql("drop owned by pj_cleaner, pj_clerk")
    sql("drop role pj_clerk, pj_cleaner")


async def test_a_routine_runs_as_the_role_it_was_registered_for(
    sql: Sql, routines: None, clerk: procjobs.App, eventually: Run
) -> None:
    sql("create table secrets (what text)")
    sql("grant select on secrets to pj_clerk")
    sql("create function peep() returns bigint language sql as 'select count(*) from secrets'")
    for name in ("peep", "sneak"):
        sql(
            "select procjobs.register_sql_task(%s, 'peep', run_as => %s)",
            name,
            "pj_cleaner" if name == "sneak" else None,
        )
    own, peep, sneak = defer(sql, "whoami"), defer(sql, "peep"), defer(sql, "sneak")
    sql("select procjobs.register_sql_task('whoami', 'whoami', run_as => 'pj_cleaner')")
    sql("select procjobs.register_sql_task('iam', 'iam', run_as => 'pj_cleaner')")
    proc = defer(sql, "iam")
    await clerk.run_worker_async(wait=False, install_signal_handlers=False, concurrency=1)
    assert outcome(sql, own)[1] == "pj_cleaner pj_clerk"
    assert outcome(sql, proc)[1] == "pj_cleaner"
    assert outcome(sql, peep)[1] == 0
    assert outcome(sql, sneak)[2] == "SQLSTATE 42501", "the worker may, the role may not"
