"""procjobs.doctor() and explain_claim(): each condition is made for real and seen; a healthy database gives nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate
from tests.conftest import FAST, Sql, _bindir, _numbers, with_user

SETTINGS = {
    **FAST,
    "autovacuum": "on",
    "autovacuum_naptime": "1h",  # it must not mend what a test makes
    "wal_level": "logical",
    "max_prepared_transactions": "5",
    "max_connections": "30",
}


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server as an administrator sets it up, unlike the hurried one of the other tests."""
    settings = dict(SETTINGS)
    with EmbeddedPostgres(folder / f"doctor{next(_numbers)}", bindir=_bindir(), server_settings=settings) as server:
        migrate(server.create_database("healthy"))
        yield server


@pytest.fixture
def dsn(own: EmbeddedPostgres) -> Iterator[str]:
    """A migrated database of the test's own on that server, with a worker alive."""
    name = f"doctor{next(_numbers)}"
    with psycopg.connect(own.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name} template healthy".encode())
    yield own.dsn(name)
    with psycopg.connect(own.dsn(), autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def found(sql: Sql) -> Callable[..., list[str]]:
    """`found("bloat")`: findings with their mends; `later` looks from that time on."""
    register(sql)
    sql("select procjobs.upkeep()")

    def look(subject: str | None = None, later: str | None = None) -> list[str]:
        if later is not None:
            sql("select set_config('procjobs.now', (statement_timestamp() + %s::interval)::text, false)", later)
        rows = sql("select severity, subject, finding, mend from procjobs.doctor()")
        sql("reset procjobs.now")
        return [f"{finding}; {mend}" for _, about, finding, mend in rows if subject in (None, about)]

    return look


def register(sql: Sql, name: str = "w1", *, version: str = "2.0", queues: list[str] | None = None) -> int:
    return int(
        sql.one(
            "select procjobs.register_worker(%s, 'host', 1, %s, %s, '{greet}', 10, '10 s', '30 s')",
            name, version, queues,
        )
    )  # fmt: skip


def insert(sql: Sql, many: int = 1, **values: Any) -> None:
    """Rows as they are, past the triggers."""
    row = {"queue_name": "default", "task_name": "greet", **values}
    sql("set session_replication_role = replica")
    sql(
        f"insert into public.procrastinate_jobs ({', '.join(row)})"
        f" select {', '.join(['%s'] * len(row))} from generate_series(1, {many})",
        *row.values(),
    )
    sql("reset session_replication_role")


def test_a_healthy_database_gives_nothing(found: Callable[..., list[str]], sql: Sql) -> None:
    assert found() == []
    insert(sql, 100)
    assert found() == []


# explain_claim


def verdicts(sql: Sql) -> list[str]:
    return [line for (line,) in sql("select line from procjobs.explain_claim() where statement = 'verdict'")]


def test_every_hot_statement_goes_by_its_index_however_many_rows_there_are(sql: Sql) -> None:
    assert len(verdicts(sql)) == 8 and all(line.startswith("ok: ") for line in verdicts(sql))
    insert(sql, 50_000)
    insert(sql, 50_000, lock="l", pj_waits_for="lock")
    for _ in range(2):
        assert all(line.startswith("ok: ") for line in verdicts(sql)), verdicts(sql)
        sql("analyze public.procrastinate_jobs")
    assert sql("select 1 from procjobs.explain_claim() where line ~ 'using pj_jobs_ready on'")


def test_explaining_runs_nothing_and_locks_nothing(sql: Sql, dsn: str) -> None:
    insert(sql, 5)
    with psycopg.connect(dsn) as other:
        other.execute("select from procjobs.explain_claim()")
        assert other.execute("select count(*) from pg_locks where locktype in ('tuple')").fetchone() == (0,)
        assert sql("select id from public.procrastinate_jobs for update nowait") != []
        assert other.execute("select count(*) from pg_prepared_statements where name ~ 'explain'").fetchone() == (0,)
    assert sql.one("select count(*) from public.procrastinate_jobs") == 5


@pytest.mark.parametrize(
    "index", ["pj_jobs_ready", "procrastinate_jobs_lock_idx_v1", "pj_jobs_due", "pj_jobs_held_limit"]
)
def test_a_dropped_index_is_missed_and_the_mend_makes_it_again(
    sql: Sql, found: Callable[..., list[str]], index: str
) -> None:
    before = sql.one("select pg_get_indexdef(%s::regclass)", f"public.{index}")
    sql(f"drop index public.{index}")
    (said,) = [line for line in verdicts(sql) if not line.startswith("ok")]
    assert f"index {index} is missing; create " in said
    (finding,) = found("claim")
    assert said.removeprefix("warning: ") == finding
    sql(finding.split("; ", 1)[1])
    assert sql.one("select pg_get_indexdef(%s::regclass)", f"public.{index}") == before
    assert found("claim") == []


def test_an_invalid_index_is_named(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("update pg_index set indisvalid = false where indexrelid = 'public.pj_jobs_ready'::regclass")
    (said,) = found("claim")
    assert "pj_jobs_ready is invalid" in said
    sql(said.split("; ")[1])
    assert found("claim") == []


def test_an_index_that_the_planner_leaves_is_named(sql: Sql, found: Callable[..., list[str]]) -> None:
    insert(sql, 20_000)
    sql("analyze public.procrastinate_jobs")
    assert found("claim") == []
    sql("drop index public.pj_jobs_ready")
    sql("create index pj_jobs_ready on public.procrastinate_jobs (attempts) where status = 'todo'")
    (said,) = found("claim")
    assert "front of a queue: the planner" in said and "(queue_name, priority desc, id)" in said


# the server


def test_a_long_transaction_is_found_with_its_process(sql: Sql, found: Callable[..., list[str]], dsn: str) -> None:
    with psycopg.connect(dsn, application_name="report") as other:
        other.execute("set transaction isolation level repeatable read")
        other.execute("select 1")
        assert found("horizon") == []
        (said,) = found("horizon", later="10 minutes")
        assert "(report, " in said and f"pg_terminate_backend({other.info.backend_pid})" in said


def test_a_prepared_transaction_is_found(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("begin")
    sql("create table t ()")
    sql("prepare transaction 'forgotten'")
    try:
        (said,) = found("horizon", later="10 minutes")
        assert "'forgotten'" in said and "rollback prepared 'forgotten'" in said
    finally:
        sql("rollback prepared 'forgotten'")


def test_a_replication_slot_that_nobody_reads_is_found(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("select pg_create_logical_replication_slot('left_behind', 'test_decoding')")
    try:
        (said,) = found("horizon")
        assert "left_behind" in said and "catalog rows" in said and "pg_drop_replication_slot('left_behind')" in said
    finally:
        sql("select pg_drop_replication_slot('left_behind')")


def test_autovacuum_that_is_off_is_found(sql: Sql, found: Callable[..., list[str]], eventually: Any) -> None:
    sql("alter table public.procrastinate_jobs set (autovacuum_enabled = off)")
    assert any(
        "off for procrastinate_jobs" in line or "off for public.procrastinate_jobs" in line
        for line in found("autovacuum")
    )
    sql("alter table public.procrastinate_jobs reset (autovacuum_enabled)")
    sql("alter system set track_counts = off")
    sql("select pg_reload_conf()")
    try:
        eventually(lambda: any("track_counts is off" in line for line in found("autovacuum")))
    finally:
        sql("alter system reset track_counts")
        sql("select pg_reload_conf()")


def test_lost_settings_of_hot_tables_are_found_and_mended(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("alter table public.procrastinate_jobs reset (fillfactor, autovacuum_vacuum_scale_factor)")
    sql("alter table procjobs.worker_state reset (fillfactor)")
    said = found("autovacuum")
    assert len(said) == 3
    for line in said:
        sql(line.split("; ", 1)[1].replace("table procrastinate_jobs", "table public.procrastinate_jobs"))
    assert found("autovacuum") == []


def test_dead_rows_that_no_vacuum_removes_are_found(sql: Sql, found: Callable[..., list[str]], eventually: Any) -> None:
    insert(sql, 30_000)
    sql("set session_replication_role = replica")
    sql("delete from public.procrastinate_jobs")
    sql("reset session_replication_role")
    eventually(lambda: found("bloat", later="1 hour"))
    (said,) = found("bloat", later="1 hour")
    assert "30000 dead rows" in said and "vacuum " in said
    assert found("bloat") == []  # autovacuum had no time to come yet
    sql("vacuum public.procrastinate_jobs")
    eventually(lambda: found("bloat", later="1 hour") == [])


def test_a_bloated_claim_index_is_found(sql: Sql, found: Callable[..., list[str]]) -> None:
    insert(sql, 120_000, queue_name="q" * 128)
    assert found("bloat") == []
    sql("set session_replication_role = replica")
    sql("delete from public.procrastinate_jobs where id > 10")
    sql("reset session_replication_role")
    (said,) = [line for line in found("bloat") if "pj_jobs_ready" in line]
    sql(said.split("; ")[1])
    assert found("bloat") == []


def test_connections_that_run_out_are_found(sql: Sql, found: Callable[..., list[str]], dsn: str) -> None:
    others: list[psycopg.Connection[Any]] = []
    try:
        assert found("connections") == []
        while not (said := found("connections")):
            others.append(psycopg.connect(dsn))
    finally:
        for other in others:
            other.close()
    assert "of 27 connections" in said[0]


def test_a_full_notify_queue_is_found(
    sql: Sql, found: Callable[..., list[str]], dsn: str, own: EmbeddedPostgres
) -> None:
    if sql.connection.info.server_version < 170000:
        pytest.skip("the size of the queue is a setting from PostgreSQL 17 on; 8 GB before")
    sql("alter system set max_notify_queue_pages = 64")
    own.stop()
    own.start()
    with (
        psycopg.connect(dsn) as stuck,
        psycopg.connect(dsn, autocommit=True) as fresh,
    ):
        stuck.execute("listen x")
        stuck.commit()
        stuck.execute("select 1")
        for n in range(40):
            fresh.execute("select pg_notify('x', %s)", [f"{n}".ljust(7900)])
        rows = fresh.execute("select severity, mend from procjobs.doctor() where subject = 'notify'").fetchall()
        assert rows and rows[0][0] == "warning" and "idle in transaction" in rows[0][1]


def test_login_roles_with_traps_are_found(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("create role procjobs login")
    sql("create role app_worker login in role procjobs_worker")
    try:
        sql("alter role app_worker set default_transaction_read_only = on")
        trap, shadow = sorted(found("login role"), key=lambda line: "$user" in line)
        assert "app_worker" in trap and "$user" in shadow
        sql(trap.split("; ")[1])
        sql("alter role procjobs set search_path = public")
        assert found("login role") == []
    finally:
        sql("drop role procjobs, app_worker")


def test_a_reader_is_told_what_he_cannot_see(sql: Sql, found: Callable[..., list[str]], dsn: str) -> None:
    sql("create role looks login in role procjobs_reader")
    try:
        with psycopg.connect(with_user(dsn, "looks"), autocommit=True) as reader:
            rows = reader.execute("select severity, mend from procjobs.doctor()").fetchall()
            assert rows == [("note", "grant pg_read_all_stats to looks")]
            assert len(reader.execute("select * from procjobs.explain_claim() where line ~ '^ok'").fetchall()) == 8
        assert not any("looks" in line for line in found("horizon"))
    finally:
        sql("drop role looks")


# the fleet


def test_workers_that_are_silent_dead_old_or_not_there(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("update procjobs.worker_state set stopped_at = now()")
    sql("delete from public.procrastinate_workers")
    assert [line for line in found("workers") if "no worker is alive" in line]

    new, old = register(sql, "new", version="1.10.0"), register(sql, "old", version="1.9.3")
    (said,) = found("workers")
    assert "worker old runs procjobs 1.9.3, others 1.10.0" in said
    sql("update procjobs.worker_state set last_heartbeat = now() - interval '1 minute' where id = %s", old)
    (said,) = found("workers")
    assert "worker old" in said and "silent since" in said
    sql("update procjobs.worker_state set dead_at = now() where id = %s", old)
    (said,) = found("workers")
    assert "worker old" in said and "died" in said
    sql("update procjobs.worker_state set dead_at = now() - interval '2 hours' where id = %s", old)
    assert found("workers") == [] and new


def test_a_queue_without_a_worker_and_one_that_waits_long(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("update procjobs.worker_state set queues = '{mail}'")
    insert(sql, queue_name="alone")
    insert(sql, queue_name="mail")
    (said,) = found("queues")
    assert "queue alone" in said and "--queues alone" in said
    sql("update public.procrastinate_jobs set pj_created_at = now() - interval '1 hour' where queue_name = 'mail'")
    assert any("mail waits for 60 min" in line or "mail waits for 1 h" in line for line in found("queues"))


def test_pauses_that_were_forgotten(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("select procjobs.register_tasks('[{\"name\": \"greet\"}]', 'test')")
    sql("select procjobs.pause_queue('shut', 'rebuild'), procjobs.pause_task('greet')")
    assert found("queues") + found("tasks") == []
    sql("update procjobs.queue_settings set paused_at = now() - interval '25 hours'")
    sql("update procjobs.task_settings set paused_at = now() - interval '25 hours'")
    (queue,), (task,) = found("queues"), found("tasks")
    assert "rebuild" in queue
    for mend in (queue, task):
        sql(mend.split("; ")[1])
    assert found("queues") + found("tasks") == []


def test_jobs_parked_for_a_task_that_nobody_knows(sql: Sql, found: Callable[..., list[str]]) -> None:
    insert(sql, 3, task_name="greet", pj_waits_for="task")  # the next claim unparks them
    assert found("tasks") == []
    insert(sql, 3, task_name="gone", pj_waits_for="task")
    (said,) = found("tasks")
    assert "task gone" in said


def test_jobs_stranded_and_due_jobs_left_say_that_upkeep_is_not_done(sql: Sql, found: Callable[..., list[str]]) -> None:
    insert(sql, status="doing", worker_id=999, pj_started_at="2020-01-01")
    insert(sql, pj_waits_for="time", scheduled_at="2020-01-01")
    stranded, due = sorted(found("upkeep"), key=lambda line: "due at" in line)
    assert "1 jobs run on workers that are gone" in stranded and "was due at 2020-01-01" in due
    sql("select procjobs.upkeep()")
    assert found("upkeep") == []


def test_the_history_without_partitions(sql: Sql, found: Callable[..., list[str]]) -> None:
    assert found("history") == []
    assert len(found("history", later="30 days")) == 2
    sql(
        "insert into procjobs.job_history (id, queue_name, task_name, priority, args, status, attempts, crashes, lease,"
        " finished_at) values (1, 'q', 't', 0, '{}', 'succeeded', 1, 0, 1, now() + interval '1 year')"
    )
    (said,) = found("history")
    assert "default partition" in said


def test_a_limit_that_lets_nothing_run(sql: Sql, found: Callable[..., list[str]]) -> None:
    sql("select procjobs.set_limit('none', queue => 'default', max_running => 0)")
    insert(sql)
    sql("select count(*) from procjobs.claim_jobs((select max(id) from procjobs.workers), null, 10)")
    assert sql.one("select pj_waits_for from public.procrastinate_jobs") == "limit"
    assert found("limits") == []
    sql("update public.procrastinate_jobs set pj_created_at = now() - interval '5 minutes'")
    (said,) = found("limits")
    assert "1 jobs wait for limit none" in said and "higher max_running" in said
    sql("select procjobs.set_limit('none', queue => 'default', max_running => 5)")
    assert found("limits") == []


def test_open_alerts_are_told_with_what_to_do(sql: Sql, found: Callable[..., list[str]]) -> None:
    """One of each kind that there is, and many of one."""
    sql("select procjobs.register_tasks('[{\"name\": \"greet\"}]', 'test')")
    sql("select procjobs.schedule('s', 'greet', '* * * * *', overlap => 'allow')")
    sql("update procjobs.schedules set last_slot = now() - interval '1 h', next_slot = now() - interval '59 min', "
        "due_at = now() - interval '59 min' where name = 's'")  # fmt: skip
    sql("select procjobs.watch_clocks()")
    (clock,) = found("alerts")
    assert "no_clock: schedules have been due since" in clock and "procjobs scheduler" in clock
    sql("select procjobs.tick(), procjobs.watch_clocks()")
    (missed,) = found("alerts")
    assert "missed_slot: " in missed
    assert sql(missed.split("to make up for them: ")[1])[0][0] > 50
    sql("update procjobs.alerts set closed_at = now()")

    sql("select procjobs.raise_alert(k, 'x', 'm') from unnest('{schedule_failing, cleanup_idle, backlog}'::text[]) k")
    assert [line.split(": ")[0] for line in found("alerts")] == ["backlog", "cleanup_idle", "schedule_failing"]
    sql("select procjobs.close_alert(id) from procjobs.alerts where closed_at is null")
    sql("select procjobs.raise_alert('process_down', 'w' || n, 'gone') from generate_series(1, 13) n")
    *_, last = said = found("alerts")
    assert len(said) == 11 and any("process_down: 3 more of them" in line for line in said), last
    for line in said:
        if "if it is not to come back: " in line:
            sql(line.split("if it is not to come back: ")[1])
    assert len(found("alerts")) == 3


def test_a_trigger_that_fits_its_table_or_task_no_more(sql: Sql, found: Callable[..., list[str]]) -> None:
    def task(argument: str) -> None:
        schema = {"properties": {argument: {"type": "integer"}}, "additionalProperties": False}
        sql("select procjobs.register_tasks(%s, 'test')", json.dumps([{"name": "index", "args_schema": schema}]))

    task("id")
    sql("create table public.things (id int)")
    sql("select procjobs.enqueue_on_change('things', 'index', pass => '{id}')")
    sql("create trigger by_hand after insert on things for each row execute function procjobs.enqueue_changed_row('x')")
    assert found("on change") == []

    for change, undo, said in (
        ("rename column id to number", "rename column number to id", "the table has no column id any more"),
        ("disable trigger procjobs_index", "enable trigger procjobs_index", "rows change without a job"),
    ):
        sql(f"alter table things {change}")
        (trouble,) = found("on change")
        assert "trigger procjobs_index of public.things" in trouble and said in trouble
        sql(f"alter table things {undo}")
        assert found("on change") == []
    task("number")
    (trouble,) = found("on change")
    assert "id is not expected" in trouble
    task("id")
    sql('drop trigger "procjobs+index" on things')
    (trouble,) = found("on change")
    assert "procjobs+index, which goes before it, is gone" in trouble
