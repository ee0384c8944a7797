"""migrate: every way to the schema leads to the same schema, loses nothing, and says what it finds."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources as package
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo

from procjobs import adoption, migrate
from procjobs.embedded import EmbeddedPostgres, binaries
from procjobs.errors import DatabaseUnavailable, MigrationError, ServerError
from procjobs.schema import ROLES, Plan
from tests.conftest import Databases, Sql, with_user

UPSTREAM = package.files("procrastinate").joinpath("sql")


def run(dsn: str, *queries: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for query in queries:
            connection.execute(query.encode())


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.fixture
def dump(cluster: EmbeddedPostgres) -> Callable[[str], str]:
    """The whole schema of a database as pg_dump tells it, in a stable order."""
    pg_dump = (cluster.bindir or binaries()) / "pg_dump"

    def tell(dsn: str, *options: str) -> str:
        told = subprocess.run(
            [pg_dump, "--schema-only", *options, dsn], capture_output=True, text=True, check=True
        ).stdout
        statements = [part.strip() for part in told.split("\n\n\n") if not part.startswith(("\\restrict", "--\n\\"))]
        return "\n\n".join(sorted(part for part in statements if "restrict" not in part))

    return tell


def state_of(dsn: str) -> dict[str, str]:
    """Every object of ours with its fingerprint, as it is now."""
    with psycopg.connect(dsn) as connection:
        connection.execute("set search_path to pg_catalog, pg_temp")
        from procjobs.schema import objects

        return objects(connection, ask(dsn, "select upstream_schema from procjobs.schema_state")[0][0])


# Upstream's installations as they may be found, by the last of its own migration files that was applied.
def upstream_files(last: str) -> list[str]:
    listed = sorted(path.name for path in UPSTREAM.joinpath("migrations").iterdir() if path.name.endswith(".sql"))
    return [name for name in listed if name <= last]


RELEASES = {
    "3.0 (pre only)": "03.00.00_01_pre_cancel_notification.sql",
    "3.0": "03.00.00_50_post_cancel_notification.sql",
    "3.1": "03.01.00_50_post_add_heartbeat.sql",
    "3.2": "03.02.00_50_post_batch_defer_jobs.sql",
    "3.3": "03.03.00_01_pre_priority_lock_fetch_job.sql",
    "3.4": "03.04.00_50_post_add_retry_failed_job_procedure.sql",
}


def install_upstream(dsn: str, last: str, schema: str = "public") -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create schema if not exists {schema}; set search_path to {schema}".encode())
        for name in upstream_files(last):
            connection.execute(UPSTREAM.joinpath("migrations", name).read_bytes())


def install_current(dsn: str, schema: str = "public") -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create schema if not exists {schema}; set search_path to {schema}".encode())
        connection.execute(UPSTREAM.joinpath("schema.sql").read_bytes())


JOBS = """
insert into {s}.procrastinate_jobs (queue_name, task_name, priority, lock, queueing_lock, args, scheduled_at)
values
  ('mail', 'app.send', 5, null, null, '{{"to": 1}}', null),
  ('mail', 'app.send', 0, 'order-1', 'once', '{{"to": 2}}', now() + interval '1 day'),
  ('mail', 'app.send', 0, 'order-1', null, '{{"to": 3}}', null),
  ('reports', 'app.report', 0, null, null, '{{}}', null),
  ('reports', 'app.report', 0, null, null, '{{}}', null),
  ('reports', 'app.old', 0, null, null, '{{}}', null);
update {s}.procrastinate_jobs set status = 'doing' where id in (3, 4, 5, 6);
update {s}.procrastinate_jobs set status = 'failed', attempts = 3 where id = 4;
update {s}.procrastinate_jobs set status = 'succeeded', attempts = 1 where id in (5, 6);
insert into {s}.procrastinate_periodic_defers (task_name, defer_timestamp, job_id, periodic_id)
values ('app.report', 1700000000, 5, 'p');
"""
JOB_ROWS = """
select id, queue_name, task_name, priority, lock, queueing_lock, args::text, status::text, scheduled_at, attempts,
  abort_requested
from {s}.procrastinate_jobs
order by id
"""
EVENTS = "select job_id, type::text, at from {s}.procrastinate_events order by id"


class TestNewDatabase:
    def test_it_is_installed_and_reported(self, empty_dsn: str) -> None:
        said: list[str] = []
        report = migrate.migrate(empty_dsn, log=said.append)
        assert report.changed
        assert (report.upstream_schema, report.adopted, report.notes) == ("public", None, ())
        assert report.revision == migrate.resources().head
        assert report.applied[0] == "sql/roles.sql"
        assert report.applied[-1] == "sql/owners.sql"
        assert said
        assert migrate.check(empty_dsn) == []

    def test_a_second_time_changes_nothing(self, empty_dsn: str) -> None:
        migrate.migrate(empty_dsn)
        (before,) = ask(empty_dsn, "select applied_at, xmin::text from procjobs.schema_state")
        report = migrate.migrate(empty_dsn)
        assert not report.changed
        assert report.applied == ()
        assert ask(empty_dsn, "select applied_at, xmin::text from procjobs.schema_state") == [before]

    def test_nothing_to_do_takes_no_lock_and_waits_for_nobody(self, dsn: str) -> None:
        with psycopg.connect(dsn) as other:
            other.execute("lock table public.procrastinate_jobs, procjobs.schema_state in share row exclusive mode")
            other.execute("select pg_advisory_xact_lock(%s)", [migrate.ADVISORY_LOCK])
            assert not migrate.migrate(make_conninfo(dsn, options="-c statement_timeout=20s")).changed

    def test_nothing_to_do_imports_no_alembic(self, dsn: str) -> None:
        code = (
            "import sys; from procjobs.migrate import migrate; assert not migrate(sys.argv[1]).changed;"
            "print([name for name in ('alembic', 'sqlalchemy') if name in sys.modules])"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, dsn],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent.parent,
        )
        assert (told.stdout.strip(), told.stderr) == ("[]", "")

    def test_nothing_outside_our_schemas_is_touched(self, empty_dsn: str, dump: Callable[..., str]) -> None:
        run(empty_dsn, "create schema shop; create table shop.orders (id int); create view shop.v as select 1 as one")
        before = dump(empty_dsn, "--schema=shop")
        public = "select relname from pg_class where relnamespace = 'public'::regnamespace"
        migrate.migrate(empty_dsn)
        assert dump(empty_dsn, "--schema=shop") == before
        assert ask(empty_dsn, f"{public} and relname !~ 'procrastinate|^pj_'") == []

    def test_many_at_once_make_one(self, empty_dsn: str) -> None:
        with ThreadPoolExecutor(8) as pool:
            reports = list(pool.map(lambda _: migrate.migrate(empty_dsn), range(8)))
        assert sorted(report.changed for report in reports) == [False] * 7 + [True]
        assert migrate.check(empty_dsn) == []

    def test_several_databases_of_a_new_cluster_at_once(self, server: EmbeddedPostgres) -> None:
        """The roles belong to the cluster: whoever comes second finds them, or waits for them."""
        names = [server.create_database(f"db{number}") for number in range(4)]
        with ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(migrate.migrate, names))
        assert [(report.changed, report.notes) for report in reports] == [(True, ())] * 4
        assert [migrate.check(dsn) for dsn in names] == [[]] * 4

    def test_head_is_alembics_head(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(migrate.resources().migrations))
        config.set_main_option("path_separator", "os")
        assert ScriptDirectory.from_config(config).get_heads() == [migrate.resources().head]


def revisions() -> list[str]:
    """All of them, the oldest first."""
    return sorted(file.stem[:4] for file in (migrate.resources().migrations / "versions").glob("[0-9]*.py"))


class TestUpgrade:
    def test_from_every_revision_one_gets_what_a_new_database_gets(
        self, databases: Databases, dump: Callable[..., str]
    ) -> None:
        fresh = databases.make()
        migrate.migrate(fresh)
        wanted, fingerprints = dump(fresh), state_of(fresh)
        for revision in revisions()[:-1]:
            dsn = databases.make()
            migrate.migrate(dsn)
            migrate.downgrade(dsn, revision)
            assert migrate.migrate(dsn).changed
            assert dump(dsn) == wanted
            assert state_of(dsn) == fingerprints
            assert migrate.check(dsn) == []

    def test_base_leaves_upstreams_own_schema_and_up_again_is_as_new(
        self, databases: Databases, dump: Callable[..., str]
    ) -> None:
        upstream = databases.make()
        install_current(upstream)
        dsn = databases.make()
        migrate.migrate(dsn)
        wanted = dump(dsn)
        migrate.downgrade(dsn)
        assert dump(dsn) == dump(upstream)
        migrate.migrate(dsn)
        assert dump(dsn) == wanted

    def test_leaving_keeps_every_job(self, databases: Databases, empty_dsn: str) -> None:
        install_current(empty_dsn)
        run(empty_dsn, JOBS.format(s="public"))
        rows, events = ask(empty_dsn, JOB_ROWS.format(s="public")), ask(empty_dsn, EVENTS.format(s="public"))
        migrate.migrate(empty_dsn)
        run(
            empty_dsn,
            """
            insert into procjobs.job_history (
              id, queue_name, task_name, priority, args, status, attempts, crashes, lease, worker_id, finished_at)
            values (100, 'mail', 'app.send', 1, '{"a": 1}', 'succeeded', 1, 0, 1, 77, now())
            """,
        )
        migrate.downgrade(empty_dsn)
        after = ask(empty_dsn, JOB_ROWS.format(s="public"))
        assert after[:-1] == rows
        assert after[-1][:8] == (100, "mail", "app.send", 1, None, None, '{"a": 1}', "succeeded")
        assert ask(empty_dsn, EVENTS.format(s="public"))[: len(events)] == events

    @pytest.mark.parametrize("command", [migrate.migrate, migrate.check])
    def test_a_database_from_the_future_is_refused(self, dsn: str, command: Callable[[str], object]) -> None:
        run(dsn, "update procjobs.alembic_version set version_num = '9999'")
        with pytest.raises(MigrationError, match=r"revision 9999, newer than this procjobs") as refused:
            command(dsn)
        assert refused.value.hint == "install the newer procjobs"

    def test_a_failure_changes_nothing(self, databases: Databases, tmp_path: Path) -> None:
        dsn = databases.make()
        host = tmp_path / "host.sql"
        host.write_text("create view procjobs.host_x as select 1 as one;\n\nselect nonsense from nowhere;\n")
        with pytest.raises(MigrationError, match=r'host\.sql:3: relation "nowhere" does not exist'):
            migrate.migrate(dsn, host_sql=host)
        assert ask(dsn, "select to_regnamespace('procjobs'), to_regclass('public.procrastinate_jobs')") == [
            (None, None)
        ]

    @pytest.mark.parametrize("ending", ["commit;", "rollback;", "commit; begin;"])
    def test_a_host_file_that_ends_the_transaction_is_refused(self, dsn: str, tmp_path: Path, ending: str) -> None:
        host = tmp_path / "host.sql"
        host.write_text(f"select 1;\n{ending}\n")
        with pytest.raises(MigrationError, match=r"host\.sql ended the transaction") as refused:
            migrate.migrate(dsn, host_sql=host)
        assert "take commit" in str(refused.value.hint)
        migrate.migrate(dsn)  # nobody takes the half of it for the whole
        assert migrate.check(dsn) == []

    def test_a_host_file_in_another_encoding_is_told(self, dsn: str, tmp_path: Path) -> None:
        host = tmp_path / "host.sql"
        host.write_bytes("-- Größe".encode("latin-1"))
        with pytest.raises(MigrationError, match=r"host\.sql is not UTF-8") as refused:
            migrate.migrate(dsn, host_sql=host)
        assert "UTF-8" in str(refused.value.hint)


class TestAdoption:
    @pytest.mark.parametrize("release", RELEASES)
    def test_an_installation_of_any_release_becomes_as_a_new_one(
        self, databases: Databases, dump: Callable[..., str], release: str
    ) -> None:
        fresh = databases.make()
        migrate.migrate(fresh)
        dsn = databases.make()
        install_upstream(dsn, RELEASES[release])
        run(dsn, JOBS.format(s="public"))
        rows, events = ask(dsn, JOB_ROWS.format(s="public")), ask(dsn, EVENTS.format(s="public"))

        report = migrate.migrate(dsn)

        missing = [name for name in upstream_files("99") if name > RELEASES[release]]
        assert report.adopted == tuple(missing)
        assert ask(dsn, JOB_ROWS.format(s="public")) == rows
        assert ask(dsn, EVENTS.format(s="public")) == events
        assert state_of(dsn) == state_of(fresh)
        assert migrate.check(dsn) == []
        assert not migrate.migrate(dsn).changed

    def test_many_at_once_adopt_once(self, empty_dsn: str) -> None:
        install_upstream(empty_dsn, RELEASES["3.0"])
        with ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(lambda _: migrate.migrate(empty_dsn), range(4)))
        assert sorted(report.changed for report in reports) == [False] * 3 + [True]
        assert migrate.check(empty_dsn) == []

    def test_the_tables_may_be_in_any_schema(self, databases: Databases, dump: Callable[..., str]) -> None:
        dsn = databases.make()
        install_current(dsn, '"Back Office"')
        run(dsn, 'set search_path to "Back Office";' + JOBS.format(s='"Back Office"'))
        rows = ask(dsn, JOB_ROWS.format(s='"Back Office"'))
        report = migrate.migrate(dsn)
        assert (report.upstream_schema, report.adopted) == ("Back Office", ())
        assert ask(dsn, JOB_ROWS.format(s='"Back Office"')) == rows
        assert ask(dsn, "select to_regclass('public.procrastinate_jobs')") == [(None,)]
        assert migrate.check(dsn) == []
        migrate.downgrade(dsn)
        upstream = databases.make()
        install_current(upstream, '"Back Office"')
        assert dump(dsn) == dump(upstream)

    def test_a_new_installation_may_be_put_in_any_schema(self, empty_dsn: str) -> None:
        run(empty_dsn, "create schema jobs")
        assert migrate.migrate(empty_dsn, upstream_schema="jobs").upstream_schema == "jobs"
        assert not migrate.migrate(empty_dsn).changed
        with pytest.raises(MigrationError, match="are in schema jobs, not public"):
            migrate.migrate(empty_dsn, upstream_schema="public")

    def test_its_tasks_are_known_by_name(self, empty_dsn: str) -> None:
        install_current(empty_dsn)
        run(empty_dsn, JOBS.format(s="public"))
        migrate.migrate(empty_dsn)
        query = "select name, queue, execution, args_schema, registered_by from procjobs.tasks"
        assert ask(empty_dsn, f"{query} where name ~ '^app' order by 1") == [
            ("app.old", "reports", "unknown", None, "adoption"),
            ("app.report", "reports", "unknown", None, "adoption"),
            ("app.send", "mail", "unknown", None, "adoption"),
        ]

    def test_waiting_and_scheduled_jobs_are_told_apart(self, empty_dsn: str) -> None:
        install_current(empty_dsn)
        run(empty_dsn, JOBS.format(s="public"))
        migrate.migrate(empty_dsn)
        query = "select id, pj_waits_for, pj_created_at is not null from public.procrastinate_jobs"
        assert ask(empty_dsn, f"{query} where status = 'todo' order by id") == [(1, None, True), (2, "time", True)]

    def test_what_is_older_than_three_is_refused(self, empty_dsn: str) -> None:
        install_upstream(empty_dsn, "02.99")
        with pytest.raises(MigrationError, match=r"is older than 3\.0"):
            migrate.migrate(empty_dsn)
        assert ask(empty_dsn, "select to_regnamespace('procjobs')") == [(None,)]

    def test_two_installations_need_a_word(self, empty_dsn: str) -> None:
        install_current(empty_dsn)
        install_current(empty_dsn, "other")
        with pytest.raises(MigrationError, match="several schemas: other, public"):
            migrate.migrate(empty_dsn)
        assert migrate.migrate(empty_dsn, upstream_schema="other").upstream_schema == "other"

    def test_another_procrastinate_than_the_known_one_is_refused(
        self, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(adoption, "SCHEMA_SHA256", "0" * 64)
        with pytest.raises(MigrationError, match=r"another schema\.sql than this procjobs knows") as refused:
            migrate.migrate(empty_dsn)
        assert "pip install" in (refused.value.hint or "")


DRIFTS = {
    "missing: function procjobs.clock()": "drop function procjobs.clock() cascade",
    "changed: function procjobs.clock()": "alter function procjobs.clock() volatile",
    "changed: schema procjobs": "grant usage on schema procjobs to public",
    "missing: index public.pj_jobs_due": "drop index public.pj_jobs_due",
    "changed: trigger pj_after_insert on public.procrastinate_jobs": (
        "alter table public.procrastinate_jobs disable trigger pj_after_insert"
    ),
    "changed: view procjobs.jobs": "alter view procjobs.jobs set (security_barrier)",
    "changed: type public.procrastinate_job_status": (
        "alter type public.procrastinate_job_status add value 'surprised'"
    ),
    "changed: table procjobs.job_attempts": "grant select on procjobs.job_attempts to public",
    "changed: table procjobs.tasks": "alter table procjobs.tasks add column extra text",
    "not ours: function procjobs.stray()": "create function procjobs.stray() returns int language sql as 'select 1'",
    "not ours: trigger stray on public.procrastinate_jobs": (
        "create trigger stray before update on public.procrastinate_jobs"
        " for each row execute function suppress_redundant_updates_trigger()"
    ),
    "changed: function public.procrastinate_finish_job_v1(job_id bigint, end_status public.procrastinate_job_status,"
    " delete_job boolean)": (
        "alter function public.procrastinate_finish_job_v1(bigint, public.procrastinate_job_status, boolean) strict"
    ),
}


class TestDrift:
    @pytest.mark.parametrize("problem", DRIFTS)
    def test_every_difference_is_named(self, dsn: str, problem: str) -> None:
        run(dsn, DRIFTS[problem])
        assert problem in migrate.check(dsn)

    def test_an_empty_database_is_told(self, empty_dsn: str) -> None:
        assert migrate.check(empty_dsn) == ["procjobs is not installed in this database: run procjobs migrate"]

    def test_migrate_mends_code(self, dsn: str) -> None:
        before = state_of(dsn)
        run(dsn, "alter function procjobs.clock() volatile", "grant usage on schema procjobs to public")
        run(dsn, "drop trigger pj_before_insert on public.procrastinate_jobs")
        migrate.migrate(dsn)
        assert state_of(dsn)["function procjobs.clock()"] == before["function procjobs.clock()"]
        assert migrate.check(dsn) == []

    def test_a_changed_host_file_is_seen_and_applied(self, dsn: str, tmp_path: Path) -> None:
        host = tmp_path / "host.sql"
        default = (migrate.resources().sql / "host_default.sql").read_text()
        host.write_text(default + "\ncreate view procjobs.host_extra as select 1 as one;\n")
        assert "host.sql changed" in migrate.check(dsn, host_sql=host)[0]
        applied = migrate.migrate(dsn, host_sql=host).applied
        assert applied[-3:] == (str(host), "sql/schedules.sql", "sql/owners.sql")
        assert ask(dsn, "select one from procjobs.host_extra") == [(1,)]
        assert not migrate.migrate(dsn, host_sql=host).changed
        migrate.migrate(dsn)
        assert ask(dsn, "select to_regclass('procjobs.host_extra')") == [(None,)]

    def test_what_a_release_no_longer_has_goes(self, dsn: str, tmp_path: Path) -> None:
        """A function that migrate made once and sql/ no longer has; what others made stays."""
        run(
            dsn,
            "create function procjobs.gone(integer) returns integer language sql as 'select 1'",
            "create function procjobs.theirs() returns integer language sql as 'select 1'",
            "update procjobs.schema_state set checksum = null,"
            ' objects = objects || \'{"function procjobs.gone(integer)": "x"}\'',
        )
        migrate.migrate(dsn)
        left = "select to_regprocedure('procjobs.gone(integer)'), to_regproc('procjobs.theirs') is not null"
        assert ask(dsn, left) == [(None, True)]
        assert migrate.check(dsn) == ["not ours: function procjobs.theirs()"]

    def test_a_companys_own_grants_are_its_own(self, dsn: str, databases: Databases) -> None:
        run(
            dsn,
            "do $$ begin create role grafana; exception when duplicate_object then null; end $$",
            "grant usage on schema procjobs to grafana",
            "grant select on procjobs.jobs to grafana",
        )
        assert migrate.check(dsn) == []
        run(dsn, "update procjobs.schema_state set checksum = null")
        assert migrate.migrate(dsn).changed
        assert ask(dsn, "select has_table_privilege('grafana', 'procjobs.jobs', 'select')") == [(True,)]

    def test_a_view_of_somebody_elses_is_named_and_kept(self, dsn: str) -> None:
        run(
            dsn,
            "create view public.my_jobs as select id from procjobs.jobs",
            "update procjobs.schema_state set checksum = null",
        )
        with pytest.raises(MigrationError, match=r"view public.my_jobs depends on view procjobs\.jobs"):
            migrate.migrate(dsn)
        assert ask(dsn, "select count(*) from public.my_jobs") == [(0,)]


class TestServer:
    def test_an_old_server_is_refused(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(migrate, "OLDEST_SERVER", 99)
        with pytest.raises(ServerError, match=r"and procjobs needs 99 or newer"):
            migrate.migrate(dsn)

    def test_a_server_that_is_not_there(self) -> None:
        with pytest.raises(DatabaseUnavailable):
            migrate.migrate("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")

    def test_a_locked_table_is_waited_for(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A migration that cannot get its lock backs off and tries again."""
        run(dsn, "update procjobs.schema_state set checksum = null")
        said: list[str] = []
        waits: list[float] = []
        holder = psycopg.connect(dsn)
        holder.execute("lock table public.procrastinate_jobs in share row exclusive mode")
        run_file = Plan.run

        def impatient(self: Plan, connection: Any, path: Path, schema: str) -> None:
            connection.execute("set local lock_timeout to '50ms'")
            run_file(self, connection, path, schema)

        def leave(delay: float) -> None:
            waits.append(delay)
            holder.close()

        monkeypatch.setattr(Plan, "run", impatient)
        monkeypatch.setattr("procjobs.migrate.time.sleep", leave)
        assert migrate.migrate(dsn, log=said.append).changed
        assert len(waits) == 1
        assert any("lock timeout" in line for line in said)

    def test_those_who_are_in_the_way_each_time_give_way_at_last(
        self, dsn: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many sessions, of which always one holds what is taken last and waits for what is taken first."""
        monkeypatch.setattr(migrate, "PATIENCE", 12.0)
        done = threading.Event()

        def work() -> int:
            ended = 0
            with psycopg.connect(dsn) as connection:
                while not done.is_set():
                    try:
                        connection.execute("lock table procjobs.event_reminders in access share mode")
                        connection.execute("lock table public.procrastinate_jobs in access share mode")
                        connection.commit()
                    except psycopg.errors.DeadlockDetected:
                        connection.rollback()
                        ended += 1
            return ended

        with ThreadPoolExecutor() as pool:
            working = [pool.submit(work) for _ in range(4)]
            try:
                run(dsn, "update procjobs.schema_state set checksum = null")
                assert migrate.migrate(dsn).changed
            finally:
                done.set()
            assert sum(worker.result(30) for worker in working) >= 1


class TestPrivileges:
    @pytest.fixture
    def plain(self, server: EmbeddedPostgres) -> str:
        """A database of its own cluster, owned by a user who may not create roles."""
        dsn = server.create_database("app")
        run(dsn, "create role plain login", "alter database app owner to plain", "alter schema public owner to plain")
        return with_user(dsn, "plain")

    def test_without_createrole_it_works_and_says_what_is_missing(self, plain: str) -> None:
        report = migrate.migrate(plain)
        assert report.changed
        assert "procjobs_owner" in report.notes[0]
        assert "create role procjobs_owner nologin" in report.notes[0]
        again = migrate.migrate(plain)
        assert not again.changed
        assert "missing roles" in again.notes[0]
        assert [problem for problem in migrate.check(plain) if "role" not in problem] == []

    def test_rights_that_are_missing_are_told_in_the_words_of_sql(self, server: EmbeddedPostgres) -> None:
        dsn = server.create_database("app")
        run(dsn, "create role guest login", "revoke create on schema public from public")
        guest = with_user(dsn, "guest")
        for place in ("database app", "schema public"):
            with pytest.raises(MigrationError, match=f"permission denied for {place}") as refused:
                migrate.migrate(guest)
            run(dsn, *re.findall(rf"grant create on {place.split()[0]} [^;]*", str(refused.value.hint)))
        run(dsn, *(f"create role {role} nologin" for role in ROLES))
        report = migrate.migrate(guest)
        assert report.changed and report.notes
        assert all("as a superuser: grant " in note for note in report.notes), report.notes

    def test_a_host_file_without_rights_on_the_tables_it_reads(self, plain: str, tmp_path: Path) -> None:
        run(with_user(plain, "postgres"), "create schema shop", "create table shop.users (id uuid)")
        host = tmp_path / "host.sql"
        host.write_text("create or replace view procjobs.host_people as select id from shop.users;\n")
        with pytest.raises(MigrationError, match=r"host\.sql:1: permission denied for schema shop") as refused:
            migrate.migrate(plain, host_sql=host)
        assert refused.value.hint == 'it runs as "plain": grant that user what the file does'

    def test_roles_made_later_are_found_and_used(self, plain: str, server: EmbeddedPostgres) -> None:
        migrate.migrate(plain)
        run(server.dsn(), *(f"create role {role} nologin" for role in ROLES))
        run(server.dsn(), "grant procjobs_owner to plain", "grant procjobs_reader, procjobs_producer to procjobs_admin")
        assert migrate.migrate(plain).notes == ()
        owner = "select nspowner::regrole::text from pg_namespace where nspname = 'procjobs'"
        assert ask(plain, owner) == [("procjobs_owner",)]

    def test_createrole_is_enough(self, server: EmbeddedPostgres) -> None:
        dsn = server.create_database("app")
        run(
            dsn,
            "create role deployer login createrole",
            "alter database app owner to deployer",
            "alter schema public owner to deployer",
        )
        mine = with_user(dsn, "deployer")
        assert migrate.migrate(mine).notes == ()
        run(mine, "update procjobs.schema_state set checksum = null")
        assert migrate.migrate(mine).notes == ()
        assert migrate.check(mine) == []

    def test_everything_belongs_to_the_owner(self, sql: Sql) -> None:
        query = """
        select relname, relowner::regrole::text from pg_class where relnamespace = 'procjobs'::regnamespace
          and relowner <> 'procjobs_owner'::regrole
        union all
        select proname, proowner::regrole::text from pg_proc where pronamespace = 'procjobs'::regnamespace
          and proowner <> 'procjobs_owner'::regrole
        """
        assert sql(query) == []

    def test_the_roles(self, sql: Sql) -> None:
        query = "select rolname, rolcanlogin, rolsuper, rolcreaterole from pg_roles where rolname like 'procjobs\\_%'"
        assert sorted(sql(query)) == sorted((role, False, False, False) for role in ROLES)
        member = r"""
        select g.rolname, m.rolname
        from pg_auth_members a
        join pg_roles g on g.oid = a.roleid
        join pg_roles m on m.oid = a.member
        where g.rolname like 'procjobs\_%' and m.rolname like 'procjobs\_%'
        """
        assert sorted(sql(member)) == [("procjobs_producer", "procjobs_admin"), ("procjobs_reader", "procjobs_admin")]
        described = "select count(shobj_description(oid, 'pg_authid')) from pg_roles where rolname like 'procjobs\\_%'"
        assert sql.one(described) == len(ROLES)
