"""SQL tasks: registering a routine, the check of its arguments, and who may."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import with_user

from .conftest import Sql, Worker

Refused = Callable[..., Any]


def put(sql: Sql, *statements: str) -> None:
    for statement in statements:
        sql(statement)


def called(sql: Sql, task: str, **args: Any) -> Any:
    """What the statement gives that a worker would run for these arguments of a function."""
    query = "select kind, statement, problem from procjobs.open_sql_job(1, %s, %s)"
    ((kind, statement, problem),) = sql(query, task, json.dumps(args))
    sql("select procjobs.close_sql_job(1)")
    assert problem is None, problem
    assert kind == "function"
    return sql.one(statement)


def test_a_function_is_a_task_with_its_own_arguments(sql: Sql, refused: Refused) -> None:
    put(
        sql,
        "create schema app",
        "create function app.clean(older interval, batch int default 100, dry boolean default false) returns int"
        " language sql as 'select batch'",
        "comment on function app.clean is E'Deletes what is old.\\nIn batches.'",
    )
    register = "select procjobs.register_sql_task('clean', 'app.clean', queue => 'sql', timeout => '1 min')"
    assert sql.one(register) is True
    assert sql.one(register) is False, "nothing changed"
    assert sql(
        "select queue, execution, routine, run_as, timeout::text, description"
        " from procjobs.list_tasks() where task = 'clean'"
    ) == [("sql", "sql", "app.clean(interval,integer,boolean)", None, "00:01:00", "Deletes what is old.")]

    job = sql.one("select procjobs.defer('clean', '{\"older\": \"30 days\"}')")
    assert sql("select queue_name from procrastinate_jobs where id = %s", job) == [("sql",)]
    assert "older is missing" in refused("PJ002", "select procjobs.defer('clean', '{}')").message_detail
    wrong = refused("PJ002", "select procjobs.defer('clean', %s)", json.dumps({"older": "1 d", "batch": 2.5, "x": 1}))
    assert "batch" in wrong.message_detail and "x is not expected" in wrong.message_detail


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("int", 7, 7),
        ("int", 2.0, 2),
        ("bigint[]", [1.0, 2], [1, 2]),
        ("bigint", 2**62, 2**62),
        ("numeric", 1.25, 1.25),
        ("boolean", True, True),
        ("text", "it's \\ \"quoted\" ${}", "it's \\ \"quoted\" ${}"),
        ("uuid", "0b4b3b0e-0000-4000-8000-000000000001", "0b4b3b0e-0000-4000-8000-000000000001"),
        ("timestamptz", "2030-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00"),
        ("interval", "30 days", "30 days"),
        ("jsonb", {"a": [1, "x", None]}, {"a": [1, "x", None]}),
        ("json", "text", "text"),
        ("int[]", [1, None, 3], [1, None, 3]),
        ("text[]", ['a"b', "c,d", ""], ['a"b', "c,d", ""]),
        ("jsonb[]", [{"a": 1}, "x"], [{"a": 1}, "x"]),
        ("colour", "red", "red"),
        ("pair", {"a": 1, "b": "x"}, {"a": 1, "b": "x"}),
        ("small", 3, 3),
        ("int", None, None),
    ],
)  # fmt: skip
def test_every_type_comes_through(sql: Sql, kind: str, value: Any, shown: Any) -> None:
    put(
        sql,
        "create type colour as enum ('red', 'green')",
        "create type pair as (a int, b text)",
        "create domain small as int check (value < 10)",
        f"create function same(v {kind}) returns {kind} language sql as 'select v'",
        "select procjobs.register_sql_task('same', 'same')",
    )
    sql("select procjobs.defer('same', %s)", json.dumps({"v": value}))
    assert called(sql, "same", v=value) == shown


def test_an_enumeration_takes_its_own_words(sql: Sql, refused: Refused) -> None:
    put(
        sql,
        "create type colour as enum ('red', 'green')",
        "create function paint(c colour) returns void language sql as ''",
        "select procjobs.register_sql_task('paint', 'paint')",
    )
    assert "red" in refused("PJ002", "select procjobs.defer('paint', '{\"c\": \"blue\"}')").message_detail


@pytest.mark.parametrize(
    ("head", "body", "result"),
    [
        ("returns int", "select 5", 5),
        ("returns setof int", "select generate_series(1, 4)", 4),
        ("returns table (a int, b text)", "values (1, 'x'), (2, 'y')", 2),
        ("returns void", "", None),
        ("out a int, out b text", "select 1, 'x'", {"a": 1, "b": "x"}),
        ("out a int", "select 5", 5),
    ],
)
def test_what_a_function_returns_is_the_result(sql: Sql, head: str, body: str, result: Any) -> None:
    outs, head = (head, "") if head.startswith("out") else ("", head)
    put(
        sql,
        f"create function f({outs}) {head} language sql as $${body}$$",
        "select procjobs.register_sql_task('f', 'f')",
    )
    assert called(sql, "f") == result


def test_defaults_and_variadic_arguments_are_the_functions_own(sql: Sql) -> None:
    put(
        sql,
        "create function f(a int default 3, variadic more int[] default '{}') returns int"
        " language sql as 'select a + coalesce((select sum(m)::int from unnest(more) m), 0)'",
        "select procjobs.register_sql_task('f', 'f')",
    )
    assert [called(sql, "f"), called(sql, "f", a=1), called(sql, "f", a=1, more=[2, 3])] == [3, 1, 6]


@pytest.mark.parametrize(
    ("make", "routine", "why"),
    [
        ("select 1", "nowhere.f", "no function or procedure"),
        ("select 1", "not a name (", "no function or procedure"),
        ("create function f(int) returns int language sql as 'select 1'", "f", "has no name"),
        ("create function f(a anyelement) returns int language sql as 'select 1'", "f", "anyelement"),
        ("create function f() returns trigger language plpgsql as 'begin return new; end'", "f", "trigger"),
        ("create function f() returns setof record language sql as 'select 1'", "f", "records"),
        ("create aggregate f(int) (sfunc = int4pl, stype = int)", "f(int)", "aggregate"),
        (
            "create function f(a int) returns int return 1; create function f(a text) returns int return 1",
            "f",
            "several",
        ),
    ],
)
def test_what_cannot_be_a_body_is_refused(sql: Sql, refused: Refused, make: str, routine: str, why: str) -> None:
    sql(make)
    assert why in refused("PJ016", "select procjobs.register_sql_task('t', %s)", routine).message_detail


def test_a_task_written_in_python_is_not_taken_over(sql: Sql, refused: Refused, register: Callable[..., int]) -> None:
    register("t")
    sql("create function f() returns int language sql as 'select 1'")
    refused("PJ016", "select procjobs.register_sql_task('t', 'f')")
    refused("PJ016", "select procjobs.drop_sql_task('t')")
    sql("select procjobs.register_sql_task('u', 'f')")
    refused("PJ016", "select procjobs.register_tasks('[{\"name\": \"u\"}]', 'test')")


def test_a_dropped_task_leaves_its_jobs_waiting(sql: Sql, worker: Callable[..., Worker]) -> None:
    put(
        sql,
        "create function f() returns int language sql as 'select 1'",
        "select procjobs.register_sql_task('t', 'f')",
    )
    job = sql.one("select procjobs.defer('t')")
    assert sql.one("select procjobs.drop_sql_task('t')") is True
    assert sql.one("select procjobs.drop_sql_task('t')") is False
    ann = Worker(
        sql, sql.one("select procjobs.register_worker('a', 'h', 7, '1', null, array['x'], 1, '10 s', '30 s', true)")
    )
    assert ann.claim() == []
    assert "no live worker knows task t" in sql.one("select procjobs.why_not_running(%s)", job)
    sql("select procjobs.register_sql_task('t', 'f')")
    assert ann.claim() == []
    sql("select procjobs.heartbeat(%s)", ann.id)  # then it asks what it may run
    assert ann.claim() == [job]


def test_only_workers_that_run_sql_claim_its_jobs(sql: Sql, worker: Callable[..., Worker]) -> None:
    put(
        sql,
        "create function f() returns int language sql as 'select 1'",
        "select procjobs.register_sql_task('t', 'f')",
    )
    job = sql.one("select procjobs.defer('t')")
    assert worker("x").claim() == []
    able = sql.one("select procjobs.register_worker('b', 'h', 7, '1', null, array['x'], 1, '10 s', '30 s', true)")
    assert Worker(sql, able).claim() == [job]


# -- rights --------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(sql: Sql, dsn: str) -> Iterator[Callable[[str], Sql]]:
    """`people("ann")` are the queries of a login of this name; ann and eve are admins, app is a worker."""
    for name, group in (("pj_ann", "procjobs_admin"), ("pj_eve", "procjobs_admin"), ("pj_app", "procjobs_worker")):
        sql(f"drop role if exists {name}")
        sql(f"create role {name} login in role {group}")
    opened: list[Any] = []

    def open_as(name: str) -> Any:
        from tests.conftest import Sql as Queries

        opened.append(Queries(with_user(dsn, "pj_" + name)))
        return opened[-1]

    yield open_as
    for queries in opened:
        queries.connection.close()
    for name in ("pj_ann", "pj_eve", "pj_app"):
        sql(f"drop owned by {name}")
        sql(f"drop role {name}")


def test_who_registers_must_be_allowed_to_call_it_and_to_act_as_the_role(
    sql: Sql, people: Callable[[str], Sql], refused: Refused
) -> None:
    put(
        sql,
        "create function f() returns int language sql as 'select 1'",
        "revoke execute on function f() from public",
    )
    ann = people("ann")
    with pytest.raises(psycopg.Error, match=r"pj_ann may not call public\.f") as found:
        ann("select procjobs.register_sql_task('t', 'f')")
    assert found.value.sqlstate == "PJ016"
    sql("grant execute on function f() to pj_ann")
    with pytest.raises(psycopg.Error, match="pj_ann may not act as pj_eve"):
        ann("select procjobs.register_sql_task('t', 'f', run_as => 'pj_eve')")
    with pytest.raises(psycopg.Error, match="no role 'pj_nobody'"):
        ann("select procjobs.register_sql_task('t', 'f', run_as => 'pj_nobody')")
    sql("grant pj_eve to pj_ann")
    assert ann.one("select procjobs.register_sql_task('t', 'f', run_as => 'pj_eve')") is True


def test_a_login_runs_only_what_was_registered_by_those_who_may_act_as_it(
    sql: Sql, people: Callable[[str], Sql]
) -> None:
    """SET ROLE protects nobody: a routine can undo it, and would then have all rights of the worker."""
    sql("create function f() returns int language sql as 'select 1'")
    ann, app = people("ann"), people("app")
    ann("select procjobs.register_sql_task('t', 'f')")
    runnable = "select kind from procjobs.open_sql_job(1, 't', '{}')"
    assert app.one(runnable) == "unknown"
    assert sql.one(runnable) == "unknown", "nor a superuser's session"
    job = sql.one("select procjobs.defer('t')")
    them = "select procjobs.register_worker('w', 'h', 7, '1', null, array['x'], 1, '10 s', '30 s', true)"
    worker = Worker(app, app.one(them))
    assert worker.claim() == []
    assert "no live worker may run SQL task t: pj_ann registered it" in sql.one(
        "select procjobs.why_not_running(%s)", job
    )
    sql("grant pj_app to pj_ann")
    app("select procjobs.heartbeat(%s)", worker.id)
    assert worker.claim() == [job]
    assert app.one(runnable) == "function"
    assert sql.one(runnable) == "unknown"
    sql("select procjobs.register_sql_task('t', 'f')")
    assert [app.one("select procjobs.close_sql_job(1)"), sql.one(runnable)] == [True, "function"]


def test_a_login_runs_only_as_roles_it_is_a_member_of(sql: Sql, people: Callable[[str], Sql]) -> None:
    sql("create function f() returns int language sql as 'select 1'")
    app = people("app")
    sql("select procjobs.register_sql_task('t', 'f', run_as => 'pj_eve')")
    assert app.one("select kind from procjobs.open_sql_job(1, 't', '{}')") == "unknown"
    sql("grant pj_eve to pj_app")
    assert app("select kind, run_as from procjobs.open_sql_job(1, 't', '{}')") == [("function", "pj_eve")]
