"""The history's partitions: made before they are needed, and nobody's job is refused meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conftest import Sql
from tests.engine.fleet import Claim, Fleet, Thread, opened

NOON = "2031-05-01 12:00+00"


def test_a_job_that_finishes_while_the_partition_of_today_is_made_is_not_refused(
    dsn: str, fleet: Fleet, sql: Sql, eventually: Callable[..., Any]
) -> None:
    """The fleet was down for a week: the first upkeep makes the partition into which jobs are finishing."""
    with opened(dsn) as reader, opened(dsn) as maker, opened(dsn) as worker:

        def waits(who: Fleet) -> bool:
            pid = who.sql.connection.info.backend_pid
            return bool(sql.one("select cardinality(pg_blocking_pids(%s)) > 0", pid))

        def make() -> bool:
            with maker.at(NOON):
                return bool(maker.sql.one("select procjobs.ensure_history_partition('2031-05-01')"))

        def finish(claim: Claim) -> list[int]:
            with worker.at(NOON):
                return worker.finish(claim)

        fleet.defer()
        (claim,) = fleet.claim(fleet.worker())
        with reader.sql.connection.transaction():
            reader.sql("select count(*) from procjobs.job_history_default")
            making = Thread(make)
            eventually(lambda: waits(maker))
            finishing = Thread(lambda: finish(claim))
            eventually(lambda: waits(worker))
        assert making.result()
        assert finishing.result() == [claim.id]
    assert sql.one("select tableoid::regclass::text from procjobs.job_history") == "procjobs.job_history_20310501"


def test_a_job_that_is_on_its_way_when_its_partition_is_attached_arrives(
    dsn: str, fleet: Fleet, sql: Sql, eventually: Callable[..., Any]
) -> None:
    """A DBA's cancel has nobody who would try again. The clocks differ here, so that nothing keeps the two apart."""
    job = fleet.defer()
    with opened(dsn) as maker, opened(dsn) as dba:
        pid = dba.sql.connection.info.backend_pid
        with maker.sql.connection.transaction():
            maker.sql("lock table procjobs.job_history_default in access exclusive mode")

            def cancel() -> str:
                with dba.at(NOON):
                    return str(dba.sql.one("select procjobs.cancel(%s)", job))

            cancelling = Thread(cancel)
            eventually(lambda: sql.one("select cardinality(pg_blocking_pids(%s)) > 0", pid))
            assert maker.sql.one("select procjobs.ensure_history_partition('2031-05-01')")
        assert cancelling.result() == "cancelled"
    assert fleet.status(job) == "cancelled"
    assert sql.one("select tableoid::regclass::text from procjobs.job_history") == "procjobs.job_history_20310501"


def test_somebody_who_works_on_the_history_for_long_is_not_waited_for(dsn: str, fleet: Fleet, sql: Sql) -> None:
    sql("set client_min_messages = error")
    with opened(dsn) as busy, fleet.at(NOON):
        with busy.sql.connection.transaction():
            busy.sql("delete from procjobs.job_history where id = 1")
            assert Thread(lambda: sql.one("select procjobs.ensure_history_partitions(0)")).result(2) == 0
        assert sql.one("select procjobs.ensure_history_partitions(0)") == 1
