"""enqueue_on_change: a row changes, a job is enqueued, in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.errors import Diagnostic

from .conftest import SEND, Sql

Refused = Callable[..., Diagnostic]

CHANGED = {
    "type": "object",
    "properties": {
        "table": {"type": "string"}, "op": {"type": "string"}, "row": {}, "old": {},
        "kind": {"type": "string", "default": ""},
    },
    "required": ["table", "op", "row", "old"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def tables(sql: Sql, register: Callable[..., int]) -> None:
    register("changed", CHANGED, queue="sync", priority=2)
    register("send", SEND)
    register("any")
    sql('create schema "My Shop"')
    sql('create table "My Shop"."Orders" (id int primary key, "to" text, total numeric, note text)')
    sql('create view public.orders_seen as select * from "My Shop"."Orders"')


TABLE = '\'"My Shop"."Orders"\''


def watch(sql: Sql, task: str = "changed", options: str = "") -> str:
    return str(sql.one(f"select procjobs.enqueue_on_change({TABLE}, '{task}' {options})"))


def insert(sql: Sql) -> None:
    sql('insert into "My Shop"."Orders" values (1, \'ann\', 10, null)')


def args(sql: Sql) -> list[Any]:
    return [found for (found,) in sql("select args from procjobs.jobs order by id")]


def test_each_change_of_a_row_is_a_job(sql: Sql) -> None:
    watch(sql)
    insert(sql)
    sql('update "My Shop"."Orders" set total = 11.50')
    sql('delete from "My Shop"."Orders"')
    first = {"id": 1, "to": "ann", "total": 10, "note": None}
    then = {**first, "total": 11.5}
    table = '"My Shop"."Orders"'
    assert args(sql) == [
        {"table": table, "op": "insert", "row": first, "old": None},
        {"table": table, "op": "update", "row": then, "old": first},
        {"table": table, "op": "delete", "row": None, "old": then},
    ]
    assert set(sql("select queue, priority from procjobs.jobs")) == {("sync", 2)}


def test_a_change_that_is_rolled_back_is_no_job(sql: Sql) -> None:
    watch(sql)
    with sql.connection.transaction(force_rollback=True):
        insert(sql)
    assert args(sql) == []


def test_an_update_that_changes_nothing_is_no_job(sql: Sql) -> None:
    insert(sql)
    watch(sql)
    sql('update "My Shop"."Orders" set total = total')
    assert args(sql) == []


def test_only_the_chosen_events_and_columns_count(sql: Sql) -> None:
    watch(sql, options=", events => '{update}', columns => '{total,to}'")
    insert(sql)
    sql('update "My Shop"."Orders" set note = \'x\'')
    assert args(sql) == []
    sql('update "My Shop"."Orders" set note = \'y\', total = 12')
    assert len(args(sql)) == 1


def test_just_some_columns_are_passed_under_their_own_names(sql: Sql) -> None:
    watch(sql, "send", """, args => '{"copies": 2}', pass => '{to}'""")
    insert(sql)
    sql('delete from "My Shop"."Orders"')
    assert args(sql) == [{"to": "ann", "copies": 2}] * 2


def test_the_options_reach_the_job(sql: Sql, now: Callable[[str], None]) -> None:
    now("2030-01-01 12:00Z")
    watch(
        sql,
        options=""", args => '{"kind": "order"}', queue => 'other', priority => 9, delay => '5 min', tags => '{a}'""",
    )
    insert(sql)
    due = "to_char(scheduled_at at time zone 'UTC', 'HH24:MI')"
    row = f"select queue, priority, args ->> 'kind', tags, {due} from procjobs.jobs"
    assert sql(row) == [("other", 9, "order", ["a"], "12:05")]


def test_a_statement_of_many_rows_is_as_many_jobs(sql: Sql) -> None:
    watch(sql)
    sql('insert into "My Shop"."Orders" select n from generate_series(1, 100) n')
    assert len(args(sql)) == 100


def test_called_again_it_replaces_the_trigger(sql: Sql) -> None:
    name = watch(sql)
    assert watch(sql, options=", events => '{delete}'") == name
    insert(sql)
    assert args(sql) == []
    sql('delete from "My Shop"."Orders"')
    assert len(args(sql)) == 1


def test_two_tasks_on_one_table(sql: Sql) -> None:
    watch(sql)
    watch(sql, "any")
    insert(sql)
    assert sorted(sql("select task from procjobs.jobs")) == [("any",), ("changed",)]


def test_dropping_it(sql: Sql) -> None:
    watch(sql)
    drop = f"select procjobs.drop_enqueue_on_change({TABLE}, 'changed')"
    assert sql.one(drop) is True
    insert(sql)
    assert args(sql) == []
    assert sql.one(drop) is False


def test_only_our_own_trigger_is_dropped(sql: Sql) -> None:
    sql("create function public.mine() returns trigger language plpgsql as 'begin return null; end'")
    sql(f"create trigger procjobs_changed after insert on {TABLE[1:-1]} for each row execute function public.mine()")
    assert sql.one(f"select procjobs.drop_enqueue_on_change({TABLE}, 'changed')") is False
    assert sql.one("select count(*) from pg_trigger where tgname = 'procjobs_changed'") == 1


@pytest.mark.parametrize("task", ["t" * 54, "t" * 55, "ä" * 60, "a.b:c d'e", "x" * 128])
def test_any_task_name_makes_a_trigger_name(sql: Sql, register: Callable[..., int], task: str) -> None:
    register(task)
    name = sql.one(f"select procjobs.enqueue_on_change({TABLE}, %s)", task)
    assert sql("select tgname from pg_trigger where tgfoid = 'procjobs.enqueue_changed_row'::regproc") == [(name,)]
    insert(sql)
    assert sql("select task from procjobs.jobs") == [(task,)]


def test_names_that_begin_alike_do_not_collide(sql: Sql, register: Callable[..., int]) -> None:
    for end in ("a", "b"):
        register("x" * 100 + end)
        watch(sql, "x" * 100 + end)
    insert(sql)
    assert len(args(sql)) == 2


@pytest.mark.parametrize(
    ("call", "detail"),
    [
        (f"{TABLE}, 'send'", "op is not expected; row is not expected; table is not expected; to is missing"),
        (f"{TABLE}, 'send', pass => '{{to,note}}'", "note is not expected"),
        (f"{TABLE}, 'send', pass => '{{id}}'", "to is missing"),
        (f"{TABLE}, 'changed', args => '{{\"kind\": 7}}'", "kind must be string, is number"),
        (f"{TABLE}, 'changed', args => '[]'", "array"),
        (f"{TABLE}, 'changed', args => null", "null"),
        (f"{TABLE}, 'changed', columns => '{{id,price}}'", "columns"),
        (f"{TABLE}, 'any', pass => '{{price}}'", "columns"),
        (f"{TABLE}, 'changed', events => '{{truncate}}'", "changed row"),
        (f"{TABLE}, 'changed', events => '{{}}'", "changed row"),
        ("'orders_seen', 'changed'", "only tables"),
        ("'procrastinate_jobs', 'changed'", "never end"),
        ("'procjobs.tasks', 'changed'", "never end"),
        ("'pg_class', 'changed'", "never end"),
        ("null, 'changed'", "only tables"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(sql: Sql, refused: Refused, call: str, detail: str) -> None:
    assert detail in str(refused("PJ013", f"select procjobs.enqueue_on_change({call})").message_detail)
    assert sql("select * from pg_trigger where tgfoid = 'procjobs.enqueue_changed_row'::regproc") == []


def test_an_unknown_task_is_refused(refused: Refused) -> None:
    refused("PJ001", f"select procjobs.enqueue_on_change({TABLE}, 'nope')")
    refused("PJ010", f"select procjobs.enqueue_on_change({TABLE}, 'any', queue => '')")


def test_a_row_that_does_not_fit_fails_its_own_transaction(sql: Sql, refused: Refused) -> None:
    watch(sql, "send", ", pass => '{to}'")
    refused("PJ002", 'insert into "My Shop"."Orders" values (1, null)')
    assert sql('select * from "My Shop"."Orders"') == []


def test_whoever_may_write_to_the_table_enqueues_by_it(sql: Sql) -> None:
    sql("create role pj_clerk")
    try:
        watch(sql)
        sql('grant usage on schema "My Shop" to pj_clerk')
        sql('grant insert on "My Shop"."Orders" to pj_clerk')
        sql("set role pj_clerk")
        insert(sql)
        sql("reset role")
        assert len(args(sql)) == 1
    finally:
        sql("reset role")
        sql("drop owned by pj_clerk")
        sql("drop role pj_clerk")


def test_a_producer_makes_one_on_a_table_of_its_own(sql: Sql) -> None:
    sql("create role pj_shop")
    try:
        sql("grant procjobs_producer to pj_shop")
        sql("create schema authorization pj_shop")
        sql("set role pj_shop")
        sql("create table pj_shop.basket (id int)")
        sql("select procjobs.enqueue_on_change('pj_shop.basket', 'changed')")
        sql("insert into pj_shop.basket values (1)")
        sql("reset role")
        assert [found["table"] for found in args(sql)] == ["pj_shop.basket"]
    finally:
        sql("reset role")
        sql("drop owned by pj_shop cascade")
        sql("drop role pj_shop")


def test_a_cast_of_the_table_owners_does_not_run_with_our_rights(sql: Sql) -> None:
    sql("create role pj_shop")
    try:
        sql("grant procjobs_producer to pj_shop")
        sql("create schema authorization pj_shop")
        sql("set role pj_shop")
        sql("create type pj_shop.size as enum ('small')")
        sql(
            "create function pj_shop.as_json(pj_shop.size) returns json language plpgsql as "
            "$$ begin return to_json(current_user::text); end $$"
        )
        sql("create cast (pj_shop.size as json) with function pj_shop.as_json(pj_shop.size)")
        sql("create table pj_shop.basket (size pj_shop.size)")
        sql("select procjobs.enqueue_on_change('pj_shop.basket', 'any', pass => '{size}')")
        sql("insert into pj_shop.basket values ('small')")
        sql("reset role")
        assert args(sql) == [{"size": "pj_shop"}]
    finally:
        sql("reset role")
        sql("drop owned by pj_shop cascade")
        sql("drop role pj_shop")


def test_nothing_of_the_row_may_be_passed(sql: Sql) -> None:
    watch(sql, "any", """, args => '{"kind": "order"}', pass => '{}'""")
    insert(sql)
    assert args(sql) == [{"kind": "order"}]


def test_the_trigger_alone_enqueues_nothing_wrong(sql: Sql, refused: Refused) -> None:
    name = watch(sql)
    insert(sql)
    sql(f'drop trigger "{name.replace("_", "+", 1)}" on "My Shop"."Orders"')
    refused("PJ013", 'delete from "My Shop"."Orders"')


def test_a_partitioned_table(sql: Sql) -> None:
    sql("create table public.visits (id int, at date) partition by range (at)")
    sql("create table public.visits_2030 partition of public.visits for values from ('2030-01-01') to ('2031-01-01')")
    for _ in range(2):
        sql("select procjobs.enqueue_on_change('visits', 'any', pass => '{id}')")
    sql("insert into visits values (7, '2030-05-05')")
    assert args(sql) == [{"id": 7}]


def test_values_that_json_does_not_know_arrive_as_text(sql: Sql) -> None:
    sql("create table public.odd (n numeric, at timestamptz)")
    sql("select procjobs.enqueue_on_change('odd', 'any', pass => '{n,at}')")
    sql("insert into odd values ('NaN', 'infinity')")
    assert json.dumps(args(sql)) == '[{"n": "NaN", "at": "infinity"}]'
