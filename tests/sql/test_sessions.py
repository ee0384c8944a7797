"""SQL jobs without a worker: sessions that call run_sql_jobs, and how they live and die."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql as Queries

from .conftest import Sql, Worker

Eventually = Callable[..., Any]

ROUTINES = """
create table public.marks (what text, at timestamptz default clock_timestamp());

create function public.mark(what text, fail boolean default false) returns int language plpgsql as $$
begin
  insert into marks values (mark.what);
  if fail then
    raise exception 'no %', what using detail = 'the detail', hint = 'the hint', errcode = 'UE001';
  end if;
  return 7;
end$$;

create procedure public.batches(n int, inout done int default 0, fail boolean default false) language plpgsql as $$
begin
  for i in 1 .. n loop
    insert into marks values ('batch ' || i);
    done := done + 1;
    perform procjobs.progress(100.0 * i / n, 'batch ' || i);
    commit;
  end loop;
  if fail then
    raise exception 'stuck';
  end if;
end$$;

create function public.wait() returns int language plpgsql as $$
begin
  insert into marks values ('waits');
  perform pg_advisory_xact_lock(77);
  return 1;
end$$;

create procedure public.wait_between() language plpgsql as $$
begin
  insert into marks values ('committed');
  commit;
  perform pg_advisory_xact_lock(77);
end$$;
"""


@pytest.fixture(autouse=True)
def routines(sql: Sql) -> None:
    for statement in ROUTINES.split("\n\n"):
        sql(statement)
    for name in ("mark", "batches", "wait", "wait_between"):
        sql("select procjobs.register_sql_task(%s, %s)", name, name)


class Call:
    """`call procjobs.run_sql_jobs()` in a session of its own and a thread."""

    def __init__(self, dsn: str, name: str = "caller") -> None:
        self.connection = psycopg.connect(dsn, autocommit=True, application_name=name)
        self.pid = self.connection.info.backend_pid
        self.error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.connection.execute("call procjobs.run_sql_jobs()")
        except psycopg.Error as error:
            self.error = error

    def end(self) -> psycopg.Error | None:
        """Wait for its end; the error it ended with."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.error


@pytest.fixture
def gate(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Holds the lock that the routines wait for; closing it lets go."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute("select pg_advisory_lock(77)")
    yield connection
    connection.close()


@pytest.fixture
def calling(dsn: str, gate: psycopg.Connection[Any]) -> Iterator[Callable[..., Call]]:
    calls: list[Call] = []

    def start(**options: Any) -> Call:
        calls.append(Call(dsn, **options))
        return calls[-1]

    yield start
    gate.close()
    for call in calls:
        call.end()
        call.connection.close()


def defer(sql: Sql, task: str, *, timeout: str | None = None, **args: Any) -> int:
    return int(sql.one("select procjobs.defer(%s, %s, timeout => %s::interval)", task, json.dumps(args), timeout))


def outcome(sql: Sql, job: int) -> tuple[Any, ...]:
    (row,) = sql("select status, result, error_class, error_message from procjobs.job_outcome(%s)", job)
    return row


def marks(sql: Sql) -> list[str]:
    return [what for (what,) in sql("select what from marks order by at")]


def waits(sql: Sql, pid: int) -> bool:
    return bool(sql("select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'", pid))


def upkeep(sql: Sql) -> list[tuple[Any, ...]]:
    return sql("select procjobs.stop_sessions(), procjobs.upkeep()")


def status(sql: Sql, job: int) -> str:
    """After a round of upkeep."""
    upkeep(sql)
    return str(outcome(sql, job)[0])


def test_a_call_runs_what_there_is_and_ends(sql: Sql) -> None:
    one, three, failing = (
        defer(sql, "mark", what="a"),
        defer(sql, "batches", n=3),
        defer(sql, "mark", what="b", fail=True),
    )
    sql("call procjobs.run_sql_jobs()")
    assert outcome(sql, one)[:2] == ("succeeded", 7)
    assert outcome(sql, three)[:2] == ("succeeded", 3)
    assert outcome(sql, failing)[2:] == ("SQLSTATE UE001", "no b\nDETAIL: the detail\nHINT: the hint")
    assert marks(sql) == ["a", "batch 1", "batch 2", "batch 3"], "what failed has done nothing"
    assert sql("select percent, message from procjobs.job_progress where job_id = %s", three) == [(100.0, "batch 3")]
    assert sql("select 1 from procjobs.worker_state") == [], "a session that ended in order leaves no row"
    assert sql("select 1 from pg_locks where locktype = 'advisory'") == []


def test_at_most_so_many_jobs(sql: Sql) -> None:
    jobs = [defer(sql, "mark", what=str(n)) for n in range(3)]
    sql("call procjobs.run_sql_jobs(max_jobs => 2)")
    assert [outcome(sql, job)[0] for job in jobs] == ["succeeded", "succeeded", "todo"]


def test_a_call_with_time_goes_on_looking(sql: Sql, dsn: str, eventually: Eventually) -> None:
    with psycopg.connect(dsn, autocommit=True) as other:
        thread = threading.Thread(target=lambda: other.execute("call procjobs.run_sql_jobs(5)"))
        thread.start()
        # Long enough that a clock which stood still since the call began would show.
        lasts = "select 1 from procjobs.worker_state where kind = 'session' and started_at < now() - interval '1 s'"
        eventually(lambda: sql(lasts))
        job = defer(sql, "mark", what="late")
        eventually(lambda: outcome(sql, job)[0] == "succeeded")
        (times,) = sql(
            "select started_at > created_at - interval '0.5 s' and started_at < finished_at"
            " from procjobs.jobs where id = %s",
            job,
        )
        assert times == (True,), "time goes on in a call that lasts"
        thread.join(20)
        assert not thread.is_alive()


def test_jobs_of_workers_are_left_alone(sql: Sql, register: Callable[..., int], worker: Callable[..., Worker]) -> None:
    """A session knows no task of theirs: it must not set their jobs aside."""
    register("python")
    theirs = [sql.one("select procjobs.defer('python')") for _ in range(5)]
    ours = defer(sql, "mark", what="x")
    sql("call procjobs.run_sql_jobs()")
    assert outcome(sql, ours)[0] == "succeeded"
    assert sql("select distinct pj_waits_for from procrastinate_jobs") == [(None,)]
    assert worker("python").claim() == theirs


def test_without_a_worker_a_long_queue_in_front_hides_no_job(sql: Sql, register: Callable[..., int]) -> None:
    register("python")
    sql(
        "insert into procrastinate_jobs (task_name, queue_name)"
        " select 'python', 'default' from generate_series(1, 3000)"
    )
    job = defer(sql, "mark", what="x")
    able = "select procjobs.register_worker('w', 'h', 7, '1', null, array['python'], 1, '10 s', '30 s', true)"
    living = sql.one(able)
    sql("call procjobs.run_sql_jobs()")
    assert outcome(sql, job)[0] == "todo", "a worker comes to it in order"
    sql("select procjobs.stop_worker(%s)", living)
    sql("call procjobs.run_sql_jobs()")
    assert outcome(sql, job)[0] == "succeeded"


def test_limits_locks_and_pauses_hold_for_sessions_too(sql: Sql, worker: Callable[..., Worker]) -> None:
    sql("select procjobs.pause_task('mark')")
    paused = defer(sql, "mark", what="paused")
    first = sql.one("select procjobs.defer('batches', '{\"n\": 1}', lock => 'l')")
    second = sql.one("select procjobs.defer('batches', '{\"n\": 2}', lock => 'l')")
    sql("call procjobs.run_sql_jobs()")
    assert [outcome(sql, job)[0] for job in (paused, first, second)] == ["todo", "succeeded", "succeeded"]
    assert marks(sql) == ["batch 1", "batch 1", "batch 2"]
    sql("select procjobs.resume_task('mark')")
    sql("call procjobs.run_sql_jobs()")
    assert outcome(sql, paused)[0] == "succeeded"


def test_the_work_of_a_function_and_its_end_are_one(
    sql: Sql, calling: Callable[..., Call], eventually: Eventually
) -> None:
    job = defer(sql, "wait")
    call = calling()
    eventually(lambda: waits(sql, call.pid))
    sql("select pg_terminate_backend(%s)", call.pid)
    call.end()
    assert marks(sql) == []
    eventually(lambda: (upkeep(sql), sql("select 1 from procjobs.job_attempts where job_id = %s", job))[1])
    assert sql("select outcome, error_class, worker_name from procjobs.job_attempts where job_id = %s", job) == [
        ("crashed", "SessionDied", f"caller {call.pid}")
    ]
    assert sql("select status::text, attempts from procrastinate_jobs where id = %s", job) == [("todo", 0)]


def test_a_session_that_lives_is_left_alone_however_long_it_works(
    sql: Sql, calling: Callable[..., Call], gate: psycopg.Connection[Any], eventually: Eventually
) -> None:
    job = defer(sql, "wait_between")
    call = calling()
    eventually(lambda: waits(sql, call.pid))
    # A day later no heart has beaten; its lock is there.
    sql("select set_config('procjobs.now', (now() + interval '1 day')::text, false)")
    upkeep(sql)
    sql("select set_config('procjobs.now', (now() + interval '2 days')::text, false)")
    upkeep(sql)
    assert outcome(sql, job)[0] == "doing"
    ((beat,),) = sql("select w.last_heartbeat > now() + interval '1 day' from procjobs.worker_state w")
    assert beat, "for upstream's workers it looks alive"
    sql("select set_config('procjobs.now', '', false)")
    gate.close()
    assert call.end() is None
    assert outcome(sql, job)[0] == "succeeded"


def test_a_procedure_that_fails_ends_the_call_and_its_job_soon_after(
    sql: Sql, dsn: str, eventually: Eventually
) -> None:
    failing, next_one = defer(sql, "batches", n=2, fail=True), defer(sql, "mark", what="next")
    other = Queries(dsn)
    with pytest.raises(psycopg.Error, match="stuck"):
        other("call procjobs.run_sql_jobs()")
    assert outcome(sql, failing)[0] == "doing"
    # The session lives on, idle, and holds its lock: it works no more.
    eventually(lambda: status(sql, failing) == "failed")
    assert outcome(sql, failing)[2] == "RoutineFailed"
    assert marks(sql) == ["batch 1", "batch 2"]
    other("call procjobs.run_sql_jobs()")
    assert outcome(sql, next_one)[0] == "succeeded"
    other.connection.close()


def test_a_session_that_comes_back_gives_up_what_it_left(sql: Sql) -> None:
    job = defer(sql, "batches", n=1, fail=True)
    with pytest.raises(psycopg.Error, match="stuck"):
        sql("call procjobs.run_sql_jobs()")
    sql("call procjobs.run_sql_jobs()")
    assert status(sql, job) == "failed"
    assert sql("select 1 from pg_locks where locktype = 'advisory'") == []


def test_a_job_over_its_time_is_stopped(sql: Sql, calling: Callable[..., Call], eventually: Eventually) -> None:
    job, after = defer(sql, "wait", timeout="0.5 s"), defer(sql, "mark", what="after")
    call = calling()
    eventually(lambda: status(sql, job) == "failed")
    assert outcome(sql, job)[2] == "JobTimeout"
    assert call.end() is None
    assert outcome(sql, after)[0] == "succeeded", "the call goes on with the next"


def test_a_cancelled_job_is_stopped(sql: Sql, calling: Callable[..., Call], eventually: Eventually) -> None:
    function, procedure = defer(sql, "wait"), defer(sql, "wait_between")
    call = calling()
    eventually(lambda: waits(sql, call.pid))
    sql("select procjobs.cancel(%s)", function)
    eventually(lambda: status(sql, function) == "aborted")
    eventually(lambda: waits(sql, call.pid))
    sql("select procjobs.cancel(%s)", procedure)
    eventually(lambda: status(sql, procedure) == "aborted", timeout=20)
    error = call.end()
    assert error is not None and error.sqlstate == "57014", "a procedure cannot be caught: the call ends"


def test_ctrl_c_gives_the_job_back(sql: Sql, calling: Callable[..., Call], eventually: Eventually) -> None:
    job = defer(sql, "wait")
    call = calling()
    eventually(lambda: waits(sql, call.pid))
    call.connection.cancel_safe()
    error = call.end()
    assert error is not None and error.sqlstate == "57014"
    assert f"job {job} was interrupted" in str(error)
    assert sql("select status::text, attempts from procrastinate_jobs where id = %s", job) == [("todo", 0)]


def test_ctrl_c_whose_second_signal_comes_late_gives_the_job_back_too(
    sql: Sql, calling: Callable[..., Call], eventually: Eventually
) -> None:
    sql("create sequence public.ends")
    sql("alter function procjobs.end_sql_job rename to end_sql_job_indeed")
    sql(
        "create function procjobs.end_sql_job(bigint, bigint, integer, jsonb, jsonb) returns text "
        "language plpgsql as $$ begin if nextval('public.ends') = 1 then raise query_canceled; end if; "
        "return procjobs.end_sql_job_indeed($1, $2, $3, $4, $5); end $$"
    )
    job = defer(sql, "wait")
    call = calling()
    eventually(lambda: waits(sql, call.pid))
    call.connection.cancel_safe()
    assert f"job {job} was interrupted" in str(call.end())
    assert sql("select status::text, attempts from procrastinate_jobs where id = %s", job) == [("todo", 0)]


def test_a_session_that_lost_its_job_undoes_what_the_function_did(
    sql: Sql, calling: Callable[..., Call], gate: psycopg.Connection[Any], eventually: Eventually
) -> None:
    job = defer(sql, "wait")
    call = calling()
    eventually(lambda: waits(sql, call.pid))
    sql("update procrastinate_jobs set pj_lease = pj_lease + 1 where id = %s", job)  # somebody else has it
    gate.close()
    assert call.end() is None
    assert marks(sql) == []
    assert sql("select status::text from procrastinate_jobs where id = %s", job) == [("doing",)]


def test_inside_a_transaction_it_is_refused(sql: Sql, another: Callable[[], psycopg.Connection[Any]]) -> None:
    with pytest.raises(psycopg.Error, match="invalid transaction termination"):
        another().execute("call procjobs.run_sql_jobs()")
    assert sql("select 1 from procjobs.worker_state") == []


def test_keeping_time_is_ticking_and_upkeep(sql: Sql) -> None:
    sql(
        "select procjobs.schedule('often', task => 'mark', every => '1 s', overlap => 'allow',"
        ' args => \'{"what": "often"}\')'
    )
    due = sql.one("select procjobs.defer('mark', '{\"what\": \"due\"}', scheduled_at => now() + interval '0.5 s')")
    sql("call procjobs.keep_time()")  # the first round makes partitions and more
    sql("call procjobs.keep_time(3, 'me')")
    ticks = sql("select outcome, fired_by, fired_at - slot < interval '0.5 s' from procjobs.schedule_ticks")
    assert ticks.count(("fired", "me", True)) >= 2
    assert sql("select pj_waits_for from procrastinate_jobs where id = %s", due) == [(None,)]
    sql("call procjobs.run_sql_jobs()")
    assert outcome(sql, due)[0] == "succeeded"


def test_a_session_is_no_process_that_declares_schedules(
    sql: Sql, calling: Callable[..., Call], eventually: Eventually
) -> None:
    defer(sql, "wait")
    call = calling()
    eventually(lambda: waits(sql, call.pid))
    assert sql("select 1 from procjobs.living_processes()") == []
    assert sql("select name from procjobs.live_workers()") == [(f"caller {call.pid}",)]


def test_a_session_runs_routines_as_their_role_and_stays_who_it_is(sql: Sql, dsn: str) -> None:
    sql("create role pj_cleaner")
    sql("create function whoami() returns text language sql as 'select current_user::text'")
    sql(
        "create procedure iam(inout who text default null, fail boolean default false) language plpgsql as "
        "'begin commit; who := current_user; end'"
    )
    for name in ("whoami", "iam"):
        sql("select procjobs.register_sql_task(%s, %s, run_as => 'pj_cleaner')", name, name)
    jobs = [defer(sql, "whoami"), defer(sql, "iam"), defer(sql, "mark", what="x")]
    sql("call procjobs.run_sql_jobs()")
    assert [outcome(sql, job)[1] for job in jobs] == ["pj_cleaner", "pj_cleaner", 7]
    assert sql.one("select current_user::text = session_user::text and current_setting('application_name') = ''")
    sql("select procjobs.drop_sql_task(name) from procjobs.tasks where routine is not null")
    sql("drop role pj_cleaner")
