"""migrate adopts Procrastinate's tables of any release, in any schema, with their jobs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from procjobs import adoption, migrate
from procjobs.embedded import EmbeddedPostgres
from procjobs.errors import MigrationError
from tests.conftest import Databases
from tests.migrations import (
    EVENTS,
    JOB_ROWS,
    JOBS,
    RELEASES,
    ask,
    dumper,
    install_current,
    install_upstream,
    run,
    state_of,
    upstream_files,
)


@pytest.fixture
def dump(cluster: EmbeddedPostgres) -> Callable[..., str]:
    return dumper(cluster)


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
