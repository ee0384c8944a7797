"""pg_cron, the real extension on Debian's PostgreSQL: set up, explained, and two clocks over one ledger.

It starts its jobs at the full minute, so that these tests wait for one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procjobs.doctor import examine
from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate
from procjobs.settings import Settings
from tests.conftest import FAST, Sql, with_user
from tests.processes import environment, procjobs_command, sentence

BINARIES = Path("/usr/lib/postgresql/15/bin")
INSTALLED = (BINARIES / "postgres").exists() and Path("/usr/share/postgresql/15/extension/pg_cron.control").exists()
assert INSTALLED or not os.environ.get("CI"), "postgresql-15-cron is missing: .ci/run installs it"
with_pg_cron = pytest.mark.skipif(not INSTALLED, reason="apt-get install postgresql-15 postgresql-15-cron")

Eventually = Callable[..., Any]

#: pg_cron 1.4 starts jobs at the full minute, and a busy machine takes its time.
MINUTE = 90.0


@contextmanager
def cron_server(data: Path, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A server with pg_cron, which keeps its jobs in the database `clock`."""
    options = {
        **FAST, "synchronous_commit": "on", "shared_preload_libraries": "pg_cron", "cron.database_name": "clock",
        "cron.host": str(data), **settings,
    }  # fmt: skip
    with EmbeddedPostgres(data, bindir=BINARIES, server_settings=options) as running:
        yield running


@pytest.fixture(scope="module")
def cron_cluster(folder: Path) -> Iterator[EmbeddedPostgres]:
    """pg_cron in the database `clock`, which has procjobs too, and another, `app`, with procjobs."""
    with cron_server(folder / "cron") as running:
        for name in ("clock", "app"):
            migrate(running.create_database(name))
        yield running


@pytest.fixture
def clock(cron_cluster: EmbeddedPostgres) -> Iterator[Sql]:
    """Queries in the database where pg_cron is; its jobs are gone afterwards."""
    queries = Sql(cron_cluster.dsn("clock"))
    queries("create extension if not exists pg_cron")
    yield queries
    queries("select cron.unschedule(jobid) from cron.job")
    queries.connection.close()


def jobs(clock: Sql) -> dict[str, tuple[str, str, str]]:
    found = clock("select jobname, schedule, command, database from cron.job")
    return {name: (schedule, command, database) for name, schedule, command, database in found}


# -- setting it up -------------------------------------------------------------------------------------------------


def test_without_pg_cron_it_says_what_is_missing(sql: Sql, dsn: str, tmp_path: Path) -> None:
    ((severity, subject, finding, mend),) = sql("select * from procjobs.pg_cron_status()")
    assert (severity, subject, finding) == ("warning", "server", "the server has not loaded pg_cron")
    assert "shared_preload_libraries = 'pg_cron'" in mend
    assert f"cron.database_name = '{sql.one('select current_database()')}'" in mend
    with pytest.raises(psycopg.Error, match="has not loaded pg_cron") as found:
        sql("select procjobs.pg_cron_install()")
    assert found.value.sqlstate == "PJ017"
    assert sql.one("select procjobs.pg_cron_remove()") == 0

    said = sentence(procjobs_command("pg-cron", "install", "--dsn", dsn, cwd=tmp_path))
    assert "has not loaded pg_cron" in said and "shared_preload_libraries" in said
    shown = procjobs_command("pg-cron", "status", "--dsn", dsn, "--json", cwd=tmp_path)
    assert shown.returncode == 1
    assert [found["severity"] for found in json.loads(shown.stdout)] == ["warning"]


def test_who_may_not_see_the_settings_is_told(sql: Sql, dsn: str) -> None:
    sql("create role pj_looker login in role procjobs_reader")
    looker = Sql(with_user(dsn, "pj_looker"))
    ((_, _, finding, mend),) = looker("select * from procjobs.pg_cron_status()")
    assert "pj_looker may not see" in finding and mend.startswith("grant pg_read_all_settings to pj_looker")
    looker.connection.close()
    sql("drop role pj_looker")


def test_seconds_are_used_where_pg_cron_has_them(sql: Sql) -> None:
    wanted = "select name, schedule, command from procjobs.pg_cron_wanted(%s, 2) where inside"
    assert sql(wanted, "1.4-1") == [
        ("time", "* * * * *", "call procjobs.keep_time(59, 'pg_cron')"),
        ("jobs 1", "* * * * *", "call procjobs.run_sql_jobs(59)"),
        ("jobs 2", "* * * * *", "call procjobs.run_sql_jobs(59)"),
    ]
    for version in ("1.5", "1.6-1", "1.10"):
        assert {row[1:] for row in sql(wanted, version)} == {
            ("30 seconds", "call procjobs.keep_time(29, 'pg_cron')"),
            ("30 seconds", "call procjobs.run_sql_jobs(29)"),
        }


@with_pg_cron
def test_it_is_set_up_changed_and_taken_away_in_sql(clock: Sql) -> None:
    assert clock.one("select procjobs.pg_cron_install()") == 4
    first = jobs(clock)
    assert set(first) == {f"procjobs clock: {name}" for name in ("time", "jobs 1", "history", "vacuum")}
    assert first["procjobs clock: time"] == ("* * * * *", "call procjobs.keep_time(59, 'pg_cron')", "clock")

    assert clock.one("select procjobs.pg_cron_install(runners => 2)") == 5
    assert set(jobs(clock)) == {*first, "procjobs clock: jobs 2"}
    assert clock.one("select procjobs.pg_cron_install()") == 4
    assert jobs(clock) == first
    assert {row[0] for row in clock("select severity from procjobs.pg_cron_status()")} <= {"ok", "info"}
    clock(first["procjobs clock: history"][1])

    clock("select cron.alter_job(jobid, active => false) from cron.job where jobname like '%time'")
    clock("select cron.schedule('procjobs clock: jobs 1', '5 * * * *', 'select 1')")
    found = clock("select subject, finding from procjobs.pg_cron_status() where severity = 'warning'")
    assert sorted(found) == [("jobs 1", "is not as this version wants it"), ("time", "is switched off")]

    clock("select cron.schedule('mine', '* * * * *', 'select 1')")
    assert clock.one("select procjobs.pg_cron_remove()") == 4
    assert set(jobs(clock)) == {"mine"}
    assert [row[1] for row in clock("select * from procjobs.pg_cron_status() where severity = 'warning'")] == [
        "time", "jobs 1", "history", "vacuum",
    ]  # fmt: skip


@with_pg_cron
def test_a_failed_run_is_explained(clock: Sql) -> None:
    clock("select procjobs.pg_cron_install()")
    clock(
        "insert into cron.job_run_details (jobid, runid, username, status, return_message, start_time)"
        " select jobid, 1000000, current_user, 'failed', 'connection failed', now()"
        " from cron.job where jobname like '%time'"
    )
    ((finding, mend),) = clock("select finding, mend from procjobs.pg_cron_status() where severity = 'warning'")
    assert finding.endswith("connection failed") and "pg_hba.conf" in mend
    clock("delete from cron.job_run_details where runid = 1000000")


@with_pg_cron
def test_pg_cron_in_another_database_is_set_up_from_the_command_line(
    cron_cluster: EmbeddedPostgres, clock: Sql, tmp_path: Path
) -> None:
    dsn = cron_cluster.dsn("app")
    app = Sql(dsn)
    assert app("select severity, finding from procjobs.pg_cron_status()") == [
        ("info", "pg_cron runs in database clock")
    ]
    with pytest.raises(psycopg.Error, match="runs in database clock") as refused:
        app("select procjobs.pg_cron_install()")
    assert refused.value.diag.message_hint == "procjobs pg-cron install sets it up there"

    clock("drop extension pg_cron")  # the server has loaded it, nobody made it yet
    missing = procjobs_command("pg-cron", "status", "--dsn", dsn, cwd=tmp_path)
    assert missing.returncode == 1 and "in database clock: create extension pg_cron" in missing.stdout
    done = procjobs_command("pg-cron", "install", "--dsn", dsn, "--runners", "2", cwd=tmp_path)
    assert done.returncode == 0, done
    assert {name: database for name, (_, _, database) in jobs(clock).items()} == {
        "procjobs app: time": "app", "procjobs app: jobs 1": "app", "procjobs app: jobs 2": "app",
        "procjobs app: history": "clock", "procjobs app: vacuum": "app",
    }  # fmt: skip
    again = procjobs_command("pg-cron", "status", "--dsn", dsn, cwd=tmp_path)
    assert again.returncode == 0 and "pg_cron 1.4-1 runs in database clock" in again.stdout

    gone = procjobs_command("pg-cron", "remove", "--dsn", dsn, cwd=tmp_path)
    assert gone.stdout == "took 5 jobs out of pg_cron\n"
    assert jobs(clock) == {}
    app.connection.close()


@with_pg_cron
def test_who_may_not_schedule_is_told_what_to_grant(cron_cluster: EmbeddedPostgres, clock: Sql, tmp_path: Path) -> None:
    clock("create role pj_planner login in role procjobs_admin, pg_read_all_settings")
    dsn = with_user(cron_cluster.dsn("app"), "pj_planner")
    said = sentence(procjobs_command("pg-cron", "install", "--dsn", dsn, cwd=tmp_path))
    assert "pj_planner may not use pg_cron" in said and "grant usage on schema cron to pj_planner" in said
    clock("grant usage on schema cron to pj_planner")
    said = sentence(procjobs_command("pg-cron", "install", "--dsn", dsn, cwd=tmp_path))
    assert "grant execute on function cron.schedule_in_database to pj_planner" in said
    assert jobs(clock) == {}

    here = with_user(cron_cluster.dsn("clock"), "pj_planner")
    assert procjobs_command("pg-cron", "install", "--dsn", here, cwd=tmp_path).returncode == 0
    assert {row[0] for row in clock("select username from cron.job")} == {"pj_planner"}
    clock("select cron.unschedule(jobid) from cron.job")
    for name in ("clock", "app"):
        queries = Sql(cron_cluster.dsn(name))
        queries("drop owned by pj_planner")
        queries.connection.close()
    clock("drop role pj_planner")


DOCTOR = "select severity, finding, mend from procjobs.doctor() where subject = 'pg_cron' order by 1, 2"


@with_pg_cron
def test_the_doctor_looks_at_pg_cron(clock: Sql) -> None:
    ((severity, finding, mend),) = clock(DOCTOR)
    assert (severity, mend) == ("note", "procjobs pg-cron install, if it is to") and "keeps no time" in finding
    clock("select procjobs.pg_cron_install()")
    assert clock(DOCTOR) == []

    # Gone, changed, switched off, failed, silent.
    clock("select cron.unschedule('procjobs clock: history')")
    clock("select cron.schedule('procjobs clock: jobs 1', '5 * * * *', 'select 1')")
    clock("select cron.alter_job(jobid, active => false) from cron.job where jobname like '%vacuum'")
    clock(
        "insert into cron.job_run_details (jobid, runid, username, status, return_message, start_time)"
        " select jobid, 1000000, current_user, 'failed', 'boom', now() - interval '1 hour'"
        " from cron.job where jobname like '%time'"
    )
    found = clock(DOCTOR)
    clock("delete from cron.job_run_details where runid = 1000000")
    assert {severity for severity, _, _ in found} == {"warning"} and all(mend for _, _, mend in found)
    said = [finding for _, finding, _ in found]
    assert said[:2] == ["history: is not installed", "jobs 1: is not as this version wants it"]
    assert said[2].startswith("time: failed at ") and said[3].startswith("time: has not started since ")
    assert said[4:] == ["vacuum: is switched off"]


@with_pg_cron
def test_a_version_or_a_launcher_that_is_not_as_it_should_be(clock: Sql) -> None:
    clock("select procjobs.pg_cron_install()")
    query = "select finding, mend from procjobs.doctor_pg_cron(procjobs.pg_cron_facts() || %s::jsonb)"
    ((finding, mend),) = clock(query, '{"newest": "1.6"}')
    assert finding == "extension: pg_cron is of version 1.4-1, the server brings 1.6"
    assert "alter extension pg_cron update" in mend
    ((finding, mend),) = clock(query, '{"launcher": false}')
    assert finding.startswith("launcher: ") and "restart" in mend
    assert clock(query, "{}") == [], "this server's launcher runs"


@with_pg_cron
async def test_the_doctor_looks_into_the_database_where_pg_cron_is(
    cron_cluster: EmbeddedPostgres, clock: Sql, tmp_path: Path
) -> None:
    dsn = cron_cluster.dsn("app")
    app = Sql(dsn)
    ((severity, finding, _),) = app(DOCTOR)
    assert severity == "note" and "in database clock: whether it does its work was not looked at" in finding

    async def look() -> list[tuple[str, str]]:
        found = await examine(Settings(), dsn)
        return [(each.verdict, each.text) for each in found if each.subject == "pg_cron"]

    assert await look() == [("ok", "the server has pg_cron in database clock, and it keeps no time for this one")]
    assert procjobs_command("pg-cron", "install", "--dsn", dsn, cwd=tmp_path).returncode == 0
    ((verdict, text),) = await look()
    assert verdict == "ok" and "pg_cron 1.4-1 has 4 jobs of ours" in text
    clock("select cron.alter_job(jobid, active => false) from cron.job where jobname like '%app: time'")
    assert await look() == [("warning", "time: is switched off")]
    app.connection.close()


# -- at work -------------------------------------------------------------------------------------------------------

WORK = """
create table public.marks (schedule text, slot text, unique (schedule, slot));

create function public.mark(name text, slot text default null) returns int language sql as $$
  insert into marks values (name, slot) on conflict do nothing;
  select 1
$$;

create procedure public.batches(n int, inout done int default 0, fail boolean default false) language plpgsql as $$
begin
  for i in 1 .. n loop
    insert into marks values ('batches', i::text) on conflict do nothing;
    done := done + 1;
    commit;
  end loop;
  if fail then
    raise exception 'stuck at %', n;
  end if;
end$$;
"""


def prepare(queries: Sql) -> None:
    for statement in WORK.split("\n\n"):
        queries(statement)
    for name in ("mark", "batches"):
        queries("select procjobs.register_sql_task(%s, %s)", name, name)


@with_pg_cron
@pytest.mark.parametrize("background", ["off", "on"])
def test_pg_cron_alone_runs_jobs_and_hears_why_one_failed(
    folder: Path, background: str, eventually: Eventually
) -> None:
    with cron_server(folder / f"cron{background}", **{"cron.use_background_workers": background}) as server:
        migrate(server.create_database("clock"))
        queries = Sql(server.dsn("clock"))
        prepare(queries)
        queries("create extension pg_cron")
        queries("select procjobs.pg_cron_install()")
        good = queries.one("select procjobs.defer('batches', '{\"n\": 3}')")
        bad = queries.one("select procjobs.defer('batches', '{\"n\": 2, \"fail\": true}')")

        def ended(job: int) -> Any:
            ((status, result, kind, message),) = queries(
                "select status, result, error_class, error_message from procjobs.job_outcome(%s)", job
            )
            return status in ("succeeded", "failed") and (status, result, kind, message)

        assert eventually(lambda: ended(good), timeout=MINUTE) == ("succeeded", 3, None, None)
        assert eventually(lambda: ended(bad), timeout=20) == ("failed", None, "RoutineFailed", "stuck at 2")
        (worker,) = queries.one("select array_agg(worker_name) from procjobs.job_attempts where job_id = %s", bad)
        assert worker.startswith("pg_cron ")
        hazards = [row[0] for row in queries("select finding from procjobs.pg_cron_status() where severity = 'info'")]
        assert any("max_worker_processes" in hazard for hazard in hazards) == (background == "on")
        queries.connection.close()


class Clocks:
    """A ledger with ten schedules, one slot a second each, and who fires them."""

    def __init__(self, server: EmbeddedPostgres, eventually: Eventually) -> None:
        self.server = server
        self.eventually = eventually
        self.sql = Sql(server.dsn("clock"))
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        prepare(self.sql)
        self.sql("create extension pg_cron")
        for n in range(10):
            self.sql(
                "select procjobs.schedule(%s, task => 'mark', every => '1 s', args => %s, misfire => 'all', "
                "catch_up => 1000, overlap => 'allow')",
                f"s{n}", json.dumps({"name": f"s{n}"}),
            )  # fmt: skip

    def work(self, folder: Path) -> subprocess.Popen[bytes]:
        """A worker process that runs SQL jobs and keeps time."""
        worker = subprocess.Popen(
            [sys.executable, "-m", "procjobs", "worker", "--builtin", "--name", f"w{len(self.workers)}"],
            cwd=folder,
            env=environment(
                DATABASE_URL=self.server.dsn("clock"), PROCJOBS_LEASE="2", PROCJOBS_HEARTBEAT_INTERVAL="0.5"
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.workers.append(worker)
        return worker

    def fired(self) -> dict[str, int]:
        """How many slots each clock has fired."""
        query = "select fired_by, count(*) from procjobs.schedule_ticks where outcome = 'fired' group by 1"
        return dict(self.sql(query))

    def until(self, by: str, more: int, timeout: float = 60.0) -> None:
        """Wait until this clock has fired so many slots more."""
        before = self.fired().get(by, 0)
        self.eventually(lambda: self.fired().get(by, 0) >= before + more, timeout=timeout)

    def reconnect(self) -> None:
        self.sql.connection.close()
        self.sql = Sql(self.server.dsn("clock"))

    def settled(self) -> bool:
        return not self.sql("select 1 from procrastinate_jobs where status in ('todo', 'doing')")

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait(10)
        self.sql.connection.close()


@pytest.fixture
def clocks(folder: Path, eventually: Eventually) -> Iterator[Clocks]:
    with cron_server(folder / "two") as server:
        migrate(server.create_database("clock"))
        found = Clocks(server, eventually)
        found.sql("select procjobs.unschedule(name) from procjobs.schedules where source = 'pack'")
        yield found
        found.close()


@with_pg_cron
def test_two_clocks_hand_over_and_no_slot_fires_twice(clocks: Clocks, folder: Path, eventually: Eventually) -> None:
    clocks.start()
    first = clocks.work(folder)
    clocks.until("w0", 100)  # workers only

    clocks.sql("select procjobs.pg_cron_install()")
    eventually(lambda: clocks.fired().get("pg_cron"), timeout=MINUTE)
    before = sum(clocks.fired().values())
    eventually(lambda: sum(clocks.fired().values()) >= before + 100, timeout=60)  # both
    both = clocks.fired()

    first.send_signal(signal.SIGKILL)
    clocks.until("pg_cron", 100)  # pg_cron only: the worker died
    assert clocks.fired()["w0"] - both["w0"] < 100

    clocks.work(folder)
    clocks.until("w1", 20)  # both again
    clocks.sql("select procjobs.pg_cron_remove()")
    clocks.sql("select pg_terminate_backend(pid) from pg_stat_activity where query like 'call procjobs.keep_time%'")
    alone = clocks.fired()["pg_cron"]
    clocks.until("w1", 100)  # workers only: pg_cron died
    assert clocks.fired()["pg_cron"] - alone <= 20

    clocks.sql("select procjobs.pg_cron_install()")
    clocks.workers[-1].kill()
    clocks.sql.connection.close()
    os.kill(clocks.server.pid or 0, signal.SIGQUIT)  # the server dies with everything, and comes back
    eventually(lambda: clocks.server.pid is None)
    clocks.server.stop()
    clocks.server.start()
    clocks.reconnect()
    clocks.until("pg_cron", 100, timeout=MINUTE)
    clocks.sql("select procjobs.pause_schedule(name, 'the end') from procjobs.schedules")
    eventually(clocks.settled, timeout=MINUTE)

    # Every second from the first to the last of each schedule, each once in the ledger, as one job, and done.
    for name, slots, seconds, outcomes in clocks.sql(
        "select schedule, count(*), extract(epoch from max(slot) - min(slot))::int + 1, array_agg(distinct outcome) "
        "from procjobs.schedule_ticks group by schedule"
    ):
        assert (slots, outcomes) == (seconds, ["fired"]), name
    ((ticks, their_jobs),) = clocks.sql("select count(*), count(distinct job_id) from procjobs.schedule_ticks")
    assert ticks == their_jobs >= 400
    assert clocks.sql.one("select count(*) from procjobs.jobs where task = 'mark'") == ticks, "as many jobs as slots"
    assert ticks == clocks.sql.one(
        "select count(*) from marks m"
        " join procjobs.schedule_ticks t on t.schedule = m.schedule and t.slot = m.slot::timestamptz"
    )

    # pg_cron's own books beside ours.
    books = clocks.sql(
        "select j.jobname, d.status, count(*) from cron.job_run_details d join cron.job j using (jobid) group by 1, 2"
    )
    assert {name for name, _, _ in books} >= {"procjobs clock: time", "procjobs clock: jobs 1"}
    assert set(clocks.fired()) >= {"pg_cron", "w0", "w1"}
