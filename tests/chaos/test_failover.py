"""The primary dies and a synchronous standby takes over: scenario 20. On Debian's 15, which brings pg_basebackup."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from procjobs.embedded import EmbeddedPostgres
from procjobs.launch import command, server_account
from procjobs.migrate import migrate
from tests.chaos.conftest import Build
from tests.chaos.harness.client import Load
from tests.chaos.harness.site import until

BINDIR = Path("/usr/lib/postgresql/15/bin")
pytestmark = pytest.mark.skipif(
    not (BINDIR / "pg_basebackup").is_file(),
    reason=f"a standby needs pg_basebackup: {BINDIR} is not there (apt-get install postgresql-15)",
)
SAFE = {"fsync": "off", "synchronous_commit": "on", "wal_level": "replica", "max_connections": "100"}


@dataclass
class Pair:
    """A primary and its standby; every commit is on both."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    def dsn(self, database: str) -> str:
        """Both hosts; whoever connects gets the one that can write."""
        hosts = f"{self.primary.socket_dir},{self.standby.socket_dir}"
        return (
            f"host={hosts} port=5432,5432 user=postgres dbname={database} "
            "target_session_attrs=read-write connect_timeout=3"
        )

    def fail_over(self) -> None:
        pid = self.primary.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        until(lambda: self.primary.pid is None)
        with psycopg.connect(self.standby.dsn(), autocommit=True) as connection:
            assert connection.execute("select pg_promote()").fetchone() == (True,)


@pytest.fixture
def pair(folder: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    name = f"pair{abs(hash(request.node.name)) % 10_000}"
    with EmbeddedPostgres(folder / f"{name}a", bindir=BINDIR, server_settings=SAFE) as primary:
        dsn = primary.create_database("chaos")
        migrate(dsn)
        copy = folder / f"{name}b"
        account = server_account()
        copy.mkdir(mode=0o700)
        if account.uid >= 0:
            os.chown(copy, account.uid, account.gid)
        subprocess.run(
            command(account, BINDIR / "pg_basebackup", "-h", str(primary.socket_dir), "-p", "5432", "-U", "postgres",
                    "-D", str(copy), "-X", "stream", "-c", "fast", "--no-sync"),
            check=True, capture_output=True, cwd=copy,
        )  # fmt: skip
        for left in copy.glob(".s.PGSQL.*"):
            left.unlink()  # the primary's socket lies in its data folder
        (copy / "standby.signal").touch()
        follow = {
            **SAFE,
            "primary_conninfo": f"host={primary.socket_dir} port=5432 user=postgres application_name=standby",
            "synchronous_standby_names": "",  # else every commit hangs once it is the primary
        }
        with EmbeddedPostgres(copy, bindir=BINDIR, server_settings=follow) as standby:
            with psycopg.connect(primary.dsn(), autocommit=True) as connection:
                connection.execute("alter system set synchronous_standby_names = 'standby'")
                connection.execute("select pg_reload_conf()")
                query = "select sync_state from pg_stat_replication"
                until(lambda: connection.execute(query).fetchone() == ("sync",))
            yield Pair(primary, standby)


def test_20_failover_to_a_synchronous_standby_under_load(build: Build, pair: Pair) -> None:
    dsn = pair.dsn("chaos")
    site = build(dsn)
    workers = site.fleet.start_many(2, concurrency=5)
    client = site.client_on(dsn, "load")

    def make(n: int) -> list[dict[str, str]]:
        return [{"task": "work", "lock": f"lock {n % 5}"} if n % 3 == 0 else {"task": "work"} for n in range(n, n + 3)]

    with Load(client, make) as load:
        until(lambda: site.sql.one("select count(*) from procjobs.job_history") > 60, what=site.left)
        pair.fail_over()
        before = load.acknowledged
        until(lambda: load.acknowledged > before + 60, what=site.left)
    site.check_all_succeeded()
    assert all(worker.alive for worker in workers)
    assert site.sql.one("select inet_server_addr() is null and not pg_is_in_recovery()")
    for worker in workers:
        worker.terminate(0)
        assert worker.exit_code() == 0
