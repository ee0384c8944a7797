"""What the Python client refuses before it reaches the database, each with its own error and the way out."""

from __future__ import annotations

import datetime as dt
import enum
import json
import uuid
from typing import Annotated, Any, Literal

import procrastinate
import psycopg
import pytest
from procrastinate.testing import InMemoryConnector
from pydantic import BaseModel, Field

import procjobs
from procjobs.engine.arguments import MAX_BYTES, MAX_DEPTH, Signature, encode
from procjobs.errors import ArgumentsMalformed, ArgumentsTooDeep, ArgumentsTooLarge, InvalidArguments


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.fixture
def send(app):
    async def run(to: str, count: int = 1, tags: list[str] | None = None):
        pass

    return app.task(name="send")(run)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, InvalidArguments, "to is missing"),
        ({"to": "a", "extra": 1}, InvalidArguments, "extra is not expected"),
        ({"to": 5}, InvalidArguments, "to must be string, is number"),
        ({"to": "a", "count": "3"}, InvalidArguments, "count must be integer, is string"),
        ({"to": "a", "count": True}, InvalidArguments, "count must be integer, is boolean"),
        ({"to": "a", "tags": [1]}, InvalidArguments, "tags[0] must be string, is number"),
        ({"to": None}, InvalidArguments, "to must be string, is null"),
        ({"to": "a\x00b"}, ArgumentsMalformed, "NUL"),
        ({"to": "a", "tags": ["\x00"]}, ArgumentsMalformed, "NUL"),
        ({"to": "\ud800"}, InvalidArguments, "send"),
        ({"to": "a", "count": int("7" * 4000)}, ArgumentsMalformed, "more than 1,000 digits"),
        ({"to": "a", "count": 10**5000}, ArgumentsMalformed, "more than 1,000 digits"),
        ({"to": float("nan")}, ArgumentsMalformed, "cannot be written as JSON"),
        ({"to": {1, 2}}, ArgumentsMalformed, "cannot be written as JSON"),
        ({"to": nested(3000)}, ArgumentsTooDeep, "more than 64 levels"),
        ({"to": "x" * 2 * 1024 * 1024}, ArgumentsTooLarge, "more than 1,048,576"),
    ],
)
async def test_refused_arguments(send, sql, arguments, error, words):
    with pytest.raises(error) as refused:
        await send.defer_async(**arguments)
    assert words in refused.value.message
    assert refused.value.hint and refused.value.detail
    assert refused.value.sqlstate in ("PJ002", "PJ003", "PJ004", "PJ005")
    assert sql.one("select count(*) from procrastinate_jobs") == 0


class Address(BaseModel):
    street: str


def many(
    to: str,
    count: int = 1,
    ratio: float = 1.0,
    sure: bool = True,
    tags: list[str] | None = None,
    prices: dict[str, float] | None = None,
    at: Address | None = None,
    homes: list[Address] | None = None,
    pair: tuple[int, str] | None = None,
    either: int | str = 0,
    kind: Literal["a", "b"] = "a",
    only: Literal["x"] = "x",
    amount: Annotated[int, Field(ge=1, lt=10)] = 1,
    word: Annotated[str, Field(min_length=2, max_length=4)] = "abc",
    code: Annotated[str, Field(pattern="^[a-z]+$")] = "a",
    few: Annotated[list[int], Field(min_length=1, max_length=2)] = [1],  # noqa: B006
    who: uuid.UUID | None = None,
    when: dt.datetime | None = None,
    day: dt.date = dt.date(2026, 1, 1),
) -> None:
    pass


#: What pydantic says in words of its own: how strict it is, and what of several forms was meant.
UNLIKE = {
    '{"to": "a", "count": 1.0}': (["count: Input should be a valid integer"], []),
    '{"to": "a", "pair": [1]}': (["pair[1] is missing"], ["pair must have at least 2 items, has 1"]),
}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"to": 1},
        {"to": None},
        {"to": ["a"]},
        {"to": "a", "unknown": 1},
        {"unknown": 1, "an odd name": 2, "count": "3"},
        {"to": "a", "count": "3"},
        {"to": "a", "count": 1.5},
        {"to": "a", "count": True},
        {"to": "a", "count": None},
        {"to": "a", "ratio": "x", "sure": 1},
        {"to": "a", "tags": "x"},
        {"to": "a", "tags": [1, "x", None]},
        {"to": "a", "prices": {"net": "x", "a b": 1, "c d": None}},
        {"to": "a", "at": "street"},
        {"to": "a", "at": {}},
        {"to": "a", "at": {"street": 5}},
        {"to": "a", "homes": [{"street": "x"}, {"street": 1}, 7]},
        {"to": "a", "pair": ["x", "y"]},
        {"to": "a", "either": []},
        {"to": "a", "either": None},
        {"to": "a", "kind": "c"},
        {"to": "a", "kind": 1},
        {"to": "a", "only": "y"},
        {"to": "a", "amount": 0},
        {"to": "a", "amount": 10},
        {"to": "a", "word": "x"},
        {"to": "a", "word": "x" * 5},
        {"to": "a", "code": "A1"},
        {"to": "a", "few": []},
        {"to": "a", "few": [1, 2, 3]},
        {"to": "a", "who": "me", "when": "soon", "day": "never"},
        {"to": "a", "who": 5},
        {"to": "a", "pair": [1, "x", 2]},
        *map(json.loads, UNLIKE),
    ],
    ids=json.dumps,
)
def test_python_and_sql_find_the_same_wrong_and_say_it_alike(sql, arguments):
    text = json.dumps(arguments)
    here = signature(many)
    with pytest.raises(InvalidArguments) as refused:
        here.check(text)
    said = (refused.value.detail or "").split("; ")
    assert refused.value.message == f"arguments of task t do not fit its signature: {said[0]}"
    there = sql.one("select procjobs.schema_problems(%s::jsonb, %s::jsonb)", json.dumps(here.schema), text)
    expected = UNLIKE.get(text)
    if expected:
        assert (said, there) == expected
    else:
        assert sorted(said) == sorted(there) != []


async def test_one_bad_job_of_a_batch_refuses_the_batch(send, sql):
    with pytest.raises(InvalidArguments):
        await send.batch_defer_async({"to": "a"}, {"to": 1})
    assert sql.one("select count(*) from procrastinate_jobs") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"to": "a"},
        {"to": "a", "count": 2, "tags": ["x"]},
        {"to": "\\u0000 is only spelled", "tags": None},
        {"to": "ü€😀"},
    ],
)
async def test_accepted_arguments_arrive_as_they_were(send, sql, arguments):
    await send.defer_async(**arguments)
    assert sql.one("select args from procrastinate_jobs") == arguments


async def test_what_the_client_accepts_the_database_accepts_and_the_other_way_round(app, send, sql):
    await app.register_tasks()
    cases: list[dict[str, Any]] = [
        {"to": "a"},
        {"to": 1},
        {},
        {"to": "a", "count": 1.5},
        {"to": "a", "tags": []},
        {"to": "a", "tags": {}},
        {"to": "a", "x": 1},
        {"to": "a", "count": None},
        {"to": ""},
        {"to": ["a"]},
    ]
    for case in cases:
        try:
            await send.defer_async(**case)
            client = True
        except InvalidArguments:
            client = False
        try:
            sql("select procjobs.defer('send', %s::jsonb)", json.dumps(case))
            database = True
        except psycopg.Error:
            database = False
        assert client == database, case


def test_the_limits_are_exact():
    assert encode("t", {"x": nested(MAX_DEPTH - 1)})
    with pytest.raises(ArgumentsTooDeep):
        encode("t", {"x": nested(MAX_DEPTH)})
    room = MAX_BYTES - len('{"x": ""}')
    assert encode("t", {"x": "y" * room})
    with pytest.raises(ArgumentsTooLarge):
        encode("t", {"x": "y" * (room + 1)})


def signature(function, **options):
    application = procrastinate.App(connector=InMemoryConnector())
    return Signature(application.task(name="t", **options)(function))


class Color(enum.Enum):
    RED = "red"


class Opaque:
    pass


def test_signatures_of_many_kinds():
    def task(
        when: dt.datetime,
        who: uuid.UUID,
        color: Color,
        kind: Literal["a", "b"],
        at: Address,
        amount: Annotated[int, Field(ge=1)],
        *,
        anything=None,
    ):
        pass

    found = signature(task)
    good = {
        "when": "2026-11-22T10:00:00Z",
        "who": str(uuid.uuid4()),
        "color": "red",
        "kind": "a",
        "at": {"street": "x"},
        "amount": 1,
    }
    found.check(json.dumps(good))
    for key, bad in [("when", "soon"), ("who", "me"), ("color", "blue"), ("kind", "c"), ("at", {}), ("amount", 0)]:
        with pytest.raises(InvalidArguments):
            found.check(json.dumps({**good, key: bad}))


def test_the_context_is_no_argument():
    def task(context, x: int):
        pass

    assert list(signature(task, pass_context=True).schema["properties"]) == ["x"]


def test_keyword_arguments_allow_more():
    def task(x: int, **more):
        pass

    signature(task).check('{"x": 1, "y": 2}')


def test_an_annotation_without_json_form_takes_anything():
    def task(thing: Opaque, x: int):
        pass

    found = signature(task)
    found.check('{"thing": [1], "x": 1}')
    with pytest.raises(InvalidArguments):
        found.check('{"thing": [1], "x": "1"}')


def test_names_that_only_type_checkers_know_take_anything():
    def task(thing: NoSuchName, x: int):  # type: ignore[name-defined]  # noqa: F821
        pass

    found = signature(task)
    found.check('{"thing": 1, "x": 1}')
    with pytest.raises(InvalidArguments):
        found.check('{"thing": 1, "x": "1"}')


async def test_a_connector_with_its_own_json_is_asked(dsn, sql):
    def dumps(value):
        return json.dumps(value, default=lambda o: {"$date": o.isoformat()})

    def loads(text):
        return json.loads(text, object_hook=lambda o: dt.date.fromisoformat(o["$date"]) if "$date" in o else o)

    seen = []
    app = procjobs.App(procrastinate.PsycopgConnector(conninfo=dsn, json_dumps=dumps, json_loads=loads))

    @app.task(name="dated")
    async def dated(day):
        seen.append(day)

    async with app.open_async():
        await dated.defer_async(day=dt.date(2026, 11, 22))
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert seen == [dt.date(2026, 11, 22)]
