"""Cron expressions by hand: what they mean, when clocks change, what is refused. The oracle is test_cron_oracle.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from procjobs.embedded import EmbeddedPostgres
from tests import conftest

from .conftest import Sql


@pytest.fixture(scope="module")
def database(cluster: EmbeddedPostgres, maintenance: psycopg.Connection[Any], template: str) -> Iterator[conftest.Sql]:
    """One database for all of these tests: nothing here writes."""
    databases = conftest.Databases(cluster, maintenance)
    queries = conftest.Sql(databases.make(template))
    yield queries
    queries.connection.close()
    databases.drop()


@pytest.fixture
def sql(database: conftest.Sql) -> conftest.Sql:
    database("reset all")
    return database


def slots(sql: Sql, cron: str, zone: str, after: str, count: int) -> list[str]:
    """The next slots: local time, offset from UTC, and the mark if there is one."""
    return [
        text
        for (text,) in sql(
            "select to_char(local, 'YYYY-MM-DD HH24:MI:SS ')"
            " || to_char(local - (slot at time zone 'UTC'), 'HH24:MI') || coalesce(' ' || mark, '')"
            " from procjobs.cron_preview(%s, %s, %s, %s)",
            cron,
            zone,
            after,
            count,
        )
    ]


def refusal(sql: Sql, query: str, *params: object) -> psycopg.errors.Diagnostic:
    with pytest.raises(psycopg.Error) as refused:
        sql(query, *params)
    assert refused.value.diag.sqlstate == "PJ014"
    return refused.value.diag


# -- what an expression means --------------------------------------------------------------------------------------

#: 2026-11-22 is a Sunday.
MEANINGS = [
    ("* * * * *", ["11-22 12:31:00", "11-22 12:32:00"]),
    ("*/20 * * * *", ["11-22 12:40:00", "11-22 13:00:00"]),
    ("7-50/20 * * * *", ["11-22 12:47:00", "11-22 13:07:00", "11-22 13:27:00"]),
    ("50/4 * * * *", ["11-22 12:50:00", "11-22 12:54:00", "11-22 12:58:00", "11-22 13:50:00"]),
    ("0 8,20 * * *", ["11-22 20:00:00", "11-23 08:00:00"]),
    ("30 12 * * *", ["11-23 12:30:00"]),
    ("0 9 * * MON-FRI", ["11-23 09:00:00", "11-24 09:00:00"]),
    ("0 9 * * sat-sun", ["11-28 09:00:00", "11-29 09:00:00", "12-05 09:00:00"]),
    ("0 9 * * 5-7", ["11-27 09:00:00", "11-28 09:00:00", "11-29 09:00:00", "12-04 09:00:00"]),
    ("0 9 * * 0", ["11-29 09:00:00"]),
    ("0 9 * * 7", ["11-29 09:00:00"]),
    ("0 9 * * Sun", ["11-29 09:00:00"]),
    ("0 0 1 jan,Dec *", ["12-01 00:00:00", "01-01 00:00:00"]),
    ("0 0 1 NOV-DEC *", ["12-01 00:00:00", "11-01 00:00:00"]),
    ("0 0 13 * FRI", ["11-27 00:00:00", "12-04 00:00:00", "12-11 00:00:00", "12-13 00:00:00"]),  # either
    ("0 0 */2 * MON", ["11-23 00:00:00", "12-07 00:00:00"]),  # both, since one begins with *
    ("0 0 L * *", ["11-30 00:00:00", "12-31 00:00:00", "01-31 00:00:00", "02-28 00:00:00"]),
    ("0 0 15,l * *", ["11-30 00:00:00", "12-15 00:00:00", "12-31 00:00:00"]),
    ("0 0 LW * *", ["11-30 00:00:00", "12-31 00:00:00", "01-29 00:00:00", "02-26 00:00:00"]),
    ("0 0 * * 5L", ["11-27 00:00:00", "12-25 00:00:00", "01-29 00:00:00"]),
    ("0 0 * * L5", ["11-27 00:00:00", "12-25 00:00:00"]),
    ("0 0 * * friL", ["11-27 00:00:00", "12-25 00:00:00"]),
    ("0 0 * * 7L", ["11-29 00:00:00", "12-27 00:00:00"]),
    ("0 0 * * MON#2", ["12-14 00:00:00", "01-11 00:00:00"]),
    ("0 0 31 * *", ["12-31 00:00:00", "01-31 00:00:00", "03-31 00:00:00"]),
    ("0 0 30 * *", ["11-30 00:00:00", "12-30 00:00:00", "01-30 00:00:00", "03-30 00:00:00"]),
    ("30 * * * * *", ["11-22 12:30:30", "11-22 12:31:30"]),
    ("*/25 59 23 * * *", ["11-22 23:59:00", "11-22 23:59:25", "11-22 23:59:50", "11-23 23:59:00"]),
    ("@hourly", ["11-22 13:00:00", "11-22 14:00:00"]),
    ("@daily", ["11-23 00:00:00"]),
    ("@MIDNIGHT", ["11-23 00:00:00"]),
    ("@weekly", ["11-29 00:00:00", "12-06 00:00:00"]),
    ("@monthly", ["12-01 00:00:00"]),
    ("@yearly", ["01-01 00:00:00"]),
    ("@annually", ["01-01 00:00:00"]),
    ("  0\t9  * * *\n", ["11-23 09:00:00"]),
]


@pytest.mark.parametrize(("cron", "wanted"), MEANINGS, ids=[cron for cron, _ in MEANINGS])
def test_an_expression_means(sql: Sql, cron: str, wanted: list[str]) -> None:
    found = slots(sql, cron, "UTC", "2026-11-22 12:30:00+00", len(wanted))
    assert [slot[5:19] for slot in found] == wanted


def test_leap_years_and_centuries(sql: Sql) -> None:
    years = [slot[:10] for slot in slots(sql, "0 0 29 2 *", "UTC", "2088-03-01+00", 5)]
    assert years == ["2092-02-29", "2096-02-29", "2104-02-29", "2108-02-29", "2112-02-29"]
    assert [s[:10] for s in slots(sql, "0 0 L 2 *", "UTC", "2027-01-01+00", 2)] == ["2027-02-28", "2028-02-29"]
    # 29 February and a Sunday: once in 28 years, and in 40 over 2100.
    assert [s[:10] for s in slots(sql, "0 0 29 2 */7", "UTC", "2060-03-01+00", 2)] == ["2088-02-29", "2128-02-29"]


def test_the_next_slot_is_later_even_within_a_second(sql: Sql) -> None:
    query = "select procjobs.cron_next('* * * * * *', after => %s)"
    assert sql.one(query, "2026-01-01 00:00:00.999+00") == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert sql.one(query, "2026-01-01 00:00:01+00") == datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC)


def test_now_is_the_clock_of_procjobs(sql: Sql) -> None:
    sql("set procjobs.now = '2030-01-01 12:00Z'")
    assert sql.one("select procjobs.cron_next('@hourly')") == datetime(2030, 1, 1, 13, tzinfo=UTC)
    assert sql.one("select min(slot) from procjobs.cron_preview('@hourly')") == datetime(2030, 1, 1, 13, tzinfo=UTC)
    assert sql.one("select count(*) from procjobs.cron_preview('@hourly')") == 10
    assert sql.one("select procjobs.cron_next(null)") is None


def test_the_sessions_time_zone_and_language_do_not_matter(sql: Sql) -> None:
    sql("set timezone = 'Asia/Kathmandu'")
    sql("set datestyle = 'SQL, DMY'")
    at = sql.one("select extract(epoch from procjobs.cron_next('0 9 2 3 *', 'Europe/Paris', '2026-01-01Z'))::bigint")
    assert at == datetime(2026, 3, 2, 8, tzinfo=UTC).timestamp()


# -- when clocks change --------------------------------------------------------------------------------------------

CHANGES = [
    # Paris: 02:00 -> 03:00 on 29 March, 03:00 -> 02:00 on 25 October.
    ("30 2 * * *", "Europe/Paris", "2026-03-27 12:00Z",
     ["2026-03-28 02:30:00 01:00", "2026-03-29 03:00:00 02:00 gap", "2026-03-30 02:30:00 02:00"]),
    ("0,15,30 2 * * *", "Europe/Paris", "2026-03-28 12:00Z",
     ["2026-03-29 03:00:00 02:00 gap", "2026-03-30 02:00:00 02:00"]),
    ("30 2,3 * * *", "Europe/Paris", "2026-03-28 12:00Z",
     ["2026-03-29 03:00:00 02:00 gap", "2026-03-29 03:30:00 02:00", "2026-03-30 02:30:00 02:00"]),
    ("0 2,3 * * *", "Europe/Paris", "2026-03-28 12:00Z",
     ["2026-03-29 03:00:00 02:00", "2026-03-30 02:00:00 02:00"]),
    ("30 * * * *", "Europe/Paris", "2026-03-29 00:00Z",
     ["2026-03-29 01:30:00 01:00", "2026-03-29 03:30:00 02:00"]),
    ("*/30 2 * * *", "Europe/Paris", "2026-03-28 12:00Z", ["2026-03-30 02:00:00 02:00"]),
    ("15 30 2 * * *", "Europe/Paris", "2026-03-28 12:00Z",
     ["2026-03-29 03:00:00 02:00 gap", "2026-03-30 02:30:15 02:00"]),
    ("30 2 * * *", "Europe/Paris", "2026-10-24 12:00Z",
     ["2026-10-25 02:30:00 02:00 repeat 1", "2026-10-26 02:30:00 01:00"]),
    ("30 2 * * *", "Europe/Paris", "2026-10-25 00:45Z", ["2026-10-26 02:30:00 01:00"]),  # between the two
    ("30 2 * * *", "Europe/Paris", "2026-10-25 01:15Z", ["2026-10-26 02:30:00 01:00"]),  # 02:15 for the second time
    ("0-59 2,3 * * *", "Europe/Paris", "2026-10-25 01:15Z", ["2026-10-25 03:00:00 01:00"]),
    ("30 * * * *", "Europe/Paris", "2026-10-25 00:00Z",
     ["2026-10-25 02:30:00 02:00 repeat 1", "2026-10-25 02:30:00 01:00 repeat 2", "2026-10-25 03:30:00 01:00"]),
    ("*/20 2 * * *", "Europe/Paris", "2026-10-25 00:30Z",
     ["2026-10-25 02:40:00 02:00 repeat 1", "2026-10-25 02:00:00 01:00 repeat 2",
      "2026-10-25 02:20:00 01:00 repeat 2", "2026-10-25 02:40:00 01:00 repeat 2", "2026-10-26 02:00:00 01:00"]),
    # New York: 02:00 -> 03:00 on 8 March, 02:00 -> 01:00 on 1 November.
    ("30 2 * * *", "America/New_York", "2026-03-08 05:00Z",
     ["2026-03-08 03:00:00 -04:00 gap", "2026-03-09 02:30:00 -04:00"]),
    ("30 1 * * *", "America/New_York", "2026-11-01 04:00Z",
     ["2026-11-01 01:30:00 -04:00 repeat 1", "2026-11-02 01:30:00 -05:00"]),
    # Lord Howe: half an hour; 02:00 -> 02:30 on 4 October, 02:00 -> 01:30 on 5 April.
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00Z",
     ["2026-10-04 02:30:00 11:00 gap", "2026-10-05 02:15:00 11:00"]),
    ("30 * * * *", "Australia/Lord_Howe", "2026-10-03 14:30Z",
     ["2026-10-04 01:30:00 10:30", "2026-10-04 02:30:00 11:00", "2026-10-04 03:30:00 11:00"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 12:00Z",
     ["2026-04-05 01:45:00 11:00 repeat 1", "2026-04-06 01:45:00 10:30"]),
    ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04 14:30Z",
     ["2026-04-05 01:45:00 11:00 repeat 1", "2026-04-05 01:30:00 10:30 repeat 2",
      "2026-04-05 01:45:00 10:30 repeat 2", "2026-04-05 02:00:00 10:30"]),
    # Cairo: 00:00 -> 01:00 on Friday 24 April, 24:00 -> 23:00 on Thursday 29 October.
    ("0 0 * * FRI", "Africa/Cairo", "2026-04-23 12:00Z",
     ["2026-04-24 01:00:00 03:00 gap", "2026-05-01 00:00:00 03:00"]),
    ("* 0/15 * * FRI", "Africa/Cairo", "2026-04-23 12:00Z", ["2026-04-24 15:00:00 03:00"]),
    ("30 23 * * *", "Africa/Cairo", "2026-10-29 12:00Z",
     ["2026-10-29 23:30:00 03:00 repeat 1", "2026-10-30 23:30:00 02:00"]),
    # Havana: 00:00 -> 01:00 on 8 March, 01:00 -> 00:00 on 1 November.
    ("@daily", "America/Havana", "2026-03-07 12:00Z",
     ["2026-03-08 01:00:00 -04:00 gap", "2026-03-09 00:00:00 -04:00"]),
    ("@daily", "America/Havana", "2026-10-31 12:00Z",
     ["2026-11-01 00:00:00 -04:00 repeat 1", "2026-11-02 00:00:00 -05:00"]),
    ("@hourly", "America/Havana", "2026-11-01 03:30Z",
     ["2026-11-01 00:00:00 -04:00 repeat 1", "2026-11-01 00:00:00 -05:00 repeat 2", "2026-11-01 01:00:00 -05:00"]),
    # Tehran: 00:00 -> 01:00 on 22 March 2022, the last time.
    ("0 0 22 3 *", "Asia/Tehran", "2022-03-01Z",
     ["2022-03-22 01:00:00 04:30 gap", "2023-03-22 00:00:00 03:30"]),
    # Apia left out Friday 30 December 2011.
    ("0 12 * * *", "Pacific/Apia", "2011-12-29 10:00Z",
     ["2011-12-29 12:00:00 -10:00", "2011-12-31 00:00:00 14:00 gap", "2011-12-31 12:00:00 14:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("cron", "zone", "after", "wanted"), CHANGES)
def test_when_clocks_change(sql: Sql, cron: str, zone: str, after: str, wanted: list[str]) -> None:
    assert slots(sql, cron, zone, after, len(wanted)) == wanted


def test_names_that_are_also_abbreviations_have_summer_time(sql: Sql) -> None:
    for zone in ("CET", "MET", "cet"):
        assert slots(sql, "0 9 * * *", zone, "2026-07-01Z", 1) == ["2026-07-01 09:00:00 02:00"]
    assert slots(sql, "0 9 * * *", "EET", "2026-07-01Z", 1) == ["2026-07-01 09:00:00 03:00"]
    assert slots(sql, "0 9 * * *", "WET", "2026-07-01Z", 1) == ["2026-07-01 09:00:00 01:00"]


# -- refusals ------------------------------------------------------------------------------------------------------

NONSENSE = [
    ("", "it is empty"),
    ("* * * *", "4 fields instead of five, or six with the seconds first"),
    ("* * * * * * *", "7 fields instead of five, or six with the seconds first"),
    ("@fortnightly", "@fortnightly: not one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"),
    ("60 * * * *", 'minute "60": 60 is not between 0 and 59'),
    ("0 24 * * *", 'hour "24": 24 is not between 0 and 23'),
    ("0 0 0 * *", 'day of month "0": 0 is not between 1 and 31'),
    ("0 0 32 * *", 'day of month "32": 32 is not between 1 and 31'),
    ("0 0 * 13 *", 'month "13": 13 is not between 1 and 12, or JAN to DEC'),
    ("0 0 * * 8", 'day of week "8": 8 is not between 0 and 7, or SUN to SAT'),
    ("0 0 * * FRY", 'day of week "FRY": FRY is not between 0 and 7, or SUN to SAT'),
    ("0 0 * JANUARY *", 'month "JANUARY": JANUARY is not between 1 and 12, or JAN to DEC'),
    ("61 * * * * *", 'second "61": 61 is not between 0 and 59'),
    ("99999999999999999999 * * * *",
     'minute "99999999999999999999": 99999999999999999999 is not between 0 and 59'),
    ("*/0 * * * *", 'minute "*/0": step 0 is not between 1 and 60'),
    ("*/90 * * * *", 'minute "*/90": step 90 is not between 1 and 60'),
    ("0 22-4 * * *", 'hour "22-4": the range runs backwards; write 22-23,0-4'),
    ("1,,2 * * * *", 'minute "": cannot be read'),
    ("1- * * * *", 'minute "1-": cannot be read'),
    ("-1 * * * *", 'minute "-1": cannot be read'),
    ("1.5 * * * *", 'minute "1.5": cannot be read'),
    ("*5 * * * *", 'minute "*5": cannot be read'),
    ("0 0 15W * *", 'day of month "15W": cannot be read'),
    ("0 0 * * MON#6", 'day of week "MON#6": cannot be read'),
    ("H * * * *", 'minute "H": H is not between 0 and 59'),
    ("0 0 ? * *", 'day of month "?": cannot be read'),
]  # fmt: skip


@pytest.mark.parametrize(("cron", "detail"), NONSENSE, ids=[cron for cron, _ in NONSENSE])
def test_nonsense_is_refused_with_the_field_and_the_token(sql: Sql, cron: str, detail: str) -> None:
    for query in (
        "select procjobs.check_cron(%s)",
        "select procjobs.cron_next(%s)",
        "select procjobs.cron_preview(%s)",
        "select procjobs.cron_slots(%s, 'UTC', now(), now())",
    ):
        said = refusal(sql, query, cron)
        assert (said.message_primary, said.message_detail) == (f'cron "{cron}" cannot be read', detail)
        assert "30 8 * * MON-FRI" in (said.message_hint or "")


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 0 31 feb *", "* * */30 2 5L"])
def test_what_never_fires_is_refused(sql: Sql, cron: str) -> None:
    for function in ("check_cron", "cron_next", "cron_preview"):
        said = refusal(sql, f"select procjobs.{function}(%s)", cron)
        assert said.message_primary == f'cron "{cron}" never fires'
        assert "0 0 L 2 *" in (said.message_hint or "")


@pytest.mark.parametrize(
    "zone", ["Mars/Olympus", "", "CEST", "PDT", "+02", "Europe/Paris1", "Foo3", "Etc/GMT+20", "2", "Europe/Paris; x"]
)
def test_unknown_zones_are_refused(sql: Sql, zone: str) -> None:
    for query in ("select procjobs.check_cron('@daily', %s)", "select procjobs.cron_next('@daily', %s)"):
        said = refusal(sql, query, zone)
        assert said.message_primary == f'time zone "{zone}" is not known'
        assert "Europe/Paris" in (said.message_hint or "")


def test_check_says_nothing_when_all_is_well(sql: Sql) -> None:
    assert sql("select procjobs.check_cron('30 2 29 2 *', 'europe/paris')") == [("",)]
    assert refusal(sql, "select procjobs.check_cron(null)").message_detail == "it is null"


def test_every_zone_of_the_server_is_known(sql: Sql) -> None:
    names = [
        name
        for (name,) in sql(
            "select name from pg_timezone_names where name !~ '^(posix|right)/|^(posixrules|localtime)$'"
        )
    ]
    assert len(names) > 400
    assert sql.one("select count(procjobs.cron_zone(z)) from unnest(%s::text[]) z", names) == len(names)


# -- slots between two instants ------------------------------------------------------------------------------------

SLOTS = "select to_char(s at time zone 'UTC', 'DD HH24:MI') from procjobs.cron_slots(%s, %s, %s, %s{}) s"


def test_slots_are_those_after_the_first_instant_until_the_second(sql: Sql) -> None:
    query = SLOTS.format("")
    between = sql(query, "@hourly", "UTC", "2026-01-01 10:00Z", "2026-01-01 13:00Z")
    assert between == [("01 11:00",), ("01 12:00",), ("01 13:00",)]
    assert sql(query, "@hourly", "UTC", "2026-01-01 10:00Z", "2026-01-01 10:59Z") == []
    assert sql(query, "@hourly", "UTC", "2026-01-01 10:00Z", "2026-01-01 09:00Z") == []
    assert sql(query, "0 0 30 2 *", "UTC", "2026-01-01 10:00Z", "2026-01-02 09:00Z") == []
    assert len(sql(query, "* * * * *", "UTC", "2026-01-01Z", "2026-01-02Z")) == 1000


@pytest.mark.parametrize("at_most", [1, 2, 7, 100, 1439])
@pytest.mark.parametrize("cron", ["* * * * *", "*/7 3,4,5 * * *", "0 12 L * *", "* * 1 * *", "30 2 * * *"])
def test_capped_slots_are_the_last_ones(sql: Sql, cron: str, at_most: int) -> None:
    span = (cron, "Europe/Paris", "2026-03-01Z", "2026-04-02 13:37Z")
    every = sql(SLOTS.format(", null"), *span)
    assert sql(SLOTS.format(f", {at_most}"), *span) == every[-at_most:]


def test_the_last_slots_of_a_long_pause_cost_little(sql: Sql) -> None:
    began = time.perf_counter()
    found = sql("select procjobs.cron_slots('* * * * * *', 'Europe/Paris', '1990-01-01Z', '2026-01-01Z', 3)")
    assert len(found) == 3
    assert time.perf_counter() - began < 1


# -- speed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cron", ["* * * * *", "@hourly", "@daily", "0 9 * * MON-FRI", "@monthly", "30 2 * * *"])
def test_usual_expressions_give_ten_thousand_slots_a_second(sql: Sql, cron: str) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        sql(
            "select max(procjobs.cron_next('" + cron + "', 'Europe/Paris', timestamptz '2026-01-01Z' + g * interval "
            "'1 hour')) from generate_series(1, 4000) g"
        )
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.4


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 0 29 2 */7", "0 0 13 * */5", "0 0 * 2 MON#5"])
def test_rare_expressions_take_less_than_five_milliseconds(sql: Sql, cron: str) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        sql(
            "select max(procjobs.cron_next(c, 'Europe/Paris', timestamptz '2096-03-01Z' + g * interval '1 day')) "
            "from unnest(%s::text[]) c, generate_series(1, 50) g",
            [cron],
        )
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) / 50 < 0.005


def test_a_constant_expression_is_read_once(sql: Sql) -> None:
    plan = "\n".join(
        line
        for (line,) in sql(
            "explain (verbose) select procjobs.cron_next('@daily', 'Europe/Paris', now()) from generate_series(1, 9)"
        )
    )
    assert "cron_first" in plan and "cron_fields" not in plan and "cron_zone" not in plan
