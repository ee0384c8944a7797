"""migrate: every way to the schema leads to the same schema, loses nothing, and says what it finds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo

from procjobs import migrate
from procjobs.embedded import EmbeddedPostgres
from procjobs.errors import MigrationError
from tests.conftest import Databases, Sql
from tests.migrations import (
    EVENTS,
    JOB_ROWS,
    JOBS,
    ask,
    dumper,
    install_current,
    run,
    state_of,
)


@pytest.fixture
def dump(cluster: EmbeddedPostgres) -> Callable[..., str]:
    return dumper(cluster)


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
        dsn = databases.make()
        migrate.migrate(dsn)
        for revision in revisions()[:-1]:  # each leaves it as a new one, for the next
            migrate.downgrade(dsn, revision)
            assert migrate.migrate(dsn).changed
            assert dump(dsn) == wanted
            assert state_of(dsn) == fingerprints
            assert migrate.check(dsn) == []

    def test_a_release_with_new_functions_changes_what_came_with_the_last_one(self, dsn: str, sql: Sql) -> None:
        # As an upgrade finds it: what is new belongs to who migrates until it is given away, and what was there calls
        # it.
        sql("update procjobs.tasks set queue = 'another' where name = 'procjobs.create_digest_jobs'")
        sql("update procjobs.schedules set declared = null, cron = '7 7 * * *' where name = 'create_digest_jobs'")
        sql(
            "do $$ declare f regprocedure; begin "
            "for f in select oid from pg_proc where pronamespace = 'procjobs'::regnamespace and not prosecdef "
            "and prokind = 'f' and prorettype <> 'trigger'::regtype loop "
            "execute format('alter function %s owner to current_user', f); "
            "execute format('revoke all on function %s from public, procjobs_owner', f); end loop; end $$"
        )
        sql("drop function procjobs.setting_name(text, text[], jsonb)")
        assert migrate.migrate(dsn).changed
        assert sql.one("select queue from procjobs.tasks where name = 'procjobs.create_digest_jobs'") == "digests"
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
