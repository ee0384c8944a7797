"""Digests of what is unread on the club's boards, and quiet where a member wants it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from procjobs.app import App
from tests.mail_server import MailServer
from tests.packs.foreign.conftest import words, work


@pytest.fixture
def digest(club: None, sql: Any) -> Callable[..., UUID]:
    """A daily digest of board 1 for a member, of Awa unless said otherwise, that is due now."""

    def create(member: str = "Diallo", board: int | None = 1, **options: Any) -> UUID:
        named = "".join(f", {name} => %s" for name in options)
        found: UUID = sql.one(
            "select procjobs.create_digest_schedule((select public_id from club.member where surname = %s), 'daily', "
            f"md5('board:' || %s)::uuid{named})",
            member, board, *options.values(),
        )  # fmt: skip
        sql("update procjobs.digest_schedules set next_digest_scheduled = now() where id = %s", found)
        return found

    return create


def pin(sql: Any, headline: str, kind: str = "word", board: int = 1, by: str = "Amsler", minutes: int = 5) -> int:
    """A note on a board, so many minutes ago by the club's clock."""
    found: int = sql.one(
        "insert into club.note (board_no, by_member, kind, headline, pinned_at) "
        "select %s, member_no, %s, %s, (now() - %s * interval '1 minute') at time zone 'Europe/Zurich' "
        "from club.member where surname = %s returning note_no",
        board, kind, headline, minutes, by,
    )  # fmt: skip
    return found


def outcomes(sql: Any, digest: UUID) -> list[tuple[Any, ...]]:
    return list(sql("select outcome, reason from procjobs.digest_runs where schedule_id = %s order by id", digest))


async def test_a_digest_tells_a_member_what_is_unread_by_board_and_author(
    digest: Callable[..., UUID], sql: Any, app: App, server: MailServer
) -> None:
    sql("insert into club.board values (2, 1, 'Race results'), (3, 1, 'Kitchen'), (4, null, 'Not hers')")
    sql("insert into club.board_reader values (2, 2, null), (3, 2, now() + interval '3 days')")
    for headline, kind, board, by, minutes in [
        ("Third at Lucerne", "result", 2, "Keller", 30), ("Second at Bled", "result", 2, "Keller", 20),
        ("Boats for sale", "word", 1, "Amsler", 10), ("The oldest", "word", 1, "Amsler", 900),
        ("Who took the cups?", "word", 3, "Amsler", 5), ("For others", "word", 4, "Amsler", 5),
        ("Seen by her", "word", 1, "Amsler", 5), ("Last month", "word", 1, "Amsler", 31 * 24 * 60),
        ("Seen meanwhile", "word", 1, "Amsler", 4),
    ]:  # fmt: skip
        pin(sql, headline, kind, board, by, minutes)
    see = "insert into club.note_seen select note_no, 2, localtimestamp from club.note where headline = %s"
    sql(see, "Seen by her")
    made = digest(board=None, max_updates_per_digest=5)
    assert sql.one("select procjobs.create_digest_jobs()") == 1
    sql(see, "Seen meanwhile")
    await work(app, sql)

    (mail,) = server.messages
    assert (mail["To"], mail["Subject"]) == (
        "Awa Diallo <awa@club.example>",
        "4 new updates from 2 groups: your daily digest",
    )
    said = words(mail)
    order = ["Boathouse", "Vreni Amsler, photos:", "* Mist on the lake", "Vreni Amsler, updates:", "* Boats for sale"]
    order += ["Race results", "Beat Keller, milestones:", "* Second at Bled", "* Third at Lucerne"]
    order += ["and 1 more that you have not read."]
    assert [line for line in said.splitlines() if line in order] == order
    assert "Six in the morning." in said and "https://club.example/note/1" in said
    hidden = ["The oldest", "Who took the cups?", "For others", "Seen by her", "Last month", "Oops", "Seen meanwhile"]
    assert [title for title in hidden if title in said] == []
    assert outcomes(sql, made) == [("created", None)]
    assert sql("select updates, left_out from procjobs.digest_runs") == [(6, 1)]


def test_a_digest_that_finds_nothing_there_says_why(digest: Callable[..., UUID], sql: Any) -> None:
    def again(change: str = "", *values: Any) -> str:
        if change:
            sql(change, *values)
        sql("update procjobs.digest_schedules set next_digest_scheduled = now(), told_until = now() - interval '1 day'")
        assert sql.one("select procjobs.create_digest_jobs()") == 0
        answer = sql.one(
            "select answer from procjobs.why_no_digest((select public_id from club.member where member_no = 2))"
        )
        return re.sub(r"(since|until) .*?(?=, none| had been|$)", r"\1 ...", str(answer))

    made = digest(include_content_types=["milestones"])
    assert again() == "1 shared since ..., none of them milestones"
    sql("select procjobs.update_digest_schedule(%s, '{\"include_content_types\": null}')", made)
    assert (
        again("insert into club.note_seen values (1, 2, localtimestamp)") == "all of 1 shared since ... had been read"
    )
    assert again("update club.note set withdrawn = true") == "nothing was shared since ..."
    assert again("update club.board_reader set quiet_until = localtimestamp + interval '2 days'") == "muted until ..."
    assert again("update club.board_reader set quiet_until = 'infinity'") == "muted"
    assert again("update club.member set mail = null where member_no = 2") == "the recipient has no e-mail address"
    assert again("delete from club.board_reader") == "the recipient does not receive what the group shares any more"
    sql("update club.member set left_on = current_date where member_no = 2")
    again()
    assert outcomes(sql, made)[-1] == ("gone", "the recipient is not there any more")


async def test_one_click_in_a_digest_quiets_the_board_there(
    digest: Callable[..., UUID], sql: Any, app: App, server: MailServer
) -> None:
    made = digest()
    sql("select procjobs.create_digest_jobs()")
    await work(app, sql)
    (mail,) = server.messages
    (token,) = re.findall(r"/unsubscribe/([\w-]+)", str(mail["List-Unsubscribe"]))
    assert sql("select what, subscribed, recipient_name, organization_name from procjobs.unsubscribe(%s)", token) == [
        ("Boathouse", False, "Awa Diallo", "Lake eight")
    ]
    assert sql("select member_no, quiet_until = 'infinity' from club.board_reader order by 1") == [
        (1, None), (2, True), (3, None),
    ]  # fmt: skip
    pin(sql, "Not for her any more")
    sql("update procjobs.digest_schedules set next_digest_scheduled = now()")
    sql("select procjobs.create_digest_jobs()")
    assert outcomes(sql, made) == [("created", None), ("muted", "muted")]
    sql("select procjobs.resubscribe(%s)", token)
    assert sql.one("select quiet_until from club.board_reader where member_no = 2") is None
