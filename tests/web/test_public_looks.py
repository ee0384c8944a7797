"""Public pages in a browser without JavaScript: every state can be read and used, light and dark, narrow and wide."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.settings import Settings
from procjobs.web.app import create_app
from procjobs.web.server import address_of, listen
from tests.browser import FAINT, TOO_WIDE, Browser, needs_browser
from tests.conftest import Sql
from tests.web.test_invitations import ACCEPTED, TOKEN, serving

LIAM = "liam.bartholomew.featherstonehaugh.the.younger@photography.harbourlane.example"
SHAPES = [(width, dark) for width in (320, 1280) for dark in (False, True)]
#: What pages have to have whatever they say.
FRAME = """
({lang: document.documentElement.lang, h1: document.querySelectorAll("h1").length,
  scripts: document.querySelectorAll("script").length, title: document.title !== ""})
"""
#: What can be pressed and is smaller than a finger (44 px: WCAG 2.1, 2.5.5).
SMALL = """
[...document.querySelectorAll("a, button, input, select, summary")].filter(e => {
  const box = e.getBoundingClientRect(); return box.width > 0 && (box.width < 44 || box.height < 44);
}).map(e => e.outerHTML.slice(0, 60))
"""
CAN_BE_FOCUSED = "document.querySelectorAll('a[href], button, input, select, summary').length"
#: The number of what is focused among all that can be; null where one does not see it: an outline of 2 px or more, 3
#: to 1 with what is around it (WCAG 2.2, 2.4.13).
FOCUSED = """
(() => {
  const element = document.activeElement;
  if (element === document.body) return null;
  const style = getComputedStyle(element);
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let around = element.parentElement;
  const empty = element => /, 0\\)$/.test(getComputedStyle(element).backgroundColor) && element.parentElement;
  while (empty(around)) around = around.parentElement;
  const [a, b] = [light(style.outlineColor), light(getComputedStyle(around).backgroundColor)].sort((x, y) => y - x);
  const seen = element.matches(":focus-visible") && style.outlineStyle !== "none"
    && parseFloat(style.outlineWidth) >= 2 && (a + 0.05) / (b + 0.05) >= 3;
  return seen ? [...document.querySelectorAll("a[href], button, input, select, summary")].indexOf(element) : null;
})()
"""


class Pages:
    """A site over a database, one whose database is away, and a browser that looks at what it is led to."""

    def __init__(self, sql: Sql, facts: demo.DemoFacts, browser: Browser, site: str, away: str) -> None:
        self.sql, self.facts, self.browser, self.site, self.away = sql, facts, browser, site, away
        self.invite = f"{site}/invite/{TOKEN}"
        #: Where something is wrong: (state, width, dark) -> what.
        self.wrong: dict[tuple[str, int, bool], Any] = {}
        self.seen: list[str] = []

    async def look(self, state: str, words: str) -> None:
        """Look at the page that is open, which says the words, in every shape."""
        said = await self.browser.text()
        assert words in said, (state, said)
        self.seen.append(state)
        for width, dark in SHAPES:
            await self.browser.shape(width, 800, dark=dark)
            found = {
                "faint": await self.browser.look(FAINT),
                "too wide": await self.browser.look(TOO_WIDE),
                "small": await self.browser.look(SMALL),
                "unseen focus": await self._unseen(),
                "frame": await self.browser.look(FRAME),
            }
            good = {"faint": [], "too wide": 0, "small": [], "unseen focus": [],
                    "frame": {"lang": "en", "h1": 1, "scripts": 0, "title": True}}  # fmt: skip
            if found != good:
                self.wrong[state, width, dark] = {key: value for key, value in found.items() if value != good[key]}

    async def _unseen(self) -> list[int]:
        """What the key Tab leads to without that one sees it, or does not lead to at all, by number."""
        every: set[int] = set(range(await self.browser.look(CAN_BE_FOCUSED)))
        seen = set()
        for _ in range(len(every) + 1 if every else 0):  # once it leads out of the page
            await self.browser.press("Tab")
            seen.add(await self.browser.look(FOCUSED))
        return sorted(every - seen)

    async def open(self, state: str, url: str, words: str) -> None:
        await self.browser.open(url)
        await self.look(state, words)

    async def click(self, state: str, words: str, selector: str = "button") -> None:
        await self.browser.shape(1280, 800)
        await self.browser.click(selector)
        await self.look(state, words)

    def invited(self) -> None:
        """Liam is no member, and has one invitation, whose link ends in TOKEN."""
        self.sql("delete from procjobs.pending_invites")
        self.sql("delete from procjobs.letter_secrets")
        self.sql("delete from procjobs_demo.memberships where person_id = procjobs.demo_id('liam')")
        invite = self.sql.one(
            "select procjobs.create_invite(%s, %s, 'member', %s)", self.facts.organization_id, LIAM, self.facts.user_id
        )
        self.sql(
            "insert into procjobs.letter_secrets select sha256(%s::bytea), notification_id, id, now() "
            "from procjobs.pending_invites where id = %s",
            TOKEN, invite,
        )  # fmt: skip


@pytest.fixture
async def pages(dsn: str, sql: Sql, db: Database, tmp_path: Path) -> AsyncIterator[Pages]:
    facts = await demo.seed(db)
    sql("update procjobs_demo.organizations set name = 'Harbour Lane Photography and Westküstenfilmgenossenschaft'")
    sql("update procjobs_demo.people set email = %s where id = procjobs.demo_id('liam')", LIAM)
    here, away = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    site = address_of(here)
    settings = Settings(base_url=site, brand_color="#f2c230", home_url=f"{site}/health")  # a light colour of the brand
    nowhere = Settings(base_url=address_of(away))
    async with (
        serving(create_app(settings, dsn), here),
        serving(create_app(nowhere, "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1"), away),
        Browser(tmp_path / "browser", scripts=False) as browser,
    ):
        yield Pages(sql, facts, browser, site, address_of(away))


async def invitations(pages: Pages, tmp_path: Path) -> None:
    sql = pages.sql
    pages.invited()
    await pages.open("open", pages.invite, "has invited you")
    elsewhere = tmp_path / "elsewhere.html"
    elsewhere.write_text(f'<form method="post" action="{pages.invite}"><button>Accept</button></form>')
    await pages.browser.open(elsewhere.as_uri())
    await pages.click("elsewhere", "The request came from another site")
    await pages.browser.open(pages.invite)
    await pages.click("accepted", "You are in")
    await pages.open("already accepted", pages.invite, "You have joined already")
    for state, query, words in (
        ("accepted by another", ACCEPTED.format("maya"), "This invitation was used"),
        ("expired", "update procjobs.pending_invites set expires_at = now()", "This invitation has expired"),
        ("revoked", "select procjobs.revoke_invite(id) from procjobs.pending_invites", "was withdrawn"),
        ("replaced", "select procjobs.resend_invite(id) from procjobs.pending_invites", "There is a newer mail"),
        ("already a member", ("insert into procjobs_demo.memberships "
         "select organization_id, procjobs.demo_id('liam') from procjobs.invites"), "You are a member already"),
        ("to register", "delete from procjobs_demo.people where id = procjobs.demo_id('liam')", "Create your account"),
        ("no page to register", ("create or replace function procjobs.host_register_url(p_email text, p_continue text) "
         "returns text language sql as 'select null::text'"), "Register with it"),
        ("gone", "delete from procjobs_demo.organizations", "This place is gone"),
    ):  # fmt: skip
        if state != "no page to register":
            pages.invited()
        sql(query)
        await pages.open(state, pages.invite, words)
    await pages.open("wrong link", f"{pages.site}/invite/{'u' * 43}", "This link does not work")
    await pages.open("no link", f"{pages.site}/invite/a/b", "does not work")
    await pages.open("database away", f"{pages.away}/invite/{TOKEN}", "One moment, please")
    sql("alter function procjobs.peek_invite(bytea, uuid) rename to peek_invite_gone")
    await pages.open("error", pages.invite, "Something went wrong")
    sql("alter function procjobs.peek_invite_gone(bytea, uuid) rename to peek_invite")


async def unsubscribing(pages: Pages, tmp_path: Path) -> None:
    sign = "select procjobs.sign_subscription('{}')"
    group = pages.sql.one(
        "select procjobs.sign_subscription("
        "format('group %s %s', procjobs.demo_id('family'), procjobs.demo_id('ingrid')))"
    )
    await pages.open("unsubscribe from a group?", f"{pages.site}/unsubscribe/{group}", "Nothing has changed yet")
    await pages.click("unsubscribed", "You are unsubscribed")
    await pages.open("unsubscribed before", f"{pages.site}/unsubscribe/{group}", "You are unsubscribed")
    await pages.click("subscribed again", "You are subscribed again")
    await pages.browser.open(f"{pages.site}/unsubscribe/{group}")
    await pages.click("unsubscribed anew", "You are unsubscribed")
    pages.sql("delete from procjobs_demo.group_recipients")
    await pages.browser.shape(1280, 800)
    await pages.click("not in the group any more", "You are not part of it any more")
    tips = pages.sql.one(sign.format("kind daily_report nina@new.example"))
    await pages.open("unsubscribe from a kind?", f"{pages.site}/unsubscribe/{tips}", "Unsubscribe from daily reports?")
    await pages.click("unsubscribed from a kind", "You are unsubscribed")
    await pages.open("wrong link", f"{pages.site}/unsubscribe/{'x' * 80}", "This link does not work")
    await pages.open("no link", f"{pages.site}/unsubscribe/a/b/c", "does not work")
    await pages.open("database away", f"{pages.away}/unsubscribe/{group}", "Please try again in a minute")
    pages.sql("alter function procjobs.find_subscription(text) rename to find_subscription_gone")
    await pages.open("error", f"{pages.site}/unsubscribe/{group}", "Something went wrong")


@needs_browser
async def test_every_state_can_be_read_and_used(pages: Pages, tmp_path: Path) -> None:
    ways: tuple[Callable[[Pages, Path], Awaitable[None]], ...] = (unsubscribing, invitations)
    for way in ways:
        await way(pages, tmp_path)
    assert pages.wrong == {}
    assert len(pages.seen) == 28
    ours = (pages.site, pages.away, tmp_path.as_uri())
    assert [url for url in pages.browser.requests if not url.startswith(ours)] == []
