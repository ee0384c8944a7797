"""Every SQLSTATE has one class, every class is exported, and nothing that the server says is lost."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import psycopg
import pytest

from procjobs import errors, migrate
from procjobs.errors import SQLSTATES, DatabaseError, DatabaseUnavailable, ProcjobsError, translate
from tests.conftest import Sql


def raised_in_sql() -> set[str]:
    text = "".join(path.read_text() for path in migrate.resources().sql.rglob("*.sql"))
    return set(re.findall(r"'(PJ\d{3})'", text))


def classes() -> list[type[Exception]]:
    return [
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, ProcjobsError) and found.__module__ == errors.__name__
    ]


def test_every_class_is_exported() -> None:
    assert {found.__name__ for found in classes()} <= set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    assert all(hasattr(errors, name) for name in errors.__all__)


def test_the_tree_at_the_top_of_the_module_is_complete() -> None:
    assert errors.__doc__
    for found in classes():
        code = getattr(found, "code", None)
        assert re.search(rf"\b{found.__name__}\b" + (rf"\s+{code}\b" if code else ""), errors.__doc__)


def test_every_code_that_sql_raises_has_a_class() -> None:
    assert raised_in_sql() - set(SQLSTATES) == set()


def test_every_class_has_a_code_that_sql_raises() -> None:
    # PJ012 is raised where a pack finds a host_* function missing; PJ011 by the worker's calls.
    assert set(SQLSTATES) - raised_in_sql() <= {"PJ012"}


def test_codes_are_one_to_one() -> None:
    assert len({found.code for found in SQLSTATES.values()}) == len(SQLSTATES)
    assert all(re.fullmatch(r"PJ0\d\d", code) for code in SQLSTATES)


@pytest.mark.parametrize("code", sorted(SQLSTATES))
def test_the_server_s_words_are_kept(sql: Sql, code: str) -> None:
    query = f"do $$ begin raise 'what' using errcode = '{code}', detail = 'values', hint = 'mend'; end $$"
    with pytest.raises(psycopg.Error) as told:
        sql(query)
    error = translate(told.value)
    assert type(error) is SQLSTATES[code]
    assert (str(error), error.sqlstate, error.detail, error.hint) == ("what", code, "values", "mend")


@pytest.mark.parametrize("code", ["57P01", "53300", "08006", "25006"])
def test_what_is_worth_trying_again(sql: Sql, code: str) -> None:
    with pytest.raises(psycopg.Error) as told:
        sql(f"do $$ begin raise 'x' using errcode = '{code}'; end $$")
    assert type(translate(told.value)) is DatabaseUnavailable


def test_what_is_not(sql: Sql) -> None:
    with pytest.raises(psycopg.Error) as told:
        sql("select 1/0")
    error = translate(told.value)
    assert type(error) is DatabaseError
    assert error.sqlstate == "22012"


def test_a_server_that_cannot_be_reached() -> None:
    with pytest.raises(psycopg.OperationalError) as told:
        psycopg.connect("host=127.0.0.1 port=1 connect_timeout=2")
    assert type(translate(told.value)) is DatabaseUnavailable


def test_they_are_procrastinates_too() -> None:
    """Code that catches Procrastinate's base exception catches ours."""
    from procrastinate.exceptions import ProcrastinateException

    assert issubclass(ProcjobsError, ProcrastinateException)
    assert Path(inspect.getfile(ProcjobsError)).name == "errors.py"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("PJ002", 400), ("PJ003", 400), ("PJ023", 400), ("PJ050", 400), ("PJ024", 403), ("PJ051", 403), ("PJ052", 404),
        ("PJ053", 409), ("PJ054", 409), ("PJ012", 500), ("22007", 400), ("42501", 500), ("57P01", 503), ("40P01", 503),
    ],
)  # fmt: skip
def test_what_an_answer_over_http_says_of_it(sql: Sql, code: str, status: int) -> None:
    with pytest.raises(psycopg.Error) as told:
        sql(f"do $$ begin raise 'x' using errcode = '{code}'; end $$")
    assert translate(told.value).status_code == status
