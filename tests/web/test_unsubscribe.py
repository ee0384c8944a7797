"""Pages that unsubscribe links lead to: for people without an account, without JavaScript, and for mail programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from procjobs.settings import Settings
from procjobs.web.app import create_app
from tests.web.test_pages import CANARY, Elements


@pytest.fixture
def client(dsn: str) -> Iterator[TestClient]:
    """From anywhere, without a token."""
    settings = Settings(
        host="0.0.0.0", admin_token="t" * 43, brand_color="#0a7d55", base_url="https://jobs.example.com"
    )
    with TestClient(create_app(settings, dsn), base_url="https://jobs.example.com") as opened:
        yield opened


@pytest.fixture
def token(sql: Any) -> str:
    sql("select procjobs.seed_demo()")
    found: str = sql.one(
        "select procjobs.sign_subscription("
        "format('group %s %s', procjobs.demo_id('family'), procjobs.demo_id('ingrid')))"
    )
    return found


def muted(sql: Any) -> bool:
    found: bool = sql.one(
        "select muted_until is not null from procjobs.host_group_recipients "
        "where group_id = procjobs.demo_id('family') and recipient_id = procjobs.demo_id('ingrid')"
    )
    return found


def test_looking_changes_nothing_and_the_button_unsubscribes(client: TestClient, sql: Any, token: str) -> None:
    for _ in range(2):
        page = client.get(f"/unsubscribe/{token}")
        assert page.status_code == 200 and "Unsubscribe from The Lindgrens?" in page.text
        assert client.head(f"/unsubscribe/{token}").status_code == 200
    assert not muted(sql)

    (form,) = Elements(page.text).all("form")
    assert form == {"method": "post", "action": f"/unsubscribe/{token}"}
    for _ in range(2):
        page = client.post(str(form["action"]))
        assert page.status_code == 200 and "You are unsubscribed" in page.text
    assert muted(sql)
    assert "You are unsubscribed" in client.get(f"/unsubscribe/{token}").text

    (form,) = Elements(page.text).all("form")
    page = client.post(str(form["action"]))
    assert "You are subscribed again" in page.text
    assert not muted(sql)


def test_whoever_opens_the_address_of_the_way_back_again_sees_what_is_so(
    client: TestClient, sql: Any, token: str
) -> None:
    """A reload from the address bar, a restored tab: a GET where the button had sent a POST."""
    assert "Unsubscribe from The Lindgrens?" in client.get(f"/unsubscribe/{token}/undo").text
    client.post(f"/unsubscribe/{token}")
    page = client.get(f"/unsubscribe/{token}/undo")
    assert page.status_code == 200 and "You are unsubscribed" in page.text and muted(sql)


@pytest.mark.parametrize("path", ["/unsubscribe/x", "/unsubscribe/x/undo", "/invite/x"])
def test_people_who_come_another_way_see_a_page_for_people(client: TestClient, path: str) -> None:
    answer = client.put(path, headers={"accept": "text/html"})
    assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert "This link does not work" in answer.text and "/mail" not in answer.text
    assert "noindex" in answer.headers["x-robots-tag"]


@pytest.mark.parametrize(
    "body", [{"data": {"List-Unsubscribe": "One-Click"}}, {"files": {"List-Unsubscribe": (None, "One-Click")}}, {}]
)
def test_a_mail_program_unsubscribes_with_one_click(client: TestClient, sql: Any, token: str, body: Any) -> None:
    """RFC 8058: no cookie, no Origin, no token of a form; a plain 200 and no redirect."""
    answer = client.post(f"/unsubscribe/{token}", **body, follow_redirects=False)
    assert answer.status_code == 200 and "set-cookie" not in answer.headers
    assert muted(sql)


def test_a_page_of_another_site_may_ask_too_since_the_token_is_what_counts(
    client: TestClient, sql: Any, token: str
) -> None:
    headers = {"origin": "https://mail.example", "sec-fetch-site": "cross-site"}
    assert client.post(f"/unsubscribe/{token}", headers=headers).status_code == 200
    assert muted(sql)


@pytest.mark.parametrize("state", ["", "/undo"])
def test_without_a_token_of_ours_nothing_can_be_done(client: TestClient, sql: Any, token: str, state: str) -> None:
    for wrong in (token[:-1], token[:-4] + "AAAA", "x", "%00", "a" * 5000):
        for answer in (client.get(f"/unsubscribe/{wrong}"), client.post(f"/unsubscribe/{wrong}{state}")):
            assert answer.status_code == 404 and "This link does not work" in answer.text
    assert not muted(sql)


def test_the_pages_are_closed_to_everything_but_their_form(client: TestClient, token: str) -> None:
    for answer in (
        client.get(f"/unsubscribe/{token}"),
        client.post(f"/unsubscribe/{token}"),
        client.get("/unsubscribe/x"),
    ):
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'none'"
        )
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-robots-tag"].startswith("noindex")
        page = Elements(answer.text)
        assert not page.all("script") and not any("style" in found for _, found in page.found)
        links = [*page.all("link"), *page.all("img"), *page.all("a")]
        assert all(str(link.get("href") or link.get("src")).startswith("/") for link in links)
        assert "/mail" not in answer.text and page.all("html")[0]["lang"] == "en"


def test_the_brand_gives_its_colours(client: TestClient) -> None:
    sheet = client.get("/brand.css")
    assert sheet.headers["content-type"].startswith("text/css") and "--brand: #0a7d55" in sheet.text


def test_names_of_the_application_are_never_markup(client: TestClient, sql: Any, token: str) -> None:
    sql("update procjobs_demo.groups set name = %s", CANARY)
    sql("update procjobs_demo.recipients set name = %s", CANARY)
    sql("update procjobs_demo.organizations set name = %s", CANARY)
    for answer in (client.get(f"/unsubscribe/{token}"), client.post(f"/unsubscribe/{token}"),
                   client.post(f"/unsubscribe/{token}/undo")):  # fmt: skip
        page = Elements(answer.text)
        assert not page.all("script") and not page.all("img") and "{{7*7}}" in page.words


def test_other_kinds_of_mail_are_named(client: TestClient, sql: Any) -> None:
    sql("select procjobs.seed_demo()")
    token = sql.one("select procjobs.sign_subscription('kind tips ' || procjobs.demo_id('maya'))")
    assert "Unsubscribe from tips?" in client.get(f"/unsubscribe/{token}").text
    assert "Maya Lindgren" in client.post(f"/unsubscribe/{token}").text
    assert sql.one("select count(*) from procjobs.unsubscriptions") == 1


def test_somebody_who_left_the_group_cannot_come_back_by_a_link(client: TestClient, sql: Any, token: str) -> None:
    sql("delete from procjobs_demo.group_recipients")
    assert "You are unsubscribed" in client.get(f"/unsubscribe/{token}").text
    assert "You are not part of it any more" in client.post(f"/unsubscribe/{token}/undo").text


def test_while_the_database_is_away_the_page_says_so() -> None:
    app = create_app(Settings(), "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")
    with TestClient(app) as away:
        for answer in (away.get(f"/unsubscribe/{'x' * 80}"), away.post(f"/unsubscribe/{'x' * 80}")):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "30"
            assert "Please try again in a minute" in answer.text
