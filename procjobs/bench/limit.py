"""The physical limit: pgbench claims and finishes batches on the smallest table that could hold jobs.

Claim and finish are statements of their own, as they are for every queue that runs jobs in between.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from procjobs.bench.contenders import Contender

if TYPE_CHECKING:
    from procjobs.bench.drain import Drained

__all__ = ["drain", "enqueue", "prepare"]

_SCHEMA = """
create table job (id bigint generated always as identity primary key, state text not null default 'todo', args jsonb);
create index on job (id) where state = 'todo';
"""
_CLAIM = (
    "with claimed as (update job set state = 'doing' where id = any (array(select id from job where state = 'todo' "
    "order by id limit {batch} for update skip locked)) returning id) "
    "select string_agg(id::text, ',') as ids from claimed \\gset"
)
_FINISH = {
    "update": "update job set state = 'done' where id = any ('{:ids}'::bigint[]);",
    "delete": "delete from job where id = any ('{:ids}'::bigint[]);",
}


def prepare(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_SCHEMA.encode())


def enqueue(dsn: str, count: int) -> float:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into job (args) select '{}' from generate_series(1, %s)", (count,))
    return 0.0


def drain(dsn: str, contender: Contender, jobs: int) -> Drained:
    """So many batches from so many clients as there are jobs; what is left over is not counted."""
    from procjobs.bench.drain import Drained

    batches = jobs // contender.concurrency // contender.processes
    with tempfile.TemporaryDirectory(prefix="procjobs-bench-") as folder:
        script = Path(folder) / "script"
        script.write_text(f"{_CLAIM.format(batch=contender.concurrency)}\n{_FINISH[contender.task]}\n")
        command = ["pgbench", "--no-vacuum", f"--client={contender.processes}", f"--jobs={contender.processes}"]
        command += [f"--transactions={batches}", f"--file={script}", dsn]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    rates = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("tps")]
    if done.returncode or not rates:
        raise RuntimeError(f"pgbench: {done.stderr.strip()[-300:]}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(contender.peer.acknowledged.encode(), {"jobs": jobs}).fetchone()
    finished = int(row[0]) if row else 0
    return Drained(finished, batches * contender.processes / float(rates[0]))
