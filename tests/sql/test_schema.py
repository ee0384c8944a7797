"""JSON Schema in SQL says what the reference implementation says, and says it in words."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import uuid
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from .conftest import Sql

CHECK = (
    "select n - 1, procjobs.schema_problems(p.pair -> 0, p.pair -> 1) "
    "from jsonb_array_elements(%s) with ordinality as p (pair, n)"
)


def problems(sql: Sql, schema: Any, value: Any) -> list[str]:
    found = sql.one("select procjobs.schema_problems(%s, %s)", json.dumps(schema), json.dumps(value))
    return list(found)


def check_alike(sql: Sql, pairs: list[tuple[Any, Any]]) -> None:
    for n, found in sql(CHECK, json.dumps(pairs)):
        schema, value = pairs[n]
        expected = [error.message for error in Draft202012Validator(schema).iter_errors(value)]
        assert bool(found) == bool(expected), (schema, value, found, expected)


text = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), max_size=6)
numbers = st.integers(-20, 20) | st.sampled_from([0.5, 1.0, -2.5, 10**30, 1e300])
scalars = st.none() | st.booleans() | numbers | text
keys = st.sampled_from(["a", "b", "c", "x y", "ä"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)
kinds = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])
small = st.integers(0, 4)


def some(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=parts)


def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    forms = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        some(
            type=st.just("object"), properties=st.dictionaries(keys, inner, max_size=3),
            required=st.lists(keys, unique=True, max_size=2), additionalProperties=inner,
            minProperties=small, maxProperties=small,
            patternProperties=st.dictionaries(st.sampled_from(["^a", "b$", "[a-b]"]), inner, max_size=2),
            propertyNames=some(maxLength=small, enum=st.lists(keys, min_size=1)),
        ),
        some(
            type=st.just("array"), items=inner, prefixItems=st.lists(inner, min_size=1, max_size=2),
            minItems=small, maxItems=small, uniqueItems=st.booleans(),
        ),
        some(type=kinds, anyOf=forms, oneOf=forms, allOf=forms),
        some(**{"type": kinds, "not": inner}),
    )  # fmt: skip


schemas = st.recursive(
    st.booleans()
    | some(type=kinds | st.lists(kinds, min_size=1, max_size=3, unique=True), title=text)
    | some(enum=st.lists(values, min_size=1, max_size=4))
    | some(const=values)
    | some(
        minimum=numbers, maximum=numbers, exclusiveMinimum=numbers, exclusiveMaximum=numbers,
        multipleOf=st.integers(1, 5),
    )
    | some(minLength=small, maxLength=small, pattern=st.sampled_from(["^a", "b", "[a-c]+$", "^(a|b)*$", "a{2,3}"]))
    | st.sampled_from([{"$ref": "#/$defs/Tree"}, {"$ref": "#/$defs/odd~1na~0me"}]),
    larger,
    max_leaves=6,
).map(
    lambda schema: schema if isinstance(schema, bool) else {
        **schema,
        "$defs": {
            "Tree": {
                "type": "object", "properties": {"a": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]}},
                "additionalProperties": False,
            },
            "odd/na~me": {"type": "string"},
        },
    }
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pairs=st.lists(st.tuples(schemas, values), min_size=5, max_size=25))
def test_any_schema_and_value_are_judged_as_by_the_reference(sql: Sql, pairs: list[tuple[Any, Any]]) -> None:
    check_alike(sql, pairs)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, pydantic.Field(ge=1, le=9)]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    tags: Annotated[list[str], pydantic.Field(max_length=2)] = []


class Tree(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str
    children: list[Tree] = []


TYPES: list[Any] = [
    int, float, bool, str, None, list[int], dict[str, int], tuple[int, str], set[int], int | None, int | str,
    Literal["a", 1], Colour, dict[Colour, int], Tree, Cat | Dog, list[Tree | None], Any, decimal.Decimal,
    Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
    Annotated[str, pydantic.Field(min_length=2, max_length=3, pattern="^a+b?$")],
    Annotated[int, pydantic.Field(gt=0, lt=10, multiple_of=3)],
    Annotated[dict[str, str], pydantic.Field(min_length=1)],
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, 1, 3, 9, 10, -1, 2.0, 2.5, "", "a", "aab", "aac", "red", "12.5", [], [1], [1, "a"], [1, 1], ["a", 1],
    [None], {}, {"a": 1}, {"red": 1}, {"red": "x"}, {"kind": "cat", "lives": 9}, {"kind": "cat", "lives": 10},
    {"kind": "dog"}, {"kind": "dog", "tags": ["a", "b", "c"]}, {"kind": "cow"}, {"name": "a"}, {"name": 1},
    {"name": "a", "children": [{"name": "b"}]}, {"name": "a", "children": [{"name": "b", "extra": 1}]},
    [{"name": "a"}, None], [{"name": "a", "children": None}],
]  # fmt: skip


def test_what_pydantic_writes_is_judged_as_by_the_reference(sql: Sql) -> None:
    check_alike(sql, [(pydantic.TypeAdapter(kind).json_schema(), value) for kind in TYPES for value in VALUES])


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (dt.date, ["2024-02-29"], ["2023-02-29", "2024-13-01", "24-01-01", "2024-02-29T00:00:00", "x"]),
        (
            dt.datetime,
            ["2024-02-29T23:59:59Z", "2024-02-29 23:59", "2024-02-29T10:00:00.123+05:30"],
            ["2024-02-30T00:00:00Z", "2024-02-29", "2024-02-29T24:00:00Z", "2024-02-29T10:00:00+5", "now", "infinity"],
        ),
        (dt.time, ["23:59", "23:59:59.5", "10:00:00Z"], ["24:00", "10", "10:60", "allballs"]),
        (dt.timedelta, ["P1DT2H", "PT0.5S", "-P3D", "P2W"], ["P", "PT", "1h", ""]),
        (uuid.UUID, [str(uuid.UUID(int=7)), "A" * 32], ["", "1234", "g" * 32, str(uuid.UUID(int=7)) + "0"]),
    ],
)
def test_formats(sql: Sql, kind: Any, good: list[str], bad: list[str]) -> None:
    adapter = pydantic.TypeAdapter(kind)
    for value in good:
        adapter.validate_python(value)  # what we let through, the worker's side can read
        assert problems(sql, adapter.json_schema(), value) == []
    for value in bad:
        assert problems(sql, adapter.json_schema(), value), value


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("ann@example.org", True),
        ("ännä@bücher.example", True),
        ("ann", False),
        ("a@b@c", False),
        ("a b@c", False),
        ("a\r\n@b", False),
    ],
)
def test_the_email_format_keeps_out_what_is_none(sql: Sql, value: str, fits: bool) -> None:
    assert (problems(sql, {"type": "string", "format": "email"}, value) == []) is fits


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (r"\bcat\b", "a cat"),
        (r"(?P<year>\d+)", "x"),
        (r"^\w+$", "Zoë"),
        ("a{,3}b", "aab"),
        (r"\p{L}", "x"),
        ("(", "x"),
        ("a++", "b"),
    ],
)
def test_a_pattern_that_postgresql_reads_differently_refuses_nothing(sql: Sql, pattern: str, value: str) -> None:
    assert problems(sql, {"type": "string", "pattern": pattern}, value) == []


def test_every_problem_is_told_with_its_place_and_without_the_value(sql: Sql) -> None:
    schema = {
        "type": "object",
        "properties": {
            "to": {"type": "string", "maxLength": 3},
            "when": {"type": "string", "format": "date"},
            "tree": {"$ref": "#/$defs/Tree"},
            "level": {"enum": ["low", "high"]},
            "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "rows": {
                "type": "array",
                "items": {"type": "object", "properties": {"price": {"type": "number", "minimum": 0}}},
            },
            "must": {},
        },
        "required": ["to", "must"],
        "additionalProperties": False,
        "$defs": {"Tree": {"type": "object", "properties": {"leaf": {"type": "boolean"}}, "required": ["leaf"]}},
    }
    value = {
        "to": "secret", "when": "secret", "tree": {}, "level": "secret", "n": "secret",
        "rows": [{"price": 1}, {"price": -5}], "an odd name": "secret",
    }  # fmt: skip
    assert sorted(problems(sql, schema, value)) == [
        '["an odd name"] is not expected',
        'level must be "low" or "high"',
        "must is missing",
        "n must be integer or null, is string",
        "rows[1].price must be at least 0",
        "to must have at most 3 characters, has 6",
        "tree.leaf is missing",
        "when must be a date",
    ]


def test_of_several_forms_the_nearest_is_explained(sql: Sql) -> None:
    schema = pydantic.TypeAdapter(Cat | list[int]).json_schema()
    assert problems(sql, schema, {"kind": "cat", "lives": 12}) == ["lives must be at most 9"]


def test_of_forms_that_exclude_each_other_only_one_may_fit(sql: Sql) -> None:
    schema = {"oneOf": [{"type": "integer"}, {"minimum": 5}]}
    assert problems(sql, schema, 4) == problems(sql, schema, 5.5) == []
    assert problems(sql, schema, 6) == ["the value fits several forms, of which it must be one"]
    assert problems(sql, schema, 4.5) == ["the value must be at least 5"]


def test_a_thousand_problems_are_not_listed(sql: Sql) -> None:
    schema = {"type": "object", "additionalProperties": {"type": "string"}, "required": [f"r{n}" for n in range(1000)]}
    assert len(problems(sql, schema, {f"k{n}": n for n in range(1000)})) <= 40


def test_a_schema_that_refers_to_itself_ends(sql: Sql) -> None:
    (found, *_) = problems(sql, {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, 1)
    assert "without end" in found


def test_a_reference_to_nothing_fits_nothing(sql: Sql) -> None:
    assert problems(sql, {"$ref": "#/$defs/Gone"}, 1) == ["the value is not expected"]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": False},
            "t(to: string)",
        ),
        ({"properties": {"n": {"type": "integer", "default": 3}}}, "t(n: integer = 3)"),
        (
            {"properties": {"a": {"type": "array", "items": {"format": "date", "type": "string"}}}},
            "t(a: array of date = ...)",
        ),
        (
            {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}}},
            "t(a: string or null = null)",
        ),
        ({"properties": {}, "additionalProperties": False}, "t()"),
        ({"type": "object"}, "t(...)"),
    ],
)
def test_a_signature_reads_like_a_call(sql: Sql, schema: Any, words: str) -> None:
    assert sql.one("select procjobs.signature('t', %s)", json.dumps(schema)) == words
