"""The binding: what it gives is what the packs need, and finds by an index what they look up."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procjobs.app import App
from tests.mail_server import MailServer
from tests.packs.foreign.conftest import FOREIGN, work


def test_what_the_packs_need_is_bound_and_fits(club: None, sql: Any) -> None:
    rows = sql("select object, bound, problem from procjobs.list_host_bindings()")
    assert [row for row in rows if row[2]] == []
    needed = {"host_people", "host_recipients", "host_organizations", "host_memberships", "host_groups"}
    needed |= {"host_group_recipients", "host_updates", "host_update_reads", "host_events", "host_event_attendees"}
    needed |= {"host_projects", "host_find_person", "host_invitable_roles", "host_add_member", "host_register_url"}
    assert needed <= {name for name, bound, _ in rows if bound}


def test_what_the_documentation_shows_is_in_it() -> None:
    def plain(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r" *--.*", "", text))

    page = (Path(__file__).parents[3] / "docs/host-bindings.md").read_text(encoding="utf-8")
    (shown,) = (block for block in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if "club." in block)
    statements = re.split(r";\n\n", shown.strip().removesuffix(";"))
    assert len(statements) == 6
    assert [found for found in statements if plain(found) not in plain((FOREIGN / "host.sql").read_text())] == []


def test_invitations_join_a_crew_with_its_own_roles(club: None, sql: Any, dsn: str) -> None:
    sql("set role procjobs_owner")
    awa = sql.one("select procjobs.host_find_person(' AWA@club.example ')")
    vreni, crew = sql("select procjobs.host_find_person('vreni@club.example'), md5('crew:1')::uuid")[0]
    assert sql.one("select procjobs.host_find_person('urs@club.example')") is None  # left
    roles = "select procjobs.host_invitable_roles(%s, %s)"
    assert sql.one(roles, vreni, crew) == ["steers", "trains", "rows"]
    assert sql.one(roles, awa, crew) == []
    assert sql.one("select procjobs.host_invitable_roles(%s, md5('crew:2')::uuid)", vreni) == []  # disbanded

    def add(_: int) -> bool:
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute("select procjobs.host_add_member(%s, %s, 'rows')", (crew, awa)).fetchone()
        return bool(row and row[0])

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(add, range(4))) == [False, False, False, True]
    sql("reset role")
    sql("update club.seat set left_on = current_date where member_no = 2")
    membership = "select role from procjobs.host_memberships where person_id = %s"
    assert [sql(membership, awa), add(0), sql(membership, awa)] == [[], True, [("rows",)]]
    assert sql.one("select procjobs.host_register_url('a+b@c.example', '/invite/x')").endswith(
        "mail=a%2Bb%40c.example&then=%2Finvite%2Fx"
    )


@pytest.mark.parametrize(
    ("view", "key"),
    [("people", None), ("recipients", None), ("organizations", "crew"), ("groups", "board"), ("updates", "note"),
     ("events", "regatta"), ("projects", "order")],
)  # fmt: skip
def test_what_is_looked_up_by_id_is_found_by_an_index(club: None, explain: Any, sql: Any, view: str, key: str) -> None:
    wanted = f"md5('{key}:1')::uuid" if key else "'00000000-0000-0000-0000-000000000001'"
    sql("insert into club.member (surname, given_name) select 'Many', n::text from generate_series(1, 2000) n")
    sql("analyze club.member")
    sql("set enable_seqscan = off")  # the other tables are small
    plan = str(explain(f"select * from procjobs.host_{view} where id = {wanted}"))
    assert (f"{'boat_order' if key == 'order' else key}_uuid" if key else "member_public_id_key") in plan


MEMBER = "(select public_id from club.member where member_no = {})"
PACKS = {
    "notifications": f"enqueue_notification_job({MEMBER.format(2)}, update => md5('note:1')::uuid)",
    "digests": f"create_digest_schedule({MEMBER.format(2)}, 'daily', md5('board:1')::uuid)",
    "event reminders": "defer('procjobs.create_event_reminders')",
    "payment reminders": "defer('procjobs.create_payment_reminders')",
    "invitations": f"create_invite(md5('crew:1')::uuid, 'nina@new.example', 'rows', {MEMBER.format(1)})",
}


@pytest.mark.parametrize("pack", PACKS)
async def test_a_pack_works_with_those_bindings_alone_of_which_it_is_said_that_it_needs_them(
    club: None, sql: Any, app: App, server: MailServer, pack: str
) -> None:
    needs = {"everything", "every mail", pack} | ({"reminders"} if pack.endswith("reminders") else set())
    for kind, name, needed in sql("select kind, object, needed_for from procjobs.list_host_bindings() where bound"):
        if needs.isdisjoint(needed.split(", ")):
            sql(f"drop {kind} procjobs.{name}")
    sql("select procjobs." + PACKS[pack])
    if pack == "digests":
        sql("update procjobs.digest_schedules set next_digest_scheduled = now()")
        sql("select procjobs.defer('procjobs.create_digest_jobs')")
    await work(app, sql)
    assert len(server.messages) == 1
