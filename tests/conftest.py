"""What every test stands on: one PostgreSQL a test process, one migrated template a run, a clone of it for each test.

PROCJOBS_TEST_PG chooses the server: `embedded` (default); a major version that Debian installed, e.g. `15`; or the
absolute path of a folder that has `bin/postgres`.
"""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql as compose
from psycopg.conninfo import conninfo_to_dict
from pytest_postgresql.janitor import DatabaseJanitor

from procjobs.db import Database
from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate

FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "max_wal_size": "1GB",
}
TEMPLATE = "migrated"
_numbers = itertools.count(1)


def _bindir() -> Path | None:
    """Where the chosen server's programs are; None for the embedded one. Raises UsageError."""
    chosen = os.environ.get("PROCJOBS_TEST_PG") or "embedded"
    if chosen == "embedded":
        return None
    if re.fullmatch(r"[1-9][0-9]", chosen):
        found = Path("/usr/lib/postgresql", chosen, "bin")
    elif chosen.startswith("/"):
        found = Path(chosen, "bin")
    else:
        raise pytest.UsageError(
            f"PROCJOBS_TEST_PG={chosen}: give `embedded`, a major version of Debian's (15), or an absolute path"
        )
    if not (found / "postgres").is_file():
        raise pytest.UsageError(f"PROCJOBS_TEST_PG={chosen}: there is no {found / 'postgres'}")
    return found


_RUN = "PROCJOBS_TEST_FOLDER"
#: Where this run has its data folders: one for all its test processes.
_run = Path()


def pytest_configure(config: pytest.Config) -> None:
    global _run
    _bindir()  # a wrong choice is told once, not by every test
    if not hasattr(config, "workerinput"):
        os.environ[_RUN] = tempfile.mkdtemp(prefix="pj-", dir=_roomy())
        Path(os.environ[_RUN]).chmod(0o711)  # passable for the user that servers run as under root
    _run = Path(os.environ[_RUN])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _run.name:
        shutil.rmtree(_run, ignore_errors=True)


def _roomy() -> str:
    """Where to put data folders: in memory if there is room, where copying the template takes a fifth of the time."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 1024**3:
        return str(memory)
    return "/tmp"


@pytest.fixture(scope="session")
def folder() -> Path:
    """A short path for data folders, passable for the user that servers run as under root."""
    path = Path(tempfile.mkdtemp(dir=_run))
    path.chmod(0o711)
    return path


#: Servers, processes, outages, wheels and the documentation's examples: left out by `scripts/test --quick`.
SLOW = (
    "bench/",
    "engine/test_contract_",
    "engine/test_processes",
    "chaos/",
    "packs/test_channels",
    "packs/test_delivery",
    "sql/test_cron_oracle",
    "sql/test_schedules_many",
    "sql/test_schedules_month",
    "web/",
    "test_cli",
    "test_docs",
    "test_embedded",
    "test_migrate",
    "test_packaging",
    "test_pictures",
    "test_services",
    "test_up",
    "test_cli_",
    "test_doctor_inside",
    "test_pgbouncer",
    "test_pg_cron",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if {"cluster", "server"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.database)


def _data(path: Path, name: str = "new", fill: Callable[[EmbeddedPostgres], None] | None = None) -> Path:
    """A data folder: the first of that name in a run is made and filled, the others are copies of it."""
    made = _run / name
    with (_run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            making = _run / f"{name}.making"
            if fill is not None:
                _data(making)
            with EmbeddedPostgres(making, bindir=_bindir(), server_settings=FAST) as server:
                if fill is not None:
                    fill(server)
            making.rename(made)
    shutil.copytree(made, path)
    return path


def _migrated(server: EmbeddedPostgres) -> None:
    dsn = server.create_database(TEMPLATE)
    migrate(dsn)
    # What comes with procjobs and runs by itself is taken out, so that it does not run amid a test: `declare_retention`
    # brings it back. What a first connection reads of the catalogs is kept in a file, which every copy gets.
    with psycopg.connect(dsn) as connection:
        connection.execute("select procjobs.unschedule(name) from procjobs.schedules where source = 'pack'")
        connection.execute("select procjobs.drop_sql_task(name) from procjobs.tasks where routine is not null")


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[EmbeddedPostgres]:
    """The server of this test process. Tests that stop or kill a server use `server`."""
    with EmbeddedPostgres(
        _data(folder / "pg", "migrated", _migrated), bindir=_bindir(), server_settings=FAST
    ) as running:
        yield running


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, started: to be stopped, killed and started again."""
    settings = {**FAST, "synchronous_commit": "on"}  # what was acknowledged is there after a kill -9 of the server
    path = _data(folder / f"own{next(_numbers)}")
    with EmbeddedPostgres(path, bindir=_bindir(), server_settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def template(cluster: EmbeddedPostgres) -> str:
    """The name of a migrated database that nobody connects to."""
    return TEMPLATE


@pytest.fixture(scope="session")
def maintenance(cluster: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """The connection over which databases are made and dropped."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        yield connection


class Janitor(DatabaseJanitor):
    """pytest-postgresql's, on our own server (whose own does not run as root), over one kept connection."""

    def __init__(self, maintenance: psycopg.Connection[Any], **options: Any) -> None:
        super().__init__(**options)
        self._maintenance = maintenance

    @contextmanager
    def cursor(self, dbname: str | None = None) -> Iterator[psycopg.Cursor[Any]]:
        with self._maintenance.cursor() as cursor:
            yield cursor

    def _build_create_database_sql(self) -> compose.Composed:
        # Copying files is less work than copying through the WAL, the default since 15.
        query = super()._build_create_database_sql()
        recent = self._maintenance.info.server_version >= 150000
        return query + compose.SQL(" strategy file_copy") if recent else query


class Databases:
    """Databases of the shared server, dropped after the test."""

    def __init__(self, cluster: EmbeddedPostgres, maintenance: psycopg.Connection[Any]) -> None:
        self._cluster = cluster
        self._maintenance = maintenance
        where = conninfo_to_dict(cluster.dsn())
        self._where = {key: str(where[key]) for key in ("user", "host", "port")}
        self._made: list[Janitor] = []

    def make(self, template: str = "template0") -> str:
        """A new database, a copy of `template`; returns its DSN."""
        name = f"test{next(_numbers)}"
        janitor = Janitor(self._maintenance, dbname=name, template_dbname=template, **self._where)
        janitor.init()
        self._made.append(janitor)
        return self._cluster.dsn(name)

    def drop(self) -> None:
        for janitor in self._made:
            janitor.drop()


@pytest.fixture
def databases(cluster: EmbeddedPostgres, maintenance: psycopg.Connection[Any]) -> Iterator[Databases]:
    """Makes further databases: `databases.make()` is empty, `databases.make(template)` is migrated."""
    made = Databases(cluster, maintenance)
    yield made
    made.drop()


@pytest.fixture
def dsn(databases: Databases, template: str) -> str:
    """A migrated database of the test's own."""
    return databases.make(template)


@pytest.fixture
def empty_dsn(databases: Databases) -> str:
    """A database with nothing in it."""
    return databases.make()


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[Database]:
    """An open procjobs.db.Database on `dsn`."""
    async with Database(dsn) as database:
        yield database


class Sql:
    """`sql("select ...", 1, 2)` gives the rows as tuples, `sql.one(...)` the first column of the only row."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)

    def __call__(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *params: Any) -> Any:
        ((value, *_),) = self(query, *params)
        return value


@pytest.fixture
def sql(dsn: str) -> Iterator[Sql]:
    """Queries in `dsn` as its superuser, each its own transaction."""
    queries = Sql(dsn)
    yield queries
    queries.connection.close()


@pytest.fixture
def explain(sql: Sql) -> Callable[..., dict[str, Any]]:
    """`explain("select ...")` gives the plan as PostgreSQL's JSON object; with analyze=True it is run."""

    def plan(query: str, *params: Any, analyze: bool = False) -> dict[str, Any]:
        options = "format json, analyze, buffers" if analyze else "format json"
        found = sql.one(f"explain ({options}) {query}", *params)
        return dict(found[0]["Plan"])

    return plan


@pytest.fixture(scope="session")
def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts unless told to."""
    path = folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", f"{path}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`eventually(condition)` waits until the condition holds and returns what it gave; awaited in async tests.

    The condition is a function without arguments, async or not. After `timeout` seconds the test fails with its last
    value.
    """

    def wait(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            return _wait_async(condition, timeout)
        return _wait(condition, timeout)

    return wait


def _wait(condition: Callable[[], Any], timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s; last: {value!r}", pytrace=True)
        time.sleep(0.01)
    return value


async def _wait_async(condition: Callable[[], Any], timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s; last: {value!r}", pytrace=True)
        await asyncio.sleep(0.01)


def with_user(dsn: str, user: str) -> str:
    """The same DSN as another database user."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{user}@"))
