"""The database's time, standing still: it is what a test says, for every process, until the test says otherwise."""

from __future__ import annotations

from tests.conftest import Sql

__all__ = ["Clock"]

_STOP = """
create table chaos.clock (at timestamptz not null);
insert into chaos.clock values (clock_timestamp());
create function chaos.clock() returns timestamptz language sql stable security definer
  as 'select at from chaos.clock';
grant usage on schema chaos to public;
create or replace function procjobs.clock() returns timestamptz language sql stable as 'select chaos.clock()';
create or replace function procjobs.wall_clock() returns timestamptz language sql volatile as 'select chaos.clock()';
"""


class Clock:
    """Stops the clock of a database at an instant; `to` moves it."""

    def __init__(self, sql: Sql, at: str) -> None:
        self._sql = sql
        sql(_STOP)
        self.to(at)

    def to(self, at: str) -> None:
        self._sql("update chaos.clock set at = %s", at)
