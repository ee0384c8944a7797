"""Arguments that no worker could use are refused in the producer's transaction, whichever way the job comes in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from procjobs.errors import SQLSTATES, ArgumentsMalformed, ArgumentsTooDeep, ArgumentsTooLarge, InvalidArguments

from .conftest import SEND, Sql

Refused = Callable[..., Diagnostic]
Register = Callable[..., int]

MEBIBYTE = 1024 * 1024


def nested(depth: int) -> str:
    """Arguments in which objects and arrays are nested so deep, the arguments themselves included."""
    return '{"to": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def sized(size: int) -> str:
    return json.dumps({"to": "x" * (size - len('{"to": ""}'))})


#: How a job comes in. `{}` takes the arguments.
WAYS = {
    "defer": "select procjobs.defer('send', %s)",
    "defer_many": "select * from procjobs.defer_many("
    "jsonb_build_array(jsonb_build_object('task', 'send', 'args', %s::jsonb)))",
    "insert": "insert into procrastinate_jobs (queue_name, task_name, args) values ('q', 'send', %s)",
    "upstream": "select procrastinate_defer_jobs_v1("
    "array[row('q', 'send', 0, null, null, %s, null)::procrastinate_job_to_defer_v1])",
}

#: How Python's jobs come in: it has checked them against the signature.
CLIENTS = {
    "one task": "select procjobs.enqueue('send', 'q', 0, null, null, null, concat('[', %s::text, ']'))",
    "with options": "select procjobs.enqueue("
    "'send', 'q', 0, null, null, null, concat('[', %s::text, ']'), '{\"tenant\": \"a\"}')",
    "many tasks": "select procjobs.enqueue_jobs('{send}', '{q}', '{0}', '{null}', '{null}', array[%s], '{null}')",
}

#: name, arguments, SQLSTATE, what the DETAIL says
REFUSED = [
    ("missing", "{}", "PJ002", "to is missing"),
    ("extra", '{"to": "a", "cc": "b"}', "PJ002", "cc is not expected"),
    ("wrong type", '{"to": 7}', "PJ002", "to must be string, is number"),
    ("wrong type of an optional one", '{"to": "a", "copies": "3"}', "PJ002", "copies must be integer, is string"),
    ("null", '{"to": null}', "PJ002", "to must be string, is null"),
    ("several", '{"copies": 1.5, "cc": 1}', "PJ002", "to is missing; cc is not expected; copies must be integer"),
    ("null byte", r'{"to": "a\u0000b"}', "22P05", "cannot be converted to text"),
    ("half a surrogate pair", r'{"to": "\ud800"}', "22P02", "high surrogate"),
    ("3,000 deep", nested(3000), "PJ004", "more than 64 levels"),
    ("65 deep", nested(65), "PJ004", "more than 64 levels"),
    ("5,000 digits", '{"to": ' + "7" * 5000 + "}", "PJ005", "more than 1000 digits"),
    ("5,000 digits below zero, deep inside", '{"to": [{"n": -' + "7" * 5000 + "}]}", "PJ005", "more than 1000 digits"),
    ("1e5000", '{"to": 1e5000}', "PJ005", "more than 1000 digits"),
    ("a fraction of 5,000 digits", '{"to": 0.' + "3" * 5000 + "}", "PJ005", "more than 1000 digits"),
    ("numbers huge when written out", '{"to": [' + "1e99999," * 5000 + "0]}", "PJ005", "more than 1000 digits"),
    ("2 MB over the limit", sized(3 * MEBIBYTE), "PJ003", "2097152 more than the 1048576 allowed"),
    ("one byte over the limit", sized(MEBIBYTE + 1), "PJ003", "1 more than"),
    ("an array", "[1]", "PJ005", "they are array"),
    ("a string", '"to"', "PJ005", "they are string"),
    ("JSON null", "null", "PJ005", "they are null"),
]  # fmt: skip


@pytest.mark.parametrize("way", CLIENTS)
def test_what_no_job_may_be_is_refused_from_clients_too(
    sql: Sql, register: Register, refused: Refused, way: str
) -> None:
    register("send", SEND)
    for _, args, code, detail in REFUSED:
        if code != "PJ002":
            assert detail in str(refused(code, CLIENTS[way], args).message_detail)
    sql(CLIENTS[way], sized(MEBIBYTE))
    assert sql.one("select count(*) from procjobs.jobs") == 1


@pytest.mark.parametrize(("queue", "scheduled_at", "code"), [("", None, "PJ010"), ("q", "infinity", "PJ009")])
def test_options_too(refused: Refused, queue: str, scheduled_at: str | None, code: str) -> None:
    refused(code, "select procjobs.enqueue('any', %s, 0, null, null, %s::timestamptz, '[{}]')", queue, scheduled_at)
    many = "'{any}', array[%s], '{0}', '{null}', '{null}', array['{}'], array[%s::timestamptz]"
    refused(code, f"select procjobs.enqueue_jobs({many})", queue, scheduled_at)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("args", "code", "detail"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(sql: Sql, register: Register, refused: Refused, way: str, args: str, code: str, detail: str) -> None:
    register("send", SEND)
    diag = refused(code, WAYS[way], args)
    assert detail in (diag.message_detail or "") + (diag.context or "")
    assert sql.one("select count(*) from procrastinate_jobs") == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "args",
    [
        '{"to": "ann"}',
        '{"to": "ann", "copies": 2}',
        '{"to": "ann", "copies": 2.0}',
        json.dumps({"to": "\u00e4\U0001f600\n\u0001"}),
        sized(MEBIBYTE),
    ],
)
def test_what_fits_is_taken_as_it_is(sql: Sql, register: Register, way: str, args: str) -> None:
    register("send", SEND)
    sql(WAYS[way], args)
    assert sql.one("select args from procrastinate_jobs") == json.loads(args)


@pytest.mark.parametrize(
    "args", [nested(64), '{"to": ' + "7" * 1000 + "}", json.dumps({"to": "7" * 5000}), '{"to": {}}']
)
def test_a_task_without_a_signature_takes_all_that_is_within_the_limits(
    sql: Sql, register: Register, args: str
) -> None:
    register("send", None)
    sql(WAYS["defer"], args)
    assert sql.one("select args::text from procrastinate_jobs") == args


def test_sql_null_is_no_object(register: Register, refused: Refused) -> None:
    register("send", None)
    assert "they are null" in str(refused("PJ005", WAYS["defer"], None).message_detail)


def test_the_hint_shows_the_signature(register: Register, refused: Refused) -> None:
    register("send", SEND)
    assert refused("PJ002", WAYS["defer"], "{}").message_hint == "The task is send(to: string, copies: integer = 1)."


def test_values_of_arguments_are_not_in_errors(register: Register, refused: Refused) -> None:
    register("send", {"properties": {"to": {"enum": ["a"]}, "n": {"type": "integer", "maximum": 5}}})
    for args in ('{"to": "s3cr3t"}', '{"n": 77712345}', '{"n": "s3cr3t"}'):
        diag = refused("PJ002", WAYS["insert"], args)
        told = f"{diag.message_primary} {diag.message_detail} {diag.message_hint}"
        assert "s3cr3t" not in told and "777" not in told


@pytest.mark.parametrize("way", ["defer", "defer_many", "insert"])
def test_an_unknown_task_is_refused_with_the_nearest_names(register: Register, refused: Refused, way: str) -> None:
    for name in ("sned", "sender", "invoice"):
        register(name)
    diag = refused("PJ001", WAYS[way], "{}")
    assert "sned" in str(diag.message_detail) or "sender" in str(diag.message_detail)
    assert "invoice" not in str(diag.message_detail)
    assert "procjobs worker" in str(diag.message_hint)


def test_upstreams_clients_may_name_tasks_that_a_later_deploy_defines(sql: Sql) -> None:
    sql(WAYS["upstream"], '{"to": "ann"}')
    assert sql.one("select task_name from procrastinate_jobs") == "send"
    sql("select procrastinate_defer_periodic_job_v2('q', null, null, 'later', 0, '', 1, '{}')")
    assert sql.one("select count(*) from procrastinate_jobs") == 2


def test_the_limits_hold_for_upstreams_unknown_tasks_too(refused: Refused) -> None:
    refused("PJ004", WAYS["upstream"], nested(65))


def test_what_the_client_has_checked_is_not_checked_again(sql: Sql, register: Register) -> None:
    register("send", SEND)
    call = (
        "select * from procjobs.enqueue_jobs(array['send'], array['q'], array[0], array[null], array[null], array[%s], "
        "array[null]::timestamptz[])"
    )
    ids = sql(call, '{"unchecked": true}')
    assert len(ids) == 1
    with pytest.raises(psycopg.Error, match="signature"):  # and the setting ends with the call
        sql(WAYS["insert"], '{"unchecked": true}')


@pytest.mark.parametrize("way", ["defer", "defer_many"])
def test_what_defer_has_checked_does_not_open_the_door_for_others(
    sql: Sql, register: Register, refused: Refused, way: str
) -> None:
    register("send", SEND)
    with sql.connection.transaction():
        sql(WAYS[way], '{"to": "ann"}')
        refused("PJ002", WAYS["insert"], "{}")


def test_finished_rows_may_be_restored_from_a_dump(sql: Sql) -> None:
    sql(
        "insert into procrastinate_jobs (queue_name, task_name, args, status) "
        "values ('q', 'forgotten', '{}', 'succeeded')"
    )
    assert sql.one("select status from procjobs.jobs") == "succeeded"


def test_a_bulk_insert_by_hand_is_checked_row_by_row(sql: Sql, register: Register, refused: Refused) -> None:
    register("send", SEND)
    refused(
        "PJ002",
        "insert into procrastinate_jobs (queue_name, task_name, args) "
        "select 'q', 'send', case when n < 100 then '{\"to\": \"a\"}' else '{}' end::jsonb "
        "from generate_series(1, 100) n",
    )
    assert sql.one("select count(*) from procrastinate_jobs") == 0


@pytest.mark.parametrize("status", ["todo", "failed"])
def test_arguments_changed_by_hand_are_checked(sql: Sql, register: Register, refused: Refused, status: str) -> None:
    register("send", SEND)
    job = sql.one("""select procjobs.defer('send', '{"to": "ann"}')""")
    sql("update procrastinate_jobs set status = %s::procrastinate_job_status where id = %s", status, job)
    for args, code in (
        ('{"ot": "ann"}', "PJ002"),
        ("[]", "PJ005"),
        (nested(65), "PJ004"),
        (sized(MEBIBYTE + 1), "PJ003"),
    ):
        refused(code, "update procrastinate_jobs set args = %s where id = %s", args, job)
    sql("""update procrastinate_jobs set args = '{"to": "ben"}', priority = 3""")
    assert sql.one("select args ->> 'to' from procjobs.jobs") == "ben"


def test_check_arguments_asks_without_enqueueing(sql: Sql, register: Register, refused: Refused) -> None:
    register("send", SEND)
    sql("""select procjobs.check_arguments('send', '{"to": "ann"}')""")
    refused("PJ002", "select procjobs.check_arguments('send', '{}')")
    refused("PJ001", "select procjobs.check_arguments('nobody', '{}')")
    assert sql.one("select count(*) from procrastinate_jobs") == 0


async def test_python_gets_each_refusal_as_its_own_class(db: Any, sql: Sql, register: Register) -> None:
    register("send", SEND)
    for args, kind in (
        ({}, InvalidArguments),
        ({"to": "x" * MEBIBYTE}, ArgumentsTooLarge),
        (json.loads(nested(65)), ArgumentsTooDeep),
        ({"to": 10**4000}, ArgumentsMalformed),
    ):
        with pytest.raises(kind) as found:
            await db.value("defer", task="send", args=args)
        assert type(found.value) is kind is SQLSTATES[str(found.value.sqlstate)]
        assert found.value.detail and found.value.hint


@pytest.mark.parametrize(
    ("code", "row"),
    [
        ("PJ002", ("send", '{"to": 7}', None)),
        ("PJ001", ("sned", "{}", None)),
        ("PJ002", ("send", "{}", None)),
        ("PJ009", ("send", '{"to": "ann"}', "x" * 1001)),
    ],
)
def test_one_job_that_cannot_be_refuses_the_whole_copy(
    sql: Sql, register: Register, code: str, row: tuple[str, str, str | None]
) -> None:
    register("send", SEND)
    rows = [("send", '{"to": "ann"}', None)] * 1000
    with pytest.raises(psycopg.Error) as raised:
        copy_jobs(sql, [*rows, row, *rows])
    assert raised.value.sqlstate == code
    assert sql.one("select count(*) from procrastinate_jobs") == 0


def test_jobs_that_fit_may_come_by_copy(sql: Sql, register: Register) -> None:
    register("send", SEND)
    register("noop", {"type": "object", "additionalProperties": False})
    copy_jobs(sql, [("send", '{"to": "ann"}', None), ("noop", "{}", "lock")] * 500)
    assert sql("select task_name, count(*) from procrastinate_jobs group by 1 order by 1") == [
        ("noop", 500),
        ("send", 500),
    ]


def copy_jobs(sql: Sql, rows: list[tuple[str, str, str | None]]) -> None:
    statement = "copy procrastinate_jobs (queue_name, task_name, args, lock) from stdin"
    with sql.connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(("q", *row))
