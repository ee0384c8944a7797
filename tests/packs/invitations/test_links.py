"""What the link in an invitation is good for: one acceptance, by whoever has the address."""

from __future__ import annotations

from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.packs.invitations import accept, look, register_url
from tests.conftest import Sql
from tests.packs.invitations.conftest import NEW, SITE, Mail, demo_id, member, register, status


async def test_a_look_changes_nothing(sql: Sql, db: Database, invite: Any, post: Mail) -> None:
    secret = await post(invite())

    def rows() -> Any:
        return sql(
            "select i::text from procjobs.pending_invites i union all select s::text from procjobs.letter_secrets s"
        )

    before = rows()
    found = await look(db, secret)
    assert (found.state, found.organization, found.inviter, found.role, found.email) == (
        "unknown_person", "Harbour Lane", "Maya Lindgren", "member", NEW
    )  # fmt: skip
    assert rows() == before


async def test_a_person_with_the_address_joins_on_acceptance_only(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail
) -> None:
    secret = await post(invite("Liam@HarbourLane.example", role="admin"))  # who belongs to another organization
    assert member(sql, "liam@harbourlane.example", facts.organization_id) == []
    found = await accept(db, secret)
    assert (found.state, found.role, found.person_id) == ("accepted", "admin", demo_id(sql, "liam"))
    assert member(sql, "liam@harbourlane.example", facts.organization_id) == [("admin",)]
    assert member(sql, "liam@harbourlane.example", demo_id(sql, "press")) == [("owner",)]
    assert (await accept(db, secret)).state == "already_accepted"
    assert sql("select status, accepted_by, accepted_at is not null from procjobs.pending_invites") == [
        ("ACCEPTED", demo_id(sql, "liam"), True)
    ]


async def test_who_is_unknown_registers_first_and_joins_then(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail
) -> None:
    secret = await post(invite())
    assert (await accept(db, secret)).state == "unknown_person"
    assert await register_url(db, secret, f"{SITE}/invite/") == (
        f"/register?email=nina%40new.example&continue=https%3A%2F%2Fjobs.example%2Finvite%2F{secret}"
    )
    register(sql)
    assert await register_url(db, secret, SITE) is None
    assert (await accept(db, secret)).state == "accepted"
    assert member(sql, NEW, facts.organization_id) == [("member",)]


async def test_an_application_that_hides_where_to_go_on_is_told_it(
    sql: Sql, db: Database, invite: Any, post: Mail
) -> None:
    sql(
        "create or replace function procjobs.host_register_url(p_email text, p_continue text) returns text "
        "language sql as $$ select '/join/' || encode(p_continue::bytea, 'hex') $$"
    )
    secret = await post(invite())
    assert await register_url(db, secret, "/invite/") == f"/join/{f'/invite/{secret}'.encode().hex()}"


async def end(sql: Sql, invite: UUID, how: str) -> None:
    match how:
        case "expired":
            sql("update procjobs.pending_invites set expires_at = now()")
        case "revoked":
            sql("select procjobs.revoke_invite(%s)", invite)
        case "replaced":
            sql("select procjobs.resend_invite(%s)", invite)
        case "gone":
            sql("delete from procjobs_demo.organizations where id = procjobs.demo_id('studio')")
        case "accepted_by_other":
            sql("update procjobs_demo.people set email = 'new@owner.example' where email = %s", NEW)
            register(sql)
        case "not_found":
            sql("delete from procjobs.pending_invites")


@pytest.mark.parametrize("how", ["expired", "revoked", "replaced", "gone", "not_found"])
async def test_a_link_whose_time_is_over_says_so_and_does_nothing(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail, how: str
) -> None:
    found = invite()
    secret = await post(found)
    register(sql)
    assert (await look(db, secret)).state == "open"
    await end(sql, found, how)
    assert (await look(db, secret)).state == how
    assert (await accept(db, secret)).state == how
    assert member(sql, NEW, facts.organization_id) == []


async def test_a_link_that_somebody_else_used_says_so(sql: Sql, db: Database, invite: Any, post: Mail) -> None:
    found = invite()
    secret = await post(found)
    register(sql)
    assert (await accept(db, secret)).state == "accepted"
    await end(sql, found, "accepted_by_other")
    assert (await accept(db, secret)).state == "accepted_by_other"


async def test_who_became_a_member_meanwhile_keeps_the_role(
    sql: Sql, db: Database, facts: demo.DemoFacts, invite: Any, post: Mail
) -> None:
    found = invite(role="admin")
    secret = await post(found)
    sql("select procjobs.host_add_member(%s, %s, 'member')", facts.organization_id, register(sql))
    assert (await look(db, secret)).state == "already_member"
    assert (await accept(db, secret)).state == "already_member"
    assert member(sql, NEW, facts.organization_id) == [("member",)] and status(sql, found)[0] == "ACCEPTED"


async def test_it_is_for_the_invited_address_only(sql: Sql, db: Database, facts: Any, invite: Any, post: Mail) -> None:
    hashed = sha256((await post(invite())).encode()).digest()
    query = "select state from procjobs.accept_invite(%s, %s)"
    assert sql.one(query, hashed, demo_id(sql, "liam")) == "other_address"
    assert sql.one(query, hashed, uuid4()) == "unknown_person"
    assert sql.one(query, hashed, register(sql, NEW.title())) == "accepted"


async def test_a_member_that_cannot_be_added_uses_nothing_up(sql: Sql, db: Database, invite: Any, post: Mail) -> None:
    found = invite()
    secret = await post(found)
    register(sql)
    sql(
        "create or replace function procjobs.host_add_member(p_organization uuid, p_person uuid, p_role text) "
        "returns boolean language plpgsql as $$ begin raise exception 'no seats left'; end $$"
    )
    with pytest.raises(Exception, match="no seats left"):
        await accept(db, secret)
    assert status(sql, found)[0] == "SENT"
