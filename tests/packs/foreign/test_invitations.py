"""Invitations into a crew: the club says who may, where newcomers register, and what a seat is."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient

from procjobs.app import App
from procjobs.db import Database
from procjobs.errors import AlreadyMember, InviteNotAllowed
from procjobs.packs.invitations import accept, look
from procjobs.settings import Settings
from procjobs.web.app import create_app
from tests.mail_server import MailServer
from tests.packs.foreign.conftest import SITE, words, work


@pytest.fixture
def invite(club: None, sql: Any, app: App, server: MailServer) -> Callable[..., Awaitable[str]]:
    """Vreni invites an address into crew 1; the token of the link in the mail that comes of it."""

    async def call(email: str, duty: str = "rows") -> str:
        async with app.open_async():
            await app.invites.create(crew(sql), email, duty, invited_by=member(sql, "Amsler"))
        await work(app, sql)
        said = words(server.messages[-1])
        assert "Vreni Amsler" in said and "Lake eight" in said
        (found,) = re.findall(rf"{SITE}/invite/([\w-]+)", said)
        return str(found)

    return call


def member(sql: Any, surname: str) -> UUID:
    found: UUID = sql.one("select public_id from club.member where surname = %s", surname)
    return found


def crew(sql: Any, number: int = 1) -> UUID:
    found: UUID = sql.one("select md5('crew:' || %s::text)::uuid", number)
    return found


def seats(sql: Any) -> list[tuple[Any, ...]]:
    """Of crew 1: who sits there, and as what."""
    query = "select m.surname, s.duty::text from club.seat s join club.member m using (member_no)"
    return list(sql(f"{query} where s.crew_no = 1 and s.left_on is null order by 1"))


async def test_who_may_invite_as_what_is_the_clubs_own_rule(club: None, sql: Any, app: App) -> None:
    new = "nina@new.example"
    async with app.open_async():
        for by, number, duty in [
            ("Diallo", 1, "rows"), ("Keller", 1, "steers"), ("Amsler", 2, "rows"), ("Amsler", 1, "admin"),
        ]:  # fmt: skip
            with pytest.raises(InviteNotAllowed):
                await app.invites.create(crew(sql, number), new, duty, invited_by=member(sql, by))
        with pytest.raises(AlreadyMember):
            await app.invites.create(crew(sql), "Vreni@Club.Example", "rows", invited_by=member(sql, "Amsler"))
        made = await app.invites.create(crew(sql), new, "rows", invited_by=member(sql, "Keller"))
        with pytest.raises(InviteNotAllowed):
            await app.invites.revoke(made, by=member(sql, "Diallo"))
        assert await app.invites.revoke(made, by=member(sql, "Amsler"))


async def test_an_invited_member_takes_a_seat_with_the_duty_of_the_invitation(
    invite: Callable[..., Awaitable[str]], sql: Any, db: Database, server: MailServer
) -> None:
    token = await invite("AWA@club.example", "steers")
    assert str(server.messages[-1]["To"]) == "Awa Diallo <AWA@club.example>"
    found = await look(db, token)
    assert (found.state, found.organization, found.inviter, found.person_name, found.role) == (
        "open", "Lake eight", "Vreni Amsler", "Awa Diallo", "steers",
    )  # fmt: skip
    assert seats(sql) == [("Amsler", "trains"), ("Keller", "steers")]
    assert [(await accept(db, token)).state for _ in "12"] == ["accepted", "already_accepted"]
    assert seats(sql) == [("Amsler", "trains"), ("Diallo", "steers"), ("Keller", "steers")]

    sql("update club.seat set left_on = current_date where member_no = 2")
    assert (await accept(db, await invite("awa@club.example"))).state == "accepted"  # sits down again
    assert ("Diallo", "rows") in seats(sql)
    sql("delete from club.seat where member_no = 2")
    token = await invite("awa@club.example")
    sql("update club.crew set disbanded_on = current_date")
    assert [(await accept(db, token)).state, len(seats(sql))] == ["gone", 2]


async def test_a_newcomer_registers_at_the_club_and_joins(
    invite: Callable[..., Awaitable[str]], dsn: str, sql: Any
) -> None:
    token = await invite("nina+row@new.example")
    wants_json = {"accept": "application/json", "host": SITE.removeprefix("https://")}
    with TestClient(create_app(Settings(base_url=SITE), dsn), base_url=SITE) as page:
        (looked, clicked) = (call(f"/invite/{token}", headers=wants_json).json() for call in (page.get, page.post))
        assert looked == clicked and looked["state"] == "unknown_person" and len(seats(sql)) == 2
        then = f"https%3A%2F%2Fjobs.club.example%2Finvite%2F{token}"
        assert looked["register_url"] == f"https://club.example/join?mail=nina%2Brow%40new.example&then={then}"

        sql("insert into club.member (surname, given_name, mail) values ('Roth', 'Nina', 'Nina+Row@new.example')")
        answers = [call(f"/invite/{token}", headers=wants_json).json() for call in (page.get, page.post, page.get)]
    assert [answer["state"] for answer in answers] == ["open", "accepted", "already_accepted"]
    assert {answer["register_url"] for answer in answers} == {None}
    assert ("Roth", "rows") in seats(sql)


async def test_where_the_club_cannot_add_a_member_nothing_was_accepted(
    invite: Callable[..., Awaitable[str]], sql: Any, db: Database
) -> None:
    token = await invite("awa@club.example")
    sql("alter table club.seat add constraint too_many check (member_no <> 2)")
    with pytest.raises(Exception, match="too_many"):
        await accept(db, token)
    assert sql.one("select status from procjobs.pending_invites") == "SENT"
    sql("alter table club.seat drop constraint too_many")
    assert (await accept(db, token)).state == "accepted"
