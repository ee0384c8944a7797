"""migrate and the server: which one it takes, whom it waits for, what its rights must be."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procjobs import migrate
from procjobs.embedded import EmbeddedPostgres
from procjobs.errors import DatabaseUnavailable, MigrationError, ServerError
from procjobs.schema import ROLES, Plan
from tests.conftest import Sql, with_user
from tests.migrations import (
    ask,
    run,
)


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
        done, given_way = threading.Event(), threading.Event()

        def work() -> None:
            with psycopg.connect(dsn) as connection:
                while not done.is_set():
                    try:
                        connection.execute("lock table procjobs.event_reminders in access share mode")
                        connection.execute("lock table public.procrastinate_jobs in access share mode")
                        connection.commit()
                    except psycopg.errors.DeadlockDetected:
                        connection.rollback()
                        given_way.set()

        with ThreadPoolExecutor() as pool:
            working = [pool.submit(work) for _ in range(4)]
            try:
                for _ in range(20):  # once in a while nobody is in the way
                    run(dsn, "update procjobs.schema_state set checksum = null")
                    assert migrate.migrate(dsn).changed
                    if given_way.is_set():
                        break
            finally:
                done.set()
            for worker in working:
                worker.result(30)
        assert given_way.is_set()


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
