"""Errors out of the blue: triggers that raise a chosen SQLSTATE, with a probability and at most so many times."""

from __future__ import annotations

from tests.conftest import Sql

__all__ = ["Storm"]

_PREPARE = """
create table chaos.storm (sqlstates text[] not null, probability double precision not null, most bigint not null);
create sequence chaos.strikes;
create function chaos.strike() returns trigger language plpgsql security definer as $$
declare
  v_storm chaos.storm;
begin
  select * into v_storm from chaos.storm limit 1;
  if found and random() < v_storm.probability and nextval('chaos.strikes') <= v_storm.most then
    raise exception 'injected' using
      errcode = v_storm.sqlstates[1 + floor(random() * cardinality(v_storm.sqlstates))];
  end if;
  return null;
end
$$;
"""


class Storm:
    """`storm.rage(["40001", "40P01"], 0.3, most=100)` until it is spent or `calm()`.

    tables: statement triggers on these, after insert, update or delete, so that everything in the statement is undone.
    """

    def __init__(
        self,
        sql: Sql,
        tables: tuple[str, ...] = ("public.procrastinate_jobs", "procjobs.job_attempts", "procjobs.worker_state"),
    ) -> None:
        self._sql = sql
        sql(_PREPARE)
        for table in tables:
            sql(
                f"create trigger chaos_strike after insert or update or delete on {table} "
                "for each statement execute function chaos.strike()"
            )

    def rage(self, sqlstates: list[str], probability: float = 1.0, *, most: int = 1_000_000) -> None:
        self._sql("select setval('chaos.strikes', 1, false)")
        self._sql("delete from chaos.storm")
        self._sql("insert into chaos.storm values (%s, %s, %s)", sqlstates, probability, most)

    def calm(self) -> None:
        self._sql("delete from chaos.storm")

    @property
    def strikes(self) -> int:
        """How often it struck since `rage`."""
        query = "select least(last_value, (select most from chaos.storm)) from chaos.strikes where is_called"
        found = self._sql(query)
        return int(found[0][0]) if found else 0
