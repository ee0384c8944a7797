"""What tests of migrate look at and start from: a schema in full, and Procrastinate's installations of any release."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from importlib import resources as package
from typing import Any

import psycopg

from procjobs.embedded import EmbeddedPostgres, binaries
from procjobs.schema import objects

UPSTREAM = package.files("procrastinate").joinpath("sql")


def run(dsn: str, *queries: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for query in queries:
            connection.execute(query.encode())


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def dumper(cluster: EmbeddedPostgres) -> Callable[[str], str]:
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
