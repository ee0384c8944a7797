"""The page of an invitation: from the mail in a mailbox to a member, in a real browser and without a login."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import psycopg
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from procjobs import demo
from procjobs.app import default_app
from procjobs.db import Database
from procjobs.settings import Settings
from procjobs.web import invitations
from procjobs.web.app import create_app
from procjobs.web.server import address_of, listen
from tests.browser import Browser, needs_browser
from tests.conftest import Sql
from tests.mail_server import MailServer

LIAM, NEW = "liam@harbourlane.example", "nina@new.example"
TOKEN = "t" * 43
SITE = "http://127.0.0.1:8080"


@asynccontextmanager
async def serving(app: Starlette, listener: Any) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        await running


class Office:
    """A web server, a mail server and a worker over one database; Maya invites into the studio."""

    def __init__(self, dsn: str, sql: Sql, facts: demo.DemoFacts, mail: MailServer, site: str) -> None:
        self.sql, self.facts, self.site, self._mail = sql, facts, site, mail
        self._settings = Settings(dsn=dsn, smtp_host="127.0.0.1", smtp_port=mail.port, base_url=site)

    async def invite(self, email: str, role: str = "member") -> str:
        """Invite, let a worker run until nothing waits, and read the link in what arrived."""
        app = default_app(self._settings)
        async with app.open_async():
            await app.invites.create(self.facts.organization_id, email, role, invited_by=self.facts.user_id)
            assert self._mail.raw == []  # nothing is sent in the request
        await self.work()
        (message,) = self._mail.messages
        assert message["To"].addresses[0].addr_spec == email
        text = message.get_body(("plain",))
        assert text is not None
        (link,) = re.findall(rf"{re.escape(self.site)}/invite/\S+", text.get_content())
        return str(link)

    async def work(self) -> None:
        """A worker that runs until nothing waits."""
        app = default_app(self._settings)
        async with app.open_async():
            await app.run_worker_async(wait=False, install_signal_handlers=False)

    def mails(self) -> list[Any]:
        return self._mail.messages

    def role_of(self, email: str) -> list[tuple[str]]:
        return self.sql(
            "select m.role from procjobs_demo.memberships m join procjobs_demo.people p on p.id = m.person_id "
            "where p.email = %s and m.organization_id = %s and m.removed_at is null",
            email, self.facts.organization_id,
        )  # fmt: skip

    def status(self) -> str:
        return str(self.sql.one("select status from procjobs.pending_invites"))


@pytest.fixture
async def office(dsn: str, sql: Sql, db: Database) -> AsyncIterator[Office]:
    facts = await demo.seed(db)
    sql("delete from public.procrastinate_jobs")
    sql("delete from procjobs.pending_invites")
    sql("delete from procjobs.notification_jobs")
    listener = listen("127.0.0.1", 0)
    site = address_of(listener)
    async with MailServer() as mail, serving(create_app(Settings(base_url=site), dsn), listener):
        yield Office(dsn, sql, facts, mail, site)


@needs_browser
async def test_from_the_request_over_mail_and_browser_to_the_member(office: Office, tmp_path: Path) -> None:
    link = await office.invite(LIAM, "admin")
    assert office.status() == "SENT" and office.role_of(LIAM) == []
    async with Browser(tmp_path, scripts=False) as browser:
        await browser.shape(390, 844)
        await browser.open(link)
        said = await browser.text()
        for words in (
            "Join Harbour Lane",
            "Maya Lindgren has invited you.",
            "admin",
            LIAM,
            "Open until",
            "Liam O'Connor",
        ):
            assert words in said, words
        assert (
            await browser.look("getComputedStyle(document.querySelector('.act')).backgroundColor") == "rgb(47, 95, 208)"
        )
        assert await browser.look("document.documentElement.scrollWidth") == 390
        assert office.status() == "SENT" and office.role_of(LIAM) == []  # a look changes nothing

        await browser.click("button")
        said = await browser.text()
        assert "You are in" in said and "Harbour Lane" in said
        assert office.status() == "ACCEPTED" and office.role_of(LIAM) == [("admin",)]

        await browser.open(link)
        assert "You have joined already" in await browser.text()
        assert all(address.startswith(office.site) for address in browser.requests)


@needs_browser
async def test_who_has_no_account_registers_at_the_application_and_joins(office: Office, tmp_path: Path) -> None:
    async def register(request: Request) -> Response:
        """The application's own page, on another address."""
        if request.method == "GET":
            email = request.query_params["email"]
            return HTMLResponse(
                f'<form method="post"><input name="email" value="{email}"><button>Register</button></form>'
            )
        email = (await request.body()).decode().partition("=")[2].replace("%40", "@")
        office.sql("insert into procjobs_demo.people (name, email) values ('Nina', %s)", email)
        return RedirectResponse(request.query_params["continue"], status_code=303)

    listener = listen("127.0.0.1", 0)
    host = Starlette(routes=[Route("/join", register, methods=["GET", "POST"])])
    office.sql(
        "create or replace function procjobs.host_register_url(p_email text, p_continue text) returns text "
        f"language sql as $$ select '{address_of(listener)}/join?email=' || procjobs.url_encode(p_email) "
        "|| '&continue=' || procjobs.url_encode(p_continue) $$"
    )
    link = await office.invite(NEW)
    async with serving(host, listener), Browser(tmp_path) as browser:
        await browser.open(link)
        assert "Nobody has an account with this address yet." in await browser.text()
        await browser.click("a.act")
        assert await browser.look("document.querySelector('input').value") == NEW
        await browser.click("button")
        assert await browser.url() == link and "You join as Nina." in await browser.text()
        assert office.role_of(NEW) == []
        await browser.click("button")
        assert "You are in" in await browser.text()
    assert office.role_of(NEW) == [("member",)]


async def test_fifty_acceptances_at_once_make_one_member(office: Office, dsn: str, eventually: Any) -> None:
    link = await office.invite(LIAM)
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    async with httpx2.AsyncClient(headers={"accept": "application/json"}, timeout=30) as client:
        with psycopg.connect(dsn) as holder:  # so that many have looked before the first accepts
            holder.execute("select from procjobs.pending_invites for update")
            sent = [asyncio.create_task(client.post(link)) for _ in range(50)]
            await eventually(lambda: office.sql.one(waiting) > 1)
        answers = await asyncio.gather(*sent)
    assert Counter((answer.status_code, answer.json()["state"]) for answer in answers) == {
        (200, "accepted"): 1,
        (200, "already_accepted"): 49,
    }
    assert office.role_of(LIAM) == [("member",)]


async def test_a_scanner_uses_nothing_up(office: Office) -> None:
    link = await office.invite(LIAM)
    before = office.sql("select i::text from procjobs.pending_invites i")
    async with httpx2.AsyncClient() as client:
        for method in ("GET", "HEAD", "OPTIONS"):
            for agent in ("Mozilla/5.0", "LinkScanner/1.0"):
                await client.request(method, link, headers={"user-agent": agent})
        assert office.sql("select i::text from procjobs.pending_invites i") == before
        assert (await client.post(link, headers={"accept": "application/json"})).json()["state"] == "accepted"


async def test_a_row_by_hand_is_sent_by_its_job_and_a_revoked_one_is_not(office: Office) -> None:
    sql = office.sql
    sql("select procjobs.declare_invitations()")
    sql("select procjobs.unschedule(name) from procjobs.schedules where source = 'pack'")
    by_hand = sql.one(
        "insert into procjobs.pending_invites (organization_id, email, role, invited_by) "
        "values (%s, %s, 'member', %s) returning id",
        office.facts.organization_id, NEW, office.facts.user_id,
    )  # fmt: skip
    revoked = sql.one(
        "select procjobs.create_invite(%s, %s, 'member', %s)", office.facts.organization_id, LIAM, office.facts.user_id
    )
    sql("select procjobs.revoke_invite(%s)", revoked)
    sql("select procjobs.defer('SEND_INVITE_EMAIL', jsonb_build_object('invite', %s::text))", by_hand)
    await office.work()
    await office.work()  # what the first round enqueued
    assert [message["To"] for message in office.mails()] == [NEW]
    assert sql("select status from procjobs.pending_invites order by created_at") == [("SENT",), ("REVOKED",)]
    assert sql("select error from procjobs.dead_letters") == []


# Each answer


@pytest.fixture
async def seeded(db: Database, sql: Sql) -> demo.DemoFacts:
    found = await demo.seed(db)
    sql("delete from procjobs.pending_invites")
    return found


@pytest.fixture
def client(dsn: str, seeded: demo.DemoFacts) -> Iterator[TestClient]:
    """Bound to every address, as nobody in particular."""
    settings = Settings(host="0.0.0.0", base_url="https://jobs.example", brand_logo_url="https://cdn.example/logo.png")
    with TestClient(
        create_app(settings, dsn), base_url=SITE, headers={"accept": "text/html"}, raise_server_exceptions=False
    ) as opened:
        yield opened


@pytest.fixture
def invited(sql: Sql, seeded: demo.DemoFacts) -> UUID:
    """Liam, whose link ends in TOKEN."""
    invite = sql.one(
        "select procjobs.create_invite(%s, %s, 'member', %s)", seeded.organization_id, LIAM, seeded.user_id
    )
    sql(
        "insert into procjobs.letter_secrets select sha256(%s::bytea), notification_id, id, now() "
        "from procjobs.pending_invites where id = %s",
        TOKEN, invite,
    )  # fmt: skip
    return UUID(str(invite))


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes[tag] = dict(attrs)


ACCEPTED = (
    "update procjobs.pending_invites set status = 'ACCEPTED', accepted_at = now(), accepted_by = procjobs.demo_id('{}')"
)
ENDS = {
    "open": ("select 1", 200, "Join Harbour Lane"),
    "unknown": ("delete from procjobs_demo.people where email like 'liam@%'", 200, "Create your account"),
    "expired": ("update procjobs.pending_invites set expires_at = now()", 410, "Ask <strong>Maya Lindgren"),
    "revoked": (
        "select procjobs.revoke_invite(id) from procjobs.pending_invites",
        410,
        "This invitation was withdrawn",
    ),
    "replaced": ("select procjobs.resend_invite(id) from procjobs.pending_invites", 410, "There is a newer mail"),
    "gone": ("delete from procjobs_demo.organizations", 410, "This place is gone"),
    "member": (
        "insert into procjobs_demo.memberships select organization_id, procjobs.demo_id('liam') from procjobs.invites",
        200,
        "You are a member already",
    ),
    "mine": (
        ACCEPTED.format("liam"),
        200,
        "You have joined already",
    ),
    "others": (
        ACCEPTED.format("maya"),
        410,
        "This invitation was used",
    ),
    "not found": ("delete from procjobs.pending_invites", 404, "This link does not work"),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_state_has_a_page_of_its_own(client: TestClient, sql: Sql, invited: UUID, end: str) -> None:
    query, code, words = ENDS[end]
    sql(query)
    for answer in (client.get(f"/invite/{TOKEN}"), *([] if end == "open" else [client.post(f"/invite/{TOKEN}")])):
        assert answer.status_code == code and words in answer.text
        page = Page(answer.text)
        assert (page.tags["h1"], page.tags["main"], page.tags["title"], page.tags["script"]) == (1, 1, 1, 0)
        assert page.attributes["html"]["lang"] == "en" and page.tags["form"] == (end == "open")
        assert "style=" not in answer.text  # the policy allows none
    state = client.get(f"/invite/{TOKEN}", headers={"accept": "application/json"})
    assert state.status_code == code and state.json()["state"]


def test_in_the_demonstration_who_has_no_account_makes_one_and_joins(dsn: str, sql: Sql, invited: UUID) -> None:
    sql("delete from procjobs_demo.people where email = %s", LIAM)
    with TestClient(create_app(Settings(base_url=SITE), dsn), base_url=SITE) as here:
        here.headers["accept"] = "text/html"
        leads = Page(here.get(f"/invite/{TOKEN}").text).attributes["a"]["href"]
        assert leads and leads.startswith(f"{SITE}/register?")
        form = Page(here.get(leads).text)
        assert (form.tags["h1"], form.tags["label"], form.tags["script"]) == (1, 1, 0)
        assert sql("select 1 from procjobs_demo.people where email = %s", LIAM) == []  # looking makes nobody
        answer = here.post(form.attributes["form"]["action"] or "", data={"name": " Liam <b>"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/invite/{TOKEN}")
        assert "You join as Liam &lt;b&gt;." in here.get(answer.headers["location"]).text
        assert "You are in" in here.post(f"/invite/{TOKEN}").text
    assert sql.one("select role from procjobs.host_memberships m join procjobs.host_people p on p.id = m.person_id "
        "where p.email = %s", LIAM) == "member"  # fmt: skip


@pytest.mark.parametrize(
    ("email", "onwards", "headers", "code"),
    [
        ("new@new.example", "https://evil.example/", {}, 404),
        ("new@new.example", f"{SITE}//evil.example/invite/{TOKEN}", {}, 404),
        ("new@new.example", "/mail", {}, 404),
        ("", f"/invite/{TOKEN}", {}, 400),
        ("nobody", f"/invite/{TOKEN}", {}, 400),
        ("new@new.example", f"/invite/{TOKEN}", {"sec-fetch-site": "cross-site"}, 403),
        ("new@new.example", f"/invite/{TOKEN}", {"host": "evil.example"}, 401),
        ("new@new.example", f"/invite/{TOKEN}", {}, 303),
    ],
)
def test_the_demonstration_registers_nobody_for_strangers_and_leads_nowhere_else(
    dsn: str, sql: Sql, seeded: demo.DemoFacts, email: str, onwards: str, headers: dict[str, str], code: int
) -> None:
    with TestClient(create_app(Settings(base_url=SITE), dsn), base_url=SITE) as here:
        where = {"email": email, "continue": onwards}
        answer = here.post("/register", params=where, data={"name": "N"}, headers=headers, follow_redirects=False)
    assert answer.status_code == code
    assert len(sql("select 1 from procjobs_demo.people where email = 'new@new.example'")) == (code == 303)


def test_with_tables_of_ones_own_nobody_registers_here(dsn: str, sql: Sql, seeded: demo.DemoFacts) -> None:
    sql("create or replace view procjobs.host_recipients as select null::uuid as id, null::uuid as owner_id, "
        "''::text as name, ''::text as relationship, ''::text as email, ''::text as phone, "
        "''::text as timezone, ''::text as slack, ''::text as webhook_url")  # fmt: skip
    with TestClient(create_app(Settings(base_url=SITE), dsn), base_url=SITE) as here:
        answer = here.post("/register", params={"email": NEW, "continue": f"/invite/{TOKEN}"}, data={"name": "N"})
    assert answer.status_code == 404 and sql("select 1 from procjobs_demo.people where email = %s", NEW) == []


def test_the_page_has_words_for_all_that_comes_to_it_and_for_nothing_else(sql: Sql) -> None:
    """Who opens it is nobody in particular: pages of the application, which name a person, are told `other_address`."""
    body = sql.one("select prosrc from pg_proc where proname = 'peek_invite'")
    told = set(re.findall(r"(?:then|else|state :=) '(\w+)'", body)) - {"not_found", "other_address"}
    page = (Path(invitations.__file__).parent / "templates" / "invite.html").read_text()
    assert set(re.findall(r'^  "(\w+)":', page, re.MULTILINE)) == told | {"accepted", "elsewhere", "unavailable"}
    assert set(invitations._CODES) <= told | {"not_found", "elsewhere", "unavailable"}


def test_the_page_may_do_nothing_but_send_its_form_here(client: TestClient, invited: UUID) -> None:
    headers = client.get(f"/invite/{TOKEN}").headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'", "style-src": "'self'", "img-src": "'self' https://cdn.example", "base-uri": "'none'",
        "form-action": "'self'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert headers["x-robots-tag"] == "noindex, nofollow, noarchive"
    assert "--brand: #2f5fd0" in client.get("/brand.css").text


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "null"}, 200),
        ({"origin": SITE}, 200),
        ({"origin": "https://jobs.example"}, 200),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
    ],
)
def test_another_site_cannot_send_the_form(
    client: TestClient, sql: Sql, invited: UUID, headers: dict[str, str], code: int
) -> None:
    answer = client.post(f"/invite/{TOKEN}", headers=headers)
    assert answer.status_code == code
    assert sql.one("select status from procjobs.pending_invites") == ("ACCEPTED" if code == 200 else "PENDING")


@pytest.mark.parametrize("token", ["x", "t" * 42, "t" * 44, "t" * 42 + "%00", "<script>alert(1)</script>", "é" * 43])
def test_what_cannot_be_a_link_is_not_looked_up(client: TestClient, token: str) -> None:
    answer = client.get(f"/invite/{token}")
    assert answer.status_code == 404 and "<script>" not in answer.text


def test_nothing_that_somebody_is_called_runs(client: TestClient, sql: Sql, invited: UUID) -> None:
    canary = "<script>alert(1)</script>{{71*1931}}"
    sql("update procjobs_demo.organizations set name = %s", canary)
    sql("update procjobs_demo.people set name = %s", canary)
    sql("update procjobs.pending_invites set role = %s", canary)
    page = client.get(f"/invite/{TOKEN}").text
    assert "<script" not in page and "137101" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("answer", "link"),
    [
        ("https://app.example/new?e=1", "https://app.example/new?e=1"),
        ("/new?e=1", "https://jobs.example/new?e=1"),
        ("javascript:alert(1)", None),
        ("//evil.example/", None),
        ("", None),
    ],
)
def test_to_register_leads_to_a_web_address_or_nowhere(
    client: TestClient, sql: Sql, invited: UUID, answer: str, link: str | None
) -> None:
    sql("delete from procjobs_demo.people where email like 'liam@%%'")
    sql(
        "create or replace function procjobs.host_register_url(p_email text, p_continue text) returns text "
        f"language sql as $$ select '{answer}' $$"
    )
    page = client.get(f"/invite/{TOKEN}")
    assert page.status_code == 200 and "Nobody has an account" in page.text
    found = Page(page.text).attributes.get("a", {}).get("href")
    assert found == link


def test_without_a_database_it_says_so(seeded: demo.DemoFacts) -> None:
    with TestClient(create_app(Settings(), "postgresql://127.0.0.1:1/none"), base_url=SITE) as client:
        answer = client.get(f"/invite/{TOKEN}")
    assert (
        answer.status_code == 503 and "try again in a minute" in answer.text and answer.headers["retry-after"] == "30"
    )
