"""What a statement reads of the job table, needed or not: a dead entry of an index costs as much as a living one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conftest import Sql

__all__ = ["entries_read"]

_READ = """
select c.relname, pg_stat_get_xact_tuples_returned(c.oid) from pg_class c
where c.oid = 'procrastinate_jobs'::regclass
   or c.oid in (select indexrelid from pg_index where indrelid = 'procrastinate_jobs'::regclass)
"""


def entries_read(sql: Sql, act: Callable[[], Any]) -> dict[str, int]:
    """Do it and take it back: how many entries of each index were read, and rows of the table in sequence."""
    with sql.connection.transaction(force_rollback=True):
        before = dict(sql(_READ))
        act()
        return {name: more for name, count in sql(_READ) if (more := count - before.get(name, 0))}
