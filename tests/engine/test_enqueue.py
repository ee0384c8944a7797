"""Enqueueing from Python: options, tasks' own uniqueness, debounce, batches, and the connector's round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.exceptions import AlreadyEnqueued

import procjobs
from procjobs.engine.connector import Connector
from procjobs.errors import InvalidArguments, InvalidOption, InvalidState, UnknownTask

from ..conftest import Sql

Drain = Callable[..., Any]


@pytest.fixture
async def tasks(app: procjobs.App) -> dict[str, Any]:
    @app.task(name="greet", queue="mail", priority=3)
    async def greet(user_id: int, text: str = "hello") -> None: ...

    @app.task(name="digest", unique=procjobs.Unique(args=("user_id",), period=3600))
    async def digest(user_id: int, day: str) -> None: ...

    @app.task(name="report")
    async def report(batch_id: int, title: str = "") -> None: ...

    @app.task(name="fails")
    async def fails() -> None:
        raise ValueError("no")

    await app.register_tasks()
    return {"greet": greet, "digest": digest, "report": report, "fails": fails}


async def test_many_jobs_have_the_arguments_that_one_by_one_would_have(tasks: dict[str, Any], sql: Sql) -> None:
    texts = ["", 'quoted "text"', "back\\slash", "naïve \u2028 日本語", "\\u0000 in letters", "x" * 3000]
    ids = await tasks["greet"].batch_defer_async(*[{"user_id": n, "text": text} for n, text in enumerate(texts)])
    one_by_one = [await tasks["greet"].defer_async(user_id=n, text=text) for n, text in enumerate(texts)]
    arguments = "select args from procrastinate_jobs where id = any (%s) order by id"
    assert sql(arguments, list(map(int, ids))) == sql(arguments, list(map(int, one_by_one)))
    assert [row[0]["text"] for row in sql(arguments, list(map(int, ids)))] == texts


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user_id": "3"}, "user_id must be integer, is string"),
        ({"user_id": 3, "text": "a\x00b"}, "NUL"),
        ({"user_id": 3, "text": float("nan")}, "written as JSON"),
        ({"user_id": 3, "nested": [[[1]]]}, "nested is not expected"),
    ],
)
async def test_of_many_jobs_one_that_is_wrong_refuses_all_in_its_own_words(
    tasks: dict[str, Any], sql: Sql, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArguments, match=said):
        await tasks["greet"].batch_defer_async(*[{"user_id": n} for n in range(50)], wrong, {"user_id": 51})
    assert sql.one("select count(*) from procrastinate_jobs") == 0


async def test_every_option_reaches_the_job(tasks: dict[str, Any], app: procjobs.App, sql: Sql) -> None:
    async with app.batch("b") as batch:
        await (
            tasks["greet"]
            .configure(
                tenant="acme", unique_key="k", unique_for=timedelta(hours=1), unique_while="retained", tags=("a", "b"),
                max_attempts=4, timeout=90, batch=batch, lock="l", queue="other",
            )
            .defer_async(user_id=1)
        )  # fmt: skip
    columns = (
        "pj_tenant, pj_unique_key, pj_tags, pj_max_attempts, pj_timeout, pj_batch, lock, queue_name, priority, args"
    )
    assert sql(f"select {columns} from procrastinate_jobs") == [
        ("acme", "k", ["a", "b"], 4, timedelta(seconds=90), batch.id, "l", "other", 3, {"user_id": 1})
    ]
    assert sql("select while_retained, until > now() + interval '59 min' from procjobs.unique_keys") == [(True, True)]


async def test_the_id_tells_whether_the_job_was_there(tasks: dict[str, Any], app: procjobs.App) -> None:
    unique = tasks["greet"].configure(unique_key="k")
    first = await unique.defer_async(user_id=1)
    again = await unique.defer_async(user_id=2)
    assert (first.duplicate, again.duplicate, again == first) == (False, True, True)
    assert (await tasks["greet"].defer_async(user_id=1)).duplicate is False
    assert [found.duplicate for found in await unique.batch_defer_async({"user_id": 3})] == [True]
    assert (await app.configure_task("greet", unique_key="k").defer_async(user_id=1)) == first
    other = await app.configure_task("unknown_here", unique_key="k2", queue="q").defer_async(x=1)
    assert (await app.configure_task("unknown_here", unique_key="k2").defer_async(x=2)) == other


async def test_a_tasks_own_uniqueness_holds_in_python_and_sql(tasks: dict[str, Any], sql: Sql) -> None:
    first = await tasks["digest"].defer_async(user_id=1, day="mon")
    assert (await tasks["digest"].defer_async(user_id=1, day="tue")).duplicate
    ids = await tasks["digest"].batch_defer_async({"user_id": 2, "day": "mon"}, {"user_id": 1, "day": "wed"})
    assert [found.duplicate for found in ids] == [False, True]
    assert sql.one("""select procjobs.defer('digest', '{"user_id": 1, "day": "thu"}')""") == first
    sql("delete from procrastinate_jobs")
    assert (await tasks["digest"].defer_async(user_id=1, day="fri")) == first
    assert sql.one("select uniqueness from procjobs.tasks where name = 'digest'") == {
        "args": ["user_id"], "period": 3600, "while": "unfinished",
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"states": "always"}, {"args": "user_id"}, {"period": 0}])
def test_a_wrong_rule_is_refused_where_it_is_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        procjobs.Unique(**wrong)


async def test_refusals_of_sql_are_our_errors(tasks: dict[str, Any], app: procjobs.App) -> None:
    with pytest.raises(InvalidOption):
        await tasks["greet"].configure(unique_for=60).defer_async(user_id=1)
    with pytest.raises(InvalidArguments):
        await tasks["greet"].configure(tenant="a").defer_async(user="x")
    await tasks["greet"].configure(queueing_lock="q", tenant="a").defer_async(user_id=1)
    for options in ({}, {"tenant": "a"}):
        with pytest.raises(AlreadyEnqueued):
            await tasks["greet"].configure(queueing_lock="q", **options).defer_async(user_id=1)


async def test_what_was_set_for_a_task_holds_for_jobs_that_do_not_say_otherwise(
    tasks: dict[str, Any], sql: Sql
) -> None:
    sql("insert into procjobs.task_settings (task, queue, priority) values ('greet', 'bulk', -5)")
    await tasks["greet"].defer_async(user_id=1)
    await tasks["greet"].configure(tenant="t").defer_async(user_id=1)
    await tasks["greet"].configure(queue="other", priority=9).defer_async(user_id=1)
    assert sql("select queue_name, priority from procrastinate_jobs order by id") == [
        ("bulk", -5), ("bulk", -5), ("other", 9),
    ]  # fmt: skip


def test_sync_and_other_peoples_transactions(dsn: str, sql: Sql) -> None:
    app = procjobs.App(procrastinate.SyncPsycopgConnector(conninfo=dsn))

    @app.task(name="greet")
    def greet(user_id: int) -> None: ...

    with app.open():
        assert greet.batch_defer({"user_id": 1}, {"user_id": 2}) == [1, 2]
        first = greet.configure(unique_key="k").defer(user_id=3)
        assert greet.configure(unique_key="k").defer(user_id=4).duplicate
        with psycopg.connect(dsn) as connection:
            assert greet.configure(connection=connection).defer(user_id=5) > first
            connection.rollback()
    assert sql.one("select count(*) from procrastinate_jobs") == 3


async def test_nothing_to_defer(tasks: dict[str, Any]) -> None:
    assert await tasks["greet"].batch_defer_async() == []


async def test_a_lock_of_the_decorator_holds_whoever_enqueues(app: procjobs.App, sql: Sql) -> None:
    @app.task(name="guarded", lock="house", queueing_lock="door")
    async def guarded() -> None: ...

    await app.register_tasks()
    await guarded.defer_async()
    sql("update procrastinate_jobs set queueing_lock = null")
    sql("select procjobs.defer('guarded')")
    sql("update procrastinate_jobs set queueing_lock = null")
    await app.throttle(guarded, {}, key="1", period=60)
    sql("update procrastinate_jobs set queueing_lock = null")
    await guarded.configure(lock="other", unique_key="k").defer_async()
    assert sql("select lock, queueing_lock from procrastinate_jobs order by id") == [
        ("house", None), ("house", None), ("house", None), ("other", "door"),
    ]  # fmt: skip


async def test_debounce_and_throttle(tasks: dict[str, Any], app: procjobs.App, sql: Sql) -> None:
    greet = tasks["greet"]
    first = await app.debounce(greet, {"user_id": 1}, key="1", wait=60, max_wait=timedelta(minutes=5), tenant="acme")
    assert await app.debounce(greet, {"user_id": 2}, key="1", wait=60) == first
    assert sql("select args, scheduled_at > now() + interval '50 s' from procrastinate_jobs") == [
        ({"user_id": 2}, True)
    ]
    other = await app.throttle(greet, {"user_id": 1}, key="1", period=60, queue="q")
    assert await app.throttle(greet, {"user_id": 2}, key="1", period=60) == other != first
    with pytest.raises(InvalidArguments):
        await app.debounce(greet, {"user": 1}, key="1", wait=60)
    with pytest.raises(InvalidOption):
        await app.debounce(greet, {"user_id": 1}, key="", wait=60)


async def test_a_batch_calls_back_when_its_jobs_have_run(
    tasks: dict[str, Any], app: procjobs.App, sql: Sql, drain: Drain
) -> None:
    on_finish = tasks["report"].configure(task_kwargs={"title": "done"}, queue="reports")
    async with app.batch("import", on_finish=on_finish, on_success=tasks["report"]) as batch:
        await batch.defer(tasks["greet"], user_id=1)
        assert len(await batch.defer_many(tasks["greet"], {"user_id": 2}, {"user_id": 3})) == 2
    with pytest.raises(InvalidState):
        await batch.defer(tasks["greet"], user_id=4)
    await drain()
    assert sql("select name, state, succeeded, total from procjobs.batches") == [("import", "finished", 3, 3)]
    assert sql("select queue, args from procjobs.jobs where task = 'report' order by id") == [
        ("reports", {"title": "done", "batch_id": batch.id}), ("default", {"batch_id": batch.id}),
    ]  # fmt: skip


async def test_a_batch_with_a_dead_letter_is_discarded(
    tasks: dict[str, Any], app: procjobs.App, sql: Sql, drain: Drain
) -> None:
    async with app.batch("b", on_success=tasks["fails"], on_discard=tasks["report"]) as batch:
        await batch.defer(tasks["fails"])
        await batch.defer(tasks["greet"], user_id=1)
    await drain()
    assert sql("select task from procjobs.jobs where task = 'report'") == [("report",)]
    assert sql("select succeeded, failed from procjobs.batches") == [(1, 1)]


async def test_a_batch_that_was_not_filled_is_not_sealed(tasks: dict[str, Any], app: procjobs.App, sql: Sql) -> None:
    batch = None
    with suppress(RuntimeError):
        async with app.batch("b", on_finish=tasks["report"]) as batch:
            await batch.defer(tasks["greet"], user_id=1)
            raise RuntimeError("half way")
    assert batch is not None
    assert sql("select state, waiting from procjobs.batches") == [("open", 1)]
    assert await batch.seal()


async def test_a_callback_that_nobody_registered_is_refused_at_once(app: procjobs.App) -> None:
    @app.task(name="new")
    async def new() -> None: ...

    with pytest.raises(UnknownTask):
        async with app.batch("b", on_finish=new):
            pytest.fail("the batch was opened")


# the connector


async def test_a_statement_is_one_transaction_without_begin(tasks: dict[str, Any], app: procjobs.App, sql: Sql) -> None:
    connector = app.connector
    assert isinstance(connector, Connector)
    async with connector.pool.connection() as connection:
        assert not connection.autocommit
    await tasks["greet"].defer_async(user_id=1)
    last = (
        "select count(*) from pg_stat_activity where query like '%from procjobs.enqueue(%' and pid <> pg_backend_pid()"
    )
    assert sql.one(last) == 1, "the last thing sent is no COMMIT"
    async with connector.pool.connection() as connection:
        assert not connection.autocommit


async def test_a_connection_that_the_server_closed_is_replaced(
    tasks: dict[str, Any], app: procjobs.App, sql: Sql
) -> None:
    await tasks["greet"].defer_async(user_id=1)
    sql(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where pid <> pg_backend_pid() and datname = current_database()"
    )
    assert await tasks["greet"].defer_async(user_id=2)


async def test_living_connections_are_not_asked(
    tasks: dict[str, Any], app: procjobs.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        pytest.fail("one more round trip")

    monkeypatch.setattr(app.connector.pool, "check", check)  # type: ignore[attr-defined]
    for user in range(3):
        await tasks["greet"].defer_async(user_id=user)


async def test_many_at_once_through_the_pool(tasks: dict[str, Any], sql: Sql) -> None:
    ids = await asyncio.gather(*(tasks["greet"].configure(unique_key="k").defer_async(user_id=n) for n in range(20)))
    assert len(set(ids)) == 1
    assert [found.duplicate for found in ids].count(False) == 1
